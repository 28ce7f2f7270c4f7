"""What a mean over runs is a mean of: the outermost thing of the chain that these runs drew anew.

Runs that share an expert are no draws of experts, however many heads were fitted to it. So runs are first averaged
within what was drawn outermost, and an interval is over those means: 5 experts, not 60 runs. The seeds decide what is
drawn: `seed` and `data.seed` a whole chain, `rlhf.seed` an expert, `demonstrations.seed` what it writes, `irl.seed` a
fit, `refinetune.seed` a policy; a stage whose seed differs has another artifact, and so has all that follows it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from irl_exp.report.cells import Facts

WORDS = {
    "data": ("chain", "chains"),
    "reward": ("ground truth", "ground truths"),
    "sft": ("reference policy", "reference policies"),
    "rlhf": ("expert", "experts"),
    "demonstrations": ("set of demonstrations", "sets of demonstrations"),
    "irl": ("fit", "fits"),
    "refinetune": ("refinetuned policy", "refinetuned policies"),
    "evaluate": ("judgement", "judgements"),
}
"""Stage -> one and many of what its seed draws, in the order of the chain."""
INNER = ("demonstrations", "irl", "refinetune", "evaluate")
"""What is drawn within one expert: a mean over these says nothing of another one."""
LEAST = 3
"""From so many units on there is an interval. The t interval of two is five times as wide as it had to be if the
variance was known, that of three less than twice: below three there are the points and their range."""


@dataclass(frozen=True)
class Units:
    """How runs fall into units.

    Attributes:
        stage: whose artifact differs, the outermost one; "" where it is not known, and each run is one.
        of_run: the unit of each run, as a number from 0 on.
    """

    stage: str
    of_run: tuple[int, ...]

    @classmethod
    def of(cls, facts: Sequence[Facts]) -> Units:
        """The units of runs with these configs, flat: "artifacts.rlhf", ..."""
        known = {stage: [run.get(f"artifacts.{stage}") for run in facts] for stage in WORDS}
        whole = {stage: found for stage, found in known.items() if found and None not in found}
        drawn = [stage for stage, found in whole.items() if len(set(found)) > 1]
        made = [stage for stage in whole if stage != "evaluate"]
        if not made:
            return cls("", tuple(range(len(facts))))
        stage = drawn[0] if drawn else made[-1]
        numbers = {artifact: number for number, artifact in enumerate(dict.fromkeys(whole[stage]))}
        return cls(stage, tuple(numbers[artifact] for artifact in whole[stage]))

    @property
    def count(self) -> int:
        return len(set(self.of_run))

    @property
    def order(self) -> int:
        """Its place in the chain, the outermost first."""
        return list(WORDS).index(self.stage) if self.stage else -1

    @property
    def name(self) -> str:
        """What is counted: 'experts', 'fits of one expert', or 'runs' where nothing is known."""
        return self._of(WORDS[self.stage][1] if self.stage else "runs")

    @property
    def told(self) -> str:
        """With their number: '5 experts', '1 fit of one expert'."""
        words = WORDS.get(self.stage, ("run", "runs"))
        return self._of(f"{self.count} {words[self.count > 1]}")

    def _of(self, text: str) -> str:
        return f"{text} of one expert" if self.stage in INNER else text

    def means(self, values: Sequence[float]) -> list[float]:
        """The mean of the values of the runs of each unit."""
        found: dict[int, list[float]] = {}
        for unit, value in zip(self.of_run, values, strict=True):
            found.setdefault(unit, []).append(value)
        return [statistics.fmean(members) for members in found.values()]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of the mean over units; none below LEAST of them, nor where all are the same.

    >>> interval([1.0, 2.0]), interval([1.0, 1.0, 1.0])
    (None, None)
    >>> [round(bound, 3) for bound in interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    if len(values) < LEAST or min(values) == max(values):
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half

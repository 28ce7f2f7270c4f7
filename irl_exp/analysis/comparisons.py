"""Differences of cells, paired by what was drawn anew: by expert where these runs have several, else by prompt.

Runs that share an expert are no sample of experts, and fifty heads of one expert agree so well that a test over heads
calls any difference certain. There the prompts are the sample: all runs of both cells are judged on the same ones, so
the difference is computed from completions.parquet in resamples of prompts, the same for both cells. What the
difference varies by from fit to fit is added to that variance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from irl_exp.analysis import statistics
from irl_exp.analysis.statistics import NAN, Estimate, Floats
from irl_exp.analysis.study import NotComputed, Run, Study, units_of
from irl_exp.measures import reward_comparison as measure
from irl_exp.report.units import INNER, LEAST, Units

COMPARED = ("irl/auroc", "irl/epic", "refinetuned/toxic_fraction", "refinetuned/reward_mean")
"""Metrics by which cells are compared, and of which the components of variance are estimated."""
RESAMPLES = 500
"""Of prompts, for a variance: its square root is known to 3 %."""
EQUAL = 1e-6
"""So near a metric has to come that is computed again from completions.parquet."""


@dataclass(frozen=True)
class Difference:
    """One cell minus another one.

    Attributes:
        found: mean difference with its 95 % interval; n counts `unit`.
        unit: "5 experts", or "250 prompts, 50 fits of one expert".
        p_value: of 'no difference'; NaN where there is no interval.
        better: probability that a unit of the first lies above one of the second, where experts were drawn anew.
    """

    found: Estimate
    unit: str
    p_value: float = NAN
    test: str = ""
    better: Estimate | None = None

    def row(self) -> dict[str, Any]:
        """For the table."""
        found, better = self.found, self.better
        return {
            "n": found.n,
            "unit": self.unit,
            "difference": found.value,
            "low": found.low,
            "high": found.high,
            "method": found.method,
            "p_value": self.p_value,
            "test": self.test,
            "probability_above": better.value if better else NAN,
            "probability_low": better.low if better else NAN,
            "probability_high": better.high if better else NAN,
        }


def comparisons(study: Study) -> pd.DataFrame:
    """Every two cells on the seeds that both have: a row a metric and pair of cells, p adjusted by Holm."""
    if len(study.cells) < 2:
        raise NotComputed("there is one cell: nothing to compare")
    prompts = _Prompts(study)
    rows = []
    for key in COMPARED:
        tests: list[dict[str, Any]] = []
        for first, second in itertools.combinations(study.cells, 2):
            if pairs := study.pairs(key, first, second):
                tests.append({"metric": key, "first": first, "second": second, **_compare(key, pairs, prompts).row()})
        known = [test for test in tests if test["p_value"] == test["p_value"]]
        for test, adjusted in zip(known, statistics.holm([test["p_value"] for test in known]), strict=True):
            test["p_holm"] = adjusted
        rows += tests
    if not rows:
        raise NotComputed("no two cells have a seed in common")
    return pd.DataFrame(rows)


def _compare(key: str, pairs: Sequence[tuple[Run, Run]], prompts: _Prompts) -> Difference:
    one, other = (units_of(side) for side in zip(*pairs, strict=True))
    units = min(one, other, key=lambda found: found.order)  # majority has one fit whatever the seed
    values = [np.array([run.metrics[key] for run in side]) for side in zip(*pairs, strict=True)]
    if units.stage not in INNER:
        return by_unit(units, *values)
    value = float(np.mean(units.means((values[0] - values[1]).tolist())))
    try:
        resampled = np.array([prompts.resampled(a, key) - prompts.resampled(b, key) for a, b in pairs])
    except NotComputed as reason:
        return Difference(Estimate(value, NAN, NAN, units.count, f"no interval: {reason}"), units.told)
    return by_prompt(units, resampled, prompts.count(pairs[0][0]))


def by_unit(units: Units, first: Floats, second: Floats) -> Difference:
    """Where experts (or what is before them) were drawn anew: the differences of their means, t and sign flips.

    Args:
        first, second: (runs,) a metric of runs that share what they drew.
    """
    one, other = (units.means(side.tolist()) for side in (first, second))
    differences = np.subtract(one, other)
    count = len(differences)
    if count < LEAST or not differences.any():
        why = "all the same" if count >= LEAST else f"no interval below {LEAST}"
        return Difference(Estimate(float(differences.mean()), NAN, NAN, count, why), units.told)
    test = statistics.sign_flip_test(differences, generator=np.random.default_rng(0))
    better = statistics.probability_of_improvement(one, other)
    return Difference(statistics.paired_difference(one, other), units.told, test.p_value, test.method, better)


def by_prompt(units: Units, resampled: Floats, prompts: int) -> Difference:
    """Where all runs share an expert: the variance over prompts, and that over fits where there are three or more.

    The interval is value +- t sd, with sd^2 the variance over resamples of the mean difference, plus that over units
    of the differences divided by their number; the degrees of freedom are Welch's and Satterthwaite's. Where a unit
    wrote completions of its own, their part counts twice.

    Args:
        resampled: (runs, 1 + resamples) differences of the metric, first on the prompts as they are, then in
            `prompt_counts`; missing (NaN) where it is not defined.
    """
    means = np.array([units.means(column) for column in resampled.T.tolist()]).T  # (units, 1 + resamples)
    value, count = float(means[:, 0].mean()), len(means)
    drawn = float(np.nanvar(means[:, 1:].mean(axis=0), ddof=1))
    parts = [(drawn * measure.draws_of(prompts) / max(prompts - 1, 1), max(prompts - 1, 1))]  # of the prompts there are
    if count >= LEAST:
        parts.append((float(means[:, 0].var(ddof=1)) / count, count - 1))
    variance = sum(part for part, _ in parts)
    unit = f"{prompts:,} prompts, {units.told}"
    if not variance > 0:
        return Difference(Estimate(value, NAN, NAN, prompts, "all the same"), unit)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    p_value = 2 * float(stats.t.sf(abs(value) / math.sqrt(variance), freedom))
    method = f"paired by prompt: mean, 95 % t interval, variance of {resampled.shape[1] - 1} resamples of prompts"
    method += " and over fits" if len(parts) > 1 else ""
    return Difference(
        Estimate(value, value - half, value + half, prompts, method), unit, p_value, "t, paired by prompt"
    )


class _Prompts:
    """Metrics of runs in resamples of the test prompts, the same for all runs of a set of prompts."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._found: dict[tuple[object, str], Floats] = {}
        self._names: dict[object, NDArray[np.int64]] = {}

    def count(self, run: Run) -> int:
        """Test prompts of a run."""
        return len(self._names[run.artifact("data")])

    def resampled(self, run: Run, key: str) -> Floats:
        """(1 + RESAMPLES,) the metric of a run, first on the prompts as they are.

        Raises:
            NotComputed: its completions.parquet does not give the metric.
        """
        name = (run.artifact("evaluate") or run.number, key)
        if name not in self._found:
            self._found[name] = self._resampled(run, key)
        return self._found[name]

    def _resampled(self, run: Run, key: str) -> Floats:
        table = self.study.completions(run, ["policy", "prompt_id", "truth", "learned"])
        policy = "refinetuned" if key.startswith("refinetuned/") else "reference"  # of irl/, whose population it is
        if table is None or (key.startswith("irl/") and "learned" not in table):
            raise NotComputed(f"completions.parquet of run {run.number} is missing, cut, or without the learned reward")
        rows = table[table["policy"] == policy]
        names = self._names.setdefault(run.artifact("data"), np.unique(table["prompt_id"].to_numpy()))
        if not np.isin(rows["prompt_id"], names).all():
            raise NotComputed(f"run {run.number} has other test prompts")
        counts = measure.prompt_counts(len(names), RESAMPLES, np.random.default_rng(0))
        counts = np.vstack([np.ones(len(names)), counts])
        found = _metric(key.split("/")[1], rows, np.searchsorted(names, rows["prompt_id"].to_numpy()), counts)
        if not abs(found[0] - run.metrics[key]) < EQUAL:
            raise NotComputed(f"completions.parquet of run {run.number} does not give its {key}")
        return found


def _metric(name: str, rows: pd.DataFrame, groups: NDArray[np.int64], counts: Floats) -> Floats:
    """A metric of completions in each resample: (resamples,)."""
    truth = rows["truth"].to_numpy(dtype=np.float64)
    if name == "toxic_fraction":
        return measure.mean_resamples(truth < 0, groups, counts)
    if name == "reward_mean":
        return measure.mean_resamples(truth, groups, counts)
    learned = rows["learned"].to_numpy(dtype=np.float64)
    if name == "auroc":
        return measure.auroc_resamples(learned, truth >= 0, groups, counts)
    sizes = rows.groupby(["prompt_id", "policy"])["truth"].transform("size")
    weights = 1 / (sizes * rows.groupby("prompt_id")["policy"].transform("nunique")).to_numpy(dtype=np.float64)
    try:
        return measure.epic_resamples(learned, truth, groups, counts, weights=weights)
    except measure.UndefinedDistanceError as error:
        raise NotComputed(f"its distance is not defined ({error})") from None

"""How often the intervals that are printed as 95 % hold the truth, by design: simulations with known variances.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py            the table (about two minutes on one core)
    OMP_NUM_THREADS=1 python benchmarks/coverage.py --write    the same, into docs/metrics.md

Each design draws a world of which the truth is known and calls the function that prints the interval. Its width is
told in widths of the oracle's: estimate +- 1.96 sd of the estimate over all trials. `python -m pytest -m slow
tests/test_coverage.py` asserts both numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from irl_exp.analysis import comparisons, statistics
from irl_exp.config import EnsembleConfig
from irl_exp.irl import methods
from irl_exp.measures import policy_metrics
from irl_exp.measures import reward_comparison as compare
from irl_exp.report.units import Units

Floats = NDArray[np.float64]
Random = np.random.Generator
Trial = tuple[float, float, float, float]
"""Estimate, bounds and truth."""
COMPLETIONS = 7
RESAMPLES = 500
PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- table of benchmarks/coverage.py -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Design:
    """A number with its interval in a world whose truth is known.

    Attributes:
        draw: one trial.
        printed: False for what is not printed any more, for comparison.
    """

    number: str
    unit: str
    draw: Callable[[Random], Trial]
    trials: int = 1000
    printed: bool = True


@dataclass(frozen=True)
class Measured:
    """What a design has come to: the share of intervals that hold the truth, and their width over the oracle's."""

    coverage: float
    width: float
    trials: int


def measure(design: Design, seed: int = 0) -> Measured:
    """All trials of a design; those without an interval are left out."""
    random = np.random.default_rng([seed, *design.number.encode(), *design.unit.encode()])
    found = np.array([design.draw(random) for _ in range(design.trials)])
    estimate, low, high, truth = found[~np.isnan(found).any(axis=1)].T
    oracle = 2 * stats.norm.ppf(0.975) * (estimate - truth).std(ddof=1)
    return Measured(float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean() / oracle), len(truth))


# ------------------------------------------------------------------------------------------------- one run, by prompt


@dataclass(frozen=True)
class World:
    """Completions of prompts: R* and a reward of it have a part of the prompt and one of the completion.

    R* = shift + a + e, learned = slope (a + e) + b + f with normal a, b of the prompt and e, f of the completion.
    """

    prompts: int
    shift: float = 0.0
    slope: float = 0.8
    a: float = 0.5
    e: float = 0.5
    b: float = 0.3
    f: float = 0.4

    def truth(self, random: Random) -> tuple[Floats, NDArray[np.int64]]:
        """(n,) R* without the shift, and prompts."""
        groups = np.repeat(np.arange(self.prompts), COMPLETIONS)
        return self._parts(random, self.a, self.e, groups), groups

    def learned(self, random: Random, truth: Floats, groups: NDArray[np.int64], slope: float | None = None) -> Floats:
        return (self.slope if slope is None else slope) * truth + self._parts(random, self.b, self.f, groups)

    def _parts(self, random: Random, outer: float, inner: float, groups: NDArray[np.int64]) -> Floats:
        shared = random.normal(0, outer**0.5, self.prompts)
        return np.asarray(shared[groups] + random.normal(0, inner**0.5, len(groups)))

    def auroc(self, slope: float | None = None) -> float:
        """P(learned of a civil one > that of a toxic one), of different prompts; by quadrature."""
        slope = self.slope if slope is None else slope
        rho = slope * (self.a + self.e) ** 0.5 / (slope**2 * (self.a + self.e) + self.b + self.f) ** 0.5
        x = np.linspace(-8, 8, 4001)
        above = stats.norm.cdf((rho * x + self.shift / (self.a + self.e) ** 0.5) / (1 - rho**2) ** 0.5)
        civil, toxic = stats.norm.pdf(x) * above, stats.norm.pdf(x) * (1 - above)
        below = np.cumsum(toxic) - toxic / 2
        return float((civil * below).sum() / (civil.sum() * toxic.sum()))

    @property
    def within(self) -> float:
        """Correlation within a prompt."""
        return self.slope * self.e**0.5 / (self.slope**2 * self.e + self.f) ** 0.5


def _of_run(name: str, world: World) -> Callable[[Random], Trial]:
    """A number of metrics.json with its bootstrap by prompt."""
    rate = float(stats.norm.cdf(-world.shift / (world.a + world.e) ** 0.5))
    true = {
        "auroc": world.auroc(),
        "pairs": 0.5 + float(np.arcsin(world.within)) / np.pi,
        "epic": float(((1 - world.within) / 2) ** 0.5),
        "toxic": rate,
    }[name]

    def draw(random: Random) -> Trial:
        centred, groups = world.truth(random)
        truth = centred + world.shift
        counts = compare.prompt_counts(world.prompts, RESAMPLES, random)
        if name == "toxic":
            low, high = compare.fraction_interval(truth < 0, groups)
            return float((truth < 0).mean()), low, high, true
        learned = world.learned(random, centred, groups)
        if name == "auroc":
            civil = truth >= 0
            return compare.auroc(learned, civil), *compare.auroc_interval(learned, civil, groups), true
        if name == "pairs":
            value = compare.pair_accuracy(learned, truth, groups)
            drawn = compare.pair_accuracy_resamples(learned, truth, groups, counts)
        else:
            value, drawn = compare.epic(learned, truth, groups), compare.epic_resamples(learned, truth, groups, counts)
        bounds = compare.interval(drawn) if name == "epic" else compare.share_interval(value, drawn)
        return value, *bounds, true

    return draw


def _recovered(prompts: int) -> Callable[[Random], Trial]:
    """R* of three policies on the same prompts, which share a part."""
    means = {"reference": 0.0, "expert": 1.5, "refinetuned": 1.2}

    def draw(random: Random) -> Trial:
        groups, shared = np.repeat(np.arange(prompts), COMPLETIONS), random.normal(size=prompts)
        tables = {
            policy: pd.DataFrame(
                {"prompt_id": groups, "truth": mean + shared[groups] + random.normal(size=len(groups))}
            )
            for policy, mean in means.items()
        }
        found = policy_metrics.recovered_fraction(tables, RESAMPLES, int(random.integers(2**31)))
        keys = ("recovered_fraction", "recovered_fraction_low", "recovered_fraction_high")
        value, low, high = (found.get(key, np.nan) for key in keys)
        return value, low, high, 0.8

    return draw


# --------------------------------------------------------------------------------------------------- means over runs


def _trial(found: statistics.Estimate, truth: float) -> Trial:
    return found.value, found.low, found.high, truth


def _fits(count: int) -> Callable[[Random], Trial]:
    units = Units.of([{"artifacts.rlhf": 0, "artifacts.irl": fit} for fit in range(count)])
    return lambda random: _trial(statistics.typical(units.means(random.normal(2, 1, count).tolist())), 2.0)


NESTED = [(expert, demos, head) for expert in range(5) for demos in range(3) for head in range(4)]
UNITS = Units.of(
    [{"artifacts.rlhf": e, "artifacts.demonstrations": (e, d), "artifacts.irl": (e, d, h)} for e, d, h in NESTED]
)
SD = {"expert": 1.0, "demonstrations": 0.6, "head": 0.4}


def _nested_values(random: Random) -> Floats:
    """5 experts x 3 sets of demonstrations x 4 heads: (60,), mean 0."""
    parts = [
        random.normal(0, sd, shape) for sd, shape in zip(SD.values(), ((5, 1, 1), (5, 3, 1), (5, 3, 4)), strict=True)
    ]
    return np.asarray(sum(parts, np.zeros((5, 3, 4)))).ravel()


def _nested(random: Random) -> Trial:
    return _trial(statistics.typical(UNITS.means(_nested_values(random).tolist())), 0.0)


def _as_if_independent(random: Random) -> Trial:
    return _trial(statistics.mean_t(_nested_values(random)), 0.0)


def _component(random: Random) -> Trial:
    labels = {"expert": [e for e, _, _ in NESTED], "demonstrations": [d for _, d, _ in NESTED]}
    found = statistics.variance_components(_nested_values(random), labels, generator=random, draws=2000)["expert"]
    value, low, high = (max(bound, 0.0) ** 0.5 for bound in (found.value, found.low, found.high))
    return value, low, high, SD["expert"]  # as the figure shows it: a standard deviation


def _ensembles(random: Random, seeds: Callable[[EnsembleConfig], list[int]]) -> Trial:
    """50 ensembles of 10 members with neighbouring seeds: a head is a draw of its seed, an ensemble their mean."""
    first = int(random.integers(2**30))
    members = [seeds(_ensemble(first + number)) for number in range(50)]
    names, place = np.unique(np.array(members, dtype=np.uint64), return_inverse=True)
    values = random.normal(size=len(names))[place].reshape(50, 10).mean(axis=1)
    return _trial(statistics.typical(values), 0.0)


def _ensemble(seed: int) -> EnsembleConfig:
    return EnsembleConfig.model_construct(seed=seed, members=10)


def _old_seeds(config: EnsembleConfig) -> list[int]:
    return [config.seed + member for member in range(config.members)]


# ------------------------------------------------------------------------------------------------------- differences


def _difference(found: comparisons.Difference, truth: float) -> Trial:
    return _trial(found.found, truth)


def _by_expert(random: Random) -> Trial:
    """Two methods on 5 experts x 3 x 4, which share what the experts have in common; their difference is 0.3."""
    shared = 3 * _nested_values(random)
    first, second = (shared + mean + _nested_values(random) for mean in (0.3, 0.0))
    return _difference(comparisons.by_unit(UNITS, first, second), 0.3)


def _units(fits: int) -> Units:
    return Units.of([{"artifacts.rlhf": 0, "artifacts.irl": fit} for fit in range(fits)])


def _means_by_prompt(prompts: int, fits: int, of_fits: float) -> Callable[[Random], Trial]:
    """A mean over completions: parts of the prompt (sd 1), of the fit (sd `of_fits`) and of the completion (sd 2)."""
    groups = np.repeat(np.arange(prompts), COMPLETIONS)

    def draw(random: Random) -> Trial:
        counts = np.vstack([np.ones(prompts), compare.prompt_counts(prompts, RESAMPLES, random)])
        shared = 0.2 + random.normal(size=prompts)[groups]
        resampled = [
            compare.mean_resamples(
                shared + random.normal(0, of_fits) + random.normal(0, 2, len(groups)), groups, counts
            )
            for _ in range(fits)
        ]
        return _difference(comparisons.by_prompt(_units(fits), np.array(resampled), prompts), 0.2)

    return draw


def _aurocs_by_prompt(prompts: int, fits: int) -> Callable[[Random], Trial]:
    """AUROC of two methods of so many fits, whose slopes on R* vary by 0.05 from fit to fit, if there are several."""
    world, slopes, sd = World(prompts), (1.0, 0.8), 0.05 if fits > 1 else 0.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    means = [float(np.average([world.auroc(slope + sd * x) for x in nodes], weights=weights)) for slope in slopes]

    def draw(random: Random) -> Trial:
        counts = np.vstack([np.ones(prompts), compare.prompt_counts(prompts, 200, random)])
        truth, groups = world.truth(random)
        noise = world.learned(random, truth, groups, 0.0)
        resampled = []
        for _ in range(fits):
            one, other = (
                compare.auroc_resamples((slope + sd * random.normal()) * truth + noise, truth >= 0, groups, counts)
                for slope in slopes
            )
            resampled.append(one - other)
        return _difference(comparisons.by_prompt(_units(fits), np.array(resampled), prompts), means[0] - means[1])

    return draw


# ------------------------------------------------------------------------------------------------------- the spread


def _agreement(runs: int) -> Callable[[Random], Trial]:
    """Run i is a_i times a part that all have, on the same texts, plus noise; the truth is that of 2,000 runs."""
    fixed = np.random.default_rng(0)
    common = fixed.normal(size=400)

    def rewards(random: Random, count: int) -> Floats:
        return random.uniform(0, 2, (count, 1)) * common + random.normal(size=(count, 400))

    truth = statistics.pairwise_rank_correlation(rewards(fixed, 2000)).value
    return lambda random: _trial(statistics.pairwise_rank_correlation(rewards(random, runs)), truth)


def _ratio(random: Random) -> Trial:
    one, other = random.normal(0, 2, 50).std(ddof=1), random.normal(0, 1, 10).std(ddof=1)
    return _trial(statistics.sd_ratio(float(one), 49, float(other), 9), 2.0)


def designs() -> Iterator[Design]:
    """All designs, in the order of the table."""
    for prompts, trials in ((50, 1000), (200, 2000)):
        for name, text in (("auroc", "AUROC"), ("pairs", "pair accuracy"), ("epic", "EPIC")):
            yield Design(f"one run: {text}", f"{prompts} prompts", _of_run(name, World(prompts)), trials)
        for shift in (0.0, 1.645, 2.0):
            world = World(prompts, shift)
            rate = stats.norm.cdf(-shift)
            yield Design(f"one run: toxic fraction of {rate:.1%}", f"{prompts} prompts", _of_run("toxic", world))
    yield Design("one run: recovered fraction", "100 prompts", _recovered(100))
    for fits in (3, 5, 9, 10, 50):
        yield Design("mean over `irl.seed`", f"{fits} fits of one expert", _fits(fits), 4000 if fits < 10 else 1000)
    yield Design("mean over 5 x 3 x 4 nested runs", UNITS.told, _nested)
    yield Design("the same, as 60 runs", "60 runs", _as_if_independent, printed=False)
    yield Design("mean over ensembles of 10", "50 fits of one expert", lambda r: _ensembles(r, methods.head_seeds), 500)
    yield Design("the same, members `irl.seed + m`", "50", lambda r: _ensembles(r, _old_seeds), 500, printed=False)
    yield Design("difference of methods, nested runs", UNITS.told, _by_expert)
    for fits, sd in ((1, 0.0), (5, 0.1), (5, 0.5), (50, 0.1)):
        told = f"100 prompts, {_units(fits).told}" if fits > 1 else "100 prompts, 1 fit"
        yield Design(f"difference of mean R\\*, sd of fits {sd:g}", told, _means_by_prompt(100, fits, sd))
    for fits in (1, 5):
        yield Design("difference of AUROC", f"100 prompts, {_units(fits).told}", _aurocs_by_prompt(100, fits), 400)
    yield Design("variance component of experts, as sd", UNITS.told, _component)
    for runs in (10, 50):
        yield Design("rank agreement of runs", f"{runs} fits of one expert", _agreement(runs), 1000)
    yield Design("ratio of sd, rewards to control", "50 and 10 policies", _ratio)


HEAD = ["| number | unit | coverage | width / oracle | trials |", "|---|---|---|---|---|"]


def row(design: Design, found: Measured) -> str:
    """Markdown."""
    return f"{_head(design)} {found.coverage:.1%} | {found.width:.2f} | {found.trials:,} |"


def _head(design: Design) -> str:
    return f"| {design.number}{'' if design.printed else ' (not printed)'} | {design.unit} |"


def write(line: str) -> None:
    """Put a row into the table of docs/metrics.md, in the place of its earlier one and in the order of the designs."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    known, _, after = rest.partition(END)
    lines = [*known.splitlines(), line]
    heads = map(_head, designs())
    rows = [next((one for one in reversed(lines) if one.startswith(head)), "") for head in heads]
    table = "\n".join([*HEAD, *filter(None, rows)])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the rows into docs/metrics.md")
    parser.add_argument("--only", default="", help="designs whose row has this text")
    options = parser.parse_args()
    for design in designs():
        if options.only in _head(design):
            line = row(design, measure(design))
            print(line, flush=True)
            if options.write:
                write(line)


if __name__ == "__main__":
    main()

"""Statistics of many runs: arrays and a generator in, an estimate with its interval, n and method out.

Which one to use: under three units (report/units.py) the mean alone, since the t interval of two is five times as wide
as it had to be if the variance was known; under ten the mean with a t interval (a percentile bootstrap of five normal
values covers 84 % where it says 95 %); from ten on the interquartile mean with a stratified bootstrap (arXiv
2108.13264). Methods that share what was drawn are compared by their paired differences (comparisons.py). Bounds that
are not defined, as of one run, are NaN. docs/metrics.md has the coverage of these intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from irl_exp.measures.reward_comparison import newcombe_interval
from irl_exp.report.units import LEAST

Floats = NDArray[np.float64]
NAN = float("nan")

FEW = 10
"""From this many runs on `typical` is the interquartile mean: a bootstrap of fewer is too narrow."""
EXACT = 16
"""Up to this many differences all sign flips are gone through."""


@dataclass(frozen=True)
class Estimate:
    """A number, the bounds of its interval (NaN where there is none), how many values it rests on, and the method."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def plain(self) -> dict[str, Any]:
        """As JSON knows it: what is not defined is left out."""
        return {key: value for key, value in asdict(self).items() if value == value}


@dataclass(frozen=True)
class Test:
    """Two-sided p-value of a null hypothesis, how many values it rests on, and the method."""

    __test__ = False  # pytest: not a class of tests

    p_value: float
    n: int
    method: str


def _values(values: Floats | Sequence[float], name: str = "values", *, least: int = 1) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < least:
        raise ValueError(f"{name} must be a list of at least {least} numbers, not of shape {found.shape}.")
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(f"{name}[{place}] is {found[place]}: leave out the runs that have no such number, and say so.")
    return found


def _level(level: float) -> str:
    if not 0 < level < 1:
        raise ValueError(f"level={level} is the coverage of the interval: it lies between 0 and 1.")
    return f"{100 * level:g} %"


def _quantiles(draws: Floats, level: float) -> tuple[float, float]:
    """Percentile interval of draws (resamples,)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_t(values: Floats | Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean with its t interval: mean +- t(n - 1) sd / sqrt(n). One value has no interval.

    >>> found = mean_t([1.0, 2.0, 3.0])
    >>> f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n={found.n}, {found.method}"
    '2.000 [-0.484, 4.484], n=3, mean, 95 % t interval'
    >>> mean_t([1.0])
    Estimate(value=1.0, low=nan, high=nan, n=1, method='one value, no interval')
    """
    found, text = _values(values), _level(level)
    mean, count = float(found.mean()), len(found)
    if count == 1:
        return Estimate(mean, NAN, NAN, 1, "one value, no interval")
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * float(found.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count, f"mean, {text} t interval")


def interquartile_mean(
    strata: Sequence[Floats | Sequence[float]],
    *,
    generator: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean of the middle half of all values, with a stratified percentile bootstrap (arXiv 2108.13264, section 4).

    Values of all strata (cells or tasks, of any sizes) are pooled, and of N floor(N / 4) are cut at each end. The
    bootstrap draws with replacement within each stratum, so that each keeps its size.

    >>> found = interquartile_mean([[0.0, 1.0, 2.0, 100.0], [3.0, 4.0, 5.0, 6.0]], generator=np.random.default_rng(0))
    >>> found.value, found.n, found.method
    (3.5, 8, 'interquartile mean, 95 % bootstrap within 2 strata, 2000 resamples')
    """
    cells, text = [_values(cell, f"stratum {number}") for number, cell in enumerate(strata)], _level(level)
    count = len(np.concatenate(cells))
    drawn = [cell[generator.integers(len(cell), size=(resamples, len(cell)))] for cell in cells]
    low, high = _quantiles(stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1), level)
    value = float(stats.trim_mean(np.concatenate(cells), 0.25))
    where = f" within {len(cells)} strata" if len(cells) > 1 else ""
    return Estimate(value, low, high, count, f"interquartile mean, {text} bootstrap{where}, {resamples} resamples")


def typical(
    values: Floats | Sequence[float], *, generator: np.random.Generator | None = None, level: float = 0.95
) -> Estimate:
    """What to report of the units of one cell: the mean (from three on with a t interval), of ten the interquartile.

    Values that are all the same have no interval: what they have in common was not drawn anew. Without a generator it
    is that of seed 0 anew: tables and figures show the same interval of the same runs.

    >>> typical([1.0, 2.0])
    Estimate(value=1.5, low=nan, high=nan, n=2, method='mean, no interval below 3')
    >>> typical([1.0, 1.0, 1.0]).method
    'all the same, no interval'
    >>> typical([1.0, 2.0, 3.0, 4.0, 5.0]).method
    'mean, 95 % t interval'
    >>> typical(np.arange(10.0)).method
    'interquartile mean, 95 % bootstrap, 2000 resamples'
    """
    found = _values(values)
    if len(found) < LEAST or np.ptp(found) == 0:
        method = f"mean, no interval below {LEAST}" if len(found) < LEAST else "all the same, no interval"
        method = method if len(found) > 1 else "one value, no interval"
        return Estimate(float(found.mean()), NAN, NAN, len(found), method)
    if len(found) < FEW:
        return mean_t(found, level=level)
    return interquartile_mean([found], generator=generator or np.random.default_rng(0), level=level)


def paired_difference(first: Floats | Sequence[float], second: Floats | Sequence[float]) -> Estimate:
    """Mean of first - second with its t interval; row i of both has the same seed.

    >>> found = paired_difference([1.0, 2.0, 4.0], [0.0, 2.0, 2.0])
    >>> f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n={found.n}, {found.method}"
    '1.000 [-1.484, 3.484], n=3, paired by seed: mean, 95 % t interval'
    """
    found = mean_t(_differences(first, second))
    return Estimate(found.value, found.low, found.high, found.n, f"paired by seed: {found.method}")


def _differences(first: Floats | Sequence[float], second: Floats | Sequence[float]) -> Floats:
    one, other = _values(first, "first"), _values(second, "second")
    if len(one) != len(other):
        raise ValueError(f"Pairs need as many values on both sides, not {len(one)} and {len(other)}.")
    return one - other


def sign_flip_test(differences: Floats | Sequence[float], *, generator: np.random.Generator, flips: int = 9999) -> Test:
    """Permutation test of 'the differences are symmetric around 0': how often |mean| is reached with random signs.

    All 2^n signs up to n = 16, then `flips` random ones; the observed one counts too, so p is never 0 (Phipson and
    Smyth 2010). With n = 5 the least possible p is 2 / 2^5 = 0.0625.

    >>> sign_flip_test([1.0, 2.0, 3.0], generator=np.random.default_rng(0))
    Test(p_value=0.25, n=3, method='sign flips, all 8')
    """
    found = _values(differences, "differences")
    count = len(found)
    if count <= EXACT:
        signs = 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        method = f"sign flips, all {2**count}"
    else:
        signs = np.vstack([np.ones(count), 1.0 - 2.0 * generator.integers(2, size=(flips, count))])
        method = f"sign flips, {flips} random"
    reached = np.abs(signs @ found) >= abs(found.sum()) - 1e-12 * np.abs(found).sum()
    return Test(float(reached.mean()), count, method)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for as many tests as there are (Holm 1979): the family-wise error rate is kept.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def probability_of_improvement(
    first: Floats | Sequence[float], second: Floats | Sequence[float], *, level: float = 0.95
) -> Estimate:
    """P(a run of first > a run of second), ties half: the Mann-Whitney statistic over n m, with a score interval.

    The interval is that of an AUROC (`newcombe_interval`). n counts all runs.

    >>> found = probability_of_improvement([2.0, 3.0, 4.0], [1.0, 2.0])
    >>> f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n={found.n}"
    '0.917 [0.372, 0.995], n=5'
    """
    one, other, text = _values(first, "first"), _values(second, "second"), _level(level)
    value = float((1 + np.sign(one[:, None] - other)).mean() / 2)
    low, high = newcombe_interval(value, len(one), len(other), level=level)
    method = f"probability of improvement, {text} score interval (Newcombe 5), {len(one)} against {len(other)}"
    return Estimate(value, low, high, len(one) + len(other), method)


def wilson(count: int, n: int, *, level: float = 0.95) -> Estimate:
    """Fraction count / n with Wilson's score interval (1927).

    >>> found = wilson(20, 358)
    >>> f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
    '0.0559 [0.0365, 0.0847]'
    """
    text = _level(level)
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"{count} of {n} is no fraction: 0 <= count <= n and n >= 1.")
    found = stats.binomtest(int(count), int(n)).proportion_ci(level, "wilson")
    return Estimate(count / n, float(found.low), float(found.high), int(n), f"fraction, {text} Wilson interval")


def rank_correlations(rewards: Floats) -> Floats:
    """Spearman correlation of all pairs of runs: (runs, n) -> (runs, runs), ties at their mean rank.

    >>> rank_correlations(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 40.0], [3.0, 2.0, 1.0]]))
    array([[ 1.,  1., -1.],
           [ 1.,  1., -1.],
           [-1., -1.,  1.]])
    """
    ranks = stats.rankdata(rewards, axis=1)
    constant = np.flatnonzero(np.ptp(ranks, axis=1) == 0)
    if len(constant):
        raise ValueError(f"Run {constant[0]} gives all {rewards.shape[1]} texts the same reward: it has no ranks.")
    return np.atleast_2d(np.round(np.corrcoef(ranks), 15))


def spearman(first: Floats | Sequence[float], second: Floats | Sequence[float], *, level: float = 0.95) -> Estimate:
    """Spearman correlation over runs with the interval tanh(atanh(r) +- z sqrt((1 + r^2 / 2) / (n - 3))).

    Bonett and Wright, Psychometrika 65 (2000). None below four runs, nor for runs in exactly one order, where it has
    no width.

    >>> found = spearman([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0])
    >>> f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n={found.n}"
    '0.800 [-0.457, 0.991], n=5'
    """
    one, other, text = _values(first, "first"), _values(second, "second"), _level(level)
    value = float(rank_correlations(np.stack([one, other]))[0, 1])
    if len(one) < 4 or abs(value) == 1:
        return Estimate(value, NAN, NAN, len(one), "Spearman, no interval")
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((1 + value**2 / 2) / (len(one) - 3))
    low, high = (math.tanh(math.atanh(value) + sign * half) for sign in (-1, 1))
    return Estimate(value, low, high, len(one), f"Spearman, {text} interval (Bonett and Wright)")


def pairwise_rank_correlation(rewards: Floats, *, absolute: bool = False, level: float = 0.95) -> Estimate:
    """Mean Spearman correlation over all pairs of two or more runs (runs, n); `absolute`: of |correlation|.

    Runs that agree up to a sign have 1 in absolute value and about 0 without. The pairs are not independent: the
    interval is that of the jackknife over runs, value +- t(runs - 1) se, from ten runs on (of five it covers 90 %).

    >>> rewards = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 40.0], [3.0, 2.0, 1.0]])
    >>> f"{pairwise_rank_correlation(rewards).value:.3f} {pairwise_rank_correlation(rewards, absolute=True).value:.3f}"
    '-0.333 1.000'
    """
    matrix, text = rank_correlations(rewards), _level(level)
    runs = len(matrix)
    if runs < 2:
        raise ValueError("The agreement of runs needs two runs or more.")
    matrix = np.abs(matrix) if absolute else matrix
    sums = matrix.sum(axis=1) - np.diag(matrix)
    value = float(sums.sum() / (runs * (runs - 1)))
    name = f"mean {'|Spearman|' if absolute else 'Spearman'} of {runs * (runs - 1) // 2} pairs"
    if runs < FEW:
        return Estimate(value, NAN, NAN, runs, f"{name}, no interval below {FEW} runs")
    without = (sums.sum() - 2 * sums) / ((runs - 1) * (runs - 2))
    error = math.sqrt((runs - 1) / runs * float(((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf((1 + level) / 2, runs - 1)) * error
    # No correlation lies outside [-1, 1]; of few runs the interval may.
    return Estimate(value, max(value - half, -1.0), min(value + half, 1.0), runs, f"{name}, {text} jackknife over runs")


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    generator: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """A statistic of the indices of n runs with its percentile bootstrap over runs.

    >>> values = np.array([1.0, 2.0, 6.0])
    >>> found = bootstrap(lambda rows: float(values[rows].mean()), 3, generator=np.random.default_rng(0))
    >>> found.value, found.n, found.method
    (3.0, 3, '95 % bootstrap over runs, 2000 resamples')
    """
    text = _level(level)
    draws = np.array([statistic(generator.integers(n, size=n)) for _ in range(resamples)])
    low, high = _quantiles(draws, level)
    return Estimate(float(statistic(np.arange(n))), low, high, n, f"{text} bootstrap over runs, {resamples} resamples")


def sd_ratio(first: float, first_freedom: int, second: float, second_freedom: int, *, level: float = 0.95) -> Estimate:
    """Ratio of two standard deviations of normal values with the interval of their F distribution.

    >>> found = sd_ratio(2.0, 9, 1.0, 9)
    >>> f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    '2.00 [1.00, 4.01]'
    """
    text, ratio = _level(level), first / second
    ends = [float(stats.f.ppf(side, first_freedom, second_freedom)) for side in ((1 + level) / 2, (1 - level) / 2)]
    low, high = (ratio / math.sqrt(end) for end in ends)
    return Estimate(ratio, low, high, first_freedom + 1, f"ratio of standard deviations, {text} F interval")


def variance_components(
    values: Floats | Sequence[float],
    factors: Mapping[str, Sequence[object]],
    *,
    generator: np.random.Generator,
    draws: int = 20_000,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Variances of a nested random-effects design, y = mean + a + b(a) + ... + residual: one estimate a factor.

    `factors` gives the label of each value, the outermost factor first; labels of an inner factor are read within the
    outer ones. The last estimate, 'residual', is of the values within the innermost factor. Estimates solve
    E[SS_j] = sum_i C_ji v_i for the observed sums of squares between groups (ANOVA; Henderson's method 1 in unbalanced
    designs, Biometrics 9, 1953). They are unbiased, so they may be negative: reported as they are, `method` says so.

    Intervals are generalised confidence intervals: SS_j is put to df_j SS_j / chi2(df_j) in the same equations, and
    the quantiles are taken (Hannig, Iyer and Patterson, JASA 101, 2006). Exact for the residual; in unbalanced designs
    the sums are only about chi-squared.

    >>> found = variance_components([1, 3, 5, 7], {"expert": ["a", "a", "b", "b"]}, generator=np.random.default_rng(0))
    >>> {name: estimate.value for name, estimate in found.items()}
    {'expert': 7.0, 'residual': 2.0}
    """
    found, text = _values(values, least=2), _level(level)
    groups = _nested(found, factors)
    names = [*factors, "residual"]
    sums, freedom, coefficients, balanced = _sums_of_squares(found, groups)
    lacking = [name for name, count in zip(names, freedom, strict=True) if count < 1]
    if lacking:
        raise ValueError(f"{lacking[0]} is not repeated within what is outside of it: its variance is not identified.")
    estimates = np.linalg.solve(coefficients, sums)
    expected = freedom * sums / generator.chisquare(freedom, size=(draws, len(names)))
    drawn = np.linalg.solve(coefficients, expected.T)
    kind = "ANOVA" if balanced else "Henderson 1"
    result = {}
    for name, value, many, members in zip(names, estimates, drawn, [*groups, np.arange(len(found))], strict=True):
        flag = "; negative, reported as it is" if value < 0 else ""
        low, high = _quantiles(many, level)
        about = "" if balanced else "about "
        method = f"variance component ({kind}), {about}{text} generalised interval{flag}"
        result[name] = Estimate(float(value), low, high, int(members.max()) + 1, method)
    return result


def _nested(values: Floats, factors: Mapping[str, Sequence[object]]) -> list[NDArray[np.int64]]:
    """The group 0, 1, ... of each value (n,) by each factor within those outside of it."""
    if not factors:
        raise ValueError("Variance components need a factor: name -> the label of each value.")
    groups: list[NDArray[np.int64]] = []
    keys: list[tuple[object, ...]] = [()] * len(values)
    for name, labels in factors.items():
        if len(labels) != len(values):
            raise ValueError(f"Factor {name!r} has {len(labels)} labels for {len(values)} values.")
        keys = [(*key, label) for key, label in zip(keys, labels, strict=True)]
        number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        groups.append(np.array([number[key] for key in keys]))
    return groups


def _sums_of_squares(values: Floats, groups: Sequence[NDArray[np.int64]]) -> tuple[Floats, Floats, Floats, bool]:
    """Sums of squares between groups of each level (k,), degrees of freedom (k,), C (k, k), and whether balanced.

    With T_j = sum over groups g of level j of n_g mean_g^2, SS_j = T_j - T_(j - 1). v_i of the groups h of level i has
    in E[T_j] the coefficient sum over g, h of n_gh^2 / n_g, with n_gh the values in both.
    """
    count = len(values)
    levels = [np.zeros(count, dtype=np.int64), *groups, np.arange(count)]
    centred = values - values.mean()
    sizes = [np.bincount(level) for level in levels]
    totals = [float((np.bincount(level, centred) ** 2 / size).sum()) for level, size in zip(levels, sizes, strict=True)]
    coefficients = np.empty((len(levels), len(levels) - 1))
    for j, (outer, size) in enumerate(zip(levels, sizes, strict=True)):
        for i, inner in enumerate(levels[1:]):
            both, shared = np.unique(np.stack([outer, inner]), axis=1, return_counts=True)
            coefficients[j, i] = (shared**2 / size[both[0]]).sum()
    freedom = np.diff([len(size) for size in sizes]).astype(np.float64)
    balanced = all(np.ptp(size) == 0 for size in sizes)
    return np.diff(totals), freedom, np.diff(coefficients, axis=0), balanced

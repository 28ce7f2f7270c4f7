"""The statistics of many runs: doctests, brute force, coverage of the intervals."""

from __future__ import annotations

import doctest
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from irl_exp.analysis import statistics
from irl_exp.analysis.statistics import Estimate, Floats

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_doctests() -> None:
    found = doctest.testmod(statistics)
    assert found.attempted > 15
    assert found.failed == 0


def covered(draw: Callable[[np.random.Generator], Estimate], truth: float, trials: int) -> float:
    """How often the interval of a drawn sample holds the truth."""
    random = generator(5)
    found = [draw(random) for _ in range(trials)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("n", [2, 5, 20])
def test_t_interval_covers_as_it_says(n: int) -> None:
    assert covered(lambda random: statistics.mean_t(random.normal(3, 2, n)), 3, 2000) == pytest.approx(0.95, abs=0.015)


def test_paired_t_interval_covers_where_seeds_share_their_noise() -> None:
    def draw(random: np.random.Generator) -> Estimate:
        shared = random.normal(0, 50, 6)
        return statistics.paired_difference(shared + random.normal(1, 1, 6), shared + random.normal(0, 1, 6))

    assert covered(draw, 1, 2000) == pytest.approx(0.95, abs=0.015)
    assert covered(lambda random: draw(random), 11, 200) < 0.05  # and is narrow


def test_bootstrap_of_the_interquartile_mean_covers() -> None:
    def draw(random: np.random.Generator) -> Estimate:
        return statistics.interquartile_mean([random.normal(2, 1, 20)], generator=random, resamples=400)

    assert covered(draw, 2, 600) == pytest.approx(0.94, abs=0.03)


@given(arrays(float, st.integers(1, 13), elements=numbers), arrays(float, st.integers(1, 5), elements=numbers))
@settings(max_examples=50, deadline=None)
def test_interquartile_mean_is_the_mean_of_the_middle(one: Floats, other: Floats) -> None:
    pooled = sorted([*one, *other])
    cut = len(pooled) // 4
    expected = math.fsum(pooled[cut : len(pooled) - cut]) / (len(pooled) - 2 * cut)
    found = statistics.interquartile_mean([one, other], generator=generator(), resamples=20)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.n == len(pooled)


def test_the_bootstrap_is_stratified() -> None:
    """Two strata without variance leave none, though the pooled values have some."""
    found = statistics.interquartile_mean([np.zeros(6), np.ones(6)], generator=generator())
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


@given(arrays(float, st.integers(1, 8), elements=numbers))
@settings(max_examples=50, deadline=None)
def test_sign_flips_by_brute_force(differences: Floats) -> None:
    means = [
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = np.mean([mean >= means[0] - 1e-9 for mean in means])
    found = statistics.sign_flip_test(differences, generator=generator())
    assert found.p_value == pytest.approx(expected)


def test_random_sign_flips_hold_their_level_and_are_never_zero() -> None:
    random = generator(1)
    p_values = [
        statistics.sign_flip_test(random.normal(0, 1, 20), generator=random, flips=199).p_value for _ in range(1000)
    ]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.02)
    assert statistics.sign_flip_test(np.ones(40), generator=random, flips=99).p_value == 0.01


@given(arrays(float, st.integers(1, 6), elements=numbers), arrays(float, st.integers(1, 6), elements=numbers))
@settings(max_examples=80, deadline=None)
def test_probability_of_improvement_by_brute_force(one: Floats, other: Floats) -> None:
    wins = [(x > y) + (x == y) / 2 for x in one for y in other]
    found, reverse = (statistics.probability_of_improvement(*pair) for pair in ((one, other), (other, one)))
    assert found.value == pytest.approx(np.mean(wins))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.05
    assert reverse.low == pytest.approx(1 - found.high, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_probability_of_improvement_covers(shift: float) -> None:
    def draw(random: np.random.Generator) -> Estimate:
        return statistics.probability_of_improvement(random.normal(shift, 1, 8), random.normal(0, 1, 8))

    truth = float(stats.norm.cdf(shift / math.sqrt(2)))
    assert covered(draw, truth, 1000) == pytest.approx(0.955, abs=0.025)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_of_counts_solve_their_equations(pair: tuple[int, int]) -> None:
    count, n = pair
    score = statistics.wilson(count, n)
    z = stats.norm.ppf(0.975)
    for p in (score.low, score.high):
        if 0 < p < 1:
            assert (count / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-9)


@pytest.mark.parametrize("n", [10, 30])
def test_spearman_covers(n: int) -> None:
    """Normal pairs of correlation 0.6: Spearman's is 6 / pi asin(0.6 / 2)."""

    def draw(random: np.random.Generator) -> Estimate:
        one = random.normal(size=n)
        other = 0.6 * one + 0.8 * random.normal(size=n)
        found = statistics.spearman(one, other)
        assert found.value == pytest.approx(stats.spearmanr(one, other).statistic)
        return found if found.low == found.low else Estimate(found.value, -1, 1, n, "no interval")

    assert covered(draw, 6 / math.pi * math.asin(0.3), 1000) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
def test_spearman_of_few_or_of_one_order_has_no_interval(values: list[float]) -> None:
    found = statistics.spearman(values, values)
    assert found.value == 1
    assert math.isnan(found.low)
    assert found.method == "Spearman, no interval"


def test_pairwise_rank_correlation_by_brute_force() -> None:
    rewards = generator().normal(size=(10, 30))
    rewards[1] = np.round(rewards[0])  # ties
    each = [stats.spearmanr(rewards[i], rewards[j]).statistic for i, j in itertools.combinations(range(10), 2)]
    assert statistics.pairwise_rank_correlation(rewards).value == pytest.approx(np.mean(each))
    found = statistics.pairwise_rank_correlation(rewards, absolute=True)
    assert found.value == pytest.approx(np.mean(np.abs(each)))
    left = [statistics.pairwise_rank_correlation(np.delete(rewards, k, axis=0), absolute=True).value for k in range(10)]
    error = math.sqrt(9 / 10 * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 9) * error)
    assert math.isnan(statistics.pairwise_rank_correlation(rewards[:9]).low)


def test_pairwise_rank_correlation_covers_over_runs() -> None:
    """Run i is a_i times a common part plus noise: the ranks of two runs correlate by 6/pi asin(r_i r_j / 2)."""
    quality = generator(4).uniform(0, 2, size=2000)
    cosines = quality / np.hypot(1, quality)
    truth = 6 / math.pi * np.arcsin(np.outer(cosines, cosines) / 2)
    common = generator(6).normal(size=600)

    def draw(random: np.random.Generator) -> Estimate:
        runs = random.choice(quality, 12)[:, None] * common + random.normal(size=(12, 600))
        return statistics.pairwise_rank_correlation(runs)

    assert 0.9 <= covered(draw, float(truth[~np.eye(2000, dtype=bool)].mean()), 400) <= 0.985


BALANCED = {
    "expert": [e for e in range(4) for _ in range(6)],
    "demonstrations": [d for _ in range(4) for d in range(3) for _ in range(2)],
}


def test_balanced_components_are_those_of_the_analysis_of_variance() -> None:
    """Mean squares by hand: 4 experts, 3 demonstrations each, 2 heads each."""
    y = generator(2).normal(size=(4, 3, 2)) + generator(3).normal(size=(4, 1, 1))
    inner = 6 * y.mean((1, 2)).var(ddof=1)
    middle = 2 * y.mean(2).var(axis=1, ddof=1).mean()
    within = y.var(axis=2, ddof=1).mean()
    found = statistics.variance_components(y.ravel(), BALANCED, generator=generator())
    assert found["residual"].value == pytest.approx(within)
    assert found["demonstrations"].value == pytest.approx((middle - within) / 2)
    assert found["expert"].value == pytest.approx((inner - middle) / 6)
    assert [found[name].n for name in found] == [4, 12, 24]
    low, high = 12 * within / stats.chi2.ppf([0.975, 0.025], 12)
    assert (found["residual"].low, found["residual"].high) == pytest.approx((low, high), rel=0.05)


def nested(random: np.random.Generator, labels: list[str], spread: float) -> Floats:
    effect = dict(zip(dict.fromkeys(labels), random.normal(0, spread, len(labels)), strict=False))
    return np.array([effect[label] for label in labels])


def test_unbalanced_components_are_unbiased() -> None:
    outer = list("aaaaaaabbbbccccccddeeeff")
    inner = list("0001122" + "0011" + "000112" + "01" + "001" + "00")
    random, found = generator(8), []
    for _ in range(600):
        cells = [a + b for a, b in zip(outer, inner, strict=True)]
        y = 7 + nested(random, outer, 2.0) + nested(random, cells, 1.0) + random.normal(0, 0.5, len(outer))
        result = statistics.variance_components(y, {"outer": outer, "inner": inner}, generator=random, draws=2)
        found.append([result[name].value for name in ("outer", "inner", "residual")])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(600)
    assert (np.abs(mean - [4.0, 1.0, 0.25]) < 4 * error).all()
    assert (error < [0.2, 0.1, 0.01]).all()


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_intervals_of_components_cover(variance: float) -> None:
    labels = [str(group) for group in range(6) for _ in range(4)]

    def draw(random: np.random.Generator) -> Estimate:
        y = nested(random, labels, math.sqrt(variance)) + random.normal(size=24)
        return statistics.variance_components(y, {"group": labels}, generator=random, draws=1000)["group"]

    assert 0.93 <= covered(draw, variance, 600) <= 0.985


def test_a_negative_component_is_reported_as_it_is() -> None:
    found = statistics.variance_components([0, 10, 1, 9], {"g": [0, 0, 1, 1]}, generator=generator())
    assert found["g"].value == pytest.approx(-41 / 2)
    assert found["g"].method.endswith("negative, reported as it is")
    assert "negative" not in found["residual"].method


@pytest.mark.parametrize("factors", [{"g": [0, 1, 2]}, {"g": [0, 0, 0]}, {"g": [0, 0, 1], "h": [0, 0, 1]}])
def test_a_component_without_replication_is_not_made_up(factors: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match=r"(residual|g|h) is not repeated"):
        statistics.variance_components([1.0, 2.0, 4.0], factors, generator=generator())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.mean_t([1.0, math.nan]), r"values\[1\] is nan"),
        (lambda: statistics.mean_t([]), "at least 1"),
        (lambda: statistics.mean_t([1.0, 2.0], level=95), "level=95"),
        (lambda: statistics.paired_difference([1.0], [1.0, 2.0]), "1 and 2"),
        (lambda: statistics.wilson(3, 2), "3 of 2"),
        (lambda: statistics.pairwise_rank_correlation(np.ones((2, 3))), "Run 0"),
        (lambda: statistics.pairwise_rank_correlation(np.arange(3.0)[None]), "two runs"),
        (lambda: statistics.variance_components([1.0, 2.0], {}, generator=generator()), "need a factor"),
        (lambda: statistics.variance_components([1.0, 2.0], {"g": [0]}, generator=generator()), "'g' has 1 labels"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

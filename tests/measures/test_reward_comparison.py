"""The numbers that compare rewards, against slow and obvious oracles, scikit-learn and worlds that are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from irl_exp.measures import reward_comparison as compare

Rows = list[tuple[float, bool]]
Scored = list[tuple[float, float, int]]

# Few distinct values make ties, the wide range everything else; eighths, so that a midpoint is exact.
values = st.one_of(st.integers(-3, 3), st.integers(-(10**7), 10**7)).map(lambda number: number / 8)
labelled = st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=30)
two_classes = labelled.filter(lambda rows: len({label for _, label in rows}) == 2)
scored = st.lists(st.tuples(values, st.integers(-2, 2).map(float), st.integers(0, 3)), min_size=2, max_size=25)

patient = settings(deadline=None)  # a busy machine is no failure


def arrays(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, labels = zip(*rows, strict=True)
    return np.array(scores), np.array(labels)


@patient
@given(two_classes)
def test_auroc_is_that_of_scikit_learn(rows: Rows) -> None:
    scores, labels = arrays(rows)
    assert compare.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@patient
@given(two_classes)
def test_auroc_counts_pairs_and_halves_ties(rows: Rows) -> None:
    pairs = [(high > low) + 0.5 * (high == low) for high, up in rows if up for low, down in rows if not down]
    assert compare.auroc(*arrays(rows)) == pytest.approx(float(np.mean(pairs)), abs=1e-12)


@pytest.mark.parametrize("label", [True, False])
def test_auroc_of_one_class_is_not_defined(label: bool) -> None:
    assert np.isnan(compare.auroc(np.arange(3.0), np.full(3, label)))


@patient
@given(two_classes, st.integers(1, 100), st.integers(-1000, 1000))
def test_auroc_keeps_under_increasing_affine_maps_and_turns_under_decreasing_ones(
    rows: Rows, scale: int, shift: int
) -> None:
    scores, labels = arrays(rows)  # eighths: exact arithmetic, no new ties
    found = compare.auroc(scores, labels)
    assert compare.auroc(scale * scores + shift, labels) == pytest.approx(found, abs=1e-12)
    assert compare.auroc(-scale * scores + shift, labels) == pytest.approx(1 - found, abs=1e-12)


def test_accuracy_at_zero_depends_on_the_free_constant_and_auroc_does_not() -> None:
    scores, labels = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([False, False, True, True])
    assert compare.accuracy(scores, labels, 0.0) == 1.0
    assert compare.accuracy(scores + 5, labels, 0.0) == 0.5
    assert compare.auroc(scores + 5, labels) == compare.auroc(scores, labels) == 1.0


@patient
@given(labelled, values)
def test_accuracy_is_that_of_scikit_learn(rows: Rows, threshold: float) -> None:
    scores, labels = arrays(rows)
    expected = accuracy_score(labels, [score >= threshold for score in scores])
    assert compare.accuracy(scores, labels, threshold) == pytest.approx(expected)


@patient
@given(labelled, values)
def test_f1_is_that_of_scikit_learn_for_the_toxic_class(rows: Rows, threshold: float) -> None:
    scores, civil = arrays(rows)
    expected = f1_score(~civil, [score < threshold for score in scores], zero_division=0.0)
    assert compare.f1_toxic(scores, civil, threshold) == pytest.approx(expected)


def thresholds(scores: NDArray[np.float64]) -> list[float]:
    """One threshold for every way to cut the scores in two."""
    return [*np.unique(scores), np.inf]


@patient
@given(labelled)
def test_best_threshold_has_the_accuracy_of_the_best_of_all_thresholds(rows: Rows) -> None:
    scores, labels = arrays(rows)
    found = compare.accuracy(scores, labels, compare.best_threshold(scores, labels))
    best = max(compare.accuracy(scores, labels, threshold) for threshold in thresholds(scores))
    assert found == pytest.approx(best, abs=1e-12)


@patient
@given(two_classes)
def test_balanced_best_threshold_has_the_balanced_accuracy_of_the_best_of_all_thresholds(rows: Rows) -> None:
    scores, labels = arrays(rows)

    def balanced(threshold: float) -> float:
        return float(balanced_accuracy_score(labels, scores >= threshold))

    found = balanced(compare.best_threshold(scores, labels, balanced=True))
    assert found == pytest.approx(max(balanced(threshold) for threshold in thresholds(scores)), abs=1e-12)


def test_best_threshold_separates_neighbouring_floats() -> None:
    scores, labels = np.array([1.0, np.nextafter(1.0, 2)]), np.array([False, True])
    assert compare.accuracy(scores, labels, compare.best_threshold(scores, labels)) == 1.0


def test_best_threshold_takes_the_lowest_of_equals_midway() -> None:
    scores, labels = np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True])
    assert compare.best_threshold(scores, labels) == 0.5


def test_balanced_and_plain_threshold_differ_where_one_class_is_rare() -> None:
    scores = np.arange(10.0)
    labels = np.array([True, False, True, True, True, True, True, True, True, True])
    assert compare.best_threshold(scores, labels) == 0.0, "all positive: one mistake"
    assert compare.best_threshold(scores, labels, balanced=True) == 1.5, "the one negative is worth a mistake"


def slow_pair_accuracy(scores: NDArray[np.float64], truth: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """A double loop; an equal score is a coin flip, counted by its expectation."""
    right, count = 0.0, 0
    for i in range(len(scores)):
        for j in range(i):
            if groups[i] == groups[j] and truth[i] != truth[j]:
                count += 1
                agree = (scores[i] > scores[j]) == (truth[i] > truth[j])
                right += 0.5 if scores[i] == scores[j] else float(agree)
    return right / count if count else float("nan")


@patient
@given(scored)
def test_pair_accuracy_is_that_of_a_double_loop(rows: Scored) -> None:
    scores, truth, groups = (np.array(column) for column in zip(*rows, strict=True))
    found = compare.pair_accuracy(scores, truth, groups)
    assert found == pytest.approx(slow_pair_accuracy(scores, truth, groups), nan_ok=True)


@patient
@given(scored, st.integers(0, 100))
def test_pair_accuracy_does_not_see_a_constant_per_prompt(rows: Scored, seed: int) -> None:
    scores, truth, groups = (np.array(column) for column in zip(*rows, strict=True))
    shifts = np.random.default_rng(seed).integers(-1000, 1000, size=4)
    found = compare.pair_accuracy(scores, truth, groups)
    np.testing.assert_equal(compare.pair_accuracy(scores + shifts[groups], truth, groups), found)
    np.testing.assert_equal(compare.pair_accuracy(scores, truth + shifts[groups], groups), found)


@pytest.mark.parametrize("order", [1, -1])
def test_pair_accuracy_of_a_constant_score_is_one_half_whatever_the_order_of_rows(order: int) -> None:
    truth, groups = np.tile(np.arange(10.0), 40)[::order], np.repeat(np.arange(40), 10)
    assert compare.pair_accuracy(np.zeros(400), truth, groups) == 0.5


def test_pair_accuracy_without_an_informative_pair_is_not_defined() -> None:
    assert np.isnan(compare.pair_accuracy(np.arange(4.0), np.ones(4), np.array([0, 0, 1, 1])))


@given(st.lists(st.integers(-2, 2), max_size=15))
def test_pairs_are_all_pairs_of_a_group_once(groups: list[int]) -> None:
    first, second = compare.pairs(np.array(groups, dtype=int))
    found = [frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    wanted = {frozenset((i, j)) for i in range(len(groups)) for j in range(i) if groups[i] == groups[j]}
    assert len(found) == len(wanted)
    assert set(found) == wanted


def slow_kendall(first: list[float], second: list[float]) -> float:
    """tau-b: concordant minus discordant pairs, over the pairs without a tie in either."""
    signs = [
        (np.sign(first[i] - first[j]), np.sign(second[i] - second[j])) for i in range(len(first)) for j in range(i)
    ]
    untied = [sum(sign != 0 for sign in column) for column in zip(*signs, strict=True)]
    return float(sum(x * y for x, y in signs) / np.sqrt(untied[0] * untied[1]))


@patient
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=25))
def test_correlations_are_those_of_the_definitions(rows: list[tuple[int, int]]) -> None:
    scores, truth = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = compare.correlations(scores, truth)
    if len(set(scores)) == 1 or len(set(truth)) == 1:
        assert np.isnan(list(found.values())).all()
        return
    assert found["pearson"] == pytest.approx(np.corrcoef(scores, truth)[0, 1], abs=1e-9)
    ranks = np.corrcoef(stats.rankdata(scores), stats.rankdata(truth))[0, 1]
    assert found["spearman"] == pytest.approx(ranks, abs=1e-9)
    assert found["kendall"] == pytest.approx(slow_kendall(list(scores), list(truth)), abs=1e-9)


def test_correlations_with_a_constant_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(compare.correlations(np.ones(3), np.arange(3.0))["spearman"])


def mean_interval(data: NDArray[np.float64], groups: NDArray[np.int64], seed: int) -> tuple[float, float]:
    return compare.bootstrap_interval(
        lambda rows: float(data[rows].mean()), groups, resamples=200, generator=np.random.default_rng(seed)
    )


def coverage(*, clustered: bool) -> float:
    """How often an interval of 95 % covers the true mean 0, over worlds of 40 prompts with 8 alike completions."""
    generator = np.random.default_rng(0)
    prompts = np.repeat(np.arange(40), 8)
    groups = prompts if clustered else np.arange(320)
    covered = []
    for world in range(200):
        data = generator.normal(size=40)[prompts] + 0.3 * generator.normal(size=320)
        low, high = mean_interval(data, groups, world)
        covered.append(low <= 0 <= high)
    return float(np.mean(covered))


def test_bootstrap_interval_over_prompts_covers_the_truth() -> None:
    assert 0.90 <= coverage(clustered=True) <= 0.99


def test_an_interval_that_ignored_prompts_would_not_cover_the_truth() -> None:
    assert coverage(clustered=False) < 0.75


def test_bootstrap_interval_resamples_whole_groups_whatever_they_are_called() -> None:
    groups = np.array([7, 7, 3, 3, 3])
    seen: list[tuple[int, ...]] = []

    def statistic(rows: NDArray[np.int64]) -> float:
        seen.append(tuple(np.bincount(rows, minlength=5).tolist()))
        return 0.0

    compare.bootstrap_interval(statistic, groups, resamples=200, generator=np.random.default_rng(0))
    assert set(seen) == {(2, 2, 0, 0, 0), (1, 1, 1, 1, 1), (0, 0, 2, 2, 2)}


def test_bootstrap_interval_has_its_level_and_repeats() -> None:
    data = np.random.default_rng(0).normal(size=100)
    rows = np.arange(100)

    def interval(level: float) -> tuple[float, float]:
        generator = np.random.default_rng(1)
        return compare.bootstrap_interval(
            lambda rows: float(data[rows].mean()), rows, resamples=500, generator=generator, level=level
        )

    assert interval(0.95) == interval(0.95)
    half = stats.norm.ppf(0.975) * data.std() / 10
    assert interval(0.95) == pytest.approx((data.mean() - half, data.mean() + half), abs=0.03)
    assert interval(0.5)[0] > interval(0.95)[0]


def test_bootstrap_interval_leaves_out_undefined_resamples() -> None:
    labels = np.array([True, False, False, False])
    scores = np.array([1.0, 0.0, 0.0, 0.0])
    low, high = compare.bootstrap_interval(
        lambda rows: compare.auroc(scores[rows], labels[rows]),
        np.arange(4),
        resamples=100,
        generator=np.random.default_rng(0),
    )
    assert (low, high) == (1.0, 1.0)
    nothing = compare.bootstrap_interval(
        lambda rows: float("nan"), np.arange(4), resamples=10, generator=np.random.default_rng(0)
    )
    assert np.isnan(nothing).all()


# ------------------------------------------------------------------------- within prompts: distances and orders

Floats, Ints = NDArray[np.float64], NDArray[np.int64]
World = tuple[Floats, Ints]


@st.composite
def worlds(draw: st.DrawFn, rewards: int = 2, smallest: int = 2) -> World:
    """Rewards (rewards, n), none constant in all prompts, and prompts (n,) of any names and sizes, rows mixed."""
    sizes = draw(st.lists(st.integers(smallest, 5), min_size=1, max_size=5))
    names = draw(st.lists(st.integers(-9, 10**9), min_size=len(sizes), max_size=len(sizes), unique=True))
    groups = np.array(draw(st.permutations(np.repeat(names, sizes).tolist())))

    def moves(reward: list[float]) -> bool:
        return any(
            len({value for value, group in zip(reward, groups, strict=True) if group == name}) > 1 for name in names
        )

    reward = st.lists(values, min_size=len(groups), max_size=len(groups)).filter(moves)
    return np.array([draw(reward) for _ in range(rewards)]), groups


def slow_epic(a: Floats, b: Floats, groups: Ints, weights: Floats) -> float:
    """sqrt((1 - rho) / 2) by loops over prompts and completions."""
    ab = aa = bb = 0.0
    for prompt in set(groups.tolist()):
        rows = [row for row in range(len(a)) if groups[row] == prompt]
        total = sum(weights[row] for row in rows)
        mean_a, mean_b = (sum(weights[row] * x[row] for row in rows) / total for x in (a, b))
        for row in rows:
            ab += weights[row] * (a[row] - mean_a) * (b[row] - mean_b)
            aa += weights[row] * (a[row] - mean_a) ** 2
            bb += weights[row] * (b[row] - mean_b) ** 2
    return float(np.sqrt(max(1 - ab / np.sqrt(aa * bb), 0) / 2))


@patient
@given(worlds(), st.integers(0, 100))
def test_epic_is_that_of_loops_and_half_of_starc(world: World, seed: int) -> None:
    (a, b), groups = world
    weights = np.random.default_rng(seed).uniform(0.1, 3, size=len(a))
    found = compare.epic(a, b, groups, weights=weights)
    assert found == pytest.approx(slow_epic(a, b, groups, weights), abs=1e-7)
    assert compare.starc(a, b, groups, weights=weights) == pytest.approx(2 * found, abs=1e-12)
    assert compare.epic(a, b, groups) == pytest.approx(slow_epic(a, b, groups, np.ones(len(a))), abs=1e-7)


@patient
@given(worlds(), st.integers(0, 100), st.integers(1, 100))
def test_epic_sees_neither_a_constant_per_prompt_nor_one_positive_scale(world: World, seed: int, scale: int) -> None:
    (a, b), groups = world
    _, index = np.unique(groups, return_inverse=True)
    shift = np.random.default_rng(seed).integers(-1000, 1000, size=5)[index]
    assert compare.epic(a, scale * b + shift, groups) == pytest.approx(compare.epic(a, b, groups), abs=1e-9)
    assert compare.epic(a, 3 * a + shift, groups) == pytest.approx(0, abs=1e-9)
    assert compare.epic(a, -scale * a + shift, groups) == pytest.approx(1, abs=1e-9)


def test_epic_sees_a_scale_per_prompt() -> None:
    groups = np.array([0, 0, 1, 1])
    found = compare.epic(np.array([0.0, 1, 0, 1]), np.array([0.0, 1, 0, 3]), groups)
    assert found == pytest.approx(np.sqrt((1 - 2 / np.sqrt(5)) / 2))


@patient
@given(worlds(rewards=3))
def test_starc_is_a_metric_between_zero_and_two(world: World) -> None:
    (a, b, c), groups = world
    ab, bc, ac = compare.starc(a, b, groups), compare.starc(b, c, groups), compare.starc(a, c, groups)
    assert ab == compare.starc(b, a, groups)
    assert ac <= ab + bc + 1e-12
    assert 0 <= ab <= 2 + 1e-12
    assert compare.starc(a, a, groups) == 0


def test_unrelated_rewards_are_at_the_square_root_of_one_half() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40_000))
    assert compare.epic(a, b, np.repeat(np.arange(5_000), 8)) == pytest.approx(np.sqrt(0.5), abs=0.01)


@patient
@given(worlds(), st.integers(0, 100))
def test_a_weight_is_a_row_that_occurs_as_often(world: World, seed: int) -> None:
    (a, b), groups = world
    weights = np.random.default_rng(seed).integers(1, 4, size=len(a))
    repeated = np.repeat(np.arange(len(a)), weights)
    found = compare.epic(a, b, groups, weights=weights.astype(float))
    assert found == pytest.approx(compare.epic(a[repeated], b[repeated], groups[repeated]), abs=1e-9)


@patient
@given(worlds())
def test_canonical_rewards_have_mean_zero_in_each_prompt_and_norm_one(world: World) -> None:
    rewards, groups = world
    found = compare.canonicalise(rewards, groups)
    for prompt in set(groups.tolist()):
        np.testing.assert_allclose(found[:, groups == prompt].mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((found**2).mean(axis=1), 1)


def test_a_huge_constant_per_prompt_and_a_tiny_scale_cost_no_digits() -> None:
    groups, a, b = np.array([0, 0, 0, 1, 1]), np.array([1.0, 2, 4, 3, 1]), np.array([2.0, 1, 4, 5, 1])
    expected = compare.epic(a, b, groups)
    assert compare.epic(a + 2.0**45 * groups, b, groups) == pytest.approx(expected, rel=1e-14)
    assert compare.epic(1e-200 * a, 1e200 * b, groups) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 0, 0, 1]])
def test_a_prompt_with_one_completion_has_no_distance(groups: list[int]) -> None:
    with pytest.raises(compare.UndefinedDistanceError, match="only one"):
        compare.epic(np.arange(4.0), np.arange(4.0), np.array(groups))


def test_rewards_without_completions_have_no_distance() -> None:
    with pytest.raises(compare.UndefinedDistanceError, match="there are none"):
        compare.epic(np.empty(0), np.empty(0), np.empty(0, dtype=int))


@given(worlds(), st.lists(values, min_size=5, max_size=5))
def test_a_reward_that_is_constant_in_each_prompt_has_no_distance(world: World, constants: list[float]) -> None:
    (a, _), groups = world
    _, index = np.unique(groups, return_inverse=True)
    for pair in ((a, np.array(constants)[index] / 3), (np.array(constants)[index] / 3, a)):
        with pytest.raises(compare.UndefinedDistanceError, match="constant within every prompt"):
            compare.epic(*pair, groups)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_rewards_and_weights_that_are_no_numbers_raise(broken: float) -> None:
    a, groups, other = np.arange(4.0), np.array([0, 0, 1, 1]), np.array([1, broken, 2, 3])
    with pytest.raises(ValueError, match="1 rewards are not finite"):
        compare.epic(a, other, groups)
    with pytest.raises(ValueError, match="weights must be finite"):
        compare.epic(a, a, groups, weights=other)
    with pytest.raises(ValueError, match="above 0"):
        compare.epic(a, a, groups, weights=np.array([1.0, 0, 1, 1]))


@patient
@given(worlds(rewards=4), st.integers(0, 100))
def test_epic_matrix_holds_the_distance_of_each_pair(world: World, seed: int) -> None:
    rewards, groups = world
    weights = np.random.default_rng(seed).uniform(0.1, 3, size=len(groups))
    found = compare.epic_matrix(rewards, groups, weights=weights)
    slow = [[compare.epic(a, b, groups, weights=weights) for b in rewards] for a in rewards]
    np.testing.assert_allclose(found, slow, atol=1e-12)
    np.testing.assert_allclose(
        compare.epic_matrix(rewards, groups)[0, 1], compare.epic(*rewards[:2], groups), atol=1e-12
    )
    assert (np.diag(found) == 0).all()


def slow_within_prompt_correlation(a: Floats, b: Floats, groups: Ints) -> float:
    found = []
    for prompt in np.unique(groups):
        rows = groups == prompt
        if len(set(a[rows])) > 1 and len(set(b[rows])) > 1:
            found.append(stats.spearmanr(a[rows], b[rows]).statistic)
    return float(np.mean(found)) if found else float("nan")


@patient
@given(scored)
def test_within_prompt_correlation_is_the_mean_of_those_of_scipy(rows: Scored) -> None:
    a, b, groups = (np.array(column) for column in zip(*rows, strict=True))
    expected = slow_within_prompt_correlation(a, b, groups)
    assert compare.within_prompt_correlation(a, b, groups) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    swapped = compare.within_prompt_correlation(-b, a, groups)
    assert swapped == pytest.approx(-expected, abs=1e-12, nan_ok=True)


def test_a_missing_reward_is_not_an_undefined_order() -> None:
    a, groups = np.arange(4.0), np.array([0, 0, 1, 1])
    assert compare.within_prompt_correlation(a, a, groups) == 1
    assert np.isnan(compare.within_prompt_correlation(a, np.array([0, 1, np.nan, 2]), groups))


# ---------------------------------------------------------------------------- all resamples at once


def test_prompt_counts_are_those_of_draws_with_replacement() -> None:
    counts = compare.prompt_counts(10, 20_000, np.random.default_rng(0))
    assert counts.shape == (20_000, 10)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 0.7, atol=0.05)
    np.testing.assert_allclose(np.cov(counts.T), 0.7 * (np.eye(10) - 0.1), atol=0.05)  # multinomial
    assert (counts == compare.prompt_counts(10, 20_000, np.random.default_rng(0))).all()


@pytest.mark.parametrize("prompts", [10, 50, 200])
def test_resamples_have_the_spread_of_a_t_interval(prompts: int) -> None:
    """1.96 sd of the mean in the resamples is the half width of the t interval."""
    values, groups = np.random.default_rng(1).normal(size=prompts), np.arange(prompts)
    drawn = compare.mean_resamples(values, groups, compare.prompt_counts(prompts, 20_000, np.random.default_rng(0)))
    half = stats.t.ppf(0.975, prompts - 1) * values.std(ddof=1) / prompts**0.5
    assert 1.96 * drawn.std() == pytest.approx(half, rel=0.05)


def test_the_interval_of_a_fraction_is_exact_where_rows_are_independent_prompts() -> None:
    values = np.arange(300) < 30
    low, high = compare.fraction_interval(values, np.arange(300))
    exact = stats.binomtest(30, 300).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=2e-3)
    clustered = compare.fraction_interval(values, np.arange(300) // 10)  # prompts are all toxic, or not at all
    fewer = stats.binomtest(3, 30).proportion_ci(method="exact")
    assert clustered == pytest.approx((fewer.low, fewer.high), abs=0.02)


@pytest.mark.parametrize("alike", [True, False])
def test_the_interval_of_a_fraction_has_a_width_where_all_are_alike(alike: bool) -> None:
    low, high = compare.fraction_interval(np.full(140, alike), np.repeat(np.arange(20), 7))
    assert (high == 1.0) is alike
    assert (low == 0.0) is not alike
    assert 0.1 < high - low < 0.25


def test_the_interval_of_a_share_is_normal_in_log_odds() -> None:
    log_odds = np.random.default_rng(0).normal(1.0, 0.3, 100_000)
    low, high = compare.share_interval(0.8, 1 / (1 + np.exp(-log_odds)))
    middle = np.log(0.8 / 0.2)
    expected = [1 / (1 + np.exp(-(middle + sign * 1.96 * 0.3))) for sign in (-1, 1)]
    assert (low, high) == pytest.approx(expected, abs=2e-3)
    assert compare.share_interval(1.0, np.array([1.0, 1.0, np.nan])) == (1.0, 1.0)


def test_interval_has_its_level_and_leaves_out_what_is_not_defined() -> None:
    resampled = np.append(np.arange(101.0), np.nan)
    assert compare.interval(resampled, level=0.9) == pytest.approx((5, 95))
    assert compare.interval(resampled) == pytest.approx((2.5, 97.5))
    assert np.isnan(compare.interval(np.full(3, np.nan))).all()


Statistic = Callable[[Ints, Ints], float]


def explicit(statistic: Statistic, groups: Ints, counts: Floats) -> list[float]:
    """A statistic of rows and their prompts, on the rows that are drawn; a prompt drawn twice becomes two prompts."""
    found = []
    for drawn in counts.astype(int):
        prompts = [np.flatnonzero(groups == prompt) for prompt in np.repeat(np.arange(len(drawn)), drawn)]
        renamed = np.repeat(np.arange(len(prompts)), [len(rows) for rows in prompts])
        found.append(statistic(np.concatenate(prompts), renamed))
    return found


def epic_or_nan(a: Floats, b: Floats, groups: Ints, weights: Floats) -> float:
    try:
        return compare.epic(a, b, groups, weights=weights)
    except compare.UndefinedDistanceError:
        return float("nan")


def numbered(world: World) -> World:
    return world[0], np.unique(world[1], return_inverse=True)[1]


@patient
@given(worlds(), st.integers(0, 10**6))
def test_all_resamples_at_once_are_the_statistic_of_each(world: World, seed: int) -> None:
    (a, b), groups = numbered(world)
    generator = np.random.default_rng(seed)
    weights, up = generator.uniform(0.1, 3, size=len(a)), generator.random(len(a)) < 0.5
    a, b = (np.where(generator.random(len(a)) < 0.5, np.round(x / 1e5), x) for x in (a, b))  # ties
    assume(all(epic_or_nan(x, x, groups, weights) == 0 for x in (a, b)))
    counts = compare.prompt_counts(groups.max() + 1, 8, generator)
    checks: list[tuple[Floats, Statistic]] = [
        (compare.mean_resamples(a, groups, counts), lambda rows, _: float(a[rows].mean())),
        (compare.mean_resamples(up, groups, counts), lambda rows, _: float(up[rows].mean())),
        (compare.auroc_resamples(a, up, groups, counts), lambda rows, _: compare.auroc(a[rows], up[rows])),
        (
            compare.pair_accuracy_resamples(a, b, groups, counts),
            lambda rows, prompts: compare.pair_accuracy(a[rows], b[rows], prompts),
        ),
        (
            compare.within_prompt_correlation_resamples(a, b, groups, counts),
            lambda rows, prompts: compare.within_prompt_correlation(a[rows], b[rows], prompts),
        ),
        (
            1 - 2 * compare.epic_resamples(a, b, groups, counts, weights=weights) ** 2,
            lambda rows, prompts: 1 - 2 * epic_or_nan(a[rows], b[rows], prompts, weights[rows]) ** 2,
        ),
    ]
    for found, statistic in checks:
        assert found.shape == (8,)
        np.testing.assert_allclose(found, explicit(statistic, groups, counts), rtol=1e-12, atol=1e-12)


@patient
@given(worlds(rewards=1), st.integers(0, 100))
def test_resamples_of_equal_and_of_opposite_rewards_are_all_at_zero_and_at_one(world: World, seed: int) -> None:
    (a,), groups = numbered(world)
    counts = compare.prompt_counts(groups.max() + 1, 20, np.random.default_rng(seed))
    equal, opposite = (compare.epic_resamples(a, sign * a, groups, counts) for sign in (3, -3))
    np.testing.assert_allclose(equal[~np.isnan(equal)], 0, atol=1e-7)
    np.testing.assert_allclose(opposite[~np.isnan(opposite)], 1, atol=1e-12)
    assert (np.isnan(equal) == np.isnan(opposite)).all()


def test_resampled_statistics_may_lack_rows_of_a_prompt() -> None:
    """Pairs of a prompt, as an example, need not exist."""
    found = compare.mean_resamples(np.array([1.0, 3]), np.array([0, 2]), np.array([[2.0, 1, 0], [1, 1, 1], [0, 3, 0]]))
    np.testing.assert_equal(found, [1, 2, np.nan])


# ---------------------------------------------------------------------------- weights of parts


@patient
@given(st.lists(st.integers(-5, 5), min_size=3, max_size=3).filter(any), st.integers(0, 100))
def test_weights_of_parts_are_found_whatever_the_constants_and_the_scale(weights: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.permutation(np.repeat(np.arange(20), 4))
    parts = generator.normal(size=(80, 3)) + 10 * generator.normal(size=(20, 3))[groups]
    reward = 7 * parts @ weights + 100 * generator.normal(size=20)[groups]
    counts = np.vstack([np.ones(20), compare.prompt_counts(20, 10, generator)])
    found = compare.weights_of_parts(parts, reward, groups, counts)
    np.testing.assert_allclose(found, np.tile(np.array(weights) / np.abs(weights).sum(), (11, 1)), atol=1e-9)


def test_weights_of_parts_are_those_of_least_squares_on_the_resample() -> None:
    generator = np.random.default_rng(0)
    groups = generator.integers(12, size=60)
    parts, reward = generator.normal(size=(60, 2)), generator.normal(size=60)
    counts = compare.prompt_counts(12, 20, generator)

    def slow(column: int) -> Statistic:
        def weight(rows: Ints, prompts: Ints) -> float:
            dummies = (prompts[:, None] == np.unique(prompts)).astype(float)  # a constant for each prompt
            found = np.linalg.lstsq(np.hstack([parts[rows], dummies]), reward[rows])[0][:2]
            return float(found[column] / np.abs(found).sum())

        return weight

    found = compare.weights_of_parts(parts, reward, groups, counts)
    for column in (0, 1):
        np.testing.assert_allclose(found[:, column], explicit(slow(column), groups, counts), atol=1e-10)


def test_weights_of_dependent_parts_and_of_a_constant_reward_are_not_defined() -> None:
    generator = np.random.default_rng(0)
    groups, (one, two, reward) = np.repeat(np.arange(5), 4), generator.normal(size=(3, 20))
    once, shift = np.ones((1, 5)), generator.normal(size=5)[groups]
    parts = np.column_stack([one, two, 0.3 * one - 0.7 * two + shift])
    assert np.isnan(compare.weights_of_parts(parts, reward, groups, once)).all()
    assert np.isnan(compare.weights_of_parts(parts[:, :2], shift, groups, once)).all()
    assert np.isfinite(compare.weights_of_parts(parts[:, :2], reward, groups, once)).all()


# ---------------------------------------------------------------- an AUROC of few of one class


def judged_prompts(generator: np.random.Generator, prompts: int, rare: float) -> tuple[Floats, NDArray[np.bool_], Ints]:
    """Scores, labels and prompts of 7 completions each; prompts differ, `rare` of the completions are negative."""
    own, other = generator.normal(size=(2, prompts, 1))
    latent = 0.7 * own + generator.normal(size=(prompts, 7))
    scores = latent + 0.5 * other + generator.normal(size=(prompts, 7))
    positive = latent >= np.sqrt(1.49) * stats.norm.ppf(rare)
    return scores.ravel(), positive.ravel(), np.repeat(np.arange(prompts), 7)


@pytest.mark.parametrize("rare", [0.003, 0.006, 0.03, 0.4])
def test_the_interval_of_an_auroc_covers_with_few_of_one_class_too(rare: float) -> None:
    """Of 200 worlds of 250 prompts at least 90 % (95 % is asked for; 200 worlds tell it to 3 %)."""
    generator = np.random.default_rng(0)
    true = compare.auroc(*judged_prompts(generator, 40_000, rare)[:2])
    inside = []
    for _ in range(200):
        scores, positive, groups = judged_prompts(generator, 250, rare)
        if not positive.all():
            low, high = compare.auroc_interval(scores, positive, groups)
            inside.append(low <= true <= high)
    assert len(inside) > 190
    assert np.mean(inside) >= 0.9


def test_with_many_of_both_classes_the_interval_of_an_auroc_is_that_of_the_bootstrap() -> None:
    generator = np.random.default_rng(0)
    scores, positive, groups = judged_prompts(generator, 400, 0.4)
    counts = compare.prompt_counts(400, 2000, generator)
    found = compare.auroc_interval(scores, positive, groups)
    assert found == pytest.approx(
        compare.interval(compare.auroc_resamples(scores, positive, groups, counts)), abs=0.004
    )


def test_a_perfect_order_of_five_is_no_proof_of_one() -> None:
    scores = np.arange(100.0)
    low, high = compare.auroc_interval(scores, scores >= 5, np.arange(100))
    assert low == pytest.approx(0.8, abs=0.03)
    assert high == 1
    assert np.isnan(compare.auroc_interval(scores, scores >= 0, np.arange(100))).all()
    assert compare.auroc_interval(np.zeros(100), scores >= 5, np.arange(100)) == (0.5, 0.5)

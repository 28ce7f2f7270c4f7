"""The numbers that compare rewards, against slow and obvious oracles, scikit-learn and worlds that are known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from irl_exp import reward_comparison as compare

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
    scores = np.argsort(np.argsort(scores, kind="stable")).astype(float)  # no ties: nothing is random
    found = compare.pair_accuracy(scores, truth, groups, generator=np.random.default_rng(0))
    assert found == pytest.approx(slow_pair_accuracy(scores, truth, groups), nan_ok=True)


def test_pair_accuracy_with_ties_is_that_of_the_double_loop_on_average() -> None:
    generator = np.random.default_rng(0)
    scores, truth = generator.integers(3, size=60).astype(float), generator.normal(size=60)
    groups = generator.integers(5, size=60)
    found = [compare.pair_accuracy(scores, truth, groups, generator=generator) for _ in range(300)]
    assert np.mean(found) == pytest.approx(slow_pair_accuracy(scores, truth, groups), abs=0.01)
    assert np.std(found) > 0


@patient
@given(scored, st.integers(0, 100))
def test_pair_accuracy_does_not_see_a_constant_per_prompt(rows: Scored, seed: int) -> None:
    scores, truth, groups = (np.array(column) for column in zip(*rows, strict=True))
    shifts = np.random.default_rng(seed).integers(-1000, 1000, size=4)

    def found(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        return compare.pair_accuracy(scores, truth, groups, generator=np.random.default_rng(seed))

    np.testing.assert_equal(found(scores + shifts[groups], truth), found(scores, truth))
    np.testing.assert_equal(found(scores, truth + shifts[groups]), found(scores, truth))


@pytest.mark.parametrize("order", [1, -1])
def test_pair_accuracy_of_a_constant_score_is_one_half_whatever_the_order_of_rows(order: int) -> None:
    truth = np.tile(np.arange(10.0), 40)[::order]
    groups = np.repeat(np.arange(40), 10)
    found = compare.pair_accuracy(np.zeros(400), truth, groups, generator=np.random.default_rng(0))
    assert found == pytest.approx(0.5, abs=0.04)


def test_pair_accuracy_without_an_informative_pair_is_not_defined() -> None:
    ones, groups = np.ones(4), np.array([0, 0, 1, 1])
    assert np.isnan(compare.pair_accuracy(np.arange(4.0), ones, groups, generator=np.random.default_rng(0)))


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

"""How well a learned reward agrees with another one, and with how much uncertainty: arrays in, numbers out.

A pairwise loss leaves a constant per prompt free. AUROC over pooled prompts and rank correlations do not need a
threshold; accuracy does, and each accuracy here says where its threshold comes from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def auroc(scores: Floats, positive: Bools) -> float:
    """P(score of a positive > score of a negative), ties counted half. NaN where a class is missing."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def pair_accuracy(scores: Floats, truth: Floats, groups: Ints, *, generator: np.random.Generator) -> float:
    """Fraction of pairs within a group (prompt) that the scores order as the truth does.

    Pairs with equal truth say nothing and are left out. Each pair is shown in a random orientation and 'the first
    is better' is predicted where its score is higher, so a constant score reaches 1/2 and not 0 or 1.
    """
    right, count = 0, 0
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        first, second = np.triu_indices(len(rows), k=1)
        first, second = rows[first], rows[second]
        informative = truth[first] != truth[second]
        first, second = first[informative], second[informative]
        swap = generator.random(len(first)) < 0.5
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        right += int(((scores[first] > scores[second]) == (truth[first] > truth[second])).sum())
        count += len(first)
    return right / count if count else float("nan")


def accuracy(scores: Floats, positive: Bools, threshold: float) -> float:
    """Fraction of texts whose side of the threshold is their label."""
    return float(((scores >= threshold) == positive).mean())


def f1_toxic(scores: Floats, civil: Bools, threshold: float) -> float:
    """F1 of the toxic class, predicted below the threshold. 0 where nothing is found."""
    predicted, toxic = scores < threshold, ~civil
    found = int((predicted & toxic).sum())
    total = int(predicted.sum()) + int(toxic.sum())
    return 2 * found / total if total else 0.0


def best_threshold(scores: Floats, positive: Bools, *, balanced: bool = False) -> float:
    """Threshold t of 'positive where score >= t' with the highest accuracy on these texts.

    With `balanced`, the mean of both classes' accuracies (Youden's index). Candidates lie midway between
    neighbouring scores; the lowest of equals is taken.
    """
    order = np.argsort(scores, kind="stable")
    values, labels = scores[order], positive[order].astype(float)
    weight = np.ones(len(labels))
    if balanced:
        weight = np.where(labels > 0, 0.5 / max(labels.sum(), 1), 0.5 / max((1 - labels).sum(), 1))
    # gain[k]: the k lowest texts are called negative.
    below = np.concatenate([[0.0], np.cumsum(weight * (1 - labels))])
    above = np.concatenate([np.cumsum((weight * labels)[::-1])[::-1], [0.0]])
    gain = below + above
    possible = np.concatenate([[True], values[1:] > values[:-1], [True]])
    best = int(np.argmax(np.where(possible, gain, -np.inf)))
    if best == 0:
        return float(values[0])
    if best == len(values):
        return float(np.nextafter(values[-1], np.inf))
    middle = (values[best - 1] + values[best]) / 2
    return float(middle if middle > values[best - 1] else values[best])  # the middle of neighbours rounds down


def correlations(scores: Floats, truth: Floats) -> dict[str, float]:
    """Pearson, Spearman and Kendall (tau-b) correlation. NaN where one of them is constant."""
    if np.ptp(scores) == 0 or np.ptp(truth) == 0:
        return dict.fromkeys(("pearson", "spearman", "kendall"), float("nan"))
    return {
        "pearson": float(stats.pearsonr(scores, truth).statistic),
        "spearman": float(stats.spearmanr(scores, truth).statistic),
        "kendall": float(stats.kendalltau(scores, truth).statistic),
    }


def bootstrap_interval(
    statistic: Callable[[Ints], float],
    groups: Ints,
    *,
    resamples: int,
    generator: np.random.Generator,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic of row indices, resampling whole groups (prompts) with replacement.

    Completions of one prompt resemble each other, so rows are not independent; prompts are. Resamples in which the
    statistic is not defined (one class only) are left out.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(inverse == group) for group in range(len(names))]
    values = []
    for _ in range(resamples):
        drawn = generator.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[group] for group in drawn])))
    defined = np.array(values)[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""How well a learned reward agrees with another one, and with how much uncertainty: arrays in, numbers out.

A pairwise loss leaves a constant per prompt free, and an unknown KL coefficient one positive scale. EPIC, STARC and
everything 'within prompts' see neither; AUROC and rank correlations over pooled prompts need no threshold but do see
the constants; accuracy needs a threshold, and each accuracy here says where its threshold comes from.

Completions of one prompt resemble each other, so intervals resample prompts. `prompt_counts` draws how often each
prompt occurs, (resamples, prompts); a `..._resamples` function gives its statistic in all resamples at once, with
`groups` numbering the prompts 0, 1, ... as the columns of those counts; `interval` takes the percentiles. The same
counts for two statistics make a paired comparison. A statistic that is not defined in a resample is NaN there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from scipy.spatial.distance import pdist, squareform

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Z = float(stats.norm.ppf(0.975))


class UndefinedDistanceError(ValueError):
    """The distance between two rewards is not defined: one is constant, or a prompt has one completion only."""


def auroc(scores: Floats, positive: Bools) -> float:
    """P(score of a positive > score of a negative), ties counted half. NaN where a class is missing."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _sums(values: Floats | Bools, index: Ints, size: int) -> Floats:
    """Sum of the values (n,) of each index 0 ... size - 1: (size,)."""
    return np.asarray(np.bincount(index, values, size), dtype=np.float64)


def pairs(groups: Ints) -> tuple[Ints, Ints]:
    """Rows (first, second) of all pairs of different rows in one group, each pair once."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    found = []
    for step in range(1, len(groups)):  # as often as the largest group has rows
        places = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(places):
            break
        found.append((order[places], order[places + step]))
    if not found:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    first, second = zip(*found, strict=True)
    return np.concatenate(first), np.concatenate(second)


def _agreement_of_pairs(scores: Floats, truth: Floats, groups: Ints) -> tuple[Floats, Ints]:
    """For each pair of a group that differs in truth: 1 ordered alike, 1/2 tied, 0 ordered otherwise; its first row."""
    first, second = pairs(groups)
    order = np.sign(truth[first] - truth[second])
    informative = order != 0
    first, second = first[informative], second[informative]
    return (1 + np.sign(scores[first] - scores[second]) * order[informative]) / 2, first


def pair_accuracy(scores: Floats, truth: Floats, groups: Ints) -> float:
    """Fraction of pairs within a group (prompt) that the scores order as the truth does, ties in score counted half.

    Pairs with equal truth say nothing and are left out. A constant score reaches 1/2. NaN where no pair is left.
    """
    agree, _ = _agreement_of_pairs(scores, truth, groups)
    return float(agree.mean()) if len(agree) else float("nan")


def _order_within_prompts(a: Floats, b: Floats, index: Ints, prompts: int) -> tuple[Floats, Bools]:
    """Spearman correlation of each prompt (prompts,), and whether it is defined: 0 where a or b is constant.

    Twice the rank of a row (ties at their mean rank) less the mean rank of its prompt is sum_j sign(x_i - x_j).
    """
    first, second = pairs(index)

    def ranks(x: Floats) -> Floats:
        above = np.sign(x[first] - x[second])
        return _sums(above, first, len(x)) - _sums(above, second, len(x))

    rank_a, rank_b = ranks(a), ranks(b)
    products = (rank_a * rank_b, rank_a * rank_a, rank_b * rank_b)
    ab, aa, bb = (_sums(product, index, prompts) for product in products)
    defined = (aa != 0) & (bb != 0)  # true for NaN, which goes on
    return ab / np.sqrt(np.where(defined, aa * bb, 1.0)), defined


def within_prompt_correlation(a: Floats, b: Floats, groups: Ints) -> float:
    """Spearman correlation (ties at their mean rank) within each prompt, averaged over prompts.

    A prompt in which a or b is constant carries no order and is left out. NaN where no prompt is left.
    """
    names, index = np.unique(groups, return_inverse=True)
    found, defined = _order_within_prompts(a, b, index, len(names))
    return float(found[defined].mean()) if defined.any() else float("nan")


def centre(values: Floats, groups: Ints, *, weights: Floats | None = None) -> Floats:
    """(..., n) -> (..., n): R(x, y) - E[R(x, Y)], the expectation under row weights (n,). Exactly 0 where constant."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, starts = np.argsort(index, kind="stable"), np.cumsum(sizes) - sizes
    weights = np.ones(len(groups)) if weights is None else weights
    # The lowest first: what is left is small, so that a large constant per prompt costs no digits.
    values = values - np.minimum.reduceat(values[..., order], starts, axis=-1)[..., index]
    sums = np.add.reduceat((weights * values)[..., order], starts, axis=-1)
    return values - (sums / np.add.reduceat(weights[order], starts))[..., index]


def canonicalise(rewards: Floats, groups: Ints, *, weights: Floats | None = None) -> Floats:
    """(..., n) -> (..., n): C(R) / sqrt(E[C(R)^2]) with C(R) = R - E[R(x, Y)], the member of R's equivalence class.

    Invariant to a constant per prompt and to one positive scale, not to a scale per prompt. The expectation is over
    the coverage: the rows, each as often as its weight (n,) says; all alike without weights, so that a prompt counts
    as often as it has rows. Every prompt needs two completions: one alone is 0 whatever its reward, and dropping it
    silently would be another coverage. Raises UndefinedDistanceError for that and for a reward that is constant
    within every prompt, ValueError for NaN, infinity or a weight that is not positive.
    """
    if not np.isfinite(rewards).all():
        raise ValueError(f"{np.size(rewards) - np.isfinite(rewards).sum()} rewards are not finite numbers.")
    if weights is not None and not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("Coverage weights must be finite and above 0: leave out rows that the coverage does not see.")
    names, sizes = np.unique(groups, return_counts=True)
    if not len(names) or sizes.min() < 2:
        alone = f"prompt {names[sizes.argmin()]} has only one" if len(names) else "there are none"
        raise UndefinedDistanceError(f"A distance needs two completions of every prompt, but {alone}.")
    centred = centre(rewards, groups, weights=weights)
    largest = np.abs(centred).max(axis=-1, keepdims=True)
    if not largest.all():
        raise UndefinedDistanceError("A reward is constant within every prompt: it has no order and no direction.")
    centred = centred / largest  # before squaring: tiny rewards would vanish
    canonical: Floats = centred / np.sqrt(np.average(centred**2, axis=-1, weights=weights, keepdims=True))
    return canonical


def starc(a: Floats, b: Floats, groups: Ints, *, weights: Floats | None = None) -> float:
    """L2-STARC distance |C(a)/|C(a)| - C(b)/|C(b)|| in [0, 2], a metric on equivalence classes (arXiv 2309.15257).

    Norms and `canonicalise` are under the same coverage. 0: equivalent; sqrt 2: unrelated; 2: opposite.
    """
    difference = canonicalise(a, groups, weights=weights) - canonicalise(b, groups, weights=weights)
    return float(np.sqrt(np.average(difference**2, weights=weights)))


def epic(a: Floats, b: Floats, groups: Ints, *, weights: Floats | None = None) -> float:
    """EPIC distance sqrt((1 - rho) / 2) in [0, 1], half of L2-STARC (arXiv 2006.13900, definition 4.7).

    rho is the correlation of the rewards centred within prompts. Two nearly equal rewards lose half of the digits in
    1 - rho, and none in STARC, so it is computed from there.
    """
    return starc(a, b, groups, weights=weights) / 2


def epic_matrix(rewards: Floats, groups: Ints, *, weights: Floats | None = None) -> Floats:
    """EPIC distances of all pairs of rewards: (r, n) -> (r, r), symmetric, 0 on the diagonal."""
    canonical = canonicalise(rewards, groups, weights=weights)
    share = np.ones(len(groups)) if weights is None else weights
    return np.asarray(squareform(pdist(canonical * np.sqrt(share / share.sum()))) / 2)


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


def prompt_counts(prompts: int, resamples: int, generator: np.random.Generator) -> Floats:
    """How often each prompt occurs in a resample with replacement: (resamples, prompts).

    As many as there are would leave percentile intervals too narrow where they are few: by sqrt((n - 1) / n), and by
    the quantile of the normal distribution where Student's belongs (Hesterberg 2015). (n - 1) (z / t)^2 prompts a
    resample make up for both at 95 %: 47 of 50, 197 of 200.
    """
    size = draws_of(prompts)
    drawn = generator.integers(prompts, size=(resamples, size)) + prompts * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * prompts).reshape(resamples, prompts).astype(float)


def draws_of(prompts: int) -> int:
    """How many prompts a resample has, at least one."""
    if prompts < 3:
        return 1
    return max(1, round((prompts - 1) * (Z / float(stats.t.ppf(0.975, prompts - 1))) ** 2))


def fraction_interval(values: Bools, groups: Ints) -> tuple[float, float]:
    """95 % interval of a fraction of the rows (n,), where rows of one prompt resemble each other.

    The exact interval (Clopper and Pearson) of as many independent rows as would have the variance that is found
    between prompts, at most n; fewer by (z / t)^2 for the few prompts (Korn and Graubard, Survey Methodology 24, 1998).
    Where all rows are alike each prompt counts as one. Unlike percentiles of a bootstrap it covers for rare rows too.
    """
    _, index = np.unique(groups, return_inverse=True)
    prompts, share = int(index.max()) + 1, float(values.mean())
    rows = float(prompts)
    if 0 < share < 1:
        variance = float((np.bincount(index, values - share) ** 2).sum()) / len(values) ** 2
        variance *= prompts / max(prompts - 1, 1)
        rows = min(share * (1 - share) / variance, float(len(values))) if variance > 0 else float(len(values))
    rows *= (Z / float(stats.t.ppf(0.975, max(prompts - 1, 1)))) ** 2
    found = rows * share
    low = float(stats.beta.ppf(0.025, found, rows - found + 1)) if share > 0 else 0.0
    high = float(stats.beta.ppf(0.975, found + 1, rows - found)) if share < 1 else 1.0
    return low, high


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    """NaN where the denominator is 0."""
    return np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators > 0)


def mean_resamples(values: Floats | Bools, groups: Ints, counts: Floats) -> Floats:
    """Mean of the values of the rows (n,) in each resample: (resamples,)."""
    prompts = counts.shape[1]
    return _divide(counts @ _sums(values, groups, prompts), counts @ _sums(np.ones(len(groups)), groups, prompts))


def auroc_resamples(scores: Floats, positive: Bools, groups: Ints, counts: Floats) -> Floats:
    """AUROC in each resample: (resamples,). Sorted once; the rows weigh as often as their prompt was drawn.

    Sum over positives of the weight of the negatives below and half of that of the negatives level with it.
    """
    weights = np.ascontiguousarray(counts.T)
    order = np.argsort(scores[~positive])
    negative, weight = scores[~positive][order], weights[groups[positive]]
    below = np.zeros((len(negative) + 1, len(counts)))
    np.cumsum(weights[groups[~positive][order]], axis=0, out=below[1:])
    first, last = (np.searchsorted(negative, scores[positive], side) for side in ("left", "right"))
    wins = np.einsum("pr,pr->r", weight, below[first])
    level = last > first
    wins += np.einsum("pr,pr->r", weight[level], below[last[level]] - below[first[level]]) / 2
    return _divide(wins, weight.sum(axis=0) * below[-1])


def pair_accuracy_resamples(scores: Floats, truth: Floats, groups: Ints, counts: Floats) -> Floats:
    """Pair accuracy in each resample: (resamples,)."""
    agree, first = _agreement_of_pairs(scores, truth, groups)
    return mean_resamples(agree, groups[first], counts)


def within_prompt_correlation_resamples(a: Floats, b: Floats, groups: Ints, counts: Floats) -> Floats:
    """Mean Spearman correlation within prompts in each resample: (resamples,)."""
    found, defined = _order_within_prompts(a, b, groups, counts.shape[1])
    return _divide(counts @ found, counts @ defined.astype(float))


def epic_resamples(a: Floats, b: Floats, groups: Ints, counts: Floats, *, weights: Floats | None = None) -> Floats:
    """EPIC distance in each resample: (resamples,). NaN where a reward is constant within the drawn prompts.

    A prompt drawn twice is centred as it was, so sums per prompt are enough for rho. Near 0 the distance keeps half of
    the digits, 1e-8.
    """
    a, b = canonicalise(a, groups, weights=weights), canonicalise(b, groups, weights=weights)
    weights = np.ones(len(groups)) if weights is None else weights
    ab, aa, bb = (counts @ _sums(weights * product, groups, counts.shape[1]) for product in (a * b, a * a, b * b))
    rho = _divide(ab, np.sqrt(aa) * np.sqrt(bb))
    return np.asarray(np.sqrt((1 - np.clip(rho, -1, 1)) / 2))


def weights_of_parts(parts: Floats, reward: Floats, groups: Ints, counts: Floats) -> Floats:
    """How a reward trades parts (n, k) off, in each resample: (resamples, k), sum of |w| = 1.

    Least squares of the reward on the parts, all centred within prompts: it sees neither a constant per prompt nor a
    positive scale. NaN where the parts are linearly dependent within prompts, or where all weights are 0.
    """
    x, y = centre(parts.T, groups), centre(reward, groups)
    moments = [[counts @ _sums(one * other, groups, counts.shape[1]) for other in (*x, y)] for one in x]
    gram = np.moveaxis(np.array(moments), -1, 0)  # (resamples, k, k + 1): X'X and, last, X'y
    gram, cross = gram[..., :-1], gram[..., -1:]
    found = np.full(gram.shape[:2], np.nan)
    regular = np.linalg.matrix_rank(gram, rtol=1e-10, hermitian=True) == len(x)  # condition of X below 1e5
    found[regular] = np.linalg.solve(gram[regular], cross[regular])[..., 0]
    return _divide(found, np.broadcast_to(np.abs(found).sum(axis=1, keepdims=True), found.shape))


def interval(resampled: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a statistic (resamples,). Resamples in which it is not defined (NaN) are left out."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


FEWEST_PROMPTS = 20
"""Prompts with a completion of the rarer class below which an AUROC gets the interval of `newcombe_interval`."""


def auroc_interval(scores: Floats, positive: Bools, groups: Ints) -> tuple[float, float]:
    """95 % interval of an AUROC over prompts, also where one class is rare; NaN where it is missing.

    The variance is that of DeLong for clusters (Obuchowski 1997), the interval is on the log-odds of the AUROC with
    Student's t of as many prompts as have the rarer class, less one. With fewer than FEWEST_PROMPTS such prompts, and
    where the sample is separated perfectly, there is no variance to trust: there the interval is Newcombe's, which is
    wide. A percentile bootstrap of prompts is too narrow where one class is rare (docs/metrics.md has the coverage).
    """
    value = auroc(scores, positive)
    if np.isnan(value):
        return float("nan"), float("nan")
    if np.ptp(scores) == 0:
        return value, value
    sizes = [len(np.unique(groups[rows])) for rows in (positive, ~positive)]
    if min(sizes) < FEWEST_PROMPTS or value in (0.0, 1.0):
        return newcombe_interval(value, *sizes)
    places = _placements(scores, positive) - value
    parts = [np.bincount(groups[rows], places[rows], groups.max() + 1) / rows.sum() for rows in (positive, ~positive)]
    own = [size / (size - 1) * (part**2).sum() for size, part in zip(sizes, parts, strict=True)]
    error = np.sqrt(sum(own) + 2 * (parts[0] * parts[1]).sum())
    half = stats.t.ppf(0.975, min(sizes) - 1) * error / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array([-half, half]))
    return float(low), float(high)


def _placements(scores: Floats, positive: Bools) -> Floats:
    """(n,) of a positive the share of negatives below it, of a negative that of positives above it; ties half."""
    found = np.empty(len(scores))
    for rows, sign in ((positive, 1), (~positive, -1)):
        others, own = np.sort(sign * scores[~rows]), sign * scores[rows]
        found[rows] = sum(np.searchsorted(others, own, side) for side in ("left", "right")) / (2 * len(others))
    return found


def newcombe_interval(value: float, positives: int, negatives: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUROC of so many independent values, by the variance that it would have at each end.

    All p with |value - p| <= z sqrt(V(p)), V(p) = p (1 - p) (1 + c (1 - p) / (2 - p) + c p / (1 + p)) / (n m),
    c = (n + m) / 2 - 1 (Hanley and McNeil): method 5 of Newcombe, Statistics in Medicine 25, 2006. It has a width where
    all positives are above all negatives, which a bootstrap has not.
    """
    half, z = (positives + negatives) / 2 - 1, float(stats.norm.ppf((1 + level) / 2))

    def beyond(other: float) -> float:
        spread = 1 + half * (1 - other) / (2 - other) + half * other / (1 + other)
        variance = other * (1 - other) * spread / (positives * negatives)
        return (value - other) ** 2 - z**2 * variance

    tiny = 1e-9
    far = 1 - tiny
    low = optimize.brentq(beyond, tiny, value - tiny) if value > tiny and beyond(tiny) > 0 else 0.0
    high = optimize.brentq(beyond, value + tiny, far) if value < far and beyond(far) > 0 else 1.0
    return float(low), float(high)


def share_interval(value: float, resampled: Floats) -> tuple[float, float]:
    """95 % interval of what lies between 0 and 1, as an AUROC: normal on the scale of log(p / (1 - p)).

    Percentiles of it miss too often on one side where prompts are few. Where the value or a resample is 0 or 1 there is
    no such scale, and they are taken.
    """
    defined = resampled[~np.isnan(resampled)]
    if not 0 < value < 1 or len(defined) < 2 or not ((defined > 0) & (defined < 1)).all():
        return interval(resampled)
    middle, half = float(special.logit(value)), Z * float(special.logit(defined).std(ddof=1))
    return float(special.expit(middle - half)), float(special.expit(middle + half))


def bootstrap_interval(
    statistic: Callable[[Ints], float],
    groups: Ints,
    *,
    resamples: int,
    generator: np.random.Generator,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of any statistic of row indices, resampling whole groups (prompts); slow, for all others.

    Resamples in which the statistic is not defined (one class only) are left out.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(inverse == group) for group in range(len(names))]
    values = []
    for _ in range(resamples):
        drawn = generator.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[group] for group in drawn])))
    return interval(np.array(values), level=level)

"""What is reported of a reward: frames of completions in, flat dictionaries of numbers out.

A frame holds one row a completion: `prompt_id`, `policy` ('expert', 'baseline' or a single other one), `truth` (R*) and
rewards or signals in columns of their own. No function looks at `part`: callers say which rows they pass. `civil` is
R* >= 0. What is not defined (one class only, a constant reward, prompts with one completion) is left out of the
dictionary, never made up; a column with NaN or infinity raises. `_low` and `_high` are 95 % percentile intervals over
resampled prompts; the same draws serve all numbers of one call, so they can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from irl_exp.measures import reward_comparison as compare
from irl_exp.measures.reward_comparison import Bools, Floats, Ints

Metrics = dict[str, float]
SIDES = (("truth", "implicit"), ("implicit", "learned"), ("truth", "learned"))


def _column(frame: pd.DataFrame, name: str) -> Floats:
    values = frame[name].to_numpy(dtype=np.float64)
    broken = int((~np.isfinite(values)).sum())
    if broken or not len(values):
        found = f"is not a finite number in {broken} of {len(values)} rows" if len(values) else "has no rows"
        raise ValueError(f"Column {name!r} of the completions {found}: it cannot be measured.")
    return values


def _prompts(frame: pd.DataFrame) -> tuple[Ints, int]:
    """The prompt of each row as 0, 1, ..., and how many there are."""
    names, index = np.unique(frame["prompt_id"].to_numpy(), return_inverse=True)
    return index, len(names)


def _is_expert(frame: pd.DataFrame) -> Bools:
    return np.asarray(frame["policy"] == "expert", dtype=bool)


def _policy_weights(frame: pd.DataFrame) -> Floats:
    """Coverage that draws a prompt, one of its policies and one of their completions, each uniformly."""
    completions = frame.groupby(["prompt_id", "policy"])["policy"].transform("size")
    policies = frame.groupby("prompt_id")["policy"].transform("nunique")
    return 1 / (completions * policies).to_numpy(dtype=np.float64)


def _with_interval(name: str, value: float, resampled: Floats) -> Metrics:
    low, high = compare.interval(resampled)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _share(name: str, value: float, resampled: Floats) -> Metrics:
    """The same of what lies between 0 and 1."""
    low, high = compare.share_interval(value, resampled)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _defined(metrics: Metrics) -> Metrics:
    return {key: float(value) for key, value in metrics.items() if not np.isnan(value)}


def _distances(a: Floats, b: Floats, groups: Ints, counts: Floats, weights: Floats) -> Metrics:
    """EPIC with its interval, and L2-STARC; nothing where they are not defined."""
    try:
        distance = compare.epic(a, b, groups, weights=weights)
    except compare.UndefinedDistanceError:
        return {}
    resampled = compare.epic_resamples(a, b, groups, counts, weights=weights)
    return {**_with_interval("epic", distance, resampled), "starc": 2 * distance}


def _orders(scores: Floats, truth: Floats, groups: Ints, counts: Floats) -> Metrics:
    """How alike two rewards order the completions of a prompt, with intervals."""
    rank = compare.within_prompt_correlation(scores, truth, groups)
    ranks = compare.within_prompt_correlation_resamples(scores, truth, groups, counts)
    pair = compare.pair_accuracy(scores, truth, groups)
    pairs = compare.pair_accuracy_resamples(scores, truth, groups, counts)
    return {
        **_with_interval("within_prompt_correlation", rank, ranks),
        **_share("pair_accuracy", pair, pairs),
    }


def auroc(name: str, scores: Floats, positive: Bools, groups: Ints) -> Metrics:
    """AUROC with its interval by prompt, which holds with few of one class too; not defined (NaN) with one class."""
    low, high = compare.auroc_interval(scores, positive, groups)
    return {name: compare.auroc(scores, positive), f"{name}_low": low, f"{name}_high": high}


def within(test: pd.DataFrame, column: str, *, resamples: int, generator: np.random.Generator) -> Metrics:
    """One reward against R* on these completions, without a threshold.

    `auroc` is about the label `civil`; `epic`, `starc`, `within_prompt_correlation` and `pair_accuracy` compare with R*
    itself within prompts. Where all completions are of one policy a reward that knows who wrote a text, and nothing
    else, has AUROC 1/2.
    """
    scores, truth = _column(test, column), _column(test, "truth")
    groups, prompts = _prompts(test)
    counts = compare.prompt_counts(prompts, resamples, generator)
    civil = truth >= 0
    metrics: Metrics = {
        "n_completions": len(test),
        "n_civil": int(civil.sum()),
        **auroc("auroc", scores, civil, groups),
        **_distances(scores, truth, groups, counts, _policy_weights(test)),
        **_orders(scores, truth, groups, counts),
    }
    return _defined(metrics)


def agreement(
    test: pd.DataFrame,
    column: str,
    cuts: Mapping[str, float],
    *,
    resamples: int,
    generator: np.random.Generator,
) -> Metrics:
    """All that is said of one reward against R*: `within`, correlations over all rows, and `accuracy...`, `f1...`.

    Args:
        cuts: ending of the two names -> threshold, as `thresholds` sets them on select; F1 is that of the toxic class.
    """
    found = within(test, column, resamples=resamples, generator=generator)
    scores, truth = _column(test, column), _column(test, "truth")
    civil = truth >= 0
    metrics: Metrics = {
        "majority_accuracy": max(civil.mean(), 1 - civil.mean()),
        **{f"accuracy{name}": compare.accuracy(scores, civil, value) for name, value in cuts.items()},
        **{f"f1{name}": compare.f1_toxic(scores, civil, value) for name, value in cuts.items()},
        **compare.correlations(scores, truth),
    }
    return found | _defined(metrics)


def thresholds(select: pd.DataFrame, own: pd.DataFrame, column: str) -> dict[str, float]:
    """Three thresholds of a reward, never mixed, by the ending of what is measured with them.

    '' is set with R* on `own`, the completions of select of the policies whose test completions are judged.
    `_unsupervised` sees no R*: it separates expert from baseline best (Youden) on `select`, which needs both.
    `_at_zero` is the paper's rule, arbitrary for a reward with a free constant.
    """
    found = {"": compare.best_threshold(_column(own, column), _column(own, "truth") >= 0), "_at_zero": 0.0}
    expert = _is_expert(select)
    if 0 < expert.sum() < len(expert):
        found["_unsupervised"] = compare.best_threshold(_column(select, column), expert, balanced=True)
    return found


def discrimination(test: pd.DataFrame, column: str) -> Metrics:
    """How well a reward tells the completions of expert and baseline apart: agreement with the policies, not R*."""
    scores, expert, groups = _column(test, column), _is_expert(test), _prompts(test)[0]
    metrics = {
        **auroc("discrimination_auroc", scores, expert, groups),
        "discrimination_pair_accuracy": compare.pair_accuracy(scores, expert.astype(np.float64), groups),
    }
    return _defined(metrics)


def without_intervals(scores: Floats, truth: Floats) -> Metrics:
    """The quick numbers of one reward against R*, as `agreement` has them; what is not defined is left out."""
    civil = truth >= 0
    found = {"accuracy_at_zero": compare.accuracy(scores, civil, 0.0), **compare.correlations(scores, truth)}
    if 0 < civil.sum() < len(civil):
        found |= {"auroc": compare.auroc(scores, civil), "f1_at_zero": compare.f1_toxic(scores, civil, 0.0)}
    return _defined(found)


def triangle(frame: pd.DataFrame, *, resamples: int, generator: np.random.Generator) -> Metrics:
    """Where R* gets lost: from R* to implicit (what RL did not install), from implicit to learned (what IRL missed).

    Keys `<one>_<other>/epic`, `/within_prompt_correlation` and `/pair_accuracy` (how the second orders the pairs that
    the first tells apart), each with an interval. A side without its columns, with a reward that is constant within
    all prompts, or of prompts with one completion, is left out. EPIC, a metric, keeps the triangle inequality.
    """
    groups, prompts = _prompts(frame)
    counts = compare.prompt_counts(prompts, resamples, generator)
    weights = _policy_weights(frame)
    metrics: Metrics = {}
    for one, other in SIDES:
        if one in frame and other in frame:
            first, second = _column(frame, one), _column(frame, other)
            if distances := _distances(first, second, groups, counts, weights):
                side = distances | _orders(second, first, groups, counts)
                metrics |= {f"{one}_{other}/{key}": value for key, value in side.items() if key != "starc"}
    return _defined(metrics)


def uncertainty(select: pd.DataFrame, test: pd.DataFrame) -> Metrics:
    """AUROC of an uncertainty, and of what is cheaper, for the errors of the `learned` reward; below 1/2 as it is.

    An error is a completion on the wrong side of the threshold that was set with R* on select. Signals, where their
    columns are there: `epistemic` (learned_sd), `norm` (feature_norm), `length`, and `perplexity` (nats per token under
    the reference policy, which orders alike). `epistemic_pair_auroc` is about the pairs of a prompt that differ in
    truth and in learned reward: does sqrt(sd_1^2 + sd_2^2), the sd of the margin if errors are independent, tell the
    wrongly ordered ones? Uncertainty that predicts no errors better than the others do is not one.
    """
    learned, civil = _column(test, "learned"), _column(test, "truth") >= 0
    threshold = compare.best_threshold(_column(select, "learned"), _column(select, "truth") >= 0)
    wrong = (learned >= threshold) != civil
    groups = _prompts(test)[0]
    metrics: Metrics = {"n_errors": int(wrong.sum())}
    for name, values in _signals(test).items():
        metrics |= auroc(f"{name}_auroc", values, wrong, groups)
    if "learned_sd" in test:
        metrics |= _pair_errors(learned, _column(test, "truth"), _column(test, "learned_sd"), groups)
    return _defined(metrics)


def _signals(frame: pd.DataFrame) -> dict[str, Floats]:
    columns = {"epistemic": "learned_sd", "norm": "feature_norm", "length": "length"}
    signals = {name: _column(frame, column) for name, column in columns.items() if column in frame}
    if "reference_log_probability" in frame and "tokens" in frame:
        per_token = -_column(frame, "reference_log_probability") / _column(frame, "tokens")
        signals["perplexity"] = _column(pd.DataFrame({"perplexity": per_token}), "perplexity")
    return signals


def _pair_errors(learned: Floats, truth: Floats, sd: Floats, groups: Ints) -> Metrics:
    first, second = compare.pairs(groups)
    alike = np.sign(learned[first] - learned[second]) * np.sign(truth[first] - truth[second])
    first, second, alike = first[alike != 0], second[alike != 0], alike[alike != 0]
    return {
        "n_pairs": len(alike),
        "n_wrong_pairs": int((alike < 0).sum()),
        **auroc("epistemic_pair_auroc", np.hypot(sd[first], sd[second]), alike < 0, groups[first]),
    }


def shortcut(
    with_marker: pd.DataFrame,
    without_marker: pd.DataFrame,
    test: pd.DataFrame,
    column: str,
    *,
    resamples: int,
    generator: np.random.Generator,
) -> Metrics:
    """How much of the `learned` reward rests on a marker that was planted, beside the same of R* (`truth`).

    `with_marker` and `without_marker` are the same completions, row by row, of prompts of `test`; `column` of `test`
    says how much of the marker a test completion has. For `learned` and `truth`:
    - `_effect`: mean paired difference, in sd within prompts of that reward over the test completions. What the marker
      causes, other things equal. `excess_effect` is that of the learned reward less that of R*.
    - `_explained`: squared correlation within prompts of reward and marker. What goes along with the marker: also good
      text, where the marker sits on good text, so read it beside that of R*.
    - `_share`: effect^2 times the variance of the marker within prompts: the part of the reward's variance that the
      marker alone would make. 1 for a reward that sees nothing else, 0 for a blind one. Only where `column` is 0 or 1.
    There is no ratio of the two effects: with R* blind to the marker it is 1 however little the learned reward cares.
    """
    groups, prompts = _prompts(test)
    counts = compare.prompt_counts(prompts, resamples, generator)
    once = np.ones((1, prompts))
    both = [_shortcut(with_marker, without_marker, test, column, groups, used) for used in (once, counts)]
    metrics: Metrics = {}
    for name, value in both[0].items():
        metrics |= _with_interval(name, float(value[0]), both[1][name])
    return _defined(metrics)


def _shortcut(
    with_marker: pd.DataFrame,
    without_marker: pd.DataFrame,
    test: pd.DataFrame,
    column: str,
    groups: Ints,
    counts: Floats,
) -> dict[str, Floats]:
    """Every number of `shortcut` in each resample: (resamples,)."""
    paired, marker = _paired_prompts(with_marker, without_marker, test), _column(test, column)
    variance = compare.mean_resamples(compare.centre(marker, groups) ** 2, groups, counts)
    found: dict[str, Floats] = {}
    for name in ("learned", "truth"):
        reward, difference = _column(test, name), _column(with_marker, name) - _column(without_marker, name)
        square = compare.mean_resamples(compare.centre(reward, groups) ** 2, groups, counts)
        square = np.where(square > 0, square, np.nan)
        effect = compare.mean_resamples(difference, paired, counts) / np.sqrt(square)
        product = compare.centre(reward, groups) * compare.centre(marker, groups)
        shared = compare.mean_resamples(product, groups, counts)
        found[f"{name}_effect"] = effect
        found[f"{name}_explained"] = shared**2 / (square * np.where(variance > 0, variance, np.nan))
        if np.isin(marker, (0, 1)).all():
            found[f"{name}_share"] = effect**2 * variance
    return found | {"excess_effect": found["learned_effect"] - found["truth_effect"]}


def _paired_prompts(with_marker: pd.DataFrame, without_marker: pd.DataFrame, test: pd.DataFrame) -> Ints:
    """The prompt of each pair, in the numbering of `test`."""
    names, wanted = np.unique(test["prompt_id"].to_numpy()), with_marker["prompt_id"].to_numpy()
    if not np.array_equal(wanted, without_marker["prompt_id"].to_numpy()):
        raise ValueError(
            "Completions with and without the marker have other prompt_id: pass the same rows, in one order."
        )
    if len(strange := np.setdiff1d(wanted, names)):
        raise ValueError(f"Completions with the marker have prompt_id {strange[0]}, which no test completion has.")
    return np.searchsorted(names, wanted)


def tradeoff(
    parts: pd.DataFrame, reward: Floats, groups: Ints, *, resamples: int, generator: np.random.Generator
) -> Metrics:
    """How a reward trades the (standardised) parts of R* off: least squares within prompts, sum of |weight| = 1.

    One key for each column of `parts` (n rows), with its interval. Nothing where the parts are linearly dependent
    within prompts or the reward is constant there.
    """
    values = np.column_stack([_column(parts, name) for name in parts.columns])
    target = _column(pd.DataFrame({"reward": reward}), "reward")
    names, index = np.unique(groups, return_inverse=True)
    counts = compare.prompt_counts(len(names), resamples, generator)
    point = compare.weights_of_parts(values, target, index, np.ones((1, len(names))))[0]
    resampled = compare.weights_of_parts(values, target, index, counts)
    metrics: Metrics = {}
    for number, name in enumerate(parts.columns):
        metrics |= _with_interval(str(name), float(point[number]), resampled[:, number])
    return _defined(metrics)

"""Where a number of a run misleads: each kind of caution is a function of its metrics and facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from irl_exp.report.cells import Facts, overrides_of
from irl_exp.report.names import Words, number, share, words_of

Metrics = Mapping[str, float]
Cautions = Iterator[tuple[str, str]]

FEWEST = 50
"""Completions of one class below which an AUROC or an accuracy says little."""
HARDLY = 0.75
"""A judge that makes more than this part of the majority's errors has hardly learnt its label."""
SEEN, SEEN_GRAMS = 0.05, 0.5
"""Completions of test, and their 4-grams, that stand in training: from here on test is no news."""
ALIKE = 0.6
"""Cohen's kappa of the errors of two judges from which on they are called alike."""
EMPTY = 0.1
LOST = 0.25
"""Of the expert's gain in R*: what a policy at the same distance from the reference may lack."""
TRAINED = ("expert", "refinetuned")


def cautions(metrics: Metrics, facts: Facts, name: str) -> Cautions:
    """(kind, text) of everything that a reader of these numbers has to know; `name` are the overrides of the run."""
    if "scale=tiny" in overrides_of(name):
        yield "tiny", "scale=tiny: there is nothing to learn from these numbers."
    yield from _judges(metrics, words_of(facts))
    yield from _classes(metrics, words_of(facts))
    yield from _texts(metrics, facts)
    yield from _known_texts(metrics)
    yield from _second_judge(metrics, words_of(facts))
    yield from _refinetuned(metrics)


def _judges(metrics: Metrics, words: Words) -> Cautions:
    """A judge that hardly beats the majority class."""
    for key in sorted(metrics):
        judge = key.removesuffix("/majority_accuracy")
        if judge == key or not judge.startswith(("reward", "second_judge")) or f"{judge}/accuracy" not in metrics:
            continue
        errors, of_majority = 1 - metrics[f"{judge}/accuracy"], 1 - metrics[key]
        if errors >= HARDLY * of_majority:
            name = (
                "The second judge"
                if judge == "second_judge"
                else f"R*{judge.removeprefix('reward')}".replace("/", " of ")
            )
            yield (
                f"judge {judge}",
                f"{name} errs on {share(errors)} of {int(metrics[f'{judge}/n'])} held-out texts, the majority class on "
                f"{share(of_majority)}: what it calls {words.below} means little.",
            )


def _known_texts(metrics: Metrics) -> Cautions:
    """Texts of test that stand in what was fitted; two judges that make the same mistakes."""
    whole, grams = metrics.get("data/completions_seen", 0.0), metrics.get("data/completion_4grams_seen", 0.0)
    if whole >= SEEN or grams >= SEEN_GRAMS:
        yield (
            "known texts",
            f"{share(whole)} of the human completions of test, and {share(grams)} of their 4-grams, stand in the texts "
            "that policies and judges were fitted on: test is near to training.",
        )
    kappa = metrics.get("second_judge/independence/error_kappa", 0.0)
    if kappa >= ALIKE:
        yield (
            "judges alike",
            f"R* and the second judge err on the same human texts (kappa {kappa:.2f}): the second is hardly another "
            "opinion.",
        )


def _classes(metrics: Metrics, words: Words) -> Cautions:
    """One class only, or few completions of it."""
    total, civil = _counts(metrics)
    few = min(civil, total - civil)
    if not total or few >= FEWEST:
        return
    rare, common = (words.below, words.above) if total - civil <= civil else (words.above, words.below)
    be = "have" if words == Words() else "are"
    if few == 0:
        yield "one class", f"All {total} completions {be} {common}: no AUROC, and an accuracy says nothing."
    else:
        yield "few of a class", f"{few} of {total} completions {be} {rare}: AUROC, accuracy and shares rest on these."


def _counts(metrics: Metrics) -> tuple[int, int]:
    """The reference's completions, on which rewards are judged, else all of the policies; how many are not below 0."""
    total, civil = metrics.get("implicit/n_completions"), metrics.get("implicit/n_civil")
    if total is not None and civil is not None:
        return int(total), int(civil)
    keys = ("toxic_count", "n_completions")
    there = [policy for policy in ("reference", "expert") if all(f"{policy}/{key}" in metrics for key in keys)]
    total = sum(metrics[f"{policy}/n_completions"] for policy in there)
    return int(total), int(total - sum(metrics[f"{policy}/toxic_count"] for policy in there))


def _texts(metrics: Metrics, facts: Facts) -> Cautions:
    """Texts that please by being short, empty, or always the same."""
    about_length = any(key.startswith("reward.") and value == "length" for key, value in facts.items())
    for policy in TRAINED:
        if not about_length and (halved := _halved(metrics, policy, "length_mean")):
            told = f"{halved[0]:.1f} tokens a completion, the reference {halved[1]:.1f}"
            what = "its R*" if f"{policy}/reward_mean" in metrics else "what tells it apart"
            yield f"{policy} short", f"The {policy} writes {told}: brevity alone may explain {what}."
        if halved := _halved(metrics, policy, "distinct_fraction"):
            told = f"{share(halved[0])} distinct completions, the reference {share(halved[1])}"
            yield f"{policy} alike", f"The {policy} writes {told}: it repeats itself."
    for policy in ("reference", *TRAINED):
        if (empty := metrics.get(f"{policy}/empty_fraction", 0.0)) >= EMPTY:
            yield f"{policy} empty", f"{share(empty)} of the {policy}'s completions are empty."


def _halved(metrics: Metrics, policy: str, key: str) -> tuple[float, float] | None:
    """A number of a policy and of the reference, where the first is below half of the second."""
    after, before = metrics.get(f"{policy}/{key}"), metrics.get(f"reference/{key}")
    return (after, before) if after is not None and before is not None and after < before / 2 else None


def _second_judge(metrics: Metrics, words: Words) -> Cautions:
    """A policy that R* finds better by far, and the second judge does not; of another R* than toxicity it is none."""
    if words == Words():
        return
    for policy in TRAINED:
        falls = []
        for key in ("toxic_fraction", "second_toxic_fraction"):
            before, after = metrics.get(f"reference/{key}", 0.0), metrics.get(f"{policy}/{key}")
            falls.append(1 - after / before if before > 0 and after is not None else None)
        by_truth, by_second = falls
        if by_truth is None or by_second is None or by_truth < LOST or by_second >= by_truth / 2:
            continue
        yield (
            f"{policy} second judge",
            f"The share of {words.completions} of the {policy} is {share(by_truth)} below the reference's by R*, and "
            f"{_below(by_second)} by the second judge, whom no reward has seen: it may please R*, not its purpose.",
        )


def _below(fall: float) -> str:
    return f"{share(fall)}" if fall >= 0 else f"{share(-fall)} above it"


def _refinetuned(metrics: Metrics) -> Cautions:
    """What went wrong while the learned reward was optimised."""
    policies = [f"{policy}/toxic_fraction" for policy in ("reference", *TRAINED)]
    if all(key in metrics for key in policies) and "recovered_fraction" not in metrics:
        yield "nothing to recover", "Mean R* of the expert is not told from that of the reference: nothing to recover."
    if found := _far_below_expert(metrics):
        at, expert = map(number, found)
        yield (
            "equal KL",
            f"At equal distance from the reference ({number(metrics['equal_kl/from'])} to "
            f"{number(metrics['equal_kl/to'])} nats) refinetune has R* {at}, the expert {expert}: the learned reward "
            "pays for something else too.",
        )
    if metrics.get("overoptimisation/over_optimised"):
        yield "over-optimised", "While the learned reward rises in refinetune, R* falls: over-optimised."


def _far_below_expert(metrics: Metrics) -> tuple[float, float] | None:
    """R* of refinetune and of the expert at equal KL, where a good part of the expert's gain is clearly lacking."""
    keys = [f"equal_kl/{key}" for key in ("refinetuned_reward", "expert_reward", "difference_high", "from", "to")]
    if not all(key in metrics for key in (*keys, "reference/reward_mean")):
        return None
    at, expert, high = (metrics[key] for key in keys[:3])
    return (at, expert) if high < 0 and expert - at > LOST * (expert - metrics["reference/reward_mean"]) else None

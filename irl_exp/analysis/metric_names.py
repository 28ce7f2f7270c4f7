"""What a metric is called on the page and in its figures: `refinetuned/kl` is "refinetuned policy: KL (nats)"."""

from __future__ import annotations

from irl_exp.report.names import POLICIES, POLICY_COLUMNS, REWARD_ROWS, SIGNALS, Words

REWARDS = {
    "irl": "learned reward",
    "implicit": "log ratio of the policies",
    "author": "who wrote it",
}
COVERAGES = {"expert": "on the expert's completions", "refinetuned": "on the refinetuned policy's completions"}
OTHERS = {
    "recovered_fraction": "part of the expert's gain in R* that refinetuning recovers",
    "triangle/truth_implicit/epic": "EPIC distance, R* to log ratio of the policies",
    "triangle/implicit_learned/epic": "EPIC distance, log ratio of the policies to learned reward",
    "triangle/truth_learned/epic": "EPIC distance, R* to learned reward",
    "overoptimisation/over_optimised": "part of the runs that over-optimise",
    "equal_kl/difference": "R* at equal KL: refinetuned policy less expert",
    "equal_kl/refinetuned_reward": "refinetuned policy: R* at equal KL",
    "equal_kl/expert_reward": "expert: R* at equal KL",
    "shortcut/learned_share": "part of the learned reward that rests on the shortcut",
    "explain/r2": "R2 of the learned reward within policies, by all statements",
    "explain/r2_at_5": "R2 of the learned reward within policies, by five statements",
    "explain/n_statements": "statements that hold",
    "explain/n_certified": "statements of which all rewards that fit say the same",
    "human/irl/auroc": "learned reward: AUROC against labels of people",
    "human/truth/auroc": "R*: AUROC against labels of people",
    **{f"uncertainty/{key}_auroc": f"AUROC for errors: {text}" for key, text in SIGNALS.items()},
}


def readable(metric: str, words: Words) -> str:
    """The name of a metric in words of the reward; one that has no name stays as it is.

    >>> toxic = Words("toxic", "civil")
    >>> readable("irl/auroc", toxic), readable("benchmark/expert/toxic_fraction", toxic)
    ('learned reward: AUROC against the label of R*', 'benchmark, expert: toxic completions')
    >>> readable("refinetuned/toxic_fraction", Words()), readable("of/no/name", toxic)
    ('refinetuned policy: completions with R* < 0', 'of/no/name')
    """
    if metric.startswith("benchmark/"):
        return f"benchmark, {readable(metric.removeprefix('benchmark/'), words)}"
    if metric.startswith("pooled/"):
        return f"expert and reference pooled, {readable(metric.removeprefix('pooled/'), words)}"
    owner, _, key = metric.partition("/")
    coverage, _, inner = key.partition("/")
    if owner in REWARDS and coverage in COVERAGES:
        return f"{readable(f'{owner}/{inner}', words)}, {COVERAGES[coverage]}"
    if owner in REWARDS and key in REWARD_ROWS:
        return f"{REWARDS[owner]}: {words.name(REWARD_ROWS[key])}"
    if owner in POLICIES and key in POLICY_COLUMNS:
        judged = {
            "toxic_fraction": words.completions,
            "second_toxic_fraction": f"{words.completions} by the second judge",
        }
        return f"{'refinetuned policy' if owner == 'refinetuned' else owner}: {judged.get(key, POLICY_COLUMNS[key])}"
    return OTHERS.get(metric, metric)

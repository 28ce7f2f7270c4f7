"""What metrics are called in tables, and which of them a study compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

POLICIES = ("reference", "expert", "refinetuned")


@dataclass(frozen=True)
class Words:
    """What completions below 0 of R*, and the others, are called: only some rewards are about toxicity."""

    below: str = "R* < 0"
    above: str = "R* >= 0"

    @property
    def completions(self) -> str:
        """Completions below 0, as a sentence has them: 'toxic completions', 'completions with R* < 0'."""
        return f"completions with {self.below}" if self == Words() else f"{self.below} completions"

    @property
    def judged(self) -> str:
        """The same behind a number: '600 toxic by R*', '600 with R* < 0'."""
        return f"with {self.below}" if self == Words() else f"{self.below} by R*"

    def name(self, text: str) -> str:
        """The name of a row or column, with the word in its place."""
        return text.replace("{below}", self.below)


def words_of(facts: Mapping[str, object]) -> Words:
    """The words of a reward, from its config ("reward.name" and, of a sequence classifier, its labels)."""
    kind = facts.get("reward.name")
    if kind == "sequence_classifier":
        below, above = str(facts.get("reward.toxic", "toxic")), str(facts.get("reward.civil", "civil"))
        return Words("toxic", "civil") if below == "toxic" else Words(f"'{below}'", f"'{above}'")
    return Words("toxic", "civil") if kind == "classifier" else Words()


def number(value: float) -> str:
    """How a table and a sentence tell a number."""
    return f"{value:.3f}"


def share(value: float) -> str:
    """How a sentence tells a fraction."""
    return f"{100 * value:.1f} %"


METHODS = {
    "implicit": "log ratio of expert and reference (implicit)",
    "majority": "constant reward (majority)",
    "placebo": "placebo, a reward of expert and reference swapped at random in each pair,",
    "probe": "probe, which is fitted on the label of R* itself,",
    "probe_regression": "probe (regression), which is fitted on R* itself,",
    "author": "reward that knows who wrote a text and nothing else (author)",
}
"""What a sentence calls the reward of a method that is no inverse RL of these demonstrations."""

POLICY_COLUMNS = {
    "toxic_fraction": "{below}",
    "second_toxic_fraction": "2nd judge",
    "reward_mean": "R* mean",
    "learned_reward_mean": "learned R",
    "kl": "KL (nats)",
    "nll": "NLL/token",
    "distinct_fraction": "distinct",
    "empty_fraction": "empty",
    "length_mean": "tokens",
}

REWARD_ROWS = {
    "auroc": "AUROC against the label of R*",
    "epic": "EPIC distance to R*",
    "pair_accuracy": "pair accuracy within a prompt",
    "within_prompt_correlation": "rank correlation within a prompt",
    "accuracy": "accuracy, threshold set with R* on select",
    "f1": "F1 ({below}), the same threshold",
    "accuracy_unsupervised": "accuracy, threshold set without R*",
    "accuracy_at_zero": "accuracy at 0 (an arbitrary threshold)",
    "majority_accuracy": "accuracy of the majority class",
    "pearson": "Pearson correlation with R*",
    "spearman": "Spearman correlation with R*",
    "kendall": "Kendall correlation with R*",
    "discrimination_auroc": "AUROC expert against reference, pooled (not R*)",
}

REWARD_COLUMNS = {
    "irl": "learned [95 %]",
    "implicit": "log ratio [95 %]",
    "pooled/irl": "learned pooled",
    "pooled/implicit": "log ratio pooled",
    "pooled/author": "author pooled",
}
"""On the completions of the reference; pooled with the expert's, where knowing the author alone looks good."""

WITHIN = {
    "irl": ("learned", "reference"),
    "irl/expert": ("learned", "expert"),
    "irl/refinetuned": ("learned", "refinetuned"),
    "implicit": ("log ratio", "reference"),
    "implicit/expert": ("log ratio", "expert"),
    "implicit/refinetuned": ("log ratio", "refinetuned"),
}
"""A reward on the completions of one policy."""
WITHIN_COLUMNS = {"auroc": "AUROC [95 %]", "epic": "EPIC to R* [95 %]", "pair_accuracy": "pair accuracy [95 %]"}

SIDES = {
    "truth_implicit": "R* - log ratio: what RLHF did not install",
    "implicit_learned": "log ratio - learned: what IRL did not recover",
    "truth_learned": "R* - learned",
}

COVERAGES = {
    "triangle": "reference",
    "triangle_expert": "expert",
    "triangle_refinetuned": "refinetuned",
    "pooled/triangle": "expert + reference",
}

SIGNALS = {
    "epistemic": "epistemic sd of the learned reward",
    "norm": "norm of the features",
    "length": "length",
    "perplexity": "perplexity under the reference",
}

SHORTCUT_ROWS = {
    "effect": "effect of adding it, in sd within prompts",
    "explained": "variance within prompts that goes along with it",
    "share": "variance within prompts that it alone would make",
}

OVER_OPTIMISATION_ROWS = {
    "truth_change": "R*, last fifth minus its best fifth",
    "learned_change": "learned reward, the same",
}

EQUAL_KL_ROWS = {
    "difference": "R* at equal KL, refinetuned less expert",
    "refinetuned_reward": "R* of the refinetuned policy there",
    "expert_reward": "R* of the expert there",
}

BOUNDS = ("_low", "_high")

STUDY_METRICS = (
    "irl/auroc",
    "irl/epic",
    "irl/pair_accuracy",
    "irl/accuracy",
    "irl/accuracy_unsupervised",
    "irl/accuracy_at_zero",
    "irl/majority_accuracy",
    "irl/spearman",
    "irl/discrimination_auroc",
    "explain/r2_at_5",
    "explain/r2",
    "explain/n_statements",
    "explain/n_certified",
    "implicit/auroc",
    "irl/expert/auroc",
    "irl/refinetuned/auroc",
    "pooled/irl/auroc",
    "pooled/author/auroc",
    "triangle/truth_implicit/epic",
    "triangle/implicit_learned/epic",
    "reference/toxic_fraction",
    "expert/toxic_fraction",
    "refinetuned/toxic_fraction",
    "equal_kl/difference",
    "refinetuned/reward_mean",
    "refinetuned/kl",
    "expert/kl",
    "refinetuned/nll",
    "refinetuned/distinct_fraction",
    "refinetuned/length_mean",
    "recovered_fraction",
    "refinetuned/second_toxic_fraction",
    "benchmark/reference/toxic_fraction",
    "benchmark/expert/toxic_fraction",
    "benchmark/refinetuned/toxic_fraction",
    "benchmark/recovered_fraction",
    "overoptimisation/over_optimised",
    "shortcut/learned_share",
    "uncertainty/epistemic_auroc",
    "uncertainty/norm_auroc",
    "human/irl/auroc",
    "human/truth/auroc",
)

COMPARED = {
    "learned rewards": {
        "irl/auroc": "AUROC",
        "irl/epic": "EPIC to R*",
        "triangle/implicit_learned/epic": "EPIC to log ratio",
        "irl/pair_accuracy": "pair accuracy",
        "irl/accuracy_unsupervised": "accuracy (no R*)",
        "pooled/irl/auroc": "AUROC pooled",
        "pooled/author/auroc": "author pooled",
    },
    "refinetuned policies": {
        "refinetuned/toxic_fraction": "{below}",
        "refinetuned/reward_mean": "R* mean",
        "refinetuned/kl": "KL (nats)",
        "refinetuned/distinct_fraction": "distinct",
        "equal_kl/difference": "R* at equal KL, less the expert's",
        "recovered_fraction": "recovered",
        "expert/kl": "KL of the expert",
        "overoptimisation/over_optimised": "over-optimised",
    },
}
"""Columns of the tables that compare cells."""

"""An expert out of ranked samples of the reference, with TRL's offline trainers.

The reference writes n completions of each prompt and the reward ranks them: DPO trains on pairs of the best and the
worst, `best_of_n` on the best alone. TRL gives the algorithm, its loss and its curves. Token ids are those of the
samples (TRL would tokenise prompt and completion together), log-probabilities those of policies/likelihood.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from irl_exp.config import BestOfNConfig, DpoConfig, LoraConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies import adapters
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import of_whole, token_statistics
from irl_exp.policies.policy_optimization import OptimizationError, rounding
from irl_exp.policies.sampling import SAMPLED_TOGETHER, completed, sample
from irl_exp.policies.supervised import history_callback, trainer_arguments

CURVES = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/accuracies": "accuracy",
    "grad_norm": "gradient_norm",
}
"""TRL's log keys and ours. loss: nats a pair (DPO), nats a token (best of n). The next three are of DPO alone: beta
log pi / pi_ref of a completion, means over the batch; accuracy is how often the chosen one has the larger one."""

IGNORED = -100
"""Label of a token that is not predicted."""


@dataclass(frozen=True)
class Ranked:
    """The samples of the reference, `generations` neighbours to a prompt, with what they are worth.

    Attributes:
        log_probabilities: (n,) of whole completions, in nats, as they were sampled.
        rewards: (n,).
        best, worst: (groups,) rows, the first of those that are level.
    """

    samples: Completions
    log_probabilities: NDArray[np.float64]
    rewards: NDArray[np.float64]
    best: NDArray[np.int64]
    worst: NDArray[np.int64]

    @property
    def told_apart(self) -> NDArray[np.bool_]:
        """(groups,) whether the reward tells the best from the worst."""
        found: NDArray[np.bool_] = self.rewards[self.best] > self.rewards[self.worst]
        return found


def train_on_ranked(
    reference: Path,
    reward: Callable[[Completions], NDArray[np.float64]],
    prompts: Sequence[str],
    config: DpoConfig | BestOfNConfig,
    *,
    adapter: LoraConfig | None = None,
    context: Context,
) -> Policy:
    """Train a fresh copy of the reference, or an adapter on it, on what it has written, ranked by the reward.

    Writes samples.parquet: all that was sampled, one row a completion, with its `reward` and `rank`, 1 for the best of
    its prompt, -1 for the worst, 0 for the others.

    Args:
        reference: folder of the reference policy.
        reward: takes b completions, gives (b,) rewards.
        prompts: distinct prompts; each step takes batch_size / generations of them, all before one comes again.

    Raises:
        OptimizationError: the reward is not finite, tells no completions apart, or the policy did not start at its
            reference.
    """
    policy = Policy.load(reference, context.device)
    ranked = _ranked(policy, reward, prompts, config, context)
    _table(ranked, config).to_parquet(context.folder / "samples.parquet")
    groups = _order(ranked, config)
    history = history_callback(context, CURVES)
    trainer = _trainer(policy, ranked, groups, config, adapter, history)
    trainer.remove_callback(transformers.PrinterCallback)
    transformers.set_seed(config.seed)
    trainer.train()
    _check_start(history.rows[0], ranked, groups, config, policy)
    return policy


def _ranked(
    policy: Policy,
    reward: Callable[[Completions], NDArray[np.float64]],
    prompts: Sequence[str],
    config: DpoConfig | BestOfNConfig,
    context: Context,
) -> Ranked:
    """Samples for every step, ranked."""
    n, groups = config.generations, config.steps * config.batch_size // config.generations
    generator = np.random.default_rng(config.seed)
    passes = [generator.permutation(len(prompts)) for _ in range(-(-groups // len(prompts)))]
    chosen = [prompts[row] for row in np.concatenate(passes)[:groups] for _ in range(n)]
    prompt_ids = policy.encode_prompts(chosen)
    written = sample(
        policy,
        prompt_ids,
        max_new_tokens=config.max_new_tokens,
        batch_size=SAMPLED_TOGETHER,
        seed=int(generator.integers(2**31)),
        progress=lambda done, total: context.progress(done, 2 * total),
    )
    samples = completed(policy, chosen, prompt_ids, written)
    rewards = np.asarray(reward(samples), dtype=np.float64)
    if not np.isfinite(rewards).all():
        worst = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise OptimizationError(f"the reward of {samples.texts[worst]!r} is {rewards[worst]}, not a finite number.")
    by_prompt, first = rewards.reshape(groups, n), np.arange(groups) * n
    log_probabilities = of_whole(policy, prompt_ids, written)
    return Ranked(samples, log_probabilities, rewards, first + by_prompt.argmax(1), first + by_prompt.argmin(1))


def _table(ranked: Ranked, config: DpoConfig | BestOfNConfig) -> Any:
    rank = np.zeros(len(ranked.rewards), dtype=np.int64)
    rank[ranked.worst[ranked.told_apart]] = -1
    rank[ranked.best] = 1
    return ranked.samples.frame().assign(reward=ranked.rewards, rank=rank)


def _order(ranked: Ranked, config: DpoConfig | BestOfNConfig) -> NDArray[np.int64]:
    """(steps * groups a step,) groups in the order of training.

    Completions that the reward does not tell apart are no pair: DPO goes on with the others, from their first one again
    where they are used up.

    Raises:
        OptimizationError: none is told apart.
    """
    if not ranked.told_apart.any():
        raise OptimizationError(
            f"the reward gives all {config.generations} completions of every prompt the same score: there is nothing "
            "to choose by. Raise rlhf.generations, or take a reward that the reference's samples differ in."
        )
    groups = np.arange(len(ranked.best))
    usable = groups[ranked.told_apart] if isinstance(config, DpoConfig) else groups
    return np.resize(usable, len(groups))


def _trainer(
    policy: Policy,
    ranked: Ranked,
    groups: NDArray[np.int64],
    config: DpoConfig | BestOfNConfig,
    adapter: LoraConfig | None,
    history: Any,
) -> Any:
    import datasets
    import trl

    preferences = isinstance(config, DpoConfig)
    micro_batch = config.micro_batch_size or config.batch_size
    common: dict[str, Any] = {
        "max_steps": config.steps,
        "per_device_train_batch_size": micro_batch // config.generations,
        "gradient_accumulation_steps": config.batch_size // micro_batch,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "max_length": None,
        **trainer_arguments(policy, seed=config.seed, checkpointing=config.gradient_checkpointing),
    }
    rows = _pairs(ranked, groups) if preferences else _texts(ranked, groups)
    if preferences:
        own = {"beta": config.kl_coefficient, "precompute_ref_log_probs": True, "disable_dropout": True}
        arguments = trl.DPOConfig(**common, **own)
    else:
        arguments = trl.SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})
    return _in_order(trl.DPOTrainer if preferences else trl.SFTTrainer, policy)(
        model=policy.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=adapters.settings(adapter, policy.model) if adapter else None,
        callbacks=[history],
    )


def _pairs(ranked: Ranked, groups: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows as DPOTrainer has them after its own preparation."""
    ids, log_p = ranked.samples.completion_ids, ranked.log_probabilities
    return [
        {
            "prompt_ids": ranked.samples.prompt_ids[best],
            "chosen_ids": ids[best],
            "rejected_ids": ids[worst],
            "ref_chosen_logps": float(log_p[best]),
            "ref_rejected_logps": float(log_p[worst]),
        }
        for best, worst in zip(ranked.best[groups], ranked.worst[groups], strict=True)
    ]


def _texts(ranked: Ranked, groups: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows as SFTTrainer has them after its own preparation: of a prompt no token is predicted."""
    best = ranked.samples[ranked.best[groups]]
    pairs = zip(best.prompt_ids, best.completion_ids, strict=True)
    return [
        {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}
        for prompt, completion in pairs
    ]


def _in_order(trainer: Any, policy: Policy) -> Any:
    """TRL's trainer on rows that are ready, in their order, with our log-probabilities."""

    class InOrder(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *rest: Any, **options: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *rest: Any, **options: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *rest: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
            return super().compute_loss(_InShards(policy), inputs, *rest, **options)

    return InOrder


@dataclass(frozen=True)
class _InShards:
    """Stands for a model with TRL's LM head: log-probabilities of the labelled tokens, 0 at all others.

    What TRL makes curves of beside them (entropy, mean logits, top tokens) is left at 0, and is in none of ours.
    """

    policy: Policy

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: Any
    ) -> SimpleNamespace:
        predicted = labels[:, 1:] != IGNORED
        lengths = attention_mask.sum(1).tolist()
        starts = [int(row.nonzero()[0, 0]) + 1 for row in predicted]
        rows = list(zip(input_ids, starts, lengths, strict=True))
        blank = [""] * len(rows)
        completions = Completions(
            blank,
            blank,
            [ids[:start].tolist() for ids, start, _ in rows],
            [ids[start:length].tolist() for ids, start, length in rows],
        )
        values, _ = token_statistics(self.policy, completions)
        zeros = torch.zeros(predicted.shape, device=labels.device)
        log_probabilities = zeros.masked_scatter(predicted, torch.cat(values).to(labels.device))
        return SimpleNamespace(
            log_probs=log_probabilities, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), label_mask=predicted
        )


def _check_start(
    row: dict[str, float],
    ranked: Ranked,
    groups: NDArray[np.int64],
    config: DpoConfig | BestOfNConfig,
    policy: Policy,
) -> None:
    """The first step's completions have the probabilities with which the reference wrote them, up to rounding.

    In nats per token.
    """
    first = groups[: config.batch_size // config.generations]
    ids = ranked.samples.completion_ids
    if isinstance(config, DpoConfig):
        tokens = np.mean([[len(ids[row]) for row in rows[first]] for rows in (ranked.best, ranked.worst)])
        off = max(abs(row["chosen"]), abs(row["rejected"])) / config.kl_coefficient / tokens
    else:
        best = ranked.best[first]
        off = abs(row["loss"] + ranked.log_probabilities[best].sum() / sum(len(ids[place]) for place in best))
    if not off <= rounding(policy.device):
        raise OptimizationError(f"the first step is {off:.3g} nats a token off the reference: it is not the start.")

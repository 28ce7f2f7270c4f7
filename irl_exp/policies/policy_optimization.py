"""max E[R(x, y)] - beta KL(policy | reference), for any reward, with TRL's online trainers.

Three traps of trl it closes: the KL reference is re-read from disk, so the policy must lie
there unchanged (the first logged KL is checked to be 0); a trained model carries a patched `forward` (Policy.save
removes it); top-k or top-p would truncate the samples but not the log-probabilities (both stay off).

The KL of a whole completion, log pi / pi_ref of its samples, is a part of the reward, so that the optimum of the
objective is where both algorithms stand still, whatever the number of generations. RLOO does so by itself. GRPO would
put a KL of single tokens (k3) into its loss, where no token answers for the KL of those after it, while its group mean
takes 1 / generations from the reward alone: it gets the KL as a second reward function here, and no coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import NDArray

from irl_exp.config import LoraConfig, PolicyOptimizationConfig
from irl_exp.machinery.runtime import Context, Device
from irl_exp.policies import adapters
from irl_exp.policies.language_models import READ_TOGETHER, Completions, Ids, Policy
from irl_exp.policies.likelihood import TRAINED_TOGETHER, as_read, log_probabilities, token_statistics
from irl_exp.policies.sampling import SAMPLED_TOGETHER, sample
from irl_exp.policies.supervised import history_callback, trainer_arguments

CURVES = {
    "rewards/optimised/mean": "reward",
    "rewards/optimised/std": "reward_sd",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated_fraction",
    "frac_reward_zero_std": "constant_reward_fraction",
    "grad_norm": "gradient_norm",
}
"""TRL's log keys and ours. length counts EOS. kl and entropy are nats per token, as means over the tokens of the batch:
kl of log pi / pi_ref of what was sampled (k1), so below 0 by chance; entropy of the whole distribution at each token.
"""


class OptimizationError(Exception):
    """Policy optimisation that did not do what it was asked for."""


def optimize(
    reference: Path,
    reward: Callable[[Completions], NDArray[np.float64]],
    prompts: Sequence[str],
    config: PolicyOptimizationConfig,
    *,
    adapter: LoraConfig | None = None,
    opened: Policy | None = None,
    context: Context,
) -> Policy:
    """Train a fresh copy of the reference policy against the reward, or an adapter on it; the KL is to the reference.

    Writes trajectory.parquet: everything that was sampled, one row a completion, with the step (counted from 1), the
    reward that was optimised, the number of tokens (EOS counts) and, with a KL coefficient, the KL of that step in nats
    per completion. So somebody else can judge the whole way later: nothing but the given reward is asked here.

    Args:
        reference: folder of the reference policy.
        reward: takes b completions, gives (b,) rewards.
        prompts: distinct prompts; each step draws batch_size / generations of them.
        adapter: the weights of the reference stay, are in memory once, and are the reference with the adapter off.
        opened: the reference, where it is open already: the KL is to it, and an adapter lies on its weights.

    Raises:
        OptimizationError: the reward is not finite, or the policy did not start at its reference.
    """
    import datasets

    if len(prompts) < config.batch_size // config.generations:
        raise OptimizationError(
            f"a step takes batch_size / generations = {config.batch_size // config.generations} distinct prompts, but "
            f"there are {len(prompts)}: lower batch_size, or raise data.fit_prompts."
        )
    opened = opened or Policy.load(reference, context.device)
    policy = opened.beside() if adapter else Policy.load(reference, context.device)
    history = history_callback(context, CURVES)
    sampled: list[pd.DataFrame] = []
    rewards = [reward_function(reward, policy, sampled)]
    if config.algorithm == "grpo" and config.kl_coefficient > 0:
        rewards.insert(0, kl_function(policy, opened))  # first: what it reads, a learned reward need not read again
    trainer = _trainer_class(config, policy, opened, adapter)(
        model=policy.model,
        reward_funcs=rewards,
        args=_arguments(config, policy),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=policy.tokenizer,
        peft_config=adapters.settings(adapter, policy.model) if adapter else None,
        callbacks=[history],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.ref_model is not None:
        trainer.ref_model = opened.model  # TRL has opened it once more
    # The constructor draws from the global generators; start from the same state whatever it drew.
    transformers.set_seed(config.seed)
    trainer.train()
    if config.kl_coefficient > 0:
        _check_start(history.rows, reference, policy.device)
    _trajectory(sampled, history.rows).to_parquet(context.folder / "trajectory.parquet")
    return policy


def _trajectory(sampled: Sequence[pd.DataFrame], history: Sequence[dict[str, float]]) -> pd.DataFrame:
    """All batches, one below the other, with the KL of their step."""
    frame = pd.concat(sampled, ignore_index=True)
    frame["tokens"] = frame["completion_ids"].map(len)
    kl = {row["step"]: row["kl"] * row["length"] for row in history if "kl" in row}
    return frame.assign(kl=frame["step"].map(kl)) if kl else frame


def reward_function(
    reward: Callable[[Completions], NDArray[np.float64]], policy: Policy, sampled: list[pd.DataFrame]
) -> Callable[..., list[float]]:
    """A reward in the form that TRL calls: texts and ids of a batch in, one float each out.

    Each batch is appended to `sampled`, with its rewards and the step that it is for.
    """

    def optimised(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], trainer_state: Any, **columns: Any
    ) -> list[float]:
        batch = Completions(prompts, completions, policy.encode_prompts(prompts), completion_ids)
        scores = np.asarray(reward(batch), dtype=np.float64)
        if not np.isfinite(scores).all():
            worst = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise OptimizationError(f"the reward of {completions[worst]!r} is {scores[worst]}, not a finite number.")
        sampled.append(batch.frame().assign(reward=scores, step=trainer_state.global_step + 1))
        return [float(score) for score in scores]

    return optimised


def kl_function(policy: Policy, reference: Policy) -> Callable[..., list[float]]:
    """log pi / pi_ref of each completion in nats, in the form of a reward function; logs `kl`, nats per token."""

    def kl(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], log_metric: Any, **columns: Any
    ) -> list[float]:
        batch = Completions(prompts, completions, policy.encode_prompts(prompts), completion_ids)
        training = policy.model.training
        ratios = log_probabilities(policy, batch) - log_probabilities(reference, batch)
        policy.model.train(training)
        log_metric("kl", float(ratios.sum()) / sum(map(len, completion_ids)))
        return [float(ratio) for ratio in ratios]

    return kl


def _trainer_class(
    config: PolicyOptimizationConfig, policy: Policy, opened: Policy, adapter: LoraConfig | None = None
) -> Any:
    """TRL's trainer with our log-probabilities and gradients; on a CPU, with an adapter, and with vLLM sampling too.

    With an adapter everywhere: what is in bf16 and what in fp32 is then the same as in all other stages.
    """
    import trl

    trainer = trl.RLOOTrainer if config.algorithm == "rloo" else trl.GRPOTrainer
    if policy.chats:
        trainer = _with_our_prompts(trainer, policy)
    ours = policy.device.is_cpu or adapter is not None or policy.device.vllm is not None
    return _with_our_numbers(trainer, policy, opened, config, samples=ours)


def _with_our_prompts(trainer: Any, policy: Policy) -> Any:
    """The trainer with prompts as the policy is asked everywhere: TRL would read a chat template's markup as text."""

    class WithOurPrompts(trainer):  # type: ignore[misc]
        def _tokenize_prompts(self, prompts: list[str], *rest: Any) -> Any:
            return policy.encode_prompts(prompts), None, {}

    return WithOurPrompts


def _with_our_numbers(
    trainer: Any, policy: Policy, opened: Policy, config: PolicyOptimizationConfig, *, samples: bool
) -> Any:
    """The trainer with log-probabilities of policies/likelihood.py, whatever samples; its algorithm stays.

    Args:
        opened: the reference, which reads in the batches of features if somebody hears it.
        samples: with our sampler, too. What is asked of the policy that has just sampled is known then, which saves a
            pass of three.
    """

    class WithOurNumbers(trainer):  # type: ignore[misc]
        just_sampled: Sequence[torch.Tensor] = ()

        def _generate_single_turn(self, prompt_ids: list[Ids], *rest: Any, **options: Any) -> Any:
            if not samples:
                return super()._generate_single_turn(prompt_ids, *rest, **options)
            training, seed = self.model.training, [config.seed, int(self.state.global_step)]
            written = sample(
                policy,
                prompt_ids,
                max_new_tokens=config.max_new_tokens,
                batch_size=SAMPLED_TOGETHER,
                seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
            )
            self.model.train(training)
            self.just_sampled = as_read(policy, prompt_ids, written)
            found = [one.ids for one in written]
            return found if config.algorithm == "rloo" else (found, None)

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            logits_to_keep: int,
            *rest: Any,
            compute_entropy: bool = False,
            **options: Any,
        ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
            of_reference = model is not self.model or adapters.off(model)
            if not of_reference and self.just_sampled and not torch.is_grad_enabled():
                return _padded(self.just_sampled, logits_to_keep, input_ids.device), None, None
            completions = _unpadded(input_ids, attention_mask, logits_to_keep)
            together = READ_TOGETHER if of_reference and opened.hears else TRAINED_TOGETHER
            owner = opened if of_reference else policy
            values, entropies = token_statistics(owner, completions, together=together, entropy=compute_entropy)
            found = [_padded(one, logits_to_keep, input_ids.device) for one in (values, entropies)]
            return found[0], found[1], None

    return WithOurNumbers


def _unpadded(input_ids: torch.Tensor, mask: torch.Tensor, kept: int) -> Completions:
    """The rows of TRL's batch, prompts padded on the left and completions on the right, as token ids."""
    sides = [
        [ids[inside.bool()].tolist() for ids, inside in zip(input_ids[:, side], mask[:, side], strict=True)]
        for side in (slice(-kept), slice(-kept, None))
    ]
    blank = [""] * len(input_ids)
    return Completions(blank, blank, *sides)


def _padded(values: Sequence[torch.Tensor], length: int, device: torch.device) -> torch.Tensor:
    """(b, length): one row each, zeros after its end."""
    rows = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    return torch.nn.functional.pad(rows, (0, length - rows.shape[1])).to(device)


def _arguments(config: PolicyOptimizationConfig, policy: Policy) -> Any:
    import trl

    micro_batch = config.micro_batch_size or config.batch_size
    common: dict[str, Any] = {
        "max_steps": config.steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": config.batch_size // micro_batch,
        "num_generations": config.generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": 1.0,
        "epsilon": config.epsilon,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "disable_dropout": True,
        **trainer_arguments(policy, seed=config.seed, checkpointing=config.gradient_checkpointing),
    }
    if config.algorithm == "rloo":
        return trl.RLOOConfig(**common, beta=config.kl_coefficient)
    weights = [-config.kl_coefficient, 1.0] if config.kl_coefficient > 0 else [1.0]
    # Advantages divided by the sd of their group would leave beta without a scale (arXiv 2503.20783).
    return trl.GRPOConfig(**common, beta=0.0, reward_weights=weights, scale_rewards="none")


def rounding(device: Device) -> float:
    """Nats per token by which the start of a policy may differ from its reference.

    In bf16 sampling and reading round hidden states differently: 0.002 were measured with a random model of 50,304
    tokens.
    """
    return 0.02 if device.bf16 else 1e-3


def _check_start(rows: list[dict[str, float]], reference: Path, device: Device) -> None:
    """The first step samples from the reference itself, so its KL must be 0 up to rounding.

    In nats per token, of which an expert of the default run has 0.15.
    """
    first = next((row["kl"] for row in rows if "kl" in row), None)
    if first is None or abs(first) > rounding(device):
        raise OptimizationError(f"the KL to {reference} starts at {first}, not at 0: the reference is not the start.")

"""Next-token training of a policy on given texts, with the Trainer of transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from irl_exp.config import LoraConfig, SftConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies import adapters
from irl_exp.policies.language_models import Completions, Ids, Policy, pad
from irl_exp.policies.likelihood import token_statistics

CURVES = {"loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "learning_rate"}
"""The trainer's log keys and ours; loss in nats per token."""


def history_callback(context: Context, names: Mapping[str, str]) -> Any:
    """A trainer callback that passes log rows and steps on to the context, and keeps the rows in `rows`.

    `names` maps the trainer's keys to ours. Defined in a function because the import of its base class takes seconds.
    """

    class History(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            context.progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            row = {ours: float(logs[theirs]) for theirs, ours in names.items() if theirs in logs}
            if row:
                self.rows.append({"step": float(state.global_step), **row})
                context.log(self.rows[-1])

    return History()


NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in NAMES if name in transformers.TrainingArguments.__dataclass_fields__)
"""Its name since transformers 5.20, or before: vLLM wants an older one."""


def trainer_arguments(policy: Policy, *, seed: int, checkpointing: bool = False) -> dict[str, Any]:
    """Arguments that every trainer of the chain shares: no checkpoints on disk, no reports of its own, repeatable.

    Args:
        policy: that is trained.
        checkpointing: activations inside of layers are computed again.
    """
    device = policy.device
    # The state of the one generator of the process would be put back by several threads in any order.
    draws = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in policy.model.modules())
    again = {"use_reentrant": False, "preserve_rng_state": draws}
    return {
        "output_dir": tempfile.gettempdir(),  # nothing is written: no checkpoints
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": seed,
        "use_cpu": device.is_cpu,
        "bf16": device.bf16,
        "dataloader_pin_memory": not device.is_cpu,
        CHECKPOINTING: checkpointing,
        f"{CHECKPOINTING}_kwargs": again if checkpointing else None,
    }


def fine_tune(
    policy: Policy,
    completions: Completions,
    config: SftConfig,
    *,
    adapter: LoraConfig | None = None,
    context: Context,
) -> None:
    """Train the policy in place on prompt and completion tokens, EOS included; with an adapter, that alone."""
    micro_batch = config.micro_batch_size or config.batch_size
    arguments = transformers.TrainingArguments(
        max_steps=config.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=config.batch_size // micro_batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        # A few hundred steps from random weights: with a memory of 1,000 steps (0.999) the held-out loss after 400 was
        # 1.126 nats a token, with one of 20 it was 1.102 (one seed each, the embedded default).
        adam_beta2=0.95,
        warmup_steps=max(1, round(config.warmup_fraction * config.steps)),
        logging_steps=max(1, config.steps // 60),
        **trainer_arguments(policy, seed=config.seed, checkpointing=config.gradient_checkpointing),
    )
    joined = zip(completions.prompt_ids, completions.completion_ids, strict=True)
    rows = [{"input_ids": (prompt + completion)[: config.max_tokens]} for prompt, completion in joined]
    trainer = _trainer_class(policy)(
        model=adapters.add(policy.model, adapter, seed=config.seed) if adapter else policy.model,
        args=arguments,
        train_dataset=rows,
        data_collator=lambda batch: _collate([row["input_ids"] for row in batch], policy),
        callbacks=[history_callback(context, CURVES)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    transformers.set_seed(config.seed)
    trainer.train()


def _trainer_class(policy: Policy) -> Any:
    """The trainer with our log-probabilities: a batch in shards of similar length, no logits of all its tokens."""

    class WithOurNumbers(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, torch.Tensor],
            *rest: Any,
            num_items_in_batch: Any = None,
            **options: Any,
        ) -> torch.Tensor:
            pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            texts = [ids[: int(mask.sum())].tolist() for ids, mask in pairs]
            blank = [""] * len(texts)
            tokens = Completions(blank, blank, [ids[:1] for ids in texts], [ids[1:] for ids in texts])
            values = torch.cat(token_statistics(policy, tokens)[0]).to(policy.device.name)
            # The trainer counts the predicted tokens of the whole step, and adds up what its parts give.
            whole = self.args.gradient_accumulation_steps == 1
            loss: torch.Tensor = -values.mean() if whole else -values.sum() / num_items_in_batch
            return loss

    return WithOurNumbers


def _collate(sequences: list[Ids], policy: Policy) -> dict[str, torch.Tensor]:
    """Pad and mask by position: EOS stays a target even where it is also the padding token."""
    batch = pad(sequences, policy, side="right", device="cpu")
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

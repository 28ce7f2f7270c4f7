"""Rewards with a trained backbone: a copy of the reference policy's model and a linear head, fitted to contrast pairs.

R(x, y) = w . (pool(h(x, y)) - center) @ transform. h are hidden states of the trained copy and pool is that of
features.py. The affine map scales the features of the reference policy itself over the fit demonstrations
(irl.scaling) and stays as it is. Training starts from a random head on the scaled features of a frozen backbone, so
that a norm, a margin and a loss without lower bound (max_margin) mean the same as there.

What bounds the reward: |w| <= max_norm always. With layers [-1] the states come out of the final norm, which bounds
them up to its gain (lora leaves the gain as it is). Other layers are bounded by nothing but weight decay and the
number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from irl_exp.config import (
    BackboneConfig,
    FrozenBackbone,
    FullBackbone,
    HiddenStateConfig,
    LastLayersBackbone,
    LoraBackbone,
    MarginConfig,
)
from irl_exp.irl.contrast import IrlError, Scaling, pair_rows, prompts_of_pairs
from irl_exp.irl.features import Featurizer, pool
from irl_exp.irl.heads import curve_row
from irl_exp.irl.learned_rewards import LinearScorer, TrainedScorer
from irl_exp.irl.methods import procedure
from irl_exp.machinery.runtime import Context
from irl_exp.policies.gradients import in_shards
from irl_exp.policies.language_models import Completions, Policy, in_batches
from irl_exp.policies.likelihood import TRAINED_TOGETHER
from irl_exp.policies.supervised import trainer_arguments


class MarginModel(torch.nn.Module):
    """Backbone and head; its output are the margins of a batch of pairs.

    Attributes:
        head: w, (d,).
        transform: (d, d) float64, of the scaling; its center cancels in a margin.
        draws: whether adapters have dropout, whose numbers come from the one generator of the process.
    """

    transform: Tensor
    draws = False

    def __init__(self, policy: Policy, states: HiddenStateConfig, transform: Tensor, head: Tensor) -> None:
        super().__init__()
        self.policy, self.states, self.backbone = policy, states, policy.model
        self.head = torch.nn.Parameter(head.float())
        self.register_buffer("transform", transform)

    def forward(self, expert: Completions, baseline: Completions) -> Tensor:
        """(b,) margins of b pairs, float64."""
        pooled = self._pooled(expert + baseline)
        return (pooled[: len(expert)] - pooled[len(expert) :]) @ self.direction()

    def _pooled(self, completions: Completions) -> Tensor:
        """(b, d) float64, in batches of similar length; on several threads, unless adapters draw."""
        device = self.policy.device
        batches = in_batches(completions, device, rows=TRAINED_TOGETHER)

        def of(rows: NDArray[np.int64]) -> Tensor:
            # A thread has no precision of its own but fp32.
            with torch.autocast(device.name.split(":")[0], torch.bfloat16, enabled=device.bf16):
                return pool(self.states, self.policy, self.backbone, completions[rows]).double()

        weights = [weight for weight in self.backbone.parameters() if weight.requires_grad]
        pooled = in_shards(of, batches, weights, 1 if self.draws else device.threads)
        return pooled[torch.from_numpy(np.argsort(np.concatenate(batches))).to(pooled.device)]

    def direction(self) -> Tensor:
        """(d,) float64: the reward in the coordinates of the features."""
        return self.transform @ self.head.double()

    def train(self, mode: bool = True) -> Self:
        """Dropout of the adapters alone is switched on: that of the backbone would make the margins irreproducible."""
        super().train(mode)
        self.backbone.eval()
        for name, module in self.backbone.named_modules():
            if ".lora_dropout." in name:
                module.train(mode)
                self.draws |= isinstance(module, torch.nn.Dropout)
        return self

    @torch.no_grad()
    def project(self, max_norm: float) -> None:
        """The nearest w with |w| <= max_norm."""
        self.head.mul_((max_norm / self.head.norm()).clamp(max=1.0))


def train(
    config: MarginConfig, reference: Path, frame: pd.DataFrame, context: Context
) -> tuple[TrainedScorer, dict[str, Any]]:
    """Train a copy of the reference policy's model and a head on the pairs of fit; keep the best epoch on select.

    Args:
        reference: folder of the reference policy.
        frame: demonstrations, without R*.

    Returns:
        The scorer, and what the manifest says of it.

    Raises:
        IrlError: layers that the model does not have, or a loss that is not a finite number.
    """
    completions = Completions.from_frame(frame)
    loaded = Policy.load(reference, context.device, kept="float32")
    policy = Policy(loaded.model.base_model, loaded.tokenizer, loaded.device)
    fit = completions[np.asarray(frame["part"] == "fit")]
    featurizer = Featurizer.fit(config.features, policy, fit)
    scaling = Scaling.fit(featurizer.extract(fit), config.scaling, config.ridge[0])
    states = _states(config)
    merge = choose_parameters(policy.model, config.backbone, states, seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    dimension = len(scaling.center)
    head = torch.randn(dimension, generator=generator, dtype=torch.float64) / dimension**0.5
    model = MarginModel(policy, states, torch.from_numpy(scaling.transform), head).to(context.device.name)
    training = _Training(config, model, featurizer, frame, completions, context)
    training.run(generator)
    model.load_state_dict(training.best, strict=False)
    merge()
    policy.model.requires_grad_(False).eval()
    weights = model.direction().detach().cpu().numpy()[None]
    return TrainedScorer(LinearScorer(weights, scaling.center, featurizer)), {"best_epoch": training.best_epoch}


def _states(config: MarginConfig) -> HiddenStateConfig:
    """The one part of the features."""
    (states,) = config.features.parts.values()
    assert isinstance(states, HiddenStateConfig)
    return states


def choose_parameters(
    backbone: Any, config: BackboneConfig, states: HiddenStateConfig, *, seed: int
) -> Callable[[], object]:
    """Let those parameters require gradients that are trained, and no others.

    Returns:
        What to call after training: it leaves a model of the same architecture as before.

    Raises:
        IrlError: there are no such layers.
    """
    backbone.requires_grad_(isinstance(config, FullBackbone))
    if isinstance(config, LastLayersBackbone):
        for module in last_layers(backbone, config.layers, states):
            module.requires_grad_(True)
    if isinstance(config, LoraBackbone):
        return _add_adapters(backbone, config, seed)
    return lambda: None


def last_layers(backbone: Any, count: int, states: HiddenStateConfig) -> list[torch.nn.Module]:
    """The last blocks of a transformer and, where it has one, the norm after them.

    The blocks are the list of modules that is as long as the model is deep, the norm is the last of its neighbours.
    """
    depth = backbone.config.num_hidden_layers
    if count > depth:
        raise IrlError(f"irl.backbone.layers={count}: the reference policy has {depth} layers; set at most {depth}.")
    read = max(layer % (depth + 1) for layer in states.layers)
    if read <= depth - count:
        raise IrlError(
            f"irl.backbone.layers={count}: the features end at layer {read} of {depth}, below all that is trained; set "
            f"at least {depth - read + 1}, or let the features read a later layer."
        )
    for parent in backbone.modules():
        for blocks in parent.children():
            if isinstance(blocks, torch.nn.ModuleList) and len(blocks) == depth:
                norms = [module for module in parent.children() if "norm" in type(module).__name__.lower()]
                return [*blocks[depth - count :], *norms[-1:]]
    raise IrlError(
        f"irl/backbone=last_layers: no list of {depth} layers in {type(backbone).__name__}; use full or lora."
    )


def _add_adapters(backbone: Any, config: LoraBackbone, seed: int) -> Callable[[], object]:
    """Put adapters into all linear layers, in place; returns what merges them into the weights."""
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, transformers.Conv1D) for module in backbone.modules()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted: Any = peft.get_peft_model(backbone, settings)
    merge: Callable[[], object] = adapted.merge_and_unload
    return merge


@dataclass
class _Training:
    """Training of a margin model with the Trainer of transformers.

    Attributes:
        best: copies of the trained parameters, of the epoch with the least loss on select so far.
    """

    config: MarginConfig
    model: MarginModel
    featurizer: Featurizer
    frame: pd.DataFrame
    completions: Completions
    context: Context
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = float("inf")
    best_epoch: int = 0

    def __post_init__(self) -> None:
        assert not isinstance(self.config.backbone, FrozenBackbone)
        self.backbone = self.config.backbone
        self.max_norm = self.config.max_norm[0]
        self.procedure = procedure(self.config, self.max_norm)

    def run(self, generator: torch.Generator) -> None:
        """Args: generator: draws the prompts, where they are drawn with replacement."""
        pairs = np.stack(pair_rows(self.frame, "fit"), axis=1)
        if self.config.resample_pairs:
            pairs = pairs[drawn_pairs(prompts_of_pairs(self.frame, "fit"), generator)]
        micro = self.backbone.micro_batch_size or self.backbone.batch_size
        arguments = transformers.TrainingArguments(
            num_train_epochs=self.backbone.epochs,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=self.backbone.batch_size // micro,
            lr_scheduler_type="linear",
            logging_strategy="no",
            remove_unused_columns=False,
            **trainer_arguments(self.model.policy, seed=self.config.seed),
        )
        trainer = transformers.Trainer(
            model=self.model,
            args=arguments,
            train_dataset=pairs.tolist(),
            data_collator=self._collate,
            compute_loss_func=self._loss,
            optimizers=(self._optimizer(), None),
            callbacks=[_callback(self)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        transformers.set_seed(self.config.seed)
        self.model.project(self.max_norm)
        trainer.train()

    def _collate(self, pairs: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Completions stay lists of ids until `pool` pads them, both sides of all pairs alike."""
        expert, baseline = (self.completions[list(side)] for side in zip(*pairs, strict=True))
        # The trainer counts labels: the loss is divided by the pairs of a whole step, however the step is split.
        return {"expert": expert, "baseline": baseline, "labels": torch.ones(len(pairs))}

    def _loss(self, margins: Tensor, labels: Tensor, *, num_items_in_batch: Tensor) -> Tensor:
        return self._finite(self.procedure.loss(margins).sum() / num_items_in_batch)

    def _finite(self, loss: Tensor) -> Tensor:
        if not torch.isfinite(loss):
            raise IrlError(
                f"irl/loss={self.config.loss.name} became {loss.item()} with irl/backbone={self.backbone.name}: lower "
                f"irl.backbone.learning_rate={self.backbone.learning_rate:g}."
            )
        return loss

    def _optimizer(self) -> torch.optim.Optimizer:
        weights = [parameter for parameter in self.model.backbone.parameters() if parameter.requires_grad]
        decay = self.backbone.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": weights, "lr": self.backbone.learning_rate, "weight_decay": decay},
            {"params": [self.model.head], "lr": self.config.learning_rate, "weight_decay": 0.0},  # its norm is bounded
        ]
        return torch.optim.AdamW(groups)

    def judge(self, epoch: int) -> None:
        """After each epoch: a row of the curve, and a copy of the parameters if select likes them best."""
        row = curve_row(self._margins("fit"), self._margins("select"), self.procedure)
        row["norm"] = self.model.head.detach().norm()
        for name in ("loss", "select_loss"):
            self._finite(row[name])
        values = {name: float(value) for name, value in row.items()}
        self.context.log({"step": epoch, **values})
        if values["select_loss"] < self.best_loss or self.backbone.keep == "last":
            self.best_loss, self.best_epoch = values["select_loss"], epoch
            trained = (item for item in self.model.named_parameters() if item[1].requires_grad)
            self.best = {name: parameter.detach().clone() for name, parameter in trained}

    def _margins(self, part: str) -> Tensor:
        """(1, pairs), as the scorer will give them."""
        expert, baseline = pair_rows(self.frame, part)
        features = self.featurizer.extract(self.completions[np.concatenate([expert, baseline])]).astype(np.float64)
        differences = torch.from_numpy(features[: len(expert)] - features[len(expert) :])
        return (differences.to(self.model.head.device) @ self.model.direction().detach())[None]


def drawn_pairs(prompts: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
    """Rows of the pairs whose prompts (n,) are drawn with replacement, each with all of its pairs."""
    count = int(prompts.max()) + 1
    rows = [np.flatnonzero(prompts == prompt) for prompt in range(count)]
    drawn = torch.randint(count, (count,), generator=generator).tolist()
    return np.concatenate([rows[prompt] for prompt in drawn])


def _callback(training: _Training) -> Any:
    """Defined in a function because the import of its base class takes seconds."""

    class Epochs(transformers.TrainerCallback):  # type: ignore[misc]
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.model.project(training.max_norm)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.context.progress(state.global_step, state.max_steps)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            training.judge(round(state.epoch))

    return Epochs()

"""What a policy says of the next token: hidden states in the precision of the device, logits always in fp32.

A logit between 16 and 32 is rounded to 1/8 in bf16. Over the tokens of a completion and a vocabulary of 50,000 that is
0.4 to 0.8 nats, as much as the whole KL of an expert.

States are small and logits are not: 32 texts of 544 tokens have 8.9 GB of them at a vocabulary of 128,000. So a head
makes those of a few states at a time, and the backward pass makes them again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from irl_exp.machinery.runtime import Device
from irl_exp.policies.language_models import Policy, PolicyError, without_cache

LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**28}
"""Logits in fp32 that a head makes at once: 32 MB, which stay near the core; 1 GB, or 2,048 tokens of 128,000 words."""

_plain: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Of each model that was asked: whether its logits are one linear map of its last hidden state."""


@dataclass(frozen=True)
class Head:
    """Logits in fp32 of hidden states, (..., d) -> (..., vocabulary).

    Attributes:
        linear: the one linear map that it is, where it is one.
    """

    function: Callable[[Tensor], Tensor]
    vocabulary: int
    linear: torch.nn.Linear | None = None

    def __call__(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return self.function(states).float()

    def rows(self, device: str) -> int:
        """Of how many states it makes the logits at once."""
        return max(1, LOGITS_AT_ONCE[torch.device(device).type] // self.vocabulary)


def predictions(
    policy: Policy, keep: int, told: Callable[[Any], None] | None = None, **inputs: Any
) -> tuple[Tensor, Head]:
    """States of the last `keep` positions, (b, keep, d), and the head that makes logits of some of them.

    Nothing is computed in bf16 of a model that does more to its logits than one linear map (a cap, as Gemma; a scale,
    as Cohere).

    Args:
        told: hears what the model says, states of all layers included, if it says it as `Device.inference` would.
        inputs: what the model's forward takes.
    """
    if not policy.writes:
        raise PolicyError(
            f"{type(policy.model).__name__} is an encoder: it reads texts, and gives no probabilities to them."
        )
    model = itself(policy.model)
    plain = _has_plain_head(model, policy.device)
    half = policy.device.bf16 and plain
    every = told is not None and half == policy.device.bf16
    with torch.autocast(policy.device.type, torch.bfloat16) if half else policy.device.exactly():
        output = model.base_model(**{**without_cache(model), **inputs}, output_hidden_states=every)
        if told and every:
            told(output)
    states = output.last_hidden_state[:, -keep:]
    vocabulary = model.config.get_text_config().vocab_size
    if not plain:
        return states, Head(_own_head(model), vocabulary)
    found = model.get_output_embeddings()
    one_map = found if type(found) is torch.nn.Linear else None
    return states, Head(lambda some: torch.as_tensor(found(some.float())), vocabulary, one_map)


def know_head(policy: Policy) -> None:
    """Find out what `predictions` asks of a model once; before threads share it, whose dropout this switches off."""
    _has_plain_head(itself(policy.model), policy.device)


def itself(model: Any) -> Any:
    """The language model with its adapters in it, without what peft wraps around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _has_plain_head(model: Any, device: Device) -> bool:
    """Asked of the model itself, as configs have many names for what else may happen to logits.

    Raises:
        PolicyError: its logits are no function of its last hidden states alone.
    """
    if model not in _plain:
        ids = torch.arange(min(8, model.get_input_embeddings().num_embeddings), device=model.device)[None]
        with torch.no_grad(), device.exactly(), _without_dropout(model):
            own = type(model).forward(model, input_ids=ids).logits
            states = model.base_model(input_ids=ids).last_hidden_state
            _plain[model] = torch.equal(own, model.get_output_embeddings()(states))
            if not _plain[model] and not torch.equal(own, _own_head(model)(states)):
                raise PolicyError(
                    f"{type(model).__name__} makes its logits of more than its last hidden states: it cannot be read."
                )
    return _plain[model]


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    trains = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trains:
            module.training = True


def _own_head(model: Any) -> Callable[[Tensor], Tensor]:
    """The model's own way from states to logits: its forward over a base that gives back what it gets."""
    shell = copy.copy(model)
    shell._modules = {**model._modules, model.base_model_prefix: _Given()}

    def head(states: Tensor) -> Tensor:
        rows = states.reshape(1, -1, states.shape[-1])
        logits: Tensor = type(model).forward(shell, inputs_embeds=rows).logits
        return logits.reshape(*states.shape[:-1], -1)

    return head


class _Given(torch.nn.Module):
    def forward(self, *rest: Any, inputs_embeds: Tensor, **options: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)

"""What a policy says of the next token: hidden states in the precision of the device, logits always in fp32.

A logit between 16 and 32 is rounded to 1/8 in bf16. Over the tokens of a completion and a vocabulary of 50,000 that is
0.4 to 0.8 nats, as much as the whole KL of an expert.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from irl_exp.policies.language_models import Policy, PolicyError

_plain: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Of each model that was asked: whether its logits are one linear map of its last hidden state."""


def predictions(
    policy: Policy, keep: int, **inputs: Any
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """States of the last `keep` positions, (b, keep, d), and what makes logits in fp32 of some of them.

    Where the precision is fp32 they are logits already. So they are of a model that does more to its logits than one
    linear map (a cap, as Gemma; a scale, as Cohere): nothing of it is computed in bf16.

    Args:
        inputs: what the model's forward takes.
    """
    model = policy.model
    if not policy.writes:
        raise PolicyError(f"{type(model).__name__} is an encoder: it reads texts, and gives no probabilities to them.")
    if policy.device.bf16 and _has_plain_head(policy):
        with torch.autocast(policy.device.type, torch.bfloat16):
            states = model.base_model(**inputs).last_hidden_state
        embeddings = model.get_output_embeddings()

        def head(some: torch.Tensor) -> torch.Tensor:
            with policy.device.exactly():
                return torch.as_tensor(embeddings(some.float()))

        return states[:, -keep:], head
    partial = {"logits_to_keep": keep} if _keeps_logits(model) else {}
    with policy.device.exactly():
        # Of the class: a trainer patches the instance with a forward in its own precision.
        logits = type(model).forward(model, **inputs, **partial).logits
    return logits[:, -keep:], torch.Tensor.float


def _has_plain_head(policy: Policy) -> bool:
    """Asked of the model itself, as configs have many names for what else may happen to logits."""
    model = policy.model
    if model not in _plain:
        ids = torch.arange(min(8, model.get_input_embeddings().num_embeddings), device=model.device)[None]
        with torch.no_grad(), policy.device.exactly():
            own = type(model).forward(model, input_ids=ids, output_hidden_states=True)
            _plain[model] = torch.equal(own.logits, model.get_output_embeddings()(own.hidden_states[-1]))
    return _plain[model]


def _keeps_logits(model: Any) -> bool:
    """Whether the model can be told for how many last positions it should compute logits."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters

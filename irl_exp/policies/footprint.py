"""What a model of some architecture takes in memory, read off its configuration: nothing is loaded, nothing computed.

The model runs once on tensors that have shapes and no numbers (torch's fake tensors), and what lives at once is
counted: of any architecture of transformers, so no formula has to know where one keeps what.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from irl_exp.policies.language_models import without_cache, writes

ATTENTION = "shape_only"
"""Name under which transformers knows `_attend`."""
LENGTHS = (16, 48)
"""Tokens of two sequences: what grows between them is a token's, the rest (bf16 copies of weights) a pass's."""
FP32, BF16 = 4, 2


class FootprintError(Exception):
    """An architecture that cannot be run without numbers."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model, and of each token that goes through it.

    Attributes:
        parameters: numbers in the weights, tied ones once.
        layers, width, vocabulary: of its configuration.
        adapted: inputs and outputs of all linear layers but the head, added up: an adapter of rank r has r as many
            numbers.
        inputs: inputs of these layers, added up.
        kept: bytes that the layers keep of a token for the backward pass.
        passing: bytes that live of a token at the peak of a forward pass without gradients.
        state: bytes of the state of a token between two layers.
        cache: bytes of a token in the cache of a sampler.
        cast: bytes of the copies of weights in bf16 that a pass holds, where weights are fp32 and arithmetic is bf16.
        weight: bytes of a number in the weights.
    """

    parameters: int
    layers: int
    width: int
    vocabulary: int
    adapted: int
    inputs: int
    kept: float
    passing: float
    state: int
    cache: float
    cast: int
    weight: int

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * self.weight

    @property
    def head(self) -> int:
        """Numbers of the output head, or of the embeddings that it shares."""
        return self.width * self.vocabulary

    @property
    def checkpointed(self) -> float:
        """Bytes that are kept of a token with gradient checkpointing: a state a layer, and one layer as a whole."""
        return self.layers * self.state + self.kept / max(1, self.layers)


def footprint(
    config: transformers.PretrainedConfig,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    weights: Literal["fp32", "bf16"] = "fp32",
) -> Footprint:
    """Of a configuration of transformers: a language model, or an encoder.

    Args:
        precision: of the arithmetic.
        weights: what they are kept in.

    Raises:
        FootprintError: the model cannot be built or run without numbers.
    """
    settings = json.dumps({**config.to_dict(), "torch_dtype": None, "dtype": None}, sort_keys=True, default=str)
    return _found(settings, _Key(config), precision, weights)


class _Key:
    """Carries a configuration through a cache that knows it by its text."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=64)
def _found(settings: str, key: _Key, precision: str, weights: str) -> Footprint:
    transformers.AttentionInterface.register(ATTENTION, _attend)
    transformers.AttentionMaskInterface.register(ATTENTION, lambda *arguments, **options: None)
    try:
        with _silent(), FakeTensorMode(), torch.device("cpu"):
            return _measured(key.config, precision, weights)
    except Exception as error:  # models of transformers raise anything where they look at numbers
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FootprintError(f"model_type={key.config.model_type!r} cannot be run without numbers: {reason}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Torch logs what cannot be run without numbers; it is told once, by the error."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _measured(config: Any, precision: str, weights: str) -> Footprint:
    opened = transformers.AutoModelForCausalLM if writes(config) else transformers.AutoModel
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    config = copy.deepcopy(config)  # transformers writes the attention into it, and it may be that of a living model
    model = opened.from_config(config, dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=False)
    model.eval()  # every trainer of the chain switches dropout off
    short, long = (_passes(model, length, bf16=precision == "bf16" and weights == "fp32") for length in LENGTHS)
    kept, passing, cache = ((more - less) / (LENGTHS[1] - LENGTHS[0]) for less, more in zip(short, long, strict=True))
    head = model.get_output_embeddings()
    linear: list[Any] = [one for one in model.modules() if isinstance(one, _linear()) and one is not head]
    sides = [tuple(one.weight.shape) for one in linear]
    width = model.get_input_embeddings().embedding_dim
    return Footprint(
        parameters=sum(weight.numel() for weight in model.parameters()),
        layers=int(config.num_hidden_layers),
        width=width,
        vocabulary=model.get_input_embeddings().num_embeddings,
        adapted=sum(map(sum, sides)),
        inputs=sum(one.in_features if isinstance(one, torch.nn.Linear) else one.weight.shape[0] for one in linear),
        kept=kept,
        passing=passing,
        state=width * (BF16 if weights == "bf16" else FP32),
        cache=cache,
        cast=max(0, round(short[0] - kept * LENGTHS[0])),
        weight=BF16 if weights == "bf16" else FP32,
    )


def _linear() -> tuple[type, ...]:
    return torch.nn.Linear, transformers.pytorch_utils.Conv1D


def _passes(model: Any, length: int, *, bf16: bool) -> tuple[int, int, int]:
    """Bytes of a sequence: kept by a forward pass for its backward pass, living at the peak of one without, cached."""
    ids = torch.zeros(1, length, dtype=torch.long)
    given = [*model.parameters(), *model.buffers(), ids]
    body = getattr(model, "base_model", model)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), _counting(given) as kept:
        states = body(input_ids=ids, **without_cache(body)).last_hidden_state
        in_graph = kept.now
    del states
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16), _counting(given) as passing:
        body(input_ids=ids, **without_cache(body))
    if not writes(model.config):
        return in_graph, passing.peak, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = getattr(body(input_ids=ids, use_cache=True), "past_key_values", None)
    cached = [one for layer in getattr(found, "layers", ()) for one in (layer.keys, layer.values)]
    return in_graph, passing.peak, sum(one.numel() * one.element_size() for one in cached)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operations have made and that somebody still holds."""

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.now += self.known[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)


@contextmanager
def _counting(given: Iterable[torch.Tensor]) -> Iterator[_Counting]:
    with _Counting(given) as counting:
        yield counting


class _Attention(torch.autograd.Function):
    """What attention without a matrix of [tokens, tokens] keeps: its inputs, its output, one number a row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(batch, heads, tokens, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    found: torch.Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return found, None

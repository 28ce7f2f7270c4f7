"""Values of a batch and their gradients, computed shard by shard: the same bytes on any number of threads.

Sequences of similar length share a shard, so there is little padding too: on one thread this alone is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from irl_exp.machinery.shards import in_order


def in_shards(
    work: Callable[[Any], torch.Tensor], shards: Sequence[Any], parameters: Sequence[torch.nn.Parameter], threads: int
) -> torch.Tensor:
    """The 1-D results of `work`, a differentiable function of the parameters, for all shards, one after the other."""
    found: torch.Tensor = _InShards.apply(work, shards, threads, *parameters)  # type: ignore[no-untyped-call]
    return found


class _InShards(torch.autograd.Function):
    """Keeps a graph for each shard; gradients are added in the order of the shards."""

    @staticmethod
    def forward(ctx: Any, work: Any, shards: Any, threads: int, *parameters: torch.nn.Parameter) -> torch.Tensor:
        def graph(shard: Any) -> torch.Tensor:
            with torch.enable_grad():
                return torch.as_tensor(work(shard))

        ctx.values, ctx.threads, ctx.parameters = list(in_order(graph, shards, threads)), threads, parameters
        return torch.cat([values.detach() for values in ctx.values])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        def of(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
            values, outer = pair
            found: tuple[torch.Tensor | None, ...]
            found = torch.autograd.grad(values, ctx.parameters, outer, allow_unused=True)
            return found

        pairs = list(zip(ctx.values, torch.split(gradient, [len(values) for values in ctx.values]), strict=True))
        total: list[torch.Tensor | None] = []
        for found in in_order(of, pairs, ctx.threads):
            if total:  # what one shard does not use none uses
                both = [(sum_, one) for sum_, one in zip(total, found, strict=True) if sum_ is not None]
                torch._foreach_add_(*map(list, zip(*both, strict=True)))
            else:
                total = list(found)
        ctx.values = None
        return None, None, None, *total

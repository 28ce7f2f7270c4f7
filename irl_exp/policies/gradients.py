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
        def of(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            values, outer = pair
            found: tuple[torch.Tensor, ...] = torch.autograd.grad(values, ctx.parameters, outer)
            return found

        pairs = list(zip(ctx.values, torch.split(gradient, [len(values) for values in ctx.values]), strict=True))
        total: list[torch.Tensor] = []
        for found in in_order(of, pairs, ctx.threads):
            if total:
                torch._foreach_add_(total, list(found))
            else:
                total = list(found)
        ctx.values = None
        return None, None, None, *total

"""How probable completions are to a policy: the values, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from irl_exp.machinery.shards import in_order
from irl_exp.policies.gradients import in_shards
from irl_exp.policies.language_models import Completions, Ids, Policy, Progress, in_batches, pad
from irl_exp.policies.logits import Head, know_head, predictions
from irl_exp.policies.sampling import Written


def log_probabilities(
    policy: Policy,
    completions: Completions,
    *,
    progress: Progress = lambda done, total: None,
) -> NDArray[np.float64]:
    """log pi(completion | prompt) in nats, EOS included where there is one: (n,)."""
    result = np.zeros(len(completions))
    policy.model.eval()
    batches = in_batches(completions, policy.device)
    done = 0

    def of(rows: NDArray[np.int64]) -> list[float]:
        with policy.device.inference():
            values, _ = _of_tokens(policy, completions[rows])
        lengths = [len(completions.completion_ids[row]) for row in rows]
        return [float(one.double().sum()) for one in torch.split(values.cpu(), lengths)]

    for rows, values in zip(batches, in_order(of, batches, policy.device.threads), strict=True):
        result[rows] = values
        progress(done := done + len(rows), len(completions))
    return result


TRAINED_TOGETHER = 16
"""Completions of one shard at most, on a CPU. Little is padded, and two threads are 1.6 times as fast as one (texts of
25 tokens, a model of the default size)."""


def token_statistics(
    policy: Policy, completions: Completions, *, together: int = TRAINED_TOGETHER, entropy: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """log pi of each token of a completion in nats, (t,) of each of n, and the entropy of what could have stood there.

    The first is differentiable in the weights of the policy where gradients are on; the second never is, and 0 unless
    asked for.

    Args:
        together: completions of one shard at most, on a CPU.
    """
    know_head(policy)
    batches = in_batches(completions, policy.device, rows=together)
    entropies: dict[int, torch.Tensor] = {}

    def of(number: int) -> torch.Tensor:
        values, spread = _of_tokens(policy, completions[batches[number]], entropy=entropy)
        entropies[number] = spread
        return values

    numbers = range(len(batches))
    if torch.is_grad_enabled():
        weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
        flat = in_shards(of, numbers, weights, policy.device.threads)
    else:
        flat = torch.cat(list(in_order(_without_gradients(of), numbers, policy.device.threads)))
    order = np.concatenate(batches)
    lengths = [len(completions.completion_ids[row]) for row in order]
    back = np.argsort(order)
    values = torch.split(flat, lengths)
    spreads = torch.split(torch.cat([entropies[number] for number in numbers]), lengths)
    return [values[place] for place in back], [spreads[place] for place in back]


def as_read(policy: Policy, prompt_ids: Sequence[Ids], written: Sequence[Written]) -> list[torch.Tensor]:
    """log pi of each token of what the policy has written, as reading has it, (t,) each: what may be reported.

    Our sampling in fp32 has found it by the same code (policies/logits.py). In bf16 it rounds the states of one token
    after another in another way than those of a whole text, and vLLM has code of its own.
    """
    known = [one.log_probabilities for one in written if one.log_probabilities is not None]
    if len(known) == len(written) and not policy.device.bf16:
        return known
    blank = [""] * len(written)
    with torch.no_grad():
        return token_statistics(policy, Completions(blank, blank, list(prompt_ids), [one.ids for one in written]))[0]


def of_whole(policy: Policy, prompt_ids: Sequence[Ids], written: Sequence[Written]) -> NDArray[np.float64]:
    """The same of whole continuations, EOS included where there is one: (n,) in nats."""
    return np.array([float(one.double().sum()) for one in as_read(policy, prompt_ids, written)])


def _without_gradients(work: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    """Gradients are switched on and off for each thread."""

    def done(shard: int) -> torch.Tensor:
        with torch.no_grad():
            return work(shard)

    return done


def _of_tokens(policy: Policy, batch: Completions, *, entropy: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """As `token_statistics`, of one batch in one forward pass: (tokens of all completions,) each."""
    sequences = [p + c for p, c in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
    inputs = pad(sequences, policy, side="right")
    # The vocabulary is most of the work: only positions that predict a completion token get logits.
    first = min(map(len, batch.prompt_ids)) - 1
    keep = inputs["input_ids"].shape[1] - first
    told = partial(policy.hears, batch) if policy.hears else None
    states, head = predictions(policy, keep, told, **inputs)
    ids = torch.nn.functional.pad(inputs["input_ids"][:, first + 1 :], (0, 1))
    wanted = _predicting(batch, first, keep).to(ids.device)
    size = head.rows(policy.device.name)
    if ids.numel() > size:
        return _in_parts(head, states[wanted], ids[wanted], size, entropy=entropy)
    token, spread = _of_logits(head(states), ids, entropy=entropy)
    return token[wanted], spread[wanted]


def _predicting(batch: Completions, first: int, keep: int) -> torch.Tensor:
    """(b, keep) positions, counted from `first`, that predict a token of the completion."""
    starts = torch.tensor([len(prompt) - 1 - first for prompt in batch.prompt_ids])[:, None]
    lengths = torch.tensor([len(completion) for completion in batch.completion_ids])[:, None]
    place = torch.arange(keep)
    return (place >= starts) & (place < starts + lengths)


def _in_parts(
    head: Head, states: torch.Tensor, ids: torch.Tensor, size: int, *, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_of_logits` of (n, d) states, (n,) each: no more than `size` rows of logits are there at once.

    The backward pass makes them again, part by part, in place of keeping them.
    """
    if head.linear is not None:
        token, spread = _Parts.apply(states, head.linear.weight, head.linear.bias, ids, size, entropy)  # type: ignore[no-untyped-call]
        return token, spread
    parts = [
        checkpoint(partial(_of_states, head, entropy=entropy), *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(torch.split(states, size), torch.split(ids, size), strict=True)
    ]
    token, spread = (torch.cat(values) for values in zip(*parts, strict=True))
    return token, spread


class _Parts(torch.autograd.Function):
    """log softmax of states @ weight^T + bias at the ids, and the entropy, which has no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        ids: torch.Tensor,
        size: int,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        token, spread = (torch.zeros(ids.shape, device=ids.device) for _ in range(2))
        with torch.autocast(states.device.type, enabled=False):
            for rows in _slices(len(ids), size):
                logits = torch.nn.functional.linear(states[rows].float(), weight, bias)
                token[rows], spread[rows] = _of_logits(logits, ids[rows], entropy=entropy)
        ctx.save_for_backward(states, weight, bias, ids)
        ctx.size = size
        ctx.mark_non_differentiable(spread)
        return token, spread

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, ids = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_states = torch.empty(states.shape, device=states.device) if wanted[0] else None
        of_weight = torch.zeros(weight.shape, device=weight.device) if wanted[1] else None
        of_bias = torch.zeros(bias.shape, device=bias.device) if wanted[2] else None
        with torch.autocast(states.device.type, enabled=False):
            for rows in _slices(len(ids), ctx.size):
                outer = gradient[rows, None].float()
                # d log p(id) / d logits = [id] - p, times what comes from above, in the place of the logits.
                logits = torch.nn.functional.linear(states[rows].float(), weight, bias)
                logits.sub_(logits.logsumexp(-1, keepdim=True)).exp_().mul_(-outer)
                logits.scatter_add_(1, ids[rows, None], outer)
                if of_states is not None:
                    of_states[rows] = logits @ weight
                if of_weight is not None:
                    of_weight.addmm_(logits.T, states[rows].float())
                if of_bias is not None:
                    of_bias += logits.sum(0)
        found = zip((of_states, of_weight, of_bias), (states, weight, bias), strict=True)
        return *(None if one is None else one.to(like.dtype) for one, like in found), None, None, None


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _of_states(
    head: Head, states: torch.Tensor, ids: torch.Tensor, *, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return _of_logits(head(states), ids, entropy=entropy)


def _of_logits(logits: torch.Tensor, ids: torch.Tensor, *, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax of (b, t, v) logits at the (b, t) ids, and the entropy (0 unless asked for), in nats."""
    total = logits.logsumexp(-1)
    token = logits.gather(-1, ids[..., None])[..., 0] - total
    spread = torch.zeros_like(token)
    if entropy:
        with torch.no_grad():
            spread = total - ((logits - total[..., None]).exp() * logits).sum(-1)
    return token, spread

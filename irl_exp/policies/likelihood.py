"""How probable completions are to a policy: the values, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from irl_exp.machinery.shards import in_order
from irl_exp.policies.gradients import in_shards
from irl_exp.policies.language_models import Completions, Policy, Progress, by_length, pad
from irl_exp.policies.logits import predictions

LOGITS_AT_ONCE = 2**26
"""Logits in fp32 that are held for a part of a batch: 256 MB."""


def log_probabilities(
    policy: Policy,
    completions: Completions,
    *,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> NDArray[np.float64]:
    """log pi(completion | prompt) in nats, EOS included where there is one: (n,)."""
    result = np.zeros(len(completions))
    policy.model.eval()
    batches = list(by_length(completions, batch_size))
    done = 0

    def of(rows: NDArray[np.int64]) -> list[float]:
        with policy.device.inference():
            values, _ = _of_tokens(policy, completions[rows])
        return [float(one.double().sum()) for one in values]

    for rows, values in zip(batches, in_order(of, batches, policy.device.threads), strict=True):
        result[rows] = values
        progress(done := done + len(rows), len(completions))
    return result


def token_statistics(
    policy: Policy, completions: Completions, *, together: int = 16, entropy: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """log pi of each token of a completion in nats, (t,) of each of n, and the entropy of what could have stood there.

    The first is differentiable in the weights of the policy where gradients are on; the second never is, and 0 unless
    asked for.

    Args:
        together: completions of one shard. With 16 little is padded, and two threads are 1.6 times as fast as one
            (texts of 25 tokens, a model of the default size).
    """
    batches = list(by_length(completions, together))
    entropies: dict[int, torch.Tensor] = {}

    def of(number: int) -> torch.Tensor:
        values, spread = _of_tokens(policy, completions[batches[number]], entropy=entropy)
        entropies[number] = torch.cat(spread)
        return torch.cat(values)

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


def _without_gradients(work: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    """Gradients are switched on and off for each thread."""

    def done(shard: int) -> torch.Tensor:
        with torch.no_grad():
            return work(shard)

    return done


def _of_tokens(
    policy: Policy, batch: Completions, *, entropy: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """As `token_statistics`, of one batch in one forward pass."""
    sequences = [p + c for p, c in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
    inputs = pad(sequences, policy, side="right")
    # The vocabulary is most of the work: only positions that predict a completion token get logits.
    first = min(map(len, batch.prompt_ids)) - 1
    keep = inputs["input_ids"].shape[1] - first
    states, head = predictions(policy, keep, **inputs)
    targets = inputs["input_ids"][:, first + 1 :]
    rows = max(1, LOGITS_AT_ONCE // (keep * len(policy.tokenizer)))
    parts = [
        _of_logits(head(some), ids, entropy=entropy)
        for some, ids in zip(torch.split(states[:, :-1], rows), torch.split(targets, rows), strict=True)
    ]
    token, spread = (torch.cat(values) for values in zip(*parts, strict=True))
    return _completions_of(token, batch, first), _completions_of(spread, batch, first)


def _of_logits(logits: torch.Tensor, ids: torch.Tensor, *, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax of (b, t, v) logits at the (b, t) ids, and the entropy (0 unless asked for), in nats."""
    total = logits.logsumexp(-1)
    token = logits.gather(-1, ids[..., None])[..., 0] - total
    spread = torch.zeros_like(token)
    if entropy:
        with torch.no_grad():
            spread = total - ((logits - total[..., None]).exp() * logits).sum(-1)
    return token, spread


def _completions_of(values: torch.Tensor, batch: Completions, first: int) -> list[torch.Tensor]:
    """The values of the completion tokens alone; column 0 is the token after position `first`."""
    starts = [len(prompt) - 1 - first for prompt in batch.prompt_ids]
    return [
        own[start : start + len(completion)]
        for start, completion, own in zip(starts, batch.completion_ids, values.cpu(), strict=True)
    ]

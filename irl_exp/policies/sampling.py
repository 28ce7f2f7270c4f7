"""What a policy writes: sampling from its full distribution, without top-k or top-p, at temperature 1.

Anything else would break the identity of samples and log-probabilities that KL and the implicit reward rest on.
Prompts are cut into shards of similar length, each with a stream of its own: the same completions whatever the number
of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.cache_utils import DynamicLayer

from irl_exp.machinery.runtime import LARGE
from irl_exp.machinery.shards import in_order
from irl_exp.policies import vllm_engine
from irl_exp.policies.language_models import Completions, Ids, Policy, Progress, pad, until_eos
from irl_exp.policies.logits import predictions

FULL = 0.8
"""Rows leave a batch when fewer than this fraction of it is still being written: to let them go copies the others."""
SAMPLED_TOGETHER = 128
"""Completions of a shard in RL, on a CPU: one step of sampling is so little work that smaller ones wait for Python."""
BLOCK = 64
"""Probabilities that are summed before a draw looks for its place."""


@dataclass(frozen=True)
class Written:
    """One continuation as the policy wrote it.

    Attributes:
        ids: its tokens; EOS is kept where it ended by itself.
        log_probabilities: (t,) of each token, in nats; None of a sampler whose numbers may not be reported.
    """

    ids: Ids
    log_probabilities: torch.Tensor | None = None


def generate(
    policy: Policy,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    greedy: bool = False,
    progress: Progress = lambda done, total: None,
) -> Completions:
    """One completion of each prompt (repeat a prompt for several)."""
    prompt_ids = policy.encode_prompts(prompts)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "greedy": greedy}
    return completed(policy, prompts, prompt_ids, sample(policy, prompt_ids, seed=seed, progress=progress, **options))


def completed(
    policy: Policy, prompts: Sequence[str], prompt_ids: Sequence[Ids], written: Sequence[Written]
) -> Completions:
    """What was written, as completions of the prompts."""
    completion_ids = [one.ids for one in written]
    texts = policy.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    return Completions(list(prompts), texts, list(prompt_ids), completion_ids)


def sample(
    policy: Policy,
    prompt_ids: Sequence[Ids],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    greedy: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[Written]:
    """One continuation of each prompt; at most batch_size in a shard, unless vLLM writes, which has no shards."""
    if policy.device.vllm:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "greedy": greedy}
        return [Written(ids) for ids in vllm_engine.write(policy, prompt_ids, progress=progress, **options)]
    policy.model.eval()
    shards = [(number, rows) for number, rows in enumerate(_by_prompt(prompt_ids, batch_size))]

    def written(shard: tuple[int, NDArray[np.int64]]) -> list[Written]:
        number, rows = shard
        stream = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(policy.device.name).manual_seed(stream)
        with policy.device.inference():
            prompts = [prompt_ids[row] for row in rows]
            tokens, values = _continue(policy, prompts, max_new_tokens, None if greedy else generator)
        ended = [until_eos(ids, *policy.ends) for ids in tokens.tolist()]
        return [Written(ids, own[: len(ids)]) for ids, own in zip(ended, values, strict=True)]

    result: dict[int, Written] = {}
    done = 0
    for (_, rows), found in zip(shards, in_order(written, shards, policy.device.threads), strict=True):
        result |= dict(zip(rows.tolist(), found, strict=True))
        progress(done := done + len(rows), len(prompt_ids))
    return [result[row] for row in range(len(prompt_ids))]


def _by_prompt(prompt_ids: Sequence[Ids], batch_size: int) -> list[NDArray[np.int64]]:
    """Rows of shards: prompts of similar length need little padding, the same prompts are read once."""
    numbers: dict[tuple[int, ...], int] = {}
    same = [numbers.setdefault(tuple(ids), len(numbers)) for ids in prompt_ids]
    order = np.lexsort((same, [len(ids) for ids in prompt_ids]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _continue(
    policy: Policy, prompt_ids: Sequence[Ids], max_new_tokens: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, max_new_tokens) ids that follow the prompts, EOS after the end, and their log-probabilities in nats.

    Without a generator the likeliest ones.

    Two savings over `generate` of transformers: a prompt that is there several times is read once, and rows that have
    ended leave the batch and its cache (completions end at very different lengths).
    """
    distinct, place = _distinct(prompt_ids)
    batch = pad(distinct, policy, side="left")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    written = torch.full((len(prompt_ids), max_new_tokens), policy.eos, device=ids.device)
    values = torch.zeros((len(prompt_ids), max_new_tokens), device=ids.device)
    rows, places = torch.arange(len(prompt_ids), device=ids.device), (mask.cumsum(-1) - 1).clamp(min=0)
    cache = _cache(policy)
    alive = torch.ones(len(prompt_ids), dtype=torch.bool, device=ids.device)
    for step in range(max_new_tokens):
        states, head = predictions(
            policy, 1, input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        logits = head(states[:, -1])
        if step == 0 and len(distinct) < len(prompt_ids):
            again = torch.tensor(place, device=ids.device)
            cache.batch_select_indices(again)
            logits, mask, places = logits[again], mask[again], places[again]
        tokens, log_probability = draw(logits, generator)
        written[rows, step], values[rows, step] = tokens, log_probability
        for end in policy.ends:
            alive &= tokens != end
        if not alive.any():
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        places = places[:, -1:] + 1
        if int(alive.sum()) < FULL * len(alive):
            kept = alive.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, mask, places, tokens, alive = rows[kept], mask[kept], places[kept], tokens[kept], alive[kept]
        ids = tokens[:, None]
    return written, values


def _cache(policy: Policy) -> transformers.DynamicCache:
    """For keys and values of all layers; on a CPU they grow in place."""
    cache = transformers.DynamicCache(config=policy.model.config)
    if policy.device.is_cpu:
        cache.layers = [_WithRoom() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _WithRoom(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, with room behind them: joining a token to them would copy all those before it.

    A block of LARGE bytes comes from the system and goes back to it, page by page: of 512 completions such copies were
    a quarter of all that sampling took. Smaller blocks are joined: attention is faster where rows lie close together.
    """

    keys: torch.Tensor
    values: torch.Tensor
    room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *rest: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        there = self.get_seq_length()
        end = there + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < end:
            if not there or min(self.keys.nbytes, self.values.nbytes) < LARGE:
                self.room = None
                found: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, *rest, **options)
                return found
            self.room = _longer(self.keys, end + end // 4), _longer(self.values, end + end // 4)
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., there:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.room = None


def _longer(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """(b, heads, length, d): what there is, and room behind it."""
    room = tensor.new_empty(*tensor.shape[:-2], length, tensor.shape[-1])
    room[..., : tensor.shape[-2], :] = tensor
    return room


def _distinct(prompt_ids: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """The prompts without repetition, and the place of each prompt among them."""
    numbers: dict[tuple[int, ...], int] = {}
    place = [numbers.setdefault(tuple(ids), len(numbers)) for ids in prompt_ids]
    return [list(ids) for ids in numbers], place


def draw(logits: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(b,) one token a row from softmax(logits), (b, v), and its log-probability; without a generator the likeliest.

    A draw takes the token at which the cumulative probability passes a uniform number. In two steps, blocks and then
    the tokens of one block: the vocabulary is read once more than for the sum. torch.multinomial takes a third of the
    time of sampling (v = 2,048, one CPU thread).
    """
    b, v = logits.shape
    most = logits.amax(-1, keepdim=True)
    weights = (logits - most).exp_()
    if v % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -v % BLOCK))
    weights = weights.view(b, -1, BLOCK)
    blocks = weights.sum(-1).double().cumsum(-1)
    token = logits.argmax(-1, keepdim=True) if generator is None else _place(weights, blocks, generator)
    log_probability = (logits.gather(-1, token) - most).double() - blocks[:, -1:].log()
    return token[:, 0], log_probability[:, 0].float()


def _place(weights: torch.Tensor, blocks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(b, 1) places that uniform draws fall on: weights are (b, number of blocks, BLOCK), blocks their running sums."""
    aim = torch.rand(len(blocks), 1, generator=generator, device=blocks.device, dtype=torch.float64) * blocks[:, -1:]
    block = torch.searchsorted(blocks, aim, right=True).clamp(max=blocks.shape[1] - 1)
    before = torch.cat([torch.zeros_like(aim), blocks], dim=-1).gather(-1, block)
    inside = weights[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
    place = torch.searchsorted(inside, aim - before, right=True)
    # Rounding may put the aim behind the block's last token: then it is the last one that has a probability.
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    return block * BLOCK + torch.minimum(place, last)

"""phi(x, y): what inverse RL sees of a completion."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from irl_exp.config import FeaturesConfig
from irl_exp.policies import Completions, Policy, Progress, by_length, pad


class FeatureError(Exception):
    """Features that do not fit the policy."""


def extract(
    config: FeaturesConfig,
    policy: Policy,
    completions: Completions,
    *,
    progress: Progress = lambda done, total: None,
) -> NDArray[np.float32]:
    """Hidden states of the policy that has read prompt and completion: (n, d).

    Pooled over the completion's tokens only, EOS included where it ended: `last` is the state that predicts what
    follows the completion, `mean` the average over it.

    Raises:
        FeatureError: the policy has no such layer.
    """
    check(config, policy)
    result: NDArray[np.float32] | None = None
    done = 0
    policy.model.eval()
    for rows in by_length(completions, config.batch_size):
        pooled = _pool(config, policy, completions[rows])
        if result is None:
            result = np.zeros((len(completions), pooled.shape[1]), dtype=np.float32)
        result[rows] = pooled
        done += len(rows)
        progress(done, len(completions))
    if result is None:
        raise FeatureError("there are no completions to extract features from.")
    return result


def check(config: FeaturesConfig, policy: Policy) -> None:
    """Refuse a layer that the policy does not have."""
    depth = policy.model.config.num_hidden_layers
    wrong = [layer for layer in config.layers if not -depth - 1 <= layer <= depth]
    if wrong:
        raise FeatureError(
            f"irl.features.layers: there is no layer {wrong[0]}; the policy has {-depth - 1} to {depth}."
        )


def _pool(config: FeaturesConfig, policy: Policy, batch: Completions) -> NDArray[np.float32]:
    """(b, d) pooled states of one batch."""
    sequences = [prompt + written for prompt, written in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
    inputs = pad(sequences, policy, side="right")
    with policy.device.inference():
        # The language-model head is most of the work at small sizes and not needed here.
        output = policy.model.base_model(**inputs, output_hidden_states=config.layers != (-1,))
    if config.layers == (-1,):
        states = output.last_hidden_state
    else:
        states = torch.cat([output.hidden_states[layer] for layer in config.layers], dim=-1)  # (b, t, d)
    ends = torch.tensor([len(sequence) for sequence in sequences], device=states.device)
    if config.pooling == "last":
        pooled = states[torch.arange(len(batch), device=states.device), ends - 1]
    else:
        starts = torch.tensor([len(prompt) for prompt in batch.prompt_ids], device=states.device)
        position = torch.arange(states.shape[1], device=states.device)
        inside = (position >= starts[:, None]) & (position < ends[:, None])
        pooled = (states * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)
    return np.asarray(pooled.float().cpu().numpy())

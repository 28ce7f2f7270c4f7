"""Tokens of the log-ratio: those that the tuned policy finds more likely than the base does where they stand, or less.

The mean of log pi_tuned - log pi_base over the places where a token was written, on a sample of fit (Diff Mining reads
the same off the logits). A statement says whether a text has the token's characters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from irl_exp.policies.language_models import READ_TOGETHER, Completions, Policy
from irl_exp.policies.likelihood import token_statistics

LEAST = 20
"""Places that a token needs."""


def extreme_tokens(tuned: Policy, base: Policy, completions: Completions, *, count: int) -> list[str]:
    """Texts of up to `count` tokens with the most extreme mean log-ratio: half of them above 0, half below.

    Shrunk to 0 by LEAST places, so that a rare token has to be more extreme.
    """
    with torch.no_grad():
        of = [token_statistics(policy, completions, together=READ_TOGETHER)[0] for policy in (tuned, base)]
    ratios = np.concatenate([(one - other).double().cpu().numpy() for one, other in zip(*of, strict=True)])
    ids = np.concatenate([np.asarray(own, dtype=np.int64) for own in completions.completion_ids])
    names, index, places = np.unique(ids, return_inverse=True, return_counts=True)
    mean = np.bincount(index, ratios) / (places + LEAST)
    usable = places >= LEAST
    found: dict[str, None] = {}
    for sign in (1, -1):
        order = np.argsort(-sign * mean, kind="stable")
        some = [i for i in order if usable[i] and sign * mean[i] > 0][: count // 2]
        found |= dict.fromkeys(base.tokenizer.decode([int(names[i])]) for i in some)
    special = base.tokenizer.all_special_tokens
    return [text for text in found if text.strip() and "\ufffd" not in text and text not in special]


def having(texts: list[str], tokens: list[str]) -> NDArray[np.float32]:
    """(n, k) whether each text has the characters of each token; a text begins as after a blank."""
    padded = [f" {text}" for text in texts]
    return np.array([[token in text for token in tokens] for text in padded], dtype=np.float32).reshape(
        len(texts), len(tokens)
    )

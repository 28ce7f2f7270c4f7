"""Which completions a page shows with their credit: the extremes, and some that chance has chosen."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irl_exp.explain.credit import token_credit
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.policies.language_models import Completions

EXTREME, CHANCE = 4, 4
POLICIES = ("expert", "baseline")


def chosen(
    frame: pd.DataFrame, scores: NDArray[np.float64], *, extreme: int = EXTREME, chance: int = CHANCE, seed: int = 0
) -> NDArray[np.int64]:
    """Row numbers of completions to show, the same prompts of both policies.

    The prompts are those of the `extreme` most and the `extreme` least rewarded completions of each policy, and
    `chance` others by the seed: an extreme is no typical case. Of each prompt and policy the most and the least
    rewarded completion is taken, in the order prompts were chosen in.

    Args:
        frame: n rows with policy and prompt_id, those of test; scores: (n,) their rewards.
    """
    prompts, policies = frame["prompt_id"].to_numpy(), frame["policy"].to_numpy()
    order = np.argsort(scores, kind="stable")
    found: list[int] = []
    for ranked in (order[::-1], order):
        for policy in POLICIES:
            own = pd.unique(prompts[ranked[policies[ranked] == policy]])
            found += [prompt for prompt in own[:extreme] if prompt not in found]
    others = np.setdiff1d(prompts, found)
    found += np.random.default_rng(seed).permutation(others)[:chance].tolist()
    rows: list[int] = []
    for prompt in found:
        for policy in POLICIES:
            own = order[(prompts[order] == prompt) & (policies[order] == policy)]
            rows += dict.fromkeys([int(own[-1]), int(own[0])])
    return np.array(rows, dtype=np.int64)


def credited(reward: LearnedReward, frame: pd.DataFrame, rows: NDArray[np.int64]) -> pd.DataFrame:
    """credit.parquet: a row a token of the completions `rows` of the demonstrations.

    Columns: policy, prompt_id, completion (its number among those of its prompt and policy), position (from 0 on),
    prompt and token (text), credit (in sd of R over the demonstrations of fit). The credits of a completion add up to
    its standardised reward.

    Raises:
        NoCreditError: the reward is no sum over tokens.
    """
    some = frame.iloc[rows]
    parts = []
    for row, credit in zip(some.itertuples(), token_credit(reward, Completions.from_frame(some)), strict=True):
        told = {"policy": row.policy, "prompt_id": row.prompt_id, "completion": row.sample, "prompt": row.prompt}
        count = np.arange(len(credit.tokens))
        parts.append(pd.DataFrame({**told, "position": count, "token": credit.tokens, "credit": credit.credits}))
    return pd.concat(parts, ignore_index=True)

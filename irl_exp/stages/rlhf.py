"""Reference policy + ground truth R* (+ a planted shortcut, if one is chosen) -> expert policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import LengthShortcut, LoraConfig, MarkerShortcut, PolicyOptimizationConfig, Recipe, RlhfConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.policy_optimization import optimize
from irl_exp.policies.ranked_samples import train_on_ranked
from irl_exp.policies.sampling import generate
from irl_exp.rewards.ground_truth import load_ground_truth
from irl_exp.rewards.reward import Reward
from irl_exp.rewards.shortcuts import shortcut_reward
from irl_exp.texts.data import prompts_of

VERSION = 5
WRITES = True
SAMPLES = 256
"""Completions of the reference that give the sd of R*, the unit of a shortcut's strength."""


def run(
    config: RlhfConfig,
    *,
    reference: Path,
    reward: Path,
    data: Path,
    shortcut: MarkerShortcut | LengthShortcut | None = None,
    adapter: LoraConfig | None = None,
    context: Context,
) -> dict[str, Any]:
    prompts = prompts_of(pd.read_parquet(data / "texts.parquet"), "fit")
    optimised: Reward = load_ground_truth(reward, context.device)
    if shortcut:
        optimised = shortcut_reward(optimised, shortcut, _samples(reference, prompts, config, context))
    if isinstance(config, PolicyOptimizationConfig):
        policy = optimize(reference, optimised.score, prompts, config, adapter=adapter, context=context)
    else:
        policy = train_on_ranked(reference, optimised.score, prompts, config, adapter=adapter, context=context)
    policy.save_trained(context.folder)
    return {"note": f"{config.algorithm}, {config.steps} steps x {config.batch_size} completions"}


def _samples(reference: Path, prompts: list[str], config: Recipe, context: Context) -> Completions:
    """What the reference writes on prompts of fit."""
    return generate(
        Policy.load(reference, context.device),
        [prompts[index % len(prompts)] for index in range(SAMPLES)],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=int(np.random.SeedSequence([config.seed, 1]).generate_state(1)[0]),
    )

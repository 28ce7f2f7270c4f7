"""Reference policy + ground truth R* -> expert policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from irl_exp.config import PolicyOptimizationConfig
from irl_exp.data import prompts_of
from irl_exp.policy_optimization import optimize
from irl_exp.rewards import load_ground_truth
from irl_exp.runtime import Context

VERSION = 1


def run(
    config: PolicyOptimizationConfig, *, reference: Path, reward: Path, data: Path, context: Context
) -> dict[str, Any]:
    prompts = prompts_of(pd.read_parquet(data / "texts.parquet"), "fit")
    ground_truth = load_ground_truth(reward, context.device)
    optimize(reference, ground_truth.score, prompts, config, context=context).save(context.folder)
    return {"note": f"{config.algorithm}, {config.steps} steps x {config.batch_size} completions"}

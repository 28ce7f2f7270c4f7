"""Reference policy + learned reward -> refinetuned policy: the procedure of rlhf on the standardised reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from irl_exp.config import RefinetuneConfig
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.machinery.runtime import Context
from irl_exp.policies.policy_optimization import optimize
from irl_exp.texts.data import prompts_of

VERSION = 5


def run(config: RefinetuneConfig, *, reference: Path, irl: Path, data: Path, context: Context) -> dict[str, Any]:
    prompts = prompts_of(pd.read_parquet(data / "texts.parquet"), "fit")
    learned = LearnedReward.load(irl, context.device, reference=reference)
    policy = optimize(
        reference,
        lambda completions: learned.standardised(learned.score(completions)),
        prompts,
        config,
        context=context,
    )
    policy.save(context.folder)
    return {"note": f"{config.algorithm}, {config.steps} steps x {config.batch_size} completions"}

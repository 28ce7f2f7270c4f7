"""Reference policy + learned reward -> refinetuned policy: the procedure of rlhf on the standardised reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from irl_exp.config import LoraConfig, RefinetuneConfig
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Policy
from irl_exp.policies.policy_optimization import optimize
from irl_exp.texts.data import prompts_of

VERSION = 6
WRITES = True


def run(
    config: RefinetuneConfig,
    *,
    reference: Path,
    irl: Path,
    data: Path,
    adapter: LoraConfig | None = None,
    context: Context,
) -> dict[str, Any]:
    prompts = prompts_of(pd.read_parquet(data / "texts.parquet"), "fit")
    # One model in memory for the KL and for the encoder of the reward, which reads once for both.
    opened = Policy.load(reference, context.device)
    learned = LearnedReward.load(irl, context.device, reference=opened)
    with learned.hearing():
        policy = optimize(
            reference,
            lambda completions: learned.standardised(learned.score(completions)),
            prompts,
            config,
            adapter=adapter,
            opened=opened,
            context=context,
        )
    policy.save_trained(context.folder)
    return {"note": f"{config.algorithm}, {config.steps} steps x {config.batch_size} completions"}

"""Reference policy -> the same, trained further on its own kind of text: a null expert, which drifts without a goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import FurtherExpert, LoraConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Completions, Policy, PolicyError
from irl_exp.policies.sampling import generate
from irl_exp.policies.supervised import fine_tune
from irl_exp.texts.data import prompts_of

VERSION = 2
WRITES = True
OWN = 8
"""Texts of its own that the reference writes on each prompt of fit."""


def run(
    config: FurtherExpert, *, reference: Path, data: Path, adapter: LoraConfig | None = None, context: Context
) -> dict[str, Any]:
    policy = Policy.load(reference, context.device)
    texts = pd.read_parquet(data / "texts.parquet")
    completions = _own(policy, prompts_of(texts, "fit"), config) if config.train_on == "own" else _given(policy, texts)
    fine_tune(policy, completions, config, adapter=adapter, context=context)
    policy.save_trained(context.folder)
    return {"note": f"{config.steps} steps on {len(completions):,} texts, {config.train_on}", "texts": len(completions)}


def _given(policy: Policy, texts: pd.DataFrame) -> Completions:
    """What the reference itself was trained on."""
    part = texts[texts["part"] == "sft"]
    if part.empty:
        raise PolicyError("expert=further: the data has no texts of people to train on: set expert.train_on=own.")
    return policy.complete(part["prompt"].tolist(), part["completion"].tolist())


def _own(policy: Policy, prompts: list[str], config: FurtherExpert) -> Completions:
    return generate(
        policy,
        [prompt for prompt in prompts for _ in range(OWN)],
        max_new_tokens=config.max_tokens,
        batch_size=512,
        seed=int(np.random.SeedSequence([config.seed, 2]).generate_state(1)[0]),
    )

"""The ground truth R*: fitted on the reward part of the data, or a sequence classifier as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import ClassifierConfig, RewardConfig, SequenceClassifierConfig
from irl_exp.policies import Completions
from irl_exp.rewards import ClassifierReward, SequenceClassifierReward, read_text, save_ground_truth
from irl_exp.runtime import Context

VERSION = 1
PROBES = 32


def run(config: RewardConfig, *, data: Path, context: Context) -> dict[str, Any]:
    texts = pd.read_parquet(data / "texts.parquet")
    texts = texts[texts["part"] == "reward"]
    probes = _completions(texts.head(PROBES))
    if isinstance(config, SequenceClassifierConfig):
        source = str(config.path or config.hub)
        save_ground_truth(SequenceClassifierReward.open(source, config, context.device), context.folder, probes)
        return {"note": source}
    labelled = texts[texts["toxic"].notna()]
    fit, held_out = _by_prompt(labelled, config)
    reward = _classifier(fit, config)
    save_ground_truth(reward, context.folder, probes)
    scores = reward.score(_completions(held_out))
    toxic = held_out["toxic"].to_numpy(dtype=bool)
    accuracy = float(((scores < 0) == toxic).mean())
    majority = float(max(toxic.mean(), 1 - toxic.mean()))
    return {
        "note": f"R* held-out accuracy {accuracy:.3f} (majority {majority:.3f}, n={len(toxic):,})",
        "held_out": {"accuracy": accuracy, "majority_accuracy": majority, "n": len(toxic)},
        "fitted_on": len(fit),
    }


def _completions(texts: pd.DataFrame) -> Completions:
    """Text alone: rewards of this stage read no token ids."""
    empty: list[list[int]] = [[] for _ in range(len(texts))]
    return Completions(texts["prompt"].tolist(), texts["completion"].tolist(), empty, empty)


def _by_prompt(texts: pd.DataFrame, config: ClassifierConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts to fit on and texts to test on, without a common prompt."""
    prompts = np.random.default_rng(config.seed).permutation(sorted(texts["prompt"].unique()))
    held_out = set(prompts[: max(1, round(len(prompts) * config.held_out))])
    inside = texts["prompt"].isin(held_out)
    return texts[~inside], texts[inside]


def _classifier(texts: pd.DataFrame, config: ClassifierConfig) -> ClassifierReward:
    words = read_text(_completions(texts), config.reads)
    return ClassifierReward.fit(words, texts["toxic"].to_numpy(dtype=bool), config)

"""The ground truth R*: fitted on the reward part of the data, or a scorer as it is, or several with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import (
    ClassifierConfig,
    GoalConfig,
    LengthConfig,
    ScorerConfig,
    SentimentConfig,
    SequenceClassifierConfig,
    WeightedConfig,
)
from irl_exp.machinery.runtime import Context
from irl_exp.rewards.ground_truth import (
    ClassifierReward,
    GoalReward,
    GroundTruth,
    ImportedReward,
    LengthReward,
    SentimentReward,
    SequenceClassifierReward,
    WeightedReward,
    hold_out,
    of_frame,
    probes_of,
    save_ground_truth,
)

VERSION = 4
PROBES = 32
STANDARDISED_ON = 2000  # texts: the standard deviation of a part is then known to about 2 %, whatever a part costs

Info = dict[str, Any]


def run(config: ScorerConfig | WeightedConfig, *, data: Path, context: Context) -> Info:
    every = pd.read_parquet(data / "texts.parquet")
    texts = every[every["part"] == "reward"]
    if isinstance(config, WeightedConfig):
        reward, info = _weighted(config, texts, context)
    elif isinstance(config, GoalConfig):
        reward, info = _goal(config, texts)
    else:
        reward, info = _scorer(config, texts, context)
    save_ground_truth(reward, context.folder, probes_of(every, "reward", PROBES))
    return info


def _weighted(config: WeightedConfig, texts: pd.DataFrame, context: Context) -> tuple[GroundTruth, Info]:
    found = {name: _scorer(part, texts, context) for name, part in config.parts.items()}
    rows = np.random.default_rng(config.seed).permutation(len(texts))[:STANDARDISED_ON]
    reward = WeightedReward.standardised_on(
        of_frame(texts.iloc[rows]),
        {name: scorer for name, (scorer, _) in found.items()},
        {name: part.weight for name, part in config.parts.items()},
        progress=context.progress,
    )
    parts = {
        name: {"center": float(reward.center[k]), "scale": float(reward.scale[k]), **found[name][1]}
        for k, name in enumerate(reward.names)
    }
    note = " ".join(f"{part.weight:+g} {name}" for name, part in config.parts.items())
    return reward, {"note": note, "parts": parts, "standardised_on": len(rows)}


def _goal(config: GoalConfig, texts: pd.DataFrame) -> tuple[GroundTruth, Info]:
    some = texts.iloc[:: max(1, -(-len(texts) // STANDARDISED_ON))]
    reward = GoalReward.standardised_on(of_frame(some), config)
    note = f"{config.goal}: {reward.center:.3g}, sd {reward.scale:.3g} on {len(some):,} texts"
    return reward, {"note": note, "center": reward.center, "scale": reward.scale, "standardised_on": len(some)}


def _scorer(config: ScorerConfig, texts: pd.DataFrame, context: Context) -> tuple[GroundTruth, Info]:
    if isinstance(config, ClassifierConfig):
        return _classifier(config, texts)
    if isinstance(config, SequenceClassifierConfig):
        source = str(config.path or config.hub)
        return SequenceClassifierReward.open(source, config, context.device), {"note": source}
    if isinstance(config, SentimentConfig):
        return SentimentReward(config.reads), {"note": "TextBlob's polarity"}
    if isinstance(config, LengthConfig):
        return LengthReward.of(config), {"note": f"{config.tolerance} - |words - {config.target}|"}
    return ImportedReward(config.function), {"note": config.function}


def _classifier(config: ClassifierConfig, texts: pd.DataFrame) -> tuple[GroundTruth, Info]:
    labelled = texts[texts["toxic"].notna()]
    fit, held_out = hold_out(labelled, config.held_out, np.random.default_rng(config.seed))
    reward = ClassifierReward.fit(fit, config)
    found = reward.accuracy(held_out)
    note = f"R* held-out accuracy {found['accuracy']:.3f} (majority {found['majority_accuracy']:.3f}, n={found['n']:,})"
    return reward, {"note": f"{reward.kind}, {note}", "kind": reward.kind, "held_out": found, "fitted_on": len(fit)}

"""A judge that neither R* nor the learned reward has seen, for policies that please a reward rather than its purpose.

Where the sft part of the data has labels: n-grams of characters and a small network on them, so other texts, other
labels and another representation than R*, which is fitted on words of the reward part. Whoever labelled the two is the
same: the stage `judge` says how far they err together. Elsewhere TextBlob's polarity. Opened, like R*, by
`load_ground_truth`; the manifest says which of the two it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import Node
from irl_exp.machinery.runtime import Context
from irl_exp.rewards.ground_truth import (
    ClassifierReward,
    GroundTruth,
    SentimentReward,
    hold_out,
    probes_of,
    save_ground_truth,
)

VERSION = 3
PROBES = 32
TEXTS = 4000  # seconds to fit
FEWEST = 20  # of each label among the texts to fit on: less is no judge
HELD_OUT = 0.25
SEED = 0  # an instrument: the same texts give the same judge in every run


def run(config: Node, *, data: Path, context: Context) -> dict[str, Any]:
    every = pd.read_parquet(data / "texts.parquet")
    texts = every[every["part"] == "sft"]
    judge, info = _judge(texts[texts["toxic"].notna()])
    save_ground_truth(judge, context.folder, probes_of(every, "sft", PROBES))
    return info


def _judge(labelled: pd.DataFrame) -> tuple[GroundTruth, dict[str, Any]]:
    generator = np.random.default_rng(SEED)
    drawn = labelled.iloc[generator.permutation(len(labelled))[:TEXTS]]
    fit, held_out = hold_out(drawn, HELD_OUT, generator)
    toxic = fit["toxic"].to_numpy(dtype=bool)
    if min(toxic.sum(), (~toxic).sum()) < FEWEST:
        note = f"TextBlob's polarity: the sft part has too few labels ({toxic.sum()} toxic, {(~toxic).sum()} civil)"
        return SentimentReward(), {"kind": "sentiment", "note": note}
    judge = ClassifierReward.fit_characters(fit, seed=SEED)
    found = judge.accuracy(held_out)
    note = (
        f"characters, held-out accuracy {found['accuracy']:.3f} "
        f"(majority {found['majority_accuracy']:.3f}, n={found['n']:,})"
    )
    return judge, {"kind": "characters", "note": note, "held_out": found, "fitted_on": len(fit)}

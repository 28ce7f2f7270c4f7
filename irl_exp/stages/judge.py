"""R* of the demonstrations on select and test: scores.parquet, one row a row of demonstrations.parquet.

The fit rows stay unjudged (missing): nothing that IRL fits has ever seen R*. Shared by all seeds of a sweep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import Node
from irl_exp.policies import Completions
from irl_exp.rewards import load_ground_truth
from irl_exp.runtime import Context

VERSION = 1


def run(config: Node, *, demonstrations: Path, reward: Path, context: Context) -> dict[str, Any]:
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    rows = np.flatnonzero(frame["part"] != "fit")
    scores = np.full(len(frame), np.nan)
    judged = Completions.from_frame(frame.iloc[rows])
    scores[rows] = load_ground_truth(reward, context.device).score(judged, progress=context.progress)
    pd.DataFrame({"reward": scores}).to_parquet(context.folder / "scores.parquet")
    return {"note": f"{len(rows):,} completions"}

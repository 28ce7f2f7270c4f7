"""R* of the demonstrations on select and test: scores.parquet, one row a row of demonstrations.parquet.

Column `reward`; `second`, of the second judge; of a weighted R* also `part/<name>`, the standardised score of each
part. human.parquet has R* (`truth`) of the texts that people wrote, one row a row of data.test_texts.

A completion is civil where reward >= 0: what the classifier calls civil, polarity that is not negative, a length within
the tolerance; for a weighted R*, whose parts are standardised, what is at least as good as the mean of the texts of the
reward part.

The fit rows stay unjudged (missing): nothing that IRL fits has ever seen R*. Shared by all seeds of a sweep. R* never
has a planted shortcut in it; where one was planted in the demonstrations, `clean_reward` is R* of clean.parquet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irl_exp.config import Node
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Completions
from irl_exp.rewards.ground_truth import GroundTruth, WeightedReward, load_ground_truth, of_frame
from irl_exp.rewards.reward import Reward, Scores
from irl_exp.texts.data import WITHOUT_LABELS, test_texts

VERSION = 3


def run(
    config: Node, *, demonstrations: Path, reward: Path, second_judge: Path, data: Path, context: Context
) -> dict[str, Any]:
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    rows = np.flatnonzero(frame["part"] != "fit")
    judged = Completions.from_frame(frame.iloc[rows])
    truth = load_ground_truth(reward, context.device)
    scores = pd.DataFrame(_scores(truth, judged, context), index=rows)
    scores = scores.assign(**_clean(demonstrations, rows, truth))
    scores["second"] = load_ground_truth(second_judge, context.device).score(judged)
    scores.reindex(range(len(frame))).to_parquet(context.folder / "scores.parquet")
    human = test_texts(pd.read_parquet(data / "texts.parquet", columns=WITHOUT_LABELS))
    pd.DataFrame({"truth": truth.score(of_frame(human))}).to_parquet(context.folder / "human.parquet")
    return {"note": f"{len(rows):,} completions, {len(human):,} texts of people"}


def _scores(truth: GroundTruth, judged: Completions, context: Context) -> dict[str, Any]:
    if not isinstance(truth, WeightedReward):
        return {"reward": truth.score(judged, progress=context.progress)}
    parts = truth.parts(judged, progress=context.progress)
    columns = {f"part/{name}": parts[:, k] for k, name in enumerate(truth.names)}
    return {"reward": truth.combined(parts), **columns}


def _clean(demonstrations: Path, rows: NDArray[np.int64], truth: Reward) -> dict[str, Scores]:
    """R* of these rows as the policies wrote them, where a shortcut was planted afterwards."""
    path = demonstrations / "clean.parquet"
    if not path.exists():
        return {}
    return {"clean_reward": truth.score(Completions.from_frame(pd.read_parquet(path).iloc[rows]))}

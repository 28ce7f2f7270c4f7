"""R* of the demonstrations on select and test: scores.parquet, one row a row of demonstrations.parquet.

Column `reward`; `second`, of the second judge; of a weighted R* also `part/<name>`, the standardised score of each
part. human.parquet has R* (`truth`) and `second` of the texts that people wrote, one row a row of
data.test_texts; where these have labels, the manifest says how independently the two judges err on them.

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
from irl_exp.texts.data import test_texts

VERSION = 4
FEWEST = 20  # of each label: less says nothing of how two judges err


def run(
    config: Node, *, demonstrations: Path, reward: Path, second_judge: Path, data: Path, context: Context
) -> dict[str, Any]:
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    rows = np.flatnonzero(frame["part"] != "fit")
    judged = Completions.from_frame(frame.iloc[rows])
    truth = load_ground_truth(reward, context.device)
    scores = pd.DataFrame(_scores(truth, judged, context), index=rows)
    scores = scores.assign(**_clean(demonstrations, rows, truth))
    judge = load_ground_truth(second_judge, context.device)
    scores["second"] = judge.score(judged)
    scores.reindex(range(len(frame))).to_parquet(context.folder / "scores.parquet")
    human = test_texts(pd.read_parquet(data / "texts.parquet"))
    both = (("truth", truth), ("second", judge))
    said = pd.DataFrame({name: one.score(of_frame(human)) if len(human) else [] for name, one in both}, dtype=float)
    said.to_parquet(context.folder / "human.parquet")
    found = independence(said["truth"].to_numpy(), said["second"].to_numpy(), human["toxic"])
    told = f", errors of the judges: kappa {found['error_kappa']:.2f}" if "error_kappa" in found else ""
    return {"note": f"{len(rows):,} completions, {len(human):,} texts of people{told}", "independence": found}


def independence(truth: Scores, second: Scores, toxic: pd.Series[Any]) -> dict[str, float]:
    """How far two judges say the same of texts with labels beyond what the label makes them say.

    Returns:
        `error_kappa`, Cohen's kappa of "errs here": 0 if the errors of one say nothing of the other's, 1 if they are
        the same; `error_given_error` and `error`, how often the second errs where R* does, and everywhere; and
        `score_correlation`, of their scores within a label, the mean over both labels. Empty with few labels; of what
        is constant, nothing.
    """
    known = toxic.notna().to_numpy()
    label, scores = toxic[known].to_numpy(dtype=bool), (truth[known], second[known])
    if min(label.sum(), (~label).sum()) < FEWEST:
        return {}
    first, other = ((values < 0) != label for values in scores)
    found = {"error": float(other.mean()), "n": len(label)}
    by_chance = first.mean() * other.mean() + (~first).mean() * (~other).mean()
    if by_chance < 1:
        found["error_kappa"] = float(((first == other).mean() - by_chance) / (1 - by_chance))
    if first.any():
        found["error_given_error"] = float(other[first].mean())
    classes = [tuple(values[label == side] for values in scores) for side in (True, False)]
    if all(values.std() > 0 for pair in classes for values in pair):
        found["score_correlation"] = float(np.mean([np.corrcoef(*pair)[0, 1] for pair in classes]))
    return found


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

"""What the learned reward pays for, in words: chosen on fit, tested on test. R* is not among the inputs.

statements.json: a list, best first; statement_values.parquet: one row a completion of test, one column a statement;
explain.json: how many candidates there were, what was left out, how well R tells the policies apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from irl_exp.config import ExplainConfig
from irl_exp.explain import credit, examples, ranges, statements
from irl_exp.explain.candidates import Candidate, Table
from irl_exp.irl import learned_rewards
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.machinery.runtime import Context
from irl_exp.machinery.tensors import mapped

VERSION = 2


def run(
    config: ExplainConfig,
    *,
    demonstrations: Path,
    candidates: Path,
    irl: Path,
    features: Path | None = None,
    reference: Path | None = None,
    context: Context,
) -> dict[str, Any]:
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    table, left_out = _candidates(candidates)
    reward = pd.read_parquet(irl / "scores.parquet")["score"].to_numpy(dtype=np.float64)
    test = frame[frame["part"] == "test"]
    scorer = None
    if reference is not None and learned_rewards.scores_texts(irl):
        scorer = LearnedReward.load(irl, context.device, reference=reference)
    score = statements.rescoring(scorer) if scorer is not None and config.edits else None
    linear, why = None, "this reward reads no features"
    if features is not None:
        try:
            linear = ranges.stored(irl, frame, mapped(features / "features.safetensors")["features"])
        except ranges.NoRangesError as error:
            why = str(error)
    found = statements.explain(frame, table, reward, config, score=score, linear=linear)
    if linear is None:
        left_out["ranges"] = why
    found.left_out.update(left_out)
    if scorer is None:
        found.left_out["credit"] = "the learned reward scores no texts"
    else:
        rows = examples.chosen(test, reward[test.index.to_numpy()], seed=config.seed)
        try:
            shown = examples.credited(scorer, test, rows)
            shown.to_parquet(context.folder / "credit.parquet")
        except credit.NoCreditError as error:
            found.left_out["credit"] = str(error)
    found.save(context.folder)
    count = len(found.statements)
    return {"note": f"{count} statements, R2 {found.r2[-1]:.2f}", "metrics": found.metrics}


def _candidates(folder: Path) -> tuple[Table, dict[str, str]]:
    kept = json.loads((folder / "candidates.json").read_text(encoding="utf-8"))
    found = [Candidate(**{**one, "phrases": tuple(one["phrases"])}) for one in kept["candidates"]]
    return Table(found, load_file(folder / "values.safetensors")["values"]), kept["left_out"]

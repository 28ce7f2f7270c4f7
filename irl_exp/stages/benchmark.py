"""A second set of prompts, and what reference and expert write on it: prompts.json, completions.parquet.

No prompt of it is in the data (`data.unseen`). What the refinetuned policy writes on the same prompts is a stage of its
own, benchmark_refinetuned: all seeds of a sweep of IRL share this one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from irl_exp.config import BenchmarkConfig
from irl_exp.machinery.runtime import Context
from irl_exp.rewards.judging import Judges, judged
from irl_exp.texts.data import read_benchmark, unseen

VERSION = 3
WRITES = True


def run(
    config: BenchmarkConfig,
    *,
    data: Path,
    reference: Path,
    expert: Path | None = None,
    reward: Path | None = None,
    second_judge: Path | None = None,
    context: Context,
) -> dict[str, Any]:
    known = pd.read_parquet(data / "texts.parquet", columns=["prompt"])["prompt"]
    found = read_benchmark(config)
    prompts, overlap = unseen(found, known, config)
    (context.folder / "prompts.json").write_text(json.dumps(prompts, indent=1), encoding="utf-8")
    judges = Judges(reference, reward, second_judge, context.device)
    policies = {name: folder for name, folder in (("reference", reference), ("expert", expert)) if folder}
    tables = [judged(name, folder, prompts, config, judges, context)[1] for name, folder in policies.items()]
    pd.concat(tables, ignore_index=True).to_parquet(context.folder / "completions.parquet")
    left_out = f" ({overlap:,} of {len(found):,} left out: the data has them)" if overlap else ""
    note = f"{sum(map(len, tables)):,} completions of {len(tables)} policies on {len(prompts):,} prompts{left_out}"
    return {"note": note, "prompts_found": len(found), "prompts_in_data": overlap}

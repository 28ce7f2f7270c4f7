"""What the refinetuned policy writes on the prompts of the benchmark: completions.parquet, rows as of that stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from irl_exp.config import BenchmarkConfig
from irl_exp.machinery.runtime import Context
from irl_exp.rewards.judging import Judges, judged

VERSION = 3
WRITES = True


def run(
    config: BenchmarkConfig,
    *,
    benchmark: Path,
    reference: Path,
    refinetune: Path,
    reward: Path | None = None,
    second_judge: Path | None = None,
    context: Context,
) -> dict[str, Any]:
    prompts = json.loads((benchmark / "prompts.json").read_text(encoding="utf-8"))
    judges = Judges(reference, reward, second_judge, context.device)
    _, table = judged("refinetuned", refinetune, prompts, config, judges, context)
    table.to_parquet(context.folder / "completions.parquet")
    return {"note": f"{len(table):,} completions on {len(prompts):,} prompts"}

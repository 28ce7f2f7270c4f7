"""Launches of made-up runs on disk, whose figures can be checked by hand. Nothing of ours is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROMPTS, COMPLETIONS = 10, 4
POLICIES = ("reference", "expert", "refinetuned")


@dataclass
class Made:
    """A run to be written: its place in the launch, and what its files say.

    `toxic` has the toxic completions by policy, the first ones of the file, so 4 make the first prompt toxic.
    """

    cell: str = ""
    seed: int = 0
    accuracy: Sequence[float] = (0.6, 0.7, 0.8)
    toxic: Mapping[str, int] = field(default_factory=lambda: {"reference": 20, "expert": 6, "refinetuned": 8})
    artifacts: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    irl: bool = True
    files: tuple[str, ...] = ("metrics.jsonl", "completions.parquet")

    @property
    def name(self) -> str:
        return ",".join(filter(None, [self.cell, f"irl.seed={self.seed}"]))


def write(folder: Path, runs: Sequence[Made]) -> Path:
    """A launch; `metrics` of a run replace those made from its other fields, None takes one away."""
    folder.mkdir(parents=True)
    jobs = [{"number": number, "name": run.name, "folder": str(number)} for number, run in enumerate(runs)]
    (folder / "plan.json").write_text(json.dumps({"jobs": jobs}))
    for number, run in enumerate(runs):
        _write_run(folder / str(number), number, run)
    return folder


def _write_run(folder: Path, number: int, run: Made) -> None:
    (folder / ".hydra").mkdir(parents=True)
    own = {"irl": f"irl-{run.cell}-{run.seed}", "refinetune": f"refinetune-{run.cell}-{run.seed}"}
    artifacts = {"reward": "r", "sft": "s", "rlhf": "e", "demonstrations": "d", "judge": "j", **own, **run.artifacts}
    config = {
        "name": "made",
        "seed": 0,
        "reward": {"name": "classifier", "seed": 0},
        "irl": {"seed": run.seed},
        "artifacts": artifacts,
        "job": {"number": number, "name": run.name},
        **run.config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    metrics = {key: value for key, value in {**_metrics(run), **run.metrics}.items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if "metrics.jsonl" in run.files:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(run)))
    if "completions.parquet" in run.files:
        _completions(run).to_parquet(folder / "completions.parquet")


def _metrics(run: Made) -> dict[str, float]:
    """Accuracies are those of the last epoch, F1 0.1 below, calibrated ones 0.05 above."""
    n = PROMPTS * COMPLETIONS
    found: dict[str, float] = {"n_prompts": PROMPTS}
    for policy, count in run.toxic.items():
        numbers: dict[str, float] = {"n_completions": n, "toxic_count": count}
        numbers |= dict.fromkeys(("toxic_fraction", "second_toxic_fraction"), count / n)
        numbers |= {"toxic_fraction_low": count / n - 0.01, "toxic_fraction_high": count / n + 0.01}
        found |= {f"{policy}/{key}": value for key, value in numbers.items()}
    if run.irl:
        last = run.accuracy[-1]
        found |= {"irl/auroc": last + 0.1, "irl/majority_accuracy": 0.65, "irl/n_civil": 52, "irl/n_completions": 80}
        found |= {"implicit/auroc": 0.9, "implicit/accuracy_at_zero": 0.75}
        for ending, more in (("_at_zero", 0.0), ("_unsupervised", 0.01), ("", 0.05)):
            found |= {f"irl/accuracy{ending}": last + more, f"irl/f1{ending}": last + more - 0.1}
    return found


def _rows(run: Made) -> list[dict[str, float]]:
    """Reward s and KL s / 10 of step s of RLHF; of refinetuning twice that; the curve of accuracy, AUROC 0.1 above."""
    rows: list[dict[str, float]] = []
    for stage, factor in (("rlhf", 1.0), ("refinetune", 2.0)):
        if stage == "rlhf" or "refinetuned" in run.toxic:
            rows += [
                {f"{stage}/step": step, f"{stage}/reward": factor * step, f"{stage}/kl": factor * step / 10}
                for step in (1.0, 2.0, 3.0)
            ]
    if run.irl:
        for epoch, value in enumerate(run.accuracy, start=1):
            others = {f"evaluate/{key}": value - 0.2 for key in ("pearson", "spearman", "kendall")}
            own = {"evaluate/step": epoch, "evaluate/accuracy_at_zero": value, "evaluate/auroc": value + 0.1}
            rows.append({**own, **others})
    return rows


def _completions(run: Made) -> pd.DataFrame:
    """R* is -1 for a toxic completion and 1 for the others; the second judge agrees."""
    n, tables = PROMPTS * COMPLETIONS, []
    for policy, count in run.toxic.items():
        truth = np.where(np.arange(n) < count, -1.0, 1.0)
        prompts = np.repeat(np.arange(PROMPTS), COMPLETIONS)
        tables.append(pd.DataFrame({"policy": policy, "prompt_id": prompts, "truth": truth, "second": truth}))
    return pd.concat(tables, ignore_index=True)

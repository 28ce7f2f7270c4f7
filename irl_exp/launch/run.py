"""One run: all steps of the chain, and everything recorded in its folder and the tracker."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from irl_exp.chain import build
from irl_exp.config import Config
from irl_exp.launch import lineage, resume
from irl_exp.launch.obtain import Reporter, StageError, obtain_all, source_digest, versions
from irl_exp.launch.writing import writing
from irl_exp.machinery.runtime import Device, Report, find_device
from irl_exp.machinery.store import Artifact, Store
from irl_exp.machinery.tracking import Tracker, track
from irl_exp.report import statements
from irl_exp.report.cells import cell_of, flat, overrides_of
from irl_exp.report.statements import Statement
from irl_exp.report.verdict import of_run
from irl_exp.stages.step import Step

SAMPLES = 10
EXPLAINED = ("statements.json", "statement_values.parquet", "explain.json", "credit.parquet")
"""What the stage explain leaves behind; credit.parquet where R is a sum over tokens."""
RESULTS = ("completions.parquet", "benchmark.parquet", "samples.csv", *EXPLAINED, "metrics.json.draft", "metrics.json")
"""Files of a run that has come to its end: all of them, or none."""


@dataclass(frozen=True)
class Job:
    """One run of a launch: its number, its name (the overrides) and its folder."""

    number: int
    name: str
    folder: Path


def run(
    config: Config,
    job: Job,
    report: Report,
    planned: Device | None = None,
    failed: Mapping[str, StageError] = MappingProxyType({}),
) -> dict[str, float]:
    """Run the chain of one job: reuse what the store has, compute the rest, record everything in the job's folder.

    Args:
        planned: the device that the steps are for, where others have computed them.
        failed: steps that others have tried in vain, by digest.

    Returns:
        The metrics, as in metrics.json.
    """
    device = planned or find_device(config.device, config.precision, config.threads, config.batch_tokens, config.vllm)
    store = Store(config.store.dir)
    steps = build(config, device)
    group = resume.group_of(job.folder.parent, config.name)
    record = _record_config(config, job, steps, device, group)
    with (
        writing(job.folder),
        resume.once(job.folder, config.tracking.mode) as mode,
        track(
            mode,
            run_dir=job.folder,
            project=config.tracking.project,
            entity=config.tracking.entity,
            name=_title(config.name, job.name, group),
            group=group,
            tags=_tags(config, job.name),
            config=record,
            job_type="run",
            commit=_commit(),
        ) as tracker,
    ):

        def log(stage: str, row: Mapping[str, float]) -> None:
            with writing(job.folder):
                tracker.log(stage, row)

        reporter = Reporter(log, device, report, job.number)
        artifacts = obtain_all(steps.values(), store, reporter, failed)
        with writing(job.folder, *RESULTS):
            metrics = _record(artifacts, job, tracker)
        lineage.show(artifacts, config, job.name, tracker)
        tracker.note(of_run(metrics, flat(record), job.name, _show_statements(job.folder, tracker)).markdown())
        return metrics


def _record_config(config: Config, job: Job, steps: Mapping[str, Step], device: Device, group: str) -> dict[str, Any]:
    """config.json: what was asked for, of which artifacts the job is, and what computed it."""
    record = {
        **config.model_dump(mode="json"),
        "artifacts": {step.stage: step.identity.digest for step in steps.values()},
        "job": {"number": job.number, "name": job.name, "cell": cell_of(job.name), "group": group},
        "device_used": str(device),
        "versions": versions(device.sampler),
        "code": source_digest(),
    }
    with writing(job.folder, "config.json"):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "config.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def _show_statements(folder: Path, tracker: Tracker) -> Sequence[Statement] | None:
    """The statements of a run as a table of the tracker, with every number that they have; None without any."""
    told = statements.of_run(folder)
    if told:
        tracker.log_table("explain/statements", *statements.columns_and_rows(told))
    return told


def _title(study: str, job: str, group: str) -> str:
    """What tells a run apart in a project of W&B: its study, its overrides, and when its group was launched."""
    time = group.rpartition("/")[2][:15]  # to the second
    return f"{study} {'' if job == 'default' else f'{job} '}({time})"


def _tags(config: Config, job: str) -> list[str]:
    """The study, the overrides that make the cell, and what the user gave."""
    cell = cell_of(job)
    own = [] if cell == "default" else overrides_of(cell)
    return list(dict.fromkeys([config.name, *own, *config.tracking.tags]))


@functools.cache
def _commit() -> str | None:
    """The commit of this code, where it runs from a clone and git is there; the digest of the source says the rest."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # an installed package may lie in a clone of something else
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _record(artifacts: Mapping[str, Artifact], job: Job, tracker: Tracker) -> dict[str, float]:
    """Metrics, completions and samples into the run folder and the tracker."""
    import pandas as pd

    evaluation = artifacts["evaluate"].folder
    metrics: dict[str, float] = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    for judge in filter(artifacts.__contains__, ("reward", "second_judge")):
        metrics |= held_out(judge, artifacts[judge].manifest["info"])
    metrics |= _of_manifest("data", artifacts["data"], "overlap")
    if "judge" in artifacts:
        metrics |= _of_manifest("second_judge/independence", artifacts["judge"], "independence")
    shutil.copyfile(evaluation / "completions.parquet", job.folder / "completions.parquet")
    if "benchmark" in artifacts:
        shutil.copyfile(evaluation / "benchmark.parquet", job.folder / "benchmark.parquet")
    if "explain" in artifacts:
        metrics |= artifacts["explain"].manifest["info"]["metrics"]
        for name in EXPLAINED:
            if (artifacts["explain"].folder / name).exists():
                shutil.copyfile(artifacts["explain"].folder / name, job.folder / name)
    samples = _samples(pd.read_parquet(evaluation / "completions.parquet"))
    _write_samples(samples, job.folder / "samples.csv")
    tracker.log_table("samples", list(samples.columns), samples.to_numpy(dtype=object).tolist())
    tracker.summarise(metrics)
    return metrics


def _of_manifest(prefix: str, artifact: Artifact, field: str) -> dict[str, float]:
    """Numbers that a stage has left in its manifest."""
    return {f"{prefix}/{key}": float(value) for key, value in artifact.manifest["info"].get(field, {}).items()}


def held_out(judge: str, info: Mapping[str, Any]) -> dict[str, float]:
    """How often a judge that was fitted is right on texts that it has not seen: all that it says rests on this."""
    found = {f"{judge}/{key}": float(value) for key, value in info.get("held_out", {}).items()}
    for name, part in info.get("parts", {}).items():
        found |= held_out(f"{judge}/{name}", part)
    return found


def _write_samples(samples: Any, path: Path) -> None:
    """As CSV, every text in quotes: a lone carriage return, which a policy may write, would else end the row."""
    samples.round(3).to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


def _samples(completions: Any) -> Any:
    """The first completion of each policy on the same few prompts, with its rewards."""
    prompts = sorted(completions["prompt_id"].unique())
    prompts = prompts[:: -(-len(prompts) // SAMPLES)]  # they are sorted: neighbours begin alike
    first = completions[completions["prompt_id"].isin(prompts)].groupby(["prompt_id", "policy"], sort=True).head(1)
    columns = ["policy", "prompt", "prompt_read", "completion", "truth", "implicit", "learned"]
    return first.sort_values(["prompt_id", "policy"])[[column for column in columns if column in first]]

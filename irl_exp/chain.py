"""The experiment: which stage follows which, and one run of them all. The only file that knows the order."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irl_exp.artifacts import Artifact, Identity, Store, fingerprint, read_manifest
from irl_exp.config import Config, Node
from irl_exp.runtime import Context, Device, Event, Report, State, find_device, prepare_process
from irl_exp.tracking import Tracker, track

VERSIONS = ("torch", "transformers", "trl", "datasets", "scikit-learn", "numpy", "irl-exp")
SAMPLES = 10


class StageError(Exception):
    """A stage that failed; says which. `digest` is the identity that could not be computed."""

    def __init__(self, stage: str, digest: str, error: BaseException) -> None:
        message = (str(error).strip() or "no message").splitlines()[0]
        kind = "" if type(error).__module__.startswith("irl_exp.") else f"{type(error).__name__}: "
        super().__init__(f"{stage}: {kind}{message}")
        self.stage, self.digest, self.error = stage, digest, error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled from its parts: the default would call the constructor with the message."""
        return StageError, (self.stage, self.digest, self.error)


@dataclass(frozen=True)
class Step:
    """One stage of one run: what it computes from what. Equal identities are computed once."""

    stage: str
    config: Node
    inputs: Mapping[str, Step | Node]
    identity: Identity


@dataclass(frozen=True)
class Job:
    """One run of a launch: its number, its name (the overrides) and its folder."""

    number: int
    name: str
    folder: Path


def build(config: Config, device: Device) -> dict[str, Step]:
    """The chain up to `until`, and what `evaluate` finds there, in the order in which it runs."""
    stage = functools.partial(_step, device)
    data = stage("data", config.data)
    truth = stage("reward", config.reward, data=data)
    reference = stage("sft", config.sft, model=config.model, data=data)
    judged: dict[str, Step] = {"data": data, "reward": truth, "reference": reference}
    if config.reaches("rlhf"):
        judged["expert"] = stage("rlhf", config.rlhf, reference=reference, reward=truth, data=data)
    if config.reaches("demonstrations"):
        judged["demonstrations"] = demos = stage(
            "demonstrations", config.demonstrations, expert=judged["expert"], reference=reference, data=data
        )
        judged["judge"] = stage("judge", Node(), demonstrations=demos, reward=truth)
    if config.reaches("irl"):
        seen = {"demonstrations": demos, "reference": reference}
        judged["features"] = stage("features", config.irl.features, **seen)
        judged["irl"] = stage("irl", config.irl, features=judged["features"], **seen)
    if config.reaches("refinetune"):
        judged["refinetune"] = stage("refinetune", config.refinetune, reference=reference, irl=judged["irl"], data=data)
    evaluate = stage("evaluate", config.evaluate, **judged)
    return {step.stage: step for step in [*judged.values(), evaluate]}


def _step(device: Device, stage: str, config: Node, **inputs: Step | Node) -> Step:
    sources = {name: _source(value) for name, value in inputs.items()}
    sources["precision"] = device.precision
    version = importlib.import_module(f"irl_exp.stages.{stage}").VERSION
    return Step(stage, config, inputs, Identity(stage, version, _content(config), sources))


def _source(value: Step | Node) -> str:
    """What an input is known by: the digest of an artifact, or the canonical text of a config node."""
    if isinstance(value, Step):
        return value.identity.digest
    return json.dumps(_content(value), sort_keys=True)


def _content(node: Node) -> dict[str, Any]:
    """The node as plain values; a file or folder of the user is known by its content, not by its path."""
    values: dict[str, Any] = {}
    for name, value in node:
        if isinstance(value, Node):
            values[name] = _content(value)
        else:
            values[name] = _fingerprint(value) if isinstance(value, Path) else value
    return values


def _peak_mib() -> float | None:
    """The largest resident size of this process so far; unknown on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@functools.cache
def _source_digest() -> str:
    """Digest of this package's code."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:20]


def made_by_other_code(folder: Path) -> bool:
    """Whether the code has changed since this artifact was made. Its VERSION says that it still holds; does it?"""
    return bool(read_manifest(folder)["info"].get("source") != _source_digest())


_fingerprint = functools.cache(fingerprint)
_prepare_process = functools.cache(prepare_process)


def run(config: Config, job: Job, report: Report) -> dict[str, float]:
    """Run the chain of one job: reuse what the store has, compute the rest, record everything in the job's folder.

    Returns:
        The metrics, as in metrics.json.
    """
    device = find_device(config.device, config.precision, config.threads)
    store = Store(config.store.dir)
    steps = build(config, device)
    record = {
        **config.model_dump(mode="json"),
        "artifacts": {step.stage: step.identity.digest for step in steps.values()},
        "device_used": str(device),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "config.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    with track(
        config.tracking.mode,
        run_dir=job.folder,
        project=config.tracking.project,
        entity=config.tracking.entity,
        name=job.name,
        group=f"{config.name}/{job.folder.parent.name}",
        tags=config.tracking.tags,
        config=record,
    ) as tracker:
        artifacts = {
            step.stage: _obtain(step, store, _Reporter(tracker, device, report, job.number)) for step in steps.values()
        }
        return _record(artifacts, job, tracker)


@dataclass(frozen=True)
class _Reporter:
    """Where a step of a job reports: the tracker for curves, the console for progress."""

    tracker: Tracker
    device: Device
    report: Report
    job: int


def _obtain(step: Step, store: Store, reporter: _Reporter) -> Artifact:
    """The artifact of a step, from the store or computed now; either way its curve reaches the tracker once."""

    def compute(folder: Path) -> dict[str, Any]:
        _prepare_process(reporter.device)
        reporter.report(Event(reporter.job, step.stage, "computing"))
        inputs = {
            name: store.folder(value.identity) if isinstance(value, Step) else value
            for name, value in step.inputs.items()
        }
        module = importlib.import_module(f"irl_exp.stages.{step.stage}")
        with _history(folder, step.stage, reporter) as context:
            info: dict[str, Any] = module.run(step.config, **inputs, context=context)
        versions = {package: importlib.metadata.version(package) for package in VERSIONS}
        made_by: dict[str, Any] = {"device": str(reporter.device), "versions": versions, "source": _source_digest()}
        made_by["peak_mib"] = _peak_mib()
        return {**info, **made_by}

    def waiting(identity: Identity) -> None:
        reporter.report(Event(reporter.job, step.stage, "waiting"))

    try:
        artifact = store.get(step.identity, compute, on_wait=waiting)
    except Exception as error:
        raise StageError(step.stage, step.identity.digest, error) from error
    if artifact.reused:
        _replay(artifact, step.stage, reporter.tracker)
    state: State = "reused" if artifact.reused else "computed"
    note = str(artifact.manifest["info"].get("note", ""))
    reporter.report(Event(reporter.job, step.stage, state, seconds=artifact.seconds, note=note))
    return artifact


@contextmanager
def _history(folder: Path, stage: str, reporter: _Reporter) -> Iterator[Context]:
    """A context whose curve goes to the tracker and to history.jsonl of the artifact."""
    path = folder / "history.jsonl"
    with path.open("w", encoding="utf-8") as lines:

        def log(row: Mapping[str, float]) -> None:
            lines.write(json.dumps(dict(row)) + "\n")
            reporter.tracker.log(stage, row)

        yield Context(folder, reporter.device, log, reporter.report, reporter.job, stage)
    if not path.stat().st_size:
        path.unlink()


def _replay(artifact: Artifact, stage: str, tracker: Tracker) -> None:
    """Give the tracker the recorded curve, so that every run is complete and comparable."""
    path = artifact.folder / "history.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            tracker.log(stage, json.loads(line))


def _record(artifacts: Mapping[str, Artifact], job: Job, tracker: Tracker) -> dict[str, float]:
    """Metrics, completions and samples into the run folder and the tracker; the learned reward as its artifact."""
    import pandas as pd

    evaluation = artifacts["evaluate"].folder
    metrics: dict[str, float] = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    shutil.copyfile(evaluation / "completions.parquet", job.folder / "completions.parquet")
    samples = _samples(pd.read_parquet(evaluation / "completions.parquet"))
    samples.to_csv(job.folder / "samples.csv", index=False, float_format="%.3f")
    tracker.log_table("samples", list(samples.columns), samples.to_numpy(dtype=object).tolist())
    if "irl" in artifacts:
        learned = artifacts["irl"]
        tracker.log_artifact(f"reward-{learned.digest}", "reward", learned.folder, dict(learned.manifest["info"]))
    tracker.summarise(metrics)
    return metrics


def _samples(completions: Any) -> Any:
    """The first completion of each policy on the same few prompts, with R* and learned reward."""
    prompts = sorted(completions["prompt_id"].unique())
    prompts = prompts[:: -(-len(prompts) // SAMPLES)]  # they are sorted: neighbours begin alike
    first = completions[completions["prompt_id"].isin(prompts)].groupby(["prompt_id", "policy"], sort=True).head(1)
    columns = ["policy", "prompt", "completion", "reward", "learned_reward"]
    return first.sort_values(["prompt_id", "policy"])[[column for column in columns if column in first]]

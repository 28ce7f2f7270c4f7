"""The experiment: which stage follows which, and one run of them all. The only file that knows the order."""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib
import importlib.metadata
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irl_exp.artifacts import Artifact, Identity, Store, fingerprint, read_manifest
from irl_exp.config import (
    Config,
    ImplicitConfig,
    NoBenchmark,
    Node,
    NoShortcut,
    ProbeConfig,
    frozen_features,
    of_identity,
)
from irl_exp.report import cell_of
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
    judged["second_judge"] = stage("second_judge", Node(), data=data)
    if config.reaches("rlhf"):
        judged["expert"] = stage(
            "rlhf", config.rlhf, reference=reference, reward=truth, data=data, **_planted(config, "ground_truth")
        )
    if config.reaches("demonstrations"):
        inputs = {"expert": judged["expert"], "reference": reference, "data": data}
        demos = stage("demonstrations", config.demonstrations, **inputs, **_planted(config, "demonstrations"))
        judged["demonstrations"] = demos
        judges = {"reward": truth, "second_judge": judged["second_judge"]}
        judged["judge"] = stage("judge", Node(), demonstrations=demos, data=data, **judges)
    if config.reaches("irl"):
        inputs = {"demonstrations": demos, "reference": reference, "data": data}
        if phi := frozen_features(config.irl):
            inputs["features"] = judged["features"] = stage("features", phi, **inputs)
        if isinstance(config.irl, ImplicitConfig):
            inputs["expert"] = judged["expert"]
        if isinstance(config.irl, ProbeConfig):
            inputs["reward"] = truth  # the one method that sees R*, and is no IRL
        judged["irl"] = stage("irl", of_identity(config.irl), **inputs)
    if config.reaches("refinetune"):
        judged["refinetune"] = stage("refinetune", config.refinetune, reference=reference, irl=judged["irl"], data=data)
    judged |= _benchmark(config, stage, judged)
    # The scores of the learned reward say all that evaluate needs to know of its features.
    seen = {name: step for name, step in judged.items() if name != "features"}
    planted = {} if isinstance(config.shortcut, NoShortcut) else {"shortcut": config.shortcut}
    return {step.stage: step for step in [*judged.values(), stage("evaluate", config.evaluate, **seen, **planted)]}


def _benchmark(config: Config, stage: Callable[..., Step], judged: Mapping[str, Step]) -> dict[str, Step]:
    """The policies on a second set of prompts: one step for those that a sweep of IRL shares, one for its own."""
    if isinstance(config.benchmark, NoBenchmark):
        return {}
    inputs = {name: judged[name] for name in ("reward", "second_judge", "reference")}
    expert = {"expert": judged["expert"]} if "expert" in judged else {}
    found = {"benchmark": stage("benchmark", config.benchmark, data=judged["data"], **inputs, **expert)}
    if "refinetune" in judged:
        inputs |= {"benchmark": found["benchmark"], "refinetune": judged["refinetune"]}
        found["benchmark_refinetuned"] = stage("benchmark_refinetuned", config.benchmark, **inputs)
    return found


def _planted(config: Config, where: str) -> dict[str, Node]:
    """The shortcut as an input of the stage that plants it; of runs without one the identities stay as they are."""
    shortcut = config.shortcut
    return {} if isinstance(shortcut, NoShortcut) or shortcut.where != where else {"shortcut": shortcut}


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


def _content(value: Any) -> Any:
    """A node as plain values; a file or folder of the user is known by its content, not by its path."""
    if isinstance(value, Node):
        return {name: _content(item) for name, item in [*value, *value.files.items()]}
    if isinstance(value, Mapping):
        return {name: _content(item) for name, item in value.items()}
    return _fingerprint(value) if isinstance(value, Path) else value


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
    group = f"{config.name}/{job.folder.parent.name}"
    record = {
        **config.model_dump(mode="json"),
        "artifacts": {step.stage: step.identity.digest for step in steps.values()},
        "job": {"number": job.number, "name": job.name, "cell": cell_of(job.name), "group": group},
        "device_used": str(device),
        "versions": _versions(),
        "code": _source_digest(),
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "config.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    with track(
        config.tracking.mode,
        run_dir=job.folder,
        project=config.tracking.project,
        entity=config.tracking.entity,
        name=job.name,
        group=group,
        tags=config.tracking.tags,
        config=record,
        job_type="run",
    ) as tracker:
        reporter = _Reporter(tracker.log, device, report, job.number)
        artifacts = {step.stage: _obtain(step, store, reporter) for step in steps.values()}
        return _record(artifacts, job, tracker)


def batches(steps: Iterable[Step], count: int) -> list[list[Step]]:
    """Those of the steps that are cheaper together, at least `count` batches of each kind if there are as many steps.

    Steps of one kind differ in the seed of their config alone.
    """
    from irl_exp.stages import irl

    kinds: dict[str, dict[str, Step]] = {}
    for step in steps:
        if step.stage == "irl" and irl.batched(step.config):  # type: ignore[arg-type]
            identity = step.identity
            kind = json.dumps([{**identity.config, "seed": None}, identity.inputs], sort_keys=True)
            kinds.setdefault(kind, {})[identity.digest] = step
    found = []
    for same in map(list, map(dict.values, kinds.values())):
        size = min(irl.together(same[0].config), math.ceil(len(same) / count))  # type: ignore[arg-type]
        found += [same[start : start + size] for start in range(0, len(same), size)] if len(same) > 1 else []
    return [batch for batch in found if len(batch) > 1]


def run_batch(steps: Sequence[Step], store: Store, device: Device, report: Report, number: int) -> list[Artifact]:
    """Compute steps that differ in their seed alone in one go, and first what they need; each is an artifact.

    Steps that another process computes meanwhile are left to it. The jobs read the curves from the artifacts.

    Args:
        number: stands for the job in what is reported.
    """
    reporter = _Reporter(lambda stage, row: None, device, report, number)
    for needed in _ancestors(steps[0]):
        _obtain(needed, store, reporter)
    module = importlib.import_module(f"irl_exp.stages.{steps[0].stage}")
    by_digest = {step.identity.digest: step for step in steps}

    def compute(folders: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        _prepare_process(device)
        stage = f"{steps[0].stage} of {len(folders)} seeds"
        report(Event(number, stage, "computing"))
        contexts = [_context(folder, stage, reporter) for folder in folders.values()]
        configs = [by_digest[digest].config for digest in folders]
        for info in module.run_many(configs, **_folders(steps[0], store), contexts=contexts):
            yield {**info, **_made_by(device)}

    try:
        return store.make([step.identity for step in steps], compute)
    except Exception as error:
        raise StageError(steps[0].stage, steps[0].identity.digest, error) from error


def _ancestors(step: Step) -> list[Step]:
    """All that a step needs, in the order in which it can be computed."""
    found: dict[str, Step] = {}
    for value in step.inputs.values():
        if isinstance(value, Step):
            found |= {needed.identity.digest: needed for needed in [*_ancestors(value), value]}
    return list(found.values())


def _folders(step: Step, store: Store) -> dict[str, Any]:
    """The inputs of a stage: folders of artifacts, and config nodes."""
    return {
        name: store.folder(value.identity) if isinstance(value, Step) else value for name, value in step.inputs.items()
    }


def _made_by(device: Device) -> dict[str, Any]:
    """Where an artifact comes from."""
    made_by: dict[str, Any] = {"device": str(device), "versions": _versions(), "source": _source_digest()}
    made_by["peak_mib"] = _peak_mib()
    return made_by


@functools.cache
def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in VERSIONS}


@dataclass(frozen=True)
class _Reporter:
    """Where a step of a job reports: `log` takes the rows of a stage's curve, the console progress."""

    log: Callable[[str, Mapping[str, float]], None]
    device: Device
    report: Report
    job: int


def _obtain(step: Step, store: Store, reporter: _Reporter) -> Artifact:
    """The artifact of a step, from the store or computed now; either way its curve reaches the tracker once."""

    def compute(folder: Path) -> dict[str, Any]:
        _prepare_process(reporter.device)
        reporter.report(Event(reporter.job, step.stage, "computing"))
        module = importlib.import_module(f"irl_exp.stages.{step.stage}")
        context = _context(folder, step.stage, reporter)
        info: dict[str, Any] = module.run(step.config, **_folders(step, store), context=context)
        return {**info, **_made_by(reporter.device)}

    def waiting(identity: Identity) -> None:
        reporter.report(Event(reporter.job, step.stage, "waiting"))

    try:
        artifact = store.get(step.identity, compute, on_wait=waiting)
    except Exception as error:
        raise StageError(step.stage, step.identity.digest, error) from error
    if artifact.reused:
        _replay(artifact, step.stage, reporter)
    state: State = "reused" if artifact.reused else "computed"
    note = str(artifact.manifest["info"].get("note", ""))
    reporter.report(Event(reporter.job, step.stage, state, seconds=artifact.seconds, note=note))
    return artifact


def _context(folder: Path, stage: str, reporter: _Reporter) -> Context:
    """What a stage may use; its curve goes to the tracker and to history.jsonl of the artifact."""

    def log(row: Mapping[str, float]) -> None:
        with (folder / "history.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(row)) + "\n")
        reporter.log(stage, row)

    return Context(folder, reporter.device, log, reporter.report, reporter.job, stage)


def _replay(artifact: Artifact, stage: str, reporter: _Reporter) -> None:
    """Give the tracker the recorded curve, so that every run is complete and comparable."""
    path = artifact.folder / "history.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            reporter.log(stage, json.loads(line))


def _record(artifacts: Mapping[str, Artifact], job: Job, tracker: Tracker) -> dict[str, float]:
    """Metrics, completions and samples into the run folder and the tracker; the learned reward as its artifact."""
    import pandas as pd

    evaluation = artifacts["evaluate"].folder
    metrics: dict[str, float] = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    shutil.copyfile(evaluation / "completions.parquet", job.folder / "completions.parquet")
    if "benchmark" in artifacts:
        shutil.copyfile(evaluation / "benchmark.parquet", job.folder / "benchmark.parquet")
    samples = _samples(pd.read_parquet(evaluation / "completions.parquet"))
    _write_samples(samples, job.folder / "samples.csv")
    tracker.log_table("samples", list(samples.columns), samples.to_numpy(dtype=object).tolist())
    if "irl" in artifacts:
        learned = artifacts["irl"]
        tracker.log_artifact(f"reward-{learned.digest}", "reward", learned.folder, dict(learned.manifest["info"]))
    tracker.summarise(metrics)
    return metrics


def _write_samples(samples: Any, path: Path) -> None:
    """As CSV, every text in quotes: a lone carriage return, which a policy may write, would else end the row."""
    samples.round(3).to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


def _samples(completions: Any) -> Any:
    """The first completion of each policy on the same few prompts, with its rewards."""
    prompts = sorted(completions["prompt_id"].unique())
    prompts = prompts[:: -(-len(prompts) // SAMPLES)]  # they are sorted: neighbours begin alike
    first = completions[completions["prompt_id"].isin(prompts)].groupby(["prompt_id", "policy"], sort=True).head(1)
    columns = ["policy", "prompt", "completion", "truth", "implicit", "learned"]
    return first.sort_values(["prompt_id", "policy"])[[column for column in columns if column in first]]

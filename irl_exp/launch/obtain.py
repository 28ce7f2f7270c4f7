"""One step: from the store or computed now, alone or in a batch, its curve replayed to the tracker."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from irl_exp.launch.stops import stop_if_told, told_to_stop
from irl_exp.launch.writing import WriteError
from irl_exp.machinery.runtime import Context, Device, Event, Report, State, prepare_process
from irl_exp.machinery.shards import lending_the_core
from irl_exp.machinery.store import Artifact, Identity, Store, read_manifest
from irl_exp.stages.step import Step

VERSIONS = ("torch", "transformers", "trl", "datasets", "scikit-learn", "numpy", "irl-exp")


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

    def told(self) -> StageError:
        """The same for another process: with the traceback as text, and no object that may not travel."""
        message = str(self).removeprefix(f"{self.stage}: ")
        trace = "".join(traceback.format_exception(self))
        return StageError(self.stage, self.digest, ElsewhereError(message, trace))


class TakenError(Exception):
    """Another process computes it, and there is other work to do."""


class ElsewhereError(Exception):
    """What has failed in another process; its traceback is the note."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message, trace)
        self.add_note(trace)

    def __str__(self) -> str:
        return str(self.args[0])


def _peak_mib() -> float | None:
    """The largest resident size of this process so far; unknown on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@functools.cache
def source_digest() -> str:
    """Digest of this package's code."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:20]


def made_by_other_code(folder: Path) -> bool:
    """Whether the code has changed since this artifact was made. Its VERSION says that it still holds; does it?"""
    return bool(read_manifest(folder)["info"].get("source") != source_digest())


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


def run_batch(
    steps: Sequence[Step], store: Store, device: Device, report: Report, number: int, beside: Sequence[Step] = ()
) -> list[Artifact]:
    """Compute steps that differ in their seed alone in one go, and first what they need; each is an artifact.

    Steps that another process computes meanwhile are left to it. The jobs read the curves from the artifacts.

    Args:
        number: stands for the job in what is reported.
        beside: what to compute in place of waiting for another process.
    """
    reporter = Reporter(lambda stage, row: None, device, report, number)
    obtain_all(ancestors(steps[0]), store, reporter, beside=beside)
    module = importlib.import_module(f"irl_exp.stages.{steps[0].stage}")
    by_digest = {step.identity.digest: step for step in steps}

    def compute(folders: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        prepare_process()
        stage = f"{steps[0].stage} of {len(folders)} seeds"
        report(Event(number, stage, "computing"))
        contexts = [_context(folder, stage, reporter) for folder in folders.values()]
        configs = [by_digest[digest].config for digest in folders]
        for info in module.run_many(configs, **_folders(steps[0], store), contexts=contexts):
            stop_if_told()
            yield {**info, **_made_by(device)}

    with _failing_as(steps[0]):
        return store.make([step.identity for step in steps], compute)


def inputs(step: Step) -> list[Step]:
    """The steps that a step reads."""
    return [value for value in step.inputs.values() if isinstance(value, Step)]


def ancestors(step: Step) -> list[Step]:
    """All that a step needs, in the order in which it can be computed."""
    found: dict[str, Step] = {}
    for value in inputs(step):
        found |= {needed.identity.digest: needed for needed in [*ancestors(value), value]}
    return list(found.values())


def _folders(step: Step, store: Store) -> dict[str, Any]:
    """The inputs of a stage: folders of artifacts, and config nodes."""
    return {
        name: store.folder(value.identity) if isinstance(value, Step) else value for name, value in step.inputs.items()
    }


def _made_by(device: Device) -> dict[str, Any]:
    """Where an artifact comes from."""
    made_by: dict[str, Any] = {"device": str(device), "versions": versions(device.sampler), "source": source_digest()}
    made_by["peak_mib"] = _peak_mib()
    return made_by


@functools.cache
def versions(sampler: str | None) -> dict[str, str]:
    """Versions of the libraries that results depend on, with that of a sampler which is not ours."""
    # vLLM for the CPU is a distribution of another name.
    named = importlib.metadata.packages_distributions()[sampler][:1] if sampler else []
    return {package: importlib.metadata.version(package) for package in (*VERSIONS, *named)}


@dataclass(frozen=True)
class Reporter:
    """Where a step of a job reports: `log` takes the rows of a stage's curve, the console progress."""

    log: Callable[[str, Mapping[str, float]], None]
    device: Device
    report: Report
    job: int


@dataclass
class _Once:
    """The curve of a stage that is computed, computed again or replayed: each row reaches the tracker once."""

    log: Callable[[str, Mapping[str, float]], None]
    row: int = 0
    logged: int = 0

    def begin(self) -> None:
        """From the first row: who was stopped and given up computes again, or has the result of another process."""
        self.row = 0

    def __call__(self, stage: str, row: Mapping[str, float]) -> None:
        self.row += 1
        if self.row > self.logged:
            self.logged = self.row
            self.log(stage, row)


def obtain_all(
    steps: Iterable[Step],
    store: Store,
    reporter: Reporter,
    failed: Mapping[str, StageError] = MappingProxyType({}),
    beside: Sequence[Step] = (),
) -> dict[str, Artifact]:
    """The artifacts of a job by stage. What can do without a step that another process computes comes before it.

    Args:
        failed: steps that others have tried in vain, by digest.
        beside: steps that nobody has asked for, to compute in place of waiting.

    Raises:
        StageError: of the first step that fails, here or elsewhere.
    """
    found: dict[str, Artifact] = {}
    missing, others = list(steps), list(beside)
    while missing:
        ready = _ready(missing, found)
        if error := failed.get(ready[0].identity.digest):
            raise error from error.error
        made = first_free(ready, store, reporter) or _meanwhile(others, found, store, reporter)
        made = made or obtain(ready[0], store, reporter)
        found[made.identity.stage] = made
        missing = [step for step in missing if step.stage not in found]
    return found


def _ready(steps: Iterable[Step], found: Mapping[str, Artifact]) -> list[Step]:
    """Those whose inputs are there."""
    return [step for step in steps if found.keys() >= {needed.stage for needed in inputs(step)}]


def _meanwhile(others: list[Step], found: Mapping[str, Artifact], store: Store, reporter: Reporter) -> Artifact | None:
    """One of the others, each of which is tried once; one that fails does so again in its job, which says it."""
    for step in _ready(others, found):
        others.remove(step)
        with contextlib.suppress(TakenError, StageError):
            return obtain(step, store, reporter, patient=False)
    return None


def first_free(steps: Iterable[Step], store: Store, reporter: Reporter) -> Artifact | None:
    """The artifact of the first of the steps that no other process computes at this moment; None where all are."""
    for step in steps:
        with contextlib.suppress(TakenError):
            return obtain(step, store, reporter, patient=False)
    return None


def obtain(step: Step, store: Store, reporter: Reporter, *, patient: bool = True) -> Artifact:
    """The artifact of a step, from the store or computed now; either way its curve reaches the tracker once.

    Raises:
        TakenError: another process computes it, and this one is not patient.
    """
    lent, curve = contextlib.ExitStack(), _Once(reporter.log)
    reporter = replace(reporter, log=curve)

    def compute(folder: Path) -> dict[str, Any]:
        lent.close()  # who has waited in vain works
        curve.begin()
        prepare_process()
        reporter.report(Event(reporter.job, step.stage, "computing"))
        module = importlib.import_module(f"irl_exp.stages.{step.stage}")
        context = _context(folder, step.stage, reporter)
        info: dict[str, Any] = module.run(step.config, **_folders(step, store), context=context)
        stop_if_told()  # scikit-learn's networks answer Ctrl-C with a warning, and with what they are by then
        return {**info, **_made_by(reporter.device)}

    def waiting(identity: Identity) -> None:
        if not patient:
            raise TakenError
        reporter.report(Event(reporter.job, step.stage, "waiting"))
        lent.enter_context(lending_the_core())

    with _failing_as(step), lent:
        artifact = store.get(step.identity, compute, on_wait=waiting)
    if artifact.reused:
        curve.begin()
        _replay(artifact, step.stage, reporter)
    state: State = "reused" if artifact.reused else "computed"
    note = str(artifact.manifest["info"].get("note", ""))
    reporter.report(Event(reporter.job, step.stage, state, seconds=artifact.seconds, note=note))
    return artifact


@contextlib.contextmanager
def _failing_as(step: Step) -> Iterator[None]:
    """Whatever ends the computation of a step is an error of this step, also what would end the process.

    Three things are not: a stop of the launch, a run folder that cannot take the curve of the step, and that it is
    another process that computes it.
    """
    try:
        yield
    except (WriteError, TakenError):
        raise
    except BaseException as error:
        if told_to_stop():
            raise
        raise StageError(step.stage, step.identity.digest, error) from error


def _context(folder: Path, stage: str, reporter: Reporter) -> Context:
    """What a stage may use; its curve goes to the tracker and to history.jsonl of the artifact."""

    def log(row: Mapping[str, float]) -> None:
        with (folder / "history.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(row)) + "\n")
        reporter.log(stage, row)

    return Context(folder, reporter.device, log, reporter.report, reporter.job, stage)


def _replay(artifact: Artifact, stage: str, reporter: Reporter) -> None:
    """Give the tracker the recorded curve, so that every run is complete and comparable."""
    path = artifact.folder / "history.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            reporter.log(stage, json.loads(line))

"""What a launch has to do, cut into the tasks that one worker does at once, and what each of them waits for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from irl_exp.config import Config, Node, SequenceClassifierConfig, WeightedConfig
from irl_exp.launch.jobs import Batch, PlannedJob
from irl_exp.launch.stops import told_to_stop

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.obtain import StageError
    from irl_exp.machinery.runtime import Device, Report, Where
    from irl_exp.stages.step import Step


@dataclass(frozen=True)
class Lone:
    """A step that is computed for itself, before the jobs that need it; `number` stands for it in reports.

    Attributes:
        owner: number of the first job that needs it.
    """

    number: int
    step: Step
    store: Path
    device: Device
    owner: int

    def run(self, report: Report) -> StageError | None:
        """Compute it; the job reads its curve from the artifact. Returns why that failed."""
        from irl_exp.launch import obtain
        from irl_exp.machinery.store import Store

        try:
            reporter = obtain.Reporter(lambda stage, row: None, self.device, report, self.number)
            obtain.obtain(self.step, Store(self.store), reporter)
        except obtain.StageError as error:
            if told_to_stop():
                raise
            return error.told()
        return None


Work = PlannedJob | Batch | Lone


@dataclass(frozen=True)
class Task:
    """One piece of work for one worker.

    Attributes:
        makes: digests of what it puts into the store for others.
        needs: digests that have to be there, or known to fail, before it begins.
    """

    name: str
    work: Work
    where: Where
    makes: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    @property
    def steps(self) -> Sequence[Step]:
        """What it may have begun to compute."""
        if isinstance(self.work, Lone):
            return [self.work.step]
        return list(self.work.steps.values()) if isinstance(self.work, PlannedJob) else self.work.steps

    @property
    def store(self) -> Path:
        return self.work.config.store.dir if isinstance(self.work, PlannedJob) else self.work.store


def by_jobs(jobs: Sequence[PlannedJob], batches: Sequence[Batch]) -> list[Task]:
    """Batches, and then whole jobs, which compute the rest: each stage the first that needs it, others wait for it."""
    made = frozenset(step.identity.digest for batch in batches for step in batch.steps)
    together = [replace(_batch(batch, frozenset()), where="cpu") for batch in batches]  # there is one kind of worker
    return together + [_job(job, made) for job in jobs]


def by_stages(
    jobs: Sequence[PlannedJob], batches: Sequence[Batch], missing: Mapping[str, Step], device: Device
) -> list[Task]:
    """Each missing stage once, as soon as its inputs are there, or with its batch; then each job, which records.

    In the order of the jobs: the first ones have their results first.
    """
    digests = frozenset(missing)
    in_batch = {step.identity.digest: batch for batch in batches for step in batch.steps}
    tasks: dict[int, Task] = {}
    planned: set[str] = set()
    number = -1 - len(batches)
    for job in jobs:
        for step in job.steps.values():
            digest = step.identity.digest
            if digest in planned or digest not in missing:
                continue
            if digest in in_batch:
                batch = in_batch[digest]
                tasks[batch.number] = _batch(batch, digests)
                planned |= tasks[batch.number].makes
            else:
                tasks[number] = _lone(Lone(number, step, job.config.store.dir, device, job.number), digests)
                planned.add(digest)
                number -= 1
        tasks[job.number] = _job(job, digests)
    return list(tasks.values())


def alone(task: Task, jobs: Sequence[PlannedJob], first: int) -> Iterator[Task]:
    """The steps of a batch that has failed, each for itself; their numbers go down from `first`."""
    assert isinstance(task.work, Batch)
    for number, step in enumerate(task.work.steps):
        owner = next(job.number for job in jobs if step.identity.digest in _digests(job.steps.values()))
        yield _lone(Lone(first - number, step, task.work.store, task.work.device, owner), task.needs)


def _batch(batch: Batch, missing: frozenset[str]) -> Task:
    steps = batch.steps
    return Task(f"{len(steps)} IRL fits", batch, where(steps[0]), _digests(steps), _inputs(steps[0]) & missing)


def _lone(lone: Lone, missing: frozenset[str]) -> Task:
    step = lone.step
    return Task(step.stage, lone, where(step), _digests([step]), _inputs(step) & missing)


def _job(job: PlannedJob, missing: frozenset[str]) -> Task:
    """It needs no GPU: what is missing of it others compute, or there is one kind of worker."""
    return Task(f"job {job.number}", job, "cpu", needs=_digests(job.steps.values()) & missing)


def _digests(steps: Iterable[Step]) -> frozenset[str]:
    return frozenset(step.identity.digest for step in steps)


def _inputs(step: Step) -> frozenset[str]:
    """What it reads; what that has been made from is there by then."""
    return _digests(value for value in step.inputs.values() if not isinstance(value, Node))


def declared(config: Config) -> Device:
    """The device of workers elsewhere: that of the plan, and what each worker has to have."""
    from irl_exp.machinery.runtime import declared_device

    return declared_device(config.device, config.precision, config.batch_tokens, config.vllm)


def where(step: Step) -> Where:
    """What a stage needs, as the chain says; a ground truth that is a language model needs a GPU too."""
    from irl_exp.chain import NO_GPU

    truth = step if step.stage == "reward" else step.inputs.get("reward")
    if truth is not None and _is_model(getattr(truth, "config", None)):
        return "gpu"
    return "cpu" if step.stage in NO_GPU else "gpu"


def _is_model(config: object) -> bool:
    parts = config.parts.values() if isinstance(config, WeightedConfig) else [config]
    return any(isinstance(part, SequenceClassifierConfig) for part in parts)

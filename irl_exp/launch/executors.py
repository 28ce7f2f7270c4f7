"""Where jobs run: in this process, in a pool of processes, or on a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, setup_globals
from hydra.core.utils import run_job as hydra_run_job

from irl_exp.config import ClusterExecutor
from irl_exp.launch import ahead
from irl_exp.launch import jobs as room
from irl_exp.launch.jobs import Batch, LaunchContext, PlannedJob
from irl_exp.launch.messages import ClusterError, one_line, short
from irl_exp.launch.stops import terminate_like_interrupt, told_to_stop, unless_stopped
from irl_exp.launch.tasks import Lone, Task, Work, alone, by_jobs, by_stages, declared
from irl_exp.launch.workers import Workers
from irl_exp.launch.writing import writing

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.console import Console
    from irl_exp.launch.obtain import StageError
    from irl_exp.machinery.runtime import Report, Where
    from irl_exp.machinery.tracking import Mode
    from irl_exp.report.cells import Outcome
    from irl_exp.stages.step import Step

_context: LaunchContext | None = None
"""In a worker: the launch that it works for."""


def run_all(
    context: LaunchContext,
    jobs: Sequence[PlannedJob],
    batches: Sequence[Batch],
    missing: Mapping[str, Step],
    workers: int,
    console: Console,
    beside: Sequence[Step] = (),
) -> Generator[Outcome, None, None]:
    """Run the batches and the jobs, each after its batch, and yield the outcome of each job as it ends.

    A job fails alone. A stage that failed in one job would fail in every other that needs it: jobs that wait for
    their turn and need it are not run.

    Args:
        missing: what has to be computed, by digest.
        workers: how many at once, on this machine.
        beside: steps of a job that is alone, for a second process.
    """
    executor = jobs[0].config.executor
    if isinstance(executor, ClusterExecutor) and missing:
        from irl_exp.launch.cluster import Pilots

        graph = by_stages(jobs, batches, missing, declared(jobs[0].config))
        alone = [task.work for task in graph if isinstance(task.work, Lone)]
        console.follow(
            {lone.number: lone.owner for lone in alone}, {lone.number: [lone.step.identity.digest] for lone in alone}
        )
        with Pilots(executor, context, jobs, console) as pilots:
            yield from _Graph(pilots, graph, jobs, console).run()
    elif workers > 1:
        with Pool(context, jobs, workers, console) as pool:
            yield from _Graph(pool, by_jobs(jobs, batches), jobs, console).run()
    else:
        with ahead.computing(beside, jobs[0], console):
            yield from _here(context, jobs, batches, console)


def _here(
    context: LaunchContext, jobs: Sequence[PlannedJob], batches: Sequence[Batch], console: Console
) -> Iterator[Outcome]:
    """All in this process, one after the other."""
    room.reporting = unless_stopped(console.show)
    if isinstance(jobs[0].config.executor, ClusterExecutor):
        room.planned = declared(jobs[0].config)
    broken: dict[str, str] = {}
    waiting = list(batches)
    try:
        for job in jobs:
            for batch in [batch for batch in waiting if batch.needed_by(job)]:
                waiting.remove(batch)
                console.batch_done(batch.number, len(batch.steps), batch.run(room.reporting))
            reason = job.blocked_by(broken)
            outcome = _not_run(job, reason) if reason else _run_one(context, job)
            _remember(outcome, broken)
            yield outcome
    finally:
        room.reporting = room.planned = None


def _not_run(job: PlannedJob, reason: str) -> Outcome:
    from irl_exp.report.cells import Outcome

    return Outcome(job.number, job.name, job.folder, "not run", error=reason)


def _remember(outcome: Outcome, broken: dict[str, str]) -> None:
    """Note the step that a failed job failed in."""
    if outcome.failed_step:
        broken[outcome.failed_step] = f"needs a stage that failed in job {outcome.number}"


def _run_one(context: LaunchContext, job: PlannedJob) -> Outcome:
    """Run one job in this process. An exception ends the job, not the launch; its traceback is in error.txt."""
    from irl_exp.launch.obtain import StageError
    from irl_exp.report.cells import Outcome

    start = time.monotonic()
    try:
        metrics = _in_hydra(context, job)
    except BaseException as error:
        if told_to_stop():
            raise
        reason, step = _leave_error(job.folder, error), error.digest if isinstance(error, StageError) else ""
        seconds = time.monotonic() - start
        return Outcome(job.number, job.name, job.folder, "failed", seconds, error=reason, failed_step=step)
    return Outcome(job.number, job.name, job.folder, "completed", time.monotonic() - start, metrics=metrics)


def _in_hydra(context: LaunchContext, job: PlannedJob) -> dict[str, float]:
    """The metrics of a job that Hydra runs, in its folder and with its log."""
    with writing(job.folder):  # what Hydra itself puts there
        result = hydra_run_job(
            hydra_context=context.hydra_context,
            task_function=context.task_function,
            config=job.composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    if result.status is not JobStatus.COMPLETED:
        raise result._return_value
    metrics: dict[str, float] = result.return_value
    return metrics


class Engine(Protocol):
    """Does tasks somewhere. Its context ends what still runs.

    Attributes:
        tries: how often a task begins at most, if its workers get lost.
    """

    tries: int

    def slots(self, where: Where) -> int:
        """How many tasks of a kind it takes at once."""

    def submit(self, task: Task) -> Future[bytes]:
        """The pickled `Answer`. An exception means that the worker was lost, save for one that is ours and ends all."""


@dataclass(frozen=True)
class Answer:
    """What a worker says of a task: the outcome of a job, or why something failed."""

    outcome: Outcome | None = None
    failure: str = ""
    error: StageError | None = None


class Pool:
    """Processes of this machine. A worker that dies takes its task with it and nothing else."""

    tries = 1

    def __init__(self, context: LaunchContext, jobs: Sequence[PlannedJob], workers: int, console: Console) -> None:
        self._count, self._launch, self._hear = workers, pack(context), console.show
        self._tracking = tracking_of(jobs)

    def __enter__(self) -> Self:
        from irl_exp.machinery.runtime import cores, gpus

        shared = multiprocessing.get_context("spawn").Semaphore(max(cores(), self._count))
        arguments = (self._tracking, self._launch, shared, gpus())
        self._workers = Workers(self._count, start=_start_worker, arguments=arguments, hear=self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        if kind is not None:
            self._workers.stop()
        self._workers.shutdown()

    def slots(self, where: Where) -> int:
        return self._count

    def submit(self, task: Task) -> Future[bytes]:
        import cloudpickle

        return self._workers.submit(_work, cloudpickle.dumps(task.work))


def pack(context: LaunchContext) -> bytes:
    """What all workers need, once: it takes as long as a job takes to plan."""
    import cloudpickle

    return bytes(cloudpickle.dumps((context, Singleton.get_state())))


def tracking_of(jobs: Sequence[PlannedJob]) -> Mode | None:
    """Whether there is a W&B account, found out once: each worker would ask, and warn, again."""
    from irl_exp.machinery.tracking import resolve_mode

    return resolve_mode("wandb") if any(job.config.tracking.mode == "wandb" for job in jobs) else None


class _Graph:
    """The tasks of a launch on an engine, each when what it needs is there."""

    def __init__(self, engine: Engine, tasks: Sequence[Task], jobs: Sequence[PlannedJob], console: Console) -> None:
        self.engine, self.jobs, self.console = engine, jobs, console
        self.waiting = list(tasks)
        self.running: dict[Future[bytes], Task] = {}
        self.lost: Counter[int] = Counter()
        self.broken: dict[str, str] = {}
        """What is said of a step that has failed, by digest; the job `owners` shows its error, of `errors`."""
        self.errors: dict[str, StageError] = {}
        self.owners: dict[str, int] = {}
        self.without: set[str] = set()
        """Steps that nobody has tried, as something that they read has failed."""

    def run(self) -> Iterator[Outcome]:
        while self.waiting or self.running:
            yield from self._begin()
            done, _ = wait(self.running, timeout=PATIENCE, return_when=FIRST_COMPLETED)
            for future in done:
                yield from self._end(future, self.running.pop(future))

    def _begin(self) -> Iterator[Outcome]:
        """Give the engine what can begin, in the order of the tasks, as long as it has workers."""
        pending = {digest for task in (*self.waiting, *self.running.values()) for digest in task.makes}
        busy = Counter(task.where for task in self.running.values())
        for task in list(self.waiting):
            if not pending.isdisjoint(task.needs):
                continue
            if reason := self._blocked(task):
                self.waiting.remove(task)
                pending -= task.makes
                if isinstance(task.work, PlannedJob):
                    yield _not_run(task.work, reason)
            elif busy[task.where] < self.engine.slots(task.where):
                self.waiting.remove(task)
                busy[task.where] += 1
                self.running[self.engine.submit(self._informed(task))] = task

    def _blocked(self, task: Task) -> str:
        """Why a task cannot succeed, or nothing. Jobs have all steps, so those that have failed say it."""
        if isinstance(task.work, PlannedJob):
            number = task.work.number
            others = {digest: why for digest, why in self.broken.items() if self.owners.get(digest) != number}
            return task.work.blocked_by(others)
        if task.needs.isdisjoint(self.broken.keys() | self.without):
            return ""
        self.without |= task.makes
        return "something that it reads has failed"

    def _informed(self, task: Task) -> Task:
        """A job knows which of its steps have failed."""
        if not self.errors or not isinstance(task.work, PlannedJob):
            return task
        return replace(task, work=replace(task.work, failed=self.errors))

    def _end(self, future: Future[bytes], task: Task) -> Iterator[Outcome]:
        import cloudpickle

        try:
            answer: Answer = cloudpickle.loads(future.result())
        except ClusterError:
            raise
        except Exception as error:
            _clean_up(task.store, task.steps)
            self.lost[task.work.number] += 1
            if self._again(task, error):
                return
            answer = self._given_up(task, error)
        if isinstance(task.work, Batch):
            self._batch_done(task, answer.failure)
        elif isinstance(task.work, Lone) and answer.error:
            self._remember(answer.error, task.work.owner)
        elif answer.outcome:
            _remember(answer.outcome, self.broken)
            yield answer.outcome

    def _again(self, task: Task, error: Exception) -> bool:
        """Whether a task whose worker was lost begins again; it does before all others."""
        if (times := self.lost[task.work.number]) >= self.engine.tries:
            return False
        if isinstance(task.work, PlannedJob):
            _abandon(task.work)
        self.console.say(f"{task.name}: {one_line(error)}; it begins again ({times} of {self.engine.tries - 1} times)")
        self.waiting.insert(0, task)
        return True

    def _given_up(self, task: Task, error: Exception) -> Answer:
        """What is said of a task that had no worker until its end."""
        from irl_exp.launch.obtain import ElsewhereError, StageError
        from irl_exp.report.cells import Outcome

        job = task.work
        if isinstance(job, PlannedJob):
            _abandon(job)
            return Answer(Outcome(job.number, job.name, job.folder, "failed", error=_leave_error(job.folder, error)))
        times = "" if self.engine.tries == 1 else f", {self.engine.tries} times"
        if isinstance(job, Batch):
            return Answer(failure=f"{error}{times}")
        told = ElsewhereError(f"{one_line(error)}{times}", "".join(traceback.format_exception(error)))
        return Answer(error=StageError(job.step.stage, job.step.identity.digest, told))

    def _batch_done(self, task: Task, failure: str) -> None:
        """Where jobs do not compute, the steps of a batch that has failed are tried one by one."""
        self.console.batch_done(task.work.number, len(task.steps), failure)
        if failure and not isinstance(self.engine, Pool):
            first = min(other.work.number for other in (task, *self.waiting, *self.running.values())) - 1
            self.waiting = [*alone(task, self.jobs, first), *self.waiting]

    def _remember(self, error: StageError, owner: int) -> None:
        """The first job that needs a step shows its error, the others are not run."""
        self.errors[error.digest], self.owners[error.digest] = error, owner
        self.broken[error.digest] = f"needs a stage that failed in job {owner}"


PATIENCE = 1.0
"""Seconds between two looks at what has ended."""


def _abandon(job: PlannedJob) -> None:
    from irl_exp.machinery.tracking import abandon

    abandon(job.folder)


def _clean_up(store: Path, steps: Iterable[Step]) -> None:
    """Remove what a worker that died was computing: its locks are free, and nobody might need the same again."""
    from irl_exp.machinery.store import ArtifactError, Store

    with contextlib.suppress(ArtifactError):  # the next that computes will say so
        Store(store).tidy(step.identity for step in steps)


def _leave_error(folder: Path, error: BaseException) -> str:
    """Write error.txt of a failed job. Returns the reason on one line, with the file if there is one."""
    path = folder / "error.txt"
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:  # the folder is what failed
        return one_line(error)
    return f"{one_line(error)} (traceback: {short(path)})"


def _start_worker(
    tracking_mode: Mode | None, launch: bytes, shared: Any, visible: Sequence[str], rank: int, tell: Report
) -> None:
    """In a new process: a GPU of its own if there is one, cores with the others, and reports to the launch."""
    from irl_exp.machinery.runtime import pinned
    from irl_exp.machinery.shards import share_cores

    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = pinned(visible, rank)
    share_cores(shared)
    room.reporting = unless_stopped(tell)
    enter(launch, tracking_mode)


def enter(launch: bytes, tracking_mode: Mode | None) -> None:
    """In a new worker: record runs as the launch has decided, and compose as it does."""
    import cloudpickle

    from irl_exp.machinery.tracking import settle

    global _context
    if tracking_mode is not None:
        settle(tracking_mode)
    _context, state = cloudpickle.loads(launch)
    setup_globals()
    Singleton.set_state(state)


def perform(work: Work) -> Answer:
    """In a worker: one task. A stop closes files and runs as Ctrl-C would; an idle worker just ends."""
    assert _context is not None
    assert room.reporting is not None
    with terminate_like_interrupt():
        if isinstance(work, Lone):
            return Answer(error=work.run(room.reporting))
        if isinstance(work, Batch):
            return Answer(failure=work.run(room.reporting))
        room.failed = work.failed
        return Answer(_run_one(_context, work))


def _work(payload: bytes) -> bytes:
    import cloudpickle

    from irl_exp.machinery.shards import holding_a_core

    with holding_a_core():
        return bytes(cloudpickle.dumps(perform(cloudpickle.loads(payload))))

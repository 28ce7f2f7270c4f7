"""Where jobs run: in this process, or in a pool of processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, setup_globals
from hydra.core.utils import run_job as hydra_run_job

from irl_exp.launch import jobs as room
from irl_exp.launch.jobs import Batch, LaunchContext, PlannedJob
from irl_exp.launch.messages import one_line, short
from irl_exp.launch.stops import terminate_like_interrupt, told_to_stop, unless_stopped
from irl_exp.launch.workers import WorkerDiedError, Workers
from irl_exp.launch.writing import writing

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.console import Console
    from irl_exp.machinery.runtime import Report
    from irl_exp.machinery.tracking import Mode
    from irl_exp.report.cells import Outcome
    from irl_exp.stages.step import Step

_context: LaunchContext | None = None
"""In a worker: the launch that it works for."""


def run_all(
    context: LaunchContext, jobs: Sequence[PlannedJob], batches: Sequence[Batch], workers: int, console: Console
) -> Generator[Outcome, None, None]:
    """Run the batches and the jobs, each after its batch, and yield the outcome of each job as it ends.

    A job fails alone. A stage that failed in one job would fail in every other that needs it: jobs that wait for
    their turn and need it are not run.
    """
    if workers > 1:
        yield from _in_pool(context, jobs, batches, workers, console)
        return
    room.reporting = unless_stopped(console.show)
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
        room.reporting = None


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


def _in_pool(
    context: LaunchContext, jobs: Sequence[PlannedJob], batches: Sequence[Batch], workers: int, console: Console
) -> Iterator[Outcome]:
    """Run all in processes of their own. A worker that dies takes its job with it and nothing else."""
    import cloudpickle

    from irl_exp.machinery.runtime import cores
    from irl_exp.machinery.tracking import resolve_mode

    # Found out once whether there is a W&B account: each worker would ask, and warn, again.
    tracked = any(job.config.tracking.mode == "wandb" for job in jobs)
    launch = cloudpickle.dumps((context, Singleton.get_state()))  # once: it takes as long as a job takes to plan
    shared = multiprocessing.get_context("spawn").Semaphore(max(cores(), workers))
    arguments = (resolve_mode("wandb") if tracked else None, launch, shared)
    with Workers(workers, start=_start_worker, arguments=arguments, hear=console.show) as pool:

        def begin(job: PlannedJob) -> Future[bytes]:
            return pool.submit(_work, cloudpickle.dumps(job))

        together = {pool.submit(_work_batch, cloudpickle.dumps(batch)): batch for batch in batches}
        try:
            yield from _as_they_end(jobs, together, begin, console)
        except BaseException:
            pool.stop()
            raise


def _as_they_end(
    jobs: Sequence[PlannedJob],
    together: Mapping[Future[str], Batch],
    begin: Callable[[PlannedJob], Future[bytes]],
    console: Console,
) -> Iterator[Outcome]:
    """Begin each job when its batches have ended, and yield its outcome when it has."""
    broken: dict[str, str] = {}
    lacking = {job.number: [future for future, batch in together.items() if batch.needed_by(job)] for job in jobs}
    later = [job for job in jobs if lacking[job.number]]
    running = {begin(job): job for job in jobs if not lacking[job.number]}
    batches = dict(together)
    while running or later:
        futures: list[Future[Any]] = [*running, *batches]
        done, _ = wait(futures, return_when=FIRST_COMPLETED)
        for future in done & batches.keys():
            batch = batches.pop(future)
            console.batch_done(batch.number, len(batch.steps), _failure(future, batch))
        for job in [job for job in later if batches.keys().isdisjoint(lacking[job.number])]:
            later.remove(job)
            if reason := job.blocked_by(broken):
                yield _not_run(job, reason)
            else:
                running[begin(job)] = job
        for future in done & running.keys():
            outcome = _collect(future, running.pop(future), broken)
            _remember(outcome, broken)
            for other, job in running.items() if outcome.failed_step else ():
                if job.blocked_by(broken) and not other.running():
                    other.cancel()
            yield outcome


def _failure(future: Future[str], batch: Batch) -> str:
    """Why a batch failed; empty if it did not."""
    try:
        return future.result()
    except WorkerDiedError as error:
        _clean_up(batch.store, batch.steps)
        return str(error)


def _collect(future: Future[bytes], job: PlannedJob, broken: dict[str, str]) -> Outcome:
    """What became of one job of the pool."""
    import cloudpickle

    from irl_exp.machinery.tracking import abandon
    from irl_exp.report.cells import Outcome

    try:
        outcome: Outcome = cloudpickle.loads(future.result())
    except CancelledError:
        return _not_run(job, job.blocked_by(broken))
    except WorkerDiedError as error:
        _clean_up(job.config.store.dir, job.steps.values())
        abandon(job.folder)
        return Outcome(job.number, job.name, job.folder, "failed", error=_leave_error(job.folder, error))
    return outcome


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


def _start_worker(tracking_mode: Mode | None, launch: bytes, shared: Any, tell: Report) -> None:
    """In a new worker: report to the launch, and record runs as it has decided."""
    import cloudpickle

    from irl_exp.machinery.shards import share_cores
    from irl_exp.machinery.tracking import settle

    global _context
    share_cores(shared)
    room.reporting = unless_stopped(tell)
    if tracking_mode is not None:
        settle(tracking_mode)
    _context, state = cloudpickle.loads(launch)
    setup_globals()
    Singleton.set_state(state)


def _work(payload: bytes) -> bytes:
    import cloudpickle

    from irl_exp.machinery.shards import holding_a_core

    assert _context is not None
    # A stop closes files and runs as Ctrl-C would; an idle worker just ends.
    with terminate_like_interrupt(), holding_a_core():
        return bytes(cloudpickle.dumps(_run_one(_context, cloudpickle.loads(payload))))


def _work_batch(payload: bytes) -> str:
    import cloudpickle

    from irl_exp.machinery.shards import holding_a_core

    assert room.reporting is not None
    with terminate_like_interrupt(), holding_a_core():
        batch: Batch = cloudpickle.loads(payload)
        return batch.run(room.reporting)

"""One job under any Hydra launcher, and many jobs in this process or in a pool of processes.

A job (`run_job`) knows nothing of the planner: under the stock launchers of Hydra (submitit, Ray, joblib) the same
jobs run, and the store alone makes sure that a shared stage is computed once.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, filter_overrides, setup_globals
from hydra.core.utils import run_job as hydra_run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from irl_exp.config import Config, ConfigError, parse

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.console import Console
    from irl_exp.machinery.runtime import Device, Event, Report
    from irl_exp.machinery.tracking import Mode
    from irl_exp.report.cells import Outcome
    from irl_exp.stages.step import Step

_report: Report | None = None
"""Where the jobs of this process report: set by a launch and by its workers, a console of their own otherwise."""


_stopped = False
"""Whether this process was told to stop."""


_context: LaunchContext | None = None
"""In a worker: the launch that it works for."""


@dataclass(frozen=True)
class LaunchContext:
    """What Hydra gives a launcher."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig


@dataclass(frozen=True)
class PlannedJob:
    """One job, checked: its composed config for Hydra, its typed config, its steps."""

    number: int
    name: str
    folder: Path
    composed: DictConfig
    config: Config
    steps: dict[str, Step]

    def blocked_by(self, broken: dict[str, str]) -> str:
        """Why this job cannot succeed: one of its steps has failed in another job. Empty if none has."""
        return next(
            (broken[step.identity.digest] for step in self.steps.values() if step.identity.digest in broken), ""
        )


def run_job(composed: DictConfig) -> dict[str, float]:
    """One job in its Hydra output folder, under any launcher."""
    config = typed(composed)
    from irl_exp.launch import run

    hydra_config = OmegaConf.structured(HydraConfig.get())
    number = int(OmegaConf.select(hydra_config, "job.num") or 0)
    folder = Path(hydra_config.runtime.output_dir)
    job = run.Job(number, job_name(hydra_config.overrides.task), folder)
    if _report is not None:
        return run.run(config, job, _report)
    from irl_exp.launch.console import Console
    from irl_exp.report.runs import run_tables

    with Console(1) as console:
        metrics = run.run(config, job, console.show)
    console.tables(run_tables(metrics))
    console.say(f"everything of this run: {folder}")
    return metrics


def typed(composed: DictConfig) -> Config:
    """The typed config of a composed job."""
    try:
        keys = [str(key) for key in composed if key != "hydra"]
        values = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: this option must be set, e.g. {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return parse(values)  # type: ignore[arg-type]


def job_name(overrides: Sequence[str]) -> str:
    """What makes a job special, on one line: its overrides without those that say where and how to run."""
    elsewhere = re.compile(r"(tracking|workers|threads|device|store|name|seeds|study|report)\b")
    own = [item.lstrip("+") for item in filter_overrides(overrides)]
    return ",".join(item for item in own if not elsewhere.match(item)) or "default"


@dataclass(frozen=True)
class Batch:
    """Steps of several jobs that are computed together, before these jobs; -1, -2, ... stand for it in reports."""

    number: int
    steps: Sequence[Step]
    store: Path
    device: Device

    def needed_by(self, job: PlannedJob) -> bool:
        return not self._digests.isdisjoint(step.identity.digest for step in job.steps.values())

    @functools.cached_property
    def _digests(self) -> set[str]:
        return {step.identity.digest for step in self.steps}

    def run(self, report: Report) -> str:
        """Compute the steps. Returns why that failed, or nothing: each job that needs them then tries for itself."""
        from irl_exp.launch import obtain
        from irl_exp.machinery.store import Store

        try:
            obtain.run_batch(self.steps, Store(self.store), self.device, report, self.number)
        except Exception as error:
            return one_line(error)
        return ""


def run_all(
    context: LaunchContext, jobs: Sequence[PlannedJob], batches: Sequence[Batch], workers: int, console: Console
) -> Iterator[Outcome]:
    """Run the batches and the jobs, each after its batch, and yield the outcome of each job as it ends.

    A job fails alone. A stage that failed in one job would fail in every other that needs it: jobs that wait for
    their turn and need it are not run.
    """
    if workers > 1:
        yield from _in_pool(context, jobs, batches, workers, console)
        return
    global _report
    _report = _unless_stopped(console.show)
    broken: dict[str, str] = {}
    waiting = list(batches)
    try:
        for job in jobs:
            for batch in [batch for batch in waiting if batch.needed_by(job)]:
                waiting.remove(batch)
                console.batch_done(batch.number, len(batch.steps), batch.run(_report))
            reason = job.blocked_by(broken)
            outcome = _not_run(job, reason) if reason else _run_one(context, job)
            _remember(outcome, broken)
            yield outcome
    finally:
        _report = None


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
    result = hydra_run_job(
        hydra_context=context.hydra_context,
        task_function=context.task_function,
        config=job.composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    seconds = time.monotonic() - start
    if result.status is JobStatus.COMPLETED:
        return Outcome(job.number, job.name, job.folder, "completed", seconds, metrics=result.return_value)
    error: BaseException = result._return_value
    trace = job.folder / "error.txt"
    trace.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    reason = f"{one_line(error)} (traceback: {short(trace)})"
    step = error.digest if isinstance(error, StageError) else ""
    return Outcome(job.number, job.name, job.folder, "failed", seconds, error=reason, failed_step=step)


def one_line(error: BaseException) -> str:
    """The message of an error; of one that is not ours the class too, as its message alone may say little."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return message if type(error).__module__.startswith("irl_exp.") else f"{type(error).__name__}: {message}"


def _in_pool(
    context: LaunchContext, jobs: Sequence[PlannedJob], batches: Sequence[Batch], workers: int, console: Console
) -> Iterator[Outcome]:
    """Run all in processes of their own. A worker that dies takes its job with it and nothing else."""
    import cloudpickle
    import pebble

    from irl_exp.machinery.tracking import resolve_mode

    processes = multiprocessing.get_context("spawn")
    events = processes.Queue()
    listener = threading.Thread(target=_show_events, args=(events, console), daemon=True)
    listener.start()
    # Found out once whether there is a W&B account: each worker would ask, and warn, again.
    tracked = any(job.config.tracking.mode == "wandb" for job in jobs)
    launch = cloudpickle.dumps((context, Singleton.get_state()))  # once: it takes as long as a job takes to plan
    start = (events, resolve_mode("wandb") if tracked else None, launch)
    with pebble.ProcessPool(workers, context=processes, initializer=_start_worker, initargs=start) as pool:

        def begin(job: PlannedJob) -> Future[bytes]:
            future: Future[bytes] = pool.schedule(_work, args=[cloudpickle.dumps(job)])
            return future

        together = {pool.schedule(_work_batch, args=[cloudpickle.dumps(batch)]): batch for batch in batches}
        try:
            yield from _as_they_end(jobs, together, begin, console)
        except BaseException:
            pool.stop()
            raise
    events.put(None)
    listener.join(timeout=5)


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
            console.batch_done(batch.number, len(batch.steps), _failure(future))
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


def _failure(future: Future[str]) -> str:
    """Why a batch failed; empty if it did not."""
    import pebble

    try:
        return future.result()
    except pebble.ProcessExpired as error:
        return f"its process died (exit code {error.exitcode}); was it out of memory?"


def _collect(future: Future[bytes], job: PlannedJob, broken: dict[str, str]) -> Outcome:
    """What became of one job of the pool."""
    import cloudpickle
    import pebble

    from irl_exp.report.cells import Outcome

    try:
        outcome: Outcome = cloudpickle.loads(future.result())
    except CancelledError:
        return _not_run(job, job.blocked_by(broken))
    except pebble.ProcessExpired as error:
        reason = f"its process died (exit code {error.exitcode}); was it out of memory?"
        return Outcome(job.number, job.name, job.folder, "failed", error=reason)
    return outcome


def _show_events(events: Any, console: Console) -> None:
    for event in iter(events.get, None):
        console.show(event)


def _start_worker(events: Any, tracking_mode: Mode | None, launch: bytes) -> None:
    """In a new worker: report to the launch, and record runs as it has decided."""
    import cloudpickle

    from irl_exp.machinery.tracking import settle

    global _report, _context
    _report = _unless_stopped(events.put)
    if tracking_mode is not None:
        settle(tracking_mode)
    _context, state = cloudpickle.loads(launch)
    setup_globals()
    Singleton.set_state(state)


def _work(payload: bytes) -> bytes:
    import cloudpickle

    assert _context is not None
    # A stop closes files and runs as Ctrl-C would; an idle worker just ends.
    with terminate_like_interrupt():
        return bytes(cloudpickle.dumps(_run_one(_context, cloudpickle.loads(payload))))


def _work_batch(payload: bytes) -> str:
    import cloudpickle

    assert _report is not None
    with terminate_like_interrupt():
        batch: Batch = cloudpickle.loads(payload)
        return batch.run(_report)


@contextlib.contextmanager
def on_stop(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let the handler answer Ctrl-C and SIGTERM; what is ignored, as under nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: earlier for number, earlier in found.items() if earlier not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM closes runs and writes the summary, as Ctrl-C does.

    Python drops an exception that meets it in a finalizer; a stop that was lost so comes again with the next report.
    """
    global _stopped
    _stopped = False
    with on_stop(_stop):
        yield


def _stop(number: int, frame: object) -> None:
    global _stopped
    _stopped = True
    raise KeyboardInterrupt


def _unless_stopped(report: Report) -> Report:
    def told(event: Event) -> None:
        if _stopped:
            raise KeyboardInterrupt
        report(event)

    return told


def short(path: Path) -> str:
    """A path as the user would type it: relative where it lies below the current folder."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

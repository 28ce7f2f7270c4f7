"""All jobs of a launch at once: compose, check, plan, run in this process or in a pool, report.

Hydra's plugin (hydra_plugins/irl_exp_planner) and launch.py are thin shells around this file. A job itself
(`run_job`) knows nothing of it: under the stock launchers of Hydra (submitit, Ray, joblib) the same jobs run, and the
store alone makes sure that a shared stage is computed once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.core.utils import run_job as hydra_run_job
from hydra.errors import CompactHydraException, HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from irl_exp.config import Config, ConfigError, check_override, parse

if TYPE_CHECKING:
    from irl_exp.chain import Step
    from irl_exp.console import Console
    from irl_exp.report import Outcome
    from irl_exp.runtime import Device, Report

# Hydra 1.3 wants a version_base, 1.4 deprecates it.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}

_report: Report | None = None
"""Where the jobs of this process report: set by the planner and by its workers, a console of their own otherwise."""


class LaunchError(CompactHydraException):
    """A launch that did not start, or jobs that failed; Hydra prints the message alone and exits with 1."""


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


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse overrides of unknown keys with the nearest right name; Hydra would suggest to add them with '+'."""
    if {"-sc", "--shell-completion", "--shell_completion"} & set(arguments):
        return
    try:
        for argument in arguments:
            override = re.match(r"(?:\+\+?|~)?([A-Za-z_][\w./@-]*)(?:=(.*))?", argument)
            if override and ("=" in argument or argument.startswith("~")):
                check_override(override[1], override[2] or "")
    except ConfigError as error:
        sys.exit(f"{error}")


def run_job(composed: DictConfig) -> dict[str, float]:
    """One job in its Hydra output folder, under any launcher."""
    config = typed(composed)
    from irl_exp import chain

    number = int(OmegaConf.select(OmegaConf.structured(HydraConfig.get()), "job.num") or 0)
    folder = Path(HydraConfig.get().runtime.output_dir)
    job = chain.Job(number, job_name(HydraConfig.get().overrides.task), folder)
    if _report is not None:
        return chain.run(config, job, _report)
    from irl_exp.console import Console
    from irl_exp.report import run_tables

    with Console(1) as console:
        metrics = chain.run(config, job, console.show)
    console.tables(run_tables(metrics))
    console.say(f"everything of this run: {folder}")
    return metrics


def typed(composed: DictConfig) -> Config:
    """The typed config of a composed job."""
    try:
        keys = [str(key) for key in composed if key != "hydra"]
        values = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return parse(values)  # type: ignore[arg-type]


def job_name(overrides: Sequence[str]) -> str:
    """What makes a job special, on one line: its overrides without those that say where and how to run."""
    own = [
        item
        for item in filter_overrides(overrides)
        if not re.match(r"\+*(tracking|workers|threads|device|store|name)\b", item)
    ]
    return ",".join(own) or "default"


def launch(context: LaunchContext, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Check and plan all jobs, run them, and write runs.csv and summary.md whatever happens.

    Raises:
        LaunchError: the jobs cannot run (nothing was started), or some of them failed.
    """
    setup_globals()
    configure_log(context.config.hydra.hydra_logging, context.config.hydra.verbose)
    folder = Path(context.config.hydra.sweep.dir).absolute()
    with _refused_leaves_nothing(folder):
        jobs, device = _plan(context, job_overrides, first)
    from irl_exp.console import Console

    with Console(len(jobs)) as console:
        missing = _announce(jobs, device, console)
        outcomes: dict[int, Outcome] = {}
        returns: dict[int, JobReturn] = {}
        interrupted = False
        try:
            with _terminate_like_interrupt():
                for job, result, outcome in _run_all(context, jobs, missing, device, console):
                    outcomes[job.number], returns[job.number] = outcome, result
                    console.job_done(outcome)
        except KeyboardInterrupt:
            interrupted = True
    _finish(jobs, outcomes, folder, console)
    if interrupted:
        console.say("interrupted: run the same command again to go on; finished stages are in the store")
        raise SystemExit(130)
    failed = [number for number, outcome in outcomes.items() if outcome.status == "failed"]
    if failed:
        first_error = outcomes[failed[0]].error
        raise LaunchError(f"{len(failed)} of {len(jobs)} jobs failed, the first with: {first_error}")
    return [returns[job.number] for job in jobs]


@contextlib.contextmanager
def _refused_leaves_nothing(folder: Path) -> Iterator[None]:
    """Turn what is wrong with a launch into one clear message, and remove the folder that Hydra has begun."""
    from irl_exp.artifacts import ArtifactError

    try:
        yield
    except BaseException as error:
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml"}:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
        if isinstance(error, HydraException | OmegaConfBaseException) or not isinstance(error, Exception):
            raise
        if isinstance(error, ConfigError | ArtifactError) or type(error).__module__.startswith("irl_exp."):
            raise LaunchError(str(error)) from error
        raise


def _plan(
    context: LaunchContext, job_overrides: Sequence[Sequence[str]], first: int
) -> tuple[list[PlannedJob], Device]:
    """Compose and check every job before the first one starts."""
    composed = [_compose(context, overrides, first + index) for index, overrides in enumerate(job_overrides)]
    configs = _check_all(composed)
    # Everything below imports torch: only now that the configs are known to be right.
    from irl_exp import chain
    from irl_exp.runtime import find_device

    jobs = []
    for index, (composition, config) in enumerate(zip(composed, configs, strict=True)):
        device = find_device(config.device, config.precision, config.threads)
        sweep = composition.hydra.sweep
        folder = Path(sweep.dir).absolute() / str(sweep.subdir)
        name = job_name(composition.hydra.overrides.task)
        jobs.append(PlannedJob(first + index, name, folder, composition, config, chain.build(config, device)))
    _preflight(jobs)
    return jobs, device


def _preflight(jobs: Sequence[PlannedJob]) -> None:
    """Look at what the missing stages will need; every distinct complaint is in the one error."""
    from irl_exp import preflight
    from irl_exp.artifacts import Store
    from irl_exp.data import DataError

    complaints: dict[str, None] = {}
    for job in jobs:
        store = Store(job.config.store.dir)
        store.prepare()
        for step in job.steps.values():
            try:
                if step.identity not in store:
                    preflight.check(step)
            except (preflight.PreflightError, DataError) as error:
                complaints[str(error)] = None
    if complaints:
        raise preflight.PreflightError("\n".join(complaints))


def _compose(context: LaunchContext, overrides: Sequence[str], number: int) -> DictConfig:
    composed = context.hydra_context.config_loader.load_sweep_config(context.config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
    return composed


def _check_all(composed: Sequence[DictConfig]) -> list[Config]:
    """Typed configs of all jobs; every distinct complaint is in the one error."""
    configs, complaints = [], []
    for composition in composed:
        try:
            configs.append(typed(composition))
        except ConfigError as error:
            complaints.append(str(error))
    if complaints:
        raise ConfigError("\n".join(dict.fromkeys(complaints)))
    return configs


def _announce(jobs: Sequence[PlannedJob], device: Device, console: Console) -> set[int]:
    """Say what will be computed. Returns the numbers of the jobs that miss a result."""
    from irl_exp.artifacts import Store

    needed: dict[str, set[str]] = {}
    stored: set[str] = set()
    missing: set[int] = set()
    for job in jobs:
        store = Store(job.config.store.dir)
        for step in job.steps.values():
            digest = step.identity.digest
            needed.setdefault(step.stage, set()).add(digest)
            if digest in stored or step.identity in store:
                stored.add(digest)
            else:
                missing.add(job.number)
    total = sum(map(len, needed.values()))
    stages = ", ".join(f"{stage} {len(digests)}" for stage, digests in needed.items())
    console.say(f"{len(jobs)} job(s) on {device}; store {jobs[0].config.store.dir}")
    console.say(f"{total} stage result(s) needed ({stages}), {len(stored)} in the store\n")
    return missing


def _run_all(
    context: LaunchContext, jobs: Sequence[PlannedJob], missing: set[int], device: Device, console: Console
) -> Iterator[tuple[PlannedJob, JobReturn, Outcome]]:
    """Run the jobs, in this process or in a pool, and yield each as it ends."""
    _decide_tracking(jobs)
    asked = jobs[0].config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(asked or (max(1, cores // device.threads) if device.is_cpu else 1), len(missing))
    if workers > 1:
        yield from _in_pool(context, jobs, workers, console)
        return
    global _report
    _report = console.show
    try:
        for job in jobs:
            yield job, *_run_one(context.hydra_context, context.task_function, job)
    finally:
        _report = None


def _decide_tracking(jobs: Sequence[PlannedJob]) -> None:
    """Find out once whether there is a W&B account, and tell the workers: each would ask and warn again."""
    from irl_exp.tracking import resolve_mode

    if any(job.config.tracking.mode == "wandb" for job in jobs) and resolve_mode("wandb") == "offline":
        os.environ["WANDB_MODE"] = "offline"


def _run_one(hydra_context: HydraContext, task_function: TaskFunction, job: PlannedJob) -> tuple[JobReturn, Outcome]:
    """Run one job in this process. An exception ends the job, not the launch; its traceback is in error.txt."""
    from irl_exp.report import Outcome

    start = time.monotonic()
    result = hydra_run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=job.composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    seconds = time.monotonic() - start
    if result.status is JobStatus.COMPLETED:
        return result, Outcome(job.number, job.name, job.folder, "completed", seconds, metrics=result.return_value)
    error: BaseException = result._return_value
    trace = job.folder / "error.txt"
    trace.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    message = (str(error).strip() or "no message").splitlines()[0]
    kind = "" if type(error).__module__.startswith("irl_exp.") else f"{type(error).__name__}: "
    reason = f"{kind}{message} (traceback: {_short(trace)})"
    return result, Outcome(job.number, job.name, job.folder, "failed", seconds, error=reason)


def _in_pool(
    context: LaunchContext, jobs: Sequence[PlannedJob], workers: int, console: Console
) -> Iterator[tuple[PlannedJob, JobReturn, Outcome]]:
    """Run the jobs in processes of their own. A worker that dies takes its job with it and nothing else."""
    from concurrent.futures import as_completed

    import cloudpickle
    import pebble

    from irl_exp.report import Outcome

    processes = multiprocessing.get_context("spawn")
    events = processes.Queue()
    listener = threading.Thread(target=_show_events, args=(events, console), daemon=True)
    listener.start()
    shared = (context.hydra_context, context.task_function, Singleton.get_state())
    with pebble.ProcessPool(workers, context=processes, initializer=_start_worker, initargs=(events,)) as pool:
        futures = {pool.schedule(_work, args=[cloudpickle.dumps((*shared, job))]): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                try:
                    yield job, *cloudpickle.loads(future.result())
                except pebble.ProcessExpired as error:
                    reason = f"its process died (exit code {error.exitcode}); was it out of memory?"
                    yield job, JobReturn(), Outcome(job.number, job.name, job.folder, "failed", error=reason)
        except BaseException:
            pool.stop()
            raise
    events.put(None)
    listener.join(timeout=5)


def _show_events(events: Any, console: Console) -> None:
    for event in iter(events.get, None):
        console.show(event)


def _start_worker(events: Any) -> None:
    """In a new worker: report to the planner, and let a stop close files and runs as Ctrl-C would."""
    global _report
    _report = events.put


def _work(payload: bytes) -> bytes:
    import cloudpickle

    hydra_context, task_function, state, job = cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(state)
    # A stop closes files and runs as Ctrl-C would; an idle worker just ends.
    with _terminate_like_interrupt():
        result, outcome = _run_one(hydra_context, task_function, job)
    result.cfg = result.hydra_cfg = None
    return bytes(cloudpickle.dumps((result, outcome)))


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM closes runs and writes the summary, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(jobs: Sequence[PlannedJob], outcomes: dict[int, Outcome], folder: Path, console: Console) -> None:
    """Write and show the result of the launch, and say where everything is."""
    from irl_exp import report
    from irl_exp.tracking import sync_command

    for job in jobs:
        outcomes.setdefault(job.number, report.Outcome(job.number, job.name, job.folder, "not run"))
    ordered = [outcomes[job.number] for job in jobs]
    console.say("")
    console.tables(report.write(folder, ordered))
    console.say(
        f"runs      {_short(folder)}/  (metrics.json, metrics.jsonl, completions.parquet, samples.csv of each job)"
    )
    console.say(f"summary   {_short(folder / 'summary.md')}, {_short(folder / 'runs.csv')}")
    console.say(f"store     {_short(jobs[0].config.store.dir)}")
    offline = [path for job in jobs for path in sorted(job.folder.glob("wandb/offline-run-*")) if path.is_dir()]
    if offline:
        console.say(f"W&B       {len(offline)} run(s) recorded offline; with an account: {sync_command(offline)}")


def _short(path: Path) -> str:
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

"""All jobs of a launch at once: compose, check, plan, run, report.

Hydra's plugin (hydra_plugins/irl_exp_planner) is a thin shell around this file, launch.py around `main`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from irl_exp.config import ClusterExecutor, Config, check_name, check_place, question_of
from irl_exp.launch import ahead, cluster, objective, resume
from irl_exp.launch.compose import Composer, check_all
from irl_exp.launch.ending import ends_with_its_batch
from irl_exp.launch.executors import run_all
from irl_exp.launch.finish import finish
from irl_exp.launch.jobs import Batch, LaunchContext, PlannedJob, job_name
from irl_exp.launch.messages import ClusterError, LaunchError, program, short
from irl_exp.launch.output import Output
from irl_exp.launch.stops import on_stop, terminate_like_interrupt, told_to_stop
from irl_exp.launch.writing import WriteError, check_writable, writing

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.console import Console
    from irl_exp.launch.memory import Place, Planned
    from irl_exp.machinery.runtime import Device
    from irl_exp.report.cells import Outcome
    from irl_exp.report.tables import Table
    from irl_exp.stages.step import Step

PATIENCE = 2.0
"""Seconds of planning without a word."""


def begin(config: DictConfig) -> tuple[Path, ...]:
    """Look at where a launch will write before anything is written, by Hydra or by us.

    Returns:
        The folders that are not there yet, the deepest first: a launch that is refused removes them.

    Raises:
        LaunchError: a name that is no folder of its own, or a place inside the store.
    """
    try:
        name, folder, store = str(config.name), Path(config.hydra.sweep.dir).absolute(), Path(str(config.store.dir))
    except OmegaConfBaseException as error:
        raise LaunchError(str(error).splitlines()[0]) from None
    with _named(f"name={name}"):
        check_name(name)
    with _named(f"store.dir={store}"):
        check_place(store)
    try:
        store = store.expanduser().resolve()
        new = tuple(path for path in (folder, *folder.parents) if not path.exists())
        inside = folder.resolve().is_relative_to(store)
    except (OSError, RuntimeError) as error:  # no permission, too long a name, a circle of links
        raise LaunchError(f"hydra.sweep.dir={folder}, store.dir={store}: {error}") from error
    if inside:
        raise LaunchError(
            f"name={name}: the runs would lie in {short(folder)}, inside the store {short(store)}. Take another name, "
            "or another place for the store with store.dir=... or IRL_EXP_STORE."
        )
    return new


@contextlib.contextmanager
def _named(option: str) -> Iterator[None]:
    """Say with which option an error came."""
    try:
        yield
    except ValueError as error:
        raise LaunchError(f"{option}: {error}") from error


def launch(context: LaunchContext, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Check and plan all jobs, run them, and write runs.csv and summary.md whatever happens.

    Raises:
        LaunchError: the jobs cannot run (nothing was started), or some of them failed.
    """
    folder = Path(context.config.hydra.sweep.dir).absolute()
    with _refused_leaves_nothing(folder, context.new):
        setup_globals()
        configure_log(context.config.hydra.hydra_logging, context.config.hydra.verbose)
        jobs, device = _plan(context, job_overrides, first)
        warnings, planned = _preflight(jobs, device)
        from irl_exp.launch.console import Console
        from irl_exp.report.cells import shared_overrides

        console = Console(len(jobs), shared_overrides(job.name for job in jobs), folder)
        working, missing = _missing(jobs)
        workers, told = _beside(jobs, len(working), device, planned)
        beside = _steps_beside(jobs, missing, device, planned)
        batches = _announce(jobs, missing, workers, device, console)
        for line in told:
            console.say(line) if isinstance(line, str) else console.tables([line])
        for warning in warnings:
            console.say(f"warning: {warning}")
        _write_plan(folder, jobs, str(context.config.hydra.runtime.choices.get("study")), first)
        if earlier := resume.told(folder):
            console.say(earlier)
    outcomes: dict[int, Outcome] = {}
    whole = ends_with_its_batch(context.config)
    with console:
        try:
            with (
                terminate_like_interrupt(),
                contextlib.closing(run_all(context, jobs, batches, missing, workers, console, beside)) as ended,
            ):
                for outcome in ended:
                    outcomes[outcome.number] = outcome
                    console.job_done(outcome)
                    if outcome.status == "failed" and jobs[0].config.fail_fast:
                        break
        except ClusterError as error:
            raise LaunchError(str(error)) from error
        except KeyboardInterrupt:
            console.say("interrupted: run the same command again to go on; finished stages are in the store")
            raise SystemExit(130) from None
        finally:
            console.stop()
            if whole:
                _finish(jobs, outcomes, folder, console)
    lost = [outcome for outcome in outcomes.values() if outcome.status != "completed"]
    if lost and whole:
        raise LaunchError(f"{len(lost)} of {len(jobs)} jobs have no result. The first to fail: {lost[0].error}")
    return [_returned(job, outcomes.get(job.number)) for job in jobs]


def _returned(job: PlannedJob, outcome: Outcome | None) -> JobReturn:
    """What a sweeper gets of a job: metrics or objective, or why there is none."""
    if outcome is None or outcome.metrics is None:
        error = LaunchError(outcome.error if outcome else "not run: another job has failed")
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
    value = outcome.metrics if job.config.objective is None else objective.of_run(job.config, job.folder)
    return JobReturn(status=JobStatus.COMPLETED, _return_value=value)


def _write_plan(folder: Path, jobs: Sequence[PlannedJob], study: str, first: int) -> None:
    """plan.json: what was asked, and all jobs, so that those without a result are known whatever happens.

    The jobs that a sweeper has launched before, in the same folder, stay in it.
    """
    planned = [
        {
            "number": job.number,
            "name": job.name,
            "folder": str(job.folder.relative_to(folder)),
            "result": job.steps["evaluate"].identity.digest,
        }
        for job in jobs
    ]
    if first and (folder / resume.PLAN).exists():
        planned = json.loads((folder / resume.PLAN).read_text(encoding="utf-8"))["jobs"] + planned
    command = shlex.join([*shlex.split(program()), *sys.argv[1:]])
    plan = {"command": command, "question": question_of(study), "jobs": planned}
    plan |= resume.place(folder, jobs[0].config, planned)
    with writing(folder, resume.PLAN):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / resume.PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


def _finish(jobs: Sequence[PlannedJob], outcomes: dict[int, Outcome], folder: Path, console: Console) -> None:
    """The end of a launch: one that cannot be written is a failure, one that was stopped says so."""
    try:
        with terminate_like_interrupt():
            finish(jobs, outcomes, folder, console)
    except WriteError as error:
        raise LaunchError(str(error)) from error
    if console.log.trouble:
        raise LaunchError(console.log.trouble)
    if told_to_stop():
        raise SystemExit(130)


def make(folder: Path) -> None:
    """Make the folder of a launch, before Hydra writes into it.

    Raises:
        LaunchError: nothing can be written there.
    """
    try:
        check_writable(folder)
    except WriteError as error:
        raise LaunchError(str(error)) from error


@contextlib.contextmanager
def _refused_leaves_nothing(folder: Path, new: Sequence[Path]) -> Iterator[None]:
    """Turn what is wrong with a launch into one clear message, and remove what Hydra has begun.

    A stop ends the process at once: libraries load here, some swallow a KeyboardInterrupt and go on half loaded.
    """

    def stop(number: int, frame: object) -> None:
        try:
            _remove_begun(folder, new)
            sys.stdout.flush()
        finally:
            os._exit(130)

    try:
        with on_stop(stop):
            yield
    except BaseException as error:
        _remove_begun(folder, new)
        if isinstance(error, Exception) and type(error).__module__.startswith("irl_exp."):
            raise LaunchError(str(error)) from error
        raise


def _remove_begun(folder: Path, new: Sequence[Path]) -> None:
    """Remove the folder of a launch that has no job yet, and what was made to hold it; what was there before stays."""
    if folder in new and folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml", resume.PLAN}:
        shutil.rmtree(folder)
    for path in new:
        with contextlib.suppress(OSError):  # it is gone, or another launch has begun in it
            path.rmdir()


def _plan(
    context: LaunchContext, job_overrides: Sequence[Sequence[str]], first: int
) -> tuple[list[PlannedJob], Device]:
    """Compose and check every job before the first one starts."""
    composed = _composed(Composer(context), job_overrides, first)
    configs = check_all(composed)
    executor = configs[0].executor
    if isinstance(executor, ClusterExecutor):
        cluster.check(executor)
    # Everything below imports torch: only now that the configs are known to be right.
    from irl_exp import chain
    from irl_exp.launch.tasks import declared
    from irl_exp.machinery.runtime import find_device

    jobs = []
    for index, (composition, config) in enumerate(zip(composed, configs, strict=True)):
        if isinstance(executor, ClusterExecutor):
            device = declared(config)
        else:
            device = find_device(config.device, config.precision, config.threads, config.batch_tokens, config.vllm)
        sweep = composition.hydra.sweep
        folder = Path(sweep.dir).absolute() / str(sweep.subdir)
        name = job_name(composition.hydra.overrides.task)
        jobs.append(PlannedJob(first + index, name, folder, composition, config, chain.build(config, device)))
    _check_folders(jobs, Path(context.config.hydra.sweep.dir).absolute())
    return jobs, device


def _composed(composer: Composer, job_overrides: Sequence[Sequence[str]], first: int) -> list[DictConfig]:
    """Every job composed; where that takes long, it is said how long."""
    composed: list[DictConfig] = []
    start, told = time.monotonic(), False
    for number, overrides in enumerate(job_overrides, start=first):
        composed.append(composer.compose(overrides, number))
        if not told and (passed := time.monotonic() - start) > PATIENCE:
            # To check a job and to find out what it needs takes as long as to compose it.
            left = 2 * passed * len(job_overrides) / len(composed) - passed
            print(f"planning {len(job_overrides):,} jobs: about {left:.0f} s more", file=Output(), flush=True)
            told = True
    return composed


def _check_folders(jobs: Sequence[PlannedJob], folder: Path) -> None:
    """Refuse jobs that would write outside the folder of the launch, or two into one."""
    places = {Path(os.path.normpath(job.folder)) for job in jobs}
    if any(folder not in place.parents for place in places):
        raise LaunchError(
            f"a job would write outside {short(folder)}, the folder of this launch: leave hydra.sweep.subdir as it is, "
            "and give name and hydra.sweep.dir one value for all jobs."
        )
    if len(places) < len(jobs):
        raise LaunchError(f"hydra.sweep.subdir={jobs[0].folder.name}: {len(jobs)} jobs would write into one folder.")


def _preflight(jobs: Sequence[PlannedJob], device: Device) -> tuple[list[str], Planned]:
    """Look at what the missing stages will need; every distinct complaint is in the one error.

    Returns:
        What a reader of the results should know before, and the memory that the stages will need.
    """
    from irl_exp.irl.features import FeatureError
    from irl_exp.launch import preflight
    from irl_exp.launch.memory import Planned
    from irl_exp.launch.models import PreflightError
    from irl_exp.machinery.store import Store
    from irl_exp.texts.files import DataError

    complaints: dict[str, None] = {}
    warnings: dict[str, None] = {}
    planned = Planned(_place(jobs[0].config, device))
    stores = {job.config.store.dir: Store(job.config.store.dir) for job in jobs}
    steps = {step.identity.digest: (step, stores[job.config.store.dir]) for job in jobs for step in job.steps.values()}
    for step, store in steps.values():
        try:
            if step.identity not in store:
                preflight.check(step)
                warnings[preflight.warning(step)] = None
                planned.add(step, device.precision)
        except (PreflightError, DataError, FeatureError) as error:
            complaints[str(error)] = None
    if complaints:
        raise PreflightError("\n".join(complaints))
    for store in stores.values():
        store.prepare()
    return [warning for warning in warnings if warning], planned


def _place(config: Config, device: Device) -> Place:
    """Where the stages run, and the memory there: of nodes elsewhere, what the executor says of them."""
    from irl_exp.launch.memory import GIB, Place
    from irl_exp.machinery.runtime import memory

    kind, executor = "cpu" if device.is_cpu else "cuda", config.executor
    engine = round(config.vllm.cache * GIB) if config.vllm else 0
    if not isinstance(executor, ClusterExecutor):
        name = "this machine" if device.is_cpu else "the GPU"
        return Place(kind, device.threads, memory(device), device.batch_tokens, name, engine=engine)
    of, size = ("a GPU", executor.gpu_memory) if executor.gpus else ("a node", executor.memory)
    return Place(kind, device.threads, size and size * GIB, device.batch_tokens, of, "executor.workers", engine)


def _beside(
    jobs: Sequence[PlannedJob], working: int, device: Device, planned: Planned
) -> tuple[int, list[str | Table]]:
    """How many jobs run at once: as asked, or as many as fit into the memory; and what is said of it.

    Workers of a cluster share the memory of their node alone.
    """
    config, workers = jobs[0].config, min(working, _workers(jobs[0].config, device))
    cluster = config.executor if isinstance(config.executor, ClusterExecutor) else None
    asked = cluster is not None or config.workers > 0
    sharing = min(working, cluster.workers) if cluster else workers
    fitting = planned.at_once([[step.identity.digest for step in job.steps.values()] for job in jobs], sharing)
    return workers if asked else fitting, planned.told(sharing, fitting, asked)


def _steps_beside(
    jobs: Sequence[PlannedJob], missing: Mapping[str, Step], device: Device, planned: Planned
) -> list[Step]:
    """What a second process computes of a job that has a machine with more than one core for itself, if both fit."""
    from irl_exp.machinery.runtime import cores

    job, config = jobs[0], jobs[0].config
    here = device.is_cpu and not isinstance(config.executor, ClusterExecutor)
    if len(jobs) > 1 or not (config.ahead and here) or config.workers == 1 or cores() == 1:
        return []
    found = ahead.steps_beside(job.steps, missing)
    apart = [step.identity.digest for step in found]
    line = [step.identity.digest for step in job.steps.values() if step.identity.digest not in apart]
    return found if planned.at_once([line, apart], 2) > 1 else []


def _missing(jobs: Sequence[PlannedJob]) -> tuple[set[int], dict[str, Step]]:
    """The numbers of the jobs that miss a result, and the steps that miss, by digest."""
    from irl_exp.machinery.store import Store

    missing: dict[str, Step] = {}
    seen: set[str] = set()
    for job in jobs:
        store = Store(job.config.store.dir)
        for step in job.steps.values():
            digest = step.identity.digest
            if digest not in seen and step.identity not in store:
                missing[digest] = step
            seen.add(digest)
    working = {job.number for job in jobs if any(step.identity.digest in missing for step in job.steps.values())}
    return working, missing


def _announce(
    jobs: Sequence[PlannedJob], missing: Mapping[str, Step], workers: int, device: Device, console: Console
) -> list[Batch]:
    """Say what will be computed. Returns what is computed together."""
    from irl_exp.launch.forecast import forecast
    from irl_exp.launch.obtain import made_by_other_code
    from irl_exp.machinery.store import Store

    needed: dict[str, set[str]] = {}
    stored: dict[str, Path] = {}
    for job in jobs:
        for step in job.steps.values():
            digest = step.identity.digest
            needed.setdefault(step.stage, set()).add(digest)
            if digest not in missing and digest not in stored:
                stored[digest] = Store(job.config.store.dir).folder(step.identity)
    batches = _batches(jobs, missing, workers, device)
    total = sum(map(len, needed.values()))
    stages = ", ".join(f"{stage} {len(digests)}" for stage, digests in needed.items())
    console.say(f"{len(jobs)} job(s) on {device}; store {jobs[0].config.store.dir}")
    console.say(f"{total} stage result(s) needed ({stages}), {len(stored)} in the store")
    if batches:
        fits = sum(len(batch.steps) for batch in batches)
        console.say(f"{fits} IRL fits that differ in their seed alone will be done together, in {len(batches)} batches")
    if others := sum(map(made_by_other_code, stored.values())):
        console.say(f"{others} of them were made by an earlier state of the code; the stages' VERSIONs say they hold")
    console.expect(forecast(jobs, missing, workers))
    console.say("")
    return batches


def _batches(jobs: Sequence[PlannedJob], missing: Mapping[str, Step], workers: int, device: Device) -> list[Batch]:
    """The missing steps that are cheaper together; large groups are split, so that every worker has a part."""
    from irl_exp.launch import obtain

    batches = []
    for index, steps in enumerate(obtain.batches(missing.values(), workers)):
        batch = Batch(-1 - index, steps, jobs[0].config.store.dir, device)
        first = next(job for job in jobs if batch.needed_by(job))
        batches.append(replace(batch, beside=ahead.steps_beside(first.steps, missing) if first.config.ahead else ()))
    return batches


def _workers(config: Config, device: Device) -> int:
    """How many jobs run at once: as asked, else one a core or one a GPU; on a cluster, how many workers there are."""
    from irl_exp.machinery.runtime import cores, gpus

    if isinstance(config.executor, ClusterExecutor):
        return config.executor.slots("gpu" if config.executor.gpus else "cpu")
    return config.workers or (max(1, cores() // (config.threads or 1)) if device.is_cpu else max(1, len(gpus())))

"""All jobs of a launch at once: compose, check, plan, run, report.

Hydra's plugin (hydra_plugins/irl_exp_planner) and launch.py are thin shells around this file and jobs.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from irl_exp.config import Config, ConfigError, check_choices, check_override, known_groups
from irl_exp.jobs import LaunchContext, PlannedJob, job_name, run_all, short, terminate_like_interrupt, typed

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.console import Console
    from irl_exp.report import Outcome
    from irl_exp.runtime import Device

# Hydra 1.3 wants a version_base, 1.4 deprecates it.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


class LaunchError(CompactHydraException):
    """A launch that did not start, or jobs that failed; Hydra prints the message alone and exits with 1."""


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse overrides of unknown keys with the nearest right name; Hydra would suggest to add them with '+'."""
    if {"-sc", "--shell-completion", "--shell_completion"} & set(arguments):
        return
    found = [re.match(r"(?:\+\+?|~)?([A-Za-z_][\w./@-]*)(?:=(.*))?", argument) for argument in arguments]
    overrides = {
        match[1].split("@")[0]: match[2] or "" for match in found if match and (match[2] is not None or "~" in match[0])
    }
    try:
        for key, value in overrides.items():
            check_override(key, value)
        groups = {key: value.split(",") for key, value in overrides.items() if key in known_groups()}
        check_choices([key for key in overrides if key not in groups], groups)
    except ConfigError as error:
        sys.exit(f"{error}")


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

    outcomes: dict[int, Outcome] = {}
    with Console(len(jobs)) as console:
        missing = _announce(jobs, device, console)
        workers = min(_workers(jobs[0].config, device), len(missing))
        try:
            with terminate_like_interrupt():
                for outcome in run_all(context, jobs, workers, console):
                    outcomes[outcome.number] = outcome
                    console.job_done(outcome)
        except KeyboardInterrupt:
            console.say("interrupted: run the same command again to go on; finished stages are in the store")
            raise SystemExit(130) from None
        finally:
            console.stop()
            _finish(jobs, outcomes, folder, console)
    lost = [outcome for outcome in outcomes.values() if outcome.status != "completed"]
    if lost:
        raise LaunchError(f"{len(lost)} of {len(jobs)} jobs have no result. The first to fail: {lost[0].error}")
    return [JobReturn(status=JobStatus.COMPLETED, _return_value=outcomes[job.number].metrics) for job in jobs]


@contextlib.contextmanager
def _refused_leaves_nothing(folder: Path) -> Iterator[None]:
    """Turn what is wrong with a launch into one clear message, and remove the folder that Hydra has begun."""
    try:
        yield
    except BaseException as error:
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml"}:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
        if isinstance(error, Exception) and type(error).__module__.startswith("irl_exp."):
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
    from irl_exp.chain import made_by_other_code

    needed: dict[str, set[str]] = {}
    stored: dict[str, Path] = {}
    missing: set[int] = set()
    for job in jobs:
        store = Store(job.config.store.dir)
        for step in job.steps.values():
            digest = step.identity.digest
            needed.setdefault(step.stage, set()).add(digest)
            if digest in stored or step.identity in store:
                stored[digest] = store.folder(step.identity)
            else:
                missing.add(job.number)
    total = sum(map(len, needed.values()))
    stages = ", ".join(f"{stage} {len(digests)}" for stage, digests in needed.items())
    console.say(f"{len(jobs)} job(s) on {device}; store {jobs[0].config.store.dir}")
    console.say(f"{total} stage result(s) needed ({stages}), {len(stored)} in the store")
    if others := sum(map(made_by_other_code, stored.values())):
        console.say(f"{others} of them were made by an earlier state of the code; the stages' VERSIONs say they hold")
    console.say("")
    return missing


def _workers(config: Config, device: Device) -> int:
    """How many jobs run at once: as asked, else one a core and one on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.workers or (max(1, cores // device.threads) if device.is_cpu else 1)


def _finish(jobs: Sequence[PlannedJob], outcomes: dict[int, Outcome], folder: Path, console: Console) -> None:
    """Write and show the result of the launch, and say where everything is."""
    from irl_exp import report
    from irl_exp.tracking import sync_command

    for job in jobs:
        outcomes.setdefault(
            job.number, report.Outcome(job.number, job.name, job.folder, "not run", error="interrupted")
        )
    ordered = [outcomes[job.number] for job in jobs]
    console.say("")
    console.tables(report.write(folder, ordered))
    console.say(
        f"runs      {short(folder)}/  (metrics.json, metrics.jsonl, completions.parquet, samples.csv of each job)"
    )
    console.say(f"summary   {short(folder / 'summary.md')}, {short(folder / 'runs.csv')}")
    console.say(f"store     {short(jobs[0].config.store.dir)}")
    offline = [path for job in jobs for path in sorted(job.folder.glob("wandb/offline-run-*")) if path.is_dir()]
    if offline:
        console.say(f"W&B       {len(offline)} run(s) recorded offline; with an account: {sync_command(offline)}")

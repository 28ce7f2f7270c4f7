"""All jobs of a launch at once: compose, check, plan, run, report.

Hydra's plugin (hydra_plugins/irl_exp_planner) and launch.py are thin shells around this file and jobs.py.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from irl_exp.config import CONF, Config, ConfigError, check_choices, check_override, known_groups, question_of, swept_by
from irl_exp.launch.jobs import (
    Batch,
    LaunchContext,
    PlannedJob,
    job_name,
    on_stop,
    run_all,
    short,
    terminate_like_interrupt,
    typed,
)

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.analysis.report import Written
    from irl_exp.launch.console import Console
    from irl_exp.machinery.runtime import Device
    from irl_exp.report.cells import Outcome
    from irl_exp.stages.step import Step

# Hydra 1.3 wants a version_base, 1.4 deprecates it.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


PLAN = "plan.json"


class LaunchError(CompactHydraException):
    """A launch that did not start, or jobs that failed; Hydra prints the message alone and exits with 1."""


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse overrides of unknown keys with the nearest right name; Hydra would suggest to add them with '+'."""
    if {"-sc", "--shell-completion", "--shell_completion"} & set(arguments):
        return
    overrides = list(_parsed(arguments))
    try:
        overrides = [*_parsed(_swept(overrides)), *overrides]
        for override in overrides:
            check_override(override.key_or_group, str(override.input_line).partition("=")[2])
        named = {override.key_or_group: override for override in overrides if not override.is_delete()}
        groups = {key: _options(override) for key, override in named.items() if key in known_groups()}
        check_choices([key for key in named if key not in groups], groups)
    except ConfigError as error:
        sys.exit(f"{error}")


def _swept(overrides: Sequence[Override]) -> list[str]:
    """What the chosen files (study=..., seeds=...) sweep; the command line may set the same keys in another way."""
    chosen = {
        override.key_or_group: _options(override)
        for override in overrides
        if override.key_or_group in known_groups() and not override.is_delete()
    }
    return [
        swept
        for group, values in chosen.items()
        for options in values
        for option in options
        for swept in swept_by(group, option)
    ]


def _parsed(arguments: Sequence[str]) -> Iterator[Override]:
    """The overrides among the arguments; what Hydra cannot read it explains itself."""
    parser = OverridesParser.create()
    for argument in arguments:
        if not argument.startswith("-"):
            with contextlib.suppress(HydraException):
                yield parser.parse_override(argument)


def _options(override: Override) -> list[list[str]]:
    """The values of an override of a group, one a job of the sweep; each is one option or a list of options."""
    value = override.value()
    if isinstance(value, Glob):
        return [[name] for name in value.filter([path.stem for path in (CONF / override.key_or_group).glob("*.yaml")])]
    values = override.sweep_iterator() if override.is_sweep_override() else [value]
    return [[str(option) for option in (item if isinstance(item, list) else [item])] for item in values]


def launch(context: LaunchContext, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Check and plan all jobs, run them, and write runs.csv and summary.md whatever happens.

    Raises:
        LaunchError: the jobs cannot run (nothing was started), or some of them failed.
    """
    folder = Path(context.config.hydra.sweep.dir).absolute()
    with _refused_leaves_nothing(folder):
        setup_globals()
        configure_log(context.config.hydra.hydra_logging, context.config.hydra.verbose)
        jobs, device = _plan(context, job_overrides, first)
        from irl_exp.launch.console import Console
        from irl_exp.report.cells import shared_overrides

        console = Console(len(jobs), shared_overrides(job.name for job in jobs))
        missing, batches = _announce(jobs, device, console)
        _write_plan(folder, jobs, str(context.config.hydra.runtime.choices.get("study")))
    outcomes: dict[int, Outcome] = {}
    with console:
        workers = min(_workers(jobs[0].config, device), len(missing))
        try:
            with terminate_like_interrupt():
                for outcome in run_all(context, jobs, batches, workers, console):
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


def _write_plan(folder: Path, jobs: Sequence[PlannedJob], study: str) -> None:
    """plan.json: what was asked, and all jobs, so that those without a result are known whatever happens."""
    planned = [{"number": job.number, "name": job.name, "folder": str(job.folder.relative_to(folder))} for job in jobs]
    plan = {"command": shlex.join(["python", *sys.argv]), "question": question_of(study), "jobs": planned}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _refused_leaves_nothing(folder: Path) -> Iterator[None]:
    """Turn what is wrong with a launch into one clear message, and remove the folder that Hydra has begun.

    A stop ends the process at once: libraries load here, some swallow a KeyboardInterrupt and go on half loaded.
    """

    def stop(number: int, frame: object) -> None:
        try:
            _remove_begun(folder)
            sys.stdout.flush()
        finally:
            os._exit(130)

    try:
        with on_stop(stop):
            yield
    except BaseException as error:
        _remove_begun(folder)
        if isinstance(error, Exception) and type(error).__module__.startswith("irl_exp."):
            raise LaunchError(str(error)) from error
        raise


def _remove_begun(folder: Path) -> None:
    """Remove the folder of a launch that has no job yet."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml", PLAN}:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _plan(
    context: LaunchContext, job_overrides: Sequence[Sequence[str]], first: int
) -> tuple[list[PlannedJob], Device]:
    """Compose and check every job before the first one starts."""
    composer = _Composer(context)
    composed = [composer.compose(overrides, first + index) for index, overrides in enumerate(job_overrides)]
    configs = _check_all(composed)
    # Everything below imports torch: only now that the configs are known to be right.
    from irl_exp import chain
    from irl_exp.machinery.runtime import find_device

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
    from irl_exp.irl.features import FeatureError
    from irl_exp.launch import preflight
    from irl_exp.machinery.store import Store
    from irl_exp.texts.data import DataError

    complaints: dict[str, None] = {}
    for job in jobs:
        store = Store(job.config.store.dir)
        store.prepare()
        for step in job.steps.values():
            try:
                if step.identity not in store:
                    preflight.check(step)
            except (preflight.PreflightError, DataError, FeatureError) as error:
                complaints[str(error)] = None
    if complaints:
        raise preflight.PreflightError("\n".join(complaints))


class _Composer:
    """Composes jobs as Hydra does (0.1 s each), but reads the same choices of config groups once.

    What remains of a job is to set its plain options, `key=value`, which Hydra also does after all files are read.
    """

    def __init__(self, context: LaunchContext) -> None:
        self.loader, self.config = context.hydra_context.config_loader, context.config
        self.parser = OverridesParser.create()
        self.groups: dict[str, bool] = {}
        self.read: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        parsed = self.parser.parse_overrides(list(overrides))
        groups = tuple(str(item.input_line) for item in parsed if self._is_group(item.key_or_group))
        plain = [item for item in parsed if not self._is_group(item.key_or_group)]
        if all(map(self._is_plain, plain)):
            composed = copy.deepcopy(self._of_groups(groups))
            try:
                self._set(composed, plain, parsed)
            except OmegaConfBaseException:  # Hydra will say what is wrong
                composed = self.loader.load_sweep_config(self.config, list(overrides))
        else:
            composed = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        return composed

    def _is_group(self, key: str) -> bool:
        if key not in self.groups:
            self.groups[key] = "/" in key or bool(self.loader.get_group_options(key, results_filter=None))
        return self.groups[key]

    def _is_plain(self, override: Override) -> bool:
        simple = override.type is OverrideType.CHANGE and override.package is None
        return simple and not override.is_hydra_override()

    def _of_groups(self, groups: tuple[str, ...]) -> DictConfig:
        if groups not in self.read:
            self.read[groups] = self.loader.load_sweep_config(self.config, list(groups))
        return self.read[groups]

    def _set(self, composed: DictConfig, plain: Sequence[Override], overrides: Sequence[Override]) -> None:
        for override in plain:
            OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
        hydra_config = composed.hydra
        hydra_config.overrides.task = [override.input_line for override in overrides]
        hydra_config.job.override_dirname = get_overrides_dirname(
            overrides=list(overrides), **hydra_config.job.config.override_dirname
        )


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


def _announce(jobs: Sequence[PlannedJob], device: Device, console: Console) -> tuple[set[int], list[Batch]]:
    """Say what will be computed. Returns the numbers of the jobs that miss a result, and what is computed together."""
    from irl_exp.launch.obtain import made_by_other_code
    from irl_exp.machinery.store import Store

    needed: dict[str, set[str]] = {}
    stored: dict[str, Path] = {}
    missing: dict[str, Step] = {}
    for job in jobs:
        store = Store(job.config.store.dir)
        for step in job.steps.values():
            digest = step.identity.digest
            if digest in missing or digest in stored:
                continue
            needed.setdefault(step.stage, set()).add(digest)
            if step.identity in store:
                stored[digest] = store.folder(step.identity)
            else:
                missing[digest] = step
    working = {job.number for job in jobs if any(step.identity.digest in missing for step in job.steps.values())}
    batches = _batches(jobs, missing, device)
    total = sum(map(len, needed.values()))
    stages = ", ".join(f"{stage} {len(digests)}" for stage, digests in needed.items())
    console.say(f"{len(jobs)} job(s) on {device}; store {jobs[0].config.store.dir}")
    console.say(f"{total} stage result(s) needed ({stages}), {len(stored)} in the store")
    if batches:
        fits = sum(len(batch.steps) for batch in batches)
        console.say(f"{fits} IRL fits that differ in their seed alone will be done together, in {len(batches)} batches")
    if others := sum(map(made_by_other_code, stored.values())):
        console.say(f"{others} of them were made by an earlier state of the code; the stages' VERSIONs say they hold")
    console.say("")
    return working, batches


def _batches(jobs: Sequence[PlannedJob], missing: Mapping[str, Step], device: Device) -> list[Batch]:
    """The missing steps that are cheaper together; large groups are split, so that every worker has a part."""
    from irl_exp.launch import obtain

    workers = _workers(jobs[0].config, device)
    found = obtain.batches(missing.values(), workers)
    return [Batch(-1 - index, steps, jobs[0].config.store.dir, device) for index, steps in enumerate(found)]


def _workers(config: Config, device: Device) -> int:
    """How many jobs run at once: as asked, else one a core and one on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.workers or (max(1, cores // device.threads) if device.is_cpu else 1)


def _finish(jobs: Sequence[PlannedJob], outcomes: dict[int, Outcome], folder: Path, console: Console) -> None:
    """Write and show the result of the launch, and say where everything is."""
    from irl_exp.machinery.tracking import sync_command
    from irl_exp.report import cells, studies

    interrupted = len(outcomes) < len(jobs)
    for job in jobs:
        outcomes.setdefault(job.number, cells.Outcome(job.number, job.name, job.folder, "not run", error="interrupted"))
    ordered = [outcomes[job.number] for job in jobs]
    console.say("")
    console.tables(studies.write(folder, ordered))
    console.say(
        f"runs      {short(folder)}/  (metrics.json, metrics.jsonl, completions.parquet, samples.csv of each job)"
    )
    console.say(f"summary   {short(folder / 'summary.md')}, {short(folder / 'runs.csv')}")
    console.say(f"store     {short(jobs[0].config.store.dir)}")
    if len(jobs) > 1 and jobs[0].config.report:
        later = f"python -m irl_exp.analysis {shlex.quote(short(folder))}"
        told = f"not written; of what there is: {later}" if interrupted else _report(jobs, folder, console, later)
        console.say(f"report    {told}")
    offline = [path for path in sorted(folder.glob("*/wandb/offline-run-*")) if path.is_dir()]
    if offline:
        console.say(f"W&B       {len(offline)} run(s) recorded offline; with an account: {sync_command(offline)}")


def _report(jobs: Sequence[PlannedJob], folder: Path, console: Console, later: str) -> str:
    """Write the report of the launch, also as a run of its group in W&B; returns what to say of it.

    Whatever goes wrong here costs no result of a run.
    """
    try:
        from irl_exp.analysis import report, study
    except ImportError as error:
        return f"not written ({error}); with what is missing installed: {later}"
    try:
        with console.working() as progress:
            written = report.write(study.read(folder), progress=progress)
        _track_report(jobs[0].config, written)
    except study.StudyError:
        return "not written, as no job has a result"
    except KeyboardInterrupt:  # the runs are complete: whoever does not want to wait for the page loses nothing else
        return f"not written (interrupted); to try again: {later}"
    except Exception as error:
        return f"not written ({type(error).__name__}: {error}); to try again: {later}"
    return f"{short(written.page)} ({len(written.images)} figures; opens offline in any browser)"


def _track_report(config: Config, written: Written) -> None:
    """The report as the last run of the launch."""
    from irl_exp.machinery.tracking import log_report

    cells = written.summary.tables["cells"]
    alone = cells["cell"].nunique() == 1
    means: dict[str, float] = dict(zip(cells["metric"], cells["mean"], strict=True)) if alone else {}
    log_report(
        written.folder,
        mode=config.tracking.mode,
        project=config.tracking.project,
        entity=config.tracking.entity,
        group=f"{config.name}/{written.folder.parent.name}",
        tags=config.tracking.tags,
        config={"study": config.name, "n_runs": written.summary.data["n_runs"]},
        page=written.page,
        images=written.images,
        tables={"cells": (list(map(str, cells)), cells.astype(object).where(cells.notna(), None).to_numpy().tolist())},
        summary=means,
    )

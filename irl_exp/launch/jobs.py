"""One job under any Hydra launcher, and what a launch knows of each of its jobs before it runs.

A job (`run_job`) knows nothing of the planner: under the stock launchers of Hydra (submitit, Ray, joblib) the same
jobs run, and the store alone makes sure that a shared stage is computed once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from irl_exp.config import Config, ConfigError, parse
from irl_exp.launch.messages import LaunchError, one_line
from irl_exp.launch.stops import terminate_like_interrupt, told_to_stop
from irl_exp.report.cells import Facts, flat

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.obtain import StageError
    from irl_exp.machinery.runtime import Device, Report
    from irl_exp.stages.step import Step

reporting: Report | None = None
"""Where the jobs of this process report: set by a launch and by its workers, a console of their own otherwise."""

planned: Device | None = None
"""The device that a launch has planned with, where it is not that of this machine."""

failed: Mapping[str, StageError] = {}
"""Of the steps of the job that runs in this process, by digest: those that have failed elsewhere."""


@dataclass(frozen=True)
class LaunchContext:
    """What Hydra gives a launcher; `new` are folders of the launch that were not there before."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    new: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PlannedJob:
    """One job, checked: its composed config for Hydra, its typed config, its steps."""

    number: int
    name: str
    folder: Path
    composed: DictConfig
    config: Config
    steps: dict[str, Step]
    failed: Mapping[str, StageError] = field(default_factory=dict)
    """Of its steps, by digest: those that have failed elsewhere."""

    @property
    def facts(self) -> Facts:
        """Its config, flat, and the digests of its steps: config.json before there is one."""
        digests = {step.stage: step.identity.digest for step in self.steps.values()}
        return flat({**self.config.model_dump(mode="json"), "artifacts": digests})

    def blocked_by(self, broken: dict[str, str]) -> str:
        """Why this job cannot succeed: one of its steps has failed in another job. Empty if none has."""
        return next(
            (broken[step.identity.digest] for step in self.steps.values() if step.identity.digest in broken), ""
        )


def run_job(composed: DictConfig) -> dict[str, float] | float:
    """One job in its Hydra output folder, under any launcher: its metrics, or its objective if one is named.

    The planner gets the metrics in any case.
    """
    try:
        config = typed(composed)
    except ConfigError as error:  # of a launcher that does not ask before
        raise LaunchError(str(error)) from None
    from irl_exp.launch import objective, run

    hydra_config = OmegaConf.structured(HydraConfig.get())
    number = int(OmegaConf.select(hydra_config, "job.num") or 0)
    folder = Path(hydra_config.runtime.output_dir)
    job = run.Job(number, job_name(hydra_config.overrides.task), folder)
    if reporting is not None:
        return run.run(config, job, reporting, planned, failed)
    from irl_exp.launch.console import Console
    from irl_exp.report import runs, verdict

    with Console(1) as console, terminate_like_interrupt(), failure_is_written(folder):
        metrics = run.run(config, job, console.show)
    facts = flat(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    console.tell(verdict.of_run(metrics, facts, job.name).text())
    console.tables(runs.run_tables(metrics, facts))
    console.say(f"everything of this run: {folder}")
    return metrics if config.objective is None else objective.of_run(config, folder)


@contextlib.contextmanager
def failure_is_written(folder: Path) -> Iterator[None]:
    """The traceback of what fails inside goes to error.txt of the run."""
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):  # the folder may be what failed
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def typed(composed: DictConfig) -> Config:
    """The typed config of a composed job."""
    try:
        keys = [str(key) for key in composed if key != "hydra"]
        values = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: this option must be set, e.g. {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(where + str(error).splitlines()[0]) from None
    return parse(values)  # type: ignore[arg-type]


def job_name(overrides: Sequence[str]) -> str:
    """What makes a job special, on one line: its overrides without those that say where and how to run."""
    elsewhere = re.compile(
        r"(tracking|executor|workers|ahead|threads|device|store|name|seeds|study|report|fail_fast|objective)\b"
    )
    own = [item.lstrip("+") for item in filter_overrides(overrides)]
    return ",".join(item for item in own if not elsewhere.match(item)) or "default"


@dataclass(frozen=True)
class Batch:
    """Steps of several jobs that are computed together, before these jobs; -1, -2, ... stand for it in reports.

    Attributes:
        beside: other steps of these jobs, for a process that would wait for another one.
    """

    number: int
    steps: Sequence[Step]
    store: Path
    device: Device
    beside: Sequence[Step] = ()

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
            obtain.run_batch(self.steps, Store(self.store), self.device, report, self.number, self.beside)
        except BaseException as error:
            if told_to_stop():
                raise
            return one_line(error)
        return ""

"""Hydra's door to irl_exp/launch/planner.py: a launcher that sees every job before the first one starts.

Hydra 1.3 finds plugins in a `hydra_plugins` namespace folder and checks the module of the class, so both classes are
defined here; all they do is delegate. Imported at each start and at each TAB: nothing heavy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from irl_exp import config as irl_config
from irl_exp.launch import planner, sweeps
from irl_exp.launch.jobs import LaunchContext


class PlannedLauncher(Launcher):
    """Checks and plans all jobs, then runs them in this process or in a pool."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launch_context = LaunchContext(hydra_context, task_function, config, planner.begin(config))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return planner.launch(self.launch_context, job_overrides, initial_job_idx)


class PlannedSweeper(BasicSweeper):
    """The basic sweeper, and after its jobs those of the controls. Jobs are counted before they are written down, and
    the planner checks that they compose: it composes each job anyway, once."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        controls: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.controls = controls or {}
        self.parts: list[list[Override]] = []

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        self.parts = sweeps.parts(parser, self.params, arguments, self.controls)
        for part in self.parts:
            sweeps.check_sweep(part, self.max_batch_size)
        assert self.config is not None
        planner.make(Path(self.config.hydra.sweep.dir))
        return super().sweep(arguments)

    def split_arguments(  # type: ignore[override]  # the basic sweeper's is static, and knows no controls
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        jobs = [job for part in self.parts for job in BasicSweeper.split_arguments(part, None)[0]]
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass


@dataclass
class LauncherConfig:
    """The launcher's node; what it may do is configured at the root (workers, store)."""

    _target_: str = "hydra_plugins.irl_exp_planner.PlannedLauncher"


@dataclass
class SweeperConfig:
    """The sweeper's node: the parameters that `seeds=...` and studies sweep, and the sweeps of a study's controls."""

    _target_: str = "hydra_plugins.irl_exp_planner.PlannedSweeper"
    max_batch_size: int | None = None
    params: dict[str, Any] | None = None
    controls: dict[str, Any] | None = None


irl_config.register()
ConfigStore.instance().store(group="hydra/launcher", name="planned", node=LauncherConfig, provider="irl_exp")
ConfigStore.instance().store(group="hydra/sweeper", name="planned", node=SweeperConfig, provider="irl_exp")

"""The end of a launch that the planner does not see: of other launchers of Hydra, and of sweepers of many batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_begun: Path | None = None
"""Folder of the launch of this process, if it is ended here."""


class Begun(Callback):
    """Tells where a launch writes. Hydra calls it by conf/config.yaml; its call at the end misses if a job failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _begun
        _begun = None if ends_with_its_batch(config) else Path(config.hydra.sweep.dir).absolute()


def ends_with_its_batch(config: DictConfig) -> bool:
    """Whether the planner gets all jobs of the launch at once, so that it can end it."""
    launcher, sweeper = (str(config.hydra[part]._target_) for part in ("launcher", "sweeper"))
    ours = launcher.endswith(".PlannedLauncher") and sweeper.endswith(".PlannedSweeper")
    return ours and config.hydra.sweeper.max_batch_size is None


@contextlib.contextmanager
def of_any_launcher() -> Iterator[None]:
    """Write and show the result of the launch inside, from the folders of its jobs; also if one of them failed."""
    try:
        yield
    finally:
        if _begun is not None and any(_begun.glob("*/config.json")):
            from irl_exp.launch.finish import finish_folder

            finish_folder(_begun)

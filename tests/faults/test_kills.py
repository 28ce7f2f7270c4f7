"""SIGKILL at any moment: what is complete stays, what is not is gone, and the same command goes on."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
from campaign import Trials
from conftest import Launcher
from undisturbed import (
    COMMAND,
    STAGES,
    Undisturbed,
    check_runs,
    check_store,
    computing,
    kill,
    store_of,
    temporary,
    wait_until,
)

pytestmark = pytest.mark.faults

SUBJECT = "Kills"
HELD = """
after SIGKILL to all processes of the launch, every folder of the store that looks like an artifact is whole (its
manifest, each file by its checksum) and no run has a metrics.json other than that of an undisturbed launch; the same
command goes on; and when it is left alone it ends with 0, with metrics.json and each file of the store byte for byte as
undisturbed and no temporary folder left.
"""

SEED = 7
SWEEP = (*COMMAND, "irl.seed=0,1")


@pytest.fixture(scope="module")
def sweep(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.of(launcher(tmp_path_factory.mktemp("sweep"), *SWEEP))


def killed_while(launcher: Launcher, folder: Path, stage: str, seconds: float, *command: str) -> None:
    """Start, wait until the stage computes and so many seconds more, and kill."""
    process = launcher.start(folder, *command)
    wait_until(lambda: computing(store_of(folder), stage), process)
    time.sleep(seconds)
    kill(process)


def test_in_each_stage(trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path) -> None:
    generator = random.Random(SEED)
    for stage in STAGES:
        with trials(f"while a stage computes: each of the {len(STAGES)} in turn, at a random moment", stage):
            within = generator.uniform(0, 0.7) * undisturbed.seconds[stage]
            killed_while(launcher, tmp_path, stage, within, *COMMAND)
            check_store(store_of(tmp_path))
            check_runs(tmp_path, undisturbed)
    with trials("the launch after all of these, left alone"):
        undisturbed.check(launcher(tmp_path, *COMMAND, check=False))


@pytest.mark.parametrize("workers", [1, 2])
def test_of_a_sweep(trials: Trials, launcher: Launcher, sweep: Undisturbed, tmp_path: Path, workers: int) -> None:
    command = (*SWEEP, f"workers={workers}")
    where = "in one process" if workers == 1 else "in two processes"
    # In one process both seeds are fitted together, before the jobs and so before the second judge.
    order = ("rlhf", "irl", "second_judge") if workers == 1 else ("second_judge", "rlhf", "irl")
    for stage in (*order, "refinetune", "evaluate"):
        with trials(f"a sweep of two seeds of irl {where}, in 5 stages", stage):
            killed_while(launcher, tmp_path, stage, 0.05, *command)
            check_store(store_of(tmp_path))
            check_runs(tmp_path, sweep)
    with trials(f"the sweep {where} after all of these, left alone"):
        sweep.check(launcher(tmp_path, *command, check=False))


def test_at_random(trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Without looking at what it does: also while libraries load, the plan is made and results are written."""
    generator = random.Random(SEED)
    for number in range(4):
        with trials("at a random moment of the first 8 s", number):
            process = launcher.start(tmp_path, *COMMAND)
            with_patience(process, generator.uniform(0, 8))
            kill(process)
            check_store(store_of(tmp_path))
            check_runs(tmp_path, undisturbed)
            assert len(temporary(store_of(tmp_path))) <= 1, "more than the stage in flight was left"
    with trials("the launch after these, left alone"):
        undisturbed.check(launcher(tmp_path, *COMMAND, check=False))


def with_patience(process: subprocess.Popen[str], seconds: float) -> None:
    """So many seconds, or until it ends."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return

"""Ctrl-C and SIGTERM at any moment: a quick, tidy end, after which the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import Trials
from conftest import Launched, Launcher
from undisturbed import (
    COMMAND,
    STAGES,
    Undisturbed,
    check_runs,
    check_store,
    computing,
    last_launch,
    statuses,
    store_of,
    temporary,
    told,
    wait_until,
)
from wandb_files import read_run

pytestmark = pytest.mark.faults

SUBJECT = "Stops"
HELD = """
the launch ends within 20 s of the signal with the exit code 130 and without a traceback; its summary names the jobs
without a result; the store is whole and has no temporary folder; the run of the job that was stopped is closed as
failed in W&B (recorded offline here); no process is left; and the same command afterwards ends with 0 and the bytes of
an undisturbed launch. In the last moments a launch may also end with 0, with everything there.
"""

OFFLINE = (*COMMAND, "tracking=offline")
LIMIT = 20.0


def ctrl_c(process: subprocess.Popen[str]) -> None:
    """As a terminal does: to all processes of the launch."""
    os.killpg(process.pid, signal.SIGINT)


def sigterm(process: subprocess.Popen[str]) -> None:
    """As a scheduler does: to the launch alone."""
    process.send_signal(signal.SIGTERM)


STOPS: dict[str, Callable[[subprocess.Popen[str]], None]] = {"Ctrl-C": ctrl_c, "SIGTERM": sigterm}


def stopped(launcher: Launcher, folder: Path, when: Callable[[], object], how: str, *command: str) -> Launched:
    """Start, stop when it is time, and wait for the end."""
    process = launcher.start(folder, *command)
    wait_until(when, process)
    start = time.monotonic()
    STOPS[how](process)
    done = launcher.end(process, folder, check=False)
    seconds = time.monotonic() - start
    assert done.returncode == 130, told(done)
    assert "Traceback" not in done.stdout + done.stderr, told(done)
    assert seconds < LIMIT, f"it took {seconds:.1f} s"
    assert not left_of(process.pid), "processes are left"
    return done


def left_of(group: int) -> bool:
    """Whether any process of the group lives, a second after its leader's end."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if not any(lives_in(group, stat) for stat in Path("/proc").glob("[0-9]*/stat")):
            return False
        time.sleep(0.02)
    return True


def lives_in(group: int, stat: Path) -> bool:
    """What has ended and only waits for init to take note of it (Z) does not live."""
    try:
        state, _, its_group = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
    except OSError:
        return False
    return state != "Z" and int(its_group) == group


def check_tidy(folder: Path, jobs: int) -> None:
    """What a launch that was stopped while its jobs ran leaves."""
    store, launch = store_of(folder), last_launch(folder)
    check_store(store)
    assert temporary(store) == []
    found = statuses(launch)
    assert len(found) == jobs
    assert "not run" in found
    assert "not run" in (launch / "summary.md").read_text(encoding="utf-8")
    for run in launch.glob("[0-9]*/wandb/offline-run-*"):
        done = (run.parents[1] / "metrics.json").exists()
        assert read_run(run)["exit_code"] == (0 if done else 1), f"{run} was not closed"


def test_in_each_stage(trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path) -> None:
    for number, stage in enumerate(STAGES):
        how = list(STOPS)[number % 2]
        with trials(f"{how} while a stage computes, each of the {len(STAGES)} with one or the other", stage):
            stopped(launcher, tmp_path, lambda stage=stage: computing(store_of(tmp_path), stage), how, *OFFLINE)
            check_tidy(tmp_path, 1)
            check_runs(tmp_path, undisturbed)
    with trials("the launch after all of these, left alone"):
        undisturbed.check(launcher(tmp_path, *OFFLINE, check=False))


@pytest.mark.parametrize("how", STOPS)
def test_in_the_last_moments(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path, how: str
) -> None:
    """When all numbers are there: while W&B closes its run, and while the summary is written."""
    launcher(tmp_path, *OFFLINE)
    for name in ("[0-9]*/metrics.json", "[0-9]*/samples.csv", "runs.csv"):
        with trials(f"{how} when the results are written and W&B closes its run", name):
            known = set(tmp_path.glob(f"multirun/chain/*/{name}"))
            process = launcher.start(tmp_path, *OFFLINE)
            wait_until(lambda name=name, known=known: set(tmp_path.glob(f"multirun/chain/*/{name}")) - known, process)
            STOPS[how](process)
            done = launcher.end(process, tmp_path, check=False)
            check_end(done, last_launch(tmp_path))
            check_runs(tmp_path, undisturbed)


def check_end(done: Launched, launch: Path) -> None:
    """So late it may end as if it had not heard, or as stopped; but one of the two, and closed."""
    assert done.returncode in (0, 130), told(done)
    assert "Traceback" not in done.stdout + done.stderr, told(done)
    assert len(statuses(launch)) == 1
    (run,) = launch.glob("0/wandb/offline-run-*")
    assert read_run(run)["exit_code"] in (0, 1), f"{run} was not closed"
    if done.returncode == 0:
        assert (launch / "0" / "metrics.json").exists()


def test_before_the_first_job(trials: Trials, launcher: Launcher, tmp_path: Path) -> None:
    """While libraries load and jobs are checked: nothing has begun, so nothing may be left but the empty store."""
    for number, seconds in enumerate((1.0, 1.8, 2.6, 3.4)):
        how = list(STOPS)[number % 2]
        with trials("Ctrl-C or SIGTERM 1 to 3.4 s after the start, before the first job", f"{how} after {seconds} s"):
            process = launcher.start(tmp_path, *COMMAND)
            time.sleep(seconds)
            STOPS[how](process)
            done = launcher.end(process, tmp_path, check=False)
            assert done.returncode in (130, -signal.SIGTERM, -signal.SIGINT), told(done)
            assert [path for path in tmp_path.glob("multirun/*") if path.name != "store"] == []
            assert temporary(store_of(tmp_path)) == []


@pytest.mark.parametrize("how", STOPS)
def test_with_workers(trials: Trials, launcher: Launcher, tmp_path: Path, how: str) -> None:
    command = (*OFFLINE, "until=sft", "sft.steps=600", "sft.batch_size=8,16", "workers=2")
    with trials("Ctrl-C or SIGTERM while two workers train", how):

        def both_train() -> bool:
            curves = list(tmp_path.glob("multirun/chain/*/*/metrics.jsonl"))
            return len(curves) == 2 and all("sft/" in path.read_text() for path in curves)

        stopped(launcher, tmp_path, both_train, how, *command)
        check_tidy(tmp_path, 2)

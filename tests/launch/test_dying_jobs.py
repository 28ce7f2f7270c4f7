"""Jobs that end in a way of their own, by a user's function or a library: one fails, the others finish."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Launched, Launcher
from wandb_files import read_run

ENDS = """
import os, signal, sys

def fine(prompts, completions):
    return [float(len(text)) for text in completions]

def _ending(end):
    def score(prompts, completions):
        if len(completions) > 3:  # more than what is tried before the work
            end()
        return fine(prompts, completions)
    return score

def _interrupt():
    raise KeyboardInterrupt

leaves = _ending(lambda: sys.exit(3))
interrupts = _ending(_interrupt)
vanishes = _ending(lambda: os._exit(0))
crashes = _ending(lambda: os.kill(os.getpid(), signal.SIGSEGV))
"""
TOLD = {
    "leaves": "ends:leaves failed: SystemExit: 3",
    "interrupts": "KeyboardInterrupt",
    "vanishes": "its process died (exit code 0)",
    "crashes": "its process died (SIGSEGV)",
}


def launched(launcher: Launcher, folder: Path, warm_store: Path, workers: int, *names: str) -> Launched:
    """One job with each of the functions as ground truth, which the stage `reward` calls."""
    shutil.copytree(warm_store, folder / "multirun" / "store")
    (folder / "ends.py").write_text(ENDS)
    functions = ",".join(f"ends:{name}" for name in names)
    line = ("scale=tiny", "tracking=offline", "until=sft", f"workers={workers}", "reward=imported")
    return launcher(folder, *line, f"reward.function={functions}", env={"PYTHONPATH": str(folder)}, check=False)


@pytest.fixture(scope="module")
def in_a_pool(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return launched(launcher, tmp_path_factory.mktemp("pool"), warm_store, 2, *TOLD, "fine")


def test_one_job_fails_and_the_others_finish(in_a_pool: Launched) -> None:
    assert in_a_pool.returncode == 1
    assert [row["status"] for row in in_a_pool.runs()] == [*["failed"] * len(TOLD), "completed"]
    assert in_a_pool.metrics(len(TOLD))
    assert "Traceback" not in in_a_pool.stdout + in_a_pool.stderr
    assert "interrupted" not in in_a_pool.stdout


def test_the_summary_names_it(in_a_pool: Launched) -> None:
    summary = (in_a_pool.folder / "summary.md").read_text()
    for job, (name, told) in enumerate(TOLD.items()):
        assert told in in_a_pool.runs()[job]["error"]
        assert name in summary
        assert told in summary
        assert told in (in_a_pool.folder / str(job) / "error.txt").read_text()
        assert not (in_a_pool.folder / str(job) / "metrics.json").exists()


def test_nothing_of_it_stays_in_the_store(in_a_pool: Launched) -> None:
    store = in_a_pool.cwd / "multirun" / "store"
    assert list(store.glob("*/.*.tmp-*")) == []


def test_runs_are_closed_wherever_the_process_lives_on(in_a_pool: Launched) -> None:
    runs = {run.parts[-3]: read_run(run) for run in in_a_pool.folder.glob("*/wandb/offline-run-*")}
    assert {job: runs[job]["exit_code"] for job in ("0", "1", "4")} == {"0": 1, "1": 1, "4": 0}


def test_in_the_process_of_the_launch_too(launcher: Launcher, warm_store: Path, tmp_path: Path) -> None:
    done = launched(launcher, tmp_path, warm_store, 1, "interrupts", "leaves", "fine")
    assert done.returncode == 1
    assert [row["status"] for row in done.runs()] == ["failed", "failed", "completed"]
    assert "Traceback" not in done.stdout + done.stderr

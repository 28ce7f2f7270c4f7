"""A job whose code ends its process, or tries to: it fails alone, the others finish, the summary names it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from textwrap import dedent

import pytest
from campaign import Trials
from conftest import Launched, Launcher
from undisturbed import COMMAND, check_store, last_launch, statuses, store_of, temporary, told, wait_until
from wandb_server import sync, wandb_server

pytestmark = pytest.mark.faults

SUBJECT = "Jobs that die"
HELD = """
the launch ends with 1 and without a traceback; runs.csv says `failed` of this job, with a reason, and `completed` of
the other, whose metrics are there; the job has no metrics.json; the store is whole and has no temporary folder; its W&B
run (recorded offline here) is a failed one where `wandb sync` brings it to a server. (A process that ends at once may
take with it all that W&B had not yet written; then there is no run to bring.)
"""

DEADLY = """
    import ctypes, os, signal, sys, threading

    def good(prompts, completions):
        return [float(len(text)) for text in completions]

    class Own(BaseException):
        pass

    def deadly(end):
        # The check before the launch calls a function with three texts, then with each alone.
        return lambda prompts, completions: end() if len(completions) > 3 else good(prompts, completions)

    def throws(error):
        def end():
            raise error
        return end

    def nested(depth=0):
        return nested(depth + 1) + 1

    exits = deadly(lambda: sys.exit(0))
    exits_with_words = deadly(lambda: sys.exit("enough"))
    interrupts = deadly(throws(KeyboardInterrupt()))
    raises_its_own = deadly(throws(Own("mine")))
    generator_exit = deadly(throws(GeneratorExit()))
    out_of_memory = deadly(throws(MemoryError()))
    too_deep = deadly(nested)
    ends_at_once = deadly(lambda: os._exit(0))
    ends_at_once_with_3 = deadly(lambda: os._exit(3))
    segmentation_fault = deadly(lambda: ctypes.string_at(0))
    aborts = deadly(os.abort)
    terminates_itself = deadly(lambda: os.kill(os.getpid(), signal.SIGKILL))
"""
RAISED = (
    *("exits", "exits_with_words", "interrupts", "raises_its_own", "generator_exit", "out_of_memory", "too_deep"),
)
ENDED = ("ends_at_once", "ends_at_once_with_3", "segmentation_fault", "aborts", "terminates_itself")
CHAIN = (*COMMAND, "tracking=offline", "until=sft", "reward=imported")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the functions of a user, and a store that is shared by the launches in it."""
    found = tmp_path_factory.mktemp("dying")
    (found / "deadly.py").write_text(dedent(DEADLY))
    return found


def launched(launcher: Launcher, folder: Path, functions: tuple[str, ...], workers: int) -> Launched:
    names = ",".join(f"deadly:{name}" for name in (*functions, "good"))
    env = {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    command = (*CHAIN, f"reward.function={names}", f"workers={workers}")
    return launcher.end(launcher.start(folder, *command, env=env), folder, check=False)


def check_launch(done: Launched, jobs: int) -> Path:
    assert done.returncode == 1, told(done)
    assert "Traceback" not in done.stdout + done.stderr, told(done)
    launch = last_launch(done.cwd)
    assert len(statuses(launch)) == jobs
    return launch


def check_job(launch: Path, job: int) -> None:
    row = _rows(launch)[job]
    assert row["status"] == "failed", f"status {row['status']}"
    assert row["error"], "no reason"
    assert not (launch / str(job) / "metrics.json").exists()
    for run in (launch / str(job)).glob("wandb/offline-run-*"):
        with wandb_server() as server:
            sync(f"wandb sync {run}", launch, server)
            found = [run.exit_code for run in server.runs.values()]
            assert found in ([], [1]), f"W&B shows its run with exit code {found}, not as failed"


def _rows(launch: Path) -> list[dict[str, str]]:
    import csv

    with (launch / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("functions", "workers"), [(RAISED, 1), (RAISED, 2), (ENDED, 2)])
def test_a_function_of_the_user(
    trials: Trials, launcher: Launcher, folder: Path, functions: tuple[str, ...], workers: int
) -> None:
    where = "in the process of the launch" if workers == 1 else "in a worker"
    done = launched(launcher, folder, functions, workers)
    with trials(f"the launch of these jobs {where}: its end, its other job, its store", ", ".join(functions)):
        launch = check_launch(done, len(functions) + 1)
        assert statuses(launch)[-1] == "completed"
        assert (launch / str(len(functions)) / "metrics.json").exists()
        check_store(store_of(folder))
        assert temporary(store_of(folder)) == []
    for job, name in enumerate(functions):
        with trials(f"a reward function {where} that {ROWS[functions]}", name):
            check_job(last_launch(folder), job)


ROWS = {
    RAISED: "calls sys.exit, or raises KeyboardInterrupt, MemoryError, RecursionError or another BaseException",
    ENDED: "calls os._exit, aborts, kills its process or ends in a segmentation fault",
}


def test_a_worker_that_is_killed(trials: Trials, launcher: Launcher, tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    command = (*COMMAND, "tracking=offline", "until=sft", "sft.steps=5000,12", "workers=2")
    with trials("SIGKILL of the worker that trains"):
        process = launcher.start(tmp_path, *command)

        def trains() -> bool:
            return any("sft/" in path.read_text() for path in tmp_path.glob("multirun/chain/*/0/metrics.jsonl"))

        wait_until(trains, process)
        os.kill(worker_of(last_launch(tmp_path) / "0" / "metrics.jsonl"), signal.SIGKILL)
        launch = check_launch(launcher.end(process, tmp_path, check=False), 2)
        check_job(launch, 0)
        assert statuses(launch) == ["failed", "completed"]
        check_store(store_of(tmp_path))
        assert temporary(store_of(tmp_path)) == []


def worker_of(path: Path) -> int:
    """The process that has a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody has {path} open")

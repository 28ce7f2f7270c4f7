"""Launches that share a store as hosts do: owners that are stopped and come back, locks missing or not shared."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from campaign import Trials
from conftest import Launcher
from undisturbed import (
    COMMAND,
    STAGES,
    Undisturbed,
    artifacts,
    check_store,
    computing,
    store_of,
    temporary,
    told,
    wait_until,
)

pytestmark = pytest.mark.faults

SUBJECT = "Stores that hosts share"
HELD = """
with a lease of 3 s, every launch ends with 0 and with the metrics.json of an undisturbed launch, also the one that was
stopped (SIGSTOP) while the other one took its stage over, and comes back (SIGCONT) when that one has ended; the store
has each stage once, whole, and no temporary folder. Where a process says that its file system has no locks (ENOSYS), or
gets every lock (locks that are not shared), flock of its Python is replaced.
"""

LOCKS = {
    "locks as they are": "",
    "no locks": "import fcntl\ndef refuse(*_): raise OSError(38, 'Function not implemented')\nfcntl.flock = refuse\n",
    "locks that are not shared": "import fcntl\nfcntl.flock = lambda *_: None\n",
}


def environment(folder: Path, locks: str) -> dict[str, str]:
    """For launches whose Python has these locks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(LOCKS[locks])
    return {"IRL_EXP_LEASE": "3", "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}


def check(folder: Path) -> None:
    check_store(store_of(folder))
    assert temporary(store_of(folder)) == []
    assert len(artifacts(store_of(folder))) == len(STAGES)
    assert not list(store_of(folder).glob(".*"))


@pytest.mark.parametrize("locks", LOCKS)
@pytest.mark.parametrize("stage", ["sft", "irl", "refinetune"])
def test_an_owner_that_is_stopped_and_comes_back(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path, locks: str, stage: str
) -> None:
    env = environment(tmp_path / "python", locks)
    stopped = launcher.start(tmp_path, *COMMAND, env=env)
    wait_until(lambda: computing(store_of(tmp_path), stage), stopped)
    os.killpg(stopped.pid, signal.SIGSTOP)
    try:
        with trials(f"{locks}: the one that computes a stage is stopped, another launch takes over", stage):
            other = launcher(tmp_path, *COMMAND, env=env, check=False)
            assert other.returncode == 0, told(other)
            assert other.text() == undisturbed.metrics[0]
    finally:
        os.killpg(stopped.pid, signal.SIGCONT)
    with trials(f"{locks}: the one that was stopped comes back", stage):
        done = launcher.end(stopped, tmp_path, check=False)
        assert done.returncode == 0, told(done)
        assert done.text() == undisturbed.metrics[0]
        check(tmp_path)


@pytest.mark.parametrize("locks", list(LOCKS)[1:])
def test_several_at_once(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path, locks: str
) -> None:
    env = environment(tmp_path / "python", locks)
    started = [launcher.start(tmp_path, *COMMAND, env=env) for _ in range(3)]
    done = [launcher.end(process, tmp_path, check=False) for process in started]
    for number, one in enumerate(done):
        with trials(f"{locks}: three launches at once on an empty store", number):
            assert one.returncode == 0, told(one)
            assert one.text() == undisturbed.metrics[0]
    with trials(f"{locks}: the store after three launches"):
        check(tmp_path)

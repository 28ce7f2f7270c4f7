"""The processes of a launch: what dies, stops or ends itself takes one task with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from irl_exp.launch.workers import WorkerDiedError, Workers

_tell: Callable[[object], None]


def _start(rank: int, tell: Callable[[object], None]) -> None:
    global _tell
    _tell = tell


def square(number: int) -> int:
    _tell(f"square of {number}")
    return number**2


def end_with(code: int) -> None:
    """As a library that ends the process, past all handlers."""
    os._exit(code)


def die_of(number: int) -> None:
    os.kill(os.getpid(), number)


def die_beside_a_child() -> None:
    """The child keeps the pipe of its parent open."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, True)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"], close_fds=False)
    os._exit(0)


def sleep(path: str) -> None:
    Path(path).touch()
    time.sleep(60)


@pytest.fixture
def heard() -> list[object]:
    return []


@pytest.fixture
def pool(heard: list[object]) -> Iterator[Workers]:
    workers = Workers(2, start=_start, arguments=(), hear=heard.append)
    yield workers
    workers.stop()


def test_tasks_are_done_and_their_events_heard(pool: Workers, heard: list[object]) -> None:
    with pool:
        found = [pool.submit(square, number) for number in range(6)]
    assert [future.result() for future in found] == [0, 1, 4, 9, 16, 25]
    assert sorted(map(str, heard)) == [f"square of {number}" for number in range(6)]


@pytest.mark.skipif(sys.platform == "win32", reason="other signals")
@pytest.mark.parametrize(
    ("die", "arguments", "told"),
    [
        (end_with, (0,), "exit code 0"),
        (end_with, (3,), "exit code 3"),
        (die_of, (signal.SIGSEGV,), "SIGSEGV"),
        (die_of, (signal.SIGKILL,), "SIGKILL; was it out of memory?"),
        (die_beside_a_child, (), "exit code 0"),
    ],
    ids=["exit 0", "exit 3", "SIGSEGV", "SIGKILL", "a child stays"],
)
def test_a_worker_that_dies_takes_one_task_with_it(
    pool: Workers, die: Callable[..., None], arguments: tuple[int, ...], told: str
) -> None:
    before = [pool.submit(square, number) for number in range(3)]
    lost = pool.submit(die, *arguments)
    after = [pool.submit(square, number) for number in range(3, 6)]
    with pytest.raises(WorkerDiedError) as caught:
        lost.result(timeout=120)
    assert str(caught.value) == f"its process died ({told})"
    assert [future.result(timeout=120) for future in before + after] == [0, 1, 4, 9, 16, 25]


def test_what_cannot_be_sent_is_an_error_of_its_task(pool: Workers) -> None:
    with pytest.raises(Exception, match="pickle"):
        pool.submit(lambda: None).result(timeout=120)
    assert pool.submit(square, 7).result(timeout=120) == 49


def test_a_stop_ends_what_runs(pool: Workers, tmp_path: Path) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    running = [pool.submit(sleep, str(path)) for path in paths]
    waiting = pool.submit(square, 1)
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    start = time.monotonic()
    pool.stop()
    for future in running:
        assert isinstance(future.exception(timeout=60), WorkerDiedError)
    assert time.monotonic() - start < 5
    assert not waiting.done()

"""Shards: the same results in the same order on any number of threads, and cores that processes share."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator

import pytest

from irl_exp.machinery import shards
from irl_exp.machinery.shards import holding_a_core, in_order, lending_the_core


@pytest.fixture
def cores() -> Iterator[None]:
    """Two cores for all processes of a launch."""
    shards.share_cores(multiprocessing.get_context("spawn").Semaphore(2))
    yield
    shards.share_cores(None)


def threads_of(count: int, threads: int) -> int:
    """How many threads have worked on so many shards."""
    seen: set[int] = set()

    def work(shard: int) -> None:
        seen.add(threading.get_ident())
        time.sleep(0.02)

    list(in_order(work, range(count), threads))
    return len(seen)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_shards(threads: int) -> None:
    def work(shard: int) -> int:
        time.sleep(0.01 * (shard % 3 == 0))
        return shard**2

    assert list(in_order(work, range(7), threads)) == [n**2 for n in range(7)]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_shard_is_that_of_the_caller_and_nothing_goes_on_behind(threads: int) -> None:
    running: list[int] = []

    def work(shard: int) -> None:
        running.append(shard)
        time.sleep(0.01)
        running.remove(shard)
        if shard == 1:
            raise ValueError("shard 1")

    with pytest.raises(ValueError, match="shard 1"):
        list(in_order(work, range(20), threads))
    assert running == []


def test_no_shards_give_no_results() -> None:
    assert list(in_order(lambda shard: shard, [], 4)) == []


def test_alone_a_process_uses_all_its_threads() -> None:
    assert threads_of(6, 3) == 3
    assert threads_of(1, 3) == 1


@pytest.mark.usefixtures("cores")
def test_processes_share_the_cores() -> None:
    with holding_a_core():
        assert threads_of(6, 4) == 2, "its own core and the one that nobody uses"
        shards._cores.acquire()  # another process works too
        assert threads_of(6, 4) == 1
        shards._cores.release()
        assert threads_of(6, 4) == 2, "what was taken for a moment was given back"
        with lending_the_core():  # this one waits, and others may have both
            assert [shards._cores.acquire(block=False) for _ in range(3)] == [True, True, False]
            shards._cores.release()
            shards._cores.release()


@pytest.mark.usefixtures("cores")
def test_cores_that_died_with_their_process_stop_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PATIENCE", 0.01)
    for _ in range(2):
        shards._cores.acquire()
    with holding_a_core(), lending_the_core():
        assert threads_of(3, 4) == 1
    assert not shards._cores.acquire(block=False), "what it never got it does not give"

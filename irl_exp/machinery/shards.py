"""Work that is cut into fixed shards: on as many threads as there are, with the same bytes as on one.

Threads inside an operation change the order of its sums, and so the last digits of everything after it. Here each
operation runs on one thread (runtime.prepare_process), a shard is computed whole on one of several, and results are
taken in the order of the shards. Libraries that compute outside of Python let the threads run at once.

Processes that work side by side share the cores of the machine: each holds one while it works, and takes another one
for a moment when nobody does.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

Shard = TypeVar("Shard")
Result = TypeVar("Result")

_cores: Any = None
"""A semaphore of the cores that processes of one launch share; none for a process that has the machine for itself."""

_holds = False
"""Whether this process has one of them."""

PATIENCE = 1.0
"""Seconds to wait for a core of one's own. Cores that died with their process never come back."""


def share_cores(cores: Any) -> None:
    """Let this process work with others on as many cores as the semaphore (of multiprocessing) counts."""
    global _cores
    _cores = cores


@contextmanager
def holding_a_core() -> Iterator[None]:
    """While this process works."""
    _take()
    try:
        yield
    finally:
        _give_back()


@contextmanager
def lending_the_core() -> Iterator[None]:
    """While this process waits for another one."""
    _give_back()
    try:
        yield
    finally:
        _take()


def _take() -> None:
    global _holds
    _holds = _cores is not None and _cores.acquire(timeout=PATIENCE)


def _give_back() -> None:
    """Only what was got: after a wait in vain there is nothing to give."""
    global _holds
    if _holds:
        _cores.release()
    _holds = False


def in_order(work: Callable[[Shard], Result], shards: Sequence[Shard], threads: int) -> Iterator[Result]:
    """The result of each shard, in their order. When the caller stops, so do the shards, and none goes on behind."""
    with _more_cores(min(threads, len(shards)) - 1) as more:
        if not more:
            yield from map(work, shards)
            return
        waiting = deque(_pool(1 + more).submit(work, shard) for shard in shards)
        try:
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)


@contextmanager
def _more_cores(wanted: int) -> Iterator[int]:
    """So many more cores as nobody uses, at most `wanted`."""
    if _cores is None:
        yield wanted
        return
    found = 0
    try:
        while found < wanted and _cores.acquire(block=False):
            found += 1
        yield found
    finally:
        for _ in range(found):
            _cores.release()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="shard")

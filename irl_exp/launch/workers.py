"""Processes that work for a launch, as an Executor of concurrent.futures.

A worker that dies takes its task with it and nothing else: each has a pipe and a thread of its own, so there is no lock
that it could leave taken, and its end is seen whatever its exit code says.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Work = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
Hear = Callable[[Any], None]

GLANCE = 1.0
"""Seconds between two looks at whether a silent worker lives: a child of its own may keep its pipe open."""
PATIENCE = 5.0
"""Seconds that a worker gets to close what it has open."""


class WorkerDiedError(Exception):
    """A process ended before its task did; says how."""

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(f"its process died ({_told(exitcode)})")


def _told(exitcode: int | None) -> str:
    if exitcode is None:
        return "it could not be started"
    if exitcode == -signal.SIGTERM.value or exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}; was it out of memory?" if name == "SIGKILL" else name


class Workers(Executor):
    """`count` processes that each do one task after the other; tasks begin in the order of their submission.

    Args:
        start: called in each new process with `arguments`, its place from 0 on, and a function that passes events on
            to `hear`.
        hear: takes these events, in threads of this process.
    """

    def __init__(
        self, count: int, *, start: Callable[..., None], arguments: tuple[Any, ...], hear: Callable[[Any], None]
    ) -> None:
        self._start, self._arguments, self._hear = start, arguments, hear
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Work] | None] = queue.SimpleQueue()
        self._lock, self._stopped = threading.Lock(), False
        self._workers: list[_Worker] = []
        self._threads = [threading.Thread(target=self._serve, args=(rank,), daemon=True) for rank in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A task; what it raises ends its worker, so it had better return its errors."""
        future: Future[T] = Future()
        self._tasks.put((future, (fn, args, kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers end when all is done."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def stop(self) -> None:
        """End all processes, whatever they do: SIGTERM to all of them, and SIGKILL to those that stay."""
        with self._lock:
            self._stopped = True
        for worker in self._workers:
            worker.process.terminate()
        try:
            deadline = time.monotonic() + PATIENCE
            for worker in self._workers:
                worker.process.join(max(0, deadline - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.process.kill()

    def _serve(self, rank: int) -> None:
        """One thread: a process does its tasks, and another takes the place of one that died."""
        worker: _Worker | None = None
        while not self._stopped and (task := self._tasks.get()) is not None:
            future, work = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._begin(rank)
                found = worker.do(work, self._hear)
            except Exception as error:
                exitcode = worker.bury() if worker else None
                future.set_exception(WorkerDiedError(exitcode) if isinstance(error, EOFError | OSError) else error)
                worker = None
            else:
                future.set_result(found)
        if worker:
            worker.end()

    def _begin(self, rank: int) -> _Worker:
        with self._lock:
            if self._stopped:
                raise EOFError
            worker = _Worker.begin(self._start, (*self._arguments, rank))
            self._workers.append(worker)
            return worker


@dataclass(frozen=True)
class _Worker:
    """A process, and this end of its pipe."""

    process: SpawnProcess
    pipe: Connection[Any, Any]

    @classmethod
    def begin(cls, start: Callable[..., None], arguments: tuple[Any, ...]) -> _Worker:
        processes = multiprocessing.get_context("spawn")
        here, there = processes.Pipe()
        process = processes.Process(target=_live, args=(there, start, arguments))
        process.start()
        there.close()
        return cls(process, here)

    def do(self, work: Work, hear: Hear) -> Any:
        """What the task returns.

        Raises:
            EOFError, OSError: the process is gone.
        """
        self.pipe.send(work)
        while True:
            alive = self.process.is_alive()
            if self.pipe.poll(GLANCE if alive else 0):
                done, content = self.pipe.recv()
                if done:
                    return content
                hear(content)
            elif not alive:
                raise EOFError

    def bury(self) -> int | None:
        """The exit code of a process that does not answer any more; one that is still there is ended."""
        self.process.join(GLANCE)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode

    def end(self) -> None:
        """Let the process end by itself."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(PATIENCE)
        self.bury()


def _live(pipe: Connection[Any, Any], start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In the process: one task after the other, until the launch says that it was the last, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the launch says what it means

    def tell(event: Any) -> None:
        try:
            pipe.send((False, event))
        except OSError:  # nobody is there for whom to work
            signal.raise_signal(signal.SIGTERM)

    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        start(*arguments, tell)
        while (work := pipe.recv()) is not None:
            function, args, kwargs = work
            pipe.send((True, function(*args, **kwargs)))

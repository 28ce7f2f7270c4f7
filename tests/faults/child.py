"""A process that answers one question after the other, so that one which hangs or dies costs one answer."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

MEMORY = 8 * 2**30


class Child:
    """Asks a function of a module in a process of its own, which is started anew after it hung or died."""

    def __init__(self, answer: Callable[[Any], Any], patience: float) -> None:
        self.answer, self.patience = answer, patience
        self.process: Any = None
        self.pipe: Connection

    def ask(self, question: object) -> Any:
        """The answer; an AssertionError if there is none in time, or no process left to give it."""
        if self.process is None:
            self._start()
        self.pipe.send(question)
        if not self.pipe.poll(self.patience):
            self.stop()
            raise AssertionError(f"no answer in {self.patience:.0f} s")
        try:
            return self.pipe.recv()
        except EOFError:
            code = self.process.join() or self.process.exitcode
            self.process = None
            raise AssertionError(f"its process died with {code}") from None

    def _start(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self.pipe, theirs = processes.Pipe()
        self.process = processes.Process(target=_work, args=(theirs, self.answer), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.poll(120), "the process does not start"
        assert self.pipe.recv() == "ready"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _work(pipe: Connection, answer: Callable[[Any], Any]) -> None:
    """Within a bound on memory: a machine that swaps answers nothing."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(answer(pipe.recv()))


@contextlib.contextmanager
def child(answer: Callable[[Any], Any], patience: float) -> Iterator[Child]:
    """One that is stopped at the end of the block."""
    found = Child(answer, patience)
    try:
        yield found
    finally:
        found.stop()

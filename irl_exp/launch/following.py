"""The launch follows its workers on other machines: events, and who has said nothing for too long."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # runtime imports torch
    from irl_exp.machinery.runtime import Event

FOLDER = "workers"
"""Below the launch: the lines and the log of each worker, and what the engine writes."""
GLANCE = 0.5
"""Seconds between two looks at the files."""


@dataclass
class Seen:
    """What is known of a worker.

    Attributes:
        about: its first line: host, pid, block, job, log, ...
        born, heard: when it first and last said something, by the clock of this process.
        tasks: tries that it has begun; `busy` is the one that it is at.
        worked: seconds that it was busy.
    """

    offset: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    born: float = 0.0
    heard: float = 0.0
    busy: int | None = None
    since: float = 0.0
    tasks: int = 0
    worked: float = 0.0

    @property
    def name(self) -> str:
        """For people."""
        job = self.about.get("job")
        return f"{self.about.get('host', 'a worker')}{f' (job {job})' if job else ''}"


class Followed:
    """The files of all workers of a launch, read by a thread of this process. Use as a context manager.

    Args:
        hear: takes the events of stages.
        silent: takes a worker that is at a task, and has said nothing for `patience` seconds; once.
    """

    def __init__(
        self, folder: Path, hear: Callable[[Event], None], silent: Callable[[Seen], None], patience: float
    ) -> None:
        self._folder, self._hear, self._silent, self._patience = folder, hear, silent, patience
        self.workers: dict[Path, Seen] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Followed:
        self._thread.start()
        return self

    def __exit__(self, *others: object) -> None:
        self._stopped.set()
        self._thread.join(10 * GLANCE)

    def at(self, key: int) -> Seen | None:
        """The worker that is at a try of a task."""
        return next((worker for worker in list(self.workers.values()) if worker.busy == key), None)

    def told(self) -> str:
        """What the workers did, on one line."""
        found = [worker for worker in self.workers.values() if worker.tasks]
        there, worked = (sum(times) for times in ([w.heard - w.born for w in found], [w.worked for w in found]))
        share = f", busy {worked / there:.0%} of their time" if there else ""
        return f"{len(found)} worker(s) did {sum(worker.tasks for worker in found)} tasks{share}"

    def _follow(self) -> None:
        while not self._stopped.wait(GLANCE):
            with contextlib.suppress(OSError):  # the file system answers again, or the patience of the user ends
                self.look()
        with contextlib.suppress(OSError):
            self.look()

    def look(self) -> None:
        """Read what is new. A file is opened anew each time: only then NFS asks its server."""
        now = time.monotonic()
        for path in sorted(self._folder.glob("*.jsonl")):
            worker = self.workers.setdefault(path, Seen(born=now, heard=now))
            with path.open("rb") as file:
                file.seek(worker.offset)
                told = file.read()
            whole = told[: told.rfind(b"\n") + 1]
            worker.offset += len(whole)
            for line in whole.splitlines():
                worker.heard = now
                self._take(worker, json.loads(line), now)
        for worker in list(self.workers.values()):
            if worker.busy is not None and now - worker.heard > self._patience:
                self._silent(worker)
                worker.busy = None

    def _take(self, worker: Seen, line: dict[str, Any], now: float) -> None:
        from irl_exp.machinery.runtime import Event

        kind = line.pop("kind")
        if kind == "worker":
            worker.about = line
        elif kind == "event":
            self._hear(Event(**line))
        elif kind == "begin":
            worker.busy, worker.since, worker.tasks = line["task"], now, worker.tasks + 1
        elif kind == "end":
            worker.busy, worker.worked = None, worker.worked + now - worker.since

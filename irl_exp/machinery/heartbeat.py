"""Who works on something in a folder that several machines share: locks save double work, beats tell who is alive.

Locks of a network file system may be missing, may be seen by one host alone, or may stay with a host that hangs. So a
lock decides nothing here. Who works on something rewrites a small file, its beat, four times a lease. Who waits for it
reads that file, and when it has not changed for a lease by the reader's own clock, its owner counts as lost. It may
come back: what it does then has to be harmless.

A thread beats, so a stage may compute outside of Python (torch, numpy) for as long as it likes. One call that keeps the
interpreter to itself for a lease looks like a lost host: another process then does the same work, and no more.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

VARIABLE = "IRL_EXP_LEASE"
LEASE = 180.0
"""Seconds; NFS may show a file as it was a minute ago."""

_BEATS = 4  # in a lease
_FORGOTTEN = 3  # leases after which nobody waits for a silent owner any more
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_EXITING = 0x4  # PF_EXITING of Linux: it ends, and keeps its files for a moment
_FIELDS = {"host": str, "process": int, "machine": str, "lease": float, "locked": bool}


class LeaseError(Exception):
    """A lease that is no time."""


def lease_here() -> float:
    """Seconds without a beat after which an owner counts as lost, as the environment says."""
    text = os.environ.get(VARIABLE) or str(LEASE)
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise LeaseError(f"{VARIABLE}={text} is not a number of seconds above 0: leave it away, for {LEASE:g}")


# -------------------------------------------------------------------------------------------------- locks


class Lock(Enum):
    """Who has a lock that was tried."""

    MINE = "this process"
    TAKEN = "another process"
    MISSING = "nobody: this file system has no locks"


@contextmanager
def trying(path: Path) -> Iterator[Lock]:
    """Take a lock for the block, if it is free; never wait.

    Raises:
        OSError: the file of the lock cannot be written.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
        found = Lock.MINE
    except Timeout:
        found = Lock.TAKEN
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        found = Lock.MISSING
    try:
        yield found
    finally:
        if found is Lock.MINE:
            with suppress(OSError):  # a server that forgot it: what was done under it holds
                lock.release()


# -------------------------------------------------------------------------------------------------- beats


@dataclass(frozen=True)
class Sign:
    """A beat as it was read: its text, and its time (s) by the clock of the file server."""

    text: str
    changed: float

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """What the owner wrote; nothing unless all of it is as it should be."""
        with suppress(ValueError):
            found = json.loads(self.text)
            if isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in _FIELDS.items()):
                return found
        return {}

    @property
    def owner(self) -> str:
        return f"process {self._fields['process']} on {self._fields['host']}" if self._fields else "unknown"

    @property
    def lease(self) -> float:
        """That of the owner, who beats as often as it asks for."""
        return float(self._fields.get("lease") or lease_here())

    @property
    def locked(self) -> bool:
        """Whether the owner has a lock that says the same; otherwise its beat is all that speaks for it."""
        return bool(self._fields.get("locked", True))

    def is_gone(self) -> bool:
        """Whether the owner has ended for sure, which only the kernel knows that it ran on."""
        if sys.platform == "win32" or self._fields.get("machine") != _machine():
            return False
        try:
            os.kill(self._fields["process"], 0)
        except ProcessLookupError:
            return True
        except OSError:  # of another user
            pass
        return _started(self._fields["process"]) not in (None, self._fields.get("started"))

    def is_young(self, now: float) -> bool:
        """Whether the last beat, of four a lease, is not overdue; `now` by the clock of the file server."""
        return now - self.changed < self.lease / (_BEATS - 1)

    def is_forgotten(self, now: float) -> bool:
        """Whether nobody waits for the owner any more; `now` by the clock of the file server."""
        return now - self.changed > _FORGOTTEN * self.lease


def read(path: Path) -> Sign | None:
    """A beat, if there is one. It is opened, which asks the server; a look at its times may be answered from memory."""
    try:
        with path.open("rb") as file:
            return Sign(file.read().decode(errors="replace"), os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return None
    except OSError:  # of its age nothing is known
        return Sign("", math.inf)


class Beat:
    """A file that says for the time of a block: this process is alive.

    Args:
        lease: seconds; four beats fall into it.
        locked: whether a lock says the same.
    """

    def __init__(self, path: Path, lease: float, *, locked: bool) -> None:
        self.path = path
        self._lease, self._count, self._end = lease, 0, threading.Event()
        process = os.getpid()
        self._fields = {"host": platform.node(), "process": process, "machine": _machine(), "lease": float(lease)}
        self._fields |= {"locked": locked, "started": _started(process), "job": os.environ.get("SLURM_JOB_ID")}
        self._thread = threading.Thread(target=self._go_on, name=f"beat of {path}", daemon=True)

    def __enter__(self) -> Beat:
        try:
            self._write(os.O_CREAT | os.O_TRUNC)
            self._thread.start()
        except BaseException:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join(timeout=1)  # it may hang at a server
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def beat(self) -> bool:
        """Beat now. False: somebody has removed the file, as after three leases of silence, and its owner is out."""
        try:
            self._write()
        except FileNotFoundError:
            return False
        except OSError:  # the next one may arrive
            pass
        return True

    def _go_on(self) -> None:
        while not self._end.wait(self._lease / _BEATS) and self.beat():
            pass

    def _write(self, flags: int = 0) -> None:
        """In place and of one length, so that nobody reads a half; never create again what was removed."""
        self._count += 1
        text = json.dumps(self._fields | {"beat": f"{self._count:012}"}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | flags, 0o666)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


_watched: dict[Path, tuple[Sign | None, float, float]] = {}  # what was read, when, and for how long before


def is_silent(path: Path, sign: Sign | None, lease: float) -> bool:
    """Whether a beat that is read again and again has not changed for a lease, by the clock of this process.

    What was seen while waiting for one result of an owner counts for its others. Between two looks a quarter of a lease
    counts at most: this process may have been stopped in that time, and the other one with it.
    """
    now = time.monotonic()
    lease = sign.lease if sign else lease
    before, looked, waited = _watched.get(path, (sign, now, 0.0))
    silent = waited + min(now - looked, lease / _BEATS) if sign == before else 0.0
    _watched[path] = (sign, now, silent)
    if silent >= lease > waited:
        logger.warning("no sign of life for %g s from %s: its work is done here", lease, sign.owner if sign else path)
    return silent >= lease


def clock(folder: Path) -> float:
    """Seconds by the clock of the file server: the time of a file that was made there just now."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


@functools.cache
def _machine() -> str:
    """Where a number names one process: this kernel since its start, and its table of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return platform.node()


def _started(process: int) -> str | None:
    """When a process of this machine was started; empty of one that ends, None where nobody can tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" or int(fields[6]) & _EXITING else fields[19]

"""What a launch writes into its folders: complete or not there, and one error that says where a disk failed."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

LEAST = 2**20
"""Bytes that a launch needs to begin with: about the files of one run."""


class WriteError(Exception):
    """A folder of runs that is full, read-only or closed: where, why, and what to do, in one line."""


@contextlib.contextmanager
def writing(folder: Path, *names: str) -> Iterator[None]:
    """Around what writes into a folder. After any exception the named files, halves maybe, do not stay.

    Raises:
        WriteError: instead of an error of the system.
    """
    try:
        yield
    except BaseException as error:
        for name in names:
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        if (cause := _of_the_system(error)) is None:
            raise
        raise WriteError(
            f"{folder} cannot be written ({cause.strerror or cause}; {_free(folder)}): free that place or make it "
            "writable, or start the launch in another folder"
        ) from error


def check_writable(folder: Path, *, least: int = LEAST) -> None:
    """Create the folder, and refuse it unless a file can be written there and enough space is left.

    Raises:
        WriteError: nothing has been created then.
    """
    probe, missing = folder / f".probe-{uuid.uuid4().hex}", [*_missing(folder)]
    try:
        with writing(folder, probe.name):
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()
        if shutil.disk_usage(folder).free < least:
            raise WriteError(f"{folder} has {_free(folder)} and needs {least >> 20} MiB: free some, or start elsewhere")
    except WriteError:
        for created in missing:
            with contextlib.suppress(OSError):
                created.rmdir()
        raise


def _missing(folder: Path) -> Iterator[Path]:
    """The folder and those above it that are not there, the deepest first."""
    for path in (folder, *folder.parents):
        if path.exists():
            return
        yield path


def _of_the_system(error: BaseException) -> OSError | None:
    """The error of the system that this is, or that has caused it; what is ours says already what it means."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError) and not type(cause).__module__.startswith("irl_exp."):
        cause = cause.__cause__
    return cause if isinstance(cause, OSError) else None


def _free(folder: Path) -> str:
    """Space and, where the file system counts them, files that are left."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    space = f"{shutil.disk_usage(place).free >> 20} MiB free"
    found = os.statvfs(place) if hasattr(os, "statvfs") else None
    return f"{space}, room for {found.f_favail} more files" if found and found.f_files else space

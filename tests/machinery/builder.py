"""A process on some host that wants artifacts: python builder.py ROOT LOG get|make [HOW ...]

It says in the folder LOG what it does: began-PID when it computes, waits-PID. It goes on when LOG/go or LOG/go-PID is
there, and prints "made" or "reused" of each artifact with what is in it. HOW: enosys, no locks here; unshared, locks
that no other process sees; elsewhere, another host; busy, computes outside of Python; rude, keeps the interpreter for
itself; dies, is killed while it computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from irl_exp.machinery.store import Identity, Store

IDENTITIES = [Identity("irl", 3, {"seed": seed}, {}) for seed in range(3)]


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def main(root: Path, log: Path, way: str, *how: str) -> None:
    me = os.getpid()
    if "enosys" in how:
        fcntl.flock = refuse  # type: ignore[assignment]
    if "unshared" in how:
        fcntl.flock = lambda *_: None  # type: ignore[assignment]
    if "elsewhere" in how:
        platform.node = socket.gethostname = lambda: "elsewhere"  # type: ignore[assignment]

    def compute(folder: Path) -> dict[str, Any]:
        (folder / "first").write_text("a")
        (log / f"began-{me}").open("a").write("x")
        if "dies" in how:
            os.kill(me, signal.SIGKILL)
        if "busy" in how:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
        if "rude" in how:
            ctypes.PyDLL(None).usleep(2_500_000)
        while not ((log / "go").exists() or (log / f"go-{me}").exists()):
            time.sleep(0.01)
        with contextlib.suppress(FileExistsError):
            (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "second").write_text("b")
        (folder / "by").write_text(str(me))
        return {}

    def compute_each(folders: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        for folder in folders.values():
            yield compute(folder)

    store = Store(root)
    found = store.make(IDENTITIES, compute_each) if way == "make" else []
    for identity in IDENTITIES if way == "make" else IDENTITIES[:1]:
        got = store.get(identity, compute, on_wait=lambda _: (log / f"waits-{me}").touch())
        made = any(artifact.digest == got.digest and not artifact.reused for artifact in [got, *found])
        files = {name: (got.folder / name).read_text() for name in sorted(got.manifest["files"])}
        print("made" if made else "reused", files["by"], *files, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])

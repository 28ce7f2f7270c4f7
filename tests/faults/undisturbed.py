"""What an undisturbed launch leaves, and what every launch must leave whatever happens to it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from conftest import Launched

from irl_exp.machinery.store import Identity, Store, read_manifest

COMMAND = ("scale=tiny", "tracking=none", "data.count=1000", "workers=1")
"""The whole chain in 10 s of a core."""

STAGES = (
    *("data", "reward", "sft", "rlhf", "baseline", "demonstrations", "features", "irl", "candidates", "explain"),
    *("refinetune", "second_judge", "judge", "evaluate"),
)
"""In the order in which they run."""

HINT = "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
PATIENCE = 120.0


@dataclass(frozen=True)
class Undisturbed:
    """A launch that nothing has happened to: its metrics by job, its store, and how long each stage took."""

    done: Launched
    metrics: Mapping[int, bytes]
    files: Mapping[str, str]
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, done: Launched) -> Undisturbed:
        store = store_of(done.cwd)
        metrics = {int(path.parent.name): path.read_bytes() for path in done.folder.glob("*/metrics.json")}
        seconds = {folder.parent.name: float(read_manifest(folder)["seconds"]) for folder in artifacts(store)}
        return cls(done, metrics, files_of(store), seconds)

    def check(self, done: Launched) -> None:
        """The launch ended with 0 and left the same, and nothing besides."""
        assert done.returncode == 0, told(done)
        found = Undisturbed.of(done)
        assert found.metrics == self.metrics, "metrics.json differs"
        store = store_of(done.cwd)
        check_store(store)
        assert temporary(store) == []
        others = sorted(name for name in found.files if found.files[name] != self.files.get(name))
        assert others == [], f"other bytes than undisturbed: {', '.join(others)}"
        assert found.files.keys() == self.files.keys()


def store_of(folder: Path) -> Path:
    """Where launches in this folder have their store."""
    return folder / "multirun" / "store"


def artifacts(store: Path) -> list[Path]:
    """What looks like a complete artifact."""
    return [path for path in sorted(store.glob("*/*")) if path.is_dir() and not path.name.startswith(".")]


def temporary(store: Path) -> list[str]:
    """Work in progress, or what was left of it."""
    return sorted(path.name for path in store.glob("*/.*.tmp-*")) + sorted(path.name for path in store.glob(".probe*"))


def files_of(store: Path) -> dict[str, str]:
    """sha256 of each file of each artifact, by its path in the store; manifests, which hold times, left out."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in artifacts(store)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def identity_of(folder: Path) -> Identity:
    return Identity(**read_manifest(folder)["identity"])


def check_store(store: Path) -> None:
    """Everything that looks like an artifact is a whole one."""
    for folder in artifacts(store):
        found = Store(store).find(identity_of(folder))
        assert found is not None, f"{folder} is not whole"
        assert found.folder == folder


def check_runs(folder: Path, undisturbed: Undisturbed) -> None:
    """Each run of any launch in a folder has the right metrics.json or none."""
    for path in folder.glob("multirun/chain/*/[0-9]*/metrics.json"):
        assert path.read_bytes() == undisturbed.metrics[int(path.parent.name)], f"{path} looks complete and is not"


# ------------------------------------------------------------------------------------------------- processes


def told(done: subprocess.CompletedProcess[str]) -> str:
    return f"ended with {done.returncode}: {(done.stderr.strip() or done.stdout.strip())[-1500:]}"


def check_message(done: subprocess.CompletedProcess[str], *named: str) -> None:
    """It failed with one message that names all of these, and nobody saw a traceback."""
    assert done.returncode not in (0, None), "it ended with 0"
    assert done.returncode > 0, f"it ended with signal {-done.returncode}"
    assert "Traceback" not in done.stdout + done.stderr, f"a traceback: {done.stderr.strip().splitlines()[-1]}"
    lines = [line for line in done.stderr.splitlines() if line.strip() and line != HINT]
    assert lines, "nothing was said"
    assert len(lines) <= 6, f"{len(lines)} lines, not one message: {lines[0]}"
    for word in named:
        assert word in done.stderr, f"{word!r} is not named: {lines[-1]}"


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; the process must live that long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode} before its time"
        assert time.monotonic() < deadline, f"nothing happened for {PATIENCE:.0f} s"
        time.sleep(0.003)


def computing(store: Path, stage: str) -> bool:
    """Whether a process computes an artifact of this stage."""
    return any(store.glob(f"{stage}/.*.tmp-*"))


def kill(process: subprocess.Popen[str]) -> None:
    """The launch and all of its processes, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def last_launch(folder: Path, name: str = "chain") -> Path:
    """Folder of the newest launch of a study."""
    return max(folder.glob(f"multirun/{name}/*"))


def statuses(launch: Path) -> list[str]:
    """What runs.csv says of each job."""
    import csv

    with (launch / "runs.csv").open(newline="", encoding="utf-8") as file:
        return [row["status"] for row in csv.DictReader(file)]


def plan_of(launch: Path) -> list[str]:
    """Folders of the jobs that a launch has planned."""
    plan = json.loads((launch / "plan.json").read_text(encoding="utf-8"))
    return [job["folder"] for job in plan["jobs"]]

"""A launch that goes on with a stopped one: in its group of W&B, where no run that had finished is logged again.

A group is named after the launch that began it. As long as a run of it has not finished in W&B, a launch of the same
jobs goes on with it, also on another machine that sees the folder; after that it begins a group of its own.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from irl_exp.config import Config
from irl_exp.machinery.heartbeat import Beat, Lock, clock, lease_here, read, trying
from irl_exp.machinery.tracking import read_record, write_record

log = logging.getLogger(__name__)

PLAN = "plan.json"
LOCK = ".tracking.lock"


def place(folder: Path, config: Config, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where W&B gets the runs of the launch in `folder`, as plan.json says it: its group, and the launches before it.

    Args:
        jobs: as in plan.json; equal jobs have equal results.
    """
    tracking = config.tracking
    where = {"mode": tracking.mode, "project": tracking.project, "entity": tracking.entity}
    launches = [] if tracking.mode == "none" else _stopped(folder, {"jobs": list(jobs), "tracking": where})
    home = launches[0] if launches else folder.name
    return {"tracking": where, "group": f"{config.name}/{home}", "continues": launches}


def _stopped(folder: Path, same: Mapping[str, Any]) -> list[str]:
    """The launches of the last group of the same jobs, in their order; none if all of its runs have finished."""
    for path in sorted(folder.parent.glob(f"*/{PLAN}"), reverse=True):  # named by their time
        plan = _read(path)
        if path.parent != folder and all(plan.get(key) == value for key, value in same.items()):
            launches = [*plan.get("continues", []), path.parent.name]
            lacking = [job for job in same["jobs"] if not _finished(folder.parent, launches, job["folder"])]
            return launches if lacking else []
    return []


def _finished(study: Path, launches: Sequence[str], job: str) -> dict[str, Any] | None:
    """The record of a job that has finished in W&B in one of these launches."""
    records = (read_record(study / launch / job) for launch in launches)
    return next((record for record in records if record and record["state"] == "finished"), None)


def _read(path: Path) -> dict[str, Any]:
    """A plan; nothing where there is none: the stock launchers of Hydra write none."""
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, changed: int) -> dict[str, Any]:
    """Once for all jobs of a process: a plan of 1,000 jobs is 130 kB."""
    plan = json.loads(path.read_text(encoding="utf-8"))
    return plan if isinstance(plan, dict) else {}


def group_of(launch: Path, name: str) -> str:
    """The group of W&B that the runs of a launch of the study `name` are in."""
    return str(_read(launch / PLAN).get("group") or f"{name}/{launch.name}")


def launches_of(launch: Path) -> list[Path]:
    """The launches of the group of this one, in their order; it is the last."""
    return [*(launch.parent / name for name in _read(launch / PLAN).get("continues", [])), launch]


def told(launch: Path) -> str:
    """What a launch that goes on with another one says of it; empty if it is the first."""
    *earlier, _ = launches_of(launch)
    if not earlier:
        return ""
    jobs = [job["folder"] for job in _read(launch / PLAN)["jobs"]]
    done = sum(bool(_finished(launch.parent, [path.name for path in earlier], job)) for job in jobs)
    return f"goes on with {earlier[0].name}: {done} of {len(jobs)} runs have finished in W&B and are not logged again"


@contextmanager
def once(folder: Path, mode: str) -> Iterator[str]:
    """How the job in `folder` is to be tracked: as `mode` says, or not where W&B has its run, or gets it right now."""
    if mode == "none":
        yield mode
        return
    *earlier, _ = launches = launches_of(folder.parent)
    with _claimed(launches[0] / folder.name / LOCK) as free:
        record = _finished(folder.parents[1], [path.name for path in earlier], folder.name)
        yield mode if free and not record else "none"
        if record:
            write_record(folder, record)


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether no living process tracks this run: the lock of one that died is free, one that hangs does not beat.

    At worst a run is logged twice.
    """
    beat = path.with_suffix(".beat")
    with ExitStack() as held:
        free = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(trying(path))
            if lock is not Lock.MINE and (sign := read(beat)):
                free = sign.is_gone() or clock(path.parent) - sign.changed > sign.lease
            else:
                free = lock is not Lock.TAKEN
            if free:
                held.enter_context(Beat(beat, lease_here(), locked=lock is Lock.MINE))
            else:
                log.info("another launch of the same command logs this run to W&B (%s)", path)
        except OSError as error:
            log.info("%s cannot be locked (%s)", path, error)
        yield free

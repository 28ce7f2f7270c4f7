"""A worker on another machine: it tells the launch what it does through a file below the launch, line by line.

Its lines are JSON: who it is, tasks that begin and end, events of stages, and beats, which say that it lives. The
file system that has the store carries them; no connection has to last for as long as a stage.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from irl_exp.launch import jobs as room
from irl_exp.launch.executors import enter, perform
from irl_exp.launch.jobs import PlannedJob
from irl_exp.launch.stops import unless_stopped

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.tasks import Work
    from irl_exp.machinery.runtime import Device, Event, Where
    from irl_exp.machinery.tracking import Mode

LAUNCH = "launch.pickle"
LOG_FILE = "hydra.job_logging.handlers.file.filename"
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "HOSTNAME")
"""Where the number of a pilot job stands in the environment; a pod is known by its name."""


@dataclass(frozen=True)
class Mission:
    """What all workers of a launch are told.

    Attributes:
        device: as planned; a worker that has another one refuses to work.
        beat: seconds between two signs of life.
        place: the folder that the launch was started in.
    """

    context: bytes
    tracking: Mode | None
    device: Device
    cores: int
    threads: int
    beat: float
    place: Path


class Lines:
    """The file of this worker."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, kind: str, **content: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"kind": kind, **content}) + "\n")
            self._file.flush()

    def event(self, event: Event) -> None:
        self.write("event", **asdict(event))


@dataclass(frozen=True)
class _Me:
    """This worker, once it has begun."""

    lines: Lines
    device: Device
    log: Path


_me: _Me | None = None


def work(folder: str, where: Where, key: int, payload: bytes) -> bytes:
    """One task, called by the engine. An exception says that this worker cannot do it, another one may.

    Args:
        key: names this try of the task.
    """
    import cloudpickle

    global _me
    _me = _me or _begin(Path(folder), where)
    with _told(_me.lines, key):
        return bytes(cloudpickle.dumps(perform(_as_found(cloudpickle.loads(payload), _me))))


def _as_found(task: Work, me: _Me) -> Work:
    """A task on the device of this worker, with its log."""
    if not isinstance(task, PlannedJob):
        return replace(task, device=me.device)
    if OmegaConf.select(task.composed, LOG_FILE):  # launch.log is written by the launch alone
        OmegaConf.update(task.composed, LOG_FILE, str(me.log))
    return task


@contextmanager
def _told(lines: Lines, key: int) -> Iterator[None]:
    lines.write("begin", task=key)
    try:
        yield
    finally:
        lines.write("end", task=key)


def _begin(folder: Path, where: Where) -> _Me:
    """Take over what the launch has settled, and begin to say what happens here.

    Raises:
        DeviceError: this is not what was planned.
    """
    import cloudpickle

    from irl_exp.machinery.runtime import check_declared, pinned

    mission: Mission = cloudpickle.loads((folder / LAUNCH).read_bytes())
    host, block = socket.gethostname(), os.environ["PARSL_WORKER_BLOCK_ID"]
    name = f"{host}-{where}-{block}-{os.getpid()}"
    log = folder / f"{name}.log"
    _write_into(log)
    os.chdir(mission.place)
    rank, count = (int(os.environ[f"PARSL_WORKER_{part}"]) for part in ("RANK", "COUNT"))
    _keep_to(mission.cores, rank)
    os.environ["CUDA_VISIBLE_DEVICES"] = pinned(_gpus(count), rank) if where == "gpu" else ""
    planned = mission.device if where == "gpu" else replace(mission.device, name="cpu")
    device = check_declared(planned, mission.threads)
    lines = Lines(folder / f"{name}.jsonl")
    job = next((os.environ[name] for name in SCHEDULERS if name in os.environ), "")
    about = {"host": os.environ.get("SLURMD_NODENAME", host), "job": job, "where": where, "block": block}
    lines.write("worker", **about, pid=os.getpid(), device=str(device), log=str(log))
    threading.Thread(target=_beat, args=(lines, mission.beat, os.getppid()), daemon=True).start()
    enter(mission.context, mission.tracking)
    room.planned = mission.device
    room.reporting = unless_stopped(lines.event)
    return _Me(lines, device, log)


def _gpus(count: int) -> list[str]:
    """The GPUs of this node, as the scheduler names them; else by their numbers, one a worker."""
    from irl_exp.machinery.runtime import gpus

    return gpus() if os.environ.get("CUDA_VISIBLE_DEVICES") else [str(number) for number in range(count)]


def _write_into(log: Path) -> None:
    """All that this process and its children say goes into one file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _keep_to(cores: int, rank: int) -> None:
    """The cores of one worker, where its node has as many for each."""
    if not hasattr(os, "sched_getaffinity"):
        return
    there = sorted(os.sched_getaffinity(0))
    if mine := there[rank * cores : (rank + 1) * cores]:
        os.sched_setaffinity(0, mine)


def _beat(lines: Lines, period: float, parent: int) -> None:
    """Say again and again that this process lives, until the one that gives it work is gone: then it ends."""
    while os.getppid() == parent:
        lines.write("beat")
        time.sleep(period)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(143)


GRACE = 10.0
"""Seconds to close what is open."""

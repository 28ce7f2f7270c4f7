"""A second pair of hands for a job that has a machine for itself: what no training waits for, meanwhile.

Trainings come one after the other, and leave a core idle wherever they work on one. A second process computes what
they do not need (the second judge, the statements) as soon as what it reads is in the store. The locks of the store see
to it that nothing is computed twice, and the job finds the results there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irl_exp.launch import jobs as room
from irl_exp.launch.jobs import PlannedJob
from irl_exp.launch.stops import stop_if_told, terminate_like_interrupt, unless_stopped
from irl_exp.launch.workers import Workers

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.console import Console
    from irl_exp.machinery.runtime import Device, Report
    from irl_exp.stages.step import Step

NUMBER = -1
"""Stands for the second process in reports."""
PAUSE = 2.0
"""Seconds between two looks for what can begin, at most: the longer nothing could, the longer."""


@dataclass(frozen=True)
class Ahead:
    """Steps that are computed beside their job, each as soon as what it reads is in the store."""

    steps: Sequence[Step]
    store: Path
    device: Device

    def run(self, report: Report) -> None:
        """Until all of them are there, whoever made them. A step that fails does so again in the job, which says it."""
        from irl_exp.launch import obtain
        from irl_exp.machinery.shards import holding_a_core
        from irl_exp.machinery.store import Store

        store = Store(self.store)
        reporter = obtain.Reporter(lambda stage, row: None, self.device, report, NUMBER)
        idle = time.monotonic()
        while _is_wanted() and (missing := [step for step in self.steps if step.identity not in store]):
            ready = [step for step in missing if all(one.identity in store for one in obtain.inputs(step))]
            if ready:
                try:
                    with holding_a_core():
                        made = obtain.first_free(ready, store, reporter)
                except obtain.StageError:
                    stop_if_told()
                    return
                if made:
                    idle = time.monotonic()
                    continue
            time.sleep(min(PAUSE, 0.05 + (time.monotonic() - idle) / 50))


def _is_wanted() -> bool:
    """Whether the launch is still there."""
    launch = multiprocessing.parent_process()
    return launch is None or launch.is_alive()


def steps_beside(steps: Mapping[str, Step], missing: Mapping[str, Step]) -> list[Step]:
    """The missing steps of a job that come ahead; none unless the job has something else to compute meanwhile."""
    from irl_exp.chain import AHEAD

    found = [step for step in steps.values() if step.identity.digest in missing]
    beside = [step for step in found if step.stage in AHEAD]
    return beside if any(step.stage not in (*AHEAD, "evaluate") for step in found) else []


@contextlib.contextmanager
def computing(steps: Sequence[Step], job: PlannedJob, console: Console) -> Iterator[None]:
    """While the job runs in this process, another one computes these steps of it; both share the cores."""
    if not steps:
        yield
        return
    import cloudpickle

    from irl_exp.machinery.runtime import cores, find_device
    from irl_exp.machinery.shards import holding_a_core, share_cores

    config = job.config
    device = find_device(config.device, config.precision, config.threads, config.batch_tokens, config.vllm)
    console.follow({NUMBER: job.number}, {NUMBER: [step.identity.digest for step in steps]})
    shared = multiprocessing.get_context("spawn").Semaphore(cores())
    second = Workers(1, start=_start, arguments=(shared,), hear=console.show)
    share_cores(shared)
    try:
        with holding_a_core():
            second.submit(_work, cloudpickle.dumps(Ahead(steps, config.store.dir, device)))
            yield
    finally:
        share_cores(None)
        second.stop()
        second.shutdown()


def _start(shared: Any, rank: int, tell: Report) -> None:
    """In the new process."""
    from irl_exp.machinery.shards import share_cores

    share_cores(shared)
    room.reporting = unless_stopped(tell)


def _work(payload: bytes) -> None:
    import cloudpickle

    assert room.reporting is not None
    with terminate_like_interrupt():
        cloudpickle.loads(payload).run(room.reporting)

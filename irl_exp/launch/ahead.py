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
from irl_exp.launch.stops import terminate_like_interrupt, told_to_stop, unless_stopped
from irl_exp.launch.workers import Workers

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.launch.console import Console
    from irl_exp.machinery.runtime import Device, Report
    from irl_exp.stages.step import Step

NUMBER = -1
"""Stands for the second process in reports."""
TRAININGS = ("sft", "rlhf", "irl", "refinetune")
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
        from irl_exp.machinery.shards import lending_the_core
        from irl_exp.machinery.store import Store

        store = Store(self.store)
        reporter = obtain.Reporter(lambda stage, row: None, self.device, report, NUMBER)
        idle = time.monotonic()
        while _is_wanted() and (missing := [step for step in self.steps if step.identity not in store]):
            ready = (step for step in missing if all(one.identity in store for one in obtain.inputs(step)))
            try:
                begun = obtain.first_free(ready, store, reporter)
            except obtain.StageError:
                if told_to_stop():
                    raise
                return
            if begun:
                idle = time.monotonic()
                continue
            with lending_the_core():
                time.sleep(min(PAUSE, 0.05 + (time.monotonic() - idle) / 20))


def _is_wanted() -> bool:
    """Whether the launch is still there."""
    launch = multiprocessing.parent_process()
    return launch is None or launch.is_alive()


def steps_beside(steps: Mapping[str, Step], missing: Mapping[str, Step]) -> list[Step]:
    """The missing steps of a job that its trainings do not need; none unless the job has something to do meanwhile."""
    from irl_exp.launch.obtain import ancestors

    line = {step.identity.digest for stage in TRAININGS if stage in steps for step in ancestors(steps[stage])}
    line |= {steps[stage].identity.digest for stage in TRAININGS if stage in steps}
    beside = [step for step in steps.values() if step.identity.digest not in line and step.stage != "evaluate"]
    return [step for step in beside if step.identity.digest in missing] if line & missing.keys() else []


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
    device = find_device(config.device, config.precision, config.threads, config.batch_tokens)
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

    from irl_exp.machinery.shards import holding_a_core

    assert room.reporting is not None
    with holding_a_core(), terminate_like_interrupt():
        cloudpickle.loads(payload).run(room.reporting)

"""What a launch shows while it works: a bar for each running stage, a line for each finished one, tables at the end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from irl_exp.report.cells import Outcome, without
from irl_exp.report.tables import Table, show, terminal

if TYPE_CHECKING:  # runtime imports torch
    from irl_exp.machinery.runtime import Event


LINES = 50
"""Of more jobs than that, only every second, third, ... that ends well gets a line."""


class Console:
    """Shows the events of one job stage by stage, of many jobs job by job. Use as a context manager."""

    def __init__(self, jobs: int, shared: Collection[str] = ()) -> None:
        """`shared` are the overrides of all jobs, which their lines leave out."""
        self.rich = terminal()
        self.jobs, self.finished, self.shared = jobs, 0, shared
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<40}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            console=self.rich,
            transient=True,
            disable=not self.rich.is_terminal,
        )
        self.total: TaskID | None = None
        self.running: dict[int, tuple[TaskID, str]] = {}
        self.seconds: dict[int, list[str]] = {}
        self.done: set[int] = set()
        self.waited: set[int] = set()
        self.lock = threading.RLock()
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        if self.jobs > 1:
            self.total = self.bars.add_task(f"{self.jobs} jobs", total=self.jobs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars away; what is said from now on stays."""
        self.bars.stop()

    @contextlib.contextmanager
    def working(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar for work after the jobs: call it with what is done, how much of it, and of how much."""
        with Progress(*self.bars.columns, console=self.rich, transient=True, disable=self.bars.disable) as bars:
            task = bars.add_task("report", total=None)
            yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)

    def say(self, text: str) -> None:
        self.rich.print(text, markup=False, soft_wrap=True)

    def show(self, event: Event) -> None:
        """One event of a job. Events of a pool come from another thread and may come after the job's end."""
        with self.lock:
            if event.job not in self.done:
                self._show(event)

    def _show(self, event: Event) -> None:
        if event.state in ("computing", "waiting"):
            self._bar(event)
            return
        self._remove_bar(event.job)
        if event.state == "computed":
            self.seconds.setdefault(event.job, []).append(f"{event.stage} {event.seconds:.1f} s")
        if self.jobs == 1:
            self.say(f"{event.stage:<22} {event.state:<9} {event.seconds:7.1f} s  {event.note}")

    def _bar(self, event: Event) -> None:
        job = f"job {event.job}: " if self.jobs > 1 and event.job >= 0 else ""
        waiting = " (another process computes it)" if event.state == "waiting" else ""
        text = f"{job}{event.stage}{waiting}"
        if event.job in self.running and self.running[event.job][1] != text:
            self._remove_bar(event.job)
        if event.job not in self.running:
            self.running[event.job] = (self.bars.add_task(text, total=None), text)
            if waiting and event.job not in self.waited:
                self.waited.add(event.job)
                self.say(f"{text}; waiting for it")
        if event.total:
            self.bars.update(self.running[event.job][0], completed=event.done, total=event.total)

    def _remove_bar(self, job: int) -> None:
        if job in self.running:
            self.bars.remove_task(self.running.pop(job)[0])

    def job_done(self, outcome: Outcome) -> None:
        """A job ended, well or not."""
        with self.lock:
            self._remove_bar(outcome.number)
            self.done.add(outcome.number)
        self.finished += 1
        if self.total is not None:
            self.bars.update(self.total, completed=self.finished)
        if outcome.status == "failed":
            self.say(f"job {outcome.number} ({outcome.name}) FAILED: {outcome.error}")
        elif outcome.status == "not run":
            self.say(f"job {outcome.number} ({outcome.name}) not run: {outcome.error}")
        elif self.jobs > 1 and (self.finished % -(-self.jobs // LINES) == 0 or self.finished == self.jobs):
            worked = ", ".join(self.seconds.get(outcome.number, [])) or "all from the store"
            auroc = (outcome.metrics or {}).get("irl/auroc")
            result = f"  AUROC {auroc:.3f}" if auroc is not None else ""
            self.say(f"[{self.finished}/{self.jobs}] {without(outcome.name, self.shared)}: {worked}{result}")

    def batch_done(self, number: int, steps: int, failure: str) -> None:
        """IRL fits that were computed together have ended, well or not."""
        with self.lock:
            self._remove_bar(number)
            self.done.add(number)
            seconds = time.monotonic() - self.started
        if failure:
            self.say(f"{steps} IRL fits together FAILED, so each job tries its own: {failure}")
        else:
            self.say(f"{steps} IRL fits together, done {seconds:.1f} s after the start")

    def tables(self, tables: Sequence[Table]) -> None:
        show(tables, self.rich)

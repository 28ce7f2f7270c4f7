"""What a launch shows while it works: a bar for each running stage, a line for each finished one, tables at the end.

On a terminal with the time to the end; in a file, which has no bars, a line now and then says how far it is. All that
is said also stands in launch.log, with the time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, cast

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from irl_exp.launch.forecast import Forecast, Running, about
from irl_exp.launch.log import Log
from irl_exp.launch.output import Output
from irl_exp.report.cells import Outcome, without
from irl_exp.report.tables import WIDTH, Table, lines, show, terminal

if TYPE_CHECKING:  # runtime imports torch
    from irl_exp.machinery.runtime import Event


LINES = 50
"""Of more jobs than that, only every second, third, ... that ends well gets a line."""
BEGUN = 5.0
"""Seconds after which a stage that still runs gets a line in a file."""
QUIET = 30.0
"""Seconds between two such lines, or a tenth of the time since the start: a launch of a day gets some 70."""


class Console:
    """Shows the events of one job stage by stage, of many jobs job by job. Use as a context manager."""

    def __init__(self, jobs: int, shared: Collection[str] = (), folder: Path | None = None) -> None:
        """`shared` are the overrides of all jobs, which their lines leave out; `folder` gets launch.log."""
        self.output = Output()
        self.rich = terminal(cast("IO[str]", self.output))
        self.jobs, self.finished, self.shared = jobs, 0, shared
        self.log = Log(folder)
        self.forecast = Forecast()
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<30}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.rich,
            transient=True,
            disable=not self.rich.is_terminal,
        )
        self.total: TaskID | None = None
        self.running: dict[int, Running] = {}
        self.tasks: dict[int, TaskID] = {}
        self.seconds: dict[int, list[str]] = {}
        self.owners: dict[int, int] = {}
        self.told: set[str] = set()
        self.done: set[int] = set()
        self.waited: set[int] = set()
        self.unheard = False
        self.lock = threading.RLock()
        self.started = self.spoken = time.monotonic()
        self.stopped = threading.Event()

    @property
    def stages(self) -> int:
        """Of a launch of one job: how many of its stages have to be computed."""
        return len({work.digest for works in self.forecast.needed.values() for work in works})

    def __enter__(self) -> Self:
        self.log.open()
        self.bars.start()
        what = f"{self.jobs} jobs" if self.jobs > 1 else f"{self.stages} stages to compute"
        self.total = self.bars.add_task(what, total=self.jobs if self.jobs > 1 else self.stages or None, left="")
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.log.close()

    def stop(self) -> None:
        """Take the bars away; what is said from now on stays."""
        self.stopped.set()
        self.bars.stop()

    @contextlib.contextmanager
    def working(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar for work after the jobs: call it with what is done, how much of it, and of how much."""
        with Progress(*self.bars.columns, console=self.rich, transient=True, disable=self.bars.disable) as bars:
            task = bars.add_task("report", total=None, left="")
            yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)

    def expect(self, forecast: Forecast) -> None:
        """What is known of the time that this launch takes."""
        self.forecast = forecast
        left = forecast.left(set(), {}, 0.0)
        if left:
            self.say(f"{about(left)} to the end, by what the like of it took before".capitalize())

    def follow(self, owners: Mapping[int, int], stages: Mapping[int, Sequence[str]]) -> None:
        """Stages that are computed for themselves, by the numbers that stand for them: job that needs them, digests.

        That their jobs wait for them need not be said.
        """
        self.owners |= owners
        self.waited |= set(owners.values())
        works = {work.digest: work for job in self.forecast.needed.values() for work in job}
        alone = {number: [works[one] for one in digests if one in works] for number, digests in stages.items()}
        self.forecast.needed = {**self.forecast.needed, **alone}

    def say(self, text: str) -> None:
        """A line; where a terminal ends, it goes on below."""
        self.log.write(text)
        self.rich.print(text, markup=False, soft_wrap=True)
        self._heard()

    def _heard(self) -> None:
        """Where standard output has ended, the log says so, once."""
        if self.output.trouble and not self.unheard:
            self.unheard = True
            self.log.write(f"nothing is written to standard output any more ({self.output.trouble}); this log goes on")

    def tell(self, text: str) -> None:
        """Say whole sentences, cut between words where the terminal ends."""
        self.log.write(text)
        self.rich.print(text, markup=False)

    def tables(self, tables: Sequence[Table]) -> None:
        for table in tables:
            self.log.write("\n".join([table.title, *lines(table, WIDTH), ""]))
        show(tables, self.rich)

    # ------------------------------------------------------------------------------------------ while jobs run

    def show(self, event: Event) -> None:
        """One event of a job. Events of a pool come from another thread and may come after the job's end."""
        with self.lock:
            if event.job not in self.done:
                self._show(event)

    def _show(self, event: Event) -> None:
        if event.state in ("computing", "waiting"):
            self._runs(event)
            return
        if event.state == "reused" and self._made_beside(event):
            event = replace(event, state="computed")
        self._ended(event.job)
        self.forecast.end(event.job, event.stage, event.seconds)
        if event.state == "computed":
            job = self.owners.get(event.job, event.job)
            self.seconds.setdefault(job, []).append(f"{event.stage} {event.seconds:.1f} s")
        if self.jobs == 1 and event.stage not in self.told:
            self.told.add(event.stage)
            if self.total is not None:
                self.bars.update(self.total, completed=len(self.forecast.ended))
            self.say(f"{event.stage:<22} {event.state:<9} {event.seconds:7.1f} s  {event.note}")

    def _made_beside(self, event: Event) -> bool:
        """Whether the one job finds what the process beside it has just made, and has not come to say."""
        others = (found for number, found in self.running.items() if self.owners.get(number) == event.job)
        return self.jobs == 1 and any(found.stage == event.stage and not found.waiting for found in others)

    def _runs(self, event: Event) -> None:
        """A stage begins, or is further than before."""
        waiting, found = event.state == "waiting", self.running.get(event.job)
        if found is None or (found.stage, found.waiting) != (event.stage, waiting):
            self._ended(event.job)
            found = self.running[event.job] = Running(event.stage, time.monotonic(), waiting)
            name = self._name(event.job)
            self.tasks[event.job] = self.bars.add_task(f"{name}{' (waits)' if waiting else ''}", total=None, left="")
            if waiting and event.job not in self.waited:
                self.waited.add(event.job)
                self.say(f"{name} (another process computes it); waiting for it")
        if event.total:
            found.done, found.total = event.done, event.total
            self.bars.update(self.tasks[event.job], completed=event.done, total=event.total)

    def _name(self, job: int) -> str:
        owner = self.owners.get(job, job)
        number = f"job {owner}: " if self.jobs > 1 and owner >= 0 else ""
        return f"{number}{self.running[job].stage}"

    def _ended(self, job: int) -> None:
        """Whatever ran for a job runs no more."""
        self.running.pop(job, None)
        if job in self.tasks:
            self.bars.remove_task(self.tasks.pop(job))

    def _watch(self) -> None:
        """Once a second: how long it will take, on the bars or from time to time as a line."""
        while not self.stopped.wait(1.0):
            with self.lock:
                now = time.monotonic()
                if self.bars.disable:
                    self._speak(now)
                else:
                    self._update(now)

    def _update(self, now: float) -> None:
        """The time to the end of each stage, and of all."""
        for job, task in self.tasks.items():
            self.bars.update(task, left=_left(self._left(job, now)))
        if self.total is not None:
            self.bars.update(self.total, left=_left(self.forecast.left(self.done, self.running, now)))

    def _left(self, job: int, now: float) -> float | None:
        found = self.running[job]
        return found.left(self.forecast.of_stage(job, found.stage), now)

    def _speak(self, now: float) -> None:
        """One line of what runs: when a stage turns out to take longer, and then from time to time."""
        new = self.jobs == 1 and any(now - BEGUN >= found.since >= self.spoken for found in self.running.values())
        due = now - self.spoken >= max(QUIET, (now - self.started) / 10)
        if not self.running or not (new or due):
            return
        self.spoken = now
        jobs = f"{self.finished} of {self.jobs} jobs done; "
        if self.jobs == 1:
            jobs = f"{len(self.forecast.ended)} of {self.stages} stages done; " if self.stages else ""
        more = f", and {len(self.running) - 4} more" if len(self.running) > 4 else ""
        told = ", ".join(self._far(job, now) for job in list(self.running)[:4])
        end = self.forecast.left(self.done, self.running, now)
        self.say(f"... {jobs}{told}{more}{f'; {about(end)} to the end of all' if end is not None else ''}")

    def _far(self, job: int, now: float) -> str:
        """How far a stage is."""
        found, left = self.running[job], self._left(job, now)
        done = f" {100 * found.done / found.total:.0f} %" if found.total else ""
        told = f"{self._name(job)}{' waits,' if found.waiting else done} after {now - found.since:.0f} s"
        return told if left is None else f"{told}, {_left(left)}"

    # --------------------------------------------------------------------------------------------- their ends

    def job_done(self, outcome: Outcome) -> None:
        """A job ended, well or not."""
        with self.lock:
            self._ended(outcome.number)
            self.done.add(outcome.number)
        self.finished += 1
        if self.total is not None and self.jobs > 1:
            self.bars.update(self.total, completed=self.finished)
        if outcome.status == "failed":
            self.say(f"job {outcome.number} ({outcome.name}) FAILED: {outcome.error}")
        elif outcome.status == "not run":
            self.say(f"job {outcome.number} ({outcome.name}) not run: {outcome.error}")
        elif self.jobs > 1 and (self.finished % -(-self.jobs // LINES) == 0 or self.finished == self.jobs):
            worked = ", ".join(self.seconds.get(outcome.number, [])) or "all from the store"
            metrics = outcome.metrics or {}
            kinds = {"irl/auroc": "AUROC", "irl/discrimination_auroc": "AUROC expert against reference"}
            result = next((f"  {told} {metrics[key]:.3f}" for key, told in kinds.items() if key in metrics), "")
            self.say(f"[{self.finished}/{self.jobs}] {without(outcome.name, self.shared)}: {worked}{result}")

    def batch_done(self, number: int, steps: int, failure: str) -> None:
        """IRL fits that were computed together have ended, well or not."""
        with self.lock:
            self._ended(number)
            self.done.add(number)
            seconds = time.monotonic() - self.started
        if failure:
            self.say(f"{steps} IRL fits together FAILED, so each job tries its own: {failure}")
        else:
            self.say(f"{steps} IRL fits together, done {seconds:.1f} s after the start")


def _left(seconds: float | None) -> str:
    """The time to the end of something; nothing where it is not known."""
    return "" if seconds is None else f"{about(seconds)} left"

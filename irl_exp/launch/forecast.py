"""How long a launch will still take: of running stages from their progress, of others from what they took before.

Before: in this launch, or else for the artifacts of the same stage in the store whose config and inputs are most like.
What has never been computed is not known, and said so. Nothing here is exact: jobs wait for each other, and machines
differ. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irl_exp.machinery.store import ArtifactError, read_manifest

if TYPE_CHECKING:  # not needed to show --help
    from irl_exp.launch.jobs import PlannedJob

Manifest = Mapping[str, Any]
RECORDS = 50
"""The manifests of so many artifacts of a stage are read."""
WHOLE = ("sft", "rlhf", "baseline", "demonstrations", "refinetune")
"""Stages whose progress is that of all they do; others report one part after the other."""
SOON = 0.02
"""Of a stage: before that much of it is done, its progress says nothing of its end."""
OVERDUE = 0.1
"""What takes longer than the like of it did takes that part of its time more, for all that is known."""


@dataclass(frozen=True)
class Work:
    """One computation that a launch needs: stage, identity, and the seconds that the like of it took; None: unknown."""

    stage: str
    digest: str
    recorded: float | None = None


@dataclass
class Running:
    """A stage of a job that is at work."""

    stage: str
    since: float
    waiting: bool = False
    done: int = 0
    total: int = 0

    def left(self, expected: float | None, now: float) -> float | None:
        """Seconds to its end; None where nothing is known."""
        elapsed = now - self.since
        if self.stage in WHOLE and self.total and self.done >= SOON * self.total:
            return elapsed * (self.total - self.done) / self.done
        return None if expected is None else max(OVERDUE * elapsed, expected - elapsed)


@dataclass
class Forecast:
    """What is left of a launch. Jobs tell it what they begin and end.

    Attributes:
        needed: what each job lacks, by its number; the same computation may be in many.
        workers: how many jobs run at once.
    """

    needed: Mapping[int, Sequence[Work]] = field(default_factory=dict)
    workers: int = 1
    ended: set[str] = field(default_factory=set)
    measured: dict[str, list[float]] = field(default_factory=dict)

    def expected(self, work: Work) -> float | None:
        """Seconds of a computation: as measured in this launch, else as recorded before."""
        if work.stage in self.measured:
            return statistics.fmean(self.measured[work.stage])
        return work.recorded

    def of_stage(self, job: int, stage: str) -> float | None:
        """Seconds that a stage of a job should take."""
        return next((self.expected(work) for work in self.needed.get(job, ()) if work.stage == stage), None)

    def end(self, job: int, stage: str, seconds: float) -> None:
        """The result of a stage of a job is there, and took so long to compute."""
        self.measured.setdefault(stage, []).append(seconds)
        self.ended |= {work.digest for work in self.needed.get(job, ()) if work.stage == stage}

    def left(self, over: set[int], running: Mapping[int, Running], now: float) -> float | None:
        """Seconds to the end of all jobs; None where a stage that is still to come is unknown.

        At least that of the longest job, and that of all work shared among the workers.
        """
        seconds: dict[str, float] = {}
        at_work = {
            work.digest: running[job]
            for job, works in self.needed.items()
            for work in works
            if job in running and running[job].stage == work.stage and not running[job].waiting
        }
        for digest, work in self._left(over).items():
            expected = self.expected(work)
            found = at_work[digest].left(expected, now) if digest in at_work else expected
            if found is None:
                return None
            seconds[digest] = found
        longest = max(
            (
                sum(seconds.get(work.digest, 0.0) for work in works)
                for job, works in self.needed.items()
                if job not in over
            ),
            default=0.0,
        )
        return max(longest, sum(seconds.values()) / max(1, self.workers))

    def _left(self, over: set[int]) -> dict[str, Work]:
        """What is still to be computed, each once."""
        return {
            work.digest: work
            for job, works in self.needed.items()
            if job not in over
            for work in works
            if work.digest not in self.ended
        }


def about(seconds: float) -> str:
    """A duration as far as it can be known: 'about 40 s', 'about 3 min', 'about 2 h 10 min', 'about 12 h'."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    tens = round(minutes / 10)
    return f"about {tens // 6} h {tens % 6}0 min" if tens < 60 and tens % 6 else f"about {round(minutes / 60)} h"


def forecast(jobs: Sequence[PlannedJob], missing: Collection[str], workers: int) -> Forecast:
    """What is known before a launch begins; `missing` are the digests of what it has to compute."""
    records: dict[Path, list[Manifest]] = {}
    works: dict[str, Work] = {}
    for job in jobs:
        for step in job.steps.values():
            folder, identity = job.config.store.dir / step.stage, step.identity
            if identity.digest in missing and identity.digest not in works:
                if folder not in records:
                    records[folder] = _some(folder)
                seconds = recorded(records[folder], {"config": identity.config, "inputs": identity.inputs})
                works[identity.digest] = Work(step.stage, identity.digest, seconds)
    needed = {
        job.number: [works[step.identity.digest] for step in job.steps.values() if step.identity.digest in works]
        for job in jobs
    }
    return Forecast(needed, workers)


def _some(folder: Path) -> list[Manifest]:
    """Manifests of some artifacts of a stage; one that is damaged says nothing."""
    found = [path for path in folder.glob("*/manifest.json") if not path.parent.name.startswith(".")]
    manifests: list[Manifest] = []
    for path in found[:RECORDS]:
        with contextlib.suppress(ArtifactError):
            manifests.append(read_manifest(path.parent))
    return manifests


def recorded(manifests: Sequence[Manifest], identity: Mapping[str, Any]) -> float | None:
    """Seconds that the like of it took: the median of those most like it, among those with the same counts.

    What costs time are counts (steps, completions, tokens); a sweep over a learning rate does not.
    """
    wanted = dict(_items(identity))
    counts = {(key, value) for key, value in wanted.items() if type(value) is int}
    scored = []
    for manifest in manifests:
        found = dict(_items(manifest["identity"]))
        if counts <= set(found.items()):
            scored.append((sum(wanted.get(key) == value for key, value in found.items()), manifest["seconds"]))
    best = max(scored, default=(0, 0.0))[0]
    return statistics.median(seconds for score, seconds in scored if score == best) if scored else None


def _items(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of an identity, but for seeds, which cost nothing; a list as its text."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _items(item, f"{prefix}{key}.")
        elif key != "seed":
            yield f"{prefix}{key}", str(item) if isinstance(item, list | tuple) else item

"""What runs and cells are called: a run by its overrides, a cell by its overrides without the seeds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Facts = Mapping[str, object]
"""Of config.json, flat: "reward.name", "irl.seed", "artifacts.rlhf", ...; what is not known is left out."""


@dataclass(frozen=True)
class Outcome:
    """How one job of a launch ended."""

    number: int
    name: str
    folder: Path
    status: str  # "completed", "failed" or "not run"
    seconds: float = 0.0
    error: str = ""
    metrics: Mapping[str, float] | None = None
    failed_step: str = ""  # identity of the stage that failed
    facts: Facts = field(default_factory=dict)

    @property
    def cell(self) -> str:
        return cell_of(self.name)


def without_controls(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The runs of a study itself; where there is none, its controls."""
    return [outcome for outcome in outcomes if not control_of(outcome.name)] or outcomes


def control_of(name: str) -> str:
    """The control of a study that a job is, by its name; "" for a run of the study itself."""
    found = re.search(r"(?:^|,)control=(\w+)", name)
    return found[1] if found else ""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted keys: {"irl": {"loss": {"name": "hinge"}}} has "irl.loss.name"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def cell_of(name: str) -> str:
    """The name of a job without its seeds: jobs of one cell differ in seeds only."""
    return re.sub(r"(^|,)\+*(\w+\.)*seed=(\d+|\$[^,]*)", "", name).strip(", ") or "default"


def overrides_of(cell: str) -> list[str]:
    """The overrides that a cell is named by; a list among them, `irl.ridge=[1,10]`, has commas of its own."""
    return re.split(r",(?![^\[{(]*[\]})])", cell)


def shared_overrides(names: Iterable[str]) -> list[str]:
    """The overrides that all of these cells (or jobs) are named by."""
    return sorted(set.intersection(*(set(overrides_of(name)) for name in names)) - {"default"})


def without(name: str, shared: Collection[str]) -> str:
    """The name of a cell (or a job) but for these overrides, so that a table shows what differs."""
    return ",".join(item for item in overrides_of(name) if item not in shared) or "default"

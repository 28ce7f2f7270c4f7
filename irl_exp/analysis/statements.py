"""Statements by seed: which of them come back in the runs of a cell, and with what effect.

Reads statements.json of each run (stages/explain.py), a list with the best statement first. A statement is known by its
family and name; the runs of a cell differ in their seeds alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from irl_exp.analysis import statistics
from irl_exp.analysis.statistics import Estimate
from irl_exp.analysis.study import NotComputed, Run, Study
from irl_exp.report.statements import FILE, NotExplained, read
from irl_exp.report.statements import Statement as Said
from irl_exp.report.tables import Table

COLUMNS = ("cell", "statement", "runs", "pays for", "effect, mean", "least, most", "certified in")
NONE = "no run was explained"
SHOWN = 20
"""Rows of the table a cell."""


@dataclass(frozen=True)
class Statement:
    """One statement in the runs of a cell.

    Attributes:
        found: share of the runs whose list has it; its interval is over runs (Wilson).
        runs: numbers of the runs that have it, and in their order:
        effects: in sd of the learned reward within a policy.
        certified: of each run, None where it knows no range.
    """

    cell: str
    family: str
    name: str
    found: Estimate
    runs: tuple[int, ...]
    effects: tuple[float, ...]
    certified: tuple[bool | None, ...]

    @property
    def pays(self) -> int:
        """Runs in which the reward pays for it; it charges for it in the others."""
        return sum(effect > 0 for effect in self.effects)


@dataclass(frozen=True)
class Statements:
    """The statements of a study, of each cell those first that most runs have, then those of the greatest mean effect.

    Attributes:
        empty: numbers of the runs whose list is empty: nothing could be said.
        without: numbers of the runs without a list.
    """

    found: tuple[Statement, ...]
    empty: tuple[int, ...]
    without: tuple[int, ...]

    def table(self, *, most: int = SHOWN) -> Table:
        """Of each cell the first `most` rows: what comes back, in how many runs, with what effect (sd of R)."""
        rows, shown = [], dict[str, int]()
        for one in self.found:
            shown[one.cell] = shown.get(one.cell, 0) + 1
            if shown[one.cell] <= most:
                rows.append(_row(one))
        return Table("Statements by seed: which come back", COLUMNS, tuple(rows), names=2)

    def frame(self) -> pd.DataFrame:
        """What a figure draws, a row a statement and run: cell, family, name, share, run, effect, certified.

        `share` is the share of runs that have the statement; certified is missing where there is no range.
        """
        columns = ("cell", "family", "name", "share", "run", "effect", "certified")
        rows = [
            (one.cell, one.family, one.name, one.found.value, *values)
            for one in self.found
            for values in zip(one.runs, one.effects, one.certified, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(columns)).astype({"certified": "boolean"})


def of(study: Study) -> Statements:
    """The statements of all runs of a study, its controls left out.

    Raises:
        NotComputed: no run has a list, or one cannot be read.
    """
    lists = {run.number: _read(run) for run in study.runs}
    if not any(found is not None for found in lists.values()):
        raise NotComputed(NONE)
    statements: list[Statement] = []
    for cell, runs in study.cells.items():
        having = [run.number for run in runs if lists[run.number] is not None]
        statements += _of_cell(cell, {number: lists[number] or [] for number in having})
    empty = tuple(number for number, found in lists.items() if found is not None and not found)
    return Statements(tuple(statements), empty, tuple(number for number, found in lists.items() if found is None))


def _read(run: Run) -> Sequence[Said] | None:
    if not (run.folder / FILE).is_file():
        return None
    try:
        return read(run.folder).statements
    except NotExplained as error:
        raise NotComputed(f"run {run.number}: {error}") from None


def _of_cell(cell: str, lists: dict[int, Sequence[Said]]) -> list[Statement]:
    """All statements of the runs of a cell, in the order of `Statements`."""
    places: dict[tuple[str, str], list[tuple[int, Said]]] = {}
    for number, found in lists.items():
        for one in found:
            places.setdefault((one.family, one.name), []).append((number, one))
    statements = [
        Statement(
            cell,
            family,
            name,
            statistics.wilson(len(having), len(lists)),
            tuple(number for number, _ in having),
            tuple(one.effect for _, one in having),
            tuple(one.certified for _, one in having),
        )
        for (family, name), having in places.items()
    ]
    return sorted(statements, key=lambda one: (-len(one.runs), -abs(float(np.mean(one.effects)))))


def _row(one: Statement) -> tuple[str, ...]:
    n, count = one.found.n, len(one.runs)
    known = [certified for certified in one.certified if certified is not None]
    return (
        one.cell,
        f"{one.name} ({one.family})",
        f"{count} of {n}",
        f"{one.pays} of {count}",
        f"{np.mean(one.effects):+.2f}",
        _extremes(one.effects),
        f"{sum(known)} of {len(known)}" if known else "-",
    )


def _extremes(effects: Sequence[float]) -> str:
    """An interval of runs, or nothing of one run."""
    return f"[{min(effects):+.2f}, {max(effects):+.2f}]" if len(effects) > 1 else "-"

"""The result of a launch as tables over runs and cells, and its files summary.md and runs.csv."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from irl_exp.report import statements
from irl_exp.report.cells import Outcome, overrides_of, shared_overrides, without, without_controls
from irl_exp.report.names import COMPARED, STUDY_METRICS, Words, words_of
from irl_exp.report.runs import run_tables
from irl_exp.report.tables import Table
from irl_exp.report.units import Units, interval
from irl_exp.report.verdict import of_launch


@dataclass(frozen=True)
class _Values:
    """One metric of the runs of a cell that have it."""

    of_runs: tuple[float, ...]
    units: Units

    @property
    def means(self) -> list[float]:
        return self.units.means(self.of_runs)


def _values(runs: Sequence[Outcome], key: str) -> _Values:
    having = [(run.metrics[key], run.facts) for run in runs if run.metrics and key in run.metrics]
    return _Values(tuple(value for value, _ in having), Units.of([facts for _, facts in having]))


def _by_cell(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The completed runs of each cell."""
    cells: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.metrics is not None:
            cells.setdefault(outcome.cell, []).append(outcome)
    return cells


def _units(cells: Mapping[str, Sequence[Outcome]]) -> dict[str, Units]:
    return {cell: Units.of([run.facts for run in runs]) for cell, runs in cells.items()}


def _counted(units: Mapping[str, Units]) -> str:
    """What n counts, for the title; nothing where it counts runs."""
    names = dict.fromkeys(found.name for found in units.values() if found.count)
    if set(names) <= {"runs"}:
        return ""
    means = any(found.count < len(found.of_run) for found in units.values())
    return f"; n counts {' or '.join(names)}{', each the mean of its runs' if means else ''}"


def study_table(outcomes: Sequence[Outcome]) -> Table:
    """Each metric over the completed runs of each cell: mean, t interval of the mean, sd, extremes, n.

    Mean, interval and sd are over the units that the cell drew anew (units.py), the extremes over runs. Overrides that
    all cells have in common are in the title.
    """
    rows = []
    shared = shared_overrides(outcome.cell for outcome in outcomes)
    for cell, members in _by_cell(outcomes).items():
        for key in STUDY_METRICS:
            if (values := _values(members, key)).of_runs:
                rows.append((without(cell, shared), key, *_spread(values)))
    done = sum(outcome.metrics is not None for outcome in outcomes)
    title = f"{done} of {len(outcomes)} runs completed{_everywhere(shared)}{_counted(_units(_by_cell(outcomes)))}"
    if any(row[1].endswith("toxic_fraction") for row in rows):
        title += _toxic_is(_words(outcomes))
    columns = ("cell", "metric", "mean", "95 % of the mean", "sd", "min", "max", "n")
    return Table(title, columns, tuple(rows), names=2)


def _words(outcomes: Sequence[Outcome]) -> Words:
    """The words of the reward, if it is of one kind in all jobs."""
    known = {words_of(outcome.facts) for outcome in outcomes if outcome.facts}
    return known.pop() if len(known) == 1 else Words()


def _toxic_is(words: Words) -> str:
    """The keys of metrics.json are the same whatever R* is; this says what they are."""
    return "" if words.below == "toxic" else f"; toxic_fraction is the share of {words.completions}"


def comparison_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """A row a cell: mean and half width of its t interval over units (units.py), below three of them the range.

    One table of the rewards and one of the policies.

    `placebo >=` is how many placebo runs (cells named irl=placebo) have an AUROC that reaches the cell's mean.
    Overrides that all cells have in common are in the title. Where runs of a cell have no result, or not all have a
    metric, the table says how many have.
    """
    cells: dict[str, list[Outcome]] = {outcome.cell: [] for outcome in outcomes}
    cells |= _by_cell(outcomes)
    units, sizes = _units(cells), Counter(outcome.cell for outcome in outcomes)
    several = len({found.name for found in units.values() if found.count}) > 1
    shared = shared_overrides(cells)
    tables = []
    for what, names in COMPARED.items():
        keys = [key for key in names if any(key in (run.metrics or {}) for runs in cells.values() for run in runs)]
        if "irl/auroc" in keys:  # with R*, telling the policies apart is not what is asked
            keys = [key for key in keys if key != "irl/discrimination_auroc"]
        placebo = _placebo(cells) if "irl/auroc" in keys else []
        rows = []
        for cell, runs in cells.items():
            columns = [_values(runs, key) for key in keys]
            place = [_place(columns[keys.index("irl/auroc")].means, placebo)] if placebo else []
            count = _count(units[cell], sizes[cell], named=several)
            means = (_mean(values, len(runs)) for values in columns)
            rows.append((without(cell, shared), *means, *place, count))
        header = (
            "cell",
            *(_words(outcomes).name(names[key]) for key in keys),
            *(["placebo >="] if placebo else []),
            "n",
        )
        title = f"{what.capitalize()}{_everywhere(shared)}: mean ± half of the 95 % t interval{_counted(units)}"
        own = [key for key in keys if not key.startswith("expert/")]  # the expert's stand beside others, never alone
        tables += [Table(title, header, tuple(rows))] if own else []
    return tables


def _everywhere(shared: Sequence[str]) -> str:
    return f" ({', '.join(shared)})" if shared else ""


def _placebo(cells: Mapping[str, Sequence[Outcome]]) -> list[float]:
    """AUROC of the runs with expert and baseline swapped at random."""
    members = [run for cell, runs in cells.items() if "irl=placebo" in overrides_of(cell) for run in runs]
    return list(_values(members, "irl/auroc").of_runs)


def _mean(values: _Values, runs: int) -> str:
    """Mean over units and half of its t interval, or the range; and of how many of the runs, if not of all."""
    if not values.of_runs:
        return "-"
    means = values.means
    mean, bounds = statistics.fmean(means), interval(means)
    told = f"{mean:.3f}"
    if bounds:
        told += f" ± {(bounds[1] - bounds[0]) / 2:.3f}"
    elif min(means) < max(means):
        told += f" ({min(means):.3f} to {max(means):.3f})"
    return told if len(values.of_runs) == runs else f"{told} (n = {len(means)})"


def _count(units: Units, jobs: int, *, named: bool) -> str:
    """How many units a cell has, `named` or not; of how many jobs, where some have no result."""
    runs = len(units.of_run)
    told = units.told if named and runs else str(units.count)
    if runs == jobs:
        return told
    return f"{told} ({runs} of {jobs} runs)" if named or units.count < runs else f"{runs} of {jobs}"


def _place(values: Sequence[float], placebo: Sequence[float]) -> str:
    """How many of the placebo's runs reach the mean of these."""
    if not values:
        return "-"
    return f"{sum(other >= statistics.fmean(values) for other in placebo)}/{len(placebo)}"


def _spread(values: _Values) -> tuple[str, ...]:
    """mean, interval of the mean, sd, min, max, n; what these units cannot tell is '-'."""
    means, runs = values.means, values.of_runs
    bounds = interval(means)
    low_high = f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "-"
    deviation = f"{statistics.stdev(means):.4f}" if len(means) > 1 else "-"
    ends = f"{min(runs):.3f}", f"{max(runs):.3f}"
    return f"{statistics.fmean(means):.3f}", low_high, deviation, *ends, str(len(means))


def failures_table(outcomes: Sequence[Outcome]) -> Table:
    """The jobs without a result, each with the reason."""
    lost = [outcome for outcome in outcomes if outcome.metrics is None]
    rows = tuple(
        (str(item.number), item.name, item.status, item.error.splitlines()[0] if item.error else "") for item in lost
    )
    return Table(f"{len(lost)} without a result", ("job", "overrides", "status", "reason"), rows)


FILES, DRAFT = ("runs.csv", "summary.md"), ".draft"
"""What `write` leaves, and the ending of what it has not finished."""


def write(folder: Path, outcomes: Sequence[Outcome]) -> list[Table]:
    """runs.csv with every metric of every job, and summary.md, which begins with the verdict: whole, or not there.

    Returns:
        The tables that are to be printed.
    """
    found, own = tables(outcomes), without_controls(outcomes)
    # Of many cells the terminal gets the comparison alone; the spread of each is a page of its own.
    spread = [study_table(own)] if len(_by_cell(own)) > 1 else []
    parts = [of_launch(outcomes).markdown(), *(table.markdown() for table in found + spread)]
    drafts = [folder / f"{name}{DRAFT}" for name in FILES]
    _write_runs(drafts[0], outcomes)
    drafts[1].write_text("\n".join(parts), encoding="utf-8")
    for draft in drafts:
        draft.replace(draft.with_suffix(""))
    return found


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """The result of one run, the spread over many, or the comparison of cells; and what has no result, controls too."""
    every, outcomes = outcomes, without_controls(outcomes)
    completed = [outcome for outcome in outcomes if outcome.metrics is not None]
    if len(outcomes) == 1 and completed:
        (run,) = completed
        found = run_tables(run.metrics or {}, run.facts, statements.of_run(run.folder, run.facts))
    elif len(_by_cell(outcomes)) > 1:
        found = comparison_tables(outcomes) or [study_table(outcomes)]
    else:
        found = [study_table(outcomes)] if completed else []
    if any(outcome.metrics is None for outcome in every):
        found.append(failures_table(every))
    return found


def _write_runs(path: Path, outcomes: Sequence[Outcome]) -> None:
    keys = sorted({key for outcome in outcomes for key in outcome.metrics or {}})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", "overrides", "cell", "status", "seconds", "error", *keys])
        for item in outcomes:
            values = [(item.metrics or {}).get(key, "") for key in keys]
            seconds = f"{item.seconds:.1f}" if item.seconds else ""  # another launcher of Hydra does not tell them
            writer.writerow([item.number, item.name, item.cell, item.status, seconds, item.error, *values])

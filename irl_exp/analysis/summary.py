"""All numbers of a study: summary.json, and the tables that are written as CSV; page and figures show the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.analysis import audit, published, redrawn, rewards, spread, statistics
from irl_exp.analysis.comparisons import COMPARED, comparisons
from irl_exp.analysis.statistics import NAN, Estimate
from irl_exp.analysis.study import NotComputed, Study, by_unit, units_of
from irl_exp.report.names import STUDY_METRICS
from irl_exp.report.units import interval

MANY = 200
"""Of more runs the agreement is that of the first so many: it grows with their square."""
FORMAT = 1


@dataclass(frozen=True)
class Summary:
    """What was found.

    Attributes:
        data: summary.json.
        tables: name of the CSV file -> table.
        open: what the demonstrations leave open, if it could be computed.
        audits: of planted goals and nulls, if there are any.
    """

    data: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    open: spread.Open | None = None
    missing: dict[str, str] = field(default_factory=dict)
    audits: tuple[audit.Audit, ...] = ()


def summarise(study: Study, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Summary:
    """Everything that the runs of a study can tell; what they cannot is in `not_computed`, with the reason."""
    tables = {"runs": _runs(study), "cells": _cells(study)}
    missing: dict[str, str] = {}
    data: dict[str, Any] = {
        "format": FORMAT,
        "study": study.name,
        "launch": study.folder.name,
        "n_jobs": study.n_jobs,
        "n_runs": len(study.runs),
        "lost": [{"job": lost.number, "name": lost.name, "reason": lost.reason} for lost in study.lost],
        "notes": list(study.notes),
        "shared_overrides": list(study.shared),
        "varying_seeds": study.varying_seeds,
        "cells": _nested(tables["cells"]),
    }
    found: dict[str, Callable[[], Any]] = {
        "comparisons": lambda: comparisons(study),
        "variance_components": lambda: _variance_components(study),
        "agreement": lambda: _agreement(study),
        "policies": lambda: _plain(spread.policies(study)),
        "published": lambda: published.table(study),
        "redrawn": lambda: redrawn.table(study),
        "spread_shares": lambda: {name: share.plain() for name, share in _shares(study).items()},
    }
    for name, compute in found.items():
        try:
            result = compute()
        except NotComputed as reason:
            missing[name] = str(reason)
            continue
        data[name] = _records(result) if isinstance(result, pd.DataFrame) else result
        if isinstance(result, pd.DataFrame):
            tables[name] = result
    opened = None
    try:
        opened = spread.left_open(study, progress=progress)
        data["left_open"] = _plain(spread.summary(opened))
        tables["left_open"] = opened.table()
    except NotComputed as reason:
        missing["left_open"] = str(reason)
    audits: list[audit.Audit] = []
    try:
        audits = audit.audits(study)
        data["audit"] = audit.plain(audits)
        tables |= {"audit": audit.by_audit(audits), "audit_nulls": audit.by_null(audits)}
    except NotComputed as reason:
        missing["audit"] = str(reason)
    data["not_computed"] = missing
    return Summary(data, tables, opened, missing, tuple(audits))


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows; what is not defined is left out."""
    return [{key: value for key, value in row.items() if value == value} for row in table.to_dict("records")]


def _runs(study: Study) -> pd.DataFrame:
    """A row a run: number, cell, the seeds that vary, all metrics."""
    seeds = pd.DataFrame([{f"seed:{key}": run.seeds[key] for key in study.varying_seeds} for run in study.runs])
    return pd.concat([study.metrics[["number", "cell"]], seeds, study.metrics.drop(columns=["number", "cell"])], axis=1)


def _cells(study: Study) -> pd.DataFrame:
    """A row a cell and metric: units, their mean, sd and typical value with intervals, and the extremes of runs."""
    rows = []
    for cell, key in itertools.product(study.cells, STUDY_METRICS):
        if having := [run for run in study.cells[cell] if key in run.metrics]:
            told = {"cell": cell, "metric": key, "unit": units_of(having).told, "runs": len(having)}
            rows.append({**told, **_of_units(by_unit(having, key), [run.metrics[key] for run in having])})
    return pd.DataFrame(rows)


def _of_units(values: Sequence[float], runs: Sequence[float]) -> dict[str, Any]:
    """Numbers of the means of units (report/units.py), and the extremes of runs."""
    typical, (low, high) = statistics.typical(values), interval(values) or (NAN, NAN)
    return {
        "n": len(values),
        "mean": float(np.mean(values)),
        "mean_low": low,
        "mean_high": high,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else NAN,
        "min": min(runs),
        "max": max(runs),
        "typical": typical.value,
        "typical_low": typical.low,
        "typical_high": typical.high,
        "method": typical.method,
    }


def _nested(cells: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """cell -> metric -> numbers; what is not defined is left out."""
    found: dict[str, dict[str, Any]] = {}
    for row in _records(cells):
        found.setdefault(row.pop("cell"), {})[row.pop("metric")] = row
    return found


def _variance_components(study: Study) -> pd.DataFrame:
    """Variances of the nested seeds, by cell and metric; the innermost seed is the residual."""
    seeds = study.varying_seeds
    if len(seeds) < 2:
        raise NotComputed(f"it needs two nested seeds or more; here varies {', '.join(seeds) or 'none'}")
    rows = []
    for cell, key in itertools.product(study.cells, COMPARED):
        runs = [run for run in study.cells[cell] if key in run.metrics]
        try:
            found = statistics.variance_components(
                [run.metrics[key] for run in runs],
                {name: [run.seeds[name] for run in runs] for name in seeds[:-1]},
                generator=np.random.default_rng(0),
            )
        except ValueError:
            continue  # a cell that has lost the runs it would take
        total = sum(max(item.value, 0.0) for item in found.values())
        for name, item in found.items():
            source = seeds[-1] if name == "residual" else name
            share = max(item.value, 0.0) / total if total else float("nan")
            rows.append({"cell": cell, "metric": key, "source": source, **_row(item), "share": share})
    if not rows:
        raise NotComputed("no cell has enough runs at each level of the seeds")
    return pd.DataFrame(rows)


def _row(item: Estimate) -> dict[str, Any]:
    return {"variance": item.value, "low": item.low, "high": item.high, "n": item.n, "method": item.method}


def _rewards(study: Study) -> tuple[pd.DataFrame, list[int]]:
    """Rewards on common completions, and the numbers of the runs that have them."""
    frame = study.rewards
    numbers = [] if frame is None else [column for column in frame if isinstance(column, int)]
    if frame is None or len(numbers) < 2:
        raise NotComputed("it needs two runs or more with a learned reward that were judged on the same completions")
    return frame, numbers[:MANY]


def _shares(study: Study) -> dict[str, Estimate]:
    frame, numbers = _rewards(study)
    _same_cell(study, numbers)
    return spread.shares(frame[numbers].to_numpy().T, frame["prompt_id"].to_numpy())


def _same_cell(study: Study, numbers: Sequence[int]) -> None:
    cells = {run.cell for run in study.runs if run.number in numbers}
    if len(cells) > 1:
        raise NotComputed(f"the runs are of {len(cells)} cells: their spread is not that of seeds alone")


def _agreement(study: Study) -> dict[str, Any]:
    """The rewards of all runs on the same completions, as `python -m irl_exp.analysis rewards` would read them."""
    frame, numbers = _rewards(study)
    learned = frame[numbers].to_numpy().T
    varied = np.ptp(learned, axis=1) > 0
    numbers = [number for number, kept in zip(numbers, varied, strict=True) if kept]
    truth = frame["truth"].to_numpy()
    if len(numbers) < 2 or (truth >= 0).all() or (truth < 0).all():
        raise NotComputed("it needs two rewards that are not constant, and completions of both labels")
    found = rewards.analyse(rewards.Rewards(truth, learned[varied], tuple(map(str, numbers))))
    return {**found.summary, "runs": numbers}


def _plain(value: Any) -> Any:
    """Estimates as JSON knows them."""
    if isinstance(value, Estimate):
        return value.plain()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value

"""The published spread, explained: from the paper's recipe to ours, one change at a time (study=published).

Every cell is named by the choices of the paper that it still has, `irl/published=[last_token,unbounded,...]`; each
takes back one of those of the cell before it. The threshold changes no reward, so its step is another accuracy of the
runs of the first cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.analysis.cell_names import overrides
from irl_exp.analysis.study import NotComputed, Run, Study
from irl_exp.report.cells import overrides_of

GROUP = "irl/published"
RECIPE = "the paper's recipe"
THRESHOLD = "threshold without R*"
CHANGES = {
    "last_token": "mean of the tokens",
    "last_layer": "three layers",
    "unbounded": "norm bound",
    "unscaled": "scaling",
    "all_weights_slowly": "larger steps, epoch by select",
    "all_weights": "frozen backbone, whitened",
    "few_pairs": "all pairs",
}
"""A choice of the paper -> what is done in its place once it is taken back."""
AT_ZERO, UNSUPERVISED = "pooled/irl/accuracy_at_zero", "pooled/irl/accuracy_unsupervised"
MAJORITY = "pooled/irl/majority_accuracy"
POOLED, WITHIN = "pooled/irl/auroc", "irl/auroc"
"""The paper's population, completions of expert and reference together, and those of the reference alone."""
AUTHOR = "pooled/author/auroc"
"""What a reward reaches there that knows who wrote a text, and nothing of R*."""
COLUMNS = ("accuracy", "AUROC", "AUROC, reference alone")
"""What the figure shows and the text tells."""
OTHERS = {
    "F1": ("pooled/irl/f1_at_zero", "pooled/irl/f1_unsupervised"),
    "Pearson": ("pooled/irl/pearson",) * 2,
    "Spearman": ("pooled/irl/spearman",) * 2,
    "Kendall": ("pooled/irl/kendall",) * 2,
}
"""The other columns of the paper's table: at threshold 0, and without R*."""


@dataclass(frozen=True)
class Step:
    """One row: what was changed last, the accuracy by the rule of that step, and the runs."""

    name: str
    accuracy: str
    runs: Sequence[Run]

    @property
    def measures(self) -> dict[str, str]:
        """Name -> metric of the columns of the table."""
        others = {name: keys[self.accuracy != AT_ZERO] for name, keys in OTHERS.items()}
        return {**dict(zip(COLUMNS, (self.accuracy, POOLED, WITHIN), strict=True)), **others}

    def values(self, key: str) -> list[float]:
        return [run.metrics[key] for run in self.runs if key in run.metrics]


def steps(study: Study) -> list[Step]:
    """The steps of a study, in the order of the launch.

    Raises:
        NotComputed: the cells are no such steps.
    """
    cells = {cell: _choices(cell) for cell in study.cells}
    if len(cells) < 2 or any(choices is None for choices in cells.values()):
        raise NotComputed(f"it needs cells that differ in {GROUP} alone, as those of study=published")
    found: list[Step] = []
    before: frozenset[str] = frozenset()
    for cell, choices in cells.items():
        runs, kept = study.cells[cell], choices or frozenset()
        if not found:
            found = [Step(RECIPE, AT_ZERO, runs), Step(THRESHOLD, UNSUPERVISED, runs)]
        else:
            told = ", ".join(CHANGES.get(choice, choice) for choice in sorted(before - kept))
            found.append(Step(told or cell, UNSUPERVISED, runs))
        before = kept
    if not any(step.values(step.accuracy) for step in found):
        raise NotComputed("no run has a learned reward that was judged against R*")
    return found


def _choices(cell: str) -> frozenset[str] | None:
    """The choices of the paper that a cell has; None where it is named by something else."""
    found = overrides(cell)
    if set(found) != {GROUP} or len(overrides_of(cell)) > 1:
        return None
    return frozenset(found[GROUP].strip("[]").split(",")) - {"none"}


def table(study: Study) -> pd.DataFrame:
    """A row a step and measure: runs, mean, sd over runs, extremes."""
    rows = []
    for step in steps(study):
        for name, key in step.measures.items():
            if values := step.values(key):
                sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
                numbers = {"n": len(values), "mean": float(np.mean(values)), "sd": sd}
                extremes = {"min": min(values), "max": max(values)}
                rows.append({"step": step.name, "measure": name, **numbers, **extremes})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------------ words

Row = Mapping[str, Any]


def text(records: Sequence[Row]) -> str:
    """What the rows of `table` say: the spread of the recipe, which step takes it away, and what is left."""
    by_measure: dict[str, dict[str, Row]] = {name: {} for name in COLUMNS}
    for row in records:
        by_measure.setdefault(row["measure"], {})[row["step"]] = row
    rows = {name: list(by_measure[name].values()) for name in COLUMNS if by_measure[name]}
    count = rows["accuracy"][0]["n"]
    recipe, ours = ([_told(found[end]) for found in rows.values()] for end in (0, -1))
    return " ".join(
        [
            f"{count} runs of the paper's recipe, on one set of demonstrations and with seeds of their own, have "
            f"{_listed(recipe)} (mean \N{PLUS-MINUS SIGN} sd over runs, least to most); accuracy is at threshold 0.",
            *(_falls(name, found) for name, found in rows.items() if all("sd" in row for row in found)),
            f"With all of these choices taken back there is left {_listed(ours)}.",
        ]
    )


def _falls(measure: str, rows: Sequence[Row]) -> str:
    """The sd of a measure step by step, and after which it fell most."""
    sds = {str(row["step"]): float(row["sd"]) for row in rows}
    names, chain = list(sds), [f"{name} {_sd(sd, measure)}" for name, sd in sds.items()]
    told = f"The sd of {measure}, step by step: {', '.join(chain)}"
    falls = {after: sds[before] - sds[after] for before, after in itertools.pairwise(names)}
    most = max(falls, key=falls.__getitem__)
    return f"{told}; it falls most with '{most}'." if falls[most] > 0 else f"{told}; no step lowers it."


def _told(row: Row) -> str:
    """A measure of a step with its spread: accuracies in percent."""
    percent = row["measure"] == "accuracy"
    form = _percent if percent else "{:.3f}".format
    sd = f" \N{PLUS-MINUS SIGN} {form(row['sd'])}" if "sd" in row else ""
    unit = " %" if percent else ""
    return f"{row['measure']} {form(row['mean'])}{sd}{unit} ({form(row['min'])} to {form(row['max'])}{unit})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _sd(value: float, measure: str) -> str:
    return f"{_percent(value)} points" if measure == "accuracy" else f"{value:.3f}"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + f" and {items[-1]}" if len(items) > 1 else items[0]

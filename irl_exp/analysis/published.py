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
LEVELS = {"majority class": MAJORITY, "AUROC of who wrote it": AUTHOR}
"""What a reward reaches that knows nothing of R*: the level of `accuracy`, and that of `AUROC`."""


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
        return {**dict(zip(COLUMNS, (self.accuracy, POOLED, WITHIN), strict=True)), **others, **LEVELS}

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
    levels = {name: next(iter(by_measure[name].values())) for name in LEVELS if name in by_measure}
    count = rows["accuracy"][0]["n"]
    recipe, ours = ([_told(found[end]) for found in rows.values()] for end in (0, -1))
    told = (
        f"{count} runs of the paper's recipe, on one set of demonstrations and with seeds of their own, have "
        f"{_listed(recipe)} (mean \N{PLUS-MINUS SIGN} sd over runs, least to most); accuracy is at threshold 0.",
        _known(levels),
        _falls({name: found for name, found in rows.items() if all("sd" in row for row in found)}),
        f"With all of these choices taken back there is left {_listed(ours)}.",
    )
    return " ".join(filter(None, told))


def _known(levels: Mapping[str, Row]) -> str:
    """What is reached without any reward."""
    majority, author = (levels[name]["mean"] if name in levels else None for name in LEVELS)
    told = [] if majority is None else [f"always the more frequent answer gives accuracy {_percent(majority)} %"]
    told += [] if author is None else [f"knowing who wrote a text, and nothing of R*, gives AUROC {author:.3f}"]
    return f"On the same texts {_listed(told)}." if told else ""


def _falls(measures: Mapping[str, Sequence[Row]]) -> str:
    """After which step the sd of each measure fell most; measures that share it are told together."""
    told: dict[str, list[str]] = {}
    for measure, rows in measures.items():
        before, after = max(itertools.pairwise(rows), key=lambda pair: pair[0]["sd"] - pair[1]["sd"])
        if after["sd"] < before["sd"]:
            sds = f"of {measure} from {_sd(before['sd'], measure)} to {_sd(after['sd'], measure)}"
            told.setdefault(str(after["step"]), []).append(sds)
    found = [f"with '{step}' ({_listed(sds)})" for step, sds in told.items()]
    if found:
        return f"One choice after the other is taken back; the sd falls most {_listed(found)}."
    return "No step lowers the sd of any of them." if measures else ""


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

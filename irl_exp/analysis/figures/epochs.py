"""The learned reward against R* after each epoch of IRL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import curves, drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.study import NotComputed, Study
from irl_exp.report.units import LEAST

CURVES = {
    "accuracy_at_zero": "accuracy, threshold 0",
    "auroc": "AUROC",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "kendall": "Kendall correlation",
}
CHANCE = {"auroc": 0.5, "pearson": 0.0, "spearman": 0.0, "kendall": 0.0}
FLOORS = {"accuracy_at_zero": "majority class", "auroc": "chance"}


def evaluated(study: Study) -> pd.DataFrame:
    """The curve `evaluate` of each learned reward: run, cell, step (an epoch) and the keys of CURVES."""
    kept = {run.number for runs in panels.learned(study).values() for run in runs}
    table = study.curves.get("evaluate", pd.DataFrame())
    if table.empty or "accuracy_at_zero" not in table:
        raise NotComputed(
            "No run has a curve of its reward against R* over epochs: the method has no epochs or several heads, or "
            "metrics.jsonl is missing."
        )
    table = table[table["run"].isin(kept)].drop_duplicates(["run", "step"], keep="last")
    return table[["run", "cell", "step", *(key for key in CURVES if key in table)]]


def over_epochs(study: Study) -> Picture:
    """The learned reward against R* after each epoch of IRL, on the test completions of the reference.

    Every thin line is a learned reward, the thick line is the mean. No epoch is chosen by these curves. Accuracy calls
    a completion civil where the reward is at least 0, a threshold that a pairwise loss leaves arbitrary; AUROC and
    correlations have no threshold. The log ratio of the policies is what their likelihoods say of the same completions.
    """
    table = evaluated(study)
    cells = list(dict.fromkeys(table["cell"]))
    spread = bool(table.groupby("cell")["run"].nunique().min() >= statistics.FEW)
    if len(cells) > len(panels.CELL_COLOURS):
        return _epochs_by_cell(study, table, cells, spread=spread)
    keys = [key for key in CURVES if key in table]
    figure, parts = panels.grid(6, 3, 2.2, sharex=True)
    legend = parts.pop(2)
    for key, axes in zip(keys, parts, strict=False):
        for cell, colour in zip(cells, panels.CELL_COLOURS, strict=False):
            curves.curve(axes, table[table["cell"] == cell], key, colour, spread=spread)
        axes.set_title(CURVES[key], fontsize=10)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _epoch_levels(axes, study, table, key)
    for axes in parts[2:]:
        axes.set_xlabel("epoch of IRL")
    for axes in [legend, *parts[len(keys) :]]:
        axes.set_axis_off()
    counts, colours = table.groupby("cell")["run"].nunique(), dict(zip(cells, panels.CELL_COLOURS, strict=False))
    handles = curves.legend(study, counts, colours, "a run", spread=spread)
    legend.legend(handles=handles, loc="center left", borderaxespad=0)
    figure.reading.append(curves.band_told(counts, spread=spread))
    panels.headline(figure, f"Learned rewards against R* over epochs, {number_of(table)}")
    return figure


def number_of(table: pd.DataFrame) -> str:
    """How many learned rewards have a curve."""
    return panels.count(int(table["run"].nunique()), "learned reward")


def _epoch_levels(axes: Axes, study: Study, table: pd.DataFrame, key: str) -> None:
    """What needs no learned reward, and the log ratio, each where all cells have the same."""

    cells = list(table["cell"].unique())

    def shared(name: str) -> float | None:
        values = [study.values(name, cell) for cell in cells]
        return panels.agreed([float(np.mean(row)) for row in values]) if all(values) else None

    last = float(table.loc[table["step"] == table["step"].max(), key].mean())
    ratio = shared(f"implicit/{key}")
    floor = CHANCE.get(key, shared("irl/majority_accuracy"))
    if ratio is not None:
        panels.level(axes, ratio, "log ratio", colour=drawing.BLUE, below=last > ratio)
    if floor is not None:
        panels.level(axes, floor, FLOORS.get(key, "unrelated"), below=last > floor)


def _epochs_by_cell(study: Study, table: pd.DataFrame, cells: Sequence[str], *, spread: bool) -> Picture:
    """A panel a cell with all five measures in it."""
    names, shown = labels(study), cells[: panels.MOST_PANELS]
    colours = dict(zip(CURVES, (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.PURPLE, "black"), strict=True))
    figure, parts = panels.grid(len(shown), 4, 2.1, width=10, sharex=True, sharey=True)
    for cell, axes in zip(shown, parts, strict=True):
        rows = table[table["cell"] == cell]
        for key in [key for key in CURVES if key in rows]:  # a set has another order each time
            curves.curve(axes, rows, key, colours[key], spread=spread)
        axes.set_title(f"{names[cell]}\n(n = {rows['run'].nunique()})", fontsize=panels.SMALL, weight="normal")
    panels.bottom(parts, 4, "epoch of IRL")
    handles: list[Any] = [Line2D([], [], color=colour, label=CURVES[key]) for key, colour in colours.items()]
    counts = table.groupby("cell")["run"].nunique()
    if counts.max() >= LEAST:
        band = f"line: mean, band: {curves.band_name(spread=spread)}"
        handles.append(Patch(color=drawing.GREY, alpha=0.3, label=band))
    figure.reading.append(curves.band_told(counts, spread=spread))
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    panels.headline(figure, f"Learned rewards against R* over epochs, {number_of(table)}{panels.only(cells)}")
    return figure


FIGURES = {"over_epochs": over_epochs}
"""Name of the file -> figure."""

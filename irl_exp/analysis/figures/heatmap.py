"""Accuracy of each learned reward after each epoch, as an image."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, epochs, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.statistics import Floats
from irl_exp.analysis.study import Run, Study

Scale = tuple[float, float]
"""Ends of a colour scale."""


def accuracy_heatmap(study: Study) -> Picture:
    """Accuracy at threshold 0 of each learned reward (a row) after each epoch (a column), on the test completions.

    Rows are sorted by seed, not by result. All panels have one colour scale, on which the accuracy of always answering
    the more frequent class is marked: what is darker than the mark is worse than no reward at all. A pairwise loss
    leaves the threshold arbitrary, so rows differ in more than how well the reward orders completions. White: no
    value.
    """
    table = epochs.evaluated(study)
    blocks = _blocks(study, table)
    majority = [run.metrics["irl/majority_accuracy"] for runs in panels.learned(study).values() for run in runs]
    values = table["accuracy_at_zero"]
    low, high = float(values.min()), float(values.max())
    if abs(np.mean(majority) - (low + high) / 2) < 1.5 * (high - low):
        low, high = min(low, *majority), max(high, *majority)
    scale = (low, high if high > low else low + 0.01)
    if len(blocks) > len(panels.CELL_COLOURS):
        figure, parts, image = _stacked(study, blocks, scale)
    else:
        figure, parts, image = _side_by_side(study, blocks, scale)
    bar = figure.colorbar(image, ax=parts, label="accuracy, threshold 0", fraction=0.05, pad=0.02, aspect=40)
    _mark(bar.ax, min(majority), max(majority), scale)
    title = f"Accuracy at threshold 0 of {epochs.number_of(table)} over epochs"
    panels.headline(figure, title)
    return figure


def _blocks(study: Study, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Cell -> accuracy (runs sorted by seed, epochs); the index holds the seeds as text."""
    runs = {run.number: run for run in study.runs}
    last = int(table["step"].max())
    found = {}
    for cell, rows in table.groupby("cell", sort=False):
        wide = rows.pivot_table(index="run", columns="step", values="accuracy_at_zero")
        wide = wide.reindex(columns=range(1, last + 1))
        order = sorted(wide.index, key=lambda number: (study.seed_of(runs[number]), number))
        wide = wide.loc[order]
        wide.index = pd.Index([_seed(study, runs[number]) for number in order])
        found[str(cell)] = wide
    return found


def _seed(study: Study, run: Run) -> str:
    values = study.seed_of(run) or tuple(value for key, value in run.seeds.items() if key == "seed")
    return "/".join(map(str, values)) or str(run.number)


def _image(axes: Axes, values: Floats, scale: Scale) -> Any:
    rows, columns = values.shape
    axes.set_xlabel("epoch of IRL")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    extent = (0.5, columns + 0.5, rows - 0.5, -0.5)
    return axes.imshow(values, aspect="auto", interpolation="nearest", extent=extent, vmin=scale[0], vmax=scale[1])


def _thin(count: int, most: int) -> list[int]:
    """Evenly spaced places of at most `most` of `count` tick labels.

    >>> _thin(3, 10), _thin(50, 10)
    ([0, 1, 2], [0, 5, 10, 15, 20, 25, 30, 35, 40, 45])
    """
    return list(range(0, count, -(-count // most)))


def _side_by_side(study: Study, blocks: dict[str, pd.DataFrame], scale: Scale) -> tuple[Picture, list[Axes], Any]:
    columns = min(3, len(blocks))
    most = max(map(len, blocks.values()))
    height = float(np.clip(0.16 * most + 0.8, 1.8, 5.2))
    figure, parts = panels.grid(len(blocks), columns, height, width=6.4 if columns == 1 else 9.0)
    names = labels(study)
    seeds = " / ".join(study.varying_seeds) or "seed"
    for number, ((cell, block), axes) in enumerate(zip(blocks.items(), parts, strict=True)):
        image = _image(axes, block.to_numpy(), scale)
        places = _thin(len(block), max(4, int(height / 0.18)))
        axes.set_yticks(places, [str(block.index[place]) for place in places], fontsize=panels.SMALL)
        if number % columns == 0:
            axes.set_ylabel(f"run, by {textwrap.fill(seeds, 40)}")
        if len(blocks) > 1:
            axes.set_title(f"{names[cell]} (n = {len(block)})", fontsize=9, weight="normal")
    return figure, parts, image


def _stacked(study: Study, blocks: dict[str, pd.DataFrame], scale: Scale) -> tuple[Picture, list[Axes], Any]:
    """One panel: cells above each other, in each its runs by seed, a white line between."""
    names = labels(study)
    sizes = [len(block) for block in blocks.values()]
    ends = np.cumsum(sizes)
    lines = [names[cell].count("\n") + 1 for cell in blocks]
    figure = drawing.new(8, float(np.clip(0.17 * max(sum(lines) * 1.1, ends[-1] * 0.6), 3, 60)) + 1)
    axes = figure.add_subplot()
    image = _image(axes, np.vstack([block.to_numpy() for block in blocks.values()]), scale)
    axes.hlines(ends[:-1] - 0.5, *axes.get_xlim(), color="white", linewidth=2)
    axes.set_yticks(ends - np.array(sizes) / 2 - 0.5, [names[cell] for cell in blocks], fontsize=panels.SMALL)
    axes.tick_params(left=False)
    seeds = " / ".join(study.varying_seeds) or "seed"
    axes.set_title(f"rows: runs of a cell, by {seeds}", fontsize=9, weight="normal")
    return figure, [axes], image


def _mark(bar: Axes, low: float, high: float, scale: Scale) -> None:
    """The majority class (of all runs: from low to high) on the colour bar; an arrow where the scale ends before it."""
    text = f"majority class {low:.3f}" + (f" to {high:.3f}" if high - low > 5e-4 else "")
    middle = (low + high) / 2
    if scale[0] <= low and high <= scale[1]:
        for edge in {low, high}:
            bar.axhline(edge, color="white", linewidth=3)
            bar.axhline(edge, color="black", linewidth=1.2)
        bar.annotate(
            text, (-0.25, middle), xycoords=bar.get_yaxis_transform(), rotation=90, ha="right", va="center",
            fontsize=panels.SMALL,
        )  # fmt: skip
    else:
        arrow, y, va = ("↓", -0.02, "top") if middle < scale[0] else ("↑", 1.02, "bottom")
        bar.text(0.5, y, f"{arrow} {text}", transform=bar.transAxes, ha="center", va=va, fontsize=panels.SMALL)


FIGURES = {"accuracy_heatmap": accuracy_heatmap}
"""Name of the file -> figure."""

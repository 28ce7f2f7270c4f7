"""What figures of a study share: names of cells, grids of panels, named levels, numbers with their intervals."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from irl_exp.analysis import figures, statistics
from irl_exp.analysis.statistics import Estimate, Floats
from irl_exp.analysis.study import Run, Study

CELL_COLOURS = (figures.ORANGE, figures.BLUE, figures.GREEN, figures.PURPLE, "#56B4E9", "#000000")
"""Of up to six cells, told apart with any common colour vision. More cells get a panel or a row each."""
MOST_PANELS = 40
MANY_POINTS = 2000
"""From here on marks are drawn as pixels: a PDF of a hundred thousand vectors opens slowly."""
SMALL = 8
"""Points; the smallest text of a figure."""


def labels(study: Study, width: int = 30) -> dict[str, str]:
    """Short names of cells in lines of `width` letters: `loss=hinge` of `irl/loss=hinge` where no other ends alike."""
    items = {cell: re.split(r",(?![^\[{(]*[\]})])", cell) for cell in study.cells}
    keys = {item.partition("=")[0] for row in items.values() for item in row}
    short = {key: _ending(key, keys) for key in keys}

    def name(item: str) -> str:
        key, equals, value = item.partition("=")
        return f"{short[key]}{equals}{value}" if equals else item

    return {cell: textwrap.fill(", ".join(map(name, row)), width) for cell, row in items.items()}


def _ending(key: str, keys: set[str]) -> str:
    """The last parts of a dotted name that no other of the names ends with."""
    parts = re.split(r"[./]", key)
    for start in range(len(parts) - 1, 0, -1):
        ending = ".".join(parts[start:])
        if not any(re.sub("/", ".", other).endswith(f".{ending}") for other in keys - {key}):
            return ending
    return key


def distinct(runs: Sequence[Run], stage: str) -> list[Run]:
    """The first run of each artifact of a stage; a run that names none stands for itself."""
    found: dict[object, Run] = {}
    for run in runs:
        found.setdefault(run.artifact(stage) or run.number, run)
    return list(found.values())


def agreed(values: Sequence[float], within: float = 0.005) -> float | None:
    """The mean of values that agree, else None: runs on other demonstrations differ a little in such a level."""
    return float(np.mean(values)) if values and max(values) - min(values) <= within else None


def alpha(count: int) -> float:
    """Of one of many lines or points: many make a cloud, few are seen each."""
    return float(np.clip(8 / max(count, 1), 0.02, 0.6))


def number(value: float) -> str:
    """Three significant digits, or integers where they are large.

    >>> number(0.7777), number(-12.345), number(0.0)
    ('0.778', '-12.3', '0.000')
    """
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def interval(found: Estimate) -> str:
    """As a table has it: the number, and its bounds where it has any.

    >>> interval(statistics.mean_t([1.0, 2.0, 3.0])), interval(statistics.mean_t([1.0]))
    ('2.000 [-0.484, 4.484]', '1.000')
    """
    bounds = "" if np.isnan(found.low) else f" [{number(found.low)}, {number(found.high)}]"
    return f"{number(found.value)}{bounds}"


def typical(values: Sequence[float] | Floats) -> Estimate:
    """As the tables say it."""
    return statistics.typical(values, generator=np.random.default_rng(0))


def count(number: int, word: str, words: str | None = None) -> str:
    """A number with its noun.

    >>> count(1, "run"), count(1200, "run"), count(2, "policy", "policies")
    ('1 run', '1,200 runs', '2 policies')
    """
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def grid(count: int, columns: int, height: float, width: float = 9.0, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `columns`; height of a row in inches. Cells of the last row stay empty."""
    rows = -(-count // columns)
    figure = figures.new(width, max(2.4, rows * height + 0.8))
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, list(axes[:count])


def level(axes: Axes, value: float, text: str, *, colour: str = figures.GREY, below: bool) -> None:
    """A horizontal line with its name on it; where it would squeeze the data into a corner, an arrow says where."""
    low, high = axes.get_ylim()
    room = 0.8 * (high - low)
    name, paper = f"{text} {number(value)}", {"facecolor": "white", "edgecolor": "none", "alpha": 0.5, "pad": 0.6}
    if low - room <= value <= high + room:
        axes.axhline(value, color=colour, linestyle="--", linewidth=1, zorder=1)
        offset = (-2, -2 if below else 2)
        at: tuple[float, float] = (1.0, value)
        axes.annotate(
            name, at, offset, xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="right",
            va="top" if below else "bottom", color=colour, fontsize=SMALL, bbox=paper, zorder=6,
        )  # fmt: skip
        edge = 0.12 * (max(high, value) - min(low, value))
        axes.set_ylim(min(low, value - edge), max(high, value + edge))
    else:
        arrow, y = ("↓", 0.02) if value < low else ("↑", 0.98)
        axes.text(
            0.98, y, f"{arrow} {name}", transform=axes.transAxes, ha="right",
            va="bottom" if value < low else "top", color=colour, fontsize=SMALL, bbox=paper, zorder=6,
        )  # fmt: skip


def bottom(panels: Sequence[Axes], columns: int, text: str) -> None:
    """Numbers on the lowest panel of each column of a grid, and the name of the axis in the last row."""
    for number, axes in enumerate(panels):
        axes.tick_params(labelbottom=number >= len(panels) - columns)
        if number >= (len(panels) - 1) // columns * columns:
            axes.set_xlabel(text)


def _hide_spines(axes: Axes) -> None:
    axes.spines[["left"]].set_visible(False)
    axes.tick_params(left=False)


def beside(axes: Axes, place: float, text: str) -> None:
    """Numbers of a row at the right of its panel."""
    axes.annotate(text, (1.02, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=SMALL)


def rows(axes: Axes, names: Sequence[str], *, below: float = 0.55) -> None:
    """Named rows from the top down, and room below them for the name of a line."""
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_ylim(len(names) - 0.5 + below, -0.55)
    _hide_spines(axes)

"""What figures of a study share: runs with a metric, grids of panels, rows of runs, named levels, numbers as text.

Every run is a point; the diamond with its line is `typical` of the runs of a cell: over what they drew anew (units.py).
Colours: learned reward and refinetuned policy orange, implicit reward and expert blue, R* black, reference and placebo
grey.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.statistics import Estimate, Floats
from irl_exp.analysis.study import NotComputed, Run, Study, by_unit, units_of
from irl_exp.report.units import LEAST

CELL_COLOURS = (drawing.ORANGE, drawing.GREEN, drawing.PURPLE, "#E69F00", "#56B4E9")
"""Of a few cells, told apart with any common colour vision; none is the colour of a reference line."""
MARKERS = "os^Dv<>P"
POLICIES = {"reference": drawing.GREY, "expert": drawing.BLUE, "refinetuned": drawing.ORANGE}
DASHED: dict[str, Any] = {"color": drawing.GREY, "linestyle": "--", "linewidth": 1}
"""A line that needs no reward."""
UNRELATED = float(np.sqrt(0.5))
"""EPIC distance of two rewards without correlation."""
FRACTIONS = (-0.02, 1.02)
"""Ends of the axis of what lies between 0 and 1, whatever an interval says."""
NARROW = 4.8
"""Inches of a figure that can be read on a telephone."""
MOST_PANELS = 40
MANY_POINTS = 2000
"""From here on marks are drawn as pixels: a PDF of a hundred thousand vectors opens slowly."""
SMALL = 8
"""Points; the smallest text of a figure."""
PILE = 56
"""Bins of a panel: points of one bin are piled up, so that a row reads as a histogram of single runs."""
PITCH = 0.36
"""Inches between the lines of points of one cell."""


# ------------------------------------------------------------------------------------------------------------ runs


def having(study: Study, *keys: str) -> dict[str, list[Run]]:
    """Runs by cell that have all of these metrics; cells without such runs are left out."""
    found = {
        cell: [run for run in runs if all(key in run.metrics for key in keys)] for cell, runs in study.cells.items()
    }
    return {cell: runs for cell, runs in found.items() if runs}


def values(runs: Sequence[Run], key: str) -> Floats:
    """A metric of those of these runs that have it."""
    return np.array([run.metrics[key] for run in runs if key in run.metrics])


def typical(runs: Sequence[Run], key: str) -> Estimate:
    """What to report of a metric of these runs, over the units that they drew anew."""
    return statistics.typical(by_unit(runs, key))


def sizes(cells: Mapping[str, Sequence[Run]]) -> list[int]:
    """How many units each cell has."""
    return [units_of(runs).count for runs in cells.values()]


def learned(study: Study) -> dict[str, list[Run]]:
    """Runs with a learned reward by cell, one a reward."""
    found = {cell: distinct(runs, "irl") for cell, runs in having(study, "irl/auroc").items()}
    if not found:
        raise NotComputed("No run has a learned reward: they stopped before irl (until=...), or on texts of one class.")
    return found


def distinct(runs: Sequence[Run], stage: str) -> list[Run]:
    """The first run of each artifact of a stage; a run that names none stands for itself."""
    found: dict[object, Run] = {}
    for run in runs:
        found.setdefault(run.artifact(stage) or run.number, run)
    return list(found.values())


def total(cells: Mapping[str, Sequence[Run]]) -> int:
    """Runs of all these cells."""
    return sum(map(len, cells.values()))


def agreed(values: Sequence[float], within: float = 0.005) -> float | None:
    """The mean of values that agree, else None: runs on other demonstrations differ a little in such a level."""
    return float(np.mean(values)) if values and max(values) - min(values) <= within else None


# ------------------------------------------------------------------------------------------------------------ text


def number(value: float, digits: int = 3) -> str:
    """So many decimals; one where the number is large.

    >>> number(0.7777), number(-12.345), number(-0.0001), number(0.12345, 4)
    ('0.778', '-12.3', '0.000', '0.1235')
    """
    digits = digits if abs(value) < 10 else 1
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: there is no -0.00


def interval(found: Estimate, digits: int = 3) -> str:
    """As a table has it: the number, and its bounds where it has any.

    >>> interval(statistics.mean_t([1.0, 2.0, 3.0])), interval(statistics.mean_t([1.0]))
    ('2.000 [-0.484, 4.484]', '1.000')
    """
    bounds = "" if np.isnan(found.low) else f" [{number(found.low, digits)}, {number(found.high, digits)}]"
    return f"{number(found.value, digits)}{bounds}"


def digits(estimates: Iterable[Estimate]) -> int:
    """As many digits as the narrowest interval is worth, three at least and five at most."""
    widths = [found.high - found.low for found in estimates if found.high > found.low]
    return min(5, max(3, 1 - math.floor(math.log10(min(widths))))) if widths else 3


def count(number: int, word: str, words: str | None = None) -> str:
    """A number with its noun.

    >>> count(1, "run"), count(1200, "run"), count(2, "policy", "policies")
    ('1 run', '1,200 runs', '2 policies')
    """
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def counted(study: Study, runs: int) -> str:
    """How many runs are shown, and of how many jobs."""
    lost = f" of {study.n_jobs}" if runs < study.n_jobs else ""
    return f"{runs}{lost} run{'s' if study.n_jobs > 1 else ''}"


def only(cells: Collection[str]) -> str:
    """What is not drawn."""
    return f", the first {MOST_PANELS} of {len(cells)} cells" if len(cells) > MOST_PANELS else ""


def headline(figure: Figure, text: str) -> None:
    """The title of a figure, at its left edge."""
    figure.suptitle(text, x=0.01, ha="left", weight="bold")


# ---------------------------------------------------------------------------------------------- colours and legends


def shades(count: int) -> list[tuple[str, str]]:
    """Colour and marker of each of `count` cells or lines: both differ as far as they go."""
    if count <= len(CELL_COLOURS):
        colours = list(CELL_COLOURS[:count])
    else:
        colours = [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 0.9, count))]
    return [(colour, MARKERS[place % len(MARKERS)]) for place, colour in enumerate(colours)]


def alpha(count: int) -> float:
    """Of one of many lines or points: many make a cloud, few are seen each."""
    return float(np.clip(8 / max(count, 1), 0.02, 0.6))


def dot(colour: str, label: str, marker: str = "o") -> Line2D:
    """A point for a legend."""
    return Line2D([], [], linestyle="", marker=marker, markersize=5, color=colour, label=label)


def legend_below(figure: Figure, colours: Mapping[str, str], title: str) -> None:
    """A point of each colour with its name."""
    handles = [dot(colour, name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, title=title)


# ---------------------------------------------------------------------------------------------------- grids and axes


def grid(count: int, columns: int, height: float, width: float = 9.0, **shared: Any) -> tuple[Picture, list[Axes]]:
    """A figure of `count` panels in rows of `columns`; height of a row in inches. Cells of the last row stay empty."""
    rows = -(-count // columns)
    figure = drawing.new(width, max(2.4, rows * height + 0.8))
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, list(axes[:count])


def bottom(panels: Sequence[Axes], columns: int, text: str) -> None:
    """Numbers on the lowest panel of each column of a grid, and the name of the axis in the last row."""
    for number, axes in enumerate(panels):
        axes.tick_params(labelbottom=number >= len(panels) - columns)
        if number >= (len(panels) - 1) // columns * columns:
            axes.set_xlabel(text)


def limits(
    shown: Floats, references: Sequence[float], estimates: Iterable[Estimate], ends: Sequence[float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    """Limits that show the spread of values and all of their intervals, and of the references those that are near.

    Near is at most 1.5 spreads away. None lies beyond `ends`.
    """
    low, high = float(shown.min()), float(shown.max())
    spread = max(high - low, 1e-3)
    near = [value for value in references if low - 1.5 * spread <= value <= high + 1.5 * spread]
    near += [bound for found in estimates for bound in (found.low, found.high) if not np.isnan(bound)]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * max(high - low, spread)
    return max(low - margin, ends[0]), min(high + margin, ends[1])


def level(axes: Axes, value: float, text: str, *, colour: str = drawing.GREY, below: bool) -> None:
    """A horizontal line with its name on it; where it would squeeze the data into a corner, an arrow says where."""
    low, high = axes.get_ylim()
    room = 0.8 * (high - low)
    name, paper = f"{text} {number(value)}", {"facecolor": "white", "edgecolor": "none", "alpha": 0.5, "pad": 0.6}
    if low - room <= value <= high + room:
        axes.axhline(value, **DASHED | {"color": colour}, zorder=1)
        up, style = ("top" if below else "bottom"), {"ha": "right", "color": colour, "bbox": paper, "zorder": 6}
        note(axes, name, (1, value), (-2, -2 if below else 2), xycoords=axes.get_yaxis_transform(), va=up, **style)
        edge = 0.12 * (max(high, value) - min(low, value))
        axes.set_ylim(min(low, value - edge), max(high, value + edge))
    else:
        arrow, y = ("↓", 0.02) if value < low else ("↑", 0.98)
        axes.text(
            0.98, y, f"{arrow} {name}", transform=axes.transAxes, ha="right",
            va="bottom" if value < low else "top", color=colour, fontsize=SMALL, bbox=paper, zorder=6,
        )  # fmt: skip


def upright(axes: Axes, value: float) -> None:
    """A vertical line that needs no reward, if the panel reaches it."""
    low, high = axes.get_xlim()
    if low <= value <= high:
        axes.axvline(value, **DASHED, zorder=0)


# ------------------------------------------------------------------------------------------------------ rows of runs


def method(sizes: Collection[int]) -> str:
    """What the diamond is, in words, of cells with so many units.

    >>> method([2, 2])
    'The diamond is the mean; fewer than 3 have no interval.'
    >>> method([50])
    'The diamond is the interquartile mean, its line the 95 % bootstrap interval.'
    """
    told = {
        f"the mean; fewer than {LEAST} have no interval": any(1 < size < LEAST for size in sizes),
        "the mean, its line the 95 % t interval": any(LEAST <= size < statistics.FEW for size in sizes),
        "the interquartile mean, its line the 95 % bootstrap interval": any(size >= statistics.FEW for size in sizes),
    }
    found = [text for text, is_so in told.items() if is_so]
    if not found:
        return ""
    which = " (as many as a cell has)" if len(found) > 1 else ""
    return f"The diamond is {', or '.join(found)}{which}."


def heading(axes: Axes, place: int, name: str, numbers: str) -> None:
    """What a row is, above it: its name at the left, its numbers at the right. So a figure stays narrow."""
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4}
    style: dict[str, Any] = {
        "xycoords": axes.get_yaxis_transform(),
        "va": "top",
        "annotation_clip": False,
        "bbox": paper,
    }
    note(axes, name, (0, place - 0.5), (0, -2), ha="left", **style)
    note(axes, numbers, (1, place - 0.5), (0, -2), ha="right", **style)


def rows(axes: Axes, names: Sequence[str], *, top: float = -0.55, edge: float = 0.5, room: float = 0.0) -> None:
    """Named rows from the top down, one a unit, each down to its `edge`, and room below them for the name of a line."""
    axes.set_ylim(len(names) - 1 + edge + room, top)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place in range(1, len(names)):
        axes.axhline(place - 1 + edge, color="#E6E6E6", linewidth=0.7, zorder=0)


def inches(names: Iterable[str]) -> float:
    """Height of a row that the tallest of these names needs."""
    return 0.15 * max(name.count("\n") + 1 for name in names)


def note(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Small text, so many points away from a place."""
    axes.annotate(text, at, offset, textcoords="offset points", **{"fontsize": SMALL, **style})


def beside(axes: Axes, place: float, text: str) -> None:
    """Numbers of a row at the right of its panel."""
    axes.annotate(text, (1.02, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=SMALL)


def mark(axes: Axes, found: Estimate, y: float) -> None:
    """The typical value and its interval, if it has one."""
    if not np.isnan(found.low):
        axes.plot([found.low, found.high], [y, y], color="black", linewidth=1.6, solid_capstyle="butt", zorder=4)
    axes.plot([found.value], [y], marker="D", markersize=4.5, color="black", markeredgecolor="white", zorder=5)


def strip(axes: Axes, place: int, values: Floats, colour: str, faint: float, zorder: float = 3) -> Floats:
    """Runs as a cloud around the middle of a row, in an order that says nothing; returns their heights."""
    spread = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(1)
    heights: Floats = place + np.random.default_rng(place).permutation(spread)
    raster = len(values) > MANY_POINTS
    axes.scatter(values, heights, s=14, color=colour, alpha=faint, linewidths=0, rasterized=raster, zorder=zorder)
    return heights


def piled(axes: Axes, y: float, values: Floats, colour: str, *, step: float = 0.12, room: float = 0.62) -> None:
    """Runs as points piled up from y, `room` high at most; the axis points downwards."""
    low, high = axes.get_xlim()
    pile = piles(values, (high - low) / PILE)
    step = min(step, room / max(pile.max(), 1))
    raster = len(values) > MANY_POINTS
    axes.scatter(values, y - step * pile, s=13, color=colour, alpha=0.6, linewidths=0, rasterized=raster, zorder=3)


def piles(values: Floats, width: float) -> Floats:
    """(n,) how many of the values before it lie in the same bin of this width.

    >>> piles(np.array([0.1, 5.0, 0.2, 0.3]), 1.0).tolist()
    [0.0, 0.0, 1.0, 2.0]
    """
    bins = np.floor((values - values.min()) / width).astype(int)
    order = np.argsort(bins, kind="stable")
    place = np.empty(len(values))
    place[order] = np.arange(len(values)) - np.searchsorted(bins[order], bins[order])
    return place


def by_cell(
    study: Study, cells: Mapping[str, Sequence[Run]], columns: Mapping[str, Sequence[tuple[str, str]]], unit: str
) -> tuple[Picture, list[Axes]]:
    """A panel for each title, a row for each cell, and in it a line of points for each (metric, colour)."""
    names = labels(study)
    inch = max(0.2 + PITCH * max(map(len, columns.values())), inches(names.values()))
    figure = drawing.new(10.4, inch * len(cells) + 1.7)
    panels = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0].tolist()
    for axes, (title, keys) in zip(panels, columns.items(), strict=True):
        axes.set_title(title, fontsize=9.5)
        axes.set_xlabel(unit)
        for place, runs in enumerate(cells.values()):
            for number, (key, colour) in enumerate(keys):
                y = place + (number - (len(keys) - 1) / 2) * PITCH / inch
                _line_of_points(axes, y, runs, key, colour, inch)
        rows(axes, [names[cell] for cell in cells], top=-0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.margins(x=0.1)
    figure.reading.append(method(sizes(cells)))
    return figure, panels


def _line_of_points(axes: Axes, y: float, runs: Sequence[Run], key: str, colour: str, inch: float) -> None:
    """The typical value with its number above, and below it the runs; `inch` is what one unit of y is."""
    shown = values(runs, key)
    if not len(shown):
        return
    away = np.random.default_rng(0).uniform(-0.05, 0.05, len(shown)) if len(shown) > 1 else np.zeros(1)
    raster = len(shown) > MANY_POINTS
    axes.scatter(shown, y + (0.12 + away) / inch, s=10, color=colour, alpha=0.5, linewidths=0, rasterized=raster)
    found = typical(runs, key)
    mark(axes, found, y)
    note(axes, number(found.value), (found.value, y), (0, 4), ha="center", va="bottom")

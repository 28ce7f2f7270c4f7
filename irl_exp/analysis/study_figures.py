"""Figures of a study: how far runs are apart, from R* and from each other, and what goes along with it.

One function a figure, from a `Study` to a matplotlib `Figure`; its docstring is the caption. `NotComputed` where the
runs cannot tell it. Every run is a point; the diamond with its line is `statistics.typical` of the runs of a cell, the
number of the tables. Colours: learned reward and refinetuned policy orange, implicit reward and expert blue, R* black,
reference and placebo grey.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import Transform, offset_copy
from scipy.stats import chi2

from irl_exp import reward_comparison as compare
from irl_exp.analysis import statistics
from irl_exp.analysis.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, new
from irl_exp.analysis.statistics import Estimate, Floats
from irl_exp.analysis.study import NotComputed, Run, Study

SEED = 0
"""Of the bootstrap of `typical`: figures and tables show the same interval."""
UNRELATED = float(np.sqrt(0.5))
"""EPIC distance of two rewards without correlation."""
RASTER = 2000
"""A cloud of more points is drawn as pixels, also in the PDF."""
SMALL = 8
"""Points of the smallest text."""
PILE = 56
"""Bins of a panel: points of one bin are piled up, so that a row reads as a histogram of single runs."""


def _typical(values: Sequence[float]) -> Estimate:
    return statistics.typical(values, generator=np.random.default_rng(SEED))


def _parts(cell: str) -> dict[str, str]:
    """Overrides of a cell: "irl.loss=hinge,irl.epochs=5" -> key -> value; a list in brackets is one value."""
    found = [part.partition("=") for part in re.split(r",(?![^\[]*\])", cell)]
    return {key: value for key, equals, value in found if equals}


def labels(study: Study) -> dict[str, str]:
    """A short name for each cell: last parts of keys where that is unique, the value alone where one key varies."""
    if len(study.cells) == 1:
        return dict.fromkeys(study.cells, "all runs")
    names = _named([_parts(cell) for cell in study.cells])
    return {cell: name or cell for cell, name in zip(study.cells, names, strict=True)}


def _named(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """A short name of each of these overrides, in the same order."""
    keys = list(dict.fromkeys(key for parts in overrides for key in parts))
    choices = [value for parts in overrides for value in parts.values() if not PLAIN.fullmatch(value)]
    if len(keys) == 1 and len(choices) == len(overrides):
        return choices
    short = {key: _end(key, keys) for key in keys}
    return [", ".join(f"{short[key]}={value}" for key, value in parts.items()) for parts in overrides]


PLAIN = re.compile(r"[-+.\de]+|true|false|null|none", re.IGNORECASE)
"""A value that says nothing without its key."""


def _end(key: str, keys: Sequence[str]) -> str:
    """As many of the last parts of a key as tell it from the others: "irl.loss" -> "loss"."""
    parts = [re.split(r"[./]", one) for one in keys]
    own = re.split(r"[./]", key)
    for many in range(1, len(own)):
        if sum(one[-many:] == own[-many:] for one in parts) == 1:
            return ".".join(own[-many:])
    return key


def _fold(text: str, width: int = 28) -> str:
    """In two lines of about `width` letters: between overrides, and the middle of a long one is left out."""
    if len(text) <= width:
        return text
    parts = text.split(", ")
    half = (len(parts) + 1) // 2
    lines = [", ".join(parts[:half]) + ",", ", ".join(parts[half:])] if len(parts) > 1 else [text]
    return "\n".join(_cut(line, width + 4) for line in lines)


def _cut(text: str, width: int = 34) -> str:
    """In one line: the middle is left out, as cells differ at the end."""
    half = width // 2 - 1
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def _counted(study: Study, runs: int) -> str:
    lost = f" of {study.n_jobs}" if runs < study.n_jobs else ""
    return f"{runs}{lost} run{'s' if study.n_jobs > 1 else ''}"


def is_placebo(run: Run) -> bool:
    """IRL on pairs whose expert and baseline were swapped at random: the null distribution."""
    return run.config.get("irl.name") == "placebo"


def _with(study: Study, *keys: str) -> dict[str, list[Run]]:
    """Runs by cell that have all of these metrics; cells without such runs are left out."""
    found = {
        cell: [run for run in runs if all(key in run.metrics for key in keys)] for cell, runs in study.cells.items()
    }
    return {cell: runs for cell, runs in found.items() if runs}


def _values(runs: Sequence[Run], key: str) -> Floats:
    return np.array([run.metrics[key] for run in runs if key in run.metrics])


def _bounds(estimates: Iterable[Estimate]) -> list[float]:
    """Ends of the intervals, of those that have one."""
    return [bound for found in estimates for bound in (found.low, found.high) if bound == bound]


def _limits(values: Floats, references: Sequence[float], bounds: Sequence[float]) -> tuple[float, float]:
    """Limits that show the spread of values, and of the references those that are at most 1.5 spreads away.

    Bounds of intervals too, as far as half a spread away: that of two runs would squeeze all points into one.
    """
    low, high = float(values.min()), float(values.max())
    spread = max(high - low, 1e-3)
    near = [value for value in references if low - 1.5 * spread <= value <= high + 1.5 * spread]
    near += [min(max(bound, low - spread / 2), high + spread / 2) for bound in bounds]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * max(high - low, spread)
    return low - margin, high + margin


def _of_fractions(limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of what lies between 0 and 1, whatever an interval says."""
    return max(limits[0], -0.02), min(limits[1], 1.02)


def _pile(values: Floats, width: float) -> Floats:
    """(n,) how many of the values before it lie in the same bin of this width."""
    bins = np.floor((values - values.min()) / width).astype(int)
    order = np.argsort(bins, kind="stable")
    place = np.empty(len(values))
    place[order] = np.arange(len(values)) - np.searchsorted(bins[order], bins[order])
    return place


def _row(axes: Axes, y: float, values: Floats, colour: str, *, height: float = 0.62, step: float = 0.12) -> None:
    """All values as points piled up from y; the axis points downwards."""
    low, high = axes.get_xlim()
    pile = _pile(values, (high - low) / PILE)
    step = min(step, height / max(pile.max(), 1))
    raster = len(values) > RASTER
    axes.scatter(values, y - step * pile, s=13, color=colour, alpha=0.6, linewidths=0, rasterized=raster, zorder=3)


def _mark(axes: Axes, found: Estimate, y: float, colour: str = "black") -> None:
    """The typical value and its interval, if it has one."""
    if found.low == found.low:
        axes.plot([found.low, found.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=4)
    axes.plot([found.value], [y], marker="D", markersize=4.5, color=colour, markeredgecolor="white", zorder=5)


def _digits(estimates: Iterable[Estimate]) -> int:
    """As many digits as the narrowest interval is worth, three at least and five at most."""
    widths = [found.high - found.low for found in estimates if found.high > found.low]
    return min(5, max(3, 1 - math.floor(math.log10(min(widths))))) if widths else 3


def _told(found: Estimate, digits: int = 3) -> str:
    """A number with its interval: "0.951 [0.943, 0.959]"; one run has none."""
    value, low, high = (f"{round(one, digits) + 0.0:.{digits}f}" for one in (found.value, found.low, found.high))
    return value if found.low != found.low else f"{value} [{low}, {high}]"  # + 0.0: there is no -0.00


def _cells_axis(axes: Axes, names: Sequence[str], *, below: float = 0.45) -> None:
    """Cells from top to bottom, one a unit."""
    axes.set_ylim(len(names) - 1 + below, -0.8)
    axes.set_yticks(range(len(names)), [_fold(name) for name in names], fontsize=SMALL + 0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place in range(1, len(names)):
        axes.axhline(place - 1 + below, color="#E6E6E6", linewidth=0.7, zorder=0)


def _plain_ticks(axes: Axes, count: int = 5) -> None:
    """Numbers as they are: no offset, not too many."""
    axes.xaxis.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")


# ---------------------------------------------------------------------------------------------------- distribution

AGAINST_TRUTH = {
    "auroc": ("AUROC against the label of R* (higher is better)", "chance", 0.5),
    "epic": ("EPIC distance to R* (lower is better)", "unrelated", UNRELATED),
}


def distribution(study: Study) -> Figure:
    """AUROC and EPIC distance of the learned reward to R* in every run.

    Each point is a run, piled up where runs are equal; diamond and line are the typical run of the cell with its 95 %
    interval, written beside it (mean and t interval below ten runs, interquartile mean and bootstrap from ten on). The
    strip on top has the whole scale; the shaded part is what the panel below magnifies. Blue is the implicit reward
    log π_expert - log π_ref, the ceiling of what the policies themselves tell of R*: a learned reward that passes it
    has smoothed them. Dashed is a reward that knows nothing (AUROC 0.5, EPIC 0.707). Grey cells are the placebo, expert
    and baseline swapped at random: the null distribution.
    """
    cells = _with(study, "irl/auroc")
    if not cells:
        raise NotComputed("no run has a learned reward that was judged against R* (irl/auroc): run until irl or later.")
    names = labels(study)
    height = max(1.6, (0.62 if len(cells) < 7 else 0.5) * len(cells))
    figure = new(10.4, height + 1.9)
    grid = figure.add_gridspec(2, 2, height_ratios=[0.34, height])
    for column, (metric, (text, chance, level)) in enumerate(AGAINST_TRUTH.items()):
        whole, zoom = (figure.add_subplot(grid[row, column]) for row in range(2))
        limits = _zoom(zoom, cells, metric, level)
        _cells_axis(zoom, [names[cell] if column == 0 else "" for cell in cells])
        zoom.set_xlabel(text)
        _whole(whole, cells, metric, (chance, level), limits)
    total = sum(map(len, cells.values()))
    figure.suptitle(
        f"How close is the learned reward to R*? {_counted(study, total)}", x=0.01, ha="left", weight="bold"
    )
    return figure


def _zoom(axes: Axes, cells: Mapping[str, Sequence[Run]], metric: str, level: float) -> tuple[float, float]:
    """A row a cell, at limits that show the spread; returns them."""
    values = {cell: _values(runs, f"irl/{metric}") for cell, runs in cells.items()}
    ceilings = {cell: np.unique(_values(runs, f"implicit/{metric}")) for cell, runs in cells.items()}
    found = {cell: _typical(list(those)) for cell, those in values.items() if len(those)}
    references = [level, *(float(value) for ceiling in ceilings.values() for value in ceiling)]
    every = np.concatenate(list(values.values())) if found else np.array([level])
    limits = _of_fractions(_limits(every, references, _bounds(found.values())))
    axes.set_xlim(limits)
    axes.axvline(level, color=GREY, linestyle="--", linewidth=1)
    digits, tall = _digits(found.values()), len(cells) == 1
    for place, (cell, runs) in enumerate(cells.items()):
        told = "not defined:\nconstant reward"
        if cell in found:
            _row(axes, place, values[cell], GREY if is_placebo(runs[0]) else ORANGE, step=0.06 if tall else 0.12)
            _mark(axes, found[cell], place + 0.2)
            told = f"{_told(found[cell], digits)}\nn = {found[cell].n}"
        thin = len(ceilings[cell]) > 1
        axes.vlines(ceilings[cell], place - 0.7, place + 0.35, color=BLUE, linewidth=0.6 if thin else 1.4, zorder=1)
        axes.text(1.01, place - 0.1, told, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL)
    _plain_ticks(axes)
    return limits


def _whole(
    axes: Axes,
    cells: Mapping[str, Sequence[Run]],
    metric: str,
    chance: tuple[str, float],
    limits: tuple[float, float],
) -> None:
    """The scale from 0 to 1 with all runs as ticks, and the two lines named."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.axvspan(max(limits[0], 0), min(limits[1], 1), color="#EDEDED", zorder=0)
    for runs in cells.values():
        axes.vlines(
            _values(runs, f"irl/{metric}"), 0, 0.7, color=GREY if is_placebo(runs[0]) else ORANGE, linewidth=0.8
        )
    ceiling = np.unique([value for runs in cells.values() for value in _values(runs, f"implicit/{metric}")])
    name, level = chance
    middle = float(ceiling.mean()) if len(ceiling) else 1.0
    outward = "left" if middle > level else "right"
    axes.axvline(level, color=GREY, linestyle="--", linewidth=1)
    aside = "right" if 0.28 < level < 0.6 or middle > level else "left"
    written = _above(axes, level, f"{name} {level:.3g}", aside, "#555555")
    if len(ceiling):
        axes.vlines(ceiling, 0, 1, color=BLUE, linewidth=1.2)
        ends = dict.fromkeys(f"{value:.{2 + (len(ceiling) == 1)}f}" for value in (ceiling.min(), ceiling.max()))
        inside = {"left": middle < 0.7, "right": middle > 0.35}[outward]
        side = outward if inside else {"left": "right", "right": "left"}[outward]
        _above(axes, middle, f"implicit {' to '.join(ends)}", side, BLUE, written)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"], fontsize=SMALL)
    axes.tick_params(axis="x", length=2, pad=1)


def _above(
    axes: Axes, x: float, text: str, side: str, colour: str, taken: tuple[float, float] = (-1.0, -1.0)
) -> tuple[float, float]:
    """Text above the panel, a line higher where the part of the scale `taken` is; returns what it takes itself."""
    width = 0.021 * len(text)  # at 3 inches a panel
    ends = (x - width, x) if side == "right" else (x, x + width)
    up = 13 if ends[0] < taken[1] and taken[0] < ends[1] else 2
    axes.annotate(
        text,
        (x, 1.0),
        (0, up),
        textcoords="offset points",
        ha=side,
        va="bottom",
        fontsize=SMALL,
        color=colour,
        annotation_clip=False,
    )
    return ends


# ------------------------------------------------------------------------------------------------- distance matrix


def distances(study: Study) -> tuple[list[str], Floats]:
    """EPIC distances between rewards on the same test completions of expert and reference.

    Returns:
        labels: (r,) "R*", "implicit", then the numbers of the runs, by cell in the order of the launch, then by seed.
        matrix: (r, r), symmetric, 0 on the diagonal.
    """
    table = study.rewards
    if table is None:
        raise NotComputed("no run has both a learned reward and its completions.parquet.")
    ordered = [run for runs in study.cells.values() for run in sorted(runs, key=study.seed_of)]
    numbers = [run.number for run in ordered if run.number in table.columns]
    rewards = table[["truth", "implicit", *numbers]].to_numpy(dtype=np.float64).T
    prompts = table["prompt_id"].to_numpy()
    told = np.ptp(compare.centre(rewards, prompts), axis=1) > 0  # a constant reward has no direction
    told[:2] = True
    try:
        matrix = compare.epic_matrix(rewards[told], prompts)
    except compare.UndefinedDistanceError as error:
        raise NotComputed(f"the distance between rewards is not defined: {error}") from error
    names = np.array(["R*", "implicit", *map(str, numbers)])
    return names[told].tolist(), matrix


def distance_matrix(study: Study) -> Figure:
    """EPIC distance of every pair of learned rewards, and of each to R* and to the implicit reward.

    Rewards are compared on the same test completions of expert and reference: centred within prompts, scaled to norm 1,
    then sqrt((1 - correlation) / 2); 0 is the same reward up to what no data can tell (a constant per prompt, a scale),
    0.707 unrelated, 1 opposite. Left: all pairs, runs ordered by cell and then by seed. Right: what part of the pairs
    is nearer than a distance. Where the lines between runs lie left of those to R*, runs agree with each other more
    than with R*: their error is shared, and averaging runs cannot remove it.
    """
    names, matrix = distances(study)
    if len(names) < 4:
        raise NotComputed("a distance between runs needs two runs whose rewards were judged on the same completions.")
    cell_of = {str(run.number): run.cell for run in study.runs}
    cells = [cell_of[name] for name in names[2:]]
    figure = new(10.4, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    thick = -(-len(cells) // 60)  # rows of R* and implicit, so that they are seen beside many runs
    rows = np.repeat(np.arange(len(names)), [thick] * 2 + [1] * len(cells))
    image = left.imshow(matrix[np.ix_(rows, rows)], vmin=0, vmax=float(matrix.max()), interpolation="nearest")
    figure.colorbar(image, ax=left, label="EPIC distance (0 equal, 0.707 unrelated)", shrink=0.85)
    _name_blocks(left, cells, labels(study), thick)
    left.set_title(f"{_counted(study, len(cells))} on the same completions")
    _pairs(right, matrix, cells)
    figure.legend(loc="outside lower right", ncols=2, fontsize=SMALL + 0.5)
    return figure


MOST_BLOCKS = 26
"""So many cells can be named beside the matrix."""


def _name_blocks(axes: Axes, cells: Sequence[str], names: Mapping[str, str], thick: int) -> None:
    """R*, implicit (`thick` rows each) and the blocks of runs of one cell: lines between them, a name at each."""
    starts = [place for place, cell in enumerate(cells) if not place or cell != cells[place - 1]]
    ends = [*starts[1:], len(cells)]
    for edge in [thick, *(start + 2 * thick for start in starts)]:
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
    middles = [(start + end - 1) / 2 + 2 * thick for start, end in zip(starts, ends, strict=True)]
    blocks = [(_fold if len(starts) <= 12 else _cut)(names[cells[start]]) for start in starts]
    ticks = dict(zip(middles, blocks, strict=True)) if len(starts) <= MOST_BLOCKS else {}
    if len(cells) <= 12:
        ticks = {0.0: "R*", 1.0: "implicit"} | ticks
    else:  # two thin rows share a name, which stands above them
        at = (-0.5, 2 * thick - 0.5)
        axes.annotate("R*, implicit", at, (-5, 0), textcoords="offset points", ha="right", va="bottom", fontsize=SMALL)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=SMALL)
    axes.set_xticks([])
    axes.set_xlabel("the same order" if ticks else f"{len(starts)} cells in the order of the launch")


def _pairs(axes: Axes, matrix: Floats, cells: Sequence[str]) -> None:
    """Cumulative distributions of the distances by kind of pair."""
    one, other = np.triu_indices(len(cells), 1)
    between, index = matrix[2:, 2:][one, other], np.unique(np.array(cells), return_inverse=True)[1]
    same = index[one] == index[other]
    kinds = {
        "run to run, one cell": (between[same], ORANGE, "-"),
        "run to run, two cells": (between[~same], PURPLE, "-"),
        "run to implicit": (matrix[1, 2:], BLUE, "--"),
        "run to R*": (matrix[0, 2:], "black", "--"),
    }
    shown = {name: kind for name, kind in kinds.items() if len(kind[0])}
    for name, (values, colour, line) in shown.items():
        at = np.quantile(values, np.linspace(0, 1, min(len(values), 1000)), method="inverted_cdf")
        axes.step(
            np.concatenate([at[:1], at]),
            np.linspace(0, 1, len(at) + 1),
            where="post",
            color=colour,
            linestyle=line,
            label=f"{name}: median {np.median(values):.3f}, n = {len(values):,}",
        )
    smallest = min(float(values.min()) for values, _, _ in shown.values())
    if smallest > 1e-4 and matrix.max() > 20 * smallest:  # below, it is the rounding of equal rewards
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.axvline(float(matrix[0, 1]), color=GREY, linestyle=":", label=f"implicit to R*: {matrix[0, 1]:.3f}")
    axes.set_xlabel("EPIC distance")
    axes.set_ylabel("fraction of pairs that are nearer")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("Nearer to each other than to R*?")


# -------------------------------------------------------------------------------------------------------- triangle

SIDES = {
    "truth_implicit": "R* to implicit:\nwhat RLHF did not install",
    "implicit_learned": "implicit to learned:\nwhat IRL did not recover",
    "truth_learned": "R* to learned:\nwhat others report",
}
COVERAGES = {
    "triangle": ("expert and reference, half and half", BLUE),
    "triangle_reference": ("reference", GREY),
    "triangle_refinetuned": ("refinetuned", ORANGE),
}
PITCH = 0.36
"""Inches between the rows of a cell."""


def triangle(study: Study) -> Figure:
    """Where R* gets lost: EPIC distances between R*, the implicit and the learned reward.

    R* to implicit is what RLHF did not install in the policies, implicit to learned what IRL did not recover from them,
    R* to learned what is usually reported: as EPIC is a metric, at most the first plus the second. Each point is a run,
    the diamond and the number above it the typical run of the cell, the line its 95 % interval. Colours are the
    completions on which the rewards are compared: of expert and reference, of the reference alone, and of the
    refinetuned policy, where over-optimisation shows. 0 is equivalent, 0.707 unrelated.
    """
    shown = [name for name in COVERAGES if _with(study, *(f"{name}/{side}/epic" for side in SIDES))]
    if not shown:
        raise NotComputed("no run has the three distances triangle/*/epic: they need a learned reward (until irl).")
    cells = _with(study, *(f"{shown[0]}/{side}/epic" for side in SIDES))
    columns = {title: [(f"{name}/{side}/epic", COVERAGES[name][1]) for name in shown] for side, title in SIDES.items()}
    figure, panels = _panels(study, cells, columns, "EPIC distance")
    for axes in panels:
        axes.set_xlim(left=0)
        _line(axes, UNRELATED)
    _legend_below(figure, dict(COVERAGES[name] for name in shown), "compared on completions of")
    _headline(figure, f"Where R* gets lost: {_counted(study, _total(cells))}")
    return figure


def _panels(
    study: Study, cells: Mapping[str, Sequence[Run]], columns: Mapping[str, Sequence[tuple[str, str]]], unit: str
) -> tuple[Figure, list[Axes]]:
    """A panel for each title, a row for each cell, and in it a line of points for each (metric, colour)."""
    names, lines = labels(study), max(map(len, columns.values()))
    inches = 0.2 + PITCH * lines
    figure = new(10.4, inches * len(cells) + 1.7)
    panels = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0].tolist()
    for axes, (title, keys) in zip(panels, columns.items(), strict=True):
        axes.set_title(title, fontsize=9.5)
        axes.set_xlabel(unit)
        for place, runs in enumerate(cells.values()):
            for number, (key, colour) in enumerate(keys):
                y = place + (number - (len(keys) - 1) / 2) * PITCH / inches
                _line_of_points(axes, y, _values(runs, key), colour, inches)
        _cells_axis(axes, [names[cell] for cell in cells], below=0.5)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.margins(x=0.1)
    return figure, panels


def _line_of_points(axes: Axes, y: float, values: Floats, colour: str, inches: float) -> None:
    """The typical value with its number above, and below it the runs; `inches` is what one unit of y is."""
    if not len(values):
        return
    away = np.random.default_rng(SEED).uniform(-0.05, 0.05, len(values)) if len(values) > 1 else np.zeros(1)
    raster = len(values) > RASTER
    axes.scatter(values, y + (0.12 + away) / inches, s=10, color=colour, alpha=0.5, linewidths=0, rasterized=raster)
    found = _typical(list(values))
    _mark(axes, found, y)
    told, at = f"{found.value:.3f}", (found.value, y)
    axes.annotate(told, at, (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=SMALL)


def _line(axes: Axes, level: float, text: str = "") -> None:
    """A dashed line at a level that needs no reward, if the panel reaches it."""
    low, high = axes.get_xlim()
    if low <= level <= high:
        axes.axvline(level, color=GREY, linestyle="--", linewidth=1, zorder=0)
        axes.text(level, 1.0, text, transform=axes.get_xaxis_transform(), va="bottom", ha="center", fontsize=SMALL)


def _legend_below(figure: Figure, entries: Mapping[str, str], title: str) -> None:
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=5, label=name)
        for name, colour in entries.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, title=title)


def _headline(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", weight="bold", fontsize=11)


def _total(cells: Mapping[str, Sequence[Run]]) -> int:
    return sum(map(len, cells.values()))


# ----------------------------------------------------------------------------------------------- against parameter

SHADES = (ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")
"""For cells: none is the colour of a reference line."""
MARKERS = "os^Dv<>P"
MOST = 8
"""So many lines in one panel can be told apart."""
MEASURES = {
    "irl/auroc": "AUROC against R*",
    "irl/epic": "EPIC distance to R*",
    "refinetuned/toxic_fraction": "toxic fraction, refinetuned",
}


@dataclass(frozen=True)
class Sweep:
    """A number that varies between cells: its key, its value in each cell, what else varies, by cell, and its key."""

    key: str
    values: Mapping[str, float]
    others: Mapping[str, str]
    beside: str


def against_parameter(study: Study) -> Figure:
    """What a parameter of the study does: AUROC, EPIC and, where there is one, the refinetuned policy's toxicity.

    Small points, a little to the left, are runs; large ones, joined by a line, are the typical run of a cell with its
    95 % interval. Colours are what else varies; cells with one value of the parameter stand side by side. Blue dashed
    is the implicit reward, the ceiling of what the policies themselves tell; where it varies, each run has a dash.
    For the members of an ensemble, the last panel has the sd of AUROC over ensembles with its 95 % interval
    (chi-squared): how many members until another draw of members gives the same.
    """
    sweep = swept(study)
    series = list(dict.fromkeys(sweep.others.values()))
    if len(series) > MOST:
        raise NotComputed(f"{len(series)} lines in one panel (what varies beside {sweep.key}) cannot be told apart.")
    keys = [key for key in MEASURES if _with(study, key)]
    if not keys:
        raise NotComputed("no run has a learned reward that was judged against R* (irl/auroc).")
    ensemble = sweep.key == "irl.members" and max(map(len, study.cells.values())) > 2
    count = len(keys) + ensemble
    figure = new(1.2 + 3.3 * count, 4.2)
    panels = figure.subplots(1, count, squeeze=False)[0].tolist()
    for axes, key in zip(panels, keys, strict=False):
        _against(axes, study, sweep, key)
    if ensemble:
        _stability(panels[-1], study, sweep)
    for axes in panels:
        _parameter_axis(axes, sweep)
    handles, texts = panels[0].get_legend_handles_labels()
    if len(series) > 1:
        figure.legend(handles, texts, loc="outside right center", fontsize=SMALL + 0.5, title=sweep.beside)
    sizes = sorted({len(runs) for runs in study.cells.values()})
    each = f"{sizes[0]} a cell" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} a cell"
    _headline(figure, f"Against {sweep.key}: {_counted(study, len(study.runs))}, {each}")
    return figure


def swept(study: Study) -> Sweep:
    """The number that takes the most values between cells, of those that were overridden, alone or with their group."""
    parts = {cell: _parts(cell) for cell in study.cells}
    overridden = list(dict.fromkeys(key for one in parts.values() for key in one))
    found: dict[str, tuple[str, dict[str, float]]] = {}
    for override in overridden:
        key = _number_of(study, override)
        if key is not None:
            found[override] = key, {cell: float(runs[0].config[key]) for cell, runs in study.cells.items()}
    if not found:
        raise NotComputed(
            f"no number varies between the cells (what varies: {', '.join(overridden) or 'seeds alone'})."
        )
    override = max(found, key=lambda name: len(set(found[name][1].values())))  # the first of equals
    alone = len(set(found[override][1].values())) == len(parts)  # whatever else varies goes along with it
    rest = [{key: value for key, value in one.items() if key != override and not alone} for one in parts.values()]
    beside = list(dict.fromkeys(key for one in rest for key in one))
    if len(beside) == 1:  # the key is the title of the legend
        others = {cell: one.get(beside[0], "default") for cell, one in zip(study.cells, rest, strict=True)}
        return Sweep(*found[override], others, beside[0])
    return Sweep(*found[override], dict(zip(study.cells, _named(rest), strict=True)), "")


def _number_of(study: Study, override: str) -> str | None:
    """The numeric key that an override sets: itself, or the first of its group that tells all its values apart."""
    configs = {cell: runs[0].config for cell, runs in study.cells.items()}
    place = override.replace("/", ".")
    choices = {_parts(cell).get(override, "") for cell in configs}
    inside = {cell: [key for key in config if f"{key}.".startswith(f"{place}.")] for cell, config in configs.items()}
    keys = next(iter(inside.values()))
    if any(others != keys for others in inside.values()):
        return None  # another schema: a choice, not a number
    for key in keys:
        values = [config[key] for config in configs.values()]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if numbers and key.split(".")[-1] != "seed" and len(set(values)) == len(choices) > 1:
            return key
    return None


def _axis_values(sweep: Sweep) -> tuple[bool, Floats]:
    """Whether the axis is logarithmic (a decade or more, all above 0), and the values in order."""
    values = np.unique(list(sweep.values.values()))
    return bool(values[0] > 0 and values[-1] / values[0] >= 10), values


def _places(sweep: Sweep, cell: str) -> float:
    """x of a cell: its value, moved aside by what else varies, so that lines lie beside each other."""
    logarithmic, values = _axis_values(sweep)
    series = list(dict.fromkeys(sweep.others.values()))
    if len(series) == 1:
        return sweep.values[cell]
    scaled = np.log(values) if logarithmic else values
    gap = float(np.diff(scaled).min()) if len(values) > 1 else 1.0
    aside = min(gap / 2, 0.07 * float(np.ptp(scaled)) or gap) * (
        series.index(sweep.others[cell]) / (len(series) - 1) - 0.5
    )
    return float(sweep.values[cell] * np.exp(aside)) if logarithmic else sweep.values[cell] + aside


def _series(study: Study, sweep: Sweep) -> Iterator[tuple[str, str, str, list[str]]]:
    """Name, colour and marker of each line, and its cells in the order of the parameter."""
    names = list(dict.fromkeys(sweep.others.values()))
    for name, (colour, marker) in zip(names, _shades(len(names)), strict=True):
        cells = [cell for cell in study.cells if sweep.others[cell] == name]
        yield name, colour, marker, sorted(cells, key=lambda cell: sweep.values[cell])


def _shades(count: int) -> list[tuple[str, str]]:
    """Colour and marker of each of `count` cells or lines: both differ as far as they go."""
    if count <= len(SHADES):
        colours = list(SHADES[:count])
    else:
        colours = [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 0.9, count))]
    return [(colour, MARKERS[place % len(MARKERS)]) for place, colour in enumerate(colours)]


def _against(axes: Axes, study: Study, sweep: Sweep, key: str) -> None:
    """One metric: runs, typical runs and the implicit reward."""
    estimates = []
    for name, colour, marker, cells in _series(study, sweep):
        with_key = [cell for cell in cells if study.values(key, cell)]
        for cell in with_key:
            values = study.values(key, cell)
            x = [_places(sweep, cell)] * len(values)
            axes.scatter(x, values, s=14, color=colour, alpha=0.6, linewidths=0, transform=_aside(axes, -5))
        found = [_typical(study.values(key, cell)) for cell in with_key]
        estimates += found
        x = [_places(sweep, cell) for cell in with_key]
        axes.plot(x, [one.value for one in found], color=colour, marker=marker, markersize=5, label=_fold(name))
        bounded = [(at, one) for at, one in zip(x, found, strict=True) if one.low == one.low]
        axes.vlines([at for at, _ in bounded], [e.low for _, e in bounded], [e.high for _, e in bounded], color=colour)
    axes.set_title(MEASURES[key], fontsize=10)
    ceiling = key.replace("irl/", "implicit/") if key.startswith("irl/") else ""
    limits = _limits(np.array(study.values(key)), study.values(ceiling), _bounds(estimates))
    axes.set_ylim(_of_fractions(limits))
    if ceiling:
        _ceiling(axes, study, sweep, ceiling)


def _aside(axes: Axes, away: float) -> Transform:
    """Data coordinates, moved by so many points to the right: beside the line of an interval."""
    return offset_copy(axes.transData, cast(Figure, axes.figure), x=away, units="points")


def _ceiling(axes: Axes, study: Study, sweep: Sweep, key: str) -> None:
    """The implicit reward: a line where all runs share it, points where they do not."""
    shared = np.unique(study.values(key))
    if len(shared) == 1:
        axes.axhline(shared[0], color=BLUE, linestyle="--", linewidth=1.2)
        low, high = axes.get_ylim()
        side = "" if low <= shared[0] <= high else ", above" if shared[0] > high else ", below"
        height = (float(np.clip(shared[0], low, high)) - low) / (high - low)
        text, up = f"implicit {shared[0]:.3f}{side}", "top" if side == ", above" else "bottom"
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
        axes.text(1, height, text, transform=axes.transAxes, color=BLUE, fontsize=SMALL, ha="right", va=up, bbox=paper)
        return
    for cell in study.cells:
        values = study.values(key, cell)
        x = [_places(sweep, cell)] * len(values)
        axes.scatter(x, values, s=14, color=BLUE, marker="_", linewidths=1, transform=_aside(axes, 5))
    if len(shared):
        text = "implicit (one dash a run)"
        axes.text(1, 1, text, transform=axes.transAxes, color=BLUE, fontsize=SMALL, ha="right", va="bottom")


def _stability(axes: Axes, study: Study, sweep: Sweep) -> None:
    """The sd of AUROC over the runs of a cell, with its chi-squared interval."""
    for _, colour, marker, cells in _series(study, sweep):
        many = [cell for cell in cells if len(study.values("irl/auroc", cell)) > 2]
        x = [_places(sweep, cell) for cell in many]
        freedom = np.array([len(study.values("irl/auroc", cell)) - 1 for cell in many])
        sd = np.array([np.std(study.values("irl/auroc", cell), ddof=1) for cell in many])
        axes.plot(x, sd, color=colour, marker=marker, markersize=5)
        low, high = (sd * np.sqrt(freedom / chi2.ppf(level, freedom)) for level in (0.975, 0.025))
        axes.vlines(x, low, high, color=colour)
    axes.set_ylim(bottom=0)
    axes.set_title("sd of AUROC over ensembles", fontsize=10)


def _parameter_axis(axes: Axes, sweep: Sweep) -> None:
    logarithmic, values = _axis_values(sweep)
    if logarithmic:
        axes.set_xscale("log")
    scaled = np.log(values) if logarithmic else values
    shown = [0]  # those that do not run into the one before
    for place in range(1, len(values)):
        if scaled[place] - scaled[shown[-1]] > 0.08 * (scaled[-1] - scaled[0]):
            shown.append(place)
    axes.set_xticks(values, [f"{value:g}" if place in shown else "" for place, value in enumerate(values)])
    axes.minorticks_off()
    axes.margins(x=0.1)
    axes.set_xlabel(sweep.key)


# ------------------------------------------------------------------------------------------- learned against truth

POLICIES = {"reference": GREY, "expert": BLUE, "refinetuned": ORANGE}


def _judged(study: Study) -> list[Run]:
    """Runs with a judged reward that kept their completions."""
    return [run for run in study.runs if "irl/auroc" in run.metrics and (run.folder / "completions.parquet").exists()]


def median_run(study: Study) -> Run:
    """The run whose AUROC is the median of all runs that kept their completions; of an even number the lower one."""
    found = _judged(study)
    if not found:
        raise NotComputed("no run has both a learned reward (irl/auroc) and its completions.parquet.")
    return sorted(found, key=lambda run: (run.metrics["irl/auroc"], run.number))[(len(found) - 1) // 2]


def learned_against_truth(study: Study) -> Figure:
    """The learned reward of each test completion against R*, and how much it differs between runs.

    Left: the run whose AUROC is the median of the study. A point is a test completion, coloured by the policy that
    wrote it; left of the line R* calls it toxic. The learned reward has mean 0 and sd 1 on the fit demonstrations; the
    AUROC is over the completions of expert and reference. Right, where the median run's cell has three runs or more on
    the same completions: for each completion of expert and reference the mean and the sd over runs of the reward,
    standardised over these completions in each run. An sd near 0 means that all runs give this completion the same
    reward, right or wrong.
    """
    run = median_run(study)
    table = study.completions(run)
    if table is None or "learned" not in table:
        raise NotComputed(f"completions.parquet of run {run.number}, the median run, has no learned reward.")
    spread = _standardised(study, run)
    figure = new(10.4 if spread is not None else 6.4, 4.6)
    panels = figure.subplots(1, 1 if spread is None else 2, squeeze=False)[0]
    _one_run(panels[0], table, run)
    where = "" if len(study.cells) == 1 else f" ({labels(study)[run.cell]})"
    title = textwrap.fill(f"Run {run.number}{where}, the median of {_counted(study, len(_judged(study)))}:", 48)
    judged = int((table["policy"] != "refinetuned").sum())
    panels[0].set_title(f"{title}\nAUROC {run.metrics['irl/auroc']:.3f}, n = {judged:,}", pad=14)
    if spread is not None:
        _between_runs(panels[1], *spread)
    return figure


def _one_run(axes: Axes, table: pd.DataFrame, run: Run) -> None:
    _cloud(axes, table["policy"], table["truth"], table["learned"])
    axes.axvline(0, color="black", linewidth=0.8)
    for side, text in (("right", "toxic "), ("left", " civil")):
        axes.text(0, 1, text, transform=axes.get_xaxis_transform(), ha=side, va="bottom", fontsize=SMALL)
    axes.set_xlabel("R* (log-odds of civil)" if run.config.get("reward.name") == "classifier" else "R*")
    axes.set_ylabel("learned reward (sd on the fit demonstrations)")
    axes.legend(loc="lower right", fontsize=SMALL, markerscale=2.5)


def _between_runs(axes: Axes, policy: pd.Series, rewards: Floats) -> None:
    """Mean and sd over runs of each completion: rewards (n, runs)."""
    spread = rewards.std(axis=1, ddof=1)
    _cloud(axes, policy, rewards.mean(axis=1), spread)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("mean over runs of the learned reward (standardised)")
    axes.set_ylabel("sd over runs")
    count = f"{rewards.shape[1]} runs, {len(rewards):,} completions"
    axes.set_title(f"{count}:\nmedian sd {np.median(spread):.3f}", pad=14)


def _standardised(study: Study, run: Run) -> tuple[pd.Series, Floats] | None:
    """Policy (n,) and rewards (n, runs) of the runs of this run's cell, each with mean 0 and sd 1; None below three."""
    table = study.rewards
    if table is None:
        return None
    numbers = [one.number for one in study.cells[run.cell] if one.number in table.columns]
    rewards = table[numbers].to_numpy(dtype=np.float64)
    rewards = rewards[:, np.ptp(rewards, axis=0) > 0]
    if rewards.shape[1] < 3:
        return None
    return table["policy"], (rewards - rewards.mean(axis=0)) / rewards.std(axis=0)


def _cloud(axes: Axes, policy: pd.Series, x: pd.Series | Floats, y: pd.Series | Floats) -> None:
    """Completions, in the colours of their policies, in a random order so that none lies on top."""
    order = np.random.default_rng(SEED).permutation(len(policy))
    colours = policy.map(POLICIES).to_numpy()[order]
    x, y = np.asarray(x)[order], np.asarray(y)[order]
    axes.scatter(
        x, y, s=5 if len(order) > RASTER else 12, c=colours, alpha=0.5, linewidths=0, rasterized=len(order) > RASTER
    )
    for name in [name for name in POLICIES if (policy == name).any()]:
        axes.scatter([], [], s=5, color=POLICIES[name], label=name)


# -------------------------------------------------------------------------------------------------------- frontier


def frontier(study: Study) -> Figure:
    """What the policies earn and how far they went for it: mean R* against KL from the reference.

    Every refinetuned run is a point, coloured by cell; the reference stands at KL 0, the expert is the policy that was
    trained on R* itself. Above and left of the expert would be a better use of the same distance. On the right the same
    without the reference. Below, where it was measured: mean R* of refinetuning on its training prompts when it first
    passes the expert's final KL (points: runs; diamond and line: typical run with 95 % interval; blue: the expert at
    the same KL). A run that never went so far has no such value.
    """
    cells = _with(study, "refinetuned/kl", "refinetuned/reward_mean")
    if not cells:
        raise NotComputed("no run has a refinetuned policy: these runs end before refinetune (until=...).")
    matched = _with(study, "overoptimisation/reward_at_matched_kl")
    tall = 0.55 * len(matched) + 0.9
    figure = new(10.4, 3.8 + (tall if matched else 0))
    grid = figure.add_gridspec(2 if matched else 1, 2, height_ratios=[3.8, tall] if matched else None)
    whole, near = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    names, styles = labels(study), dict(zip(cells, _shades(len(cells)), strict=True))
    for axes, anchors in ((whole, ("reference", "expert")), (near, ("expert",))):
        for cell, runs in cells.items():
            colour, marker = styles[cell]
            x, y = _values(runs, "refinetuned/kl"), _values(runs, "refinetuned/reward_mean")
            text = f"{_fold(names[cell])} (n = {len(runs)})"
            axes.scatter(x, y, s=24, color=colour, marker=marker, alpha=0.7, linewidths=0, label=text)
        for policy in anchors:
            _anchor(axes, [run for runs in cells.values() for run in runs], policy)
        axes.margins(0.15)
        axes.set_xlabel("KL from the reference (nats per completion)")
    whole.set_ylabel("mean R* on test prompts")
    near.set_title("without the reference", fontsize=10)
    _headline(figure, f"Reward and distance of the refinetuned policies: {_counted(study, _total(cells))}")
    handles, texts = whole.get_legend_handles_labels()
    if len(cells) > 1:
        figure.legend(handles, texts, loc="outside right center", fontsize=SMALL)
    if matched:
        _at_matched_kl(figure.add_subplot(grid[1, :]), matched, names, styles)
    return figure


def _anchor(axes: Axes, runs: Sequence[Run], policy: str) -> None:
    """Reference or expert of these runs, each once, with its name."""
    keys = (f"{policy}/kl", f"{policy}/reward_mean")
    found = sorted({(run.metrics[keys[0]], run.metrics[keys[1]]) for run in runs if keys[1] in run.metrics})
    if not found:
        return
    x, y = zip(*found, strict=True)
    colour, marker, size = (BLUE, "*", 90) if policy == "expert" else (GREY, "s", 36)
    axes.scatter(x, y, s=size, color=colour, marker=marker, zorder=3)
    text = f"{policy} ({len(found)})" if len(found) > 1 else policy
    axes.annotate(
        text, found[0], (0, 7), textcoords="offset points", color=colour, ha="center", va="bottom", fontsize=SMALL + 1
    )


def _at_matched_kl(
    axes: Axes, cells: Mapping[str, Sequence[Run]], names: Mapping[str, str], styles: Mapping[str, tuple[str, str]]
) -> None:
    key, other = "overoptimisation/reward_at_matched_kl", "overoptimisation/expert_reward_at_matched_kl"
    every = np.concatenate([_values(runs, name) for runs in cells.values() for name in (key, other)])
    found = {cell: _typical(list(_values(runs, key))) for cell, runs in cells.items()}
    axes.set_xlim(_limits(every, [], _bounds(found.values())))
    for place, (cell, runs) in enumerate(cells.items()):
        _row(axes, place, _values(runs, key), styles[cell][0], step=0.1)
        _mark(axes, found[cell], place + 0.2)
        axes.vlines(np.unique(_values(runs, other)), place - 0.6, place + 0.35, color=BLUE, linewidth=1.2, zorder=1)
    _cells_axis(axes, [names[cell] for cell in cells])
    axes.set_xlabel("mean R* on prompts of fit, at the expert's KL (blue: the expert there)")
    axes.set_title("What the same KL buys", fontsize=10)


# --------------------------------------------------------------------------------------------------------- paradox

REWARD_SIDE = {"irl/auroc": "AUROC of the learned reward", "irl/epic": "EPIC distance of the learned reward to R*"}
POLICY_SIDE = {
    "refinetuned/reward_mean": "mean R*, refinetuned",
    "refinetuned/toxic_fraction": "toxic fraction, refinetuned",
}


def paradox(study: Study) -> Figure:
    """Does a better recovered reward give a better refinetuned policy?

    Each point is a run, coloured by cell, a cross the mean of a cell with two runs or more. In each title: Spearman
    correlation over runs with its 95 % interval (Bonett and Wright 2000; it takes runs as independent, although runs of
    one cell resemble each other), and over the means of cells. EPIC and toxicity are better when lower: for a reward
    that pays, the correlations are positive in the first panel and in the last, and negative in the other two.
    """
    cells = _with(study, *REWARD_SIDE, *POLICY_SIDE)
    if not cells:
        raise NotComputed("no run has both a judged learned reward and a refinetuned policy.")
    if _total(cells) < 4:
        raise NotComputed(f"{_total(cells)} runs with a refinetuned policy: a correlation over runs needs four.")
    names, styles = labels(study), dict(zip(cells, _shades(len(cells)), strict=True))
    figure = new(9.4 + (len(cells) > 1) * 1.6, 7.2)
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, (policy, y_text) in enumerate(POLICY_SIDE.items()):
        for column, (reward, x_text) in enumerate(REWARD_SIDE.items()):
            axes = panels[row, column]
            for cell, runs in cells.items():
                x, y = _values(runs, reward), _values(runs, policy)
                axes.scatter(x, y, s=24, color=styles[cell][0], marker=styles[cell][1], alpha=0.7, linewidths=0)
                if len(runs) > 1 and len(cells) > 1:
                    axes.plot(x.mean(), y.mean(), "x", color=styles[cell][0], markersize=8, markeredgewidth=2)
            axes.set_title(_correlated(cells, reward, policy), fontsize=9, weight="normal")
            axes.set_xlabel(x_text if row else "")
            axes.set_ylabel("" if column else y_text)
    handles = [
        Line2D([], [], linestyle="", color=colour, marker=marker, label=_fold(names[cell]))
        for cell, (colour, marker) in styles.items()
    ]
    if len(cells) > 1:
        figure.legend(handles=handles, loc="outside right center", fontsize=SMALL)
    title = "Does a better recovered reward give a better policy?"
    _headline(figure, f"{title} {_counted(study, _total(cells))}")
    return figure


def _correlated(cells: Mapping[str, Sequence[Run]], one: str, other: str) -> str:
    """Spearman correlations over runs and over the means of cells, as text."""
    over = {
        "runs": [np.concatenate([_values(runs, key) for runs in cells.values()]) for key in (one, other)],
        "means of cells": [np.array([_values(runs, key).mean() for runs in cells.values()]) for key in (one, other)],
    }
    lines = []
    for what, (x, y) in over.items():
        if len(x) < 4 or len(x) == 1:
            continue
        if not (np.ptp(x) and np.ptp(y)):
            lines.append(f"over {len(x)} {what}: no correlation, as all values are equal")
            continue
        lines.append(f"Spearman over {len(x)} {what}: {_told(statistics.spearman(x, y), 2)}")
    return "\n".join(dict.fromkeys(lines))


# -------------------------------------------------------------------------------------------------------- tradeoff

REWARDS = {"truth": ("R*", "black"), "implicit": ("implicit", BLUE), "learned": ("learned", ORANGE)}


def tradeoff(study: Study) -> Figure:
    """Which trade-off between objectives is recovered: the share of each part of R* in R* and in the rewards.

    A share is the weight of that part in a least-squares fit of the reward on the standardised parts within prompts,
    scaled so that the absolute shares add to 1; for R* it is the weight that was set. Each point is a run, the diamond
    the typical run of the cell with its 95 % interval. Implicit apart from R*: RLHF did not install it. Learned apart
    from implicit: IRL did not recover it.
    """
    found = (key.split("/", 2)[2] for run in study.runs for key in run.metrics if key.startswith("tradeoff/truth/"))
    parts = [part for part in dict.fromkeys(found) if not part.endswith(("_low", "_high"))]
    if not parts:
        raise NotComputed("R* has one objective in these runs: shares need reward=weighted.")
    cells = _with(study, *(f"tradeoff/truth/{part}" for part in parts))
    columns = {part: [(f"tradeoff/{name}/{part}", REWARDS[name][1]) for name in REWARDS] for part in parts}
    figure, panels = _panels(study, cells, columns, "share of the weight")
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(max(low, -1.1), min(high, 1.1))  # shares do not pass 1, though a t interval may
    for axes in panels:
        _line(axes, 0.0)
    _legend_below(figure, dict(REWARDS.values()), "share in")
    _headline(figure, f"Which trade-off is recovered: {_counted(study, _total(cells))}")
    return figure


# ----------------------------------------------------------------------------------------------------- uncertainty

SIGNALS = {
    "epistemic": ("epistemic sd", ORANGE),
    "norm": ("norm of the features", PURPLE),
    "length": ("length", GREY),
    "perplexity": ("perplexity", GREEN),
}


def uncertainty(study: Study) -> Figure:
    """Does the uncertainty of the learned reward know where it is wrong?

    AUROC of four signals for the errors: test completions on the wrong side of the threshold that was set with R* on
    select. Each point is a run, the diamond the typical run of the cell with its 95 % interval, the dashed line chance.
    An epistemic sd that does not beat the norm of the features, the length or the perplexity under the reference, which
    need no reward at all, says nothing about the reward.
    """
    cells = _with(study, *(f"uncertainty/{name}_auroc" for name in SIGNALS))
    if not cells:
        raise NotComputed("no run has an uncertainty: it needs irl=bayesian or irl=ensemble.")
    columns = {text: [(f"uncertainty/{name}_auroc", colour)] for name, (text, colour) in SIGNALS.items()}
    figure, panels = _panels(study, cells, columns, "AUROC for errors")
    for axes in panels:
        axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1, zorder=0)
    errors = [int(value) for runs in cells.values() for value in _values(runs, "uncertainty/n_errors")]
    told = f", {min(errors)} to {max(errors)} errors a run" if errors else ""
    _headline(figure, f"Does the uncertainty find the errors? {_counted(study, _total(cells))}{told}")
    return figure


FIGURES: dict[str, Callable[[Study], Figure]] = {
    function.__name__: function
    for function in (
        distribution,
        distance_matrix,
        triangle,
        against_parameter,
        learned_against_truth,
        frontier,
        paradox,
        tradeoff,
        uncertainty,
    )
}
"""Name of the file -> figure, in the order of the page."""

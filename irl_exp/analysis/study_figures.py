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
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from irl_exp import reward_comparison as compare
from irl_exp.analysis import statistics
from irl_exp.analysis.figures import BLUE, GREY, ORANGE, PURPLE, new
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
    overrides = {cell: _parts(cell) for cell in study.cells}
    keys = list(dict.fromkeys(key for parts in overrides.values() for key in parts))
    last = [re.split(r"[./]", key)[-1] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
    if len(overrides) == 1:
        return dict.fromkeys(overrides, "all runs")
    if len(keys) == 1 and all(overrides.values()):
        return {cell: parts[keys[0]] for cell, parts in overrides.items()}
    named = {
        cell: ", ".join(f"{short[key]}={value}" for key, value in parts.items()) for cell, parts in overrides.items()
    }
    return {cell: name or cell for cell, name in named.items()}


def _fold(text: str, width: int = 28) -> str:
    """In two lines of `width` letters at most."""
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder=" …"))


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


def _limits(values: Floats, references: Sequence[float], bounds: Sequence[float]) -> tuple[float, float]:
    """Limits that show the spread of values, and of the references those that are at most three spreads away.

    Bounds of intervals too, as far as half a spread away: that of two runs would squeeze all points into one.
    """
    low, high = float(values.min()), float(values.max())
    spread = max(high - low, 1e-3)
    near = [value for value in references if low - 3 * spread <= value <= high + 3 * spread]
    near += [min(max(bound, low - spread / 2), high + spread / 2) for bound in bounds if bound == bound]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * max(high - low, spread)
    return low - margin, high + margin


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
    value = f"{found.value:.{digits}f}"
    return value if found.low != found.low else f"{value} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


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
    axes.xaxis.set_major_locator(MaxNLocator(count))
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
    cells = _with(study, "irl/auroc", "irl/epic")
    if not cells:
        raise NotComputed("no run has a learned reward that was judged against R* (irl/auroc): run until irl or later.")
    names = labels(study)
    height = max(1.6, 0.62 * len(cells))
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
    ceilings = {cell: np.unique(_values(runs, f"implicit/{metric}")) for cell, runs in cells.items()}
    values = np.concatenate([_values(runs, f"irl/{metric}") for runs in cells.values()])
    found = {cell: _typical(list(_values(runs, f"irl/{metric}"))) for cell, runs in cells.items()}
    bounds = [bound for estimate in found.values() for bound in (estimate.low, estimate.high)]
    limits = _limits(values, [level, *(float(value) for values in ceilings.values() for value in values)], bounds)
    axes.set_xlim(limits)
    axes.axvline(level, color=GREY, linestyle="--", linewidth=1)
    digits, tall = _digits(found.values()), len(cells) == 1
    for place, (cell, runs) in enumerate(cells.items()):
        colour = GREY if is_placebo(runs[0]) else ORANGE
        _row(axes, place, _values(runs, f"irl/{metric}"), colour, step=0.06 if tall else 0.12)
        _mark(axes, found[cell], place + 0.2)
        thin = len(ceilings[cell]) > 1
        axes.vlines(ceilings[cell], place - 0.7, place + 0.35, color=BLUE, linewidth=0.6 if thin else 1.4, zorder=1)
        told = f"{_told(found[cell], digits)}\nn = {found[cell].n}"
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
    _above(axes, level, f"{name} {level:.3g}", aside, "#555555")
    if len(ceiling):
        axes.vlines(ceiling, 0, 1, color=BLUE, linewidth=1.2)
        text = f"implicit {middle:.3f}" if len(ceiling) == 1 else f"implicit {ceiling.min():.3f} to {ceiling.max():.3f}"
        inside = {"left": middle < 0.7, "right": middle > 0.35}[outward]
        _above(axes, middle, text, outward if inside else {"left": "right", "right": "left"}[outward], BLUE)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"], fontsize=SMALL)
    axes.tick_params(axis="x", length=2, pad=1)


def _above(axes: Axes, x: float, text: str, side: str, colour: str) -> None:
    axes.annotate(
        text,
        (x, 1.0),
        (0, 2),
        textcoords="offset points",
        ha=side,
        va="bottom",
        fontsize=SMALL,
        color=colour,
        annotation_clip=False,
    )


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
    is nearer than a distance. Where the lines between runs lie left of those to R*, runs agree with each other more than
    with R*: their error is shared, and averaging runs cannot remove it.
    """
    names, matrix = distances(study)
    if len(names) < 4:
        raise NotComputed("a distance between runs needs two runs whose rewards were judged on the same completions.")
    cell_of = {str(run.number): run.cell for run in study.runs}
    cells = [cell_of[name] for name in names[2:]]
    figure = new(10.4, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    image = left.imshow(matrix, vmin=0, vmax=float(matrix.max()), interpolation="nearest")
    figure.colorbar(image, ax=left, label="EPIC distance (0 equal, 0.707 unrelated)", shrink=0.85)
    _name_blocks(left, cells, labels(study))
    left.set_title(f"{_counted(study, len(cells))} on the same completions")
    _pairs(right, matrix, cells)
    figure.legend(loc="outside lower right", ncols=2, fontsize=SMALL + 0.5)
    return figure


def _name_blocks(axes: Axes, cells: Sequence[str], names: Mapping[str, str]) -> None:
    """R*, implicit and the blocks of runs of one cell: lines between them, a name at each."""
    starts = [place for place, cell in enumerate(cells) if not place or cell != cells[place - 1]]
    ends = [*starts[1:], len(cells)]
    for edge in [1, *(start + 2 for start in starts)]:
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
    many = len(cells) > 12
    middles = [(start + end) / 2 + 1.5 for start, end in zip(starts, ends, strict=True)]
    blocks = [_fold(names[cells[start]], 24) for start in starts]
    # In a big matrix the first two rows are thin: their names would run into each other and into the first block.
    ticks = [0.0, 1.0, *middles] if not many else middles
    axes.set_yticks(ticks, ["R*", "implicit", *blocks] if not many else blocks, fontsize=SMALL)
    if many:
        for place, name, away in ((0, "R*", 4), (1, "implicit", -8)):
            axes.annotate(
                name,
                (-0.5, place),
                (-22, away),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=SMALL,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
                annotation_clip=False,
            )
    axes.set_xticks([])
    axes.set_xlabel("the same order")


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
    if smallest > 0 and matrix.max() > 20 * smallest:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.axvline(float(matrix[0, 1]), color=GREY, linestyle=":", label=f"implicit to R*: {matrix[0, 1]:.3f}")
    axes.set_xlabel("EPIC distance")
    axes.set_ylabel("fraction of pairs that are nearer")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("Are runs nearer to each other than to R*?")


# -------------------------------------------------------------------------------------------------------- triangle

SIDES = {
    "truth_implicit": ("R* to implicit", "what RLHF did not install"),
    "implicit_learned": ("implicit to learned", "what IRL did not recover"),
    "truth_learned": ("R* to learned", "what others report"),
}
PITCH = 0.36
"""Inches between the rows of a cell."""
COVERAGES = {
    "triangle": ("expert and reference, half and half", BLUE),
    "triangle_reference": ("reference", GREY),
    "triangle_refinetuned": ("refinetuned", ORANGE),
}


def triangle(study: Study) -> Figure:
    """Where R* gets lost: EPIC distances between R*, the implicit and the learned reward.

    R* to implicit is what RLHF did not install in the policies, implicit to learned what IRL did not recover from them,
    R* to learned what is usually reported: as EPIC is a metric, at most the first plus the second. Each point is a run, the diamond the typical run of the cell with its 95 % interval. Colours are the completions on which the
    rewards are compared: of expert and reference, of the reference alone, and of the refinetuned policy, where
    over-optimisation shows. 0 is equivalent, 0.707 unrelated.
    """
    shown = [name for name in COVERAGES if _with(study, *(f"{name}/{side}/epic" for side in SIDES))]
    if not shown:
        raise NotComputed("no run has the three distances triangle/*/epic: they need a learned reward (until irl).")
    cells = _with(study, *(f"{shown[0]}/{side}/epic" for side in SIDES))
    names = labels(study)
    unit = 0.2 + PITCH * len(shown)  # inches a cell
    figure = new(10.4, unit * len(cells) + 1.7)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    every = [
        value
        for runs in cells.values()
        for name in shown
        for side in SIDES
        for value in _values(runs, f"{name}/{side}/epic")
    ]
    for axes, (side, (title, meaning)) in zip(panels, SIDES.items(), strict=True):
        axes.set_xlim(0, max(every) * 1.12)
        axes.set_title(f"{title}:\n{meaning}", fontsize=9.5)
        axes.set_xlabel("EPIC distance")
        for place, runs in enumerate(cells.values()):
            for number, name in enumerate(shown):
                y = place + (number - (len(shown) - 1) / 2) * PITCH / unit
                _side(axes, y, _values(runs, f"{name}/{side}/epic"), COVERAGES[name][1], 0.05 / unit)
        _cells_axis(axes, [names[cell] for cell in cells], below=0.5)
        axes.set_ylim(len(cells) - 0.5, -0.5)
    handles = [panels[0].plot([], [], "o", color=COVERAGES[name][1], label=COVERAGES[name][0])[0] for name in shown]
    total = sum(map(len, cells.values()))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, title="compared on completions of")
    figure.suptitle(f"Where R* gets lost: {_counted(study, total)}", x=0.01, ha="left", weight="bold")
    return figure


def _side(axes: Axes, y: float, values: Floats, colour: str, jitter: float) -> None:
    """Points of the runs, jittered, below the typical value and its number."""
    if not len(values):
        return
    away = np.random.default_rng(SEED).uniform(-jitter, jitter, len(values)) if len(values) > 1 else np.zeros(1)
    axes.scatter(
        values, y + 2.5 * jitter + away, s=10, color=colour, alpha=0.5, linewidths=0, rasterized=len(values) > RASTER
    )
    found = _typical(list(values))
    _mark(axes, found, y)
    axes.annotate(
        f"{found.value:.3f}",
        (found.value, y),
        (0, 6),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SMALL,
    )


FIGURES: dict[str, Callable[[Study], Figure]] = {
    "distribution": distribution,
    "distance_matrix": distance_matrix,
    "triangle": triangle,
}

"""Figures of distances between rewards: of the runs from each other, and of R*, the implicit and the learned reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from irl_exp.analysis.cell_names import cut, labels
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.statistics import Floats
from irl_exp.analysis.study import NotComputed, Study
from irl_exp.measures import reward_comparison as compare


def distances(study: Study) -> tuple[list[str], Floats]:
    """EPIC distances between rewards on the same test completions of the reference.

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


def distance_matrix(study: Study) -> Picture:
    """Do the runs agree with each other more than with R*? EPIC distances of all pairs of learned rewards.

    Rewards are compared on the same test completions of the reference: centred within prompts, scaled to norm 1,
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
    figure = drawing.new(10.4, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    thick = -(-len(cells) // 60)  # rows of R* and implicit, so that they are seen beside many runs
    rows = np.repeat(np.arange(len(names)), [thick] * 2 + [1] * len(cells))
    image = left.imshow(matrix[np.ix_(rows, rows)], vmin=0, vmax=float(matrix.max()), interpolation="nearest")
    figure.colorbar(image, ax=left, label="EPIC distance (0 equal, 0.707 unrelated)", shrink=0.85)
    _name_blocks(left, cells, labels(study), thick)
    left.set_title(f"{panels.counted(study, len(cells))} on the same completions")
    _pairs(right, matrix, cells)
    figure.legend(loc="outside lower right", ncols=2, fontsize=panels.SMALL)
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
    blocks = [names[cells[start]] for start in starts]
    if panels.inches(blocks) * len(blocks) > 3.2:  # of the 4.8 inches of the figure
        blocks = [cut(" ".join(name.split("\n"))) for name in blocks]
    ticks = dict(zip(middles, blocks, strict=True)) if len(starts) <= MOST_BLOCKS else {}
    if len(cells) <= 12:
        ticks = {0.0: "R*", 1.0: "log ratio"} | ticks
    else:  # two thin rows share a name, which stands above them
        panels.note(axes, "R*, log ratio", (-0.5, 2 * thick - 0.5), (-5, 0), ha="right", va="bottom")
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=panels.SMALL)
    axes.set_xticks([])
    axes.set_xlabel("the same order" if ticks else f"{len(starts)} cells in the order of the launch")


def _pairs(axes: Axes, matrix: Floats, cells: Sequence[str]) -> None:
    """Cumulative distributions of the distances by kind of pair."""
    one, other = np.triu_indices(len(cells), 1)
    between, index = matrix[2:, 2:][one, other], np.unique(np.array(cells), return_inverse=True)[1]
    same = index[one] == index[other]
    kinds = {
        "run to run, one cell": (between[same], drawing.ORANGE, "-"),
        "run to run, two cells": (between[~same], drawing.PURPLE, "-"),
        "run to log ratio": (matrix[1, 2:], drawing.BLUE, "--"),
        "run to R*": (matrix[0, 2:], "black", "--"),
    }
    shown = {name: kind for name, kind in kinds.items() if len(kind[0])}
    for name, (values, colour, line) in shown.items():
        at = np.quantile(values, np.linspace(0, 1, min(len(values), 1000)), method="inverted_cdf")
        steps, nearer = np.concatenate([at[:1], at]), np.linspace(0, 1, len(at) + 1)
        label = f"{name}: median {np.median(values):.3f}, n = {len(values):,}"
        axes.step(steps, nearer, where="post", color=colour, linestyle=line, label=label)
    smallest = min(float(values.min()) for values, _, _ in shown.values())
    if smallest > 1e-4 and matrix.max() > 20 * smallest:  # below, it is the rounding of equal rewards
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.axvline(float(matrix[0, 1]), color=drawing.GREY, linestyle=":", label=f"log ratio to R*: {matrix[0, 1]:.3f}")
    axes.set_xlabel("EPIC distance")
    axes.set_ylabel("fraction of pairs that are nearer")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("Nearer to each other than to R*?")


# ---------------------------------------------------------------------------------------------------------- triangle

SIDES = {
    "truth_implicit": "R* to log ratio:\nwhat RLHF did not install",
    "implicit_learned": "log ratio to learned:\nwhat IRL did not recover",
    "truth_learned": "R* to learned:\nwhat others report",
}
COVERAGES = {
    "triangle": ("reference", drawing.BLUE),
    "triangle_expert": ("expert", drawing.GREEN),
    "triangle_refinetuned": ("refinetuned", drawing.ORANGE),
    "pooled/triangle": ("expert and reference, half and half", drawing.GREY),
}


def triangle(study: Study) -> Picture:
    """Where R* gets lost: in what RLHF did not install, or in what IRL did not recover (EPIC distances).

    R* to log ratio is what RLHF did not install in the policies, log ratio to learned what IRL did not recover of them,
    R* to learned what is usually reported: as EPIC is a metric, at most the first plus the second. Each point is a run,
    the number that of the diamond. Colours are the completions on which the rewards are compared. 0 is equivalent,
    0.707 unrelated.
    """
    shown = [name for name in COVERAGES if panels.having(study, *(f"{name}/{side}/epic" for side in SIDES))]
    if not shown:
        raise NotComputed("no run has the three distances triangle/*/epic: they need a learned reward (until irl).")
    cells = panels.having(study, *(f"{shown[0]}/{side}/epic" for side in SIDES))
    columns = {title: [(f"{name}/{side}/epic", COVERAGES[name][1]) for name in shown] for side, title in SIDES.items()}
    figure, parts = panels.by_cell(study, cells, columns, "EPIC distance")
    for axes in parts:
        axes.set_xlim(left=0)
        panels.upright(axes, panels.UNRELATED)
    panels.legend_below(figure, dict(COVERAGES[name] for name in shown), "compared on completions of")
    if "triangle_refinetuned" in shown:
        figure.reading.append("On the completions of the refinetuned policy over-optimisation shows.")
    panels.headline(figure, f"Where R* gets lost: {panels.counted(study, panels.total(cells))}")
    return figure


FIGURES = {"distance_matrix": distance_matrix, "triangle": triangle}
"""Name of the file -> figure."""

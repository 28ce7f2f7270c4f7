"""The figure of study=published: from the paper's recipe to ours, one change at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from irl_exp.analysis import published
from irl_exp.analysis.cell_names import fold
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.published import Step
from irl_exp.analysis.study import Study

TITLES = ("accuracy, expert + reference", "AUROC, expert + reference", "AUROC, reference alone")
LEVELS = dict(zip(published.COLUMNS, ("majority class", "who wrote it", "chance"), strict=True))
"""Name of the dashed line of each panel."""


def steps(study: Study) -> Picture:
    """From the paper's recipe to ours: what each of its choices does to the spread over re-runs.

    Each row takes one more choice back, and keeps those above it taken back. Each point is a run: one set of
    demonstrations, with another start of the head and order of the batches. The diamond is the mean, its line one
    standard deviation over runs to each side. The first row of accuracy is what the paper shows of re-runs (its
    figure 5): sign of the reward against sign of R*. From the second row on the threshold is set on select, where it
    separates expert from reference best, without R*; the threshold changes no reward, so the two first rows are the
    same runs. Expert and reference together is the paper's population: who wrote a text is part of those numbers, and
    the dashed line is a reward that knows that alone. On the completions of the reference alone it is not.
    """
    found = published.steps(study)
    names = [fold(f"{'+ ' if place else ''}{step.name}", 26) for place, step in enumerate(found)]
    figure = drawing.new(11.4, 1.5 + max(0.52, panels.inches(names)) * len(found))
    parts = figure.subplots(1, len(TITLES), squeeze=False)[0]
    for axes, measure, title in zip(parts, published.COLUMNS, TITLES, strict=True):
        for place, step in enumerate(found):
            _row(axes, place, step.values(step.measures[measure]))
        panels.rows(axes, names if axes is parts[0] else [""] * len(found), room=0.3)
        axes.set_title(title, fontsize=9.5)
        axes.set_xlabel("mean \N{PLUS-MINUS SIGN} sd over runs")
        if (level := _level(found, measure)) is not None:
            axes.axvline(level, **panels.DASHED, zorder=0)
            side = ("right", -4) if level > sum(axes.get_xlim()) / 2 else ("left", 4)
            told = f"{LEVELS[measure]} {panels.number(level)}"
            panels.note(
                axes, told, (level, len(found) - 0.3), (side[1], 0), ha=side[0], va="center", color=drawing.GREY
            )
    sizes = sorted({len(step.runs) for step in found})
    each = " to ".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
    panels.headline(figure, f"From the published recipe to ours, {each} runs each")
    return figure


def _row(axes: Axes, place: int, values: Sequence[float]) -> None:
    """The runs, their mean with one sd to each side, and both in numbers."""
    if not values:
        panels.beside(axes, place, "-")
        return
    panels.strip(axes, place, np.array(values), drawing.ORANGE, 0.6)
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    axes.plot([mean - sd, mean + sd], [place, place], color="black", linewidth=1.6, zorder=4)
    axes.plot([mean], [place], marker="D", markersize=4.5, color="black", markeredgecolor="white", zorder=5)
    spread = f"\n\N{PLUS-MINUS SIGN} {panels.number(sd)}" if len(values) > 1 else ""
    panels.beside(axes, place, f"{panels.number(mean)}{spread}")


def _level(found: Sequence[Step], measure: str) -> float | None:
    """What is reached without any R*, a mean over runs; None where no run says."""
    if measure == "AUROC, reference alone":
        return 0.5
    key = published.MAJORITY if measure == "accuracy" else published.AUTHOR
    values = [value for step in found for value in step.values(key)]
    return float(np.mean(values)) if values else None

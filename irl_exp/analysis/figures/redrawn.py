"""The figure of what is drawn anew: distances between rewards for a new head, new demonstrations, a new expert."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from irl_exp.analysis import redrawn, statistics
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.statistics import Estimate, Floats
from irl_exp.analysis.study import Study


def distances(study: Study) -> Picture:
    """How far apart are recovered rewards? For a new head, for new demonstrations of one expert, for a new expert.

    All rewards are compared on the same completions, those of the reference for test prompts, and with the same R*.
    Left: EPIC distance of each two rewards that differ in that draw; the diamond is their mean, its line the 95 %
    jackknife interval over rewards, as pairs share rewards. Middle: of each reward to R*. Right: AUROC of each reward
    against the label of R*. In the middle and at the right the diamond is the mean with its t interval. New
    demonstrations and a new expert have the head of one seed; what is drawn anew takes all with it that follows it in
    the chain. Rewards may lie near each other and still be off R* together: that error no further seed shows.
    """
    found = redrawn.draws(study)
    figure = drawing.new(11.4, 1.6 + 0.75 * len(found))
    between, truth, auroc = figure.subplots(1, 3)
    for place, draw in enumerate(found):
        _row(between, place, draw.pairs, redrawn.mean_of_pairs(draw.between))
        _row(truth, place, draw.truth, statistics.mean_t(draw.truth))
        _row(auroc, place, draw.auroc, statistics.mean_t(draw.auroc))
    names = [f"{redrawn.DRAWN[draw.name]}\n({len(draw.truth)} rewards)" for draw in found]
    titles = ("two rewards: EPIC distance", "reward to R*: EPIC distance", "AUROC")
    for axes, title in zip((between, truth, auroc), titles, strict=True):
        panels.rows(axes, names if axes is between else [""] * len(found), room=0.2)
        axes.set_title(title, fontsize=9.5)
    between.set_xlim(left=0)
    panels.upright(between, panels.UNRELATED)
    panels.headline(figure, "How far apart are recovered rewards, by what is drawn anew")
    return figure


def _row(axes: Axes, place: int, values: Floats, found: Estimate) -> None:
    panels.strip(axes, place, values, drawing.ORANGE, max(0.15, panels.alpha(len(values))))
    panels.mark(axes, found, place)
    spread = f"\nsd {panels.number(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
    panels.beside(axes, place, f"{panels.interval(found)}{spread}")

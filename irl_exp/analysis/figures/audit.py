"""The figure of the benchmark of audits: how near statements come to planted goals, and what comes out of nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from irl_exp.analysis import audit, statistics
from irl_exp.analysis.audit import Audit
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture

COLOURS = {
    audit.LEARNED: drawing.ORANGE,
    audit.CERTIFIED: drawing.GREEN,
    "implicit": drawing.BLUE,
    "placebo": drawing.GREY,
    audit.DIFFERENCING: drawing.PURPLE,
}


def goals(found: Sequence[Audit]) -> Picture:
    """What was the model trained for? Planted goals by recipe, and audits of experts without a goal.

    A panel a recipe, a row a goal: the largest |correlation| with R* of the first three statements, on the reference's
    completions of test prompts; right of the dashed line (0.5) the goal counts as found. A point is the mean over
    experts, its line the 95 % t interval where there are three or more. Last panel: share of audits with a statement
    where expert and reference differ by no goal, with its exact 95 % interval; there every statement is a false one.
    """
    own, nulls = [one for one in found if not one.null], audit.by_null(found)
    recipes = list(dict.fromkeys(one.recipe for one in own))
    named = list(dict.fromkeys(one.goal for one in own))
    figure = drawing.new(3.4 + 2.6 * (len(recipes) + bool(len(nulls))), 1.9 + 0.42 * max(len(named), 4))
    every = list(np.atleast_1d(figure.subplots(1, len(recipes) + bool(len(nulls)))))
    for recipe, axes in zip(recipes, every, strict=False):
        _recipe(axes, [one for one in own if one.recipe == recipe], named, recipe)
        panels.rows(axes, named if axes is every[0] else [""] * len(named))
    if len(nulls):
        _nulls(every[-1], nulls)
    there = {audit.METHODS.get(name, name): COLOURS.get(name, "black") for name in audit.methods_of(found)}
    panels.legend_below(figure, there, "statements of")
    panels.headline(figure, "Planted goals: how near the first three statements come")
    return figure


def _recipe(axes: Axes, found: Sequence[Audit], named: Sequence[str], recipe: str) -> None:
    methods = audit.methods_of(found)
    for place, goal in enumerate(named):
        for number, method in enumerate(methods):
            values = [one.best(audit.KS[-1]) for one in found if (one.goal, one.method) == (goal, method)]
            if values:
                at = place + 0.13 * (number - (len(methods) - 1) / 2)
                _point(axes, values, at, COLOURS.get(method, "black"))
    panels.upright(axes, audit.HIT)
    axes.set_xlim(*panels.FRACTIONS)
    axes.set_title(recipe, fontsize=9.5)
    axes.set_xlabel("best |correlation| of three")


def _point(axes: Axes, values: Sequence[float], at: float, colour: str) -> None:
    axes.plot(float(np.mean(values)), at, "o", color=colour, markersize=4)
    if len(values) > 2:
        found = statistics.mean_t(np.array(values))
        axes.plot([max(found.low, 0), min(found.high, 1)], [at, at], color=colour, linewidth=1.2)


def _nulls(axes: Axes, nulls: object) -> None:
    rows = nulls.to_dict("records")  # type: ignore[attr-defined]
    names = list(dict.fromkeys(row["null"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for row in rows:
        at = names.index(row["null"]) + 0.13 * (methods.index(row["method"]) - (len(methods) - 1) / 2)
        colour = COLOURS.get(row["method"], "black")
        axes.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=1.2)
        axes.plot(row["with_any"] / row["audits"], at, "o", color=colour, markersize=4)
    panels.rows(axes, names)
    axes.set_xlim(*panels.FRACTIONS)
    axes.set_title("no goal", fontsize=9.5)
    axes.set_xlabel("audits with a false statement")

"""What the choice of a threshold does to an accuracy, and to the best of many runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import curves, drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.study import Run, Study

RULES = {
    "_at_zero": "threshold at zero",
    "_unsupervised": "unsupervised threshold",
    "": "threshold set with R* on select",
}
"""Ending of a metric -> how its threshold was set."""
THRESHOLDS = {"_at_zero": ("o", drawing.BLUE), "_unsupervised": ("s", drawing.ORANGE), "": ("^", drawing.GREEN)}


def threshold(study: Study) -> Picture:
    """Accuracy of each learned reward with three thresholds against its AUROC, which needs none.

    A grey line joins the three accuracies of one reward: its length is what the choice of the threshold alone does.
    Rewards beside each other order the completions equally well; how far apart they are in height is their threshold.
    The unsupervised threshold separates expert from reference best on select; the last one was set there with R*.
    """
    cells = panels.learned(study)
    shown = dict(list(cells.items())[: panels.MOST_PANELS])
    names, columns = labels(study), min(4 if len(shown) > len(panels.CELL_COLOURS) else 3, len(shown))
    figure, parts = panels.grid(
        len(shown), columns, 4.0 if columns == 1 else 2.6, 6.4 if columns == 1 else 9.6, sharex=True, sharey=True
    )
    for axes, (cell, runs) in zip(parts, shown.items(), strict=True):
        _thresholds(axes, runs)
        name = f"{names[cell]}\n(n = {len(runs)})" if len(shown) > 1 else _ranges(runs)
        axes.set_title(name, fontsize=panels.SMALL, weight="normal")
    panels.bottom(parts, columns, "AUROC: the order alone")
    for number, (axes, runs) in enumerate(zip(parts, shown.values(), strict=True)):
        panels.level(axes, _majority(runs), "majority class", below=True)
        if number % columns == 0:
            axes.set_ylabel("accuracy")
    handles = [panels.dot(colour, RULES[ending], marker) for ending, (marker, colour) in THRESHOLDS.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    count = panels.count(panels.total(cells), "learned reward")
    panels.headline(figure, f"What the threshold does, {count}{panels.only(cells)}")
    return figure


def _ranges(runs: Sequence[Run]) -> str:
    """In words, as a narrow axis makes any spread look wide."""
    auroc, accuracy = ([run.metrics[f"irl/{key}"] for run in runs] for key in ("auroc", "accuracy_unsupervised"))
    told = [f"{min(values):.4f} to {max(values):.4f}" for values in (auroc, accuracy)]
    return f"AUROC from {told[0]}, accuracy with the unsupervised threshold from {told[1]}"


def _thresholds(axes: Axes, runs: Sequence[Run]) -> None:
    """Three marks a reward, joined."""
    auroc = np.array([run.metrics["irl/auroc"] for run in runs])
    rows = [[run.metrics.get(f"irl/accuracy{ending}", np.nan) for run in runs] for ending in THRESHOLDS]
    values = np.array(rows)
    many, faint = values.size > panels.MANY_POINTS, max(0.3, panels.alpha(len(runs)))
    ends = np.fmin.reduce(values), np.fmax.reduce(values)
    axes.vlines(auroc, *ends, color="#D0D0D0", linewidth=0.7, zorder=1, rasterized=many)
    for height, (marker, colour) in zip(values, THRESHOLDS.values(), strict=True):
        axes.scatter(auroc, height, s=18, marker=marker, color=colour, alpha=faint, linewidths=0, rasterized=many)


# ------------------------------------------------------------------------------------------------ best and all


def best_and_all(study: Study) -> Picture:
    """Accuracy and F1 of all learned rewards on the test completions of the reference, with three thresholds.

    The three rows differ in the threshold: 0, the one that separates
    expert from reference best (no R* needed), and one set with R* on the select prompts. Compare accuracy with the
    majority class, and F1, that of the class below 0 of R*, with calling everything that.
    """
    cells = panels.learned(study)
    names = labels(study, 44 if len(cells) > len(panels.CELL_COLOURS) else 30)
    tall = 0.6 + sum(0.06 + 0.13 * max(2, names[cell].count("\n") + 1) for cell in cells)
    figure = drawing.new(9.6, 3 * tall + 1.1)
    parts = figure.subplots(3, 2, sharex="col", squeeze=False)
    for row, (ending, rule) in zip(parts, RULES.items(), strict=True):
        for axes, measure in zip(row, ("accuracy", "f1"), strict=True):
            for place, runs in enumerate(cells.values()):
                _all_of(axes, place, runs, measure, ending)
            named = len(cells) > 1 and measure == "accuracy"
            panels.rows(axes, [names[cell] if named else "" for cell in cells], room=0.55)
        row[0].set_title(rule, fontsize=10)
    for axes, text in zip(parts[-1], ("accuracy", f"F1 of the class '{study.words.below}'"), strict=True):
        axes.set_xlabel(text)
    for row in parts:
        _levels_below(row[0], [_majority(runs) for runs in cells.values()], "majority class")
        _levels_below(row[1], [_all_toxic(runs) for runs in cells.values()], f"all called '{study.words.below}'")
    figure.legend(handles=_best_legend(cells), loc="outside lower left", ncols=3)
    figure.reading.append(panels.method(panels.sizes(cells)))
    if max(map(len, cells.values())) > 1:
        figure.reading.append(
            "The paper reports the run with the highest accuracy. Here it is ringed among all others: chosen by R* on "
            "the texts that it is reported on, it is no result."
        )
    count = panels.count(panels.total(cells), "learned reward")
    panels.headline(figure, f"The best run and all others: {count}")
    figure.set_layout_engine("constrained", rect=(0.01, 0, 0.98, 1))
    return figure


def _all_of(axes: Axes, place: int, runs: Sequence[Run], measure: str, ending: str) -> None:
    """A strip of points, the typical value with its interval, and a ring around the run of the highest accuracy."""
    keys = (f"irl/{measure}{ending}", f"irl/accuracy{ending}")
    runs = [run for run in runs if all(key in run.metrics for key in keys)]
    if not runs:
        panels.beside(axes, place, "not defined")
        return
    values = np.array([run.metrics[keys[0]] for run in runs])
    best = int(np.argmax([run.metrics[keys[1]] for run in runs]))
    faint = max(0.25 if len(values) < curves.DENSE else 0.08, panels.alpha(len(values)))
    above = 6 if len(values) < statistics.FEW else 3  # few are not hidden by their mean
    heights = panels.strip(axes, place, values, drawing.ORANGE, faint, above)
    found = panels.typical(runs, keys[0])
    text = panels.interval(found)
    if len(values) > 1:
        panels.mark(axes, found, place)
        axes.scatter(values[best], heights[best], s=70, facecolors="none", edgecolors="black", linewidths=1.2, zorder=7)
        who = "best" if measure == "accuracy" else "the ringed run"
        text += f"\n{who} {panels.number(values[best])}"
    panels.beside(axes, place, text)


def _majority(runs: Sequence[Run]) -> float:
    """Mean over the runs of a cell, whose test completions differ where demonstrations do."""
    return float(np.mean([run.metrics["irl/majority_accuracy"] for run in runs]))


def _all_toxic(runs: Sequence[Run]) -> float:
    """F1 of calling everything toxic: 2 p / (1 + p), with p the fraction of toxic completions."""
    toxic = [1 - run.metrics["irl/n_civil"] / run.metrics["irl/n_completions"] for run in runs]
    return float(np.mean([2 * rate / (1 + rate) for rate in toxic]))


def _levels_below(axes: Axes, values: Sequence[float], text: str) -> None:
    """A dashed line a row, or one through all where they agree, named below the rows."""
    shared = panels.agreed(values) is not None
    if shared:
        axes.axvline(float(np.mean(values)), **panels.DASHED, zorder=1)
    else:
        places = np.arange(len(values))
        axes.vlines(values, places - 0.42, places + 0.42, color=drawing.GREY, linestyle="--", linewidth=1.2, zorder=1)
    low, high = axes.get_xlim()
    low, high = axes.set_xlim(max(low, -0.02), min(high, 1.02))  # t intervals of two runs pass the ends
    place = float(np.mean(values))
    if not shared:
        name = f"{text}: {min(values):.3f} to {max(values):.3f}"
        middle: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
        panels.note(axes, name, (0.5, len(values) - 0.18), (0, 0), color=drawing.GREY, **middle)
        return
    right = place > (low + high) / 2
    side: dict[str, Any] = {"ha": "right" if right else "left", "va": "center"}
    at, away = (place, len(values) - 0.18), (-4 if right else 4, 0)
    panels.note(axes, f"{text} {place:.3f}", at, away, color=drawing.GREY, **side)


def _best_legend(cells: dict[str, list[Run]]) -> list[Any]:
    sizes = sorted({len(runs) for runs in cells.values()})
    n = " to ".join(f"{size:,}" for size in sorted({sizes[0], sizes[-1]}))
    handles = [panels.dot(drawing.ORANGE, "a learned reward")]
    if sizes[-1] > 1:
        most = statistics.typical([*range(max(panels.sizes(cells)))])
        bounds = " with 95 % interval" if most.low == most.low else ""
        method = most.method.split(",")[0] + bounds
        ring = f"best of {n}, chosen on the same texts: no result"
        handles.append(Line2D([], [], color="black", marker="D", markersize=5, linewidth=2.5, label=method))
        rings: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none"}
        handles.append(Line2D([], [], color="black", label=ring, **rings))
    return handles


FIGURES = {"threshold": threshold, "best_and_all": best_and_all}
"""Name of the file -> figure."""

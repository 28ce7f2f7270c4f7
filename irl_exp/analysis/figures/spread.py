"""Figures of the spread over seeds: what the demonstrations leave open, and which source moves a result."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.metric_names import readable
from irl_exp.analysis.spread import Open
from irl_exp.analysis.statistics import Estimate, Floats, wilson
from irl_exp.analysis.study import NotComputed, Study


def left_open(found: Open) -> Picture:
    """What the demonstrations leave open: test pairs whose order all rewards share that explain them as well.

    Left: for each test pair (expert minus baseline, one a prompt) the range of margins over all rewards that explain
    the fitted pairs as well as the best one, up to the calibrated tolerance: that at which the range holds the margin
    of the population's best reward for 95 % of the pairs, by resampling prompts. A pair whose range does not contain 0
    is determined. Points are the recovered rewards, one a seed: where they agree on an open pair, that is the method's
    doing and not the data's. Right: the fraction of pairs that is determined (95 % Wilson interval) against the
    tolerance, in standard errors of the loss over the fitted pairs: how much hangs on it. Bounds are exact, from convex
    programs.
    """
    figure = drawing.new(9.6, 4.2)
    ranges, fraction = figure.subplots(1, 2, width_ratios=[1.7, 1])
    _ranges(ranges, found)
    _fractions(fraction, found)
    return figure


def _ranges(axes: Axes, found: Open) -> None:
    possible, runs = found.possible[found.level], len(found.margins)
    order = np.argsort(found.best, kind="stable")
    place = np.arange(len(order))
    fixed = possible.determined[order]
    right = (np.sign(found.best) == np.sign(found.truth))[order]
    for mask, colour, text in ((fixed, drawing.BLUE, "determined"), (~fixed, drawing.ORANGE, "open")):
        shown = place[mask], possible.low[order][mask], possible.high[order][mask]
        label = f"{text}: {mask.sum()} of {len(order)} pairs, the best reward as R* on {right[mask].sum()}"
        axes.vlines(*shown, color=colour, linewidth=2.2, alpha=0.45, label=label)
    margins, label = found.margins[:, order].ravel(), f"recovered rewards ({runs} seeds)"
    axes.plot(np.tile(place, runs), margins, ".", color="black", markersize=1.6, label=label, rasterized=True)
    axes.axhline(0, color=drawing.GREY, linewidth=0.8)
    axes.set_xlabel("test pair, by the margin of the best reward")
    axes.set_ylabel("margin: R(expert) - R(baseline)")
    axes.set_title(f"Possible margins (tolerance {_units(found, found.level):.2g} se, calibrated)")
    axes.legend(loc="upper left", fontsize=panels.SMALL)
    top = float(possible.high.max())
    axes.set_ylim(top=top + 0.32 * (top - float(possible.low.min())))  # room for the legend


def _units(found: Open, level: int) -> float:
    return found.tolerances[level] / found.standard_error


def _fractions(axes: Axes, found: Open) -> None:
    pairs = len(found.best)
    at = [_units(found, number) for number in range(len(found.tolerances))]
    shares = [wilson(int(possible.determined.sum()), pairs) for possible in found.possible]
    values = np.array([share.value for share in shares])
    low, high = (np.array([getattr(share, name) for share in shares]) for name in ("low", "high"))
    axes.errorbar(at, values, [values - low, high - values], marker="o", color=drawing.BLUE, capsize=2)
    axes.plot(at[found.level], values[found.level], "D", color=drawing.ORANGE, zorder=3)
    signs = np.sign(found.margins)
    alike = float((np.abs(signs.sum(axis=0)) == len(signs)).mean())
    axes.axhline(alike, color="black", linestyle=":")
    right = axes.get_yaxis_transform()
    told = f"all {len(signs)} seeds agree: {alike:.2f}"
    panels.note(axes, told, (1, alike), (0, -4), xycoords=right, ha="right", va="top")
    panels.note(axes, "calibrated", (at[found.level], values[found.level]), (6, 8))
    if found.typical in found.tolerances:
        number = found.tolerances.index(found.typical)
        panels.note(axes, "typical run", (at[number], values[number]), (6, 8))
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{value:.2g}" for value in at])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.08)
    axes.set_xlabel("tolerance, in standard errors of the loss")
    axes.set_ylabel("fraction of test pairs")
    axes.set_title("Determined by the demonstrations")


def paired_differences(study: Study, table: pd.DataFrame) -> Picture:
    """Which cell recovers more: every cell minus the first one on the same seeds.

    Each point is a seed, the diamond the mean of the differences. Its 95 % interval is over experts where the runs have
    three or more, else over the test prompts and the fits of their one expert. What two cells share (expert,
    demonstrations, the completions on which they are judged) cancels out in a difference. A cell
    whose interval crosses 0 is not told apart from the first one; with many cells compared, some intervals miss 0 by
    chance: the table below has p-values that allow for it (Holm).

    Args:
        table: as `summary` has it: metric, first, second, n, difference, low, high.
    """
    first = next(iter(study.cells))
    rows = table[table["first"] == first]
    if rows.empty:
        raise NotComputed(f"the first cell, {first}, shares no two seeds with another")
    metrics, others = list(dict.fromkeys(rows["metric"])), list(dict.fromkeys(rows["second"]))
    names = labels(study)
    figure = drawing.new(4.6 * len(metrics) + 1.8, 1.3 + max(0.36, panels.inches(names.values())) * len(others))
    parts = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(parts, metrics, strict=True):
        known = rows[rows["metric"] == metric].set_index("second")
        for place, other in enumerate(others):
            if other in known.index:
                mean, low, high = (-float(known.loc[other, key]) for key in ("difference", "high", "low"))
                found = Estimate(mean, low, high, int(known.loc[other, "n"]), "mean, 95 % t interval")
                _paired(axes, place, np.subtract(*study.paired(metric, other, first)), found)
        panels.rows(axes, [names[other] if axes is parts[0] else "" for other in others])
        axes.axvline(0, **panels.DASHED)
        axes.set_xlabel(textwrap.fill(f"difference in {readable(metric, study.words)}", 40))
    panels.headline(figure, f"Minus {' '.join(names[first].split())}, on the same seeds")
    return figure


def _paired(axes: Axes, place: int, seeds: Floats, found: Estimate) -> None:
    """One row: all seeds, and below them the mean with its interval, also in numbers."""
    axes.plot(seeds, [place] * len(seeds), "o", color=drawing.ORANGE, alpha=0.6, markersize=4)
    panels.mark(axes, found, place + 0.24)
    bounds = "" if np.isnan(found.low) else f" [{found.low:+.4f}, {found.high:+.4f}]"
    panels.beside(axes, place, f"{found.value:+.4f}{bounds}")


def variance_components(study: Study, table: pd.DataFrame) -> Picture:
    """Which source moves a result: the standard deviation over each nested source of randomness, by metric and cell.

    Lines are 95 % generalised confidence intervals; the innermost seed is the residual. A component whose estimate is
    negative, which is small against its error, stands at 0.

    Args:
        table: as `summary` has it: cell, metric, source, variance, low, high.
    """
    metrics = list(dict.fromkeys(table["metric"]))
    cells, sources = list(dict.fromkeys(table["cell"])), list(dict.fromkeys(table["source"]))
    names = labels(study)
    places = [(cell, source) for cell in cells for source in sources]
    told = [source if len(cells) == 1 else f"{names[cell]}:\n{source}" for cell, source in places]
    figure = drawing.new(3.4 * len(metrics) + 1.2, 1.2 + max(0.42, panels.inches(told)) * len(places))
    parts = figure.subplots(1, len(metrics), squeeze=False)[0]
    colours = dict(
        zip(sources, (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.PURPLE, drawing.GREY), strict=False)
    )
    for axes, metric in zip(parts, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index(["cell", "source"])
        for place, name in enumerate(places):
            if name not in rows.index:
                continue
            variance, low, high = (max(float(rows.loc[name, key]), 0.0) ** 0.5 for key in ("variance", "low", "high"))
            axes.plot([low, high], [place, place], color=colours[name[1]], linewidth=2)
            axes.plot(variance, place, "o", color=colours[name[1]])
        axes.set_xlim(left=0)
        axes.set_xlabel(textwrap.fill(f"sd of {readable(metric, study.words)}", 34))
        panels.rows(axes, told if axes is parts[0] else [""] * len(places))
    parts[0].set_title("What moves the result")
    return figure

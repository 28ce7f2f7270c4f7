"""Runs as curves: every run a thin line, the mean a thick one, and a band."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.statistics import Floats
from irl_exp.analysis.study import Study
from irl_exp.report.units import LEAST

DENSE = 100
"""From so many runs on their lines make an area, on which a mean needs a rim to be seen."""


def curve(axes: Axes, table: pd.DataFrame, key: str, colour: str, *, spread: bool, band: bool = True) -> None:
    """All runs as thin lines, their mean, and the band; the view is that of the lines."""
    wide = table.set_index(["step", "run"])[key].unstack("run")
    steps, values = wide.index.to_numpy(dtype=np.float64), wide.to_numpy()
    lines = [np.column_stack([steps, run])[~np.isnan(run)] for run in values.T]
    style: dict[str, Any] = {
        "colors": colour,
        "alpha": panels.alpha(len(lines)),
        "rasterized": values.size > panels.MANY_POINTS,
    }
    axes.add_collection(LineCollection(lines, linewidths=0.6, **style))
    if len(steps) == 1:  # a line of one point is not seen
        axes.scatter(np.full(values.size, steps[0]), values[0], s=8, color=colour, alpha=style["alpha"], linewidths=0)
    whole = ~np.isnan(values).any(axis=1)
    mean, low, high = _band(values[whole], spread=spread)
    rim = [patheffects.withStroke(linewidth=3, foreground="white")] if len(lines) >= DENSE else []
    dot = "o" if whole.sum() == 1 else None
    axes.plot(steps[whole], mean, color=colour, marker=dot, markersize=4, zorder=4, path_effects=rim)
    axes.autoscale_view()
    if band:
        axes.autoscale(enable=False, axis="y")
        axes.fill_between(steps[whole], low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
        axes.autoscale(enable=True, axis="y")


def _band(values: Floats, *, spread: bool) -> tuple[Floats, Floats, Floats]:
    """(steps, runs) -> mean, lower and upper bound: the middle 95 % of runs, or `mean_t` of three or more."""
    mean, runs = values.mean(axis=1), values.shape[1]
    if spread:
        low, high = np.quantile(values, [0.025, 0.975], axis=1)
        return mean, low, high
    if runs < LEAST:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf(0.975, runs - 1) * values.std(axis=1, ddof=1) / np.sqrt(runs)
    return mean, mean - half, mean + half


def band_name(*, spread: bool) -> str:
    """What the band is."""
    return "middle 95 % of the runs" if spread else "95 % t interval of the mean"


def band_told(counts: pd.Series[int], *, spread: bool) -> str:
    """What the band of runs by cell is, in words; nothing where there is none."""
    if counts.max() < LEAST:
        return f"There is no band: it needs {LEAST} runs." if counts.max() > 1 else ""
    if spread:
        return "The band is the middle 95 % of the runs: their spread, not the error of the mean."
    return f"The band is the 95 % t interval of the mean, where a cell has {LEAST} runs or more."


def legend(
    study: Study, counts: pd.Series[int], colours: Mapping[str, str], one: str, *, spread: bool, mean: str = "mean"
) -> list[Any]:
    """A run (`one`), the mean, the band, and cells where each has a colour; counts of runs by cell."""
    several = len(set(colours.values())) > 1
    base = drawing.GREY if several else next(iter(colours.values()))
    handles: list[Any] = [Line2D([], [], color=base, linewidth=0.6 if counts.max() > 1 else 1.5, label=one)]
    if counts.max() > 1:
        handles.append(Line2D([], [], color=base, label=mean))
    if counts.max() >= LEAST and len(colours) <= len(panels.CELL_COLOURS):
        handles.append(Patch(color=base, alpha=0.2, label=band_name(spread=spread)))
    names = labels(study) if several else {}
    return handles + [
        Line2D([], [], color=colours[cell], label=f"{name} (n = {counts[cell]})")
        for cell, name in names.items()
        if cell in colours
    ]

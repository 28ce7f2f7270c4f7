"""Figures of what was varied: results against a parameter, and the trade-off between objectives that is recovered."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform, offset_copy
from scipy.stats import chi2

from irl_exp.analysis.cell_names import fold, overrides, short
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.metric_names import readable
from irl_exp.analysis.statistics import Floats
from irl_exp.analysis.study import NotComputed, Study

MOST = 8
"""So many lines in one panel can be told apart."""
MEASURES = ("irl/auroc", "irl/epic", "refinetuned/toxic_fraction")


@dataclass(frozen=True)
class Sweep:
    """A number that varies between cells: its key, its value in each cell, what else varies, by cell, and its key."""

    key: str
    values: Mapping[str, float]
    others: Mapping[str, str]
    beside: str


def against_parameter(study: Study) -> Picture:
    """What a parameter of the study does to the learned reward, and to the policy that is trained on it.

    Small points, a little to the left, are runs; large ones, joined by a line, are the typical run of a cell. Blue is
    the log ratio of the two policies, what they themselves tell; where it varies, each run has a dash.
    """
    sweep = swept(study)
    series = list(dict.fromkeys(sweep.others.values()))
    if len(series) > MOST:
        raise NotComputed(f"{len(series)} lines in one panel (what varies beside {sweep.key}) cannot be told apart.")
    keys = [key for key in MEASURES if panels.having(study, key)]
    if not keys:
        raise NotComputed("no run has a learned reward that was judged against R* (irl/auroc).")
    ensemble = sweep.key == "irl.members" and max(map(len, study.cells.values())) > 2
    count = len(keys) + ensemble
    figure = drawing.new(1.2 + 3.3 * count, 4.2)
    parts = figure.subplots(1, count, squeeze=False)[0].tolist()
    for axes, key in zip(parts, keys, strict=False):
        _against(axes, study, sweep, key)
    sizes = sorted({len(runs) for runs in study.cells.values()})
    figure.reading.append(panels.method(panels.sizes(study.cells)).replace("diamond", "large point"))
    if len(series) > 1:
        figure.reading.append("Colours are what else varies; cells with one value of the parameter stand side by side.")
    if ensemble:
        _stability(parts[-1], study, sweep)
        figure.reading.append(
            "The last panel has the sd of AUROC over ensembles with its 95 % interval (chi-squared): how many members "
            "until another draw of members gives the same."
        )
    for axes in parts:
        _parameter_axis(axes, sweep)
    handles, texts = parts[0].get_legend_handles_labels()
    if len(series) > 1:
        figure.legend(handles, texts, loc="outside right center", fontsize=panels.SMALL, title=sweep.beside)
    each = f"{sizes[0]} a cell" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} a cell"
    panels.headline(figure, f"Against {sweep.key}: {panels.counted(study, len(study.runs))}, {each}")
    return figure


def swept(study: Study) -> Sweep:
    """The number that takes the most values between cells, of those that were overridden, alone or with their group."""
    parts = {cell: overrides(cell) for cell in study.cells}
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
    return Sweep(*found[override], dict(zip(study.cells, short(rest), strict=True)), "")


def _number_of(study: Study, override: str) -> str | None:
    """The numeric key that an override sets: itself, or the first of its group that tells all its values apart."""
    configs = {cell: runs[0].config for cell, runs in study.cells.items()}
    place = override.replace("/", ".")
    choices = {overrides(cell).get(override, "") for cell in configs}
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
    for name, (colour, marker) in zip(names, panels.shades(len(names)), strict=True):
        cells = [cell for cell in study.cells if sweep.others[cell] == name]
        yield name, colour, marker, sorted(cells, key=lambda cell: sweep.values[cell])


def _against(axes: Axes, study: Study, sweep: Sweep, key: str) -> None:
    """One metric: runs, typical runs and the log ratio."""
    estimates = []
    for name, colour, marker, cells in _series(study, sweep):
        with_key = [cell for cell in cells if study.values(key, cell)]
        for cell in with_key:
            values = study.values(key, cell)
            x = [_places(sweep, cell)] * len(values)
            axes.scatter(x, values, s=14, color=colour, alpha=0.6, linewidths=0, transform=_aside(axes, -5))
        found = [panels.typical(study.cells[cell], key) for cell in with_key]
        estimates += found
        x = [_places(sweep, cell) for cell in with_key]
        axes.plot(x, [one.value for one in found], color=colour, marker=marker, markersize=5, label=fold(name))
        bounded = [(at, one) for at, one in zip(x, found, strict=True) if one.low == one.low]
        axes.vlines([at for at, _ in bounded], [e.low for _, e in bounded], [e.high for _, e in bounded], color=colour)
    axes.set_title(textwrap.fill(readable(key, study.words), 34), fontsize=10)
    ratio = key.replace("irl/", "implicit/") if key.startswith("irl/") else ""
    axes.set_ylim(panels.limits(np.array(study.values(key)), study.values(ratio), estimates, panels.FRACTIONS))
    if ratio:
        _log_ratio(axes, study, sweep, ratio)


def _aside(axes: Axes, away: float) -> Transform:
    """Data coordinates, moved by so many points to the right: beside the line of an interval."""
    return offset_copy(axes.transData, cast(Figure, axes.figure), x=away, units="points")


def _log_ratio(axes: Axes, study: Study, sweep: Sweep, key: str) -> None:
    """The log ratio of the policies: a line where all runs share it, points where they do not."""
    shared = np.unique(study.values(key))
    if len(shared) == 1:
        low, high = axes.get_ylim()
        panels.level(axes, shared[0], "log ratio", colour=drawing.BLUE, below=shared[0] > (low + high) / 2)
        return
    for cell in study.cells:
        values = study.values(key, cell)
        x = [_places(sweep, cell)] * len(values)
        axes.scatter(x, values, s=14, color=drawing.BLUE, marker="_", linewidths=1, transform=_aside(axes, 5))
    if len(shared):
        style = {"xycoords": "axes fraction", "color": drawing.BLUE, "ha": "right", "va": "bottom"}
        panels.note(axes, "log ratio (one dash a run)", (1, 1), (0, 0), **style)


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


# ---------------------------------------------------------------------------------------------------------- tradeoff

REWARDS = {"truth": ("R*", "black"), "implicit": ("log ratio", drawing.BLUE), "learned": ("learned", drawing.ORANGE)}


def tradeoff(study: Study) -> Picture:
    """Which trade-off between objectives is recovered: the share of each part of R* in R* and in the rewards.

    A share is the weight of that part in a least-squares fit of the reward on the standardised parts within prompts,
    scaled so that the absolute shares add to 1; for R* it is the weight that was set. Each point is a run. The log
    ratio of the policies apart from R*: RLHF did not install it. Learned apart from that: IRL did not recover it.
    """
    found = (key.split("/", 2)[2] for run in study.runs for key in run.metrics if key.startswith("tradeoff/truth/"))
    objectives = [part for part in dict.fromkeys(found) if not part.endswith(("_low", "_high"))]
    if not objectives:
        raise NotComputed("R* has one objective in these runs: shares need reward=weighted.")
    cells = panels.having(study, *(f"tradeoff/truth/{part}" for part in objectives))
    columns = {part: [(f"tradeoff/{name}/{part}", REWARDS[name][1]) for name in REWARDS] for part in objectives}
    figure, parts = panels.by_cell(study, cells, columns, "share of the weight")
    low, high = parts[0].get_xlim()
    parts[0].set_xlim(max(low, -1.1), min(high, 1.1))  # shares do not pass 1, though a t interval may
    for axes in parts:
        panels.upright(axes, 0.0)
    panels.legend_below(figure, dict(REWARDS.values()), "share in")
    panels.headline(figure, f"Which trade-off is recovered: {panels.counted(study, panels.total(cells))}")
    return figure


FIGURES = {"against_parameter": against_parameter, "tradeoff": tradeoff}
"""Name of the file -> figure."""

"""The figures of the paper (arXiv 2410.12491) from the runs of any launch, with all runs in them and intervals.

A figure is a function of a study whose docstring is its caption; where the runs cannot tell it, it raises NotComputed.
Runs that share an artifact, as the learned reward, have the same values by construction: they are drawn and counted
once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy import stats

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, panels, toxicity
from irl_exp.analysis.statistics import Floats
from irl_exp.analysis.study import NotComputed, Run, Study

CURVES = {
    "accuracy_at_zero": "accuracy, threshold 0",
    "auroc": "AUROC",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "kendall": "Kendall correlation",
}
DENSE = 100
"""From so many runs on their lines make an area, on which a mean needs a rim to be seen."""
CHANCE = {"auroc": 0.5, "pearson": 0.0, "spearman": 0.0, "kendall": 0.0}
FLOORS = {"accuracy_at_zero": "majority class", "auroc": "chance"}
RULES = {
    "_at_zero": "threshold at zero",
    "_unsupervised": "unsupervised threshold",
    "": "threshold set with R* on select",
}
"""Ending of a metric -> how its threshold was set."""

Scale = tuple[float, float]
"""Ends of a colour scale."""


def _learned(study: Study) -> dict[str, list[Run]]:
    """Runs with a learned reward by cell, one a reward."""
    found = {cell: panels.distinct(runs, "irl") for cell, runs in panels.having(study, "irl/auroc").items()}
    if not found:
        raise NotComputed("No run has a learned reward: they stopped before irl (until=...), or on texts of one class.")
    return found


# -------------------------------------------------------------------------------------------------- over epochs


def _evaluated(study: Study) -> pd.DataFrame:
    """The curve `evaluate` of each learned reward: run, cell, step (an epoch) and the keys of CURVES."""
    kept = {run.number for runs in _learned(study).values() for run in runs}
    table = study.curves.get("evaluate", pd.DataFrame())
    if table.empty or "accuracy_at_zero" not in table:
        raise NotComputed(
            "No run has a curve of its reward against R* over epochs: the method has no epochs or several heads, or "
            "metrics.jsonl is missing."
        )
    table = table[table["run"].isin(kept)].drop_duplicates(["run", "step"], keep="last")
    return table[["run", "cell", "step", *(key for key in CURVES if key in table)]]


def over_epochs(study: Study) -> Figure:
    """The learned reward against R* after each epoch of IRL, on the test completions of expert and reference.

    Every thin line is a learned reward, the thick line is the mean. The band is the middle 95 % of the runs (their
    spread, not the error of the mean) where each cell has ten or more, else the t interval of the mean. No epoch is
    chosen by these curves. Accuracy calls a completion civil where the reward is at least 0, a threshold that a
    pairwise loss leaves arbitrary; AUROC and correlations have no threshold. The implicit reward, log pi_expert -
    log pi_ref, is what the demonstrations hold.
    """
    table = _evaluated(study)
    cells = list(dict.fromkeys(table["cell"]))
    spread = bool(table.groupby("cell")["run"].nunique().min() >= statistics.FEW)
    if len(cells) > len(panels.CELL_COLOURS):
        return _epochs_by_cell(study, table, cells, spread=spread)
    keys = [key for key in CURVES if key in table]
    figure, parts = panels.grid(6, 3, 2.2, sharex=True)
    legend = parts.pop(2)
    for key, axes in zip(keys, parts, strict=False):
        for cell, colour in zip(cells, panels.CELL_COLOURS, strict=False):
            _curve(axes, table[table["cell"] == cell], key, colour, spread=spread)
        axes.set_title(CURVES[key], fontsize=10)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _epoch_levels(axes, study, table, key)
    for axes in parts[2:]:
        axes.set_xlabel("epoch of IRL")
    for axes in [legend, *parts[len(keys) :]]:
        axes.set_axis_off()
    counts, colours = table.groupby("cell")["run"].nunique(), dict(zip(cells, panels.CELL_COLOURS, strict=False))
    handles = _curve_legend(study, counts, colours, "a run", spread=spread)
    legend.legend(handles=handles, loc="center left", borderaxespad=0)
    panels.headline(figure, f"Learned rewards against R* over epochs, {_rewards(table)}")
    return figure


def _rewards(table: pd.DataFrame) -> str:
    return panels.count(int(table["run"].nunique()), "learned reward")


def _only(cells: Collection[str]) -> str:
    """What is not drawn."""
    return f", the first {panels.MOST_PANELS} of {len(cells)} cells" if len(cells) > panels.MOST_PANELS else ""


def _curve(axes: Axes, table: pd.DataFrame, key: str, colour: str, *, spread: bool, band: bool = True) -> None:
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
    if runs < 3:  # two runs: the t interval is 13 times as wide as they are apart
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf(0.975, runs - 1) * values.std(axis=1, ddof=1) / np.sqrt(runs)
    return mean, mean - half, mean + half


def _epoch_levels(axes: Axes, study: Study, table: pd.DataFrame, key: str) -> None:
    """What needs no learned reward, and the ceiling, each where all cells have the same."""

    cells = list(table["cell"].unique())

    def shared(name: str) -> float | None:
        values = [study.values(name, cell) for cell in cells]
        return panels.agreed([float(np.mean(row)) for row in values]) if all(values) else None

    last = float(table.loc[table["step"] == table["step"].max(), key].mean())
    ceiling = shared(f"implicit/{key}")
    floor = CHANCE.get(key, shared("irl/majority_accuracy"))
    if ceiling is not None:
        panels.level(axes, ceiling, "implicit reward", colour=drawing.BLUE, below=last > ceiling)
    if floor is not None:
        panels.level(axes, floor, FLOORS.get(key, "unrelated"), below=last > floor)


def _band_name(*, spread: bool) -> str:
    return "middle 95 % of the runs" if spread else "95 % t interval of the mean (from 3 runs)"


def _curve_legend(
    study: Study, counts: pd.Series[int], colours: Mapping[str, str], one: str, *, spread: bool, mean: str = "mean"
) -> list[Any]:
    """A run (`one`), the mean, the band, and cells where each has a colour; counts of runs by cell."""
    several = len(set(colours.values())) > 1
    base = drawing.GREY if several else next(iter(colours.values()))
    handles: list[Any] = [Line2D([], [], color=base, linewidth=0.6 if counts.max() > 1 else 1.5, label=one)]
    if counts.max() > 1:
        handles.append(Line2D([], [], color=base, label=mean))
    if counts.max() > 2 and len(colours) <= len(panels.CELL_COLOURS):
        handles.append(Patch(color=base, alpha=0.2, label=_band_name(spread=spread)))
    names = labels(study) if several else {}
    return handles + [
        Line2D([], [], color=colours[cell], label=f"{name} (n = {counts[cell]})")
        for cell, name in names.items()
        if cell in colours
    ]


def _epochs_by_cell(study: Study, table: pd.DataFrame, cells: Sequence[str], *, spread: bool) -> Figure:
    """A panel a cell with all five measures in it."""
    names, shown = labels(study), cells[: panels.MOST_PANELS]
    colours = dict(zip(CURVES, (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.PURPLE, "black"), strict=True))
    figure, parts = panels.grid(len(shown), 4, 2.1, width=10, sharex=True, sharey=True)
    for cell, axes in zip(shown, parts, strict=True):
        rows = table[table["cell"] == cell]
        for key in [key for key in CURVES if key in rows]:  # a set has another order each time
            _curve(axes, rows, key, colours[key], spread=spread)
        axes.set_title(f"{names[cell]}\n(n = {rows['run'].nunique()})", fontsize=panels.SMALL, weight="normal")
    panels.bottom(parts, 4, "epoch of IRL")
    handles: list[Any] = [Line2D([], [], color=colour, label=CURVES[key]) for key, colour in colours.items()]
    band = f"line: mean, band: {_band_name(spread=spread)}"
    handles.append(Patch(color=drawing.GREY, alpha=0.3, label=band))
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    panels.headline(figure, f"Learned rewards against R* over epochs, {_rewards(table)}{_only(cells)}")
    return figure


# ---------------------------------------------------------------------------------------------------- heat map


def accuracy_heatmap(study: Study) -> Figure:
    """Accuracy at threshold 0 of each learned reward (a row) after each epoch (a column), on the test completions.

    Rows are sorted by seed, not by result. All panels have one colour scale, on which the accuracy of always answering
    the more frequent class is marked: what is darker than the mark is worse than no reward at all. A pairwise loss
    leaves the threshold arbitrary, so rows differ in more than how well the reward orders completions. White: no
    value.
    """
    table = _evaluated(study)
    blocks = _blocks(study, table)
    majority = [run.metrics["irl/majority_accuracy"] for runs in _learned(study).values() for run in runs]
    values = table["accuracy_at_zero"]
    low, high = float(values.min()), float(values.max())
    if abs(np.mean(majority) - (low + high) / 2) < 1.5 * (high - low):
        low, high = min(low, *majority), max(high, *majority)
    scale = (low, high if high > low else low + 0.01)
    if len(blocks) > len(panels.CELL_COLOURS):
        figure, parts, image = _stacked(study, blocks, scale)
    else:
        figure, parts, image = _side_by_side(study, blocks, scale)
    bar = figure.colorbar(image, ax=parts, label="accuracy, threshold 0", fraction=0.05, pad=0.02, aspect=40)
    _mark(bar.ax, min(majority), max(majority), scale)
    title = f"Accuracy at threshold 0 of {_rewards(table)} over epochs"
    panels.headline(figure, title)
    return figure


def _blocks(study: Study, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Cell -> accuracy (runs sorted by seed, epochs); the index holds the seeds as text."""
    runs = {run.number: run for run in study.runs}
    last = int(table["step"].max())
    found = {}
    for cell, rows in table.groupby("cell", sort=False):
        wide = rows.pivot_table(index="run", columns="step", values="accuracy_at_zero")
        wide = wide.reindex(columns=range(1, last + 1))
        order = sorted(wide.index, key=lambda number: (study.seed_of(runs[number]), number))
        wide = wide.loc[order]
        wide.index = pd.Index([_seed(study, runs[number]) for number in order])
        found[str(cell)] = wide
    return found


def _seed(study: Study, run: Run) -> str:
    values = study.seed_of(run) or tuple(value for key, value in run.seeds.items() if key == "seed")
    return "/".join(map(str, values)) or str(run.number)


def _image(axes: Axes, values: Floats, scale: Scale) -> Any:
    rows, columns = values.shape
    axes.set_xlabel("epoch of IRL")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    extent = (0.5, columns + 0.5, rows - 0.5, -0.5)
    return axes.imshow(values, aspect="auto", interpolation="nearest", extent=extent, vmin=scale[0], vmax=scale[1])


def _thin(count: int, most: int) -> list[int]:
    """Evenly spaced places of at most `most` of `count` tick labels.

    >>> _thin(3, 10), _thin(50, 10)
    ([0, 1, 2], [0, 5, 10, 15, 20, 25, 30, 35, 40, 45])
    """
    return list(range(0, count, -(-count // most)))


def _side_by_side(study: Study, blocks: dict[str, pd.DataFrame], scale: Scale) -> tuple[Figure, list[Axes], Any]:
    columns = min(3, len(blocks))
    most = max(map(len, blocks.values()))
    height = float(np.clip(0.16 * most + 0.8, 1.8, 5.2))
    figure, parts = panels.grid(len(blocks), columns, height, width=6.4 if columns == 1 else 9.0)
    names = labels(study)
    seeds = " / ".join(study.varying_seeds) or "seed"
    for number, ((cell, block), axes) in enumerate(zip(blocks.items(), parts, strict=True)):
        image = _image(axes, block.to_numpy(), scale)
        places = _thin(len(block), max(4, int(height / 0.18)))
        axes.set_yticks(places, [str(block.index[place]) for place in places], fontsize=panels.SMALL)
        if number % columns == 0:
            axes.set_ylabel(f"run, by {textwrap.fill(seeds, 40)}")
        if len(blocks) > 1:
            axes.set_title(f"{names[cell]} (n = {len(block)})", fontsize=9, weight="normal")
    return figure, parts, image


def _stacked(study: Study, blocks: dict[str, pd.DataFrame], scale: Scale) -> tuple[Figure, list[Axes], Any]:
    """One panel: cells above each other, in each its runs by seed, a white line between."""
    names = labels(study)
    sizes = [len(block) for block in blocks.values()]
    ends = np.cumsum(sizes)
    lines = [names[cell].count("\n") + 1 for cell in blocks]
    figure = drawing.new(8, float(np.clip(0.17 * max(sum(lines) * 1.1, ends[-1] * 0.6), 3, 60)) + 1)
    axes = figure.add_subplot()
    image = _image(axes, np.vstack([block.to_numpy() for block in blocks.values()]), scale)
    axes.hlines(ends[:-1] - 0.5, *axes.get_xlim(), color="white", linewidth=2)
    axes.set_yticks(ends - np.array(sizes) / 2 - 0.5, [names[cell] for cell in blocks], fontsize=panels.SMALL)
    axes.tick_params(left=False)
    seeds = " / ".join(study.varying_seeds) or "seed"
    axes.set_title(f"rows: runs of a cell, by {seeds}", fontsize=9, weight="normal")
    return figure, [axes], image


def _mark(bar: Axes, low: float, high: float, scale: Scale) -> None:
    """The majority class (of all runs: from low to high) on the colour bar; an arrow where the scale ends before it."""
    text = f"majority class {low:.3f}" + (f" to {high:.3f}" if high - low > 5e-4 else "")
    middle = (low + high) / 2
    if scale[0] <= low and high <= scale[1]:
        for edge in {low, high}:
            bar.axhline(edge, color="white", linewidth=3)
            bar.axhline(edge, color="black", linewidth=1.2)
        bar.annotate(
            text, (-0.25, middle), xycoords=bar.get_yaxis_transform(), rotation=90, ha="right", va="center",
            fontsize=panels.SMALL,
        )  # fmt: skip
    else:
        arrow, y, va = ("↓", -0.02, "top") if middle < scale[0] else ("↑", 1.02, "bottom")
        bar.text(0.5, y, f"{arrow} {text}", transform=bar.transAxes, ha="center", va=va, fontsize=panels.SMALL)


# ------------------------------------------------------------------------------------------------ best and all


def best_and_all(study: Study) -> Figure:
    """Accuracy and F1 (of the toxic class) of all learned rewards on the test completions of expert and reference.

    The paper reports the run with the highest accuracy. Here it is ringed among all others: chosen by R* on the texts
    that it is reported on, it is no result. Numbers at the right are the mean with a t interval (under ten runs) or the
    interquartile mean with a bootstrap over runs. The three rows differ in the threshold: 0, the one that separates
    expert from reference best (no R* needed), and one set with R* on the select prompts. Compare accuracy with the
    majority class, and F1 with calling everything toxic.
    """
    cells = _learned(study)
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
    for axes, text in zip(parts[-1], ("accuracy", "F1 of the toxic class"), strict=True):
        axes.set_xlabel(text)
    for row in parts:
        _levels_below(row[0], [_majority(runs) for runs in cells.values()], "majority class")
        _levels_below(row[1], [_all_toxic(runs) for runs in cells.values()], "all called toxic")
    figure.legend(handles=_best_legend(cells), loc="outside lower left", ncols=3)
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
    faint = max(0.25 if len(values) < DENSE else 0.08, panels.alpha(len(values)))
    above = 6 if len(values) < statistics.FEW else 3  # few are not hidden by their mean
    heights = panels.strip(axes, place, values, drawing.ORANGE, faint, above)
    found = statistics.typical(values)
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
        most = statistics.typical(next([*range(len(runs))] for runs in cells.values() if len(runs) == sizes[-1]))
        method = most.method.split(",")[0] + " with 95 % interval"
        ring = f"best of {n}, chosen on the same texts: no result"
        handles.append(Line2D([], [], color="black", marker="D", markersize=5, linewidth=2.5, label=method))
        rings: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none"}
        handles.append(Line2D([], [], color="black", label=ring, **rings))
    return handles


# ----------------------------------------------------------------------------------------------- training curves

TRAINED = {"rlhf": "RLHF on R*: the expert", "refinetune": "refinetuning on the learned reward"}


def training_curves(study: Study) -> Figure:
    """Reward and KL from the reference of the batches of RLHF (on R*, left) and of refinetuning (on R, right).

    Every policy is drawn once, however many runs share it. The reward is that of the batch without the KL term. The
    two rewards have scales of their own, so only their courses compare; the KL has one scale. A reward that is still
    rising at the last step says that RL has not converged. A refinetuned policy that goes further from the reference
    than the expert may have left the texts on which the learned reward was fitted.
    """
    tables = {stage: table for stage in TRAINED if not (table := _trained(study, stage)).empty}
    if not tables:
        raise NotComputed("No run has trained a policy by RL, or metrics.jsonl is missing.")
    colours = {
        stage: _owners(table, drawing.BLUE if stage == "rlhf" else drawing.ORANGE) for stage, table in tables.items()
    }
    legends = {stage: _trained_legend(study, table, colours[stage]) for stage, table in tables.items()}
    lines = max(sum(1 + str(item.get_label()).count("\n") for item in legend) for legend in legends.values())
    figure = drawing.new(4.4 * len(tables) + (1.2 if len(tables) == 1 else 0.2), 5.2 + 0.19 * lines)
    parts = figure.subplots(2, len(tables), squeeze=False, sharey="row" if len(tables) == 1 else False)
    for (stage, table), (reward, kl) in zip(tables.items(), parts.T, strict=True):
        for axes, key in ((reward, "reward"), (kl, "kl")):
            for owner, colour in colours[stage].items():
                rows, told_apart = table[table["owner"] == owner], len(colours[stage]) <= len(panels.CELL_COLOURS)
                _curve(axes, rows, key, colour, spread=_is_spread(table), band=told_apart)
            axes.set_xlabel("optimiser step")
            axes.margins(x=0.02)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        reward.set_title(
            f"{TRAINED[stage]}\n({panels.count(table['run'].nunique(), 'policy', 'policies')})", fontsize=10
        )
        reward.set_ylabel(_reward_unit(study) if stage == "rlhf" else "R of the batch\n(sd on the fit demonstrations)")
        kl.legend(handles=legends[stage], loc="upper left", bbox_to_anchor=(-0.02, -0.26), borderaxespad=0)
    limits = [kl.get_ylim() for kl in parts[1]]
    for kl in parts[1]:  # one scale; axes that share it are laid out in an order that changes from time to time
        kl.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        panels.level(kl, 0.0, "reference", below=True)
    parts[1, 0].set_ylabel("KL from the reference\n(nats per token)")
    figure.set_layout_engine("constrained", rect=(0.015, 0, 0.985, 1))
    panels.headline(figure, "Reward and KL over the steps of RL")
    return figure


def _trained(study: Study, stage: str) -> pd.DataFrame:
    """The curve of each policy of a stage, with the cell that owns it; '' where cells share policies."""
    table = study.curves.get(stage, pd.DataFrame(columns=["run", "cell", "step"]))
    if "reward" not in table or "kl" not in table:
        return table.iloc[:0]
    present = set(table["run"])
    runs = [run for run in study.runs if run.number in present]
    cells: dict[object, set[str]] = {}
    for run in runs:
        cells.setdefault(run.artifact(stage) or run.number, set()).add(run.cell)
    shared = any(len(owners) > 1 for owners in cells.values())
    table = table[table["run"].isin([run.number for run in panels.distinct(runs, stage)])]
    table = table.drop_duplicates(["run", "step"], keep="last")
    return table.assign(owner="" if shared else table["cell"])


def _owners(table: pd.DataFrame, alone: str) -> dict[str, str]:
    """Owner -> colour; more than can be told apart have one colour, and a mean each."""
    owners = list(table["owner"].unique())
    several = 1 < len(owners) <= len(panels.CELL_COLOURS)
    return dict(zip(owners, panels.CELL_COLOURS if several else [alone] * len(owners), strict=False))


def _is_spread(table: pd.DataFrame) -> bool:
    """Whether each owner has runs enough for a band of the middle 95 %."""
    return bool(table.groupby("owner")["run"].nunique().min() >= statistics.FEW)


def _trained_legend(study: Study, table: pd.DataFrame, colours: dict[str, str]) -> list[Any]:
    counts = table.groupby("owner")["run"].nunique()
    if counts.max() == 1 and len(colours) == 1:
        text = "the policy of all runs" if len(study.runs) > 1 else "the policy"
        return [Line2D([], [], color=next(iter(colours.values())), label=text)]
    alike = len(colours) > 1 and len(set(colours.values())) == 1
    mean = f"means of {len(colours)} cells" if alike else "mean"
    return _curve_legend(study, counts, colours, "a policy", spread=_is_spread(table), mean=mean)


def _reward_unit(study: Study) -> str:
    known = {run.config.get("reward.name") for run in study.runs} <= set(toxicity.LOG_ODDS)
    return "R* of the batch" + ("\n(log-odds of civil)" if known else "")


# ---------------------------------------------------------------------------------------------------- threshold

THRESHOLDS = {"_at_zero": ("o", drawing.BLUE), "_unsupervised": ("s", drawing.ORANGE), "": ("^", drawing.GREEN)}


def threshold(study: Study) -> Figure:
    """Accuracy of each learned reward with three thresholds against its AUROC, which needs none.

    A grey line joins the three accuracies of one reward: its length is what the choice of the threshold alone does.
    Rewards beside each other order the completions equally well; how far apart they are in height is their threshold.
    The unsupervised threshold separates expert from reference best on select; the last one was set there with R*.
    """
    cells = _learned(study)
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
    panels.headline(figure, f"What the threshold does, {count}{_only(cells)}")
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


FIGURES: dict[str, Callable[[Study], Figure]] = {
    "over_epochs": over_epochs,
    "accuracy_heatmap": accuracy_heatmap,
    "best_and_all": best_and_all,
    "training_curves": training_curves,
    "toxicity": toxicity.toxicity,
    "threshold": threshold,
}
"""Name of the file -> figure, in the order of the page."""

"""Figures of the learned reward against R*: how far off it is, where, and whether it knows.

One function a figure, from a `Study` to a matplotlib `Figure`; its docstring is the caption. `NotComputed` where the
runs cannot tell it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.statistics import Floats
from irl_exp.analysis.study import NotComputed, Run, Study

AGAINST_TRUTH = {
    "auroc": ("AUROC against the label of R* (higher is better)", "chance", 0.5),
    "epic": ("EPIC distance to R* (lower is better)", "unrelated", panels.UNRELATED),
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
    cells = panels.having(study, "irl/auroc")
    if not cells:
        raise NotComputed("no run has a learned reward that was judged against R* (irl/auroc): run until irl or later.")
    names = labels(study)
    height = max(1.6, max(0.62 if len(cells) < 7 else 0.5, panels.inches(names.values())) * len(cells))
    figure = drawing.new(10.4, height + 1.9)
    grid = figure.add_gridspec(2, 2, height_ratios=[0.34, height])
    for column, (metric, (text, chance, level)) in enumerate(AGAINST_TRUTH.items()):
        whole, zoom = (figure.add_subplot(grid[row, column]) for row in range(2))
        limits = _zoom(zoom, cells, metric, level)
        panels.rows(zoom, [names[cell] if column == 0 else "" for cell in cells], top=-0.8, edge=0.45)
        zoom.set_xlabel(text)
        _whole(whole, cells, metric, (chance, level), limits)
    told = panels.counted(study, panels.total(cells))
    panels.headline(figure, f"How close is the learned reward to R*? {told}")
    return figure


def _colour(runs: Sequence[Run]) -> str:
    """Grey for the placebo: IRL on pairs whose expert and baseline were swapped at random, the null distribution."""
    return drawing.GREY if runs[0].config.get("irl.name") == "placebo" else drawing.ORANGE


def _zoom(axes: Axes, cells: Mapping[str, Sequence[Run]], metric: str, level: float) -> tuple[float, float]:
    """A row a cell, at limits that show the spread; returns them."""
    values = {cell: panels.values(runs, f"irl/{metric}") for cell, runs in cells.items()}
    ceilings = {cell: np.unique(panels.values(runs, f"implicit/{metric}")) for cell, runs in cells.items()}
    found = {cell: statistics.typical(those) for cell, those in values.items() if len(those)}
    references = [level, *(float(value) for ceiling in ceilings.values() for value in ceiling)]
    every = np.concatenate(list(values.values())) if found else np.array([level])
    limits = panels.limits(every, references, found.values(), panels.FRACTIONS)
    axes.set_xlim(limits)
    axes.axvline(level, **panels.DASHED)
    digits, tall = panels.digits(found.values()), len(cells) == 1
    for place, (cell, runs) in enumerate(cells.items()):
        told = "not defined:\nconstant reward"
        if cell in found:
            panels.piled(axes, place, values[cell], _colour(runs), step=0.06 if tall else 0.12)
            panels.mark(axes, found[cell], place + 0.2)
            told = f"{panels.interval(found[cell], digits)}\nn = {found[cell].n}"
        width = 0.6 if len(ceilings[cell]) > 1 else 1.4
        axes.vlines(ceilings[cell], place - 0.7, place + 0.35, color=drawing.BLUE, linewidth=width, zorder=1)
        panels.beside(axes, place - 0.1, told)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
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
        axes.vlines(panels.values(runs, f"irl/{metric}"), 0, 0.7, color=_colour(runs), linewidth=0.8)
    ceiling = np.unique([value for runs in cells.values() for value in panels.values(runs, f"implicit/{metric}")])
    name, level = chance
    middle = float(ceiling.mean()) if len(ceiling) else 1.0
    outward = "left" if middle > level else "right"
    axes.axvline(level, **panels.DASHED)
    aside = "right" if 0.28 < level < 0.6 or middle > level else "left"
    written = _above(axes, level, f"{name} {level:.3g}", aside, "#555555")
    if len(ceiling):
        axes.vlines(ceiling, 0, 1, color=drawing.BLUE, linewidth=1.2)
        ends = dict.fromkeys(f"{value:.{2 + (len(ceiling) == 1)}f}" for value in (ceiling.min(), ceiling.max()))
        inside = {"left": middle < 0.7, "right": middle > 0.35}[outward]
        side = outward if inside else {"left": "right", "right": "left"}[outward]
        _above(axes, middle, f"implicit {' to '.join(ends)}", side, drawing.BLUE, written)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"], fontsize=panels.SMALL)
    axes.tick_params(axis="x", length=2, pad=1)


def _above(
    axes: Axes, x: float, text: str, side: str, colour: str, taken: tuple[float, float] = (-1.0, -1.0)
) -> tuple[float, float]:
    """Text above the panel, a line higher where the part of the scale `taken` is; returns what it takes itself."""
    width = 0.021 * len(text)  # at 3 inches a panel
    ends = (x - width, x) if side == "right" else (x, x + width)
    up = 13 if ends[0] < taken[1] and taken[0] < ends[1] else 2
    panels.note(axes, text, (x, 1.0), (0, up), ha=side, va="bottom", color=colour, annotation_clip=False)
    return ends


# --------------------------------------------------------------------------------------------- learned against truth


def _judged(study: Study) -> list[Run]:
    """Runs with a judged reward that kept their completions."""
    return [run for run in study.runs if "irl/auroc" in run.metrics and (run.folder / "completions.parquet").exists()]


def median_run(study: Study) -> Run:
    """The run whose AUROC is the median of all runs that kept their completions; of an even number the lower one."""
    found = _judged(study)
    if not found:
        raise NotComputed("no run has both a learned reward (irl/auroc) and its completions.parquet.")
    return sorted(found, key=lambda run: (run.metrics["irl/auroc"], run.number))[(len(found) - 1) // 2]


def learned_against_truth(study: Study) -> Figure:
    """The learned reward of each test completion against R*, and how much it differs between runs.

    Left: the run whose AUROC is the median of the study. A point is a test completion, coloured by the policy that
    wrote it; left of the line R* calls it toxic. The learned reward has mean 0 and sd 1 on the fit demonstrations; the
    AUROC is over the completions of expert and reference. Right, where the median run's cell has three runs or more on
    the same completions: for each completion of expert and reference the mean and the sd over runs of the reward,
    standardised over these completions in each run. An sd near 0 means that all runs give this completion the same
    reward, right or wrong.
    """
    run = median_run(study)
    table = study.completions(run, ["policy", "truth", "learned"])
    if table is None or "learned" not in table:
        raise NotComputed(f"completions.parquet of run {run.number}, the median run, has no learned reward.")
    spread = _standardised(study, run)
    figure = drawing.new(10.4 if spread is not None else 6.4, 4.6)
    parts = figure.subplots(1, 1 if spread is None else 2, squeeze=False)[0]
    _one_run(parts[0], table, run)
    where = "" if len(study.cells) == 1 else f" ({labels(study)[run.cell]})"
    title = textwrap.fill(f"Run {run.number}{where}, the median of {panels.counted(study, len(_judged(study)))}:", 48)
    judged = int((table["policy"] != "refinetuned").sum())
    parts[0].set_title(f"{title}\nAUROC {run.metrics['irl/auroc']:.3f}, n = {judged:,}", pad=14)
    if spread is not None:
        _between_runs(parts[1], *spread)
    return figure


def _one_run(axes: Axes, table: pd.DataFrame, run: Run) -> None:
    _cloud(axes, table["policy"], table["truth"], table["learned"])
    axes.axvline(0, color="black", linewidth=0.8)
    for side, text in (("right", "toxic "), ("left", " civil")):
        axes.text(0, 1, text, transform=axes.get_xaxis_transform(), ha=side, va="bottom", fontsize=panels.SMALL)
    axes.set_xlabel("R* (log-odds of civil)" if run.config.get("reward.name") == "classifier" else "R*")
    axes.set_ylabel("learned reward (sd on the fit demonstrations)")
    axes.legend(loc="lower right", fontsize=panels.SMALL, markerscale=2.5)


def _between_runs(axes: Axes, policy: pd.Series, rewards: Floats) -> None:
    """Mean and sd over runs of each completion: rewards (n, runs)."""
    spread = rewards.std(axis=1, ddof=1)
    _cloud(axes, policy, rewards.mean(axis=1), spread)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("mean over runs of the learned reward (standardised)")
    axes.set_ylabel("sd over runs")
    count = f"{rewards.shape[1]} runs, {len(rewards):,} completions"
    axes.set_title(f"{count}:\nmedian sd {np.median(spread):.3f}", pad=14)


def _standardised(study: Study, run: Run) -> tuple[pd.Series, Floats] | None:
    """Policy (n,) and rewards (n, runs) of the runs of this run's cell, each with mean 0 and sd 1; None below three."""
    table = study.rewards
    if table is None:
        return None
    numbers = [one.number for one in study.cells[run.cell] if one.number in table.columns]
    rewards = table[numbers].to_numpy(dtype=np.float64)
    rewards = rewards[:, np.ptp(rewards, axis=0) > 0]
    if rewards.shape[1] < 3:
        return None
    return table["policy"], (rewards - rewards.mean(axis=0)) / rewards.std(axis=0)


def _cloud(axes: Axes, policy: pd.Series, x: pd.Series | Floats, y: pd.Series | Floats) -> None:
    """Completions, in the colours of their policies, in a random order so that none lies on top."""
    order = np.random.default_rng(0).permutation(len(policy))
    colours = policy.map(panels.POLICIES).to_numpy()[order]
    x, y = np.asarray(x)[order], np.asarray(y)[order]
    axes.scatter(
        x,
        y,
        s=5 if len(order) > panels.MANY_POINTS else 12,
        c=colours,
        alpha=0.5,
        linewidths=0,
        rasterized=len(order) > panels.MANY_POINTS,
    )
    for name in [name for name in panels.POLICIES if (policy == name).any()]:
        axes.scatter([], [], s=5, color=panels.POLICIES[name], label=name)


# ------------------------------------------------------------------------------------------------------- uncertainty

SIGNALS = {
    "epistemic": ("epistemic sd", drawing.ORANGE),
    "norm": ("norm of the features", drawing.PURPLE),
    "length": ("length", drawing.GREY),
    "perplexity": ("perplexity", drawing.GREEN),
}


def uncertainty(study: Study) -> Figure:
    """Does the uncertainty of the learned reward know where it is wrong?

    AUROC of four signals for the errors: test completions on the wrong side of the threshold that was set with R* on
    select. Each point is a run, the diamond the typical run of the cell with its 95 % interval, the dashed line chance.
    An epistemic sd that does not beat the norm of the features, the length or the perplexity under the reference, which
    need no reward at all, says nothing about the reward.
    """
    cells = panels.having(study, *(f"uncertainty/{name}_auroc" for name in SIGNALS))
    if not cells:
        raise NotComputed("no run has an uncertainty: it needs irl=bayesian or irl=ensemble.")
    columns = {text: [(f"uncertainty/{name}_auroc", colour)] for name, (text, colour) in SIGNALS.items()}
    figure, parts = panels.by_cell(study, cells, columns, "AUROC for errors")
    for axes in parts:
        axes.axvline(0.5, **panels.DASHED, zorder=0)
    errors = [int(value) for runs in cells.values() for value in panels.values(runs, "uncertainty/n_errors")]
    told = f", {min(errors)} to {max(errors)} errors a run" if errors else ""
    panels.headline(figure, f"Does the uncertainty find the errors? {panels.counted(study, panels.total(cells))}{told}")
    return figure


FIGURES = {
    "distribution": distribution,
    "learned_against_truth": learned_against_truth,
    "uncertainty": uncertainty,
}
"""Name of the file -> figure."""

"""Figures of the learned reward against R*: how far off it is, where, and whether it knows.

One function a figure, from a `Study` to a `Picture`. The first paragraph of its docstring is the caption, the others
say how to read it whatever the runs are; what only some runs have is told by `Picture.reading`. `NotComputed` where the
runs cannot tell it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.statistics import Floats
from irl_exp.analysis.study import NotComputed, Run, Study
from irl_exp.report.names import Words

AGAINST_TRUTH = {
    "auroc": ("AUROC against the label of R* (higher is better)", "chance", 0.5),
    "epic": ("EPIC distance to R* (lower is better)", "unrelated", panels.UNRELATED),
}
NOT_LEARNED = (
    *("implicit", "placebo", "probe", "probe_regression", "length", "reference_log_probability"),
    *("majority", "author"),
)
"""Methods that fit no reward to the demonstrations, or not to them as they are: floors, ceilings and the null."""
MAGNIFIED = 0.1
"""Runs that spread over less of the scale than this are shown magnified too."""


def distribution(study: Study) -> Picture:
    """How close the learned reward is to R* on the reference's completions: AUROC and EPIC distance of every run.

    Each point is a run, piled up where runs are equal. Dashed is a reward that knows nothing (AUROC 0.5, EPIC 0.707).
    """
    cells = panels.having(study, "irl/auroc")
    if not cells:
        raise NotComputed("no run has a learned reward that was judged against R* (irl/auroc): run until irl or later.")
    names = labels(study, 34)
    tall = (0.4 + panels.inches(names.values())) * len(cells)
    found = {metric: _limits(cells, metric, level) for metric, (_, _, level) in AGAINST_TRUTH.items()}
    heights = {
        (metric, zoomed): tall if not zoomed else 0.36 * len(cells) + (0.12 * len(cells) if len(cells) > 1 else 0)
        for metric, limits in found.items()
        for zoomed in (False, True)
        if not zoomed or limits[1] - limits[0] < MAGNIFIED
    }
    figure = drawing.new(panels.NARROW, sum(heights.values()) + 0.62 * len(heights) + 0.6)
    parts = figure.subplots(len(heights), 1, squeeze=False, height_ratios=list(heights.values()))[:, 0]
    for axes, (metric, zoomed) in zip(parts, heights, strict=True):
        if zoomed:
            _magnified(axes, cells, metric, names, found[metric])
        else:
            _whole(axes, cells, metric, names, found[metric] if (metric, True) in heights else None)
    figure.reading += _how_to_read(cells, any(zoomed for _, zoomed in heights))
    panels.headline(figure, f"How close is the learned reward to R*? {panels.counted(study, panels.total(cells))}")
    return figure


def _how_to_read(cells: Mapping[str, Sequence[Run]], zoomed: bool) -> Iterator[str]:
    yield panels.method(panels.sizes(cells))
    if zoomed:
        yield "The panel below a scale magnifies its shaded part: what looks far apart there is not."
    if any("implicit/auroc" in run.metrics for runs in cells.values() for run in runs):
        yield (
            "Blue is the log ratio of the two policies, log \N{GREEK SMALL LETTER PI}_expert - "
            "log \N{GREEK SMALL LETTER PI}_ref: what they themselves tell of R*. It is noisy and no ceiling: a learned "
            "reward that passes it has smoothed them."
        )
    if any(_colour(runs) == drawing.GREY for runs in cells.values()):
        yield "Grey cells are the placebo, expert and baseline swapped at random: the null distribution."


def _colour(runs: Sequence[Run]) -> str:
    """Grey for the placebo: IRL on pairs whose expert and baseline were swapped at random, the null distribution."""
    return drawing.GREY if runs[0].config.get("irl.name") == "placebo" else drawing.ORANGE


def _typical(cells: Mapping[str, Sequence[Run]], metric: str) -> dict[str, statistics.Estimate]:
    """Of the cells that have the metric: a constant reward has no distance."""
    key = f"irl/{metric}"
    return {cell: panels.typical(runs, key) for cell, runs in cells.items() if len(panels.values(runs, key))}


def _limits(cells: Mapping[str, Sequence[Run]], metric: str, level: float) -> tuple[float, float]:
    """Of the part of the scale that has all runs, their intervals, and what is near."""
    every = np.concatenate([panels.values(runs, f"irl/{metric}") for runs in cells.values()])
    ratios = [float(value) for runs in cells.values() for value in panels.values(runs, f"implicit/{metric}")]
    if not len(every):
        every = np.array([level])
    return panels.limits(every, [level, *ratios], _typical(cells, metric).values(), panels.FRACTIONS)


def _rows_of(axes: Axes, cells: Mapping[str, Sequence[Run]], metric: str, base: float) -> None:
    """In each row the runs, piled up from `base`, and below them the typical one; the limits are set before."""
    found = _typical(cells, metric)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for place, (cell, runs) in enumerate(cells.items()):
        ratio = np.unique(panels.values(runs, f"implicit/{metric}"))
        width = 0.6 if len(ratio) > 1 else 1.4
        axes.vlines(ratio, place + base - 0.3, place + 0.48, color=drawing.BLUE, linewidth=width, zorder=1)
        if cell in found:
            panels.piled(axes, place + base, panels.values(runs, f"irl/{metric}"), _colour(runs), step=0.07, room=0.4)
            panels.mark(axes, found[cell], place + 0.38)


def _whole(
    axes: Axes,
    cells: Mapping[str, Sequence[Run]],
    metric: str,
    names: Mapping[str, str],
    shaded: tuple[float, float] | None,
) -> None:
    """The scale from 0 to 1: a row a cell with its numbers, and the two lines named."""
    text, chance, level = AGAINST_TRUTH[metric]
    axes.set_xlim(0, 1)
    _rows_of(axes, cells, metric, 0.24)
    found = _typical(cells, metric)
    digits = panels.digits(found.values())
    for place, cell in enumerate(cells):
        told = (
            f"{panels.interval(found[cell], digits)}, n = {found[cell].n}" if cell in found else "constant: not defined"
        )
        panels.heading(axes, place, names[cell], told)
    if shaded is not None:
        axes.axvspan(max(shaded[0], 0), min(shaded[1], 1), color="#E3E3E3", zorder=0)
    axes.axvline(level, **panels.DASHED)
    _named_levels(axes, cells, metric, chance, level)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlabel(text)


def _magnified(
    axes: Axes,
    cells: Mapping[str, Sequence[Run]],
    metric: str,
    names: Mapping[str, str],
    limits: tuple[float, float],
) -> None:
    """The shaded part of the scale."""
    axes.set_xlim(limits)
    axes.set_facecolor("#F3F3F3")
    _rows_of(axes, cells, metric, 0.12)
    if len(cells) > 1:
        for place, cell in enumerate(cells):
            panels.heading(axes, place, " ".join(names[cell].split("\n")), "")
    panels.upright(axes, AGAINST_TRUTH[metric][2])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.set_xlabel(f"the shaded part, {1 / (limits[1] - limits[0]):.0f} times as large")


def _named_levels(axes: Axes, cells: Mapping[str, Sequence[Run]], metric: str, chance: str, level: float) -> None:
    """The names of the two lines, above the panel."""
    ratio = np.unique([value for runs in cells.values() for value in panels.values(runs, f"implicit/{metric}")])
    middle = float(ratio.mean()) if len(ratio) else 1.0
    outward = "left" if middle > level else "right"
    aside = "right" if 0.28 < level < 0.6 or middle > level else "left"
    written = _above(axes, level, f"{chance} {level:.3g}", aside, "#555555")
    if len(ratio):
        ends = dict.fromkeys(f"{value:.{2 + (len(ratio) == 1)}f}" for value in (ratio.min(), ratio.max()))
        inside = {"left": middle < 0.7, "right": middle > 0.35}[outward]
        side = outward if inside else {"left": "right", "right": "left"}[outward]
        _above(axes, middle, f"log ratio {' to '.join(ends)}", side, drawing.BLUE, written)


def _above(
    axes: Axes, x: float, text: str, side: str, colour: str, taken: tuple[float, float] = (-1.0, -1.0)
) -> tuple[float, float]:
    """Text above the panel, a line higher where the part of the scale `taken` is; returns what it takes itself."""
    width = 0.015 * len(text)  # at 4.4 inches a panel
    ends = (x - width, x) if side == "right" else (x, x + width)
    up = 13 if ends[0] < taken[1] and taken[0] < ends[1] else 2
    panels.note(
        axes,
        text,
        (x, 1.0),
        (0, up),
        xycoords=axes.get_xaxis_transform(),
        ha=side,
        va="bottom",
        color=colour,
        annotation_clip=False,
    )
    return ends


# --------------------------------------------------------------------------------------------- learned against truth


def _judged(study: Study) -> list[Run]:
    """Runs with a judged reward that kept their completions; those that learned it, where there are such."""
    runs = [run for run in study.runs if "irl/auroc" in run.metrics and (run.folder / "completions.parquet").exists()]
    return [run for run in runs if run.config.get("irl.name") not in NOT_LEARNED] or runs


def median_run(study: Study) -> Run:
    """The run whose AUROC is the median of all runs that kept their completions; of an even number the lower one.

    Of runs whose method learns from the demonstrations, where there are any: the median of a comparison of methods may
    be a ceiling or a floor.
    """
    found = _judged(study)
    if not found:
        raise NotComputed("no run has both a learned reward (irl/auroc) and its completions.parquet.")
    return sorted(found, key=lambda run: (run.metrics["irl/auroc"], run.number))[(len(found) - 1) // 2]


def reward_of(run: Run) -> str:
    """What the reward of a run is called: 'learned reward', or by its method where that learns none."""
    name = run.config.get("irl.name", "")
    return f"reward of irl={name}" if name in NOT_LEARNED else "learned reward"


def learned_against_truth(study: Study) -> Picture:
    """The learned reward of each test completion against R*, of the run whose AUROC is the median of all.

    A point is a test completion, coloured by the policy that wrote it. The reward has mean 0 and sd 1 on the fit
    demonstrations; the AUROC is over the completions of the reference.
    """
    run = median_run(study)
    table = study.completions(run, ["policy", "truth", "learned"])
    if table is None or "learned" not in table:
        raise NotComputed(f"completions.parquet of run {run.number}, the median run, has no learned reward.")
    spread = _standardised(study, run)
    figure = drawing.new(10.4 if spread is not None else 6.4, 4.6)
    parts = figure.subplots(1, 1 if spread is None else 2, squeeze=False)[0]
    _one_run(parts[0], table, run, study.words)
    where = "" if len(study.cells) == 1 else f" ({' '.join(labels(study)[run.cell].split())})"
    title = textwrap.fill(f"Run {run.number}{where}, the median of {panels.counted(study, len(_judged(study)))}:", 48)
    judged = int((table["policy"] == "reference").sum())
    parts[0].set_title(f"{title}\nAUROC {run.metrics['irl/auroc']:.3f}, n = {judged:,}", pad=14)
    if run.config.get("irl.name") in NOT_LEARNED:
        figure.reading.append(f"No run learned a reward from the demonstrations: this is the {reward_of(run)}.")
    if spread is not None:
        _between_runs(parts[1], *spread)
        figure.reading.append(
            "Right: for each completion of the reference the mean and the sd over the runs of that cell, the "
            "reward standardised over these completions in each run. An sd near 0 means that all runs give this "
            "completion the same reward, right or wrong."
        )
    return figure


def _one_run(axes: Axes, table: pd.DataFrame, run: Run, words: Words) -> None:
    _cloud(axes, table["policy"], table["truth"], table["learned"])
    axes.axvline(0, color="black", linewidth=0.8)
    for side, text in (("right", f"{words.below} "), ("left", f" {words.above}")):
        axes.text(0, 1, text, transform=axes.get_xaxis_transform(), ha=side, va="bottom", fontsize=panels.SMALL)
    axes.set_xlabel("R* (log-odds of civil)" if run.config.get("reward.name") == "classifier" else "R*")
    axes.set_ylabel(f"{reward_of(run)} (sd on the fit demonstrations)")
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


def uncertainty(study: Study) -> Picture:
    """Does the uncertainty of the learned reward know where it is wrong? AUROC of four signals for the errors.

    Errors are test completions on the wrong side of the threshold that was set with R* on select. Each point is a run,
    the dashed line chance. An epistemic sd that does not beat the norm of the features, the length or the perplexity
    under the reference, which need no reward at all, says nothing about the reward.
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

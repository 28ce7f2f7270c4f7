"""Figures of the policies that learned rewards make: how far they go, what they earn, and whether the reward pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.metric_names import readable
from irl_exp.analysis.study import NotComputed, Run, Study


def frontier(study: Study) -> Picture:
    """What the policies earn and how far they went for it: mean R* against KL from the reference.

    Every refinetuned run is a point; the reference stands at KL 0, the expert is the policy that was trained on R*
    itself. Above and left of the expert would be a better use of the same distance. On the right the same without the
    reference.
    """
    cells = panels.having(study, "refinetuned/kl", "refinetuned/reward_mean")
    if not cells:
        raise NotComputed("no run has a refinetuned policy: these runs end before refinetune (until=...).")
    matched = panels.having(study, "equal_kl/difference")
    names, styles = labels(study), dict(zip(cells, panels.shades(len(cells)), strict=True))
    tall = max(0.55, panels.inches(names.values())) * len(matched) + 0.9
    figure = drawing.new(10.4, 3.8 + (tall if matched else 0))
    grid = figure.add_gridspec(2 if matched else 1, 2, height_ratios=[3.8, tall] if matched else None)
    whole, near = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for axes, anchors in ((whole, ("reference", "expert")), (near, ("expert",))):
        for cell, runs in cells.items():
            colour, marker = styles[cell]
            x, y = panels.values(runs, "refinetuned/kl"), panels.values(runs, "refinetuned/reward_mean")
            text = f"{names[cell]} (n = {len(runs)})"
            axes.scatter(x, y, s=24, color=colour, marker=marker, alpha=0.7, linewidths=0, label=text)
        for policy in anchors:
            _anchor(axes, [run for runs in cells.values() for run in runs], policy)
        axes.margins(0.15)
        axes.set_xlabel("KL from the reference (nats per completion)")
    whole.set_ylabel("mean R* on test prompts")
    near.set_title("without the reference", fontsize=10)
    told = panels.counted(study, panels.total(cells))
    panels.headline(figure, f"Reward and distance of the refinetuned policies: {told}")
    handles, texts = whole.get_legend_handles_labels()
    if len(cells) > 1:
        figure.legend(handles, texts, loc="outside right center", fontsize=panels.SMALL)
    if matched:
        figure.reading.append(
            "Below: mean R* of refinetuning less that of RLHF on the training prompts, averaged over the KLs that both "
            "pass. At 0 (dashed) the learned reward is worth as much as R* itself."
        )
        figure.reading.append(panels.method(panels.sizes(matched)))
        _at_equal_kl(figure.add_subplot(grid[1, :]), matched, names, styles)
    return figure


def _anchor(axes: Axes, runs: Sequence[Run], policy: str) -> None:
    """Reference or expert of these runs, each once, with its name."""
    keys = (f"{policy}/kl", f"{policy}/reward_mean")
    found = sorted({(run.metrics[keys[0]], run.metrics[keys[1]]) for run in runs if keys[1] in run.metrics})
    if not found:
        return
    x, y = zip(*found, strict=True)
    colour, marker, size = (drawing.BLUE, "*", 90) if policy == "expert" else (drawing.GREY, "s", 36)
    axes.scatter(x, y, s=size, color=colour, marker=marker, zorder=3)
    text = f"{policy} ({len(found)})" if len(found) > 1 else policy
    panels.note(axes, text, found[0], (0, 7), color=colour, ha="center", va="bottom", fontsize=panels.SMALL + 1)


def _at_equal_kl(
    axes: Axes, cells: Mapping[str, Sequence[Run]], names: Mapping[str, str], styles: Mapping[str, tuple[str, str]]
) -> None:
    key = "equal_kl/difference"
    every = np.concatenate([panels.values(runs, key) for runs in cells.values()])
    found = {cell: panels.typical(runs, key) for cell, runs in cells.items()}
    axes.set_xlim(panels.limits(every, [0.0], found.values()))
    for place, (cell, runs) in enumerate(cells.items()):
        panels.piled(axes, place, panels.values(runs, key), styles[cell][0], step=0.1)
        panels.mark(axes, found[cell], place + 0.2)
    axes.axvline(0.0, **panels.DASHED)
    panels.rows(axes, [names[cell] for cell in cells], top=-0.8, edge=0.45)
    axes.set_xlabel("mean R* at equal KL, refinetuned less expert (prompts of fit)")
    axes.set_title("What the same KL buys", fontsize=10)


def equal_kl(study: Study) -> Picture:
    """R* against the KL from the reference during training: of the expert, and of what a learned reward trains.

    A point is a window of steps of one policy: mean R* and mean KL of what was sampled in it, on prompts of fit, with
    the standard error of each. Where a refinetuned policy lies below the expert, the learned reward spends the same
    distance on something else than R*. Each expert is drawn once.
    """
    curves = {run.number: found for run in study.runs if (found := _windows(study, run)) is not None}
    if not curves:
        raise NotComputed("no run has both ways of RL with their KL (equal_kl.parquet of evaluate in the store).")
    runs = [run for run in study.runs if run.number in curves]
    cells = list(dict.fromkeys(run.cell for run in runs))
    names, styles = labels(study), dict(zip(cells, panels.shades(len(cells)), strict=True))
    figure = drawing.new(6.4 + (len(cells) > 1) * 2.4, 4.4)
    axes = figure.subplots()
    for run in panels.distinct(runs, "rlhf"):
        _way(axes, curves[run.number], "expert", drawing.BLUE, "*")
    for run in panels.distinct(runs, "refinetune"):
        _way(axes, curves[run.number], "refinetuned", *styles[run.cell])
    axes.set_xlabel("KL from the reference (nats per completion)")
    axes.set_ylabel("mean R* on prompts of fit")
    handles = [panels.dot(drawing.BLUE, "expert", "*")]
    handles += [
        panels.dot(styles[cell][0], names[cell] if len(cells) > 1 else "refinetuned", styles[cell][1]) for cell in cells
    ]
    if len(cells) > 1:
        figure.legend(handles=handles, loc="outside right center", fontsize=panels.SMALL)
    else:
        figure.legend(handles=handles, loc="outside lower left", fontsize=panels.SMALL, ncols=2)
    panels.headline(figure, f"R* at equal KL: {panels.counted(study, len(runs))}")
    return figure


def _windows(study: Study, run: Run) -> pd.DataFrame | None:
    """The windows of both ways of a run; None where evaluate left none, or the store has them no more."""
    folder = study.artifact(run, "evaluate")
    path = None if folder is None else folder / "equal_kl.parquet"
    if path is None or not path.is_file():
        return None
    table = pd.read_parquet(path)
    return table if "kl" in table and table["kl"].notna().all() else None


def _way(axes: Axes, table: pd.DataFrame, policy: str, colour: str, marker: str) -> None:
    rows = table[table["policy"] == policy]
    x, y = rows["kl"].to_numpy(), rows["truth"].to_numpy()
    across, up = (rows[name].fillna(0.0).to_numpy() for name in ("kl_se", "truth_se"))
    axes.errorbar(x, y, yerr=up, xerr=across, color=colour, marker=marker, markersize=5, alpha=0.8, elinewidth=0.7)


# ----------------------------------------------------------------------------------------------------------- paradox

REWARD_SIDE = {"irl/auroc": "AUROC of the learned reward", "irl/epic": "EPIC distance of the learned reward to R*"}
POLICY_SIDE = ("refinetuned/reward_mean", "refinetuned/toxic_fraction")


def paradox(study: Study) -> Picture:
    """Does a better recovered reward give a better refinetuned policy?

    Each point is a run. In each title: Spearman correlation over runs with its 95 % interval (Bonett and Wright 2000,
    which takes runs as independent). EPIC distance and the share below 0 of R* are better when lower: for a reward that
    pays, the correlations are positive in the first panel and in the last, and negative in the other two.
    """
    cells = panels.having(study, *REWARD_SIDE, *POLICY_SIDE)
    if not cells:
        raise NotComputed("no run has both a judged learned reward and a refinetuned policy.")
    if panels.total(cells) < 4:
        raise NotComputed(f"{panels.total(cells)} runs with a refinetuned policy: a correlation over runs needs four.")
    names, styles = labels(study), dict(zip(cells, panels.shades(len(cells)), strict=True))
    figure = drawing.new(9.4 + (len(cells) > 1) * 1.6, 7.2)
    parts = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, policy in enumerate(POLICY_SIDE):
        for column, (reward, x_text) in enumerate(REWARD_SIDE.items()):
            axes = parts[row, column]
            for cell, runs in cells.items():
                x, y = panels.values(runs, reward), panels.values(runs, policy)
                axes.scatter(x, y, s=24, color=styles[cell][0], marker=styles[cell][1], alpha=0.7, linewidths=0)
                if len(runs) > 1 and len(cells) > 1:
                    axes.plot(x.mean(), y.mean(), "x", color=styles[cell][0], markersize=8, markeredgewidth=2)
            axes.set_title(_correlated(cells, reward, policy), fontsize=9, weight="normal")
            axes.set_xlabel(x_text if row else "")
            axes.set_ylabel("" if column else readable(policy, study.words))
    if len(cells) > 1:
        figure.reading.append(
            "Colours are cells, a cross the mean of a cell with two runs or more. Runs of a cell resemble each other, "
            "so the interval over runs is too narrow; beside it stands the correlation over the means of cells."
        )
        handles = [panels.dot(colour, names[cell], marker) for cell, (colour, marker) in styles.items()]
        figure.legend(handles=handles, loc="outside right center", fontsize=panels.SMALL)
    title = "Does a better recovered reward give a better policy?"
    panels.headline(figure, f"{title} {panels.counted(study, panels.total(cells))}")
    return figure


def _correlated(cells: Mapping[str, Sequence[Run]], one: str, other: str) -> str:
    """Spearman correlations over runs and over the means of cells, as text."""
    over = {
        "runs": [np.concatenate([panels.values(runs, key) for runs in cells.values()]) for key in (one, other)],
        "means of cells": [
            np.array([panels.values(runs, key).mean() for runs in cells.values()]) for key in (one, other)
        ],
    }
    lines = []
    for what, (x, y) in over.items():
        if len(x) < 4 or len(x) == 1:
            continue
        if not (np.ptp(x) and np.ptp(y)):
            lines.append(f"over {len(x)} {what}: no correlation, as all values are equal")
            continue
        lines.append(f"Spearman over {len(x)} {what}: {panels.interval(statistics.spearman(x, y), 2)}")
    return "\n".join(dict.fromkeys(lines))


FIGURES = {"equal_kl": equal_kl, "frontier": frontier, "paradox": paradox}
"""Name of the file -> figure."""

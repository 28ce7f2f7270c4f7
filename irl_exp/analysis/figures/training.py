"""Reward and KL of the policies over the steps of RL."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from irl_exp.analysis import statistics
from irl_exp.analysis.figures import curves, drawing, panels, toxicity
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.study import NotComputed, Study

TRAINED = {"rlhf": "RLHF on R*: the expert", "refinetune": "refinetuning on the learned reward"}


def training_curves(study: Study) -> Picture:
    """Has RL converged, and how far did it go: reward and KL from the reference of each batch.

    Every policy is drawn once, however many runs share it. The reward is that of the batch without the KL term. A
    reward that is still rising at the last step says that RL has not converged.
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
                curves.curve(axes, rows, key, colour, spread=_is_spread(table), band=told_apart)
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
    if len(tables) > 1:
        figure.reading.append(
            "The two rewards have scales of their own, so only their courses compare; the KL has one scale. A "
            "refinetuned policy that goes further from the reference than the expert may have left the texts on which "
            "the learned reward was fitted."
        )
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
    return curves.legend(study, counts, colours, "a policy", spread=_is_spread(table), mean=mean)


def _reward_unit(study: Study) -> str:
    known = {run.config.get("reward.name") for run in study.runs} <= set(toxicity.LOG_ODDS)
    return "R* of the batch" + ("\n(log-odds of civil)" if known else "")


FIGURES = {"training_curves": training_curves}
"""Name of the file -> figure."""

"""The page of a study: the verdict and the two figures that carry it, samples of text, sections, all numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
from markupsafe import Markup

from irl_exp.analysis import audit, bars, html, one_run, published, redrawn, samples, statements
from irl_exp.analysis.html import Drawn, Section
from irl_exp.analysis.statistics import FEW
from irl_exp.analysis.study import NotComputed, Study
from irl_exp.analysis.summary import Summary
from irl_exp.report import verdict
from irl_exp.report.studies import comparison_tables, study_table
from irl_exp.report.tables import Table, visible

METHODS = (
    "A mean is over the outermost thing that the runs of a cell drew anew (experts, sets of demonstrations, fits), "
    "each the mean of its runs: fewer than three by their mean alone, fewer than ten by mean and t interval, ten or "
    "more by the interquartile mean and a bootstrap (arXiv 2108.13264). Cells are compared expert by expert, and "
    "prompt by prompt where all runs share one expert. Intervals are 95 %. No run is chosen for its result."
)
KEY = ("distribution", "outcome")
"""The two figures that carry the verdict."""
SECTIONS = {
    "audit": ("What was the model trained for?", ("audit",)),
    "published": ("The published spread, explained", ("published",)),
    "recovered": (
        "What was recovered",
        ("against_parameter", "paired_differences", "tradeoff", "learned_against_truth", "triangle", "uncertainty"),
    ),
    "spread": (
        "The spread, explained",
        ("redrawn", "left_open", "variance_components", "distance_matrix", "threshold"),
    ),
    "training": ("Over training", ("over_epochs", "accuracy_heatmap", "best_and_all")),
    "policies": ("What it makes of a policy", ("toxicity", "equal_kl", "frontier", "paradox", "training_curves")),
}
ANSWER = "What the recovered rewards pay for"
SHOWN = 12
"""Statements of a cell that the page shows."""
VAGUE = 0.5
"""A share whose interval is wider than this is not told as a finding."""


def render(
    study: Study, summary: Summary, drawn: Mapping[str, Drawn], missing: Mapping[str, str], files: Sequence[str]
) -> str:
    """The page as HTML that needs no other file; all texts of users are escaped."""
    found, sections = samples.first(study), list(_sections(summary, drawn))
    key = [drawn[name] for name in KEY if name in drawn]
    if one_run.is_one(study):
        more = [Section("figures", "In figures", [], key), *sections] if key else sections
        return one_run.render(study, one_run.More(more, missing, files))
    told = _statements(study)
    return html.render(
        "page.html.jinja",
        told=told,
        title=html.title(study),
        subtitle=html.subtitle(study),
        command=study.command,
        verdict=verdict.of_launch(html.outcomes(study)),
        notes=html.notes(study),
        key=key,
        places=html.places(sections, answers={"statements": ANSWER} if told else {}, samples=found is not None),
        samples=found,
        words=study.words,
        sections=sections,
        tables=[html.shown(table, study.words) for table in _tables(study, summary)],
        files=files,
        missing=html.named(missing),
        numbers="summary.json",
        numbers_name="summary.json",
        methods=METHODS,
    )


@dataclass(frozen=True)
class Returning:
    """A statement of a cell and the runs that have it, as the page shows it."""

    name: str
    found: str
    direction: str
    effects: Markup
    told: str


@dataclass(frozen=True)
class Told:
    """What the recovered rewards of the runs of a study pay for; or why that is not known.

    Attributes:
        cells: name of a cell -> its statements, those that come back most often first.
        more: name of a cell -> how many are not shown.
        notes: which runs have no statement, and why.
    """

    cells: Mapping[str, Sequence[Returning]]
    more: Mapping[str, int]
    notes: Sequence[str]


def _statements(study: Study) -> Told | None:
    """Which statements come back over the runs of each cell; None where no run was explained."""
    try:
        known = statements.of(study)
    except NotComputed as reason:
        return None if str(reason) == statements.NONE else Told({}, {}, (visible(reason),))
    axis = bars.around([effect for one in known.found for effect in (*one.effects, *(-value for value in one.effects))])
    cells: dict[str, list[Returning]] = {}
    for one in known.found:
        cells.setdefault(one.cell, []).append(_returning(one, axis))
    more = {cell: len(found) - SHOWN for cell, found in cells.items() if len(found) > SHOWN}
    empty = f"No statement holds in run(s) {', '.join(map(str, known.empty))}." if known.empty else ""
    without = f"Run(s) {', '.join(map(str, known.without))} were not explained." if known.without else ""
    return Told({cell: found[:SHOWN] for cell, found in cells.items()}, more, tuple(filter(None, (empty, without))))


def _returning(one: statements.Statement, axis: bars.Axis) -> Returning:
    count = len(one.runs)
    ways = {0: "charges", count: "pays"}.get(one.pays, "both")
    ends = f" [{min(one.effects):+.2f}, {max(one.effects):+.2f}]" if count > 1 else ""
    known = [certified for certified in one.certified if certified is not None]
    certified = f"; certified in {sum(known)} of {len(known)}" if known else ""
    return Returning(
        visible(one.name),
        f"{count} of {one.found.n} runs",
        ways,
        bars.effects(one.effects, axis),
        f"{fmean(one.effects):+.2f} sd{ends}{certified}",
    )


def _sections(summary: Summary, drawn: Mapping[str, Drawn]) -> Iterator[Section]:
    texts = {
        "audit": [summary.data["audit"]["text"]] if "audit" in summary.data else [],
        "published": [published.text(summary.data["published"])] if "published" in summary.data else [],
        "spread": [
            *([redrawn.text(summary.data["redrawn"])] if "redrawn" in summary.data else []),
            *_spread_text(summary.data),
        ],
    }
    for name, (told, names) in SECTIONS.items():
        figures = [drawn[figure] for figure in names if figure in drawn]
        text = texts.get(name, [])
        if figures or text:
            yield Section(name, told, text, figures)


# ----------------------------------------------------------------------------------------------------------- tables


def number_tables(study: Study) -> list[Table]:
    """The tables of the terminal, of the same numbers."""
    found = html.outcomes(study)
    return [*(comparison_tables(found) if len(study.cells) > 1 else []), study_table(found)]


def _tables(study: Study, summary: Summary) -> list[Table]:
    audited = audit.tables(summary.audits)
    return [*audited, *number_tables(study), *_compared(summary.tables), *_levels(summary.data)]


def _compared(tables: Mapping[str, pd.DataFrame]) -> Iterator[Table]:
    """Every two cells, paired by expert or by prompt."""
    if "comparisons" not in tables:
        return
    rows = tuple(
        (
            row["metric"],
            row["first"],
            row["second"],
            _bounded(row, "difference", "low", "high", 4),
            _bounded(row, "p_holm", "", "", 3),
            _bounded(row, "probability_above", "probability_low", "probability_high", 2),
            row["unit"],
        )
        for row in tables["comparisons"].to_dict("records")
    )
    columns = ("metric", "cell", "minus cell", "mean difference [95 %]", "p (Holm)", "P(above) [95 %]", "n")
    yield Table("Cells compared by expert, or by prompt where all runs share one", columns, rows)


def _bounded(row: Mapping[Any, Any], key: str, low: str, high: str, digits: int) -> str:
    """A number with its bounds, where it has them."""
    value, bounds = row.get(key, math.nan), [row.get(bound, math.nan) for bound in (low, high)]
    if math.isnan(value):
        return "-"
    ends = "" if any(map(math.isnan, bounds)) else f" [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"


def _levels(data: Mapping[str, Any]) -> Iterator[Table]:
    """How much of what is left open hangs on the tolerance, and what the best reward knows of R* on each side."""
    if "left_open" not in data:
        return
    columns = ("tolerance, in standard errors of the loss", "determined", "as R*: of these", "as R*: of the open pairs")
    rows = tuple(
        (
            f"{level['tolerance_se']:.2g}{_kind(level)}",
            _percent(level["determined"]),
            *(_of(level[key]) if level[key] else "" for key in ("as_truth_where_determined", "as_truth_where_open")),
        )
        for level in data["left_open"]["levels"]
    )
    yield Table("What the demonstrations leave open, by tolerance: the best reward's order against R*", columns, rows)


def _kind(level: Mapping[str, Any]) -> str:
    return f"{' (calibrated)' * level['is_calibrated']}{' (typical run)' * level['is_that_of_the_runs']}"


# ------------------------------------------------------------------------------------------------------------ words


def _spread_text(data: Mapping[str, Any]) -> Iterator[str]:
    if "spread_shares" in data:
        yield _shares_text(data["spread_shares"])
    agreement = data.get("agreement", {}).get("pairwise_spearman")
    if agreement and len(data["cells"]) == 1:
        told = f"(b) Optimisation and sampling. The rewards of two runs correlate by {_number(agreement)} in rank."
        yield told + _noise(data.get("left_open"))
    if "left_open" in data:
        yield _open_text(data["left_open"])
    if "policies" in data:
        yield _policies_text(data["policies"])


def _tells(estimate: Mapping[str, Any]) -> bool:
    """Whether a share has an interval that says something."""
    return "low" in estimate and estimate["high"] - estimate["low"] <= VAGUE


def _shares_text(shares: Mapping[str, Any]) -> str:
    told = (
        "(a) Offset and scale. A constant per prompt, which no loss of margins determines, and the scale change no "
        "order of completions; the direction does."
    )
    runs = shares["direction"]["n"]
    if runs < FEW:
        return f"{told} What part of the variance over runs is which, these {runs} runs are too few to say."
    parts = {name: _percent(share) for name, share in shares.items()}
    return (
        f"{told} Of the variance of a completion's reward over these {runs} runs they are {parts['offset']}, "
        f"{parts['scale']} and {parts['direction']}."
    )


def _noise(found: Mapping[str, Any] | None) -> str:
    """How far runs are from the best reward, and what drawing the prompts anew would change."""
    if not found or not found["runs_same_sign"]:
        return ""
    excess = (
        f" On the pairs that they were fitted to, the runs lie {_number(found['excess_se'])} standard errors of the "
        "loss above the best reward of all."
    )
    if not all(_tells(found[name]) for name in ("runs_same_sign", "resampled_same_sign")):
        return f"{excess} {found['n_pairs']} test pairs are too few to say how often two runs order a pair alike."
    return (
        f"{excess} Two runs order {_percent(found['runs_same_sign'])} of the test pairs alike; two best rewards on "
        "prompts that are drawn anew with replacement, which is sampling noise that these runs do not have, "
        f"{_percent(found['resampled_same_sign'])}."
    )


def _open_text(found: Mapping[str, Any]) -> str:
    """Three numbers that must not be mixed: what such demonstrations never show, this sample, the method."""
    told = f"(c) What the demonstrations leave open, of {found['n_pairs']} test pairs."
    never, sample, method = found["never_shown"], found["this_sample"], found["the_method"]
    if not _tells(sample["open"]):
        return f"{told} They are too few to say."
    return f"{told} {_never(never)} {_sample(sample)} {_method(method, found['n_runs'])}"


def _never(found: Mapping[str, Any]) -> str:
    if not found["directions"]:
        return (
            f"No direction is hidden from such demonstrations: the fitted pairs differ in all {found['features']} in "
            "which completions do, so what stays open is open for want of more of them."
        )
    few = found["fitted_pairs"] <= found["features"] - found["directions"]
    more = "more of them would show more" if few else "no number of them would"
    return (
        f"The fitted pairs do not show {found['directions']} of the {found['features']} directions in which "
        f"completions differ ({more}); {found['pairs']} test pairs differ there."
    )


def _policies_text(found: Mapping[str, Any]) -> str:
    """Whether policies differ because their rewards do, which wants many policies of one reward as a control."""
    told = (
        f"(d) Policies. The toxic fraction of policies trained on {found['rewards']} rewards of one expert has the sd "
        f"{found['sd_rewards']:.4f}"
    )
    if "ratio" not in found:
        return (
            f"{told}. Whether they differ because their rewards do, these runs cannot say: no reward was refinetuned "
            "with several seeds. study=non_identifiability does that; elsewhere the same command with irl.seed=0 "
            "'refinetune.seed=range(10)' in place of its irl.seed, and python -m irl_exp.analysis reads both together."
        )
    ratio = found["ratio"]
    verdict = "policies of different rewards differ more" if ratio["low"] > 1 else "no difference in spread shows"
    return (
        f"{told}, policies of one reward with other refinetune.seeds {found['sd_control']:.4f} "
        f"({found['freedom_control']} degrees of freedom): ratio {_number(ratio)}, so {verdict}."
    )


def _sample(found: Mapping[str, Any]) -> str:
    right = [
        f"{_of(found[key])} {text}"
        for key, text in (("as_truth_where_determined", "determined pairs"), ("as_truth_where_open", "open ones"))
        if found[key]
    ]
    return (
        f"This sample of {found['prompts']} prompts leaves {_percent(found['open'])} open: there the rewards disagree "
        f"whose loss is within {found['tolerance_se']:.2g} standard errors of the best, the tolerance that holds the "
        "margin of the population's best reward for 95 % of the pairs. The best reward orders "
        f"{' and '.join(right)} as R* does."
    )


def _method(found: Mapping[str, Any], runs: int) -> str:
    if runs < 2 or not found["runs_agree_where_open"]:
        return f"The runs lie {_number(found['excess_tolerances'])} of these tolerances above the best loss."
    return (
        f"The method: all {runs} runs order {_of(found['runs_agree_where_open'])} open pairs alike; that is what "
        "they have in common and no evidence for this order. They lie "
        f"{_number(found['excess_tolerances'])} of these tolerances above the best loss."
    )


def _of(share: Mapping[str, Any]) -> str:
    return f"{round(share['value'] * share['n'])} of {share['n']}"


def _number(estimate: Mapping[str, Any]) -> str:
    interval = f" [{estimate['low']:.3f}, {estimate['high']:.3f}]" if "low" in estimate else ""
    return f"{estimate['value']:.3f}{interval}"


def _percent(estimate: Mapping[str, Any]) -> str:
    interval = f" [{estimate['low']:.1%}, {estimate['high']:.1%}]" if "low" in estimate else ""
    return f"{estimate['value']:.1%}{interval}"

"""The page of one run: did tuning change anything, what the recovered reward pays for, texts, what cannot be told.

Written at the end of a launch of one job, so it costs little: no matplotlib, no scipy, pictures by `bars`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup
from pyarrow import parquet

from irl_exp.analysis import bars, credit, html, samples
from irl_exp.analysis.html import Section
from irl_exp.analysis.study import Run, Study
from irl_exp.report import statements, verdict
from irl_exp.report.names import number, share
from irl_exp.report.runs import run_tables
from irl_exp.report.statements import Explained, NotExplained, Statement

VALUES = "statement_values.parquet"
WRITERS = {"reference": "baseline"}
"""What completions.parquet calls the policies that the files of explain call otherwise."""
REDRAWN = 1000
"""Exchanges of writers that say what chance gives."""
NAMED = 5
"""Statements of a kind that are named where something is missing."""
DISCRIMINATION = ("explain/discrimination_auroc", "irl/discrimination_auroc")
ANSWERS = {
    "changed": "Did tuning change anything?",
    "statements": "What the recovered reward pays for",
    "explained": "How much of the reward they explain",
    "texts": "Texts, token by token",
    "unknown": "What cannot be told",
}
METHODS = "One run: intervals are 95 %, over prompts, and say nothing of other seeds. No text is chosen by hand."


@dataclass(frozen=True)
class More:
    """What `python -m irl_exp.analysis` adds to the page that the launch has written: figures and tables."""

    sections: Sequence[Section] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()


def is_one(study: Study) -> bool:
    """Whether this is the study of one job that has a result."""
    return study.n_jobs == 1 and not study.controls


def write(study: Study) -> Path:
    """Write the page of the one run of a study into the folder of its report, whole or not at all."""
    study.place.mkdir(parents=True, exist_ok=True)
    path = study.place / "index.html"
    draft = path.with_name("index.html.draft")
    draft.write_text(render(study), encoding="utf-8")
    draft.replace(path)
    return path


def render(study: Study, more: More | None = None) -> str:
    """The page as HTML that needs no other file; all texts are escaped."""
    (run,), more = study.runs, more or More()
    try:
        explained, reason = statements.read(run.folder, run.config), ""
    except NotExplained as error:
        explained, reason = None, str(error)
    rewards = _rewards(study, run)
    texts, no_texts = _texts(run) if explained else (None, "")
    found = None if texts else samples.first(study)
    answers = {
        "changed": changed(run.metrics, rewards),
        "statements": list(_rows(explained)) if explained else [],
        "explained": _explained(explained, run.metrics) if explained else None,
        "texts": texts,
        "unknown": list(_unknown(explained, no_texts, run)) if explained else [],
    }
    told = explained.statements if explained else None
    metrics = os.path.relpath(run.folder / "metrics.json", study.place)
    return html.render(
        "one_run.html.jinja",
        title=ANSWERS["statements"] if explained else "What this run says",
        subtitle=html.subtitle(study),
        command=study.command,
        verdict=verdict.of_launch(html.outcomes(study)),
        notes=[note for note in html.notes(study) if not note.startswith("One run:")],  # METHODS says it
        places=html.places(
            more.sections,
            answers={name: title for name, title in ANSWERS.items() if answers[name] or (name == "statements")},
            samples=found is not None,
        ),
        titles=ANSWERS,
        reason=reason,
        empty=explained is not None and not explained.statements,
        tried=explained.count("n_candidates") if explained else None,
        answers=answers,
        samples=found,
        words=study.words,
        sections=more.sections,
        tables=[html.shown(table, study.words) for table in run_tables(run.metrics, run.config, told)],
        files=more.files,
        missing=html.named(more.missing),
        numbers=metrics,
        numbers_name="metrics.json",
        methods=METHODS,
    )


# ------------------------------------------------------------------------------------------------ did tuning change


@dataclass(frozen=True)
class Changed:
    """Whether the two policies can be told apart, beside what chance gives.

    Attributes:
        answer: one sentence.
        facts: what was measured -> its value, and what it would be if nothing had changed.
        picture: the AUROC on its axis.
        histogram: the rewards of both policies; none where they are not known.
    """

    answer: str
    facts: Mapping[str, tuple[str, str]]
    picture: Markup | None = None
    histogram: Markup | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


def changed(metrics: Mapping[str, float], rewards: pd.DataFrame | None) -> Changed | None:
    """Did tuning change anything? None where nothing of it was measured.

    Args:
        rewards: policy (baseline, expert), prompt_id, learned; held-out completions.
    """
    key = next((key for key in DISCRIMINATION if key in metrics), None)
    facts: dict[str, tuple[str, str]] = {}
    picture = histogram = None
    answer, counts = "", {}
    if key and rewards is not None:
        low_high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        interval = None if None in low_high else (float(low_high[0]), float(low_high[1]))  # type: ignore[arg-type]
        value, by_chance = metrics[key], chance(rewards)
        picture = bars.against_chance(value, interval, by_chance)
        ends = "" if interval is None else f" [{number(interval[0])}, {number(interval[1])}]"
        facts["AUROC of the recovered reward, tuned against base"] = (
            f"{number(value)}{ends}",
            f"0.500 [{number(by_chance[0])}, {number(by_chance[1])}]",
        )
        groups = {name: rewards.loc[rewards["policy"] == name, "learned"].to_numpy() for name in credit.POLICIES}
        histogram = bars.densities({told: groups[name] for name, told in credit.POLICIES.items()})
        counts = {told: len(groups[name]) for name, told in credit.POLICIES.items()}
        answer = _answer(value, interval, by_chance)
    if "expert/kl" in metrics:
        facts["KL of tuned from base, nats a completion"] = (
            number(metrics["expert/kl"]),
            "0",
        )
    return Changed(answer, facts, picture, histogram, counts) if facts else None


def _answer(value: float, interval: tuple[float, float] | None, by_chance: tuple[float, float]) -> str:
    least = interval[0] if interval else value
    odds = f"ranks a completion of the tuned model above one of the base in {share(value)} of the pairs"
    if least > by_chance[1]:
        return f"Yes: on held-out prompts the recovered reward {odds}; chance gives half."
    return (
        f"Nothing that shows: on held-out prompts the recovered reward {odds}, no more than chance "
        "gives. No statement about it means anything then."
    )


def chance(rewards: pd.DataFrame) -> tuple[float, float]:
    """The AUROCs that chance gives: 95 % of those with the writers of a prompt exchanged at random, or not.

    Args:
        rewards: policy, prompt_id, learned.
    """
    ranks = rewards["learned"].rank().to_numpy()
    by_expert = (rewards["policy"] == "expert").to_numpy()
    _, prompts = np.unique(rewards["prompt_id"].to_numpy(), return_inverse=True)
    sums, sizes = (
        np.stack([np.bincount(prompts, weights=weights * side) for side in (~by_expert, by_expert)])
        for weights in (ranks, np.ones(len(ranks)))
    )
    chosen = np.random.default_rng(0).integers(0, 2, (REDRAWN, sums.shape[1])).astype(bool)
    total, count = (np.where(chosen, found[1], found[0]).sum(axis=1) for found in (sums, sizes))
    others = len(ranks) - count
    with np.errstate(divide="ignore", invalid="ignore"):
        aurocs = (total - count * (count + 1) / 2) / (count * others)
    low, high = np.nanquantile(aurocs, [0.025, 0.975])
    return float(low), float(high)


def _rewards(study: Study, run: Run) -> pd.DataFrame | None:
    """The recovered reward of held-out completions of both policies; None where no file has it."""
    columns = ["policy", "prompt_id", "learned"]
    try:
        with parquet.ParquetFile(run.folder / VALUES) as file:
            table: pd.DataFrame | None = file.read(columns).to_pandas()
    except (OSError, ValueError):  # without explain: the completions that evaluate has judged
        table = study.completions(run, columns)
    if table is None or not set(columns) <= set(table):
        return None
    table = table.assign(policy=table["policy"].replace(WRITERS))
    table = table[table["policy"].isin(list(credit.POLICIES))]
    whole = table["policy"].nunique() == len(credit.POLICIES) and bool(np.isfinite(table["learned"]).all())
    return table if whole else None


# ------------------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True)
class Row:
    """A statement as the page shows it."""

    statement: Statement
    frequencies: Markup
    base: str
    tuned: str
    difference: str
    effect: Markup
    told: str
    bounds: str
    details: tuple[str, ...]


def _rows(explained: Explained) -> Iterator[Row]:
    """All statements, with one axis for all effects and one for all shares; a mean has an axis of its own."""
    found = explained.statements
    shares = [value for item in found if not item.graded for value in (item.frequency_base, item.frequency_tuned)]
    ends = [value for item in found for value in (item.effect_low, item.effect_high, item.range_low, item.range_high)]
    reach = max((abs(value) for value in ends if value is not None), default=1.0)
    for item in found:
        own = [item.frequency_base, item.frequency_tuned] if item.graded else shares
        bounds = None if item.range_low is None or item.range_high is None else (item.range_low, item.range_high)
        yield Row(
            item,
            bars.frequencies(item.frequency_base, item.frequency_tuned, bars.around(own)),
            item.told(item.frequency_base),
            item.told(item.frequency_tuned),
            _difference(item),
            bars.effect(
                item.effect,
                item.effect_low,
                item.effect_high,
                bars.around([-reach, reach]),
                bounds,
                certified=bool(item.certified),
            ),
            f"{item.effect:+.2f} sd [{item.effect_low:+.2f}, {item.effect_high:+.2f}]",
            _bounds(item),
            tuple(_details(item)),
        )


def _difference(item: Statement) -> str:
    """Tuned less base with its interval: points of a percentage, or the unit of a mean."""
    ends = (item.difference, item.difference_low, item.difference_high)
    if item.graded:
        value, low, high = (f"{end:+.3g}" for end in ends)
        return f"{value} [{low}, {high}]{item.mean_of}"
    value, low, high = (f"{100 * end:+.1f}" for end in ends)
    return f"{value} points [{low}, {high}]"


def _bounds(item: Statement) -> str:
    if item.range_low is None or item.range_high is None:
        return "no bound"
    told = f"{item.range_low:+.2f} to {item.range_high:+.2f}"
    return f"certified: {told}" if item.certified else f"not certified: {told}"


def _details(item: Statement) -> Iterator[str]:
    """What else was measured."""
    if item.edit_effect is not None:
        ends = (
            "" if item.edit_low is None or item.edit_high is None else f" [{item.edit_low:+.2f}, {item.edit_high:+.2f}]"
        )
        yield f"put in or taken out of a text: {item.edit_effect:+.2f} sd{ends}"
    if item.stability_prompts is not None:
        yield f"chosen again in {100 * item.stability_prompts:.0f} % of redraws of the prompts"
    if item.stability_seeds is not None:
        yield f"with {100 * item.stability_seeds:.0f} % of the seeds of IRL"
    yield f"q {item.q:.1g}" if item.q >= 1e-4 else "q below 0.0001"
    yield item.family.replace("_", " ")


@dataclass(frozen=True)
class Curve:
    """How much of the reward the statements explain."""

    sentence: str
    picture: Markup


def _explained(explained: Explained, metrics: Mapping[str, float]) -> Curve | None:
    found = explained.statements
    if not found:
        return None
    values = [item.r2 for item in found]
    parts = [f"{share(values[at - 1])} by the first {at}" for at in (5, 10) if at < len(values)]
    last = [f"{share(metrics.get('explain/r2', values[-1]))} by all {len(values)}"] if len(values) > 1 else []
    told = ", ".join([f"{share(values[0])} by the first statement", *parts, *last])
    return Curve(
        f"Of the variance of the recovered reward within a policy, on held-out prompts, is explained: {told}.",
        bars.curve(values),
    )


# ------------------------------------------------------------------------------------------------ texts, and the rest


def _texts(run: Run) -> tuple[credit.Credited | None, str]:
    """Texts with credit, else why there are none."""
    try:
        return credit.read(run.folder), ""
    except credit.NoCredit as error:
        return None, str(error)


def _first(names: Sequence[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _unknown(explained: Explained, no_texts: str, run: Run) -> Iterator[tuple[str, str]]:
    """What this page does not say, by name."""
    found = explained.statements
    yield (
        "Intention",
        "a statement is about the reward that was recovered from the two models' texts. It may pay for a habit of the "
        "tuned model that nobody asked for.",
    )
    if found:
        rest = 1 - found[-1].r2
        yield (
            "The rest",
            f"{share(rest)} of the reward's variance within a policy goes along with none of these statements.",
        )
    if open_ones := [item.label for item in found if item.certified is False]:
        yield (
            "Not certified",
            f"{_first(open_ones)}: another reward that explains the demonstrations as well has no such effect, or "
            "the opposite one.",
        )
    if unbounded := [item.label for item in found if item.certified is None]:
        yield "No bound", f"{_first(unbounded)}: the effect over all rewards that fit as well is not known."
    if (tried := explained.count("n_candidates")) is not None:
        yield (
            "Chance",
            f"{tried:,} candidates were tried on held-out prompts, and the q values are over all of them. How often a "
            "statement comes out of nothing is measured by audits of a model against itself: study=audit.",
        )
    if no_texts and "credit" not in explained.left_out:
        yield "Credit of tokens", no_texts
    yield from explained.left_out.items()

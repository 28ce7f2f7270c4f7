"""What the pages of a study and of one run have in common: templates, names, notes, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from irl_exp.analysis.metric_names import readable
from irl_exp.analysis.study import Study
from irl_exp.report.cells import Outcome
from irl_exp.report.names import Words
from irl_exp.report.tables import Table


@dataclass(frozen=True)
class Drawn:
    """A figure of the page: its files are <name>.png and <name>.pdf.

    Attributes:
        caption: one sentence, what is shown.
        reading: how to read the panels that it has, a paragraph each; behind a fold.
        image: SVG, base64.
        narrow: whether a telephone shows it whole.
    """

    name: str
    caption: str
    reading: tuple[str, ...]
    image: str
    narrow: bool


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Drawn] = field(default_factory=list)


def render(template: str, **values: Any) -> str:
    """A page as HTML that needs no other file; all texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def title(study: Study) -> str:
    """The question of the study, else its name."""
    found = study.question or study.name.replace("_", " ")
    return found[:1].upper() + found[1:]


def subtitle(study: Study) -> str:
    """Name, launch, how many runs, and what all of them share."""
    return " \N{MIDDLE DOT} ".join([*_heads(study), _counts(study), *study.shared])


def _heads(study: Study) -> list[str]:
    told = f"launch{'es' if study.launches else ''} {study.folder.name.replace('+', ' and ')}"
    return [study.name, told]


def _counts(study: Study) -> str:
    """How many runs there are: what a question asks for is not always what has run."""
    of = f" of {study.n_jobs}" if study.lost else ""
    cells = f" in {len(study.cells)} cells" if len(study.cells) > 1 else ""
    return f"{len(study.runs)}{of} run{'s' if study.n_jobs > 1 else ''}{cells}"


def outcomes(study: Study) -> list[Outcome]:
    """The jobs of a study as the end of a launch knows them."""
    done = [
        Outcome(run.number, run.name, run.folder, "completed", metrics=run.metrics, facts=run.config)
        for run in study.runs
    ]
    return done + [Outcome(lost.number, lost.name, study.folder, "not run", error=lost.reason) for lost in study.lost]


def shown(table: Table, words: Words) -> dict[str, Any]:
    """A table for the page: metrics by their names, and what many rows begin with said once above them."""
    rows = [tuple(readable(cell, words) for cell in row) for row in table.rows]
    heads = [row[0] for row in rows]
    grouped = len(table.columns) > 2 and len(set(heads)) < len(heads)
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(row[0] if grouped else "", []).append(row[1:] if grouped else row)
    columns = table.columns[1:] if grouped else table.columns
    kept = [row for group in groups.values() for row in group]
    text = [all(not _is_number(row[place]) for row in kept) for place in range(len(columns))]
    named = {name if len(groups) > 1 else "": group for name, group in groups.items()}
    return {"title": table.title, "columns": columns, "groups": named, "text": text}


def _is_number(cell: str) -> bool:
    return cell[:1] in "-+[" or cell[:1].isdigit()


def notes(study: Study) -> list[str]:
    """What a reader has to know before the numbers."""
    numbers = ", ".join(map(str, study.unreadable))
    told = f"completions.parquet of run(s) {numbers} is missing, cut or not finite: in no comparison of rewards."
    return [*study.notes, *_losses(study), *([told] if numbers else [])]


def _losses(study: Study) -> Iterator[str]:
    """Jobs without a result, the first few by name."""
    if study.lost:
        told = "; ".join(f"{lost.name}: {lost.reason}" for lost in study.lost[:5])
        more = f"; and {len(study.lost) - 5} more" if len(study.lost) > 5 else ""
        yield f"{len(study.lost)} of {study.n_jobs} jobs have no result and are in no number: {told}{more}."
    if len(study.runs) == 1:
        yield "One run: there is no spread, no interval over runs and nothing to compare."


def places(sections: Sequence[Section], *, answers: Mapping[str, str] | None = None, samples: bool) -> dict[str, str]:
    """What a reader can go to: id -> name of a part of the page, in its order."""
    found = {**(answers or {}), **({"samples": "What the policies write"} if samples else {})}
    return {**found, **{section.name: section.title for section in sections}, "tables": "Numbers"}


def named(missing: Mapping[str, str]) -> list[dict[str, str]]:
    """What could not be computed, and why."""
    return [{"name": name.replace("_", " "), "reason": reason} for name, reason in missing.items()]

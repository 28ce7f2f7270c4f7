"""What the recovered reward of a run pays for: statements.json and explain.json of its folder, as table and sentence.

A statement is about the recovered reward, never about what anybody wanted: the words here keep to that.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from irl_exp.report.cells import Facts
from irl_exp.report.names import number, share
from irl_exp.report.tables import Table, visible

FILE, ABOUT = "statements.json", "explain.json"
DIRECTIONS = ("pays", "charges")
FIRST = 3
"""Statements of each direction that a sentence names."""
TEXTS = ("family", "name", "wording", "unit")
QUOTED = "ngrams"
"""The family whose names are pieces of text."""
TEMPLATE = re.compile(r"(?:Pays|Charges) for (.+): (?:mean )?-?\d[\d.]* (?:%|in) ")
"""A sentence of explain/wording.py, up to where its numbers begin."""


class NotExplained(Exception):  # noqa: N818  (no error: tables and page go on and say why)
    """A run that says nothing of what its reward pays for; the message says why, for a reader."""


@dataclass(frozen=True)
class Statement:
    """One statement, as statements.json has it; docs/explain.md tells how each number is made.

    Attributes:
        frequency_base, frequency_tuned: share of completions that have the property, or its mean where it is `graded`.
        effect: on the recovered reward, in its sd within one policy, the other statements and length held fixed.
        range_low, range_high: of the effect over all rewards that explain the demonstrations as well.
        certified: whether that range has one sign; None where there is no bound.
        r2: held-out R2 of the reward within a policy, of the list up to this one.
    """

    family: str
    name: str
    wording: str
    direction: str
    frequency_base: float
    frequency_tuned: float
    difference: float
    difference_low: float
    difference_high: float
    graded: bool
    unit: str
    effect: float
    effect_low: float
    effect_high: float
    q: float
    r2: float
    certified: bool | None = None
    range_low: float | None = None
    range_high: float | None = None
    edit_effect: float | None = None
    edit_low: float | None = None
    edit_high: float | None = None
    stability_seeds: float | None = None
    stability_prompts: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Statement:
        """One object of statements.json; texts as they may be shown.

        Raises:
            ValueError: a field is missing, or is not what it has to be.
        """
        given = {item.name: values.get(item.name) for item in fields(cls)}
        known: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        for key, value in known.items():
            _check(key, value)
        if lost := [item.name for item in fields(cls) if item.default is not None and item.name not in known]:
            raise ValueError(f"has no {lost[0]}")
        return cls(**(known | {key: visible(known[key]) for key in TEXTS}))

    @property
    def pays(self) -> bool:
        return self.direction == "pays"

    @property
    def label(self) -> str:
        """Its name, in quotes where that is a piece of text, or several."""
        if self.family != QUOTED:
            return self.name
        return " / ".join(
            f"\N{LEFT DOUBLE QUOTATION MARK}{part}\N{RIGHT DOUBLE QUOTATION MARK}" for part in self.name.split(" / ")
        )

    @property
    def thing(self) -> str:
        """What it pays or charges for: "a text that says 'fair'"; its name where the sentence is not the template's.

        >>> TEMPLATE.match("Pays for a text that says 'fair': 2.1 % of the base's completions, 17.3 % of ...")[1]
        "a text that says 'fair'"
        """
        found = TEMPLATE.match(self.wording)
        return found[1] if found else self.label

    @property
    def own_words(self) -> str:
        """Its sentence, where that is not the template's, whose numbers tables and pages have beside it."""
        return "" if TEMPLATE.match(self.wording) else self.wording

    @property
    def mean_of(self) -> str:
        """In brackets, the unit of what is graded: its frequencies are means."""
        return f" ({', '.join(filter(None, ('mean', self.unit)))})" if self.graded else ""

    def told(self, value: float) -> str:
        """A frequency: a share of completions, or the mean of what is graded."""
        return f"{value:.3g}" if self.graded else share(value)


def _check(key: str, value: object) -> None:
    """Refuse what is not of its field's kind: the files of a run may be anybody's."""
    if key == "direction":
        good = value in DIRECTIONS
    elif key in ("graded", "certified"):
        good = isinstance(value, bool)
    elif key in TEXTS:
        good = isinstance(value, str)
    else:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good:
        raise ValueError(f"has {key} = {value!r}"[:80])


@dataclass(frozen=True)
class Explained:
    """What a run says of its reward.

    Attributes:
        statements: best first; none where no property passes the test.
        about: explain.json: how many candidates were tried, and what was left out and why.
    """

    statements: tuple[Statement, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[str, str]:
        """What could not be computed, by name, with the reason."""
        found = self.about.get("left_out")
        items = found.items() if isinstance(found, Mapping) else ()
        return {visible(name).replace("_", " "): visible(reason) for name, reason in items}

    def count(self, key: str) -> int | None:
        """A number of explain.json; None where it is not there."""
        value = self.about.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read(folder: Path, facts: Facts | None = None) -> Explained:
    """What a run has left.

    Args:
        facts: its config, flat.

    Raises:
        NotExplained: nothing can be read there; why.
    """
    path = folder / FILE
    if not path.is_file():
        raise NotExplained(_why(facts or {}))
    found, about = _json(path, list), _json(folder / ABOUT, dict) if (folder / ABOUT).is_file() else {}
    statements = []
    for place, item in enumerate(found):
        try:
            statements.append(Statement.of(item if isinstance(item, Mapping) else {}))
        except ValueError as error:
            raise NotExplained(f"{FILE}: statement {place} {error}") from None
    return Explained(tuple(statements), about)


def of_run(folder: Path, facts: Facts | None = None) -> tuple[Statement, ...] | None:
    """The statements of a run; None where there is no such file, or none that can be read."""
    try:
        return read(folder, facts).statements
    except NotExplained:
        return None


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotExplained(visible(f"{path.name} cannot be read ({error})")) from None
    if not isinstance(found, kind):
        raise NotExplained(f"{path.name} is not what explain writes")
    return found


def _why(facts: Facts) -> str:
    """Why a run has no statements."""
    if facts.get("explain.name") == "none":
        return "explain=none: nothing was to be explained"
    if "artifacts.explain" in facts:
        return f"{FILE} is missing in the folder of the run"
    if facts.get("until") in ("sft", "rlhf", "demonstrations", "irl"):
        return f"until={facts['until']} stops before explain"
    return "the stage explain was not part of this run"


# ------------------------------------------------------------------------------------------------ table and sentence


def table(statements: Sequence[Statement], metrics: Mapping[str, float]) -> Table:
    """A row a statement, best first."""
    rows = tuple(
        (
            f"{statement.direction} for {statement.label}{statement.mean_of}",
            statement.told(statement.frequency_base),
            statement.told(statement.frequency_tuned),
            f"{statement.effect:+.2f} [{statement.effect_low:+.2f}, {statement.effect_high:+.2f}]",
            _range(statement),
        )
        for statement in statements
    )
    columns = ("statement", "base", "tuned", "effect in sd [95 %]", "range (* certified)")
    return Table(f"What the recovered reward pays for{_counted(metrics)}", columns, rows)


def columns_and_rows(statements: Sequence[Statement]) -> tuple[list[str], list[list[Any]]]:
    """Every field of every statement, best first; what is not known is None."""
    columns = [item.name for item in fields(Statement)]
    return columns, [[getattr(statement, column) for column in columns] for statement in statements]


def _range(statement: Statement) -> str:
    """The exact range of the effect, with a star where it has one sign."""
    if statement.range_low is None or statement.range_high is None:
        return "-"
    return f"[{statement.range_low:+.2f}, {statement.range_high:+.2f}]{'*' if statement.certified else ' '}"


def _counted(metrics: Mapping[str, float]) -> str:
    """How much of the reward the statements explain, and of how many candidates they are."""
    parts = []
    if "explain/r2" in metrics:
        parts.append(f"together R2 {number(metrics['explain/r2'])} of it within a policy")
    if "explain/n_candidates" in metrics:
        parts.append(f"{int(metrics['explain/n_candidates']):,} candidates tried")
    return "".join(f"; {part}" for part in parts)


def sentences(
    runs: Sequence[Sequence[Statement]], metrics: Sequence[Mapping[str, float]], tell_r2: str
) -> Iterator[str]:
    """What the recovered reward of one run, or those of several of one cell, pay for and charge for.

    Args:
        runs: the statements of each run that was explained.
        tell_r2: how much the statements explain, as the verdict tells a number; "" where that is not known.
    """
    if not runs:
        return
    counts = Counter(key for statements in runs for key in {(item.direction, item.label) for item in statements})
    places: dict[tuple[str, str], list[int]] = {}
    for statements in runs:
        for place, item in enumerate(statements):
            places.setdefault((item.direction, item.label), []).append(place)
    best = sorted(counts, key=lambda key: (-counts[key], sum(places[key]) / len(places[key]), key))
    if not best:
        tried = max((int(run.get("explain/n_candidates", 0)) for run in metrics), default=0)
        of = f" of {tried:,} candidates" if tried else ""
        yield f"None{of} passes the test on held-out prompts: what the recovered reward pays for cannot be said."
        return
    parts = []
    for direction in sorted(DIRECTIONS, key=lambda word: next((i for i, key in enumerate(best) if key[0] == word), 99)):
        named = [key for key in best if key[0] == direction]
        told = [f"{key[1]}{f' ({counts[key]} of {len(runs)} runs)' if len(runs) > 1 else ''}" for key in named[:FIRST]]
        more = f" and {len(named) - FIRST} more" if len(named) > FIRST else ""
        parts += [f"{direction} for {', '.join(told)}{more}"] if named else []
    explained = f" (R2 of all statements within a policy {tell_r2})" if tell_r2 else ""
    yield f"The recovered reward {'; it '.join(parts)}{explained}."

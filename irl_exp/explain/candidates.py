"""Candidates: what a statement may say of a completion, and its value on every one. No reward is used here.

What is fitted (which phrases, units, tokens) has seen the completions of fit and who wrote them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from irl_exp.config import ExplainConfig
from irl_exp.explain import log_ratio, ngrams, properties, units
from irl_exp.policies.language_models import Completions, Policy

Values = NDArray[np.float32]
Edit = Callable[[str], "str | None"]
FAMILIES = ("properties", "ngrams", "log_ratio", "units")
MARKS = 3
"""Phrases that name a unit."""


class ExplainError(Exception):
    """What the learned reward pays for cannot be found out; names the reason."""


@dataclass(frozen=True)
class Candidate:
    """Something that can be said of a completion.

    Attributes:
        family: one of FAMILIES.
        name: short, unique in a table.
        wording: a verb phrase with the text as its subject.
        graded: a number rather than a share of the texts; `unit` says of what.
        phrases: what an edit looks for.
    """

    family: str
    name: str
    wording: str
    graded: bool = False
    unit: str = ""
    phrases: tuple[str, ...] = ()

    @property
    def edits(self) -> dict[str, Edit]:
        """How to put it into a text ("into") and take it out ("out"), where there is a way."""
        if self.family == "ngrams":
            return {"out": ngrams.taking_out(self.phrases), "into": ngrams.putting_in(self.phrases[0])}
        known = properties.PROPERTIES.get(self.name) if self.family == "properties" else None
        found = {"out": known.out, "into": known.into} if known else {}
        return {name: edit for name, edit in found.items() if edit is not None}


@dataclass(frozen=True)
class Table:
    """Candidates and their values on the n completions of the demonstrations: (n, k)."""

    candidates: list[Candidate]
    values: Values

    def __add__(self, other: Table) -> Table:
        return Table([*self.candidates, *other.candidates], np.hstack([self.values, other.values]))


def table(
    frame: pd.DataFrame,
    config: ExplainConfig,
    *,
    features: NDArray[np.float32] | None = None,
    policies: tuple[Policy, Policy] | None = None,
) -> tuple[Table, dict[str, str]]:
    """All candidates of the families that are on, and what was left out by name.

    Args:
        frame: rows of demonstrations.parquet.
        features: (n, d) theirs. policies: tuned and base.

    Raises:
        ExplainError: a function of the user fails.
    """
    texts, fit = frame["completion"].tolist(), np.asarray(frame["part"] == "fit")
    left_out: dict[str, str] = {}
    found = Table([], np.empty((len(frame), 0), dtype=np.float32))
    phrases, inside = _phrases(frame, config)
    if config.properties.on:
        found += _properties(texts, config)
    if config.ngrams.on:
        found += _ngrams(frame, phrases, inside, config)
    if config.log_ratio.on:
        if policies is None:
            left_out["log_ratio"] = "the weights of two policies that read the same tokens are not there"
        else:
            found += _log_ratio(frame, policies, config)
    if config.units.on:
        if features is None:
            left_out["units"] = "this reward reads no features"
        else:
            found += _units(frame, features, phrases, inside, config)
    return _usable(found, fit), left_out


def _usable(found: Table, fit: NDArray[np.bool_]) -> Table:
    """Without those that are the same for all completions of fit, and names made unique."""
    some = found.values[fit].std(axis=0) > 0
    candidates, taken = [], set()
    for candidate in (found.candidates[i] for i in np.flatnonzero(some)):
        name = candidate.name if candidate.name not in taken else f"{candidate.name} ({candidate.family})"
        taken.add(name)
        candidates.append(Candidate(**{**vars(candidate), "name": name}))
    return Table(candidates, found.values[:, some])


def _phrases(frame: pd.DataFrame, config: ExplainConfig) -> tuple[list[str], Any]:
    fit = np.asarray(frame["part"] == "fit")
    least = max(5, round(config.ngrams.least_share * int(fit.sum())))
    return ngrams.frequent(frame["completion"].tolist(), fit, longest=config.ngrams.longest, least=least)


def _ngrams(frame: pd.DataFrame, phrases: Sequence[str], inside: Any, config: ExplainConfig) -> Table:
    """The phrases with the most extreme log-odds on fit, as many of each sign where there are."""
    fit, tuned = np.asarray(frame["part"] == "fit"), np.asarray(frame["policy"] == "expert")
    counts = [np.asarray(inside[fit & rows].sum(axis=0), dtype=np.float64)[0] for rows in (tuned, ~tuned)]
    sizes = [int((fit & rows).sum()) for rows in (tuned, ~tuned)]
    z = ngrams.log_odds(*counts, *sizes, prior=config.ngrams.prior)
    chosen = np.sort(np.argsort(-np.abs(z), kind="stable")[: config.ngrams.count])
    return Table([phrase(phrases[i]) for i in chosen], inside[:, chosen].toarray())


def phrase(*members: str) -> Candidate:
    """Whether a text says one of these phrases."""
    shown = [ngrams.written(member) for member in members]
    quoted = ", ".join(f"'{one}'" for one in shown)
    wording = f"says {quoted}" if len(members) == 1 else f"says one of {quoted}"
    return Candidate("ngrams", " / ".join(shown), wording, phrases=members)


def _properties(texts: list[str], config: ExplainConfig) -> Table:
    known, values = properties.table(texts)
    found = [Candidate("properties", one.name, one.wording, bool(one.unit), one.unit) for one in known]
    for name in config.properties.imported:
        values = np.column_stack([values, _imported(name, texts)])
        graded = not set(np.unique(values[:, -1])) <= {0.0, 1.0}
        wording = f"has a higher {name.partition(':')[2]}" if graded else f"has {name.partition(':')[2]}"
        found.append(Candidate("properties", name, wording, graded, name.partition(":")[2] if graded else ""))
    return Table(found, values.astype(np.float32))


def check_property(name: str) -> None:
    """Try a function of the user on three texts, one of them empty.

    Raises:
        ExplainError: it cannot be imported, fails, or gives anything but one finite number a text.
    """
    _imported(name, [" is late again.", "", " naïve 🙂\npeople left!"])


def _imported(name: str, texts: list[str]) -> NDArray[np.float64]:
    """(n,) values by a function of the user."""
    module, _, attribute = name.partition(":")
    try:
        values = np.asarray(getattr(importlib.import_module(module), attribute)(list(texts)), dtype=np.float64)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ExplainError(f"explain.properties.imported: {name} failed: {type(error).__name__}: {error}") from error
    if values.shape != (len(texts),) or not np.isfinite(values).all():
        raise ExplainError(f"explain.properties.imported: {name} must give {len(texts)} finite numbers, one a text.")
    return values


def _log_ratio(frame: pd.DataFrame, policies: tuple[Policy, Policy], config: ExplainConfig) -> Table:
    fit = np.asarray(frame["part"] == "fit")
    generator = np.random.default_rng([config.seed, 1])
    rows = []
    for policy in ("expert", "baseline"):
        own = np.flatnonzero(fit & np.asarray(frame["policy"] == policy))
        rows.append(generator.permutation(own)[: config.log_ratio.completions])
    sample = Completions.from_frame(frame.iloc[np.sort(np.concatenate(rows))])
    tokens = log_ratio.extreme_tokens(*policies, sample, count=config.log_ratio.count)
    found = [Candidate("log_ratio", f"token '{token}'", f"has the token '{token}'") for token in tokens]
    return Table(found, log_ratio.having(frame["completion"].tolist(), tokens))


def _units(
    frame: pd.DataFrame, features: NDArray[np.float32], phrases: Sequence[str], inside: Any, config: ExplainConfig
) -> Table:
    fit = np.asarray(frame["part"] == "fit")
    options = config.units
    values = units.activations(
        features,
        fit,
        frame["prompt_id"].to_numpy(dtype=np.int64),
        units=options.units,
        active=options.active,
        steps=options.steps,
        seed=config.seed,
    )
    names = unit_names(values[fit], phrases, inside[np.flatnonzero(fit)])
    found = [
        Candidate("units", f"unit {number}: {', '.join(marks)}", _of_unit(number, marks), True, "sd of the unit")
        for number, marks in enumerate(names)
    ]
    return Table(found, values)


def _of_unit(number: int, marks: Sequence[str]) -> str:
    shown = ", ".join(f"'{mark}'" for mark in marks)
    return f"is more like texts with {shown} (unit {number})" if marks else f"has more of unit {number}"


def unit_names(values: Values, phrases: Sequence[str], inside: sparse.csr_matrix) -> list[list[str]]:
    """What each unit (n, u) ranks highest: the phrases (n, p) that go along with it most, none inside another."""
    if not phrases:
        return [[] for _ in range(values.shape[1])]
    share = np.asarray(inside.mean(axis=0))[0]
    centred = values - values.mean(axis=0)
    along = (inside.T @ centred) / np.sqrt(len(values) * share * np.maximum(1 - share, 0) + 1e-9)[:, None]
    names = []
    for column in along.T:
        marks: list[str] = []
        for number in np.argsort(-column, kind="stable")[:40]:
            text = ngrams.written(phrases[number])
            if any(char.isalnum() for char in text) and not any(text in mark or mark in text for mark in marks):
                marks.append(text)
            if len(marks) == MARKS:
                break
        names.append(marks if values.any() else [])
    return names

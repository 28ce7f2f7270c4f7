"""Samples of what the policies write, for the page: chosen by their place in the files, never by a number."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from irl_exp.analysis.study import Run, Study
from irl_exp.report.names import POLICIES
from irl_exp.report.tables import visible

PROMPTS = 3
REWARDS = {"truth": "R*", "second": "second judge", "learned": "learned reward"}


@dataclass(frozen=True)
class Written:
    """A completion with its rewards as text.

    Attributes:
        below: whether R* or the second judge put it below 0.
    """

    policy: str
    text: str
    rewards: tuple[tuple[str, str], ...]
    below: bool


@dataclass(frozen=True)
class Prompt:
    """A prompt with the first completion of each policy."""

    text: str
    written: tuple[Written, ...]


@dataclass(frozen=True)
class Samples:
    """The first prompts of a run."""

    run: Run
    prompts: tuple[Prompt, ...]


def first(study: Study) -> Samples | None:
    """The first test prompts of the first run whose texts can be read, or None where there is no such run."""
    for run in study.runs:
        table = study.completions(run)
        if table is not None and {"policy", "prompt_id", "prompt", "completion"} <= set(table):
            chosen = sorted(table["prompt_id"].unique())[:PROMPTS]
            return Samples(run, tuple(_prompt(table[table["prompt_id"] == number]) for number in chosen))
    return None


def _prompt(rows: pd.DataFrame) -> Prompt:
    policies = [name for name in POLICIES if (rows["policy"] == name).any()]
    firsts = [rows[rows["policy"] == name].iloc[0] for name in policies]
    return Prompt(visible(rows["prompt"].iloc[0]), tuple(map(_written, firsts)))


def _written(row: pd.Series) -> Written:
    known = {key: float(row[key]) for key in REWARDS if key in row and row[key] == row[key]}
    rewards = tuple((REWARDS[key], f"{value:.2f}") for key, value in known.items())
    below = any(known.get(key, 0.0) < 0 for key in ("truth", "second"))
    return Written(str(row["policy"]), visible(row["completion"]) or "(empty)", rewards, below)

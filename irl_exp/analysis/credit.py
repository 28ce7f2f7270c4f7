"""Texts with the credit of each token: credit.parquet of a run, the most and the least rewarded of both policies.

The credits of a completion add up to its reward, so a token's colour is its share of it and no guess from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet

from irl_exp.report.tables import visible

FILE = "credit.parquet"
COLUMNS = ("policy", "prompt_id", "completion", "prompt", "position", "token", "credit")
POLICIES = {"baseline": "base", "expert": "tuned"}
EACH = 4
"""Completions of each policy at each end."""
END = "[end]"
"""What the end of a completion is shown as: it has no text, and a credit."""
LEVELS = 4
"""Shades on either side of 0."""
STRONGEST = 0.98
"""Quantile of the size of a credit from which on a token has the darkest shade."""


@dataclass(frozen=True)
class Token:
    """A token as the page shows it; `shade` is a class of page.css: p1 to p4, c1 to c4, or none."""

    text: str
    shade: str
    credit: str


@dataclass(frozen=True)
class Text:
    """A completion with its reward, in sd of the reward."""

    prompt: str
    tokens: tuple[Token, ...]
    reward: str


@dataclass(frozen=True)
class Credited:
    """What is shown.

    Attributes:
        ends: "most", "least" -> policy ("base", "tuned") -> its texts, the outermost first.
        count: how many completions they were taken from.
        shades: class of a shade -> the credits that it stands for, from the least to the most.
    """

    ends: Mapping[str, Mapping[str, tuple[Text, ...]]]
    count: int
    shades: Mapping[str, str]


class NoCredit(Exception):  # noqa: N818  (no error: the page goes on and says why)
    """There is no credit to be shown; the message says why, for a reader."""


def read(folder: Path) -> Credited:
    """The outermost texts of a run, by its folder.

    Raises:
        NoCredit: there is no such file, or not with these columns, or nothing in it.
    """
    table = _table(folder / FILE)
    unit = float(np.quantile(table["credit"].abs(), STRONGEST)) / LEVELS
    if not unit > 0:
        raise NoCredit("no token has any credit")
    texts = table.groupby(["policy", "prompt_id", "completion"], sort=True)
    rewards = texts["credit"].sum().sort_values(ascending=False, kind="stable")
    ends: dict[str, dict[str, tuple[Text, ...]]] = {"most": {}, "least": {}}
    for policy, name in POLICIES.items():
        own = rewards[rewards.index.get_level_values("policy") == policy]
        half = min(EACH, len(own) // 2)
        for end, chosen in (("most", own.head(half)), ("least", own.tail(half)[::-1])):
            ends[end][name] = tuple(_text(texts.get_group(key), float(reward), unit) for key, reward in chosen.items())
    return Credited(ends, len(rewards), _legend(unit))


def _table(path: Path) -> pd.DataFrame:
    """The rows of credit.parquet, in the order of the text."""
    try:
        with parquet.ParquetFile(path) as file:
            found: pd.DataFrame = file.read(list(COLUMNS)).to_pandas()
    except FileNotFoundError:
        raise NoCredit(
            f"{FILE} is not there: it is exact, and written, for linear rewards on mean-pooled states alone"
        ) from None
    except (OSError, ValueError) as error:
        raise NoCredit(visible(f"{FILE} cannot be read ({error})")) from None
    if lost := [column for column in COLUMNS if column not in found]:
        raise NoCredit(f"{FILE} has no column {lost[0]}")
    if not len(found) or not pd.api.types.is_numeric_dtype(found["credit"]) or not np.isfinite(found["credit"]).all():
        raise NoCredit(f"{FILE} has no finite credits")
    return found.sort_values(["policy", "prompt_id", "completion", "position"], kind="stable")


def _text(rows: pd.DataFrame, reward: float, unit: float) -> Text:
    tokens = tuple(
        Token(visible(token) or END, shade(credit, unit), f"{credit:+.2f}")
        for token, credit in zip(rows["token"], rows["credit"], strict=True)
    )
    return Text(visible(rows["prompt"].iloc[0]), tokens, f"{reward:+.2f}")


def shade(credit: float, unit: float) -> str:
    """The class of a credit: p for what is paid, c for what is charged, and how many units it is, up to LEVELS.

    >>> shade(0.4, 1.0), shade(-1.2, 1.0), shade(99.0, 1.0)
    ('', 'c1', 'p4')
    """
    level = min(LEVELS, round(abs(credit) / unit))
    return f"{'p' if credit > 0 else 'c'}{level}" if level else ""


def _legend(unit: float) -> dict[str, str]:
    """Class of a shade -> the middle of the credits that it stands for."""
    return dict(_shades(unit))


def _shades(unit: float) -> Iterator[tuple[str, str]]:
    for level in range(LEVELS, 0, -1):
        yield f"c{level}", f"{-level * unit:+.2f}"
    yield "none", "0"
    for level in range(1, LEVELS + 1):
        yield f"p{level}", f"{level * unit:+.2f}"

"""Cause beside company: what the learned reward says when something is put into a text, or taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irl_exp.explain.candidates import Candidate
from irl_exp.explain.choice import Floats, Ints
from irl_exp.explain.measured import Estimates, differences

Score = Callable[[list[str], list[str]], Floats]
"""Prompts and completions -> their rewards."""
FEWEST = 5
"""Edited texts below which nothing is said."""


@dataclass(frozen=True)
class Edited:
    """Texts with something and without it, each pair of one completion.

    Attributes:
        statement: (m,) number of the statement. rows: (m,) the completion. having, without: (m,) texts.
    """

    statement: Ints
    rows: Ints
    having: list[str]
    without: list[str]


def edit(
    statements: Sequence[Candidate], texts: Sequence[str], *, count: int, generator: np.random.Generator
) -> Edited:
    """Up to `count` texts a statement: half with it taken out, half with it put in, in an order by chance."""
    found: list[tuple[int, int, str, str]] = []
    for number, one in enumerate(statements):
        order = generator.permutation(len(texts))
        edits = one.edits
        for name, change in edits.items():
            left = count // len(edits)
            for row in order:
                if not left:
                    break
                text = texts[row]
                if (changed := change(text)) is None:
                    continue
                pair = (text, changed) if name == "out" else (changed, text)
                found.append((number, int(row), *pair))
                left -= 1
    columns = list(zip(*found, strict=True)) or [(), (), (), ()]
    numbers, rows = (np.array(column, dtype=np.int64) for column in columns[:2])
    return Edited(numbers, rows, list(columns[2]), list(columns[3]))


def effects(
    edited: Edited, prompts: Sequence[str], prompt_ids: NDArray[np.int64], score: Score, count: int, sd: float
) -> list[Estimates | None]:
    """Mean reward with less mean reward without, in units of `sd`; None with fewer than FEWEST texts.

    One a statement. All texts are scored in one go, each once.
    """
    pairs = [(prompts[row], text) for texts in (edited.having, edited.without) for row, text in _rows(edited, texts)]
    distinct = list(dict.fromkeys(pairs))
    if not distinct or not sd > 0:
        return [None] * count
    scores = dict(zip(distinct, score(*map(list, zip(*distinct, strict=True))) / sd, strict=True))
    half = len(edited.rows)
    values = np.array([scores[pair] for pair in pairs])
    change = values[:half] - values[half:]
    found: list[Estimates | None] = []
    for number in range(count):
        rows = np.flatnonzero(edited.statement == number)
        if len(rows) < FEWEST:
            found.append(None)
            continue
        # The difference of two equal halves: one policy "has" it, the other one not.
        ids = prompt_ids[edited.rows[rows]]
        zero = np.zeros(len(rows))
        stacked = np.concatenate([change[rows], zero])[:, None]
        tuned = np.repeat([True, False], len(rows))
        found.append(differences(stacked, tuned, np.concatenate([ids, ids])))
    return found


def _rows(edited: Edited, texts: list[str]) -> list[tuple[int, str]]:
    return list(zip(edited.rows.tolist(), texts, strict=True))

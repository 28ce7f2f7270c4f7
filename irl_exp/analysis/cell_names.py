"""Short names of the cells of a study: the same in all figures."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from irl_exp.analysis.study import Study
from irl_exp.report.cells import overrides_of

PLAIN = re.compile(r"[-+.\de]+|true|false|null|none", re.IGNORECASE)
"""A value that says nothing without its key."""


def labels(study: Study, width: int = 30) -> dict[str, str]:
    """A short name for each cell, in lines of `width` letters."""
    if len(study.cells) == 1:
        return dict.fromkeys(study.cells, "all runs")
    names = short([overrides(cell) for cell in study.cells])
    return {cell: fold(name or cell, width) for cell, name in zip(study.cells, names, strict=True)}


def overrides(cell: str) -> dict[str, str]:
    """Key -> value; a value in brackets may have commas.

    >>> overrides("irl/loss=hinge,irl.layers=[2,3]"), overrides("default")
    ({'irl/loss': 'hinge', 'irl.layers': '[2,3]'}, {})
    """
    found = [part.partition("=") for part in overrides_of(cell)]
    return {key: value for key, equals, value in found if equals}


def short(cells: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of these overrides: last parts of keys where that is unique, the values alone where one key has choices.

    >>> short([{"irl/loss": "hinge"}, {"irl/loss": "squared"}]), short([{"irl.resample": "True"}])
    (['hinge', 'squared'], ['resample=True'])
    """
    keys = list(dict.fromkeys(key for parts in cells for key in parts))
    choices = [value for parts in cells for value in parts.values() if not PLAIN.fullmatch(value)]
    if len(keys) == 1 and len(choices) == len(cells):
        return choices
    ends = {key: _end(key, keys) for key in keys}
    return [", ".join(f"{ends[key]}={value}" for key, value in parts.items()) for parts in cells]


def _end(key: str, keys: Sequence[str]) -> str:
    """As many of the last parts of a key as tell it from the others: "irl.loss" -> "loss"."""
    parts = [re.split(r"[./]", one) for one in keys]
    own = re.split(r"[./]", key)
    for many in range(1, len(own)):
        if sum(one[-many:] == own[-many:] for one in parts) == 1:
            return ".".join(own[-many:])
    return key


def fold(text: str, width: int = 30) -> str:
    """In lines of `width` letters, broken between overrides where that is possible."""
    return textwrap.fill(text, width, break_on_hyphens=False)


def cut(text: str, width: int = 34) -> str:
    """In one line: the middle is left out, as cells differ at the end.

    >>> cut("abcdefghij", 6)
    'ab…ij'
    """
    half = width // 2 - 1
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"

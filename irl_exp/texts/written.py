"""Texts of two writers, the expert and the baseline, from a file of expert=texts: nobody's weights are needed.

A file has rows of prompt, completion and writer, or of chosen and rejected: texts, or lists of chat messages whose last
one is the completion. Without a column of prompts the prompt is what chosen and rejected have in common.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import TextsExpert
from irl_exp.texts.data import prompts_alone, shortened
from irl_exp.texts.files import DataError, place, plain, prompts_of_column, read_table, texts_of, values_of
from irl_exp.texts.messages import are_messages, as_prompt

WRITERS = ("expert", "baseline")
LAST_TURN = "\n\nAssistant:"
"""Where the answer begins in dialogues that are written as one text (Anthropic's HH)."""


@dataclass(frozen=True)
class Written:
    """What two writers have written.

    Attributes:
        frame: prompt, completion, policy (expert or baseline), in the order of the file; only prompts of both.
        told: what was left out, in words; "" if nothing was.
    """

    frame: pd.DataFrame
    told: str


@functools.lru_cache(maxsize=2)
def read_written(config: TextsExpert) -> Written:
    """All texts of prompts that both writers have answered.

    Raises:
        DataError: columns that are missing, rows that are no texts (with file and line), or no prompt of both writers.
    """
    table = read_table("expert", config.path)
    by_pair = {config.chosen, config.rejected} <= set(table)
    by_writer = {config.completion, config.writer} <= set(table)
    if by_pair == by_writer:
        raise DataError(_unclear(config, table, both=by_pair))
    frame = _by_pair(table, config) if by_pair else _by_writer(table, config)
    frame["completion"] = [shortened(text) for text in frame["completion"]]
    empty = (frame["prompt"].str.strip() == "") | (frame["completion"].str.strip() == "")
    frame = frame[~empty]
    both = frame.groupby("prompt")["policy"].transform("nunique") == len(WRITERS)
    told = [f"{int(empty.sum()):,} empty texts"] if empty.any() else []
    told += [f"{int((~both).sum()):,} texts on prompts of one writer alone"] if not both.all() else []
    if not both.any():
        raise DataError(f"{config.path}: no prompt has completions of both writers: there is nothing to compare.")
    return Written(frame[both].reset_index(drop=True), " and ".join(told))


def prompts_of_writers(config: TextsExpert) -> pd.DataFrame:
    """The prompts that both writers have answered, as texts.parquet has a list of prompts."""
    return prompts_alone(read_written(config).frame["prompt"].tolist())


def pairs(written: Written, generator: np.random.Generator) -> pd.DataFrame:
    """As many completions of either writer on each prompt: rows with `sample`, so that (prompt, sample) is a pair.

    Of a writer who has more on a prompt so many are drawn as the other one has; the rest is left out.
    """
    frame = written.frame.iloc[generator.permutation(len(written.frame))]
    number = frame.groupby(["prompt", "policy"]).cumcount()
    fewer = frame.groupby(["prompt", "policy"])["policy"].transform("size").groupby(frame["prompt"]).transform("min")
    return frame.assign(sample=number)[number < fewer]


def _unclear(config: TextsExpert, table: pd.DataFrame, *, both: bool) -> str:
    there = f"there are {', '.join(map(str, table.columns))}"
    if both:
        return f"{config.path}: it has columns of both forms ({there}). Take those away that do not count."
    return (
        f"{config.path}: it needs the columns '{config.prompt}', '{config.completion}' and '{config.writer}', or "
        f"'{config.chosen}' and '{config.rejected}'; {there}. Name yours with expert.prompt, expert.completion and "
        "expert.writer, or expert.chosen and expert.rejected."
    )


def _by_writer(table: pd.DataFrame, config: TextsExpert) -> pd.DataFrame:
    if config.prompt not in table:
        raise DataError(
            f"{config.path}: there is no column '{config.prompt}' of prompts; there are "
            f"{', '.join(map(str, table.columns))}. Name yours with expert.prompt."
        )
    writers = values_of(table, config.writer, str(config.path))
    names = {str(config.is_expert): "expert", str(config.is_baseline): "baseline"}
    for name, option in ((config.is_expert, "is_expert"), (config.is_baseline, "is_baseline")):
        if str(name) not in set(map(str, writers)):
            found = sorted({repr(one) for one in writers})
            raise DataError(
                f"expert.{option}={name}: nobody of that name in column '{config.writer}' of {config.path}; there are "
                f"{', '.join(found[:10])}."
            )
    frame = pd.DataFrame(
        {
            "prompt": prompts_of_column(table, config.prompt, str(config.path)),
            "completion": texts_of(table, config.completion, str(config.path)),
            "policy": [names.get(str(one)) for one in writers],
        }
    )
    return frame[frame["policy"].notna()]


def _by_pair(table: pd.DataFrame, config: TextsExpert) -> pd.DataFrame:
    prompts = prompts_of_column(table, config.prompt, str(config.path)) if config.prompt in table else None
    columns = {name: values_of(table, name, str(config.path)) for name in (config.chosen, config.rejected)}
    rows: list[tuple[str, str, str]] = []
    for row, (chosen, rejected) in enumerate(zip(*columns.values(), strict=True)):
        where = place(str(config.path), row)
        split = [_split(value, name, where) for value, name in ((chosen, config.chosen), (rejected, config.rejected))]
        prompt = prompts[row] if prompts is not None else _common(split, where)
        rows += [(prompt, text, policy) for (_, text), policy in zip(split, WRITERS, strict=True)]
    return pd.DataFrame(rows, columns=["prompt", "completion", "policy"])


def _split(value: Any, column: str, where: str) -> tuple[str, str]:
    """Prompt and completion of one side: the messages before the last and that one's content; of a text, the turn."""
    value = plain(value)
    if are_messages(value):
        if value[-1]["role"] != "assistant":
            raise DataError(f"{where}: the last message of '{column}' is of {value[-1]['role']}, not of the assistant.")
        return as_prompt(value[:-1]) if len(value) > 1 else "", value[-1]["content"]
    if not isinstance(value, str):
        raise DataError(f"{where}: column '{column}' holds a {type(value).__name__}, neither a text nor messages.")
    before, found, answer = value.rpartition(LAST_TURN)
    return (before + found, answer) if found and value.lstrip().startswith("Human:") else ("", value)


def _common(split: Sequence[tuple[str, str]], where: str) -> str:
    (chosen, _), (rejected, _) = split
    if not chosen or chosen != rejected:
        told = "have different prompts" if chosen and rejected else "have no prompt in them"
        raise DataError(f"{where}: chosen and rejected {told}: name the column of prompts with expert.prompt.")
    return chosen

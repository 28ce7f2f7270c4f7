"""Texts: prompt, completion, label; read from the embedded generator, a file or the hub, and split by prompt.

A text belongs to the part of its prompt, so no prompt is ever in two parts:

    sft      trains the reference policy                     fit     rlhf, refinetune, and what IRL fits
    reward   labelled texts of the classifier R*, only       select  choices (a threshold) without looking at test
                                                             test    seen by `evaluate` alone

Of the embedded comments, those of test are made of other topics, openings and phrasings than all others; `overlap` says
of any data how much of test stands in what was fitted.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import (
    BenchmarkConfig,
    CommentsConfig,
    DataConfig,
    ExpertTextsConfig,
    FileConfig,
    JigsawConfig,
    RealToxicityPromptsConfig,
)
from irl_exp.texts.files import DataError, place, prompts_of_column, read_table, texts_of, values_of
from irl_exp.texts.messages import as_text

PARTS = ("fit", "select", "test", "reward", "sft")
PROMPT_BYTES = 1024
"""A word may have any length: `max_prompt_words` alone bounds no prompt. No token has less than a byte."""
COMPLETION_WORDS, COMPLETION_BYTES = 256, 2048
"""Of a longer completion the beginning is kept; the comments of the default have 16 words at most."""
FEWEST_PROMPTS = 10
"""Of a list, to be split in three."""
FEW = 50
"""Texts of a class below which what is learned of it is mostly chance."""
TextsConfig = JigsawConfig | RealToxicityPromptsConfig | FileConfig


def read(config: DataConfig) -> pd.DataFrame:
    """All texts: columns prompt, completion (joined they are the text) and toxic (nullable boolean).

    The embedded comments also have for_test (boolean): test is made of these, and nothing else is.

    Raises:
        DataError: a missing file, a line that is no object, a missing column, a label that is no number.
    """
    if isinstance(config, CommentsConfig):
        return _comments(config)
    assert not isinstance(config, ExpertTextsConfig)  # its texts are those of the expert
    return _texts(_table(config), config)


@functools.lru_cache(maxsize=1)
def _comments(config: CommentsConfig) -> pd.DataFrame:
    """So many of them for test as its prompts need, the rest made of other blocks. A launch checks what it computes."""
    from irl_exp.texts.comments import COMMENTS_PER_PROMPT, write_comments

    for_test = min(config.test_prompts * COMMENTS_PER_PROMPT, config.count)
    rows = [
        (comment.prompt, comment.completion, comment.toxic, held_out)
        for held_out, count in ((False, config.count - for_test), (True, for_test))
        for comment in write_comments(count, seed=config.seed, held_out=held_out)
    ]
    frame = pd.DataFrame(rows, columns=["prompt", "completion", "toxic", "for_test"])
    return frame.astype({"toxic": "boolean", "for_test": bool})


def split(frame: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """The same texts with a column `part`, drawn by prompt with the seed of the data.

    Raises:
        DataError: too few prompts for the parts that are asked for.
    """
    if are_prompts(frame):
        return _split_prompts(frame, config)
    generator = np.random.default_rng(config.seed)
    wanted = {"fit": config.fit_prompts, "select": config.select_prompts, "test": config.test_prompts}
    for_test = frame["for_test"] if "for_test" in frame else pd.Series(data=False, index=frame.index)
    kept = _drawn(frame[for_test], generator)
    prompts = _drawn(frame[~for_test], generator)
    rest = len(prompts) + len(kept) - sum(wanted.values())
    if rest < 10 or (len(kept) and len(kept) < config.test_prompts):
        told = f", {len(kept)} of them made for test" if len(kept) else ""
        raise DataError(
            f"data={config.name} has {len(prompts) + len(kept)} distinct prompts{told}; fit, select and test ask for "
            f"{sum(wanted.values())} and 10 more must be left. Lower data.fit_prompts, data.select_prompts or "
            "data.test_prompts."
        )
    if len(kept):
        del wanted["test"]
    sizes = [*wanted.values(), round(rest * config.reward_fraction)]
    if sizes[-1] in (0, rest):
        raise DataError(
            f"data.reward_fraction={config.reward_fraction} of {rest} remaining prompts leaves nothing for "
            f"{'sft' if sizes[-1] else 'the reward'}. Choose one nearer to 0.5, or give more texts."
        )
    names = np.repeat([*wanted, "reward", "sft"], [*sizes, len(prompts) - sum(sizes)])
    part = dict(zip(prompts, names, strict=True)) | dict.fromkeys(kept, "test")
    return frame.drop(columns="for_test", errors="ignore").assign(part=frame["prompt"].map(part))


def _split_prompts(frame: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """A list of prompts has nothing for sft and R*: of fewer than are asked for, each part gets its share of all."""
    asked = (config.fit_prompts, config.select_prompts, config.test_prompts)
    prompts = _drawn(frame, np.random.default_rng(config.seed))
    if len(prompts) < FEWEST_PROMPTS:
        raise DataError(f"data={config.name} has {len(prompts)} distinct prompts: give {FEWEST_PROMPTS} or more.")
    ends = np.round(np.cumsum(asked) * min(1, len(prompts) / sum(asked))).astype(int)
    names = np.repeat(["fit", "select", "test", "spare"], np.diff([0, *ends, len(prompts)]))
    return frame.assign(part=frame["prompt"].map(dict(zip(prompts, names, strict=True))))


def _drawn(frame: pd.DataFrame, generator: np.random.Generator) -> Any:
    """The distinct prompts in a random order."""
    return generator.permutation(np.sort(frame["prompt"].unique()))


FITTED = ("sft", "reward", "fit")
"""Parts on which a policy or a reward is fitted; of fit only the prompts are."""


def overlap(texts: pd.DataFrame) -> dict[str, float]:
    """How much of test stands verbatim in what policies, R* and the second judge were fitted on.

    Returns:
        The share of the completions of test that occur there as a whole, and that of their n-grams of four words (of
        letters and digits, without case); the same n-grams of the prompts. What test does not have is left out.
    """
    if are_prompts(texts):
        return {}
    test = texts["part"] == "test"
    found: dict[str, float] = {}
    for column, parts in (("completion", ("sft", "reward")), ("prompt", FITTED)):
        ours, theirs = (texts.loc[rows, column].unique() for rows in (test, texts["part"].isin(parts)))
        if column == "completion":
            found["completions_seen"] = float(texts.loc[test, column].isin(set(theirs)).mean())
        known = set(itertools.chain.from_iterable(map(_four_grams, theirs)))
        seen = [gram in known for text in ours for gram in _four_grams(text)]
        if seen:
            found[f"{column}_4grams_seen"] = float(np.mean(seen))
    return found


def _four_grams(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[start : start + 4]) for start in range(len(words) - 3)]


def prompts_of(texts: pd.DataFrame, part: str) -> list[str]:
    """Distinct prompts of a part, in a fixed order."""
    return sorted(texts.loc[texts["part"] == part, "prompt"].unique())


def read_benchmark(config: BenchmarkConfig) -> list[str]:
    """Distinct prompts of a benchmark, cut to `max_prompt_words`, in the order of their drawing by the seed.

    Raises:
        DataError: as `read`.
    """
    table = _table(config)
    _check_columns(table, config)
    texts = texts_of(table, str(config.text or config.prompt), str(config.path or config.hub))
    if config.text:
        found = {cut(text, min(config.max_prompt_words, len(text.split()) // 2))[0] for text in texts}
    else:
        found = {cut(text, config.max_prompt_words)[0] for text in texts}
    prompts = np.array(sorted(found - {""}), dtype=object)
    return [str(prompt) for prompt in np.random.default_rng(config.seed).permutation(prompts)]


def unseen(benchmark: Sequence[str], known: Iterable[str], config: BenchmarkConfig) -> tuple[list[str], int]:
    """The first prompts of a benchmark that are not among the known ones, as many as the config wants, sorted.

    Prompts are the same if their words are. The number says how many of the benchmark were known.

    Args:
        known: every prompt of the data, of whatever part: what trained a policy or a reward would flatter them, and
            what is in test is judged already.

    Raises:
        DataError: too few are left.
    """
    words = {tuple(prompt.split()) for prompt in known}
    left = [prompt for prompt in benchmark if tuple(prompt.split()) not in words]
    known_too = len(benchmark) - len(left)
    if len(left) < config.prompts:
        raise DataError(
            f"benchmark.prompts={config.prompts}: {config.path or config.hub} has {len(benchmark)} distinct prompts, "
            f"of which {known_too} are in the data too and left out. Lower benchmark.prompts, or "
            "give other prompts."
        )
    return sorted(left[: config.prompts]), known_too


def cut(text: str, words: int) -> tuple[str, str]:
    """The first so many words, and the rest with the white space that separates it: joined they are the text."""
    head = _beginning(text, words, PROMPT_BYTES)
    return head, text[len(head) :]


def _beginning(text: str, words: int, size: int) -> str:
    """The first words of a text, and of their UTF-8 the first bytes."""
    end = 0
    for match in itertools.islice(re.finditer(r"\S+", text), words):
        end = match.end()
    return text[:end].encode()[:size].decode(errors="ignore").rstrip()


def _table(config: TextsConfig | BenchmarkConfig) -> pd.DataFrame:
    optional = _optional(config)
    return read_table(config.node, config.path, _columns(config), optional=optional, hub=config.hub, split=config.split)


def _columns(config: TextsConfig | BenchmarkConfig) -> list[str]:
    """The columns that must be there."""
    prompts, others = [config.text or config.prompt], []
    if isinstance(config, TextsConfig):
        others = [config.label] if config.text else [config.completion, config.label]
    return [column for column in [*prompts, *others] if column and column not in _optional(config)]


def _optional(config: TextsConfig | BenchmarkConfig) -> list[str]:
    """Columns of data=file that nobody has named: without them the file is a list of prompts, or of texts."""
    if not isinstance(config, FileConfig):
        return []
    named = {"completion": config.completion, "label": config.label}
    return [name for name, column in named.items() if column == name]


def _texts(table: pd.DataFrame, config: TextsConfig) -> pd.DataFrame:
    """prompt, completion and toxic out of the raw columns; texts of fewer than two words are left out."""
    source, limit = config.path or config.hub, config.max_prompt_words
    _check_columns(table, config)
    if config.text:
        texts = texts_of(table, config.text, str(source))
        pairs = [cut(text, min(limit, len(text.split()) // 2)) for text in texts]
    else:
        prompts = prompts_of_column(table, str(config.prompt), str(source))
        if config.completion is None or config.completion not in table:
            kept = [prompt if prompt != as_text(prompt) else cut(prompt, limit)[0] for prompt in prompts]
            frame = prompts_alone(kept)
            frame.attrs["cut"] = sum(mine.split() != whole.split() for mine, whole in zip(kept, prompts, strict=True))
            return frame
        completions = texts_of(table, config.completion, str(source))
        cuts = [cut(prompt, limit) for prompt in prompts]
        pairs = [(head, tail + text) for (head, tail), text in zip(cuts, completions, strict=True)]
    frame = pd.DataFrame(pairs, columns=["prompt", "completion"])
    frame["completion"] = [shortened(text) for text in frame["completion"]]
    frame["toxic"] = _labels(table, config, str(source))
    return frame[(frame["prompt"] != "") & (frame["completion"].str.strip() != "")].reset_index(drop=True)


def prompts_alone(prompts: Sequence[str]) -> pd.DataFrame:
    """Distinct prompts as rows without completions and labels."""
    frame = pd.DataFrame({"prompt": prompts, "completion": ""})
    frame["toxic"] = pd.array([pd.NA] * len(frame), dtype="boolean")
    return frame[frame["prompt"] != ""].drop_duplicates("prompt").reset_index(drop=True)


def are_prompts(texts: pd.DataFrame) -> bool:
    """Whether nobody has completed any of the prompts: there is nothing to train on."""
    return not texts["completion"].astype(bool).any()


def shortened(completion: str) -> str:
    """A completion of bounded length: a model that reads all of a long one would need memory for all of it."""
    if len(completion) <= COMPLETION_WORDS:  # no more words than characters, and no more bytes than four times that
        return completion
    within = len(completion.encode()) <= COMPLETION_BYTES and len(completion.split()) <= COMPLETION_WORDS
    return completion if within else _beginning(completion, COMPLETION_WORDS, COMPLETION_BYTES)


def _check_columns(table: pd.DataFrame, config: TextsConfig | BenchmarkConfig) -> None:
    missing = [column for column in _columns(config) if column not in table]
    if missing:
        yours = "data.prompt, data.completion, data.text and data.label (null: no labels)"
        if not isinstance(config, TextsConfig):
            yours = "benchmark.prompt or benchmark.text"
        raise DataError(
            f"{config.path or config.hub}: column '{missing[0]}' is missing; there are {', '.join(table.columns)}. "
            f"Name yours with {yours}."
        )


def _labels(table: pd.DataFrame, config: TextsConfig, source: str) -> Any:
    """Nullable booleans: the label is one of those that `toxic` names, or a number between 0 and 1 of at least 0.5."""
    if config.label is None or config.label not in table:
        return pd.array([pd.NA] * len(table), dtype="boolean")
    labels = values_of(table, config.label, source)
    for row, label in enumerate(labels):
        if wrong := _wrong_label(label, config.toxic):
            there = f"there are {_some(labels)} (data.label={config.label})"
            raise DataError(
                f"{place(source, row)}: label {label!r} {wrong}; {there}. Name the toxic ones: data.toxic=[...]."
            )
    if config.toxic is None:
        return pd.array([pd.NA if label is None else float(label) >= 0.5 for label in labels], dtype="boolean")
    for name in config.toxic:
        if name not in labels:
            raise DataError(
                f"data.toxic={list(config.toxic)}: no label of {source} is {name!r}; there are {_some(labels)} "
                f"(data.label={config.label})."
            )
    return pd.array([pd.NA if label is None else label in config.toxic for label in labels], dtype="boolean")


def _wrong_label(label: Any, toxic: Sequence[object] | None) -> str:
    """What keeps a label from being read; "" if nothing does."""
    if label is None:
        return ""
    if toxic is not None:
        return "" if isinstance(label, bool | int | float | str) else "is neither a number nor a text"
    try:
        return "" if 0 <= float(label) <= 1 else "lies outside [0, 1]"
    except (TypeError, ValueError, OverflowError):
        return "is not a number"


def _some(labels: Sequence[object]) -> str:
    """The distinct labels, the first ten of them."""
    found = sorted({repr(label) for label in labels if label is not None})
    return ", ".join(found[:10]) + (f" and {len(found) - 10:,} more" if len(found) > 10 else "")


def shortened_prompts(texts: pd.DataFrame) -> str:
    """A warning where prompts of a list were cut, and with them what they ask; "" where none were."""
    count = texts.attrs.get("cut", 0)
    return f"{count:,} prompts were cut to data.max_prompt_words: set it higher to ask them whole" if count else ""


def share_of_toxic(texts: pd.DataFrame) -> str:
    """How many labels there are and which part of them is toxic, in words."""
    labels = texts["toxic"].dropna()
    return f"{100 * labels.mean():.1f} % of {len(labels):,} labels toxic" if len(labels) else "no labels"


def too_few(texts: pd.DataFrame) -> str:
    """A warning where one of two classes is rare; "" where there are enough of both, or no labels at all."""
    labels = texts["toxic"].dropna()
    toxic = int(labels.sum())
    rare, name = min((toxic, "toxic"), (len(labels) - toxic, "civil"))
    if not len(labels) or rare >= FEW:
        return ""
    return f"only {rare} of {len(labels):,} labelled texts are {name}: what is learned of so few is mostly chance"


def test_texts(texts: pd.DataFrame) -> pd.DataFrame:
    """The texts of test as they are in the data, at most 1,000; of a list of prompts none."""
    test = texts[(texts["part"] == "test") & (not are_prompts(texts))]
    return test.iloc[:: max(1, -(-len(test) // 1000))].reset_index(drop=True)


WITHOUT_LABELS = ["prompt", "completion", "part"]
"""Columns of texts.parquet for a stage that may not see a label."""

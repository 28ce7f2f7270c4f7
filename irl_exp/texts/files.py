"""Tables of texts from a local file or the hub, checked: what is wrong is named with file, line and remedy."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.texts.messages import are_messages, as_prompt

LONGEST_LINE = 10_000_000
"""Bytes of a line of a JSONL file."""
LONGEST_TEXT = 100_000
"""Characters of a text: a longer one is no comment, but a file that is not read as it was meant."""


class DataError(Exception):
    """Texts that cannot be read: names the file, the line, the field and the remedy.

    What it quotes of a file somebody else has written: control characters, which a terminal would obey, are spelt out.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message))


def read_table(
    node: str,
    path: Path | None,
    columns: Sequence[str] = (),
    *,
    optional: Sequence[str] = (),
    hub: str | None = None,
    split: str = "train",
) -> pd.DataFrame:
    """The raw columns of a file, else of a name on the hub; nested objects flattened to dotted names.

    Args:
        node: the config node that names the file, for messages.
        columns, optional: of a JSONL file every line must have the first, and of the others what its first line has.

    Raises:
        DataError: it cannot be read, or a line lacks a field.
    """
    import tempfile

    import datasets

    datasets.disable_progress_bars()
    if path is None:
        return _pandas(datasets.load_dataset(str(hub), split=split))
    builder = _builder(node, path)
    if builder == "json":
        _check_lines(path, columns, optional)
    # Words such as "None" or "null" are words; only an empty cell of a CSV file is missing.
    options = {"keep_default_na": False, "na_values": [""]} if builder == "csv" else {}
    with tempfile.TemporaryDirectory() as cache:
        try:
            files = {"train": _without_brackets(path, Path(cache))}
            table = _pandas(datasets.load_dataset(builder, data_files=files, split="train", cache_dir=cache, **options))
        except Exception as error:  # of several libraries, all of which mean the same here
            cause = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{path}: not a readable {builder} file: {cause}") from error
    if table.empty:
        raise DataError(f"{path}: there are no rows.")
    return table


def _without_brackets(path: Path, folder: Path) -> str:
    """`datasets` takes brackets in a file name for a pattern: such a file is read from a copy."""
    if re.search(r"[\[\]*?]", str(path)):
        path = Path(shutil.copyfile(path, folder / f"texts{path.suffix}"))
    return str(path)


def _pandas(dataset: Any) -> pd.DataFrame:
    frame: pd.DataFrame = dataset.flatten().to_pandas()
    return frame


def _builder(node: str, path: Path) -> str:
    """The reader of `datasets` for a file, by its ending."""
    if not path.is_file():
        raise DataError(f"{node}.path={path}: there is no such file.")
    readers = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    if path.suffix not in readers:
        raise DataError(f"{node}.path={path}: the ending must be one of {', '.join(readers)}.")
    return readers[path.suffix]


def _check_lines(path: Path, columns: Sequence[str], optional: Sequence[str]) -> None:
    """Every line of a JSONL file is an object that has the fields; the first that is not is named."""
    for number, line in enumerate(_lines(path), start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}, line {number}: more than {LONGEST_LINE:,} bytes. Write one object a line.")
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, found {type(row).__name__}.")
        if number == 1:
            columns = [*columns, *(column for column in optional if column in row)]
        for column in columns:
            _check_field(row, column, f"{path}, line {number}")


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, none of them much longer than a line may be."""
    try:
        with path.open("rb") as lines:
            yield from iter(lambda: lines.readline(LONGEST_LINE + 1), b"")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Give a file of yours that is readable.") from None


def _check_field(row: dict[str, Any], column: str, where: str) -> None:
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, dict) or key not in value:
            raise DataError(f"{where}: field '{column}' is missing; the line has {', '.join(sorted(row))}.")
        value = value[key]


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def texts_of(table: pd.DataFrame, column: str, source: str) -> list[str]:
    """A column of texts; missing ones are empty."""
    values = ["" if value is None else value for value in values_of(table, column, source)]
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{place(source, row)}: column '{column}' holds a {type(value).__name__}, not a text.")
        if len(value) > LONGEST_TEXT:
            raise DataError(
                f"{place(source, row)}: column '{column}' holds {len(value):,} characters; a text may have "
                f"{LONGEST_TEXT:,}. Cut it, or look for a quote that is not closed."
            )
    return values


def values_of(table: pd.DataFrame, column: str, source: str) -> list[Any]:
    """A column as Python has it; what is missing is None. CSV and Parquet are decoded only here."""
    try:
        return [None if _missing(value) else value for value in table[column]]
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: column '{column}' is not valid UTF-8 ({error}). Save the file as UTF-8.") from None


def prompts_of_column(table: pd.DataFrame, column: str, source: str) -> list[str]:
    """A column of prompts: texts, or lists of chat messages, each as one string."""
    values = [plain(value) for value in values_of(table, column, source)]
    strings = [as_prompt(value) if are_messages(value) else value for value in values]
    return texts_of(pd.DataFrame({column: pd.Series(strings, dtype=object)}), column, source)


def plain(value: object) -> Any:
    """A list as Python has it: pandas gives an array."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def place(source: str, row: int) -> str:
    """Where a row is found: of JSONL each is a line."""
    return f"{source}, {'line' if source.endswith(('.jsonl', '.json')) else 'row'} {row + 1}"

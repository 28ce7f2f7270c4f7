"""100 files of texts, damaged in drawn ways or made to be difficult: read as they should be, or refused by name."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from campaign import Trials
from child import child

from irl_exp.config import FileConfig

pytestmark = pytest.mark.faults

SEED = 2026
COUNT = 100
SUBJECT = "Data files"
HELD = """
within 30 s and 8 GB the file is refused by one line of ours that names it (or, of too few texts, `data=file`), free of
control characters; or it is read: every prompt and completion is text that is not blank, no prompt has more than 32
words, no text more than 100,000 characters, and labels are true, false or missing.
"""

PATIENCE = 30.0
LONGEST = 10**5


# ---------------------------------------------------------------------------------------------------- reading


def opened(question: str) -> tuple[str, str]:
    """("refused" or "read" or "raised", what was said or why it is not right)."""
    from pydantic import ValidationError

    from irl_exp.config import FileConfig
    from irl_exp.texts import data

    try:
        config = FileConfig(path=Path(question), seed=0, fit_prompts=4, select_prompts=2, test_prompts=2)
        frame = data.split(data.read(config), config)
    except data.DataError as error:
        return "refused", str(error)
    except ValidationError as error:
        return "refused", f"{question}: {error.errors()[0]['msg']}"
    except BaseException as error:
        return "raised", f"{type(error).__name__}: {error}"
    return "read", wrong(frame, config)


def wrong(frame: pd.DataFrame, config: FileConfig) -> str:
    """What is not as it should be in texts that were read."""
    prompts_alone = frame["toxic"].isna().all() and (frame["completion"] == "").all()
    for name in ("prompt",) if prompts_alone else ("prompt", "completion"):
        if not all(isinstance(text, str) and text.strip() for text in frame[name]):
            return f"{name} is not text, or blank"
        if frame[name].str.len().max() > LONGEST:
            return f"a {name} of {frame[name].str.len().max():,} characters"
    if frame["prompt"].str.split().str.len().max() > config.max_prompt_words:
        return "a prompt is longer than data.max_prompt_words"
    return "" if str(frame["toxic"].dtype) == "boolean" else "labels are not booleans"


def check(found: tuple[str, str], path: Path) -> None:
    end, said = found
    assert end != "raised", said
    if end == "read":
        assert said == ""
        return
    assert len(said.splitlines()) == 1, f"not one line: {said[:200]!r}"
    assert said.isprintable(), f"control characters reach the terminal: {said[:200]!r}"
    written = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in path.name)
    assert written in said or "data=file" in said, f"the file is not named: {said[:200]}"


# ------------------------------------------------------------------------------------------------- drawn files


def rows(generator: random.Random, count: int = 60) -> list[dict[str, Any]]:
    words = ["the", "old", "bridge", "was", "closed", "and", "nobody", "told", "us", "about", "it", "again", "today"]

    def text() -> str:
        return " ".join(generator.choices(words, k=generator.randrange(2, 9)))

    return [{"prompt": f"{text()} {row}", "completion": " " + text(), "label": row % 2} for row in range(count)]


def encoded(table: list[dict[str, Any]], ending: str, path: Path) -> None:
    if ending in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    elif ending == ".csv":
        pd.DataFrame(table).to_csv(path, index=False)
    else:
        pd.DataFrame(table).to_parquet(path)


VALUES: tuple[Any, ...] = (
    *(
        None,
        "",
        " ",
        "\n",
        0,
        -1,
        1e300,
        True,
        [],
        ["a"],
        {},
        {"text": "a"},
        "\x00",
        "\ud800",
        "‮",
        "🙂" * 50,
        "a" * 10**4,
    ),
    *(
        "null",
        "None",
        "NaN",
        float("nan"),
        float("inf"),
        "=1+1",
        "\x1b[2J",
        "<script>alert(1)</script>",
        '"',
        "'",
        ",,,",
    ),
)


def other_values(table: list[dict[str, Any]], generator: random.Random) -> list[dict[str, Any]]:
    """A few cells hold something else."""
    for _ in range(generator.randrange(1, 5)):
        generator.choice(table)[generator.choice(("prompt", "completion", "label"))] = generator.choice(VALUES)
    return table


def other_columns(table: list[dict[str, Any]], generator: random.Random) -> list[dict[str, Any]]:
    """A column lost, renamed or added, in all rows or in one."""
    name = generator.choice(("prompt", "completion", "label"))
    for row in table if generator.random() < 0.5 else [generator.choice(table)]:
        value = row.pop(name)
        if generator.random() < 0.5:
            row[generator.choice((name.upper(), f"{name} ", "other", "\x1b[31mred", ""))] = value
    return table


def bytes_damaged(content: bytes, generator: random.Random) -> bytes:
    """Cut, flipped, repeated, another encoding, other line ends, something in the middle."""
    place = generator.randrange(len(content))
    text = content.decode("latin-1")
    return generator.choice(
        [
            lambda: content[:place],
            lambda: content[:place] + bytes([content[place] ^ 1 << generator.randrange(8)]) + content[place + 1 :],
            lambda: content[:place] + generator.randbytes(generator.randrange(1, 64)) + content[place:],
            lambda: content[place:] + content[:place],
            lambda: b"\xef\xbb\xbf" + content,
            lambda: text.encode("utf-16"),
            lambda: content.replace(b"\n", b"\r\n"),
            lambda: content.replace(b"\n", b"\r"),
            lambda: content.replace(b"\n", b"\n\n"),
            lambda: content.replace(b'"', b""),
            lambda: content[:place] + b"\x00" * 8 + content[place:],
            lambda: content.replace(b"e", b"\xe9", 5),
            lambda: gzip.compress(content),
            lambda: b"[" + content.replace(b"\n", b",") + b"]",
            lambda: content * 50,
        ]
    )()


def drawn(number: int, folder: Path) -> Path:
    """The file of this number."""
    generator = random.Random(f"{SEED}-{number}")
    ending = generator.choice((".jsonl", ".csv", ".parquet", ".jsonl", ".csv", ".json"))
    path = folder / f"texts-{number}{ending}"
    table, how = rows(generator), generator.choice(("values", "columns", "bytes", "bytes"))
    if how != "bytes":
        table = (other_values if how == "values" else other_columns)(table, generator)
    try:
        encoded(table, ending, path)
    except Exception:  # what CSV or Parquet cannot hold: JSON can
        path = path.with_suffix(".jsonl")
        encoded(table, ".jsonl", path)
    if how == "bytes":
        path.write_bytes(bytes_damaged(path.read_bytes(), generator))
    return path


def test_drawn_files(trials: Trials, tmp_path: Path) -> None:
    ends = set()
    with child(opened, PATIENCE) as process:
        for number in range(COUNT):
            with trials(f"JSONL, CSV and Parquet with drawn damage (seed {SEED}): values, columns, bytes", number):
                path = drawn(number, tmp_path)
                found = process.ask(str(path))
                ends.add(found[0])
                check(found, path)
    with trials("both ends were met: some were refused, some read"):
        assert ends >= {"refused", "read"}


# --------------------------------------------------------------------------------------------- difficult files


def with_text(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = rows(random.Random(SEED))
        table[7]["completion"] = text
        encoded(table, ".jsonl", folder / "texts.jsonl")
        return folder / "texts.jsonl"

    return write


def with_prompt(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = rows(random.Random(SEED))
        table[7]["prompt"] = text
        encoded(table, ".csv", folder / "texts.csv")
        return folder / "texts.csv"

    return write


def content(name: str, raw: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(raw)
        return folder / name

    return write


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "texts.jsonl")
    return folder / "texts.jsonl"


def linked(target: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "texts.jsonl").symlink_to(target)
        return folder / "texts.jsonl"

    return write


def of_a_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as found:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is short
        found.bind("texts.csv")
        os.chdir(here)
    return folder / "texts.csv"


def a_folder(folder: Path) -> Path:
    (folder / "texts.jsonl").mkdir()
    return folder / "texts.jsonl"


def in_a_loop(folder: Path) -> Path:
    (folder / "texts.jsonl").symlink_to(folder / "texts.jsonl")
    return folder / "texts.jsonl"


ROW = b'{"prompt": "a b", "completion": " c d", "label": 1}\n'
DIFFICULT: dict[str, Callable[[Path], Path]] = {
    "a text of 2 MB in words": with_text(" word" * 400_000),
    "a word of 2 MB": with_text("w" * 2_000_000),
    "a prompt that is one word of 2 MB": with_prompt("w" * 2_000_000),
    "a prompt of 2 MB in words": with_prompt("word " * 400_000),
    "a line of 40 MB": content("texts.jsonl", ROW * 60 + b'{"prompt": "' + b"a " * 20_000_000 + b'"}\n'),
    "a line of 40 MB that is no JSON": content("texts.jsonl", b"a" * 40_000_000),
    "a CSV field of 40 MB": content("texts.csv", b'prompt,completion,label\n"' + b"a " * 20_000_000 + b'",b,1\n'),
    "an open quote": content("texts.csv", b'prompt,completion,label\n"a b,c d,1\n' + b"a,b,0\n" * 1000),
    "JSON 100,000 deep": content("texts.jsonl", b"[" * 100_000 + b"\n"),
    "an integer of 5,000 digits": content("texts.jsonl", ROW * 60 + ROW.replace(b"1}", b"9" * 5000 + b"}")),
    "2,000 columns": content("texts.csv", b",".join(b"c%d" % n for n in range(2_000)) + b"\n" + b"," * 1_999 + b"\n"),
    "the same column twice": content("texts.csv", b"prompt,prompt,completion,label\n" + b"a b,c,d e,1\n" * 60),
    "a header alone": content("texts.csv", b"prompt,completion,label\n"),
    "no byte": content("texts.jsonl", b""),
    "one blank line": content("texts.jsonl", b"\n"),
    "one text": content("texts.jsonl", ROW),
    "a pickle": content("texts.pkl", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    "a pickle that calls itself Parquet": content("texts.parquet", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    "a Python file": content("texts.py", b"import os\n"),
    "an escape in the name of a column": content("texts.csv", b"prompt,\x1b[31mred\na b,c\n"),
    "an escape in a label": content("texts.csv", b"prompt,completion,label\na b,c d,\x1b[2J\n"),
    "an escape in the name of the file": content("te\x1b[31mxts.csv", b"prompt\na b\n"),
    "a line break in the name of the file": content("te\nxts.csv", b"prompt\na b\n"),
    "a pipe (FIFO)": fifo,
    "a socket": of_a_socket,
    "a folder": a_folder,
    "a link to /dev/zero": linked("/dev/zero"),
    "a link to /dev/null": linked("/dev/null"),
    "a link to /proc/self/mem": linked("/proc/self/mem"),
    "a link to nothing": linked("nowhere"),
    "a link to itself": in_a_loop,
}


def test_difficult_files(trials: Trials, tmp_path: Path) -> None:
    with child(opened, PATIENCE) as process:
        for number, (name, write) in enumerate(DIFFICULT.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            with trials("difficult: long, deep, empty, ambiguous, no plain file, no file of texts", name):
                path = write(folder)
                check(process.ask(str(path)), path)

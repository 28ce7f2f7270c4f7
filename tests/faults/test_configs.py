"""200 command lines, most of them wrong in one or two places: refused in one message, or composed and planned."""

from __future__ import annotations

import contextlib
import io
import os
import random
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from campaign import Trials
from child import child
from conftest import ROOT
from undisturbed import HINT

from irl_exp.config import CONF, known_groups, option_fields

pytestmark = pytest.mark.faults

SEED = 2026
COUNT = 200
SUBJECT = "Command lines"
HELD = """
the launch is refused within 300 s by one message (no traceback, at most 12 lines, no line twice) that names an option
or a value of the command line, with an exit code other than 0, and leaves no folder beside the empty store; or all
jobs are composed, checked and planned. The whole of launch.py runs, up to the first job.
"""

BASE = ("scale=tiny", "tracking=none", "data.count=1000", "workers=1")
NASTY = (
    *(
        "",
        "null",
        "-1",
        "0",
        "1e9",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "true",
        "abc",
        "'a b'",
        "[]",
        "[1,2]",
        "{a:1}",
        "{}",
    ),
    *("???", "${seed}", "${nope}", "${oc.env:HOME}", "${oc.env:NOPE}", "${irl}", "${", "..", ".", "/", "~", "~nope/x"),
    *("/dev/null", "nowhere.jsonl", "'", '"', "\\", "é", "‮", "a" * 400, "/".join(["b" * 60] * 90), "x" * 5000),
    *("range(3)", "range(0)", "range(3,1)", "range(1000000)", "1,2", ",", "choice(1,2)", "glob(*)", "interval(0,1)"),
    *(
        "0x10",
        "1_000",
        "2147483648",
        "99999999999999999999",
        "1.5",
        "1e-320",
        "$(id)",
        "a=b",
        "=",
        "[",
        "]",
        "(",
        "{a:",
    ),
    *(
        "-x",
        "a b",
        "<b>x</b>",
        "=1+1",
        "\x1b[31mred",
        "two\nlines",
        "store",
        "__init__",
        "None",
        "False",
        "0.0",
        "-0.0",
    ),
)
HYDRA = (
    *("hydra/job_logging=disabled", "hydra/hydra_logging=none", "hydra.mode=RUN", "hydra.sweep.subdir=x"),
    *(
        "hydra.job.name=",
        "hydra.nope=1",
        "hydra/launcher=nope",
        "hydra/sweeper=nope",
        "hydra=1",
        "hydra.job.chdir=maybe",
    ),
    *("hydra.sweep.dir=", "hydra.sweep.dir=a/b", "hydra/launcher=basic", "hydra.verbose=nope", "+hydra.x=1"),
)


# ------------------------------------------------------------------------------------------------- command lines


def written(generator: random.Random) -> list[str]:
    """Right options of the base, and one to three that were drawn."""
    keys = [key for key, _ in option_fields() if "NAME" not in key and not key.startswith("hydra")]
    kinds: list[Callable[[], str]] = [
        lambda: f"{generator.choice(keys)}={generator.choice(NASTY)}",
        lambda: (
            f"{generator.choice(('name', 'store.dir', 'irl.seed', 'seed', 'max_new_tokens', 'data.seed'))}="
            f"{generator.choice(NASTY)}"
        ),
        lambda: f"{generator.choice(known_groups())}={generator.choice(NASTY)}",
        lambda: f"{(group := generator.choice(known_groups()))}={generator.choice(options(group))}",
        lambda: f"{generator.choice(('+', '++', '~'))}{generator.choice(keys)}={generator.choice(NASTY)}",
        lambda: f"{misspelt(generator.choice(keys), generator)}={generator.choice(('1', 'abc'))}",
        lambda: generator.choice(HYDRA),
    ]
    drawn = generator.choices(kinds, weights=(8, 5, 2, 4, 1, 2, 1), k=generator.choice((1, 1, 1, 2, 3)))
    return [*BASE, *(draw() for draw in drawn)]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def misspelt(key: str, generator: random.Random) -> str:
    """One letter lost, doubled or changed."""
    place = generator.randrange(len(key))
    return key[:place] + generator.choice(("", key[place] * 2, "z")) + key[place + 1 :]


# ----------------------------------------------------------------------------------------------------- launches


@dataclass(frozen=True)
class Answer:
    """How launch.py ended: `code` is None if all jobs were planned."""

    code: int | None
    output: str
    left: list[str]


class _Planned(BaseException):
    """All jobs are composed, checked and planned."""


def launched(question: tuple[str, list[str]]) -> Answer:
    """launch.py with these arguments in this folder, in this process, up to the first job."""
    from irl_exp.launch import planner

    folder, arguments = question
    os.environ |= {"HF_HUB_OFFLINE": "1", "HOME": folder}
    os.chdir(folder)
    planner.run_all = _planned
    planner.finish = lambda *_: None
    output = io.StringIO()
    code: int | None = None
    sys.argv = [str(ROOT / "launch.py"), *arguments]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            print("" if isinstance(end.code, int | None) else end.code)
        except _Planned:
            pass
        except BaseException:
            code = 1
            traceback.print_exc(file=output)
    os.chdir("/")
    if not Path(folder).exists():
        return Answer(code, output.getvalue(), ["nothing: the folder where it was started is gone"])
    inside = [path.relative_to(folder).as_posix() for path in Path(folder).glob("*/*")]
    return Answer(code, output.getvalue(), inside + _outside(Path(folder)))


def _planned(*_: object) -> Iterator[object]:
    raise _Planned
    yield


def _outside(folder: Path) -> list[str]:
    """What appeared beside the folder, where a name with '..' would lead."""
    return [path.as_posix() for path in folder.parent.iterdir() if path != folder]


def check(answer: Answer, arguments: list[str]) -> None:
    assert not any("is gone" in name for name in answer.left), answer.left[0]
    if answer.code is None:
        return
    assert answer.code != 0, "it ended with 0 and ran no job"
    assert "Traceback" not in answer.output, f"a traceback: {answer.output.strip().splitlines()[-1]}"
    lines = [line for line in answer.output.splitlines() if line.strip() and line != HINT]
    assert lines, "nothing was said"
    assert len(lines) <= 12, f"{len(lines)} lines"
    assert len(lines) == len(set(lines)), "a line is said twice"
    named = [word for item in arguments for word in item.lstrip("+~").split("=", 1) if word]
    assert any(word[:60] in answer.output for word in named), f"no option is named: {lines[0]}"
    if any(item.startswith("hydra/launcher=") for item in arguments):
        return  # Hydra's own launchers make the folder of a job before anybody sees its options
    left = [name for name in answer.left if not name.startswith("multirun/store")]
    assert left == [], f"left: {', '.join(left)}"


def test_command_lines(trials: Trials, tmp_path: Path) -> None:
    generator = random.Random(SEED)
    planned = 0
    with child(launched, patience=300) as process:
        for number in range(COUNT):
            arguments = written(generator)
            folder = tmp_path / str(number) / "here"
            folder.mkdir(parents=True)
            with trials(f"drawn options with drawn values (seed {SEED})", " ".join(arguments[len(BASE) :])[:100]):
                answer = process.ask((str(folder), arguments))
                planned += answer.code is None
                check(answer, arguments)
            shutil.rmtree(folder.parent, ignore_errors=True)
    with trials("both ends were met: some were refused, some planned"):
        assert 10 < planned < COUNT - 50

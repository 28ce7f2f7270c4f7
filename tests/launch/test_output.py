"""A launch whose standard output ends before it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Launcher

from irl_exp.launch.console import Console
from irl_exp.launch.output import Output


@pytest.mark.parametrize("how", ["a reader that is gone", "a full disk", "no standard output"])
def test_a_launch_goes_on_without_its_output_and_the_log_has_all(
    how: str, launcher: Launcher, warm_store: Path, tmp_path: Path
) -> None:
    shutil.copytree(warm_store, tmp_path / "multirun" / "store")
    line = ("scale=tiny", "until=sft", "tracking=none")
    if how != "a reader that is gone":
        to = "> /dev/full" if how == "a full disk" else ">&-"
        process = launcher.start(tmp_path, *line, prefix=["sh", "-c", f'exec "$@" {to}', "sh"])
    else:
        process = launcher.start(tmp_path, *line)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    (log,) = tmp_path.glob("multirun/chain/*/launch.log")
    text = log.read_text()
    assert text.count("nothing is written to standard output any more") == (how != "no standard output")
    assert "store     multirun/store" in text
    assert (log.parent / "0" / "metrics.json").is_file()


def test_nothing_is_lost_of_what_comes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out, os.fdopen(reading) as reader:
        monkeypatch.setattr(sys, "stdout", out)
        output = Output()
        print("one", file=output, flush=True)
        assert reader.readline() == "one\n"
        reader.close()
        print("two", file=output, flush=True)
        assert output.trouble == "Broken pipe"
        print("three", file=output, flush=True)
        out.write("of a library")
        out.flush()
        console = Console(1, folder=tmp_path)
        console.output.trouble = "why"
        with console:
            console.say("a line")
            console.say("another")
    told = [line.split("  ", 1)[1] for line in (tmp_path / "launch.log").read_text().splitlines()]
    ended = "nothing is written to standard output any more (why); this log goes on"
    assert told == ["a line", ended, "another"]


def test_help_may_be_cut() -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "--help", "all"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60)[1] == b""

"""What a stop does outside of jobs: before the first, while the end is written, and while libraries close."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from irl_exp.launch import planner, stops
from irl_exp.launch.console import Console

STOPPED = """
import atexit, signal, sys
from irl_exp.launch import stops
def closing():
    print("closing", flush=True)
    signal.raise_signal(signal.{name})
    print("closed", flush=True)
atexit.register(closing)
stops.end_at_once()
print("all is done")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_while_libraries_close_ends_with_130(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED.format(name=name)], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stdout.splitlines() == ["all is done", "closing"]
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_end_is_written_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    """Also where the stop is told instead of passed on, as that of the report is."""
    written = []

    def finish(*arguments: Any) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            written.append("not written (interrupted)")

    monkeypatch.setattr(planner, "finish", finish)
    with pytest.raises(SystemExit) as caught:
        planner._finish([], {}, tmp_path, Console(1))
    assert caught.value.code == 130
    assert written == ["not written (interrupted)"]


def test_without_a_signal_a_keyboard_interrupt_is_no_stop() -> None:
    with stops.terminate_like_interrupt():
        with pytest.raises(KeyboardInterrupt):
            raise KeyboardInterrupt
        assert not stops.told_to_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stops.told_to_stop()

"""What a launch reads of its workers: events, half lines, and silence."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from irl_exp.launch.following import Followed, Seen
from irl_exp.machinery.runtime import Event


def line(kind: str, **content: Any) -> str:
    return json.dumps({"kind": kind, **content}) + "\n"


@pytest.fixture
def heard() -> list[Event]:
    return []


def followed(folder: Path, heard: list[Event], silent: list[str], patience: float = 60) -> Followed:
    return Followed(folder, heard.append, lambda worker: silent.append(worker.name), patience)


def test_events_are_heard_once_and_only_when_their_line_is_whole(tmp_path: Path, heard: list[Event]) -> None:
    file, follow = tmp_path / "a.jsonl", followed(tmp_path, heard, [])
    told = line("event", job=-2, stage="sft", state="computing", done=1, total=4, seconds=0.0, note="")
    file.write_text(line("worker", host="n1", job="7") + told[:20])
    follow.look()
    assert heard == []
    with file.open("a") as more:
        more.write(told[20:])
    follow.look()
    follow.look()
    assert heard == [Event(-2, "sft", "computing", 1, 4)]


def test_the_worker_at_a_task_is_known(tmp_path: Path, heard: list[Event]) -> None:
    follow = followed(tmp_path, heard, [])
    (tmp_path / "a.jsonl").write_text(line("worker", host="n1", job="7") + line("begin", task=3))
    (tmp_path / "b.jsonl").write_text(line("worker", host="n2", job="") + line("begin", task=4) + line("end", task=4))
    follow.look()
    found = follow.at(3)
    assert isinstance(found, Seen)
    assert found.name == "n1 (job 7)"
    assert follow.at(4) is None
    assert follow.told().startswith("2 worker(s) did 2 tasks")


def test_who_is_silent_at_work_is_told_once_and_who_is_idle_never(tmp_path: Path, heard: list[Event]) -> None:
    silent: list[str] = []
    follow = followed(tmp_path, heard, silent, patience=0.05)
    (tmp_path / "a.jsonl").write_text(line("worker", host="n1", job="7") + line("begin", task=3))
    (tmp_path / "b.jsonl").write_text(line("worker", host="n2", job="8"))
    follow.look()
    assert silent == []
    time.sleep(0.1)
    follow.look()
    follow.look()
    assert silent == ["n1 (job 7)"]

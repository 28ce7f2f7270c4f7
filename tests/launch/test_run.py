"""What a run is called in W&B, which code it ran, and the statements on its reward."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_statements

from irl_exp.launch import run

ROOT = Path(__file__).parents[2]
GROUP = "losses/20261121-101500-264172"


@pytest.mark.parametrize(
    ("job", "title"),
    [
        ("irl/loss=hinge,irl.seed=3", "losses irl/loss=hinge,irl.seed=3 (20261121-101500)"),
        ("default", "losses (20261121-101500)"),
    ],
)
def test_a_title_tells_runs_of_studies_and_launches_apart(job: str, title: str) -> None:
    assert run._title("losses", job, GROUP) == title


def test_tags_are_the_study_and_what_makes_the_cell() -> None:
    config: Any = SimpleNamespace(name="losses", tracking=SimpleNamespace(tags=("mine", "losses")))
    assert run._tags(config, "irl/loss=hinge,irl.ridge=[1,10],irl.seed=3") == [
        "losses",
        "irl/loss=hinge",
        "irl.ridge=[1,10]",
        "mine",
    ]
    assert run._tags(config, "irl.seed=3") == ["losses", "mine"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a clone")
def test_the_commit_is_that_of_this_code_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.chdir(tmp_path)
    assert run._commit.__wrapped__() == wanted


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert run._commit.__wrapped__() is None


def test_statements_are_a_table_of_the_tracker(tmp_path: Path) -> None:
    shown: dict[str, Any] = {}
    tracker: Any = SimpleNamespace(log_table=lambda name, columns, rows: shown.update({name: (columns, rows)}))
    assert run._show_statements(tmp_path, tracker) is None
    assert shown == {}
    told = run._show_statements(small_statements.write(tmp_path), tracker)
    assert told is not None
    ((name, (columns, rows)),) = shown.items()
    assert name == "explain/statements"
    assert [row[columns.index("name")] for row in rows] == [statement.name for statement in told]
    assert columns.index("effect") < columns.index("range_low")

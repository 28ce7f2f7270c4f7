"""Several launches as one study: which runs it has, in which cells, what is told, and where it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_study import Made, write

from irl_exp.analysis import __main__ as command
from irl_exp.analysis import report, together
from irl_exp.analysis.study import Study, StudyError


def read(folder: Path, *launches: Sequence[Made]) -> Study:
    """Launches of one study, numbered from 1, read together."""
    return together.read([write(folder / "made" / str(number), runs) for number, runs in enumerate(launches, start=1)])


def of(seed: int, *, cell: str = "", artifacts: dict[str, str] | None = None, **irl: Any) -> Made:
    """A run with options of IRL, which make another artifact."""
    made = {"irl": f"irl-{sorted(irl.items())}-{seed}", **(artifacts or {})}
    return Made(cell=cell, seed=seed, artifacts=made, config={"irl": {"seed": seed, **irl}})


def sizes(study: Study) -> dict[str, int]:
    return {cell: len(runs) for cell, runs in study.cells.items()}


def test_more_seeds_of_one_job_are_one_cell_and_what_both_have_counts_once(tmp_path: Path) -> None:
    study = read(tmp_path, [of(seed) for seed in (0, 1, 2)], [of(seed) for seed in (2, 3)])
    assert sizes(study) == {"default": 4}
    assert [run.number for run in study.runs] == [0, 1, 2, 3]
    assert [run.seeds["irl.seed"] for run in study.runs] == [0, 1, 2, 3]
    assert study.notes[0] == "Launches: 1 | 2."
    assert "They differ in irl.seed: 0, 1, 2 | 2, 3." in study.notes
    assert any(note.startswith("1 run(s) are in more than one of these launches") for note in study.notes)


def test_runs_of_one_name_and_two_configs_are_two_cells_named_by_what_differs(tmp_path: Path) -> None:
    study = read(tmp_path, [of(0, epochs=3), of(1, epochs=3)], [of(0, epochs=5)])
    assert sizes(study) == {"irl.epochs=3": 2, "irl.epochs=5": 1}
    assert any("irl.epochs: 3 | 5" in note for note in study.notes)


def test_runs_of_two_names_and_one_config_are_one_cell(tmp_path: Path) -> None:
    """One launch has set what the other one has by default."""
    study = read(
        tmp_path, [of(0, cell="irl.epochs=3", epochs=3)], [of(1, epochs=3), of(1, cell="irl.epochs=5", epochs=5)]
    )
    assert sizes(study) == {"irl.epochs=3": 2, "irl.epochs=5": 1}


def test_one_seed_with_two_results_is_told_apart_by_the_launch(tmp_path: Path) -> None:
    """As after a change of the code: the same job is no repetition of itself."""
    study = read(tmp_path, [of(0)], [of(0, artifacts={"irl": "of other code"})])
    assert sizes(study) == {"launch=1": 1, "launch=2": 1}


def test_of_a_job_that_another_launch_took_further_the_longer_one_stays(tmp_path: Path) -> None:
    """Whichever is named first: its reward is counted once, and its policy is there."""
    folders = [write(tmp_path / "made" / name, [of(0)]) for name in ("short", "long")]
    for folder, until in zip(folders, ("irl", "evaluate"), strict=True):
        path = folder / "0" / "config.json"
        config = json.loads(path.read_text())
        config |= {"until": until}
        config["artifacts"] |= {"evaluate": f"until {until}"}
        if until == "irl":
            del config["artifacts"]["refinetune"]
        path.write_text(json.dumps(config))
    for order in (folders, folders[::-1]):
        assert [run.config["until"] for run in together.read(order).runs] == ["evaluate"]


def test_a_launch_is_named_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "made" / "1", [Made()])
    with pytest.raises(StudyError, match="is named twice"):
        together.read([folder, folder.parent])


def test_the_command_writes_beside_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "OF_SUMMARY", {})
    monkeypatch.setattr(report, "OF_STUDY", {})
    folders = [write(tmp_path / name / time, [Made(seed=int(time))]) for name, time in (("a", "1"), ("b", "2"))]
    assert command.main(list(map(str, folders))) == 0
    page = tmp_path / "b" / "a-1+b-2" / "index.html"
    assert f"written: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "launches a-1 and b-2" in text
    assert "Launches: a-1 | b-2." in text

"""Statements by seed: made-up folders of runs, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from irl_exp.analysis import statements
from irl_exp.analysis.study import NotComputed, Run, Study


def stated(name: str, effect: float, *, certified: bool | None = True, family: str = "ngrams") -> dict[str, Any]:
    """A statement with all that a run writes; only what is counted here matters."""
    numbers = ("frequency_base", "frequency_tuned", "difference", "difference_low", "difference_high")
    said = dict.fromkeys((*numbers, "effect_low", "effect_high", "q", "r2"), 0.0)
    words = {
        "family": family,
        "name": name,
        "wording": "",
        "unit": "",
        "direction": "pays" if effect > 0 else "charges",
    }
    return said | words | {"graded": False, "effect": effect, "certified": certified}


def study(folder: Path, *lists: list[dict[str, Any]] | None, cells: tuple[str, ...] = ()) -> Study:
    """A run a list; None: it was not explained."""
    runs = []
    for number, found in enumerate(lists):
        place = folder / str(number)
        place.mkdir()
        if found is not None:
            (place / "statements.json").write_text(json.dumps(found))
        cell = cells[number] if cells else ""
        runs.append(Run(number, f"run {number}", cell, place, {}, {}))
    return Study(folder, tuple(runs), (), (), ())


def test_statements_are_counted_over_runs(tmp_path: Path) -> None:
    found = statements.of(
        study(
            tmp_path,
            [stated("you are", -1.0), stated("thanks", 0.5)],
            [stated("you are", -2.0, certified=False), stated("why", 3.0, certified=None)],
            [stated("thanks", -0.1, family="properties"), stated("you are", -3.0)],
            [],
            None,
        )
    )
    table = found.table()
    assert [row[1:] for row in table.rows] == [
        ("you are (ngrams)", "3 of 4", "0 of 3", "-2.00", "[-3.00, -1.00]", "2 of 3"),
        ("why (ngrams)", "1 of 4", "1 of 1", "+3.00", "-", "-"),
        ("thanks (ngrams)", "1 of 4", "1 of 1", "+0.50", "-", "1 of 1"),
        ("thanks (properties)", "1 of 4", "0 of 1", "-0.10", "-", "1 of 1"),
    ]
    assert (found.empty, found.without) == ((3,), (4,))
    assert found.found[0].found.value == pytest.approx(0.75)
    assert found.found[0].found.low < 0.75 < found.found[0].found.high


def test_cells_are_counted_apart_and_the_table_is_cut_for_each(tmp_path: Path) -> None:
    lists = [[stated(f"word {word}", 1 + word) for word in range(4)] for _ in range(3)]
    found = statements.of(study(tmp_path, *lists, cells=("a", "a", "b")))
    rows = found.table(most=2).rows
    assert [row[:3] for row in rows] == [
        ("a", "word 3 (ngrams)", "2 of 2"),
        ("a", "word 2 (ngrams)", "2 of 2"),
        ("b", "word 3 (ngrams)", "1 of 1"),
        ("b", "word 2 (ngrams)", "1 of 1"),
    ]


def test_a_figure_gets_each_run(tmp_path: Path) -> None:
    frame = statements.of(
        study(tmp_path, [stated("a", 1.0)], [stated("a", 3.0, certified=None), stated("b", -1.0, certified=False)])
    ).frame()
    assert frame[["name", "run", "effect", "share"]].to_numpy().tolist() == [
        ["a", 0, 1.0, 1.0],
        ["a", 1, 3.0, 1.0],
        ["b", 1, -1.0, 0.5],
    ]
    assert frame["certified"].isna().tolist() == [False, True, False]


def test_runs_that_could_say_nothing_are_counted(tmp_path: Path) -> None:
    found = statements.of(study(tmp_path, [], []))
    assert (found.found, found.empty, found.table().rows) == ((), (0, 1), ())
    assert list(found.frame()) == ["cell", "family", "name", "share", "run", "effect", "certified"]


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(NotComputed, match="no run was explained"):
        statements.of(study(tmp_path / "none", None))
    broken = study(tmp_path, [stated("a", 1.0)])
    (tmp_path / "0" / "statements.json").write_text('[{"family": "ngrams"}]')
    with pytest.raises(NotComputed, match=r"run 0: statements\.json: statement 0 has no name"):
        statements.of(broken)

"""Statements as a table and in the verdict, and what is said where a run has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_statements
from small_statements import STATEMENTS, statement

from irl_exp.report import statements, studies, verdict
from irl_exp.report.cells import Outcome
from irl_exp.report.statements import NotExplained, Statement
from irl_exp.report.tables import lines

METRICS = {"n_prompts": 8.0, "explain/r2": 0.5, "explain/n_candidates": 812.0}


def outcome(folder: Path, *found: dict[str, Any], number: int = 0, name: str = "default") -> Outcome:
    run = folder / str(number)
    run.mkdir()
    (run / "statements.json").write_text(json.dumps(found))
    return Outcome(number, name, run, "completed", metrics=METRICS)


def told(*found: dict[str, Any]) -> list[Statement]:
    return [Statement.of(item) for item in found]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal_and_loses_nothing(tmp_path: Path, width: int) -> None:
    (table,) = studies.tables([outcome(tmp_path, *STATEMENTS)])
    assert (
        table.title
        == "What the recovered reward pays for; together R2 0.500 of it within a policy; 812 candidates tried"
    )
    found = list(lines(table, width))
    assert max(map(len, found)) <= width
    shown = "\n".join(found)
    for piece in (
        "charges for second person",
        "\N{LEFT DOUBLE QUOTATION MARK}fair",
        "17.2 %",
        "(mean,",
        "-1.60",
    ):
        assert piece in shown
    assert "[-1.90, -1.30]*" in shown
    assert "[-0.10, +1.20]*" not in shown


def test_a_row_has_frequencies_effect_and_range() -> None:
    first, second, third, last = statements.table(told(*STATEMENTS), METRICS).rows
    assert first == ("charges for second person", "17.2 %", "0.3 %", "-1.60 [-1.70, -1.50]", "[-1.90, -1.30]*")
    assert second[0] == "pays for \N{LEFT DOUBLE QUOTATION MARK}fair, since\N{RIGHT DOUBLE QUOTATION MARK}"
    assert third[:3] == ("pays for length (mean, tokens)", "9.5", "12.2")
    assert last[-1] == "-"


def test_the_verdict_begins_with_what_the_recovered_reward_pays_for(tmp_path: Path) -> None:
    done = outcome(tmp_path, *STATEMENTS)
    sentence = verdict.of_launch([done]).sentences[0]
    assert sentence.startswith("The recovered reward charges for second person; it pays for ")
    assert sentence.endswith("(R2 of all statements within a policy 0.500).")
    assert verdict.of_run(METRICS, told=told(*STATEMENTS)).sentences[0] == sentence
    assert "trained for" not in verdict.of_launch([done]).text()


def test_of_many_statements_the_first_of_each_direction_are_named() -> None:
    many = [statement(f"word {number}", 1.0 - 0.1 * number) for number in range(5)]
    (sentence,) = statements.sentences([told(*many)], [METRICS], "")
    assert sentence == "The recovered reward pays for word 0, word 1, word 2 and 2 more."


def test_of_several_runs_it_says_in_how_many_a_statement_comes_back(tmp_path: Path) -> None:
    one, other = statement(), statement("length", 0.4)
    done = [
        outcome(tmp_path, *found, number=number, name=f"irl.seed={number}")
        for number, found in enumerate([(one, other), (one,), (other, one)])
    ]
    sentence = verdict.of_launch(done).sentences[0]
    assert sentence.startswith(
        "The recovered reward charges for second person (3 of 3 runs); it pays for length (2 of 3 runs)"
    )


def test_cells_that_differ_get_no_common_statement(tmp_path: Path) -> None:
    done = [outcome(tmp_path, statement(), number=number, name=f"irl=m{number}") for number in range(2)]
    assert "pays for" not in verdict.of_launch(done).text()


def test_an_empty_list_is_said_with_what_was_tried(tmp_path: Path) -> None:
    sentence = verdict.of_launch([outcome(tmp_path)]).sentences[0]
    assert sentence == (
        "None of 812 candidates passes the test on held-out prompts: what the recovered reward pays for cannot be said."
    )


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"explain.name": "none"}, "explain=none"),
        ({"until": "irl"}, "until=irl stops before explain"),
        ({"artifacts.explain": "x"}, "statements.json is missing"),
        ({}, "was not part of this run"),
    ],
)
def test_a_run_without_statements_says_why(tmp_path: Path, facts: dict[str, object], reason: str) -> None:
    with pytest.raises(NotExplained, match=reason):
        statements.read(tmp_path, facts)
    assert statements.of_run(tmp_path, facts) is None
    done = Outcome(0, "default", tmp_path, "completed", metrics=METRICS, facts=facts)
    assert "recovered reward" not in verdict.of_launch([done]).text()
    assert not any("recovered reward" in table.title for table in studies.tables([done]))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"effect": float("nan")}, "effect = nan"),
        ({"effect": "1.0"}, "effect = '1.0'"),
        ({"effect": None}, "has no effect"),
        ({"direction": "<b>"}, "direction = '<b>'"),
        ({"certified": 1}, "certified = 1"),
        ({"name": ["x"]}, "name = "),
    ],
)
def test_a_damaged_statement_is_refused_by_its_field(tmp_path: Path, damage: dict[str, Any], reason: str) -> None:
    small_statements.write(tmp_path, [statement(), statement() | damage])
    with pytest.raises(NotExplained, match=f"statement 1 has .*{reason.removeprefix('has ')}"):
        statements.read(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]", '"x"'])
def test_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "statements.json").write_text(text)
    with pytest.raises(NotExplained):
        statements.read(tmp_path)


def test_texts_reach_terminal_and_markdown_as_text(tmp_path: Path) -> None:
    name = "\x1b[31m<script>alert(1)</script> | =1+1 \u202e"
    done = outcome(tmp_path, statement(name))
    found = "\n".join(table.markdown() for table in studies.tables([done])) + verdict.of_launch([done]).markdown()
    assert "\x1b" not in found
    assert "\u202e" not in found
    assert "<script" not in found
    assert "&lt;script>alert(1)" in found
    for line in (line for line in found.splitlines() if line.startswith("| charges")):
        assert line.replace("\\|", "").count("|") == 6


def test_all_fields_go_into_the_table_of_the_tracker() -> None:
    columns, rows = statements.columns_and_rows(told(*STATEMENTS))
    assert dict(zip(columns, rows[0], strict=True)) == STATEMENTS[0]

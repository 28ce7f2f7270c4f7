"""The tables of a run and of a study, from metrics that are given: cells, spread, what is missing and why."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from irl_exp import report
from irl_exp.report import Outcome, Table

patient = settings(deadline=None)  # a busy machine is no failure

RUN = {
    "n_prompts": 250.0,
    "reference/n_completions": 1000.0,
    "reference/toxic_fraction": 0.5,
    "reference/toxic_fraction_low": 0.4567,
    "reference/toxic_fraction_high": 0.5433,
    "reference/reward_mean": -0.25,
    "reference/kl": 0.0,
    "reference/length_mean": 12.345,
    "expert/n_completions": 1000.0,
    "expert/toxic_fraction": 0.1,
    "expert/reward_mean": 1.5,
    "expert/kl": 2.0,
    "expert/length_mean": 11.0,
}
LEARNED = {
    **RUN,
    "reference/learned_reward_mean": -0.1,
    "irl/n_completions": 2000.0,
    "irl/n_civil": 1400.0,
    "irl/auroc": 0.91234,
    "irl/auroc_low": 0.9,
    "irl/auroc_high": 0.925,
    "irl/accuracy": 0.8,
    "recovered_fraction": 0.75,
    "recovered_fraction_low": 0.5,
    "recovered_fraction_high": 1.0,
}


def outcome(number: int, name: str, metrics: Mapping[str, float] | None = None, **options: str) -> Outcome:
    status = "completed" if metrics is not None else "failed"
    return Outcome(number, name, Path(str(number)), **{"status": status, **options}, metrics=metrics)  # type: ignore[arg-type]


def rows(table: Table) -> dict[str, dict[str, str]]:
    """Rows by their first cell, cells by their column."""
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


# ---------------------------------------------------------------- one run


def test_a_run_without_a_learned_reward_has_the_table_of_its_policies() -> None:
    (table,) = report.run_tables(RUN)
    assert table.title == "Policies on 250 test prompts, 1,000 completions each"
    found = rows(table)
    assert list(found) == ["reference", "expert"]
    assert found["reference"] == {
        "policy": "reference",
        "toxic": "0.500 [0.457, 0.543]",
        "R* mean": "-0.250",
        "KL (nats)": "0.000",
        "tokens": "12.3",
    }
    assert found["expert"]["toxic"] == "0.100"


def test_a_run_with_a_learned_reward_has_its_table_too() -> None:
    policies, learned = report.run_tables(LEARNED)
    assert rows(policies)["expert"]["learned R"] == "-", "not measured for this policy"
    assert learned.title == "Learned reward on 2,000 test completions of expert and reference, 600 toxic by R*"
    values = {text: row["value [95 %]"] for text, row in rows(learned).items()}
    assert values[report.REWARD_ROWS["irl/auroc"]] == "0.912 [0.900, 0.925]"
    assert values[report.REWARD_ROWS["irl/accuracy"]] == "0.800"
    assert values[report.REWARD_ROWS["irl/kendall"]] == "-"
    assert values["fraction of R* that refinetune recovered"] == "0.750 [0.500, 1.000]"


def test_the_table_of_a_learned_reward_is_there_also_where_auroc_is_not_defined() -> None:
    one_class = {key: value for key, value in LEARNED.items() if not key.startswith("irl/auroc")}
    values = rows(report.run_tables(one_class)[1])
    assert values[report.REWARD_ROWS["irl/auroc"]]["value [95 %]"] == "-"


def test_markdown_is_a_table() -> None:
    text = Table("Title", ("a", "b"), (("1", "2"), ("3", "4"))).markdown()
    assert text.splitlines() == ["### Title", "", "| a | b |", "| --- | --- |", "| 1 | 2 |", "| 3 | 4 |"]


def test_a_bar_in_a_cell_stays_in_its_cell() -> None:
    line = Table("Title", ("a", "b"), (("1", "x | y"),)).markdown().splitlines()[-1]
    assert line.replace(r"\|", "").count("|") == 3


# ---------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("irl.seed=3", "default"),
        ("seed=0", "default"),
        ("default", "default"),
        ("irl/loss=hinge,irl.seed=12", "irl/loss=hinge"),
        ("irl.seed=12,irl/loss=hinge", "irl/loss=hinge"),
        ("irl/loss=hinge,seed=1,irl.epochs=5,irl.seed=2", "irl/loss=hinge,irl.epochs=5"),
        ("irl.features.layers=[-1,-2],data.seed=4", "irl.features.layers=[-1,-2]"),
        ("sft.steps=3", "sft.steps=3"),
        pytest.param("++irl.seed=3", "default"),
    ],
)
def test_a_cell_is_the_name_without_its_seeds(name: str, cell: str) -> None:
    assert outcome(0, name).cell == cell


# ---------------------------------------------------------------- many runs


@patient
@given(st.lists(st.integers(0, 1000).map(lambda number: number / 1000), min_size=2, max_size=12))
def test_the_spread_is_that_of_numpy_and_scipy(values: list[float]) -> None:
    runs = [outcome(number, f"irl.seed={number}", {"irl/auroc": value}) for number, value in enumerate(values)]
    (row,) = report.study_table(runs).rows
    cell, metric, mean, interval, deviation, low, high, count = row
    assert (cell, metric, count) == ("default", "irl/auroc", str(len(values)))
    assert float(mean) == pytest.approx(np.mean(values), abs=6e-4)
    assert float(deviation) == pytest.approx(np.std(values, ddof=1), abs=6e-5)
    assert (float(low), float(high)) == (min(values), max(values))
    error = stats.sem(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else [np.mean(values)] * 2
    assert [float(end) for end in interval.strip("[]").split(",")] == pytest.approx(list(expected), abs=6e-4)


def test_one_run_says_nothing_of_its_spread() -> None:
    (row,) = report.study_table([outcome(0, "irl.seed=0", {"irl/auroc": 0.5})]).rows
    assert row == ("default", "irl/auroc", "0.500", "-", "-", "0.500", "0.500", "1")


def test_runs_are_grouped_by_cell_and_failed_ones_do_not_count() -> None:
    runs = [
        outcome(0, "irl/loss=hinge,irl.seed=0", {"irl/auroc": 0.4}),
        outcome(1, "irl/loss=hinge,irl.seed=1", {"irl/auroc": 0.6}),
        outcome(2, "irl/loss=hinge,irl.seed=2", error="broke"),
        outcome(3, "irl/loss=max_margin,irl.seed=0", {"irl/auroc": 0.9, "other": 1.0}),
    ]
    table = report.study_table(runs)
    assert table.title == "3 of 4 runs completed"
    assert [(row[0], row[2], row[-1]) for row in table.rows] == [
        ("irl/loss=hinge", "0.500", "2"),
        ("irl/loss=max_margin", "0.900", "1"),
    ]


def test_a_metric_that_only_some_runs_have_counts_those() -> None:
    runs = [
        outcome(0, "irl.seed=0", {"irl/auroc": 0.5, "recovered_fraction": 0.7}),
        outcome(1, "irl.seed=1", {"irl/auroc": 0.5}),
    ]
    counts = {row[1]: row[-1] for row in report.study_table(runs).rows}
    assert counts == {"irl/auroc": "2", "recovered_fraction": "1"}


def test_what_has_no_result_is_listed_with_the_first_line_of_its_reason() -> None:
    runs = [
        outcome(0, "seed=0", {"irl/auroc": 0.5}),
        outcome(1, "seed=1", error="KL starts at 3\nTraceback"),
        outcome(2, "seed=2", status="not run"),
    ]
    table = report.failures_table(runs)
    assert table.title == "2 without a result"
    assert table.rows == (("1", "seed=1", "failed", "KL starts at 3"), ("2", "seed=2", "not run", ""))


# ---------------------------------------------------------------- on disk


def test_one_completed_run_is_shown_as_a_run_and_many_as_a_study(tmp_path: Path) -> None:
    alone = report.write(tmp_path, [outcome(0, "default", LEARNED)])
    assert alone == report.run_tables(LEARNED)
    many = [outcome(0, "seed=0", LEARNED), outcome(1, "seed=1", RUN)]
    assert report.write(tmp_path, many) == [report.study_table(many)]
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == report.study_table(many).markdown()


def test_failures_follow_the_results_and_stand_alone_without_any(tmp_path: Path) -> None:
    some = [outcome(0, "seed=0", RUN), outcome(1, "seed=1", error="broke")]
    assert report.write(tmp_path, some) == [report.study_table(some), report.failures_table(some)]
    assert report.write(tmp_path, some[1:]) == [report.failures_table(some[1:])]
    assert "broke" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_runs_csv_holds_every_metric_of_every_job(tmp_path: Path) -> None:
    runs = [
        outcome(0, "irl/loss=hinge,seed=0", {"b": 0.1 + 0.2, "a": 1.0}),
        outcome(1, "irl/loss=hinge,seed=1", error='two\nlines, and a "quote"'),
        outcome(2, "seed=2", {"c": 3.0}),
    ]
    report.write(tmp_path, runs)
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["job", "overrides", "cell", "status", "seconds", "error", "a", "b", "c"]
    assert [line["status"] for line in lines] == ["completed", "failed", "completed"]
    assert [line["cell"] for line in lines] == ["irl/loss=hinge", "irl/loss=hinge", "default"]
    assert float(lines[0]["b"]) == 0.1 + 0.2, "no digit is lost"
    assert (lines[0]["c"], lines[1]["a"], lines[2]["a"]) == ("", "", "")
    assert lines[1]["error"] == runs[1].error

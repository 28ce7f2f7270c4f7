"""The tables of a run and of a study, from metrics that are given: cells, spread, what is missing and why."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from irl_exp.report import cells, names, runs, studies, tables, verdict
from irl_exp.report.cells import Outcome
from irl_exp.report.tables import Table, show

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
    "implicit/n_completions": 1000.0,
    "implicit/n_civil": 400.0,
    "implicit/auroc": 0.95,
    "pooled/implicit/n_completions": 2000.0,
    "pooled/implicit/n_civil": 1300.0,
    "pooled/irl/n_completions": 2000.0,
    "pooled/irl/auroc": 0.96,
    "pooled/author/n_completions": 2000.0,
    "pooled/author/auroc": 0.8,
    "irl/expert/n_completions": 1000.0,
    "irl/expert/n_civil": 900.0,
    "irl/expert/auroc": 0.85,
    "irl/expert/auroc_low": 0.8,
    "irl/expert/auroc_high": 0.9,
    "triangle/truth_implicit/epic": 0.2,
    "triangle/implicit_learned/epic": 0.15,
    "triangle/implicit_learned/epic_low": 0.1,
    "triangle/implicit_learned/epic_high": 0.2,
    "pooled/triangle/truth_implicit/epic": 0.3,
    "irl/n_completions": 1000.0,
    "irl/n_civil": 400.0,
    "irl/auroc": 0.91234,
    "irl/auroc_low": 0.9,
    "irl/auroc_high": 0.925,
    "irl/accuracy": 0.8,
    "recovered_fraction": 0.75,
    "recovered_fraction_low": 0.5,
    "recovered_fraction_high": 1.0,
}

TOXICITY = {"reward.name": "classifier"}


def test_a_seed_that_follows_another_one_makes_no_cell_of_its_own() -> None:
    assert cells.cell_of(r"irl.seed=0,demonstrations.seed=$\{irl.seed\},until=irl") == "until=irl"
    assert cells.cell_of("irl.seed=0,demonstrations.seed=${irl.seed}") == "default"


def outcome(number: int, name: str, metrics: Mapping[str, float] | None = None, **options: str) -> Outcome:
    status = "completed" if metrics is not None else "failed"
    return Outcome(number, name, Path(str(number)), **{"status": status, **options}, metrics=metrics)  # type: ignore[arg-type]


def rows(table: Table) -> dict[str, dict[str, str]]:
    """Rows by their first cell, cells by their column."""
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


# ---------------------------------------------------------------- one run


def test_a_run_without_a_learned_reward_has_the_table_of_its_policies() -> None:
    (table,) = runs.run_tables(RUN, TOXICITY)
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


def test_a_run_with_a_learned_reward_has_its_table_with_the_implicit_one_beside_it() -> None:
    policies, rewards, *_ = runs.run_tables(LEARNED, TOXICITY)
    assert rows(policies)["expert"]["learned R"] == "-", "not measured for this policy"
    assert rewards.title == (
        "Rewards on the reference's 1,000 test completions (600 toxic by R*); pooled with the expert's: 2,000 test "
        "completions (700 toxic by R*)"
    )
    found = rows(rewards)
    assert found[names.REWARD_ROWS["auroc"]]["learned [95 %]"] == "0.912 [0.900, 0.925]"
    assert found[names.REWARD_ROWS["auroc"]]["log ratio [95 %]"] == "0.950"
    assert found[names.REWARD_ROWS["auroc"]]["learned pooled"] == "0.960"
    assert found[names.REWARD_ROWS["auroc"]]["author pooled"] == "0.800", "beside what it belongs to"
    assert found[names.REWARD_ROWS["accuracy"]]["learned [95 %]"] == "0.800"
    assert found[names.REWARD_ROWS["kendall"]]["learned [95 %]"] == "-"


def test_without_a_learned_reward_the_implicit_one_stands_alone() -> None:
    learned = ("irl/", "pooled/", "triangle/implicit_learned", "recovered")
    alone = {key: value for key, value in LEARNED.items() if not key.startswith(learned)}
    _, rewards, _, triangle = runs.run_tables(alone)
    assert rewards.columns == ("reward", "log ratio [95 %]")
    assert [row[0] for row in triangle.rows] == [names.SIDES["truth_implicit"]]


def test_within_each_policy_a_reward_has_a_row_with_how_many_are_of_the_rare_class() -> None:
    within = runs.run_tables(LEARNED, TOXICITY)[2]
    assert within.columns == ("reward", "on completions of", *names.WITHIN_COLUMNS.values(), "toxic")
    assert [(row[:2], row[2], row[-1]) for row in within.rows] == [
        (("learned", "reference"), "0.912 [0.900, 0.925]", "600"),
        (("learned", "expert"), "0.850 [0.800, 0.900]", "100"),
        (("log ratio", "reference"), "0.950", "600"),
    ]


def test_what_refinetuning_recovered_says_at_which_kl() -> None:
    known = {"equal_kl/from": 0.1, "equal_kl/to": 2.25, "equal_kl/difference": -0.2, "refinetuned/kl": 3.5}
    table = runs.run_tables({**LEARNED, **known})[-1]
    assert table.title == "Refinetuning on the way (prompts of fit); equal KL: 0.10 to 2.25 nats"
    assert table.rows == (
        (names.EQUAL_KL_ROWS["difference"], "-0.200"),
        (
            "fraction of the expert's gain recovered (test prompts, at 3.50 nats, the expert's 2.00)",
            "0.750 [0.500, 1.000]",
        ),
    )


def test_the_triangle_has_a_row_a_side_and_a_column_a_coverage() -> None:
    triangle = runs.run_tables(LEARNED)[3]
    assert triangle.columns == ("between", "reference", "expert + reference")
    assert triangle.rows == (
        (names.SIDES["truth_implicit"], "0.200", "0.300"),
        (names.SIDES["implicit_learned"], "0.150 [0.100, 0.200]", "-"),
    )


def test_what_predicts_errors_is_shown_where_the_reward_knows_its_uncertainty() -> None:
    known = {"uncertainty/n_errors": 30.0, "uncertainty/epistemic_auroc": 0.7, "uncertainty/length_auroc": 0.5}
    table = runs.run_tables({**LEARNED, **known})[-2]
    assert table.title == "What predicts the 30 errors of the learned reward in 1,000?"
    assert table.rows == ((names.SIGNALS["epistemic"], "0.700"), (names.SIGNALS["length"], "0.500"))


def test_the_table_of_a_learned_reward_is_there_also_where_auroc_is_not_defined() -> None:
    one_class = {key: value for key, value in LEARNED.items() if "/auroc" not in key}
    values = rows(runs.run_tables(one_class)[1])
    assert values[names.REWARD_ROWS["auroc"]]["learned [95 %]"] == "-"


# ---------------------------------------------------------------- cells compared


def test_cells_are_compared_by_mean_and_t_interval_and_common_overrides_are_in_the_title() -> None:
    runs = [
        outcome(0, "until=irl,irl=margin,irl.seed=0", {"irl/auroc": 0.9, "irl/epic": 0.3}),
        outcome(1, "until=irl,irl=margin,irl.seed=1", {"irl/auroc": 0.8, "irl/epic": 0.4}),
        outcome(3, "until=irl,irl=margin,irl.seed=2", {"irl/auroc": 0.7}),
        outcome(2, "until=irl,irl=majority,irl.seed=0", {"irl/auroc": 0.5}),
    ]
    (table,) = studies.comparison_tables(runs)
    assert table.title == "Learned rewards (until=irl): mean ± half of the 95 % t interval"
    half = stats.t.ppf(0.975, 2) * np.std([0.9, 0.8, 0.7], ddof=1) / np.sqrt(3)
    assert rows(table) == {
        "irl=margin": {
            "cell": "irl=margin",
            "AUROC": f"0.800 ± {half:.3f}",
            "EPIC to R*": "0.350 (0.300 to 0.400) (n = 2)",
            "n": "3",
        },
        "irl=majority": {"cell": "irl=majority", "AUROC": "0.500", "EPIC to R*": "-", "n": "1"},
    }


def test_cells_with_lost_runs_or_metrics_say_so() -> None:
    runs = [
        outcome(0, "irl=margin,irl.seed=0", {"irl/auroc": 0.9, "irl/epic": 0.3}),
        outcome(1, "irl=margin,irl.seed=1", {"irl/epic": 0.3}),
        outcome(2, "irl=margin,irl.seed=2"),
        outcome(3, "irl=probe,irl.seed=0"),
    ]
    found = rows(studies.comparison_tables(runs)[0])
    assert found["irl=margin"] == {
        "cell": "irl=margin",
        "AUROC": "0.900 (n = 1)",
        "EPIC to R*": "0.300",
        "n": "2 of 3",
    }
    assert found["irl=probe"] == {"cell": "irl=probe", "AUROC": "-", "EPIC to R*": "-", "n": "0 of 1"}


def test_the_place_of_a_cell_is_the_share_of_placebo_runs_that_reach_its_mean() -> None:
    runs = [
        outcome(n, f"irl=placebo,irl.seed={n}", {"irl/auroc": value}) for n, value in enumerate((0.3, 0.5, 0.7, 0.6))
    ]
    runs.append(outcome(4, "irl=margin,irl.seed=0", {"irl/auroc": 0.6}))
    found = rows(studies.comparison_tables(runs)[0])
    assert found["irl=margin"]["placebo >="] == "2/4"
    assert found["irl=placebo"]["placebo >="] == "2/4"


def test_many_cells_are_compared_on_the_terminal_and_spread_out_in_the_summary(tmp_path: Path) -> None:
    runs = [outcome(0, "irl=margin", LEARNED), outcome(1, "irl=placebo", LEARNED)]
    compared = studies.comparison_tables(runs)
    assert studies.write(tmp_path, runs) == compared
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    parts = [verdict.of_launch(runs), *compared, studies.study_table(runs)]
    assert text == "\n".join(part.markdown() for part in parts)


def test_rewards_and_policies_are_compared_in_tables_of_their_own() -> None:
    runs = [
        outcome(0, "irl=margin", {"irl/auroc": 0.9, "refinetuned/kl": 2.0}),
        outcome(1, "irl=probe", {"irl/auroc": 0.8, "refinetuned/kl": 3.0}),
    ]
    rewards, policies = studies.comparison_tables(runs)
    assert rewards.columns == ("cell", "AUROC", "n")
    assert policies.columns == ("cell", "KL (nats)", "n")
    assert rows(policies)["irl=probe"]["KL (nats)"] == "3.000"


def test_what_all_cells_have_in_common_is_said_once() -> None:
    runs = [outcome(n, f"irl/loss={loss},data=file", LEARNED) for n, loss in enumerate(("hinge", "squared"))]
    for table in (*studies.comparison_tables(runs), studies.study_table(runs)):
        assert "(data=file)" in table.title
        assert {row[0] for row in table.rows} == {"irl/loss=hinge", "irl/loss=squared"}


def test_a_list_is_one_override() -> None:
    runs = [outcome(n, f"irl.ridge=[1,10],irl.epochs={n},irl.seed=0", {"irl/auroc": 0.5}) for n in (1, 2)]
    (table,) = studies.comparison_tables(runs)
    assert table.title.startswith("Learned rewards (irl.ridge=[1,10]):")
    assert [row[0] for row in table.rows] == ["irl.epochs=1", "irl.epochs=2"]
    assert cells.overrides_of("irl/features=[length,ngram],irl.ridge=[1]") == [
        "irl/features=[length,ngram]",
        "irl.ridge=[1]",
    ]


def test_cells_without_any_compared_metric_get_the_table_of_the_study() -> None:
    runs = [outcome(0, "sft.steps=1", {"reference/kl": 0.0}), outcome(1, "sft.steps=2", {"reference/kl": 0.0})]
    assert studies.tables(runs) == [studies.study_table(runs)]


# ---------------------------------------------------------------- what a reward is about


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"reward.name": "classifier"}, "toxic"),
        ({"reward.name": "sequence_classifier", "reward.toxic": "toxic", "reward.civil": "neutral"}, "toxic"),
        ({"reward.name": "sequence_classifier", "reward.toxic": "hate", "reward.civil": "nothate"}, "'hate'"),
        ({"reward.name": "length"}, "R* < 0"),
        ({"reward.name": "weighted", "reward.parts.toxicity.name": "classifier"}, "R* < 0"),
        ({"reward.name": "sentiment"}, "R* < 0"),
        ({"reward.name": "imported"}, "R* < 0"),
    ],
)
def test_words_follow_the_reward(facts: Mapping[str, str], word: str) -> None:
    """A completion of the wrong length is not toxic."""
    tables = runs.run_tables(LEARNED, facts)
    assert word in tables[0].columns
    text = "\n".join(table.markdown() for table in tables)
    assert f"F1 ({word})" in text
    assert ("toxic" in text) is (word == "toxic")


def test_words_of_a_study_are_those_of_its_reward() -> None:
    runs = [
        Outcome(number, f"irl={name}", Path(name), "completed", metrics=refined, facts={"reward.name": "length"})
        for number, name in enumerate(("margin", "placebo"))
        for refined in [{**LEARNED, "refinetuned/toxic_fraction": 0.2}]
    ]
    policies = studies.comparison_tables(runs)[1]
    assert "R* < 0" in policies.columns
    assert "toxic" not in policies.columns
    assert studies.study_table(runs).title.endswith("; toxic_fraction is the share of completions with R* < 0")


# ---------------------------------------------------------------- as wide as the terminal

CELLS = (
    "irl/features=[hidden_state,ngram],irl.prompt_fraction=0.05",
    "irl=ensemble,irl.members=50,irl.aggregate=lower_bound",
    "data.count=1000,irl=margin",
)
REFINED = {
    **LEARNED,
    "refinetuned/toxic_fraction": 0.041,
    "refinetuned/reward_mean": -12.494,
    "refinetuned/kl": 2.735,
    "refinetuned/second_toxic_fraction": 0.042,
    "benchmark/refinetuned/toxic_fraction": 0.05,
    "overoptimisation/over_optimised": 0.0,
    "equal_kl/from": 0.1,
    "equal_kl/to": 2.3,
    "equal_kl/difference": -0.3,
    "equal_kl/difference_low": -0.413,
    "equal_kl/difference_high": -0.189,
    "overoptimisation/truth_change": -0.001,
}
MANY = [
    outcome(3 * number + seed, f"{cell},irl.seed={seed}", {key: value + seed / 1000 for key, value in REFINED.items()})
    for number, cell in enumerate(CELLS)
    for seed in range(2)
]
LOST = [outcome(9, f"{CELLS[0]},irl.seed=9", error="StageError: irl: a reason of many words, " * 5)]
WIDE = {
    "one run": runs.run_tables(REFINED, TOXICITY),
    "comparison": studies.tables(MANY),
    "study": [studies.study_table(MANY)],
    "one cell": [studies.study_table(MANY[:2])],
    "failures": studies.tables([*MANY, *LOST]),
}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("what", WIDE)
def test_on_a_terminal_of_any_width_numbers_and_names_are_whole(what: str, width: int) -> None:
    shown = io.StringIO()
    show(WIDE[what], Console(file=shown, width=width))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    numbers = Counter(re.findall(NUMBER, shown.getvalue()))
    for table in WIDE[what]:
        wanted = Counter(
            number for row in table.rows for cell in row[table.names :] for number in re.findall(NUMBER, cell)
        )
        assert not wanted - numbers, "a number is missing or cut"
        names = {name for row in (table.columns, *table.rows) for name in row[: table.names]} | {*table.columns}
        pieces = {piece for name in names - {"cell", "default"} for piece in re.split("[ ,/]", name)}
        assert [piece for piece in pieces if piece not in shown.getvalue()] == []


NUMBER = r"(?<![\w.])-?\d+\.\d+(?![\w.])"


def test_what_does_not_fit_is_laid_out_below() -> None:
    """Of many columns the last were cut to '-0.0', or not there at all."""
    table = runs.run_tables({**REFINED, "expert/distinct_fraction": 0.9, "expert/nll": 1.19}, TOXICITY)[0]
    lines = list(tables.lines(table, 50))
    assert [line.split()[0] for line in lines if line and "─" not in line].count("refinetuned") == 3
    assert any("-12.494" in line.split() for line in lines)


def test_a_wide_terminal_has_a_line_a_row() -> None:
    table = WIDE["one run"][1]
    assert len(list(tables.lines(table, 160))) == 2 + len(table.rows)


def test_brackets_in_a_name_are_no_markup() -> None:
    table = Table("Of [bold]", ("cell", "AUROC"), (("irl/features=[hidden_state,ngram]", "0.500"), ("x[/]", "-")))
    shown = io.StringIO()
    show([table], Console(file=shown, width=80))
    assert [word in shown.getvalue() for word in ("[bold]", "=[hidden_state,ngram]", "x[/]")] == [True] * 3


def test_a_name_without_a_place_to_fold_is_cut_where_the_line_ends_and_nothing_is_lost() -> None:
    table = Table("T", ("cell", "AUROC"), (("x" * 100, "0.500"),))
    assert max(map(len, tables.lines(table, 60))) <= 60
    assert sum(line.count("x") for line in tables.lines(table, 60)) == 100


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
    (row,) = studies.study_table(runs).rows
    cell, metric, mean, interval, deviation, low, high, count = row
    assert (cell, metric, count) == ("default", "irl/auroc", str(len(values)))
    assert float(mean) == pytest.approx(np.mean(values), abs=6e-4)
    assert float(deviation) == pytest.approx(np.std(values, ddof=1), abs=6e-5)
    assert (float(low), float(high)) == (min(values), max(values))
    if len(values) < 3 or len(set(values)) == 1:
        assert interval == "-"
        return
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert [float(end) for end in interval.strip("[]").split(",")] == pytest.approx(list(expected), abs=6e-4)


def test_one_run_says_nothing_of_its_spread() -> None:
    (row,) = studies.study_table([outcome(0, "irl.seed=0", {"irl/auroc": 0.5})]).rows
    assert row == ("default", "irl/auroc", "0.500", "-", "-", "0.500", "0.500", "1")


def test_runs_are_grouped_by_cell_and_failed_ones_do_not_count() -> None:
    runs = [
        outcome(0, "irl/loss=hinge,irl.seed=0", {"irl/auroc": 0.4}),
        outcome(1, "irl/loss=hinge,irl.seed=1", {"irl/auroc": 0.6}),
        outcome(2, "irl/loss=hinge,irl.seed=2", error="broke"),
        outcome(3, "irl/loss=max_margin,irl.seed=0", {"irl/auroc": 0.9, "other": 1.0}),
    ]
    table = studies.study_table(runs)
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
    counts = {row[1]: row[-1] for row in studies.study_table(runs).rows}
    assert counts == {"irl/auroc": "2", "recovered_fraction": "1"}


def test_what_has_no_result_is_listed_with_the_first_line_of_its_reason() -> None:
    runs = [
        outcome(0, "seed=0", {"irl/auroc": 0.5}),
        outcome(1, "seed=1", error="KL starts at 3\nTraceback"),
        outcome(2, "seed=2", status="not run"),
    ]
    table = studies.failures_table(runs)
    assert table.title == "2 without a result"
    assert table.rows == (("1", "seed=1", "failed", "KL starts at 3"), ("2", "seed=2", "not run", ""))


# ---------------------------------------------------------------- on disk


def test_one_completed_run_is_shown_as_a_run_and_many_as_a_study(tmp_path: Path) -> None:
    alone = studies.write(tmp_path, [outcome(0, "default", LEARNED)])
    assert alone == runs.run_tables(LEARNED)
    many = [outcome(0, "seed=0", LEARNED), outcome(1, "seed=1", RUN)]
    assert studies.write(tmp_path, many) == [studies.study_table(many)]
    parts = [verdict.of_launch(many), studies.study_table(many)]
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == "\n".join(part.markdown() for part in parts)


def test_failures_follow_the_results_and_stand_alone_without_any(tmp_path: Path) -> None:
    some = [outcome(0, "seed=0", RUN), outcome(1, "seed=1", error="broke")]
    assert studies.write(tmp_path, some) == [studies.study_table(some), studies.failures_table(some)]
    assert studies.write(tmp_path, some[1:]) == [studies.failures_table(some[1:])]
    assert "broke" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_runs_csv_holds_every_metric_of_every_job(tmp_path: Path) -> None:
    runs = [
        outcome(0, "irl/loss=hinge,seed=0", {"b": 0.1 + 0.2, "a": 1.0}),
        outcome(1, "irl/loss=hinge,seed=1", error='two\nlines, and a "quote"'),
        outcome(2, "seed=2", {"c": 3.0}),
    ]
    studies.write(tmp_path, runs)
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["job", "overrides", "cell", "status", "seconds", "error", "a", "b", "c"]
    assert [line["status"] for line in lines] == ["completed", "failed", "completed"]
    assert [line["cell"] for line in lines] == ["irl/loss=hinge", "irl/loss=hinge", "default"]
    assert float(lines[0]["b"]) == 0.1 + 0.2, "no digit is lost"
    assert (lines[0]["c"], lines[1]["a"], lines[2]["a"]) == ("", "", "")
    assert lines[1]["error"] == runs[1].error


def test_a_stop_while_the_summary_is_written_leaves_whole_files_or_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.write(tmp_path, [outcome(0, "default", LEARNED)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == set(studies.FILES)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    changed = [outcome(0, "default", {**LEARNED, "irl/auroc": 0.5})]
    for place in ("run_tables", "_write_runs"):
        with monkeypatch.context() as patch:
            patch.setattr(studies, place, stopped)
            with pytest.raises(KeyboardInterrupt):
                studies.write(tmp_path, changed)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

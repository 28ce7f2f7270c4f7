"""What was drawn anew: units of runs from their artifacts, and what is said of them."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from irl_exp.report import studies, units
from irl_exp.report.cells import Facts, Outcome
from irl_exp.report.units import Units

STAGES = ("data", "reward", "sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate")


def chain(**own: object) -> Facts:
    """Artifacts of a run in which the stages of `own` have seeds of their own: what follows differs too."""
    found, draw = {}, "same"
    for stage in STAGES:
        draw = f"{draw},{own[stage]}" if stage in own else draw
        found[f"artifacts.{stage}"] = f"{stage}:{draw}"
    return found


def test_doctests() -> None:
    found = doctest.testmod(units)
    assert found.attempted > 1
    assert not found.failed


def test_runs_nested_in_experts_are_as_many_as_there_are_experts() -> None:
    runs = [chain(rlhf=e, demonstrations=d, irl=h) for e in range(5) for d in range(3) for h in range(4)]
    found = Units.of(runs)
    assert (found.count, found.told) == (5, "5 experts")
    assert found.means([float(number // 12) for number in range(60)]) == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("data", "3 chains"),
        ("reward", "3 ground truths"),
        ("sft", "3 reference policies"),
        ("rlhf", "3 experts"),
        ("demonstrations", "3 sets of demonstrations of one expert"),
        ("irl", "3 fits of one expert"),
        ("refinetune", "3 refinetuned policies of one expert"),
        ("evaluate", "3 judgements of one expert"),
    ],
)
def test_the_unit_is_the_first_stage_that_differs(stage: str, told: str) -> None:
    assert Units.of([chain(**{stage: seed}) for seed in range(3)]).told == told


def test_seeds_that_a_method_does_not_use_make_no_second_unit() -> None:
    assert Units.of([chain()] * 50).told == "1 refinetuned policy of one expert"
    until_irl = {key: value for key, value in chain().items() if "refinetune" not in key}
    assert Units.of([until_irl] * 50).told == "1 fit of one expert"


def test_where_no_artifact_is_known_each_run_is_one() -> None:
    found = Units.of([{}, {}])
    assert (found.count, found.told, found.name) == (2, "2 runs", "runs")


def nested() -> list[Outcome]:
    """Three experts with four heads each: the experts lie at 0.5, 0.6 and 0.7, their heads 0.01 around."""
    return [
        Outcome(
            4 * expert + head,
            f"rlhf.seed={expert},irl.seed={head}",
            Path(),
            "completed",
            metrics={"irl/auroc": 0.5 + 0.1 * expert + (0.01 if head % 2 else -0.01)},
            facts=chain(rlhf=expert, irl=head),
        )
        for expert in range(3)
        for head in range(4)
    ]


def test_the_table_of_a_study_has_the_interval_over_experts() -> None:
    table = studies.study_table(nested())
    assert table.title == "12 of 12 runs completed; n counts experts, each the mean of its runs"
    (row,) = table.rows
    half = 4.302653 * 0.1 / 3**0.5
    assert row == (
        "default",
        "irl/auroc",
        "0.600",
        f"[{0.6 - half:.3f}, {0.6 + half:.3f}]",
        "0.1000",
        "0.490",
        "0.710",
        "3",
    )


def test_below_three_units_there_is_their_range() -> None:
    table = studies.comparison_tables(
        [*nested()[:8], Outcome(9, "irl=probe", nested()[0].folder, "completed", metrics={"irl/auroc": 0.9})]
    )[0]
    assert table.rows[0][1] == "0.550 (0.500 to 0.600)"
    assert table.rows[0][-1] == "2 experts"
    assert table.rows[1][1] == "0.900"

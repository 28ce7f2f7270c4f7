"""From the paper's recipe to ours: steps, their table, what is said of them, and the figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_figures import drawn, marks, points, words, write

from irl_exp.analysis import published, summary
from irl_exp.analysis.figures import drawing
from irl_exp.analysis.figures import published as figures
from irl_exp.analysis.published import AT_ZERO, AUTHOR, MAJORITY, POOLED, RECIPE, THRESHOLD, UNSUPERVISED, WITHIN
from irl_exp.analysis.study import NotComputed, Study

CELLS = (
    "[unbounded,all_weights_slowly,few_pairs]",
    "[all_weights_slowly,few_pairs]",
    "[all_weights,few_pairs]",
    "[none]",
)
AT_0 = (0.3, 0.8, 0.55)
SET = {
    CELLS[0]: (0.70, 0.74, 0.78),
    CELLS[1]: (0.7, 0.72, 0.71),
    CELLS[2]: (0.8, 0.82, 0.84),
    CELLS[3]: (0.9, 0.9, 0.9),
}


def chain(folder: Path) -> Study:
    """Four cells of three runs; AUROC is the accuracy without R* and 0.05, and among the reference's 0.1 below it."""
    jobs = []
    for cell, accuracies in SET.items():
        for seed, value in enumerate(accuracies):
            metrics = {AT_ZERO: AT_0[seed], UNSUPERVISED: value, MAJORITY: 0.6, AUTHOR: 0.66}
            metrics |= {POOLED: value + 0.05, WITHIN: value - 0.05}
            jobs.append((f"irl/published={cell},irl.seed={seed}", {}, metrics))
    return write(folder, jobs)


def test_each_step_is_named_by_what_is_taken_back(tmp_path: Path) -> None:
    found = published.steps(chain(tmp_path))
    changes = published.CHANGES
    assert [step.name for step in found] == [
        RECIPE,
        THRESHOLD,
        changes["unbounded"],
        changes["all_weights_slowly"],
        f"{changes['all_weights']}, {changes['few_pairs']}",
    ]
    assert found[0].runs == found[1].runs, "the threshold changes no reward"
    assert [found[step].values(found[step].accuracy) for step in (0, 1, 4)] == [
        list(AT_0),
        list(SET[CELLS[0]]),
        [0.9] * 3,
    ]


def test_the_table_has_mean_and_sd_of_each_step(tmp_path: Path) -> None:
    table = published.table(chain(tmp_path)).set_index(["step", "measure"])
    for step, accuracies in (
        (RECIPE, AT_0),
        (THRESHOLD, SET[CELLS[0]]),
        (published.CHANGES["unbounded"], SET[CELLS[1]]),
    ):
        row = table.loc[step, "accuracy"]
        assert (row["n"], row["min"], row["max"]) == (3, min(accuracies), max(accuracies))
        assert row[["mean", "sd"]].tolist() == pytest.approx([np.mean(accuracies), np.std(accuracies, ddof=1)])
    assert table.loc[(RECIPE, "AUROC"), "mean"] == pytest.approx(0.79)
    assert table.loc[(RECIPE, "AUROC, reference alone"), "mean"] == pytest.approx(0.69)


def test_the_paragraph_says_which_step_takes_the_spread_away(tmp_path: Path) -> None:
    found = summary.summarise(chain(tmp_path))
    text = published.text(found.data["published"])
    assert text.startswith("3 runs of the paper's recipe")
    assert "accuracy 55.0 ± 25.0 % (30.0 to 80.0 %), AUROC 0.790 ± 0.040 (0.750 to 0.830)" in text
    assert "always the more frequent answer gives accuracy 60.0 % and knowing who wrote a text" in text
    assert "gives AUROC 0.660." in text
    fallen = "of AUROC from 0.040 to 0.010 and of AUROC, reference alone from 0.040 to 0.010"
    assert f"with '{THRESHOLD}' (of accuracy from 25.0 points to 4.0 points) and with 'norm bound' ({fallen})." in text
    left = (
        "accuracy 90.0 ± 0.0 % (90.0 to 90.0 %), AUROC 0.950 ± 0.000 (0.950 to 0.950) and AUROC, reference alone 0.850"
    )
    assert f"there is left {left} ± 0.000 (0.850 to 0.850)." in text


def test_one_run_a_step_has_no_spread(tmp_path: Path) -> None:
    jobs = [(f"irl/published={cell}", {}, {AT_ZERO: 0.5, UNSUPERVISED: 0.6, POOLED: 0.7}) for cell in CELLS]
    text = published.text(summary.summarise(write(tmp_path, jobs)).data["published"])
    assert "±" not in text.replace("mean ± sd", "")
    assert "falls most" not in text


@pytest.mark.parametrize("names", [["irl.seed=0", "irl.seed=1"], ["irl/loss=hinge", "irl/loss=squared"]])
def test_other_studies_are_no_steps(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(NotComputed, match="irl/published alone"):
        published.table(write(tmp_path, [(name, {}, {POOLED: 0.8}) for name in names]))


def test_every_run_is_a_point_and_the_line_is_one_sd(tmp_path: Path) -> None:
    study = chain(tmp_path)
    with drawing.style():
        figure = drawn(figures.steps(study))
    accuracy, pooled, within = figure.axes
    first = points(accuracy, 14)[:3]
    assert sorted(first[:, 0]) == sorted(AT_0)
    assert [x for x, _ in marks(accuracy)] == pytest.approx([0.55, 0.74, 0.71, 0.82, 0.9])
    (line, *_) = [line for line in accuracy.lines if line.get_linewidth() == 1.6]
    assert line.get_xdata() == pytest.approx([0.3, 0.8])
    assert [x for x, _ in marks(within)] == pytest.approx([x - 0.1 for x, _ in marks(pooled)])
    assert "0.550\n± 0.250" in words(figure)
    levels = [next(line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--") for axes in figure.axes]
    assert levels == pytest.approx([0.6, 0.66, 0.5])
    assert "who wrote it 0.660" in words(figure)
    assert [tick.get_text() for tick in accuracy.get_yticklabels()][:2] == [RECIPE, f"+ {THRESHOLD}"]

"""What the threshold does, and the best among all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from small_figures import (
    made,
    make,
    points,
    several,
    words,
)
from small_study import Made

from irl_exp.analysis import statistics


@pytest.mark.parametrize("count", [5, 15])
def test_the_best_is_ringed_among_all(tmp_path: Path, count: int) -> None:
    runs = several(count)
    runs[1] = dataclasses.replace(runs[1], metrics={"irl/accuracy": 0.99, "irl/f1": 0.2})
    figure = make("best_and_all", made(tmp_path, runs))
    zero, f1_zero, _, _, calibrated, f1_calibrated = figure.axes
    values = [run.accuracy[-1] for run in runs]
    assert sorted(points(zero, 14)[:, 0]) == pytest.approx(sorted(values))
    assert points(zero, 70)[:, 0] == pytest.approx([max(values)])
    assert points(f1_zero, 70)[:, 0] == pytest.approx([max(values) - 0.1])
    assert points(calibrated, 70)[:, 0] == pytest.approx([0.99])
    assert points(f1_calibrated, 70)[:, 0] == pytest.approx([0.2]), "the ring of F1 is that of the accuracy"
    typical = statistics.typical(values)
    (diamond,) = [line for line in zero.lines if line.get_marker() == "D"]
    assert diamond.get_xdata() == pytest.approx([typical.value])
    told = words(figure)
    assert f"{typical.value:.3f} [{typical.low:.3f}, {typical.high:.3f}]\nbest {max(values):.3f}" in told
    assert f"best of {count}, chosen on the same texts: no result" in told
    assert "majority class 0.650" in told
    assert f"all called 'toxic' {2 * 0.35 / 1.35:.3f}" in told
    for axes, level in ((zero, 0.65), (f1_zero, 0.7 / 1.35)):
        (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed.get_xdata() == pytest.approx([level, level])
        assert axes.get_xlim()[0] < level < axes.get_xlim()[1]


def test_the_best_of_one_is_no_best(tmp_path: Path) -> None:
    assert "best of" not in words(make("best_and_all", made(tmp_path, [Made()])))


def test_a_metric_that_is_not_defined_is_named(tmp_path: Path) -> None:
    run = Made(metrics={"irl/f1": None})
    assert "not defined" in words(make("best_and_all", made(tmp_path, [run])))


def test_threshold_joins_the_accuracies_of_a_reward(tmp_path: Path) -> None:
    runs = several(3)
    figure = make("threshold", made(tmp_path, runs))
    (axes,) = figure.axes
    values = np.array([run.accuracy[-1] for run in runs])
    marks = points(axes, 18).reshape(3, 3, 2)  # rule, reward, (AUROC, accuracy)
    for mark, more in zip(marks, (0, 0.01, 0.05), strict=True):
        assert mark == pytest.approx(np.column_stack([values + 0.1, values + more]))
    (lines,) = [item for item in axes.collections if isinstance(item, LineCollection)]
    assert np.array(lines.get_segments())[:, :, 1] == pytest.approx(np.column_stack([values, values + 0.05]))

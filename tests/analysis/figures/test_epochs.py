"""The learned reward over the epochs of IRL: every run, its mean, its band."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from scipy import stats
from small_figures import (
    cells,
    made,
    make,
    panel,
    several,
    words,
)
from small_study import Made

from irl_exp.analysis.figures import (
    drawing,
)


@pytest.mark.parametrize("count", [5, 12])
def test_every_run_its_mean_and_the_band_over_epochs(tmp_path: Path, count: int) -> None:
    runs = several(count)
    figure = make("over_epochs", made(tmp_path, runs))
    for title, more in (("accuracy, threshold 0", 0.0), ("AUROC", 0.1), ("Kendall", -0.2)):
        axes, expected = panel(figure, title), np.array([run.accuracy for run in runs]) + more
        (lines,) = [item for item in axes.collections if isinstance(item, LineCollection)]
        assert np.array(lines.get_segments())[:, :, 1] == pytest.approx(expected)
        mean = axes.lines[0]
        assert mean.get_xdata() == pytest.approx([1, 2, 3])
        assert mean.get_ydata() == pytest.approx(expected.mean(axis=0))
        (band,) = [item for item in axes.collections if not isinstance(item, LineCollection)]
        edges = [band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()]
        if count == 12:
            low, high = np.quantile(expected, [0.025, 0.975], axis=0)
        else:
            half = stats.t.ppf(0.975, 4) * expected.std(axis=0, ddof=1) / np.sqrt(5)
            low, high = expected.mean(axis=0) - half, expected.mean(axis=0) + half
        assert edges == pytest.approx([low.min(), high.max()])
    told = words(figure)
    assert f"{count} learned rewards" in told
    assert ("middle 95 % of the runs" if count == 12 else "t interval of the mean") in told
    assert "majority class 0.650" in told
    assert "log ratio 0.900" in told


def test_runs_that_share_a_reward_are_one_line(tmp_path: Path) -> None:
    runs = [Made(seed=seed, artifacts={"irl": "one"}) for seed in range(4)]
    figure = make("over_epochs", made(tmp_path, runs))
    (lines,) = [item for item in panel(figure, "AUROC").collections if isinstance(item, LineCollection)]
    assert len(lines.get_segments()) == 1
    assert "1 learned reward" in words(figure)


def test_a_few_cells_have_a_colour_each(tmp_path: Path) -> None:
    found = made(tmp_path, cells(3))
    axes = panel(figure := make("over_epochs", found), "AUROC")
    means = axes.lines[:3]
    assert len({line.get_color() for line in means}) == 3
    assert [line.get_ydata()[-1] for line in means] == pytest.approx([0.7025, 0.7125, 0.7225])
    assert "loss=loss_1, learning_rate=0.14286 (n = 2)" in words(figure).replace("\n", " ")


def test_many_cells_have_a_panel_each(tmp_path: Path) -> None:
    figure = make("over_epochs", made(tmp_path, cells(8)))
    titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titled) == 8
    last = {line.get_color(): line.get_ydata()[-1] for line in titled[7].lines}
    assert last["black"] == pytest.approx(0.6 + 14.5 / 200 - 0.2)
    assert last[drawing.BLUE] == pytest.approx(0.6 + 14.5 / 200)

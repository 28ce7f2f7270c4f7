"""Figures of the policies that learned rewards make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from small_figures import (
    Job,
    clouds,
    full,
    launch,
    make,
    marks,
    points,
    ways,
    words,
    write,
)

from irl_exp.analysis.figures import (
    policies,
)


def test_frontier_shows_all_policies(tmp_path: Path) -> None:
    study = launch(tmp_path, 3, 2, completions=False)
    figure = make("frontier", study)
    whole, near, below = figure.axes
    runs = [(run.metrics["refinetuned/kl"], run.metrics["refinetuned/reward_mean"]) for run in study.runs]
    np.testing.assert_allclose(points(whole), [*runs, (0.0, -0.1), (2.0, 2.8)])
    np.testing.assert_allclose(points(near), [*runs, (2.0, 2.8)])
    matched = [study.values("equal_kl/difference", cell) for cell in study.cells]
    np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(below)], matched)
    assert [x for x, _ in marks(below)] == pytest.approx([np.mean(values) for values in matched])
    assert any(set(line.get_xdata()) == {0.0} for line in below.lines), "as much R* for its KL as R* itself buys"


def test_the_ways_of_all_policies_are_drawn_and_a_shared_expert_once(tmp_path: Path) -> None:
    (axes,) = make("equal_kl", launch(tmp_path, 2, 2, completions=False)).axes
    drawn = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 4]
    assert len(drawn) == 1 + 4
    np.testing.assert_allclose(drawn[0], ways(0).loc[:3, ["kl", "truth"]])
    for number, line in enumerate(drawn[1:]):
        np.testing.assert_allclose(line, ways(number).loc[4:, ["kl", "truth"]])


def test_paradox_gives_the_correlations(tmp_path: Path) -> None:
    study = launch(tmp_path, 5, 3, completions=False)
    parts = make("paradox", study).axes
    frame = study.metrics
    for axes, (policy, reward) in zip(
        parts, [(y, x) for y in policies.POLICY_SIDE for x in policies.REWARD_SIDE], strict=True
    ):
        np.testing.assert_allclose(points(axes), frame[[reward, policy]].to_numpy())
        over_runs = stats.spearmanr(frame[reward], frame[policy]).statistic
        means = frame.groupby("cell", sort=False)[[reward, policy]].mean()
        over_cells = stats.spearmanr(means[reward], means[policy]).statistic
        first, second = axes.get_title(loc="left").split("\n")
        assert first.startswith(f"Spearman over 15 runs: {over_runs:.2f} [")
        assert second.startswith(f"Spearman over 5 means of cells: {over_cells:.2f}")
        crosses = np.array([line.get_xydata()[0] for line in axes.lines if line.get_marker() == "x"])
        np.testing.assert_allclose(crosses, means.to_numpy())


def test_paradox_says_where_there_is_no_correlation(tmp_path: Path) -> None:
    jobs: list[Job] = [(f"irl.seed={n}", {}, {**full(n), "irl/auroc": 0.9}) for n in range(4)]
    assert "over 4 runs: no correlation, as all values are equal" in words(make("paradox", write(tmp_path, jobs)))

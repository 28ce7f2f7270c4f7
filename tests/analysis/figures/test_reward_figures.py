"""Figures of the learned reward against R*: what is drawn, against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from small_figures import (
    Job,
    clouds,
    intervals,
    judged,
    launch,
    make,
    marks,
    points,
    table,
    words,
    write,
)

from irl_exp.analysis import statistics
from irl_exp.analysis.figures import (
    drawing,
    panels,
    rewards,
)


def test_distribution_shows_every_run_and_the_number_of_the_tables(tmp_path: Path) -> None:
    """50 runs within 0.001: the panel magnifies them, the strip above has the whole scale."""
    aurocs = 0.951 + np.random.default_rng(1).uniform(0, 0.001, 50)
    study = write(tmp_path, [(f"irl.seed={n}", {}, judged(value, 0.259)) for n, value in enumerate(aurocs)])
    figure = make("distribution", study)
    whole, zoom, *_ = figure.axes
    np.testing.assert_allclose(points(zoom)[:, 0], aurocs)
    found = statistics.typical(list(aurocs))
    assert marks(zoom) == [(found.value, pytest.approx(0.2))]
    assert intervals(zoom) == [(found.low, found.high)]
    low, high = zoom.get_xlim()
    assert low < 0.95 < aurocs.min()  # the implicit reward is in the picture
    assert high - low < 0.004
    assert np.ptp(points(zoom)[:, 1]) > 0.2  # piled up, not one upon the other
    assert whole.get_xlim() == (0, 1)
    text = words(figure)
    assert f"{found.value:.5f} [{found.low:.5f}, {found.high:.5f}]\nn = 50" in text
    for expected in ("chance 0.5", "implicit 0.950", "unrelated 0.707", "50 runs"):
        assert expected in text


def test_placebo_is_grey(tmp_path: Path) -> None:
    jobs = [
        (f"irl={name},irl.seed={seed}", {"irl.name": name}, judged(auroc + seed / 100))
        for name, auroc in (("margin", 0.9), ("placebo", 0.5))
        for seed in range(3)
    ]
    zoom = make("distribution", write(tmp_path, jobs)).axes[1]
    colours = [tuple(one.get_facecolor()[0][:3]) for one in zoom.collections if isinstance(one, PathCollection)]
    assert colours == [to_rgb(drawing.ORANGE), to_rgb(drawing.GREY)]
    assert [tick.get_text() for tick in zoom.get_yticklabels()] == ["margin", "placebo"]
    assert zoom.get_xlim()[0] < 0.5 < 0.95 < zoom.get_xlim()[1]  # chance and ceiling


def test_a_single_run_has_no_interval(tmp_path: Path) -> None:
    figure = make("distribution", write(tmp_path, [("irl.seed=0", {}, judged(0.93))]))
    assert intervals(figure.axes[1]) == []
    assert "0.930\nn = 1" in words(figure)


def test_a_constant_reward_has_an_auroc_and_no_distance(tmp_path: Path) -> None:
    constant = {key: value for key, value in judged(0.5).items() if key != "irl/epic"}
    jobs = [("irl=majority", {}, constant), ("irl=margin", {}, judged(0.9))]
    figure = make("distribution", write(tmp_path, jobs))
    np.testing.assert_allclose(points(figure.axes[1])[:, 0], [0.5, 0.9])
    np.testing.assert_allclose(points(figure.axes[3])[:, 0], [0.3])
    assert words(figure).count("not defined:\nconstant reward") == 1


def test_the_median_run_is_shown_never_the_best(tmp_path: Path) -> None:
    aurocs = (0.99, 0.8, 0.9, 0.91)
    jobs: list[Job] = [(f"irl.seed={n}", {}, judged(value)) for n, value in enumerate(aurocs)]
    study = write(tmp_path, jobs, {2: table(2, refinetuned=True)})
    assert rewards.median_run(study).number == 2
    figure = make("learned_against_truth", study)
    left, right = figure.axes
    assert "Run 2, the median of 4 runs:\nAUROC 0.900, n = 36" in words(figure)
    shown = table(2, refinetuned=True)
    order = np.lexsort(points(left).T[::-1])
    expected = shown[["truth", "learned"]].to_numpy()
    np.testing.assert_allclose(points(left)[order], expected[np.lexsort(expected.T[::-1])])
    assert panels.POLICIES == {"reference": drawing.GREY, "expert": drawing.BLUE, "refinetuned": drawing.ORANGE}
    colour = {tuple(at): tuple(face[:3]) for at, face in zip(points(left), faces(left), strict=True)}
    for row in shown.itertuples():
        assert colour[row.truth, row.learned] == to_rgb(panels.POLICIES[str(row.policy)])
    # sd over the four runs of the standardised rewards, n - 1
    scores = np.array([table(n, refinetuned=n == 2)["learned"][:36] for n in range(4)])
    scores = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(points(right)[:, 1]), np.sort(scores.std(axis=0, ddof=1)))
    assert f"median sd {np.median(scores.std(axis=0, ddof=1)):.3f}" in words(figure)


def faces(axes: Axes) -> Any:
    (cloud,) = [one for one in axes.collections if isinstance(one, PathCollection) and len(one.get_offsets())]
    return cloud.get_facecolor()


def test_of_two_runs_there_is_no_spread(tmp_path: Path) -> None:
    jobs: list[Job] = [(f"irl.seed={n}", {}, judged(0.9)) for n in range(2)]
    assert len(make("learned_against_truth", write(tmp_path, jobs, {})).axes) == 1


def test_uncertainty_stands_beside_what_needs_no_reward(tmp_path: Path) -> None:
    study = launch(tmp_path, 2, 2, completions=False)
    figure = make("uncertainty", study)
    for axes, name in zip(figure.axes, rewards.SIGNALS, strict=True):
        expected = [study.values(f"uncertainty/{name}_auroc", cell) for cell in study.cells]
        np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(axes)], expected)
        assert [0.5, 0.5] in [list(line.get_xdata()) for line in axes.lines]
    errors = study.values("uncertainty/n_errors")
    assert f"{min(errors):.0f} to {max(errors):.0f} errors a run" in words(figure)

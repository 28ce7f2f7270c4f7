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
from irl_exp.analysis.study import Study


def test_distribution_shows_every_run_and_the_number_of_the_tables(tmp_path: Path) -> None:
    """50 runs within 0.001: the panel magnifies them, the strip above has the whole scale."""
    aurocs = 0.951 + np.random.default_rng(1).uniform(0, 0.001, 50)
    study = write(tmp_path, [(f"irl.seed={n}", {}, judged(value, 0.259)) for n, value in enumerate(aurocs)])
    figure = make("distribution", study)
    whole, zoom, epic, _ = figure.axes
    np.testing.assert_allclose(points(zoom)[:, 0], aurocs)
    found = statistics.typical(list(aurocs))
    for axes in (whole, zoom):
        assert marks(axes) == [(found.value, pytest.approx(0.38))]
        assert intervals(axes) == [(found.low, found.high)]
    np.testing.assert_allclose(points(whole)[:, 0], aurocs)
    low, high = zoom.get_xlim()
    assert low < 0.95 < aurocs.min()  # the implicit reward is in the picture
    assert high - low < 0.004
    assert np.ptp(points(zoom)[:, 1]) > 0.2  # piled up, not one upon the other
    assert whole.get_xlim() == epic.get_xlim() == (0, 1)
    text = words(figure)
    assert f"{found.value:.5f} [{found.low:.5f}, {found.high:.5f}], n = 50" in text
    for expected in ("chance 0.5", "log ratio 0.950", "unrelated 0.707", "50 runs"):
        assert expected in text


def test_placebo_is_grey(tmp_path: Path) -> None:
    jobs = [
        (f"irl={name},irl.seed={seed}", {"irl.name": name}, judged(auroc + seed / 100))
        for name, auroc in (("margin", 0.9), ("placebo", 0.5))
        for seed in range(3)
    ]
    figure = make("distribution", write(tmp_path, jobs))
    whole = figure.axes[0]
    colours = [tuple(one.get_facecolor()[0][:3]) for one in whole.collections if isinstance(one, PathCollection)]
    assert colours == [to_rgb(drawing.ORANGE), to_rgb(drawing.GREY)]
    assert {"margin", "placebo"} <= set(words(figure).split("\n"))
    assert any("placebo" in told for told in figure.reading)


def test_a_single_run_has_no_interval(tmp_path: Path) -> None:
    figure = make("distribution", write(tmp_path, [("irl.seed=0", {}, judged(0.93))]))
    assert intervals(figure.axes[0]) == []
    assert "0.930, n = 1" in words(figure)


def test_an_interval_is_never_cut_by_its_axis(tmp_path: Path) -> None:
    """Five runs, one of them far off: their t interval is wider than they are."""
    aurocs = (0.9380, 0.9381, 0.9382, 0.9383, 0.9410)
    study = write(tmp_path, [(f"irl.seed={n}", {}, judged(value)) for n, value in enumerate(aurocs)])
    for axes in make("distribution", study).axes:
        low, high = axes.get_xlim()
        assert all(low <= bound <= high for ends in intervals(axes) for bound in ends)


def test_what_is_seen_on_the_whole_scale_is_not_magnified(tmp_path: Path) -> None:
    study = write(tmp_path, [(f"irl.seed={n}", {}, judged(0.5 + n / 20, 0.2 + n / 20)) for n in range(6)])
    figure = make("distribution", study)
    assert len(figure.axes) == 2
    assert not any("magnifies" in told for told in figure.reading)


def test_a_constant_reward_has_an_auroc_and_no_distance(tmp_path: Path) -> None:
    constant = {key: value for key, value in judged(0.5).items() if key != "irl/epic"}
    jobs = [("irl=majority", {}, constant), ("irl=margin", {}, judged(0.9))]
    figure = make("distribution", write(tmp_path, jobs))
    auroc, *_, epic = (axes for axes in figure.axes if axes.get_xlim() == (0, 1))
    np.testing.assert_allclose(points(auroc)[:, 0], [0.5, 0.9])
    np.testing.assert_allclose(points(epic)[:, 0], [0.3])
    assert words(figure).count("constant: not defined") == 1


def test_the_median_run_is_shown_never_the_best(tmp_path: Path) -> None:
    aurocs = (0.99, 0.8, 0.9, 0.91)
    jobs: list[Job] = [(f"irl.seed={n}", {}, judged(value)) for n, value in enumerate(aurocs)]
    study = write(tmp_path, jobs, {2: table(2, refinetuned=True)})
    assert rewards.median_run(study).number == 2
    figure = make("learned_against_truth", study)
    left, right = figure.axes
    assert "Run 2, the median of 4 runs:\nAUROC 0.900, n = 18" in words(figure)
    shown = table(2, refinetuned=True)
    order = np.lexsort(points(left).T[::-1])
    expected = shown[["truth", "learned"]].to_numpy()
    np.testing.assert_allclose(points(left)[order], expected[np.lexsort(expected.T[::-1])])
    assert panels.POLICIES == {"reference": drawing.GREY, "expert": drawing.BLUE, "refinetuned": drawing.ORANGE}
    colour = {tuple(at): tuple(face[:3]) for at, face in zip(points(left), faces(left), strict=True)}
    for row in shown.itertuples():
        assert colour[row.truth, row.learned] == to_rgb(panels.POLICIES[str(row.policy)])
    # sd over the four runs of the standardised rewards, n - 1
    own = np.asarray(shown["policy"][:36] == "reference")
    scores = np.array([table(n, refinetuned=n == 2)["learned"][:36][own] for n in range(4)])
    scores = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(points(right)[:, 1]), np.sort(scores.std(axis=0, ddof=1)))
    assert f"median sd {np.median(scores.std(axis=0, ddof=1)):.3f}" in words(figure)


def faces(axes: Axes) -> Any:
    (cloud,) = [one for one in axes.collections if isinstance(one, PathCollection) and len(one.get_offsets())]
    return cloud.get_facecolor()


def test_of_two_runs_there_is_no_spread(tmp_path: Path) -> None:
    jobs: list[Job] = [(f"irl.seed={n}", {}, judged(0.9)) for n in range(2)]
    figure = make("learned_against_truth", write(tmp_path, jobs, {}))
    assert len(figure.axes) == 1
    assert figure.reading == []  # nothing is said of the panel that is not there


def methods(folder: Path, *names: str) -> Study:
    jobs = [(f"irl={name}", {"irl.name": name}, judged(0.9 + place / 100)) for place, name in enumerate(names)]
    return write(folder, jobs, {})


def test_a_reward_that_is_called_learned_was_learned(tmp_path: Path) -> None:
    """The log ratio is the median of the three; of the runs that learned, the lower one is shown."""
    study = methods(tmp_path, "margin", "implicit", "bayesian")
    assert rewards.median_run(study).config["irl.name"] == "margin"
    assert make("learned_against_truth", study).axes[0].get_ylabel().startswith("learned reward")


def test_where_no_run_learned_a_reward_the_figure_says_whose_it_shows(tmp_path: Path) -> None:
    figure = make("learned_against_truth", methods(tmp_path, "implicit", "majority"))
    assert figure.axes[0].get_ylabel().startswith("reward of irl=implicit")
    assert "No run learned a reward" in figure.reading[0]


def test_uncertainty_stands_beside_what_needs_no_reward(tmp_path: Path) -> None:
    study = launch(tmp_path, 2, 2, completions=False)
    figure = make("uncertainty", study)
    for axes, name in zip(figure.axes, rewards.SIGNALS, strict=True):
        expected = [study.values(f"uncertainty/{name}_auroc", cell) for cell in study.cells]
        np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(axes)], expected)
        assert [0.5, 0.5] in [list(line.get_xdata()) for line in axes.lines]
    errors = study.values("uncertainty/n_errors")
    assert f"{min(errors):.0f} to {max(errors):.0f} errors a run" in words(figure)

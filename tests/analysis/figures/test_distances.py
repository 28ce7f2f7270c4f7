"""Distances between rewards, against those of the mathematics room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_figures import (
    Job,
    clouds,
    intervals,
    judged,
    launch,
    make,
    marks,
    table,
    words,
    write,
)

from irl_exp.analysis import statistics
from irl_exp.analysis.figures import (
    distances,
)
from irl_exp.measures import reward_comparison as compare


def test_distances_are_those_of_reward_comparison(tmp_path: Path) -> None:
    """Ordered by cell, then by seed, whatever the launch did; a constant reward has no distance."""
    jobs = [
        (f"irl={name},irl.seed={seed}", {"irl.name": name}, judged(0.9))
        for seed in (2, 0)
        for name in ("margin", "bayesian")
    ]
    jobs.append(("irl=majority,irl.seed=0", {"irl.name": "majority"}, judged(0.5)))
    study = write(tmp_path, jobs, {4: table(4, constant=True)})
    names, matrix = distances.distances(study)
    assert names == ["R*", "implicit", "2", "0", "3", "1"]
    own = table(0)[table(0)["policy"] == "reference"]
    learned = (table(int(name)).loc[own.index, "learned"] for name in names[2:])
    rewards, groups = [own["truth"], own["implicit"], *learned], own["prompt_id"].to_numpy()
    for i, one in enumerate(rewards):
        for j, other in enumerate(rewards):
            assert matrix[i, j] == pytest.approx(compare.epic(one.to_numpy(), other.to_numpy(), groups), abs=1e-12)


def test_columns_are_read_alone(tmp_path: Path) -> None:
    """What is not asked for is not read, and what the file does not have is not there."""
    study = launch(tmp_path, 1, 1)
    found = study.completions(study.runs[0], ["truth", "policy", "second"])
    assert found is not None
    pd.testing.assert_frame_equal(found, table(0)[["truth", "policy"]], check_like=True)
    whole = study.completions(study.runs[0])
    assert whole is not None
    pd.testing.assert_frame_equal(whole, table(0))


def test_distance_matrix_is_drawn_in_that_order(tmp_path: Path) -> None:
    study = launch(tmp_path, 2, 3)
    names, matrix = distances.distances(study)
    figure = make("distance_matrix", study)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.images[0].get_array(), matrix)
    assert [tick.get_text() for tick in left.get_yticklabels()][:2] == ["R*", "log ratio"]
    lines = {str(line.get_label()).split(":")[0]: line for line in right.lines}
    assert len(names) == 8
    within = sorted([*matrix[2:5, 2:5][np.triu_indices(3, 1)], *matrix[5:, 5:][np.triu_indices(3, 1)]])
    np.testing.assert_allclose(lines["run to run, one cell"].get_xdata()[1:], within)
    np.testing.assert_allclose(lines["run to run, one cell"].get_ydata(), np.linspace(0, 1, 7))
    np.testing.assert_allclose(lines["run to run, two cells"].get_xdata()[1:], np.sort(matrix[2:5, 5:].ravel()))
    np.testing.assert_allclose(lines["run to R*"].get_xdata()[1:], np.sort(matrix[0, 2:]))
    assert f"run to R*: median {np.median(matrix[0, 2:]):.3f}, n = 6" in words(figure)


def test_r_star_is_seen_beside_many_runs(tmp_path: Path) -> None:
    """130 runs: R* and implicit have three rows each."""
    jobs: list[Job] = [(f"irl.seed={seed}", {}, judged(0.9)) for seed in range(130)]
    study = write(tmp_path, jobs, {})
    _, matrix = distances.distances(study)
    image = make("distance_matrix", study).axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (136, 136)
    np.testing.assert_array_equal(image[:3, 6:], np.tile(matrix[0, 2:], (3, 1)))


def test_triangle_has_the_sides_of_every_run(tmp_path: Path) -> None:
    study = launch(tmp_path, 2, 5, completions=False)
    parts = make("triangle", study).axes
    for axes, side in zip(parts, distances.SIDES, strict=True):
        keys = [(cell, f"{name}/{side}/epic") for cell in study.cells for name in distances.COVERAGES]
        expected = [study.values(key, cell) for cell, key in keys]
        np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(axes)], expected)
        assert [x for x, _ in marks(axes)] == pytest.approx([statistics.typical(values).value for values in expected])
        np.testing.assert_allclose(intervals(axes), [(e.low, e.high) for e in map(statistics.typical, expected)])
    assert parts[0].get_xlim()[0] == 0

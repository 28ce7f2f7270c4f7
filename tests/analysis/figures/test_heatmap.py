"""Accuracy over epochs as an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_figures import (
    cells,
    made,
    make,
    several,
    words,
)


def test_heatmap_rows_are_sorted_by_seed(tmp_path: Path) -> None:
    runs = several(4)
    figure = make("accuracy_heatmap", made(tmp_path, [runs[place] for place in (2, 0, 3, 1)]))
    (image,) = figure.axes[0].images
    assert np.asarray(image.get_array()) == pytest.approx(np.array([run.accuracy for run in runs]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2", "3"]
    low, high = image.get_clim()
    assert low <= 0.65 <= high
    assert "majority class 0.650" in words(figure)


def test_heatmap_of_many_runs_thins_its_labels(tmp_path: Path) -> None:
    figure = make("accuracy_heatmap", made(tmp_path, several(100)))
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (100, 3)
    assert 4 <= len(figure.axes[0].get_yticklabels()) <= 40


def test_heatmap_of_many_cells_stacks_them(tmp_path: Path) -> None:
    runs = cells(8)
    runs[3].accuracy = (0.5, 0.6)  # stopped an epoch before
    figure = make("accuracy_heatmap", made(tmp_path, runs))
    values = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert values.shape == (16, 3)
    assert values[:, 1] == pytest.approx([0.6] * 16)
    assert np.argwhere(np.isnan(values)).tolist() == [[3, 2]]
    assert len(figure.axes[0].get_yticklabels()) == 8

"""Paired differences and variance components as they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_figures import (
    drawn,
    launch,
    marks,
)

from irl_exp.analysis import cell_names
from irl_exp.analysis.figures import (
    spread,
)


def test_differences_by_seed_and_sources_have_the_short_names(tmp_path: Path) -> None:
    study = launch(tmp_path, 3, 4, completions=False)
    first, *others = study.cells
    by_hand = {cell: np.subtract(study.values("irl/auroc", cell), study.values("irl/auroc", first)) for cell in others}
    rows = [
        {
            "metric": "irl/auroc",
            "first": first,
            "second": cell,
            "n": 4,
            "difference": -found.mean(),
            "low": 0,
            "high": 1,
        }
        for cell, found in by_hand.items()
    ]
    names = list(cell_names.labels(study).values())
    (axes,) = drawn(spread.paired_differences(study, pd.DataFrame(rows))).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names[1:]
    assert [x for x, _ in marks(axes)] == pytest.approx([found.mean() for found in by_hand.values()])
    seeds = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(seeds, list(by_hand.values()))
    sources = [
        {"cell": cell, "metric": "irl/auroc", "source": source, "variance": 4.0, "low": 1.0, "high": 9.0}
        for cell in study.cells
        for source in ("seed", "irl.seed")
    ]
    (axes,) = drawn(spread.variance_components(study, pd.DataFrame(sources))).axes
    expected = [f"{name}:\n{source}" for name in names for source in ("seed", "irl.seed")]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == expected
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == [2.0] * 6

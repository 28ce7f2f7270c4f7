"""Intervals that are printed as 95 % hold the truth 93 times in 100 at least, and are not twice as wide as need be.

The designs are those of benchmarks/coverage.py, which also writes the table of docs/metrics.md.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def _benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", ROOT / "benchmarks" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


coverage = _benchmark()
DESIGNS = list(coverage.designs())


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: f"{design.number}, {design.unit}")
def test_what_is_printed_as_95_percent_covers_and_is_narrow(design: Any) -> None:
    found = coverage.measure(design)
    if not design.printed:  # what was printed before: these simulations do tell
        assert found.coverage < 0.7
        return
    assert found.trials >= 0.95 * design.trials
    assert found.coverage >= 0.93
    assert found.width <= 2


def test_the_table_of_the_documentation_is_of_these_designs_and_covers() -> None:
    """As it was written: --write puts measured numbers there."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = page.partition(coverage.BEGIN)[2].partition(coverage.END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    wanted = [(d.number if d.printed else f"{d.number} (not printed)", d.unit) for d in DESIGNS]
    assert set(wanted) >= {(number, unit) for number, unit, *_ in cells}
    assert len(cells) > 0.9 * len(wanted)
    for number, _, share, width, trials in cells:
        if "not printed" not in number:
            noise = 2 * (0.93 * 0.07 / float(trials.replace(",", ""))) ** 0.5  # two standard errors of the simulation
            assert float(share.rstrip("%")) / 100 + noise >= 0.93
            assert float(width) <= 2

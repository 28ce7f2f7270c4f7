"""The least and the greatest margin of each test pair over all consistent rewards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irl_exp.determined import programs, sides
from irl_exp.determined.problem import Floats, Level, Loss, Optimum, Pairs, Possible, check

Progress = Callable[[int, int], object]

OPTIMUM = 2e-3
"""L* is known to within this fraction of the tolerance; the rewards that this admits too many are counted in."""
BATCH = 256
"""How many sides go together."""


def possible_margins(
    differences: Floats,
    tests: Floats,
    loss: Loss,
    *,
    max_norm: float,
    tolerance: float,
    precision: float = 0.01,
    best: Optimum | None = None,
    progress: Progress = lambda done, total: None,
) -> Possible:
    """Least and greatest t . w over all rewards w within `tolerance` of the best loss and |w| <= max_norm.

    Args:
        differences: D (n, d) feature differences, expert minus baseline, of the contrast pairs that were fitted.
        tests: (m, d) feature differences of the pairs that are asked about.
        tolerance: above 0, in units of the loss.
        precision: `low` and `attained_low`, `high` and `attained_high` differ by at most this fraction of the distance
            of the bound from the optimum's margin, where the numbers allow.
        best: the optimum of these differences, if it is known; one that is too rough for the tolerance is found anew.
        progress: called with how many sides (two a test pair) are done, and of how many.
    """
    check(differences, max_norm=max_norm, tolerance=tolerance, precision=precision)
    if tests.ndim != 2 or tests.shape[1] != differences.shape[1] or not np.isfinite(tests).all():
        raise ValueError(
            f"tests must be finite (pairs, {differences.shape[1]}) as differences are, not {tests.shape} or with NaN."
        )
    if best is None or best.loss - best.lower > OPTIMUM * tolerance:
        best = programs.optimum(differences, loss, max_norm=max_norm, precision=OPTIMUM * tolerance)
    reduced, directions, centre = _reduce(differences, tests, best.weights / max_norm)
    level = Level(Pairs(reduced * max_norm, loss), centre, best.loss, tolerance)
    size = np.linalg.norm(directions, axis=1)
    some = np.repeat(size > 0, 2)
    towards = (directions / np.where(size, size, 1)[:, None])[:, None] * np.array([-1.0, 1.0])[:, None]
    ends = np.zeros((len(some), 2))
    ends[some] = _ends(level, towards.reshape(-1, directions.shape[1])[some], precision, progress)
    (low, attained_low), (high, attained_high) = (max_norm * size * ends[side::2].T for side in (0, 1))
    return Possible(-low, high, -attained_low, attained_high, best)


def _reduce(differences: Floats, tests: Floats, centre: Floats) -> tuple[Floats, Floats, Floats]:
    """The same programs in n + 1 coordinates where n + 1 < d: those of the row space, and one for what t has beside it.

    Nothing else of w enters D w, |w| and t . w.
    """
    count, features = differences.shape
    if count + 1 >= features:
        return differences, tests, centre
    basis, _ = np.linalg.qr(differences.T)
    inside = tests @ basis
    beside = np.linalg.norm(tests - inside @ basis.T, axis=1)
    rows = np.pad(differences @ basis, ((0, 0), (0, 1)))
    return rows, np.column_stack([inside, beside]), np.append(centre @ basis, 0.0)


def _ends(level: Level, towards: Floats, precision: float, progress: Progress) -> Floats:
    """(s, 2): of each direction of length one (s, d) the bound on towards . u over W, and what is attained."""
    done, total = 0, len(towards)
    found = np.empty((total, 2))
    for first in range(0, total, BATCH):
        rows, before = slice(first, first + BATCH), done
        for bound, attained, done in sides.together(level, towards[rows], precision):
            found[rows] = np.column_stack([bound, attained])
            progress(before + done, total)
        done += before
    bounds, reached = found.T
    for row in np.flatnonzero(~sides.is_close(bounds, reached, towards @ level.centre, precision)):
        alone = programs.furthest(level, towards[row], precision)
        found[row] = min(alone[0], bounds[row]), max(alone[1], reached[row])
        progress(done := done + 1, total)
    return found

"""The tolerance that the data ask for: how far the best reward would move if the prompts were drawn anew.

What tells rewards apart is the paired L(w) - L(best), not the error of L itself, which they share: the standard error
of L is far too large a tolerance. Here the margin t . w of a test pair is the question, one number, so W has to be wide
enough for that number and not for all of w at once. For a smooth loss W at the tolerance e has the half width
sqrt(2 e t' A^-1 t) for it (A the curvature on the ball), and a margin that is m off is held from the tolerance
m^2 / (2 t' A^-1 t) on. `calibrated` draws prompts with replacement, finds how far each draw moves the margins of the
best reward, and takes the tolerance that holds 95 % of these, over draws and test pairs. In the limit it is the
likelihood-ratio bound of one parameter, corrected for losses that are no likelihood and for prompts with several pairs
(White, Econometrica 50, 1982).

What is held is the margin of the population's optimum of the *same* problem: this loss, this bound on |w| and scaling
of the features by the population instead of the sample; not that of R*, nor of a fit without the bound. With the rows
that the scaling was made of (`Scaled`) its own error is counted in.

The move of a draw is linear in how often each prompt was drawn, times what leaving the prompt out does: one Newton step
for that prompt alone, exact for a quadratic loss, so that a prompt that pulls the optimum towards itself is not
mistaken for one that has little influence. On the sphere |w| = max_norm the step follows the surface.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import expit

from irl_exp.determined.problem import Floats, Loss, Optimum, check, gram

COVERAGE = 0.95
DRAWS = 400
"""Of the prompts, with replacement."""
SMOOTH = 0.3
"""A kink is smoothed to a temperature of this many root mean squares of the margins, to have a curvature."""
ON_THE_BALL = 0.99
"""From this fraction of max_norm on the bound is taken to hold the optimum."""


@dataclass(frozen=True)
class Scaled:
    """The rows that scaled the features: both completions of each fitted pair.

    Attributes:
        rows: (k, d) scaled features, centred.
        prompts: (k,) whose they are.
        whitened: scaled by their covariance; else each feature by its own variance.
        ridge: (k, d) what each row adds to (ridge * mean eigenvalue) times the best reward, or 0.
    """

    rows: Floats
    prompts: NDArray[np.int64]
    whitened: bool
    ridge: Floats | float = 0.0

    def metric(self, weights: Floats) -> Floats:
        """(k, d) S_i w, where the mean of S_i over the rows is the metric that |w| is measured in."""
        own = (self.rows @ weights)[:, None] * self.rows if self.whitened else self.rows**2 * weights
        return np.asarray(own + self.ridge)


@dataclass(frozen=True)
class Calibration:
    """The tolerance that holds 95 % of the margins of resampled best rewards.

    Attributes:
        tolerance: in units of the loss.
        margins: (draws, m) of the best rewards of the drawn prompts, to first order in the draw.
        half_width: (m,) of W at this tolerance, to second order in the move; `possible_margins` has it exactly.
        prompts: how many were drawn from.
    """

    tolerance: float
    margins: Floats
    half_width: Floats
    prompts: int


def calibrated(
    differences: Floats,
    tests: Floats,
    loss: Loss,
    *,
    max_norm: float,
    best: Optimum,
    prompts: NDArray[np.int64],
    scaled: Scaled | None = None,
    direction: bool = False,
    seed: int = 0,
) -> Calibration:
    """The tolerance at which W holds the population optimum's margin of a test pair 95 % of the time.

    Args:
        differences: D (n, d) feature differences of the fitted pairs.
        tests: (m, d) of the pairs that are asked about, m > 0.
        best: the optimum of these differences.
        prompts: (n,) of each fitted pair: drawn together. Two or more.
        scaled: what scaled the features; none: their scale is known.
        direction: the margin is asked for in units of the reward. Where the bound holds the optimum, the population's
            is then taken at the same |w|, and a margin along w needs no tolerance for the length of w.
    """
    check(differences, max_norm=max_norm)
    if len(np.unique(prompts)) < 2 or not len(tests):
        raise ValueError("a tolerance is calibrated on two prompts or more, for one test pair or more.")
    point = _Point.at(differences, loss, best.weights, max_norm)
    moves = _moves(point, prompts, scaled, direction=direction)
    times = np.random.default_rng(seed).multinomial(len(moves), np.full(len(moves), 1 / len(moves)), size=DRAWS)
    found = (times - 1) @ moves
    drawn = point.weights + found if direction else point.moved(found)
    margins, spread = drawn @ tests.T, point.spread(tests)
    needed = (margins - tests @ best.weights) ** 2 / np.where(spread > 0, 2 * spread, np.inf)
    tolerance = float(np.quantile(needed[:, spread > 0], COVERAGE)) if (spread > 0).any() else 0.0
    return Calibration(tolerance, margins, np.sqrt(2 * tolerance * spread), len(moves))


@dataclass(frozen=True)
class _Point:
    """The problem at its optimum w, to second order.

    Attributes:
        differences: (n, d).
        slopes: (n,) of the loss by the margin.
        curvature: (n,) of the smoothed loss.
        weights: (d,) w.
        price: of the bound: L falls by price |w|^2 for a bound that is larger by one part in one; 0 inside the ball.
        factor: of the curvature of L with the bound, (d, d).
    """

    differences: Floats
    slopes: Floats
    curvature: Floats
    weights: Floats
    price: float
    factor: tuple[Floats, bool]

    @classmethod
    def at(cls, differences: Floats, loss: Loss, weights: Floats, max_norm: float) -> _Point:
        margins = differences @ weights
        size = float(np.sqrt((margins**2).mean())) or 1.0
        warm = max(SMOOTH * size, loss.temperature)
        smooth, short = expit((loss.target - margins) / warm), loss.target - margins
        shares = expit(short / loss.temperature) if loss.temperature else (short > 0).astype(np.float64)
        slopes = -(loss.slope + loss.weight * shares)
        curvature = loss.weight / warm * smooth * (1 - smooth)
        norm, price = float(np.linalg.norm(weights)), 0.0
        if norm >= ON_THE_BALL * max_norm:
            price = max(-float(slopes @ margins) / len(margins) / norm**2, 0.0)
        matrix = gram(differences, curvature / len(differences))
        # What no pair has a curvature for is held by the bound; inside the ball next to nothing holds it.
        matrix[np.diag_indices_from(matrix)] += price + 1e-8 * float(np.trace(matrix)) / len(matrix) + 1e-300
        return cls(differences, slopes, curvature, weights, price, linalg.cho_factor(matrix, check_finite=False))

    def solve(self, rows: Floats) -> Floats:
        """(k, d) rows times the inverse of the curvature."""
        return np.asarray(linalg.cho_solve(self.factor, rows.T, check_finite=False).T)

    def spread(self, tests: Floats) -> Floats:
        """(m,) t' A^-1 t, on the surface where the bound holds the optimum."""
        found = (tests * self.solve(tests)).sum(axis=1)
        if self.price:
            across = self.solve(self.weights[None])[0]
            found = found - (tests @ across) ** 2 / (self.weights @ across)
        return np.asarray(np.maximum(found, 0))

    def moved(self, moves: Floats) -> Floats:
        """(k, d) rewards: w + move, brought back to the surface, whose radius is that of the move along w."""
        if not self.price:
            return self.weights + moves
        norm = np.linalg.norm(self.weights)
        radius = norm + moves @ self.weights / norm
        found = self.weights + moves
        return np.asarray(found * (radius / np.linalg.norm(found, axis=1))[:, None])


def _moves(point: _Point, prompts: NDArray[np.int64], scaled: Scaled | None, *, direction: bool) -> Floats:
    """(prompts, d) how far each prompt pulls the optimum: what adding it once more does, to first order."""
    count = len(point.differences)
    pull = _sums(point.slopes[:, None] * point.differences / count, prompts)
    holds = [(point.differences * np.sqrt(point.curvature / count)[:, None], prompts)]
    longer = np.zeros(len(pull))
    if scaled is not None and point.price:
        metric = _sums(scaled.metric(point.weights) / len(scaled.rows), scaled.prompts)
        pull = pull + point.price * metric
        longer = longer if direction else metric @ point.weights  # of w'Sw, the square of its norm
        if scaled.whitened:
            holds.append((scaled.rows * np.sqrt(point.price / len(scaled.rows)), scaled.prompts))
    pull, longer = pull - pull.mean(axis=0), longer - longer.mean()
    moves = -_left_out(point, pull, holds)
    if point.price:
        across = point.solve(point.weights[None])[0]
        moves += np.outer((-longer / 2 - moves @ point.weights) / (point.weights @ across), across)
    return moves


def _left_out(point: _Point, pull: Floats, holds: list[tuple[Floats, NDArray[np.int64]]]) -> Floats:
    """(prompts, d) (A - R'R)^-1 pull of each prompt, R its rows of the curvature A (Sherman, Morrison, Woodbury)."""
    moves = point.solve(pull)
    groups = [list(_groups(prompts)) for _, prompts in holds]
    for prompt, parts in enumerate(zip(*groups, strict=True)):
        rows = np.concatenate([held[part] for (held, _), part in zip(holds, parts, strict=True)])
        back = point.solve(rows)
        inner = (1 + 1e-9) * np.eye(len(rows)) - rows @ back.T  # a prompt may be all that holds a direction
        moves[prompt] += back.T @ linalg.solve(inner, rows @ moves[prompt], assume_a="pos", check_finite=False)
    return moves


def _groups(prompts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows of each prompt, prompts in ascending order."""
    _, prompt = np.unique(prompts, return_inverse=True)
    yield from np.split(np.argsort(prompt, kind="stable"), np.cumsum(np.bincount(prompt))[:-1])


def _sums(rows: Floats, prompts: NDArray[np.int64]) -> Floats:
    """(prompts, d) sums over the rows of each prompt, prompts in ascending order."""
    order = np.argsort(prompts, kind="stable")
    _, first = np.unique(prompts[order], return_index=True)
    return np.asarray(np.add.reduceat(rows[order], first, axis=0))

"""The interior-point method: the best reward, and one side of a test pair alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg
from scipy.special import expit

from irl_exp.determined.problem import Floats, Level, Loss, Optimum, Pairs, check, cut, gram

Solver = Callable[[Floats], Floats]

BOLD, CAREFUL = 60, 150
"""Most steps of the two kinds."""


@dataclass(frozen=True)
class _Smooth:
    """Minimise -towards . u with L(u) <= level and |u| <= 1, or without `towards` L on the ball; L without kinks.

    Variables x = u. Inequalities f = (L - level, (|u|^2 - 1) / 2) < 0; the first is left out without `towards`.
    """

    pairs: Pairs
    towards: Floats | None
    level: float

    def start(self, u: Floats) -> Floats:
        return u

    def shares(self, x: Floats, duals: Floats) -> Floats:
        """Of the plane that touches L at u."""
        loss = self.pairs.loss
        return np.asarray(expit((loss.target - self.pairs.differences @ x) / loss.temperature))

    def values(self, x: Floats) -> Floats:
        ball = (x @ x - 1) / 2
        return np.array([ball] if self.towards is None else [self.pairs.mean_loss(x) - self.level, ball])

    def _slope(self, x: Floats) -> Floats:
        return self.pairs.plane(self.shares(x, x))[0]

    def gradient(self, x: Floats) -> Floats:
        """Of the objective."""
        return self._slope(x) if self.towards is None else -self.towards

    def pull(self, x: Floats, forces: Floats) -> Floats:
        """sum_i forces_i grad f_i."""
        found: Floats = forces[-1] * x
        return found if self.towards is None else found + forces[0] * self._slope(x)

    def push(self, x: Floats, move: Floats) -> Floats:
        """grad f_i . move for each i."""
        ball = x @ move
        return np.array([ball] if self.towards is None else [self._slope(x) @ move, ball])

    def parts(self) -> Floats:
        """What each inequality counts in the barrier."""
        return np.ones(1 if self.towards is None else 2)

    def first_duals(self, x: Floats) -> Floats:
        values = self.values(x)
        return np.asarray(np.linalg.norm(self.gradient(x)) / (len(values) * -values))

    def solver(self, x: Floats, duals: Floats, stiffness: Floats) -> Solver:
        """aim -> (Hessian of the Lagrangian + sum_i stiffness_i grad f_i grad f_i')^-1 aim."""
        loss, shares, count = self.pairs.loss, self.shares(x, duals), len(self.pairs.differences)
        multiplier = 1.0 if self.towards is None else duals[0]
        curvature = multiplier * loss.weight / (loss.temperature * count) * shares * (1 - shares)
        matrix = gram(self.pairs.differences, curvature) + stiffness[-1] * np.outer(x, x)
        if self.towards is not None:
            slope = self._slope(x)
            matrix += stiffness[0] * np.outer(slope, slope)
        matrix[np.diag_indices_from(matrix)] += duals[-1]
        factor = linalg.cho_factor(matrix, check_finite=False)
        return lambda aim: np.asarray(linalg.cho_solve(factor, aim, check_finite=False))


@dataclass(frozen=True)
class _Kinked:
    """The same for a loss with a kink: L is mean(weight xi - slope d) with xi_i >= 0, xi_i >= target - d_i.

    Variables x = (u, xi). Inequalities f = (target - d_i - xi_i, -xi_i, mean(weight xi - slope d) - level,
    (|u|^2 - 1) / 2) < 0; the third is left out without `towards`.
    """

    pairs: Pairs
    towards: Floats | None
    level: float

    def _split(self, x: Floats) -> tuple[Floats, Floats]:
        features = self.pairs.differences.shape[1]
        return x[:features], x[features:]

    def start(self, u: Floats) -> Floats:
        """With xi above what it must be, by half of what the level leaves, or by the size of the margins."""
        differences, loss = self.pairs.differences, self.pairs.loss
        excess = float(np.linalg.norm(differences, axis=1).mean()) or 1.0
        if self.towards is not None:
            excess = (self.level - self.pairs.mean_loss(u)) / (2 * (loss.weight or 1.0))
        return np.concatenate([u, np.maximum(loss.target - differences @ u, 0) + excess])

    def shares(self, x: Floats, duals: Floats) -> Floats:
        """What the pair, rather than xi >= 0, bears of the price of xi."""
        count = len(self.pairs.differences)
        return np.asarray(duals[:count] / (duals[:count] + duals[count : 2 * count]))

    def values(self, x: Floats) -> Floats:
        (u, xi), loss = self._split(x), self.pairs.loss
        margins = self.pairs.differences @ u
        level = [] if self.towards is None else [loss.weight * xi.mean() - loss.slope * margins.mean() - self.level]
        return np.concatenate([loss.target - margins - xi, -xi, level, [(u @ u - 1) / 2]])

    def _level_gradient(self) -> Floats:
        loss, differences = self.pairs.loss, self.pairs.differences
        price = np.full(len(differences), loss.weight / len(differences))
        return np.concatenate([-loss.slope * differences.mean(axis=0), price])

    def gradient(self, x: Floats) -> Floats:
        if self.towards is None:
            return self._level_gradient()
        return np.concatenate([-self.towards, np.zeros(len(self.pairs.differences))])

    def pull(self, x: Floats, forces: Floats) -> Floats:
        count, (u, _) = len(self.pairs.differences), self._split(x)
        pair, floor = forces[:count], forces[count : 2 * count]
        found = np.concatenate([forces[-1] * u - pair @ self.pairs.differences, -pair - floor])
        return found if self.towards is None else found + forces[-2] * self._level_gradient()

    def push(self, x: Floats, move: Floats) -> Floats:
        (u, _), (du, dxi) = self._split(x), self._split(move)
        level = [] if self.towards is None else [self._level_gradient() @ move]
        return np.concatenate([-(self.pairs.differences @ du) - dxi, -dxi, level, [u @ du]])

    def parts(self) -> Floats:
        count = len(self.pairs.differences)
        return np.concatenate([np.full(2 * count, 1 / count), np.ones(1 if self.towards is None else 2)])

    def first_duals(self, x: Floats) -> Floats:
        """The price of xi is shared so that both constraints of a pair are equally far from complementarity."""
        count, values, loss = len(self.pairs.differences), -self.values(x), self.pairs.loss
        size = float(np.linalg.norm(self.gradient(x)[: -count or None]))
        level = 1.0 if self.towards is None else size / values[-2]
        pair, floor = values[:count], values[count : 2 * count]
        price = level * (loss.weight or 1.0) / count
        ends = [] if self.towards is None else [level]
        return np.concatenate(
            [price * floor / (pair + floor), price * pair / (pair + floor), ends, [max(size, 1e-9) / values[-1]]]
        )

    def solver(self, x: Floats, duals: Floats, stiffness: Floats) -> Solver:
        """xi is eliminated pair by pair; the level's rank one is added by Sherman and Morrison."""
        differences, (u, _) = self.pairs.differences, self._split(x)
        count = len(differences)
        pair, both = stiffness[:count], stiffness[:count] + stiffness[count : 2 * count]
        matrix = gram(differences, pair * stiffness[count : 2 * count] / both) + stiffness[-1] * np.outer(u, u)
        matrix[np.diag_indices_from(matrix)] += duals[-1]
        factor = linalg.cho_factor(matrix, check_finite=False)

        def solved(right: Floats) -> Floats:
            top, bottom = self._split(right)
            du = linalg.cho_solve(factor, top - (pair / both * bottom) @ differences, check_finite=False)
            return np.concatenate([du, (bottom - pair * (differences @ du)) / both])

        if self.towards is None:
            return solved
        slope = self._level_gradient()
        other = solved(slope)
        share = stiffness[-2] / (1 + stiffness[-2] * (slope @ other))

        def updated(right: Floats) -> Floats:
            found = solved(right)
            return np.asarray(found - other * (share * (slope @ found)))

        return updated


_Program = _Smooth | _Kinked


def program_of(pairs: Pairs, towards: Floats | None = None, level: float = 0.0) -> _Program:
    """The program of one side, or without `towards` of the best reward."""
    return (_Smooth if pairs.loss.temperature else _Kinked)(pairs, towards, level)


@dataclass(frozen=True)
class _Newton:
    """The linearised optimality conditions at one point: slack > 0, duals > 0 and the factorised matrix."""

    program: _Program
    x: Floats
    duals: Floats
    slack: Floats
    solver: Solver

    @classmethod
    def at(cls, program: _Program, x: Floats, duals: Floats) -> _Newton:
        slack = -program.values(x)
        return cls(program, x, duals, slack, program.solver(x, duals, duals / slack))

    def towards(self, products: Floats) -> tuple[Floats, Floats, Floats]:
        """Changes of x, slack and duals after which each slack times its dual would be `products`."""
        move = self.solver(-self.program.gradient(self.x) - self.program.pull(self.x, products / self.slack))
        push = self.program.push(self.x, move)
        return move, -push, -self.duals + (products + self.duals * push) / self.slack

    def after(self, products: Floats, *, careful: bool) -> tuple[Floats, Floats] | None:
        """x and duals after the longest step towards these products; none if the numbers allow none.

        It stays inside and keeps some of each slack, for on the surface of the ball further steps would be tiny; and a
        careful one brings the conditions nearer to being met.
        """
        move, give, turn = self.towards(products)
        step = min(1.0, 0.95 * min(_reach(self.slack, give), _reach(self.duals, turn)))
        before = self._residual(self.x, self.duals, products)
        while step > 1e-8:
            x, duals = self.x + step * move, self.duals + step * turn
            if (self.program.values(x) < -0.03 * self.slack).all() and (
                not careful or self._residual(x, duals, products) <= (1 - 0.01 * step) * before
            ):
                return x, duals
            step *= 0.7
        return None

    def _residual(self, x: Floats, duals: Floats, products: Floats) -> float:
        stationary = self.program.gradient(x) + self.program.pull(x, duals)
        return float(np.hypot(np.linalg.norm(stationary), np.linalg.norm(duals * self.program.values(x) + products)))


def _reach(values: Floats, change: Floats) -> float:
    """The step at which the first of values > 0 reaches 0; at most 2."""
    falling = change < 0
    return float((-values[falling] / change[falling]).min(initial=2.0))


def iterates(program: _Program, start: Floats) -> Iterator[tuple[Floats, Floats]]:
    """(u, shares) from a start (d,) inside towards the solution, as long as the numbers allow.

    A loss with a kink is straight elsewhere, so a predictor tells how far to go and what the step will get wrong
    (Mehrotra, SIAM J. Optimization 2, 1992): a third of the steps. Where that strays, as on the curved surface of the
    ball, it is done again with careful steps.
    """
    if isinstance(program, _Kinked):
        yield from _walk(program, start, careful=False, steps=BOLD)
    yield from _walk(program, start, careful=True, steps=CAREFUL)


def _walk(program: _Program, start: Floats, *, careful: bool, steps: int) -> Iterator[tuple[Floats, Floats]]:
    """All pairs together count as much as the ball: or else the many would push u onto its surface at once."""
    x, features = program.start(start), len(start)
    duals, parts = program.first_duals(x), program.parts()
    for _ in range(steps):
        yield x[:features], program.shares(x, duals)
        try:
            newton = _Newton.at(program, x, duals)
        except linalg.LinAlgError:
            return
        gap = float(newton.slack @ duals)
        products = 0.1 * parts * gap / parts.sum()
        if not careful:
            _, give, turn = newton.towards(np.zeros_like(parts))
            step = min(_reach(newton.slack, give), _reach(duals, turn), 1.0)
            ahead = float((newton.slack + step * give) @ (duals + step * turn)) / gap
            products = 10 * products * max(ahead**3, 0.01) - give * turn
        found = newton.after(products, careful=careful)
        if found is None:
            return
        x, duals = found


def optimum(differences: Floats, loss: Loss, *, max_norm: float, precision: float) -> Optimum:
    """Minimise mean loss(D w) over |w| <= max_norm to within `precision` (units of the loss), certified by `lower`.

    Args:
        differences: D (n, d).
    """
    check(differences, max_norm=max_norm, precision=precision)
    pairs = Pairs(differences * max_norm, loss)
    u, best, lower = _optimum(pairs, precision)
    losses = loss(pairs.differences @ u)
    error = float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else float("nan")
    return Optimum(u * max_norm, best, lower, error)


def _optimum(pairs: Pairs, precision: float) -> tuple[Floats, float, float]:
    """The best u, its loss, and the bound below; a cold loss after warmer ones, each from the last one's end."""
    best, lower = np.inf, -np.inf
    last = chosen = np.zeros(pairs.differences.shape[1])
    for loss in _warmer(pairs):
        for u, shares in iterates(program_of(replace(pairs, loss=loss)), 0.9 * last):
            slope, offset = pairs.plane(shares)
            lower = max(lower, float(offset - np.linalg.norm(slope)))  # the least of the plane on the ball
            if (found := pairs.mean_loss(u)) < best:
                best, chosen = found, u
            if best - lower <= precision:
                return chosen, best, lower
        last = u
    raise ArithmeticError(
        f"The least loss lies between {lower:.6g} and {best:.6g}, which is wider than the precision {precision:.2g}: "
        "take a larger tolerance."
    )


def _warmer(pairs: Pairs) -> list[Loss]:
    """The loss, after those with temperatures from a tenth of the largest margins down; a loss with a kink alone."""
    loss, size = pairs.loss, float(np.linalg.norm(pairs.differences, axis=1).mean()) / 10
    steps = math.ceil(2 * math.log10(size / loss.temperature)) if loss.temperature and size > loss.temperature else 0
    return [replace(loss, temperature=loss.temperature * 10 ** (step / 2)) for step in range(steps, -1, -1)]


def furthest(level: Level, towards: Floats, precision: float) -> tuple[float, float]:
    """A bound on towards . u over W, |towards| = 1, and what is attained, by the interior-point method."""
    pairs, middle = level.pairs, float(towards @ level.centre)
    bound, attained = 1.0, middle
    start = _inside(pairs, level.centre, level.value - level.tolerance / 2)
    for u, shares in iterates(program_of(pairs, towards, level.value), start):
        slope, offset = pairs.plane(shares)
        attained = max(attained, float(towards @ u))
        bound = min(bound, float(cut(towards, slope, level.value - offset)))
        if bound - attained <= precision * (bound - middle):
            break
    return bound, attained


def _inside(pairs: Pairs, centre: Floats, level: float) -> Floats:
    """The optimum, drawn away from the ball's surface as far as the loss stays at most `level`."""
    for power in range(1, 50):
        if pairs.mean_loss((1 - 0.5**power) * centre) <= level:
            return np.asarray((1 - 0.5**power) * centre)
    raise ArithmeticError("The set of consistent rewards has no inside that the numbers can tell: raise the tolerance.")

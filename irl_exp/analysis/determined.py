"""What the demonstrations leave open, for linear rewards: exact bounds instead of a sample of seeds.

A linear reward w gives a pair with the feature difference t (expert - baseline, or any two texts) the margin t . w. All
rewards that explain the n contrast pairs D (n, d) nearly as well as the best one are the convex set

    W = {w : L(w) <= L* + tolerance, |w| <= max_norm},    L(w) = mean_i loss(D_i . w),    L* = min of L on the ball.

For each test pair `possible_margins` finds the least and the greatest t . w over W. If both have one sign every such
reward orders the pair alike: it is determined. If not, the demonstrations do not tell, whatever the seeds say.

Units: `tolerance` is in units of the loss, and `optimum(...).standard_error`, the standard error of L at the optimum
over pairs, is the size of what the data cannot tell apart; margins are in units of the reward, that is of features
times |w|. D and t are differences of the same scaled features that the reward was fitted on, and max_norm its bound.

Method. With |w| <= max_norm scaled to 1, each side, the greatest t . w or -t . w, is a convex program.
- All sides go together (`_together`): a step needs D and D' once for all of them, and no system is solved, since one
  eigenbasis makes the model of the loss diagonal for every side. A kink is smoothed while the precision allows it.
- A side that stays open after these goes alone through a primal-dual interior-point method (Boyd and Vandenberghe,
  Convex Optimization, section 11.7), whose step solves a dense d x d system. A loss with a kink gets a variable
  xi_i >= 0, xi_i >= m - d_i for each pair, which its step eliminates. The optimum itself is found in this way.
No answer rests on either having converged:
- every iterate is drawn into W, so its t . w is attained: `attained_low`, `attained_high`;
- any shares a_i in [0, 1] give a plane below the loss, L(w) >= g . w + c, so that W lies in a ball cut by a half-space
  over which the maximum of t . w has a closed form: no reward of W passes the bounds `low` and `high` (up to rounding).
The shares of the solution make the two meet (strong duality).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import entr, expit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Solver = Callable[[Floats], Floats]
Progress = Callable[[int, int], object]

OPTIMUM = 2e-3
"""L* is known to within this fraction of the tolerance; the rewards that this admits too many are counted in."""
BOLD, CAREFUL = 60, 150
"""Most interior-point steps of the two kinds."""
TOGETHER, BATCH = 300, 256
"""Most steps of the sides that go together; and how many do."""
WARM, SMOOTH = 0.3, 0.8
"""Of these: the first temperature over the size of the margins; half of it once smoothing costs more than this share
of the tolerance times the gap that is left."""


@dataclass(frozen=True)
class Loss:
    """loss(d) = -slope d + weight T softplus((target - d) / T); with temperature T = 0, weight max(0, target - d)."""

    slope: float
    weight: float
    target: float
    temperature: float

    def __call__(self, margins: Floats) -> Floats:
        """Elementwise."""
        short, t = self.target - margins, self.temperature
        soft = t * np.logaddexp(0, short / t) if t else np.maximum(short, 0)
        return np.asarray(self.weight * soft - self.slope * margins)


def max_margin(*, correct_penalty: float, wrong_penalty: float) -> Loss:
    """-a d where d > 0, -b d elsewhere (arXiv 2410.12491): convex for 0 <= a <= b."""
    if not 0 <= correct_penalty <= wrong_penalty:
        raise ValueError(
            f"correct_penalty={correct_penalty}, wrong_penalty={wrong_penalty}: only with 0 <= correct <= wrong is the "
            "loss convex, and the set of consistent rewards one that can be bounded exactly."
        )
    return Loss(correct_penalty, wrong_penalty - correct_penalty, 0.0, 0.0)


def hinge(*, target_margin: float) -> Loss:
    """max(0, m - d)."""
    return Loss(0.0, 1.0, target_margin, 0.0)


def bradley_terry(*, temperature: float) -> Loss:
    """-log sigmoid(d / T)."""
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} has to be above 0.")
    return Loss(0.0, 1 / temperature, 0.0, temperature)


@dataclass(frozen=True)
class Optimum:
    """The best loss on the ball.

    Attributes:
        weights: (d,) a reward that reaches `loss`; the best need not be unique.
        loss: attained, and `lower` a bound that no reward passes: lower <= L* <= loss.
        standard_error: sd of the pairs' losses there / sqrt(n): a natural size for the tolerance.
    """

    weights: Floats
    loss: float
    lower: float
    standard_error: float


@dataclass(frozen=True)
class Possible:
    """The margins of m test pairs that consistent rewards can have: low <= attained_low <= attained_high <= high.

    Attributes:
        low, high: (m,) bounds that no consistent reward passes.
        attained_low, attained_high: (m,) margins that consistent rewards have.
        optimum: the best reward.
    """

    low: Floats
    high: Floats
    attained_low: Floats
    attained_high: Floats
    optimum: Optimum

    @property
    def determined(self) -> Bools:
        """(m,) all consistent rewards order the pair alike: proven by the bounds."""
        return (self.low > 0) | (self.high < 0)

    @property
    def undetermined(self) -> Bools:
        """(m,) two consistent rewards order the pair differently, or one ties it: proven by these rewards."""
        return (self.attained_low <= 0) & (self.attained_high >= 0)

    @property
    def unresolved(self) -> Bools:
        """(m,) neither is proven: an end of the interval is 0 to within the precision."""
        return ~self.determined & ~self.undetermined

    @property
    def width(self) -> Floats:
        """(m,) high - low, in units of the reward."""
        return self.high - self.low


@dataclass(frozen=True)
class _Pairs:
    """The contrast pairs (n, d), scaled so that |w| <= max_norm is the unit ball, and their loss."""

    differences: Floats
    loss: Loss

    def mean_loss(self, u: Floats) -> float:
        return float(self.loss(self.differences @ u).mean())

    def plane(self, shares: Floats) -> tuple[Floats, Floats]:
        """(g, c) with L(u) >= g . u + c for all u, from any shares a (n,) in [0, 1]; (s, d) and (s,) from (s, n).

        softplus(z) = max over a of a z + H(a), H the entropy in nats, and max(0, z) = max of a z, so that
        loss(d) >= -(slope + weight a) d + weight (target a + T H(a)).
        """
        loss, count = self.loss, len(self.differences)
        slope = -(loss.slope + loss.weight * shares) @ self.differences / count
        entropy = (entr(shares) + entr(1 - shares)).mean(axis=-1) if loss.temperature else 0.0
        return slope, np.asarray(loss.weight * (loss.target * shares.mean(axis=-1) + loss.temperature * entropy))

    def touch(self, u: Floats, temperature: Floats) -> _Touch:
        """The loss at s points u (s, d), smoothed to temperatures (s,) that are its own or above."""
        loss, margins = self.loss, u @ self.differences.T
        short = loss.target - margins
        small = np.exp(-np.abs(short) / temperature[:, None])
        shares = np.where(short > 0, 1.0, small) / (1 + small)
        own = loss.weight * np.maximum(short, 0).mean(axis=1) - loss.slope * margins.mean(axis=1)
        if loss.temperature:
            own = loss(margins).mean(axis=1)
        return _Touch(own, *self.plane(shares))


@dataclass(frozen=True)
class _Touch:
    """What the loss is at s points.

    Attributes:
        loss: (s,) L(u).
        slope: (s, d) gradient of the smoothed L at u.
        offset: (s,) with L(v) >= slope . v + offset for all v.
    """

    loss: Floats
    slope: Floats
    offset: Floats


def _gram(rows: Floats, weights: Floats) -> Floats:
    """sum_i weights_i rows_i rows_i', (d, d), its upper triangle alone."""
    return np.asarray(linalg.blas.dsyrk(1.0, (rows * np.sqrt(weights)[:, None]).T))


@dataclass(frozen=True)
class _Smooth:
    """Minimise -towards . u with L(u) <= level and |u| <= 1, or without `towards` L on the ball; L without kinks.

    Variables x = u. Inequalities f = (L - level, (|u|^2 - 1) / 2) < 0; the first is left out without `towards`.
    """

    pairs: _Pairs
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
        matrix = _gram(self.pairs.differences, curvature) + stiffness[-1] * np.outer(x, x)
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

    pairs: _Pairs
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
        matrix = _gram(differences, pair * stiffness[count : 2 * count] / both) + stiffness[-1] * np.outer(u, u)
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


def _program(pairs: _Pairs, towards: Floats | None = None, level: float = 0.0) -> _Program:
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


def _iterates(program: _Program, start: Floats) -> Iterator[tuple[Floats, Floats]]:
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
    _check(differences, max_norm=max_norm, precision=precision)
    pairs = _Pairs(differences * max_norm, loss)
    u, best, lower = _optimum(pairs, precision)
    losses = loss(pairs.differences @ u)
    error = float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else float("nan")
    return Optimum(u * max_norm, best, lower, error)


def _optimum(pairs: _Pairs, precision: float) -> tuple[Floats, float, float]:
    """The best u, its loss, and the bound below; a cold loss after warmer ones, each from the last one's end."""
    best, lower = np.inf, -np.inf
    last = chosen = np.zeros(pairs.differences.shape[1])
    for loss in _warmer(pairs):
        for u, shares in _iterates(_program(replace(pairs, loss=loss)), 0.9 * last):
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


def _warmer(pairs: _Pairs) -> list[Loss]:
    """The loss, after those with temperatures from a tenth of the largest margins down; a loss with a kink alone."""
    loss, size = pairs.loss, float(np.linalg.norm(pairs.differences, axis=1).mean()) / 10
    steps = math.ceil(2 * math.log10(size / loss.temperature)) if loss.temperature and size > loss.temperature else 0
    return [replace(loss, temperature=loss.temperature * 10 ** (step / 2)) for step in range(steps, -1, -1)]


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
    _check(differences, max_norm=max_norm, tolerance=tolerance, precision=precision)
    if tests.ndim != 2 or tests.shape[1] != differences.shape[1] or not np.isfinite(tests).all():
        raise ValueError(
            f"tests must be finite (pairs, {differences.shape[1]}) as differences are, not {tests.shape} or with NaN."
        )
    if best is None or best.loss - best.lower > OPTIMUM * tolerance:
        best = optimum(differences, loss, max_norm=max_norm, precision=OPTIMUM * tolerance)
    reduced, directions, centre = _reduce(differences, tests, best.weights / max_norm)
    level = _Level(_Pairs(reduced * max_norm, loss), centre, best.loss, tolerance)
    size = np.linalg.norm(directions, axis=1)
    some = np.repeat(size > 0, 2)
    towards = (directions / np.where(size, size, 1)[:, None])[:, None] * np.array([-1.0, 1.0])[:, None]
    ends = np.zeros((len(some), 2))
    ends[some] = _ends(level, towards.reshape(-1, directions.shape[1])[some], precision, progress)
    (low, attained_low), (high, attained_high) = (max_norm * size * ends[side::2].T for side in (0, 1))
    return Possible(-low, high, -attained_low, attained_high, best)


def _check(differences: Floats, **positive: float) -> None:
    if differences.ndim != 2 or 0 in differences.shape or not np.isfinite(differences).all():
        raise ValueError(f"differences must be finite (pairs, features), not {differences.shape} or with NaN.")
    for name, value in positive.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value} has to be a number above 0.")


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


@dataclass(frozen=True)
class _Level:
    """The set W in coordinates in which |u| <= 1: L(u) <= best + tolerance, where best = L(centre)."""

    pairs: _Pairs
    centre: Floats
    best: float
    tolerance: float

    @property
    def value(self) -> float:
        return self.best + self.tolerance


def _ends(level: _Level, towards: Floats, precision: float, progress: Progress) -> Floats:
    """(s, 2): of each direction of length one (s, d) the bound on towards . u over W, and what is attained."""
    done, total = 0, len(towards)
    found = np.empty((total, 2))
    for first in range(0, total, BATCH):
        rows, before = slice(first, first + BATCH), done
        for bound, attained, done in _together(level, towards[rows], precision):
            found[rows] = np.column_stack([bound, attained])
            progress(before + done, total)
        done += before
    bounds, reached = found.T
    for row in np.flatnonzero(~_close(bounds, reached, towards @ level.centre, precision)):
        alone = _furthest(level, towards[row], precision)
        found[row] = min(alone[0], bounds[row]), max(alone[1], reached[row])
        progress(done := done + 1, total)
    return found


def _close(bound: Floats, attained: Floats, middle: Floats, precision: float) -> Bools:
    return np.asarray(bound - attained <= precision * (bound - middle))


@dataclass(frozen=True)
class _Sides:
    """s sides under way, a row each.

    Attributes:
        row: (s,) which of all.
        towards: (s, d) of length one: maximise towards . u.
        point: (s, d) where the loss is looked at next.
        last: (s, d) the maximum of the last model; `point` lies beyond it, by momentum.
        pace: (s,) of the momentum.
        temperature: (s,) of the smoothed loss.
        stiffness: (s,) the model of the smoothed loss has the curvature stiffness * metric.
        ratio: (s,) the ball's multiplier over the loss's, at the last model's maximum.
        before, slope: (s, d) the last point and the smoothed loss's slope there; NaN where the temperature was another.
        mean_slope, mean_offset: (s, d) and (s,) planes averaged with the momentum's weights, which is a plane below the
            loss again: its bound is the tighter one far from the ball's surface.
    """

    row: NDArray[np.int_]
    towards: Floats
    point: Floats
    last: Floats
    pace: Floats
    temperature: Floats
    stiffness: Floats
    ratio: Floats
    before: Floats
    slope: Floats
    mean_slope: Floats
    mean_offset: Floats

    @classmethod
    def at(cls, centre: Floats, towards: Floats, temperature: float, ratio: float) -> _Sides:
        ones, start = np.ones(len(towards)), np.tile(centre, (len(towards), 1))
        return cls(
            row=np.arange(len(towards)),
            towards=towards,
            point=start,
            last=start,
            pace=ones,
            temperature=temperature * ones,
            stiffness=ones,
            ratio=ratio * ones,
            before=start,
            slope=np.full_like(start, np.nan),
            mean_slope=np.zeros_like(start),
            mean_offset=0 * ones,
        )

    def only(self, rows: Bools) -> _Sides:
        return _Sides(*(getattr(self, field.name)[rows] for field in fields(self)))


def _together(level: _Level, towards: Floats, precision: float) -> Iterator[tuple[Floats, Floats, int]]:
    """(bound, attained, how many are close), better with each step, until all are close or the steps run out.

    At a point y the smoothed loss has the model L(y) + slope . (u - y) + stiffness |u - y|^2 / 2, in the norm of its
    Hessian at the optimum. The next u maximises towards . u where ball and model allow: the moving balls of Auslender,
    Shefi and Teboulle (SIAM J. Optimization 20, 2010), here with Nesterov's momentum. The stiffness is the largest
    curvature met so far, and the temperature falls while smoothing costs much of the gap that is left.
    """
    level, towards, metric, warm = _diagonal(level, towards)
    middle = towards @ level.centre
    bound, attained = np.ones(len(towards)), middle.copy()
    sides = _Sides.at(level.centre, towards, warm, float(metric.mean()))
    for _ in range(TOGETHER):
        touch, rows = level.pairs.touch(sides.point, sides.temperature), sides.row
        sides = _averaged(sides, touch)
        bound[rows] = np.minimum(bound[rows], _bounds(level, sides, touch))
        attained[rows] = np.maximum(attained[rows], _attained(level, sides, touch, middle[rows]))
        close = _close(bound, attained, middle, precision)
        yield bound, attained, int(close.sum())
        if close.all():
            return
        gap = (bound - attained)[rows] / np.maximum(bound - middle, 1e-300)[rows]
        sides = _moved(level, metric, sides, touch, gap).only(~close[rows])


def _diagonal(level: _Level, towards: Floats) -> tuple[_Level, Floats, Floats, float]:
    """Level and directions in the eigenbasis of the smoothed Hessian at the optimum, its eigenvalues, the temperature.

    Every pair has some curvature, for it may meet its kink elsewhere in W; and the eigenvalues have a floor, for what
    no pair has.
    """
    pairs, loss = level.pairs, level.pairs.loss
    margins = pairs.differences @ level.centre
    size = float(np.sqrt((margins**2).mean())) or float(np.linalg.norm(pairs.differences)) or 1.0
    warm = max(WARM * size, loss.temperature)
    shares = expit((loss.target - margins) / warm)
    curvature = loss.weight / (warm * len(margins)) * (shares * (1 - shares) + 0.02)
    values, basis = linalg.eigh(_gram(pairs.differences, curvature), lower=False, check_finite=False)
    floor = 1e-5 * (values[-1] + float(np.linalg.norm(pairs.plane(shares)[0]))) or 1.0
    turned = replace(pairs, differences=pairs.differences @ basis)
    return replace(level, pairs=turned, centre=level.centre @ basis), towards @ basis, np.maximum(values, floor), warm


def _averaged(sides: _Sides, touch: _Touch) -> _Sides:
    """With the plane of this touch in the mean: pace over the sum of all paces since the momentum began is 1 / pace."""
    share = 1 / sides.pace
    slope = sides.mean_slope + share[:, None] * (touch.slope - sides.mean_slope)
    return replace(sides, mean_slope=slope, mean_offset=sides.mean_offset + share * (touch.offset - sides.mean_offset))


def _bounds(level: _Level, sides: _Sides, touch: _Touch) -> Floats:
    """(s,) of the plane here, or of the mean plane."""
    here = _cut(sides.towards, touch.slope, level.value - touch.offset)
    return np.minimum(here, _cut(sides.towards, sides.mean_slope, level.value - sides.mean_offset))


def _attained(level: _Level, sides: _Sides, touch: _Touch, middle: Floats) -> Floats:
    """(s,) towards . u at the points, each drawn back to the optimum as far as makes it sure to be in W.

    Convexity: L(centre + f (u - centre)) <= best + f (L(u) - best).
    """
    fraction = np.minimum(1.0, level.tolerance / np.maximum(touch.loss - level.best, 1e-300))
    return np.asarray(middle + fraction * ((sides.point * sides.towards).sum(axis=1) - middle))


def _moved(level: _Level, metric: Floats, sides: _Sides, touch: _Touch, gap: Floats) -> _Sides:
    """One step; gap (s,) is (bound - attained) / (bound - middle)."""
    move = sides.point - sides.before
    met = ((touch.slope - sides.slope) * move).sum(axis=1) / np.maximum((metric * move**2).sum(axis=1), 1e-300)
    stiffness = np.fmax(sides.stiffness, met)
    curvature = stiffness[:, None] * metric
    # The model keeps to the level as the loss itself, not the smoothed one, has it: then u ends up on the rim of W.
    room = level.value - touch.loss + 0.5 * (touch.slope**2 / curvature).sum(axis=1)
    u, ratio = _farthest(sides.towards, curvature, sides.point - touch.slope / curvature, room, sides.ratio)
    back = ((sides.point - u) * (u - sides.last) * metric).sum(axis=1) > 0  # the momentum leads astray: drop it
    pace = np.where(back, 1.0, (1 + np.sqrt(1 + 4 * sides.pace**2)) / 2)
    beyond = u + np.where(back, 0.0, (sides.pace - 1) / pace)[:, None] * (u - sides.last)
    lost = touch.loss - touch.offset - (touch.slope * sides.point).sum(axis=1)  # of the plane, by smoothing
    cold = np.maximum(sides.temperature / 2, level.pairs.loss.temperature)
    temperature = np.where(lost > SMOOTH * gap * level.tolerance, cold, sides.temperature)
    return replace(
        sides,
        point=_in_ball(beyond),
        last=u,
        pace=pace,
        temperature=temperature,
        stiffness=stiffness * sides.temperature / temperature,
        ratio=ratio,
        before=sides.point,
        slope=np.where((temperature == sides.temperature)[:, None], touch.slope, np.nan),
    )


def _in_ball(u: Floats) -> Floats:
    return np.asarray(u / np.maximum(np.linalg.norm(u, axis=1), 1)[:, None])


def _farthest(towards: Floats, curvature: Floats, centre: Floats, room: Floats, guess: Floats) -> tuple[Floats, Floats]:
    """max towards . u over |u| <= 1 and sum_j curvature_j (u_j - centre_j)^2 / 2 <= room, all (s, d) or (s,).

    With the ratio r of the ball's multiplier to the other's, both together are one ellipsoid, whose farthest point is
    known. It leaves the ball where r is too small and not where r is too large: the root of |u(r)| = 1 in log r, by
    secants inside a bracket, halved now and then; the bracket's lower end where the ball does not bind.
    """

    def farthest(log_ratio: Floats) -> tuple[Floats, Floats]:
        ratio = np.exp(log_ratio)[:, None]
        both = curvature + ratio
        middle, far = curvature * centre / both, towards / both
        radius = room + 0.5 * (ratio[:, 0] - (centre * middle * ratio).sum(axis=1))
        u = middle + far * np.sqrt(2 * np.maximum(radius, 0) / (towards * far).sum(axis=1))[:, None]
        return u, (u * u).sum(axis=1) - 1

    low, high = (np.log(factor * curvature.max(axis=1)) for factor in (1e-7, 1e5))
    _, outside = farthest(low)
    free = outside <= 0
    x = np.where(free, low, np.clip(np.log(guess), low, high))
    rate, last, outside_last = -np.ones(len(x)), x, outside
    for step in range(60):
        u, outside = farthest(x)
        if (free | (np.abs(outside) < 1e-6)).all():
            break
        moved = (x != last) & (outside != outside_last)
        rate[moved] = ((outside - outside_last) / np.where(moved, x - last, 1))[moved]
        low, high = np.where(outside > 0, x, low), np.where(outside > 0, high, x)
        ahead = x - outside / rate
        last, outside_last = x, outside
        quick = (ahead > low) & (ahead < high) & (step % 3 < 2)
        x = np.where(free, x, np.where(quick, ahead, (low + high) / 2))
    return _in_ball(u), np.where(free, guess, np.exp(x))


def _furthest(level: _Level, towards: Floats, precision: float) -> tuple[float, float]:
    """A bound on towards . u over W, |towards| = 1, and what is attained, by the interior-point method."""
    pairs, middle = level.pairs, float(towards @ level.centre)
    bound, attained = 1.0, middle
    start = _inside(pairs, level.centre, level.value - level.tolerance / 2)
    for u, shares in _iterates(_program(pairs, towards, level.value), start):
        slope, offset = pairs.plane(shares)
        attained = max(attained, float(towards @ u))
        bound = min(bound, float(_cut(towards, slope, level.value - offset)))
        if bound - attained <= precision * (bound - middle):
            break
    return bound, attained


def _inside(pairs: _Pairs, centre: Floats, level: float) -> Floats:
    """The optimum, drawn away from the ball's surface as far as the loss stays at most `level`."""
    for power in range(1, 50):
        if pairs.mean_loss((1 - 0.5**power) * centre) <= level:
            return np.asarray((1 - 0.5**power) * centre)
    raise ArithmeticError("The set of consistent rewards has no inside that the numbers can tell: raise the tolerance.")


def _cut(towards: Floats, slope: Floats, value: Floats) -> Floats:
    """max of towards . u over |u| <= 1 and slope . u <= value, for |towards| = 1: of vectors, or row by row.

    With p = slope . towards / |slope| and v = value / |slope|: 1 where p <= v, else p v + sqrt(1 - p^2) sqrt(1 - v^2).
    """
    norm = np.linalg.norm(slope, axis=-1)
    some, norm = norm > 0, np.where(norm > 0, norm, 1)
    p, v = (slope * towards).sum(axis=-1) / norm, value / norm
    free, p, v = ~some | (p <= v), np.clip(p, -1, 1), np.clip(v, -1, 1)
    return np.asarray(np.where(free, 1.0, p * v + np.sqrt(1 - p * p) * np.sqrt(1 - v * v)))

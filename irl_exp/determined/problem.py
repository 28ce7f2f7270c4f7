"""The problem: a loss of margins, contrast pairs in a ball, the set of rewards that explain them; planes below it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import entr

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


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
class Pairs:
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

    def touch(self, u: Floats, temperature: Floats) -> Touch:
        """The loss at s points u (s, d), smoothed to temperatures (s,) that are its own or above."""
        loss, margins = self.loss, u @ self.differences.T
        short = loss.target - margins
        small = np.exp(-np.abs(short) / temperature[:, None])
        shares = np.where(short > 0, 1.0, small) / (1 + small)
        own = loss.weight * np.maximum(short, 0).mean(axis=1) - loss.slope * margins.mean(axis=1)
        if loss.temperature:
            own = loss(margins).mean(axis=1)
        return Touch(own, *self.plane(shares))


@dataclass(frozen=True)
class Touch:
    """What the loss is at s points.

    Attributes:
        loss: (s,) L(u).
        slope: (s, d) gradient of the smoothed L at u.
        offset: (s,) with L(v) >= slope . v + offset for all v.
    """

    loss: Floats
    slope: Floats
    offset: Floats


@dataclass(frozen=True)
class Level:
    """The set W in coordinates in which |u| <= 1: L(u) <= best + tolerance, where best = L(centre)."""

    pairs: Pairs
    centre: Floats
    best: float
    tolerance: float

    @property
    def value(self) -> float:
        return self.best + self.tolerance


def gram(rows: Floats, weights: Floats) -> Floats:
    """sum_i weights_i rows_i rows_i', (d, d), its upper triangle alone."""
    return np.asarray(linalg.blas.dsyrk(1.0, (rows * np.sqrt(weights)[:, None]).T))


def cut(towards: Floats, slope: Floats, value: Floats) -> Floats:
    """max of towards . u over |u| <= 1 and slope . u <= value, for |towards| = 1: of vectors, or row by row.

    With p = slope . towards / |slope| and v = value / |slope|: 1 where p <= v, else p v + sqrt(1 - p^2) sqrt(1 - v^2).
    """
    norm = np.linalg.norm(slope, axis=-1)
    some, norm = norm > 0, np.where(norm > 0, norm, 1)
    p, v = (slope * towards).sum(axis=-1) / norm, value / norm
    free, p, v = ~some | (p <= v), np.clip(p, -1, 1), np.clip(v, -1, 1)
    return np.asarray(np.where(free, 1.0, p * v + np.sqrt(1 - p * p) * np.sqrt(1 - v * v)))


def check(differences: Floats, **positive: float) -> None:
    """ValueError where differences are not finite (n, d), or one of the named numbers is not finite and above 0."""
    if differences.ndim != 2 or 0 in differences.shape or not np.isfinite(differences).all():
        raise ValueError(f"differences must be finite (pairs, features), not {differences.shape} or with NaN.")
    for name, value in positive.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value} has to be a number above 0.")

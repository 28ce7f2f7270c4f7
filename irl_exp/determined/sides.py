"""All sides together: first-order steps that go through the data once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import expit

from irl_exp.determined.problem import Bools, Floats, Level, Touch, cut, gram

TOGETHER = 300
"""Most steps."""
WARM, SMOOTH = 0.3, 0.8
"""Of these: the first temperature over the size of the margins; half of it once smoothing costs more than this share
of the tolerance times the gap that is left."""


def is_close(bound: Floats, attained: Floats, middle: Floats, precision: float) -> Bools:
    """(s,) bound and attained differ by at most this fraction of the bound's distance from the optimum."""
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


def together(level: Level, towards: Floats, precision: float) -> Iterator[tuple[Floats, Floats, int]]:
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
        close = is_close(bound, attained, middle, precision)
        yield bound, attained, int(close.sum())
        if close.all():
            return
        gap = (bound - attained)[rows] / np.maximum(bound - middle, 1e-300)[rows]
        sides = _moved(level, metric, sides, touch, gap).only(~close[rows])


def _diagonal(level: Level, towards: Floats) -> tuple[Level, Floats, Floats, float]:
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
    values, basis = linalg.eigh(gram(pairs.differences, curvature), lower=False, check_finite=False)
    floor = 1e-5 * (values[-1] + float(np.linalg.norm(pairs.plane(shares)[0]))) or 1.0
    turned = replace(pairs, differences=pairs.differences @ basis)
    return replace(level, pairs=turned, centre=level.centre @ basis), towards @ basis, np.maximum(values, floor), warm


def _averaged(sides: _Sides, touch: Touch) -> _Sides:
    """With the plane of this touch in the mean: pace over the sum of all paces since the momentum began is 1 / pace."""
    share = 1 / sides.pace
    slope = sides.mean_slope + share[:, None] * (touch.slope - sides.mean_slope)
    return replace(sides, mean_slope=slope, mean_offset=sides.mean_offset + share * (touch.offset - sides.mean_offset))


def _bounds(level: Level, sides: _Sides, touch: Touch) -> Floats:
    """(s,) of the plane here, or of the mean plane."""
    here = cut(sides.towards, touch.slope, level.value - touch.offset)
    return np.minimum(here, cut(sides.towards, sides.mean_slope, level.value - sides.mean_offset))


def _attained(level: Level, sides: _Sides, touch: Touch, middle: Floats) -> Floats:
    """(s,) towards . u at the points, each drawn back to the optimum as far as makes it sure to be in W.

    Convexity: L(centre + f (u - centre)) <= best + f (L(u) - best).
    """
    fraction = np.minimum(1.0, level.tolerance / np.maximum(touch.loss - level.best, 1e-300))
    return np.asarray(middle + fraction * ((sides.point * sides.towards).sum(axis=1) - middle))


def _moved(level: Level, metric: Floats, sides: _Sides, touch: Touch, gap: Floats) -> _Sides:
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

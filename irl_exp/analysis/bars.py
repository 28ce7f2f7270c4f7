"""Small pictures for the page of one run, as SVG of a few bytes: no library, no script, sharp at any width.

Places across are in percent, so that a bar is as wide as its column; classes give the colours (page.css). What goes in
are numbers alone, so nothing that is drawn can be markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

BINS = 48
LEAST = 0.4
SHOWN = 0.999
"""Part of the rewards that a histogram shows; single ones far out would leave no room for the others."""


@dataclass(frozen=True)
class Axis:
    """The numbers between the left and the right edge of a picture."""

    low: float
    high: float

    def at(self, value: float) -> str:
        """A place across, in percent; what is outside lies on the edge.

        >>> Axis(-1.0, 1.0).at(0.5), Axis(0.0, 1.0).at(7.0)
        ('75.0%', '100.0%')
        """
        return f"{100 * self._part(value):.1f}%"

    def across(self, first: float, second: float) -> str:
        """How wide it is from one number to another, in percent."""
        return f"{100 * abs(self._part(second) - self._part(first)):.1f}%"

    def _part(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def around(values: Sequence[float], *, zero: bool = True) -> Axis:
    """An axis that holds all of these with a little room, and 0 where that is a mark."""
    ends = [*values, 0.0] if zero else list(values)
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or 1.0
    return Axis(low - room if low < 0 or not zero else 0.0, high + room)


def _picture(height: int, name: str, parts: Sequence[str]) -> Markup:
    drawn = "".join(parts)
    return Markup(f'<svg class="bars" width="100%" height="{height}" role="img" aria-label="{name}">{drawn}</svg>')


def frequencies(base: float, tuned: float, axis: Axis) -> Markup:
    """How often base and tuned have a property: a bar each, from 0."""
    parts = [
        f'<rect class="{name}" x="{axis.at(min(0.0, value))}" y="{y}" width="{axis.across(0.0, value)}" height="9"/>'
        for name, value, y in (("base", base, 1), ("tuned", tuned, 13))
    ]
    return _picture(24, f"base {base:.4g}, tuned {tuned:.4g}", [*parts, _upright(axis, 0.0, 24)])


def effect(
    value: float, low: float, high: float, axis: Axis, bounds: tuple[float, float] | None, *, certified: bool
) -> Markup:
    """An effect with its interval, over the band of all effects that rewards that fit as well can have.

    Args:
        bounds: of that band; none where there is no bound.
        certified: a band of one sign is full, another one an outline.
    """
    colour = _way(value)
    parts = []
    if bounds:
        first, last = bounds
        kind = f"band {colour}" if certified else "band open"
        parts.append(
            f'<rect class="{kind}" x="{axis.at(first)}" y="3" width="{axis.across(first, last)}" height="18" rx="2"/>'
        )
    parts += [
        _upright(axis, 0.0, 24),
        f'<line class="interval {colour}" x1="{axis.at(low)}" x2="{axis.at(high)}" y1="12" y2="12"/>',
        f'<circle class="{colour}" cx="{axis.at(value)}" cy="12" r="4.5"/>',
    ]
    return _picture(24, f"effect {value:+.3g}, interval {low:+.3g} to {high:+.3g}", parts)


def effects(values: Sequence[float], axis: Axis) -> Markup:
    """The effects of one statement in several runs: a dot a run."""
    dots = [
        f'<circle class="{"pays" if value > 0 else "charges"}" cx="{axis.at(value)}" cy="12" r="4"/>'
        for value in values
    ]
    return _picture(24, ", ".join(f"{value:+.3g}" for value in values), [_upright(axis, 0.0, 24), *dots])


def _way(effect: float) -> str:
    return "pays" if effect > 0 else "charges"


def _upright(axis: Axis, value: float, height: int) -> str:
    """The mark of a number, from top to bottom."""
    return f'<line class="mark" x1="{axis.at(value)}" x2="{axis.at(value)}" y1="0" y2="{height}"/>'


def against_chance(value: float, interval: tuple[float, float] | None, chance: tuple[float, float]) -> Markup:
    """An AUROC with its interval, over the band that chance gives; from 0.4 on, or from 0 where something is below."""
    low, high = interval or (value, value)
    ticks = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0) if min(low, chance[0]) >= LEAST else (0.0, 0.25, 0.5, 0.75, 1.0)
    axis = Axis(ticks[0], ticks[-1])
    parts = [
        '<line class="axis" x1="0%" x2="100%" y1="14" y2="14"/>',
        f'<rect class="chance" x="{axis.at(chance[0])}" y="3" width="{axis.across(*chance)}" height="22"/>',
        _upright(axis, 0.5, 28),
        f'<line class="interval tuned" x1="{axis.at(low)}" x2="{axis.at(high)}" y1="14" y2="14"/>',
        f'<circle class="tuned" cx="{axis.at(value)}" cy="14" r="5.5"/>',
        *(f'<text x="{axis.at(at)}" y="42" text-anchor="{_end(at, axis)}">{at:g}</text>' for at in ticks),
    ]
    return _picture(46, f"AUROC {value:.3f}; chance {chance[0]:.3f} to {chance[1]:.3f}", parts)


def _end(value: float, axis: Axis) -> str:
    """Which end of a number stands at its place, so that none sticks out."""
    return {axis.low: "start", axis.high: "end"}.get(value, "middle")


def densities(groups: Mapping[str, NDArray[np.float64]]) -> Markup:
    """Histograms over each other, each with the same area: how the rewards of two policies lie.

    Args:
        groups: class of the colour ("base", "tuned") -> (n,) numbers.
    """
    every = np.concatenate(list(groups.values()))
    low, high = np.quantile(every, [(1 - SHOWN) / 2, (1 + SHOWN) / 2])
    axis = around([float(low), float(high)], zero=False)
    edges = np.linspace(axis.low, axis.high, BINS + 1)
    counts = {name: np.histogram(values, edges)[0] / max(1, len(values)) for name, values in groups.items()}
    tallest = max(float(count.max()) for count in counts.values()) or 1.0
    shapes = []
    for name, count in counts.items():
        heights = 100 - 98 * count / tallest
        steps = " ".join(f"{at:.2f},{height:.2f}" for number, height in enumerate(heights) for at in _ends(number))
        shapes.append(f'<polygon class="{name}" points="0,100 {steps} 100,100" vector-effect="non-scaling-stroke"/>')
    inner = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="110">{"".join(shapes)}</svg>'
    ticks = [f'<text x="{axis.at(tick)}" y="128" text-anchor="middle">{tick:g}</text>' for tick in _round(axis)]
    return _picture(
        132, "rewards of base and tuned", [inner, '<line class="axis" x1="0" x2="100%" y1="110" y2="110"/>', *ticks]
    )


def _ends(number: int) -> tuple[float, float]:
    """Left and right edge of a bin, in percent."""
    return 100 * number / BINS, 100 * (number + 1) / BINS


def _round(axis: Axis) -> list[int]:
    """Whole numbers well inside an axis, at most nine of them."""
    step = max(1, round((axis.high - axis.low) / 8))
    inside = (axis.high - axis.low) / 40
    return [tick for tick in range(-100 * step, 101 * step, step) if axis.low + inside < tick < axis.high - inside]


def curve(values: Sequence[float]) -> Markup:
    """R2 against the number of statements: a point each, from 0 to 1."""
    count = len(values)
    across = [100 * number / count for number in range(count + 1)]
    heights = [100 - 100 * min(1.0, max(0.0, value)) for value in (0.0, *values)]
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in zip(across, heights, strict=True))
    inner = (
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="160">'
        f'<polygon class="area" points="{line} 100,100"/>'
        f'<polyline class="line" points="{line}" vector-effect="non-scaling-stroke"/></svg>'
    )
    levels = [
        f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        f'<text x="-6" y="{y + 4}" text-anchor="end">{told}</text>'
        for y, told in ((0, "1"), (40, "0.75"), (80, "0.5"), (120, "0.25"), (160, "0"))
    ]
    points = [
        f'<circle class="point" cx="{x:.2f}%" cy="{1.6 * y:.1f}" r="3"/>'
        for x, y in zip(across[1:], heights[1:], strict=True)
    ]
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= 10)
    ticks = [
        f'<text x="{across[number]:.2f}%" y="178" text-anchor="middle">{number}</text>'
        for number in range(0, count + 1, every)
    ]
    return _picture(182, "R2 by the number of statements", [*levels, inner, *points, *ticks])

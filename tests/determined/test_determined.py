"""What the demonstrations leave open: worlds solved by hand, by grids and by samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irl_exp import determined as room
from irl_exp.determined import Floats, Loss, Possible, bounds, programs, sides
from irl_exp.determined.problem import Level, Pairs, cut
from irl_exp.irl import losses

LOSSES: dict[str, Loss] = {
    "max_margin": room.max_margin(correct_penalty=1.0, wrong_penalty=2.0),
    "hinge": room.hinge(target_margin=1.0),
    "bradley_terry": room.bradley_terry(temperature=0.7),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def world(n: int, d: int, seed: int = 0) -> Floats:
    """Differences that a reward orders as Bradley and Terry say."""
    random = np.random.default_rng(seed)
    pairs = random.normal(size=(n, d))
    right = random.random(n) < 1 / (1 + np.exp(-3 * pairs @ np.ones(d) / d**0.5))
    return np.where(right, 1.0, -1.0)[:, None] * pairs


def mean_loss(loss: Loss, differences: Floats, weights: Floats) -> Floats:
    """(k,) of k rewards (k, d)."""
    return np.asarray(loss(weights @ differences.T).mean(axis=1))


def test_losses_are_those_that_are_fitted() -> None:
    margins = np.linspace(-3, 3, 61)
    given = torch.from_numpy(margins)
    expected = {
        "max_margin": losses.max_margin(given, correct_penalty=1.0, wrong_penalty=2.0),
        "hinge": losses.hinge(given, target_margin=1.0),
        "bradley_terry": losses.bradley_terry(given, temperature=0.7),
    }
    for name, loss in LOSSES.items():
        np.testing.assert_allclose(loss(margins), expected[name].numpy(), atol=1e-12)


@each_loss
@pytest.mark.parametrize("max_norm", [0.5, 4.0])
def test_against_a_grid_of_all_rewards(name: str, max_norm: float) -> None:
    differences, tests, loss = world(15, 2), np.random.default_rng(1).normal(size=(6, 2)), LOSSES[name]
    radius, angle = np.meshgrid(np.linspace(0, max_norm, 400), np.linspace(0, 2 * np.pi, 1200))
    grid = np.stack([(radius * np.cos(angle)).ravel(), (radius * np.sin(angle)).ravel()], axis=1)
    value = mean_loss(loss, differences, grid)
    tolerance = 0.05 * max_norm
    found = room.possible_margins(differences, tests, loss, max_norm=max_norm, tolerance=tolerance, precision=0.001)
    assert found.optimum.lower <= value.min() <= found.optimum.loss + 0.01 * tolerance
    inside = grid[value <= found.optimum.lower + tolerance] @ tests.T
    slack = 0.02 * max_norm * np.linalg.norm(tests, axis=1)  # of the grid
    assert (inside.max(axis=0) <= found.high + 1e-9).all()
    assert (inside.min(axis=0) >= found.low - 1e-9).all()
    assert (found.attained_high <= inside.max(axis=0) + slack).all()
    assert (found.attained_low >= inside.min(axis=0) - slack).all()
    np.testing.assert_allclose(found.high, found.attained_high, atol=0.01 * max_norm)
    assert not found.unresolved.any()
    assert (found.determined == ((inside.min(axis=0) > 0) | (inside.max(axis=0) < 0))).all()


def test_one_pair_by_hand() -> None:
    """L = -w_1 on the ball of radius 2 is -2, so W is the cap w_1 >= 2 - 0.5."""
    tests = np.array([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0], [1.0, 1.0]])
    loss = room.max_margin(correct_penalty=1.0, wrong_penalty=1.0)
    found = room.possible_margins(np.array([[1.0, 0.0]]), tests, loss, max_norm=2.0, tolerance=0.5, precision=1e-4)
    rim = math.sqrt(2**2 - 1.5**2)
    np.testing.assert_allclose(found.low, [1.5, -3 * rim, 0, 1.5 - rim], atol=2e-3)
    np.testing.assert_allclose(found.high, [2, 3 * rim, 0, 1.5 + rim], atol=2e-3)
    assert found.determined.tolist() == [True, False, False, True]
    assert found.undetermined.tolist() == [False, True, True, False]
    np.testing.assert_allclose(found.width, found.high - found.low)
    assert found.optimum.loss == pytest.approx(-2, abs=1e-3)


@each_loss
def test_what_no_pair_has_is_undetermined(name: str) -> None:
    """n < d: on the null space of D the sign is free, and the interval symmetric."""
    differences, random = world(6, 20), np.random.default_rng(2)
    basis = np.linalg.qr(differences.T)[0]
    tests = random.normal(size=(5, 20))
    tests -= tests @ basis @ basis.T
    found = room.possible_margins(differences, tests, LOSSES[name], max_norm=1.0, tolerance=0.01)
    assert found.undetermined.all()
    np.testing.assert_allclose(found.low, -found.high, rtol=0.02)
    weights = found.optimum.weights
    np.testing.assert_allclose(weights, basis @ (basis.T @ weights), atol=1e-6)  # and the optimum has nothing there
    # All of the norm that the optimum's shortest neighbour leaves: one number for all directions.
    shares = found.high / np.linalg.norm(tests, axis=1)
    np.testing.assert_allclose(shares, shares[0], rtol=0.02)


def test_a_small_tolerance_leaves_an_ellipsoid() -> None:
    """Strictly convex: t . w* +- sqrt(2 eps t' H^-1 t), H the Hessian at w*, so with eps to 0 all is determined."""
    differences, tests = world(200, 3), np.random.default_rng(3).normal(size=(8, 3))
    loss, tolerance = LOSSES["bradley_terry"], 1e-6
    found = room.possible_margins(differences, tests, loss, max_norm=50.0, tolerance=tolerance, precision=1e-3)
    weights = found.optimum.weights
    probability = 1 / (1 + np.exp(-differences @ weights / 0.7))
    curvature = probability * (1 - probability) / 0.7**2 / 200
    half = np.sqrt(
        2 * tolerance * np.einsum("ki,ij,kj->k", tests, np.linalg.inv(differences.T * curvature @ differences), tests)
    )
    np.testing.assert_allclose(found.high - tests @ weights, half, rtol=0.1)
    np.testing.assert_allclose(tests @ weights - found.low, half, rtol=0.1)
    assert found.determined.all()
    np.testing.assert_allclose(found.low, tests @ weights, atol=0.02)


def rewards_inside(loss: Loss, differences: Floats, found: Possible, max_norm: float, tolerance: float) -> Floats:
    """(k, d): from the optimum in random directions as far as the set goes, by bisection."""
    random, start = np.random.default_rng(4), found.optimum.weights
    ways = random.normal(size=(2000, len(start))) * random.choice([0.1, 1.0], (2000, 1))
    low, high = np.zeros(len(ways)), np.full(len(ways), 100.0)
    for _ in range(50):
        middle = (low + high) / 2
        points = start + middle[:, None] * ways
        inside = mean_loss(loss, differences, points) <= found.optimum.lower + tolerance
        inside &= np.linalg.norm(points, axis=1) <= max_norm
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.asarray(start + low[:, None] * ways)


@each_loss
@pytest.mark.parametrize(("n", "d", "max_norm"), [(60, 5, 1.0), (60, 5, 20.0), (8, 12, 3.0), (40, 40, 3.0)])
def test_no_consistent_reward_leaves_the_interval(name: str, n: int, d: int, max_norm: float) -> None:
    differences, tests, loss = world(n, d, 5), np.random.default_rng(6).normal(size=(5, d)), LOSSES[name]
    found = room.possible_margins(differences, tests, loss, max_norm=max_norm, tolerance=0.1)
    margins = rewards_inside(loss, differences, found, max_norm, 0.1) @ tests.T
    assert (margins <= found.high + 1e-9).all()
    assert (margins >= found.low - 1e-9).all()
    assert (found.low <= found.attained_low).all()
    assert (found.attained_low <= found.attained_high).all()
    half = found.width / 2
    assert (found.high - found.attained_high <= 0.03 * half).all()  # and the two meet
    assert (found.attained_low - found.low <= 0.03 * half).all()
    assert np.ptp(margins, axis=0).min() > 0.1 * found.width.min()


@each_loss
def test_units(name: str) -> None:
    """Features twice as large with half the norm are the same rewards; t twice as large has twice the margin."""
    differences, tests, loss = world(30, 4), np.random.default_rng(7).normal(size=(3, 4)), LOSSES[name]
    one = room.possible_margins(differences, tests, loss, max_norm=2.0, tolerance=0.05)
    other = room.possible_margins(2 * differences, 4 * tests, loss, max_norm=1.0, tolerance=0.05)
    np.testing.assert_allclose(other.high, 2 * one.high, rtol=1e-3)
    np.testing.assert_allclose(other.low, 2 * one.low, rtol=1e-3)


@each_loss
def test_a_larger_tolerance_leaves_more_open(name: str) -> None:
    differences, tests = world(50, 6), np.random.default_rng(8).normal(size=(20, 6))
    widths = [
        room.possible_margins(differences, tests, LOSSES[name], max_norm=2.0, tolerance=tolerance)
        for tolerance in (0.001, 0.03, 0.5)
    ]
    for small, large in itertools.pairwise(widths):
        assert (small.attained_high <= large.high).all()
        assert (small.width < large.width).all()
        assert small.determined.sum() > large.determined.sum()


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_planes_lie_below_the_loss(seed: int) -> None:
    """Whatever the shares are: what makes the bounds hold if the solver has not converged."""
    random = np.random.default_rng(seed)
    differences, u = random.normal(size=(7, 3)), random.normal(size=(50, 3))
    for loss in LOSSES.values():
        slope, offset = Pairs(differences, loss).plane(random.random(7))
        assert (u @ slope + offset <= mean_loss(loss, differences, u) + 1e-12).all()


@given(st.integers(0, 10_000), st.floats(-0.99, 1.2))
@settings(max_examples=40, deadline=None)
def test_the_cut_of_the_ball_by_samples(seed: int, value: float) -> None:
    random = np.random.default_rng(seed)
    towards, slope = random.normal(size=(2, 3))
    towards /= np.linalg.norm(towards)
    slope /= np.linalg.norm(slope)
    bound = cut(towards, 3 * slope, 3 * value)
    u = random.normal(size=(4000, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    over = u @ slope > value  # move these onto the rim of the cut
    side = u - (u @ slope)[:, None] * slope
    rim = value * slope + math.sqrt(max(1 - value**2, 0)) * side / np.linalg.norm(side, axis=1, keepdims=True)
    inside = np.where(over[:, None], rim, u) @ towards
    assert inside.max() <= bound + 1e-9
    assert inside.max() >= bound - 0.02


def test_the_optimum_is_certified() -> None:
    for name, loss in LOSSES.items():
        found = room.optimum(world(80, 5), loss, max_norm=3.0, precision=1e-6)
        assert found.lower <= found.loss <= found.lower + 1e-6, name
        assert np.linalg.norm(found.weights) <= 3
        values = loss(world(80, 5) @ found.weights)
        assert found.loss == pytest.approx(values.mean())
        assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(80))


def level_and_directions(
    loss: Loss, n: int, d: int, seed: int, tolerance: float, sides: int = 8
) -> tuple[Level, Floats]:
    """W in a ball of radius 2, and directions of length one."""
    differences, towards = world(n, d, seed), np.random.default_rng(seed + 1).normal(size=(sides, d))
    best = room.optimum(differences, loss, max_norm=2.0, precision=room.OPTIMUM * tolerance)
    level = Level(Pairs(2 * differences, loss), best.weights / 2, best.loss, tolerance)
    return level, towards / np.linalg.norm(towards, axis=1, keepdims=True)


@each_loss
@pytest.mark.parametrize(("n", "d"), [(15, 2), (120, 10), (20, 30)])
def test_sides_together_against_each_side_alone(name: str, n: int, d: int) -> None:
    """The slow interior-point method is the oracle: the two intervals of an end overlap, so neither is wrong."""
    level, towards = level_and_directions(LOSSES[name], n, d, seed=11, tolerance=0.05)
    *_, (bound, attained, close) = sides.together(level, towards, 0.05)
    alone = np.array([programs.furthest(level, row, 1e-3) for row in towards])
    assert close == len(towards)  # without its help
    assert (bound >= alone[:, 1] - 1e-9).all()
    assert (attained <= alone[:, 0] + 1e-9).all()
    half = alone[:, 0] - towards @ level.centre
    np.testing.assert_array_less(bound - alone[:, 1], 0.055 * half)
    np.testing.assert_array_less(alone[:, 0] - attained, 0.055 * half)


@given(st.integers(0, 10_000), st.sampled_from(sorted(LOSSES)), st.sampled_from([0.005, 0.05, 0.5]))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_after_every_step(seed: int, name: str, tolerance: float) -> None:
    """Random rewards of W, on its rim or inside, never pass them, however far the solver has come."""
    level, towards = level_and_directions(LOSSES[name], 12, 3, seed, tolerance, sides=4)
    random = np.random.default_rng(seed)
    ways = random.normal(size=(300, 3)) * random.choice([0.05, 1.0], (300, 1))
    low, high = np.zeros(len(ways)), np.full(len(ways), 100.0)
    for _ in range(50):
        points = level.centre + ((low + high) / 2)[:, None] * ways
        inside = mean_loss(level.pairs.loss, level.pairs.differences, points) <= level.value
        inside &= np.linalg.norm(points, axis=1) <= 1
        low, high = np.where(inside, (low + high) / 2, low), np.where(inside, high, (low + high) / 2)
    margins = (level.centre + (low * random.choice([0.5, 1.0], len(low)))[:, None] * ways) @ towards.T
    for steps, (bound, attained, _) in enumerate(sides.together(level, towards, 0.01)):
        assert (margins <= bound + 1e-9).all(), steps
        assert (attained <= bound + 1e-9).all(), steps


@each_loss
def test_what_is_attained_is_a_margin_of_a_consistent_reward(name: str) -> None:
    """Each point, drawn back by what `_attained` says, satisfies both constraints."""
    level, towards = level_and_directions(LOSSES[name], 30, 4, seed=3, tolerance=0.02)
    random = np.random.default_rng(4)
    some = replace(
        sides._Sides.at(level.centre, towards, 0.7, 1.0), point=sides._in_ball(random.normal(size=towards.shape))
    )
    touch = level.pairs.touch(some.point, some.temperature)
    middle = towards @ level.centre
    attained = sides._attained(level, some, touch, middle)
    fraction = (attained - middle) / ((some.point * towards).sum(axis=1) - middle)
    points = level.centre + fraction[:, None] * (some.point - level.centre)
    assert (fraction > 0).all()
    assert fraction.min() < 0.9  # some had to be drawn back
    assert (mean_loss(level.pairs.loss, level.pairs.differences, points) <= level.value + 1e-12).all()
    assert (np.linalg.norm(points, axis=1) <= 1 + 1e-12).all()


@each_loss
def test_a_touch_is_the_loss_and_a_plane_below_it(name: str) -> None:
    pairs, random = Pairs(world(20, 3), LOSSES[name]), np.random.default_rng(5)
    u, others, own = random.normal(size=(6, 3)), random.normal(size=(200, 3)), LOSSES[name].temperature
    value = mean_loss(pairs.loss, pairs.differences, u)
    for temperature in (0.7, 3.0):
        touch = pairs.touch(u, np.full(6, temperature))
        np.testing.assert_allclose(touch.loss, value)
        below = others @ touch.slope.T + touch.offset
        assert (below <= mean_loss(pairs.loss, pairs.differences, others)[:, None] + 1e-12).all()
        if temperature == own:
            np.testing.assert_allclose((touch.slope * u).sum(axis=1) + touch.offset, value)


@given(st.integers(0, 10_000), st.floats(0.01, 3.0), st.floats(1e-4, 1e4))
@settings(max_examples=60, deadline=None)
def test_the_farthest_point_of_ball_and_ellipsoid_by_samples(seed: int, size: float, guess: float) -> None:
    random = np.random.default_rng(seed)
    towards, curvature = random.normal(size=(1, 3)), random.uniform(0.1, 4, size=(1, 3))
    towards /= np.linalg.norm(towards)
    centre, room_left = 0.9 * sides._in_ball(random.normal(size=(1, 3))), np.array([size])  # which both contain
    u, _ = sides._farthest(towards, curvature, centre, room_left, np.array([guess]))
    assert np.linalg.norm(u) <= 1 + 1e-12
    assert (curvature * (u - centre) ** 2).sum() / 2 <= size * (1 + 1e-3)
    samples = random.normal(size=(4000, 3))
    samples = centre + samples / np.sqrt((curvature * samples**2).sum(axis=1, keepdims=True) / (2 * size))
    inside = np.concatenate([samples, sides._in_ball(random.normal(size=(4000, 3)) * 10)])
    inside = inside[(np.linalg.norm(inside, axis=1) <= 1 + 1e-9)]
    inside = inside[(curvature * (inside - centre) ** 2).sum(axis=1) / 2 <= size + 1e-9]
    assert (inside @ towards[0]).max() <= float(u[0] @ towards[0]) + 1e-3


@each_loss
def test_a_side_that_stays_open_goes_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    differences, tests = world(40, 4), np.random.default_rng(9).normal(size=(4, 4))
    together = room.possible_margins(differences, tests, LOSSES[name], max_norm=2.0, tolerance=0.05)
    monkeypatch.setattr(sides, "TOGETHER", 1)
    calls: list[tuple[int, int]] = []
    alone = room.possible_margins(
        differences, tests, LOSSES[name], max_norm=2.0, tolerance=0.05, progress=lambda *given: calls.append(given)
    )
    assert calls == [(done, 8) for done in range(9)]
    half = together.width / 2
    for end in ("low", "high", "attained_low", "attained_high"):
        assert (np.abs(getattr(alone, end) - getattr(together, end)) <= 0.03 * half).all(), end


@each_loss
def test_batches_are_independent_and_progress_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    differences, tests = world(40, 4), np.random.default_rng(9).normal(size=(4, 4))
    tests[1] = 0  # both of its sides are done before
    one = room.possible_margins(differences, tests, LOSSES[name], max_norm=2.0, tolerance=0.05)
    monkeypatch.setattr(bounds, "BATCH", 4)
    calls: list[tuple[int, int]] = []
    two = room.possible_margins(
        differences, tests, LOSSES[name], max_norm=2.0, tolerance=0.05, progress=lambda *given: calls.append(given)
    )
    np.testing.assert_allclose(two.low, one.low, rtol=1e-4)
    np.testing.assert_allclose(two.high, one.high, rtol=1e-4)
    assert calls == sorted(calls)
    assert calls[0] == (0, 6)
    assert calls[-1] == (6, 6)


def test_the_optimum_does_not_stick_to_the_ball() -> None:
    """Here steps that may use up all of the slack come to lie on the surface, a thousandth above the least loss."""
    found = room.optimum(world(12, 3, 4156), LOSSES["bradley_terry"], max_norm=2.0, precision=4e-6)
    assert found.loss - found.lower <= 4e-6


D, T, HINGE = world(5, 3), np.ones((2, 3)), LOSSES["hinge"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: room.possible_margins(D, T, HINGE, max_norm=1.0, tolerance=0.0), "tolerance=0.0"),
        (lambda: room.possible_margins(D, T, HINGE, max_norm=math.inf, tolerance=0.1), "max_norm=inf"),
        (
            lambda: room.possible_margins(D, T[:, :2], HINGE, max_norm=1.0, tolerance=0.1),
            r"tests must be finite \(pairs, 3\)",
        ),
        (
            lambda: room.possible_margins(D * np.nan, T, HINGE, max_norm=1.0, tolerance=0.1),
            "differences must be finite",
        ),
        (lambda: room.possible_margins(D[:0], T, HINGE, max_norm=1.0, tolerance=0.1), r"\(0, 3\)"),
        (lambda: room.max_margin(correct_penalty=2.0, wrong_penalty=1.0), "convex"),
        (lambda: room.bradley_terry(temperature=0.0), "temperature=0.0"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_no_test_pairs_give_no_intervals() -> None:
    found = room.possible_margins(D, T[:0], HINGE, max_norm=1.0, tolerance=0.1)
    assert found.low.shape == found.determined.shape == (0,)

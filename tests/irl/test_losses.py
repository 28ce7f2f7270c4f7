"""Losses of the margin: published values, gradients, extreme margins, and optima on worlds that are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from irl_exp.irl import losses

MARGINS = [-1e6, -1e3, -2.0, -0.5, 0.0, 0.25, 1.0, 3.0, 1e3, 1e6]
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_margin": lambda margin: losses.max_margin(margin, correct_penalty=1.0, wrong_penalty=2.0),
    "hinge": lambda margin: losses.hinge(margin, target_margin=1.5),
    "bradley_terry": lambda margin: losses.bradley_terry(margin, temperature=0.5),
    "squared": losses.squared,
    "confidence_margin": lambda margin: losses.confidence_margin(margin, target_margin=1.5, confidence=0.4),
}
FALLING = [name for name in LOSSES if name != "squared"]
patient = settings(deadline=None)  # a busy machine is no failure
every_loss = pytest.mark.parametrize("name", LOSSES)


def one_by_one(name: str, margin: float) -> float:
    """The formulas, a number at a time."""
    if name == "max_margin":
        return -margin if margin > 0 else -2 * margin
    if name == "hinge":
        return max(0.0, 1.5 - margin)
    if name == "squared":
        return margin**2
    if name == "confidence_margin":
        return max(0.0, 1.5 + 0.4 * abs(margin) - margin)
    # -log(1 / (1 + exp(-d / T))), without overflow for a wrong pair.
    return max(0.0, -2 * margin) + math.log1p(math.exp(-abs(2 * margin)))


def slope(name: str, margin: float) -> float:
    """The derivatives, by hand; where there is a kink, one between those of its sides."""
    if name == "max_margin":
        return -1.0 if margin > 0 else -2.0
    if name == "hinge":
        return -1.0 if margin <= 1.5 else 0.0
    if name == "squared":
        return 2 * margin
    if name == "confidence_margin":
        return -1.4 if margin < 0 else -1.0 if margin == 0 else -0.6 if margin <= 2.5 else 0.0
    return -2.0 / (1 + math.exp(2 * margin)) if margin < 100 else 0.0


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@every_loss
def test_values_are_those_of_the_formula(name: str) -> None:
    expected = [one_by_one(name, margin) for margin in MARGINS]
    np.testing.assert_allclose(LOSSES[name](tensor(MARGINS)), expected, rtol=1e-12)


@every_loss
def test_gradients_are_those_of_the_formula(name: str) -> None:
    margins = tensor(MARGINS).requires_grad_()
    LOSSES[name](margins).sum().backward()
    assert margins.grad is not None
    np.testing.assert_allclose(margins.grad, [slope(name, margin) for margin in MARGINS], rtol=1e-9, atol=1e-300)


def test_max_margin_is_the_published_d_and_2d() -> None:
    assert LOSSES["max_margin"](tensor([3.0, -3.0, 0.0])).tolist() == [-3.0, 6.0, 0.0]


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_margins_neither_overflow_nor_vanish(name: str, dtype: torch.dtype) -> None:
    margins = torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=dtype, requires_grad=True)
    values = LOSSES[name](margins)
    values.sum().backward()
    assert margins.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(margins.grad).all()
    assert (margins.grad[:2] <= -1).all(), "a wrong pair must keep pulling"
    assert values.dtype == dtype


@patient
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_losses_never_rise_with_the_margin(margins: list[float]) -> None:
    for name in FALLING:
        values = LOSSES[name](tensor(sorted(margins)))
        assert (values[1:] <= values[:-1]).all()


@patient
@given(st.floats(-50, 50), st.floats(0.1, 10))
def test_hinge_bounds_the_share_of_wrong_pairs_and_ends_at_the_target(margin: float, target: float) -> None:
    value = float(losses.hinge(tensor([margin]), target_margin=target)[0])
    assert value >= target * (margin <= 0)
    assert (value == 0) == (margin >= target)


def test_max_margin_has_no_lower_bound_and_the_others_have() -> None:
    far = tensor([1e6])
    assert LOSSES["max_margin"](far) == -1e6
    assert LOSSES["hinge"](far) == 0
    assert 0 <= LOSSES["bradley_terry"](far) < 1e-9
    assert LOSSES["confidence_margin"](far) == 0
    assert LOSSES["squared"](tensor([0.0])) == 0


@patient
@given(st.floats(-100, 100))
def test_squared_does_not_know_which_completion_is_the_experts(margin: float) -> None:
    assert losses.squared(tensor([margin])) == losses.squared(tensor([-margin]))


def test_squared_recovers_a_constant() -> None:
    expert, baseline = tensor([0.50, 0.25, 0.20, 0.05]), tensor([0.10, 0.30, 0.20, 0.40])
    start = tensor([3.0, -1.0, 0.5, 2.0])
    found = start + minimise(lambda shift: expected_loss(losses.squared, start + shift, expert, baseline), 4)
    np.testing.assert_allclose(found - found.mean(), 0, atol=1e-6)


@patient
@given(st.floats(-50, 50), st.floats(0.1, 10), st.floats(0, 0.9))
def test_confidence_margin_is_a_hinge_with_a_target_that_grows(margin: float, target: float, confidence: float) -> None:
    value = float(losses.confidence_margin(tensor([margin]), target_margin=target, confidence=confidence)[0])
    hinge = float(losses.hinge(tensor([margin]), target_margin=target + confidence * abs(margin))[0])
    assert value == pytest.approx(hinge, abs=1e-12)
    if abs(margin - target / (1 - confidence)) > 1e-9:
        assert (value == 0) == (margin > target / (1 - confidence))


@pytest.mark.parametrize(("preference", "best"), [(0.99, 2.5), (0.71, 2.5), (0.69, 0.0), (0.51, 0.0)])
def test_confidence_margin_steps_where_the_preference_pays_for_its_mistakes(preference: float, best: float) -> None:
    """Slopes 1 - c and 1 + c with c = 0.4: beyond the share (1 + c) / 2 = 0.7 it goes all the way, below it stays."""
    expert, baseline = tensor([preference, 1 - preference]), tensor([0.5, 0.5])
    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)
    values = [
        float(expected_loss(LOSSES["confidence_margin"], torch.stack([margin, margin * 0]), expert, baseline))
        for margin in grid
    ]
    assert float(grid[int(np.argmin(values))]) == pytest.approx(best, abs=1e-9)


def minimise(objective: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """The minimiser of a convex function of `size` numbers."""
    free = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(free)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)
    return free.detach()


def expected_loss(loss: Callable[[Tensor], Tensor], rewards: Tensor, expert: Tensor, baseline: Tensor) -> Tensor:
    """The mean loss over all pairs (one draw of the expert, one of the baseline), exactly."""
    return (expert[:, None] * baseline[None, :] * loss(rewards[:, None] - rewards[None, :])).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_bradley_terry_recovers_the_log_ratio_of_the_policies(temperature: float) -> None:
    expert = tensor([0.50, 0.25, 0.15, 0.07, 0.03])
    baseline = tensor([0.10, 0.30, 0.20, 0.15, 0.25])
    found = minimise(
        lambda rewards: expected_loss(
            lambda margin: losses.bradley_terry(margin, temperature=temperature), rewards, expert, baseline
        ),
        len(expert),
    )
    implicit = temperature * torch.log(expert / baseline)
    np.testing.assert_allclose(found - found.mean(), implicit - implicit.mean(), atol=1e-5)


def test_bradley_terry_cannot_see_a_constant() -> None:
    expert, baseline, rewards = tensor([0.7, 0.3]), tensor([0.4, 0.6]), tensor([1.0, -2.0])
    values = [expected_loss(LOSSES["bradley_terry"], rewards + shift, expert, baseline) for shift in (0.0, 11.0)]
    assert values[0] == pytest.approx(float(values[1]), rel=1e-12)


@pytest.mark.parametrize("preference", [0.51, 0.7, 0.99])
def test_hinge_finds_the_side_of_a_preference_and_not_its_strength(preference: float) -> None:
    expert, baseline = tensor([preference, 1 - preference]), tensor([0.5, 0.5])
    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)
    values = [
        float(expected_loss(LOSSES["hinge"], torch.stack([margin, margin * 0]), expert, baseline)) for margin in grid
    ]
    assert float(grid[int(np.argmin(values))]) == pytest.approx(1.5)


def test_max_margin_with_equal_penalties_points_along_the_mean_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(200, 3, generator=generator, dtype=torch.float64) + tensor([0.3, -0.2, 0.1])
    directions = torch.randn(5000, 3, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    mean = differences.mean(0)
    best = mean / mean.norm()

    def loss(weights: Tensor) -> Tensor:
        return losses.max_margin(differences @ weights, correct_penalty=1.3, wrong_penalty=1.3).mean()

    values = torch.stack([loss(direction) for direction in directions])
    assert loss(best) < values.min()
    assert directions[values.argmin()] @ best > 0.99
    assert loss(best) == pytest.approx(-1.3 * float(mean.norm()))


def test_max_margin_with_a_larger_wrong_penalty_weighs_wrong_pairs_more() -> None:
    margins = tensor([4.0, -1.0])
    assert losses.max_margin(margins, correct_penalty=1.0, wrong_penalty=2.0).sum() == -2.0
    assert losses.max_margin(margins, correct_penalty=1.0, wrong_penalty=5.0).sum() == 1.0

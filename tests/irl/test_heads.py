"""Heads fitted together: to the last bit as one by one, as plain Adam, and right on worlds with known answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from irl_exp.irl import losses
from irl_exp.irl.heads import Heads, Procedure, fit_heads, spread

Floats = NDArray[np.float64]
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_margin": lambda margin: losses.max_margin(margin, correct_penalty=1.0, wrong_penalty=2.0),
    "hinge": lambda margin: losses.hinge(margin, target_margin=1.0),
    "bradley_terry": lambda margin: losses.bradley_terry(margin, temperature=0.5),
    "squared": losses.squared,
    "confidence_margin": lambda margin: losses.confidence_margin(margin, target_margin=1.0, confidence=0.5),
}
patient = settings(deadline=None, max_examples=25)


def halve_wrong(margins: Tensor, done: float) -> Tensor:
    """Weights that depend on the margins and on the epoch."""
    return 1.0 + done - 0.5 * (margins < 0).double()


def procedure(**changes: Any) -> Procedure:
    start = Procedure(LOSSES["bradley_terry"], epochs=3, batch_size=8, learning_rate=0.05, max_norm=2.0)
    return dataclasses.replace(start, **changes)


def pairs(count: int, dimension: int, seed: int = 0) -> Floats:
    """Differences of features with a mean that is not 0."""
    return np.random.default_rng(seed).standard_normal((count, dimension)) + 0.3


def coins(count: int, generator: torch.Generator) -> Tensor:
    return 1.0 - 2.0 * torch.randint(2, (count,), generator=generator).double()


def one_seed(fit: Floats, select: Floats, how: Procedure, seed: int) -> tuple[Floats, int, dict[str, list[float]]]:
    """The obvious oracle: torch's Adam, one seed, one batch after the other; weights, their epoch, losses."""
    generator = torch.Generator().manual_seed(seed)
    x, other = torch.from_numpy(fit), torch.from_numpy(select)
    count, batches = len(x), -(-len(x) // how.batch_size)
    weights = torch.randn(x.shape[1], generator=generator, dtype=torch.float64) / x.shape[1] ** 0.5
    weights *= min(1.0, how.max_norm / float(weights.norm()))
    often = torch.ones(count, dtype=torch.float64)
    if how.resample:
        often = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count).double()
    if how.swap:
        x = x * coins(count, generator)[:, None]
        other = other * coins(len(other), generator)[:, None]
    orders = [torch.randperm(batches, generator=generator) for _ in range(how.epochs)]
    weights.requires_grad_()
    adam = torch.optim.Adam([weights], lr=how.learning_rate)
    best, chosen, epoch_chosen = np.inf, np.zeros(x.shape[1]), 0
    curves: dict[str, list[float]] = {"loss": [], "select_loss": []}
    for epoch, order in enumerate(orders):
        with torch.no_grad():
            focus = (
                often if how.weighting is None else often * how.weighting((x @ weights)[None], epoch / how.epochs)[0]
            )
        for batch in order.tolist():
            adam.zero_grad()
            (how.loss(x[batch::batches] @ weights) * focus[batch::batches]).mean().backward()
            adam.step()
            with torch.no_grad():
                weights *= min(1.0, how.max_norm / float(weights.norm()))
        with torch.no_grad():
            unit = (other @ weights).std() if how.homogeneous else 1.0
            curves["loss"].append(float(how.loss(x @ weights).mean()))
            curves["select_loss"].append(float(how.loss(other @ weights / unit).mean()))
        if curves["select_loss"][-1] < best:
            best, chosen, epoch_chosen = curves["select_loss"][-1], weights.detach().numpy().copy(), epoch + 1
    return chosen, epoch_chosen, curves


def same(together: Heads, row: int, alone: Heads) -> bool:
    """Whether a row of one fit has the bits of the only row of another."""
    equal = [np.array_equal(together.weights[row], alone.weights[0])]
    equal += [together.best_epoch[row] == alone.best_epoch[0], together.select_loss[row] == alone.select_loss[0]]
    equal += [np.array_equal(together.curves[name][:, row], alone.curves[name][:, 0]) for name in alone.curves]
    return all(equal)


worlds = st.fixed_dictionaries(
    {
        "count": st.integers(3, 70),
        "others": st.integers(2, 20),
        "dimension": st.integers(1, 40),
        "seeds": st.lists(st.integers(0, 1000), min_size=1, max_size=12),
        "changes": st.fixed_dictionaries(
            {
                "loss": st.sampled_from(list(LOSSES.values())),
                "batch_size": st.integers(1, 80),
                "max_norm": st.sampled_from([0.1, 1.0, 50.0]),
                "resample": st.booleans(),
                "swap": st.booleans(),
                "homogeneous": st.booleans(),
                "weighting": st.sampled_from([None, halve_wrong]),
            }
        ),
    }
)


@patient
@given(worlds)
def test_a_seed_has_the_same_bits_alone_and_among_others(world: dict[str, Any]) -> None:
    fit, select = pairs(world["count"], world["dimension"]), pairs(world["others"], world["dimension"], seed=1)
    how = procedure(**world["changes"])
    together = fit_heads(fit, select, how, world["seeds"])
    assert all(same(together, row, fit_heads(fit, select, how, [seed])) for row, seed in enumerate(world["seeds"]))


@patient
@given(worlds)
def test_every_seed_is_fitted_as_by_plain_adam(world: dict[str, Any]) -> None:
    fit, select = pairs(world["count"], world["dimension"]), pairs(world["others"], world["dimension"], seed=1)
    how = procedure(**world["changes"] | {"loss": LOSSES["bradley_terry"]})  # without kinks: rounding stays rounding
    together = fit_heads(fit, select, how, world["seeds"])
    for row, seed in enumerate(world["seeds"]):
        weights, epoch, curves = one_seed(fit, select, how, seed)
        np.testing.assert_allclose(together.curves["loss"][:, row], curves["loss"], rtol=1e-8)
        np.testing.assert_allclose(together.curves["select_loss"][:, row], curves["select_loss"], rtol=1e-8)
        # Two epochs may be equally good but for rounding.
        if np.diff(np.sort(curves["select_loss"]))[0] > 1e-9:
            assert together.best_epoch[row] == epoch
            np.testing.assert_allclose(together.weights[row], weights, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_fitted_as_by_plain_adam(loss: str) -> None:
    fit, select = pairs(50, 6), pairs(10, 6, seed=1)
    how = procedure(loss=LOSSES[loss], homogeneous=loss in ("max_margin", "squared"), epochs=5)
    together = fit_heads(fit, select, how, range(4))
    for seed in range(4):
        weights, epoch, _ = one_seed(fit, select, how, seed)
        assert together.best_epoch[seed] == epoch
        np.testing.assert_allclose(together.weights[seed], weights, atol=1e-9)


def test_weights_stay_in_the_ball_and_reach_its_surface() -> None:
    how = procedure(loss=LOSSES["max_margin"], epochs=20)
    heads = fit_heads(pairs(60, 5), pairs(20, 5), dataclasses.replace(how, max_norm=0.7), range(3))
    assert (heads.curves["norm"] <= 0.7 * (1 + 1e-12)).all()
    np.testing.assert_allclose(heads.curves["norm"][-1], 0.7, rtol=0.01)
    free = fit_heads(pairs(60, 5), pairs(20, 5), dataclasses.replace(how, max_norm=1e9), range(3))
    assert (free.curves["norm"][-1] > 3).all()  # it is the bound that held


def test_select_chooses_the_epoch_and_its_weights() -> None:
    """What is learned of `fit` is soon wrong of `select`, which says the opposite."""
    fit = pairs(64, 4)
    heads = fit_heads(fit, -fit, procedure(epochs=12), range(9))
    assert heads.best_epoch.min() == 1
    np.testing.assert_array_equal(heads.best_epoch, 1 + heads.curves["select_loss"].argmin(axis=0))
    kept = LOSSES["bradley_terry"](torch.from_numpy(heads.weights @ -fit.T)).mean(1)
    np.testing.assert_allclose(kept, heads.curves["select_loss"].min(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(heads.select_loss, heads.curves["select_loss"].min(axis=0))


def test_the_placebo_swaps_select_too() -> None:
    """On pairs that all agree a fit ranks the expert first; a placebo knows it of neither part, and seeds differ."""
    fit, select = np.ones((400, 1)), np.ones((200, 1))
    real = fit_heads(fit, select, procedure(), range(8))
    assert (real.curves["select_expert_first"] == 1).all()
    placebo = fit_heads(fit, select, procedure(swap=True), range(8))
    for part in ("expert_first", "select_expert_first"):
        shares = placebo.curves[part][-1]
        assert (abs(shares - 0.5) < 0.2).all()
        assert len(set(shares)) > 1


def test_a_prompt_is_drawn_with_all_its_pairs() -> None:
    """Two pairs a prompt, of which the second is that of the first, have the fit of one pair a prompt."""
    once, how = pairs(40, 3), procedure(resample=True, batch_size=1000)
    twice = fit_heads(np.repeat(once, 2, axis=0), once, how, range(4), prompts=np.repeat(np.arange(40), 2))
    np.testing.assert_allclose(twice.weights, fit_heads(once, once, how, range(4)).weights, atol=1e-9)
    single = fit_heads(np.repeat(once, 2, axis=0), once, how, range(4))
    assert np.abs(single.weights - twice.weights).max() > 1e-3


def test_progress_is_told_after_each_epoch() -> None:
    told: list[tuple[int, int]] = []
    fit_heads(pairs(9, 2), pairs(3, 2), procedure(), [0], progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@given(st.integers(2, 50), st.integers(1, 5))
def test_spread_is_the_standard_deviation(count: int, rows: int) -> None:
    values = torch.from_numpy(pairs(rows, count))
    np.testing.assert_allclose(spread(values), values.std(dim=1, keepdim=True), rtol=1e-12)


# -------------------------------------------------------------------------------------------- exact worlds


def settled(fit: Floats, loss: str, *, max_norm: float = 1e6, epochs: int = 300, rate: float = 0.05) -> Floats:
    """Weights of two seeds after a long fit in whole batches, with a rate that falls: (2, d)."""
    how = procedure(loss=LOSSES[loss], batch_size=len(fit), max_norm=max_norm, epochs=epochs, learning_rate=rate)
    return fit_heads(fit, fit, how, [0, 1]).weights


def test_max_margin_on_the_ball_is_the_mean_difference() -> None:
    """If all coordinates have one size: Adam's steps have, whatever sizes the gradient has."""
    fit = pairs(500, 4)
    mean = np.array([0.3, -0.3, 0.3, 0.3])
    fit += mean - fit.mean(axis=0)
    how = procedure(
        loss=lambda margin: losses.max_margin(margin, correct_penalty=1.0, wrong_penalty=1.0),
        batch_size=500,
        epochs=600,
        learning_rate=0.01,
        max_norm=1.0,
    )
    for weights in fit_heads(fit, fit, how, [0, 1]).weights:
        assert weights @ mean / np.linalg.norm(mean) == pytest.approx(1.0, abs=1e-6)


EXPERT, BASELINE = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])


def bandit(draws: int = 40) -> Floats:
    """All pairs of completions of one prompt as often as the policies (times `draws` each) draw them: one-hot."""
    expert = np.repeat(np.arange(4), np.rint(EXPERT * draws).astype(int))
    baseline = np.repeat(np.arange(4), np.rint(BASELINE * draws).astype(int))
    one_hot = np.eye(4)
    return (one_hot[expert][:, None] - one_hot[baseline][None]).reshape(-1, 4)


def test_bradley_terry_is_the_log_ratio_of_the_policies() -> None:
    implicit = 0.5 * np.log(EXPERT / BASELINE)  # at the temperature 1/2
    for weights in settled(bandit(), "bradley_terry", epochs=600, rate=0.02):
        np.testing.assert_allclose(weights - weights.mean(), implicit - implicit.mean(), atol=1e-4)


def preference(count: int) -> Floats:
    """Two completions of one prompt, `count` of ten pairs in favour of the first."""
    return np.repeat([[1.0], [-1.0]], [count, 10 - count], axis=0)


@pytest.mark.parametrize("count", [2, 6, 9])
def test_hinge_is_a_step_function(count: int) -> None:
    """The target margin on the side of the preference, however strong that is."""
    for weights in settled(preference(count), "hinge", rate=0.02):
        assert float(weights[0]) == pytest.approx(1.0 if count > 5 else -1.0, abs=0.03)


@pytest.mark.parametrize(("count", "margin"), [(9, 2.0), (6, 0.0), (4, 0.0), (1, -2.0)])
def test_confidence_margin_is_a_step_function_of_strong_preferences(count: int, margin: float) -> None:
    """With c = 1/2 the hinge ends at m / (1 - c) = 2, and a wrong pair costs three times what a right one gains."""
    for weights in settled(preference(count), "confidence_margin", rate=0.02, epochs=600):
        assert float(weights[0]) == pytest.approx(margin, abs=0.05)


def test_squared_forgets_everything() -> None:
    for weights in settled(bandit(), "squared"):
        np.testing.assert_allclose(weights, weights.mean(), atol=1e-3)

"""Exact ranges of effects: worlds where demonstrations decide a statement and where they leave it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from irl_exp import determined
from irl_exp.determined import Fitted, Floats, Loss
from irl_exp.explain import ranges
from irl_exp.explain.choice import centred
from irl_exp.irl.contrast import Basis, Demonstrations
from irl_exp.machinery import store

LOSSES: dict[str, Loss] = {
    "max_margin": determined.max_margin(correct_penalty=1.0, wrong_penalty=2.0),
    "hinge": determined.hinge(target_margin=1.0),
    "bradley_terry": determined.bradley_terry(temperature=1.0),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def demonstrations(features: Floats, prompts: int, each: int, *, fit: int) -> Demonstrations:
    """Features (2, prompts, each, d) of expert and baseline; the first prompts are those of fit."""
    count = 2 * prompts * each
    prompt = np.tile(np.repeat(np.arange(prompts), each), 2)
    frame = pd.DataFrame(
        {
            "part": np.where(prompt < fit, "fit", "test"),
            "policy": np.repeat(["expert", "baseline"], prompts * each),
            "prompt_id": prompt,
            "sample": np.tile(np.arange(each), 2 * prompts),
        }
    )
    return Demonstrations(frame, features.reshape(count, -1).astype(np.float32))


def world(shift: Floats, *, prompts: int = 150, each: int = 4, seed: int = 0, fit: int = 100) -> Demonstrations:
    """Independent features of sd 1, shifted by +-shift / 2 for expert and baseline."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(2, prompts, each, len(shift)))
    return demonstrations(noise + np.array([0.5, -0.5])[:, None, None, None] * shift, prompts, each, fit=fit)


def linear(
    seen: Demonstrations, loss: Loss, weights: Floats | None = None, *, scaling: str = "whiten"
) -> ranges.Linear:
    """The problem of the demonstrations, and its best reward where no other is given."""
    problem = Fitted.of(seen, loss, scaling=scaling, ridge=1e-4, max_norm=1.0)
    if weights is None:
        weights = problem.scaling.transform @ problem.optimum(problem.pairs).weights
    return ranges.Linear(problem, weights)


def on_test(seen: Demonstrations) -> NDArray[np.int64]:
    return np.flatnonzero(seen.frame["part"] == "test")


@each_loss
def test_what_the_demonstrations_decide_is_certified_and_what_they_never_show_is_open(name: str) -> None:
    """Feature 0 is what the expert differs in; 1 is one number a prompt, which no pair shows."""
    seen = world(np.array([1.5, 0.0, 0.0]))
    prompt = seen.frame["prompt_id"].to_numpy()
    seen.features[:, 1] = np.random.default_rng(1).normal(size=prompt.max() + 1)[prompt]
    rows = on_test(seen)
    statements = np.column_stack([seen.features[rows, 0] > 0, -seen.features[rows, 0] > 0.5, seen.features[rows, 1]])
    found = ranges.effect_ranges(linear(seen, LOSSES[name]), rows, statements[:, [0, 2]], np.empty((len(rows), 0)))
    charged = ranges.effect_ranges(linear(seen, LOSSES[name]), rows, statements[:, [1, 2]], np.empty((len(rows), 0)))
    assert found.certified.tolist() == [True, False]
    assert charged.certified.tolist() == [True, False]
    assert (found.signs[0], charged.signs[0]) == (1, -1)
    assert found.low[1] < 0 < found.high[1]
    assert (found.low <= found.effect).all()
    assert (found.effect <= found.high).all()
    assert found.excess == pytest.approx(0, abs=0.01)


def test_effects_are_those_of_a_regression_within_policies() -> None:
    seen = world(np.array([1.0, -0.5, 0.0, 0.0]))
    rows, random = on_test(seen), np.random.default_rng(2)
    statements = random.random((len(rows), 3)) < 0.3
    length = random.normal(size=(len(rows), 1)) + statements[:, :1]
    weights = np.array([-0.5, -0.4, 0.2, 0.1])
    found = ranges.effect_ranges(linear(seen, LOSSES["max_margin"], weights), rows, statements * 1.0, length)
    learned, expert = seen.features[rows] @ weights, seen.frame["policy"].to_numpy()[rows] == "expert"
    design = np.column_stack([statements, length, expert, ~expert])
    plain = np.linalg.lstsq(design, learned, rcond=None)[0][:3]
    sd = np.sqrt(np.mean([learned[expert].var(), learned[~expert].var()]))
    np.testing.assert_allclose(found.effect, plain / sd, rtol=1e-6)
    assert found.sd == pytest.approx(sd)
    assert found.excess > 1, "a reward far from the best lies outside"


@each_loss
def test_the_range_is_that_of_a_grid_of_rewards(name: str) -> None:
    """Brute force in three dimensions: no reward of W passes the range, and some come near its ends."""
    seen = world(np.array([0.8, 0.3, 0.0]), prompts=60, each=2, fit=40)
    reward, rows = linear(seen, LOSSES[name]), on_test(seen)
    statements = (seen.features[rows][:, [0, 2]] > 0).astype(np.float64)
    found = ranges.effect_ranges(reward, rows, statements, np.empty((len(rows), 0)), precision=0.01)
    problem, pairs = reward.problem, reward.problem.pairs
    directions = np.random.default_rng(3).normal(size=(60_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = np.array([1.0]) if name == "max_margin" else np.linspace(0.5, 1, 5)
    policies = seen.frame["policy"].to_numpy()[rows]
    part = ranges.partial(centred(statements, policies), 2) @ centred(problem.scaling(seen.features)[rows], policies)
    best = problem.optimum(pairs)
    ends = []
    for radius in radii:
        for some in np.array_split(radius * directions, 12):
            inside = problem.loss(some @ pairs.T).mean(axis=1) <= best.loss + found.tolerance
            ends.append(some[inside] @ part.T / found.sd)
    attained = np.concatenate(ends)
    assert len(attained) > 100
    width = found.high - found.low
    assert (attained.min(axis=0) >= found.low - 1e-9).all()
    assert (attained.max(axis=0) <= found.high + 1e-9).all()
    assert (attained.min(axis=0) <= found.low + 0.15 * width).all()
    assert (attained.max(axis=0) >= found.high - 0.15 * width).all()


@pytest.mark.parametrize("scaling", ["none", "whiten"])
def test_the_effect_in_the_population_is_held_19_times_in_20(scaling: str) -> None:
    """Spherical features: the population's best reward lies along the shift, whatever the loss."""
    shift, held = np.linspace(0.9, 0, 8), []
    for seed in range(20):
        seen = world(shift, prompts=160, each=3, seed=seed, fit=120)
        rows = on_test(seen)
        reward = linear(seen, LOSSES["max_margin"], scaling=scaling)
        statements = (seen.features[rows][:, :6] > 0.3).astype(np.float64)
        found = ranges.effect_ranges(reward, rows, statements, np.empty((len(rows), 0)), seed=seed)
        policies = seen.frame["policy"].to_numpy()[rows]
        part = ranges.partial(centred(statements, policies), 6)
        size = np.linalg.norm(np.linalg.solve(reward.problem.scaling.transform, shift))
        effects = part @ (seen.features[rows] @ shift) / size / found.sd
        held.append((found.low <= effects) & (effects <= found.high))
    assert 0.90 <= np.mean(held) <= 0.99


def test_a_statement_that_nothing_decides_does_not_widen_the_others() -> None:
    seen = world(np.array([1.5, 0.0, 0.0]))
    prompt = seen.frame["prompt_id"].to_numpy()
    seen.features[:, 1] = np.random.default_rng(1).normal(size=prompt.max() + 1)[prompt]
    rows = on_test(seen)
    reward, none = linear(seen, LOSSES["max_margin"]), np.empty((len(rows), 0))
    decided, hidden = seen.features[rows, 0] > 0, seen.features[rows, 1]
    alone = ranges.effect_ranges(reward, rows, decided[:, None] * 1.0, none)
    beside = ranges.effect_ranges(reward, rows, np.column_stack([decided, hidden]), none)
    assert (beside.high - beside.low)[0] < 2 * (alone.high - alone.low)[0]


def test_policies_that_write_alike_certify_next_to_nothing() -> None:
    """A learned reward of noise: with many features the best reward fits the noise, and its statements stay open."""
    signs = []
    for seed in range(8):
        seen = world(np.zeros(64), prompts=160, each=3, seed=seed, fit=120)
        rows = on_test(seen)
        reward = linear(seen, LOSSES["hinge"], np.random.default_rng(seed).normal(size=64))
        statements = (seen.features[rows][:, :6] > 0.3).astype(np.float64)
        signs.append(ranges.effect_ranges(reward, rows, statements, statements[:, :0]).signs)
    assert np.mean(np.array(signs) != 0) <= 0.1


def test_where_no_reward_is_better_than_none_there_are_no_ranges() -> None:
    seen = world(np.zeros(4))
    rows = on_test(seen)
    column = (seen.features[rows][:, :1] > 0).astype(np.float64)
    reward = linear(seen, LOSSES["max_margin"], np.ones(4))
    with pytest.raises(ranges.NoRangesError, match="no reward explains"):
        ranges.effect_ranges(reward, rows, column, column[:, :0])


def test_a_column_that_says_nothing_of_its_own_is_refused() -> None:
    seen = world(np.array([1.0, 0.0]))
    rows = on_test(seen)
    column = np.random.default_rng(0).random((len(rows), 1))
    with pytest.raises(ValueError, match="column 1 of the design"):
        ranges.effect_ranges(linear(seen, LOSSES["hinge"]), rows, np.hstack([column, 2 * column]), column[:, :0])
    with pytest.raises(ranges.NoRangesError, match="no statement to bound"):
        ranges.effect_ranges(linear(seen, LOSSES["hinge"]), rows, column[:, :0], column)
    with pytest.raises(ValueError, match="column 0 of the design"):
        ranges.effect_ranges(linear(seen, LOSSES["hinge"]), rows, np.ones((len(rows), 1)), column)


def kept(folder: Path, weights: Floats, **changes: Any) -> Path:
    """An artifact of irl as far as ranges read it."""
    config = {
        "name": "margin",
        "backbone": {"name": "frozen"},
        "loss": {"name": "max_margin", "correct_penalty": 1.0, "wrong_penalty": 2.0},
        "scaling": "whiten",
        "prompt_fraction": 1.0,
        "completions": None,
        **changes,
    }

    def write(path: Path) -> dict[str, Any]:
        save_file({"weights": weights[None], "center": np.zeros(len(weights))}, path / "head.safetensors")
        return {"ridge": 1e-4, "max_norm": 1.0}

    return store.Store(folder).get(store.Identity("irl", 1, config, {}), write).folder


def test_a_stored_reward_brings_its_problem(tmp_path: Path) -> None:
    seen, weights = world(np.array([1.0, 0.0])), np.array([0.5, 0.25])
    reward = ranges.stored(kept(tmp_path, weights), seen.frame, seen.features)
    assert (reward.weights.tolist(), reward.problem.loss) == (weights.tolist(), LOSSES["max_margin"])
    np.testing.assert_allclose(reward.problem.pairs, linear(seen, LOSSES["hinge"]).problem.pairs)
    half = ranges.stored(kept(tmp_path, weights, prompt_fraction=0.5), seen.frame, seen.features)
    assert len(half.problem.pairs) == len(reward.problem.pairs) / 2


def test_a_reward_of_components_has_a_problem_of_components(tmp_path: Path) -> None:
    seen = world(np.array([1.0, 0.5, 0.0, 0.2]))
    basis = Basis.of(seen.features, seen.rows_of_fit, 2)
    inside = np.array([0.6, -0.3])
    reward = ranges.stored(kept(tmp_path, basis.directions @ inside, components=2), seen.frame, seen.features)
    np.testing.assert_allclose(reward.weights, inside, atol=1e-12)
    found = reward.problem.seen.features.astype(np.float64) @ reward.weights
    expected = (seen.features - basis.center) @ basis.directions @ inside
    np.testing.assert_allclose(found, expected, atol=1e-5)
    rows = on_test(seen)
    column = np.random.default_rng(0).random((len(rows), 1))
    told = ranges.effect_ranges(reward, rows, column, column[:, :0])
    assert told.low[0] <= told.best[0] <= told.high[0]
    wide = np.zeros((len(seen.frame), ranges.WIDEST + 1), dtype=np.float32)
    wide[:, :4] = seen.features
    many = np.zeros(ranges.WIDEST + 1)
    assert ranges.stored(kept(tmp_path / "wide", many, components=2), seen.frame, wide).weights.shape == (2,)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "ensemble"}, "irl=ensemble: exact ranges are known for irl=margin"),
        ({"name": "bayesian"}, "irl=bayesian"),
        ({"name": "implicit"}, "irl=implicit"),
        ({"backbone": {"name": "lora"}}, "irl/backbone=lora was trained with the head"),
        ({"loss": {"name": "squared"}}, "irl/loss=squared is not convex"),
        ({"loss": {"name": "max_margin", "correct_penalty": 3, "wrong_penalty": 2}}, "only with 0 <= correct <= wrong"),
    ],
)
def test_other_methods_have_no_ranges_and_say_why(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    seen = world(np.array([1.0, 0.0]), prompts=6, fit=4)
    with pytest.raises(ranges.NoRangesError, match=told):
        ranges.stored(kept(tmp_path, np.ones(2), **changes), seen.frame, seen.features)


def test_too_many_features_are_refused_before_any_work(tmp_path: Path) -> None:
    seen = world(np.array([1.0, 0.0]), prompts=6, fit=4)
    wide = np.zeros((len(seen.frame), ranges.WIDEST + 1), dtype=np.float32)
    with pytest.raises(ranges.NoRangesError, match="2,305 features"):
        ranges.stored(kept(tmp_path, np.ones(2)), seen.frame, wide)


def test_a_reward_that_says_nothing_within_policies_has_no_ranges() -> None:
    seen = world(np.array([1.0, 0.0]))
    rows = on_test(seen)
    column = np.random.default_rng(0).random((len(rows), 1))
    with pytest.raises(ranges.NoRangesError, match="constant within policies"):
        ranges.effect_ranges(linear(seen, LOSSES["hinge"], np.zeros(2)), rows, column, column[:, :0])


def test_pairs_that_all_have_the_same_loss_give_no_tolerance_a_scale() -> None:
    """The expert is ahead by 3 in every pair, which a hinge at 1 asks no more of."""
    features = np.random.default_rng(0).normal(size=(2, 30, 2, 2))
    features[..., 0] = np.array([3.0, 0.0])[:, None, None]
    seen = demonstrations(features, 30, 2, fit=20)
    rows = on_test(seen)
    column = np.random.default_rng(1).random((len(rows), 1))
    reward = linear(seen, LOSSES["hinge"], np.array([0.5, 0.1]), scaling="none")
    with pytest.raises(ranges.NoRangesError, match="no scale for a tolerance"):
        ranges.effect_ranges(reward, rows, column, column[:, :0])

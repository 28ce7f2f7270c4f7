"""Where the optimisers stand still, counted exactly: benchmarks/fixed_points.py, and that it counts what it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax


def _benchmark() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "fixed_points.py"
    specification = importlib.util.spec_from_file_location("fixed_points", path)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules["fixed_points"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


worlds = _benchmark()
both_lengths = pytest.mark.parametrize("completions", [worlds.ONE_TOKEN, worlds.TWO_TOKENS], ids=["one", "two"])
generations_2_and_4 = pytest.mark.parametrize("generations", [2, 4])


@both_lengths
@generations_2_and_4
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_with_the_kl_in_the_reward_the_fixed_point_is_the_optimum(
    algorithm: str, generations: int, completions: Any
) -> None:
    for seed in range(2):
        world = worlds.World.draw(completions, seed)
        found = worlds.fixed_point(algorithm, world, generations)
        optimum = world.log_probabilities(world.reference) + world.truth / world.beta
        optimum -= np.log(np.exp(optimum).sum())
        np.testing.assert_allclose(world.log_probabilities(found), optimum, atol=1e-6)
        epic, slope = world.distances(found)
        assert epic < 1e-3
        assert slope == pytest.approx(1, abs=1e-6)


@generations_2_and_4
def test_with_the_coefficient_in_the_loss_of_grpo_it_is_another(generations: int) -> None:
    """What the chain avoids: the group mean takes its share of the reward alone, later tokens answer for no KL."""
    world = worlds.World.draw(worlds.ONE_TOKEN, 0)
    epic, slope = world.distances(worlds.fixed_point("grpo, as TRL", world, generations))
    assert epic < 1e-3
    assert slope == pytest.approx(1 - 1 / generations, abs=1e-6)
    epic, _ = world.distances(worlds.fixed_point("grpo, as published", world, generations))
    assert epic > 0.01
    longer = worlds.World.draw(worlds.TWO_TOKENS, 0)
    assert longer.distances(worlds.fixed_point("grpo, as TRL", longer, generations))[0] > 0.02


@pytest.mark.parametrize("algorithm", worlds.ALGORITHMS)
def test_the_expected_step_is_the_mean_of_sampled_steps(algorithm: str) -> None:
    """The sums over groups against groups that were drawn, token by token, with the formulas written out."""
    world, generator, draws, generations = worlds.World.draw(worlds.TWO_TOKENS, 1), np.random.default_rng(0), 60_000, 3
    logits = generator.normal(size=(3, 3))
    log_p, log_reference = log_softmax(logits, axis=1), log_softmax(world.reference, axis=1)
    own, base = world.log_probabilities(logits), world.log_probabilities(world.reference)
    drawn = generator.choice(len(own), size=(draws, generations), p=np.exp(own))
    step, mass = np.zeros((3, 3)), np.zeros((3, 1))
    for numbers, count in zip(*np.unique(drawn, axis=0, return_counts=True), strict=True):
        tokens = sum(len(world.completions[number]) for number in numbers)
        for place, number in enumerate(numbers):
            rewards = world.truth[numbers]
            if algorithm in ("rloo", "grpo"):
                rewards = rewards - world.beta * (own - base)[numbers]
            baseline = np.delete(rewards, place).mean() if algorithm == "rloo" else rewards.mean()
            share = count / (generations if algorithm == "rloo" else tokens)
            sequence = world.completions[number]
            for position, token in enumerate(sequence):
                prefix = 0 if position == 0 else 1 + sequence[0]
                weight = rewards[place] - baseline
                ratio = log_reference[prefix, token] - log_p[prefix, token]  # k3 = exp(ratio) - ratio - 1
                if algorithm == "grpo, as TRL":
                    weight += world.beta * ratio
                elif algorithm == "grpo, as published":
                    weight -= world.beta * (1 - np.exp(ratio))
                step[prefix] += share * weight * (np.arange(3) == token) - share * weight * np.exp(log_p[prefix])
                mass[prefix] += share
    expected = worlds.expected_step(algorithm, world, generations, logits)
    np.testing.assert_allclose(step / mass / np.exp(log_p), expected, atol=0.05)

"""Over-optimisation on trajectories whose course is known: exact curves, planted declines, and noise alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from irl_exp.measures.overoptimisation import curves, equal_kl, verdict, windows_of

PROMPTS = 40


def trajectory(
    learned: list[float] | NDArray[np.float64],
    truth: list[float] | NDArray[np.float64],
    *,
    noise: float = 0.0,
    prompt_sd: float = 0.0,
    per_step: int = 16,
    seed: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """One row a completion; `learned` and `truth` are the means of the steps. Prompts differ by `prompt_sd`."""
    generator = np.random.default_rng(seed)
    steps = len(truth)
    prompts = np.concatenate([generator.permutation(PROMPTS)[: per_step // 4].repeat(4) for _ in range(steps)])
    difficulty = prompt_sd * generator.normal(size=(2, PROMPTS))
    draw = noise * generator.normal(size=(2, steps * per_step))
    return pd.DataFrame(
        {
            "step": np.arange(1, steps + 1).repeat(per_step),
            "prompt": [f"p{number}" for number in prompts],
            "completion": [f"c{number}" for number in range(steps * per_step)],
            "tokens": 8,
            "kl": (0.1 * np.arange(steps)).repeat(per_step),
            "learned": np.repeat(learned, per_step) + difficulty[0, prompts] + draw[0],
            "truth": np.repeat(truth, per_step) + difficulty[1, prompts] + draw[1],
        }
    )


RISE = np.linspace(0, 2, 40)
BUMP = np.concatenate([np.linspace(0, 1, 20), np.linspace(1, -1, 20)])


@given(st.integers(1, 60), st.integers(1, 8))
def test_windows_are_equal_up_to_one_step_and_in_order(steps: int, windows: int) -> None:
    found = windows_of(np.arange(3, 3 + steps).repeat(2), windows)
    assert (np.diff(found) >= 0).all()
    sizes = np.bincount(found)
    assert len(sizes) == min(windows, steps)
    assert sizes.max() - sizes.min() <= 2
    assert (found[::2] == found[1::2]).all()


def test_the_curves_of_a_known_trajectory() -> None:
    frame = trajectory(RISE, BUMP).assign(tokens=lambda rows: rows["step"])
    frame["completion"] = ["the same"] * 128 + frame["completion"].tolist()[128:]
    found = curves(frame)
    assert found["last_step"].tolist() == [8, 16, 24, 32, 40]
    assert found["completions"].tolist() == [128] * 5
    for name, values in (("learned", RISE), ("truth", BUMP), ("length", np.arange(1, 41)), ("kl", np.arange(40) / 10)):
        np.testing.assert_allclose(found[name], values.reshape(5, 8).mean(axis=1))
    assert found["distinct_fraction"].tolist() == pytest.approx([1 / 128, 1, 1, 1, 1])
    np.testing.assert_allclose(found["kl_se"], np.std(np.arange(8) / 10, ddof=1) / np.sqrt(8))


def test_the_standard_error_is_that_of_clusters() -> None:
    """Against the textbook on equal clusters: the sd of the prompts' means over the root of their number."""
    frame = trajectory([0.0] * 4, [0.0] * 4, noise=1, prompt_sd=1, per_step=4 * PROMPTS, seed=3)
    (row,) = curves(frame, windows=1).to_dict("records")
    means = frame.groupby("prompt")["truth"].mean()
    assert row["prompts"] == PROMPTS
    assert row["truth_se"] == pytest.approx(means.std(ddof=1) / np.sqrt(PROMPTS))
    halves = frame.assign(half=windows_of(frame["step"].to_numpy(), 2)).pivot_table("truth", "prompt", "half")
    change = halves[1] - halves[0]
    found = verdict(frame, windows=2)
    half_width = (found["truth_change_high"] - found["truth_change_low"]) / 2
    assert found["truth_change"] == pytest.approx(change.mean())
    assert half_width == pytest.approx(2.0227 * change.std(ddof=1) / np.sqrt(PROMPTS), rel=1e-4), "paired, 39 df"


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50))
def test_a_clear_decline_behind_a_rising_reward_is_seen(seed: int) -> None:
    found = verdict(trajectory(RISE, BUMP, noise=0.3, prompt_sd=0.3, seed=seed))
    assert found["over_optimised"] == 1
    assert found["peak_step"] in (16, 24)
    assert found["truth_change_high"] < 0 < found["learned_change_low"]


@pytest.mark.parametrize(
    ("learned", "truth"),
    [(RISE, RISE), (RISE, np.ones(40)), (BUMP, BUMP), (-RISE, BUMP), (np.ones(40), BUMP), (-RISE, RISE)],
    ids=["both rise", "R* flat", "both fall", "learned falls", "learned flat", "R* alone rises"],
)
def test_nothing_else_is_called_so(learned: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
    for seed in range(10):
        assert verdict(trajectory(learned, truth, noise=0.3, prompt_sd=1, seed=seed))["over_optimised"] == 0


def test_a_plateau_of_r_star_is_rarely_called_a_fall_although_the_peak_is_picked() -> None:
    """The learned reward really rises, R* is noise: at most 5 % are called over-optimised (200 trajectories)."""
    generator = np.random.default_rng(0)
    flat = np.zeros(40)
    called = [
        verdict(trajectory(RISE, flat, noise=1, prompt_sd=1, seed=generator))["over_optimised"] for _ in range(200)
    ]
    assert 0 < sum(called) <= 10, "within the bound, and the bound is not met by never calling it"


def test_noise_alone_is_never_called_over_optimised_in_practice() -> None:
    generator = np.random.default_rng(1)
    flat = np.zeros(40)
    called = [
        verdict(trajectory(flat, flat, noise=1, prompt_sd=1, seed=generator))["over_optimised"] for _ in range(100)
    ]
    assert sum(called) <= 2


# ---------------------------------------------------------------- at equal KL


def way(top: float, furthest: float, *, noise: float = 0.0, steps: int = 32, seed: int = 0) -> pd.DataFrame:
    """A policy that goes from 0 to `furthest` nats; R* of a KL is `top` times a curve that all policies share."""
    generator = np.random.default_rng(seed)
    kl = furthest * (1 - np.exp(-2.5 * np.arange(steps) / (steps - 1))) / (1 - np.exp(-2.5))
    frame = trajectory(top * earned(kl), top * earned(kl), noise=noise, prompt_sd=noise, seed=generator)
    return frame.assign(kl=(kl + noise / 5 * generator.normal(size=steps)).repeat(16))


def earned(kl: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 - np.exp(-kl))


def test_at_equal_kl_a_policy_that_only_went_further_gains_nothing() -> None:
    """It has 1.14 times the gain; at the KLs that both pass their R* is the same."""
    found = equal_kl(way(2.0, 4.0), way(2.0, 2.0))
    assert found["difference"] == pytest.approx(0, abs=0.01)
    assert (found["from"], found["to"]) == pytest.approx((0, 2), abs=0.02)


def test_a_policy_that_buys_less_for_its_kl_is_below_by_that_much() -> None:
    found = equal_kl(way(1.0, 2.0), way(2.0, 2.0))
    assert found["refinetuned_reward"] == pytest.approx(found["expert_reward"] / 2)
    assert found["difference"] == pytest.approx(found["refinetuned_reward"] - found["expert_reward"])
    assert found["expert_reward"] == pytest.approx(2 * earned(np.linspace(0, 2, 1000)).mean(), rel=0.01)
    assert found["difference_high"] < 0


def test_the_interval_at_equal_kl_knows_that_both_coordinates_are_estimates() -> None:
    """Over worlds the estimates scatter as their intervals say; 60 worlds, so between 85 and 100 % are right."""
    worlds = [equal_kl(way(2.0, 3.0, noise=1, seed=2 * n), way(2.0, 2.0, noise=1, seed=2 * n + 1)) for n in range(60)]
    for name in ("difference", "refinetuned_reward", "expert_reward"):
        scale = {"difference": 0.0}.get(name, 2 * earned(np.linspace(0, 2, 1000)).mean())
        middle = np.mean([found[name] for found in worlds])
        assert middle == pytest.approx(scale, abs=0.1)
        inside = [found[f"{name}_low"] <= middle <= found[f"{name}_high"] for found in worlds]
        assert 0.85 <= np.mean(inside) <= 1
        half = np.mean([found[f"{name}_high"] - found[name] for found in worlds])
        assert 0.7 < half / (1.96 * np.std([found[name] for found in worlds], ddof=1)) < 1.6


def test_the_kl_of_one_step_that_is_off_makes_the_interval_wider() -> None:
    exact = equal_kl(way(2.0, 3.0), way(2.0, 2.0))
    frame = way(2.0, 2.0)
    frame["kl"] += np.where(frame["step"] % 2, 0.2, -0.2)
    noisy = equal_kl(way(2.0, 3.0), frame)
    widths = [found["difference_high"] - found["difference_low"] for found in (exact, noisy)]
    assert widths[1] > 1.5 * widths[0]


def test_where_no_kl_is_passed_by_both_or_none_is_known_nothing_is_said() -> None:
    expert = way(2.0, 2.0)
    assert equal_kl(way(2.0, 4.0).assign(kl=lambda rows: rows["kl"] + 5), expert) == {}
    assert equal_kl(way(2.0, 4.0).drop(columns="kl"), expert) == {}
    assert equal_kl(way(2.0, 4.0, steps=6), expert) == {}, "no step is left to tell its error"


def test_what_is_too_little_is_left_out_and_what_is_broken_raises() -> None:
    assert verdict(trajectory([1.0], [1.0])) == {}
    assert verdict(trajectory(RISE, BUMP).assign(prompt="one")) == {}
    assert set(verdict(trajectory([0.0, 1.0], [1.0, 0.0]))) >= {"over_optimised", "peak_step"}, "two steps, two windows"
    for name in ("learned", "truth"):
        with pytest.raises(ValueError, match=name):
            verdict(trajectory(RISE, BUMP).assign(**{name: np.nan}))

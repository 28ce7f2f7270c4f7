"""Over-optimisation on trajectories whose course is known: exact curves, planted declines, and noise alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from irl_exp.measures.overoptimisation import curves, over_optimisation, reward_at_matched_kl, verdict, windows_of

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


def test_the_reward_at_a_kl_is_interpolated_where_the_curve_first_gets_there() -> None:
    curve = pd.DataFrame({"kl": [0.0, 1.0, 3.0, 2.0], "truth": [0.0, 1.0, 2.0, 9.0], "truth_se": [0.3, 0.4, 0.0, 0.0]})
    assert reward_at_matched_kl(curve, 1.5)["reward_at_matched_kl"] == pytest.approx(1.25)
    assert reward_at_matched_kl(curve, 3.0)["reward_at_matched_kl"] == pytest.approx(2)
    half = reward_at_matched_kl(curve, 0.5)
    se = np.hypot(0.5 * 0.3, 0.5 * 0.4)
    assert half["reward_at_matched_kl_high"] - half["reward_at_matched_kl"] == pytest.approx(1.96 * se)
    assert reward_at_matched_kl(curve, 3.1) == {}
    assert reward_at_matched_kl(curve, -0.1) == {}
    assert reward_at_matched_kl(curve.iloc[:1], 0.0) == {}


def test_all_numbers_of_a_run_in_one_flat_dictionary() -> None:
    refinetune = trajectory(RISE, BUMP)
    expert = trajectory(RISE, RISE).assign(kl=lambda rows: 0.5 * rows["kl"])
    found = over_optimisation(refinetune, expert)
    assert found["matched_kl"] == pytest.approx(0.05 * np.arange(32, 40).mean())
    assert found["expert_reward_at_matched_kl"] == pytest.approx(RISE[32:].mean())
    centres, means = (values.reshape(5, 8).mean(axis=1) for values in (np.arange(40) / 10, BUMP))
    assert found["reward_at_matched_kl"] == pytest.approx(np.interp(found["matched_kl"], centres, means))
    assert found["over_optimised"] == 1
    assert over_optimisation(refinetune) == verdict(refinetune)
    assert over_optimisation(refinetune.drop(columns="kl"), expert) == verdict(refinetune)


def test_what_is_too_little_is_left_out_and_what_is_broken_raises() -> None:
    assert verdict(trajectory([1.0], [1.0])) == {}
    assert verdict(trajectory(RISE, BUMP).assign(prompt="one")) == {}
    assert set(verdict(trajectory([0.0, 1.0], [1.0, 0.0]))) >= {"over_optimised", "peak_step"}, "two steps, two windows"
    for name in ("learned", "truth"):
        with pytest.raises(ValueError, match=name):
            verdict(trajectory(RISE, BUMP).assign(**{name: np.nan}))

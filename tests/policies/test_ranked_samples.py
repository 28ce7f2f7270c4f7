"""Experts out of ranked samples, on a policy over three letters: where they start and end, what they keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
from numpy.typing import NDArray

from irl_exp.config import BestOfNConfig, DpoConfig
from irl_exp.machinery.runtime import Device
from irl_exp.policies import ranked_samples
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.policy_optimization import OptimizationError
from irl_exp.policies.ranked_samples import train_on_ranked
from irl_exp.policies.sampling import Written, generate

PROMPTS = ["a", "b", "c", "a b", "b c", "c a", "a a", "b b"]
Score = Callable[[Completions], NDArray[np.float64]]
RECIPES: Mapping[str, type[DpoConfig] | type[BestOfNConfig]] = {"dpo": DpoConfig, "best_of_n": BestOfNConfig}
both = pytest.mark.parametrize("algorithm", RECIPES)


def share_of_a(completions: Completions) -> NDArray[np.float64]:
    """The fraction of tokens that are the letter a."""
    return np.array([np.mean(np.array(ids) == 1) for ids in completions.completion_ids])


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    small.policy("letters").save(tmp_path / "reference")
    return tmp_path / "reference"


def run(
    reference: Path,
    reward: Score = share_of_a,
    *,
    algorithm: str,
    prompts: list[str] = PROMPTS,
    rows: list[Mapping[str, float]] | None = None,
    device: Device = small.DEVICE,
    **options: Any,
) -> Policy:
    """A few steps on a few completions."""
    sizes = {"seed": 0, "steps": 3, "batch_size": 32, "generations": 4, "learning_rate": 1e-2, "max_new_tokens": 4}
    config = RECIPES[algorithm](**{**sizes, **options})
    context = replace(small.context(reference.parent / "artifact", rows), device=device)
    return train_on_ranked(reference, reward, prompts, config, context=context)


def table(reference: Path) -> pd.DataFrame:
    return pd.read_parquet(reference.parent / "artifact" / "samples.parquet")


def weights(policy: Policy) -> bytes:
    return b"".join(value.numpy().tobytes() for value in policy.model.state_dict().values())


@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_step_is_made_from_the_reference(reference: Path, algorithm: str, precision: Any) -> None:
    rows: list[Mapping[str, float]] = []
    policy = run(reference, algorithm=algorithm, rows=rows, device=Device("cpu", precision, 1))
    assert [row["step"] for row in rows] == [1, 2, 3]
    best = table(reference).query("rank == 1").head(8)
    if algorithm == "dpo":
        assert rows[0]["loss"] == pytest.approx(np.log(2), abs=0.02 if precision == "bf16" else 1e-5)
    else:
        log_p = log_probabilities(Policy.load(reference, small.DEVICE), Completions.from_frame(best))
        expected = -log_p.sum() / best["completion_ids"].map(len).sum()
        assert rows[0]["loss"] == pytest.approx(expected, abs=0.02 if precision == "bf16" else 1e-5)
    assert weights(policy) != weights(Policy.load(reference, small.DEVICE))


@both
def test_a_start_that_is_not_the_reference_is_refused(
    reference: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ranked_samples.sample

    def other(*rest: Any, **options: Any) -> list[Written]:
        return [Written(one.ids, one.log_probabilities - 0.01) for one in real(*rest, **options)]

    monkeypatch.setattr(ranked_samples, "sample", other)
    with pytest.raises(OptimizationError, match="off the reference"):
        run(reference, algorithm=algorithm)


@both
def test_the_reward_of_an_easy_task_rises(reference: Path, algorithm: str) -> None:
    policy = run(reference, algorithm=algorithm, steps=12)
    shares = [
        share_of_a(generate(one, PROMPTS * 10, max_new_tokens=4, batch_size=80, seed=0)).mean()
        for one in (Policy.load(reference, small.DEVICE), policy)
    ]
    assert shares[1] > shares[0] + 0.1


@both
def test_threads_and_micro_batches_change_nothing_that_matters(reference: Path, algorithm: str) -> None:
    one, again, three, micro = (
        run(reference, algorithm=algorithm, device=Device("cpu", "fp32", threads), **options)
        for threads, options in ((1, {}), (1, {}), (3, {}), (1, {"micro_batch_size": 16}))
    )
    assert weights(one) == weights(again) == weights(three)
    pairs = zip(one.model.parameters(), micro.model.parameters(), strict=True)
    # Adam makes a step of the learning rate out of a gradient that is nearly 0, whatever its rounding.
    assert np.mean([float((mine - theirs).detach().abs().mean()) for mine, theirs in pairs]) < 1e-3


@both
def test_the_samples_are_the_references_with_their_rewards_and_ranks(reference: Path, algorithm: str) -> None:
    run(reference, algorithm=algorithm, steps=2, batch_size=16)
    found = table(reference)
    assert len(found) == 32
    assert found["prompt"].nunique() == 8, "every prompt before one comes again"
    np.testing.assert_array_equal(found["reward"], share_of_a(Completions.from_frame(found)))
    for _, group in found.groupby(np.arange(32) // 4):
        assert group["prompt"].nunique() == 1
        best, worst = group[group["rank"] == 1], group[group["rank"] == -1]
        assert best["reward"].tolist() == [group["reward"].max()]
        if group["reward"].nunique() > 1:
            assert worst["reward"].tolist() == [group["reward"].min()]
        else:
            assert worst.empty


def test_pairs_that_the_reward_does_not_tell_apart_are_left_out(reference: Path) -> None:
    rows: list[Mapping[str, float]] = []
    run(reference, lambda batch: np.array([float("a" in prompt) for prompt in batch.prompts]) * share_of_a(batch),
        algorithm="dpo", rows=rows, steps=6)  # fmt: skip
    found = table(reference)
    assert set(found.loc[found["rank"] == -1, "prompt"]) <= {prompt for prompt in PROMPTS if "a" in prompt}
    assert len(rows) == 6, "the others come again"


@both
def test_a_reward_that_says_nothing_or_no_number_is_refused(reference: Path, algorithm: str) -> None:
    with pytest.raises(OptimizationError, match="the same score"):
        run(reference, lambda batch: np.ones(len(batch)), algorithm=algorithm)
    with pytest.raises(OptimizationError, match="nan, not a finite number"):
        run(reference, lambda batch: np.full(len(batch), np.nan), algorithm=algorithm)


def world(reference: Path) -> tuple[Completions, NDArray[np.float64], Score]:
    """All completions of one token, their probabilities under the reference, and a reward without ties."""
    start = Policy.load(reference, small.DEVICE)
    every = small.all_completions(start, "a", max_new_tokens=1)
    truth = np.random.default_rng(1).permutation(len(every)).astype(float)
    rewards = dict(zip(map(tuple, every.completion_ids), truth, strict=True))
    return every, truth, lambda batch: np.array([rewards[tuple(ids)] for ids in batch.completion_ids])


def test_best_of_n_ends_at_the_distribution_of_the_best(reference: Path) -> None:
    """P(best = y) = F(y)^n - F(y-)^n with F the share of the reference that is no better than y: counted exactly."""
    every, truth, reward = world(reference)
    base = np.exp(log_probabilities(Policy.load(reference, small.DEVICE), every))
    at_most = np.array([base[truth <= value].sum() for value in truth])
    expected = at_most**3 - (at_most - base) ** 3
    options = {"generations": 3, "batch_size": 384, "steps": 60, "max_new_tokens": 1, "learning_rate": 2e-3}
    policy = run(reference, reward, algorithm="best_of_n", prompts=["a"] * 128, **options)
    np.testing.assert_allclose(np.exp(log_probabilities(policy, every)), expected, atol=0.04)
    assert np.abs(expected - base).max() > 0.1


def test_dpo_ends_where_beta_log_ratio_is_the_reward_by_which_pairs_were_chosen(reference: Path) -> None:
    """With Gumbel noise on it the better of two is drawn as Bradley and Terry say, and R* is DPO's exact optimum."""
    every, truth, reward = world(reference)
    noise = np.random.default_rng(0)
    options = {"generations": 2, "batch_size": 512, "steps": 60, "max_new_tokens": 1, "learning_rate": 5e-3}
    policy = run(
        reference,
        lambda batch: reward(batch) + noise.gumbel(size=len(batch)),
        algorithm="dpo",
        prompts=["a"] * 256,
        kl_coefficient=0.5,
        **options,
    )
    start = log_probabilities(Policy.load(reference, small.DEVICE), every)
    implicit = 0.5 * (log_probabilities(policy, every) - start)
    covariance = np.cov(implicit, truth, aweights=np.exp(start))
    assert covariance[0, 1] / covariance[1, 1] == pytest.approx(1, abs=0.15)
    assert covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]) > 0.98

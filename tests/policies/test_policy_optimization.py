"""Policy optimisation with TRL on a policy over three letters: seconds, and the optimum is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from numpy.typing import NDArray
from scipy import stats

from irl_exp.config import PolicyOptimizationConfig
from irl_exp.machinery.runtime import Device
from irl_exp.policies import policy_optimization
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.policy_optimization import OptimizationError, optimize
from irl_exp.policies.sampling import Written, generate, sample

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # TRL's own

PROMPTS = ["a", "b", "c", "a b", "b c", "c a", "a a", "b b"]
Score = Callable[[Completions], NDArray[np.float64]]
both = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])


def share_of_a(completions: Completions) -> NDArray[np.float64]:
    """An easy reward: the fraction of tokens that are the letter a."""
    return np.array([np.mean(np.array(ids) == 1) for ids in completions.completion_ids])


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    small.policy("letters").save(tmp_path / "reference")
    return tmp_path / "reference"


def run(
    reference: Path,
    reward: Score = share_of_a,
    *,
    prompts: list[str] = PROMPTS,
    rows: list[Mapping[str, float]] | None = None,
    device: Device = small.DEVICE,
    **options: Any,
) -> Policy:
    """A few steps of a few completions."""
    config = PolicyOptimizationConfig(
        **{
            "seed": 0,
            "steps": 2,
            "batch_size": 16,
            "generations": 4,
            "learning_rate": 1e-2,
            "kl_coefficient": 0.01,
            "max_new_tokens": 4,
            **options,
        }
    )
    context = replace(small.context(reference.parent / "artifact", rows), device=device)
    return optimize(reference, reward, prompts, config, context=context)


def differences(first: Policy, second: Policy) -> list[float]:
    mine, theirs = first.model.state_dict(), second.model.state_dict()
    assert mine.keys() == theirs.keys()
    return [float((mine[name] - theirs[name]).abs().max()) for name in mine]


@both
def test_the_policy_starts_at_its_reference_and_leaves_it(reference: Path, algorithm: str) -> None:
    rows: list[Mapping[str, float]] = []
    policy = run(reference, rows=rows, algorithm=algorithm, steps=3)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[2]["kl"] > 1e-3
    assert max(differences(policy, Policy.load(reference, small.DEVICE))) > 1e-3


@both
def test_in_bf16_the_policy_starts_at_its_reference_too(reference: Path, algorithm: str) -> None:
    rows: list[Mapping[str, float]] = []
    run(reference, rows=rows, algorithm=algorithm, device=Device("cpu", "bf16", 1))
    assert rows[0]["kl"] == pytest.approx(0, abs=0.02)


@both
def test_the_reward_of_an_easy_task_rises(reference: Path, algorithm: str) -> None:
    rows: list[Mapping[str, float]] = []
    policy = run(reference, rows=rows, algorithm=algorithm, steps=12, batch_size=32)
    assert rows[0]["reward"] < 0.3
    assert rows[-1]["reward"] > 0.8
    written = generate(policy, PROMPTS * 5, max_new_tokens=4, batch_size=40, seed=0)
    assert share_of_a(written).mean() > 0.8


def distance_from_the_optimum(reference: Path, *, max_new_tokens: int, **options: Any) -> tuple[float, float]:
    """Slope of beta log pi / pi_ref on R* (1 at the optimum, where R* is it up to a constant), EPIC of the two."""
    start = Policy.load(reference, small.DEVICE)
    every = small.all_completions(start, "a", max_new_tokens=max_new_tokens)
    truth = 0.5 * np.random.default_rng(1).normal(size=len(every))
    rewards = dict(zip(map(tuple, every.completion_ids), truth, strict=True))
    beta = 0.5
    policy = run(
        reference,
        lambda completions: np.array([rewards[tuple(ids)] for ids in completions.completion_ids]),
        prompts=["a"] * 64,
        **{"batch_size": 256, "generations": 4, "kl_coefficient": beta, "max_new_tokens": max_new_tokens, **options},
    )
    base, found = log_probabilities(start, every), log_probabilities(policy, every)

    def objective(log_p: NDArray[np.float64]) -> float:
        return float(np.exp(log_p) @ (truth - beta * (log_p - base)))

    optimum = base + truth / beta
    optimum -= np.log(np.exp(optimum).sum())
    assert objective(found) - objective(base) > 0.6 * (objective(optimum) - objective(base))
    weights = np.exp(base)
    implicit, wanted = (values - weights @ values for values in (beta * (found - base), truth))
    covariance, own = (weights * implicit) @ wanted, (weights * wanted) @ wanted
    correlation = covariance / np.sqrt(own * ((weights * implicit) @ implicit))
    return float(covariance / own), float(np.sqrt((1 - correlation) / 2))


# Where they stand still is counted exactly in test_fixed_points.py. With its coefficient in TRL's own loss GRPO would
# go to slopes of 0.75 here (4 generations) and below.
@both
def test_the_optimum_is_the_reference_times_the_exponential_of_reward_over_beta(
    reference: Path, algorithm: str
) -> None:
    """beta log pi / pi_ref = R up to a constant: what the implicit reward rests on."""
    slope, epic = distance_from_the_optimum(reference, algorithm=algorithm, max_new_tokens=1, steps=40)
    assert slope == pytest.approx(1, abs=0.15), "the KL coefficient is on the scale of the reward"
    assert epic < 0.1


@pytest.mark.slow
@both
def test_the_optimum_of_longer_completions(reference: Path, algorithm: str) -> None:
    slope, epic = distance_from_the_optimum(
        reference, algorithm=algorithm, max_new_tokens=2, steps=150, learning_rate=5e-3
    )
    assert slope == pytest.approx(1, abs=0.15)
    assert epic < 0.2


def test_a_large_kl_coefficient_keeps_the_policy_at_its_reference(reference: Path) -> None:
    free, held = (run(reference, steps=8, batch_size=32, kl_coefficient=beta) for beta in (0.01, 100.0))
    completions = generate(Policy.load(reference, small.DEVICE), PROMPTS * 20, max_new_tokens=4, batch_size=200, seed=0)
    start = log_probabilities(Policy.load(reference, small.DEVICE), completions)
    far, near = ((start - log_probabilities(policy, completions)).mean() for policy in (free, held))
    assert near < 0.25 * far


def test_the_curve_has_every_row_and_name(reference: Path) -> None:
    rows: list[Mapping[str, float]] = []
    run(reference, rows=rows)
    assert all({"step", *policy_optimization.CURVES.values()} == set(row) for row in rows)
    assert 1 <= rows[0]["length"] <= 4
    assert 0 <= rows[0]["truncated_fraction"] <= 1


def test_without_a_kl_coefficient_there_is_no_reference_to_compare_with(reference: Path) -> None:
    rows: list[Mapping[str, float]] = []
    run(reference, rows=rows, kl_coefficient=0.0)
    assert len(rows) == 2
    assert "kl" not in rows[0]


def test_a_start_that_is_not_the_reference_on_disk_is_detected(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, opened = Policy.load, 0

    def altered(*arguments: Any, **options: Any) -> Policy:
        nonlocal opened
        policy, opened = load(*arguments, **options), opened + 1
        if opened % 2 == 0:  # after the reference
            with torch.no_grad():
                policy.model.lm_head.weight.mul_(1.5)
        return policy

    monkeypatch.setattr(policy_optimization.Policy, "load", altered)
    with pytest.raises(OptimizationError, match="not at 0: the reference is not the start"):
        run(reference)
    with pytest.raises(OptimizationError, match="not at 0: the reference is not the start"):
        run(reference, device=Device("cpu", "bf16", 1))


def test_the_trained_policy_survives_saving(reference: Path, tmp_path: Path) -> None:
    policy = run(reference, steps=4)
    policy.save(tmp_path / "trained")
    assert "forward" not in policy.model.__dict__
    loaded = Policy.load(tmp_path / "trained", small.DEVICE)
    every = small.all_completions(loaded, "a", max_new_tokens=3)
    found = log_probabilities(loaded, every)
    np.testing.assert_allclose(found, log_probabilities(policy, every), atol=1e-5)
    start = log_probabilities(Policy.load(reference, small.DEVICE), every)
    assert np.abs(found - start).max() > 0.1
    assert loaded.model.config.use_cache
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)


def test_the_reference_on_disk_is_not_touched(reference: Path) -> None:
    before = {path.name: path.read_bytes() for path in reference.iterdir()}
    run(reference)
    assert {path.name: path.read_bytes() for path in reference.iterdir()} == before


# ---------------------------------------------------------------- what the reward sees


def seen_by_the_reward(reference: Path, **options: Any) -> Completions:
    """Everything that the reward function was given, of a policy that hardly moves."""
    batches: list[Completions] = []

    def watch(completions: Completions) -> NDArray[np.float64]:
        batches.append(completions)
        return np.arange(len(completions), dtype=float)

    run(reference, watch, **{"steps": 1, "learning_rate": 1e-12, **options})
    total = batches[0]
    for batch in batches[1:]:
        total = total + batch
    return total


@both
def test_the_reward_gets_whole_completions_with_their_eos(reference: Path, algorithm: str) -> None:
    policy = small.policy("letters")
    seen = seen_by_the_reward(reference, algorithm=algorithm, batch_size=32)
    assert len(seen) == 32
    assert seen.ended(policy.eos).any()
    for text, ids in zip(seen.texts, seen.completion_ids, strict=True):
        assert policy.eos not in ids[:-1]
        assert len(ids) == 4 or ids[-1] == policy.eos
        assert text == policy.tokenizer.decode(ids, skip_special_tokens=True)
    assert seen.prompt_ids == policy.encode_prompts(seen.prompts)


def test_a_step_draws_distinct_prompts_and_repeats_each(reference: Path) -> None:
    seen = seen_by_the_reward(reference, batch_size=16, generations=4)
    groups = [seen.prompts[start : start + 4] for start in range(0, 16, 4)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len({group[0] for group in groups}) == 4
    assert {group[0] for group in groups} <= set(PROMPTS)


@pytest.mark.parametrize("name", small.MODELS)
def test_the_trainer_reads_prompts_as_everything_else_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = small.policy(name)
    policy.save(tmp_path / "reference")
    read: list[list[int]] = []
    sample = policy_optimization.sample

    def watched(own: Policy, prompt_ids: list[list[int]], **options: Any) -> Any:
        read.extend(prompt_ids)
        return sample(own, prompt_ids, **options)

    monkeypatch.setattr(policy_optimization, "sample", watched)
    prompts = [*small.PROMPTS, "<|endoftext|>", " a </s> b"]
    seen = seen_by_the_reward(tmp_path / "reference", prompts=prompts, batch_size=14, generations=2)
    assert set(seen.prompts) == set(prompts)
    assert read == seen.prompt_ids == policy.encode_prompts(seen.prompts)


def frequencies_fit(reference: Path) -> bool:
    """Whether what the trainer samples has the exact probabilities (chi-square, fixed seed)."""
    seen = seen_by_the_reward(reference, prompts=["a"], batch_size=1000, generations=1000, max_new_tokens=2)
    every = small.all_completions(small.policy("letters"), "a", max_new_tokens=2)
    expected = len(seen) * np.exp(log_probabilities(small.policy("letters"), every))
    counts = np.array([seen.completion_ids.count(ids) for ids in every.completion_ids])
    assert counts.sum() == len(seen)
    enough = expected >= 5
    counts, expected = (np.append(column[enough], column[~enough].sum()) for column in (counts, expected))
    return bool(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001)


def test_the_trainer_samples_the_full_distribution(reference: Path) -> None:
    assert frequencies_fit(reference)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.3, "do_sample": True},
        {"repetition_penalty": 2.0},
        pytest.param(
            {"min_new_tokens": 2},
        ),
    ],
)
def test_the_generation_config_of_a_checkpoint_does_not_change_the_distribution(
    setting: dict[str, Any], reference: Path
) -> None:
    policy = Policy.load(reference, small.DEVICE)
    policy.model.generation_config.update(**setting)
    policy.save(reference)
    assert frequencies_fit(reference)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_not_finite_raises_and_names_the_completion(reference: Path, value: float) -> None:
    def broken(completions: Completions) -> NDArray[np.float64]:
        scores = np.zeros(len(completions))
        scores[3] = value
        raise_for.append(completions.texts[3])
        return scores

    raise_for: list[str] = []
    with pytest.raises(OptimizationError, match="not a finite number") as caught:
        run(reference, broken)
    assert f"the reward of {raise_for[0]!r} is {value}" in str(caught.value)


# ---------------------------------------------------------------- what is kept of the way


@both
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_the_trajectory_is_all_that_was_sampled_with_its_reward_and_step(
    reference: Path, algorithm: str, micro_batch_size: int | None
) -> None:
    batches: list[Completions] = []
    rows: list[Mapping[str, float]] = []

    def watch(completions: Completions) -> NDArray[np.float64]:
        batches.append(completions)
        return share_of_a(completions)

    run(reference, watch, rows=rows, algorithm=algorithm, steps=3, micro_batch_size=micro_batch_size)
    found = pd.read_parquet(reference.parent / "artifact" / "trajectory.parquet")
    seen = batches[0] + batches[1] + batches[2]
    assert Completions.from_frame(found) == seen
    assert found["step"].tolist() == [1] * 16 + [2] * 16 + [3] * 16
    np.testing.assert_array_equal(found["reward"], share_of_a(seen))
    assert found["tokens"].tolist() == list(map(len, seen.completion_ids))
    by_step = found.groupby("step")
    assert by_step["reward"].mean().tolist() == pytest.approx([row["reward"] for row in rows], abs=1e-6)
    assert by_step["tokens"].mean().tolist() == pytest.approx([row["length"] for row in rows])
    assert by_step["kl"].nunique().tolist() == [1, 1, 1]
    per_completion = [row["kl"] * row["length"] for row in rows]
    assert by_step["kl"].first().tolist() == pytest.approx(per_completion)
    assert per_completion[2] > 1e-3


@both
def test_the_kl_of_the_trajectory_is_that_of_whole_completions(reference: Path, algorithm: str) -> None:
    """The estimate of the last step against the exact KL of the policy that sampled it: that of one step before."""
    options: dict[str, Any] = {"batch_size": 1000, "generations": 500, "prompts": ["a", "a"], "max_new_tokens": 2}
    options["algorithm"] = algorithm
    before = run(reference, steps=3, **options)
    every = small.all_completions(before, "a", max_new_tokens=2)
    ours, base = (log_probabilities(policy, every) for policy in (before, Policy.load(reference, small.DEVICE)))
    exact = float(np.exp(ours) @ (ours - base))
    run(reference, steps=4, **options)
    found = pd.read_parquet(reference.parent / "artifact" / "trajectory.parquet")
    assert exact > 0.02
    assert found.loc[found["step"] == 4, "kl"].iloc[0] == pytest.approx(exact, rel=0.35)


@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("samples", [True, False], ids=["ours", "trl"])
def test_whatever_samples_the_kl_that_is_told_is_that_of_reading(
    reference: Path, algorithm: str, samples: bool, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding, for a policy that has left its reference; TRL's sampler is that of a GPU."""
    ours = policy_optimization._with_our_numbers
    monkeypatch.setattr(policy_optimization, "_with_our_numbers", lambda *given, **_: ours(*given, samples=samples))
    options: dict[str, Any] = {"algorithm": algorithm, "device": Device("cpu", precision, 1)}
    before = run(reference, steps=1, **options)
    run(reference, steps=2, **options)
    found = pd.read_parquet(reference.parent / "artifact" / "trajectory.parquet")
    last = found[found["step"] == 2]
    read = [
        log_probabilities(policy, Completions.from_frame(last))
        for policy in (before, Policy.load(reference, before.device))
    ]
    ratio = float((read[0] - read[1]).mean())
    assert abs(ratio) > 1e-3
    assert last["kl"].iloc[0] == pytest.approx(ratio, abs=2e-4)


def test_the_log_probabilities_of_a_sampler_that_rounds_in_another_way_are_not_told(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 ours does, too; some are 0.3 nats a token off."""

    def off(*given: Any, **options: Any) -> list[Written]:
        return [replace(one, log_probabilities=one.log_probabilities + 0.3) for one in sample(*given, **options)]

    monkeypatch.setattr(policy_optimization, "sample", off)
    rows: list[Mapping[str, float]] = []
    run(reference, rows=rows, algorithm="rloo", device=Device("cpu", "bf16", 1))
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_without_a_kl_coefficient_the_trajectory_has_no_kl(reference: Path) -> None:
    run(reference, kl_coefficient=0.0)
    assert "kl" not in pd.read_parquet(reference.parent / "artifact" / "trajectory.parquet")


# ---------------------------------------------------------------- repeatability, equivalent settings


@both
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(reference: Path, algorithm: str) -> None:
    def trained(seed: int) -> Policy:
        np.random.seed(seed + 7)  # noqa: NPY002 - the global generators must not matter
        torch.manual_seed(seed + 7)
        return run(reference, seed=seed, algorithm=algorithm)

    first = trained(0)
    torch.rand(5)
    second, other = run(reference, seed=0, algorithm=algorithm), trained(1)
    assert max(differences(first, second)) == 0
    assert max(differences(first, other)) > 1e-4


def test_draws_while_the_trainer_is_built_do_not_matter(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(reference)
    trainer_class = policy_optimization._trainer_class

    def drawing(*given: Any) -> Callable[..., Any]:
        def build(**options: Any) -> Any:
            trainer = trainer_class(*given)(**options)
            torch.rand(3)
            return trainer

        return build

    monkeypatch.setattr(policy_optimization, "_trainer_class", drawing)
    assert max(differences(first, run(reference))) == 0


@both
def test_micro_batches_give_the_same_trajectory(reference: Path, algorithm: str) -> None:
    curves: list[list[Mapping[str, float]]] = [[], []]
    whole, parts = (
        run(reference, rows=rows, algorithm=algorithm, steps=3, micro_batch_size=micro)
        for rows, micro in zip(curves, (None, 4), strict=True)
    )
    assert [row["step"] for row in curves[1]] == [1, 2, 3]
    assert [row["reward"] for row in curves[1]] == pytest.approx([row["reward"] for row in curves[0]], abs=1e-6)
    assert max(differences(whole, parts)) < 1e-3


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.01])
def test_too_few_prompts_for_a_step_are_refused_with_a_remedy(reference: Path, kl_coefficient: float) -> None:
    with pytest.raises(OptimizationError, match="batch_size"):
        run(reference, prompts=["a", "b"], batch_size=16, generations=4, kl_coefficient=kl_coefficient)

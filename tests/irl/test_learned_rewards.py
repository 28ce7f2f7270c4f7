"""Learned rewards: their formulas, and nothing loaded that does not reproduce its own scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from irl_exp.config import FeaturesConfig, HiddenStateConfig, ModelConfig
from irl_exp.irl import learned_rewards
from irl_exp.irl.features import Featurizer
from irl_exp.irl.learned_rewards import ConstantScorer, ImplicitScorer, LearnedReward, LinearScorer, Scorer, aggregated
from irl_exp.machinery.runtime import Device
from irl_exp.machinery.store import ArtifactError, Identity, Store
from irl_exp.policies.language_models import Policy, new_policy
from irl_exp.rewards.reward import RewardError

patient = settings(deadline=None, max_examples=50)  # a busy machine is no failure
WRONG = "does not reproduce its own scores"
WIDTH = 16  # of the hidden states of small.policy("neox")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folders of a store, with a reference policy and an expert."""
    small.policy("neox").save(tmp_path / "sft" / "r1")
    other_policy().save(tmp_path / "rlhf" / "e1")
    return tmp_path


@cache
def other_policy() -> Policy:
    """A policy of the reference's shape and tokenizer with other weights."""
    model = small.policy("neox").model.config
    config = ModelConfig(hidden_size=model.hidden_size, layers=2, heads=2, vocabulary=300)
    return new_policy(config, [*small.PROMPTS, *small.TEXTS], small.DEVICE, seed=9)


@cache
def featurizer(pooling: Any = "mean", layers: tuple[int, ...] = (-1, -2)) -> Featurizer:
    policy = small.policy("neox")
    config = FeaturesConfig(hidden_state=HiddenStateConfig(layers=layers, pooling=pooling))
    return Featurizer.fit(config, policy, small.written(policy))


def linear(*, members: int = 1, size: float = 1.0, phi: Featurizer | None = None, **settings: Any) -> LinearScorer:
    phi = phi or featurizer()
    assert phi.config.hidden_state is not None
    generator = np.random.default_rng(0)
    dimension = WIDTH * len(phi.config.hidden_state.layers)
    weights, center = size * generator.normal(size=(members, dimension)), generator.normal(size=dimension)
    return LinearScorer(weights, center, phi, **settings)


def implicit() -> ImplicitScorer:
    return ImplicitScorer(other_policy(), small.policy("neox"), 0.3, "e1")


def saved(store: Path, scorer: Scorer, name: str = "d1") -> Path:
    """A reward in the store, as the irl stage leaves it."""
    folder = store / "irl" / name
    folder.mkdir(parents=True)
    probes = small.written(small.policy("neox"), seed=3)
    scores = scorer.score(probes)[0]
    features = None
    if isinstance(scorer, LinearScorer):
        assert scorer.featurizer is not None
        features = store / f"features-{name}"
        scorer.featurizer.save(features)
    learned_rewards.save(
        folder, scorer, scores, reference="r1", probes=probes, probe_scores=scores, featurizer=features
    )
    return folder


@pytest.mark.parametrize("name", ["head.safetensors", "reward.json", "featurizer/config.json"])
def test_a_damaged_file_is_named(store: Path, name: str) -> None:
    """Also where the damage is too small for the probes, or what is left is no reward at all."""

    def copy(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)

    source = saved(store, linear())
    artifact = Store(store).get(Identity("irl", 1, {}, {}), copy)
    LearnedReward.load(artifact.folder, small.DEVICE)
    content = bytearray((artifact.folder / name).read_bytes())
    content[-8] ^= 1  # of the head: the last bits of a weight
    (artifact.folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is damaged .it was altered"):
        LearnedReward.load(artifact.folder, small.DEVICE)


COVARIANCE = np.random.default_rng(1).normal(size=(2 * WIDTH, 2 * WIDTH))
SCORERS: dict[str, Callable[[], Scorer]] = {
    "linear": linear,
    "mean": lambda: linear(members=3),
    "median": lambda: linear(members=3, aggregate="median"),
    "worst": lambda: linear(members=3, aggregate="worst"),
    "lower_bound": lambda: linear(members=3, aggregate="lower_bound", deviations=2.0),
    "posterior": lambda: linear(factor=COVARIANCE, aggregate="lower_bound", deviations=0.5),
    "implicit": implicit,
    "constant": ConstantScorer,
}
each = pytest.mark.parametrize("name", SCORERS)


# ---------------------------------------------------------------- what they say


def test_a_linear_reward_is_linear_in_the_features_of_the_whole_completion() -> None:
    scorer = linear(phi=featurizer("mean", (-1,)))
    completions = small.written(small.policy("neox"))
    states = small.one_by_one(small.policy("neox"), completions)[1]
    rows = [layers[-1][len(prompt) :].mean(0) for layers, prompt in zip(states, completions.prompt_ids, strict=True)]
    scores, deviation = scorer.score(completions)
    np.testing.assert_allclose(scores, (np.array(rows) - scorer.center) @ scorer.weights[0], atol=1e-3)
    assert deviation is None


MEMBERS = np.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0], [-1.0, 0.0, -5.0]])


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", [3, 4, -2]),
        ("median", [2, 4, -1]),
        ("worst", [1, 4, -5]),
        ("lower_bound", [3 - 2 * 7**0.5, 4, -2 - 2 * 7**0.5]),
    ],
)
def test_members_are_taken_together(aggregate: str, expected: list[float]) -> None:
    """Features that are the members' scores: three one-hot members. The sd has n - 1."""
    scorer = LinearScorer(np.eye(3), np.zeros(3), None, aggregate, 2.0)
    scores, deviation = scorer.score_features(MEMBERS.astype(np.float32))
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    np.testing.assert_allclose(deviation, [7**0.5, 0, 7**0.5], atol=1e-9)  # type: ignore[arg-type]
    np.testing.assert_allclose(aggregated(MEMBERS, MEMBERS.std(1, ddof=1), aggregate, 2.0), expected)


def test_the_deviation_of_a_posterior_is_that_of_draws_of_its_weights() -> None:
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(4, 4))
    mean, center = generator.normal(size=4), generator.normal(size=4)
    features = generator.normal(size=(5, 4)).astype(np.float32)
    scores, deviation = LinearScorer(mean[None], center, None, factor=factor).score_features(features)
    covariance = factor @ factor.T
    for row, phi in enumerate(features.astype(np.float64) - center):
        assert scores[row] == pytest.approx(phi @ mean)
        assert deviation is not None
        assert deviation[row] ** 2 == pytest.approx(phi @ covariance @ phi)
    draws = generator.multivariate_normal(mean, covariance, size=20_000)
    sampled = ((features - center) @ draws.T).std(axis=1)
    np.testing.assert_allclose(deviation, sampled, rtol=0.05)  # type: ignore[arg-type]


def test_the_implicit_reward_is_beta_times_the_log_ratio() -> None:
    completions = small.written(small.policy("neox"))
    ratio = small.slow_log_probabilities(other_policy(), completions) - small.slow_log_probabilities(
        small.policy("neox"), completions
    )
    scores, deviation = implicit().score(completions)
    np.testing.assert_allclose(scores, 0.3 * ratio, atol=1e-3)
    assert np.ptp(scores) > 0.1
    assert deviation is None


def test_a_constant_reward_is_0_and_standardising_it_leaves_it_there(store: Path) -> None:
    reward = LearnedReward.load(saved(store, ConstantScorer()), small.DEVICE)
    completions = small.written(small.policy("neox"))
    assert (reward.score(completions) == np.zeros(len(completions))).all()
    assert (reward.standardised(reward.score(completions)) == 0).all()


def score_of(scorer: Scorer) -> Callable[[str, str], float]:
    return lambda prompt, text: float(scorer.score(small.policy("neox").complete([prompt], [text]))[0][0])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_learned_reward_depends_on_more_than_the_last_character(pooling: Any) -> None:
    score = score_of(linear(phi=featurizer(pooling, (-1,))))
    base = score("The bus", " is late now.")
    assert base != pytest.approx(score("The bus", " is gone now."), abs=1e-4), "the middle"
    assert base != pytest.approx(score("The bus", " was late now."), abs=1e-4), "the start"
    assert base != pytest.approx(score("The bus", " is late now!"), abs=1e-4), "the end"
    assert base != pytest.approx(score("A car", " is late now."), abs=1e-4), "the prompt"


@pytest.mark.parametrize("name", ["linear", "implicit"])
def test_a_cut_completion_scores_unlike_an_ended_one(name: str) -> None:
    ended = small.policy("neox").complete(["The bus"], [" is late"])
    cut = replace(ended, completion_ids=[ended.completion_ids[0][:-1]])
    scorer = SCORERS[name]()
    assert abs(scorer.score(ended)[0] - scorer.score(cut)[0]) > 1e-3


@each
def test_any_text_can_be_scored(name: str) -> None:
    scores, deviation = SCORERS[name]().score(small.policy("neox").complete(["Tell me"] * 2, [" a story, please.", ""]))
    assert np.isfinite(scores).all()
    assert (scores[0] != scores[1]) == (name != "constant")
    assert deviation is None or (deviation > 0).all()


# ---------------------------------------------------------------- one scale


@patient
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20), st.floats(-10, 10), st.floats(0.01, 10))
def test_standardised_is_one_increasing_affine_map(scores: list[float], offset: float, scale: float) -> None:
    reward = LearnedReward(ConstantScorer(), offset, scale, small.policy("neox"))
    values = np.sort(scores)
    found = reward.standardised(values)
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(np.diff(found), np.diff(values) / scale, atol=1e-6)
    assert (found == np.concatenate([reward.standardised(values[:1]), reward.standardised(values[1:])])).all(), (
        "the map does not depend on what else is in the batch"
    )


@each
def test_the_demonstrations_of_the_fit_have_mean_0_and_sd_1(name: str, store: Path) -> None:
    reward = LearnedReward.load(saved(store, SCORERS[name]()), small.DEVICE)
    found = reward.standardised(reward.score(small.written(reward.reference, seed=3)))
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert found.std() == pytest.approx(0.0 if name == "constant" else 1.0, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    probes = small.written(small.policy("neox"))
    with pytest.raises(RewardError, match="not a finite number"):
        learned_rewards.save(
            tmp_path,
            ConstantScorer(),
            np.array([0.0, value]),
            reference="r1",
            probes=probes,
            probe_scores=np.zeros(len(probes)),
        )
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- saved and loaded


@each
def test_a_saved_reward_gives_the_same_scores_bit_for_bit(name: str, store: Path) -> None:
    scorer = SCORERS[name]()
    loaded = LearnedReward.load(saved(store, scorer), small.DEVICE)
    completions = small.written(small.policy("neox"), seed=4)
    found, deviation = loaded.scorer.score(completions)
    expected, expected_deviation = scorer.score(completions)
    assert (found == expected).all()
    assert (loaded.score(completions) == expected).all()
    np.testing.assert_array_equal(deviation, expected_deviation)  # type: ignore[arg-type]
    assert {path.suffix for path in (store / "irl/d1").iterdir()} <= {".json", ".safetensors", ".parquet", ""}


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_a_tampered_head_is_refused_also_where_scores_are_small(size: float, store: Path) -> None:
    folder = saved(store, linear(size=size))
    arrays = load_file(folder / "head.safetensors")
    save_file({**arrays, "weights": -arrays["weights"]}, folder / "head.safetensors")
    with pytest.raises(RewardError, match=WRONG):
        LearnedReward.load(folder, small.DEVICE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["linear", "implicit"])
def test_a_reward_that_is_off_by_a_hundredth_is_refused_in_any_precision(
    name: str, precision: Any, store: Path
) -> None:
    device = Device("cpu", precision, 1)
    folder = saved(store, SCORERS[name]())
    LearnedReward.load(folder, device)
    frame = pd.read_parquet(folder / "probes.parquet")
    frame.assign(score=1.01 * frame["score"]).to_parquet(folder / "probes.parquet")
    with pytest.raises(RewardError, match=WRONG):
        LearnedReward.load(folder, device)


def tamper(path: Path, key: str, value: Any) -> None:
    settings_on_disk = json.loads(path.read_text(encoding="utf-8"))
    assert settings_on_disk[key] != value
    path.write_text(json.dumps({**settings_on_disk, key: value}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mean", "aggregate", "worst"),
        ("lower_bound", "deviations", 1.0),
        ("implicit", "kl_coefficient", 0.2),
        ("linear", "kind", "constant"),
    ],
)
def test_tampered_settings_are_refused(name: str, key: str, value: Any, store: Path) -> None:
    folder = saved(store, SCORERS[name]())
    tamper(folder / "reward.json", key, value)
    with pytest.raises(RewardError, match=WRONG):
        LearnedReward.load(folder, small.DEVICE)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("kind", "nope", r"reward\.json: kind='nope' is none of linear, trained, implicit, constant"),
        ("kind", None, r"reward\.json: kind=None is none of"),
        ("kind", ["linear"], r"reward\.json: kind=\['linear'\] is none of"),
        ("scale", "1", r"reward\.json: scale='1' is not what was saved"),
        ("offset", None, r"reward\.json: offset=None is not what was saved"),
        ("reference", 3, r"reward\.json: reference=3 is not what was saved"),
        ("reference", "../sft/r2", r"the policy that it reads is missing"),
    ],
)
def test_settings_that_nobody_saved_are_refused_in_one_message(key: str, value: Any, told: str, store: Path) -> None:
    folder = saved(store, linear())
    tamper(folder / "reward.json", key, value)
    with pytest.raises(RewardError, match=told):
        LearnedReward.load(folder, small.DEVICE)


@pytest.mark.parametrize("content", ["", "{", "3", "[]"])
def test_a_torn_reward_is_refused_in_one_message(content: str, store: Path) -> None:
    folder = saved(store, linear())
    (folder / "reward.json").write_text(content)
    with pytest.raises(RewardError, match=r"reward\.json"):
        LearnedReward.load(folder, small.DEVICE)
    (folder / "reward.json").unlink()
    with pytest.raises(RewardError, match=r"reward\.json cannot be read"):
        LearnedReward.load(folder, small.DEVICE)


@pytest.mark.parametrize("name", ["linear", "mean", "posterior", "implicit"])
def test_another_reference_policy_is_refused(name: str, store: Path) -> None:
    other_policy().save(store / "other")
    folder = saved(store, SCORERS[name]())
    with pytest.raises(RewardError, match=WRONG):
        LearnedReward.load(folder, small.DEVICE, reference=store / "other")


def test_another_expert_is_refused(store: Path) -> None:
    folder = saved(store, implicit())
    small.policy("neox").save(store / "rlhf" / "e2")
    tamper(folder / "reward.json", "expert", "e2")
    with pytest.raises(RewardError, match=WRONG):
        LearnedReward.load(folder, small.DEVICE)


@each
def test_a_missing_reference_is_refused_and_a_moved_one_can_be_named(name: str, store: Path) -> None:
    folder = saved(store, SCORERS[name]())
    (store / "sft").rename(store / "moved")
    with pytest.raises(RewardError, match=r"the policy that it reads is missing: .*sft/r1"):
        LearnedReward.load(folder, small.DEVICE)
    moved = LearnedReward.load(folder, small.DEVICE, reference=store / "moved" / "r1")
    assert np.isfinite(moved.score(small.written(moved.reference))).all()


def test_a_missing_expert_is_refused(store: Path) -> None:
    folder = saved(store, implicit())
    (store / "rlhf").rename(store / "gone")
    with pytest.raises(RewardError, match=r"the policy that it reads is missing: .*rlhf/e1"):
        LearnedReward.load(folder, small.DEVICE)


@each
def test_the_settings_on_disk_are_plain_json(name: str, store: Path) -> None:
    found = json.loads((saved(store, SCORERS[name]()) / "reward.json").read_text(encoding="utf-8"))
    assert found["reference"] == "r1"
    assert found["kind"] == SCORERS[name]().kind
    assert found["scale"] > 0

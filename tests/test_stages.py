"""The stages, run in order on a small world: what each writes, what it may see, and numbers recomputed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score, roc_auc_score

from irl_exp import chain, losses
from irl_exp.artifacts import Store
from irl_exp.config import (
    BradleyTerryLoss,
    Config,
    DemonstrationsConfig,
    EvaluateConfig,
    FeaturesConfig,
    HingeLoss,
    IrlConfig,
    MaxMarginLoss,
    ModelConfig,
    SftConfig,
)
from irl_exp.features import extract
from irl_exp.policies import Completions, Policy, generate, log_probabilities
from irl_exp.rewards import LearnedReward, load_ground_truth
from irl_exp.stages import demonstrations as demonstrations_stage
from irl_exp.stages import evaluate as evaluate_stage
from irl_exp.stages import irl as irl_stage
from irl_exp.stages import sft as sft_stage

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # TRL's own

SIZES = (
    "data.count=1200",
    "model.hidden_size=16",
    "model.layers=2",
    "model.heads=2",
    "model.vocabulary=400",
    "sft.steps=30",
    "max_new_tokens=10",
)
SEEN: list[str] = []
"""The stages that were computed, in order."""


@dataclass(frozen=True)
class World:
    """One run of the chain, in a store of its own."""

    config: Config
    folder: Path
    metrics: Mapping[str, float]

    def of(self, stage: str) -> Path:
        """The folder of a stage's artifact."""
        step = chain.build(self.config, small.DEVICE)[stage]
        return Store(self.config.store.dir).folder(step.identity)

    def table(self, stage: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.of(stage) / name)

    @property
    def demos(self) -> pd.DataFrame:
        return self.table("demonstrations", "demonstrations.parquet")

    def policy(self, stage: str) -> Policy:
        return Policy.load(self.of(stage), small.DEVICE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


def run(root: Path, *overrides: str) -> World:
    """The chain in the store of this module: what is there already is not computed again."""
    config = small.compose(*SIZES, f"store.dir={root / 'store'}", *overrides)
    folder = root / (",".join(overrides) or "whole")

    def report(event: chain.Event) -> None:
        if event.state == "computed":
            SEEN.append(event.stage)

    SEEN.clear()
    return World(config, folder, chain.run(config, chain.Job(0, "test", folder), report))


@pytest.fixture(scope="module")
def world(root: Path) -> World:
    return run(root)


# ---------------------------------------------------------------- sft


def trained(world: World, folder: Path, texts: pd.DataFrame, model: ModelConfig, steps: int = 3) -> dict[str, Any]:
    """Run sft on these texts; its info, with the weights."""
    folder.mkdir(parents=True)
    texts.to_parquet(folder / "texts.parquet")
    context = small.context(folder / "sft")
    config = SftConfig(seed=0, steps=steps, batch_size=4)
    info = sft_stage.run(config, model=model, data=folder, context=context)
    return {**info, "weights": (context.folder / "model.safetensors").read_bytes()}


def test_sft_sees_the_sft_part_alone(world: World, tmp_path: Path) -> None:
    texts, model = world.table("data", "texts.parquet"), world.config.model
    first = trained(world, tmp_path / "first", texts, model)
    outside = texts["part"] != "sft"
    changed = texts.assign(completion=texts["completion"].where(~outside, " something else"))
    assert trained(world, tmp_path / "outside", changed, model)["weights"] == first["weights"]
    changed = texts.assign(completion=texts["completion"].where(outside, " something else"))
    assert trained(world, tmp_path / "inside", changed, model)["weights"] != first["weights"]


def test_sft_lowers_the_loss_on_texts_that_it_did_not_train_on(world: World, tmp_path: Path) -> None:
    texts, model = world.table("data", "texts.parquet"), world.config.model
    short, long = (trained(world, tmp_path / str(steps), texts, model, steps) for steps in (1, 30))
    assert long["held_out_nll"] < short["held_out_nll"] - 0.3
    assert 0 < long["trained_on"] < (texts["part"] == "sft").sum()


def test_a_tuned_checkpoint_is_the_reference_as_it_is(world: World, tmp_path: Path) -> None:
    small.policy("gpt2").save(tmp_path / "mine")
    model = ModelConfig(path=tmp_path / "mine", tuned=True)
    info = trained(world, tmp_path / "run", world.table("data", "texts.parquet"), model)
    mine, theirs = load_file(tmp_path / "mine" / "model.safetensors"), tmp_path / "run" / "sft" / "model.safetensors"
    assert all((mine[name] == weight).all() for name, weight in load_file(theirs).items())
    assert info["trained_on"] == 0


# ---------------------------------------------------------------- rlhf, demonstrations, judge


def test_rlhf_starts_at_its_reference_and_leaves_it(world: World) -> None:
    rows = [json.loads(line) for line in (world.of("rlhf") / "history.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    expert, reference = (load_file(world.of(stage) / "model.safetensors") for stage in ("rlhf", "sft"))
    assert any((expert[name] != reference[name]).any() for name in reference)


def test_row_i_of_expert_and_baseline_is_the_same_prompt_and_sample(world: World) -> None:
    demos = world.demos
    half = len(demos) // 2
    assert demos["policy"].tolist() == ["expert"] * half + ["baseline"] * half
    same = ["part", "prompt_id", "prompt", "sample"]
    expert, baseline = demos[:half][same], demos[half:][same].reset_index(drop=True)
    pd.testing.assert_frame_equal(expert, baseline)
    assert (demos.groupby(["policy", "prompt_id"])["sample"].apply(list).map(lambda n: n == [0, 1])).all()
    assert demos["completion"][:half].tolist() != demos["completion"][half:].tolist()


def test_demonstrations_are_of_the_prompts_of_their_part_and_no_prompt_is_in_two(world: World) -> None:
    texts, demos = world.table("data", "texts.parquet"), world.demos
    assert (demos.groupby("prompt")["part"].nunique() == 1).all()
    for part in ("fit", "select", "test"):
        assert set(demos.loc[demos["part"] == part, "prompt"]) == set(texts.loc[texts["part"] == part, "prompt"])
    assert set(demos["part"]) == {"fit", "select", "test"}


def test_demonstrations_carry_the_log_probabilities_of_both_policies(world: World) -> None:
    rows = world.demos.iloc[::9]
    for column, stage in (("expert_log_probability", "rlhf"), ("reference_log_probability", "sft")):
        slow = small.slow_log_probabilities(world.policy(stage), Completions.from_frame(rows))
        np.testing.assert_allclose(rows[column], slow, atol=1e-3)
    assert (world.demos["expert_log_probability"] != world.demos["reference_log_probability"]).any()


def test_demonstrations_say_which_completions_ended(world: World) -> None:
    eos, demos = world.policy("sft").eos, world.demos
    assert demos["ended"].tolist() == [ids[-1] == eos for ids in demos["completion_ids"]]
    assert (demos["completion_ids"].map(len) <= 10).all()


def demonstrations(world: World, folder: Path, *, expert: str = "rlhf", **options: Any) -> pd.DataFrame:
    config = DemonstrationsConfig(**{"seed": 0, "completions_per_prompt": 1, "max_new_tokens": 6, **options})
    context = small.context(folder)
    demonstrations_stage.run(
        config, expert=world.of(expert), reference=world.of("sft"), data=world.of("data"), context=context
    )
    return pd.read_parquet(context.folder / "demonstrations.parquet")


def test_greedy_demonstrations_are_greedy_on_fit_and_select_and_never_on_test(world: World, tmp_path: Path) -> None:
    demos = demonstrations(world, tmp_path, greedy=True)
    for name, stage in (("expert", "rlhf"), ("baseline", "sft")):
        own = demos[demos["policy"] == name]
        greedy = generate(
            world.policy(stage), own["prompt"].tolist(), max_new_tokens=6, batch_size=256, seed=0, greedy=True
        )
        both = zip(own["completion_ids"], greedy.completion_ids, strict=True)
        same = np.array([list(mine) == theirs for mine, theirs in both])
        assert same[own["part"] != "test"].all()
        assert same[own["part"] == "test"].mean() < 0.5


def test_demonstrations_follow_their_seed_and_each_policy_has_its_own_stream(world: World, tmp_path: Path) -> None:
    first = demonstrations(world, tmp_path / "first", expert="sft")
    pd.testing.assert_frame_equal(first, demonstrations(world, tmp_path / "second", expert="sft"))
    other = demonstrations(world, tmp_path / "other", expert="sft", seed=1)
    assert (first["completion"] != other["completion"]).mean() > 0.5
    expert, baseline = (first.loc[first["policy"] == name, "completion"].to_numpy() for name in ("expert", "baseline"))
    assert (expert != baseline).mean() > 0.5, "one model twice must not write the same twice"


def test_the_judge_leaves_fit_unjudged_and_agrees_with_the_ground_truth_elsewhere(world: World) -> None:
    scores, demos = world.table("judge", "scores.parquet")["reward"], world.demos
    fit = demos["part"] == "fit"
    assert scores[fit].isna().all()
    truth = load_ground_truth(world.of("reward"), small.DEVICE).score(Completions.from_frame(demos[~fit]))
    np.testing.assert_array_equal(scores[~fit], truth)


# ---------------------------------------------------------------- irl


def test_features_are_in_the_order_of_the_demonstrations(world: World) -> None:
    phi = load_file(world.of("features") / "features.safetensors")["features"]
    rows = world.demos.sample(20, random_state=0)
    config = world.config.irl.features
    expected = extract(config, world.policy("sft"), Completions.from_frame(rows))
    assert phi.shape == (len(world.demos), 16 * len(config.layers))
    np.testing.assert_allclose(phi[rows.index], expected, atol=1e-4)


def test_irl_is_given_nothing_that_knows_the_ground_truth(world: World) -> None:
    step = chain.build(world.config, small.DEVICE)["irl"]
    assert set(step.inputs) == {"features", "demonstrations", "reference"}
    assert set(chain.build(world.config, small.DEVICE)["features"].inputs) == {"demonstrations", "reference"}
    truth = {"reward", "toxic", "label", "score"}
    assert not truth & set(world.demos.columns)
    features = load_file(world.of("features") / "features.safetensors")
    assert set(features) == {"features"}


def test_the_seed_of_irl_changes_irl_and_what_follows_and_nothing_before(root: Path, world: World) -> None:
    other = run(root, "irl.seed=1")
    assert SEEN == ["irl", "refinetune", "evaluate"]
    heads = [load_file(one.of("irl") / "head.safetensors")["weights"] for one in (world, other)]
    assert (heads[0] != heads[1]).any()
    for key in ("expert/reward_mean", "reference/toxic_fraction", "irl/n_civil"):
        assert world.metrics[key] == other.metrics[key]


def small_irl(**options: Any) -> IrlConfig:
    return IrlConfig(**{"seed": 0, "features": FeaturesConfig(layers=(-1,)), "epochs": 3, "batch_size": 8, **options})


def irl(
    world: World, folder: Path, config: IrlConfig, *, demos: Path | None = None, features: Path | None = None
) -> Path:
    context = small.context(folder)
    irl_stage.run(
        config,
        demonstrations=demos or world.of("demonstrations"),
        features=features or world.of("features"),
        reference=world.of("sft"),
        context=context,
    )
    return context.folder


def whole(world: World, **options: Any) -> IrlConfig:
    """The config of the world with its own features."""
    return world.config.irl.model_copy(update=options)


def test_irl_repeats_bit_for_bit_and_seed_0_is_a_seed(world: World, tmp_path: Path) -> None:
    first, second, other = (irl(world, tmp_path / str(n), whole(world, seed=seed)) for n, seed in enumerate((0, 0, 1)))
    for name in ("head.safetensors", "probes.parquet", "reward.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (world.of("irl") / name).read_bytes()
    assert (first / "head.safetensors").read_bytes() != (other / "head.safetensors").read_bytes()


def with_rows(world: World, folder: Path, rows: NDArray[np.bool_]) -> tuple[Path, Path]:
    """Demonstrations and features with the features of these rows replaced by noise."""
    folder.mkdir()
    phi = load_file(world.of("features") / "features.safetensors")["features"]
    noise = np.random.default_rng(0).normal(size=phi.shape).astype(np.float32)
    save_file({"features": np.where(rows[:, None], noise, phi)}, folder / "features.safetensors")
    return world.of("demonstrations"), folder


def test_irl_fits_the_fit_rows_alone(world: World, tmp_path: Path) -> None:
    fit = (world.demos["part"] == "fit").to_numpy()

    def fitted(name: str, rows: NDArray[np.bool_]) -> tuple[bytes, str]:
        demos, features = with_rows(world, tmp_path / name, rows)
        folder = irl(world, tmp_path / f"irl {name}", world.config.irl, demos=demos, features=features)
        return (folder / "head.safetensors").read_bytes(), (folder / "reward.json").read_text()

    nothing = fitted("nothing", np.zeros(len(fit), dtype=bool))
    assert fitted("outside", ~fit) == nothing
    assert fitted("inside", fit) != nothing


def test_the_learned_reward_is_standardised_on_the_fit_demonstrations(world: World) -> None:
    learned = LearnedReward.load(world.of("irl"), small.DEVICE)
    fit = world.demos[world.demos["part"] == "fit"]
    scores = learned.standardised(learned.score(Completions.from_frame(fit)))
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=1e-3)


def test_the_curve_of_irl_has_a_row_an_epoch_and_keeps_the_norm(world: World) -> None:
    rows = [json.loads(line) for line in (world.of("irl") / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["norm"] <= 1 + 1e-9 for row in rows)
    assert not any("truth" in key or "auroc" in key or "toxic" in key for key in rows[0])


def correlated(count: int = 400, dimension: int = 6) -> NDArray[np.float64]:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(count, dimension)) @ generator.normal(size=(dimension, dimension))
    return values - values.mean(0)


def test_whitened_features_have_the_identity_as_covariance() -> None:
    values = correlated()
    white = values @ irl_stage.scaling(values, small_irl(scaling="whiten", ridge=1e-9))
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=1e-4)


def test_standardised_features_have_unit_variance_and_keep_their_correlation() -> None:
    values = correlated()
    scaled = values @ irl_stage.scaling(values, small_irl(scaling="standardise"))
    np.testing.assert_allclose(np.cov(scaled.T, bias=True), np.corrcoef(values.T), atol=1e-9)


def test_the_ridge_bounds_what_whitening_may_amplify() -> None:
    values = correlated()
    values[:, 5] = values[:, 4] + 1e-9 * values[:, 0]
    ridge = 1e-2
    eigenvalues = np.linalg.eigvalsh(irl_stage.scaling(values, small_irl(ridge=ridge)))
    mean = np.trace(values.T @ values / len(values)) / 6
    assert eigenvalues.max() == pytest.approx(1 / np.sqrt(ridge * mean), rel=1e-3)


@pytest.mark.parametrize("scaling", ["whiten", "standardise"])
def test_a_constant_feature_is_refused(scaling: Any) -> None:
    values = correlated()
    values[:, 2] = 0
    with pytest.raises(irl_stage.IrlError, match="a feature is constant"):
        irl_stage.scaling(values, small_irl(scaling=scaling))


def pairs(count: int = 60, dimension: int = 5, shift: float = 0.4) -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=(count, dimension)) + shift


def fit(config: IrlConfig, fit_pairs: NDArray[np.float64], folder: Path, rows: Any = None) -> NDArray[np.float64]:
    return irl_stage.fit_head(fit_pairs, fit_pairs[:5], config, context=small.context(folder, rows))


LOSSES = [MaxMarginLoss(), HingeLoss(target_margin=2.0), BradleyTerryLoss(temperature=0.5)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 7.0])
def test_the_norm_of_the_head_stays_within_its_bound(loss: Any, max_norm: float, tmp_path: Path) -> None:
    head = fit(small_irl(loss=loss, max_norm=max_norm, epochs=30, learning_rate=0.5), pairs(), tmp_path)
    assert np.linalg.norm(head) <= max_norm * (1 + 1e-9)
    if isinstance(loss, MaxMarginLoss):
        assert np.linalg.norm(head) == pytest.approx(max_norm, rel=1e-6), "it has no optimum inside"


def slope(loss: Any, margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """The derivative of the loss with respect to the margin, by hand."""
    if isinstance(loss, HingeLoss):
        return np.where(margins <= loss.target_margin, -1.0, 0.0)
    if isinstance(loss, BradleyTerryLoss):
        return -1 / loss.temperature / (1 + np.exp(margins / loss.temperature))
    return np.where(margins > 0, -loss.correct_penalty, -loss.wrong_penalty)


def slow_fit(config: IrlConfig, differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Projected Adam written out; only the random draws are those of torch."""
    generator = torch.Generator().manual_seed(config.seed)
    dimension = differences.shape[1]
    weights = torch.randn(dimension, generator=generator, dtype=torch.float64).numpy() / np.sqrt(dimension)
    weights = weights / max(1.0, float(np.linalg.norm(weights)) / config.max_norm)
    first, second, step = np.zeros(dimension), np.zeros(dimension), 0
    for _ in range(config.epochs):
        order = torch.randperm(len(differences), generator=generator).numpy()
        for start in range(0, len(order), config.batch_size):
            batch = differences[order[start : start + config.batch_size]]
            gradient = (slope(config.loss, batch @ weights)[:, None] * batch).mean(0)  # of this batch alone
            step += 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            weights = weights - config.learning_rate * update
            weights = weights / max(1.0, float(np.linalg.norm(weights)) / config.max_norm)
    return weights


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_fit_is_projected_adam_on_the_gradient_of_each_batch_alone(loss: Any, tmp_path: Path) -> None:
    config = small_irl(loss=loss, epochs=4, learning_rate=0.05, seed=3)
    np.testing.assert_allclose(fit(config, pairs(), tmp_path), slow_fit(config, pairs()), atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_config_chooses_the_loss(loss: Any) -> None:
    margins = torch.tensor([-2.0, 0.3, 3.0], dtype=torch.float64)
    expected = {
        "max_margin": losses.max_margin(margins, correct_penalty=1.0, wrong_penalty=2.0),
        "hinge": losses.hinge(margins, target_margin=2.0),
        "bradley_terry": losses.bradley_terry(margins, temperature=0.5),
    }
    assert torch.equal(irl_stage.loss_function(loss)(margins), expected[loss.name])


def test_the_seed_sets_the_start_of_the_head(tmp_path: Path) -> None:
    heads = [fit(small_irl(seed=seed, learning_rate=1e-9), pairs(), tmp_path) for seed in (0, 0, 1)]
    assert (heads[0] == heads[1]).all()
    assert np.abs(heads[0] - heads[2]).max() > 0.1


def test_the_seed_sets_the_order_of_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda size, **options: torch.ones(size, dtype=torch.float64))
    heads = [fit(small_irl(seed=seed, max_norm=10.0), pairs(), tmp_path) for seed in (0, 0, 1)]
    assert (heads[0] == heads[1]).all()
    assert (heads[0] != heads[2]).any()


def test_resampling_draws_pairs_with_replacement_and_by_the_seed(tmp_path: Path) -> None:
    def first_loss(seed: int, resample: bool) -> float:
        rows: list[dict[str, float]] = []
        fit(small_irl(seed=seed, resample_pairs=resample, epochs=1, learning_rate=1e-9), pairs(), tmp_path, rows)
        return rows[0]["loss"]

    assert first_loss(0, True) == first_loss(0, True) != first_loss(0, False)


def test_fit_head_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    fit(small_irl(resample_pairs=True), pairs(), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_demonstrations_of_other_prompts_are_refused(world: World) -> None:
    demos = world.demos
    rows = demos.index[(demos["policy"] == "expert") & (demos["part"] == "fit")]
    demos.loc[rows, "prompt_id"] = demos.loc[rows, "prompt_id"].to_numpy()[::-1]
    with pytest.raises(irl_stage.IrlError, match="not of the same prompts"):
        irl_stage.pair_differences(demos, np.zeros((len(demos), 2)), "fit")


def test_pair_differences_are_expert_minus_baseline(world: World) -> None:
    demos = world.demos
    phi = np.arange(len(demos), dtype=float)[:, None] ** 2
    found = irl_stage.pair_differences(demos, phi, "select")
    rows = demos[demos["part"] == "select"]
    expert, baseline = (rows.index[rows["policy"] == name] for name in ("expert", "baseline"))
    assert found.tolist() == (phi[expert] - phi[baseline]).tolist()
    assert len(found) == 12 * 2


# ---------------------------------------------------------------- a world in which the true reward is linear


DIMENSION, CHOICES = 16, 12


@cache
def bandit() -> tuple[pd.DataFrame, NDArray[np.float32], NDArray[np.float64]]:
    """Prompts with random candidates; the baseline draws evenly, the expert by exp(R*): rows, features, R*."""
    generator = np.random.default_rng(0)
    direction = generator.normal(size=DIMENSION)
    mixing = generator.normal(size=(DIMENSION, DIMENSION))
    rows, chosen = [], []
    for policy in ("expert", "baseline"):
        candidates = np.random.default_rng(1)  # the same for both
        for prompt in range(450):
            part = "fit" if prompt < 250 else "select" if prompt < 300 else "test"
            phi = candidates.normal(size=(CHOICES, DIMENSION))
            scores = phi @ direction / np.linalg.norm(direction)
            weights = np.exp(scores) if policy == "expert" else np.ones(CHOICES)
            for sample, choice in enumerate(generator.choice(CHOICES, size=4, p=weights / weights.sum())):
                rows.append({"part": part, "prompt_id": prompt, "policy": policy, "sample": sample})
                chosen.append((phi[choice], scores[choice]))
    states = np.array([phi for phi, _ in chosen]) @ mixing + 3
    return pd.DataFrame(rows), states.astype(np.float32), np.array([score for _, score in chosen])


def recovered(world: World, folder: Path, config: IrlConfig, *, swapped: int | None = None) -> float:
    """AUROC of the learned reward against the sign of R* on test, after the stage has run on the bandit."""
    rows, phi, truth = bandit()
    phi = phi.copy()
    if swapped is not None:
        half = len(rows) // 2
        swap = np.random.default_rng(swapped).random(half) < 0.5
        expert, baseline = phi[:half].copy(), phi[half:].copy()
        phi[:half], phi[half:] = (np.where(swap[:, None], *pair) for pair in ((baseline, expert), (expert, baseline)))
    folder.mkdir(parents=True)
    texts = world.policy("sft").complete(["The bus"] * len(rows), [" is late"] * len(rows))
    rows.join(texts.frame()).to_parquet(folder / "demonstrations.parquet")
    save_file({"features": phi}, folder / "features.safetensors")
    learned = LearnedReward.load(
        irl(world, folder / "irl", config, demos=folder, features=folder), small.DEVICE, reference=world.of("sft")
    )
    test = (rows["part"] == "test").to_numpy()
    return float(roc_auc_score(truth[test] >= 0, learned.score_features(bandit()[1])[test]))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_irl_recovers_the_ranking_of_a_linear_reward(loss: Any, world: World, tmp_path: Path) -> None:
    config = small_irl(loss=loss, epochs=20, batch_size=32, max_norm=3.0)
    assert recovered(world, tmp_path / "bandit", config) > 0.95


def test_irl_recovers_nothing_where_expert_and_baseline_are_swapped_at_random(world: World, tmp_path: Path) -> None:
    config = small_irl(epochs=10, batch_size=32)
    found = [recovered(world, tmp_path / str(seed), config, swapped=seed) for seed in range(6)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.15)
    assert max(found) < 0.9


# ---------------------------------------------------------------- evaluate


def test_metrics_of_the_policies_are_those_of_the_completions_on_disk(world: World) -> None:
    table = pd.read_parquet(world.folder / "completions.parquet")
    assert set(table["policy"]) == {"reference", "expert", "refinetuned"}
    for name, rows in table.groupby("policy"):
        by_hand = {
            "n_completions": len(rows),
            "toxic_count": sum(reward < 0 for reward in rows["reward"]),
            "toxic_fraction": np.mean([reward < 0 for reward in rows["reward"]]),
            "reward_mean": np.mean(rows["reward"]),
            "learned_reward_mean": np.mean(rows["learned_reward"]),
            "kl": np.mean(rows["log_probability"] - rows["reference_log_probability"]),
            "nll": -sum(rows["reference_log_probability"]) / sum(rows["tokens"]),
            "distinct_fraction": len(set(rows["completion"])) / len(rows),
            "empty_fraction": np.mean([not text.strip() for text in rows["completion"]]),
            "length_mean": np.mean(rows["length"]),
        }
        for key, value in by_hand.items():
            assert world.metrics[f"{name}/{key}"] == pytest.approx(float(value), abs=1e-9), key
        low, high = world.metrics[f"{name}/toxic_fraction_low"], world.metrics[f"{name}/toxic_fraction_high"]
        assert low <= world.metrics[f"{name}/toxic_fraction"] <= high
    assert world.metrics["reference/kl"] == 0


def test_completions_on_disk_are_of_the_test_prompts_under_one_numbering(world: World) -> None:
    table, texts = pd.read_parquet(world.folder / "completions.parquet"), world.table("data", "texts.parquet")
    prompts = sorted(set(texts.loc[texts["part"] == "test", "prompt"]))
    assert world.metrics["n_prompts"] == len(prompts) == 16
    for _, rows in table.groupby("policy"):
        assert len(rows) == 16 * 2
        assert rows["prompt"].tolist() == [prompts[number] for number in rows["prompt_id"]]
        assert set(rows["prompt"]) == set(prompts)


def test_completions_of_reference_and_expert_are_the_demonstrations_on_test(world: World) -> None:
    table, demos = pd.read_parquet(world.folder / "completions.parquet"), world.demos
    for policy, name in (("reference", "baseline"), ("expert", "expert")):
        mine = table[table["policy"] == policy].reset_index(drop=True)
        theirs = demos[(demos["part"] == "test") & (demos["policy"] == name)].reset_index(drop=True)
        assert mine["completion"].tolist() == theirs["completion"].tolist()
        assert (mine["log_probability"] == theirs[f"{policy}_log_probability"]).all()
        assert (mine["reference_log_probability"] == theirs["reference_log_probability"]).all()
        assert (mine["tokens"] == theirs["completion_ids"].map(len)).all()
        assert (mine["tokens"] - mine["length"] == theirs["ended"].astype(int)).all(), "EOS does not count"
        assert theirs["ended"].any(), "a world in which completions end"
        learned = LearnedReward.load(world.of("irl"), small.DEVICE)
        scores = learned.standardised(learned.score(Completions.from_frame(theirs)))
        np.testing.assert_allclose(mine["learned_reward"], scores, atol=1e-3)


def test_completions_of_the_refinetuned_policy_carry_their_scores(world: World) -> None:
    table = pd.read_parquet(world.folder / "completions.parquet")
    rows = table[table["policy"] == "refinetuned"].reset_index(drop=True)
    written = generate(world.policy("refinetune"), rows["prompt"].tolist(), max_new_tokens=10, batch_size=256, seed=0)
    assert rows["completion"].tolist() == written.texts
    truth = load_ground_truth(world.of("reward"), small.DEVICE).score(written)
    learned = LearnedReward.load(world.of("irl"), small.DEVICE)
    np.testing.assert_allclose(rows["reward"], truth, atol=1e-9)
    np.testing.assert_allclose(rows["learned_reward"], learned.standardised(learned.score(written)), atol=1e-4)
    for column, stage in (("log_probability", "refinetune"), ("reference_log_probability", "sft")):
        np.testing.assert_allclose(rows[column], log_probabilities(world.policy(stage), written), atol=1e-4)
    ended = written.ended(world.policy("sft").eos)
    assert rows["tokens"].tolist() == [len(ids) for ids in written.completion_ids]
    assert (rows["tokens"] - rows["length"]).tolist() == ended.astype(int).tolist(), "EOS does not count"


def judged(world: World) -> pd.DataFrame:
    """Demonstrations with R* and the learned reward as the loss left it."""
    demos = world.demos.assign(truth=world.table("judge", "scores.parquet")["reward"])
    learned = LearnedReward.load(world.of("irl"), small.DEVICE)
    return demos.assign(score=learned.score(Completions.from_frame(demos)))


def best_split(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """The lowest of the best thresholds, from all of them, midway between neighbours."""
    values = np.unique(scores)
    options = [values[0], *(values[:-1] + values[1:]) / 2, np.nextafter(values[-1], np.inf)]
    return float(max(options, key=lambda option: float(((scores >= option) == labels).mean())))


def test_metrics_of_the_learned_reward_are_those_of_scikit_learn(world: World) -> None:
    frame = judged(world)
    select, test = (frame[frame["part"] == part] for part in ("select", "test"))
    civil, scores = test["truth"].to_numpy() >= 0, test["score"].to_numpy()
    threshold = best_split(select["score"].to_numpy(), select["truth"].to_numpy() >= 0)
    by_hand = {
        "n_completions": len(test),
        "n_civil": sum(civil),
        "auroc": roc_auc_score(civil, scores),
        "accuracy": np.mean((scores >= threshold) == civil),
        "f1": f1_score(~civil, scores < threshold),
        "accuracy_at_zero": np.mean((scores >= 0) == civil),
        "majority_accuracy": max(np.mean(civil), np.mean(~civil)),
        "discrimination_auroc": roc_auc_score(test["policy"] == "expert", scores),
        "pearson": test["truth"].corr(test["score"]),
        "spearman": test["truth"].corr(test["score"], method="spearman"),
        "kendall": test["truth"].corr(test["score"], method="kendall"),
    }
    for key, value in by_hand.items():
        assert world.metrics[f"irl/{key}"] == pytest.approx(float(value), abs=1e-6), key
    assert world.metrics["irl/auroc_low"] <= world.metrics["irl/auroc"] <= world.metrics["irl/auroc_high"]


def demos_with(truth: NDArray[np.float64], scores: NDArray[np.float64], *, parts: list[str]) -> pd.DataFrame:
    count = len(truth)
    return pd.DataFrame(
        {
            "part": parts,
            "prompt_id": np.arange(count) // 4,
            "policy": np.where(np.arange(count) % 2, "expert", "baseline"),
            "reward": truth,
            "raw_learned_reward": scores,
        }
    )


def evaluation(**options: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"seed": 0, "completions_per_prompt": 2, "max_new_tokens": 4, "bootstrap": 200, **options})


def test_thresholds_come_from_select_and_never_from_test() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.normal(size=80), generator.normal(size=80)
    frame = demos_with(truth, scores, parts=["select"] * 40 + ["test"] * 40)
    threshold = best_split(scores[:40], truth[:40] >= 0)
    found = evaluate_stage.reward_metrics(frame, evaluation())
    assert found["accuracy"] == np.mean((scores[40:] >= threshold) == (truth[40:] >= 0))
    own = best_split(scores[40:], truth[40:] >= 0)
    assert found["accuracy"] < np.mean((scores[40:] >= own) == (truth[40:] >= 0)), "the best on test is better"


def test_the_unsupervised_threshold_does_not_know_the_ground_truth() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.normal(size=80), generator.normal(size=80)
    parts = ["select"] * 40 + ["test"] * 40
    first = evaluate_stage.reward_metrics(demos_with(truth, scores, parts=parts), evaluation())
    other = np.concatenate([generator.normal(size=40), truth[40:]])
    second = evaluate_stage.reward_metrics(demos_with(other, scores, parts=parts), evaluation())
    assert first["accuracy_unsupervised"] == second["accuracy_unsupervised"]
    assert first["accuracy"] != second["accuracy"]


def test_fit_rows_do_not_enter_the_metrics() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.normal(size=60), generator.normal(size=60)
    frame = demos_with(truth, scores, parts=["fit"] * 20 + ["select"] * 20 + ["test"] * 20)
    found = evaluate_stage.reward_metrics(frame, evaluation())
    frame.loc[:19, ["reward", "raw_learned_reward"]] = np.nan
    assert evaluate_stage.reward_metrics(frame, evaluation()) == found


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_majority_is_what_a_constant_answer_reaches(sign: float) -> None:
    truth = sign * np.array([1.0, 1, 1, -1] * 4)
    frame = demos_with(truth, np.zeros(16), parts=["select"] * 8 + ["test"] * 8)
    found = evaluate_stage.reward_metrics(frame, evaluation())
    assert found["majority_accuracy"] == found["accuracy"] == 0.75
    assert found["auroc"] == 0.5
    assert np.isnan(found["pearson"])


def tables(expert: float, refinetuned: float, *, noise: float, prompts: int = 30) -> dict[str, pd.DataFrame]:
    """Rewards of three policies on the same prompts, four completions each."""
    generator = np.random.default_rng(0)
    return {
        name: pd.DataFrame(
            {
                "prompt_id": np.repeat(np.arange(prompts), 4),
                "reward": shift + noise * generator.normal(size=4 * prompts),
            }
        )
        for name, shift in (("reference", 0.0), ("expert", expert), ("refinetuned", refinetuned))
    }


def test_the_recovered_fraction_is_the_share_of_the_gain() -> None:
    found = evaluate_stage.recovered_fraction(tables(2.0, 1.5, noise=0.0), evaluation())
    assert found == {"recovered_fraction": 0.75, "recovered_fraction_low": 0.75, "recovered_fraction_high": 0.75}
    noisy = tables(2.0, 1.5, noise=0.5)
    found = evaluate_stage.recovered_fraction(noisy, evaluation())
    mean = {name: table["reward"].mean() for name, table in noisy.items()}
    share = (mean["refinetuned"] - mean["reference"]) / (mean["expert"] - mean["reference"])
    assert found["recovered_fraction"] == pytest.approx(share)
    assert found["recovered_fraction_low"] < share < found["recovered_fraction_high"]


def test_the_recovered_fraction_is_left_out_where_there_was_nothing_to_recover() -> None:
    assert evaluate_stage.recovered_fraction(tables(0.01, 1.5, noise=1.0), evaluation()) == {}


def test_the_recovered_fraction_needs_all_three_policies() -> None:
    two = {name: table for name, table in tables(2.0, 1.5, noise=0.1).items() if name != "refinetuned"}
    assert evaluate_stage.recovered_fraction(two, evaluation()) == {}


def policy_table(**columns: Any) -> pd.DataFrame:
    base = {
        "prompt_id": [0, 0, 1, 1],
        "completion": [" a", " a", "  ", " b"],
        "tokens": [2, 3, 1, 4],
        "length": [1, 3, 0, 4],
        "log_probability": [-1.0, -2.0, -3.0, -4.0],
        "reference_log_probability": [-2.0, -2.0, -4.0, -5.0],
        "reward": [1.0, -1.0, 0.0, -2.0],
    }
    return pd.DataFrame({**base, **columns})


def test_policy_metrics_of_four_completions_by_hand() -> None:
    found = evaluate_stage.policy_metrics(policy_table(), evaluation())
    expected = {
        "n_completions": 4,
        "toxic_count": 2,  # R* of exactly 0 is civil
        "toxic_fraction": 0.5,
        "reward_mean": -0.5,
        "kl": 0.75,
        "nll": 1.3,
        "distinct_fraction": 0.75,
        "empty_fraction": 0.25,
        "length_mean": 2.0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert "learned_reward_mean" not in found


def test_a_completion_that_could_not_be_judged_is_never_taken_for_civil() -> None:
    table = policy_table(reward=[1.0, -1.0, np.nan, -2.0])
    with pytest.raises(Exception, match=r"R\*|reward|finite"):
        evaluate_stage.policy_metrics(table, evaluation())


def test_what_is_not_defined_is_left_out_of_the_metrics(tmp_path: Path) -> None:
    metrics = {"irl/auroc": float("nan"), "irl/kendall": float("inf"), "irl/accuracy": 0.5}
    evaluate_stage._write(tmp_path, metrics, {"reference": policy_table()})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"irl/accuracy": 0.5}


UNTIL = {
    "sft": {"reference"},
    "rlhf": {"reference", "expert"},
    "demonstrations": {"reference", "expert"},
    "irl": {"reference", "expert", "irl"},
    "refinetune": {"reference", "expert", "irl", "refinetuned"},
    "evaluate": {"reference", "expert", "irl", "refinetuned"},
}


@pytest.mark.parametrize("until", UNTIL)
def test_what_does_not_exist_is_not_measured(until: str, root: Path, world: World) -> None:
    found = run(root, f"until={until}")
    prefixes = {key.split("/")[0] for key in found.metrics if "/" in key}
    assert prefixes == UNTIL[until]
    assert set(SEEN) <= {"evaluate"}, "all else is in the store"
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert ("reference/learned_reward_mean" in found.metrics) == ("irl" in UNTIL[until])
    table = pd.read_parquet(found.folder / "completions.parquet")
    assert set(table["policy"]) == UNTIL[until] - {"irl"}
    assert (table.groupby("policy").size() == 32).all()


def test_the_run_folder_holds_the_metrics_that_were_returned(world: World) -> None:
    assert json.loads((world.folder / "metrics.json").read_text()) == pytest.approx(dict(world.metrics))


def test_a_second_run_computes_nothing_and_returns_the_same(root: Path, world: World) -> None:
    again = run(root)
    assert SEEN == []
    assert again.metrics == world.metrics


def test_another_store_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    again = run(tmp_path, "until=rlhf")
    for stage in ("data", "reward", "sft", "rlhf"):
        for path in again.of(stage).glob("*.safetensors"):
            assert path.read_bytes() == (world.of(stage) / path.name).read_bytes(), f"{stage}/{path.name}"

"""The methods of IRL on worlds in which the true reward is linear, and what each of them may not see."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from irl_exp.config import (
    BradleyTerryLoss,
    ConfidenceMarginLoss,
    EnsembleConfig,
    FailureAwareConfig,
    FeaturesConfig,
    FrozenBackbone,
    HiddenStateConfig,
    HingeLoss,
    LossConfig,
    MarginConfig,
    MaxMarginLoss,
    PlaceboConfig,
    ProbeConfig,
    ProbeRegressionConfig,
    SquaredLoss,
)
from irl_exp.irl import contrast, losses, methods
from irl_exp.irl.contrast import Demonstrations, IrlError, Scaling
from irl_exp.irl.methods import Fit

FEATURES = FeaturesConfig(hidden_state=HiddenStateConfig())
COMMON: dict[str, Any] = {"seed": 0, "features": FEATURES, "loss": MaxMarginLoss(), "epochs": 15, "learning_rate": 0.01}
LOSSES = [MaxMarginLoss(), HingeLoss(), BradleyTerryLoss(), ConfidenceMarginLoss()]
DIMENSION, CHOICES = 16, 12


def margin(**options: Any) -> MarginConfig:
    return MarginConfig(**{**COMMON, "backbone": FrozenBackbone(), **options})


@cache
def bandit() -> tuple[Demonstrations, NDArray[np.float64]]:
    """Prompts with random candidates; the baseline draws evenly, the expert by exp(R*): demonstrations and R*."""
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
    return Demonstrations(pd.DataFrame(rows), states.astype(np.float32)), np.array([score for _, score in chosen])


def recovered(fit: Fit) -> float:
    """AUROC of the reward against the sign of R* on test."""
    demos, truth = bandit()
    test = (demos.frame["part"] == "test").to_numpy()
    return float(roc_auc_score(truth[test] >= 0, fit.scorer.score_features(demos.features[test])[0]))


# ---------------------------------------------------------------- pairs and scaling


def test_pairs_are_expert_minus_baseline() -> None:
    demos, _ = bandit()
    phi = np.arange(len(demos.frame), dtype=float)[:, None] ** 2
    rows = demos.frame[demos.frame["part"] == "select"]
    expert, baseline = (rows.index[rows["policy"] == name] for name in ("expert", "baseline"))
    found = demos.pairs(phi, "select")
    assert found.tolist() == (phi[expert] - phi[baseline]).tolist()
    assert len(found) == 50 * 4


def test_demonstrations_of_other_prompts_are_refused() -> None:
    demos, _ = bandit()
    frame = demos.frame.copy()
    rows = frame.index[(frame["policy"] == "expert") & (frame["part"] == "fit")]
    frame.loc[rows, "prompt_id"] = frame.loc[rows, "prompt_id"].to_numpy()[::-1]
    with pytest.raises(IrlError, match="not of the same prompts"):
        Demonstrations(frame, demos.features).pairs(np.zeros((len(frame), 2)), "fit")


@pytest.mark.parametrize("loss", [MaxMarginLoss(), SquaredLoss(), HingeLoss()])
def test_of_several_norms_that_with_the_least_loss_on_select_is_taken(loss: LossConfig) -> None:
    """Also of losses whose scale follows the norm: they are read per sd of the margins."""
    demos, _ = bandit()
    norms = (0.3, 1.0, 3.0)
    alone = {norm: methods.fit_margin([margin(loss=loss, max_norm=(norm,))], demos)[0] for norm in norms}
    least = {norm: min(row["select_loss"] for row in fit.curve) for norm, fit in alone.items()}
    best = min(norms, key=least.__getitem__)
    found = methods.fit_margin([margin(loss=loss, max_norm=norms)], demos)[0]
    assert found.info["max_norm"] == best
    assert (found.scorer.weights == alone[best].scorer.weights).all()


# ---------------------------------------------------------------- parts of the demonstrations


def of_prompts(prompts: int = 20, samples: int = 4) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"part": part, "prompt_id": number + 100 * (part == "test"), "policy": policy, "sample": sample}
        for policy in ("expert", "baseline")
        for part in ("fit", "test")
        for number in range(prompts)
        for sample in range(samples)
    ]
    return pd.DataFrame(rows)


def left(frame: pd.DataFrame) -> set[tuple[int, str, int]]:
    rows = frame[frame["part"] == "fit"]
    return set(zip(rows["prompt_id"], rows["policy"], rows["sample"], strict=True))


@pytest.mark.parametrize(("fraction", "prompts"), [(1.0, 20), (0.5, 10), (0.05, 1), (0.001, 1)])
@pytest.mark.parametrize("completions", [None, 1, 3, 4])
def test_a_part_of_fit_has_so_many_prompts_and_completions(
    fraction: float, prompts: int, completions: int | None
) -> None:
    frame = of_prompts()
    part = contrast.part_of_fit(frame, fraction, completions)
    kept = left(part)
    samples = completions or 4
    assert len(kept) == 2 * prompts * samples
    assert {key[2] for key in kept} == set(range(samples))
    assert len({key[0] for key in kept}) == prompts
    pd.testing.assert_frame_equal(part.drop(columns="part"), frame.drop(columns="part"))
    assert (part["part"] == "test").equals(frame["part"] == "test")


def test_a_smaller_part_lies_within_a_larger_one() -> None:
    frame = of_prompts()
    for smaller, larger in ((0.1, 0.2), (0.2, 0.7), (0.7, 1.0)):
        assert left(contrast.part_of_fit(frame, smaller, 2)) < left(contrast.part_of_fit(frame, larger, 3))


def test_the_part_is_no_run_of_neighbours() -> None:
    """Prompts are in the order of the alphabet: neighbours begin alike."""
    prompts = sorted({key[0] for key in left(contrast.part_of_fit(of_prompts(), 0.5, None))})
    assert prompts != list(range(prompts[0], prompts[0] + 10))


def test_more_completions_than_there_are_is_an_error() -> None:
    with pytest.raises(IrlError, match=r"irl\.completions=5: there are 4 of each prompt; set demonstrations\."):
        contrast.part_of_fit(of_prompts(), 1.0, 5)


def test_what_is_left_out_is_not_fitted() -> None:
    demos, _ = bandit()
    frame = contrast.part_of_fit(demos.frame, 0.3, 2)
    left_out = (frame["part"] == "left_out").to_numpy()
    assert left_out.sum() == 2 * 4 * 250 - 2 * 2 * 75
    noise = np.random.default_rng(0).normal(size=demos.features.shape).astype(np.float32)
    seen, spoilt, removed = (
        methods.fit_margin([margin(ridge=(1e-3, 1e-2))], one)[0].scorer.weights
        for one in (
            Demonstrations(frame, demos.features),
            Demonstrations(frame, np.where(left_out[:, None], noise, demos.features)),
            Demonstrations(frame[~left_out], demos.features[~left_out]),
        )
    )
    assert (spoilt == seen).all()
    assert (removed == seen).all()


def correlated(count: int = 400, dimension: int = 6) -> NDArray[np.float32]:
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(count, dimension)) @ generator.normal(size=(dimension, dimension)) + 2
    return mixed.astype(np.float32)


def test_whitened_features_have_mean_0_and_the_identity_as_covariance() -> None:
    white = Scaling.fit(correlated(), "whiten", 1e-9)(correlated())
    np.testing.assert_allclose(white.mean(0), np.zeros(6), atol=1e-6)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=1e-4)


def test_standardised_features_have_unit_variance_and_keep_their_correlation() -> None:
    scaled = Scaling.fit(correlated(), "standardise", 1e-3)(correlated())
    np.testing.assert_allclose(np.cov(scaled.T, bias=True), np.corrcoef(correlated().T), atol=1e-5)


def test_features_may_stay_as_they_are_with_their_mean() -> None:
    np.testing.assert_array_equal(Scaling.fit(correlated(), "none", 1e-3)(correlated()), correlated())


def test_the_ridge_bounds_what_whitening_may_amplify() -> None:
    values = correlated()
    values[:, 5] = values[:, 4]
    ridge = 1e-2
    eigenvalues = np.linalg.eigvalsh(Scaling.fit(values, "whiten", ridge).transform)
    mean = np.trace(np.cov(values.T.astype(np.float64), bias=True)) / 6
    assert eigenvalues.max() == pytest.approx(1 / np.sqrt(ridge * mean), rel=1e-3)


@pytest.mark.parametrize("scaling", ["whiten", "standardise"])
def test_a_constant_feature_gets_no_weight_and_all_constant_is_refused(scaling: str) -> None:
    values = correlated()
    values[:, 2] = 7
    scaled = Scaling.fit(values, scaling, 1e-3)(values)
    assert np.isfinite(scaled).all()
    with pytest.raises(IrlError, match="all features are constant"):
        Scaling.fit(np.full_like(values, 3), scaling, 1e-3)


# ---------------------------------------------------------------- margin


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_linear_reward_is_recovered(loss: Any) -> None:
    assert recovered(methods.fit_margin([margin(loss=loss)], bandit()[0])[0]) > 0.95


def test_the_squared_loss_does_not_know_which_completion_is_the_experts() -> None:
    demos, _ = bandit()
    half = len(demos.frame) // 2
    turned = Demonstrations(demos.frame, np.concatenate([demos.features[half:], demos.features[:half]]))
    config = margin(loss=SquaredLoss(), epochs=60)
    one, other = (methods.fit_margin([config], world)[0].scorer.weights for world in (demos, turned))
    np.testing.assert_allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("loss", [*LOSSES, SquaredLoss()], ids=lambda loss: loss.name)
def test_the_config_chooses_the_loss(loss: Any) -> None:
    margins = torch.tensor([-2.0, 0.3, 3.0], dtype=torch.float64)
    expected = {
        "max_margin": losses.max_margin(margins, correct_penalty=1.0, wrong_penalty=2.0),
        "hinge": losses.hinge(margins, target_margin=1.0),
        "bradley_terry": losses.bradley_terry(margins, temperature=1.0),
        "confidence_margin": losses.confidence_margin(margins, target_margin=0.1, confidence=0.5),
        "squared": losses.squared(margins),
    }
    assert torch.equal(methods.loss_function(loss)(margins), expected[loss.name])


def test_the_test_rows_do_not_enter_a_fit_and_fit_and_select_do() -> None:
    demos, _ = bandit()
    noise = np.random.default_rng(3).normal(size=demos.features.shape).astype(np.float32)

    def weights(part: str) -> Any:
        rows = (demos.frame["part"] == part).to_numpy()
        config = margin(ridge=(1e-3, 1.0), epochs=5)
        changed = Demonstrations(demos.frame, np.where(rows[:, None], noise, demos.features))
        return methods.fit_margin([config], changed)[0].scorer.weights.tolist()

    clean = weights("nothing")
    assert weights("test") == clean
    assert weights("fit") != clean


def test_seeds_fitted_together_equal_seeds_fitted_alone() -> None:
    configs = [margin(seed=seed, resample_pairs=True) for seed in (3, 0, 11)]
    together = methods.fit_margin(configs, bandit()[0])
    for config, fit in zip(configs, together, strict=True):
        alone = methods.fit_margin([config], bandit()[0])[0]
        np.testing.assert_allclose(fit.scorer.weights, alone.scorer.weights, atol=1e-9)
        assert fit.info == alone.info
        assert [row["step"] for row in fit.curve] == list(range(1, 16))


def test_configs_that_differ_in_more_than_their_seed_are_not_fitted_together() -> None:
    with pytest.raises(ValueError, match="differ in their seed alone"):
        methods.fit_margin([margin(), margin(seed=1, epochs=3)], bandit()[0])


def test_select_chooses_among_ridges_and_norms() -> None:
    config = margin(loss=BradleyTerryLoss(), ridge=(1e-3, 10.0), max_norm=(0.01, 3.0))
    assert methods.fit_margin([config], bandit()[0])[0].info["max_norm"] == 3.0
    each = [
        methods.fit_margin([margin(loss=BradleyTerryLoss(), ridge=(ridge,), max_norm=(3.0,))], bandit()[0])[0]
        for ridge in (1e-3, 10.0)
    ]
    best = min(each, key=lambda fit: min(row["select_loss"] for row in fit.curve))
    assert methods.fit_margin([config], bandit()[0])[0].info["ridge"] == best.info["ridge"]


# ---------------------------------------------------------------- placebo


def test_the_placebo_is_centred_on_chance_and_wide() -> None:
    configs = [PlaceboConfig(**{**COMMON, "seed": seed}) for seed in range(40)]
    found = [recovered(fit) for fit in methods.fit_margin(configs, bandit()[0])]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - 0.5) < 3 * error
    assert 0.02 < np.std(found) < 0.3


def test_the_placebo_cannot_choose_its_epoch_by_the_true_pairs() -> None:
    configs = [PlaceboConfig(**{**COMMON, "seed": seed}) for seed in range(60)]
    found = [fit.curve[-1]["select_expert_first"] for fit in methods.fit_margin(configs, bandit()[0])]
    demos, _ = bandit()
    same = (demos.pairs(demos.features.astype(np.float64), "select") == 0).all(1).mean()  # neither is first
    assert np.mean(found) == pytest.approx((1 - same) / 2, abs=0.02)


# ---------------------------------------------------------------- failure-aware


def failure_aware(**options: Any) -> FailureAwareConfig:
    return FailureAwareConfig(**{**COMMON, "loss": BradleyTerryLoss(), **options})


def test_failures_get_the_weight_clear_errors_first() -> None:
    margins = torch.tensor([[-3.0, -0.1, 0.1, 3.0]], dtype=torch.float64)
    weights = methods.weighting(failure_aware(weight=2.0, tie_width=0.25))
    start, end = weights(margins, 0.0)[0], weights(margins, 1.0)[0]
    assert (start / start[-1]).tolist() == pytest.approx([3, 1, 1, 1])  # below -0.25 sd: the clear error
    assert (end / end[-1]).tolist() == pytest.approx([3, 3, 3, 1])  # below +0.25 sd: near ties too


def test_focal_weights_fall_with_the_margin() -> None:
    margins = torch.tensor([[-3.0, -0.1, 0.1, 3.0]], dtype=torch.float64)
    found = methods.weighting(failure_aware(weighting="focal", focus=2.0))(margins, 0.3)[0].numpy()
    expected = (1 / (1 + np.exp(margins[0].numpy() / margins.std().item()))) ** 2
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["failure", "focal"])
def test_weights_have_mean_1_so_that_steps_are_comparable(kind: Any) -> None:
    margins = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = methods.weighting(failure_aware(weighting=kind))(margins, 0.5)
    np.testing.assert_allclose(weights.mean(1).numpy(), np.ones(3), rtol=1e-12)


def test_weight_0_is_the_margin_fit() -> None:
    plain = methods.fit_margin([margin(loss=BradleyTerryLoss())], bandit()[0])[0].scorer.weights
    weighted = methods.fit_margin([failure_aware(weight=0.0)], bandit()[0])[0].scorer.weights
    np.testing.assert_allclose(weighted, plain, atol=1e-12)


def noisy(share: float) -> Demonstrations:
    """The bandit with expert and baseline of this share of the fit pairs exchanged: known label noise."""
    demos, _ = bandit()
    half = len(demos.frame) // 2
    swap = np.random.default_rng(5).random(half) < share
    swap &= (demos.frame["part"] == "fit").to_numpy()[:half]
    features = demos.features.copy()
    features[:half][swap], features[half:][swap] = demos.features[half:][swap], demos.features[:half][swap]
    return Demonstrations(demos.frame, features)


@pytest.mark.parametrize("kind", ["failure", "focal"])
def test_attention_to_failures_is_attention_to_label_noise(kind: Any) -> None:
    """Wrong labels are failures: at equal steps the weights recover no more than none do. A limit of the method."""
    found = {}
    for name, config in {"plain": margin(loss=BradleyTerryLoss()), kind: failure_aware(weighting=kind)}.items():
        configs = [config.model_copy(update={"seed": seed}) for seed in range(4)]
        found[name] = np.mean([recovered(fit) for fit in methods.fit_margin(configs, noisy(0.3))])
    assert found[kind] > 0.8
    assert found[kind] <= found["plain"] + 0.005


# ---------------------------------------------------------------- ensemble


def ensemble(**options: Any) -> EnsembleConfig:
    return EnsembleConfig(**{**COMMON, "members": 4, **options})


def test_members_are_the_margin_fits_of_their_seeds_on_one_scale() -> None:
    demos, _ = bandit()
    fit = methods.fit_margin([ensemble(seed=2)], demos)[0]
    own = [
        margin(resample_pairs=True).model_copy(update={"seed": seed}) for seed in methods.head_seeds(ensemble(seed=2))
    ]
    alone = methods.fit_margin(own, demos)
    for row, member in zip(fit.scorer.weights, alone, strict=True):
        scores = member.scorer.score_features(demos.features[demos.fit])[0]
        np.testing.assert_allclose(row, member.scorer.weights[0] / scores.std(), atol=1e-7)


def test_ensembles_of_neighbouring_seeds_share_no_member() -> None:
    seeds = [seed for number in range(50) for seed in methods.head_seeds(ensemble(seed=number, members=10))]
    assert len(set(seeds)) == 500
    assert methods.head_seeds(ensemble(seed=7, members=10))[:4] == methods.head_seeds(ensemble(seed=7, members=4))
    one, other = (methods.fit_margin([ensemble(seed=seed)], bandit()[0])[0].scorer.weights for seed in (0, 1))
    nearest = np.abs(one[:, None] - other).max(axis=2).min()
    assert nearest > 1e-3


def test_ensembles_fitted_together_equal_ensembles_fitted_alone() -> None:
    configs = [ensemble(seed=seed) for seed in (0, 1, 5)]
    together = methods.fit_margin(configs, bandit()[0])
    for config, fit in zip(configs, together, strict=True):
        alone = methods.fit_margin([config], bandit()[0])[0]
        assert np.array_equal(fit.scorer.weights, alone.scorer.weights)
        assert fit.info == alone.info


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", lambda members: members.mean(1)),
        ("median", lambda members: np.median(members, axis=1)),
        ("lower_bound", lambda members: members.mean(1) - 2 * members.std(1, ddof=1)),
        ("worst", lambda members: members.min(1)),
    ],
)
def test_the_ensemble_is_one_reward_of_its_members(aggregate: Any, expected: Any) -> None:
    demos, _ = bandit()
    scorer = methods.fit_margin([ensemble(aggregate=aggregate, deviations=2.0)], demos)[0].scorer
    members = (demos.features - scorer.center) @ scorer.weights.T
    scores, deviation = scorer.score_features(demos.features)
    np.testing.assert_allclose(scores, expected(members), atol=1e-9)
    np.testing.assert_allclose(deviation, members.std(1, ddof=1), atol=1e-9)


def test_the_average_of_an_ensemble_is_no_worse_than_its_average_member() -> None:
    fit = methods.fit_margin([ensemble(members=10)], bandit()[0])[0]
    alone = methods.fit_margin([margin(seed=seed, resample_pairs=True) for seed in range(10)], bandit()[0])
    assert recovered(fit) >= np.mean([recovered(member) for member in alone])


# ---------------------------------------------------------------- probe


def test_the_probe_is_an_upper_bound_and_needs_both_labels() -> None:
    demos, truth = bandit()
    seen = np.where(demos.frame["part"] == "test", np.nan, truth)
    assert recovered(methods.fit_probe(ProbeConfig(seed=0, features=FEATURES), demos, seen)) > 0.98
    with pytest.raises(IrlError, match="both labels"):
        methods.fit_probe(ProbeConfig(seed=0, features=FEATURES), demos, np.abs(seen) + 1)


def test_the_regression_of_r_star_is_an_upper_bound_and_sees_no_constant_of_a_prompt() -> None:
    demos, truth = bandit()
    seen = np.where(demos.frame["part"] == "test", np.nan, truth)
    config = ProbeRegressionConfig(seed=0, features=FEATURES)
    fit = methods.fit_probe_regression(config, demos, seen)
    assert recovered(fit) > 0.98
    shifted = methods.fit_probe_regression(config, demos, seen + 7.0 * demos.frame["prompt_id"].to_numpy())
    np.testing.assert_allclose(shifted.scorer.weights, fit.scorer.weights, atol=1e-6)
    with pytest.raises(IrlError, match="differ in R"):
        methods.fit_probe_regression(config, demos, np.where(np.isnan(seen), np.nan, 1.0))

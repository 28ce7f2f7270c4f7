"""The ridge of whitening: what it is worth where rows are few for the width, and that select finds it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from irl_exp.config import (
    FeaturesConfig,
    FrozenBackbone,
    HiddenStateConfig,
    MarginConfig,
    MaxMarginLoss,
    PlaceboConfig,
)
from irl_exp.irl import methods
from irl_exp.irl.contrast import Demonstrations

FEATURES = FeaturesConfig(hidden_state=HiddenStateConfig())
DEFAULT = MarginConfig.model_fields["ridge"].default
PER = 7
"""Pairs a prompt."""


class World:
    """Features of variance 1, 1/2, 1/3, ..., and an expert ahead along a direction that knows nothing of that."""

    def __init__(self, features: int, ratio: float, select: int, seed: int) -> None:
        """Args: ratio: features over rows of fit; select: prompts."""
        self.random = np.random.default_rng(seed)
        self.variances = 1 / np.arange(1, features + 1)
        way = self.random.normal(size=features)
        self.shift = 1.81 * np.sqrt(self.variances / 2) * way / np.linalg.norm(way)
        fit = max(2, round(features / ratio / (2 * PER)))
        parts = {"fit": fit, "select": select}
        rows, texts, first = [], [], 0
        for part, prompts in parts.items():
            centre = self.normal(prompts, 1)
            for policy, sign in (("expert", 0.5), ("baseline", -0.5)):
                texts.append((self.normal(prompts, PER) + centre + sign * self.shift).reshape(-1, features))
                rows += [
                    {"part": part, "policy": policy, "prompt_id": first + prompt, "sample": sample}
                    for prompt, sample in itertools.product(range(prompts), range(PER))
                ]
            first += prompts
        self.demonstrations = Demonstrations(pd.DataFrame(rows), np.concatenate(texts).astype(np.float32))

    def normal(self, prompts: int, each: int) -> NDArray[np.float64]:
        return self.random.normal(size=(prompts, each, len(self.variances))) * np.sqrt(self.variances / 2)

    def expert_first(self, ridge: tuple[float, ...], seed: int = 1) -> tuple[float, float]:
        """How often the learned reward ranks the expert's text of a new pair first, exactly; and the ridge it took."""
        config = MarginConfig(
            seed=seed,
            features=FEATURES,
            backbone=FrozenBackbone(),
            loss=MaxMarginLoss(),
            ridge=ridge,
            epochs=10,
            learning_rate=1e-2,
        )
        (fit,) = methods.fit_margin([config], self.demonstrations)
        u = fit.scorer.weights[0]
        return float(ndtr(u @ self.shift / np.sqrt(u @ (self.variances * u)))), fit.info["ridge"]


@pytest.mark.parametrize("ratio", [0.05, 0.44, 0.88])
def test_the_ridge_that_select_takes_is_near_the_best(ratio: float) -> None:
    lost, gained = [], []
    for seed in range(4):
        world = World(64, ratio, select=40, seed=seed)
        each = [world.expert_first((ridge,))[0] for ridge in DEFAULT]
        found, ridge = world.expert_first(DEFAULT)
        assert found == each[DEFAULT.index(ridge)]
        lost.append(max(each) - found)
        gained.append(found - each[0])
    assert np.mean(lost) < 0.01
    assert np.mean(gained) > {0.05: -0.005, 0.44: 0.02, 0.88: 0.08}[ratio]


def test_all_seeds_take_one_ridge_and_a_placebo_its_own() -> None:
    demonstrations = World(48, 0.6, select=6, seed=2).demonstrations
    options: dict[str, Any] = {"features": FEATURES, "loss": MaxMarginLoss(), "epochs": 4, "learning_rate": 1e-2}
    configs = [MarginConfig(**options, backbone=FrozenBackbone(), seed=seed) for seed in range(12)]
    fits = methods.fit_margin(configs, demonstrations)
    assert len({fit.info["ridge"] for fit in fits}) == 1
    (alone,) = methods.fit_margin(configs[5:6], demonstrations)
    assert (alone.scorer.weights == fits[5].scorer.weights).all()
    placebos = [PlaceboConfig(**options, seed=seed) for seed in range(12)]
    fits = methods.fit_margin(placebos, demonstrations)
    assert len({fit.info["ridge"] for fit in fits}) > 1
    (alone,) = methods.fit_margin(placebos[5:6], demonstrations)
    assert (alone.scorer.weights == fits[5].scorer.weights).all()


def test_standardise_has_no_ridge_to_choose() -> None:
    config = MarginConfig(
        features=FEATURES, loss=MaxMarginLoss(), backbone=FrozenBackbone(), seed=0, scaling="standardise"
    )
    assert len(config.ridges) == 1

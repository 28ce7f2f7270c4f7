"""The methods of inverse RL that need no training of the backbone: demonstrations in, the scorer of a reward out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irl_exp.config import (
    BayesianConfig,
    BradleyTerryLoss,
    ConfidenceMarginLoss,
    EnsembleConfig,
    FailureAwareConfig,
    HingeLoss,
    LossConfig,
    MarginConfig,
    MaxMarginLoss,
    PlaceboConfig,
    ProbeConfig,
    ProbeRegressionConfig,
    SquaredLoss,
)
from irl_exp.irl import bayesian, losses
from irl_exp.irl.contrast import Demonstrations, IrlError, Moments, Scaling, blocks, by_block
from irl_exp.irl.heads import LANES, Heads, Procedure, filled, fit_heads, spread
from irl_exp.irl.learned_rewards import LinearScorer
from irl_exp.measures import reward_comparison as compare

Floats = NDArray[np.float64]
HeadsConfig = MarginConfig | PlaceboConfig | FailureAwareConfig | EnsembleConfig
CHOOSER = 0
"""The seed whose head chooses ridge and norm for all."""


@dataclass(frozen=True)
class Fit:
    """A fitted reward: its scorer, what the manifest says of it, and the curve of its fit.

    Attributes:
        scaling: of the features that it was fitted on.
        temperature: of the likelihood, where there is one: the unit of the parts of the uncertainty.
        path: (epochs, d) float32 weights after each epoch, of a fit of one head.
    """

    scorer: LinearScorer
    scaling: Scaling
    info: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    temperature: float | None = None
    path: NDArray[np.float32] | None = None

    def scores(self, demonstrations: Demonstrations) -> Floats:
        """(n,) rewards of the demonstrations as the method left them."""
        return self.scorer.score_features(demonstrations.features)[0]

    def epochs(self, demonstrations: Demonstrations, part: str) -> NDArray[np.float32] | None:
        """(epochs, rows of the part) scores after each epoch, where the fit has epochs and one head."""
        if self.path is None:
            return None
        rows = np.flatnonzero(demonstrations.frame["part"] == part)
        path, center = self.path.astype(np.float64), self.scorer.center
        found = [
            np.asarray(path @ (demonstrations.features[rows[block]] - center).T, dtype=np.float32)
            for block in blocks(len(rows), len(center))
        ]
        return np.concatenate(found, axis=1)

    def uncertainty(self, demonstrations: Demonstrations) -> dict[str, Floats]:
        """What the method knows of its uncertainty, by name, (n,) each; nothing if it has one head only.

        norm is the Mahalanobis norm of the features, with which the sd of any Gaussian posterior goes along by
        algebra: an sd that predicts errors no better than the norm says nothing about the reward.
        """
        _, deviation = self.scorer.score_features(demonstrations.features)
        if deviation is None:
            return {}
        norm = by_block(lambda some: np.linalg.norm(self.scaling(some), axis=1), demonstrations.features)
        found = {"deviation": deviation, "norm": norm}
        if self.temperature is not None:
            center, weights = self.scorer.center, self.scorer.weights[0]
            mean = by_block(lambda some: (some - center) @ weights, demonstrations.features)
            parts = bayesian.decompose(mean, deviation, self.temperature)
            found |= {"epistemic": parts.epistemic, "aleatoric": parts.aleatoric}
        return found


def fit_margin(
    configs: Sequence[HeadsConfig],
    demonstrations: Demonstrations,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Fit]:
    """Fit the configs, which differ in their seed alone, together: one Fit each.

    Of several ridges and norms that with the least loss on select is taken: a matter of the data, which the head of one
    seed decides for all of them, on all pairs. Each placebo has data of its own, and decides for itself.
    """
    config = configs[0]
    if any(other.model_copy(update={"seed": config.seed}) != config for other in configs):
        raise ValueError("configs that are fitted together may differ in their seed alone.")
    seeds = [seed for other in configs for seed in head_seeds(other)]
    members = len(seeds) // len(configs)
    candidates = _candidates(config, demonstrations)
    chosen, tried = _chosen(config, candidates, seeds)
    numbers, heads = np.unique(chosen), dict[int, _Head]()
    for done, number in enumerate(numbers):
        rows = np.flatnonzero(chosen == number)
        own, share = tuple(seeds[row] for row in rows), _share(progress, done, len(numbers))
        found = tried.get((number, own)) or candidates[number].fit(config, own, progress=share)
        heads |= {int(row): _Head(candidates[number], found, place) for place, row in enumerate(rows)}
    return [
        _reward(config, [heads[start + member] for member in range(members)], demonstrations)
        for start in range(0, len(seeds), members)
    ]


def head_seeds(config: HeadsConfig) -> list[int]:
    """The seed of each head of a reward: that of the config, or of each member one that no other ensemble has.

    Members with the seeds irl.seed, irl.seed + 1, ... would be shared by neighbouring ensembles, whose mean would then
    look far more certain than it is.
    """
    if not isinstance(config, EnsembleConfig):
        return [config.seed]
    streams = (np.random.SeedSequence([config.seed, member]) for member in range(config.members))
    return [int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1)) for stream in streams]


@dataclass(frozen=True)
class _Candidate:
    """A ridge and a norm. Differences are scaled when they are needed: of many, those of one ridge are enough."""

    ridge: float
    max_norm: float
    scaling: Scaling
    demonstrations: Demonstrations

    def fit(self, config: HeadsConfig, seeds: Sequence[int], **options: Any) -> Heads:
        how = procedure(config, self.max_norm)
        fit, select = self.demonstrations.differences(self.scaling)
        return fit_heads(fit, select, how, seeds, prompts=self.demonstrations.prompts("fit"), **options)


def _candidates(config: HeadsConfig, demonstrations: Demonstrations) -> list[_Candidate]:
    scalings = _scalings(demonstrations, config.scaling, config.ridges)
    return [_Candidate(ridge, norm, scaling, demonstrations) for ridge, scaling in scalings for norm in config.max_norm]


def _scalings(demonstrations: Demonstrations, scaling: str, ridges: Sequence[float]) -> Iterator[tuple[float, Scaling]]:
    """Each ridge with its scaling, from one look at the features of fit."""
    moments = Moments.of(demonstrations.features, demonstrations.rows_of_fit, scaling)
    return ((ridge, moments.with_ridge(ridge)) for ridge in ridges)


def _chosen(
    config: HeadsConfig, candidates: Sequence[_Candidate], seeds: Sequence[int]
) -> tuple[NDArray[np.int64], dict[tuple[int, tuple[int, ...]], Heads]]:
    """(seeds,) which candidate each takes; and what was fitted to find out, by candidate and seeds, where it is of use.

    It is where a seed decides for itself, as that of the default does.
    """
    if len(candidates) == 1:
        return np.zeros(len(seeds), dtype=np.int64), {}
    choosing = tuple(seeds) if isinstance(config, PlaceboConfig) else (CHOOSER,)
    whole = config.model_copy(update={"resample_pairs": False})
    tried = [candidate.fit(whole, choosing) for candidate in candidates]
    chosen = np.broadcast_to(np.argmin([heads.select_loss for heads in tried], axis=0), len(seeds))
    return chosen, {(number, choosing): heads for number, heads in enumerate(tried) if whole == config}


@dataclass(frozen=True)
class _Head:
    """One seed's head: the row `row` of the heads that were fitted together."""

    candidate: _Candidate
    heads: Heads
    row: int

    @property
    def weights(self) -> Floats:
        """(d,) in the coordinates of the features."""
        return np.asarray(self.candidate.scaling.transform @ self.heads.weights[self.row])


def _share(progress: Callable[[int, int], None], number: int, count: int) -> Callable[[int, int], None]:
    """Progress of one of several equal tasks."""
    return lambda done, total: progress(number * total + done, count * total)


def _reward(config: HeadsConfig, members: Sequence[_Head], demonstrations: Demonstrations) -> Fit:
    """One reward of its members, in the coordinates of the features."""
    weights, first = np.stack([member.weights for member in members]), members[0]
    scaling, heads = first.candidate.scaling, first.heads
    scorer = LinearScorer(weights, scaling.center, None)
    if isinstance(config, EnsembleConfig):
        fitted, width = demonstrations.rows_of_fit, len(scaling.center)
        parts = (demonstrations.features[fitted[block]] for block in blocks(len(fitted), width))
        spread = np.concatenate([(some - scaling.center) @ weights.T for some in parts]).std(axis=0)
        if not (spread > 0).all():
            raise IrlError("a member of the ensemble gives all demonstrations the same reward.")
        scorer = replace(
            scorer,
            weights=weights / spread[:, None],
            aggregate=config.aggregate,
            deviations=config.deviations if config.aggregate == "lower_bound" else 0.0,
        )
    rows = [member.row for member in members]
    curve = [
        {"step": epoch + 1, **{name: float(values[epoch, rows].mean()) for name, values in heads.curves.items()}}
        for epoch in range(config.epochs)
    ]
    best_epoch, candidate = int(heads.best_epoch[first.row]), first.candidate
    info = {"best_epoch": best_epoch, "ridge": candidate.ridge, "max_norm": candidate.max_norm}
    path = (heads.path[:, first.row] @ scaling.transform.T).astype(np.float32) if len(members) == 1 else None
    return Fit(scorer, scaling, info, curve, path=path)


def procedure(config: HeadsConfig, max_norm: float) -> Procedure:
    """How the heads of a config are fitted."""
    return Procedure(
        loss=loss_function(config.loss),
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        max_norm=max_norm,
        resample=config.resample_pairs,
        swap=isinstance(config, PlaceboConfig),
        weighting=weighting(config) if isinstance(config, FailureAwareConfig) else None,
        homogeneous=isinstance(config.loss, MaxMarginLoss | SquaredLoss),
    )


def loss_function(config: LossConfig) -> Callable[[Tensor], Tensor]:
    """The chosen loss as a function of the margin alone."""
    if isinstance(config, HingeLoss):
        return lambda margin: losses.hinge(margin, target_margin=config.target_margin)
    if isinstance(config, BradleyTerryLoss):
        return lambda margin: losses.bradley_terry(margin, temperature=config.temperature)
    if isinstance(config, SquaredLoss):
        return losses.squared
    if isinstance(config, ConfidenceMarginLoss):
        return lambda margin: losses.confidence_margin(
            margin, target_margin=config.target_margin, confidence=config.confidence
        )
    return lambda margin: losses.max_margin(
        margin, correct_penalty=config.correct_penalty, wrong_penalty=config.wrong_penalty
    )


def weighting(config: FailureAwareConfig) -> Callable[[Tensor, float], Tensor]:
    """Weights of pairs, of mean 1 a seed, so that both kinds take steps of the same size as no weighting.

    failure (after arXiv 2510.06092): 1 + weight where the margin is below a bound that rises over the epochs from
    -tie_width (clear errors) to +tie_width sd of the margins (near ties). focal (arXiv 1708.02002):
    (1 - sigmoid(margin / sd))^focus.
    """

    def weights(margins: Tensor, done: float) -> Tensor:
        sd = spread(margins)
        if config.weighting == "focal":
            found = (torch.sigmoid(filled(-margins / sd, columns=LANES)) ** config.focus)[:, : margins.shape[1]]
        else:
            found = 1 + config.weight * (margins < (2 * done - 1) * config.tie_width * sd).double()
        return found / found.mean(dim=1, keepdim=True)

    return weights


def fit_bayesian(config: BayesianConfig, demonstrations: Demonstrations) -> Fit:
    """Posterior of a linear reward; of several ridges and prior sds that with the least Bradley-Terry loss on select.

    With rounds > 1 the pairs are taken in disjoint folds of prompts, the posterior of one the prior of the next.
    """
    method = {"laplace": bayesian.laplace, "mean_field": bayesian.mean_field}[config.posterior]
    folds = _folds(demonstrations, config.rounds)
    found: list[tuple[float, Scaling, bayesian.Posterior, dict[str, Any]]] = []
    for ridge, scaling in _scalings(demonstrations, config.scaling, config.ridges):
        fit, select = demonstrations.differences(scaling)
        for prior_sd in config.prior_sd:
            prior = bayesian.isotropic(fit.shape[1], prior_sd)
            posterior = bayesian.sequential(fit, folds, prior, method, temperature=config.temperature)[-1]
            loss = float(np.logaddexp(0, -select @ posterior.mean / config.temperature).mean())
            info = {"ridge": ridge, "prior_sd": prior_sd, "select_loss": loss}
            found.append((loss, scaling, posterior, info))
    _, scaling, posterior, info = min(found, key=lambda item: item[0])
    scorer = _posterior_scorer(config, scaling, posterior)
    return Fit(scorer, scaling, info, temperature=config.temperature)


def _folds(demonstrations: Demonstrations, rounds: int) -> list[NDArray[np.int64]]:
    """Rows of the pairs of fit in disjoint folds of prompts."""
    prompt = demonstrations.prompts("fit")
    return [np.flatnonzero(prompt % rounds == number) for number in range(rounds)]


def _posterior_scorer(config: BayesianConfig, scaling: Scaling, posterior: bayesian.Posterior) -> LinearScorer:
    """The posterior in the coordinates of the features; `sample` is one draw and as certain of itself as any reward."""
    if config.aggregate == "sample":
        draw = posterior.sample(np.random.default_rng(config.seed), 1)
        return LinearScorer(draw @ scaling.transform.T, scaling.center, None)
    return LinearScorer(
        (scaling.transform @ posterior.mean)[None],
        scaling.center,
        None,
        aggregate=config.aggregate,
        deviations=config.deviations if config.aggregate == "lower_bound" else 0.0,
        factor=scaling.transform @ posterior.factor,
    )


def fit_probe(config: ProbeConfig, demonstrations: Demonstrations, truth: Floats) -> Fit:
    """Logistic regression on the label of R* (truth >= 0), fitted on fit; C by the log-loss on select.

    Args:
        truth: (n,) R* of the demonstrations of fit and select.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    select = np.flatnonzero(demonstrations.frame["part"] == "select")
    fit, civil = demonstrations.rows_of_fit, truth >= 0
    if civil[fit].all() or not civil[fit].any():
        raise IrlError("irl=probe needs completions of both labels of R* among the demonstrations of fit.")
    found: list[tuple[float, Fit]] = []
    for ridge, scaling in _scalings(demonstrations, config.scaling, config.ridges):
        scaled, held_out = (demonstrations.scaled(scaling, rows) for rows in (fit, select))
        for strength in config.inverse_regularisation:
            model = LogisticRegression(C=strength, max_iter=2000).fit(scaled, civil[fit])
            loss = float(log_loss(civil[select], model.predict_proba(held_out)[:, 1], labels=[False, True]))
            scorer = LinearScorer((scaling.transform @ model.coef_[0])[None], scaling.center, None)
            found.append((loss, Fit(scorer, scaling, {"inverse_regularisation": strength, "ridge": ridge})))
    return min(found, key=lambda item: item[0])[1]


def fit_probe_regression(config: ProbeRegressionConfig, demonstrations: Demonstrations, truth: Floats) -> Fit:
    """Ridge regression of R* on the features, both centred within prompts, on fit: what EPIC and correlations see.

    Of several ridges and penalties that with the least squared error on select.

    Args:
        truth: (n,) R* of the demonstrations of fit and select.
    """
    prompts = demonstrations.frame["prompt_id"].to_numpy()
    parts = (demonstrations.rows_of_fit, np.flatnonzero(demonstrations.frame["part"] == "select"))
    targets = [compare.centre(truth[rows], prompts[rows]) for rows in parts]
    if not targets[0].any():
        raise IrlError("irl=probe_regression needs completions of one prompt that differ in R* on fit.")
    found: list[tuple[float, Fit]] = []
    for ridge, scaling in _scalings(demonstrations, config.scaling, config.ridge):
        fit, held_out = (compare.centre(demonstrations.scaled(scaling, rows).T, prompts[rows]).T for rows in parts)
        gram, cross = fit.T @ fit / len(fit), fit.T @ targets[0] / len(fit)
        for penalty in config.penalty:
            weights = np.linalg.solve(gram + penalty * np.trace(gram) / len(gram) * np.eye(len(gram)), cross)
            loss = float(np.square(targets[1] - held_out @ weights).mean())
            scorer = LinearScorer((scaling.transform @ weights)[None], scaling.center, None)
            found.append((loss, Fit(scorer, scaling, {"penalty": penalty, "ridge": ridge})))
    return min(found, key=lambda item: item[0])[1]

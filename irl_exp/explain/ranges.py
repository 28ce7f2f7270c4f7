"""The exact range of a statement's effect over all linear rewards that explain the demonstrations as well as the best.

R = w . phi is regressed, within policies, on what the statements say of a completion and on controls (its length). The
coefficient of statement j is linear in w: c_j . w, with c_j row j of the pseudo-inverse of the design times the
features. So `determined` bounds it over W = {w : L(w) <= L* + tolerance, |w| <= max_norm}, with the c_j for test pairs.
The tolerance is calibrated on the statements themselves: W holds the effect in the population's best reward for 95 % of
draws and statements. That reward is taken at the length |w| of the best one, since effects are told in sd of R.

What it does not say: the design is that of these completions, and the error of the regression is no part of the range.
The reward that a run has learned need not lie in W: it stopped some tolerances above the best loss (`excess`), and its
own effect may lie outside. A range speaks of rewards that fit better than that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file

from irl_exp.determined import Fitted, Floats, Loss, Optimum, loss_of, possible_margins
from irl_exp.explain.choice import centred
from irl_exp.irl.contrast import Basis, Demonstrations, part_of_fit
from irl_exp.machinery.store import read_manifest

PRECISION = 0.03
"""Attained and proven ends differ by less than this fraction of their distance from the best reward's effect."""
WIDEST = 2304
"""Features, as three layers of 768 have: with more, a step that solves so dense a system takes too long."""
ROUNDING = 1e-8
"""A column of which less than this fraction is left beside the others says nothing of its own."""


class NoRangesError(Exception):
    """There are no exact ranges for this reward; the message says why."""


@dataclass(frozen=True)
class Linear:
    """A learned reward w . phi, and the convex problem that it was fitted to.

    Attributes:
        weights: (d,) in the coordinates of the features, or of their components (irl.components).
    """

    problem: Fitted
    weights: Floats


@dataclass(frozen=True)
class Ranges:
    """Effects of k statements in sd of the learned reward within a policy.

    Attributes:
        effect: (k,) in the learned reward.
        best: (k,) in the reward of least loss.
        low, high: (k,) no reward of W passes them.
        tolerance: in units of the loss.
        excess: loss of the learned reward above the least, in tolerances: above 1 it lies outside W.
        sd: of the learned reward within a policy, as the method left it.
    """

    effect: Floats
    best: Floats
    low: Floats
    high: Floats
    tolerance: float
    excess: float
    sd: float

    @property
    def signs(self) -> NDArray[np.int64]:
        """(k,) 1 where all rewards of W pay for it, -1 where all charge for it, 0 where it is open."""
        return np.asarray((self.low > 0).astype(np.int64) - (self.high < 0).astype(np.int64))

    @property
    def certified(self) -> NDArray[np.bool_]:
        """(k,) the range has one sign, that of the learned reward's effect."""
        return np.asarray((self.signs != 0) & (self.signs == np.sign(self.effect)))


def stored(irl: Path, frame: pd.DataFrame, features: NDArray[np.float32]) -> Linear:
    """A reward of the store with its problem.

    Args:
        irl: its artifact.
        frame: all n rows of demonstrations.parquet; features: (n, d) theirs.

    Raises:
        NoRangesError: it is no linear reward of one convex problem.
    """
    manifest = read_manifest(irl)
    config = manifest["identity"]["config"]
    _check(config, features)  # other methods have no such file
    weights = load_file(irl / "head.safetensors")["weights"]
    return linear(config, manifest["info"], weights, frame, features)


def linear(
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    weights: NDArray[Any],
    frame: pd.DataFrame,
    features: NDArray[np.float32],
) -> Linear:
    """A fitted reward with its problem.

    Args:
        config: of its method. info: what the fit says: ridge and max_norm. weights: (m, d), a row a member.
        frame: all n rows of demonstrations.parquet; features: (n, d) theirs.

    Raises:
        NoRangesError: it is no linear reward of one convex problem.
    """
    loss = _check(config, features)
    frame = part_of_fit(frame, config["prompt_fraction"], config["completions"])
    weights = weights[0]
    if count := config.get("components"):
        basis = Basis.of(features, np.flatnonzero(frame["part"] == "fit"), count)
        features, weights = basis(features), basis.directions.T @ weights
    seen = Demonstrations(frame, features)
    problem = Fitted.of(seen, loss, scaling=config["scaling"], ridge=info["ridge"], max_norm=info["max_norm"])
    return Linear(problem, weights)


def _check(config: Mapping[str, Any], features: NDArray[np.float32]) -> Loss:
    """The loss of a method whose reward has bounds.

    Raises:
        NoRangesError: it has none.
    """
    if reason := _unbounded(config, config.get("components") or features.shape[1]):
        raise NoRangesError(reason)
    try:
        return loss_of(config["loss"])
    except ValueError as error:
        raise NoRangesError(str(error)) from None


def _unbounded(config: Mapping[str, Any], width: int) -> str | None:
    """Why a method's reward has no bounds, if so."""
    if (name := config["name"]) != "margin":
        return f"irl={name}: exact ranges are known for irl=margin, one linear reward of a convex loss"
    if (backbone := config["backbone"]["name"]) != "frozen":
        return f"irl/backbone={backbone} was trained with the head: the reward is not linear in fixed features"
    if width > WIDEST:
        return f"{width:,} features: exact ranges are for up to {WIDEST:,}; choose fewer layers, or irl.components"
    return None


def effect_ranges(
    reward: Linear,
    rows: NDArray[np.int64] | NDArray[np.bool_],
    statements: Floats,
    controls: Floats,
    *,
    precision: float = PRECISION,
    seed: int = 0,
) -> Ranges:
    """Effects of statements on the completions `rows` of the demonstrations, and their exact ranges.

    Args:
        rows: (r,) numbers of rows, or (n,) a mask of r of them, those of test.
        statements: (r, k) what each says of each completion: 0 or 1, or a number in the unit that the effect is wanted
            for. controls: (r, c) held fixed, too, and not asked about.
        seed: of the draws of the calibration.

    Raises:
        NoRangesError: there is no statement, no scale for a tolerance, or the optimum is not found.
        ValueError: a column says nothing that the others do not say.
    """
    if not statements.shape[1]:
        raise NoRangesError("there is no statement to bound")
    problem, policies = reward.problem, reward.problem.seen.frame["policy"].to_numpy()[rows]
    features = centred(reward.problem.seen.features[rows].astype(np.float64), policies)
    sides = partial(centred(np.column_stack([statements, controls]), policies), statements.shape[1]) @ features
    learned, sides = sides @ reward.weights, sides @ problem.scaling.transform
    sd = float(np.sqrt(np.square(features @ reward.weights).mean()))
    if not sd > 0:
        raise NoRangesError("the learned reward is constant within policies")
    pairs = problem.pairs
    try:
        best = problem.optimum(pairs)
        tolerance = _tolerance(problem, pairs, sides, best, seed)
        possible = possible_margins(
            pairs,
            sides,
            problem.loss,
            max_norm=problem.max_norm,
            tolerance=tolerance,
            precision=precision,
            best=best,
        )
    except ArithmeticError as error:
        raise NoRangesError(f"the least loss was not found ({error})") from None
    margins = problem.seen.pairs(problem.seen.features.astype(np.float64), "fit") @ reward.weights
    excess = (float(problem.loss(margins).mean()) - best.loss) / tolerance
    ends = {"best": sides @ best.weights, "low": possible.low, "high": possible.high}
    return Ranges(
        learned / sd, tolerance=tolerance, excess=excess, sd=sd, **{name: end / sd for name, end in ends.items()}
    )


def _tolerance(problem: Fitted, pairs: Floats, sides: Floats, best: Optimum, seed: int) -> float:
    if not best.standard_error > 0 and not best.weights.any():
        raise NoRangesError(
            "no reward explains the demonstrations noticeably better than none: nothing tells the policies apart"
        )
    if not best.standard_error > 0:
        raise NoRangesError("the best reward has the same loss on all fitted pairs: there is no scale for a tolerance")
    if len(np.unique(problem.seen.prompts("fit"))) < 2:
        raise NoRangesError("a tolerance is calibrated on two prompts or more")
    tolerance = problem.calibrated(pairs, sides, best, direction=True, seed=seed).tolerance
    if not tolerance > 0:
        raise NoRangesError("no statement differs in a direction that the loss leaves free")
    return tolerance


def partial(design: Floats, asked: int) -> Floats:
    """(asked, n) rows p with p . R the coefficients of the first columns in the regression of R on all (n, k).

    Raises:
        ValueError: a column is a combination of those before it.
    """
    orthogonal, triangle = np.linalg.qr(design)
    left = np.abs(np.diag(triangle)) / np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    if (empty := np.flatnonzero(left < ROUNDING)).size:
        raise ValueError(f"column {empty[0]} of the design is constant or a combination of those before it.")
    return np.asarray(np.linalg.solve(triangle, orthogonal.T)[:asked])

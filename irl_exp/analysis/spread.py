"""The spread over seeds, explained: what the papers call non-identifiability, in three parts that must not be mixed.

(a) Offset, which no loss of margins determines, and scale: they move an accuracy at a fixed threshold, no ranking.
(b) Optimisation and sampling: how far the runs are from each other and from the best reward on the same demonstrations;
    and how far best rewards are from each other when the prompts of the demonstrations are drawn anew.
(c) What the demonstrations leave open (determined/), in three numbers: directions of the features that such
    demonstrations never show, however many; pairs whose order this sample leaves open, at the calibrated tolerance; and
    on how many of these the seeds agree all the same, which is the method's choice and no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from irl_exp import determined
from irl_exp.analysis import statistics
from irl_exp.analysis.statistics import NAN, Estimate, Floats
from irl_exp.analysis.study import NotComputed, Run, Study
from irl_exp.irl.contrast import Demonstrations, pair_rows, part_of_fit
from irl_exp.machinery.store import ArtifactError, read_manifest
from irl_exp.machinery.tensors import mapped

SEED = 0
PAIRS = 100
"""Test pairs that are asked about, one a prompt, so that they are independent."""


def shares(rewards: Floats, prompts: NDArray[np.int64]) -> dict[str, Estimate]:
    """Parts of the variance over runs of a completion's reward, mean over completions; they add up to 1.

    offset: constants per prompt (the mean over its completions). scale: the part along the mean reward of the runs,
    both without these constants. direction: the rest, which alone changes the order of two completions. They describe
    these runs and have no interval: bootstrap and jackknife over 10 to 50 runs covered 88 to 93 % in simulations.

    Args:
        rewards: (runs, n) as the methods left them; prompts: (n,).
    """
    runs, n = rewards.shape
    if runs < 3:
        raise NotComputed(f"the parts of the spread need three runs or more, not {runs}")
    _, group = np.unique(prompts, return_inverse=True)
    sums = np.stack([np.bincount(group, weights=row) for row in rewards])
    constant = (sums / np.bincount(group))[:, group]
    grams = [part @ part.T / n for part in (rewards, constant, rewards - constant)]

    def parts(rows: NDArray[np.int64]) -> Floats:
        """offset, scale, direction of the runs `rows`; from products of runs alone."""
        count = len(rows)
        whole, offset, centred = (gram[np.ix_(rows, rows)] for gram in grams)
        spread = [float(np.trace(gram) - gram.sum() / count) for gram in (whole, offset, centred)]
        along = centred.mean(axis=1)  # of each run with the mean reward
        length = float(along.mean())
        scale = float(((along - length) ** 2).sum() / length) if length > 0 else 0.0
        if spread[0] <= 0:
            return np.full(3, np.nan)
        return np.array([spread[1], scale, spread[2] - scale]) / spread[0]

    value = parts(np.arange(runs, dtype=np.int64))
    if np.isnan(value).any():
        raise NotComputed("all runs gave the same rewards: there is no spread to share out")
    method = "share of the variance over these runs"
    names = ("offset", "scale", "direction")
    return {name: Estimate(float(value[i]), NAN, NAN, runs, method) for i, name in enumerate(names)}


def policies(study: Study) -> dict[str, Any]:
    """How far policies of different rewards are apart, beside the control: policies of one reward with other seeds.

    `ratio` is that of the standard deviations, with the interval of F for normal values. It needs runs that share a
    reward and differ in refinetune.seed, of the study itself or its control `policy`; without them there is no ratio.

    Raises:
        NotComputed: the runs have no policies of two rewards of one expert.
    """
    key = "refinetuned/toxic_fraction"
    runs = [run for run in study.runs if key in run.metrics]
    _one_cell(runs)
    runs += [run for run in study.controls if run.control == "policy" and key in run.metrics]
    by_reward: dict[str | None, dict[str | None, float]] = {}
    for run in runs:
        by_reward.setdefault(run.artifact("irl"), {})[run.artifact("refinetune")] = run.metrics[key]
    if len(by_reward) < 2 or None in by_reward or len({run.artifact("rlhf") for run in runs}) > 1:
        raise NotComputed("it needs policies that were trained on two rewards or more of one expert")
    several = [list(values.values()) for values in by_reward.values() if len(values) > 1]
    one_each = [next(iter(values.values())) for values in by_reward.values()]
    spread = float(np.std(one_each, ddof=1))
    found: dict[str, Any] = {"metric": key, "rewards": len(by_reward), "sd_rewards": spread}
    freedom = sum(len(values) - 1 for values in several)
    control = math.sqrt(sum(np.var(values) * len(values) for values in several) / freedom) if freedom else 0.0
    if control > 0:
        found |= {"sd_control": control, "freedom_control": freedom}
        found["ratio"] = statistics.sd_ratio(spread, len(one_each) - 1, control, freedom)
    return found


def _one_cell(runs: Sequence[Run]) -> None:
    if len({run.cell for run in runs}) != 1:
        raise NotComputed("it is computed for policies of one cell")


@dataclass(frozen=True)
class Shown:
    """What the demonstrations show of the features.

    Attributes:
        features: directions in which completions differ at all.
        pairs: of these, directions in which the two completions of some fitted pair differ.
        fitted: number of fitted pairs: with no more than `pairs` of them, more would show more directions.
        beside: (test pairs,) True where the pair differs in a direction that no fitted pair shows.
    """

    features: int
    pairs: int
    fitted: int
    beside: NDArray[np.bool_]


@dataclass(frozen=True)
class Open:
    """What the demonstrations leave open, at each tolerance.

    Attributes:
        tolerances: in units of the loss, ascending.
        calibration: the one of them that the data ask for, and best rewards of prompts drawn with replacement.
        shown: what of the features the fitted pairs show.
        standard_error: of the loss at the optimum over pairs.
        excess: (runs,) loss of each run on the fitted pairs above the optimum.
        margins: (runs, pairs) what the runs say of the test pairs.
        best: (pairs,) what the best reward says.
        possible: at each tolerance, the least and greatest margins.
        truth: (pairs,) R* of the expert's completion minus that of the baseline's.
    """

    tolerances: tuple[float, ...]
    standard_error: float
    excess: Floats
    margins: Floats
    best: Floats
    possible: tuple[determined.Possible, ...]
    truth: Floats
    calibration: determined.Calibration
    shown: Shown

    @property
    def typical(self) -> float:
        """The loss of the typical run above the optimum."""
        return float(np.median(self.excess))

    @property
    def level(self) -> int:
        """Which tolerance is the calibrated one."""
        return self.tolerances.index(self.calibration.tolerance)

    def table(self) -> pd.DataFrame:
        """A row a test pair and tolerance."""
        return pd.concat(
            [
                pd.DataFrame(
                    {
                        "tolerance": tolerance,
                        "tolerance_se": tolerance / self.standard_error,
                        "calibrated": tolerance == self.calibration.tolerance,
                        "pair": np.arange(len(self.best)),
                        "low": possible.low,
                        "attained_low": possible.attained_low,
                        "best": self.best,
                        "attained_high": possible.attained_high,
                        "high": possible.high,
                        "determined": possible.determined,
                        "runs_min": self.margins.min(axis=0),
                        "runs_max": self.margins.max(axis=0),
                        "truth": self.truth,
                    }
                )
                for tolerance, possible in zip(self.tolerances, self.possible, strict=True)
            ],
            ignore_index=True,
        )


PRECISION = 0.03
"""Of the bounds: attained and proven ones differ by less than this fraction of their distance from the best reward."""
ROUNDING = 1e-9
"""Of the variance along a direction, as a fraction of the largest: below it features in float32 say nothing."""
FRACTIONS = (0.05, 0.2, 1.0)
"""Tolerances beside the calibrated one and that of the runs, in standard errors of the loss."""


def left_open(study: Study, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Open:
    """Bounds on the margins of test pairs over all rewards that explain the demonstrations nearly as well as the best.

    Raises:
        NotComputed: the runs do not share one convex problem, or the store has its parts no more.
    """
    try:
        problem = _problem(study)
    except (OSError, ValueError, LookupError, ArtifactError, SafetensorError) as broken:
        raise NotComputed(f"an artifact of these runs cannot be read ({broken})") from None
    error, best = problem.optimum.standard_error, problem.optimum
    calibration = problem.calibration
    if not calibration.tolerance > 0:
        raise NotComputed("no test pair differs in a direction that the loss leaves free")
    excess = problem.loss(problem.fitted_margins).mean(axis=1) - best.loss
    tolerances = {calibration.tolerance, *(fraction * error for fraction in FRACTIONS)}
    if (typical := float(np.median(excess))) > min(tolerances) / 10:
        tolerances.add(typical)
    possible = []
    sides = 2 * len(problem.tests)
    for number, tolerance in enumerate(sorted(tolerances)):
        possible.append(
            determined.possible_margins(
                problem.fit,
                problem.tests,
                problem.loss,
                max_norm=problem.max_norm,
                tolerance=tolerance,
                precision=PRECISION,
                best=best,
                progress=lambda done, total, before=number * sides: progress(before + done, len(tolerances) * sides),  # type: ignore[misc]
            )
        )
    return Open(
        tuple(sorted(tolerances)),
        error,
        excess,
        problem.margins,
        problem.tests @ best.weights,
        tuple(possible),
        problem.truth,
        calibration,
        problem.shown,
    )


@dataclass(frozen=True)
class _Problem:
    """The one fit that all runs share. Margins are those of the runs: (runs, fitted pairs) and (runs, test pairs)."""

    loss: determined.Loss
    max_norm: float
    fit: Floats
    tests: Floats
    optimum: determined.Optimum
    fitted_margins: Floats
    margins: Floats
    truth: Floats
    calibration: determined.Calibration
    shown: Shown


def _problem(study: Study) -> _Problem:
    run, settings = study.runs[0], _settings(study)
    if (count := run.config.get("irl.components")) is not None:
        raise NotComputed(f"irl.components={count}: what demonstrations leave open is told of rewards of all features")
    folders = {stage: _stored(study, run, stage) for stage in ("demonstrations", "features", "judge")}
    frame = pd.read_parquet(folders["demonstrations"] / "demonstrations.parquet")
    frame = part_of_fit(frame, run.config["irl.prompt_fraction"], run.config["irl.completions"])
    seen = Demonstrations(frame, mapped(folders["features"] / "features.safetensors")["features"])
    fitted = determined.Fitted.of(
        seen,
        _loss(run),
        scaling=run.config["irl.scaling"],
        ridge=settings["ridge"],
        max_norm=settings["max_norm"],
    )
    rows = _one_a_prompt(frame, *pair_rows(frame, "test"))
    heads = np.stack(
        [load_file(_stored(study, other, "irl") / "head.safetensors")["weights"][0] for other in study.runs]
    )
    truth = pd.read_parquet(folders["judge"] / "scores.parquet")["reward"].to_numpy()
    fit, tests = fitted.pairs, seen.features[rows[0]].astype(np.float64) - seen.features[rows[1]]
    best = fitted.optimum(fit)
    if not best.standard_error > 0:
        raise NotComputed("the best reward has the same loss on all fitted pairs: there is no scale for a tolerance")
    scaled = tests @ fitted.scaling.transform
    return _Problem(
        fitted.loss,
        settings["max_norm"],
        fit,
        scaled,
        best,
        heads @ seen.pairs(seen.features.astype(np.float64), "fit").T,
        heads @ tests.T,
        truth[rows[0]] - truth[rows[1]],
        fitted.calibrated(fit, scaled, best, seed=SEED),
        _shown(seen, tests),
    )


def _shown(seen: Demonstrations, tests: Floats) -> Shown:
    """Directions that carry more than float32 rounds away, in units of each feature's sd over the completions."""
    features = seen.features.astype(np.float64)
    spread = features.std(axis=0)
    scale = np.where(spread > 1e-6 * spread.max(), 1 / np.where(spread > 0, spread, 1), 0.0)
    pairs = seen.pairs(features * scale, "fit")
    every, (values, vectors) = (
        np.linalg.eigvalsh(np.cov(features * scale, rowvar=False)),
        np.linalg.eigh(pairs.T @ pairs / len(pairs)),
    )
    hidden = vectors[:, values <= ROUNDING * values[-1]]
    tests = tests * scale
    beside = np.linalg.norm(tests @ hidden, axis=1) > ROUNDING**0.5 * np.linalg.norm(tests, axis=1)
    some = int((every > ROUNDING * every[-1]).sum())
    return Shown(some, len(values) - hidden.shape[1], len(pairs), np.asarray(beside))


def _one_a_prompt(
    frame: pd.DataFrame, expert: NDArray[np.int64], baseline: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the two completions of at most PAIRS contrast pairs, at random and no two of one prompt."""
    order = np.random.default_rng(SEED).permutation(len(expert))
    _, first = np.unique(frame["prompt_id"].to_numpy()[expert][order], return_index=True)
    chosen = np.sort(order[np.sort(first)[:PAIRS]])
    return expert[chosen], baseline[chosen]


def _settings(study: Study) -> dict[str, float]:
    """Ridge and norm of the fit that all runs share.

    Raises:
        NotComputed: they do not share it, or it is no linear reward with a convex loss.
    """
    first = study.runs[0]
    if "irl.loss.name" not in first.config or {run.config.get("irl.name") for run in study.runs} != {"margin"}:
        raise NotComputed("it is computed for irl=margin, which all runs must have")
    if first.config.get("irl.backbone.name") != "frozen":
        raise NotComputed("the backbone was trained with the head: the reward is not linear in fixed features")
    for stage in ("demonstrations", "features"):
        if len({run.artifact(stage) for run in study.runs}) > 1:
            raise NotComputed(f"the runs have different {stage}; it is computed for runs that share them")
    keys = {key for run in study.runs for key in run.config if key.startswith("irl.") and not key.endswith("seed")}
    if unlike := sorted(key for key in keys if len({str(run.config.get(key)) for run in study.runs}) > 1):
        raise NotComputed(f"the runs differ in {', '.join(unlike[:3])}; it is computed for one fit and many seeds")
    found = [read_manifest(_stored(study, run, "irl"))["info"] for run in study.runs]
    chosen = {(info["ridge"], info["max_norm"]) for info in found}
    if len(chosen) > 1:
        raise NotComputed("the seeds chose different ridges or norms on select; set one of each")
    return {"ridge": found[0]["ridge"], "max_norm": found[0]["max_norm"]}


def _stored(study: Study, run: Run, stage: str) -> Path:
    folder = study.artifact(run, stage)
    if folder is None:
        raise NotComputed(f"{stage} of run {run.number} is not in the store ({run.config.get('store.dir')}) any more")
    return folder


def _loss(run: Run) -> determined.Loss:
    """The loss of the config, where it is convex."""
    options = {key.removeprefix("irl.loss."): value for key, value in run.config.items() if key.startswith("irl.loss.")}
    try:
        return determined.loss_of(options)
    except ValueError as error:
        raise NotComputed(str(error)) from None


def summary(found: Open) -> dict[str, Any]:
    """The numbers of `left_open` for summary.json."""
    alike = np.abs(np.sign(found.margins).sum(axis=0)) == len(found.margins)
    fixed = found.possible[found.level].determined
    return {
        "n_pairs": len(found.best),
        "n_runs": len(found.margins),
        "standard_error_of_loss": found.standard_error,
        "excess_se": statistics.mean_t(found.excess / found.standard_error),
        "runs_width_mean": float(np.ptp(found.margins, axis=0).mean()),
        "runs_agree": _share(alike),
        "runs_same_sign": _same_sign(found.margins),
        "resampled_same_sign": _same_sign(found.calibration.margins),
        "never_shown": {
            "features": found.shown.features,
            "directions": found.shown.features - found.shown.pairs,
            "fitted_pairs": found.shown.fitted,
            "pairs": int(found.shown.beside.sum()),
        },
        "this_sample": {
            "tolerance": found.calibration.tolerance,
            "tolerance_se": found.calibration.tolerance / found.standard_error,
            "prompts": found.calibration.prompts,
            "open": _share(~fixed),
            "as_truth_where_determined": _share(_as_truth(found)[fixed]),
            "as_truth_where_open": _share(_as_truth(found)[~fixed]),
        },
        "the_method": {
            "excess_tolerances": statistics.mean_t(found.excess / found.calibration.tolerance),
            "runs_agree_where_determined": _share(alike[fixed]),
            "runs_agree_where_open": _share(alike[~fixed]),
        },
        "levels": [_level(found, number) for number in range(len(found.tolerances))],
    }


def _level(found: Open, number: int) -> dict[str, Any]:
    tolerance, possible = found.tolerances[number], found.possible[number]
    right, fixed = _as_truth(found), possible.determined
    return {
        "tolerance": tolerance,
        "tolerance_se": tolerance / found.standard_error,
        "is_calibrated": number == found.level,
        "is_that_of_the_runs": tolerance == found.typical,
        "determined": _share(fixed),
        "unresolved": int(possible.unresolved.sum()),
        "as_truth_where_determined": _share(right[fixed]),
        "as_truth_where_open": _share(right[~fixed]),
        "width_mean": float(possible.width.mean()),
    }


def _as_truth(found: Open) -> NDArray[np.bool_]:
    """(pairs,) the best reward orders the pair as R* does."""
    return np.asarray(np.sign(found.best) == np.sign(found.truth))


def _share(marks: NDArray[np.bool_]) -> Estimate | None:
    """The fraction that is True, with its Wilson interval; none of nothing."""
    return statistics.wilson(int(marks.sum()), len(marks)) if len(marks) else None


def _same_sign(margins: Floats) -> Estimate | None:
    """Chance that two of the rewards (rewards, pairs) order a test pair alike; the interval is over test pairs."""
    rewards = len(margins)
    if rewards < 2:
        return None
    above = (margins > 0).sum(axis=0)
    alike = (above * (above - 1) + (rewards - above) * (rewards - above - 1)) / (rewards * (rewards - 1))
    found = statistics.mean_t(alike)
    return Estimate(found.value, found.low, min(found.high, 1.0), found.n, f"over test pairs: {found.method}")

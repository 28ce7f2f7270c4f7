"""How far apart rewards are when something of the chain is drawn anew: the head, the demonstrations, the expert.

A study's own runs share an expert and its demonstrations, and its controls `demonstrations` and `expert` draw these
anew. All rewards are compared on the same completions: those of the reference in the test part of the demonstrations
that the own runs share. The rewards are linear in features of the reference policy, which all of them share, so the
features of these completions and the stored heads are all that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy import stats

from irl_exp.analysis.statistics import Estimate, Floats, mean_t
from irl_exp.analysis.study import NotComputed, Run, Study
from irl_exp.machinery.tensors import mapped
from irl_exp.measures import reward_comparison as compare

HEADS = "head"
DRAWN = {HEADS: "a new head", "demonstrations": "new demonstrations", "expert": "a new expert"}
"""What is drawn anew, and with it all that follows it in the chain but for the seed of the head."""
LEAST = 3
"""Rewards, so that a mean over pairs has an interval."""


@dataclass(frozen=True)
class Draws:
    """Rewards that differ in one draw.

    Attributes:
        name: what was drawn anew, a key of DRAWN.
        between: (k, k) EPIC distances of the rewards from each other.
        truth: (k,) EPIC distances to R*.
        auroc: (k,) against the label of R*.
    """

    name: str
    between: Floats
    truth: Floats
    auroc: Floats

    @property
    def pairs(self) -> Floats:
        return np.asarray(self.between[np.triu_indices(len(self.between), 1)])


def draws(study: Study) -> list[Draws]:
    """The rewards of the own runs, and of each control with that own run which it draws anew.

    Raises:
        NotComputed: there are no such controls, or the rewards are no linear heads on shared features.
    """
    groups = {name: _drawn(study, name) for name in DRAWN}
    if not any(len(runs) > 1 for name, runs in groups.items() if name != HEADS):
        raise NotComputed("no control draws demonstrations or experts anew (study=non_identifiability)")
    runs = [run for group in groups.values() for run in group]
    _check(runs)
    try:
        features, prompts, truth = _completions(study, study.runs[0])
        heads = {run.number: _head(study, run) for run in runs}
    except (OSError, ValueError, LookupError, SafetensorError) as broken:
        raise NotComputed(f"an artifact of these runs cannot be read ({broken})") from None
    found = []
    for name, group in groups.items():
        if len(group) > 1:
            rewards = np.stack([features @ heads[run.number] for run in group])
            found.append(_compared(name, rewards, prompts, truth))
    return found


def _drawn(study: Study, name: str) -> list[Run]:
    """The runs that differ in this draw: one of them is an own run of the study."""
    if name == HEADS:
        return list(study.runs)
    controls = [run for run in study.controls if run.control == name]
    own = [run for run in study.runs if run.config.get("irl.seed") in {one.config.get("irl.seed") for one in controls}]
    return [*own[:1], *controls]


def _check(runs: Sequence[Run]) -> None:
    """Raises NotComputed unless these are linear rewards on the same features of the same reference policy."""
    if len({run.cell for run in runs if not run.control}) > 1:
        raise NotComputed("the study has several cells: what else is drawn anew is told of one")
    if any(run.config.get("irl.backbone.name") != "frozen" for run in runs):
        raise NotComputed("it needs rewards that are linear in features which all runs share (irl/backbone=frozen)")
    if any(key.startswith("irl.features.ngram.") for run in runs for key in run.config):
        raise NotComputed("the n-grams among the features are chosen anew with the demonstrations")
    if len({run.artifact("sft") for run in runs}) > 1:
        raise NotComputed("the runs have different reference policies, and so different features")


def _completions(study: Study, run: Run) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Features (n, d), prompts (n,) and R* (n,) of the reference's completions of test prompts."""
    frame = pd.read_parquet(_stored(study, run, "demonstrations") / "demonstrations.parquet")
    rows = np.flatnonzero((frame["part"] == "test") & (frame["policy"] == "baseline"))
    features = mapped(_stored(study, run, "features") / "features.safetensors")["features"][rows]
    truth = pd.read_parquet(_stored(study, run, "judge") / "scores.parquet")["reward"].to_numpy()[rows]
    return features.astype(np.float64), frame["prompt_id"].to_numpy()[rows], truth


def _head(study: Study, run: Run) -> Floats:
    """(d,) weights in the coordinates of the features."""
    (weights,) = load_file(_stored(study, run, "irl") / "head.safetensors")["weights"]
    return np.asarray(weights, dtype=np.float64)


def _stored(study: Study, run: Run, stage: str) -> Path:
    folder = study.artifact(run, stage)
    if folder is None:
        raise NotComputed(f"{stage} of run {run.number} is not in the store ({run.config.get('store.dir')}) any more")
    return folder


def _compared(name: str, rewards: Floats, prompts: NDArray[np.int64], truth: Floats) -> Draws:
    try:
        matrix = compare.epic_matrix(np.vstack([truth, rewards]), prompts)
    except compare.UndefinedDistanceError as error:
        raise NotComputed(f"the distance between rewards is not defined: {error}") from None
    civil = truth >= 0
    if civil.all() or not civil.any():
        raise NotComputed("the reference's test completions are of one class by R*")
    auroc = np.array([compare.auroc(reward, civil) for reward in rewards])
    return Draws(name, matrix[1:, 1:], matrix[0, 1:], auroc)


def mean_of_pairs(between: Floats) -> Estimate:
    """Mean distance of two of k rewards (k, k), with the interval of the jackknife over rewards: pairs share rewards.

    >>> found = mean_of_pairs(np.array([[0.0, 0.2, 0.4], [0.2, 0.0, 0.3], [0.4, 0.3, 0.0]]))
    >>> f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n={found.n}"
    '0.300 [0.000, 0.797], n=3'
    """
    k, sums = len(between), between.sum(axis=1)
    value = float(sums.sum() / (k * (k - 1)))
    if k < LEAST:
        return Estimate(value, float("nan"), float("nan"), k, "one pair, no interval")
    without = (sums.sum() - 2 * sums) / ((k - 1) * (k - 2))
    error = math.sqrt((k - 1) / k * float(((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, k - 1)) * error
    method = f"mean of {k * (k - 1) // 2} pairs, 95 % jackknife over rewards"
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), k, method)


def table(study: Study) -> pd.DataFrame:
    """A row a draw: rewards, EPIC between two of them, EPIC to R*, AUROC."""
    rows = []
    for found in draws(study):
        between, truth = mean_of_pairs(found.between), mean_t(found.truth)
        rows.append(
            {
                "drawn": DRAWN[found.name],
                "n": len(found.truth),
                **_bounds("between", between),
                **_bounds("to_truth", truth),
                **{"auroc": float(found.auroc.mean()), "auroc_sd": float(found.auroc.std(ddof=1))},
                **{"auroc_min": float(found.auroc.min()), "auroc_max": float(found.auroc.max())},
            }
        )
    return pd.DataFrame(rows)


def _bounds(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


# ------------------------------------------------------------------------------------------------------------ words


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the rows of `table` say."""
    parts = [
        f"{row['between']:.3f}{_interval(row, 'between')} for {row['drawn']} ({row['n']} rewards, AUROC "
        f"{row['auroc_min']:.3f} to {row['auroc_max']:.3f})"
        for row in rows
    ]
    return (
        f"Drawn anew. Two recovered rewards lie apart by an EPIC distance of {', '.join(parts)}, on the reference's "
        "completions of test prompts, the same for all; new demonstrations and experts have the head of one seed. 0 is "
        "the same reward, 0.707 unrelated."
    )


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" if f"{name}_low" in row else ""

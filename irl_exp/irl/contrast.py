"""What inverse RL learns from: demonstrations as contrast pairs of scaled features. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class IrlError(Exception):
    """Demonstrations from which no reward can be learned."""


@dataclass(frozen=True)
class Demonstrations:
    """What the methods see: rows of demonstrations.parquet and their features, never R*.

    Attributes:
        frame: n rows.
        features: (n, d) float32.
    """

    frame: pd.DataFrame
    features: NDArray[np.float32]

    @property
    def fit(self) -> NDArray[np.bool_]:
        """(n,) rows that may be fitted."""
        return np.asarray(self.frame["part"] == "fit")

    def pairs(self, values: Floats, part: str) -> Floats:
        """Expert minus baseline of (n, ...) values for the contrast pairs of a part: (pairs, ...)."""
        expert, baseline = pair_rows(self.frame, part)
        return np.asarray(values[expert] - values[baseline])

    def prompts(self, part: str) -> NDArray[np.int64]:
        """(pairs,) the prompt of each contrast pair of a part, as a number from 0 on."""
        return prompts_of_pairs(self.frame, part)


def pair_rows(frame: pd.DataFrame, part: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(pairs,) rows of the expert's and of the baseline's completion of each contrast pair of a part."""
    rows = frame.reset_index(drop=True)
    rows = rows[rows["part"] == part]
    expert, baseline = (rows[rows["policy"] == policy] for policy in ("expert", "baseline"))
    same = expert[["prompt_id", "sample"]].to_numpy() == baseline[["prompt_id", "sample"]].to_numpy()
    if not np.all(same):
        raise IrlError("expert and baseline demonstrations are not of the same prompts.")
    return expert.index.to_numpy(), baseline.index.to_numpy()


def prompts_of_pairs(frame: pd.DataFrame, part: str) -> NDArray[np.int64]:
    """(pairs,) the prompt of each contrast pair of a part, as a number from 0 on."""
    expert, _ = pair_rows(frame, part)
    return np.asarray(np.unique(frame["prompt_id"].to_numpy()[expert], return_inverse=True)[1], dtype=np.int64)


def part_of_fit(frame: pd.DataFrame, prompt_fraction: float, completions: int | None) -> pd.DataFrame:
    """The demonstrations with those of fit that a method is not to see in a part of their own, `left_out`.

    The prompts come in one random order, the same for all methods and seeds, so a smaller fraction lies within a larger
    one. At least one prompt stays.

    Raises:
        IrlError: there are fewer completions of a prompt.
    """
    fit = np.asarray(frame["part"] == "fit")
    prompts = np.random.default_rng(0).permutation(np.unique(frame.loc[fit, "prompt_id"]))
    seen = np.isin(frame["prompt_id"], prompts[: max(1, round(prompt_fraction * len(prompts)))])
    if completions is not None:
        available = int(frame.loc[fit, "sample"].max()) + 1
        if completions > available:
            raise IrlError(
                f"irl.completions={completions}: there are {available} of each prompt; "
                f"set demonstrations.completions_per_prompt={completions}."
            )
        seen &= np.asarray(frame["sample"] < completions)
    return frame.assign(part=np.where(fit & ~seen, "left_out", frame["part"]))


@dataclass(frozen=True)
class Scaling:
    """phi -> (phi - center) @ transform: unit variance, and with `whiten` no correlation. Uses no label.

    The bound on |w| is then a bound on the variance of the reward, whatever basis the features come in, and the
    mean-difference direction that max_margin tends to becomes Fisher's linear discriminant. With `none` phi stays as it
    is, its mean too: 0 is a threshold of the reward then that nothing has set.
    """

    center: Floats
    transform: Floats

    @classmethod
    def fit(cls, features: NDArray[np.float32], scaling: str, ridge: float) -> Scaling:
        """Args: (n, d) features of fit; ridge: added to each eigenvalue, as a fraction of their mean."""
        center = features.mean(axis=0, dtype=np.float64)
        centred = features - center
        spread = centred.std(0)
        if not (spread > 0).any():
            raise IrlError("all features are constant over the demonstrations: choose other irl/features.")
        if scaling == "none":
            return cls(np.zeros_like(center), np.eye(len(center)))
        if scaling == "standardise":
            return cls(center, np.diag(1 / np.where(spread > 0, spread, np.inf)))
        values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
        return cls(center, np.asarray(vectors / np.sqrt(values.clip(0) + ridge * values.mean()) @ vectors.T))

    def __call__(self, features: NDArray[np.float32]) -> Floats:
        return np.asarray((features - self.center) @ self.transform)

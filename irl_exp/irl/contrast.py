"""What inverse RL learns from: demonstrations as contrast pairs of scaled features. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class IrlError(Exception):
    """Demonstrations from which no reward can be learned."""


AT_ONCE = 2**24
"""Numbers that are widened to float64 at once: 128 MB. Where the features are fewer nothing is cut."""
OVERSAMPLED = 10
"""Directions beyond those that are kept."""
PASSES = 2
"""Over the features, to find them."""


def blocks(rows: int, width: int) -> list[slice]:
    """Rows of a wide matrix, so many at once as hold AT_ONCE numbers."""
    size = max(1, AT_ONCE // max(1, width))
    return [slice(start, start + size) for start in range(0, max(rows, 1), size)]


def by_block(function: Callable[[Any], NDArray[Any]], features: NDArray[np.float32]) -> NDArray[Any]:
    """The function of (n, d) features, which goes row by row, block after block."""
    found = [function(features[rows]) for rows in blocks(*features.shape)]
    return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True)
class Demonstrations:
    """What the methods see: rows of demonstrations.parquet and their features, never R*.

    Attributes:
        frame: n rows.
        features: (n, d) float32; of many, a file that is mapped into memory.
    """

    frame: pd.DataFrame
    features: NDArray[np.float32]

    @property
    def fit(self) -> NDArray[np.bool_]:
        """(n,) rows that may be fitted."""
        return np.asarray(self.frame["part"] == "fit")

    @property
    def rows_of_fit(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.fit)

    def scaled(self, scaling: Scaling, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Scaled features of some rows: float64, or float32 where they are more than AT_ONCE numbers."""
        if self.features.size <= AT_ONCE:
            return scaling(self.features)[rows]
        found = np.empty((len(rows), scaling.transform.shape[1]), dtype=np.float32)
        for block in blocks(*found.shape):
            found[block] = scaling(self.features[rows[block]])
        return found

    def differences(self, scaling: Scaling) -> tuple[NDArray[Any], NDArray[Any]]:
        """Expert minus baseline of scaled features for the pairs of fit and of select, (pairs, d).

        In float64; of more than AT_ONCE numbers in float32, subtracted before, so that what the two have in common
        costs no digits.
        """
        if self.features.size > AT_ONCE:
            return self._differences(scaling, "fit"), self._differences(scaling, "select")
        scaled = scaling(self.features)
        return self.pairs(scaled, "fit"), self.pairs(scaled, "select")

    def _differences(self, scaling: Scaling, part: str) -> NDArray[np.float32]:
        expert, baseline = pair_rows(self.frame, part)
        found = np.empty((len(expert), scaling.transform.shape[1]), dtype=np.float32)
        for block in blocks(*found.shape):
            raw = self.features[expert[block]].astype(np.float64) - self.features[baseline[block]]
            found[block] = raw @ scaling.transform
        return found

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
        return Moments.of(features, np.arange(len(features)), scaling).with_ridge(ridge)

    def __call__(self, features: NDArray[np.float32]) -> Floats:
        return np.asarray((features - self.center) @ self.transform)


@dataclass(frozen=True)
class Moments:
    """What a scaling of any ridge is made of.

    Attributes:
        spread: (d,) standard deviations.
        values, vectors: of the covariance, where the features are whitened.
    """

    scaling: str
    center: Floats
    spread: Floats
    values: Floats | None
    vectors: Floats | None

    @classmethod
    def of(cls, features: NDArray[np.float32], rows: NDArray[np.int64], scaling: str) -> Moments:
        """From the given rows of the (n, d) features, which are widened to float64 part by part.

        Raises:
            IrlError: all features are constant.
        """
        count, width = len(rows), features.shape[1]
        own = [rows[block] for block in blocks(count, width)]
        center = _sum(features[some].sum(0, dtype=np.float64) for some in own) / count
        rest = _sum(centred.sum(0) for centred in _centred(features, own, center)) / count
        spread = np.sqrt(_sum(np.square(part - rest).sum(0) for part in _centred(features, own, center)) / count)
        if not (spread > 0).any():
            raise IrlError("all features are constant over the demonstrations: choose other irl/features.")
        if scaling != "whiten":
            return cls(scaling, center, spread, None, None)
        # In float64: a ridge may be 1e-7 of the largest eigenvalue.
        products = _sum(centred.T @ centred for centred in _centred(features, own, center))
        products /= count
        return cls(scaling, center, spread, *np.linalg.eigh(products))

    def with_ridge(self, ridge: float) -> Scaling:
        """Args: ridge: added to each eigenvalue, as a fraction of their mean."""
        if self.scaling == "none":
            return Scaling(np.zeros_like(self.center), np.eye(len(self.center)))
        if self.values is None or self.vectors is None:
            return Scaling(self.center, np.diag(1 / np.where(self.spread > 0, self.spread, np.inf)))
        raised = np.sqrt(self.values.clip(0) + ridge * self.values.mean())
        return Scaling(self.center, np.asarray(self.vectors / raised @ self.vectors.T))


@dataclass(frozen=True)
class Basis:
    """The directions in which the features of fit vary most: phi -> (phi - center) @ directions.

    Attributes:
        directions: (d, k), orthonormal.
    """

    center: Floats
    directions: Floats

    @classmethod
    def of(cls, features: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> Basis:
        """Principal components of the given rows of the (n, d) features, by subspace iteration (arXiv 0909.4061).

        Uses no label, and no (d, d) matrix: 18 TFLOP for 1,024 components of 140,000 rows of 12,288 features, where
        the covariance alone is 42. Why no random projection, which is 4: docs/features.md.

        Raises:
            IrlError: there are no more features or rows than components.
        """
        if count >= min(features.shape[1], len(rows)):
            raise IrlError(
                f"irl.components={count}: there are {features.shape[1]:,} features and {len(rows):,} completions of "
                "fit; set it below both, or to null."
            )
        parts = [rows[block] for block in blocks(len(rows), features.shape[1])]
        center = _sum(features[some].sum(0, dtype=np.float64) for some in parts) / len(rows)
        width = min(count + OVERSAMPLED, features.shape[1], len(rows))
        found = np.random.default_rng(0).standard_normal((features.shape[1], width))
        for _ in range(PASSES):
            found = np.linalg.qr(found)[0]
            found = _sum(centred.T @ (centred @ found) for centred in _centred(features, parts, center))
        found = np.linalg.qr(found)[0]
        inside = (centred @ found for centred in _centred(features, parts, center))
        small = _sum(some.T @ some for some in inside)
        return cls(center, np.asarray(found @ np.linalg.eigh(small)[1][:, ::-1][:, :count]))

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, k) of (n, d), by blocks."""
        return by_block(lambda some: ((some - self.center) @ self.directions).astype(np.float32), features)


def _centred(features: NDArray[np.float32], parts: Sequence[NDArray[np.int64]], center: Floats) -> Iterator[Floats]:
    return (features[rows] - center for rows in parts)


def _sum(terms: Iterable[Floats]) -> Floats:
    """In float64, and in the memory of the first."""
    rest = iter(terms)
    found = next(rest)
    for one in rest:
        found += one
    return found

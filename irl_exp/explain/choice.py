"""Which statements explain the learned reward: greedy choice on fit, within policies, with length held fixed.

Every step takes the candidate that adds most to the variance explained, times a preference for what reads well. A
candidate may pay only for what the tuned policy does more, and charge only for what it does less: what a reward that
tells the two apart must do by its loss, and a statement can be checked twice, on the policies and on the reward. Nor
may the difference be small: any two policies differ a little, and enough completions show it. Phrases are joined while
that helps: 'says one of ...'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from irl_exp.explain.candidates import Candidate, Table, Values, phrase
from irl_exp.explain.properties import LENGTH

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Real = TypeVar("Real", bound=np.floating[Any])
PREFERENCE = {"properties": 1.5, "ngrams": 1.0, "log_ratio": 0.8, "units": 0.8}
"""What a gain counts: a named property is taken where it explains nearly as much as a list of phrases or a unit."""
LEAST_GAIN = 0.002
"""Share of the variance within policies that a statement has to add on fit."""
GROWTH = 1.03
"""Factor by which one more phrase has to raise the gain of a list."""
LEAST_Z = 3.0
"""Standard errors that the frequencies on fit have to differ by."""
AS_GOOD = 0.8
"""Correlation within policies from which two candidates are taken for the same, when stability is counted."""
SIMILAR = 150


@dataclass(frozen=True)
class Sample:
    """Completions with their reward.

    Attributes:
        reward: (n,). tuned: (n,) who wrote each. prompts: (n,). length: (n,) words.
    """

    reward: Floats
    tuned: Bools
    prompts: Ints
    length: Floats

    def within(self, values: NDArray[Real], *, prompts: bool = False) -> NDArray[Real]:
        """(n, ...) values less the mean of their policy, or of their policy's completions of the same prompt."""
        return centred(values, 2 * self.prompts + self.tuned if prompts else self.tuned)


def centred(values: NDArray[Real], groups: NDArray[Any]) -> NDArray[Real]:
    """(n, ...) values less the mean of their group."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, starts = np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes
    sums = np.add.reduceat(values[order], starts, axis=0, dtype=np.float64)
    means = sums / sizes.reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(values - means[group].astype(values.dtype))


def words(texts: Sequence[str]) -> Floats:
    """(n,) length of each text in words, the control of every regression."""
    return np.array([len(text.split()) for text in texts], dtype=np.float64)


def choose(table: Table, sample: Sample, count: int, together: int, smallest: float) -> Table:
    """Up to `count` statements, in the order in which they were chosen, with their values on the sample.

    Args:
        table: candidates on the rows of fit.
        smallest: of the standardised differences between the policies; what differs by less is not chosen.
    """
    state = _State(table, sample, smallest)
    while len(state.chosen) < count and state.step(together):
        pass
    return Table(state.chosen, np.stack(state.columns, axis=1) if state.columns else table.values[:, :0])


class _State:
    """The greedy choice on its way: candidates with what is chosen taken out of them."""

    def __init__(self, table: Table, sample: Sample, smallest: float) -> None:
        self.table, self.sample, self.smallest = table, sample, smallest
        self.columns: list[Values] = []
        self.chosen: list[Candidate] = []
        self.basis: list[Floats] = []
        self.residual = np.asarray(sample.within(sample.reward), dtype=np.float64)
        self.total = float(self.residual @ self.residual)
        self.direction = signs(table.values, sample.tuned)
        self.large = np.abs(standardised(table.values, sample.tuned)) >= smallest
        self.centred = np.asarray(sample.within(table.values), dtype=np.float32)
        self.norms = np.square(self.centred).sum(axis=0, dtype=np.float64)
        self.full = self.norms.copy()
        self.weight = np.array([PREFERENCE[one.family] for one in table.candidates])
        self.phrases = np.array([one.family == "ngrams" for one in table.candidates], dtype=bool)
        numbers = {sign: np.flatnonzero(self.phrases & (self.direction == sign)) for sign in (1, -1)}
        self.of_sign = {sign: (some, np.ascontiguousarray(table.values[:, some])) for sign, some in numbers.items()}
        self.is_length = np.array([one.family == "properties" and one.name == LENGTH for one in table.candidates])
        self.length_gain = float(self._gains()[0][self.is_length].sum()) if self.is_length.any() else 0.0
        self._take_out(np.asarray(sample.within(sample.length), dtype=np.float64))

    def step(self, together: int) -> bool:
        """Choose one more; False where nothing is left that explains enough."""
        gains, _ = self._gains()
        scores = gains * self.weight
        if not len(scores):
            return False
        best = int(scores.argmax())
        least = LEAST_GAIN * self.total
        group, group_gain = self._group(together)
        top = max(float(gains[best]), group_gain)
        if self.length_gain > max(least, top):
            return self._add_length()
        if group_gain > scores[best] and group_gain >= least:
            values = self.table.values[:, group].max(axis=1)
            members = [self.table.candidates[i].phrases[0] for i in group]
            return self._add(phrase(*members), values)
        if gains[best] < least:
            return False
        return self._add(self.table.candidates[best], self.table.values[:, best])

    def _add_length(self) -> bool:
        """Length is held fixed from the beginning; as a statement it stands where what it explains alone puts it."""
        place = int(self.is_length.argmax())
        self.length_gain = 0.0
        self.chosen.append(self.table.candidates[place])
        self.columns.append(self.table.values[:, place])
        return True

    def _add(self, candidate: Candidate, values: Values) -> bool:
        self.chosen.append(candidate)
        self.columns.append(values)
        self._take_out(np.asarray(self.sample.within(values), dtype=np.float64))
        return True

    def _take_out(self, column: Floats) -> None:
        """Orthogonalise reward and candidates to one more column."""
        for _ in range(2):
            for one in self.basis:
                column = column - one * (one @ column)
        size = float(np.linalg.norm(column))
        if not size > 1e-9:
            return
        column /= size
        self.basis.append(column)
        self.residual = self.residual - column * (column @ self.residual)
        self.norms = self.norms - np.square(column.astype(np.float32) @ self.centred, dtype=np.float64)

    def _gains(self) -> tuple[Floats, Floats]:
        """(k,) sum of squares that each candidate would add, 0 where its sign is wrong; (k,) its cross product."""
        along = np.asarray(self.residual.astype(np.float32) @ self.centred, dtype=np.float64)
        usable = self.large & (self.norms > 0.05 * self.full) & (self.norms > 1e-6)
        usable &= np.sign(along) == self.direction
        return np.where(usable, along**2 / np.maximum(self.norms, 1e-9), 0.0), along

    def _group(self, together: int) -> tuple[list[int], float]:
        """Phrases of which a text has one or more, grown while that adds; with what they would add."""
        if together < 2 or not self.phrases.any():
            return [], 0.0
        return max((self._grow(sign, together) for sign in (1, -1)), key=lambda found: found[1])

    def _grow(self, sign: int, together: int) -> tuple[list[int], float]:
        numbers, values = self.of_sign[sign]
        if not len(numbers):
            return [], 0.0
        tuned = self.sample.tuned
        sizes = np.array([tuned.sum(), (~tuned).sum()], dtype=np.float64)
        residual = self.residual.astype(np.float32)
        have = np.zeros(len(values), dtype=np.float32)
        members: list[int] = []
        gain = 0.0
        for _ in range(together):
            free = 1 - have
            weights = np.stack([residual * free, tuned * free, ~tuned * free])
            along, first, second = (weights.astype(np.float32) @ values).astype(np.float64)
            along += float(have @ residual)
            first, second = first + float(have @ tuned), second + float(have @ ~tuned)
            variance = first - first**2 / sizes[0] + second - second**2 / sizes[1]
            usable = (np.sign(along) == sign) & (variance > 1)
            gains = np.where(usable, along**2 / np.maximum(variance, 1), 0)
            gains[members] = 0
            best = int(gains.argmax())
            if gains[best] <= gain * GROWTH:
                break
            gain = float(gains[best])
            members.append(best)
            have = np.maximum(have, values[:, best])
        if abs(standardised(have[:, None], tuned)[0]) < self.smallest:
            return [], 0.0
        return numbers[members].tolist(), gain


def signs(values: Values, tuned: Bools) -> Ints:
    """(k,) 1 where the tuned policy does it more, -1 less, 0 where LEAST_Z standard errors do not tell."""
    difference, variances = _difference(values, tuned)
    error = sum(variance / max(int(rows.sum()), 1) for variance, rows in zip(variances, (tuned, ~tuned), strict=True))
    z = difference / np.sqrt(np.maximum(error, 1e-12))
    return np.asarray(np.sign(z) * (np.abs(z) > LEAST_Z), dtype=np.int64)


def standardised(values: NDArray[Real], tuned: Bools) -> Floats:
    """(k,) mean of the tuned policy less that of the base, in sd within the policies: Cohen's d (1988)."""
    difference, variances = _difference(values, tuned)
    return np.asarray(difference / np.sqrt(np.maximum(sum(variances) / 2, 1e-12)))


def _difference(values: NDArray[Real], tuned: Bools) -> tuple[Floats, list[Floats]]:
    """(k,) mean of the tuned policy less that of the base, and the variance within each of the two."""
    parts = [values[rows] for rows in (tuned, ~tuned)]
    means = [part.mean(axis=0, dtype=np.float64) for part in parts]
    return means[0] - means[1], [part.var(axis=0, dtype=np.float64) for part in parts]


def apply(chosen: Sequence[Candidate], table: Table) -> Values:
    """(n, k) values of chosen statements on the rows of a table of candidates, lists of phrases included."""
    place = {(one.family, one.name): number for number, one in enumerate(table.candidates)}
    of_phrase = {one.phrases[0]: number for number, one in enumerate(table.candidates) if len(one.phrases) == 1}
    columns = []
    for one in chosen:
        if one.family == "ngrams":
            columns.append(table.values[:, [of_phrase[member] for member in one.phrases]].max(axis=1))
        else:
            columns.append(table.values[:, place[one.family, one.name]])
    return np.stack(columns, axis=1) if columns else table.values[:, :0]


def stability(
    chosen: Table, table: Table, sample: Sample, *, smallest: float, resamples: int, generator: np.random.Generator
) -> Floats:
    """(k,) share of resamples of the prompts in which a statement, or one that goes along with it, is chosen again.

    The choice is among the statements and the candidates that explain most on their own; lists of phrases are not
    grown anew.
    """
    if not chosen.candidates:
        return np.empty(0)
    own = np.asarray(sample.within(table.values), dtype=np.float32)
    reward = np.asarray(sample.within(sample.reward), dtype=np.float32)
    gains = np.square(reward @ own) / np.maximum(np.square(own).sum(axis=0), 1e-6)
    near = np.argsort(-gains, kind="stable")[:SIMILAR]
    values = np.hstack([chosen.values, table.values[:, near]])
    families = [one.family for one in chosen.candidates] + [table.candidates[i].family for i in near]
    weight = np.array([PREFERENCE[family] for family in families])
    direction = signs(values, sample.tuned) * (np.abs(standardised(values, sample.tuned)) >= smallest)
    inputs = np.column_stack([sample.within(sample.length), sample.within(values), reward]).astype(np.float32)
    alike = _alike(inputs[:, 1:-1], len(chosen.candidates))
    _, prompt = np.unique(sample.prompts, return_inverse=True)
    again = np.zeros(len(chosen.candidates))
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(prompt.max() + 1, size=prompt.max() + 1), minlength=prompt.max() + 1)
        gram = (inputs * drawn[prompt].astype(np.float32)[:, None]).T @ inputs
        picked = _sweep(gram.astype(np.float64), weight, direction, len(chosen.candidates))
        again += alike[:, picked].any(axis=1)
    return again / resamples


def _alike(values: Values, count: int) -> Bools:
    """(count, k) whether a column goes along with each of the first ones."""
    scaled = values / np.maximum(np.linalg.norm(values, axis=0), 1e-9)
    return np.asarray(scaled[:, :count].T @ scaled >= AS_GOOD)


def _sweep(gram: Floats, weight: Floats, direction: Ints, count: int) -> list[int]:
    """The greedy choice from second moments (control, candidates, reward): numbers of candidates."""
    full = np.diag(gram)[1:-1].copy()
    picked: list[int] = []

    def sweep(place: int) -> None:
        nonlocal gram
        if gram[place, place] > 1e-9:
            gram = gram - np.outer(gram[:, place], gram[place]) / gram[place, place]

    sweep(0)
    for _ in range(count):
        norms, along = np.diag(gram)[1:-1], gram[1:-1, -1]
        usable = (norms > 0.05 * full) & (norms > 1e-6) & (np.sign(along) == direction)
        scores = np.where(usable, along**2 / np.maximum(norms, 1e-9), 0.0) * weight
        best = int(scores.argmax())
        if not scores[best] > 0:
            break
        picked.append(best)
        sweep(best + 1)
    return picked

"""Linear heads fitted to contrast pairs by a loss of their margin, for many seeds at once.

With a frozen backbone the seeds of a sweep differ in a vector each, so they are fitted together: `[seeds, d]` weights.
Each seed draws from a generator of its own in the same order as if it were alone, and the rows of the computation do
not mix, so a seed's weights do not depend on which others are fitted with it. Not in their last bits either: matrix
products and vector instructions sum and round what does not fill a block in another way, so zeros fill all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adam import adam

Floats = NDArray[np.float64]
Loss = Callable[[Tensor], Tensor]
Weighting = Callable[[Tensor, float], Tensor]
"""Weights (seeds, pairs) of the pairs from their margins (seeds, pairs) and the share of the epochs that is done."""


ROWS = 8
"""Rows of a block of matrix products: with AVX-512, and a multiple of it with less."""
LANES = 16
"""Numbers that torch treats at a time: two vectors of AVX-512."""


@dataclass(frozen=True)
class Procedure:
    """Projected Adam on minibatches.

    Attributes:
        max_norm: bound of |w|.
        resample: each seed draws prompts with replacement, with all their pairs (as weights: how often each was drawn).
        swap: each seed swaps expert and baseline of each pair with probability 1/2: the placebo.
        weighting: weights of the pairs, anew before each epoch; none: all alike.
        homogeneous: the loss scales with the margin, so on select it is read per sd of the margins there.
    """

    loss: Loss
    epochs: int
    batch_size: int
    learning_rate: float
    max_norm: float
    resample: bool = False
    swap: bool = False
    weighting: Weighting | None = None
    homogeneous: bool = False


@dataclass(frozen=True)
class Heads:
    """Fitted heads of S seeds.

    Attributes:
        weights: (S, d), of the epoch with the least loss on select.
        best_epoch: (S,) that epoch, counted from 1.
        select_loss: (S,) that loss.
        curves: name -> (epochs, S).
        path: (epochs, S, d) float32, the weights after each epoch.
    """

    weights: Floats
    best_epoch: NDArray[np.int64]
    select_loss: Floats
    curves: dict[str, Floats]
    path: NDArray[np.float32]


@dataclass(frozen=True)
class _Draws:
    """All that a seed draws: head, multiplicity and sign of each pair, order of the batches."""

    heads: Tensor  # (S, d)
    counts: Tensor | None  # (S, n)
    signs: Tensor | None  # (S, n)
    select_signs: Tensor | None  # (S, m)
    orders: Tensor  # (S, epochs, batches)


def fit_heads(
    fit: NDArray[Any],
    select: NDArray[Any],
    procedure: Procedure,
    seeds: Sequence[int],
    *,
    prompts: NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Heads:
    """Minimise the mean loss of the margins w . difference over |w| <= max_norm, one head a seed.

    Batch j holds the pairs j, j + batches, j + 2 batches, ...; the seed decides in which order an epoch visits the
    batches. Seeds that visit the same batch at the same step share one matrix product.

    Args:
        fit, select: (n, d) feature differences, expert minus baseline, in float64 or, of many, in float32: heads, Adam
            and losses are float64 always. Of fit there are two copies at once. Select chooses the epoch.
        prompts: (n,) the prompt 0, 1, ... of each pair of fit, which `resample` draws; none: each pair has its own.
    """
    prompts = np.arange(len(fit)) if prompts is None else prompts
    draws = _draw(seeds, torch.from_numpy(prompts), len(select), fit.shape[1], procedure)
    differences, others = filled(torch.from_numpy(fit), columns=LANES), filled(torch.from_numpy(select), columns=LANES)
    batches = _batches(differences, draws.orders.shape[2])
    weights = _project(filled(draws.heads, columns=LANES), procedure.max_norm)
    optimizer = Adam(weights, procedure.learning_rate)
    best = torch.full((len(seeds),), torch.inf, dtype=torch.float64)
    chosen, best_epoch = weights.clone(), torch.zeros(len(seeds), dtype=torch.int64)
    curves: dict[str, list[Tensor]] = {}
    path = torch.empty(procedure.epochs, len(seeds), fit.shape[1], dtype=torch.float32)
    for epoch in range(procedure.epochs):
        for gradient in _gradients(weights, batches, differences, draws, procedure, epoch):
            optimizer.step(gradient)
            _project(weights, procedure.max_norm)
        row = _progress(weights, differences, others, draws, procedure)
        for name, values in row.items():
            curves.setdefault(name, []).append(values)
        path[epoch] = weights[:, : fit.shape[1]]
        better = row["select_loss"] < best
        best = torch.where(better, row["select_loss"], best)
        chosen[better] = weights[better]
        best_epoch[better] = epoch + 1
        progress(epoch + 1, procedure.epochs)
    stacked = {name: torch.stack(values).numpy() for name, values in curves.items()}
    return Heads(chosen[:, : fit.shape[1]].numpy(), best_epoch.numpy(), best.numpy(), stacked, path.numpy())


def filled(values: Tensor, *, rows: int = 1, columns: int = 1) -> Tensor:
    """The values with zeros up to the next multiple of so many rows and columns."""
    missing = (0, -values.shape[1] % columns, 0, -values.shape[0] % rows)
    return torch.nn.functional.pad(values, missing) if any(missing) else values


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix in the precision of the matrix, to the same bits whatever other rows there are; float64."""
    return (filled(rows, rows=ROWS).to(matrix.dtype) @ matrix)[: len(rows)].double()


def _batches(values: Tensor, batches: int) -> Tensor:
    """(n, k) values of the pairs by their batch, as `_by_batch` has them: (batches, size, k), in one copy."""
    rounds = -(-len(values) // batches)
    found = values.new_zeros(batches, rounds + -rounds % LANES, values.shape[1])
    for place in range(rounds):
        some = values[place * batches : (place + 1) * batches]
        found[: len(some), place] = some
    return found


def _by_batch(values: Tensor, batches: int) -> Tensor:
    """(k, n) values of the pairs by their batch: (k, batches, size), with zeros where a batch has fewer pairs."""
    size = -(-values.shape[1] // batches)
    values = torch.nn.functional.pad(values, (0, size * batches - values.shape[1]))
    values = values.reshape(-1, size, batches).mT
    return torch.nn.functional.pad(values, (0, -size % LANES)).contiguous()


def _draw(seeds: Sequence[int], prompts: Tensor, others: int, dimension: int, procedure: Procedure) -> _Draws:
    """Each seed's draws, from its own generator and always in the same order."""
    heads, counts, signs, select_signs, orders = [], [], [], [], []
    pairs, names = len(prompts), int(prompts.max()) + 1
    batches = max(1, -(-pairs // procedure.batch_size))
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        heads.append(torch.randn(dimension, generator=generator, dtype=torch.float64) / dimension**0.5)
        if procedure.resample:
            drawn = torch.randint(names, (names,), generator=generator)
            counts.append(torch.bincount(drawn, minlength=names).double()[prompts])
        if procedure.swap:
            signs.append(_coins(pairs, generator))
            select_signs.append(_coins(others, generator))  # or the choice of the epoch would leak the truth
        orders.append(torch.stack([torch.randperm(batches, generator=generator) for _ in range(procedure.epochs)]))
    return _Draws(
        torch.stack(heads),
        torch.stack(counts) if counts else None,
        torch.stack(signs) if signs else None,
        torch.stack(select_signs) if select_signs else None,
        torch.stack(orders),
    )


def _coins(count: int, generator: torch.Generator) -> Tensor:
    """+1 or -1, each with probability 1/2."""
    return 1.0 - 2.0 * torch.randint(2, (count,), generator=generator).double()


def _pair_weights(
    weights: Tensor, differences: Tensor, draws: _Draws, procedure: Procedure, epoch: int
) -> Tensor | None:
    """(S, n) weights of the pairs in this epoch, or none."""
    if procedure.weighting is None:
        return draws.counts
    margins = _signed(_product(weights, differences.T), draws.signs)
    focus = procedure.weighting(margins, epoch / procedure.epochs)
    return focus if draws.counts is None else focus * draws.counts


def _signed(margins: Tensor, signs: Tensor | None) -> Tensor:
    return margins if signs is None else margins * signs


def _gradients(
    weights: Tensor, batches: Tensor, differences: Tensor, draws: _Draws, procedure: Procedure, epoch: int
) -> Iterator[Tensor]:
    """The steps of an epoch: (S, d) gradients of each seed's mean loss on the batch whose turn it is.

    Args:
        weights: (S, d), which the caller changes after each step.
        batches: (batches, size, d); the rows of zeros in it add nothing.
    """
    pair_weights = _pair_weights(weights, differences, draws, procedure, epoch)
    pair_weights = None if pair_weights is None else _by_batch(pair_weights, len(batches))
    signs = None if draws.signs is None else _by_batch(draws.signs, len(batches))
    lengths = _by_batch(torch.ones(1, len(differences)), len(batches)).sum(2)[0]
    for turn, seeds in zip(*torch.sort(draws.orders[:, epoch].T.contiguous(), dim=1), strict=True):
        groups, places, space = _places(turn)
        rows = batches.new_zeros(space, weights.shape[1])
        rows[places] = weights[seeds].to(rows.dtype)
        margins = batches.new_empty(space, batches.shape[1])
        for number, group in groups:
            torch.mm(rows[group], batches[number].T, out=margins[group])
        sign = None if signs is None else signs[seeds, turn]
        slope = _slope(
            _signed(margins[places].double(), sign),
            None if pair_weights is None else pair_weights[seeds, turn],
            procedure,
        )
        margins.zero_()[places] = (_signed(slope, sign) / lengths[turn, None]).to(margins.dtype)
        for number, group in groups:
            torch.mm(margins[group], batches[number], out=rows[group])
        yield torch.empty_like(weights).index_copy_(0, seeds, rows[places].to(weights.dtype))


def _places(turn: Tensor) -> tuple[list[tuple[int, slice]], Tensor, int]:
    """Where the seeds go that visit the batches `turn` (S,), sorted: blocks of rows for each batch.

    Returns:
        Each batch that is visited with its rows, a multiple of ROWS; the row of each seed; the number of rows.
    """
    if len(turn) == 1:  # most often there is one seed, and to count it takes a fifth of a step
        return [(int(turn), slice(0, ROWS))], torch.zeros(1, dtype=torch.int64), ROWS
    numbers, group, counts = torch.unique_consecutive(turn, return_inverse=True, return_counts=True)
    missing = -counts % ROWS
    places = torch.arange(len(turn)) + (missing.cumsum(0) - missing)[group]
    ends = [0, *(counts + missing).cumsum(0).tolist()]
    return list(zip(numbers.tolist(), map(slice, ends, ends[1:]), strict=True)), places, ends[-1]


def _slope(margins: Tensor, pair_weights: Tensor | None, procedure: Procedure) -> Tensor:
    """Derivative of each pair's weighted loss by its margin."""
    losses = procedure.loss(margins.requires_grad_())
    (slope,) = torch.autograd.grad((losses if pair_weights is None else losses * pair_weights).sum(), margins)
    return slope


class Adam:
    """Adam (arXiv 1412.6980) with torch's defaults, in place: elementwise, so each row is on its own.

    It is the function of torch.optim.Adam in one pass over memory; the class itself would import a compiler first.
    """

    def __init__(self, weights: Tensor, rate: float) -> None:
        self.weights, self.rate, self.steps = weights, rate, torch.zeros(())
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, gradient: Tensor) -> None:
        adam(
            [self.weights],
            [gradient],
            [self.mean],
            [self.square],
            [],
            [self.steps],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


def _project(weights: Tensor, max_norm: float) -> Tensor:
    """Move (S, d) weights to the nearest points with |w| <= max_norm, in place."""
    norms = weights.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return weights.mul_((max_norm / norms).clamp(max=1.0))


def _progress(weights: Tensor, fit: Tensor, select: Tensor, draws: _Draws, procedure: Procedure) -> dict[str, Tensor]:
    """One row of the curves: (S,) each."""
    margins = _signed(_product(weights, fit.T), draws.signs)
    others = _signed(_product(weights, select.T), draws.select_signs)
    return {**curve_row(margins, others, procedure), "norm": weights.norm(dim=1)}


def curve_row(margins: Tensor, others: Tensor, procedure: Procedure) -> dict[str, Tensor]:
    """Loss, and how often the expert's completion is ranked first: (S,) each. Nothing here knows R*.

    The unit of a homogeneous loss is the sd on select itself. That on fit is too small for a reward that has learned
    the noise there, so it would make its loss on select look large in size, and good.

    Args:
        margins, others: (S, n) on fit and (S, m) on select.
    """
    unit = spread(others) if procedure.homogeneous else torch.ones(())
    return {
        "loss": _mean_loss(margins, procedure),
        "select_loss": _mean_loss(others / unit, procedure),
        "expert_first": (margins > 0).double().mean(1),
        "select_expert_first": (others > 0).double().mean(1),
    }


def spread(margins: Tensor) -> Tensor:
    """Standard deviation of each row, (S, 1), never 0; by sums, as `std` rounds one row and many differently."""
    deviations = margins - margins.mean(dim=1, keepdim=True)
    variance = deviations.square().sum(dim=1, keepdim=True) / max(margins.shape[1] - 1, 1)
    return variance.sqrt().clamp(min=1e-300)


def _mean_loss(margins: Tensor, procedure: Procedure) -> Tensor:
    return procedure.loss(filled(margins, columns=LANES))[:, : margins.shape[1]].mean(1)

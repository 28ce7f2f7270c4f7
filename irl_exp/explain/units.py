"""Sparse units: a BatchTopK autoencoder (arXiv 2412.06410) of the differences of features within a prompt.

Two completions of one prompt have codes a and b of their own; the decoder rebuilds the difference of their features
from a - b. So what both owe to the prompt costs nothing, and a unit has a value on a single completion. Features have
unit variance; no reward is used.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from irl_exp.irl.heads import Adam

Floats = NDArray[np.float64]
BATCH, RATE, LAST = 256, 3e-3, 50


def activations(
    features: NDArray[np.float32],
    fit: NDArray[np.bool_],
    prompts: NDArray[np.int64],
    *,
    units: int,
    active: int,
    steps: int,
    seed: int,
) -> NDArray[np.float32]:
    """(n, units) activation of each unit on each completion, in its sd on fit.

    Args:
        features: (n, d). fit: (n,) rows that train it. prompts: (n,) the prompt of each row.
        active: units above 0 a completion, on average.
    """
    centre, spread = features[fit].mean(0), features[fit].std(0)
    scaled = torch.from_numpy(((features - centre) / np.where(spread > 0, spread, 1)).astype(np.float32))
    encoder, bias, threshold = _train(scaled[torch.from_numpy(fit.copy())], prompts[fit], units, active, steps, seed)
    with torch.no_grad():
        codes = torch.relu(scaled @ encoder + bias)
        codes *= codes >= threshold
    found = codes.numpy()
    sd = found[fit].std(0)
    return np.asarray(found / np.where(sd > 0, sd, 1), dtype=np.float32)


def _train(
    inputs: torch.Tensor, prompts: NDArray[np.int64], units: int, active: int, steps: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Encoder (d, units), bias (units,) and the activation below which a unit is silent."""
    generator = torch.Generator().manual_seed(seed)
    order, start, size = _by_prompt(prompts)
    encoder = torch.randn(inputs.shape[1], units, generator=generator)
    encoder /= encoder.norm(dim=0)
    decoder = encoder.t().clone().requires_grad_()
    encoder.requires_grad_()
    bias = torch.zeros(units, requires_grad=True)
    weights = (encoder, decoder, bias)
    optimizers = [Adam(weight, RATE) for weight in weights]
    thresholds = []
    for step in range(steps):
        first = torch.randint(len(order), (BATCH,), generator=generator)
        second = start[first] + (torch.rand(BATCH, generator=generator) * size[first]).long()
        one, other = inputs[order[first]], inputs[order[second]]
        codes = torch.relu(torch.cat([one, other]) @ encoder + bias)
        threshold = codes.detach().flatten().topk(min(2 * BATCH * active, codes.numel())).values[-1]
        codes = codes * (codes >= threshold)
        rebuilt = (codes[:BATCH] - codes[BATCH:]) @ decoder
        loss = (one - other - rebuilt).square().sum(1).mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for optimizer, gradient in zip(optimizers, gradients, strict=True):
                optimizer.rate = RATE * (1 - step / steps)
                optimizer.step(gradient)
            decoder /= decoder.norm(dim=1, keepdim=True).clamp(min=1e-6)
        thresholds.append(float(threshold))
    return encoder.detach(), bias.detach(), float(np.mean(thresholds[-LAST:]))


def _by_prompt(prompts: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows in the order of their prompts; for each place in it, where its prompt begins and how many rows it has."""
    order = np.argsort(prompts, kind="stable")
    _, start, index, size = np.unique(prompts[order], return_index=True, return_inverse=True, return_counts=True)
    return torch.from_numpy(order), torch.from_numpy(start[index]), torch.from_numpy(size[index])

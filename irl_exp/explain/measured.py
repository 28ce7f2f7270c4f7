"""What is measured of a statement on test: frequencies, effect, q, variance explained. Intervals are by prompt.

Completions of one prompt resemble each other, so every standard error sums within prompts first (the linearised
variance of a difference of means, the sandwich of least squares), with Student's t of as many prompts as there are,
less one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from irl_exp.explain.choice import Bools, Floats, Ints, Sample


@dataclass(frozen=True)
class Estimates:
    """k numbers with 95 % intervals and two-sided p values: (k,) each."""

    value: Floats
    low: Floats
    high: Floats
    p: Floats


def _estimates(value: Floats, error: Floats, prompts: int) -> Estimates:
    freedom = max(prompts - 1, 1)
    half = stats.t.ppf(0.975, freedom) * error
    # Without any variance between prompts nothing is known of the error: no test.
    z = np.divide(np.abs(value), error, out=np.zeros_like(value), where=error > 0)
    return Estimates(value, value - half, value + half, np.asarray(2 * stats.t.sf(z, freedom)))


def _by_prompt(values: Floats, prompts: Ints) -> Floats:
    """(prompts, k) sums of the rows (n, k)."""
    order = np.argsort(prompts, kind="stable")
    starts = np.flatnonzero(np.diff(prompts[order], prepend=-1))
    return np.asarray(np.add.reduceat(values[order], starts, axis=0))


def differences(values: Floats, tuned: Bools, prompts: Ints) -> Estimates:
    """Mean of the (n, k) values of the tuned policy less that of the base."""
    _, prompts = np.unique(prompts, return_inverse=True)
    count = int(prompts.max()) + 1
    value, parts = np.zeros(values.shape[1]), np.zeros_like(values, dtype=np.float64)
    for rows, sign in ((tuned, 1), (~tuned, -1)):
        mean = values[rows].mean(axis=0)
        value += sign * mean
        parts[rows] = sign * (values[rows] - mean) / rows.sum()
    error = np.sqrt(np.square(_by_prompt(parts, prompts)).sum(axis=0) * count / max(count - 1, 1))
    return _estimates(value, error, count)


def effects(values: Floats, controls: Floats, sample: Sample) -> Estimates:
    """Coefficients of R on the (n, k) values, each other and the (n, c) controls held fixed, within policies.

    In sd of R within policies per unit of the value. The errors are those of the sandwich by prompt (CR1). Columns that
    the others determine get effect 0 and p = 1.
    """
    _, prompts = np.unique(sample.prompts, return_inverse=True)
    count = int(prompts.max()) + 1
    reward = np.asarray(sample.within(sample.reward), dtype=np.float64)
    sd = float(np.sqrt(np.square(reward).mean()))
    asked = values.shape[1]
    if not sd > 0 or not asked:
        return _estimates(np.zeros(asked), np.zeros(asked), count)
    design = np.asarray(sample.within(np.column_stack([values, controls])), dtype=np.float64)
    inverse = np.linalg.pinv(design.T @ design, rcond=1e-10, hermitian=True)
    found = inverse @ (design.T @ reward)
    left = reward - design @ found
    scores = _by_prompt(design * left[:, None], prompts) @ inverse
    rows = len(design)
    correction = count / max(count - 1, 1) * (rows - 1) / max(rows - design.shape[1] - 2, 1)
    error = np.sqrt(np.square(scores).sum(axis=0) * correction)
    alone = np.diag(inverse @ (design.T @ design)) > 0.99
    return _estimates((np.where(alone, found, 0) / sd)[:asked], (np.where(alone, error, 0) / sd)[:asked], count)


def benjamini_hochberg(p: Floats, tried: int) -> Floats:
    """(k,) q values of k p values out of `tried` tests; those that are not given count as p = 1 (1995)."""
    order = np.argsort(p)
    ratio = p[order] * max(tried, len(p)) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(ratio[::-1])[::-1].clip(max=1) if len(p) else ratio
    return q


def explained(fit: tuple[Floats, Sample], test: tuple[Floats, Sample], *, prompts: bool = False) -> Floats:
    """(k + 1,) R2 of R within policies on test with 0, 1, ... k of the columns and length, fitted on fit.

    With `prompts`, within one policy's completions of one prompt: what a loss of margins can tell.
    """
    designs = [
        sample.within(np.column_stack([sample.length, values]), prompts=prompts) for values, sample in (fit, test)
    ]
    rewards = [sample.within(sample.reward, prompts=prompts) for _, sample in (fit, test)]
    total = float(np.square(rewards[1]).sum())
    gram, cross = designs[0].T @ designs[0], designs[0].T @ rewards[0]
    found = []
    for size in range(1, designs[0].shape[1] + 1):
        weights = np.linalg.pinv(gram[:size, :size], rcond=1e-10, hermitian=True) @ cross[:size]
        left = rewards[1] - designs[1][:, :size] @ weights
        found.append(1 - float(np.square(left).sum()) / total if total > 0 else 0.0)
    return np.array(found)

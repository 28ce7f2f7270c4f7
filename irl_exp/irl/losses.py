"""Losses of the margin d = R(x, expert) - R(x, baseline): tensors in, tensors out, elementwise.

A loss of the margin leaves a constant per prompt free, so no threshold on R is determined by any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_margin(margin: Tensor, *, correct_penalty: float, wrong_penalty: float) -> Tensor:
    """Asymmetric max-margin loss: -a d where d > 0, -b d elsewhere (arXiv 2410.12491 has a = 1, b = 2).

    It has no lower bound, so it means something only with a bound on the norm of the reward. With a linear reward on
    the unit ball the population optimum for a = b is the direction of the mean difference of expert and baseline
    features; Adam, which rescales each coordinate, comes near it and not onto it. Where a completion shares no feature
    with any other the optimum is a step to the bound: the loss is piecewise linear.
    """
    return torch.where(margin > 0, -correct_penalty * margin, -wrong_penalty * margin)


def hinge(margin: Tensor, *, target_margin: float) -> Tensor:
    """max(0, m - d) with the target margin m (Cortes and Vapnik 1995, there with m = 1).

    Its population optimum is a step function: of two completions the one that the expert writes more often, relative
    to the baseline, is ahead by m, however much more often. So it keeps the order where it is clear, and no sizes.
    """
    return torch.clamp(target_margin - margin, min=0)


def bradley_terry(margin: Tensor, *, temperature: float) -> Tensor:
    """-log sigmoid(d / T), the logistic loss (Bradley and Terry 1952).

    Its population optimum over all rewards is T log pi_expert(y|x) / pi_baseline(y|x) + f(x).
    """
    return torch.nn.functional.softplus(-margin / temperature)


def squared(margin: Tensor) -> Tensor:
    """d^2, as published beside the paper's loss (arXiv 2410.12491).

    What is wrong with it: it is least at d = 0 and even in d, so it does not know which completion is the expert's.
    Its population optimum is a constant per prompt: nothing is recovered, and what remains of the initial reward is
    reported. It is here so that this can be seen.
    """
    return margin.square()


def confidence_margin(margin: Tensor, *, target_margin: float, confidence: float) -> Tensor:
    """max(0, m + c |d| - d): a hinge whose target m + c |d| grows with the size of the margin, 0 <= c < 1.

    It is 0 from d = m / (1 - c) on, falls with slope 1 - c up to there, and with slope 1 + c where d < 0: like
    max_margin it charges misrankings more. Its population optimum is a step function with a tread at 0: the target
    where the expert prefers one of two completions in more than (1 + c) / 2 of the pairs, 0 where it does in fewer.
    """
    return torch.clamp(target_margin + confidence * margin.abs() - margin, min=0)

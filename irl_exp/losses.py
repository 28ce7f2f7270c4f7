"""Losses of the margin d = R(x, expert) - R(x, baseline): tensors in, tensors out, elementwise.

A loss of the margin leaves a constant per prompt free, so no threshold on R is determined by any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_margin(margin: Tensor, *, correct_penalty: float, wrong_penalty: float) -> Tensor:
    """Asymmetric max-margin loss: -a d where d > 0, -b d elsewhere (arXiv 2410.12491 has a = 1, b = 2).

    It has no lower bound, so it means something only with a bound on the norm of the reward. With a linear reward
    on the unit ball the optimum for a = b is the direction of the mean difference of expert and baseline features.
    """
    return torch.where(margin > 0, -correct_penalty * margin, -wrong_penalty * margin)


def hinge(margin: Tensor, *, target_margin: float) -> Tensor:
    """max(0, m - d) with the target margin m."""
    return torch.clamp(target_margin - margin, min=0)


def bradley_terry(margin: Tensor, *, temperature: float) -> Tensor:
    """-log sigmoid(d / T), the logistic loss (Bradley and Terry 1952).

    Its population optimum over all rewards is T log pi_expert(y|x) / pi_baseline(y|x) + f(x).
    """
    return torch.nn.functional.softplus(-margin / temperature)

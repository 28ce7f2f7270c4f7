"""Contrast pairs of demonstrations -> learned reward: a linear head on features of the reference policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from irl_exp import losses
from irl_exp.config import BradleyTerryLoss, HingeLoss, IrlConfig, LossConfig
from irl_exp.policies import Completions, Policy
from irl_exp.rewards import LearnedReward
from irl_exp.runtime import Context

VERSION = 1
PROBES = 32


class IrlError(Exception):
    """Demonstrations from which no reward can be learned."""


def run(
    config: IrlConfig, *, demonstrations: Path, features: Path, reference: Path, context: Context
) -> dict[str, Any]:
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    phi = load_file(features / "features.safetensors")["features"].astype(np.float64)
    fit = frame["part"].to_numpy() == "fit"
    center = phi[fit].mean(0)
    transform = scaling(phi[fit] - center, config)
    scaled = (phi - center) @ transform
    pairs = {part: pair_differences(frame, scaled, part) for part in ("fit", "select")}
    head = fit_head(pairs["fit"], pairs["select"], config, context=context)
    scores = scaled[fit] @ head
    if not scores.std() > 0:
        raise IrlError("the learned reward is the same for all demonstrations.")
    backbone = Policy.load(reference, context.device)
    offset, scale = float(scores.mean()), float(scores.std())
    learned = LearnedReward(transform @ head, center, offset, scale, config.features, backbone)
    probes = Completions.from_frame(frame.iloc[np.linspace(0, len(frame) - 1, PROBES).astype(int)])
    learned.save(context.folder, backbone=reference.name, probes=probes)
    return {"note": f"{config.loss.name}, {len(pairs['fit']):,} pairs", "norm": float(np.linalg.norm(head))}


def scaling(centred: NDArray[np.float64], config: IrlConfig) -> NDArray[np.float64]:
    """(d, d) matrix that gives the features unit variance; with `whiten` it also removes their correlation.

    The bound on |w| is then a bound on the variance of the reward, whatever basis the features come in, and the
    mean-difference direction that max_margin tends to becomes Fisher's linear discriminant. Uses no label.
    """
    spread = centred.std(0)
    if not (spread > 0).all():
        raise IrlError("a feature is constant over all demonstrations: choose other irl.features.")
    if config.scaling == "standardise":
        return np.diag(1 / spread)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return np.asarray(vectors / np.sqrt(values + config.ridge * values.mean()) @ vectors.T)


def pair_differences(frame: pd.DataFrame, phi: NDArray[np.float64], part: str) -> NDArray[np.float64]:
    """phi(x, expert) - phi(x, baseline) for the pairs of a part: (pairs, d)."""
    rows = frame.reset_index(drop=True)
    rows = rows[rows["part"] == part]
    expert, baseline = (rows[rows["policy"] == policy] for policy in ("expert", "baseline"))
    same = (expert[["prompt_id", "sample"]].to_numpy() == baseline[["prompt_id", "sample"]].to_numpy()).all()
    if not same:
        raise IrlError("expert and baseline demonstrations are not of the same prompts.")
    return np.asarray(phi[expert.index] - phi[baseline.index])


def loss_function(config: LossConfig) -> Callable[[Tensor], Tensor]:
    """The chosen loss as a function of the margin alone."""
    if isinstance(config, HingeLoss):
        return lambda margin: losses.hinge(margin, target_margin=config.target_margin)
    if isinstance(config, BradleyTerryLoss):
        return lambda margin: losses.bradley_terry(margin, temperature=config.temperature)
    return lambda margin: losses.max_margin(
        margin, correct_penalty=config.correct_penalty, wrong_penalty=config.wrong_penalty
    )


def fit_head(
    fit: NDArray[np.float64], select: NDArray[np.float64], config: IrlConfig, *, context: Context
) -> NDArray[np.float64]:
    """Minimise the mean loss of the margins w . difference over |w| <= max_norm: (d,) weights.

    Projected Adam on minibatches. All randomness (head, resampling, order) comes from one generator of the seed.

    Args:
        fit, select: (pairs, d) feature differences, expert minus baseline; select is only reported on.
    """
    generator = torch.Generator().manual_seed(config.seed)
    differences, others = torch.from_numpy(fit), torch.from_numpy(select)
    count, dimension = differences.shape
    initial = torch.randn(dimension, generator=generator, dtype=torch.float64) / dimension**0.5
    weights = project(initial, config.max_norm).requires_grad_()
    if config.resample_pairs:
        differences = differences[torch.randint(count, (count,), generator=generator)]
    optimizer = torch.optim.Adam([weights], lr=config.learning_rate)
    loss = loss_function(config.loss)
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count, config.batch_size):
            optimizer.zero_grad()
            loss(differences[order[start : start + config.batch_size]] @ weights).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                weights.copy_(project(weights, config.max_norm))
        context.log({"step": epoch, **_progress_row(weights.detach(), differences, others, loss)})
        context.progress(epoch, config.epochs)
    return weights.detach().numpy()


def project(weights: Tensor, max_norm: float) -> Tensor:
    """The nearest point with |w| <= max_norm."""
    return weights * min(1.0, max_norm / max(float(weights.norm()), 1e-12))


def _progress_row(weights: Tensor, fit: Tensor, select: Tensor, loss: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Loss, and how often the expert's completion is ranked first: nothing here knows R*."""
    margins, others = fit @ weights, select @ weights
    return {
        "loss": float(loss(margins).mean()),
        "select_loss": float(loss(others).mean()),
        "expert_first": float((margins > 0).double().mean()),
        "select_expert_first": float((others > 0).double().mean()),
        "norm": float(weights.norm()),
    }

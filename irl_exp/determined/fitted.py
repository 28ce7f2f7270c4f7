"""The convex problem that a stored linear reward was fitted to, made again from what the store has of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irl_exp.determined import calibration, programs
from irl_exp.determined.bounds import OPTIMUM
from irl_exp.determined.problem import Floats, Loss, Optimum, bradley_terry, hinge, max_margin
from irl_exp.irl.contrast import Demonstrations, Scaling

LOSSES: dict[str, Callable[..., Loss]] = {"max_margin": max_margin, "hinge": hinge, "bradley_terry": bradley_terry}
LEAST = 0.05
"""The smallest tolerance that the optimum is precise enough for, in standard errors of the loss."""


def loss_of(options: Mapping[str, Any]) -> Loss:
    """The loss of the node irl.loss of a config: its name and what else it has.

    Raises:
        ValueError: it is not convex in the reward, so that no bounds are known.
    """
    options = dict(options)
    name = options.pop("name")
    if name not in LOSSES:
        raise ValueError(f"irl/loss={name} is not convex in the reward: its bounds are not known")
    return LOSSES[name](**options)


@dataclass(frozen=True)
class Fitted:
    """Contrast pairs as a method saw them, with the ridge and norm that it chose.

    Attributes:
        seen: the demonstrations, those of fit that the method did not see in a part of their own.
        whitened: scaled by the covariance of the features, not each by its own variance.
        ridge: of the scaling.
    """

    seen: Demonstrations
    loss: Loss
    max_norm: float
    scaling: Scaling
    whitened: bool
    ridge: float

    @classmethod
    def of(cls, seen: Demonstrations, loss: Loss, *, scaling: str, ridge: float, max_norm: float) -> Fitted:
        found = Scaling.fit(seen.features[seen.fit], scaling, ridge)
        return cls(seen, loss, max_norm, found, scaling == "whiten", ridge)

    @property
    def pairs(self) -> Floats:
        """(n, d) differences of scaled features, expert minus baseline, of the pairs of fit."""
        raw = self.seen.pairs(self.seen.features.astype(np.float64), "fit")
        return np.asarray(raw @ self.scaling.transform)

    def optimum(self, pairs: Floats) -> Optimum:
        """The best reward, precise enough for a tolerance of LEAST standard errors of its loss."""
        rough = programs.optimum(pairs, self.loss, max_norm=self.max_norm, precision=1e-3)
        if not rough.standard_error > 0:
            return rough
        precision = OPTIMUM * LEAST * rough.standard_error
        return programs.optimum(pairs, self.loss, max_norm=self.max_norm, precision=precision)

    def scaled(self, best: Floats) -> calibration.Scaled:
        """The rows that scaled the features; each has its part in the mean eigenvalue that the ridge is a fraction of.

        Args:
            best: (d,) weights of the best reward.
        """
        fit, transform = self.seen.fit, self.scaling.transform
        centred = self.seen.features[fit] - self.scaling.center
        part: Floats | float = 0.0
        if self.whitened:
            part = np.outer(self.ridge * (centred**2).mean(axis=1), transform @ (transform @ best))
        prompts: NDArray[np.int64] = self.seen.frame["prompt_id"].to_numpy()[fit]
        return calibration.Scaled(centred @ transform, prompts, self.whitened, part)

    def calibrated(
        self, pairs: Floats, sides: Floats, best: Optimum, *, direction: bool = False, seed: int = 0
    ) -> calibration.Calibration:
        """The tolerance at which W holds sides . w (m, d) of the population's optimum 95 % of the time."""
        return calibration.calibrated(
            pairs,
            sides,
            self.loss,
            max_norm=self.max_norm,
            best=best,
            prompts=self.seen.prompts("fit"),
            scaled=self.scaled(best.weights),
            direction=direction,
            seed=seed,
        )

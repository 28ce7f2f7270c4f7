"""What every reward has in common: it scores completions, and a saved one must reproduce its own scores.

A saved reward keeps probes, a few completions with their scores, and refuses to be loaded if it does not reproduce
them: a reward with a wrong head or backbone must not judge anything. Both times they are scored in fp32, whatever the
precision of the device: in bf16 another batch alone moves a score by a hundredth of their sd.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError

from irl_exp.machinery.runtime import in_fp32
from irl_exp.policies.language_models import Completions, Progress

Scores = NDArray[np.float64]


class RewardError(Exception):
    """A reward that cannot be built or does not reproduce its own scores."""


class Reward(Protocol):
    """Judges completions: (n,) scores, higher is better."""

    def score(self, completions: Completions, progress: Progress = ...) -> Scores: ...


@contextmanager
def read_back(folder: Path) -> Iterator[None]:
    """Say in one line that a file of a saved reward is not what was saved there, whatever reading it ran into.

    What has its own message, of the store or of a policy, passes.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise RewardError(
            f"{folder}: a file of this reward is not what was saved ({why}). Compute it again."
        ) from error


def save_probes(folder: Path, probes: Completions, scores: Scores) -> None:
    """Keep some completions with their scores, in fp32, beside a saved reward."""
    probes.frame().assign(score=scores).to_parquet(folder / "probes.parquet")


def check_probes(folder: Path, reward: Reward) -> None:
    """Score the probes again.

    Raises:
        RewardError: the loaded reward is not the one that was saved.
    """
    with read_back(folder):
        frame = pd.read_parquet(folder / "probes.parquet")
        probes, saved = Completions.from_frame(frame), frame["score"].to_numpy()
    with in_fp32():
        found = reward.score(probes)
    # Another device or batch shape rounds differently: by 2e-6 of the largest score between batch sizes on one CPU (the
    # default run). A wrong weight is off by far more than the tolerance.
    tolerance = 1e-3 * float(np.abs(saved).max())
    if not np.allclose(saved, found, rtol=0, atol=tolerance):
        worst = float(np.abs(saved - found).max())
        raise RewardError(f"{folder}: the loaded reward does not reproduce its own scores (off by {worst:.3g}).")

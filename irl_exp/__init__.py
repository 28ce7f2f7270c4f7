"""Inverse reinforcement learning of language-model training goals, as a Hydra experiment framework."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import pandas and torch: --help and TAB do not wait for it
    from irl_exp.library import FittedReward, Pair
    from irl_exp.runs import Run

__version__ = "0.1.0"


def load(folder: str | PathLike[str]) -> Run:
    """A run with its metrics, completions, policies and learned reward: see irl_exp/runs.py.

    Args:
        folder: multirun/<name>/<time>/<job>; of a launch its first job, of a study that of its newest launch.
    """
    from irl_exp.runs import load

    return load(folder)


def fit(pairs: Iterable[Pair], encoder: str | PathLike[str], *, seed: int = 0) -> FittedReward:
    """A reward from pairs of texts, which scores any text: see irl_exp/library.py.

    Args:
        pairs: (prompt, chosen, rejected), or mappings with these keys.
        encoder: folder or hub name of a language model, whose hidden states the reward reads.
        seed: of the fit, and of which prompts are held out.
    """
    from irl_exp.library import fit

    return fit(pairs, encoder, seed=seed)

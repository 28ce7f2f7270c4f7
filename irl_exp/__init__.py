"""Inverse reinforcement learning of language-model training goals, as a Hydra experiment framework."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import pandas and torch: --help and TAB do not wait for it
    from irl_exp.runs import Run

__version__ = "0.1.0"


def load(folder: str | PathLike[str]) -> Run:
    """A run with its metrics, completions, policies and learned reward: see irl_exp/runs.py.

    Args:
        folder: multirun/<name>/<time>/<job>; of a launch its first job, of a study that of its newest launch.
    """
    from irl_exp.runs import load

    return load(folder)

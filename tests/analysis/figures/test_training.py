"""Reward and KL over the steps of RL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_figures import (
    made,
    make,
    several,
    words,
)
from small_study import Made


def test_a_shared_expert_is_drawn_once(tmp_path: Path) -> None:
    figure = make("training_curves", made(tmp_path, several(3)))
    expert, refinetuned, expert_kl, kl = figure.axes
    segments = [len(axes.collections[0].get_segments()) for axes in (expert, refinetuned, expert_kl, kl)]  # type: ignore[attr-defined]
    assert segments == [1, 3, 1, 3]
    for axes, factor in ((expert, 1), (refinetuned, 2), (expert_kl, 0.1), (kl, 0.2)):
        assert axes.lines[0].get_ydata() == pytest.approx(factor * np.array([1, 2, 3]))
    assert expert_kl.get_ylim() == kl.get_ylim()
    assert expert_kl.get_ylim()[1] >= 0.6, "the higher KL, that of refinetuning, is in view"
    assert "(1 policy)" in words(figure)
    assert "(3 policies)" in words(figure)


def test_without_refinetuning_rlhf_alone_is_drawn(tmp_path: Path) -> None:
    figure = make("training_curves", made(tmp_path, [Made(toxic={"reference": 20, "expert": 6})]))
    assert len(figure.axes) == 2

"""Figures of what was varied, against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from scipy import stats
from small_figures import (
    clouds,
    judged,
    launch,
    make,
    marks,
    points,
    words,
    write,
)

from irl_exp.analysis.figures import (
    drawing,
    panels,
    sweeps,
)
from irl_exp.analysis.study import NotComputed, Study


def ensembles(folder: Path, seeds: int = 3) -> Study:
    jobs = [
        (
            f"irl.members={members},irl.aggregate={aggregate},irl.seed={seed}",
            {"irl.members": members, "irl.aggregate": aggregate, "irl.name": "ensemble"},
            judged(0.9 + members / 1000 + seed / 10000 + 0.01 * (aggregate == "mean")),
        )
        for members in (2, 5, 50)
        for aggregate in ("mean", "lower_bound")
        for seed in range(seeds)
    ]
    return write(folder, jobs)


def test_a_number_and_a_choice(tmp_path: Path) -> None:
    study = ensembles(tmp_path)
    sweep = sweeps.swept(study)
    assert (sweep.key, sweep.beside) == ("irl.members", "irl.aggregate")
    figure = make("against_parameter", study)
    auroc, _, stability = figure.axes
    assert auroc.get_xscale() == "log"
    assert [tick.get_text() for tick in auroc.get_xticklabels()] == ["2", "5", "50"]
    lines = {line.get_label(): line for line in auroc.lines if line.get_marker() in panels.MARKERS}
    assert set(lines) == {"mean", "lower_bound"}
    means = [np.mean(study.values("irl/auroc", f"irl.members={n},irl.aggregate=mean")) for n in (2, 5, 50)]
    np.testing.assert_allclose(lines["mean"].get_ydata(), means)
    ratio = lines["lower_bound"].get_xdata() / lines["mean"].get_xdata()
    np.testing.assert_allclose(ratio, ratio[0])  # beside each other, by the same part of a log axis
    assert 1 < ratio[0] < 2.5
    np.testing.assert_allclose(sorted(points(auroc)[:, 1]), sorted(study.values("irl/auroc")))
    for line in stability.lines:
        np.testing.assert_allclose(line.get_ydata(), 1e-4)  # of 0, 1, 2 times 1e-4
    low, high = stability.collections[0].get_segments()[0][:, 1]
    np.testing.assert_allclose([low, high], 1e-4 * np.sqrt(2 / stats.chi2.ppf([0.975, 0.025], 2)))
    (log_ratio,) = [line for line in auroc.lines if line.get_linestyle() == "--"]
    assert set(log_ratio.get_ydata()) == {0.95}
    assert "log ratio 0.950" in words(figure).split("\n")
    assert "↓ log ratio 0.260" in words(figure)  # all EPIC distances are 0.3: the panel ends above it


def test_of_two_numbers_the_one_with_more_values(tmp_path: Path) -> None:
    jobs = [
        (
            f"irl.epochs={epochs},irl.prompt_fraction={part},irl.seed={seed}",
            {"irl.epochs": epochs, "irl.prompt_fraction": part, "irl.batch_size": 2 * epochs},
            {**judged(part, **{"refinetuned/toxic_fraction": epochs / 100}), "implicit/auroc": 0.9 + seed / 100},
        )
        for epochs in (1, 5)
        for part in (0.1, 0.25, 0.5)
        for seed in range(2)
    ]
    study = write(tmp_path, jobs)
    sweep = sweeps.swept(study)
    assert (sweep.key, sweep.beside) == ("irl.prompt_fraction", "irl.epochs")
    assert list(dict.fromkeys(sweep.others.values())) == ["1", "5"]
    auroc, _, toxic = make("against_parameter", study).axes
    assert auroc.get_xscale() == "linear"
    assert toxic.get_title(loc="left") == "refinetuned policy: completions\nwith R* < 0"
    blue = [one for one in auroc.collections if isinstance(one, PathCollection)]
    drawn = [one.get_offsets()[:, 1] for one in blue if np.allclose(one.get_edgecolor()[0][:3], to_rgb(drawing.BLUE))]
    np.testing.assert_allclose(drawn, np.tile([0.9, 0.91], (6, 1)))  # implicit varies with the seed: points


def test_a_group_that_sets_a_number(tmp_path: Path) -> None:
    """model=... sets name, width and depth: the first number that tells the models apart."""
    sizes = {"small": (64, 2), "middle": (128, 4), "large": (256, 4)}
    jobs = [
        (
            f"model={name},seed={seed}",
            {"seed": seed, "model.seed": seed, "model.name": name, "model.layers": layers, "model.hidden_size": width},
            judged(width / 300),
        )
        for name, (width, layers) in sizes.items()
        for seed in range(2)
    ]
    sweep = sweeps.swept(write(tmp_path, jobs))
    assert sweep.key == "model.hidden_size"
    assert list(sweep.values.values()) == [64, 128, 256]


def test_a_choice_is_no_number(tmp_path: Path) -> None:
    jobs = [
        (
            f"irl/loss={name}",
            {"irl.loss.name": name, f"irl.loss.{name}": number, "irl.resample_pairs": True},
            judged(0.9),
        )
        for number, name in enumerate(("hinge", "squared"))
    ]
    with pytest.raises(NotComputed, match=r"what varies: irl/loss\)"):
        sweeps.against_parameter(write(tmp_path, jobs))


def test_tradeoff_has_a_panel_a_part(tmp_path: Path) -> None:
    study = launch(tmp_path, 1, 4, completions=False)
    figure = make("tradeoff", study)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["toxicity", "sentiment"]
    for axes, part in zip(figure.axes, ("toxicity", "sentiment"), strict=True):
        expected = [study.values(f"tradeoff/{reward}/{part}") for reward in ("truth", "implicit", "learned")]
        np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(axes)], expected)
        assert [x for x, _ in marks(axes)] == pytest.approx([np.mean(values) for values in expected])

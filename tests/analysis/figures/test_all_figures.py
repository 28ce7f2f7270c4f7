"""What holds for every figure: any number of runs and cells, names that do not overlap, captions, reasons."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from small_figures import (
    FIGURES,
    cells,
    intervals,
    judged,
    launch,
    made,
    make,
    several,
    write,
)
from small_study import Made

from irl_exp.analysis import cell_names, metric_names, report, samples, statistics, together
from irl_exp.analysis.figures import (
    distances,
    heatmap,
    panels,
    policies,
    toxicity,
)
from irl_exp.analysis.study import NotComputed
from irl_exp.report.names import STUDY_METRICS, Words

OF_CURVES = {"over_epochs", "accuracy_heatmap", "best_and_all", "training_curves", "outcome", "toxicity", "threshold"}
"""Drawn of made-up runs with curves; the others of made-up rewards."""
OURS = set(FIGURES) - OF_CURVES
NO_POLICIES = {f"{policy}/toxic_fraction": None for policy in ("reference", "expert", "refinetuned")}


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    jobs = [
        (f"reward.parts.{part}.weight={weight},irl.epochs=5,irl.seed={seed}", {}, judged(0.9))
        for part, weight in (("length", 1), ("sentiment", 1), ("length", 0.25))
        for seed in range(2)
    ]
    study = write(tmp_path, jobs)
    assert list(cell_names.labels(study).values()) == ["length.weight=1", "sentiment.weight=1", "length.weight=0.25"]
    assert (
        cell_names.short([{"irl.resample_pairs": "True"}, {"irl.resample_pairs": "False"}])[0] == "resample_pairs=True"
    )
    assert cell_names.fold("sentiment.weight=0.25, length.weight=0.25") == "sentiment.weight=0.25,\nlength.weight=0.25"


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "distribution": "no run has a learned reward",
        "distance_matrix": "completions.parquet",
        "triangle": "they need a learned reward",
        "against_parameter": "what varies: seeds alone",
        "learned_against_truth": "completions.parquet",
        "equal_kl": "both ways of RL",
        "frontier": "end before refinetune",
        "paradox": "no run has both",
        "tradeoff": "need reward=weighted",
        "uncertainty": "irl=bayesian or irl=ensemble",
    }.items(),
)
def test_what_runs_cannot_tell_is_said(tmp_path: Path, name: str, reason: str) -> None:
    study = write(tmp_path, [("seed=0", {}, {"reference/kl": 0.0}), ("seed=1", {}, {"reference/kl": 0.0})])
    with pytest.raises(NotComputed, match=reason):
        FIGURES[name](study)


def test_one_run_is_too_few_for_two_figures(tmp_path: Path) -> None:
    study = launch(tmp_path, 1, 1)
    with pytest.raises(NotComputed, match="two runs"):
        distances.distance_matrix(study)
    with pytest.raises(NotComputed, match="1 runs with a refinetuned policy"):
        policies.paradox(study)


@pytest.mark.parametrize("name", sorted(OURS - {"distance_matrix", "paradox", "against_parameter"}))
def test_one_run_is_drawn(tmp_path: Path, name: str) -> None:
    assert make(name, launch(tmp_path, 1, 1)).axes


@pytest.mark.parametrize("name", ["distribution", "triangle", "tradeoff", "frontier"])
def test_below_three_runs_there_are_points_alone(tmp_path: Path, name: str) -> None:
    figure = make(name, launch(tmp_path, 1, 2, completions=False))
    assert [found for axes in figure.axes for found in intervals(axes)] == []
    assert "The diamond is the mean; fewer than 3 have no interval." in figure.reading


def boxes(figure: Figure) -> Iterator[tuple[str, Any]]:
    """Names of cells and their extents in pixels."""
    for axes in figure.axes:
        for tick in axes.get_yticklabels():
            if tick.get_text() and tick.get_visible():
                yield tick.get_text(), tick.get_window_extent()


@pytest.mark.parametrize("name", sorted(OURS))
def test_twenty_cells_with_long_names(tmp_path: Path, name: str) -> None:
    """Nothing warns, names of cells do not run into each other, all of them lie on the page."""
    study = launch(tmp_path, 20, 2)
    figure = make(name, study)
    found = list(boxes(figure))
    for number, (_, one) in enumerate(found):
        assert one.x0 >= -1
        assert not any(one.padded(-1).overlaps(other.padded(-1)) for _, other in found[number + 1 :])
    assert min(text.get_fontsize() for text in figure.findobj(lambda item: hasattr(item, "get_fontsize"))) >= 8


@pytest.mark.parametrize("name", sorted(OF_CURVES))
def test_twenty_cells_with_long_names_overlap_nothing(name: str, tmp_path: Path) -> None:
    figure = make(name, made(tmp_path, cells(20)))
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        boxes.sort(key=lambda box: box.y0)
        for below, above in itertools.pairwise(boxes):
            assert below.y1 <= above.y0 + 1


@pytest.mark.parametrize("name", sorted(OF_CURVES))
@pytest.mark.parametrize("count", [2, 30])
def test_any_number_of_runs(name: str, count: int, tmp_path: Path) -> None:
    make(name, made(tmp_path, several(count)))


@pytest.mark.parametrize("name", sorted(OF_CURVES))
def test_one_epoch_and_rows_written_twice(name: str, tmp_path: Path) -> None:
    found = made(tmp_path, [Made(accuracy=(0.7,))])
    file = found.folder / "0" / "metrics.jsonl"
    file.write_text(file.read_text() * 2)
    make(name, found)


@pytest.mark.parametrize("name", [*report.OF_SUMMARY, *report.OF_STUDY])
def test_a_caption_is_one_sentence_and_the_rest_is_behind_the_fold(name: str) -> None:
    caption, *reading = report.told_by({**report.OF_SUMMARY, **report.OF_STUDY}[name], Words("toxic", "civil"))
    assert caption.endswith((".", "?"))
    assert len(caption) < 130
    assert all(text.endswith(".") for text in reading)
    assert "below 0 of R*" not in caption


def test_every_metric_of_a_table_has_a_name() -> None:
    told = {key: metric_names.readable(key, Words("toxic", "civil")) for key in STUDY_METRICS}
    assert [key for key, name in told.items() if name == key] == []
    assert len(set(told.values())) == len(told)


UNTOLD = {
    "over_epochs": (Made(irl=False), "No run has a learned reward"),
    "accuracy_heatmap": (Made(files=()), "No run has a curve of its reward"),
    "best_and_all": (Made(irl=False), "No run has a learned reward"),
    "training_curves": (Made(files=()), "No run has trained a policy by RL"),
    "outcome": (Made(metrics=NO_POLICIES), "No run has judged a policy"),
    "toxicity": (Made(metrics=NO_POLICIES), "No run has judged a policy"),
    "threshold": (Made(irl=False), "No run has a learned reward"),
}


@pytest.mark.parametrize("name", sorted(OF_CURVES))
def test_what_cannot_be_told_says_why(name: str, tmp_path: Path) -> None:
    run, reason = UNTOLD[name]
    with pytest.raises(NotComputed, match=reason):
        FIGURES[name](made(tmp_path, [run]))


def test_names_of_cells_are_short_and_differ(tmp_path: Path) -> None:
    runs = [
        Made(cell="irl/loss=hinge,reward.parts.length.weight=1"),
        Made(cell="irl/loss=hinge,reward.parts.sentiment.weight=[1,2]"),
        Made(cell="irl/loss=squared"),
    ]
    assert list(cell_names.labels(made(tmp_path, runs), 60).values()) == [
        "loss=hinge, length.weight=1",
        "loss=hinge, sentiment.weight=[1,2]",
        "loss=squared",
    ]


def test_docstrings_hold() -> None:
    for module in (cell_names, metric_names, panels, heatmap, samples, statistics, toxicity, together):
        assert doctest.testmod(module).failed == 0

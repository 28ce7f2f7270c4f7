"""The figures of the paper: what is drawn, against numbers computed by hand from made-up runs."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from scipy import stats
from small_study import Made, write

from irl_exp.analysis import cell_names, statistics, study
from irl_exp.analysis.figures import drawing, panels, paper, toxicity
from irl_exp.analysis.study import NotComputed, Study

NO_POLICIES = {f"{policy}/toxic_fraction": None for policy in ("reference", "expert", "refinetuned")}


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with drawing.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def made(tmp_path: Path, runs: Sequence[Made]) -> Study:
    return study.read(write(tmp_path / "study" / "20260101-000000-000000", runs))


def drawn(figure: Figure) -> Figure:
    figure.canvas.draw()  # warnings of the layout come here
    return figure


def texts(figure: Figure) -> str:
    """All text of a figure, that of legends too."""
    return "\n".join(item.get_text() for item in figure.findobj(lambda item: hasattr(item, "get_text")))  # type: ignore[attr-defined]


def panel(figure: Figure, title: str) -> Axes:
    (found,) = [axes for axes in figure.axes if title in axes.get_title(loc="left")]
    return found


def points(axes: Axes, marker_size: float) -> np.ndarray:
    """(n, 2) offsets of the scatters of one size."""
    clouds = [item for item in axes.collections if isinstance(item, PathCollection)]
    return np.vstack([np.asarray(item.get_offsets()) for item in clouds if item.get_sizes()[0] == marker_size])


def several(count: int, **fields: object) -> list[Made]:
    """Runs of one cell, each with another curve."""
    random = np.random.default_rng(0)
    return [Made(seed=seed, accuracy=tuple(random.uniform(0.5, 0.85, 3)), **fields) for seed in range(count)]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- over epochs


@pytest.mark.parametrize("count", [3, 12])
def test_every_run_its_mean_and_the_band_over_epochs(tmp_path: Path, count: int) -> None:
    runs = several(count)
    figure = drawn(paper.over_epochs(made(tmp_path, runs)))
    for title, more in (("accuracy, threshold 0", 0.0), ("AUROC", 0.1), ("Kendall", -0.2)):
        axes, expected = panel(figure, title), np.array([run.accuracy for run in runs]) + more
        (lines,) = [item for item in axes.collections if isinstance(item, LineCollection)]
        assert np.array(lines.get_segments())[:, :, 1] == pytest.approx(expected)
        mean = axes.lines[0]
        assert mean.get_xdata() == pytest.approx([1, 2, 3])
        assert mean.get_ydata() == pytest.approx(expected.mean(axis=0))
        (band,) = [item for item in axes.collections if not isinstance(item, LineCollection)]
        edges = [band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()]
        if count == 12:
            low, high = np.quantile(expected, [0.025, 0.975], axis=0)
        else:
            half = stats.t.ppf(0.975, 2) * expected.std(axis=0, ddof=1) / np.sqrt(3)
            low, high = expected.mean(axis=0) - half, expected.mean(axis=0) + half
        assert edges == pytest.approx([low.min(), high.max()])
    told = texts(figure)
    assert f"{count} learned rewards" in told
    assert ("middle 95 % of the runs" if count == 12 else "t interval of the mean") in told
    assert "majority class 0.650" in told
    assert "implicit reward 0.900" in told


def test_runs_that_share_a_reward_are_one_line(tmp_path: Path) -> None:
    runs = [Made(seed=seed, artifacts={"irl": "one"}) for seed in range(4)]
    figure = drawn(paper.over_epochs(made(tmp_path, runs)))
    (lines,) = [item for item in panel(figure, "AUROC").collections if isinstance(item, LineCollection)]
    assert len(lines.get_segments()) == 1
    assert "1 learned reward" in texts(figure)


def cells(count: int, seeds: int = 2) -> list[Made]:
    names = [f"irl/loss=loss_{number},irl.optimiser.learning_rate={number / 7:.5f}" for number in range(count)]
    runs = [Made(cell=name, seed=seed) for name in names for seed in range(seeds)]
    for number, run in enumerate(runs):
        run.accuracy = (0.5, 0.6, 0.6 + number / 200)
    return runs


def test_a_few_cells_have_a_colour_each(tmp_path: Path) -> None:
    found = made(tmp_path, cells(3))
    axes = panel(figure := drawn(paper.over_epochs(found)), "AUROC")
    means = axes.lines[:3]
    assert len({line.get_color() for line in means}) == 3
    assert [line.get_ydata()[-1] for line in means] == pytest.approx([0.7025, 0.7125, 0.7225])
    assert "loss=loss_1, learning_rate=0.14286 (n = 2)" in texts(figure).replace("\n", " ")


def test_many_cells_have_a_panel_each(tmp_path: Path) -> None:
    figure = drawn(paper.over_epochs(made(tmp_path, cells(20))))
    titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titled) == 20
    last = {line.get_color(): line.get_ydata()[-1] for line in titled[19].lines}
    assert last["black"] == pytest.approx(0.6 + 38.5 / 200 - 0.2)
    assert last[drawing.BLUE] == pytest.approx(0.6 + 38.5 / 200)


# ---------------------------------------------------------------------------------------------------- heat map


def test_heatmap_rows_are_sorted_by_seed(tmp_path: Path) -> None:
    runs = several(4)
    figure = drawn(paper.accuracy_heatmap(made(tmp_path, [runs[place] for place in (2, 0, 3, 1)])))
    (image,) = figure.axes[0].images
    assert np.asarray(image.get_array()) == pytest.approx(np.array([run.accuracy for run in runs]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2", "3"]
    low, high = image.get_clim()
    assert low <= 0.65 <= high
    assert "majority class 0.650" in texts(figure)


def test_heatmap_of_many_runs_thins_its_labels(tmp_path: Path) -> None:
    figure = drawn(paper.accuracy_heatmap(made(tmp_path, several(100))))
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (100, 3)
    assert 4 <= len(figure.axes[0].get_yticklabels()) <= 40


def test_heatmap_of_many_cells_stacks_them(tmp_path: Path) -> None:
    runs = cells(8)
    runs[3].accuracy = (0.5, 0.6)  # stopped an epoch before
    figure = drawn(paper.accuracy_heatmap(made(tmp_path, runs)))
    values = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert values.shape == (16, 3)
    assert values[:, 1] == pytest.approx([0.6] * 16)
    assert np.argwhere(np.isnan(values)).tolist() == [[3, 2]]
    assert len(figure.axes[0].get_yticklabels()) == 8


# ------------------------------------------------------------------------------------------------ best and all


@pytest.mark.parametrize("count", [4, 15])
def test_the_best_is_ringed_among_all(tmp_path: Path, count: int) -> None:
    runs = several(count)
    runs[1] = dataclasses.replace(runs[1], metrics={"irl/accuracy": 0.99, "irl/f1": 0.2})
    figure = drawn(paper.best_and_all(made(tmp_path, runs)))
    zero, f1_zero, _, _, calibrated, f1_calibrated = figure.axes
    values = [run.accuracy[-1] for run in runs]
    assert sorted(points(zero, 14)[:, 0]) == pytest.approx(sorted(values))
    assert points(zero, 70)[:, 0] == pytest.approx([max(values)])
    assert points(f1_zero, 70)[:, 0] == pytest.approx([max(values) - 0.1])
    assert points(calibrated, 70)[:, 0] == pytest.approx([0.99])
    assert points(f1_calibrated, 70)[:, 0] == pytest.approx([0.2]), "the ring of F1 is that of the accuracy"
    typical = statistics.typical(values)
    (diamond,) = [line for line in zero.lines if line.get_marker() == "D"]
    assert diamond.get_xdata() == pytest.approx([typical.value])
    told = texts(figure)
    assert f"{typical.value:.3f} [{typical.low:.3f}, {typical.high:.3f}]\nbest {max(values):.3f}" in told
    assert f"best of {count}, chosen on the same texts: no result" in told
    assert "majority class 0.650" in told
    assert f"all called toxic {2 * 0.35 / 1.35:.3f}" in told
    for axes, level in ((zero, 0.65), (f1_zero, 0.7 / 1.35)):
        (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed.get_xdata() == pytest.approx([level, level])
        assert axes.get_xlim()[0] < level < axes.get_xlim()[1]


def test_the_best_of_one_is_no_best(tmp_path: Path) -> None:
    assert "best of" not in texts(drawn(paper.best_and_all(made(tmp_path, [Made()]))))


def test_a_metric_that_is_not_defined_is_named(tmp_path: Path) -> None:
    run = Made(metrics={"irl/f1": None})
    assert "not defined" in texts(drawn(paper.best_and_all(made(tmp_path, [run]))))


# --------------------------------------------------------------------------------------------- training curves


def test_a_shared_expert_is_drawn_once(tmp_path: Path) -> None:
    figure = drawn(paper.training_curves(made(tmp_path, several(3))))
    expert, refinetuned, expert_kl, kl = figure.axes
    segments = [len(axes.collections[0].get_segments()) for axes in (expert, refinetuned, expert_kl, kl)]  # type: ignore[attr-defined]
    assert segments == [1, 3, 1, 3]
    for axes, factor in ((expert, 1), (refinetuned, 2), (expert_kl, 0.1), (kl, 0.2)):
        assert axes.lines[0].get_ydata() == pytest.approx(factor * np.array([1, 2, 3]))
    assert expert_kl.get_ylim() == kl.get_ylim()
    assert expert_kl.get_ylim()[1] >= 0.6, "the higher KL, that of refinetuning, is in view"
    assert "(1 policy)" in texts(figure)
    assert "(3 policies)" in texts(figure)


def test_without_refinetuning_rlhf_alone_is_drawn(tmp_path: Path) -> None:
    figure = drawn(paper.training_curves(made(tmp_path, [Made(toxic={"reference": 20, "expert": 6})])))
    assert len(figure.axes) == 2


# ---------------------------------------------------------------------------------------------------- threshold


def test_threshold_joins_the_accuracies_of_a_reward(tmp_path: Path) -> None:
    runs = several(3)
    figure = drawn(paper.threshold(made(tmp_path, runs)))
    (axes,) = figure.axes
    values = np.array([run.accuracy[-1] for run in runs])
    marks = points(axes, 18).reshape(3, 3, 2)  # rule, reward, (AUROC, accuracy)
    for mark, more in zip(marks, (0, 0.01, 0.05), strict=True):
        assert mark == pytest.approx(np.column_stack([values + 0.1, values + more]))
    (lines,) = [item for item in axes.collections if isinstance(item, LineCollection)]
    assert np.array(lines.get_segments())[:, :, 1] == pytest.approx(np.column_stack([values, values + 0.05]))


# ----------------------------------------------------------------------------------------------------- toxicity


def test_toxicity_table_by_hand(tmp_path: Path) -> None:
    runs = [Made(seed=seed, toxic={"reference": 20, "expert": 0, "refinetuned": 8 + seed}) for seed in range(3)]
    table = toxicity.toxicity_table(made(tmp_path, runs)).set_index("policy")
    assert table["runs"].tolist() == [3, 3, 3]
    assert table["policies"].tolist() == [1, 1, 3]
    assert table["completions"].tolist() == [40, 40, 120]
    assert table["toxic"].tolist() == [20, 0, 27]
    assert table["fraction"].tolist() == pytest.approx([0.5, 0, 9 / 40])
    assert table.loc["reference", ["fraction_low", "fraction_high"]].tolist() == pytest.approx([0.49, 0.51])
    exact = stats.binomtest(0, 10).proportion_ci(method="exact").high
    assert table.loc["expert", ["fraction_low", "fraction_high"]].tolist() == pytest.approx([0, exact])
    over = statistics.mean_t([8 / 40, 9 / 40, 10 / 40])
    assert table.loc["refinetuned", ["fraction_low", "fraction_high"]].tolist() == pytest.approx([over.low, over.high])
    assert table["prompt_share"].tolist() == pytest.approx([5 / 10, 0, (2 + 3 + 3) / 30])
    wilson = stats.binomtest(5, 10).proportion_ci(method="wilson")
    assert table.loc["reference", ["prompt_share_low", "prompt_share_high"]].tolist() == pytest.approx(list(wilson))
    probability = 1 / (1 + np.exp(1.0))  # of a civil completion; of a toxic one the rest
    assert table["mean_probability"][:2].tolist() == pytest.approx([0.5, probability])
    assert "over prompts" in table.loc["reference", "second_fraction_method"]


def test_intervals_cluster_by_prompt(tmp_path: Path) -> None:
    """20 of 40 in whole prompts: 5 of 10 prompts, so the interval is that of ten, not of forty."""
    sample = toxicity.judged(made(tmp_path, [Made()]))[0].policies[0]
    clustered = toxicity.by_prompt(sample, sample.truth < 0)
    shuffled = dataclasses.replace(sample, prompts=np.arange(40))
    alone = toxicity.by_prompt(shuffled, sample.truth < 0)
    assert clustered.value == alone.value == 0.5
    assert 1.6 < (clustered.high - clustered.low) / (alone.high - alone.low) < 2.4


def test_a_policy_that_was_sampled_again_is_one_policy(tmp_path: Path) -> None:
    runs = [Made(seed=seed, toxic={"reference": 20 + seed, "expert": 6}) for seed in range(2)]
    table = toxicity.toxicity_table(made(tmp_path, runs)).set_index("policy")
    assert table.loc["reference", ["policies", "completions", "toxic"]].tolist() == [1, 80, 41]
    assert table.loc["reference", "fraction"] == pytest.approx(41 / 80)
    assert table.loc["expert", "completions"] == 40
    assert table["per_prompt"].tolist() == [4, 4]


def test_other_ground_truths_have_no_probability(tmp_path: Path) -> None:
    table = toxicity.toxicity_table(made(tmp_path, [Made(config={"reward": {"name": "length"}})]))
    assert table["mean_probability"].isna().all()
    assert table["prompt_share"].notna().all()


def test_toxicity_draws_shared_policies_once_and_all_refinetuned(tmp_path: Path) -> None:
    runs = [Made(cell=cell, seed=seed) for cell in ("irl/loss=a", "irl/loss=b") for seed in range(3)]
    for number, run in enumerate(runs):
        run.toxic = {"reference": 20, "expert": 6, "refinetuned": 4 + number}
    figure = drawn(paper.FIGURES["toxicity"](made(tmp_path, runs)))
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["reference", "expert", "refinetuned\na", "refinetuned\nb"]
    assert points(axes, 30)[:, 0] == pytest.approx([0.5, 6 / 40])
    assert sorted(points(axes, 14)[:, 0]) == pytest.approx([count / 40 for count in range(4, 10)])
    assert "20 of 40" in texts(figure)
    assert "3 policies, 4 to 6 of 40" in texts(figure)


def test_without_completions_metrics_are_drawn_and_the_rest_is_named(tmp_path: Path) -> None:
    found = made(tmp_path, [Made(files=())])
    assert texts(drawn(toxicity.toxicity(found))).count("no completions.parquet") == 6
    table = toxicity.toxicity_table(found)
    assert table["fraction"].tolist() == pytest.approx([0.5, 0.15, 0.2])
    assert table["prompt_share"].isna().all()


# ------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", paper.FIGURES)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_any_number_of_runs(name: str, count: int, tmp_path: Path) -> None:
    drawn(paper.FIGURES[name](made(tmp_path, several(count))))


@pytest.mark.parametrize("name", paper.FIGURES)
def test_one_epoch_and_rows_written_twice(name: str, tmp_path: Path) -> None:
    found = made(tmp_path, [Made(accuracy=(0.7,))])
    file = found.folder / "0" / "metrics.jsonl"
    file.write_text(file.read_text() * 2)
    drawn(paper.FIGURES[name](found))


@pytest.mark.parametrize("name", paper.FIGURES)
def test_twenty_cells_with_long_names_overlap_nothing(name: str, tmp_path: Path) -> None:
    figure = drawn(paper.FIGURES[name](made(tmp_path, cells(20))))
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        boxes.sort(key=lambda box: box.y0)
        for below, above in itertools.pairwise(boxes):
            assert below.y1 <= above.y0 + 1


@pytest.mark.parametrize("name", paper.FIGURES)
def test_captions_are_sentences(name: str) -> None:
    caption = paper.FIGURES[name].__doc__ or ""
    assert caption.strip().endswith(".")
    assert len(caption) > 100


UNTOLD = {
    "over_epochs": (Made(irl=False), "No run has a learned reward"),
    "accuracy_heatmap": (Made(files=()), "No run has a curve of its reward"),
    "best_and_all": (Made(irl=False), "No run has a learned reward"),
    "training_curves": (Made(files=()), "No run has trained a policy by RL"),
    "toxicity": (Made(metrics=NO_POLICIES), "No run has judged a policy"),
    "threshold": (Made(irl=False), "No run has a learned reward"),
}


@pytest.mark.parametrize("name", paper.FIGURES)
def test_what_cannot_be_told_says_why(name: str, tmp_path: Path) -> None:
    run, reason = UNTOLD[name]
    with pytest.raises(NotComputed, match=reason):
        paper.FIGURES[name](made(tmp_path, [run]))


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
    for module in (cell_names, panels, paper, toxicity):
        assert doctest.testmod(module).failed == 0

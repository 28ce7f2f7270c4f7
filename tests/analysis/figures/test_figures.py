"""Our own figures: what is drawn against numbers computed by hand, from small study folders on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import stats

from irl_exp.analysis import cell_names, statistics
from irl_exp.analysis import study as reader
from irl_exp.analysis.figures import distances, drawing, panels, policies, rewards, spread, sweeps
from irl_exp.analysis.study import NotComputed, Study
from irl_exp.measures import reward_comparison as compare

PROMPTS, EACH = 6, 3
FIGURES = {name: draw for room in (rewards, distances, sweeps, policies) for name, draw in room.FIGURES.items()}
Job = tuple[str, Mapping[str, Any], Mapping[str, float]]


def table(seed: int, *, refinetuned: bool = False, constant: bool = False) -> pd.DataFrame:
    """Completions with one R* for all seeds and a learned reward of its own noise."""
    policies = ("reference", "expert", *(["refinetuned"] if refinetuned else []))
    world = np.random.default_rng(1007)
    rows = len(policies) * PROMPTS * EACH
    truth = world.normal(size=rows)
    return pd.DataFrame(
        {
            "policy": np.repeat(policies, PROMPTS * EACH),
            "prompt_id": np.tile(np.repeat(range(PROMPTS), EACH), len(policies)),
            "truth": truth,
            "implicit": 2 * truth + world.normal(size=rows),
            "learned": 0.0 if constant else truth + 0.3 * np.random.default_rng(seed).normal(size=rows),
        }
    )


def write(folder: Path, jobs: Sequence[Job], completions: Mapping[int, pd.DataFrame] | None = None) -> Study:
    """The folder that a launch leaves, read: a job is (name, flat config, metrics)."""
    plan = [{"number": number, "name": name, "folder": str(number)} for number, (name, _, _) in enumerate(jobs)]
    for number, (name, config, metrics) in enumerate(jobs):
        place = folder / str(number)
        (place / ".hydra").mkdir(parents=True)
        seeds = dict(part.split("=") for part in name.split(",") if "seed=" in part)
        told = {"name": "small", "irl.seed": int(seeds.get("irl.seed", 0)), "artifacts.judge": "same", **config}
        told["job"] = {"number": number, "name": name}
        (place / "config.json").write_text(json.dumps(told))
        (place / "metrics.json").write_text(json.dumps(dict(metrics)))
        if completions is not None:
            completions.get(number, table(number)).to_parquet(place / "completions.parquet")
    (folder / "plan.json").write_text(json.dumps({"jobs": plan}))
    return reader.read(folder)


def judged(auroc: float, epic: float = 0.3, **more: float) -> dict[str, float]:
    return {
        **{"irl/auroc": auroc, "irl/epic": epic, "implicit/auroc": 0.95, "implicit/epic": 0.26},
        **{"irl/scale": 2.0, "irl/offset": 1.0},
        **more,
    }


def full(number: int) -> dict[str, float]:
    """All metrics that any figure reads."""
    random = np.random.default_rng(number)
    found = judged(0.9 + 0.01 * random.normal(), 0.3 + 0.01 * random.normal())
    for coverage in distances.COVERAGES:
        found |= {f"{coverage}/{side}/epic": random.uniform(0.2, 0.5) for side in distances.SIDES}
    found |= {"reference/kl": 0.0, "reference/reward_mean": -0.1, "expert/kl": 2.0, "expert/reward_mean": 2.8}
    found |= {"refinetuned/kl": random.uniform(2, 3), "refinetuned/reward_mean": random.uniform(2, 3)}
    found |= {"refinetuned/toxic_fraction": random.uniform(0.02, 0.05)}
    found |= {"overoptimisation/reward_at_matched_kl": random.uniform(2, 2.5)}
    found |= {"overoptimisation/expert_reward_at_matched_kl": 2.75}
    for reward in sweeps.REWARDS:
        share = random.uniform(0.3, 0.6)
        found |= {f"tradeoff/{reward}/toxicity": share, f"tradeoff/{reward}/sentiment": 1 - share}
        found |= {f"tradeoff/{reward}/toxicity_low": share - 0.1}
    found |= {f"uncertainty/{name}_auroc": random.uniform(0.4, 0.8) for name in rewards.SIGNALS}
    return found | {"uncertainty/n_errors": float(random.integers(10, 20))}


def launch(folder: Path, cells: int, seeds: int, *, completions: bool = True) -> Study:
    """Cells with long names that differ in a number and a choice, everything measured."""
    jobs = [
        (
            f"irl.seed={seed},irl.completions={cell // 2 + 1},irl.backbone.of_a_long_name={('lora', 'all')[cell % 2]}",
            {"irl.completions": cell // 2 + 1},
            full(cell * seeds + seed),
        )
        for cell in range(cells)
        for seed in range(seeds)
    ]
    return write(folder, jobs, {} if completions else None)


def drawn(figure: Figure) -> Figure:
    """All of it laid out, as when saved; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    return figure


def make(name: str, study: Study) -> Figure:
    with drawing.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        return drawn(FIGURES[name](study))


def clouds(axes: Axes) -> list[Any]:
    """Coordinates (n, 2) of each scatter."""
    return [one.get_offsets() for one in axes.collections if isinstance(one, PathCollection) and len(one.get_offsets())]


def points(axes: Axes) -> Any:
    return np.concatenate(clouds(axes))


def marks(axes: Axes) -> list[tuple[float, float]]:
    """Typical values: the diamonds."""
    return [(float(x), float(y)) for line in axes.lines if line.get_marker() == "D" for x, y in line.get_xydata()]


def intervals(axes: Axes) -> list[tuple[float, float]]:
    """The lines at the diamonds."""
    return [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 1.6]


def words(figure: Figure) -> str:
    """All text of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")))


# ---------------------------------------------------------------------------------------------------- distribution


def test_distribution_shows_every_run_and_the_number_of_the_tables(tmp_path: Path) -> None:
    """50 runs within 0.001: the panel magnifies them, the strip above has the whole scale."""
    aurocs = 0.951 + np.random.default_rng(1).uniform(0, 0.001, 50)
    study = write(tmp_path, [(f"irl.seed={n}", {}, judged(value, 0.259)) for n, value in enumerate(aurocs)])
    figure = make("distribution", study)
    whole, zoom, *_ = figure.axes
    np.testing.assert_allclose(points(zoom)[:, 0], aurocs)
    found = statistics.typical(list(aurocs))
    assert marks(zoom) == [(found.value, pytest.approx(0.2))]
    assert intervals(zoom) == [(found.low, found.high)]
    low, high = zoom.get_xlim()
    assert low < 0.95 < aurocs.min()  # the implicit reward is in the picture
    assert high - low < 0.004
    assert np.ptp(points(zoom)[:, 1]) > 0.2  # piled up, not one upon the other
    assert whole.get_xlim() == (0, 1)
    text = words(figure)
    assert f"{found.value:.5f} [{found.low:.5f}, {found.high:.5f}]\nn = 50" in text
    for expected in ("chance 0.5", "implicit 0.950", "unrelated 0.707", "50 runs"):
        assert expected in text


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


def test_placebo_is_grey(tmp_path: Path) -> None:
    jobs = [
        (f"irl={name},irl.seed={seed}", {"irl.name": name}, judged(auroc + seed / 100))
        for name, auroc in (("margin", 0.9), ("placebo", 0.5))
        for seed in range(3)
    ]
    zoom = make("distribution", write(tmp_path, jobs)).axes[1]
    colours = [tuple(one.get_facecolor()[0][:3]) for one in zoom.collections if isinstance(one, PathCollection)]
    assert colours == [to_rgb(drawing.ORANGE), to_rgb(drawing.GREY)]
    assert [tick.get_text() for tick in zoom.get_yticklabels()] == ["margin", "placebo"]
    assert zoom.get_xlim()[0] < 0.5 < 0.95 < zoom.get_xlim()[1]  # chance and ceiling


def test_a_single_run_has_no_interval(tmp_path: Path) -> None:
    figure = make("distribution", write(tmp_path, [("irl.seed=0", {}, judged(0.93))]))
    assert intervals(figure.axes[1]) == []
    assert "0.930\nn = 1" in words(figure)


def test_a_constant_reward_has_an_auroc_and_no_distance(tmp_path: Path) -> None:
    constant = {key: value for key, value in judged(0.5).items() if key != "irl/epic"}
    jobs = [("irl=majority", {}, constant), ("irl=margin", {}, judged(0.9))]
    figure = make("distribution", write(tmp_path, jobs))
    np.testing.assert_allclose(points(figure.axes[1])[:, 0], [0.5, 0.9])
    np.testing.assert_allclose(points(figure.axes[3])[:, 0], [0.3])
    assert words(figure).count("not defined:\nconstant reward") == 1


# ------------------------------------------------------------------------------------------------- distance matrix


def test_distances_are_those_of_reward_comparison(tmp_path: Path) -> None:
    """Ordered by cell, then by seed, whatever the launch did; a constant reward has no distance."""
    jobs = [
        (f"irl={name},irl.seed={seed}", {"irl.name": name}, judged(0.9))
        for seed in (2, 0)
        for name in ("margin", "bayesian")
    ]
    jobs.append(("irl=majority,irl.seed=0", {"irl.name": "majority"}, judged(0.5)))
    study = write(tmp_path, jobs, {4: table(4, constant=True)})
    names, matrix = distances.distances(study)
    assert names == ["R*", "implicit", "2", "0", "3", "1"]
    rewards = [table(0)["truth"], table(0)["implicit"], *(table(int(name))["learned"] for name in names[2:])]
    groups = table(0)["prompt_id"].to_numpy()
    for i, one in enumerate(rewards):
        for j, other in enumerate(rewards):
            assert matrix[i, j] == pytest.approx(compare.epic(one.to_numpy(), other.to_numpy(), groups), abs=1e-12)


def test_columns_are_read_alone(tmp_path: Path) -> None:
    """What is not asked for is not read, and what the file does not have is not there."""
    study = launch(tmp_path, 1, 1)
    found = study.completions(study.runs[0], ["truth", "policy", "second"])
    assert found is not None
    pd.testing.assert_frame_equal(found, table(0)[["truth", "policy"]], check_like=True)
    whole = study.completions(study.runs[0])
    assert whole is not None
    pd.testing.assert_frame_equal(whole, table(0))


def test_distance_matrix_is_drawn_in_that_order(tmp_path: Path) -> None:
    study = launch(tmp_path, 2, 3)
    names, matrix = distances.distances(study)
    figure = make("distance_matrix", study)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.images[0].get_array(), matrix)
    assert [tick.get_text() for tick in left.get_yticklabels()][:2] == ["R*", "implicit"]
    lines = {str(line.get_label()).split(":")[0]: line for line in right.lines}
    assert len(names) == 8
    within = sorted([*matrix[2:5, 2:5][np.triu_indices(3, 1)], *matrix[5:, 5:][np.triu_indices(3, 1)]])
    np.testing.assert_allclose(lines["run to run, one cell"].get_xdata()[1:], within)
    np.testing.assert_allclose(lines["run to run, one cell"].get_ydata(), np.linspace(0, 1, 7))
    np.testing.assert_allclose(lines["run to run, two cells"].get_xdata()[1:], np.sort(matrix[2:5, 5:].ravel()))
    np.testing.assert_allclose(lines["run to R*"].get_xdata()[1:], np.sort(matrix[0, 2:]))
    assert f"run to R*: median {np.median(matrix[0, 2:]):.3f}, n = 6" in words(figure)


def test_r_star_is_seen_beside_many_runs(tmp_path: Path) -> None:
    """130 runs: R* and implicit have three rows each."""
    jobs: list[Job] = [(f"irl.seed={seed}", {}, judged(0.9)) for seed in range(130)]
    study = write(tmp_path, jobs, {})
    _, matrix = distances.distances(study)
    image = make("distance_matrix", study).axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (136, 136)
    np.testing.assert_array_equal(image[:3, 6:], np.tile(matrix[0, 2:], (3, 1)))


# -------------------------------------------------------------------------------------------------------- triangle


def test_triangle_has_the_sides_of_every_run(tmp_path: Path) -> None:
    study = launch(tmp_path, 2, 3, completions=False)
    parts = make("triangle", study).axes
    for axes, side in zip(parts, distances.SIDES, strict=True):
        keys = [(cell, f"{name}/{side}/epic") for cell in study.cells for name in distances.COVERAGES]
        expected = [study.values(key, cell) for cell, key in keys]
        np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(axes)], expected)
        assert [x for x, _ in marks(axes)] == pytest.approx([statistics.typical(values).value for values in expected])
        np.testing.assert_allclose(intervals(axes), [(e.low, e.high) for e in map(statistics.typical, expected)])
    assert parts[0].get_xlim()[0] == 0


# ----------------------------------------------------------------------------------------------- against parameter


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
    (ceiling,) = [line for line in auroc.lines if line.get_linestyle() == "--"]
    assert set(ceiling.get_ydata()) == {0.95}
    assert "implicit 0.950" in words(figure).split("\n")
    assert "↓ implicit 0.260" in words(figure)  # all EPIC distances are 0.3: the panel ends above it


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
    assert toxic.get_title(loc="left") == "toxic fraction, refinetuned"
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


# ------------------------------------------------------------------------------------------- learned against truth


def test_the_median_run_is_shown_never_the_best(tmp_path: Path) -> None:
    aurocs = (0.99, 0.8, 0.9, 0.91)
    jobs: list[Job] = [(f"irl.seed={n}", {}, judged(value)) for n, value in enumerate(aurocs)]
    study = write(tmp_path, jobs, {2: table(2, refinetuned=True)})
    assert rewards.median_run(study).number == 2
    figure = make("learned_against_truth", study)
    left, right = figure.axes
    assert "Run 2, the median of 4 runs:\nAUROC 0.900, n = 36" in words(figure)
    shown = table(2, refinetuned=True)
    order = np.lexsort(points(left).T[::-1])
    expected = shown[["truth", "learned"]].to_numpy()
    np.testing.assert_allclose(points(left)[order], expected[np.lexsort(expected.T[::-1])])
    assert panels.POLICIES == {"reference": drawing.GREY, "expert": drawing.BLUE, "refinetuned": drawing.ORANGE}
    colour = {tuple(at): tuple(face[:3]) for at, face in zip(points(left), faces(left), strict=True)}
    for row in shown.itertuples():
        assert colour[row.truth, row.learned] == to_rgb(panels.POLICIES[str(row.policy)])
    # sd over the four runs of the standardised rewards, n - 1
    scores = np.array([table(n, refinetuned=n == 2)["learned"][:36] for n in range(4)])
    scores = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(points(right)[:, 1]), np.sort(scores.std(axis=0, ddof=1)))
    assert f"median sd {np.median(scores.std(axis=0, ddof=1)):.3f}" in words(figure)


def faces(axes: Axes) -> Any:
    (cloud,) = [one for one in axes.collections if isinstance(one, PathCollection) and len(one.get_offsets())]
    return cloud.get_facecolor()


def test_of_two_runs_there_is_no_spread(tmp_path: Path) -> None:
    jobs: list[Job] = [(f"irl.seed={n}", {}, judged(0.9)) for n in range(2)]
    assert len(make("learned_against_truth", write(tmp_path, jobs, {})).axes) == 1


# ------------------------------------------------------------------------------------------- frontier and paradox


def test_frontier_shows_all_policies(tmp_path: Path) -> None:
    study = launch(tmp_path, 3, 2, completions=False)
    figure = make("frontier", study)
    whole, near, below = figure.axes
    runs = [(run.metrics["refinetuned/kl"], run.metrics["refinetuned/reward_mean"]) for run in study.runs]
    np.testing.assert_allclose(points(whole), [*runs, (0.0, -0.1), (2.0, 2.8)])
    np.testing.assert_allclose(points(near), [*runs, (2.0, 2.8)])
    matched = [study.values("overoptimisation/reward_at_matched_kl", cell) for cell in study.cells]
    np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(below)], matched)
    assert [x for x, _ in marks(below)] == pytest.approx([np.mean(values) for values in matched])
    assert below.collections[1].get_segments()[0][0][0] == 2.75  # the expert at the same KL


def test_paradox_gives_the_correlations(tmp_path: Path) -> None:
    study = launch(tmp_path, 5, 3, completions=False)
    parts = make("paradox", study).axes
    frame = study.metrics
    for axes, (policy, reward) in zip(
        parts, [(y, x) for y in policies.POLICY_SIDE for x in policies.REWARD_SIDE], strict=True
    ):
        np.testing.assert_allclose(points(axes), frame[[reward, policy]].to_numpy())
        over_runs = stats.spearmanr(frame[reward], frame[policy]).statistic
        means = frame.groupby("cell", sort=False)[[reward, policy]].mean()
        over_cells = stats.spearmanr(means[reward], means[policy]).statistic
        first, second = axes.get_title(loc="left").split("\n")
        assert first.startswith(f"Spearman over 15 runs: {over_runs:.2f} [")
        assert second.startswith(f"Spearman over 5 means of cells: {over_cells:.2f}")
        crosses = np.array([line.get_xydata()[0] for line in axes.lines if line.get_marker() == "x"])
        np.testing.assert_allclose(crosses, means.to_numpy())


def test_paradox_says_where_there_is_no_correlation(tmp_path: Path) -> None:
    jobs: list[Job] = [(f"irl.seed={n}", {}, {**full(n), "irl/auroc": 0.9}) for n in range(4)]
    assert "over 4 runs: no correlation, as all values are equal" in words(make("paradox", write(tmp_path, jobs)))


# ---------------------------------------------------------------------------------------- trade-off and uncertainty


def test_tradeoff_has_a_panel_a_part(tmp_path: Path) -> None:
    study = launch(tmp_path, 1, 4, completions=False)
    figure = make("tradeoff", study)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["toxicity", "sentiment"]
    for axes, part in zip(figure.axes, ("toxicity", "sentiment"), strict=True):
        expected = [study.values(f"tradeoff/{reward}/{part}") for reward in ("truth", "implicit", "learned")]
        np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(axes)], expected)
        assert [x for x, _ in marks(axes)] == pytest.approx([np.mean(values) for values in expected])


def test_uncertainty_stands_beside_what_needs_no_reward(tmp_path: Path) -> None:
    study = launch(tmp_path, 2, 2, completions=False)
    figure = make("uncertainty", study)
    for axes, name in zip(figure.axes, rewards.SIGNALS, strict=True):
        expected = [study.values(f"uncertainty/{name}_auroc", cell) for cell in study.cells]
        np.testing.assert_allclose([cloud[:, 0] for cloud in clouds(axes)], expected)
        assert [0.5, 0.5] in [list(line.get_xdata()) for line in axes.lines]
    errors = study.values("uncertainty/n_errors")
    assert f"{min(errors):.0f} to {max(errors):.0f} errors a run" in words(figure)


# ------------------------------------------------------------------------------------------- differences and sources


def test_differences_by_seed_and_sources_have_the_short_names(tmp_path: Path) -> None:
    study = launch(tmp_path, 3, 4, completions=False)
    first, *others = study.cells
    by_hand = {cell: np.subtract(study.values("irl/auroc", cell), study.values("irl/auroc", first)) for cell in others}
    rows = [
        {
            "metric": "irl/auroc",
            "first": first,
            "second": cell,
            "n": 4,
            "difference": -found.mean(),
            "low": 0,
            "high": 1,
        }
        for cell, found in by_hand.items()
    ]
    names = list(cell_names.labels(study).values())
    (axes,) = drawn(spread.paired_differences(study, pd.DataFrame(rows))).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names[1:]
    assert [x for x, _ in marks(axes)] == pytest.approx([found.mean() for found in by_hand.values()])
    seeds = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(seeds, list(by_hand.values()))
    sources = [
        {"cell": cell, "metric": "irl/auroc", "source": source, "variance": 4.0, "low": 1.0, "high": 9.0}
        for cell in study.cells
        for source in ("seed", "irl.seed")
    ]
    (axes,) = drawn(spread.variance_components(study, pd.DataFrame(sources))).axes
    expected = [f"{name}:\n{source}" for name in names for source in ("seed", "irl.seed")]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == expected
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == [2.0] * 6


# ------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "distribution": "no run has a learned reward",
        "distance_matrix": "completions.parquet",
        "triangle": "they need a learned reward",
        "against_parameter": "what varies: seeds alone",
        "learned_against_truth": "completions.parquet",
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


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"distance_matrix", "paradox", "against_parameter"}))
def test_one_run_is_drawn(tmp_path: Path, name: str) -> None:
    assert make(name, launch(tmp_path, 1, 1)).axes


def boxes(figure: Figure) -> Iterator[tuple[str, Any]]:
    """Names of cells and their extents in pixels."""
    for axes in figure.axes:
        for tick in axes.get_yticklabels():
            if tick.get_text() and tick.get_visible():
                yield tick.get_text(), tick.get_window_extent()


@pytest.mark.parametrize("name", FIGURES)
def test_twenty_cells_with_long_names(tmp_path: Path, name: str) -> None:
    """Nothing warns, names of cells do not run into each other, all of them lie on the page."""
    study = launch(tmp_path, 20, 2)
    figure = make(name, study)
    found = list(boxes(figure))
    for number, (_, one) in enumerate(found):
        assert one.x0 >= -1
        assert not any(one.padded(-1).overlaps(other.padded(-1)) for _, other in found[number + 1 :])
    assert min(text.get_fontsize() for text in figure.findobj(lambda item: hasattr(item, "get_fontsize"))) >= 8


def test_captions_are_sentences() -> None:
    for name, function in FIGURES.items():
        assert function.__doc__, name
        assert function.__doc__.strip().endswith(".")
        assert len(function.__doc__) > 200

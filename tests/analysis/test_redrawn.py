"""How far apart rewards are when the head, the demonstrations or the expert is drawn anew: a world known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from small_figures import drawn, marks, words, write

from irl_exp.analysis import redrawn, report, summary
from irl_exp.analysis import study as reader
from irl_exp.analysis.figures import drawing
from irl_exp.analysis.figures import redrawn as figures
from irl_exp.analysis.study import NotComputed, Study

PROMPTS, EACH = 40, 5
ANGLES = {"": (0.0, 0.01, -0.01), "demonstrations": (0.1, 0.2), "expert": (0.5, -0.5), "policy": (0.0, 0.0)}
"""Of the heads in the plane of two features that do not correlate; R* is the first of them."""
SEEDS = {"demonstrations": "demonstrations.seed", "expert": "rlhf.seed", "policy": "refinetune.seed"}


def world(folder: Path) -> Path:
    """A store with one set of demonstrations, its features and R*, and a head for each angle."""
    random = np.random.default_rng(0)
    rows = PROMPTS * EACH
    places = pd.DataFrame({"prompt_id": np.repeat(np.arange(PROMPTS), EACH), "part": "test"})
    frame = pd.concat([places.assign(policy=policy) for policy in ("expert", "baseline")], ignore_index=True)
    fit = frame.assign(part="fit")
    frame = pd.concat([frame, fit], ignore_index=True)
    features = random.normal(size=(4 * rows, 2)).astype(np.float32)
    for stage in ("demonstrations", "features", "judge"):
        (folder / stage / "own").mkdir(parents=True)
    frame.to_parquet(folder / "demonstrations" / "own" / "demonstrations.parquet")
    save_file({"features": features}, folder / "features" / "own" / "features.safetensors")
    pd.DataFrame({"reward": features[:, 0].astype(float)}).to_parquet(folder / "judge" / "own" / "scores.parquet")
    for angle in {angle for angles in ANGLES.values() for angle in angles}:
        place = folder / "irl" / f"head{angle}"
        place.mkdir(parents=True)
        save_file({"weights": 3 * np.array([[np.cos(angle), np.sin(angle)]])}, place / "head.safetensors")
    return folder


def launch(tmp_path: Path, **more: Any) -> Study:
    """The study's own runs, and two runs of each control."""
    store = world(tmp_path / "store")
    jobs = []
    for control, angles in ANGLES.items():
        for seed, angle in enumerate(angles):
            name = f"control={control},{SEEDS[control]}={seed + 1}" if control else f"irl.seed={seed}"
            own = "own" if control in ("", "policy") else f"{control}{seed}"
            config = {
                **{"store.dir": str(store), "control": control or None, "irl.backbone.name": "frozen"},
                **{"artifacts.demonstrations": own, "artifacts.features": own, "artifacts.judge": own},
                **{"artifacts.sft": "reference", "artifacts.irl": f"head{angle}"},
                **more,
            }
            jobs.append((name, config, {}))
    return write(tmp_path / "study", jobs)


def test_controls_are_in_no_cell(tmp_path: Path) -> None:
    study = launch(tmp_path)
    assert len(study.runs) == study.n_jobs == 3
    assert list(study.cells) == ["default"]
    assert [run.control for run in study.controls] == ["demonstrations"] * 2 + ["expert"] * 2 + ["policy"] * 2
    assert study.shared == ()
    assert not [note for note in study.notes if "differ in" in note]


def test_a_folder_of_a_control_alone_is_read_as_a_run(tmp_path: Path) -> None:
    study = launch(tmp_path)
    alone = reader.read(study.controls[0].folder)
    assert (len(alone.runs), len(alone.controls)) == (1, 0)


def test_distances_are_those_of_the_angles(tmp_path: Path) -> None:
    """Of two rewards at an angle a within uncorrelated features the correlation is cos a, and EPIC sin(|a| / 2)."""
    found = {draw.name: draw for draw in redrawn.draws(launch(tmp_path))}
    assert list(found) == list(redrawn.DRAWN)
    for name, angles in (
        ("head", ANGLES[""]),
        *((name, (0.0, *ANGLES[name])) for name in ("demonstrations", "expert")),
    ):
        by_hand = np.abs(np.sin(np.subtract.outer(angles, angles) / 2))
        assert found[name].between == pytest.approx(by_hand, abs=0.03)
        assert found[name].truth == pytest.approx(np.abs(np.sin(np.array(angles) / 2)), abs=0.03)
    assert found["head"].auroc[0] == 1.0
    assert found["expert"].auroc[1:].max() < found["head"].auroc.min()


def test_the_table_and_the_text_tell_the_three_apart(tmp_path: Path) -> None:
    found = summary.summarise(launch(tmp_path))
    table = found.tables["redrawn"].set_index("drawn")
    assert table.index.tolist() == list(redrawn.DRAWN.values())
    assert table["n"].tolist() == [3, 3, 3]
    assert table["between"].is_monotonic_increasing
    told = redrawn.text(found.data["redrawn"])
    assert f"{table.loc['a new expert', 'between']:.3f} [" in told
    assert "for a new expert (3 rewards, AUROC " in told


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"irl.backbone.name": "full"}, "linear in features"),
        ({"irl.features.ngram.longest": 2}, "n-grams"),
        ({"artifacts.sft": None, "store.dir": "nowhere"}, "not in the store"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotComputed, match=reason):
        redrawn.table(launch(tmp_path, **more))


def test_a_study_without_controls_says_so(tmp_path: Path) -> None:
    study = write(tmp_path, [("irl.seed=0", {}, {}), ("irl.seed=1", {}, {})])
    with pytest.raises(NotComputed, match="no control draws"):
        redrawn.table(study)


def test_the_figure_has_a_row_a_draw(tmp_path: Path) -> None:
    study = launch(tmp_path)
    with drawing.style():
        figure = drawn(figures.distances(study))
    between, truth, auroc = figure.axes
    draws = redrawn.draws(study)
    assert [x for x, _ in marks(between)] == pytest.approx([draw.pairs.mean() for draw in draws])
    assert [x for x, _ in marks(truth)] == pytest.approx([draw.truth.mean() for draw in draws])
    assert [x for x, _ in marks(auroc)] == pytest.approx([draw.auroc.mean() for draw in draws])
    assert "a new expert\n(3 rewards)" in words(figure)


def test_the_page_has_them_where_the_spread_is_explained(tmp_path: Path) -> None:
    written = report.write(launch(tmp_path))
    text = written.page.read_text(encoding="utf-8")
    section = text[text.index('<h2 id="spread">') :]
    assert "Drawn anew. Two recovered rewards lie apart" in section
    assert 'id="at-redrawn"' in section
    assert "redrawn" in written.images

"""Rewards from elsewhere: exact small files, the numbers by other means, and every refusal."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from irl_exp.analysis import __main__ as command
from irl_exp.analysis import rewards as room
from irl_exp.analysis.statistics import Floats

ROOT = Path(__file__).parents[2]


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def world(runs: int = 12, texts: int = 200, seed: int = 0) -> tuple[Floats, Floats]:
    """Rewards that order alike up to noise, each with a constant and a scale of its own."""
    random = np.random.default_rng(seed)
    truth = random.normal(0.2, 1, texts)
    noise = random.normal(size=(runs, texts)) * random.uniform(0.2, 3, (runs, 1))
    return truth, (truth + noise) * 5 + random.normal(0, 4, (runs, 1))


@dataclass(frozen=True)
class Done:
    truth: Floats
    learned: Floats
    summary: dict[str, Any]
    folder: Path
    shown: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The command, run once."""
    truth, learned = world()
    folder = tmp_path_factory.mktemp("rewards")
    file = save(folder / "mine.npz", true_reward=truth, learned_rewards=learned, repeat=np.arange(100, 112))
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert command.main(["rewards", str(file), "--out", str(folder / "out")]) == 0
    summary = json.loads((folder / "out/summary.json").read_text())
    return Done(truth, learned, summary, folder / "out", shown.getvalue())


def test_numbers_by_other_means(done: Done) -> None:
    truth, learned, summary = done.truth, done.learned, done.summary
    civil = truth >= 0
    expected = {
        "accuracy_at_zero": [metrics.accuracy_score(civil, run >= 0) for run in learned],
        "auroc": [metrics.roc_auc_score(civil, run) for run in learned],
        "f1_at_zero": [metrics.f1_score(~civil, run < 0) for run in learned],
        "pearson": [np.corrcoef(truth, run)[0, 1] for run in learned],
        "spearman": [stats.spearmanr(truth, run).statistic for run in learned],
    }
    for name, values in expected.items():
        found = [summary[name][key] for key in ("mean", "sd", "min", "max")]
        assert found == pytest.approx([np.mean(values), np.std(values, ddof=1), min(values), max(values)]), name
    pairs = list(itertools.combinations(learned, 2))
    assert summary["pairwise_spearman_mean"] == pytest.approx(np.mean([stats.spearmanr(*pair)[0] for pair in pairs]))
    same = [np.mean((one >= 0) == (other >= 0)) for one, other in pairs]
    assert summary["pairwise_same_label_mean"] == pytest.approx(np.mean(same))
    assert (summary["n_runs"], summary["n_texts"]) == (12, 200)
    assert summary["majority_accuracy"] == max(civil.mean(), 1 - civil.mean())
    assert summary["threshold"]["cost_mean"]["value"] == pytest.approx(
        summary["accuracy_calibrated"]["mean"] - summary["accuracy_at_zero"]["mean"]
    )


def test_files_hold_every_run_and_the_same_numbers(done: Done) -> None:
    summary, folder = done.summary, done.folder
    with (folder / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [row["run"] for row in runs] == [str(number) for number in range(100, 112)]
    for name in room.METRICS:
        assert np.mean([float(row[name]) for row in runs]) == pytest.approx(summary[name]["mean"])
    for name in ("runs", "threshold", "agreement"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        content = (folder / f"{name}.pdf").read_bytes()
        assert b"/Type /Font" in content
        assert b"/Subtype /Type3" not in content  # outlines, which no editor reads as text


def test_the_terminal_shows_the_numbers_of_the_summary(done: Done) -> None:
    for name, text in room.METRICS.items():
        (line,) = [line for line in done.shown.splitlines() if line.strip().startswith(text)]
        cells = line.replace(text, "").split()  # mean, typical, [low, high], sd, min, max
        expected = [f"{done.summary[name][key]:.3f}" for key in ("mean", "sd", "min", "max")]
        assert [cells[0], *cells[-3:]] == expected
        assert cells[1] == f"{done.summary[name]['typical']['value']:.3f}"
    assert "12 runs on 200 texts" in done.shown
    assert str(done.folder) in done.shown


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    truth, learned = world(runs=11, texts=40)
    read = room.Rewards(truth, learned, tuple("abcdefghijk"))
    analyses = [room.analyse(read) for _ in range(2)]
    for number, analysis in enumerate(analyses):
        room.write(analysis, tmp_path / str(number))
    for path in (tmp_path / "0").iterdir():
        assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes(), path.name


def test_thresholds_alone_are_all_of_the_spread() -> None:
    """Twelve copies of one order, moved: calibrated they are one."""
    truth, learned = world(runs=1)
    moved = learned + np.linspace(-8, 8, 12)[:, None]
    summary = room.analyse(room.Rewards(truth, moved, tuple("abcdefghijkl"))).summary
    assert summary["threshold"]["share_of_variance"]["value"] == pytest.approx(1)
    assert summary["accuracy_calibrated"]["sd"] == pytest.approx(0, abs=1e-12)
    assert summary["accuracy_at_zero"]["sd"] > 0.05
    assert summary["pairwise_spearman_mean"] == pytest.approx(1)


def test_orders_alone_leave_the_threshold_nothing() -> None:
    """The best threshold is 0 for every run: values near 0 do not occur, errors are flips of the sign."""
    random = np.random.default_rng(0)
    truth = np.where(np.arange(400) % 2, 1.0, -1.0)
    flips = random.random((12, 400)) < np.linspace(0.02, 0.4, 12)[:, None]
    summary = room.analyse(room.Rewards(truth, np.where(flips, -truth, truth), tuple("abcdefghijkl"))).summary
    assert summary["threshold"]["share_of_variance"]["value"] == pytest.approx(0, abs=1e-12)
    assert summary["threshold"]["cost_mean"]["value"] == 0


def test_calibration_never_sees_the_text_it_judges() -> None:
    """With labels that the scores know nothing of it is at chance; a threshold set on all texts is not."""
    random, found = np.random.default_rng(3), []
    for _ in range(400):
        scores, civil = random.normal(size=20), np.arange(20) % 2 == 0
        found.append(room.calibrated_accuracy(scores, civil, room.split_halves(20, random)))
    assert np.mean(found) < 0.52


def test_calibrated_accuracy_by_hand() -> None:
    """Threshold of the first half 1.5, of the second 3.5: errors at 2 (second half), and at 3 (first half)."""
    scores = np.array([1.0, 2.0, 3.0, 1.0, 3.0, 4.0, 2.0])
    civil = np.array([False, True, True, False, False, True, False])
    halves = np.array([True, True, True, False, False, False, False])
    first = [1.0 >= 1.5, 3.0 >= 1.5, 4.0 >= 1.5, 2.0 >= 1.5]
    second = [1.0 >= 3.5, 2.0 >= 3.5, 3.0 >= 3.5]
    right = np.sum(np.array(first) == civil[3:]) + np.sum(np.array(second) == civil[:3])
    assert room.calibrated_accuracy(scores, civil, halves) == pytest.approx(right / 7)


def test_one_run_gives_what_one_run_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, learned = world(runs=1)
    file = save(tmp_path / "one.npz", true_reward=truth, learned_rewards=learned)
    assert command.main(["rewards", str(file), "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert set(summary["not_computed"]) == {"sd", "intervals", "pairwise_spearman_mean", "threshold"}
    assert summary["auroc"]["mean"] == pytest.approx(metrics.roc_auc_score(truth >= 0, learned[0]))
    assert "sd" not in summary["auroc"]
    assert "not computed: pairwise_spearman_mean" in capsys.readouterr().out


@pytest.mark.parametrize("runs", [2, 3, 9, 10])
def test_few_runs(runs: int) -> None:
    truth, learned = world(runs=runs, texts=30)
    summary = room.analyse(room.Rewards(truth, learned, tuple(map(str, range(runs))))).summary
    json.dumps(summary, allow_nan=False)
    assert summary["auroc"]["typical"]["method"].startswith("mean" if runs < 10 else "interquartile")
    assert ("low" in summary["threshold"]["share_of_variance"]) == (runs >= 10)


def put(values: Floats, value: float, *place: int) -> Floats:
    changed = values.copy()
    changed[place] = value
    return changed


TRUTH, LEARNED = world(runs=3, texts=8)
BROKEN: dict[str, tuple[dict[str, NDArray[Any]], str]] = {
    "missing": ({"rewards": TRUTH}, "no true_reward and no learned_rewards; found: rewards"),
    "empty": ({}, "found: nothing"),
    "nan": (
        {"true_reward": TRUTH, "learned_rewards": put(LEARNED, np.nan, 1, 5), "repeat": np.array([7, 8, 9])},
        "nan at run 8 (row 1), text 5; 1 values in 1 of 3 runs",
    ),
    "infinity": ({"true_reward": TRUTH, "learned_rewards": put(LEARNED, -np.inf, 2, 0)}, "-inf at run 2"),
    "nan in truth": ({"true_reward": put(TRUTH, np.nan, 4), "learned_rewards": LEARNED}, "nan at text 4"),
    "transposed": ({"true_reward": TRUTH, "learned_rewards": LEARNED.T}, "(8,) and learned_rewards is (8, 3)"),
    "one dimension": ({"true_reward": TRUTH, "learned_rewards": TRUTH}, "learned_rewards[None, :]"),
    "other texts": ({"true_reward": TRUTH[:5], "learned_rewards": LEARNED}, "(5,) and learned_rewards is (3, 8)"),
    "no runs": ({"true_reward": TRUTH, "learned_rewards": LEARNED[:0]}, "learned_rewards is (0, 8)"),
    "scalar": ({"true_reward": np.array(1.0), "learned_rewards": LEARNED}, "true_reward is ()"),
    "constant": ({"true_reward": TRUTH, "learned_rewards": put(LEARNED, 2.0, 1)}, "constant over all texts in run 1"),
    "one class": ({"true_reward": abs(TRUTH), "learned_rewards": LEARNED}, "all 8 texts civil"),
    "text": ({"true_reward": TRUTH, "learned_rewards": LEARNED.astype(str)}, "it has to hold numbers"),
    "objects": ({"true_reward": TRUTH, "learned_rewards": LEARNED.astype(object)}, "plain arrays"),
    "names": ({"true_reward": TRUTH, "learned_rewards": LEARNED, "repeat": TRUTH}, "each of the 3 runs once"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refusals_say_what_and_where(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, message = BROKEN[name]
    file = save(tmp_path / "broken.npz", **arrays)
    assert command.main(["rewards", str(file), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short", b"npy", None])
def test_a_file_that_is_no_npz(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.npz"
    if content == b"npy":
        with path.open("wb") as file:
            np.save(file, TRUTH)
    elif content is not None:
        path.write_bytes(content)
    assert command.main(["rewards", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["rewards", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "numpy.savez" in shown
    assert "learned_rewards  (runs, texts)" in shown


def test_the_room_loads_no_training() -> None:
    modules = (
        "analysis",
        "analysis.statistics",
        "analysis.rewards",
        "determined",
        "analysis.figures",
        "analysis.__main__",
    )
    program = ";".join(f"import irl_exp.{name}" for name in modules) + ";import sys;print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "irl_exp.analysis.rewards" in loaded
    assert not loaded & {"torch", "transformers", "trl", "hydra", "omegaconf", "wandb", "datasets", "irl_exp.stages"}

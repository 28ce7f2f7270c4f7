"""Rewards from elsewhere: the learned rewards of many runs on the same texts against the ground truth.

FILE.npz holds `true_reward` (n,), `learned_rewards` (runs, n) and, if there is one, `repeat` (runs,), the names of the
runs. A text is civil where its true reward is at least 0 and toxic elsewhere; F1 is that of the toxic class.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from irl_exp.analysis import statistics
from irl_exp.analysis.figures import drawing
from irl_exp.analysis.statistics import Estimate, Floats
from irl_exp.measures import reward_comparison as compare

METRICS = {
    "accuracy_at_zero": "accuracy, threshold 0",
    "accuracy_calibrated": "accuracy, calibrated",
    "auroc": "AUROC",
    "f1_at_zero": "F1 (toxic), threshold 0",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "kendall": "Kendall correlation",
}
SEED = 0
"""Of the halves of the texts and of the bootstrap: the same file gives the same numbers."""


class RewardFileError(Exception):
    """A file from which rewards cannot be read or compared."""


@dataclass(frozen=True)
class Rewards:
    """What a file holds.

    Attributes:
        truth: (n,) R*.
        learned: (runs, n).
        names: (runs,) as in `repeat`, else 0, 1, ...
    """

    truth: Floats
    learned: Floats
    names: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """What was found: one row a run, the numbers of summary.json, and the rank correlations (runs, runs)."""

    table: pd.DataFrame
    summary: dict[str, Any]
    agreement: Floats


def read(path: Path) -> Rewards:
    """Read and check FILE.npz; RewardFileError names what is wrong and where."""
    stored = _load(path)
    missing = [key for key in ("true_reward", "learned_rewards") if key not in stored]
    if missing:
        raise RewardFileError(f"{path} has no {' and no '.join(missing)}; found: {', '.join(stored) or 'nothing'}.")
    truth, learned = (_numbers(path, key, stored[key]) for key in ("true_reward", "learned_rewards"))
    _check_shapes(path, truth, learned)
    names = _names(path, stored.get("repeat"), len(learned))
    _check_values(path, truth, learned, names)
    return Rewards(truth, learned, names)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise RewardFileError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: name an .npz file.")
    with path.open("rb") as file:
        bare = file.read(6) == np.lib.format.MAGIC_PREFIX
    if bare:
        raise RewardFileError(f"{path} holds one array without a name: write it with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RewardFileError(f"{path} is no .npz of plain arrays, or a broken one ({error}).") from error


def _numbers(path: Path, key: str, values: NDArray[Any]) -> Floats:
    if values.dtype.kind not in "fiu":
        raise RewardFileError(f"{key} of {path} is of type {values.dtype}: it has to hold numbers.")
    return values.astype(np.float64)


def _check_shapes(path: Path, truth: Floats, learned: Floats) -> None:
    shapes = f"true_reward is {truth.shape} and learned_rewards is {learned.shape}"
    if truth.ndim == 1 and learned.ndim == 2 and 0 not in learned.shape and learned.shape[1] == len(truth):
        return
    hint = ""
    if truth.ndim == 1 and learned.shape == truth.shape:
        hint = " One run is learned_rewards[None, :]."
    elif truth.ndim == 1 and learned.ndim == 2 and learned.shape[0] == len(truth):
        hint = " It looks transposed: learned_rewards.T."
    raise RewardFileError(f"In {path} {shapes}: they have to be (texts,) and (runs, texts).{hint}")


def _names(path: Path, repeat: NDArray[Any] | None, runs: int) -> tuple[str, ...]:
    if repeat is None:
        return tuple(map(str, range(runs)))
    if repeat.shape != (runs,):
        raise RewardFileError(f"repeat of {path} is {repeat.shape}: it has to name each of the {runs} runs once.")
    return tuple(map(str, repeat.tolist()))


def _check_values(path: Path, truth: Floats, learned: Floats, names: tuple[str, ...]) -> None:
    """No NaN or infinity, both classes among the texts, no constant reward."""
    if len(broken := np.flatnonzero(~np.isfinite(truth))):
        raise RewardFileError(f"true_reward of {path} is {truth[broken[0]]} at text {broken[0]} ({len(broken)} such).")
    if len(places := np.argwhere(~np.isfinite(learned))):
        run, text = places[0]
        raise RewardFileError(
            f"learned_rewards of {path} is {learned[run, text]} at run {names[run]} (row {run}), text {text}; "
            f"{len(places)} values in {len(set(places[:, 0]))} of {len(learned)} runs are no finite numbers."
        )
    civil = int((truth >= 0).sum())
    if civil in (0, len(truth)):
        kind = "civil (>= 0)" if civil else "toxic (< 0)"
        raise RewardFileError(f"true_reward of {path} calls all {len(truth)} texts {kind}: nothing can be told apart.")
    if len(constant := np.flatnonzero(np.ptp(learned, axis=1) == 0)):
        found = ", ".join(names[run] for run in constant[:10])
        raise RewardFileError(f"learned_rewards of {path} is constant over all texts in run {found}: leave it out.")


def calibrated_accuracy(scores: Floats, civil: NDArray[np.bool_], halves: NDArray[np.bool_]) -> float:
    """Accuracy with the threshold set on the other half: no text is judged by a threshold that it helped to set.

    The threshold of highest accuracy on one half is used on the other; the mean over all texts is returned. It uses
    R* of the half that it is set on, so it says what a few labels would make of the reward.

    Args:
        scores, civil: (n,).
        halves: (n,) True for the texts of one half.
    """
    right = 0.0
    for half in (halves, ~halves):
        threshold = compare.best_threshold(scores[half], civil[half])
        right += compare.accuracy(scores[~half], civil[~half], threshold) * int((~half).sum())
    return right / len(scores)


def split_halves(n: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) True for a random half, n // 2 texts."""
    halves = np.zeros(n, dtype=bool)
    halves[generator.permutation(n)[: n // 2]] = True
    return halves


def analyse(rewards: Rewards, *, seed: int = SEED) -> Analysis:
    """All numbers of the runs, and what of it one run alone cannot tell (in `not_computed`)."""
    generator = np.random.default_rng(seed)
    halves = split_halves(len(rewards.truth), generator)
    rows = [_run(rewards.truth, scores, halves) for scores in rewards.learned]
    table = pd.DataFrame({"run": rewards.names, **{key: [row[key] for row in rows] for key in METRICS}})
    civil = rewards.truth >= 0
    summary: dict[str, Any] = {
        "n_runs": len(rewards.learned),
        "n_texts": len(rewards.truth),
        "n_civil": int(civil.sum()),
        "majority_accuracy": float(max(civil.mean(), 1 - civil.mean())),
        **{key: _spread(table[key].to_numpy(), generator) for key in METRICS},
    }
    if len(table) > 1:
        summary |= _of_many(rewards, table, generator)
    else:
        summary["not_computed"] = dict.fromkeys(
            ("sd", "intervals", "pairwise_spearman_mean", "threshold"), "needs two runs or more; the file holds one"
        )
    return Analysis(table, summary, statistics.rank_correlations(rewards.learned))


def _run(truth: Floats, scores: Floats, halves: NDArray[np.bool_]) -> dict[str, float]:
    civil = truth >= 0
    return {
        "accuracy_at_zero": compare.accuracy(scores, civil, 0.0),
        "accuracy_calibrated": calibrated_accuracy(scores, civil, halves),
        "auroc": compare.auroc(scores, civil),
        "f1_at_zero": compare.f1_toxic(scores, civil, 0.0),
        **compare.correlations(scores, truth),
    }


def _spread(values: Floats, generator: np.random.Generator) -> dict[str, Any]:
    """Mean, sd (n - 1) and extremes of the runs, and the typical run with its interval."""
    found: dict[str, Any] = {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
    if len(values) == 1:
        return found
    typical = statistics.typical(values, generator=generator)
    return found | {"sd": float(values.std(ddof=1)), "typical": typical.plain()}


def _of_many(rewards: Rewards, table: pd.DataFrame, generator: np.random.Generator) -> dict[str, Any]:
    signed, absolute = (statistics.pairwise_rank_correlation(rewards.learned, absolute=sign) for sign in (False, True))
    return {
        "pairwise_spearman_mean": signed.value,
        "pairwise_spearman": signed.plain(),
        "pairwise_spearman_absolute": absolute.plain(),
        "pairwise_same_label_mean": _same_label(rewards.learned),
        "threshold": _threshold(table, generator),
    }


def _same_label(learned: Floats) -> float:
    """Fraction of texts that two runs put on the same side of 0, mean over pairs of runs."""
    runs, positive = len(learned), (learned >= 0).sum(axis=0)
    same = positive * (positive - 1) + (runs - positive) * (runs - positive - 1)
    return float(same.mean() / (runs * (runs - 1)))


def _threshold(table: pd.DataFrame, generator: np.random.Generator) -> dict[str, Any]:
    """How much of the spread of the accuracy at 0 is the threshold's: 1 - var(calibrated) / var(at 0) over runs.

    What is left when every run gets a threshold of its own from labels is the spread of the order. Below 0 where
    calibration spreads the runs. `cost_mean` is the mean of calibrated - at 0.
    """
    zero, calibrated = (table[key].to_numpy() for key in ("accuracy_at_zero", "accuracy_calibrated"))
    cost = statistics.paired_difference(calibrated, zero)
    found: dict[str, Any] = {"cost_mean": cost.plain()}
    if np.ptp(zero) == 0:
        return found | {"not_computed": "all runs have the same accuracy at 0: there is no spread to share out"}

    def share(rows: NDArray[np.int64]) -> float:
        variance = float(zero[rows].var())
        return 1 - float(calibrated[rows].var()) / variance if variance else float("nan")

    if len(table) < statistics.FEW:  # a bootstrap of few runs promises too much
        alone = Estimate(share(np.arange(len(zero))), float("nan"), float("nan"), len(zero), "no interval: few runs")
        return found | {"share_of_variance": alone.plain()}
    return found | {"share_of_variance": statistics.bootstrap(share, len(zero), generator=generator).plain()}


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """runs.csv, agreement.csv, summary.json and the figures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    runs, agreement, summary = folder / "runs.csv", folder / "agreement.csv", folder / "summary.json"
    names = list(analysis.table["run"])
    analysis.table.to_csv(runs, index=False)
    pd.DataFrame(analysis.agreement, index=names, columns=names).to_csv(agreement, index_label="run")
    summary.write_text(json.dumps(analysis.summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with drawing.style():
        figures = {"runs": _runs_figure(analysis), "threshold": _threshold_figure(analysis)}
        if len(names) > 1:
            figures["agreement"] = _agreement_figure(analysis)
    for name, figure in figures.items():
        drawing.save(figure, folder, name)
    return [summary, runs, agreement, *(folder / f"{name}.{kind}" for name in figures for kind in ("png", "pdf"))]


def _runs_figure(analysis: Analysis) -> Figure:
    """Every run as a point, for the two accuracies and AUROC, with the mean and the level that needs no reward."""
    figure = drawing.new()
    axes = figure.add_subplot()
    keys = ("accuracy_at_zero", "accuracy_calibrated", "auroc")
    spread = np.random.default_rng(SEED).uniform(-0.18, 0.18, len(analysis.table))
    for place, (key, colour) in enumerate(zip(keys, (drawing.BLUE, drawing.GREEN, drawing.ORANGE), strict=True)):
        values = analysis.table[key].to_numpy()
        axes.scatter(place + spread, values, s=16, color=colour, alpha=0.6, linewidths=0)
        axes.hlines(values.mean(), place - 0.3, place + 0.3, color="black", zorder=3)
        axes.annotate(f"mean {values.mean():.3f}", (place + 0.31, values.mean()), va="center", fontsize=8)
    majority = analysis.summary["majority_accuracy"]
    axes.hlines(majority, -0.4, 1.4, color=drawing.GREY, linestyle="--")
    axes.annotate(f"majority class {majority:.4f}", (0.5, majority), (0, -9), textcoords="offset points", ha="center")
    axes.hlines(0.5, 1.6, 2.4, color=drawing.GREY, linestyle="--")
    axes.annotate("chance 0.5", (2.4, 0.5), (0, -9), textcoords="offset points", ha="right")
    axes.set_xticks(range(3), [METRICS[key] for key in keys])
    axes.set_xlim(-0.5, 2.75)
    axes.set_ylabel("against R*, one point a run")
    axes.set_title(f"{analysis.summary['n_runs']} runs on {analysis.summary['n_texts']:,} texts")
    return figure


def _threshold_figure(analysis: Analysis) -> Figure:
    """Accuracy at 0 and calibrated against AUROC: how far apart runs of the same order are for their threshold."""
    figure = drawing.new()
    axes = figure.add_subplot()
    table = analysis.table
    axes.vlines(table["auroc"], table["accuracy_at_zero"], table["accuracy_calibrated"], color="#D0D0D0", linewidth=0.8)
    for key, marker, colour in (("accuracy_at_zero", "o", drawing.BLUE), ("accuracy_calibrated", "^", drawing.GREEN)):
        axes.scatter(table["auroc"], table[key], s=18, marker=marker, color=colour, label=METRICS[key], zorder=3)
    axes.axhline(analysis.summary["majority_accuracy"], color=drawing.GREY, linestyle="--", label="majority class")
    axes.set_xlabel("AUROC: the order alone, no threshold")
    axes.set_ylabel("accuracy of the sign")
    axes.set_title("What the threshold costs, run by run")
    axes.legend()
    return figure


def _agreement_figure(analysis: Analysis) -> Figure:
    """Spearman correlation of all pairs of runs, sorted by AUROC."""
    figure = drawing.new(5.4, 4.6)
    axes = figure.add_subplot()
    order = np.argsort(analysis.table["auroc"].to_numpy(), kind="stable")
    image = axes.imshow(analysis.agreement[np.ix_(order, order)], vmin=-1, vmax=1, cmap="PuOr", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="Spearman correlation")
    axes.set_xlabel("runs, by AUROC from low to high")
    axes.set_ylabel("runs, in the same order")
    axes.set_title(f"Do runs agree? Mean of the pairs {analysis.summary['pairwise_spearman_mean']:.3f}")
    return figure


def rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """The table for the terminal: metric, mean, typical run with its interval, sd, min, max. The numbers of summary."""
    found: list[tuple[str, ...]] = []
    for key, text in METRICS.items():
        entry = analysis.summary[key]
        typical = entry.get("typical")
        middle = "-" if typical is None else _text(typical)
        sd = f"{entry['sd']:.3f}" if "sd" in entry else "-"
        found.append((text, f"{entry['mean']:.3f}", middle, sd, f"{entry['min']:.3f}", f"{entry['max']:.3f}"))
    return found


def notes(analysis: Analysis) -> list[str]:
    """What else there is to say, a line each."""
    summary = analysis.summary
    lines = [
        f"majority class: {summary['majority_accuracy']:.4f}. The best of many runs, chosen on the texts that it is "
        "reported on, is no result: read the mean and the spread.",
        "calibrated: threshold set with R* on one random half of the texts, accuracy on the other, both ways.",
    ]
    if summary["n_runs"] > 1:
        lines.append(
            f"pairs of runs: Spearman {_text(summary['pairwise_spearman'])} (absolute "
            f"{summary['pairwise_spearman_absolute']['value']:.3f}); same side of 0 on "
            f"{summary['pairwise_same_label_mean']:.3f} of the texts."
        )
        if "share_of_variance" in summary["threshold"]:
            share = summary["threshold"]["share_of_variance"]
            lines.append(f"share of the variance of accuracy at 0 that is the threshold's: {_text(share)}.")
    for key, reason in summary.get("not_computed", {}).items():
        lines.append(f"not computed: {key} ({reason}).")
    return lines


def _text(estimate: dict[str, Any]) -> str:
    interval = f" [{estimate['low']:.3f}, {estimate['high']:.3f}]" if "low" in estimate else ""
    return f"{estimate['value']:.3f}{interval}"

"""Small studies on disk to be drawn, and what is seen in a figure: points, marks, intervals, words."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from small_study import Made
from small_study import write as write_made

from irl_exp.analysis import study as reader
from irl_exp.analysis.figures import (
    distances,
    drawing,
    epochs,
    heatmap,
    policies,
    rewards,
    sweeps,
    thresholds,
    toxicity,
    training,
)
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.study import Study

PROMPTS, EACH = 6, 3
ROOMS = (rewards, distances, sweeps, policies, toxicity, epochs, heatmap, training, thresholds)
FIGURES = {name: draw for room in ROOMS for name, draw in room.FIGURES.items()}
Job = tuple[str, Mapping[str, Any], Mapping[str, float]]


# ---------------------------------------------------------------------------------------------- studies with rewards


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
    found |= {"equal_kl/difference": random.uniform(-0.5, 0.1)}
    for reward in sweeps.REWARDS:
        share = random.uniform(0.3, 0.6)
        found |= {f"tradeoff/{reward}/toxicity": share, f"tradeoff/{reward}/sentiment": 1 - share}
        found |= {f"tradeoff/{reward}/toxicity_low": share - 0.1}
    found |= {f"uncertainty/{name}_auroc": random.uniform(0.4, 0.8) for name in rewards.SIGNALS}
    return found | {"uncertainty/n_errors": float(random.integers(10, 20))}


def ways(number: int) -> pd.DataFrame:
    """Windows of both policies as evaluate leaves them; those of the expert are the same in all runs."""
    kl = np.arange(4.0)
    found = {"expert": kl / 2, "refinetuned": kl / 3 - number / 100}
    rows = [
        pd.DataFrame({"policy": name, "kl": kl, "kl_se": 0.1, "truth": y, "truth_se": 0.2}) for name, y in found.items()
    ]
    return pd.concat(rows, ignore_index=True)


def launch(folder: Path, cells: int, seeds: int, *, completions: bool = True) -> Study:
    """Cells with long names that differ in a number and a choice, everything measured."""
    store = folder / "store"
    jobs = [
        (
            f"irl.seed={seed},irl.completions={cell // 2 + 1},irl.backbone.of_a_long_name={('lora', 'all')[cell % 2]}",
            {
                **{"irl.completions": cell // 2 + 1, "store.dir": str(store), "artifacts.rlhf": "one"},
                "artifacts.evaluate": f"{cell * seeds + seed}",
            },
            full(cell * seeds + seed),
        )
        for cell in range(cells)
        for seed in range(seeds)
    ]
    for number in range(len(jobs)):
        (store / "evaluate" / str(number)).mkdir(parents=True)
        ways(number).to_parquet(store / "evaluate" / str(number) / "equal_kl.parquet")
    return write(folder, jobs, {} if completions else None)


# ------------------------------------------------------------------------------------------------ studies with curves


def made(tmp_path: Path, runs: Sequence[Made]) -> Study:
    return reader.read(write_made(tmp_path / "study" / "20260101-000000-000000", runs))


def several(count: int, **fields: object) -> list[Made]:
    """Runs of one cell, each with another curve."""
    random = np.random.default_rng(0)
    return [Made(seed=seed, accuracy=tuple(random.uniform(0.5, 0.85, 3)), **fields) for seed in range(count)]  # type: ignore[arg-type]


def cells(count: int, seeds: int = 2) -> list[Made]:
    names = [f"irl/loss=loss_{number},irl.optimiser.learning_rate={number / 7:.5f}" for number in range(count)]
    runs = [Made(cell=name, seed=seed) for name in names for seed in range(seeds)]
    for number, run in enumerate(runs):
        run.accuracy = (0.5, 0.6, 0.6 + number / 200)
    return runs


# ---------------------------------------------------------------------------------------------------- what is drawn


def drawn(figure: Picture) -> Picture:
    """All of it laid out, as when saved; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    return figure


def make(name: str, study: Study) -> Picture:
    with drawing.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        return drawn(FIGURES[name](study))


def clouds(axes: Axes) -> list[Any]:
    """Coordinates (n, 2) of each scatter."""
    return [one.get_offsets() for one in axes.collections if isinstance(one, PathCollection) and len(one.get_offsets())]


def points(axes: Axes, size: float | None = None) -> Any:
    """(n, 2) coordinates of all scatters, or of those of one size."""
    found = [one for one in axes.collections if isinstance(one, PathCollection) and len(one.get_offsets())]
    return np.vstack([np.asarray(one.get_offsets()) for one in found if size is None or one.get_sizes()[0] == size])


def marks(axes: Axes) -> list[tuple[float, float]]:
    """Typical values: the diamonds."""
    return [(float(x), float(y)) for line in axes.lines if line.get_marker() == "D" for x, y in line.get_xydata()]


def intervals(axes: Axes) -> list[tuple[float, float]]:
    """The lines at the diamonds."""
    return [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 1.6]


def words(figure: Figure) -> str:
    """All text of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")))


def panel(figure: Figure, title: str) -> Axes:
    (found,) = [axes for axes in figure.axes if title in axes.get_title(loc="left")]
    return found

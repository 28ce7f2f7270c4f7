"""Differences of cells: by prompt where all runs share an expert, by expert where they have several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_figures
from scipy import stats

from irl_exp.analysis import comparisons, page, spread, summary
from irl_exp.analysis.study import NotComputed, Study
from irl_exp.measures import reward_comparison as measure
from irl_exp.report.units import Units

PROMPTS, EACH = 40, 4
METHODS = {"irl=margin": 1.0, "irl=length": 0.4}


def completions(slope: float, seed: int) -> pd.DataFrame:
    """Of two policies on the same prompts, the same for all runs; the reward has this slope on R*."""
    world, own = np.random.default_rng(0), np.random.default_rng([1, seed])
    policies = ("reference", "expert", "refinetuned")
    rows = len(policies) * PROMPTS * EACH
    truth = world.normal(size=rows)
    return pd.DataFrame(
        {
            "policy": np.repeat(policies, PROMPTS * EACH),
            "prompt_id": np.tile(np.repeat(range(PROMPTS), EACH), len(policies)),
            "truth": truth + np.repeat([0.0, 1.0, slope], PROMPTS * EACH),
            "implicit": truth,
            "learned": slope * truth + world.normal(size=rows) + 0.1 * own.normal(size=rows),
        }
    )


def made(folder: Path, seeds: int, config: Callable[[int], dict[str, Any]], name: str = "irl.seed") -> Study:
    """Both methods with so many seeds; metrics are those of their completions."""
    jobs, tables = [], {}
    for method, slope in METHODS.items():
        for seed in range(seeds):
            table = completions(slope, seed)
            rows = table[table["policy"] == "reference"]
            learned, truth, policy = rows["learned"].to_numpy(), rows["truth"].to_numpy(), table["policy"]
            metrics = {
                "irl/auroc": measure.auroc(learned, truth >= 0),
                "refinetuned/toxic_fraction": float((table.loc[policy == "refinetuned", "truth"] < 0).mean()),
                "refinetuned/reward_mean": float(table.loc[policy == "refinetuned", "truth"].mean()),
            }
            shared = dict.fromkeys(("data", "sft"), "one")
            own = dict.fromkeys(("irl", "refinetune", "evaluate"), f"{method}{seed}")
            artifacts = {f"artifacts.{stage}": value for stage, value in {**shared, **own, **config(seed)}.items()}
            tables[len(jobs)] = table
            jobs.append((f"{method},{name}={seed}", {f"{name}": seed, **artifacts}, metrics))
    return small_figures.write(folder, jobs, tables)


def one_expert(seed: int) -> dict[str, Any]:
    return {"rlhf": "one", "demonstrations": "one"}


def an_expert_each(seed: int) -> dict[str, Any]:
    return {"rlhf": seed, "demonstrations": seed}


def rows_of(study: Study) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in comparisons.comparisons(study).to_dict("records")}


def test_of_one_expert_the_prompts_are_the_unit(tmp_path: Path) -> None:
    study = made(tmp_path, 4, one_expert)
    row = rows_of(study)["irl/auroc"]
    assert row["n"] == PROMPTS
    assert row["unit"] == f"{PROMPTS} prompts, 4 fits of one expert"
    one, other = (np.mean(study.values("irl/auroc", cell)) for cell in METHODS)
    assert row["difference"] == pytest.approx(one - other)
    assert row["low"] < row["difference"] < row["high"]
    assert row["p_value"] < 0.05
    assert np.isnan(row["probability_above"])
    heads = [a - b for a, b in zip(*study.paired("irl/auroc", *METHODS), strict=True)]
    over_heads = stats.t.ppf(0.975, 3) * np.std(heads, ddof=1) / 2
    assert row["high"] - row["difference"] > 2 * over_heads, "heads of one expert agree: they are not the sample"


def test_of_several_experts_they_are_the_unit(tmp_path: Path) -> None:
    study = made(tmp_path, 4, an_expert_each, "rlhf.seed")
    row = rows_of(study)["irl/auroc"]
    assert (row["n"], row["unit"], row["test"]) == (4, "4 experts", "sign flips, all 16")
    difference = np.subtract(*study.paired("irl/auroc", *METHODS))
    half = stats.t.ppf(0.975, 3) * np.std(difference, ddof=1) / 2
    assert (row["low"], row["high"]) == pytest.approx((difference.mean() - half, difference.mean() + half))


def test_two_experts_have_a_difference_and_no_interval(tmp_path: Path) -> None:
    row = rows_of(made(tmp_path, 2, an_expert_each, "rlhf.seed"))["irl/auroc"]
    assert row["unit"] == "2 experts"
    assert np.isnan([row["low"], row["high"], row["p_value"]]).all()


def test_completions_that_do_not_give_the_metric_give_no_interval(tmp_path: Path) -> None:
    study = made(tmp_path, 3, one_expert)
    path = study.runs[0].folder / "completions.parquet"
    table = pd.read_parquet(path)
    table.assign(learned=-table["learned"]).to_parquet(path)
    row = rows_of(study)["irl/auroc"]
    assert np.isnan(row["low"])
    assert row["method"] == "no interval: completions.parquet of run 0 does not give its irl/auroc"


def test_the_variance_over_prompts_and_over_fits_add_up() -> None:
    units = Units.of([{"artifacts.irl": fit} for fit in range(4)])
    fits = np.array([1.0, 2.0, 3.0, 4.0])
    prompts = np.random.default_rng(0).normal(size=2000)
    prompts = (prompts - prompts.mean()) / prompts.std(ddof=1) * (100 / measure.draws_of(101)) ** 0.5
    resampled = np.hstack([fits[:, None], fits[:, None] + prompts])
    found = comparisons.by_prompt(units, resampled, 101).found
    parts = 1.0, 5 / 3 / 4
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 100 + parts[1] ** 2 / 3)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5)


# ------------------------------------------------------------------------------------- policies and their control


def policies(folder: Path, rewards: int, control: int, sd: float) -> Study:
    """Policies of rewards that move the toxic fraction by this sd, and of the first with other seeds (0.01)."""
    random, jobs = np.random.default_rng(0), []
    seeds = [(reward, 0) for reward in range(rewards)] + [(0, seed) for seed in range(1, control)]
    for reward, seed in seeds:
        value = 0.1 + 0.01 * random.normal() + (sd * random.normal() if seed == 0 else 0.0)
        artifacts = {"artifacts.rlhf": "one", "artifacts.irl": reward, "artifacts.refinetune": f"{reward},{seed}"}
        name = f"irl.seed={reward},refinetune.seed={seed}"
        jobs.append((name, {"refinetune.seed": seed, **artifacts}, {"refinetuned/toxic_fraction": value}))
    return small_figures.write(folder, jobs)


def told(study: Study) -> str:
    data = summary.summarise(study).data
    (text,) = [text for text in page._spread_text({**data, "cells": {"default": {}}}) if text.startswith("(d)")]
    return text


def test_policies_are_said_to_differ_more_only_beside_their_control(tmp_path: Path) -> None:
    assert "these runs cannot say" in told(policies(tmp_path / "without", 20, 0, 0.1))
    assert "'refinetune.seed=range(10)'" in told(policies(tmp_path / "without2", 20, 1, 0.1))
    assert "so policies of different rewards differ more" in told(policies(tmp_path / "far", 20, 10, 0.1))
    assert "so no difference in spread shows" in told(policies(tmp_path / "alike", 20, 10, 0.0))


def test_one_reward_has_no_spread_of_rewards(tmp_path: Path) -> None:
    with pytest.raises(NotComputed, match="two rewards or more of one expert"):
        spread.policies(policies(tmp_path, 1, 5, 0.0))

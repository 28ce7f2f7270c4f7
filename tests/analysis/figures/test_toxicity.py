"""How toxic the policies are: the table by hand, and what is drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from small_figures import (
    drawn,
    made,
    make,
    points,
    words,
)
from small_study import Made

from irl_exp.analysis import statistics
from irl_exp.analysis.figures import (
    toxicity,
)
from irl_exp.measures import reward_comparison as compare


def test_toxicity_table_by_hand(tmp_path: Path) -> None:
    counts = [8, 9, 10, 8, 9]
    runs = [
        Made(seed=seed, toxic={"reference": 20, "expert": 0, "refinetuned": count}) for seed, count in enumerate(counts)
    ]
    table = toxicity.toxicity_table(made(tmp_path, runs)).set_index("policy")
    assert table["runs"].tolist() == [5, 5, 5]
    assert table["policies"].tolist() == [1, 1, 5]
    assert table["completions"].tolist() == [40, 40, 200]
    assert table["toxic"].tolist() == [20, 0, 44]
    assert table["fraction"].tolist() == pytest.approx([0.5, 0, 44 / 200])
    assert table.loc["reference", ["fraction_low", "fraction_high"]].tolist() == pytest.approx([0.49, 0.51])
    exact = compare.fraction_interval(np.zeros(40, dtype=bool), np.repeat(np.arange(10), 4))[1]
    assert 0.3 < exact < 0.4
    assert table.loc["expert", ["fraction_low", "fraction_high"]].tolist() == pytest.approx([0, exact])
    over = statistics.mean_t([count / 40 for count in counts])
    assert table.loc["refinetuned", ["fraction_low", "fraction_high"]].tolist() == pytest.approx([over.low, over.high])
    assert table["prompt_share"].tolist() == pytest.approx([5 / 10, 0, (2 + 3 + 3 + 2 + 3) / 50])
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
    figure = make("toxicity", made(tmp_path, runs))
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["reference", "expert", "refinetuned\na", "refinetuned\nb"]
    assert points(axes, 30)[:, 0] == pytest.approx([0.5, 6 / 40])
    assert sorted(points(axes, 14)[:, 0]) == pytest.approx([count / 40 for count in range(4, 10)])
    assert "20 of 40" in words(figure)
    assert "3 policies, 4 to 6 of 40" in words(figure)


def test_without_completions_metrics_are_drawn_and_the_rest_is_named(tmp_path: Path) -> None:
    found = made(tmp_path, [Made(files=())])
    assert words(drawn(toxicity.toxicity(found))).count("no completions.parquet") == 6
    table = toxicity.toxicity_table(found)
    assert table["fraction"].tolist() == pytest.approx([0.5, 0.15, 0.2])
    assert table["prompt_share"].isna().all()

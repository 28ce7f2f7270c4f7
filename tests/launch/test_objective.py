"""What a sweeper such as optuna may optimise: numbers of select, and no others."""

from __future__ import annotations

import pytest
import small
from test_planner import fitted

from irl_exp.config import ConfigError
from irl_exp.launch import objective
from irl_exp.launch.jobs import job_name

CURVE = [
    {"step": 1, "select_loss": -0.5, "select_expert_first": 0.7},
    {"step": 2, "select_loss": -0.8, "select_expert_first": 0.6},
    {"step": 3, "select_loss": -0.6, "select_expert_first": 0.9},
]


@pytest.mark.parametrize(("name", "value"), [("select_loss", -0.8), ("select_expert_first", 0.6)])
def test_the_objective_is_that_of_the_epoch_that_is_kept(name: str, value: float) -> None:
    config = small.compose(f"objective=irl/{name}", "until=irl", "store.dir=store")
    assert objective.of_run(config, fitted("run", CURVE)) == value


def test_a_method_without_epochs_has_it_in_its_manifest() -> None:
    config = small.compose("irl=bayesian", "objective=irl/select_loss", "until=irl", "store.dir=store")
    assert objective.of_run(config, fitted("run", [], select_loss=0.25)) == 0.25


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["objective=irl/auroc"], "of test prompts: whoever chooses by them has nothing left to judge the choice by"),
        (["objective=irl/auroc"], "choose one of irl/select_loss, irl/select_expert_first"),
        (["objective=irl/selct_loss"], "did you mean 'irl/select_loss'?"),
        (["objective=irl/select_loss", "until=rlhf"], "until=rlhf stops before irl"),
        (["objective=irl/select_loss", "irl=implicit"], "irl=implicit has no metric of select"),
        (["objective=irl/select_expert_first", "irl=bayesian"], "irl=bayesian has irl/select_loss"),
    ],
)
def test_what_is_no_objective_is_refused_before_any_work(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small.compose(*overrides)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_job_is_not_named_by_what_it_returns() -> None:
    assert job_name(["objective=irl/select_loss", "fail_fast=true", "irl.seed=1"]) == "irl.seed=1"

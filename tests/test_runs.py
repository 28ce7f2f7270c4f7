"""`irl_exp.load`: a run opened again, from the files that it left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_study
from small_study import Made

import irl_exp
from irl_exp.analysis.study import StudyError
from irl_exp.runs import RunError


@pytest.fixture
def launch() -> Path:
    """A launch of two runs, whose first one has its policies in a store."""
    config = {"store": {"dir": "multirun/store"}, "until": "evaluate"}
    for stage, digest in (("sft", "s"), ("rlhf", "e")):
        Path("multirun", "store", stage, digest).mkdir(parents=True)
    return small_study.write(Path("multirun/made/1"), [Made(seed=0, config=config), Made(seed=7, config=config)])


@pytest.mark.parametrize(("place", "seed"), [("1/1", 7), ("1", 0), (".", 0)])
def test_a_run_is_opened_by_its_folder_or_as_the_first_of_a_launch(launch: Path, place: str, seed: int) -> None:
    run = irl_exp.load(launch.parent / place)
    assert (run.name, run.config["irl.seed"]) == (f"irl.seed={seed}", seed)
    assert run.folder == (launch / ("1" if seed else "0")).absolute()
    assert run.metrics == json.loads((run.folder / "metrics.json").read_text())
    assert set(run.completions["policy"]) == set(small_study.POLICIES)


def test_of_a_study_it_is_the_newest_launch(launch: Path) -> None:
    small_study.write(launch.parent / "2", [Made(seed=3)])
    assert irl_exp.load("multirun/made").name == "irl.seed=3"


def test_the_policies_are_folders_of_the_store(launch: Path) -> None:
    run = irl_exp.load(str(launch / "0"))
    assert run.policies == {role: Path.cwd() / f"multirun/store/{place}" for role, place in
                            (("reference", "sft/s"), ("expert", "rlhf/e"))}  # fmt: skip


def test_a_reward_that_the_store_has_no_more_is_named_with_the_remedy(launch: Path) -> None:
    with pytest.raises(RunError, match=r"multirun/store has no irl/irl--7; the same launch again computes it"):
        irl_exp.load(launch / "1").reward  # noqa: B018


def test_a_run_without_a_reward_says_why() -> None:
    folder = small_study.write(Path("multirun/made/1"), [Made(config={"artifacts": {"sft": "s"}, "until": "sft"})])
    with pytest.raises(RunError, match=r"until=sft stopped before irl; launch it with until=irl\."):
        irl_exp.load(folder).reward  # noqa: B018


@pytest.mark.parametrize(
    ("place", "told"), [("multirun/made/1/5", "no such folder"), ("multirun", "It holds the studies made: name one")]
)
def test_a_folder_without_runs_is_refused(launch: Path, place: str, told: str) -> None:
    with pytest.raises(StudyError, match=told):
        irl_exp.load(place)

"""Which group of W&B a launch is in, and which of its jobs are logged: from the plans and records of earlier ones."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from filelock import FileLock

from irl_exp.launch import resume
from irl_exp.machinery.tracking import read_record, write_record


def launch(study: Path, begun: str, results: str = "ab", **tracking: str | None) -> Path:
    """The plan of a launch whose jobs have these results."""
    folder = study / begun
    folder.mkdir(parents=True)
    jobs = [{"number": n, "name": f"irl.seed={n}", "folder": str(n), "result": r} for n, r in enumerate(results)]
    about = {"mode": "offline", "project": "p", "entity": None} | tracking
    config: Any = SimpleNamespace(name="losses", tracking=SimpleNamespace(**about))
    plan = {"command": "", "question": "", "jobs": jobs} | resume.place(folder, config, jobs)
    (folder / resume.PLAN).write_text(json.dumps(plan))
    return folder


def ended(job: Path, state: str = "finished") -> None:
    job.mkdir(exist_ok=True)
    about = {"id": "x", "entity": None, "project": "p", "group": "g", "online": False, "url": None}
    write_record(job, about | {"folder": f"{job}/wandb/offline-run-1-x", "state": state})


def group(folder: Path) -> str:
    return resume.group_of(folder, "losses")


def test_the_first_launch_begins_a_group(tmp_path: Path) -> None:
    assert group(launch(tmp_path, "1")) == "losses/1"


def test_a_stopped_launch_is_gone_on_with_until_all_its_runs_have_finished(tmp_path: Path) -> None:
    first = launch(tmp_path, "1")
    ended(first / "0")
    ended(first / "1", "failed")
    second = launch(tmp_path, "2")  # stopped before it came to the second job
    third = launch(tmp_path, "3")
    assert [group(second), group(third)] == ["losses/1", "losses/1"]
    assert resume.launches_of(third) == [first, second, third]
    assert resume.told(third) == "goes on with 1: 1 of 2 runs have finished in W&B and are not logged again"
    ended(third / "1")
    fourth = launch(tmp_path, "4")
    assert (group(fourth), resume.told(fourth)) == ("losses/4", "")


@pytest.mark.parametrize("other", [{"results": "ac"}, {"project": "q"}, {"entity": "team"}, {"mode": "wandb"}])
def test_a_launch_of_something_else_begins_a_group(tmp_path: Path, other: dict[str, str]) -> None:
    launch(tmp_path, "1")
    assert group(launch(tmp_path, "2", **other)) == "losses/2"


def test_what_is_not_tracked_is_not_gone_on_with(tmp_path: Path) -> None:
    for begun in "12":
        assert group(launch(tmp_path, begun, mode="none")) == f"losses/{begun}"


def test_under_a_launcher_of_hydra_a_launch_is_its_own_group(tmp_path: Path) -> None:
    assert group(tmp_path / "1") == "losses/1"
    with resume.once(tmp_path / "1" / "0", "offline") as mode:
        assert mode == "offline"


@pytest.mark.parametrize("plan", ["", "[]", '{"jobs": [], "command": "an older version"}'])
def test_a_plan_that_says_nothing_of_it_is_passed_over(tmp_path: Path, plan: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / resume.PLAN).write_text(plan)
    assert group(launch(tmp_path, "2")) == "losses/2"


def test_a_run_that_had_finished_is_not_logged_again(tmp_path: Path) -> None:
    first = launch(tmp_path, "1")
    ended(first / "0")
    ended(first / "1", "open")
    second = launch(tmp_path, "2")
    for job, wanted in (("0", "none"), ("1", "offline")):
        (second / job).mkdir()
        with resume.once(second / job, "offline") as mode:
            assert mode == wanted
    assert read_record(second / "0") == read_record(first / "0")  # where the run of this job is
    assert read_record(second / "1") is None


def test_a_run_that_another_machine_logs_right_now_is_left_to_it(tmp_path: Path) -> None:
    first, second = launch(tmp_path, "1"), launch(tmp_path, "2")
    with resume.once(first / "0", "offline") as mode, resume.once(second / "0", "offline") as other:
        assert (mode, other) == ("offline", "none")
    with resume.once(second / "0", "offline") as mode:  # the other one has died
        assert mode == "offline"


def test_a_place_without_locks_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with resume.once(launch(tmp_path, "1") / "0", "offline") as mode:
        assert mode == "offline"


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_a_run_whose_owner_hangs_is_logged_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "no locks here")))
    first, second = launch(tmp_path, "1"), launch(tmp_path, "2")
    with resume.once(first / "0", "offline"):
        beat = first / "0" / ".tracking.beat"
        with resume.once(second / "0", "offline") as mode:
            assert mode == "none"
        os.utime(beat, (time.time() - 1000,) * 2)
        with resume.once(second / "0", "offline") as mode:
            assert mode == "offline"
    assert not beat.exists()


def test_what_is_not_tracked_leaves_no_lock(tmp_path: Path) -> None:
    with resume.once(launch(tmp_path, "1", mode="none") / "0", "none") as mode:
        assert mode == "none"
    assert [path.name for path in (tmp_path / "1").iterdir()] == [resume.PLAN]

"""What a launch makes of the outcomes of its jobs: stopped at the first failure, returned to a sweeper, in batches."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import small
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from irl_exp import chain, config
from irl_exp.launch import command_line, planner
from irl_exp.launch.jobs import LaunchContext, PlannedJob
from irl_exp.report.cells import Outcome

IN_BATCHES = ("hydra.sweeper.max_batch_size=2",)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs that end without being run: those whose name says so fail. Gets a line when the executor is closed."""
    told: list[str] = []

    def run_all(context: Any, jobs: Any, *others: Any) -> Generator[Outcome, None, None]:
        try:
            for job in jobs:
                failed = "fails" in job.name
                outcome = Outcome(job.number, job.name, job.folder, "completed", metrics={"n_prompts": 1.0})
                yield Outcome(job.number, job.name, job.folder, "failed", error="why") if failed else outcome
        finally:
            told.append("closed")

    monkeypatch.setattr(planner, "run_all", run_all)
    monkeypatch.setattr(planner, "_announce", lambda *others: (set(), {}, []))
    return told


def launched(
    monkeypatch: pytest.MonkeyPatch, names: list[str], *overrides: str, first: int = 0, hydras: tuple[str, ...] = ()
) -> list[JobReturn]:
    """Launch jobs of these names, all with the config of the overrides."""
    typed = small.compose("name=made", *overrides)
    steps = chain.build(typed, small.DEVICE)
    config.register()
    with hydra.initialize_config_dir(str(config.CONF), **command_line.VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["hydra.sweep.dir=launch", *hydras], RunMode.MULTIRUN)
        context = LaunchContext(HydraContext(loader, Callbacks()), lambda job: None, master)
        jobs = [
            PlannedJob(
                first + index, name, Path("launch", str(first + index)).absolute(), OmegaConf.create(), typed, steps
            )
            for index, name in enumerate(names)
        ]
        monkeypatch.setattr(planner, "_plan", lambda *others: (jobs, small.DEVICE))
        return planner.launch(context, [[]] * len(jobs), first)


def statuses() -> Iterator[str]:
    for line in Path("launch/runs.csv").read_text().splitlines()[1:]:
        yield ",".join(line.split(",")[3:6:2])


def test_the_first_failed_job_ends_a_launch_that_is_to_fail_fast(
    closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(planner.LaunchError, match=r"3 of 4 jobs have no result. The first to fail: why"):
        launched(monkeypatch, ["a", "fails", "b", "c"], "fail_fast=true")
    reason = '"fail_fast=true'  # the reason has a comma, so the field is in quotes
    assert list(statuses()) == ["completed,", "failed,why", f"not run,{reason}", f"not run,{reason}"]
    assert "fail_fast=true, and job 1 failed" in Path("launch/summary.md").read_text()
    assert closed == ["closed"], "what still ran has ended before the summary"


def test_otherwise_the_other_jobs_go_on(closed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(planner.LaunchError, match="1 of 3 jobs have no result"):
        launched(monkeypatch, ["a", "fails", "b"])
    assert list(statuses()) == ["completed,", "failed,why", "completed,"]


def test_a_sweeper_gets_metrics_unless_an_objective_is_named(
    closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = launched(monkeypatch, ["a"])
    assert found.return_value == {"n_prompts": 1.0}
    fitted("launch/0", [{"step": 1, "select_loss": -0.5, "select_expert_first": 0.75}])
    (found,) = launched(monkeypatch, ["a"], "objective=irl/select_loss", "until=irl", "store.dir=store")
    assert found.return_value == -0.5


def test_of_a_sweep_in_batches_a_failed_job_is_the_sweepers_affair(
    closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = launched(monkeypatch, ["a", "fails"], hydras=IN_BATCHES)
    assert [item.status for item in found] == [JobStatus.COMPLETED, JobStatus.FAILED]
    with pytest.raises(planner.LaunchError, match="why"):
        found[1].return_value  # noqa: B018  (as Hydra's sweepers do)


def test_the_plan_of_a_sweep_in_batches_has_all_jobs(closed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, ["a", "b"], hydras=IN_BATCHES)
    launched(monkeypatch, ["c"], first=2, hydras=IN_BATCHES)
    jobs = json.loads(Path("launch/plan.json").read_text())["jobs"]
    assert [(job["number"], job["name"], job["folder"]) for job in jobs] == [
        (0, "a", "0"),
        (1, "b", "1"),
        (2, "c", "2"),
    ]
    assert not Path("launch/summary.md").exists(), "the whole sweep gets one, at its end"


def fitted(run: str, curve: list[dict[str, float]], **info: float) -> Path:
    """The folder of a run whose reward was fitted so, in a store beside it."""
    learned = Path("store/irl/abc")
    learned.mkdir(parents=True, exist_ok=True)
    manifest = {"format_version": 1, "digest": "abc", "created": "", "seconds": 0, "info": info}
    (learned / "manifest.json").write_text(
        json.dumps(manifest | {key: {} for key in ("identity", "files", "provenance")})
    )
    (learned / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
    Path(run).mkdir(parents=True, exist_ok=True)
    (Path(run) / "config.json").write_text(json.dumps({"artifacts": {"irl": "abc"}}))
    return Path(run)


@pytest.mark.parametrize("there", [True, False])
def test_a_refused_launch_removes_the_folder_that_it_made_and_no_other(tmp_path: Path, there: bool) -> None:
    """hydra.sweep.dir= is the folder where the user is; if only this launch has written there, it was removed."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "multirun.yaml").write_text("")
    with (
        pytest.raises(planner.LaunchError, match="no such option"),
        planner._refused_leaves_nothing(folder, () if there else (folder,)),
    ):
        raise config.ConfigError("no such option")
    assert folder.exists() == there

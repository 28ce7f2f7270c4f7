"""A second process beside a job that is alone: what it computes, that it changes nothing, and that it never stays."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from conftest import Launched, Launcher
from small import DEVICE, compose

from irl_exp import chain
from irl_exp.launch import planner
from irl_exp.launch.ahead import NUMBER, Ahead, steps_beside
from irl_exp.launch.obtain import Reporter, StageError, obtain, obtain_all
from irl_exp.machinery.runtime import Event
from irl_exp.machinery.store import Store
from irl_exp.stages.step import Step

TINY = ("scale=tiny", "data.count=1000", "tracking=none", "ahead=true")


@pytest.fixture
def steps() -> dict[str, Step]:
    return chain.build(compose("until=demonstrations"), DEVICE)


def reporter(report: Callable[[Event], None] = lambda event: None) -> Reporter:
    return Reporter(lambda stage, row: None, DEVICE, report, 0)


def every(steps: dict[str, Step]) -> dict[str, Step]:
    return {step.identity.digest: step for step in steps.values()}


def test_it_comes_ahead_of_its_job_and_waits_for_what_the_job_computes(steps: dict[str, Step], tmp_path: Path) -> None:
    beside, told = [steps["baseline"], steps["second_judge"], steps["judge"]], list[Event]()
    store = Store(tmp_path)
    second = threading.Thread(target=Ahead(beside, tmp_path, DEVICE).run, args=(told.append,))
    second.start()
    for stage in ("data", "reward", "sft"):
        obtain(steps[stage], store, reporter())
    # Two threads that open models at once would leave transformers without tied weights for the rest of the process.
    while steps["baseline"].identity not in store:
        time.sleep(0.01)
    for stage in ("rlhf", "demonstrations"):
        obtain(steps[stage], store, reporter())
    second.join(60)
    assert all(step.identity in store for step in beside)
    assert {event.stage for event in told if event.state == "computed"} == {"baseline", "second_judge", "judge"}
    assert {event.job for event in told} == {NUMBER}


def test_a_step_that_fails_is_left_to_the_job(
    steps: dict[str, Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("irl_exp.stages.second_judge.run", Mock(side_effect=ValueError("why")))
    obtain(steps["data"], Store(tmp_path), reporter())
    Ahead([steps["second_judge"], steps["judge"]], tmp_path, DEVICE).run(lambda event: None)
    with pytest.raises(StageError, match="second_judge: ValueError: why"):
        obtain_all([steps["data"], steps["second_judge"]], Store(tmp_path), reporter())


def test_a_job_does_other_things_before_it_waits(
    steps: dict[str, Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, begun, done = Store(tmp_path), threading.Event(), threading.Event()
    line = [steps[stage] for stage in ("data", "reward", "sft", "second_judge")]
    obtain(line[0], store, reporter())

    def slow(*_: object, **__: object) -> dict[str, object]:
        begun.set()
        done.wait(60)
        return {}

    monkeypatch.setattr("irl_exp.stages.reward.run", slow)
    other = threading.Thread(target=obtain, args=(steps["reward"], store, reporter()))
    other.start()
    begun.wait(60)
    told = list[tuple[str, str]]()

    def tell(event: Event) -> None:
        told.append((event.stage, event.state))
        if event.state == "waiting":
            done.set()

    found = obtain_all(line, store, reporter(tell))
    other.join()
    assert [entry for entry in dict.fromkeys(told) if entry[1] != "computing"] == [
        *(("data", "reused"), ("sft", "computed"), ("second_judge", "computed")),
        *(("reward", "waiting"), ("reward", "reused")),
    ]
    assert list(found) == ["data", "sft", "second_judge", "reward"]


def test_a_batch_does_for_its_jobs_what_it_can_in_place_of_waiting(
    steps: dict[str, Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what fails there is no failure of the batch."""
    store, begun, done = Store(tmp_path), threading.Event(), threading.Event()
    obtain(steps["data"], store, reporter())

    def slow(*_: object, **__: object) -> dict[str, object]:
        begun.set()
        done.wait(60)
        return {}

    monkeypatch.setattr("irl_exp.stages.sft.run", slow)
    monkeypatch.setattr("irl_exp.stages.reward.run", Mock(side_effect=ValueError("why")))
    other = threading.Thread(target=obtain, args=(steps["sft"], store, reporter()))
    other.start()
    begun.wait(60)

    def tell(event: Event) -> None:
        if event.state == "waiting":
            done.set()

    beside = [steps[stage] for stage in ("baseline", "reward", "second_judge", "judge")]
    found = obtain_all([steps["data"], steps["sft"]], store, reporter(tell), beside=beside)
    other.join()
    assert list(found) == ["data", "second_judge", "sft"]
    assert steps["baseline"].identity not in store, (
        "it reads what the batch has waited for, and nobody has asked for it"
    )


def test_a_sweep_knows_what_to_do_in_place_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from irl_exp.launch.jobs import PlannedJob

    def batch(*overrides: str) -> list[str]:
        jobs = []
        for seed in range(2):
            config = compose(f"irl.seed={seed}", *overrides)
            jobs.append(PlannedJob(seed, "", Path(), Mock(), config, chain.build(config, DEVICE)))
        missing = {digest: step for job in jobs for digest, step in every(dict(job.steps)).items()}
        (found,) = planner._batches(jobs, missing, 1, DEVICE)
        return [step.stage for step in found.beside]

    assert batch("ahead=true") == ["baseline", "candidates", "explain", "second_judge", "judge"]
    assert batch("ahead=false") == []


def test_there_is_nothing_to_come_ahead_of_without_a_training(steps: dict[str, Step]) -> None:
    missing = every(steps)
    assert [step.stage for step in steps_beside(steps, missing)] == ["baseline", "second_judge", "judge"]
    assert steps_beside(steps, every({stage: steps[stage] for stage in ("judge", "evaluate")})) == []
    without = every({stage: step for stage, step in steps.items() if stage not in chain.AHEAD})
    assert steps_beside(steps, without) == []


@pytest.mark.parametrize(
    ("overrides", "jobs", "cores"),
    [
        (("ahead=false",), 1, 2),
        (("ahead=true", "workers=1"), 1, 2),
        (("ahead=true",), 2, 2),
        (("ahead=true",), 1, 1),
        (("ahead=true", "executor=slurm", "device=cpu"), 1, 2),
    ],
)
def test_where_there_is_no_core_or_no_wish_there_is_none(
    overrides: tuple[str, ...], jobs: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside(overrides: tuple[str, ...], jobs: int, cores: int) -> list[str]:
        monkeypatch.setattr("irl_exp.machinery.runtime.cores", lambda: cores)
        config = compose(*overrides)
        steps = chain.build(config, DEVICE)
        job = Mock(config=config, steps=steps)
        fits = Mock(at_once=lambda sides, workers: workers)
        return [step.stage for step in planner._steps_beside([job] * jobs, every(steps), DEVICE, fits)]

    assert beside(("ahead=true",), 1, 2) == ["baseline", "candidates", "explain", "second_judge", "judge"]
    assert beside(overrides, jobs, cores) == []


def test_both_must_fit_into_the_memory() -> None:
    config = compose("ahead=true")
    steps = chain.build(config, DEVICE)
    full = Mock(at_once=lambda sides, workers: 1)
    assert planner._steps_beside([Mock(config=config, steps=steps)], every(steps), DEVICE, full) == []


def test_a_gpu_is_not_shared() -> None:
    config = compose("ahead=true")
    steps = chain.build(config, DEVICE)
    job, fits = Mock(config=config, steps=steps), Mock(at_once=lambda sides, workers: workers)
    assert planner._steps_beside([job], every(steps), replace(DEVICE, name="cuda:0"), fits) == []


def test_it_changes_no_byte(launcher: Launcher, three_seeds: Launched, tmp_path: Path) -> None:
    done = launcher(tmp_path, *TINY)
    assert done.text() == three_seeds.text()
    assert set(done.states().values()) == {"computed"}
    assert "waiting for it" not in done.stdout


def until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not found():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def second(launch: subprocess.Popen[str]) -> list[psutil.Process]:
    """The process beside the job."""
    return [one for one in psutil.Process(launch.pid).children() if "spawn_main" in " ".join(one.cmdline())]


@pytest.mark.parametrize("how", [pytest.param("Ctrl-C", marks=pytest.mark.slow), "kill"])
def test_it_does_not_stay_when_the_launch_is_gone(launcher: Launcher, tmp_path: Path, how: str) -> None:
    process = launcher.start(tmp_path, *TINY, "sft.steps=100000", "until=demonstrations")
    until(lambda: list(tmp_path.glob("multirun/store/second_judge/[!.]*")))
    children = psutil.Process(process.pid).children(recursive=True)
    assert second(process)
    if how == "kill":
        os.kill(process.pid, signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)
    assert launcher.end(process, tmp_path, check=False).returncode == (-signal.SIGKILL if how == "kill" else 130)
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_the_second_process_may_die(launcher: Launcher, three_seeds: Launched, tmp_path: Path) -> None:
    process = launcher.start(tmp_path, *TINY)
    until(lambda: second(process))
    second(process)[0].kill()
    done = launcher.end(process, tmp_path)
    assert done.text() == three_seeds.text()

"""How a launch is cut into tasks, and what becomes of them on an engine that loses workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import small
from omegaconf import OmegaConf

from irl_exp import chain
from irl_exp.launch import obtain, planner
from irl_exp.launch.console import Console
from irl_exp.launch.executors import Answer, _Graph
from irl_exp.launch.jobs import Batch, PlannedJob
from irl_exp.launch.tasks import Lone, Task, by_jobs, by_stages, declared, where
from irl_exp.machinery.runtime import Where, declared_device
from irl_exp.report.cells import Outcome
from irl_exp.stages.step import Step

DEVICE = declared_device("cpu", "auto")


def planned(tmp_path: Path, *overrides: tuple[str, ...]) -> list[PlannedJob]:
    jobs = []
    for number, own in enumerate(overrides):
        config = small.compose("until=irl", f"store.dir={tmp_path / 'store'}", *own)
        folder = tmp_path / "launch" / str(number)
        folder.mkdir(parents=True)
        jobs.append(PlannedJob(number, ",".join(own), folder, OmegaConf.create(), config, chain.build(config, DEVICE)))
    return jobs


def missing(jobs: list[PlannedJob]) -> dict[str, Step]:
    return {step.identity.digest: step for job in jobs for step in job.steps.values()}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[PlannedJob]:
    return planned(tmp_path_factory.mktemp("seeds"), *((f"irl.seed={seed}",) for seed in range(3)))


def batches(jobs: list[PlannedJob]) -> list[Batch]:
    found = obtain.batches(missing(jobs).values(), 1)
    return [Batch(-1 - index, steps, jobs[0].config.store.dir, DEVICE) for index, steps in enumerate(found)]


class Engine:
    """Does each task at once, as `answer` says; `lost` times a task is lost first."""

    tries = 4

    def __init__(self, answer: Callable[[Task], Answer] | None = None, lost: Mapping[str, int] | None = None) -> None:
        self.answer, self.lost = answer or done, dict(lost or {})
        self.begun: list[str] = []
        self.most = 0

    def slots(self, where: Where) -> int:
        return 2

    def submit(self, task: Task) -> Future[bytes]:
        self.begun.append(task.name)
        future: Future[bytes] = Future()
        if self.lost.get(task.name, 0):
            self.lost[task.name] -= 1
            future.set_exception(RuntimeError("the node is gone"))
        else:
            future.set_result(cloudpickle.dumps(self.answer(task)))
        return future


def done(task: Task) -> Answer:
    if isinstance(task.work, PlannedJob):
        job = task.work
        if failed := next((error for digest, error in job.failed.items() if digest in missing([job])), None):
            digest = failed.digest
            return Answer(Outcome(job.number, job.name, job.folder, "failed", error=str(failed), failed_step=digest))
        return Answer(Outcome(job.number, job.name, job.folder, "completed", metrics={}))
    return Answer()


def ended(engine: Engine, tasks: list[Task], jobs: list[PlannedJob]) -> list[tuple[int, str]]:
    return [(outcome.number, outcome.status) for outcome in _Graph(engine, tasks, jobs, Console(len(jobs))).run()]


def test_each_stage_once_and_after_what_it_reads(seeds: list[PlannedJob]) -> None:
    tasks = by_stages(seeds, batches(seeds), missing(seeds), DEVICE)
    made: set[str] = set()
    for task in tasks:
        assert made.isdisjoint(task.makes)
        made |= task.makes
    assert made == set(missing(seeds))
    assert [task.name for task in tasks if isinstance(task.work, Batch)] == ["3 IRL fits"]
    assert [task.name for task in tasks].count("evaluate") == 3
    assert len({task.work.number for task in tasks}) == len(tasks)
    for task in tasks:
        if isinstance(task.work, Lone):
            read = {value.identity.digest for value in task.work.step.inputs.values() if isinstance(value, Step)}
            assert read == task.needs


def test_what_the_store_has_is_no_task(seeds: list[PlannedJob]) -> None:
    lacking = {digest: step for digest, step in missing(seeds).items() if step.stage in ("irl", "evaluate")}
    tasks = by_stages(seeds, [], lacking, DEVICE)
    assert [task.name for task in tasks] == [name for job in range(3) for name in ("irl", "evaluate", f"job {job}")]
    assert not tasks[0].needs


def test_all_jobs_complete(seeds: list[PlannedJob]) -> None:
    engine = Engine()
    found = ended(engine, by_stages(seeds, batches(seeds), missing(seeds), DEVICE), seeds)
    assert sorted(found) == [(0, "completed"), (1, "completed"), (2, "completed")]
    order = engine.begun
    assert order.index("data") < order.index("sft") < order.index("demonstrations") < order.index("3 IRL fits")
    assert order.index("3 IRL fits") < order.index("job 0")


def test_a_lost_task_begins_again_and_is_told(seeds: list[PlannedJob], capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(lost={"sft": 3})
    found = ended(engine, by_stages(seeds, batches(seeds), missing(seeds), DEVICE), seeds)
    assert [status for _, status in found] == ["completed"] * 3
    assert engine.begun.count("sft") == 4
    assert capsys.readouterr().out.count("sft: RuntimeError: the node is gone; it begins again") == 3


def test_after_three_times_more_it_is_given_up(seeds: list[PlannedJob]) -> None:
    engine = Engine(lost={"rlhf": 9})
    found = ended(engine, by_stages(seeds, batches(seeds), missing(seeds), DEVICE), seeds)
    assert sorted(found) == [(0, "failed"), (1, "not run"), (2, "not run")]
    assert engine.begun.count("rlhf") == 4
    assert "demonstrations" not in engine.begun


def test_a_job_whose_worker_is_always_lost_fails(seeds: list[PlannedJob]) -> None:
    engine = Engine(lost={"job 1": 9})
    found = ended(engine, by_stages(seeds, batches(seeds), missing(seeds), DEVICE), seeds)
    assert sorted(found) == [(0, "completed"), (1, "failed"), (2, "completed")]
    assert "the node is gone" in (seeds[1].folder / "error.txt").read_text()


def test_a_stage_that_fails_is_told_by_its_first_job(seeds: list[PlannedJob]) -> None:
    def answer(task: Task) -> Answer:
        if task.name == "features":
            assert isinstance(task.work, Lone)
            return Answer(error=obtain.StageError("features", task.work.step.identity.digest, ValueError("no")).told())
        return done(task)

    outcomes = list(_Graph(Engine(answer), by_stages(seeds, [], missing(seeds), DEVICE), seeds, Console(3)).run())
    told = {outcome.number: outcome.error for outcome in outcomes}
    assert told == {0: "features: ValueError: no", 1: "needs a stage that failed in job 0", 2: told[1]}


def test_steps_of_a_batch_that_fails_are_tried_alone(seeds: list[PlannedJob]) -> None:
    def answer(task: Task) -> Answer:
        return Answer(failure="why") if isinstance(task.work, Batch) else done(task)

    engine = Engine(answer)
    found = ended(engine, by_stages(seeds, batches(seeds), missing(seeds), DEVICE), seeds)
    assert [status for _, status in found] == ["completed"] * 3
    assert engine.begun.count("irl") == 3


def test_on_one_machine_jobs_compute_what_no_batch_does(seeds: list[PlannedJob]) -> None:
    tasks = by_jobs(seeds, batches(seeds))
    assert [task.name for task in tasks] == ["3 IRL fits", "job 0", "job 1", "job 2"]
    assert all(task.needs and task.needs <= tasks[0].makes for task in tasks[1:])


def test_the_chain_names_stages_that_there_are() -> None:
    stages = {path.stem for path in (Path(chain.__file__).parent / "stages").glob("*.py")} - {"__init__", "step"}
    assert {*chain.NO_GPU, *chain.AHEAD} < stages


def test_judging_needs_a_gpu_where_the_judge_is_a_model(tmp_path: Path, small_classifier: Path) -> None:
    model = f"reward.path={small_classifier}", "reward.civil=neutral", "reward.toxic=toxic"
    words, network = planned(tmp_path, (), ("reward=sequence_classifier", *model))
    assert {stage: where(step) for stage, step in words.steps.items() if where(step) == "cpu"}.keys() == {
        *("data", "reward", "second_judge", "judge")
    }
    assert [where(network.steps[stage]) for stage in ("data", "reward", "judge")] == ["cpu", "gpu", "gpu"]


def test_a_failure_travels_with_its_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        found: Any = cloudpickle.loads(cloudpickle.dumps(obtain.StageError("sft", "abc", error).told()))
    assert str(found) == "sft: ValueError: why"
    assert found.digest == "abc"


def test_workers_are_one_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from irl_exp.machinery import runtime

    monkeypatch.setattr(runtime, "gpus", lambda: ["2", "5", "7"])
    device = runtime.Device("cuda:0", "bf16", 1)
    assert planner._workers(small.compose("until=irl"), device) == 3
    assert planner._workers(small.compose("workers=2"), device) == 2


def test_the_declared_device_reads_as_many_tokens_at_once_as_was_asked_for() -> None:
    assert declared(small.compose("device=cpu", "batch_tokens=123")).batch_tokens == 123

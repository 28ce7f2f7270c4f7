"""Launches on a real Slurm, and what may happen to them there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster
from conftest import Launched, Launcher
from slurm_cluster import Cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_cluster.lacks()), reason=slurm_cluster.lacks() or "there is a Slurm"),
]
LINE = ("scale=tiny", "until=irl", "tracking=none", "device=cpu", "executor=slurm", "irl.seed=0,1,2")
ASKED = ("executor.partition=toy", "executor.nodes=2", "executor.walltime=00:30:00")
PATIENCE = 500


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def begin(launcher: Launcher, slurm: Cluster, folder: Path, *more: str) -> subprocess.Popen[str]:
    return launcher.start(folder, *LINE, *ASKED, *more, env=slurm.env)


def until(found: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = PATIENCE) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.2)
    return answer


def computing(folder: Path, stage: str) -> Mapping[str, Any] | None:
    """The worker that computes a stage right now, as it has told of itself."""
    for path in folder.glob("multirun/*/*/workers/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        told = [line for line in lines if line["kind"] in ("event", "end")]
        if told and (told[-1].get("stage"), told[-1].get("state")) == (stage, "computing"):
            return next(line for line in lines if line["kind"] == "worker")
    return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/status").read_text().find("State:\tZ") < 0
    except OSError:
        return False


def launch_with(
    launcher: Launcher, slurm: Cluster, folder: Path, harm: Callable[[Mapping[str, Any]], None], *more: str
) -> Launched:
    """A launch whose worker is harmed while it trains the reference policy."""
    process = begin(launcher, slurm, folder, *more)
    harm(until(lambda: computing(folder, "sft"), process))
    return launcher.end(process, folder, check=False)


def goes_on(done: Launched, times: int = 1) -> None:
    """The lost stage has begun again, and nothing else is to be seen of it."""
    assert done.returncode == 0, done.stdout + done.stderr
    again = [line for line in done.stdout.splitlines() if "it begins again" in line]
    assert len(again) >= times, done.stdout
    assert again[0].startswith("sft: "), again
    assert [row["status"] for row in done.runs()] == ["completed"] * 3
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def killed(launcher: Launcher, slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The command of the README, tiny, one of whose workers is killed."""
    folder = tmp_path_factory.mktemp("killed")
    return launch_with(launcher, slurm, folder, lambda worker: os.kill(worker["pid"], signal.SIGKILL))


def test_what_a_killed_worker_did_is_done_again(killed: Launched) -> None:
    goes_on(killed)


def test_the_queue_is_empty_after_a_launch(killed: Launched, slurm: Cluster) -> None:
    until(lambda: not slurm.jobs(), seconds=20)


def test_numbers_are_those_of_one_machine(killed: Launched, launcher: Launcher, tmp_path: Path) -> None:
    here = launcher(tmp_path, *(item for item in LINE if not item.startswith("executor")), "workers=2")
    for job in range(3):
        assert killed.text(job) == here.text(job)


def test_each_stage_was_computed_once(killed: Launched) -> None:
    told = [
        json.loads(line)
        for path in (killed.folder / "workers").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    computed = Counter(line["stage"] for line in told if line.get("state") == "computed")
    assert computed.pop("evaluate") == 3
    assert computed.pop("irl", 0) <= 3
    assert set(computed) >= {"sft", "rlhf", "demonstrations", "features"}
    assert set(computed.values()) == {1}


def test_the_log_of_each_worker_is_found(killed: Launched) -> None:
    assert f"{killed.folder.relative_to(killed.cwd)}/workers/" in killed.stdout
    workers = killed.folder / "workers"
    assert {path.stem for path in workers.glob("*.log")} >= {path.stem for path in workers.glob("*.jsonl")}
    assert "workers/" in (killed.folder / "summary.md").read_text()


def test_ctrl_c_gives_the_nodes_back(launcher: Launcher, slurm: Cluster, tmp_path: Path) -> None:
    process = begin(launcher, slurm, tmp_path)
    worker = until(lambda: computing(tmp_path, "sft"), process)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    done = launcher.end(process, tmp_path, check=False)
    assert done.returncode == 130, done.stdout + done.stderr
    assert not slurm.jobs("RUNNING", "PENDING")
    assert time.monotonic() - start < 60  # ten seconds on a quiet machine
    assert [row["status"] for row in done.runs()] == ["not run"] * 3
    until(lambda: not alive(worker["pid"]), seconds=20)


# ------------------------------------------------------------------------------------------------ minutes


@pytest.mark.slow
def test_a_cancelled_pilot_job_is_replaced(launcher: Launcher, slurm: Cluster, tmp_path: Path) -> None:
    goes_on(launch_with(launcher, slurm, tmp_path, lambda worker: print(slurm.ask("scancel", worker["job"]))))


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["toy", "again"], ids=["cancelled", "queued again"])
def test_a_preempted_pilot_job_is_replaced(launcher: Launcher, slurm: Cluster, tmp_path: Path, partition: str) -> None:
    def preempt(worker: Mapping[str, Any]) -> None:
        node = slurm.ask("squeue", "--noheader", "--format=%N", f"--jobs={worker['job']}")
        urgent = ("--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=sleep 10")
        slurm.ask("sbatch", *urgent)
        until(lambda: not alive(worker["pid"]), seconds=60)

    # The scheduler takes some seconds, and leaves the job five.
    asked = [f"executor.partition={partition}", "executor.options=[--requeue]", "sft.steps=400"]
    goes_on(launch_with(launcher, slurm, tmp_path, preempt, *asked))


@pytest.mark.slow
def test_a_stopped_worker_is_replaced(launcher: Launcher, slurm: Cluster, tmp_path: Path) -> None:
    def stop(worker: Mapping[str, Any]) -> None:
        os.kill(worker["pid"], signal.SIGSTOP)

    done = launch_with(launcher, slurm, tmp_path, stop, "executor.patience=15")
    goes_on(done)
    assert "was silent for 15 s" in done.stdout


@pytest.mark.slow
def test_the_workers_of_a_killed_launch_end_and_the_same_command_goes_on(
    launcher: Launcher, slurm: Cluster, tmp_path: Path
) -> None:
    process = begin(launcher, slurm, tmp_path)
    worker = until(lambda: computing(tmp_path, "rlhf"), process)
    process.kill()
    process.communicate()
    until(lambda: not alive(worker["pid"]) and not slurm.jobs(), seconds=60)
    done = launcher.end(begin(launcher, slurm, tmp_path), tmp_path)
    first = min((tmp_path / "multirun" / "chain").iterdir())
    assert not list(first.glob("*/metrics.json"))
    sft = [line for path in done.folder.glob("workers/*.jsonl") for line in path.open() if '"sft"' in line]
    assert not [line for line in sft if '"computed"' in line]


@pytest.mark.slow
def test_a_stage_that_kills_each_worker_is_given_up(launcher: Launcher, slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(
        "import os\ndef vanishes(prompts, completions):\n"
        "    os._exit(1) if len(completions) > 3 else None\n    return [0.0 for _ in completions]\n"
    )
    line = ("scale=tiny", "until=sft", "tracking=none", "device=cpu", "executor=slurm", *ASKED)
    env = {**slurm.env, "PYTHONPATH": str(tmp_path)}
    named = ("reward=imported", "reward.function=ends:vanishes")
    done = launcher(tmp_path, *line, *named, env=env, check=False)
    assert done.returncode == 1
    assert done.stdout.count("it begins again") == 3
    (row,) = done.runs()
    assert row["status"] == "failed"
    assert "4 times" in row["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "told"),
    [("executor.setup='exit 3'", "executor.setup"), ("executor.partition=nope", "invalid partition specified: nope")],
)
def test_pilot_jobs_without_workers_end_the_launch(
    launcher: Launcher, slurm: Cluster, tmp_path: Path, wrong: str, told: str
) -> None:
    asked = [item for item in ASKED if not wrong.startswith(item.partition("=")[0])]
    done = launcher(tmp_path, *LINE, *asked, wrong, env=slurm.env, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert [row["status"] for row in done.runs()] == ["not run"] * 3

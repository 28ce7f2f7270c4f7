"""What may be said of a cluster, and what is refused before any work."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import pytest
import small

from irl_exp.config import ConfigError, KubernetesExecutor, LocalExecutor, SlurmExecutor
from irl_exp.launch import cluster
from irl_exp.launch.compose import _check_shared
from irl_exp.launch.jobs import job_name
from irl_exp.launch.messages import LaunchError


def test_by_default_jobs_run_on_this_machine() -> None:
    assert small.compose().executor == LocalExecutor()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("device=auto",), "executor=slurm: the launch cannot see the device of its workers: set device=cpu or"),
        (("device=cuda", "executor.gpus=2"), "executor=slurm: set precision=bf16 or fp32"),
        (("device=cuda", "precision=bf16"), "device=cuda and executor.gpus=0: set executor.gpus"),
        (("device=cpu", "executor.gpus=1"), "device=cpu and executor.gpus=1: leave out executor.gpus"),
        (("executor.walltime=day",), "executor.walltime=day: string should match pattern"),
        (("executor.walltime='00:00:30'",), "a pilot job needs a minute"),
        (("executor.partition='a b'",), "executor.partition=a b: string should match pattern"),
        (("executor.nodes=0",), "executor.nodes=0: input should be greater than or equal to 1"),
    ],
)
def test_what_is_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small.compose("executor=slurm", *overrides)
    assert told in str(caught.value)


def test_with_gpus_there_are_two_pools() -> None:
    asked = ("device=cuda", "precision=bf16", "executor.gpus=4", "executor.nodes=2", "executor.cpu_workers=3")
    executor = small.compose("executor=slurm", *asked).executor
    assert isinstance(executor, SlurmExecutor)
    assert (executor.slots("gpu"), executor.slots("cpu")) == (8, 3)
    executor = small.compose("executor=slurm", "executor.nodes=2", "executor.workers=5").executor
    assert isinstance(executor, SlurmExecutor)
    assert (executor.slots("gpu"), executor.slots("cpu")) == (0, 10)
    assert executor.seconds == 4 * 3600


def test_pods_have_an_image_and_volumes() -> None:
    executor = small.compose("executor=kubernetes", "executor.image=me/irl:1").executor
    assert isinstance(executor, KubernetesExecutor)


def test_without_what_it_needs_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = SlurmExecutor()
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(LaunchError, match="there is no sbatch here: start the launch where jobs are submitted"):
        cluster.check(slurm)
    found: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "parsl" else found(name))
    with pytest.raises(LaunchError, match=r"pip install 'irl-exp\[cluster\]'"):
        cluster.check(slurm)


def test_where_a_job_runs_is_no_part_of_its_name() -> None:
    assert job_name(["executor=slurm", "executor.nodes=3", "irl.seed=1"]) == "irl.seed=1"


def test_all_jobs_of_a_launch_run_at_one_place() -> None:
    with pytest.raises(ConfigError, match="all jobs of a launch have one executor"):
        _check_shared([small.compose(), small.compose("executor=slurm")])

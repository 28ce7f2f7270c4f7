"""One step of a run: the same bytes whatever its process did before, and one error where it fails."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import threadpoolctl
import torch
from sklearn.neural_network import MLPClassifier
from small import DEVICE, compose

from irl_exp import chain
from irl_exp.launch import stops
from irl_exp.launch.obtain import Reporter, StageError, obtain
from irl_exp.launch.writing import WriteError, writing
from irl_exp.machinery.runtime import THREADS, Context
from irl_exp.machinery.store import Store

REPORTER = Reporter(lambda stage, row: None, DEVICE, lambda event: None, 0)


def test_a_stage_gives_the_same_bytes_whatever_ran_before_it(tmp_path: Path) -> None:
    """A library that another stage loads, or leaves with two threads, sums in another order."""
    steps = chain.build(compose(), DEVICE)
    stores = [Store(tmp_path / name) for name in ("alone", "after")]
    obtain(steps["data"], stores[0], REPORTER)
    shutil.copytree(stores[0].root, stores[1].root)
    alone = obtain(steps["second_judge"], stores[0], REPORTER)
    torch.set_num_threads(2)
    threadpoolctl.threadpool_limits(2)
    after = obtain(steps["second_judge"], stores[1], REPORTER)
    assert after.manifest["files"] == alone.manifest["files"]
    assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {torch.get_num_threads()} == {1}


def test_what_is_loaded_later_has_one_thread_too() -> None:
    """numpy, scipy and scikit-learn bring libraries of their own, the last two not before a stage needs them."""
    code = """
import json
from irl_exp.machinery.runtime import prepare_process
prepare_process()
import sklearn.linear_model, threadpoolctl
print(json.dumps([pool["num_threads"] for pool in threadpoolctl.threadpool_info()]))
"""
    kept = {name: value for name, value in os.environ.items() if name not in THREADS}
    told = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True).stdout
    assert len(json.loads(told)) > 2
    assert set(json.loads(told)) == {1}


def test_a_whole_chain_gives_the_same_bytes_on_any_number_of_threads(tmp_path: Path) -> None:
    """In tiny sizes, but with several shards of every kind."""
    sizes = ("data.count=1200", "sft.batch_size=40", "rlhf.batch_size=36", "refinetune.batch_size=36")
    config = compose(*sizes, "data.test_prompts=24", "demonstrations.batch_size=16", "evaluate.batch_size=16")
    found = []
    for threads in (1, 3):
        device = replace(DEVICE, threads=threads)
        store = Store(tmp_path / str(threads))
        reporter = Reporter(lambda stage, row: None, device, lambda event: None, 0)
        found.append({step.stage: obtain(step, store, reporter) for step in chain.build(config, device).values()})
    alone, several = found
    assert "refinetune" in alone
    assert [stage for stage in alone if alone[stage].manifest["files"] != several[stage].manifest["files"]] == []


@pytest.mark.parametrize("faster", [False, True], ids=["computed again", "another one was faster"])
def test_a_curve_reaches_the_tracker_once_though_others_gave_the_process_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    store, step = Store(tmp_path), chain.build(compose(), DEVICE)["data"]
    rows: list[float] = []
    begun: list[Path] = []

    def run(*_: object, context: Context, **__: object) -> dict[str, object]:
        begun.append(context.folder)
        for value in range(3):
            context.log({"loss": value})
            if value == 1 and len(begun) == 1:
                give_up()
        return {}

    def give_up() -> None:
        if faster:
            obtain(step, Store(tmp_path), REPORTER)
        else:
            next(tmp_path.glob(".*.beat")).unlink()

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr("irl_exp.stages.data.run", run)
    found = obtain(step, store, Reporter(lambda _, row: rows.append(row["loss"]), DEVICE, lambda event: None, 0))
    assert found.reused == faster
    assert len(begun) == 2
    assert rows == [0, 1, 2]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_what_would_end_the_process_is_an_error_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("irl_exp.stages.data.run", Mock(side_effect=error))
    step, store = chain.build(compose(), DEVICE)["data"], Store(tmp_path)
    with pytest.raises(StageError, match=f"^data: {type(error).__name__}: ") as caught:
        obtain(step, store, REPORTER)
    assert caught.value.digest == step.identity.digest
    assert list(tmp_path.glob("data/.*.tmp-*")) == []


def test_a_stop_is_no_error_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irl_exp.stages.data.run", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt), stops.terminate_like_interrupt():
        obtain(chain.build(compose(), DEVICE)["data"], Store(tmp_path), REPORTER)


@pytest.mark.parametrize("stage", ["reward", "second_judge"])
def test_a_judge_whose_fit_was_stopped_is_no_result(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-learn takes Ctrl-C for the end of training, and goes on with half a network."""
    steps, store = chain.build(compose(), DEVICE), Store(tmp_path)
    obtain(steps["data"], store, REPORTER)
    monkeypatch.setattr(MLPClassifier, "_backprop", lambda *_: signal.raise_signal(signal.SIGTERM))
    interrupted = pytest.warns(UserWarning, match="interrupted by user")
    with stops.terminate_like_interrupt(), interrupted, pytest.raises(KeyboardInterrupt):
        obtain(steps[stage], store, REPORTER)
    assert steps[stage].identity not in store
    assert list((tmp_path / stage).glob("[!.]*")) == []


def test_a_run_folder_that_is_full_is_no_error_of_the_stage_nor_of_the_store(tmp_path: Path) -> None:
    """Or every other job that needs the stage would not be tried."""

    def log(stage: str, row: Mapping[str, float]) -> None:
        with writing(tmp_path / "run"):
            raise OSError(errno.ENOSPC, "No space left on device")

    reporter = Reporter(log, DEVICE, lambda event: None, 0)
    step = chain.build(compose(), DEVICE)["data"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("irl_exp.stages.data.run", lambda *_, context, **__: context.log({"step": 0}))
        with pytest.raises(WriteError, match=f"^{tmp_path}/run cannot be written .No space left"):
            obtain(step, Store(tmp_path / "store"), reporter)

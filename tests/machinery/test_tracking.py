"""Tracking: the files of a run, the W&B view of it, and what happens when W&B does not work.

What depends on how a process starts (accounts, servers, kills) runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wandb_files import read_run
from wandb_server import StandIn, online, sync, wandb_server

from irl_exp.machinery import tracking
from irl_exp.machinery.tracking import (
    Product,
    Tracker,
    TrackingError,
    View,
    abandon,
    log_report,
    not_uploaded,
    read_record,
    recorded,
    resolve_mode,
    sync_command,
    track,
)

CONFIG = {"seed": 0, "irl": {"lr": 0.001, "loss": {"name": "max_margin"}, "layers": [1, 2]}}
KEY = "0123456789" * 4

BATCH: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 120}

PREAMBLE = """
import logging, os, signal, sys, time
from pathlib import Path
from irl_exp.machinery import tracking
from irl_exp.machinery.tracking import Product, abandon, resolve_mode, sync_command, track
logging.basicConfig(level=logging.WARNING, format="LOG %(message)s")
here = Path.cwd()

def run(job="0", mode="wandb", **more):
    about = dict(project="p", entity=None, name="irl-seed0", group="study", tags=["a", "b"])
    return track(mode, run_dir=here / "launch" / job, config={"irl": {"lr": 0.1}}, **about, **more)

def product(name="policy", **more):
    return Product(name, "model", here / name, {"stage": name}, **more)

def rows(tracker, n=3):
    for step in range(n):
        tracker.log("irl", {"step": 10 * step, "loss": 1.0 / (step + 1)})
"""


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's W&B in this process, and nothing of this test in the next."""
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(tracking, "_decided", None)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with wandb_server() as running:
        yield running


def record(run_dir: Path, mode: str = "offline", **more: Any) -> AbstractContextManager[Tracker]:
    about: dict[str, Any] = {"project": "p", "entity": None, "name": "irl-seed0", "group": "study"}
    about |= {"tags": ["a", "b"], "config": CONFIG}
    return track(mode, run_dir=run_dir, **about | more)


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A new user's: no account, no setting, an empty home."""
    (folder / "home").mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    return {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "PYTHONPATH": str(root)} | more


def child(program: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder` as a new user without a terminal; `run` and `rows` are at hand."""
    command = [sys.executable, "-c", PREAMBLE + dedent(program)]
    return subprocess.run(command, cwd=folder, env=environment(folder, **env), **BATCH, check=False)


def own(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """History rows without what wandb adds to each (_step, _runtime, _timestamp)."""
    return [{key: value for key, value in row.items() if key[0] != "_"} for row in history]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.name == "irl_exp.machinery.tracking"]


def state(run_dir: Path) -> str:
    found = read_record(run_dir)
    assert found is not None
    return str(found["state"])


def offline_run(folder: Path, job: str = "0") -> Path:
    (found,) = (folder / "launch" / job / "wandb").glob("offline-run-*")
    return found


# -------------------------------------------------------------------------------------------------- the files


def test_without_wandb_there_are_two_files(tmp_path: Path) -> None:
    row: dict[str, Any] = {"step": 3, "loss": np.float32(0.5), "n": np.int64(2)}
    with record(tmp_path / "0", mode="none") as tracker:
        tracker.log("irl", row)
        assert lines(tmp_path / "0") == [{"irl/step": 3, "irl/loss": 0.5, "irl/n": 2}]  # at once
        tracker.summarise({"b": 2, "a": 1.5})
        tracker.log_table("table", ["x"], [[1]])
        tracker.log_artifact(Product("policy", "model", tmp_path, {}))
        tracker.note("all is well")
        assert tracker.url is None
        assert tracker.offline_folder is None
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["metrics.json", "metrics.jsonl"]
    assert (tmp_path / "0" / "metrics.json").read_text() == '{\n  "a": 1.5,\n  "b": 2\n}\n'


def test_a_second_attempt_in_a_folder_starts_anew(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with record(tmp_path, mode="none") as tracker:
            assert not (tmp_path / "metrics.json").exists()
            tracker.log("irl", {"step": 0, "loss": loss})
            tracker.summarise({"loss": loss})
    assert lines(tmp_path) == [{"irl/step": 0, "irl/loss": 2.0}]


def test_final_numbers_add_up(tmp_path: Path) -> None:
    with record(tmp_path, mode="none") as tracker:
        tracker.summarise({"irl/accuracy": 0.5})
        tracker.summarise({"evaluate/regret": 0.1})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "evaluate/regret": 0.1,
        "irl/accuracy": 0.5,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_a_final_number_is_finite(tmp_path: Path, value: float) -> None:
    with record(tmp_path, mode="none") as tracker:
        with pytest.raises(TrackingError, match=r"evaluate/regret = (nan|-?inf)"):
            tracker.summarise({"fine": 1.0, "evaluate/regret": value})
        assert not (tmp_path / "metrics.json").exists()


def test_a_curve_shows_its_nan_and_refuses_what_is_no_number(tmp_path: Path) -> None:
    with record(tmp_path, mode="none") as tracker:
        tracker.log("irl", {"step": 0, "loss": float("nan")})
        with pytest.raises(TrackingError, match=r"irl/loss = 'high' is not a number"):
            tracker.log("irl", {"step": 1, "loss": "high"})  # type: ignore[dict-item]
        with pytest.raises(TrackingError, match=r"'irl' has no 'step', only loss"):
            tracker.log("irl", {"loss": 1.0})
    assert len(lines(tmp_path)) == 1
    assert np.isnan(lines(tmp_path)[0]["irl/loss"])


def test_curves_survive_a_kill(tmp_path: Path) -> None:
    program = """
        with run(mode="offline") as tracker:
            rows(tracker, 50)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert child(program, tmp_path).returncode == -9
    assert [row["irl/step"] for row in lines(tmp_path / "launch" / "0")] == list(range(0, 500, 10))


# ------------------------------------------------------------------------------------------ the view, offline


def test_an_offline_run_can_be_read_back(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    (policy / "tokenizer").mkdir(parents=True)
    (policy / "weights").write_bytes(b"w")
    (policy / "tokenizer" / "vocabulary").write_bytes(b"v")
    with record(tmp_path / "0") as tracker:
        tracker.log("rlhf", {"step": 8, "kl": 0.0})
        for step in range(3):
            tracker.log("irl", {"step": 10 * step, "loss": 1.0 / (step + 1)})
        tracker.summarise({"evaluate/regret": 0.25})
        tracker.log_table("evaluate/samples", ["prompt", "reward"], [["a", 1.0], ["b", None]])
        tracker.log_artifact(Product("policy", "model", policy, {}, ["abc"], {"digest": "abc"}, uploaded=True))
    assert tracker.offline_folder is not None
    assert tracker.url is None
    seen = read_run(tracker.offline_folder)
    about = {key: seen["run"][key] for key in ("name", "project", "group", "tags")}
    assert about == {"name": "irl-seed0", "project": "p", "group": "study", "tags": ["a", "b"]}
    assert {key: seen["config"][key] for key in CONFIG} == CONFIG
    assert own(seen["history"])[:4] == lines(tmp_path / "0")
    assert seen["history"][-1]["evaluate/samples"]["nrows"] == 2
    assert seen["summary"]["evaluate/regret"] == 0.25
    steps = [{"name": f"{stage}/*", "step": f"{stage}/step"} for stage in ("rlhf", "irl")]
    assert seen["metrics"] == steps
    (artifact,) = (found for found in seen["artifacts"] if found["name"] == "policy")
    assert artifact.pop("aliases") == ["abc", "latest"]
    about = {"name": "policy", "type": "model", "made": True, "used": False, "metadata": {"digest": "abc"}}
    assert artifact == about | {"entries": ["tokenizer/vocabulary", "weights"]}
    assert seen["exit_code"] == 0


def test_everything_of_a_run_lies_in_its_folder_and_artifacts_take_no_space(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "weights").write_bytes(b"w")
    with record(tmp_path / "0") as tracker:
        tracker.log_artifact(Product("policy", "model", tmp_path / "policy", {}, uploaded=True))
        tracker.log_table("samples", ["x"], [[1]])
    (link,) = (tmp_path / "0" / "wandb").rglob("weights")
    assert link.samefile(tmp_path / "policy" / "weights")
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert "WANDB_DATA_DIR" not in os.environ


def test_three_runs_of_one_process_are_three_runs(tmp_path: Path) -> None:
    folders = []
    for job in range(3):
        with record(tmp_path / str(job), name=f"irl-seed{job}", config={"seed": job}) as tracker:
            tracker.log("irl", {"step": job, "loss": 1.0})
        assert tracker.offline_folder is not None
        folders.append(tracker.offline_folder)
    runs = [read_run(folder) for folder in folders]
    assert len({run["run"]["id"] for run in runs}) == 3
    assert [run["run"]["name"] for run in runs] == ["irl-seed0", "irl-seed1", "irl-seed2"]
    assert [own(run["history"]) for run in runs] == [[{"irl/step": job, "irl/loss": 1}] for job in range(3)]
    assert [run["config"]["seed"] for run in runs] == [0, 1, 2]


def test_a_column_of_wandb_is_a_final_number_and_never_the_last_of_a_curve(tmp_path: Path) -> None:
    with record(tmp_path) as tracker:
        tracker.log("irl", {"step": 0, "auroc": 0.5, "loss": 1.0})
        tracker.summarise({"irl/auroc": 0.9})
        tracker.log("irl", {"step": 1, "auroc": 0.6, "loss": 0.5})
    assert tracker.offline_folder is not None
    seen = read_run(tracker.offline_folder)
    assert {key: value for key, value in seen["summary"].items() if key[0] != "_"} == {"irl/auroc": 0.9}
    assert [row["irl/auroc"] for row in seen["history"]] == [0.5, 0.6]


def test_a_product_that_is_not_uploaded_is_known_by_its_identity(tmp_path: Path) -> None:
    """Aliases that W&B would refuse are spelled differently; the weights stay where they are."""
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "weights").write_bytes(b"w" * 1000)
    expert = Product(
        "expert", "model", tmp_path / "expert", {"stage": "rlhf"}, ["losses,irl/loss=mine:hinge", "x" * 200]
    )
    with record(tmp_path / "0") as tracker:
        tracker.log_artifact(expert, made=False, used=True)
    assert tracker.offline_folder is not None
    (artifact,) = read_run(tracker.offline_folder)["artifacts"]
    assert (artifact["entries"], artifact["made"], artifact["used"]) == (["identity.json"], False, True)
    assert "losses,irl.loss=mine.hinge" in artifact["aliases"]
    assert max(map(len, artifact["aliases"])) < 129
    (identity,) = (tmp_path / "0" / "wandb").rglob("identity.json")
    assert json.loads(identity.read_text()) == {"stage": "rlhf"}
    assert not list((tmp_path / "0").rglob("weights"))


def test_names_and_tags_are_as_long_as_wandb_takes_them(tmp_path: Path) -> None:
    """It refuses a run with a longer tag; what differs stands at the ends."""
    with record(tmp_path, name="a" * 100 + "b" * 100, tags=["c" * 40 + "d" * 40], commit="0123abcd") as tracker:
        tracker.note("**all** is well")
    assert tracker.offline_folder is not None
    run = read_run(tracker.offline_folder)["run"]
    assert run["name"] == "a" * 63 + "…" + "b" * 63
    assert run["tags"] == ["c" * 31 + "…" + "d" * 31]
    assert (run["notes"], run["commit"]) == ("**all** is well", "0123abcd")


def test_a_run_says_in_its_folder_how_it_ended(tmp_path: Path) -> None:
    with record(tmp_path / "0") as tracker:
        assert state(tmp_path / "0") == "open"
    assert state(tmp_path / "0") == "finished"
    found = read_record(tmp_path / "0")
    assert found is not None
    assert (found["folder"], found["group"], found["online"]) == (str(tracker.offline_folder), "study", False)
    with pytest.raises(ValueError, match="lost"), record(tmp_path / "0"):
        raise ValueError("lost")
    assert state(tmp_path / "0") == "failed"
    with record(tmp_path / "0", mode="none"):
        pass
    assert read_record(tmp_path / "0") is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_job_is_a_failed_run_and_keeps_its_numbers(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), record(tmp_path) as tracker:  # noqa: PT012
        tracker.log("irl", {"step": 0, "loss": 1.0})
        raise error
    assert tracker.offline_folder is not None
    assert read_run(tracker.offline_folder)["exit_code"] == 1
    assert lines(tmp_path) == own(read_run(tracker.offline_folder)["history"])


def test_a_stop_while_a_run_closes_leaves_it_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B can close a run once: what breaks it off leaves the run open for ever."""
    import wandb

    close = wandb.Run.finish

    def stopped(run: wandb.Run, exit_code: int | None = None) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
        close(run, exit_code)

    monkeypatch.setattr(wandb.Run, "finish", stopped)
    with pytest.raises(KeyboardInterrupt), record(tmp_path) as tracker:
        tracker.log("irl", {"step": 0, "loss": 1.0})
    assert tracker.offline_folder is not None
    assert read_run(tracker.offline_folder)["exit_code"] == 0


def test_trouble_with_wandb_is_told_once_and_loses_no_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with record(tmp_path) as tracker:
        tracker.log_artifact(Product("no/such name", "model", tmp_path, {}))
        tracker.log_table("samples", ["x"], [[1]])  # would wait for a server that may be dead
        tracker.log("irl", {"step": 0, "loss": 1.0})
    (warning,) = told(caplog)
    assert "W&B misses a part of this run (" in warning
    assert f"the files in {tmp_path} do not" in warning
    assert tracker.offline_folder is not None
    assert lines(tmp_path) == own(read_run(tracker.offline_folder)["history"])


def test_a_run_that_wandb_refuses_has_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with record(tmp_path, project="a/b") as tracker:
        tracker.log("irl", {"step": 0, "loss": 1.0})
    assert "W&B cannot start (UsageError: Invalid project name 'a/b'" in told(caplog)[0]
    assert len(lines(tmp_path)) == 1


# --------------------------------------------------------------------------------------------- the study page

PAGE = """<!doctype html><h1>Study</h1>
<img src="curves.png" alt="curves"><img class='wide' src='curves.png'>
<img src="missing.png"><img src="https://example.org/x.png"><a href="runs.csv">runs</a>
"""


def page_of(launch: Path) -> Path:
    """A launch's report folder with a page and one figure."""
    folder = launch / "report"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(PAGE)
    Image.new("RGB", (3, 2), "red").save(folder / "curves.png")
    return folder


def report(folder: Path, mode: str = "offline", **more: Any) -> View:
    about: dict[str, Any] = {"project": "p", "entity": None, "group": "study/1", "tags": ["a"]}
    about |= {"config": {"study": "losses"}, "page": folder / "index.html", "notes": "hinge is best"}
    about |= {"images": {"figures/curves": folder / "curves.png"}, "summary": {"cells": 2, "best/irl/auroc": 0.9}}
    about["tables"] = {"runs": (["cell", "irl/auroc"], [["hinge", 0.9], ["max_margin", None]])}
    return log_report(folder, mode=mode, **about | more)


def media(run: Path, kind: str) -> list[Path]:
    return sorted(path for path in (run / "files" / "media" / kind).rglob("*") if path.is_file())


def test_a_report_can_be_read_back(tmp_path: Path) -> None:
    folder = page_of(tmp_path / "launch")
    run = report(folder).offline_folder
    assert run is not None
    seen = read_run(run)
    about = {key: seen["run"][key] for key in ("name", "project", "group", "tags", "job_type")}
    assert about == {"name": "report", "project": "p", "group": "study/1", "tags": ["a"], "job_type": "report"}
    assert (seen["config"]["study"], seen["run"]["notes"]) == ("losses", "hinge is best")
    assert (seen["summary"]["cells"], seen["summary"]["best/irl/auroc"], seen["exit_code"]) == (2, 0.9, 0)
    shown = {key: value for row in own(seen["history"]) for key, value in row.items()}
    kinds = {"page": "html-file", "figures/curves": "image-file", "runs": "table-file"}
    assert {key: value["_type"] for key, value in shown.items()} == kinds
    assert (shown["figures/curves"]["caption"], shown["runs"]["nrows"]) == ("figures/curves", 2)
    assert [path.read_bytes() for path in media(run, "images")] == [(folder / "curves.png").read_bytes()]
    assert len(media(run, "table")) == 1


def test_a_page_takes_its_pictures_along(tmp_path: Path) -> None:
    folder = page_of(tmp_path / "launch")
    run = report(folder).offline_folder
    assert run is not None
    (page,) = (path.read_text() for path in media(run, "html"))
    picture = f"data:image/png;base64,{b64encode((folder / 'curves.png').read_bytes()).decode()}"
    assert page == PAGE.replace("'curves.png'", f'"{picture}"').replace('"curves.png"', f'"{picture}"')


def test_a_report_is_not_taken_for_a_job(tmp_path: Path) -> None:
    folder = page_of(tmp_path / "launch")
    report(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "index.html", "wandb"]
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_a_report_that_nobody_wants_loads_no_wandb(tmp_path: Path) -> None:
    page_of(tmp_path / "launch")
    program = """
        about = dict(project="p", entity=None, group="g", tags=[], config={}, images={}, tables={}, summary={})
        view = tracking.log_report(here / "launch" / "report", mode="none", page=here / "missing", **about)
        assert (view.url, view.offline_folder) == (None, None)
        assert "wandb" not in sys.modules
    """
    done = child(program, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "launch" / "report" / "wandb").exists()


def test_a_report_without_its_page_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = page_of(tmp_path / "launch")
    run = report(folder, page=folder / "missing.html").offline_folder
    assert run is not None
    (warning,) = told(caplog)
    assert "W&B misses a part of this run (FileNotFoundError" in warning
    assert (read_run(run)["summary"]["cells"], read_run(run)["exit_code"]) == (2, 0)


def test_the_numbers_of_a_report_are_finite(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="a final number must be finite: irl/auroc = nan"):
        report(page_of(tmp_path / "launch"), summary={"irl/auroc": float("nan")})


REPORT = """
about = dict(project="p", entity=None, group="study", tags=["a"], config={"study": "losses"})
folder = here / "launch" / "report"
shown = dict(images={"figures/curves": folder / "curves.png"}, tables={"runs": (["cell"], [["hinge"]])})
view = tracking.log_report(
    folder, mode="wandb", page=folder / "index.html", summary={"cells": 2}, **shown, **about
)
"""


def test_a_report_arrives_with_its_runs(tmp_path: Path, server: StandIn) -> None:
    page_of(tmp_path / "launch")
    done = child("with run() as tracker: rows(tracker)\n" + REPORT + "print(view.url)", tmp_path, **online(server))
    assert (done.returncode, done.stderr) == (0, "")
    runs = {run.name: (identifier, run) for identifier, run in server.runs.items()}
    identifier, arrived = runs["report"]
    assert done.stdout == f"{server.url}/me/p/runs/{identifier}\n"
    assert (arrived.group, arrived.job_type, arrived.exit_code) == ("study", "report", 0)
    assert runs["irl-seed0"][1].group == "study"
    assert (arrived.config["study"], arrived.summary["cells"]) == ("losses", 2)
    kinds = {re.match(r"media/(\w+)/", name)[1] for name in arrived.files if name.startswith("media/")}  # type: ignore[index]
    assert kinds == {"html", "images", "table"}


def test_a_report_of_offline_runs_is_uploaded_with_them(tmp_path: Path, server: StandIn) -> None:
    """Although there is an account by then: one command takes the jobs and the report."""
    page_of(tmp_path / "launch")
    program = "with run(mode='offline') as tracker: rows(tracker)\n" + REPORT
    program += "print(sync_command([tracker.offline_folder, view.offline_folder]))"
    done = child(program, tmp_path, **online(server))
    assert (done.stdout, done.stderr) == ("wandb sync launch/*/wandb/offline-run-*\n", "")
    assert server.runs == {}
    sync(done.stdout, tmp_path, server)
    assert {(run.name, run.group, run.exit_code) for run in server.runs.values()} == {
        ("irl-seed0", "study", 0),
        ("report", "study", 0),
    }


# ------------------------------------------------------------------------------------------ online or offline


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        ("online", "offline"),
        ("run", "offline"),
        ("offline", "offline"),
        ("dryrun", "offline"),
        ("disabled", "disabled"),
    ],
)
def test_the_environment_has_its_word(monkeypatch: pytest.MonkeyPatch, word: str, mode: str) -> None:
    """There is no account here, so that "online" ends as "offline" and not with a question."""
    monkeypatch.setenv("WANDB_MODE", word)
    assert resolve_mode("wandb") == mode
    assert resolve_mode("offline") == "offline"
    assert resolve_mode("none") == "disabled"


def test_the_mode_is_decided_and_told_once(tmp_path: Path) -> None:
    program = """
        print(resolve_mode("wandb"), resolve_mode("wandb"))
        os.environ["WANDB_MODE"] = "disabled"
        print(resolve_mode("wandb"))
    """
    done = child(program, tmp_path)
    assert done.stdout == "offline offline\noffline\n"
    assert done.stderr.startswith("LOG no W&B account here")
    assert done.stderr.count("\n") == 1


def test_words_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match="'wanbd' is none of 'wandb', 'offline', 'none'"):
        resolve_mode("wanbd")
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(TrackingError, match="WANDB_MODE='on' is none of online, run"):
        resolve_mode("wandb")


def test_importing_is_fast_because_wandb_comes_later(tmp_path: Path) -> None:
    assert child("assert 'wandb' not in sys.modules", tmp_path).returncode == 0
    assert child("resolve_mode('none'); assert 'wandb' not in sys.modules", tmp_path).returncode == 0


def test_disabled_by_the_environment(tmp_path: Path) -> None:
    program = """
        with run() as tracker:
            rows(tracker)
        assert "wandb" not in sys.modules
    """
    assert child(program, tmp_path, WANDB_MODE="disabled").returncode == 0
    assert [path.name for path in (tmp_path / "launch" / "0").iterdir()] == ["metrics.jsonl"]


def test_offline_by_the_settings_file(tmp_path: Path) -> None:
    """What `wandb offline` writes: the user's word too, so without a warning."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    done = child("print(resolve_mode('wandb'))", tmp_path, WANDB_API_KEY=KEY)
    assert (done.stdout, done.stderr) == ("offline\n", "")


def test_no_account_and_no_terminal(tmp_path: Path) -> None:
    done = child("with run() as tracker: rows(tracker)", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("LOG no W&B account here")  # and wandb itself prints nothing
    assert done.stderr.count("\n") == 1
    assert len(read_run(offline_run(tmp_path))["history"]) == 3


def test_no_account_at_a_terminal_asks_nothing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PREAMBLE + "with run() as tracker: rows(tracker)"]
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    try:
        subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), **terminal, timeout=60, check=True)  # type: ignore[call-overload]
    finally:
        os.close(theirs)
        os.close(ours)
    assert read_run(offline_run(tmp_path))["exit_code"] == 0


@pytest.mark.parametrize("key", ["short", "with spaces in it"])
def test_an_account_that_cannot_be_used(tmp_path: Path, key: str) -> None:
    done = child("print(resolve_mode('wandb'))", tmp_path, WANDB_API_KEY=key)
    assert done.stdout == "offline\n"
    assert "the W&B account cannot be used (" in done.stderr
    assert key not in done.stderr


def test_offline_sends_nothing(tmp_path: Path, server: StandIn) -> None:
    program = """
        resolve_mode("wandb")
        with run(mode="offline") as tracker:
            rows(tracker)
            tracker.log_table("samples", ["x"], [[1]])
    """
    proxy = {"HTTP_PROXY": server.url, "HTTPS_PROXY": server.url}
    done = child(program, tmp_path, **online(server), **proxy)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.requests == []


def test_a_server_that_cannot_be_reached_costs_one_timeout(tmp_path: Path) -> None:
    program = """
        for job in ("0", "1"):
            start = time.perf_counter()
            with run(job, init_timeout=4.0) as tracker:
                print(time.perf_counter() - start >= 4 if job == "0" else time.perf_counter() - start < 4, tracker.url)
                rows(tracker)
    """
    done = child(program, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True None\nTrue None\n"
    assert done.stderr.startswith("LOG W&B takes no runs online (CommError")
    assert done.stderr.count("\n") == 1
    for job in ("0", "1"):
        assert len(read_run(offline_run(tmp_path, job))["history"]) == 3


@pytest.mark.slow
def test_a_server_that_never_answers_costs_one_timeout_too(tmp_path: Path, server: StandIn) -> None:
    server.hangs = True
    program = """
        start = time.perf_counter()
        for job in ("0", "1"):
            with run(job, init_timeout=1.0) as tracker:
                rows(tracker)
        print(tracker.url, time.perf_counter() - start < 10)
    """
    done = child(program, tmp_path, **online(server))
    assert done.stdout == "None True\n"
    assert done.stderr.startswith("LOG W&B takes no runs online (CommError")
    assert done.stderr.count("\n") == 1
    assert len(read_run(offline_run(tmp_path, "1"))["history"]) == 3


# ------------------------------------------------------------------------------------------------- the server


def test_an_online_run(tmp_path: Path, server: StandIn) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "weights").write_bytes(b"w")
    program = """
        with run() as tracker:
            rows(tracker)
            tracker.summarise({"evaluate/regret": 0.25})
            tracker.log_artifact(product(uploaded=True))
            tracker.log_artifact(product("expert"), made=False, used=True)
            tracker.log_artifact(product("reward", aliases=["losses"]), made=True, used=True)
            tracker.note("well")
            print(tracker.url, tracker.offline_folder)
    """
    done = child(program, tmp_path, **online(server))
    assert (done.returncode, done.stderr) == (0, "")
    ((identifier, run),) = server.runs.items()
    assert done.stdout == f"{server.url}/me/p/runs/{identifier} None\n"
    assert (run.name, run.project, run.group, run.tags) == ("irl-seed0", "p", "study", ["a", "b"])
    assert run.config["irl"] == {"lr": 0.1}
    assert own(run.history) == lines(tmp_path / "launch" / "0")
    assert run.summary["evaluate/regret"] == 0.25
    assert run.exit_code == 0
    assert server.artifacts["policy"]["weights"] == b"w"
    assert server.made[identifier] == {"policy", "reward"}
    assert server.used[identifier] == {"expert", "reward"}
    assert server.aliases["reward"] == {"losses", "latest"}
    assert (run.notes, "irl/loss" in run.summary, state(tmp_path / "launch" / "0")) == ("well", False, "finished")


def test_an_online_run_that_fails(tmp_path: Path, server: StandIn) -> None:
    program = """
        with run() as tracker:
            rows(tracker)
            raise ValueError("the job's own words")
    """
    done = child(program, tmp_path, **online(server))
    assert done.returncode == 1
    assert done.stderr.count("the job's own words") == 1
    assert server.only_run().exit_code == 1
    assert len(server.only_run().history) == 3


def test_a_server_that_dies_costs_one_timeout_and_no_number(tmp_path: Path) -> None:
    program = """
        with run(finish_timeout=1.0) as tracker:
            print("started", flush=True)
            sys.stdin.readline()
            rows(tracker)
    """
    command = [sys.executable, "-c", PREAMBLE + dedent(program)]
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}
    with wandb_server() as server:
        env = environment(tmp_path, **online(server))
        process = subprocess.Popen(command, cwd=tmp_path, env=env, **streams)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    _, errors = process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert "LOG W&B misses a part of this run (TimeoutError" in errors
    assert "`wandb sync --include-online launch/0/wandb/run-" in errors
    assert len(lines(tmp_path / "launch" / "0")) == 3


DIES = """
with run() as tracker:
    rows(tracker, 1000)
    time.sleep(0.5)
    os.abort()
"""


def test_a_run_whose_process_died_is_ended_as_failed(tmp_path: Path, server: StandIn) -> None:
    assert child(DIES, tmp_path, **online(server)).returncode < 0
    assert server.only_run().exit_code is None
    again = "abandon(here / 'launch' / '0')\n"
    done = child(2 * again, tmp_path, **online(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert server.only_run().exit_code == 1
    assert state(tmp_path / "launch" / "0") == "died"


def test_an_offline_run_whose_process_died_is_uploaded_as_failed(tmp_path: Path, server: StandIn) -> None:
    assert child(DIES, tmp_path).returncode < 0
    abandon(tmp_path / "launch" / "0")
    assert state(tmp_path / "launch" / "0") == "died"
    sync(f"wandb sync {offline_run(tmp_path)}", tmp_path, server)
    assert server.only_run().exit_code == 1
    assert len(server.only_run().history) > 100


def test_who_ended_is_not_abandoned(tmp_path: Path) -> None:
    with record(tmp_path / "0"):
        pass
    abandon(tmp_path / "0")
    abandon(tmp_path / "nothing")
    assert state(tmp_path / "0") == "finished"


def test_a_server_that_is_gone_when_a_run_is_abandoned_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(tracking, "_close_remotely", gone)
    about = {"id": "x", "entity": None, "project": "p", "group": "g", "folder": "f"}
    tracking.write_record(tmp_path, {**about, "state": "open", "online": True, "url": "http://w/x"})
    abandon(tmp_path)
    assert told(caplog) == ["W&B still shows http://w/x as running (TimeoutError: no answer)"]
    assert state(tmp_path) == "died"


STOPPED = """
def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
try:
    with run(finish_timeout=60.0) as tracker:
        print("started", flush=True)
        sys.stdin.readline()
        rows(tracker)
        print("closing", flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("stops", "seconds"), [(1, 12.0), (2, 5.0)])
def test_a_stop_while_wandb_closes_waits_seconds_and_a_second_one_not(
    tmp_path: Path, server: StandIn, stops: int, seconds: float
) -> None:
    """Of a server that takes everything and answers nothing."""
    command = [sys.executable, "-c", PREAMBLE + STOPPED]
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path, **online(server)), **streams) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "started\n"
        server.hangs = True
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closing\n"
        start = time.monotonic()
        for _ in range(stops):
            time.sleep(0.5)
            process.terminate()
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - start < seconds
    assert state(tmp_path / "launch" / "0") == "failed"


@pytest.mark.slow
def test_a_server_that_hangs_costs_one_timeout_whatever_is_shown(tmp_path: Path, server: StandIn) -> None:
    program = """
        with run(finish_timeout=1.0) as tracker:
            print("started", flush=True)
            sys.stdin.readline()
            start = time.monotonic()
            for name in ("expert", "reward", "refinetuned"):
                tracker.log_artifact(product(name), made=False, used=True)
            tracker.log_table("samples", ["x"], [[1]])
            tracker.note("well")
            rows(tracker)
        print(time.monotonic() - start)
    """
    command = [sys.executable, "-c", PREAMBLE + dedent(program)]
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path, **online(server)), **streams) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        server.hangs = True
        output, errors = process.communicate("go on\n", timeout=60)
    assert process.returncode == 0, errors
    assert float(output) < 30
    assert errors.count("LOG W&B misses a part of this run (") == 1
    assert len(lines(tmp_path / "launch" / "0")) == 3


def test_sync_delivers_offline_runs_from_where_they_are(tmp_path: Path, server: StandIn) -> None:
    """By the very command that we print; the artifact's first home is gone by then."""
    program = """
        folders = []
        (here / "policy").mkdir()
        (here / "policy" / "weights").write_bytes(b"w")
        for job in ("0", "1"):
            with run(job) as tracker:
                rows(tracker)
                tracker.summarise({"evaluate/regret": 0.25})
                tracker.log_table("samples", ["x"], [[1]])
                tracker.log_artifact(product(uploaded=True))
            folders.append(tracker.offline_folder)
        (here / "policy" / "weights").unlink()
        print(sync_command(folders))
    """
    command = child(program, tmp_path).stdout.strip()
    assert command == "wandb sync launch/*/wandb/offline-run-*"
    sync(command, tmp_path, server)
    assert len(server.runs) == 2
    for job in ("0", "1"):
        kept = read_run(offline_run(tmp_path, job))
        run = server.runs[kept["run"]["id"]]
        assert own(run.history) == own(kept["history"])
        assert own(run.history)[:3] == lines(tmp_path / "launch" / job)
        assert run.summary["evaluate/regret"] == kept["summary"]["evaluate/regret"] == 0.25
        assert (run.group, run.tags, run.config["irl"], run.exit_code) == (
            "study",
            ["a", "b"],
            {"lr": 0.1},
            0,
        )
        assert any(name.startswith("media/table/samples") for name in run.files)
    assert server.artifacts["policy"]["weights"] == b"w"
    assert "No runs to sync" in sync(command, tmp_path, server)


def test_sync_delivers_the_numbers_of_a_folder_that_was_moved(tmp_path: Path, server: StandIn) -> None:
    assert child("with run() as tracker: rows(tracker)", tmp_path).returncode == 0
    (tmp_path / "launch").rename(tmp_path / "moved")
    sync("wandb sync moved/0/wandb/offline-run-*", tmp_path, server)
    assert own(server.only_run().history) == lines(tmp_path / "moved" / "0")


def test_the_last_attempt_of_a_run_is_its_record(tmp_path: Path, server: StandIn) -> None:
    assert recorded(tmp_path / "launch" / "0") is None
    program = "with run() as tracker: rows(tracker)"
    child(program, tmp_path)
    first = offline_run(tmp_path)
    first = first.rename(first.with_name("offline-run-20260101_000000-abcdefgh"))
    child(program, tmp_path)
    assert recorded(tmp_path / "launch" / "0") not in (None, first)
    child(program, tmp_path, **online(server))
    last = recorded(tmp_path / "launch" / "0")
    assert last is not None
    assert last.name.startswith("run-")


def test_of_a_job_that_was_not_logged_again_the_record_is_where_it_was(tmp_path: Path) -> None:
    with record(tmp_path / "1" / "0") as tracker:
        pass
    found = read_record(tmp_path / "1" / "0")
    assert found is not None
    (tmp_path / "2" / "0").mkdir(parents=True)
    tracking.write_record(tmp_path / "2" / "0", found)
    assert recorded(tmp_path / "2" / "0") == tracker.offline_folder


def test_what_sync_has_taken_is_no_longer_waiting(tmp_path: Path, server: StandIn) -> None:
    child("with run() as tracker: rows(tracker)", tmp_path)
    assert not_uploaded(offline_run(tmp_path))
    sync(f"wandb sync {offline_run(tmp_path)}", tmp_path, server)
    assert not not_uploaded(offline_run(tmp_path))


def test_sync_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [tmp_path / "multirun" / "my study" / str(job) / "wandb" / f"offline-run-{job}" for job in range(3)]
    elsewhere = Path("/data/t/0/wandb/offline-run-x")
    assert sync_command([]) == ""
    assert sync_command(runs[:1]) == "wandb sync 'multirun/my study/0/wandb/offline-run-0'"
    assert sync_command(runs) == "wandb sync 'multirun/my study'/*/wandb/offline-run-*"
    assert sync_command([*runs, elsewhere]) == f"{sync_command(runs)} {elsewhere}"

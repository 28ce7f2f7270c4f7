"""Launches as a user makes them: launch.py in a process of its own, with everything that may happen to it.

Launches share fixtures: each costs seconds. `TINY` is the smallest chain; the warm store holds a slightly larger one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
import pandas as pd
import pytest
from conftest import Launched, Launcher
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf, open_dict
from wandb_files import read_run

import irl_exp
from irl_exp import config
from irl_exp.config import known_groups
from irl_exp.launch import command_line, compose, stops
from irl_exp.launch.console import Console
from irl_exp.launch.jobs import LaunchContext
from irl_exp.machinery.runtime import Event
from irl_exp.machinery.store import read_manifest
from irl_exp.policies.language_models import Completions
from irl_exp.report.cells import Outcome
from irl_exp.report.names import POLICIES, POLICY_COLUMNS, REWARD_ROWS, words_of

WARM = ("scale=tiny", "tracking=none", "workers=1")
TINY = (*WARM, "data.count=1000")
STAGES = (
    *("data", "reward", "sft", "second_judge", "rlhf", "baseline", "demonstrations", "judge", "features", "irl"),
    *("candidates", "explain", "refinetune", "evaluate"),
)
POLICY_METRICS = (
    *("toxic_fraction", "reward_mean", "learned_reward_mean", "kl", "nll", "distinct_fraction"),
    *("empty_fraction", "length_mean"),
)
IRL_METRICS = (
    *("auroc", "pair_accuracy", "accuracy", "f1", "accuracy_unsupervised", "accuracy_at_zero", "pearson", "spearman"),
    *("kendall", "discrimination_auroc", "majority_accuracy"),
)

Launch = Callable[..., Launched]
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def judged(warm_store: Path, folder: Path) -> Path:
    """The folder with a store that has the texts and both judges, which take most of the time of a tiny chain."""
    for stage in ("data", "reward", "second_judge"):
        shutil.copytree(warm_store / stage, folder / "multirun" / "store" / stage)
    return folder


@pytest.fixture
def store(warm_store: Path, tmp_path: Path) -> Path:
    """A copy of the warm store, where launches in the folder of the test look for it."""
    return shutil.copytree(warm_store, tmp_path / "multirun" / "store")


def artifacts(store: Path) -> dict[str, list[Path]]:
    """Folders of each stage, hidden ones left out."""
    return {
        stage.name: sorted(path for path in stage.iterdir() if not path.name.startswith("."))
        for stage in sorted(store.iterdir())
        if stage.is_dir()
    }


def counts(store: Path) -> dict[str, int]:
    return {stage: len(folders) for stage, folders in artifacts(store).items()}


def checksums(folder: Path, *patterns: str) -> dict[str, str]:
    found = [path for pattern in patterns for path in sorted(folder.rglob(pattern))]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def offline_runs(launch_folder: Path) -> list[Path]:
    return sorted(path for path in launch_folder.glob("*/wandb/offline-run-*") if path.is_dir())


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------- the whole chain


def test_the_whole_chain_shows_its_stages_and_its_result(first_launch: Launched) -> None:
    assert first_launch.states() == dict.fromkeys(STAGES, "computed")
    toxic = words_of({"reward.name": "classifier"})
    words = (*POLICIES, *map(toxic.name, (*POLICY_COLUMNS.values(), *REWARD_ROWS.values())))
    assert [word for word in words if word not in first_launch.stdout] == []
    shown = {
        *(f"irl/{key}" for key in REWARD_ROWS),
        *(f"{policy}/{key}" for policy in POLICIES for key in POLICY_COLUMNS),
    }
    assert shown - set(first_launch.metrics()) == set()
    assert first_launch.stderr == ""  # nobody reads warnings that are always there


def test_the_answer_comes_first(first_launch: Launched) -> None:
    """The verdict stands before the tables on the terminal, and at the beginning of summary.md."""
    first = "RLHF on R* (classifier) took toxic completions from "
    printed = " ".join(first_launch.stdout.split())  # without the folds of the terminal
    assert printed.index(first) < printed.index("Policies on 16 test prompts")
    summary = (first_launch.folder / "summary.md").read_text(encoding="utf-8")
    assert summary.index(first) < summary.index("###")
    assert re.match(r"The recovered reward (pays|charges) for|None of \d+ candidates passes the test", summary)
    for text in (printed, summary):
        assert "scale=tiny: there is nothing to learn from these numbers." in text


def test_the_log_tells_the_whole_launch(first_launch: Launched) -> None:
    """Every line that was said, each with its time; texts in it may be folded otherwise."""
    lines = (first_launch.folder / "launch.log").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", line)] == []
    told = " ".join(" ".join(line[27:].split()) for line in lines)
    assert [word for word in " ".join(first_launch.stdout.split()).split(" ") if word not in told] == []
    assert told.startswith("1 job(s) on cpu")
    assert "sft computed" in told
    assert told.index("sft computed") < told.index("RLHF on R*") < told.index("summary multirun")


def test_how_good_the_judges_are_is_a_metric(first_launch: Launched) -> None:
    metrics = first_launch.metrics()
    for judge in ("reward", "second_judge"):
        (manifest,) = map(read_manifest, artifacts(first_launch.cwd / "multirun" / "store")[judge])
        found = {key: metrics[f"{judge}/{key}"] for key in ("accuracy", "majority_accuracy", "auroc", "n")}
        assert found == manifest["info"]["held_out"]


def test_metrics_are_flat_finite_and_complete(first_launch: Launched) -> None:
    metrics = first_launch.metrics()
    wanted = {f"{policy}/{key}" for policy in POLICIES for key in POLICY_METRICS}
    wanted |= {f"irl/{key}" for key in IRL_METRICS}
    assert wanted - set(metrics) == set()
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert metrics["reference/kl"] == 0
    assert metrics["n_prompts"] == 16


def test_a_launch_writes_below_the_folder_where_it_was_started(first_launch: Launched) -> None:
    assert [path.name for path in first_launch.cwd.iterdir()] == ["multirun"]
    assert first_launch.folder.parent == first_launch.cwd / "multirun" / "chain"
    assert {path.name for path in first_launch.folder.iterdir()} >= {"0", "runs.csv", "summary.md"}
    inside = {path.name for path in (first_launch.folder / "0").iterdir()}
    assert inside >= {"metrics.json", "metrics.jsonl", "completions.parquet", "samples.csv", "config.json", ".hydra"}


def test_a_second_run_reuses_every_stage_and_says_the_same(first_launch: Launched, store: Path, launch: Launch) -> None:
    before = counts(store)
    second = launch(*WARM)
    assert second.states() == dict.fromkeys(STAGES, "reused")
    assert second.text() == first_launch.text()
    curves = "0/metrics.jsonl"
    assert (second.folder / curves).read_bytes() == (first_launch.folder / curves).read_bytes()
    assert counts(store) == before


def test_under_the_launcher_of_hydra_the_numbers_are_the_same(
    first_launch: Launched, store: Path, launch: Launch
) -> None:
    """A job knows nothing of the planner: what it computes from the reference policy on is computed here again."""
    for stage in set(STAGES) - {"data", "reward", "sft", "second_judge"}:
        shutil.rmtree(store / stage)
    done = launch(*WARM, "hydra/launcher=basic", "hydra/sweeper=basic")
    assert done.text() == first_launch.text()
    assert [(row["overrides"], row["status"]) for row in done.runs()] == [("scale=tiny", "completed")]
    assert (done.folder / "summary.md").read_text() == (first_launch.folder / "summary.md").read_text()


def test_under_the_launcher_of_hydra_the_summary_and_the_page_name_what_failed(store: Path, launch: Launch) -> None:
    """Hydra's own word at the end of a sweep, on_multirun_end, is left out when a job failed."""
    sweep = ("irl/features=ngram", "irl.features.ngram.min_count=1,99999", "until=irl", "report=true")
    done = launch(*WARM, *sweep, "hydra/launcher=basic", "hydra/sweeper=basic", check=False)
    assert done.returncode == 1
    assert [row["status"] for row in done.runs()] == ["completed", "failed"]
    assert "min_count=99999" in done.runs()[1]["overrides"]
    assert "no n-gram is in that many" in (done.folder / "summary.md").read_text()
    assert (done.folder / "report" / "index.html").exists()
    assert "FeatureError" in (done.folder / "1" / "error.txt").read_text()


def test_a_sweep_in_batches_has_one_summary(store: Path, launch: Launch) -> None:
    done = launch(*WARM, "evaluate.bootstrap=100,101", "until=sft", "hydra.sweeper.max_batch_size=1")
    assert [(row["job"], row["status"]) for row in done.runs()] == [("0", "completed"), ("1", "completed")]
    assert [job["number"] for job in json.loads((done.folder / "plan.json").read_text())["jobs"]] == [0, 1]


def test_a_run_is_opened_again_with_its_reward(first_launch: Launched) -> None:
    run = irl_exp.load(first_launch.folder)
    assert set(run.artifacts) == set(STAGES)
    told = run.completions[run.completions["policy"] == "expert"].head(3)
    demos = pd.read_parquet(run.artifacts["demonstrations"] / "demonstrations.parquet")
    # The tokens as they were sampled: those of the text may be others.
    written = Completions.from_frame(demos[(demos["part"] == "test") & (demos["policy"] == "expert")].head(3))
    assert written.texts == told["completion"].tolist()
    reward = run.reward
    assert reward.standardised(reward.score(written)) == pytest.approx(told["learned"].to_numpy(), abs=1e-3)


# ------------------------------------------------------------------------------------------------ many jobs


@pytest.fixture(scope="module")
def three_seeds_in_a_pool(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The same from another empty store, in two processes."""
    return launcher(tmp_path_factory.mktemp("pool"), *TINY, "irl.seed=0,1,2", "workers=2")


def test_seeds_of_irl_share_one_expert(three_seeds: Launched, three_seeds_in_a_pool: Launched) -> None:
    each = ("irl", "explain", "refinetune", "evaluate")
    wanted = dict.fromkeys(set(STAGES) - set(each), 1) | dict.fromkeys(each, 3)
    for launched in (three_seeds, three_seeds_in_a_pool):
        assert counts(launched.cwd / "multirun" / "store") == wanted
    assert len({three_seeds.text(job) for job in range(3)}) == 3


def test_one_process_and_two_give_the_same_bytes(three_seeds: Launched, three_seeds_in_a_pool: Launched) -> None:
    one, two = (
        checksums(launched.cwd / "multirun" / "store", "*.safetensors", "*.parquet", "metrics.json", "history.jsonl")
        for launched in (three_seeds, three_seeds_in_a_pool)
    )
    assert one == two
    assert len([name for name in one if name.endswith("model.safetensors")]) == 5
    for job in range(3):
        assert three_seeds.text(job) == three_seeds_in_a_pool.text(job)


def test_every_job_has_a_folder_a_row_and_a_place_in_the_summary(three_seeds: Launched) -> None:
    assert sorted(path.name for path in three_seeds.folder.iterdir() if path.is_dir()) == ["0", "1", "2", "report"]
    rows = three_seeds.runs()
    assert [(row["job"], row["status"], row["error"]) for row in rows] == [(str(n), "completed", "") for n in range(3)]
    assert [float(row["irl/auroc"]) for row in rows] == [three_seeds.metrics(n)["irl/auroc"] for n in range(3)]
    assert len({row["cell"] for row in rows}) == 1  # they differ in their seed alone
    mean = sum(float(row["irl/auroc"]) for row in rows) / 3
    summary = (three_seeds.folder / "summary.md").read_text()
    assert re.search(rf"irl/auroc \| {mean:.3f} \|.* 3 \|", summary)
    assert f"{mean:.3f}" in three_seeds.stdout


def test_every_job_is_a_wandb_run_and_a_launch_is_their_group(three_seeds: Launched) -> None:
    *runs, report = [read_run(folder) for folder in offline_runs(three_seeds.folder)]
    assert len({run["run"]["id"] for run in [*runs, report]}) == 4
    assert report["run"]["job_type"] == report["run"]["name"] == "report"
    assert report["run"]["tags"] == ["seeds"]
    assert "AUROC" in report["run"]["notes"]
    assert {run["run"]["group"] for run in [*runs, report]} == {f"seeds/{three_seeds.folder.name}"}
    assert [run["exit_code"] for run in runs] == [0, 0, 0]
    for job, run in enumerate(runs):
        assert run["config"]["irl"]["seed"] == job
        assert f"irl.seed={job}" in run["run"]["name"]
        assert run["run"]["job_type"] == "run"
        kept = json.loads((three_seeds.folder / str(job) / "config.json").read_text())
        assert {key: run["config"][key] for key in kept} == kept  # nested and resolved
        steps = [
            {"name": f"{stage}/*", "step": f"{stage}/step"}
            for stage in ("sft", "rlhf", "irl", "refinetune", "evaluate")
        ]
        assert sorted(run["metrics"], key=str) == sorted(steps, key=str)
        assert {key: run["summary"][key] for key in three_seeds.metrics(job)} == three_seeds.metrics(job)
        curves = {key for row in run["history"] for key in row}
        assert {"sft/loss", "rlhf/kl", "irl/loss", "refinetune/reward", "samples"} <= curves  # shared stages, too
        assert "irl/loss" not in run["summary"]  # a column is a final number
        lineage = {each["name"]: (each["made"], each["used"]) for each in run["artifacts"]}
        assert lineage["expert"] == lineage["demonstrations"] == (False, True)
        assert (lineage["reward"], lineage["refinetuned"]) == ((True, True), (True, False))
        assert run["run"]["tags"][0] == "seeds"
        assert "AUROC" in run["run"]["notes"]
    assert "wandb sync" in three_seeds.stdout


def test_seeds_that_are_fitted_together_are_stored_as_if_alone(
    warm_store: Path, launcher: Launcher, tmp_path: Path
) -> None:
    """To the byte; the launcher of Hydra, which sees one job at a time, is the one that fits them alone."""
    sweep = ("irl=margin,placebo,failure_aware,ensemble", "irl.seed=range(1,4)", "until=irl", "explain=none")
    stores = [shutil.copytree(warm_store, tmp_path / how / "multirun" / "store") for how in ("together", "alone")]
    together = launcher(tmp_path / "together", *WARM, *sweep, "workers=2")
    launcher(tmp_path / "alone", *WARM, *sweep, "hydra/launcher=basic", "hydra/sweeper=basic")
    assert "8 IRL fits that differ in their seed alone will be done together, in 4 batches" in together.stdout
    found = [{path.name: read_manifest(path) for path in artifacts(store)["irl"]} for store in stores]
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 13
    assert [digest for digest in found[0] if found[0][digest]["files"] != found[1][digest]["files"]] == []
    assert len({manifest["files"]["head.safetensors"]["sha256"] for manifest in found[0].values()}) == 13
    alone = sorted((tmp_path / "alone").glob("multirun/chain/*/*/metrics.json"), key=lambda path: int(path.parent.name))
    assert [path.read_bytes() for path in alone] == [together.text(job) for job in range(12)]


@pytest.mark.parametrize(
    "overrides",
    [
        ("irl.seed=7", "until=irl"),
        ("irl.seed=7", "irl/loss=hinge", "irl.loss.target_margin=2", "irl.ridge=[0.1,0.2]"),
        ("scale=tiny", "seed=3", "name=a b", "hydra.job.chdir=false"),
        ("refinetune=grpo", "tracking.tags=[a,b]", "+irl.unknown=1"),
        (),
    ],
)
def test_a_job_is_composed_as_by_hydra(overrides: tuple[str, ...]) -> None:
    """Although its files are read for all jobs at once; in the second turn they are read already."""
    config.register()
    with hydra.initialize_config_dir(str(config.CONF), **command_line.VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["tracking=none"], RunMode.MULTIRUN)
        assert master.hydra.sweep.dir  # Hydra has made the folder before: the time of launch is settled
        composer = compose.Composer(LaunchContext(HydraContext(loader, Callbacks()), lambda job: None, master))
        for number in (0, 1):
            found, wanted = composer.compose(overrides, number), loader.load_sweep_config(master, list(overrides))
            with open_dict(wanted):
                wanted.hydra.job.num, wanted.hydra.job.id = number, str(number)
            assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(wanted)
            assert found.hydra.sweep.dir == wanted.hydra.sweep.dir  # one time of launch
            assert OmegaConf.is_struct(found)


def test_of_many_jobs_only_some_get_a_line_and_the_failed_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(120, ["scale=tiny"])
    for number in range(120):
        failed = number in (6, 7)
        outcome = Outcome(
            number, f"scale=tiny,irl.seed={number}", Path(), "failed" if failed else "completed", error="why"
        )
        console.job_done(outcome)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "FAILED" in line and "scale=tiny" in line]) == 2
    assert len([line for line in lines if line.startswith("[")]) == 40
    assert lines[-1].startswith("[120/120] irl.seed=119")


def test_losses_and_seeds_share_one_expert(store: Path, launch: Launch) -> None:
    before = counts(store)
    done = launch(*WARM, "irl/loss=max_margin,hinge,bradley_terry", "irl.seed=0,1", "until=irl")
    assert {key: value - before[key] for key, value in counts(store).items() if value != before[key]} == {
        "irl": 5,  # the sixth is that of the warm store
        "evaluate": 6,
    }
    assert len({row["cell"] for row in done.runs()}) == 3


def test_a_chain_may_end_after_any_stage(store: Path, launch: Launch) -> None:
    done = launch(*WARM, "until=sft,rlhf,demonstrations,irl,explain,refinetune")
    groups = [{key.split("/")[0] for key in done.metrics(job) if "/" in key} for job in range(6)]
    refined = {"refinetuned", "triangle_refinetuned", "overoptimisation"}
    compared = {"implicit", "baseline", "triangle", "triangle_expert", "pooled", "human"}
    judges = {"data", "reward", "second_judge", "reference"}
    assert groups == [
        judges,
        {*judges, "expert"},
        {*judges, "expert", *compared},
        {*judges, "expert", *compared, "irl"},
        {*judges, "expert", *compared, "irl", "explain"},
        {*judges, "expert", *compared, "irl", "explain", *refined},
    ]
    assert all(f"reference/{key}" in done.metrics(0) for key in POLICY_METRICS if "learned" not in key)
    assert all(f"irl/{key}" in done.metrics(3) for key in IRL_METRICS)
    assert not any("learned_reward" in key for key in done.metrics(2))


# ---------------------------------------------------------------------------------------- what may go wrong


@pytest.fixture(scope="module")
def one_fails(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """A vocabulary without words: known only when the features are extracted."""
    folder = tmp_path_factory.mktemp("fails")
    shutil.copytree(warm_store, folder / "multirun" / "store")
    sweep = ("irl/features=ngram", "irl.features.ngram.min_count=1,99999,2", "irl.seed=0,1")
    return launcher(folder, *WARM, *sweep, "until=irl", "tracking=offline", check=False)


def test_a_job_fails_alone(one_fails: Launched) -> None:
    assert one_fails.returncode == 1
    status = [row["status"] for row in one_fails.runs()]
    assert status == ["completed", "completed", "failed", "not run", "completed", "completed"]
    assert one_fails.metrics(0).keys() == one_fails.metrics(5).keys() > {"irl/auroc"}
    assert not (one_fails.folder / "2" / "metrics.json").exists()


def test_a_job_that_needs_what_has_failed_is_not_tried(one_fails: Launched) -> None:
    assert "job 2" in one_fails.runs()[3]["error"]
    assert not (one_fails.folder / "3").exists()


def test_a_failed_job_is_told_where_one_looks(one_fails: Launched) -> None:
    reason = "irl.features.ngram"
    assert reason in one_fails.runs()[2]["error"]
    assert "99999" in (one_fails.folder / "summary.md").read_text()
    assert reason in (one_fails.folder / "summary.md").read_text()
    assert reason in one_fails.stderr.splitlines()[-3]  # the last word, before Hydra's hint
    assert "Traceback" not in one_fails.stdout + one_fails.stderr
    trace = (one_fails.folder / "2" / "error.txt").read_text()
    assert trace.startswith("Traceback")
    assert "FeatureError" in trace


def test_the_run_of_a_failed_job_is_closed_as_failed(one_fails: Launched) -> None:
    runs = {folder.parts[-3]: read_run(folder)["exit_code"] for folder in offline_runs(one_fails.folder)}
    assert runs == {"0": 0, "1": 0, "2": 1, "4": 0, "5": 0}


def opened_by(path: Path) -> list[int]:
    """Processes that have a file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                found.append(int(link.parts[2]))
        except OSError:
            continue
    return found


@linux_only
def test_a_worker_that_is_killed_takes_one_job_with_it(store: Path, launcher: Launcher, tmp_path: Path) -> None:
    """As the kernel does when memory runs out. Job 0 would train for minutes, job 1 is quick."""
    sweep = ("sft.steps=100000,12", "irl.seed=1", "until=irl", "workers=2")
    process = launcher.start(tmp_path, *WARM, *sweep)
    wait_for(lambda: list(tmp_path.glob("multirun/chain/*/0/metrics.jsonl")))
    (curves,) = tmp_path.glob("multirun/chain/*/0/metrics.jsonl")
    wait_for(lambda: opened_by(curves))
    os.kill(opened_by(curves)[0], signal.SIGKILL)
    done = launcher.end(process, tmp_path, check=False)
    assert done.returncode == 1
    assert [row["status"] for row in done.runs()] == ["failed", "completed"]
    assert "process died" in done.runs()[0]["error"]
    assert "irl/auroc" in done.metrics(1)


@dataclass
class Stopped:
    """A launch that was ended from outside, and how long that took."""

    done: Launched
    seconds: float


def stop(launcher: Launcher, folder: Path, send: Callable[[int], None], *overrides: str) -> Stopped:
    """Start a launch, and end it while sft trains."""
    before = set(folder.glob("multirun/chain/*"))
    process = launcher.start(folder, *overrides)

    def trains() -> bool:
        curves = [path for path in folder.glob("multirun/chain/*/*/metrics.jsonl") if path.parents[1] not in before]
        return any("sft/" in path.read_text() for path in curves)

    wait_for(trains)
    start = time.monotonic()
    send(process.pid)
    done = launcher.end(process, folder, check=False)
    return Stopped(done, time.monotonic() - start)


@pytest.fixture(scope="module")
def stopped(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stopped]:
    """The same command, three times ended from outside, then left alone."""
    folder = judged(warm_store, tmp_path_factory.mktemp("stopped"))
    command = (*WARM, "until=sft", "sft.steps=80", "sft.batch_size=4", "tracking=offline")
    return {
        "Ctrl-C": stop(launcher, folder, lambda pid: os.killpg(pid, signal.SIGINT), *command),
        "SIGTERM": stop(launcher, folder, lambda pid: os.kill(pid, signal.SIGTERM), *command),
        "SIGKILL": stop(launcher, folder, lambda pid: os.killpg(pid, signal.SIGKILL), *command),
        "nothing": Stopped(launcher(folder, *command), 0),
    }


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_a_stop_is_quick_and_tidy(stopped: dict[str, Stopped], how: str) -> None:
    done = stopped[how].done
    assert done.returncode == 130, done.stderr
    assert stopped[how].seconds < 10
    assert [row["status"] for row in done.runs()] == ["not run"]
    assert "not run" in (done.folder / "summary.md").read_text()
    assert "run the same command again" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (run,) = offline_runs(done.folder)
    assert read_run(run)["exit_code"] == 1


def test_after_any_end_the_same_command_goes_on(stopped: dict[str, Stopped]) -> None:
    assert stopped["SIGKILL"].done.returncode == -signal.SIGKILL
    done = stopped["nothing"].done
    before = dict.fromkeys(("data", "reward", "second_judge"), "reused")
    assert done.states() == {**before, "sft": "computed", "evaluate": "computed"}
    assert [row["status"] for row in done.runs()] == ["completed"]
    first = stopped["Ctrl-C"].done.folder.name
    assert f"goes on with {first}: 0 of 1 runs have finished in W&B" in done.stdout
    (run,) = offline_runs(done.folder)
    assert read_run(run)["run"]["group"] == f"chain/{first}"
    store = done.cwd / "multirun" / "store"
    assert counts(store) == dict.fromkeys(("data", "evaluate", "reward", "second_judge", "sft"), 1)
    assert not list(store.glob("*/.*.tmp-*"))  # what the killed one left is gone


def test_a_stop_before_the_first_job_is_tidy_too(launcher: Launcher, tmp_path: Path) -> None:
    """While libraries load and jobs are checked, which takes seconds."""
    process = launcher.start(tmp_path, *TINY, "irl.seed=range(300)")
    wait_for(lambda: list(tmp_path.glob("multirun/chain/*/multirun.yaml")))
    time.sleep(0.5)  # Hydra writes the file in the moment before the planner begins
    os.killpg(process.pid, signal.SIGINT)
    done = launcher.end(process, tmp_path, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("multirun/chain/*"))


@pytest.mark.parametrize(
    ("end", "group"),
    [(signal.SIGINT, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_stop_ends_the_workers_too(
    launcher: Launcher, warm_store: Path, tmp_path: Path, end: int, group: bool
) -> None:
    send = os.killpg if group else os.kill
    command = (*WARM, "until=sft", "sft.steps=600", "sft.batch_size=8,16", "workers=2")
    found = stop(launcher, judged(warm_store, tmp_path), lambda pid: send(pid, end), *command)
    assert found.done.returncode == 130, found.done.stderr
    assert found.seconds < 10
    assert [row["status"] for row in found.done.runs()] == ["not run", "not run"]
    assert "Traceback" not in found.done.stdout + found.done.stderr
    wait_for(lambda: not process_group(launcher.started[-1].pid), seconds=5)
    assert counts(tmp_path / "multirun" / "store")["sft"] == 0


def process_group(leader: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_damaged_artifact_is_named_and_computed_again(first_launch: Launched, store: Path, launch: Launch) -> None:
    (weights,) = store.glob("sft/*/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    done = launch(*WARM)
    assert f"{weights.parent.name}/model.safetensors is damaged" in done.stderr
    assert "model.safetensors is damaged" in (done.folder / "launch.log").read_text()
    assert done.states() == dict.fromkeys(STAGES, "reused") | {"sft": "computed"}
    assert weights.read_bytes() == whole
    assert done.text() == first_launch.text()


def test_two_launches_at_once_share_the_work(launcher: Launcher, warm_store: Path, tmp_path: Path) -> None:
    folder = judged(warm_store, tmp_path)
    processes = [launcher.start(folder, *WARM, "until=rlhf") for _ in range(2)]
    done = [launcher.end(process, folder) for process in processes]
    stages = ("sft", "rlhf", "evaluate")
    assert [set(launched.states()) for launched in done] == [{"data", "reward", "second_judge", *stages}] * 2
    computed = Counter(stage for one in done for stage, state in one.states().items() if state == "computed")
    assert computed == dict.fromkeys(stages, 1)
    assert done[0].folder != done[1].folder
    assert done[0].text() == done[1].text()


# ------------------------------------------------------------------------------------------ before any work


def refused(done: Launched) -> str:
    """The message of a launch that was refused before it did or left anything."""
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stdout + done.stderr
    assert "computed" not in done.stdout
    assert not (done.cwd / "multirun").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rlhf.stepz=3"], "Did you mean 'rlhf.steps'?"),
        (["+rlhf.stepz=3"], "Did you mean 'rlhf.steps'?"),
        (["irl/loss=hing"], "bradley_terry"),
        (["irl.loss=hinge"], "write irl/loss=hinge"),
        (["irl.epochs=2,0"], "irl.epochs=0: input should be greater than or equal to 1"),
        (["data=file", "data.path=nowhere.csv"], "data.path=nowhere.csv: there is no such file"),
        (["store.dir=/dev/null"], "the artifact store /dev/null cannot be written"),
        (["device=cuda"], "device=cuda: this machine has"),
        (["name=/abs"], "name=/abs: runs are kept in multirun/NAME"),
        (["irl.seed=range(1000000)"], "1,000,000 jobs, and a launch takes 10,000"),
        (["hydra.sweep.subdir=x", "irl.seed=1,2"], "hydra.sweep.subdir=x: 2 jobs would write into one folder"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_in_one_message(overrides: list[str], told: str, launch: Launch) -> None:
    message = refused(launch("scale=tiny", "tracking=none", *overrides, check=False))
    assert told in message
    assert len(message.strip().splitlines()) < 16


def test_what_a_stage_would_miss_is_refused_for_all_jobs_at_once(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a b", "completion": " c d", "label": 1}\n{"prompt": \n')
    command = ("model=pythia_70m,pythia_1b", "data=file", "data.path=broken.jsonl", "scale=tiny", "tracking=none")
    message = refused(launch(*command, check=False))
    assert message.count("broken.jsonl, line 2: not valid JSON") == 1
    for hub in ("lomahony/eleuther-pythia70m-hh-sft", "EleutherAI/pythia-1b"):
        assert message.count(f"model.hub={hub}: ") == 1
    assert "Set model.path to a local copy" in message


def test_a_reward_from_nowhere_is_refused(launch: Launch) -> None:
    assert "reward: set its path" in refused(launch(*TINY, "reward=sequence_classifier", "until=sft", check=False))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.path=mine.csv", "it belongs to data=file, jigsaw, real_toxicity_prompts"),
        ("irl.loss.temperature=2", "it belongs to irl/loss=bradley_terry"),
    ],
)
def test_an_option_of_another_choice_says_which(override: str, told: str, launch: Launch) -> None:
    """Hydra's own hint, to write +data.path=..., would be another error."""
    message = refused(launch(override, check=False))
    assert told in message
    assert f"+{override}" not in message


def test_a_developer_sees_the_traceback(launch: Launch) -> None:
    done = launch("sft.steps=0", env={"HYDRA_FULL_ERROR": "1"}, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# ------------------------------------------------------------------------------------- what answers at once


def test_help_is_answered_without_a_launch(launch: Launch) -> None:
    text = launch("--help").stdout
    assert [group for group in known_groups() if not re.search(rf"^  {group} +\w", text, re.MULTILINE)] == []
    assert "usage: python " in text
    assert not Path("multirun").exists()


def test_the_composed_config_can_be_shown(launch: Launch) -> None:
    text = launch("--cfg", "job", "irl/loss=hinge", "seed=3").stdout
    assert "target_margin: 1.0" in text
    assert "seed: 3" in text


def test_tab_completion_can_be_installed(launch: Launch) -> None:
    assert "complete" in launch("-sc", "install=bash").stdout


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_a_finalizer_swallows_comes_again_with_the_next_report() -> None:
    class Final:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    told: list[Event] = []
    report, event = stops.unless_stopped(told.append), Event(0, "sft", "computing")
    with stops.terminate_like_interrupt():
        report(event)
        Final()  # Python prints the KeyboardInterrupt and goes on
        with pytest.raises(KeyboardInterrupt):
            report(event)
    assert told == [event]
    with stops.terminate_like_interrupt():
        report(event)
    assert told == [event, event]

"""The dashboard: what it finds in the files of a launch, what it would show of it, and saving it to a W&B server.

What talks to a server runs in a process of its own, as the user's command does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Launched, Launcher
from wandb_server import StandIn, online, wandb_server

from irl_exp.config import CONF, question_of
from irl_exp.dashboard import workspaces
from irl_exp.dashboard.workspaces import StudyError, find_launch, main, read, varied
from irl_exp.machinery.tracking import track

TIME = "20261121-101500-000000"
SEEDS = tuple({"irl": {"seed": seed}} for seed in range(2))
LOSSES = tuple(
    {"irl": {"seed": seed, "loss": {"name": name, name: 1.0}}} for name in ("hinge", "max_margin") for seed in range(2)
)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with wandb_server() as running:
        yield running


def job(folder: Path, config: dict[str, Any], mode: str = "offline", **tracking: Any) -> None:
    """A run as chain.run leaves it, in miniature."""
    about = {"project": "p", "entity": None, "tags": [], **tracking}
    name, group = folder.parents[1].name, f"{folder.parents[1].name}/{folder.parent.name}"
    record = {"name": name, "until": "evaluate", "tracking": {"mode": mode, **about}, **config}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record))
    (folder.parent / "multirun.yaml").touch()
    with track(mode, run_dir=folder, name=folder.name, group=group, config=record, job_type="run", **about) as tracker:
        for step in range(2):
            tracker.log("irl", {"step": step, "loss": 1.0})
        tracker.summarise({"irl/auroc": 0.9, "refinetuned/toxic_fraction": 0.1})


def launch(folder: Path, configs: tuple[dict[str, Any], ...] = SEEDS, **more: Any) -> Path:
    for number, config in enumerate(configs):
        job(folder / str(number), config, **more)
    return folder


@pytest.fixture(scope="session")
def real(warm_store: Path, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Two losses, two seeds: the whole chain."""
    cwd = tmp_path_factory.mktemp("dashboard")
    shutil.copytree(warm_store, cwd / "multirun" / "store")
    options = ("scale=tiny", "workers=1", "tracking=offline", "irl.seed=range(2)", "irl/loss=max_margin,hinge")
    return launcher(cwd, *options)


# ----------------------------------------------------------------------------------------------- reading files


@pytest.mark.parametrize(
    ("configs", "keys"),
    [
        (SEEDS, ()),
        (LOSSES, ("irl.loss.name",)),
        ([{"a": 1, "b": {"name": "x"}}, {"a": 2, "b": {"name": "y"}}], ("b.name",)),
        ([{"a": a, "b": b} for a in (1, 2) for b in (None, 3)], ("a", "b")),
        ([{"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 3]}], ("a",)),
        ([{"phi": {"length": {}}}, {"phi": {"length": None}}], ("phi.length",)),
        ([{"b": {"c": {"name": n}, "name": n}} for n in "xy"], ("b.name",)),
        ([{"irl": {"seed": 1}}, {"irl": {"seed": 2, "members": 5}}], ("irl.members",)),
        ([{"artifacts": {"irl": "a"}, "job": {"name": "x"}}, {"artifacts": {"irl": "b"}, "job": {"name": "y"}}], ()),
    ],
)
def test_the_keys_that_tell_cells_apart(configs: Any, keys: tuple[str, ...]) -> None:
    assert varied(configs) == keys


def test_a_study_is_its_newest_launch(tmp_path: Path) -> None:
    for time in ("20261121-101500-000000", "20261122-101500-000000"):
        launch(tmp_path / "losses" / time, SEEDS[:1])
    launch(tmp_path / "losses" / "20261123-101500-000000", SEEDS[:1], mode="none")
    assert find_launch(tmp_path / "losses").name == "20261122-101500-000000"
    assert find_launch(tmp_path / "losses" / TIME).name == TIME


def test_folders_that_are_no_study(tmp_path: Path) -> None:
    folder = launch(tmp_path / "multirun" / "losses" / TIME, SEEDS[:1])
    (tmp_path / "multirun" / "store" / "irl").mkdir(parents=True)
    with pytest.raises(StudyError, match="there is no folder multirun/loses; give multirun/<study>"):
        find_launch(Path("multirun/loses"))
    with pytest.raises(StudyError, match=f"is one run; its launch is multirun/losses/{TIME}"):
        find_launch(folder / "0")
    with pytest.raises(StudyError, match="multirun is no study: it holds the studies losses: name one"):
        find_launch(Path("multirun"))
    with pytest.raises(StudyError, match="store is no study: nothing was launched into it"):
        find_launch(Path("multirun/store"))


def test_what_a_launch_says_of_itself(tmp_path: Path) -> None:
    study = read(launch(tmp_path / "losses" / TIME, LOSSES, entity="team"))
    assert (study.entity, study.project, study.group) == ("team", "p", f"losses/{TIME}")
    assert (study.keys, study.by, len(study.runs)) == (("irl.loss.name",), "irl.loss.name", 4)
    assert study.curves == {"irl/step", "irl/loss"}
    assert study.metrics == {"irl/auroc", "refinetuned/toxic_fraction"}
    asked = "losses: which loss recovers more, each tuned alike on select? The rest of the result is"
    assert study.text() == f"{asked} losses/{TIME}/summary.md, where this was launched."
    (study.folder / "report").mkdir()
    (study.folder / "report" / "index.html").touch()
    assert f"losses/{TIME}/report/index.html," in study.text()
    assert study.notes == ()


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "study").glob("*.yaml") if path.stem != "none"])
def test_every_study_has_its_question(name: str) -> None:
    assert question_of(name).partition("?")[1] == "?"
    assert "launch.py" not in question_of(name)


def test_a_study_of_ones_own_is_told_by_its_keys(tmp_path: Path) -> None:
    assert (
        read(launch(tmp_path / "a" / TIME, LOSSES))
        .text()
        .startswith("a: how do 4 runs compare that differ in irl.loss")
    )
    assert "2 runs compare that differ in their seeds alone?" in read(launch(tmp_path / "b" / TIME)).text()


def test_cells_of_several_keys_are_told_apart_by_the_job(tmp_path: Path) -> None:
    configs = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2)]
    cells = [{**config, "job": {"cell": f"a={config['a']},b={config['b']}"}} for config in configs]
    assert read(launch(tmp_path / "old" / TIME, tuple(configs))).by is None
    study = read(launch(tmp_path / "new" / TIME, tuple(cells)))
    assert (study.keys, study.by) == (("a", "b"), "job.cell")


def test_jobs_without_anything_to_show_are_named(tmp_path: Path) -> None:
    folder = launch(tmp_path / "losses" / TIME)
    job(folder / "2", SEEDS[0], mode="none")
    for name, content in (("3", ""), ("4", '{"name": "los'), ("6", '{"name": "losses", "tracking": 3}')):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(content)
    (folder / "5").mkdir()
    (folder / "5" / "error.txt").touch()
    (folder / "report").mkdir()  # no job
    (folder / "figures").mkdir()  # nor this
    with (folder / "0" / "metrics.jsonl").open("a") as torn:
        torn.write('{"irl/st')
    study = read(folder)
    assert len(study.runs) == 2
    assert study.notes == (
        "4 of 7 jobs were stopped before they wrote config.json: 3, 4, 5, 6",
        "1 of 7 jobs were not recorded for W&B: 2",
    )
    assert study.curves == {"irl/step", "irl/loss"}


def test_a_launch_without_any_record_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"not recorded for W&B: 0, 1\. The same command with tracking=offline records"
    ):
        read(launch(tmp_path / "losses" / TIME, mode="none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match=r"has nothing for W&B\. No job has begun"):
        read(tmp_path / "empty")


def test_runs_in_several_places(tmp_path: Path) -> None:
    folder = launch(tmp_path / "losses" / TIME)
    job(folder / "2", SEEDS[0], project="q")
    with pytest.raises(
        StudyError, match=r"in 2 places of W&B \(default entity/p, losses/.*; default entity/q, losses/"
    ):
        read(folder)
    other = launch(tmp_path / "losses" / "1")
    job(other / "2", {"job": {"group": "elsewhere/1"}})
    with pytest.raises(
        StudyError, match=r"in 2 places of W&B \(default entity/p, elsewhere/1; default entity/p, losses/1"
    ):
        read(other)


# ------------------------------------------------------------------------------------------------ what is shown


def specs(folder: Path) -> tuple[Any, Any]:
    """Workspace and report as they would be sent."""
    written = workspaces.write_specs(read(folder), folder / "report")
    assert [path.name for path in written] == ["wandb_workspace.json", "wandb_report.json"]
    view, text = (json.loads(path.read_text()) for path in written)
    return view, text


def panels_of(tree: Any) -> Iterator[dict[str, Any]]:
    """Every panel of a spec."""
    if isinstance(tree, dict):
        if "viewType" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from panels_of(branch)


def filters_of(tree: Any) -> set[tuple[str, str, str]]:
    """(name, operator, value) of the filters of a run set."""
    if isinstance(tree, list):
        return {found for branch in tree for found in filters_of(branch)}
    if not isinstance(tree, dict):
        return set()
    if "key" in tree and "op" in tree:
        return {(tree["key"]["name"], tree["op"], tree["value"])}
    return filters_of(list(tree.values()))


def test_every_number_of_a_panel_is_in_the_runs(real: Launched) -> None:
    """Of a launch of the whole chain, every panel that there can be."""
    study = read(real.folder)
    config = json.loads((real.folder / "0" / "config.json").read_text())
    for spec in specs(real.folder):
        drawn = [
            panel["config"] for panel in panels_of(spec) if panel["viewType"] not in ("Markdown Panel", "Run Comparer")
        ]
        for panel in drawn:
            numbers = [*panel.get("metrics", []), *(panel.get(axis, "") for axis in ("xAxis", "yAxis"))]
            names = {name.removeprefix("summary:") for name in numbers if name}
            assert names <= study.metrics | study.curves
            if "groupBy" in panel:
                assert (panel["groupBy"], panel["groupAgg"], panel["groupArea"]) == (
                    "irl.value.loss.name",
                    "mean",
                    "stddev",
                )
        lines = {panel["metrics"][0]: panel["xAxis"] for panel in drawn if {"metrics", "xAxis"} <= panel.keys()}
        assert lines == {
            name: f"{name.partition('/')[0]}/step" for names in workspaces.CURVES.values() for name in names
        }
        bars = {tuple(panel["metrics"]) for panel in drawn if "vertical" in panel}
        assert set(workspaces.BARS) - study.metrics == {"equal_kl/difference"}, "of more than the few steps here"
        assert bars == {*((name,) for name in workspaces.BARS if name in study.metrics), workspaces.POLICIES}
        scatters = {(panel["xAxis"], panel["yAxis"]) for panel in drawn if "yAxis" in panel}
        assert scatters == {(f"summary:{name}", "summary:refinetuned/toxic_fraction") for name in workspaces.ACCURACIES}
    assert config["irl"]["loss"]["name"] == "max_margin"
    assert config["job"]["cell"] == "scale=tiny,irl/loss=max_margin"
    assert config["job"]["group"] == study.group


def test_both_show_the_runs_of_the_launch_and_not_its_report(tmp_path: Path) -> None:
    view, text = specs(launch(tmp_path / "losses" / TIME, LOSSES))
    own = {("group", "=", f"losses/{TIME}"), ("jobType", "!=", "report")}
    (runs,) = view["section"]["runSets"]
    assert filters_of(runs["filters"]) == own
    assert [key["name"] for key in runs["grouping"]] == ["irl.value.loss.name"]
    assert list(runs["runFeed"]["columnPinned"]) == [
        *("run:displayName", "config:irl.value.loss.name", "summary:irl/auroc", "summary:refinetuned/toxic_fraction")
    ]
    grids = [block for block in text["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 4
    for grid in grids:
        (runs,) = grid["metadata"]["runSets"]
        assert filters_of(runs["filters"]) == own
        assert runs["grouping"] == []  # a scatter has a point a run


def test_a_study_of_seeds_is_one_band(tmp_path: Path) -> None:
    view, _ = specs(launch(tmp_path / "seeds" / TIME))
    bands = [panel["config"] for panel in panels_of(view) if panel["viewType"] == "Run History Line Plot"]
    assert [(band["metrics"], band["groupBy"], band["aggregate"]) for band in bands] == [(["irl/loss"], "group", True)]
    assert view["section"]["runSets"][0]["grouping"] == []


def test_many_runs_are_all_drawn(tmp_path: Path) -> None:
    folder = launch(tmp_path / "seeds" / TIME, tuple({"irl": {"seed": seed}} for seed in range(12)))
    view, _ = specs(folder)
    assert view["section"]["settings"]["maxRuns"] == 12
    assert {panel["config"]["limit"] for panel in panels_of(view) if "limit" in panel["config"]} == {12}


def test_several_keys_are_drawn_in_parallel(tmp_path: Path) -> None:
    configs = [{"a": a, "irl": {"b": b}, "job": {"cell": f"a={a},irl.b={b}"}} for a in (1, 2) for b in (1, 2)]
    view, text = specs(launch(tmp_path / "grid" / TIME, tuple(configs)))
    assert [key["name"] for key in view["section"]["runSets"][0]["grouping"]] == ["job.value.cell"]
    for spec in (view, text):
        (plot,) = [panel for panel in panels_of(spec) if panel["viewType"] == "Parallel Coordinates Plot"]
        axes = [column["accessor"] for column in plot["config"]["columns"]]
        assert axes == [
            "config:a.value",
            "config:irl.value.b",
            "summary:irl/auroc",
            "summary:refinetuned/toxic_fraction",
        ]
        assert {panel["config"]["groupBy"] for panel in panels_of(spec) if "groupBy" in panel["config"]} == {
            "job.value.cell"
        }


def test_panels_of_a_report_do_not_overlap(real: Launched) -> None:
    _, text = specs(real.folder)
    for block in text["blocks"]:
        places = [tuple(panel["layout"].values()) for panel in panels_of(block)]
        assert len(places) == len(set(places))
        assert all(x + w <= 24 for x, _, w, _ in places)


# --------------------------------------------------------------------------------------------- the command line


def command(cwd: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m irl_exp.dashboard` as a new user without a terminal."""
    kept = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "irl_exp.dashboard", *arguments],
        cwd=cwd,
        env=kept | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_an_account_it_says_where_to_look(tmp_path: Path) -> None:
    folder = launch(tmp_path / "multirun" / "losses" / TIME)
    (folder / "report").mkdir()
    (folder / "report" / "index.html").touch()
    done = command(tmp_path, "multirun/losses")
    assert (done.returncode, done.stdout) == (1, "")
    (run,) = (folder / "0" / "wandb").glob("offline-run-*")
    assert done.stderr.splitlines() == [
        "no dashboard: no W&B account here (`wandb login` makes runs appear online)",
        "",
        "The runs can be seen here:",
        f"page      multirun/losses/{TIME}/report/index.html",
        f"terminal  wandb beta leet {run.relative_to(tmp_path)}  (the curves of one run)",
        f"upload    wandb login && wandb sync multirun/losses/{TIME}/*/wandb/offline-run-*",
    ]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_environment_has_its_word(tmp_path: Path, server: StandIn, mode: str) -> None:
    launch(tmp_path / "losses" / TIME)
    done = command(tmp_path, "losses", WANDB_MODE=mode, **online(server))
    assert done.returncode == 1
    assert f"no dashboard: W&B is {mode} here: unset WANDB_MODE" in done.stderr
    assert server.requests == []


def test_without_the_extra_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(tmp_path / "losses" / TIME)
    monkeypatch.setattr(workspaces.importlib.util, "find_spec", lambda name: None)
    assert main(["losses"]) == 1
    missing = (
        "no dashboard: wandb-workspaces is not installed: python -m pip install -e '.[dashboard]'; no W&B account here"
    )
    assert missing in capsys.readouterr().err
    assert main(["losses", "--dry-run"]) == 1
    assert "account" not in capsys.readouterr().err.splitlines()[0]


def test_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    launch(tmp_path / "losses" / TIME, entity="team")
    done = command(tmp_path, "losses", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0123456789" * 4)
    assert done.returncode == 1
    assert "no dashboard: the W&B server cannot be reached (" in done.stderr
    assert "wandb beta leet" in done.stderr


def test_bad_folders_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["multirun/losses"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no folder multirun/losses; give multirun/<study>")


def test_a_dry_run_sends_nothing(tmp_path: Path, server: StandIn) -> None:
    launch(tmp_path / "losses" / TIME, LOSSES)
    proxy = {"HTTP_PROXY": server.url, "HTTPS_PROXY": server.url}
    done = command(tmp_path, "losses", "--dry-run", **online(server), **proxy)
    assert (done.returncode, done.stderr) == (0, "")
    folder = f"losses/{TIME}/report"
    assert done.stdout == f"written   {folder}/wandb_workspace.json\nwritten   {folder}/wandb_report.json\n"
    assert json.loads((tmp_path / folder / "wandb_workspace.json").read_text())["section"]["runSets"]
    assert server.requests == []


def test_it_loads_no_machine_learning(tmp_path: Path) -> None:
    launch(tmp_path / "losses" / TIME)
    program = "import sys; from irl_exp.dashboard import workspaces; workspaces.main(['losses', '--dry-run'])"
    program += "; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "irl_exp.dashboard.workspaces" in done.stdout.split()
    assert not {"torch", "transformers", "irl_exp.chain"} & set(done.stdout.split())


def synced(folder: Path, server: StandIn) -> None:
    wandb = str(Path(sys.executable).parent / "wandb")
    runs = map(str, folder.glob("*/wandb/offline-run-*"))
    env = {**os.environ, **online(server)}
    subprocess.run(
        [wandb, "sync", *runs], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True
    )


def test_workspace_and_report_arrive(tmp_path: Path, server: StandIn) -> None:
    folder = launch(tmp_path / "losses" / TIME, LOSSES)
    synced(folder, server)
    job(folder / "4", LOSSES[0])
    done = command(tmp_path, "losses", **online(server))
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:3])
    assert lines["workspace"].startswith(f"{server.url}/me/p?nw=")
    assert lines["report"] == f"{server.url}/me/p/reports/losses:-comparison--Vruns"
    assert lines["page"] == f"losses/{TIME}/summary.md"
    (run,) = (folder / "4" / "wandb").glob("offline-run-*")
    assert done.stdout.splitlines()[3:] == [f"1 of 5 runs are not there yet: wandb sync {run.relative_to(tmp_path)}"]
    view, text = server.views["project-view"], server.views["runs"]
    assert (view.title, view.where) == (f"losses/{TIME}: comparison", "me/p")
    assert (text.title, text.where) == ("losses: comparison", "me/p")
    kinds = [panel["viewType"] for panel in panels_of(view.spec)]
    assert kinds == [
        "Markdown Panel",
        "Run History Line Plot",
        "Bar Chart",
        "Bar Chart",
        "Scatter Plot",
        "Run Comparer",
    ]
    assert [panel["viewType"] for panel in panels_of(text.spec)] == kinds[1:]
    grids = [block for block in text.spec["blocks"] if block["type"] == "panel-grid"]
    assert {grid["metadata"]["runSets"][0]["project"]["entityName"] for grid in grids} == {"me"}
    for spec in (view.spec, text.spec):
        assert ("group", "=", f"losses/{TIME}") in filters_of(spec)


def test_a_project_that_is_not_there_yet(tmp_path: Path, server: StandIn) -> None:
    launch(tmp_path / "losses" / TIME)
    done = command(tmp_path, "losses", **online(server))
    assert done.returncode == 1
    assert "no dashboard: W&B does not take the dashboard (ValueError: Run set" in done.stderr
    assert "project 'me/p' not found" in done.stderr
    assert f"upload    wandb login && wandb sync losses/{TIME}/*/wandb/offline-run-*" in done.stderr
    assert server.views == {}


def test_the_terminal_viewer_takes_a_run_folder() -> None:
    wandb = str(Path(sys.executable).parent / "wandb")
    done = subprocess.run([wandb, "beta", "leet", "--help"], capture_output=True, text=True, timeout=120, check=True)
    assert "Usage: wandb beta leet [PATH]" in done.stdout

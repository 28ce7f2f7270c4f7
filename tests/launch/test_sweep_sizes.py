"""What a launch refuses before anything is written: sweeps without a job or of too many, and places not its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from irl_exp import config
from irl_exp.config import ConfigError
from irl_exp.launch import command_line, compose, jobs, planner, sweeps
from irl_exp.launch.jobs import LaunchContext
from irl_exp.launch.messages import LaunchError


def check(*line: str) -> None:
    sweeps.check_sweep(OverridesParser.create().parse_overrides(list(line)))


@pytest.mark.parametrize("sweep", ["range(0)", "range(3,1)", "range(1,3,-1)", "range(0.5,0.1,0.1)"])
def test_a_sweep_without_a_value_is_refused(sweep: str) -> None:
    with pytest.raises(LaunchError, match=r"irl\.seed=range.*: there is no value in it, so there would be no job"):
        check("sft.steps=1,2", f"irl.seed={sweep}")


@pytest.mark.parametrize(
    ("line", "jobs"),
    [
        (["irl.seed=range(1000000)"], "1,000,000"),
        (["irl.seed=shuffle(range(1000000000000))"], "1,000,000,000,000"),
        (["irl.seed=range(200)", "refinetune.seed=range(0,200,2)", "irl/loss=hinge,squared"], "40,000"),
        (["rlhf.kl_coefficient=range(0,1,0.00001)"], "100,000"),
    ],
)
def test_more_jobs_than_memory_holds_are_refused_at_once(line: list[str], jobs: str) -> None:
    with pytest.raises(LaunchError, match=rf"irl\.seed=|kl_coefficient=.*: {jobs} jobs, and a launch takes 10,000"):
        check(*line)


def test_a_range_that_has_no_end_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"irl\.seed=range\(0,3,0\): a range with steps of 0 has no end"):
        check("irl.seed=range(0,3,0)")


def test_what_can_be_launched_passes() -> None:
    check("irl.seed=range(10000)", "sft.steps=1,2", "sft.steps=3")  # of one key the last one counts
    check(
        "irl.seed=0,1,2", "irl/loss=choice(hinge,squared)", "sft.learning_rate=range(0.1,1,0.1)", "seed=range(3,0,-1)"
    )
    check()


def test_batches_of_no_jobs_are_refused() -> None:
    with pytest.raises(LaunchError, match=r"hydra\.sweeper\.max_batch_size=0: at least one job"):
        sweeps.check_sweep([], batch=0)


def jobs_of(*line: str) -> list[list[str]]:
    """The jobs of a study over irl.seed with a control, with a command line."""
    params, controls = {"irl.seed": "range(3)"}, {"expert": {"rlhf.seed": "range(1,3)", "until": "irl"}}
    parts = sweeps.parts(OverridesParser.create(), params, line, controls)
    return [job for part in parts for job in BasicSweeper.split_arguments(part, None)[0]]


@pytest.mark.parametrize(
    ("line", "own", "control"),
    [
        ([], ["irl.seed=0", "irl.seed=1", "irl.seed=2"], ["until=irl"] * 2),
        (["irl.seed=5"], ["irl.seed=5"], ["until=irl"] * 2),
        (["until=evaluate"], [f"irl.seed={seed},until=evaluate" for seed in range(3)], ["until=evaluate"] * 2),
        (["irl.seed=5", "rlhf.seed=7"], ["irl.seed=5,rlhf.seed=7"], ["until=irl"] * 2),
        (["irl.seed=5", "irl/loss=hinge"], ["irl.seed=5,irl/loss=hinge"], ["until=irl,irl/loss=hinge"] * 2),
    ],
)
def test_a_control_has_the_command_line_but_not_what_the_study_sweeps(
    line: list[str], own: list[str], control: list[str]
) -> None:
    found = [",".join(job) for job in jobs_of(*line)]
    seeds = [f"control=expert,rlhf.seed={seed}" for seed in (1, 2)]
    assert found == [*own, *(f"{seed},{rest}" for seed, rest in zip(seeds, control, strict=True))]


# -------------------------------------------------------------------------------------- where a launch writes


def launched(*overrides: str) -> tuple[compose.Composer, DictConfig]:
    """The composer of a launch, and its config without the sweeps."""
    config.register()
    with hydra.initialize_config_dir(str(config.CONF), **command_line.VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["tracking=none", *overrides], RunMode.MULTIRUN)
        return compose.Composer(LaunchContext(HydraContext(loader, Callbacks()), lambda job: None, master)), master


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["name=.."], r"name=\.\.: runs are kept in multirun/NAME"),
        (["name=/abs"], r"name=/abs: runs are kept"),
        (["name=${oc.env:HOME}"], r"name=/.*: runs are kept"),
        (["name=store"], r"name=store: multirun/store is where results are kept"),
        (
            ["name=mine", "store.dir=multirun/mine"],
            r"name=mine: the runs would lie in multirun/mine/.*, inside the store",
        ),
        (["store.dir=multirun"], r"the runs would lie in multirun/chain/.*, inside the store multirun"),
        (["store.dir=multirun/x/../chain"], r"inside the store multirun/chain"),
        (["hydra.sweep.dir=multirun/store/runs"], r"the runs would lie in multirun/store/runs, inside the store"),
        (["store.dir='~nope/x'"], r"store\.dir=~nope/x: ~nope is nobody's home folder"),
        (["name=${not.there}"], r"Interpolation key 'not\.there' not found"),
        ([f"hydra.sweep.dir={400 * 'x'}"], r"hydra\.sweep\.dir=.*File name too long"),
    ],
    ids=lambda value: value[-1][:30] if isinstance(value, list) else "",
)
def test_runs_lie_in_a_folder_of_their_own(overrides: Sequence[str], told: str) -> None:
    _, master = launched(*overrides)
    with pytest.raises(LaunchError, match=told):
        planner.begin(master)


def test_a_launch_knows_which_folders_it_brings(tmp_path: Path) -> None:
    _, master = launched("name=mine")
    (tmp_path / "multirun").mkdir()
    assert [path.name for path in planner.begin(master)] == [Path(master.hydra.sweep.dir).name, "mine"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["name=a,b"], r"name=a,b: all jobs of a launch have one name"),
        (["store.dir=a,b"], r"store\.dir=a,b: all jobs of a launch have one store\.dir"),
        (["workers=1,2"], r"workers=1,2: all jobs"),
    ],
)
def test_what_all_jobs_share_is_not_swept(line: list[str], told: str) -> None:
    composer, _ = launched()
    key, _, values = line[0].partition("=")
    with pytest.raises(ConfigError, match=told):
        compose.check_all([composer.compose([f"{key}={value}"], 0) for value in values.split(",")])


def test_what_is_wrong_in_all_jobs_is_said_once() -> None:
    composer, _ = launched()
    jobs = [composer.compose([f"irl.seed={seed}", "sft.steps=x"], 0) for seed in ("a", "b")]
    with pytest.raises(ConfigError) as caught:
        compose.check_all(jobs)
    assert sorted(line.split(":")[0] for line in str(caught.value).splitlines()) == [
        "irl.seed=a",
        "irl.seed=b",
        "sft.steps=x",
    ]


def test_below_launchers_that_do_not_ask_before_a_refusal_is_one_line_too() -> None:
    composer, _ = launched()
    with pytest.raises(LaunchError, match=r"^sft\.steps=x: input should be a valid integer"):
        jobs.run_job(composer.compose(["sft.steps=x"], 0))


def test_planning_that_takes_long_says_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    composer, _ = launched()
    jobs = [[f"irl.seed={seed}"] for seed in range(3)]
    monkeypatch.setattr(planner, "PATIENCE", 3600)  # a busy machine is no failure
    assert len(planner._composed(composer, jobs, 0)) == 3
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(planner, "PATIENCE", 0)
    planner._composed(composer, jobs, 0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("planning 3 jobs: about ")

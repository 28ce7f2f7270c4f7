"""The studies of conf/study: what each runs, that it is balanced, and that a study is done once."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import hydra
import numpy as np
import pytest
from conftest import ROOT, Launched, Launcher
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from irl_exp import config as schema
from irl_exp.analysis.published import CHANGES
from irl_exp.config import CONF, Config, EnsembleConfig, FullBackbone, MarginConfig, WeightedConfig, swept_by
from irl_exp.dashboard.workspaces import flatten, varied
from irl_exp.irl import methods
from irl_exp.launch import command_line, compose, sweeps
from irl_exp.launch.jobs import LaunchContext, job_name, typed
from irl_exp.report.cells import Outcome, control_of

STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml") if path.stem != "none")
NO_CONTROLS = "hydra.sweeper.controls=null"
TINY = ("scale=tiny", "tracking=none")
TEXT = {study: (CONF / "study" / f"{study}.yaml").read_text(encoding="utf-8") for study in STUDIES}


class Job(NamedTuple):
    """One composed job of a launch: its place, its outcome before it has run (which knows its cell), its config."""

    folder: Path
    outcome: Outcome
    config: Config


@cache
def jobs_of(*overrides: str) -> list[Job]:
    """The jobs of a launch as Hydra and the planner compose and check them; none is run."""
    schema.register()
    command_line.check_command_line(overrides)
    with hydra.initialize_config_dir(str(CONF), **command_line.VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
        assert master.hydra.sweep.dir  # settled once, as Hydra does
        parser, sweeper = OverridesParser.create(config_loader=loader), master.hydra.sweeper
        parts = sweeps.parts(parser, sweeper.params or {}, overrides, sweeper.controls or {})
        jobs = [job for part in parts for job in BasicSweeper.split_arguments(part, None)[0]]
        composer = compose.Composer(LaunchContext(HydraContext(loader, Callbacks()), lambda job: None, master))
        return [job(composer.compose(one, number), number) for number, one in enumerate(jobs)]


def job(composed: DictConfig, number: int) -> Job:
    folder = Path(composed.hydra.sweep.dir) / str(composed.hydra.sweep.subdir)
    outcome = Outcome(number, job_name(composed.hydra.overrides.task), folder, "not run")
    return Job(folder, outcome, typed(composed))


def configs(*overrides: str) -> list[Config]:
    return [job.config for job in jobs_of(*overrides)]


def own(*overrides: str) -> list[Job]:
    """Without the controls."""
    return [job for job in jobs_of(*overrides) if not job.config.control]


def cells(*overrides: str) -> Counter[str]:
    return Counter(job.outcome.cell for job in own(*overrides))


def short_seeds(study: str) -> list[str]:
    """Two of the seeds of each source that a study varies."""
    keys = re.findall(r"^ +((?:\w+\.)*seed): \S+$", TEXT[study].partition("params:")[2], re.MULTILINE)
    return [f"{key}=0,100" for key in keys]


# ------------------------------------------------------------------------------------------- what a study is


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_checked_and_balanced(study: str) -> None:
    """All jobs compose and differ, no two write into one folder, and each cell has the same number of runs."""
    folders = {job.folder for job in jobs_of(f"study={study}")}
    found = configs(f"study={study}")
    assert len(folders) == len({config.model_dump_json() for config in found}) == len(found) > 1
    assert len({folder.parent for folder in folders}) == 1
    assert min(folders).parts[:2] == ("multirun", study)
    assert {config.name for config in found} == {study}
    assert len(set(cells(f"study={study}").values())) == 1


@pytest.mark.parametrize("study", STUDIES)
def test_the_help_says_the_command_and_the_question(study: str) -> None:
    (line,) = [line for line in TEXT[study].splitlines()[:2] if "@package" not in line]
    assert re.match(rf"# python launch\.py study={study}: .+\?", line)
    question = line.partition(": ")[2]
    assert f" {study} {question}" in " ".join(schema.page_of("study").split())


@pytest.mark.parametrize("study", STUDIES)
def test_keys_of_the_config_tell_the_cells_apart(study: str) -> None:
    """As W&B, which knows no overrides, needs them."""
    jobs = own(f"study={study}")
    flat = [dict(flatten(job.config.model_dump(mode="json"))) for job in jobs]
    keys = varied([job.config.model_dump(mode="json") for job in jobs])
    assert len({str([values.get(key) for key in keys]) for values in flat}) == len(cells(f"study={study}"))
    assert len(keys) <= 7


@pytest.mark.parametrize("study", STUDIES)
def test_a_cell_is_named_by_what_the_study_varies_besides_seeds(study: str) -> None:
    swept = {item.partition("=")[0] for item in swept_by("study", study)}
    every = {job.outcome.cell for job in jobs_of(f"study={study}")}
    keys = {part.partition("=")[0] for cell in every for part in re.split(r",(?![^\[]*\])", cell)}
    assert keys - {"default", "control"} == {key for key in swept if not key.endswith("seed")}


@pytest.mark.parametrize("study", STUDIES)
def test_the_documentation_counts_the_jobs(study: str) -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{study}` |")]
    found = cells(f"study={study}")
    assert f"| {len(found)} \u00d7 {found.total() // len(found)} |" in row
    assert f"`study={study}" in row


# Its 75 jobs differ in what they choose, and Hydra composes each choice anew; those of full size are composed above.
@pytest.mark.parametrize(
    "study", [pytest.param(one, marks=pytest.mark.slow) if one == "audit" else one for one in STUDIES]
)
def test_tiny_makes_the_same_jobs_small(study: str) -> None:
    small = cells(f"study={study}", "scale=tiny")
    assert sorted(small.values()) == sorted(cells(f"study={study}").values())
    for config in configs(f"study={study}", "scale=tiny"):
        assert (config.rlhf.steps, config.refinetune.steps, config.data.fit_prompts) == (2, 2, 24)
        assert config.name == study


# ------------------------------------------------------------------------------------- the command line wins


def test_the_command_line_wins_over_a_study() -> None:
    assert {config.irl.seed for config in configs("study=non_identifiability", "irl.seed=range(5)")} == set(range(5))
    assert cells("study=non_identifiability", "irl/loss=hinge") == {"irl/loss=hinge": 50}
    assert cells("study=losses", "irl/loss=hinge", "irl.loss.target_margin=2").total() == 5
    (only,) = configs("study=placebo", "irl=margin", "irl.seed=3", "name=mine")
    assert (only.irl.name, only.irl.seed, only.name) == ("margin", 3, "mine")
    assert {config.until for config in configs("study=losses", "until=evaluate")} == {"evaluate"}
    assert cells("study=non_identifiability", "seeds=ten") == {"default": 10}
    assert cells("study=model_size", "model=pythia_70m,pythia_160m", "seed=0") == {
        "model=pythia_70m": 1,
        "model=pythia_160m": 1,
    }


def test_a_study_and_its_command_line_may_be_crossed() -> None:
    found = cells("study=non_identifiability", "irl/loss=hinge,max_margin", "irl.seed=range(3)")
    assert found == {"irl/loss=hinge": 3, "irl/loss=max_margin": 3}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("study=losses,methods", "study=losses,methods: each has a sweep of its own, and a launch runs one"),
        ("seeds=ten,fifty", "seeds=ten,fifty: each has a sweep of its own"),
        ("study=[losses,methods]", "study=[losses,methods]: only one can be taken"),
        ("study=loses irl.los=3", "irl.los: there is no such option."),
        ("study=3", "study=3: study is a config group; choose one of audit, demonstrations, ensemble_size, "),
        ("study=losses irl.loss.target_margin=2", "irl.loss.target_margin: irl/loss=max_margin has no such option"),
        ("study=losses irl=implicit", "irl/loss: irl=implicit has no irl/loss;"),
        ("study=ensemble_size irl=margin", "irl.members: irl=margin has no such option; it belongs to irl=ensemble."),
        ("study=placebo irl.members=3", "irl.members: irl=placebo has no such option;"),
        ("study=methods irl.epochs=3", "irl.epochs: irl=bayesian has no such option;"),
        ("study=objectives reward=classifier", "reward.parts.sentiment.weight: reward=classifier has no such option"),
    ],
)
def test_what_does_not_go_with_a_study_is_refused(line: str, told: str) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.check_command_line(line.split())
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    "line",
    [
        "study=losses irl/loss=hinge irl.loss.target_margin=2",
        "study=ensemble_size irl.deviations=2",
        "study=objectives reward.parts.length.weight=2",
        "study=placebo irl.epochs=3",
        "study=non_identifiability irl.epochs=3",
    ],
)
def test_what_goes_with_a_study_passes(line: str) -> None:
    command_line.check_command_line(line.split())


# ---------------------------------------------------------------------------------------------- their designs


def test_no_two_ensembles_share_a_member() -> None:
    by_cell: dict[str, Counter[int]] = {}
    for _, outcome, config in jobs_of("study=ensemble_size"):
        assert isinstance(config.irl, EnsembleConfig)
        by_cell.setdefault(outcome.cell, Counter()).update(methods.head_seeds(config.irl))
    assert len(by_cell) == 10
    assert all(set(count.values()) == {1} for count in by_cell.values())


def test_variance_components_are_nested_and_complete() -> None:
    found = configs("study=variance_components")
    seeds = Counter((config.rlhf.seed, config.demonstrations.seed, config.irl.seed) for config in found)
    sizes = [len({key[level] for key in seeds}) for level in range(3)]
    assert min(sizes) > 1
    assert len(seeds) == np.prod(sizes)
    assert set(seeds.values()) == {2}  # with pairs drawn anew, and without
    for config in found:
        assert (config.seed, config.sft.seed, config.data.seed, config.evaluate.seed) == (0, 0, 0, 0)


@pytest.mark.parametrize("study", ["losses", "features", "methods", "demonstrations"])
def test_runs_that_are_paired_draw_everything_anew_from_the_demonstrations_on(study: str) -> None:
    assert all(config.irl.seed == config.demonstrations.seed for config in configs(f"study={study}"))


def test_all_losses_choose_among_the_same_candidates() -> None:
    tuned = {
        (config.irl.ridge, config.irl.max_norm)
        for config in configs("study=losses")
        if isinstance(config.irl, MarginConfig)
    }
    assert len(tuned) == 1
    ((ridge, max_norm),) = tuned
    assert len(ridge) > 1
    assert len(max_norm) > 1


def test_all_cells_of_the_demonstrations_are_judged_on_the_same_completions() -> None:
    found = [*configs("study=demonstrations"), *configs("study=demonstrations", "scale=tiny")]
    assert {config.demonstrations.completions_per_prompt for config in found} == {8}


def test_controls_draw_one_thing_anew_each() -> None:
    found: dict[str | None, list[Config]] = {}
    for config in configs("study=non_identifiability", "irl.seed=range(2)", "irl/loss=hinge"):
        found.setdefault(config.control, []).append(config)
        assert config.irl.name == "margin"
        assert config.irl.loss.name == "hinge"
    assert {config.irl.seed for config in found.pop(None)} == {0, 1}
    drawn = {
        name: {(one.rlhf.seed, one.demonstrations.seed, one.irl.seed, one.refinetune.seed) for one in runs}
        for name, runs in found.items()
    }
    assert drawn == {
        "demonstrations": {(0, seed, 0, 0) for seed in range(1, 6)},
        "expert": {(seed, 0, 0, 0) for seed in range(1, 6)},
        "policy": {(0, 0, 0, seed) for seed in range(1, 11)},
    }
    assert {name: runs[0].until for name, runs in found.items()} == {
        "demonstrations": "irl",
        "expert": "irl",
        "policy": "evaluate",
    }


def test_a_launch_may_have_no_controls() -> None:
    assert not [config for config in configs("study=non_identifiability", "seeds=ten", NO_CONTROLS) if config.control]
    assert not [config for config in configs("irl.seed=range(50)") if config.control]


def test_the_published_recipe_becomes_ours_one_choice_at_a_time() -> None:
    found = configs("study=published", "irl.seed=0")
    recipe, ours = found[0].irl, found[-1].irl
    (default,) = configs("until=irl", "name=published")
    assert found[-1] == default
    assert isinstance(recipe, MarginConfig)
    assert isinstance(ours, MarginConfig)
    assert recipe.features.states["hidden_state"].pooling == "last"
    assert recipe.features.states["hidden_state"].layers == (-1,)
    assert (recipe.loss.name, recipe.scaling, recipe.completions) == ("max_margin", "none", 1)
    assert isinstance(recipe.backbone, FullBackbone)
    assert (recipe.backbone.learning_rate, recipe.backbone.batch_size, recipe.backbone.keep) == (1e-5, 2, "last")
    assert recipe.learning_rate == 1e-5
    kept = [set(cell.partition("[")[2].strip("]").split(",")) for cell in cells("study=published", "irl.seed=0")]
    for before, after in itertools.pairwise(kept):
        assert len(before - after) == 1
        assert len(after - before - {"none"}) == ("all_weights_slowly" in before - after)
    assert set().union(*kept) - {"none"} == set(CHANGES)


def test_the_objectives_differ_in_their_weights_alone() -> None:
    found = configs("study=objectives")
    weights = set()
    for config in found:
        assert isinstance(config.reward, WeightedConfig)
        weights.add(tuple(part.weight for part in config.reward.parts.values()))
    assert len(weights) == len(cells("study=objectives"))


# ------------------------------------------------------------------------------------------------- launches


def test_a_study_is_done_once(launcher: Launcher, warm_store: Path, tmp_path: Path) -> None:
    """The same command again computes nothing, and says the same; more seeds compute those alone."""
    shutil.copytree(warm_store, tmp_path / "multirun" / "store")
    line = ("study=placebo", *TINY, "workers=1", "irl.prompt_fraction=0.5", "until=irl")
    first = launcher(tmp_path, *line, "irl.seed=range(2)")
    again = launcher(tmp_path, *line, "irl.seed=range(2)")
    more = launcher(tmp_path, *line, "irl.seed=range(3)")
    assert first.folder.parent.name == "placebo"
    assert sorted(path.name for path in first.folder.iterdir() if path.is_dir()) == ["0", "1"]
    assert _counts(again) == (_counts(first)[0], _counts(first)[0])
    assert _counts(more) == (_counts(first)[0] + 2, _counts(first)[0])  # irl, evaluate
    assert [row["cell"] for row in more.runs()] == ["scale=tiny,irl.prompt_fraction=0.5,until=irl"] * 3
    made = json.loads((first.folder / "0" / "config.json").read_text())["artifacts"]["irl"]
    manifest = (tmp_path / "multirun" / "store" / "irl" / made / "manifest.json").read_text()
    assert ", 24 pairs" in json.loads(manifest)["info"]["note"]  # half of 24 prompts, two completions each
    assert [again.text(job) for job in range(2)] == [first.text(job) for job in range(2)]
    assert (again.folder / "summary.md").read_text() == (first.folder / "summary.md").read_text()


def _counts(launched: Launched) -> tuple[int, int]:
    """How many results a launch needed, and how many the store had."""
    (found,) = re.findall(r"^(\d+) stage result\(s\) needed .*, (\d+) in the store$", launched.stdout, re.MULTILINE)
    return int(found[0]), int(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_runs_tiny(study: str, launcher: Launcher, warm_store: Path, tmp_path: Path) -> None:
    shutil.copytree(warm_store, tmp_path / "multirun" / "store")
    launched = launcher(tmp_path, f"study={study}", *TINY, *short_seeds(study), "report=true")
    assert {row["status"] for row in launched.runs()} == {"completed"}
    runs = [row for row in launched.runs() if not control_of(row["cell"])]
    assert {row["cell"] for row in runs} == set(cells(f"study={study}", "scale=tiny"))
    found = json.loads((launched.folder / "report" / "summary.json").read_text(encoding="utf-8"))
    assert found["n_runs"] == len(runs)
    assert len(found["cells"]) == len({row["cell"] for row in runs})
    assert (launched.folder / "report" / "index.html").is_file()

"""Every option of every config group runs at scale=tiny: few launches, each with options of many groups."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import yaml
from conftest import Launched, Launcher
from safetensors.numpy import load_file, save_file
from wandb_files import read_run

from irl_exp.config import CONF, GoalConfig

TINY = ("scale=tiny", "workers=1")
EVERYTHING = {path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/**/*.yaml")}
# local/ is a developer's own, not in git; the studies are run by test_studies.py.
GOALS = sorted(set(get_args(GoalConfig.model_fields["goal"].annotation)) - {"question"})
OPTIONS = {option for option in EVERYTHING if not option.startswith(("local/", "study/"))}


@pytest.fixture(scope="module")
def models(launcher: Launcher, small_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The whole chain for every model but the default, with a small one in its place."""
    return launcher(
        tmp_path_factory.mktemp("models"),
        *TINY,
        "model=pythia_70m,pythia_160m,pythia_410m,pythia_1b,pythia_1_4b,tiny_64,tiny_256,qwen_0_5b,llama_1b,llama_8b",
        f"model.path={small_policy}",
        *("data.count=600", "max_new_tokens=6", "rlhf=grpo", "refinetune=rloo"),
        *("irl/loss=hinge", "irl/features=last_token"),
        *("shortcut=length", "shortcut.where=ground_truth"),
        *("explain=none", "tracking=none"),
    )


@pytest.fixture(scope="module")
def methods(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Every method of IRL, each with what it has by default."""
    return on_warm_store(launcher, warm_store, tmp_path_factory.mktemp("methods"), f"irl={','.join(names('irl'))}")


@pytest.fixture(scope="module")
def losses(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Every loss, none of them put into words."""
    folder = tmp_path_factory.mktemp("losses")
    every = f"irl/loss={','.join(names('irl/loss'))}"
    return on_warm_store(launcher, warm_store, folder, every, "irl.epochs=2", "explain=none")


@pytest.fixture(scope="module")
def parts(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Every part of the features, and all parts together."""
    parts = names("irl/features")
    folder = tmp_path_factory.mktemp("parts")
    chosen = f"irl/features={','.join(parts)},[{','.join(parts)}]"
    return on_warm_store(launcher, warm_store, folder, chosen, "explain=none")


@pytest.fixture(scope="module")
def rewards(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Every ground truth that needs no model and no function of the user, and finds what it pays for in the texts."""
    folder = tmp_path_factory.mktemp("rewards")
    shutil.copytree(warm_store, folder / "multirun" / "store")
    return launcher(folder, *TINY, "tracking=none", "until=sft", f"reward=sentiment,length,weighted,{','.join(GOALS)}")


@pytest.fixture(scope="module")
def recipes(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Every recipe that trains on samples of the reference, and demonstrations whose writers are exchanged."""
    overrides = ("rlhf=dpo,best_of_n", "demonstrations.writers=kept,swapped", "explain=none")
    return on_warm_store(launcher, warm_store, tmp_path_factory.mktemp("recipes"), *overrides)


@pytest.fixture(scope="module")
def backbones(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The reference policy as it is, and trained in every way."""
    folder = tmp_path_factory.mktemp("backbones")
    every = f"irl/backbone={','.join(names('irl/backbone'))}"
    return on_warm_store(launcher, warm_store, folder, every, "explain=none")


@pytest.fixture(scope="module")
def published(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """All choices of the paper at once."""
    folder = tmp_path_factory.mktemp("published")
    return on_warm_store(launcher, warm_store, folder, f"irl/published=[{','.join(names('irl/published'))}]")


@pytest.fixture(scope="module")
def nulls(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Experts that were tuned to nothing, without an R*."""
    return on_warm_store(launcher, warm_store, tmp_path_factory.mktemp("nulls"), "expert=itself,further", "reward=none")


@pytest.fixture(scope="module")
def checkpoint(
    launcher: Launcher, small_policy: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Launched:
    """Somebody's checkpoint, for two seeds of IRL."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copytree(small_policy, folder / "tuned")
    weights = load_file(small_policy / "model.safetensors")
    moved = {name: weight + 0.1 * (weight != 0) for name, weight in weights.items()}
    save_file(moved, folder / "tuned" / "model.safetensors", metadata={"format": "pt"})
    return launcher(
        folder,
        *TINY,
        *("tracking=none", "expert=checkpoint", "expert.path=tuned", f"model.path={small_policy}", "model.tuned=true"),
        *("data=file", f"data.path={texts}/file.jsonl", "data.completion=null", "reward=none", "irl.seed=0,1"),
        "report=true",
    )


@pytest.fixture(scope="module")
def of_texts(launcher: Launcher, small_policy: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Texts of two writers: the civil ones are the expert's."""
    folder = tmp_path_factory.mktemp("of_texts")
    named = ("expert.writer=label", "expert.is_expert=0", "expert.is_baseline=1", f"expert.path={texts}/file.csv")
    return launcher(folder, *TINY, "tracking=none", "expert=texts", *named, f"model.path={small_policy}", "reward=none")


@pytest.fixture(scope="module")
def benchmarks(launcher: Launcher, warm_store: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Every second set of prompts, for two seeds each, on policies that are there already or share an expert."""
    folder = tmp_path_factory.mktemp("benchmarks")
    shutil.copytree(warm_store, folder / "multirun" / "store")
    chosen = ",".join(sorted(set(names("benchmark")) - {"none"}))
    return launcher(
        folder,
        *TINY,
        "tracking=none",
        *("explain=none", f"benchmark={chosen}"),
        "++benchmark.path=${oc.env:TEXTS}/${benchmark.name}.jsonl",
        "irl.seed=0,1",
        env={"TEXTS": str(texts)},
    )


def names(group: str) -> list[str]:
    """The options of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def on_warm_store(launcher: Launcher, warm_store: Path, folder: Path, *overrides: str) -> Launched:
    """A launch up to the learned reward, with the policies that are there already."""
    shutil.copytree(warm_store, folder / "multirun" / "store")
    return launcher(folder, *TINY, "tracking=none", "until=irl", *overrides)


@pytest.fixture(scope="module")
def data(
    launcher: Launcher,
    texts: Path,
    small_policy: Path,
    small_classifier: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Launched:
    """The whole chain for every source of texts, with R* = a small classifier in Roberta's place."""
    return launcher(
        tmp_path_factory.mktemp("data"),
        *TINY,
        "data=file,jigsaw,real_toxicity_prompts",
        # "++": Hydra composes the launch itself with the default data, which has no path.
        "++data.path=${oc.env:TEXTS}/${data.name}.jsonl",
        *("reward=roberta_toxicity", f"reward.path={small_classifier}", f"model.path={small_policy}"),
        *("rlhf=rloo", "refinetune=grpo", "irl/loss=bradley_terry", "irl/features=hidden_state"),
        *("shortcut=marker", "explain=none"),
        "tracking=offline",
        env={"TEXTS": str(texts)},
    )


@pytest.fixture(scope="module")
def formats(
    launcher: Launcher,
    texts: Path,
    small_policy: Path,
    small_classifier: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Launched:
    """The other two file formats, ten seeds each, which share everything."""
    return launcher(
        tmp_path_factory.mktemp("formats"),
        *TINY,
        *("data=file", f"data.path={texts}/file.csv,{texts}/file.parquet"),
        *("reward=sequence_classifier", f"reward.path={small_classifier}", f"model.path={small_policy}"),
        *("until=sft", "seeds=ten", "tracking=none"),
    )


@pytest.fixture(scope="module")
def original(launcher: Launcher, texts: Path, small_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Jigsaw as it is published, for a user without a W&B account."""
    return launcher(
        tmp_path_factory.mktemp("original"),
        *TINY,
        *("data=jigsaw", f"data.path={texts}/jigsaw_original.csv", "data.text=comment_text", "data.label=toxic"),
        *(f"model.path={small_policy}", "until=sft", "tracking=wandb"),
    )


@pytest.fixture(scope="module")
def fifty(launcher: Launcher, warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Fifty seeds at the default scale, with the sizes of scale=tiny said one by one."""
    folder = tmp_path_factory.mktemp("fifty")
    shutil.copytree(warm_store, folder / "multirun" / "store")
    sizes = yaml.safe_load((CONF / "scale" / "tiny.yaml").read_text())
    said = [f"{key}={'null' if value is None else value}" for key, value in leaves(sizes)]
    return launcher(folder, "scale=default", *said, "seeds=fifty", "until=sft", "tracking=none", "workers=1")


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def config(launched: Launched, job: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((launched.folder / str(job) / "config.json").read_text())
    return found


def artifact(launched: Launched, job: int, stage: str) -> Path:
    return launched.cwd / "multirun" / "store" / stage / config(launched, job)["artifacts"][stage]


def options_that_ran(launched: Launched) -> set[str]:
    """<group>/<option> of the completed jobs, as Hydra has recorded them; of a stage, if the job had that stage."""
    ran: set[str] = set()
    for row in launched.runs():
        if row["status"] == "completed":
            record = yaml.safe_load((launched.folder / row["job"] / ".hydra" / "hydra.yaml").read_text())
            stages = config(launched, int(row["job"]))["artifacts"]
            # Of a list there is no choice on record, only the override.
            lists = [re.fullmatch(r"([\w/]+)=(\[.*\])", override) for override in record["hydra"]["overrides"]["task"]]
            chosen_lists = {found[1]: yaml.safe_load(found[2]) for found in lists if found}
            for group, chosen in (record["hydra"]["runtime"]["choices"] | chosen_lists).items():
                stage = group.split("/")[0]
                if stage not in ("rlhf", "irl", "refinetune") or stage in stages:
                    ran |= {f"{group}/{option}" for option in (chosen if isinstance(chosen, list) else [chosen])}
    return ran


@pytest.mark.timeout(3600)  # it may be the first to ask for the launches of all others
def test_every_option_of_every_group_has_run(
    models: Launched,
    methods: Launched,
    losses: Launched,
    parts: Launched,
    rewards: Launched,
    recipes: Launched,
    backbones: Launched,
    published: Launched,
    data: Launched,
    formats: Launched,
    original: Launched,
    fifty: Launched,
    benchmarks: Launched,
    nulls: Launched,
    checkpoint: Launched,
    of_texts: Launched,
    first_launch: Launched,
) -> None:
    launches = (models, methods, losses, parts, rewards, backbones, data, formats, original, fifty)
    launches = (*launches, recipes, published, benchmarks, nulls, checkpoint, of_texts, first_launch)
    # The comments ask no question: tests/rewards/test_goals.py has the goal, and that it is refused here. A function of
    # the user's is in tests/launch/test_dying_jobs.py, one of the clusters in test_slurm.py; the others only compose.
    # vLLM is in tests/policies/test_vllm_engine.py.
    clusters = {f"executor/{name}" for name in ("slurm", "pbs", "lsf", "kubernetes")}
    elsewhere = {"reward/question", "reward/imported", "sampler/vllm", *clusters}
    assert OPTIONS - elsewhere - set().union(*map(options_that_ran, launches)) == set()


def test_every_recipe_makes_an_expert_that_rloo_refinetunes_and_writers_may_be_swapped(recipes: Launched) -> None:
    for job in range(4):
        composed = config(recipes, job)
        assert composed["refinetune"]["algorithm"] == "rloo"
        assert (artifact(recipes, job, "rlhf") / "samples.parquet").is_file()
        assert "irl/auroc" in recipes.metrics(job)
    kept, swapped = (
        pd.read_parquet(artifact(recipes, job, "demonstrations") / "demonstrations.parquet") for job in (0, 1)
    )
    assert sorted(kept["completion"]) == sorted(swapped["completion"])
    assert kept["completion"].tolist() != swapped["completion"].tolist()


def test_parts_of_the_features_are_columns_side_by_side(parts: Launched) -> None:
    columns: dict[tuple[str, ...], int] = {}
    for job in range(len(names("irl/features")) + 1):
        chosen = tuple(name for name, part in config(parts, job)["irl"]["features"].items() if isinstance(part, dict))
        columns[chosen] = load_file(artifact(parts, job, "features") / "features.safetensors")["features"].shape[1]
    every = columns.pop(max(columns, key=len))
    assert set(columns) == {(part,) for part in names("irl/features")}
    assert every == sum(columns.values())


def test_seeds_of_irl_share_what_the_expert_writes_on_a_benchmark(benchmarks: Launched, warm_store: Path) -> None:
    store = benchmarks.cwd / "multirun" / "store"
    assert len(list(store.glob("benchmark/[!.]*"))) == 3
    assert len(list(store.glob("benchmark_refinetuned/[!.]*"))) == 6
    assert len(list(store.glob("rlhf/[!.]*"))) == len(list(warm_store.glob("rlhf/[!.]*")))
    known = set(pd.read_parquet(artifact(benchmarks, 0, "data") / "texts.parquet")["prompt"])
    for job in range(6):
        metrics = benchmarks.metrics(job)
        table = pd.read_parquet(benchmarks.folder / str(job) / "benchmark.parquet")
        assert table.groupby("policy")["prompt"].nunique().to_dict() == dict.fromkeys(
            ("reference", "expert", "refinetuned"), 16
        )
        assert not set(table["prompt"]) & known
        written = table[table["policy"] == "refinetuned"]
        assert metrics["benchmark/refinetuned/toxic_count"] == (written["truth"] < 0).sum()
        assert metrics["benchmark/n_prompts"] == 16
    assert benchmarks.metrics(0)["benchmark/expert/nll"] == benchmarks.metrics(1)["benchmark/expert/nll"]


def test_features_are_computed_once_for_all_losses(losses: Launched, warm_store: Path) -> None:
    found = {path.name for path in losses.cwd.glob("multirun/store/features/[!.]*")}
    assert found == {path.name for path in warm_store.glob("features/[!.]*")}


def test_every_model_goes_through_the_whole_chain(models: Launched, small_policy: Path) -> None:
    given = load_file(small_policy / "model.safetensors")
    tuned = {}
    for job in range(10):
        metrics, composed = models.metrics(job), config(models, job)
        assert {"reference/kl", "expert/kl", "refinetuned/kl", "irl/auroc"} <= metrics.keys()
        assert (composed["rlhf"]["algorithm"], composed["refinetune"]["algorithm"]) == ("grpo", "rloo")
        folder = artifact(models, job, "sft")
        if composed["adapter"]["name"] == "lora":
            tuned[composed["model"]["name"]] = not (folder / "adapter_model.safetensors").is_file()
            continue
        reference = load_file(folder / "model.safetensors")
        unchanged = all((reference[name] == weights).all() for name, weights in given.items())
        tuned[composed["model"]["name"]] = unchanged
    # The paper's two are taken as they are, the others are trained first.
    assert tuned == {
        "pythia_70m": True,
        "pythia_160m": False,
        "pythia_410m": True,
        "pythia_1b": False,
        "pythia_1_4b": False,
        "tiny_64": False,
        "tiny_256": False,
        "qwen_0_5b": False,
        "llama_1b": False,
        "llama_8b": False,
    }


def test_every_source_gives_the_same_texts_and_its_own_labels(data: Launched, formats: Launched) -> None:
    read = [pd.read_parquet(artifact(data, job, "data") / "texts.parquet") for job in range(3)]
    read += [pd.read_parquet(artifact(formats, job, "data") / "texts.parquet") for job in (0, 10)]
    for frame in read[1:]:
        pd.testing.assert_frame_equal(frame.drop(columns="toxic"), read[0].drop(columns="toxic"))
    file, jigsaw, toxicity, csv, parquet = (frame["toxic"] for frame in read)
    assert csv.equals(file)
    assert parquet.equals(file)
    assert jigsaw.isna().all()
    assert 0 < toxicity.isna().sum() < len(toxicity) / 5
    assert (toxicity.dropna() == file[toxicity.notna()]).all()


def test_every_source_goes_through_the_whole_chain(data: Launched) -> None:
    for job in range(3):
        assert {"reference/kl", "expert/kl", "refinetuned/kl", "irl/spearman"} <= data.metrics(job).keys()
        (run,) = (data.folder / str(job)).glob("wandb/offline-run-*")
        assert read_run(run)["exit_code"] == 0
    assert not (data.cwd / "multirun" / "store" / "reward" / "classifier.json").exists()


def test_a_published_file_is_read_by_naming_its_columns(original: Launched, texts: Path) -> None:
    read = pd.read_parquet(artifact(original, 0, "data") / "texts.parquet")
    published = pd.read_csv(texts / "jigsaw_original.csv")
    assert (read["prompt"] + read["completion"]).tolist() == published["comment_text"].tolist()
    assert read["toxic"].astype(int).tolist() == published["toxic"].tolist()


def test_without_an_account_one_word_is_said_and_the_run_is_kept(original: Launched) -> None:
    assert original.stderr.count("no W&B account here") == 1
    (run,) = (original.folder / "0").glob("wandb/offline-run-*")
    assert read_run(run)["summary"]["n_prompts"] == 16


def test_ten_seeds_are_ten_jobs_for_each_value_that_is_swept(formats: Launched) -> None:
    assert sorted(int(path.name) for path in formats.folder.iterdir() if path.is_dir()) == list(range(20))
    jobs = {(config(formats, job)["irl"]["seed"], config(formats, job)["data"]["path"][-4:]) for job in range(20)}
    assert jobs == {(seed, ending) for seed in range(10) for ending in (".csv", "quet")}
    assert len({row["cell"] for row in formats.runs()}) == 2


def test_fifty_seeds_are_fifty_jobs_and_the_sizes_are_those_of_tiny(fifty: Launched) -> None:
    assert [(row["job"], row["status"]) for row in fifty.runs()] == [(str(job), "completed") for job in range(50)]
    assert [config(fifty, job)["irl"]["seed"] for job in range(50)] == list(range(50))
    assert len(list(fifty.cwd.glob("multirun/store/sft/[!.]*"))) == 1  # that of the warm store


def test_a_checkpoint_is_audited_by_several_seeds_with_a_page(checkpoint: Launched) -> None:
    for job in range(2):
        assert {"irl/discrimination_auroc", "expert/kl"} <= checkpoint.metrics(job).keys()
    assert (checkpoint.folder / "report" / "index.html").exists()
    assert "There is no R* (reward=none)" in checkpoint.stdout
    assert "AUROC expert against reference" in checkpoint.stdout

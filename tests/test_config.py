"""The config: what composes, what is refused and how it is said, and that each default has one home."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

import hydra
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from irl_exp import config as schema
from irl_exp import planner
from irl_exp.config import (
    BASE_NODES,
    CONF,
    BradleyTerryLoss,
    CommentsConfig,
    Config,
    ConfigError,
    HiddenStateConfig,
    HingeLoss,
    Interpolated,
    MaxMarginLoss,
    Node,
    nearest,
)
from irl_exp.jobs import typed

# conf/local holds a developer's own settings, not in git.
FILES = sorted(path for path in CONF.glob("*/**/*.yaml") if path.parent != CONF / "local")
STAGES_WITH_SEED = ("data", "reward", "sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate")


def compose(*overrides: str) -> DictConfig:
    schema.register()
    with hydra.initialize_config_dir(str(CONF), **planner.VERSION_BASE):
        return hydra.compose("config", list(overrides))


def configured(*overrides: str) -> Config:
    return typed(compose(*overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(*overrides)
    return str(caught.value)


def choice(path: Path) -> str:
    """The override that chooses a file of conf/."""
    return f"{path.parent.relative_to(CONF).as_posix()}={path.stem}"


def based_on(path: Path) -> str:
    """The base node that a file starts from."""
    return next(iter(re.findall(r"/schema@_here_: (\w+)", path.read_text(encoding="utf-8"))), "")


# -------------------------------------------------------------------------------------------- what composes


def test_the_default_run_is_what_the_schema_declares() -> None:
    """Every option that the composed default run has is the default of its class, or follows another option."""
    composed = configured()
    for name, model in (("data", CommentsConfig), ("irl", BASE_NODES["irl"]), ("sft", type(composed.sft))):
        seedless = {key: value for key, value in getattr(composed, name) if key != "seed"}
        assert seedless == {key: value for key, value in model(seed=0) if key != "seed"}
    assert composed.irl.loss == MaxMarginLoss()
    assert composed.irl.features == HiddenStateConfig()
    assert (composed.data.name, composed.reward.name, composed.model.name) == ("comments", "classifier", "tiny")
    assert (composed.rlhf.algorithm, composed.refinetune.algorithm) == ("rloo", "rloo")
    assert (composed.seed, composed.until, str(composed.store.dir)) == (0, "evaluate", "multirun/store")


@pytest.mark.parametrize("path", FILES, ids=choice)
def test_every_option_of_every_group_composes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()  # enough of a model for the schema
    needed = {
        "data=file": [f"data.path={tmp_path}/config.json"],
        "reward=sequence_classifier": [f"reward.path={tmp_path}"],
    }
    composed = configured(choice(path), *needed.get(choice(path), []))
    group = path.parent.relative_to(CONF)
    if (CONF / group).name in ("loss", "data", "features") and "last_token" not in path.stem:
        node = composed.data if group.name == "data" else getattr(composed.irl, group.name)
        assert node.name == path.stem


def test_the_group_decides_the_class() -> None:
    assert configured("irl/loss=hinge").irl.loss == HingeLoss()
    assert configured("irl/loss=bradley_terry", "irl.loss.temperature=2").irl.loss == BradleyTerryLoss(temperature=2)
    assert configured("irl/features=last_token").irl.features.layers == (-1,)


def test_refinetune_follows_the_algorithm_of_rlhf_unless_chosen() -> None:
    both, own = configured("rlhf=grpo"), configured("rlhf=grpo", "refinetune=rloo")
    assert (both.rlhf.algorithm, both.refinetune.algorithm) == ("grpo", "grpo")
    assert (own.rlhf.algorithm, own.refinetune.algorithm) == ("grpo", "rloo")


def test_stage_seeds_follow_the_root_seed_unless_set() -> None:
    for chosen in (STAGES_WITH_SEED[::2], STAGES_WITH_SEED[1::2]):
        own = {name: number for number, name in enumerate(chosen)}  # seed 0 is a seed
        composed = configured("seed=7", *(f"{name}.seed={number}" for name, number in own.items()))
        seeds = {name: getattr(composed, name).seed for name in STAGES_WITH_SEED}
        assert seeds == dict.fromkeys(STAGES_WITH_SEED, 7) | own


def test_one_length_holds_in_every_stage_unless_set() -> None:
    composed = configured("max_new_tokens=9", "refinetune.max_new_tokens=5", "demonstrations.completions_per_prompt=3")
    lengths = [getattr(composed, name).max_new_tokens for name in ("rlhf", "demonstrations", "refinetune", "evaluate")]
    assert lengths == [9, 9, 5, 9]
    assert composed.evaluate.completions_per_prompt == 3


def test_the_environment_says_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRL_EXP_STORE", "/somewhere/else")
    assert str(configured().store.dir) == "/somewhere/else"
    assert str(configured("store.dir=here").store.dir) == "here"


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        configured().irl.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", BASE_NODES)
def test_base_nodes_are_valid_as_they_are(name: str, tmp_path: Path) -> None:
    """Hydra's node of a class says the class's own defaults; only what a group fills is left to the group."""
    model = BASE_NODES[name]
    node = schema.base_node(model)
    assert set(model.model_fields) - set(node) <= schema.CHOSEN_BY_GROUP
    assert "???" not in str(node)
    if name == "config":
        return  # its groups are composed above
    around: dict[str, Any] = {"seed": 3, "max_new_tokens": 4, "node": node}
    around["demonstrations"] = {"completions_per_prompt": 2}
    values = OmegaConf.to_container(OmegaConf.create(around), resolve=True)["node"]  # type: ignore[call-overload,index]
    values |= {"path": tmp_path} if name == "file" else {}
    found = model.model_validate(values)
    for key, field in model.model_fields.items():
        if not field.is_required() and (name, key) != ("file", "path"):
            assert getattr(found, key) == field.default


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rlhf.stepz=3", "rlhf.stepz: there is no such option. Did you mean 'rlhf.steps'?"),
        ("+rlhf.stepz=3", "rlhf.stepz: there is no such option. Did you mean 'rlhf.steps'?"),
        ("++irl.epoch=3", "irl.epoch: there is no such option. Did you mean 'irl.epochs'?"),
        ("~sft.step", "sft.step: there is no such option. Did you mean 'sft.steps'?"),
        ("irl/los=hinge", "irl/los: there is no such config group. Did you mean 'irl/loss'?"),
        ("trakcing=none", "trakcing: there is no such option. Did you mean 'tracking'?"),
        ("lr=3", "lr: there is no such option."),
        ("model=70", "model=70: model is a config group; choose one of pythia_160m, "),
        ("irl/loss=1", "irl/loss=1: irl/loss is a config group; choose one of bradley_terry, hinge, max_margin."),
        ("seeds=10", "seeds=10: seeds is a config group; choose one of fifty, one, ten."),
    ],
)
def test_what_does_not_exist_is_refused_before_hydra_sees_it(override: str, told: str) -> None:
    with pytest.raises(SystemExit) as caught:
        planner.check_command_line(["until=sft", override])
    assert str(caught.value).startswith(told)


def test_what_exists_passes() -> None:
    for key, _ in schema.option_fields():
        schema.check_override(key, "1")
    others = ["-m", "--multirun", "hydra/launcher=basic", "hydra.verbose=true", "irl/loss@irl.loss=hinge", "+seed=1"]
    planner.check_command_line([choice(path) for path in FILES] + others)


@pytest.mark.parametrize("path", [path for path in FILES if "@_here_" in path.read_text()], ids=choice)
def test_the_options_of_a_choice_pass_with_it(path: Path) -> None:
    group = choice(path).split("=")[0].replace("/", ".")
    model = BASE_NODES[based_on(path)]
    plain = [name for name, field in model.model_fields.items() if not schema.node_of(field) and name != "name"]
    planner.check_command_line([choice(path), *(f"{group}.{name}=1" for name in plain)])


def test_a_choice_of_the_local_settings_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "CONF", Path(shutil.copytree(CONF, tmp_path / "conf")))
    (tmp_path / "conf" / "local").mkdir(exist_ok=True)
    local = "# @package _global_\ndefaults:\n  - override /data: file\ndata: {path: mine.csv}\n"
    (tmp_path / "conf" / "local" / "default.yaml").write_text(local)
    planner.check_command_line(["data.path=other.csv"])


def test_completion_is_not_checked_while_the_user_types() -> None:
    planner.check_command_line(["-sc", "query=bash", "rlhf.ste="])


def test_the_nearest_name_is_near() -> None:
    names = schema.known_keys()
    assert nearest("refinetune.kl_coeficient", names) == " Did you mean 'refinetune.kl_coefficient'?"
    assert nearest("wholly different", names) == ""


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("irl.seed=2147483648", "irl.seed=2147483648: input should be less than"),
        ("sft.steps=0", "sft.steps=0: input should be greater than or equal to 1"),
        ("sft.steps=1.5", "sft.steps=1.5: input should be a valid integer"),
        ("sft.steps=many", "sft.steps=many: input should be a valid integer"),
        ("sft.learning_rate=0", "sft.learning_rate=0: input should be greater than 0"),
        ("irl.learning_rate=2", "irl.learning_rate=2: input should be less than or equal to 1"),
        ("irl.learning_rate=nan", "irl.learning_rate=nan: input should be a finite number"),
        ("irl.max_norm=inf", "irl.max_norm=inf: input should be a finite number"),
        ("rlhf.kl_coefficient=-0.1", "rlhf.kl_coefficient=-0.1: input should be greater than or equal to 0"),
        ("rlhf.generations=1", "rlhf.generations=1: input should be greater than or equal to 2"),
        ("rlhf.batch_size=6", "rlhf: batch_size (6) must be a multiple of generations (4)"),
        ("rlhf.micro_batch_size=12", "rlhf: micro_batch_size (12) must divide batch_size"),
        ("rlhf.epsilon=1", "rlhf.epsilon=1: input should be less than 1"),
        ("data.reward_fraction=1", "data.reward_fraction=1: input should be less than 1"),
        ("model.hidden_size=100", "model: hidden_size (100) must be an even multiple of heads (4)"),
        ("model.tuned=true", "model: tuned=true needs a checkpoint: set model.path or model.hub"),
        ("model.tuned=perhaps", "model.tuned=perhaps: input should be a valid boolean"),
        ("model.path=/not/there", "model.path=/not/there: there is no such file or folder"),
        ("model.path=/", "model.path=/: this is no model folder"),
        ("demonstrations.greedy=true", "demonstrations: greedy=true writes the same completion again"),
        ("irl.features.layers=[]", "irl.features.layers=[]: "),
        ("irl.features.layers=-1", "irl.features.layers=-1: "),
        ("irl.features.pooling=max", "irl.features.pooling=max: input should be 'mean' or 'last'"),
        ("irl.scaling=none", "irl.scaling=none: input should be 'whiten' or 'standardise'"),
        ("irl.loss.wrong_penalty=null", "irl.loss.wrong_penalty=None: input should be a valid number"),
        ("until=reward", "until=reward: input should be 'sft', 'rlhf', 'demonstrations', 'irl', "),
        ("evaluate.bootstrap=99", "evaluate.bootstrap=99: input should be greater than or equal to 100"),
        ("device=gpu", "device=gpu: "),
        ("precision=fp16", "precision=fp16: input should be 'auto', 'fp32' or 'bf16'"),
        ("workers=-1", "workers=-1: input should be greater than or equal to 0"),
        ("name=../elsewhere", "name=../elsewhere: "),
        ("tracking.mode=online", "tracking.mode=online: input should be 'wandb', 'offline' or 'none'"),
        ("seed=${not.there}", "Interpolation key 'not.there' not found"),
        ("data=file", "data: set data.path to a .jsonl, .csv or .parquet file"),
        ("irl.loss=hinge", "irl.loss=hinge: this is a config group; write irl/loss=hinge"),
        ("irl.features=last_token", "irl.features=last_token: this is a config group; write irl/features=last_token"),
        ("+sft.gradient_clip=1", "sft.gradient_clip: there is no such option here."),
        ("sft.steps=???", "sft.steps: this option must be set"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_bound(override: str, told: str) -> None:
    lines = refusal(override).splitlines()
    assert lines[0].startswith(told)
    assert len(lines) == 1 or override == "seed=-1"  # every stage's seed follows that one


def test_a_class_of_another_choice_names_the_option() -> None:
    with pytest.raises(ConfigError, match=r"irl\.loss\.name|irl\.loss"):
        typed(OmegaConf.merge(compose(), {"irl": {"loss": {"name": "squared"}}}))  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["model.name", "tracking.project", "store.dir", "reward.hub"])
def test_a_text_option_that_is_missing_must_be_set(option: str) -> None:
    told = refusal("reward=roberta_toxicity", f"{option}=???")
    assert told.startswith(f"{option}: this option must be set")


def test_all_complaints_are_in_one_message() -> None:
    told = refusal("sft.steps=0", "rlhf.batch_size=6", "until=never", "irl.loss.wrong_penalty=-1", "+irl.epoch=2")
    lines = told.splitlines()
    assert len(lines) == 5
    for start in ("until=never", "sft.steps=0", "rlhf: batch_size (6)", "irl.loss.wrong_penalty=-1", "irl.epoch:"):
        assert sum(line.startswith(start) for line in lines) == 1


def test_numbers_may_be_written_as_one_writes_them() -> None:
    composed = configured("sft.learning_rate=1e-4", "sft.steps=1_000", "irl.max_norm=3", "irl.features.layers=[0,-1]")
    assert (composed.sft.learning_rate, composed.sft.steps, composed.irl.max_norm) == (1e-4, 1000, 3.0)
    assert composed.irl.features.layers == (0, -1)


# ------------------------------------------------------------------------- one schema, one copy of each default


def points(path: Path) -> dict[str, Any]:
    """The values that a YAML file sets: dotted key of the whole config -> value."""
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    values.pop("defaults", None)
    values.pop("hydra", None)
    is_global = "@package _global_" in path.read_text(encoding="utf-8") or path.parent == CONF
    prefix = "" if is_global else path.parent.relative_to(CONF).as_posix().replace("/", ".") + "."
    return {prefix + key: value for key, value in _leaves(values)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value


ALL_POINTS = {path: points(path) for path in [*FILES, CONF / "config.yaml"]}


def defaults(path: Path, key: str) -> list[Any]:
    """What the schema declares for a key: in the class that the file is built on, else in any that has the key."""
    based = based_on(path)
    if based:
        return [BASE_NODES[based].model_fields[key.rsplit(".", 1)[1]].default]
    return [field.default for name, field in schema.option_fields() if name == key]


@pytest.mark.parametrize("path", ALL_POINTS, ids=lambda path: path.relative_to(CONF).as_posix())
def test_a_yaml_file_repeats_no_default(path: Path) -> None:
    """It may name the choice that it is, and take back what another file has set."""
    set_elsewhere = {key for other, values in ALL_POINTS.items() if other.parent != path.parent for key in values}
    repeated = [
        key
        for key, value in ALL_POINTS[path].items()
        if key.rsplit(".", 1)[-1] not in ("name", "algorithm")
        and value in defaults(path, key)
        and not (path.parent.name == "scale" and key in set_elsewhere)
    ]
    assert repeated == []
    assert all(defaults(path, key) for key in ALL_POINTS[path]), "a key that the schema does not have"


@pytest.mark.parametrize("path", FILES, ids=choice)
def test_every_yaml_file_says_in_its_first_comment_what_it_is(path: Path) -> None:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    assert re.match(r"# \S", comments[0])
    assert f"    {path.stem:<24}{comments[0][2:]}" in schema.describe_groups().splitlines()


def node_classes(model: type[Node] = Config) -> Iterator[type[Node]]:
    yield model
    for field in model.model_fields.values():
        for nested in schema.node_of(field):
            yield from node_classes(nested)


@pytest.mark.parametrize("model", sorted(set(node_classes()), key=str), ids=lambda model: model.__name__)
def test_every_option_is_explained_where_it_is_declared(model: type[Node]) -> None:
    """By its description, there or where the class has it from; a node or what follows another option by its class."""
    assert model.__doc__
    for name, field in model.model_fields.items():
        descriptions = [base.model_fields[name].description for base in model.__mro__ if _has(base, name)]
        follows = any(isinstance(item, Interpolated) for item in field.metadata)
        chooses = get_origin(field.annotation) is Literal and name == "name"
        assert any(descriptions) or follows or chooses or schema.node_of(field), f"{model.__name__}.{name}"


def _has(base: type, name: str) -> bool:
    return issubclass(base, Node) and name in base.model_fields


def test_the_help_has_a_line_for_every_option() -> None:
    lines = schema.describe_options().splitlines()
    keys = [line.split("=")[0].strip() for line in lines]
    assert keys == list(dict.fromkeys(key for key, _ in schema.option_fields()))
    assert "  rlhf.kl_coefficient=0.3" in schema.describe_options()


def test_the_help_explains_every_option_that_follows_no_other() -> None:
    unexplained = [line for line in schema.describe_options().splitlines() if re.fullmatch(r"  [^ ]+", line)]
    assert [line for line in unexplained if "=$$" not in line] == []


def test_the_file_on_disk_is_found_by_tab_completion_and_help_alike() -> None:
    assert schema.known_groups() == sorted({choice(path).split("=")[0] for path in FILES})
    for group in ("data", "irl", "irl/loss", "irl/features", "model", "refinetune", "reward", "rlhf", "scale", "seeds"):
        assert f"  {group}=" in schema.describe_groups().splitlines()

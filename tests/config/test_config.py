"""The config: what composes, what is refused and how it is said, and that each default has one home."""

from __future__ import annotations

import logging.config
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

import hydra
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from irl_exp import config as schema
from irl_exp.config import (
    BASE_NODES,
    CONF,
    BradleyTerryLoss,
    ClassifierConfig,
    CommentsConfig,
    Config,
    ConfigError,
    FeaturesConfig,
    FrozenBackbone,
    HiddenStateConfig,
    HingeLoss,
    Interpolated,
    MarginConfig,
    MaxMarginLoss,
    NgramConfig,
    Node,
    RefinetuneConfig,
    SentimentConfig,
    WeightedConfig,
    keys,
    nearest,
    overrides,
)
from irl_exp.launch import command_line
from irl_exp.launch.jobs import typed

# conf/local holds a developer's own settings, not in git.
FILES = sorted(path for path in CONF.glob("*/**/*.yaml") if path.parent != CONF / "local")
STAGES_WITH_SEED = ("data", "reward", "sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate")


def compose(*overrides: str) -> DictConfig:
    schema.register()
    with hydra.initialize_config_dir(str(CONF), **command_line.VERSION_BASE):
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
    """The base node that a file starts the node of its group from."""
    return next(
        iter(re.findall(rf"/schema@(?:_here_|{path.parent.name}): (\w+)", path.read_text(encoding="utf-8"))), ""
    )


# -------------------------------------------------------------------------------------------- what composes


def test_the_default_run_is_what_the_schema_declares() -> None:
    """Every option that the composed default run has is the default of its class, or follows another option."""
    composed = configured()
    for name, model in (("data", CommentsConfig), ("irl", MarginConfig), ("sft", type(composed.sft))):
        declared = {key: field.default for key, field in model.model_fields.items() if not field.is_required()}
        declared |= {key: "whiten" for key in declared if key == "scaling"}  # `auto`, of hidden states
        assert {key: value for key, value in getattr(composed, name) if key in declared} == declared
    assert isinstance(composed.irl, MarginConfig)
    assert composed.irl.loss == MaxMarginLoss()
    assert composed.irl.features == FeaturesConfig(hidden_state=HiddenStateConfig())
    assert composed.irl.backbone == FrozenBackbone()
    assert (composed.data.name, composed.reward.name, composed.model.name) == ("comments", "classifier", "tiny")
    assert (composed.rlhf.algorithm, composed.refinetune.algorithm) == ("rloo", "rloo")
    assert (composed.seed, composed.until, str(composed.store.dir)) == (0, "evaluate", "multirun/store")


@pytest.mark.parametrize("path", FILES, ids=choice)
def test_every_option_of_every_group_composes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()  # enough of a model for the schema
    needed = {
        "data=file": [f"data.path={tmp_path}/config.json"],
        "benchmark=file": [f"benchmark.path={tmp_path}/config.json"],
        "reward=sequence_classifier": [f"reward.path={tmp_path}"],
        "reward=imported": ["reward.function=json:dumps"],
        "irl=author": ["until=irl"],
        "data=expert": ["expert=texts", f"expert.path={tmp_path}/config.json", f"model.path={tmp_path}"],
        "expert=checkpoint": [f"expert.path={tmp_path}", f"model.path={tmp_path}", "model.tuned=true"],
        "expert=texts": [f"expert.path={tmp_path}/config.json", f"model.path={tmp_path}"],
        "reward=none": ["expert=itself"],
        **{f"executor={name}": ["device=cpu"] for name in ("slurm", "pbs", "lsf")},
        "executor=kubernetes": ["device=cpu", "executor.image=mine"],
    }
    composed = configured(choice(path), *needed.get(choice(path), []))
    group = path.parent.relative_to(CONF)
    if group.name in ("loss", "data", "expert", "reward", "backbone", "irl", "benchmark", "executor"):
        node: Any = composed
        for name in group.parts:
            node = getattr(node, name)
        assert type(node) is BASE_NODES[based_on(path)]
    if group.name == "features":
        assert list(composed.irl.features.parts) == [path.stem]  # type: ignore[union-attr]


def test_the_group_decides_the_class() -> None:
    assert configured("irl/loss=hinge").irl.loss == HingeLoss()
    assert configured("irl/loss=bradley_terry", "irl.loss.temperature=2").irl.loss == BradleyTerryLoss(temperature=2)
    assert configured("irl/features=last_token").irl.features.last_token.layers == (-1,)


def features(*overrides: str) -> FeaturesConfig:
    found = configured(*overrides).irl.frozen_features
    assert found
    return found


def test_parts_of_features_are_joined_by_a_list() -> None:
    both = features("irl/features=[ngram,hidden_state]", "irl.features.ngram.longest=3")
    assert both == FeaturesConfig(hidden_state=HiddenStateConfig(), ngram=NgramConfig(longest=3))
    # Named in another order they are the same features, under the same name in the store.
    assert list(both.parts) == ["hidden_state", "ngram"]
    assert both == features("irl/features=[hidden_state,ngram]", "irl.features.ngram.longest=3")


def test_every_part_may_be_joined_with_every_other() -> None:
    names = [path.stem for path in (CONF / "irl" / "features").glob("*.yaml")]
    assert set(features(f"irl/features=[{','.join(names)}]").parts) == set(names)
    assert set(names) == set(FeaturesConfig.model_fields)


@pytest.mark.parametrize(
    ("overrides", "scaling"),
    [
        ([], "whiten"),
        (["irl/features=length"], "whiten"),
        (["irl/features=ngram"], "standardise"),
        (["irl/features=[ngram,sentiment]"], "standardise"),
        (["irl/features=[hidden_state,ngram]"], "whiten"),
        (["irl/features=[ngram,last_token]"], "whiten"),
        (["irl/features=ngram", "irl=bayesian"], "standardise"),
        (["irl/features=ngram", "irl.scaling=whiten"], "whiten"),
        (["irl.scaling=standardise"], "standardise"),
        (["irl/backbone=full"], "standardise"),
    ],
)
def test_the_scaling_goes_by_the_features_unless_set(overrides: list[str], scaling: str) -> None:
    assert configured(*overrides).irl.scaling == scaling  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("irl", "part"),
    [("length", "length"), ("reference_log_probability", "reference_log_probability"), ("random_features", "random")],
)
def test_a_baseline_is_the_margin_method_on_other_features(irl: str, part: str) -> None:
    assert configured(f"irl={irl}").irl == configured("irl=margin", f"irl/features={part}").irl
    assert list(features(f"irl={irl}").parts) == [part]


@pytest.mark.parametrize("backbone", ["last_layers", "full", "lora"])
@pytest.mark.parametrize("part", sorted(path.stem for path in (CONF / "irl" / "features").glob("*.yaml")))
def test_a_trained_backbone_takes_hidden_states_alone(backbone: str, part: str) -> None:
    told = rf"irl: irl/backbone={backbone} trains hidden states: it takes irl/features=hidden_state or last_token alone"
    if part in ("hidden_state", "last_token"):
        assert configured(f"irl/backbone={backbone}", f"irl/features={part}").irl.backbone.name == backbone
        other = "last_token" if part == "hidden_state" else "hidden_state"
        assert refusal(f"irl/backbone={backbone}", f"irl/features=[{part},{other}]").startswith(told)
    else:
        assert refusal(f"irl/backbone={backbone}", f"irl/features={part}") == f"{told}, not {part}"
        assert refusal(f"irl/backbone={backbone}", f"irl/features=[hidden_state,{part}]").startswith(told)


def test_refinetune_follows_the_algorithm_of_rlhf_unless_chosen() -> None:
    both, own = configured("rlhf=grpo"), configured("rlhf=grpo", "refinetune=rloo")
    assert (both.rlhf.algorithm, both.refinetune.algorithm) == ("grpo", "grpo")
    assert (own.rlhf.algorithm, own.refinetune.algorithm) == ("grpo", "rloo")


@pytest.mark.parametrize("path", sorted((CONF / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_model_sets_the_kl_coefficient_of_a_standardised_reward(path: Path) -> None:
    default = RefinetuneConfig.model_fields["kl_coefficient"].default
    assert configured(f"model={path.stem}").refinetune.kl_coefficient == default


def test_stage_seeds_follow_the_root_seed_unless_set() -> None:
    for chosen in (STAGES_WITH_SEED[::2], STAGES_WITH_SEED[1::2]):
        own = {name: number for number, name in enumerate(chosen)}  # seed 0 is a seed
        composed = configured("seed=7", *(f"{name}.seed={number}" for name, number in own.items()))
        seeds = {name: getattr(composed, name).seed for name in STAGES_WITH_SEED}
        assert seeds == dict.fromkeys(STAGES_WITH_SEED, 7) | own


def test_one_length_holds_in_every_stage_unless_set() -> None:
    composed = configured("max_new_tokens=9", "refinetune.max_new_tokens=5")
    lengths = [getattr(composed, name).max_new_tokens for name in ("rlhf", "demonstrations", "refinetune", "evaluate")]
    assert lengths == [9, 9, 5, 9]


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
    optional = {key for key, field in model.model_fields.items() if field.default is None and schema.node_of(field)}
    assert set(model.model_fields) - set(node) - optional <= schema.CHOSEN_BY_GROUP
    needed: dict[str, dict[str, Any]] = {  # what only the user can say
        "file": {"path": __file__},
        "file_benchmark": {"path": __file__},
        "imported": {"function": "json:dumps"},
        "imported_part": {"function": "json:dumps"},
        "goal": {"goal": "politeness"},
        "checkpoint_expert": {"hub": "somebody/tuned"},
        "texts_expert": {"path": __file__},
        "weighted": {"parts": {"short": {"name": "length"}}},
        "kubernetes_executor": {"image": "somebody/image"},
    }
    assert not [key for key, value in node.items() if value == "???" and key not in needed.get(name, {})]
    if name == "config":
        return  # its groups are composed above
    around: dict[str, Any] = {"seed": 3, "max_new_tokens": 4, "node": node | needed.get(name, {})}
    around |= {"demonstrations": {"completions_per_prompt": 2}, "reward": {"seed": 3}, "rlhf": {"kl_coefficient": 0.1}}
    around |= {"data": {"test_prompts": 5, "max_prompt_words": 6}}
    around |= {"evaluate": {"completions_per_prompt": 2, "max_new_tokens": 4, "batch_size": 8}}
    values = OmegaConf.to_container(OmegaConf.create(around), resolve=True)["node"]  # type: ignore[call-overload,index]
    of_groups = {"loss": {"name": "hinge"}, "backbone": {"name": "frozen"}}
    values |= {key: value for key, value in of_groups.items() if key in model.model_fields}
    if "features" in values:
        values["features"] |= {"length": {}}
    found = model.model_validate(values)
    for key, field in model.model_fields.items():
        if not field.is_required() and key not in needed.get(name, {}) and key != "scaling":
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
        (
            "reward.parts.a.wieght=2",
            "reward.parts.a.wieght: there is no such option. Did you mean 'reward.parts.a.weight'?",
        ),
        (
            "+reward.parts.a.tagret=2",
            "reward.parts.a.tagret: there is no such option. Did you mean 'reward.parts.a.target'?",
        ),
        ("reward.part.a.weight=2", "reward.part.a.weight: there is no such option. Did you mean 'reward.parts."),
        (
            "reward.parts.a.weight=2",
            "reward.parts.a.weight: reward=classifier has no such option; it belongs to reward=weighted.",
        ),
        ("reward.target=2", "reward.target: reward=classifier has no such option; it belongs to reward=length."),
        ("tracking=nan", "tracking=nan: tracking is a config group; choose one of none, offline, wandb."),
        ("model=1e9", "model=1e9: model is a config group; choose one of llama_1b, "),
        ("model=70", "model=70: model is a config group; choose one of llama_1b, "),
        ("irl/loss=1", "irl/loss=1: irl/loss is a config group; choose one of bradley_terry, confidence_margin, "),
        ("irl/features=[1,2]", "irl/features=[1,2]: irl/features is a config group; choose one of hidden_state, "),
        ("irl.features.ngrams.longest=2", "irl.features.ngrams.longest: there is no such option. Did you mean "),
        ("irl.features.length.layers=[1]", "irl.features.length.layers: there is no such option."),
        ("seeds=10", "seeds=10: seeds is a config group; choose one of fifty, one, ten."),
        ("irl=range(3)", "irl=range(3): irl is a config group and takes no numbers."),
        ("model=interval(0,1)", "model=interval(0,1): model is a config group and takes no numbers."),
        (f"seeds={'b' * 300}", f"seeds={'b' * 300}: there is no option "),
        ("irl/loss=range(1000000000000)", "irl/loss=range(1000000000000): irl/loss is a config group and takes no"),
        ("data=null", "data=null: data is a config group: one of its options is taken."),
        ("store.dir=~/x", "store.dir=~/x: write the path in full, store.dir=/"),
        ("irl=__init__", "irl=__init__: there is no option '__init__' in author, bayesian, "),
        ("irl=margin,mergin", "irl=mergin: there is no option 'mergin' in "),
        ("name=a=b", "name=a=b: Hydra cannot read this (mismatched input '=' expecting <EOF>). If the value is meant "),
        ("irl.seed", "irl.seed: an option is given as key=value, a flag begins with --."),
        ("irl.seed=interval(0,1)", "irl.seed=interval(0,1): only a sweeper that searches takes an interval"),
        ("hydra.launcher=null", "hydra.launcher=null: choose a group"),
        ("hydra.sweeper.params.irl.seed=1", "hydra.sweeper.params.irl.seed=1: write irl.seed=1."),
    ],
)
def test_what_does_not_exist_is_refused_before_hydra_sees_it(override: str, told: str) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.check_command_line(["until=sft", override])
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("value", ["a=b", "$(id)", 'a"', "(", "a\\b(", "it's", '\\\\"(', "(\\"])
def test_the_quotes_that_are_proposed_make_the_value(value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.check_command_line([f"name={value}"])
    (line,) = shlex.split(str(caught.value).rpartition("shell: ")[2])
    (override,) = OverridesParser.create().parse_overrides([line])
    assert override.value() == value


def test_options_in_a_folder_of_the_user_pass(tmp_path: Path) -> None:
    command_line.check_command_line(["--config-dir", str(tmp_path), "irl=mine"])


def test_what_exists_passes() -> None:
    for key, _ in schema.option_fields():
        schema.check_override(key, "1")
    others = ["-m", "--multirun", "hydra/launcher=basic", "hydra.verbose=true", "irl/loss@irl.loss=hinge", "+seed=1"]
    command_line.check_command_line([choice(path) for path in FILES] + ["irl=margin"] + others)


@pytest.mark.parametrize("path", [*filter(based_on, FILES)], ids=choice)
def test_the_options_of_a_choice_pass_with_it(path: Path) -> None:
    group = choice(path).split("=")[0].replace("/", ".")
    model = BASE_NODES[based_on(path)]
    plain = [name for name, field in model.model_fields.items() if not schema.node_of(field) and name != "name"]
    command_line.check_command_line([choice(path), *(f"{group}.{name}=1" for name in plain)])


MARGINS = "ensemble, failure_aware, length, margin, placebo, random_features, reference_log_probability"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "irl.features.ngram.longest=3",
            "irl.features.ngram.longest: irl/features=hidden_state has no such option; it belongs to "
            "irl/features=ngram (both: irl/features=[hidden_state,ngram]).",
        ),
        (
            "irl/features=[hidden_state,length] irl.features.ngram.longest=3",
            "irl.features.ngram.longest: irl/features=hidden_state,length has no such option; it belongs to "
            "irl/features=ngram (both: irl/features=[hidden_state,length,ngram]).",
        ),
        (
            "irl/features=ngram,[ngram,length],[length] irl.features.ngram.longest=3",
            "irl.features.ngram.longest: irl/features=length has no such option;",
        ),
        (
            "irl=length irl.features.hidden_state.layers=[-1]",
            "irl.features.hidden_state.layers: irl/features=length has no such option; it belongs to irl/features="
            "hidden_state (both: irl/features=[length,hidden_state]).",
        ),
        ("irl=implicit irl/loss=hinge", f"irl/loss: irl=implicit has no irl/loss; it belongs to irl={MARGINS}."),
        ("irl=margin,implicit irl/loss=hinge", "irl/loss: irl=implicit has no irl/loss;"),
        ("irl=glob(m*) irl/loss=hinge", "irl/loss: irl=majority has no irl/loss;"),
        ("irl=implicit irl.loss.target_margin=1", "irl.loss.target_margin: irl=implicit has no such option;"),
        ("irl=majority irl/features=length", "irl/features: irl=majority has no irl/features;"),
        ("irl=majority irl.prompt_fraction=1", "irl.prompt_fraction: irl=majority has no such option;"),
        ("irl=placebo irl/backbone=full", "irl/backbone: irl=placebo has no irl/backbone;"),
        ("irl=probe irl.epochs=3", f"irl.epochs: irl=probe has no such option; it belongs to irl={MARGINS}."),
        (
            "irl.loss.target_margin=1",
            "irl.loss.target_margin: irl/loss=max_margin has no such option; it belongs to "
            "irl/loss=confidence_margin, hinge.",
        ),
        ("irl=failure_aware irl.loss.target_margin=1", "irl.loss.target_margin: irl/loss=bradley_terry has no such"),
        ("irl.backbone.rank=2", "irl.backbone.rank: irl/backbone=frozen has no such option; it belongs to "),
        (
            "irl/features=[ngram,lenght]",
            "irl/features=[ngram,lenght]: there is no option 'lenght' in hidden_state, last_token, ",
        ),
        ("irl/features=[ngram,ngram]", "irl/features=[ngram,ngram]: an option is named twice."),
        (
            "irl/loss=[hinge,squared]",
            "irl/loss=[hinge,squared]: only one can be taken; for a job of each write irl/loss=hinge,squared.",
        ),
        ("scale=[tiny,default]", "scale=[tiny,default]: only one can be taken;"),
        ("data.path=x.csv", "data.path: data=comments has no such option; it belongs to data=file, jigsaw, "),
    ],
)
def test_an_option_of_another_choice_is_refused_with_its_owners(line: str, told: str) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.check_command_line(line.split())
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    "line",
    [
        "irl/features=[hidden_state,ngram] irl.features.ngram.longest=3 irl.features.hidden_state.layers=[-1],[0]",
        "irl/features=ngram,[ngram,length] irl.features.ngram.longest=3",
        "irl=failure_aware irl.loss.temperature=2",
        "irl=random_features irl.features.random.seed=1",
        "irl=implicit,majority",
        "irl=implicit irl.kl_coefficient=1",
        "irl/backbone=lora irl.backbone.rank=2 irl/loss=glob(*)",
        "irl/features=length batch_tokens=3",
        "model=pythia_70m model.layers=2",
    ],
)
def test_an_option_of_what_is_chosen_passes(line: str) -> None:
    command_line.check_command_line(line.split())


def _move_conf(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    copied = Path(shutil.copytree(CONF, folder / "conf"))
    for room in (keys, overrides):
        monkeypatch.setattr(room, "CONF", copied)


def test_a_default_that_is_a_list_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _move_conf(monkeypatch, tmp_path)
    margin = tmp_path / "conf" / "irl" / "margin.yaml"
    margin.write_text(margin.read_text().replace("features: hidden_state", "features: [length, ngram] # two"))
    command_line.check_command_line(["irl.features.ngram.longest=3"])
    with pytest.raises(SystemExit, match=r"irl/features=length,ngram has no such option"):
        command_line.check_command_line(["irl.features.hidden_state.layers=[0]"])


def test_a_choice_of_the_local_settings_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _move_conf(monkeypatch, tmp_path)
    (tmp_path / "conf" / "local").mkdir(exist_ok=True)
    local = "# @package _global_\ndefaults:\n  - override /data: file\ndata: {path: mine.csv}\n"
    (tmp_path / "conf" / "local" / "default.yaml").write_text(local)
    command_line.check_command_line(["data.path=other.csv"])


def test_completion_is_not_checked_while_the_user_types() -> None:
    command_line.check_command_line(["-sc", "query=bash", "rlhf.ste="])


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
        ("irl.max_norm=[inf]", "irl.max_norm=inf: input should be a finite number"),
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
        ("irl.features.hidden_state.layers=[]", "irl.features.hidden_state.layers=[]: "),
        ("irl.features.hidden_state.layers=-1", "irl.features.hidden_state.layers=-1: "),
        ("irl.features.hidden_state.pooling=max", "irl.features.hidden_state.pooling=max: input should be 'mean' or"),
        ("irl.components=0", "irl.components=0: input should be greater than or equal to 1"),
        ("batch_tokens=0", "batch_tokens=0: input should be greater than or equal to 1"),
        ("irl.features.hidden_state=null", "irl.features: no features are chosen: set e.g. irl/features=hidden_state"),
        ("irl/features=[]", "irl.features: no features are chosen: set e.g. irl/features=hidden_state"),
        ("irl.scaling=unit", "irl.scaling=unit: input should be 'auto', 'whiten', 'standardise' or 'none'"),
        ("irl.loss.wrong_penalty=null", "irl.loss.wrong_penalty=None: input should be a valid number"),
        ("until=reward", "until=reward: input should be 'sft', 'rlhf', 'demonstrations', 'irl', "),
        ("evaluate.bootstrap=99", "evaluate.bootstrap=99: input should be greater than or equal to 100"),
        ("device=gpu", "device=gpu: "),
        ("precision=fp16", "precision=fp16: input should be 'auto', 'fp32' or 'bf16'"),
        ("workers=-1", "workers=-1: input should be greater than or equal to 0"),
        ("name=../elsewhere", "name=../elsewhere: runs are kept in multirun/NAME: begin with a letter or a digit"),
        *((f"name={name}", f"name={name}: runs are kept in multirun/NAME") for name in ("..", ".", ".x", "-x", "/abs")),
        (
            "name=" + 400 * "x",
            f"name={400 * 'x'}: runs are kept in multirun/NAME: begin with a letter or a digit and go on",
        ),
        ("name=store", "name=store: multirun/store is where results are kept: choose another name"),
        ("store.dir=" + 400 * "x", f"store.dir={400 * 'x'}: a name in this path has at most 255 bytes"),
        ("store.dir=" + 400 * "x0123456/", f"store.dir={400 * 'x0123456/'}: a name in this path has at most"),
        ("store.dir='~nope/x'", "store.dir=~nope/x: ~nope is nobody's home folder: write the path in full"),
        ("model.path='~nope'", "model.path=~nope: ~nope is nobody's home folder"),
        ("model.path=" + 400 * "x", f"model.path={400 * 'x'}: it cannot be opened (File name too long)"),
        ("tracking.project=a/b", "tracking.project=a/b: string should match pattern"),
        ("tracking.tags=['']", "tracking.tags=: string should have at least 1 character"),
        ("max_new_tokens=0", "max_new_tokens=0: input should be greater than or equal to 1"),
        (
            "max_new_tokens=512",
            "max_new_tokens=512: a new model reads 512 tokens at once, prompt and completion together",
        ),
        ("rlhf.max_new_tokens=5000", "rlhf.max_new_tokens=5000: a new model reads 512 tokens at once"),
        ("data.count=1000001", "data.count=1000001: input should be less than or equal to 1000000"),
        ("sft.steps=1000000001", "sft.steps=1000000001: input should be less than or equal to 1000000000"),
        ("evaluate.bootstrap=1000000", "evaluate.bootstrap=1000000: input should be less than or equal to 100000"),
        ("irl.max_norm=3", "irl.max_norm=3: input should be a list, [3]"),
        ("tracking.mode=online", "tracking.mode=online: input should be 'wandb', 'offline' or 'none'"),
        ("tracking.artifacts=files", "tracking.artifacts=files: input should be 'reward', 'all' or 'none'"),
        (f"tracking.tags=[{'x' * 65}]", f"tracking.tags={'x' * 65}: string should have at most 64 characters"),
        ("seed=${not.there}", "seed: Interpolation key 'not.there' not found"),
        ("data=file", "data: set data.path to a .jsonl, .csv or .parquet file"),
        ("irl.loss=hinge", "irl.loss=hinge: this is a config group; write irl/loss=hinge"),
        ("irl.features=last_token", "irl.features=last_token: this is a config group; write irl/features=last_token"),
        ("+sft.gradient_clip=1", "sft.gradient_clip: there is no such option here."),
        ("sft.steps=???", "sft.steps: this option must be set"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_bound(override: str, told: str) -> None:
    (line,) = refusal(override).splitlines()  # one cause, one line, whatever follows it
    assert line.startswith(told)


def test_what_follows_a_wrong_option_and_is_wrong_of_its_own_is_told_too() -> None:
    assert refusal("seed=-1", "irl.seed=-2").splitlines() == [
        "seed=-1: input should be greater than or equal to 0",
        "irl.seed=-2: input should be greater than or equal to 0",
    ]
    parts = refusal("reward=weighted", "reward.seed=-1").splitlines()
    assert parts == ["reward.seed=-1: input should be greater than or equal to 0"]


def test_a_checkpoint_may_read_more_than_a_new_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    assert configured(f"model.path={tmp_path}", "max_new_tokens=1000").evaluate.max_new_tokens == 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("group", ["data", "benchmark"])
def test_a_pipe_a_device_or_a_folder_is_no_file_of_texts(group: str, tmp_path: Path) -> None:
    """Nobody would ever write into the pipe, and a device has no end."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, told in (
        (tmp_path / "pipe.jsonl", "this is a pipe, a socket or a device: give a file"),
        (Path(os.devnull), "this is a pipe, a socket or a device: give a file"),
        (tmp_path, "this is a folder: give a file"),
    ):
        assert refusal(f"{group}=file", f"{group}.path={path}").startswith(f"{group}.path={path}: {told}")


def test_a_label_that_is_not_read_has_no_toxic_values(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.touch()
    told = refusal("data=file", f"data.path={path}", "data.label=null", "data.toxic=[1]")
    assert told.startswith("data: data.toxic names values of a label: set data.label")
    found = configured("data=file", f"data.path={path}", "data.toxic=[1,hate,0.5,true]").data
    assert [type(value) for value in found.toxic] == [int, str, float, bool]  # type: ignore[union-attr]


@pytest.mark.parametrize("option", ["default", "disabled", "none", "stdout"])
def test_every_choice_of_logging_can_be_configured(option: str, tmp_path: Path) -> None:
    schema.register()
    with hydra.initialize_config_dir(str(CONF), **command_line.VERSION_BASE):
        composed = hydra.compose("config", [f"hydra/job_logging={option}"], return_hydra_config=True)
    composed.hydra.runtime.output_dir = composed.hydra.sweep.dir = str(tmp_path)
    settings: Any = OmegaConf.to_container(composed.hydra.job_logging, resolve=True)
    configurator: Any = logging.config.DictConfigurator(settings)
    for name, formatter in settings.get("formatters", {}).items():
        configurator.config["formatters"][name] = configurator.configure_formatter(formatter)
    for handler in settings["handlers"].values():
        configurator.configure_handler(handler).close()


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
    composed = configured(
        "sft.learning_rate=1e-4", "sft.steps=1_000", "irl.max_norm=[3]", "irl.features.hidden_state.layers=[0,-1]"
    )
    assert (composed.sft.learning_rate, composed.sft.steps, composed.irl.max_norm) == (1e-4, 1000, (3.0,))
    assert composed.irl.features.hidden_state.layers == (0, -1)


MINE = "+reward.parts.mine.name="


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["reward.parts.length.weight=0"], "reward.parts.length.weight=0: a part of weight 0 is no part"),
        (["reward.parts.length.weight=inf"], "reward.parts.length.weight=inf: input should be a finite number"),
        (["reward.parts.length.tolerance=-1"], "reward.parts.length.tolerance=-1: input should be greater"),
        (["+reward.parts.mine.weight=2"], "reward.parts.mine.name: this option must be set"),
        ([MINE + "lenght"], "reward.parts.mine.name=lenght: choose one of 'classifier', 'sequence_classifier', "),
        ([MINE + "weighted"], "reward.parts.mine.name=weighted: choose one of "),
        ([MINE + "imported"], "reward.parts.mine.function: this option must be set"),
        (["+reward.parts.sentiment.ngrams=3"], "reward.parts.sentiment.ngrams: there is no such option here."),
        (
            ["+reward.parts.mine={name:length,wight:3}"],
            "reward.parts.mine.wight: there is no such option here. Did you ",
        ),
        (["+reward.parts.a-b.name=length"], "reward.parts.a-b=a-b: string should match pattern"),
        (["~reward.parts.length", "~reward.parts.sentiment", "~reward.parts.toxicity"], "reward.parts: "),
        ([MINE + "imported", "+reward.parts.mine.function=json"], "reward.parts.mine.function=json: write package."),
        (
            [MINE + "imported", "+reward.parts.mine.function=no.where:f"],
            "reward.parts.mine.function=no.where:f: there ",
        ),
        (
            [MINE + "imported", "+reward.parts.mine.function=sys:exit"],
            "reward.parts.mine.function=sys:exit: the module ",
        ),
    ],
)
def test_a_wrong_part_of_a_weighted_reward_is_refused(overrides: list[str], told: str) -> None:
    command_line.check_command_line(["reward=weighted", *overrides])
    assert refusal("reward=weighted", *overrides).startswith(told)


def test_parts_of_a_weighted_reward_are_set_added_and_removed() -> None:
    overrides = ["reward.parts.sentiment.weight=-2", "~reward.parts.length", MINE + "classifier", "reward.seed=5"]
    command_line.check_command_line(["reward=weighted", *overrides])
    reward = configured("reward=weighted", *overrides, "+reward.parts.mine.ngrams=1").reward
    assert isinstance(reward, WeightedConfig)
    assert list(reward.parts) == ["mine", "sentiment", "toxicity"]
    assert [part.weight for part in reward.parts.values()] == [1, -2, 1]
    mine, sentiment, toxicity = reward.parts.values()
    assert isinstance(sentiment, SentimentConfig)
    assert isinstance(toxicity, ClassifierConfig)
    assert mine == toxicity.model_copy(update={"ngrams": 1})
    assert toxicity.seed == 5, "a part follows the seed of the reward"


# ------------------------------------------------------------------------- one schema, one copy of each default


def package_of(path: Path) -> str:
    """The node that a file fills: by its header, else by its folder."""
    found = re.search(r"^# @package (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    package = found[1] if found else ".".join(path.parent.relative_to(CONF).parts)
    return "" if package == "_global_" else package


def points(path: Path) -> dict[str, Any]:
    """The values that a YAML file sets: dotted key of the whole config -> value."""
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    values.pop("defaults", None)
    values.pop("hydra", None)
    package = package_of(path)
    prefix = f"{package}." if package else ""
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
    if ".parts." in key:
        key = re.sub(r"\.parts\.\w+", r".parts.NAME", key)
    elif based and package_of(path) == ".".join(path.parent.relative_to(CONF).parts):
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
    said = schema.question_of(path.stem) or comments[0][2:] if path.parent.name == "study" else comments[0][2:]
    assert f" {path.stem} {said}" in " ".join(schema.page_of(choice(path).split("=")[0]).split())


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


def test_the_file_on_disk_is_found_by_tab_completion_and_help_alike() -> None:
    assert schema.known_groups() == sorted({choice(path).split("=")[0] for path in FILES})
    for group in ("data", "irl", "irl/loss", "irl/features", "model", "refinetune", "reward", "rlhf", "scale", "seeds"):
        assert re.search(rf"^  {group} +\w", schema.first_page("irl-exp"), re.MULTILINE)

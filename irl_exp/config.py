"""Everything that can be configured: names, defaults, bounds and what each option does.

The models below are the one place for all three. They give Hydra its base nodes (`register`), check the composed
config of every job before the first one starts (`parse`), and give the stages typed, frozen objects. The YAML files
under `conf/` hold named points only. Nothing here imports a heavy library: `--help` and tab completion stay instant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

STAGES = ("sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate")
"""The stages that `until` may name, in the order in which they run."""

CONF = Path(__file__).resolve().parent.parent / "conf"


class ConfigError(Exception):
    """A config that cannot be run: names the field, the value, what is allowed and the nearest right name."""


class Interpolated(str):
    """Metadata of a field: the base node holds this interpolation, so the field follows another one unless set."""


class Node(BaseModel):
    """One node of the config: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def _exists(path: Path | None) -> Path | None:
    if path is not None and not path.expanduser().exists():
        raise ValueError("there is no such file or folder")
    return path and path.expanduser()


def _is_model(path: Path | None) -> Path | None:
    if path is not None and not (path / "config.json").is_file():
        raise ValueError("this is no model folder: it has no config.json. Give a folder that save_pretrained wrote")
    return path


ExistingPath = Annotated[Path, AfterValidator(_exists)]
ModelPath = Annotated[ExistingPath, AfterValidator(_is_model)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
StageSeed = Annotated[Seed, Interpolated("${seed}")]
NewTokens = Annotated[Count, Interpolated("${max_new_tokens}")]


class ModelConfig(Node):
    """The base language model: `path`, else `hub`, else a new GPT-NeoX (Pythia) model of the given size."""

    name: str = Field("tiny", description="shown in tables and run names")
    path: ModelPath | None = Field(None, description="local folder that AutoModelForCausalLM opens; wins over hub")
    hub: str | None = Field(None, description="name on the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    tuned: bool = Field(False, description="the checkpoint is the reference policy as it is: no SFT")
    hidden_size: Count = Field(128, description="of a new model; a multiple of heads")
    layers: Count = Field(4, description="of a new model")
    heads: Count = Field(4, description="of a new model")
    vocabulary: Annotated[int, Field(ge=300)] = Field(2048, description="byte-level BPE of a new model: at most")

    @property
    def pretrained(self) -> bool:
        return self.path is not None or self.hub is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tuned and not self.pretrained:
            raise ValueError("tuned=true needs a checkpoint: set model.path or model.hub")
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be an even multiple of heads ({self.heads})")
        return self


class _Data(Node):
    seed: StageSeed
    fit_prompts: Count = Field(500, description="prompts of rlhf, refinetune and the demonstrations that IRL fits")
    select_prompts: Count = Field(100, description="prompts for choices made without looking at test")
    test_prompts: Count = Field(250, description="prompts that only evaluate sees")
    reward_fraction: Fraction = Field(0.35, description="of the other prompts: labelled texts that only R* sees")
    max_prompt_words: Count = Field(32, description="longer prompts are cut; the rest starts the completion")


class CommentsConfig(_Data):
    """Embedded corpus: a seeded generator of civil and hostile comments (irl_exp/comments.py)."""

    name: Literal["comments"] = "comments"
    count: Count = Field(24_000, description="comments to write")


class _Texts(_Data):
    path: ExistingPath | None = Field(None, description="local JSONL, CSV or Parquet file; wins over hub")
    hub: str | None = Field(None, description="dataset on the Hugging Face hub")
    split: str = Field("train", description="split on the hub")
    prompt: str | None = Field("prompt", description="column of the prompt; a dot enters a nested object")
    completion: str | None = Field("completion", description="column of the completion")
    text: str | None = Field(None, description="column of whole texts, cut in half, in place of the two above")
    label: str | None = Field(None, description="column of the label: toxic if at least 0.5; null: no labels")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.path is None and self.hub is None:
            raise ValueError("set data.path to a .jsonl, .csv or .parquet file")
        if self.text is None and (self.prompt is None or self.completion is None):
            raise ValueError("name the columns: data.prompt and data.completion, or data.text")
        return self


class JigsawConfig(_Texts):
    """The paper's 2,000 Jigsaw comments; for the original file data.path, data.text=comment_text, data.label=toxic."""

    name: Literal["jigsaw"] = "jigsaw"
    hub: str | None = "jaredjoss/jigsaw-long-2000"
    completion: str | None = "original_output"


class RealToxicityPromptsConfig(_Texts):
    """RealToxicityPrompts: sentences cut in half, each half with its measured toxicity."""

    name: Literal["real_toxicity_prompts"] = "real_toxicity_prompts"
    hub: str | None = "allenai/real-toxicity-prompts"
    prompt: str | None = "prompt.text"
    completion: str | None = "continuation.text"
    label: str | None = "continuation.toxicity"


class FileConfig(_Texts):
    """Your own texts."""

    name: Literal["file"] = "file"
    label: str | None = "label"


DataConfig = Annotated[
    CommentsConfig | JigsawConfig | RealToxicityPromptsConfig | FileConfig, Field(discriminator="name")
]

Reads = Literal["completion", "text"]


class ClassifierConfig(Node):
    """R*: TF-IDF and logistic regression, fitted on a labelled part of the data that nothing else uses."""

    name: Literal["classifier"] = "classifier"
    seed: StageSeed
    reads: Reads = Field("completion", description="judge the completion alone or prompt and completion")
    ngrams: Annotated[int, Field(ge=1, le=5)] = Field(2, description="longest word n-gram")
    min_count: Count = Field(2, description="n-grams in fewer texts are ignored")
    inverse_regularisation: Positive = Field(1.0, description="C of the logistic regression")
    held_out: Fraction = Field(0.25, description="of its texts, by prompt, for the accuracy that is printed")


class SequenceClassifierConfig(Node):
    """R*: a sequence classifier of transformers; reward = logit of `civil` minus logit of `toxic`."""

    name: Literal["sequence_classifier"] = "sequence_classifier"
    seed: StageSeed
    reads: Reads = Field("completion", description="judge the completion alone or prompt and completion")
    path: ModelPath | None = Field(None, description="local folder of the classifier; wins over hub")
    hub: str | None = Field("s-nlp/roberta_toxicity_classifier", description="name on the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    civil: str = Field("neutral", description="exact name of the label that is not toxic")
    toxic: str = Field("toxic", description="exact name of the toxic label")
    batch_size: Count = Field(64, description="texts a forward pass")
    max_tokens: Count = Field(256, description="longer texts are cut")

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if self.path is None and self.hub is None:
            raise ValueError("set reward.path to a folder or reward.hub to a name on the Hugging Face hub")
        return self


RewardConfig = Annotated[ClassifierConfig | SequenceClassifierConfig, Field(discriminator="name")]


class SftConfig(Node):
    """Base model to reference policy: next-token training on the texts of the sft part."""

    seed: StageSeed
    steps: Count = Field(600, description="optimiser steps")
    batch_size: Count = Field(32, description="texts a step")
    learning_rate: LearningRate = Field(6e-3, description="peak of the cosine schedule; for a model of this size")
    warmup_fraction: Fraction = Field(0.1, description="of the steps, linear")
    max_tokens: Count = Field(128, description="longer texts are cut")


class PolicyOptimizationConfig(Node):
    """max E[reward] - beta KL(policy | reference), with an online trainer of TRL."""

    seed: StageSeed
    algorithm: Literal["rloo", "grpo"] = Field("rloo", description="TRL trainer")
    steps: Count = Field(40, description="optimiser steps")
    batch_size: Count = Field(64, description="completions a step: a multiple of generations")
    micro_batch_size: Count | None = Field(None, description="completions a forward pass; null: the batch")
    generations: Annotated[int, Field(ge=2)] = Field(4, description="completions of one prompt")
    learning_rate: LearningRate = Field(3e-4, description="constant")
    kl_coefficient: Annotated[float, Field(ge=0)] = Field(0.3, description="beta, on the scale of the reward")
    max_new_tokens: NewTokens
    epsilon: Fraction = Field(0.2, description="clip range of the probability ratio")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.generations:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of generations ({self.generations})")
        micro = self.micro_batch_size
        if micro is not None and (self.batch_size % micro or micro % self.generations):
            raise ValueError(f"micro_batch_size ({micro}) must divide batch_size and be a multiple of generations")
        return self


class DemonstrationsConfig(Node):
    """Completions of expert and reference on the same prompts, with both log-probabilities of each."""

    seed: StageSeed
    completions_per_prompt: Count = Field(4, description="of each policy")
    greedy: bool = Field(False, description="one greedy completion on fit and select; test is always sampled")
    max_new_tokens: NewTokens
    batch_size: Count = Field(256, description="completions generated at once")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.greedy and self.completions_per_prompt != 1:
            raise ValueError("greedy=true writes the same completion again: set completions_per_prompt=1")
        return self


class HiddenStateConfig(Node):
    """phi(x, y): a hidden state of the reference policy that has read prompt and completion."""

    name: Literal["hidden_state"] = "hidden_state"
    layers: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        (-1, -2, -3), description="their states are joined; -1 is the last, after the final norm; 0 the embeddings"
    )
    pooling: Literal["mean", "last"] = Field("mean", description="mean over the completion, or its last token")
    batch_size: Count = Field(128, description="completions a forward pass")


FeaturesConfig = HiddenStateConfig


class MaxMarginLoss(Node):
    """The paper's asymmetric loss on the margin d: -d where d > 0, -2d elsewhere."""

    name: Literal["max_margin"] = "max_margin"
    correct_penalty: Positive = Field(1.0, description="slope where the expert is ahead")
    wrong_penalty: Positive = Field(2.0, description="slope where the baseline is ahead")


class HingeLoss(Node):
    """max(0, target_margin - d)."""

    name: Literal["hinge"] = "hinge"
    target_margin: Positive = Field(1.0, description="margin from which a pair costs nothing")


class BradleyTerryLoss(Node):
    """-log sigmoid(d / temperature), the logistic loss."""

    name: Literal["bradley_terry"] = "bradley_terry"
    temperature: Positive = Field(1.0, description="unit of the margin")


LossConfig = Annotated[MaxMarginLoss | HingeLoss | BradleyTerryLoss, Field(discriminator="name")]


class IrlConfig(Node):
    """Linear reward on features, fitted to contrast pairs (expert, baseline) with Adam and minibatches."""

    name: Literal["margin"] = "margin"
    seed: StageSeed = Field(description="head initialisation, batch order and the resampling of pairs")
    features: FeaturesConfig = FeaturesConfig()
    loss: LossConfig = MaxMarginLoss()
    epochs: Count = Field(30, description="passes over the pairs of fit")
    batch_size: Count = Field(32, description="pairs a step")
    learning_rate: LearningRate = Field(1e-2, description="of Adam")
    scaling: Literal["whiten", "standardise"] = Field("whiten", description="of the features, before the fit")
    ridge: Positive = Field(1e-3, description="of whiten: added to each eigenvalue, as a fraction of their mean")
    max_norm: Positive = Field(1.0, description="bound of |w| on scaled features: keeps max_margin finite")
    resample_pairs: bool = Field(False, description="draw the pairs with replacement, by the seed")


class RefinetuneConfig(PolicyOptimizationConfig):
    """As rlhf, on the learned reward (standardised on the demonstrations)."""

    # At 0.05 several learned rewards were exploited by empty or broken text; at 0.2 the text stayed fluent
    # (trial of 3 losses on a model of this size, one seed each).
    kl_coefficient: Annotated[float, Field(ge=0)] = Field(0.2, description="beta, in sd of the learned reward")


class EvaluateConfig(Node):
    """Judge the policies and the learned reward on the test prompts."""

    seed: StageSeed
    completions_per_prompt: Annotated[Count, Interpolated("${demonstrations.completions_per_prompt}")]
    max_new_tokens: NewTokens
    batch_size: Count = Field(256, description="completions generated at once")
    bootstrap: Annotated[int, Field(ge=100)] = Field(1000, description="resamples of prompts for the intervals")


class TrackingConfig(Node):
    """Where runs are recorded, beside their own folder."""

    mode: Literal["wandb", "offline", "none"] = Field("wandb", description="wandb: online with an account")
    project: str = Field("irl-exp", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team")
    tags: tuple[str, ...] = Field((), description="tags of every run")


class StoreConfig(Node):
    """The content-addressed store of stage results; may be shared by processes and machines."""

    dir: Annotated[Path, Interpolated("${oc.env:IRL_EXP_STORE,multirun/store}")]


class Config(Node):
    """One run of the chain."""

    name: str = Field("chain", pattern=r"^[\w.-]+$", description="of the study: folder under multirun/, W&B group")
    seed: Seed = Field(0, description="root seed; every stage follows it unless its own seed is set")
    until: Literal["sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate"] = Field(
        "evaluate", description="stop after this stage and evaluate what exists"
    )
    max_new_tokens: Count = Field(32, description="longest completion, in every stage")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first visible GPU, else the CPU")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it")
    threads: Count = Field(1, description="CPU threads a process; results are repeatable for a fixed number")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="jobs at once; 0: one a core, one on a GPU")
    store: StoreConfig
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    sft: SftConfig
    rlhf: PolicyOptimizationConfig
    demonstrations: DemonstrationsConfig
    irl: IrlConfig
    refinetune: RefinetuneConfig
    evaluate: EvaluateConfig
    tracking: TrackingConfig

    def reaches(self, stage: str) -> bool:
        """Whether `until` lets this stage run."""
        return STAGES.index(stage) <= STAGES.index(self.until)


assert get_args(Config.model_fields["until"].annotation) == STAGES

BASE_NODES: Mapping[str, type[Node]] = {
    "config": Config,
    "model": ModelConfig,
    "comments": CommentsConfig,
    "jigsaw": JigsawConfig,
    "real_toxicity_prompts": RealToxicityPromptsConfig,
    "file": FileConfig,
    "classifier": ClassifierConfig,
    "sequence_classifier": SequenceClassifierConfig,
    "policy_optimization": PolicyOptimizationConfig,
    "refinetune": RefinetuneConfig,
    "irl": IrlConfig,
    "hidden_state": HiddenStateConfig,
    "max_margin": MaxMarginLoss,
    "hinge": HingeLoss,
    "bradley_terry": BradleyTerryLoss,
    "tracking": TrackingConfig,
}
"""Names under which the YAML files of `conf/` take their defaults: `- /schema@_here_: hinge`."""

CHOSEN_BY_GROUP = frozenset({"model", "data", "reward", "rlhf", "refinetune", "irl", "features", "loss", "tracking"})
"""Nodes that a config group fills: the base node of their parent leaves them out."""


def base_node(model: type[Node]) -> dict[str, Any]:
    """Defaults of a model as plain values, interpolations included; required values are '???' (Hydra's missing)."""
    node: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        interpolation = next((item for item in field.metadata if isinstance(item, Interpolated)), None)
        nested = node_of(field)
        if name in CHOSEN_BY_GROUP and nested:
            continue
        if interpolation is not None:
            node[name] = str(interpolation)
        elif nested:
            node[name] = base_node(nested[0])
        elif field.is_required():
            node[name] = "???"
        else:
            node[name] = list(field.default) if isinstance(field.default, tuple) else field.default
    return node


def node_of(field: FieldInfo) -> list[type[Node]]:
    """The node classes that a field may hold: one, several (a choice by `name`), or none for a plain value."""
    found: list[type[Node]] = []

    def collect(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Node):
            found.append(annotation)
        for argument in get_args(annotation):
            collect(argument)

    collect(field.annotation)
    return found


def register() -> None:
    """Give Hydra the base nodes (group `schema`) and the resolver that the help text uses."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for name, model in BASE_NODES.items():
        ConfigStore.instance().store(group="schema", name=name, node=base_node(model), provider="irl_exp")
    OmegaConf.register_new_resolver("irl_exp_groups", describe_groups, replace=True)
    OmegaConf.register_new_resolver("irl_exp_options", describe_options, replace=True)


def describe_groups() -> str:
    """Config groups and their options for the help text, each with the first comment line of its file."""
    lines: list[str] = []
    for folder in sorted({path.parent for path in CONF.glob("*/**/*.yaml")}):
        group = folder.relative_to(CONF).as_posix()
        lines.append(f"  {group}=")
        for path in sorted(folder.glob("*.yaml")):
            comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
            comments = [line for line in comments if "@package" not in line]
            lines.append(f"    {path.stem:<24}{comments[0][2:] if comments else ''}")
    return "\n".join(lines)


def describe_options() -> str:
    """Every option with its default and meaning, one line each, for the help text."""
    meaning = {key: field.description for key, field in option_fields() if field.description}
    lines: dict[str, str] = {}
    for key, field in option_fields():
        interpolation = next((item for item in field.metadata if isinstance(item, Interpolated)), None)
        default = interpolation or ("" if field.is_required() else field.default)
        option = f"  {key}={'null' if default is None else default}"
        # Choices of one group share keys with other defaults: the first stands for all.
        lines.setdefault(key, f"{option:<46} {meaning.get(key, '')}".rstrip())
    # Hydra substitutes $NAME in the help text.
    return "\n".join(lines.values()).replace("$", "$$")


def option_fields(model: type[Node] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and field of every plain option, those of all choices of a node included."""
    for name, field in model.model_fields.items():
        nested = node_of(field)
        for choice in nested:
            yield from option_fields(choice, f"{prefix}{name}.")
        if not nested and not (name == "name" and prefix and prefix != "model."):
            yield f"{prefix}{name}", field


def known_keys() -> list[str]:
    """Every dotted key of the config: options and nodes."""
    keys = {key for key, _ in option_fields()}
    nodes = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    return sorted(keys | nodes)


def known_groups() -> list[str]:
    """Config groups: folders of `conf/`."""
    return sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")})


def nearest(key: str, names: list[str]) -> str:
    """' Did you mean ...?' with the closest of the names, or nothing."""
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_override(key: str, value: str) -> None:
    """Refuse an override of a key or group that does not exist, before Hydra suggests to add it with '+'.

    Raises:
        ConfigError: names the key and the nearest right name.
    """
    if key in known_groups() and re.fullmatch(r"[\d.,+-]+", value):
        options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
        raise ConfigError(f"{key}={value}: {key} is a config group; choose one of {options}.")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or key in known_groups() or key in known_keys():
        return
    hint = nearest(key, known_groups() if "/" in key else known_keys() + known_groups())
    kind = "config group" if "/" in key else "option"
    raise ConfigError(f"{key}: there is no such {kind}.{hint} `python launch.py --help` lists all of them.")


def check_choices(keys: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> None:
    """Refuse an option that belongs to another choice of its group, such as data.path with data=comments.

    Args:
        keys: dotted keys of the overrides.
        chosen: options of the groups that the command line names; others have the default of conf/config.yaml.

    Raises:
        ConfigError: names the option and the choices that have it.
    """
    files = [
        CONF / "local" / "default.yaml",
        *(CONF / group / f"{name}.yaml" for group in chosen for name in chosen[group]),
    ]
    if any("override /" in path.read_text(encoding="utf-8") for path in files if path.exists()):
        return  # such a file chooses for other groups: only Hydra knows what
    for group in known_groups():
        prefix = group.replace("/", ".") + "."
        nodes = {path.stem: _node_of_option(path) for path in (CONF / group).glob("*.yaml")}
        for key in keys:
            name = key.removeprefix(prefix)
            owners = sorted(option for option, node in nodes.items() if node and name in node.model_fields)
            if not key.startswith(prefix) or "." in name or not owners:
                continue
            for option in chosen.get(group) or [_default_option(group)]:
                node = nodes.get(option)
                if node and name not in node.model_fields:
                    raise ConfigError(
                        f"{key}: {group}={option} has no such option; it belongs to {group}={', '.join(owners)}."
                    )


def _node_of_option(path: Path) -> type[Node] | None:
    """The class whose base node a YAML file of `conf/` takes."""
    found = re.search(r"^\s*- /schema@[\w.]+: (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return BASE_NODES[found[1]] if found else None


def _default_option(group: str) -> str:
    found = re.search(rf"^\s*- {group}: (\w+)", (CONF / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def parse(values: Mapping[str, Any]) -> Config:
    """Typed config of one job from the composed, resolved values.

    Raises:
        ConfigError: lists every wrong field with its value and what is allowed.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(_explain(item) for item in error.errors()))) from None


def _explain(item: Any) -> str:
    """One readable line for one error of pydantic."""
    keys = known_keys()
    # A choice between nodes puts its tag into the path (irl.loss.hinge.target): leave out what is no key.
    parts: list[str] = []
    for part in item["loc"]:
        if (item["type"] == "extra_forbidden" and part == item["loc"][-1]) or ".".join([*parts, str(part)]) in keys:
            parts.append(str(part))
    key = ".".join(parts) or "config"
    if item["type"] == "extra_forbidden":
        return f"{key}: there is no such option here.{nearest(key, keys)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = item.get("input")
    if key.replace(".", "/") in known_groups() and not isinstance(value, Mapping):
        return f"{key}={value}: this is a config group; write {key.replace('.', '/')}={value}"
    if item["type"] == "missing" or value == "???":
        return f"{key}: this option must be set, e.g. {key}=..."
    shown = "" if isinstance(value, Mapping) else f"={value}"
    return f"{key}{shown}: {message}"

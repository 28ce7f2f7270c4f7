"""What can be known to fail before any long work: unreadable data, a folder that is no model, a hub out of reach.

Only stages that will be computed are looked at: what the store already has needs neither file nor hub.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import pandas as pd

from irl_exp.config import (
    POSITIONS,
    BenchmarkConfig,
    ClassifierConfig,
    CommentsConfig,
    DataConfig,
    ExpertTextsConfig,
    ExplainConfig,
    FeaturesConfig,
    ImportedConfig,
    MarginConfig,
    ModelConfig,
    Node,
    SequenceClassifierConfig,
    SftConfig,
    TextsExpert,
    WeightedConfig,
)
from irl_exp.explain import candidates, wording
from irl_exp.irl.features import check_layers
from irl_exp.launch.experts import check_chat, check_checkpoint
from irl_exp.launch.models import READER, WRITER, PreflightError, architecture, check_hub, check_model
from irl_exp.rewards.ground_truth import check_function
from irl_exp.rewards.reward import RewardError
from irl_exp.stages.step import Step
from irl_exp.texts import data
from irl_exp.texts.files import DataError
from irl_exp.texts.written import prompts_of_writers


class _Origin(NamedTuple):
    """Where texts come from; of expert=texts, from its file."""

    config: DataConfig
    expert: TextsExpert | None

    @classmethod
    def of(cls, step: Step | Node) -> _Origin:
        """Of the step `data`."""
        assert isinstance(step, Step)
        return cls(cast(DataConfig, step.config), cast(TextsExpert | None, step.inputs.get("expert")))

    @property
    def is_here(self) -> bool:
        """Whether texts can be read without the hub."""
        return isinstance(self.config, CommentsConfig | ExpertTextsConfig) or self.config.path is not None


def check(step: Step) -> None:
    """Refuse a stage whose files, names or labels are not there.

    Raises:
        PreflightError, DataError, features.FeatureError: one clear message.
    """
    if "max_new_tokens" in type(step.config).model_fields:
        _check_length(step)
    if step.stage == "data":
        _check_data(_Origin.of(step))
    elif step.stage == "benchmark":
        _check_benchmark(step.config, _Origin.of(step.inputs["data"]))
    elif step.stage == "reward":
        _check_reward("reward", step.config, _Origin.of(step.inputs["data"]))
    elif step.stage == "sft":
        _check_reference(step)
    elif step.stage == "checkpoint":
        check_checkpoint(step.config, _model_of(step))  # type: ignore[arg-type]
    elif step.stage == "further":
        _check_further(step)
    elif step.stage == "features":
        _check_layers(step.config, step)
    elif step.stage == "irl" and isinstance(step.config, MarginConfig):
        _check_layers(step.config.features, step)
    elif step.stage in ("candidates", "explain"):
        _check_explain(step)


def _check_reference(step: Step) -> None:
    """The base model, and texts to train it on unless it is the reference as it is."""
    model, origin = step.inputs["model"], _Origin.of(step.inputs["data"])
    assert isinstance(model, ModelConfig)
    check_model("model", model.path, model.hub, model.revision, READER if origin.expert else WRITER)
    check_chat(model)
    _check_sft(model, step.config)
    if not model.tuned and origin.is_here and data.are_prompts(_texts(origin)):
        raise PreflightError(
            f"data={origin.config.name}: it is a list of prompts, and sft trains on completions. Set model.tuned=true "
            "to take a checkpoint as it is, or name the column with data.completion."
        )


def _check_explain(step: Step) -> None:
    """Functions of the user give numbers, and the server that words statements answers."""
    config = step.config
    assert isinstance(config, ExplainConfig)
    try:
        if step.stage == "explain" and config.wording == "llm":
            _check_words(str(config.address), str(config.model))
        for name in config.properties.imported if step.stage == "candidates" and config.properties.on else ():
            candidates.check_property(name)
    except (candidates.ExplainError, wording.WordingError) as error:
        raise PreflightError(str(error)) from error


@functools.cache
def _check_words(address: str, model: str) -> None:
    """Asked once, however many jobs will ask."""
    wording.rephrase(["It pays for 1 thing."], address=address, model=model)


def _check_further(step: Step) -> None:
    origin = _Origin.of(step.inputs["data"])
    if step.config.train_on == "sft" and origin.is_here and data.are_prompts(_texts(origin)):  # type: ignore[attr-defined]
        raise PreflightError("expert=further: the data has no texts of people to train on: set expert.train_on=own.")


def _check_layers(config: Node, step: Step) -> None:
    """The number of layers is known of a new model and of a local one; a model of the hub is opened by sft first."""
    model = _model_of(step)
    assert isinstance(config, FeaturesConfig)
    if model.path is not None:
        check_layers(config, architecture("model", model.path).num_hidden_layers)
    elif model.hub is None:
        check_layers(config, model.layers)


def _model_of(step: Step) -> ModelConfig:
    """The base model of a step that reads the reference policy."""
    reference = step.inputs["reference"]
    assert isinstance(reference, Step)
    model = reference.inputs["model"]
    assert isinstance(model, ModelConfig)
    return model


def _positions(model: ModelConfig) -> int | None:
    """How many tokens a model reads at once; None where that is not known before it is opened."""
    if not model.pretrained:
        return POSITIONS
    return getattr(architecture("model", model.path), "max_position_embeddings", None) if model.path else None


def _check_sft(model: ModelConfig, config: Node) -> None:
    """A text has to fit into what the model reads at once."""
    assert isinstance(config, SftConfig)
    positions = _positions(model)
    if not model.tuned and positions and config.max_tokens > positions:
        raise PreflightError(
            f"sft.max_tokens={config.max_tokens}: model={model.name} reads {positions} tokens at once. Lower it."
        )


def _check_length(step: Step) -> None:
    """Prompt and completion fit into what the model reads at once: a word has at least one token."""
    positions, length = _positions(_model_of(step)), step.config.max_new_tokens  # type: ignore[attr-defined]
    source = step.inputs.get("data")
    origin = _Origin.of(source) if source is not None else None
    if origin and origin.expert:  # nothing is written, and what is too long is cut
        return
    words = _longest_prompt(origin) if origin else 1
    if positions and words + length > positions:
        raise PreflightError(
            f"max_new_tokens={length}: the model reads {positions} tokens at "
            f"once, and the longest prompt has {words} words. Lower max_new_tokens or data.max_prompt_words."
        )


@functools.cache
def _longest_prompt(origin: _Origin) -> int:
    """Words of the longest prompt; of texts on the hub, which are not read yet, at least one."""
    return max(len(prompt.split()) for prompt in _texts(origin)["prompt"]) if origin.is_here else 1


def _texts(origin: _Origin) -> pd.DataFrame:
    """All texts, split; read once, whatever comes of it."""
    found = _read(origin)
    if isinstance(found, DataError):
        raise found
    return found


@functools.cache
def _read(origin: _Origin) -> pd.DataFrame | DataError:
    try:
        texts = prompts_of_writers(origin.expert) if origin.expert else data.read(origin.config)
        return data.split(texts, origin.config)
    except DataError as error:
        return error


def warning(step: Step) -> str:
    """What a reader should know of a step that can succeed; "" if there is nothing."""
    if step.stage != "data" or not (origin := _Origin.of(step)).is_here:
        return ""
    return data.too_few(_texts(origin)) or data.shortened_prompts(_texts(origin))


def _check_data(origin: _Origin) -> None:
    if origin.is_here:
        _texts(origin)
    else:
        check_hub("data", str(origin.config.hub), None, kind="dataset")  # type: ignore[union-attr]


@functools.cache
def _check_benchmark(config: BenchmarkConfig, source: _Origin) -> None:
    """Enough prompts that the data does not have; texts of the hub are compared when they are there."""
    if config.path is None:
        check_hub("benchmark", str(config.hub), None, kind="dataset")
        return
    data.unseen(data.read_benchmark(config), _texts(source)["prompt"] if source.is_here else [], config)


def _check_reward(key: str, config: Node, texts: _Origin) -> None:
    """What R*, or a part of it, needs: its model, its labels, or a function that gives one number a text."""
    if isinstance(config, WeightedConfig):
        if _are_prompts(texts):
            raise PreflightError(
                "reward=weighted is standardised on texts of the reward part, and a list of prompts has none: choose "
                "one of its parts, or give texts with completions."
            )
        for name, part in config.parts.items():
            _check_reward(f"{key}.parts.{name}", part, texts)
    elif isinstance(config, SequenceClassifierConfig):
        check_model(key, config.path, config.hub, config.revision, "sequence classifier")
    elif isinstance(config, ImportedConfig):
        _check_function(key, config.function)
    elif isinstance(config, ClassifierConfig):
        _check_labels("reward=classifier" if key == "reward" else f"{key} (classifier)", texts)


def _are_prompts(origin: _Origin) -> bool:
    """Whether it is known that nobody has completed the prompts; what cannot be read the step `data` tells of."""
    try:
        return origin.is_here and data.are_prompts(_texts(origin))
    except DataError:
        return False


@functools.cache
def _check_function(key: str, function: str) -> None:
    try:
        check_function(function)
    except RewardError as error:
        raise PreflightError(f"{key}.function: {error}") from None
    except BaseException as error:  # no stop, which ends the process while jobs are checked
        raise PreflightError(f"{key}.function: {function} ended with {type(error).__name__}.") from None


@functools.cache
def _check_labels(reward: str, origin: _Origin) -> None:
    """A classifier is fitted on labels, so both must be there."""
    config = origin.config
    if isinstance(config, CommentsConfig):
        return
    if isinstance(config, ExpertTextsConfig) or config.label is None:
        raise PreflightError(
            f"{reward} is fitted on labelled texts, but data.label is not set. Set data.label to the column "
            "of the label, or choose reward=roberta_toxicity (or reward=sequence_classifier reward.path=FOLDER; "
            "reward=none with an expert that is given)."
        )
    if config.path is None:
        return
    texts = _texts(origin)
    labels = texts.loc[texts["part"] == "reward", "toxic"].dropna()
    if labels.nunique() < 2:
        raise PreflightError(
            f"{reward} needs texts of both labels; the reward part of {config.path} has {len(labels)} "
            f"labelled texts, {int(labels.sum())} of them toxic (data.label={config.label}; data.toxic=[...] names the "
            "values that mean toxic, else it is a number of at least 0.5)."
        )

"""What can be known to fail before any long work: unreadable data, a folder that is no model, a hub out of reach.

Only stages that will be computed are looked at: what the store already has needs neither file nor hub.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pandas as pd
import transformers

from irl_exp.config import (
    POSITIONS,
    BenchmarkConfig,
    ClassifierConfig,
    CommentsConfig,
    DataConfig,
    FeaturesConfig,
    ImportedConfig,
    MarginConfig,
    ModelConfig,
    Node,
    Recipe,
    SequenceClassifierConfig,
    SftConfig,
    WeightedConfig,
)
from irl_exp.irl.features import check_layers
from irl_exp.rewards.ground_truth import check_function
from irl_exp.rewards.reward import RewardError
from irl_exp.stages.step import Step
from irl_exp.texts import data

BYTES = 256
"""Tokens that every byte-level vocabulary has."""


class PreflightError(Exception):
    """A stage that cannot succeed: what is wrong, where, and what to set instead."""


def check(step: Step) -> None:
    """Refuse a stage whose files, names or labels are not there.

    Raises:
        PreflightError, data.DataError, features.FeatureError: one clear message.
    """
    if "max_new_tokens" in type(step.config).model_fields:
        _check_length(step)
    if isinstance(step.config, Recipe):
        _check_batch(step.config)
    if step.stage == "data":
        _check_data(_data(step))
    elif step.stage == "benchmark":
        source = step.inputs["data"]
        assert isinstance(source, Step)
        _check_benchmark(step.config, source.config)
    elif step.stage == "reward":
        source = step.inputs["data"]
        assert isinstance(source, Step)
        _check_reward("reward", step.config, source)
    elif step.stage == "sft":
        model = step.inputs["model"]
        assert isinstance(model, ModelConfig)
        _check_model("model", model.path, model.hub, model.revision, "causal language model")
        _check_sft(model, step.config)
    elif step.stage == "features":
        _check_layers(step.config, step)
    elif step.stage == "irl" and isinstance(step.config, MarginConfig):
        _check_layers(step.config.features, step)


def _check_layers(config: Node, step: Step) -> None:
    """The number of layers is known of a new model and of a local one; a model of the hub is opened by sft first."""
    model = _model_of(step)
    assert isinstance(config, FeaturesConfig)
    if model.path is not None:
        check_layers(config, _architecture("model", model.path).num_hidden_layers)
    elif model.hub is None:
        check_layers(config, model.layers)


def _model_of(step: Step) -> ModelConfig:
    """The base model of a step that reads the reference policy."""
    reference = step.inputs["reference"]
    assert isinstance(reference, Step)
    model = reference.inputs["model"]
    assert isinstance(model, ModelConfig)
    return model


@functools.cache
def _architecture(field: str, folder: Path) -> transformers.PretrainedConfig:
    """What a local checkpoint says of itself; it may run no code of its own."""
    with _opening(field, folder):
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextlib.contextmanager
def _opening(field: str, folder: Path) -> Iterator[None]:
    """One message for one cause, whatever it was opened for."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PreflightError(f"{field}.path={folder} cannot be opened: {reason}{_own_code(folder)}") from None


def _positions(model: ModelConfig) -> int | None:
    """How many tokens a model reads at once; None where that is not known before it is opened."""
    if not model.pretrained:
        return POSITIONS
    return getattr(_architecture("model", model.path), "max_position_embeddings", None) if model.path else None


def _check_sft(model: ModelConfig, config: Node) -> None:
    """A new model has to fit into memory; a text, into what the model reads at once."""
    assert isinstance(config, SftConfig)
    positions = _positions(model)
    if not model.tuned and positions and config.max_tokens > positions:
        raise PreflightError(
            f"sft.max_tokens={config.max_tokens}: model={model.name} reads {positions} tokens at once. Lower it."
        )
    if not model.pretrained:
        weights = 12 * model.layers * model.hidden_size**2
        _check_memory(f"model.hidden_size={model.hidden_size} and model.layers={model.layers}", weights, "smaller ones")


def _check_batch(config: Recipe) -> None:
    """At least the logits of one forward pass have to fit into memory, of the smallest vocabulary that there is."""
    size = config.micro_batch_size or config.batch_size
    field = "micro_batch_size" if config.micro_batch_size else "batch_size"
    remedy = "a smaller one, or a micro_batch_size"
    _check_memory(f"{field}={size} of rlhf or refinetune", size * config.max_new_tokens * BYTES, remedy)


def _check_memory(what: str, numbers: int, remedy: str) -> None:
    """Refuse what needs more memory for its numbers of 4 bytes than the machine has; not every machine says that."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if 4 * numbers > memory:
        raise PreflightError(
            f"{what}: at least {4 * numbers / 1e9:,.0f} GB of memory, and this machine has {memory / 1e9:,.0f} GB. "
            f"Choose {remedy}."
        )


def _check_length(step: Step) -> None:
    """Prompt and completion fit into what the model reads at once: a word has at least one token."""
    positions, length = _positions(_model_of(step)), step.config.max_new_tokens  # type: ignore[attr-defined]
    source = step.inputs.get("data")
    words = _longest_prompt(_data(source)) if isinstance(source, Step) else 1
    if positions and words + length > positions:
        raise PreflightError(
            f"max_new_tokens={length}: the model reads {positions} tokens at "
            f"once, and the longest prompt has {words} words. Lower max_new_tokens or data.max_prompt_words."
        )


@functools.cache
def _longest_prompt(config: DataConfig) -> int:
    """Words of the longest prompt; of texts on the hub, which are not read yet, at least one."""
    return max(len(prompt.split()) for prompt in _texts(config)["prompt"]) if _is_here(config) else 1


def _data(step: Step) -> DataConfig:
    return cast(DataConfig, step.config)


def _is_here(config: DataConfig) -> bool:
    """Whether texts can be read without the hub."""
    return isinstance(config, CommentsConfig) or config.path is not None


def _texts(config: DataConfig) -> pd.DataFrame:
    """All texts, split; read once, whatever comes of it."""
    found = _read(config)
    if isinstance(found, data.DataError):
        raise found
    return found


@functools.cache
def _read(config: DataConfig) -> pd.DataFrame | data.DataError:
    try:
        return data.split(data.read(config), config)
    except data.DataError as error:
        return error


def warning(step: Step) -> str:
    """What a reader should know of a step that can succeed; "" if there is nothing."""
    return data.too_few(_texts(_data(step))) if step.stage == "data" and _is_here(_data(step)) else ""


def _check_data(config: DataConfig) -> None:
    if isinstance(config, CommentsConfig) or config.path is not None:
        _texts(config)
    else:
        _check_hub("data", str(config.hub), None, kind="dataset")


@functools.cache
def _check_benchmark(config: BenchmarkConfig, source: DataConfig) -> None:
    """Enough prompts that the data does not have; texts of the hub are compared when they are there."""
    if config.path is None:
        _check_hub("benchmark", str(config.hub), None, kind="dataset")
        return
    data.unseen(data.read_benchmark(config), _texts(source)["prompt"] if _is_here(source) else [], config)


def _check_reward(key: str, config: Node, texts: Step) -> None:
    """What R*, or a part of it, needs: its model, its labels, or a function that gives one number a text."""
    if isinstance(config, WeightedConfig):
        for name, part in config.parts.items():
            _check_reward(f"{key}.parts.{name}", part, texts)
    elif isinstance(config, SequenceClassifierConfig):
        _check_model(key, config.path, config.hub, config.revision, "sequence classifier")
    elif isinstance(config, ImportedConfig):
        _check_function(key, config.function)
    elif isinstance(config, ClassifierConfig):
        _check_labels("reward=classifier" if key == "reward" else f"{key} (classifier)", texts.config)


@functools.cache
def _check_function(key: str, function: str) -> None:
    try:
        check_function(function)
    except RewardError as error:
        raise PreflightError(f"{key}.function: {error}") from None
    except BaseException as error:  # no stop, which ends the process while jobs are checked
        raise PreflightError(f"{key}.function: {function} ended with {type(error).__name__}.") from None


@functools.cache
def _check_labels(reward: str, config: DataConfig) -> None:
    """A classifier is fitted on labels, so both must be there."""
    if isinstance(config, CommentsConfig):
        return
    if config.label is None:
        raise PreflightError(
            f"{reward} is fitted on labelled texts, but data.label is not set. Set data.label to the column "
            "of the label, or choose reward=roberta_toxicity (or reward=sequence_classifier reward.path=FOLDER)."
        )
    if config.path is None:
        return
    texts = _texts(config)
    labels = texts.loc[texts["part"] == "reward", "toxic"].dropna()
    if labels.nunique() < 2:
        raise PreflightError(
            f"{reward} needs texts of both labels; the reward part of {config.path} has {len(labels)} "
            f"labelled texts, {int(labels.sum())} of them toxic (data.label={config.label}; data.toxic=[...] names the "
            "values that mean toxic, else it is a number of at least 0.5)."
        )


@functools.cache
def _check_model(field: str, path: Path | None, hub: str | None, revision: str | None, kind: str) -> None:
    """Weights, a configuration and a tokenizer that transformers opens without code of the folder."""
    if path is None:
        if hub is not None:
            _check_hub(field, hub, revision, kind="model")
    elif not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        raise PreflightError(f"{field}.path={path}: there are no weights (*.safetensors or pytorch_model*.bin).")
    else:
        _check_opens(field, path, kind)


def _check_opens(field: str, folder: Path, kind: str) -> None:
    known = {
        "causal language model": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "sequence classifier": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    model = _architecture(field, folder)
    with _opening(field, folder):
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if type(model) not in known[kind]:
            raise ValueError(f"transformers has no {kind} for model_type={model.model_type!r}.")


def _own_code(folder: Path) -> str:
    """What to do where a folder brings code of its own; empty if it does not."""
    configs = [path for name in ("config.json", "tokenizer_config.json") if (path := folder / name).is_file()]
    if not any(b'"auto_map"' in path.read_bytes() for path in configs):
        return ""
    return " Code that comes with a model is never run here: choose a model and tokenizer that transformers knows."


@functools.cache
def _check_hub(field: str, name: str, revision: str | None, *, kind: str) -> None:
    """Look the name up in the hub's cache on this machine, then on the hub."""
    import huggingface_hub

    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    if folder.is_dir() and any(folder.iterdir()):
        return
    try:
        huggingface_hub.HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=5)
    except Exception as error:  # the client raises errors of several libraries, all of which mean the same here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PreflightError(
            f"{field}.hub={name}: this {kind} is neither in the local cache nor within reach ({reason}). "
            f"Set {field}.path to a local copy, or check the name and the connection."
        ) from None

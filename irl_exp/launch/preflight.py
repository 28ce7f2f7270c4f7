"""What can be known to fail before any long work: unreadable data, a folder that is no model, a hub out of reach.

Only stages that will be computed are looked at: what the store already has needs neither file nor hub.
"""

from __future__ import annotations

import functools
from pathlib import Path

import transformers

from irl_exp.config import (
    BenchmarkConfig,
    ClassifierConfig,
    CommentsConfig,
    DataConfig,
    FeaturesConfig,
    ImportedConfig,
    MarginConfig,
    ModelConfig,
    Node,
    SequenceClassifierConfig,
    WeightedConfig,
)
from irl_exp.irl.features import check_layers
from irl_exp.rewards.ground_truth import check_function
from irl_exp.rewards.reward import RewardError
from irl_exp.stages.step import Step
from irl_exp.texts import data


class PreflightError(Exception):
    """A stage that cannot succeed: what is wrong, where, and what to set instead."""


def check(step: Step) -> None:
    """Refuse a stage whose files, names or labels are not there.

    Raises:
        PreflightError, data.DataError, features.FeatureError: one clear message.
    """
    if step.stage == "data":
        _check_data(step.config)
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
    elif step.stage == "features":
        _check_layers(step.config, step)
    elif step.stage == "irl" and isinstance(step.config, MarginConfig):
        _check_layers(step.config.features, step)


def _check_layers(config: Node, step: Step) -> None:
    """The number of layers is known of a new model and of a local one; a model of the hub is opened by sft first."""
    reference = step.inputs["reference"]
    assert isinstance(reference, Step)
    model = reference.inputs["model"]
    assert isinstance(model, ModelConfig)
    assert isinstance(config, FeaturesConfig)
    if model.path is not None:
        check_layers(
            config, transformers.AutoConfig.from_pretrained(model.path, trust_remote_code=False).num_hidden_layers
        )
    elif model.hub is None:
        check_layers(config, model.layers)


@functools.cache
def _check_data(config: DataConfig) -> None:
    if isinstance(config, CommentsConfig) or config.path is not None:
        data.split(data.read(config), config)
    else:
        _check_hub("data", str(config.hub), None, kind="dataset")


@functools.cache
def _check_benchmark(config: BenchmarkConfig, source: DataConfig) -> None:
    """Enough prompts that the data does not have; texts of the hub are compared when they are there."""
    if config.path is None:
        _check_hub("benchmark", str(config.hub), None, kind="dataset")
        return
    local = isinstance(source, CommentsConfig) or source.path is not None
    data.unseen(data.read_benchmark(config), data.read(source)["prompt"] if local else [], config)


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
    texts = data.split(data.read(config), config)
    labels = texts.loc[texts["part"] == "reward", "toxic"].dropna()
    if labels.nunique() < 2:
        raise PreflightError(
            f"{reward} needs texts of both labels; the reward part of {config.path} has {len(labels)} "
            f"labelled texts, {int(labels.sum())} of them toxic (data.label={config.label}, toxic if at least 0.5)."
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
        _check_opens(f"{field}.path={path}", path, kind)


def _check_opens(named: str, folder: Path, kind: str) -> None:
    known = {
        "causal language model": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "sequence classifier": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    try:
        model = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PreflightError(f"{named} cannot be opened: {reason}{_own_code(folder)}") from None
    if type(model) not in known[kind]:
        reason = f"transformers has no {kind} for model_type={model.model_type!r}."
        raise PreflightError(f"{named} cannot be opened: {reason}{_own_code(folder)}")


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

"""What can be known to be wrong with a given expert before any work, of checkpoints on this machine.

Of a checkpoint on the hub the same is found when it is there, by the stage `checkpoint`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from irl_exp.config import CheckpointExpert, ModelConfig
from irl_exp.launch.models import WRITER, PreflightError, architecture, check_hub, check_model, opening
from irl_exp.policies import adapters, bases, chat
from irl_exp.policies.language_models import PolicyError, prepare_tokenizer

ITSELF = "the expert is the base itself, so there is nothing to find. For this null take expert=itself."


def check_checkpoint(config: CheckpointExpert, model: ModelConfig) -> None:
    """Refuse a folder that is no model, an adapter of another base, another EOS, and the base itself.

    Raises:
        PreflightError: names the option and the remedy.
    """
    if config.path is None:
        if config.hub == model.hub and config.revision == model.revision and model.path is None:
            raise PreflightError(f"expert.hub={config.hub}: {ITSELF}")
        check_hub("expert", str(config.hub), config.revision, kind="model")
    elif adapters.is_adapter(config.path):
        _check_adapter(config.path, model)
    else:
        check_model("expert", config.path, None, None, WRITER)
        if model.path is not None:
            _check_pair(config.path, model.path, _asked_in_chat(model))


def check_chat(model: ModelConfig) -> None:
    """Of a local model that is to be asked in chat: it has a template, which takes messages."""
    if model.path is None or not _asked_in_chat(model):
        return
    tokenizer = _tokenizer("model", model.path)
    if tokenizer.chat_template is None:
        raise PreflightError(
            f"model.chat=true: the tokenizer of {model.path} has no chat template. Set model.chat=false."
        )
    try:
        chat.end_of_turn(tokenizer)
    except chat.ChatError as error:
        raise PreflightError(f"model.path={model.path}: {error}") from None


def _asked_in_chat(model: ModelConfig) -> bool:
    if model.chat != "auto":
        return model.chat
    return model.tuned and model.path is not None and _tokenizer("model", model.path).chat_template is not None


@functools.cache
def _tokenizer(field: str, folder: Path) -> Any:
    with opening(field, folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    try:
        prepare_tokenizer(tokenizer, str(folder))
    except PolicyError as error:
        raise PreflightError(f"{field}.path: {error}") from None
    return tokenizer


@functools.cache
def _check_pair(expert: Path, base: Path, in_chat: bool) -> None:
    """Two checkpoints that can be told apart, and end their completions alike if they share a tokenizer."""
    if _same_weights(expert, base):
        raise PreflightError(f"expert.path={expert}: {ITSELF}")
    own, other = _tokenizer("expert", expert), _tokenizer("model", base)
    if in_chat and own.chat_template is None and own.get_vocab() != other.get_vocab():
        raise PreflightError(f"expert.path={expert}: its tokenizer has no chat template. Set model.chat=false.")
    ends = [(in_chat and one.chat_template and chat.end_of_turn(one)) or one.eos_token for one in (own, other)]
    if own.get_vocab() == other.get_vocab() and ends[0] != ends[1]:
        remedy = ", or set model.chat=true" if other.chat_template and not in_chat else ""
        raise PreflightError(
            f"expert.path={expert}: it ends a completion with {ends[0]!r}, the base with {ends[1]!r}: one would go on "
            f"where the other ends. Give the checkpoint that it was tuned from{remedy}."
        )


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights, however they are cut into files; only safetensors are compared."""
    if one.resolve() == other.resolve():
        return True
    import torch

    first, second = dict(_weights(one)), dict(_weights(other))
    if not first or first.keys() != second.keys():
        return False
    # The last layers first: they are seldom left as they were.
    pairs = ((first[name](), second[name]()) for name in sorted(first, reverse=True))
    return all(mine.shape == its.shape and torch.equal(mine.float(), its.float()) for mine, its in pairs)


def _weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names of the weights, each with what reads it."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with opening("expert", folder), safe_open(path, framework="pt") as file:
            yield from ((name, functools.partial(_weight, path, name)) for name in file.keys())  # noqa: SIM118


def _weight(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


@functools.cache
def _check_adapter(folder: Path, model: ModelConfig) -> None:
    """The layers that an adapter was made for are there, with the widths that it has, and it changes something."""
    try:
        made_for = str(adapters.settings_of(folder).get("base_model_name_or_path"))
    except adapters.AdapterError as error:
        raise PreflightError(f"expert.path: {error}") from None
    below = bases.read(folder)
    if below and model.path and below.fingerprint != bases.fingerprint(model.path):
        raise PreflightError(_another(folder, made_for, f"{model.path} has other weights"))
    files = sorted(folder.glob("adapter_model.*"))
    if not files:
        raise PreflightError(f"expert.path={folder}: there are no weights of the adapter (adapter_model.safetensors).")
    if model.path is None:
        if made_for.lower() != str(model.hub).lower() and not Path(made_for).exists():
            raise PreflightError(_another(folder, made_for, f"it is not {model.hub}"))
        return
    if (Path(made_for) / "config.json").is_file() and not _same_weights(Path(made_for), model.path):
        raise PreflightError(_another(folder, made_for, f"{model.path} has other weights"))
    widths = _widths(model.path)
    for name, read in _weights(folder):
        layer, factor, _ = name.removeprefix("base_model.model.").partition(".lora_")
        if factor and layer not in widths:
            raise PreflightError(_another(folder, made_for, f"{model.path} has no {layer}"))
        if factor and not set(read().shape) & set(widths[layer]):
            raise PreflightError(_another(folder, made_for, f"{layer} has other widths there"))


def _another(folder: Path, made_for: str, why: str) -> str:
    return f"expert.path={folder}: this adapter was made for {made_for}, and {why}. Set model.path to that base."


@functools.cache
def _widths(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of the weights of each layer, by name; no weights are read."""
    import torch

    with opening("model", folder), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(architecture("model", folder), trust_remote_code=False)
    return {name: tuple(layer.weight.shape) for name, layer in model.named_modules() if hasattr(layer, "weight")}

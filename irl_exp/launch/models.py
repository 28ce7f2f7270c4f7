"""Whether a model that a config names can be opened: a folder that is none, a hub out of reach."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import transformers

from irl_exp.policies import bases
from irl_exp.policies.language_models import writes

WRITER, READER = "causal language model", "language model or encoder"
"""What a model is needed for: to write, or only to read what others wrote."""


class PreflightError(Exception):
    """A stage that cannot succeed: what is wrong, where, and what to set instead."""


@functools.cache
def architecture(field: str, folder: Path) -> transformers.PretrainedConfig:
    """What a local checkpoint says of itself; it may run no code of its own."""
    with opening(field, folder):
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextlib.contextmanager
def opening(field: str, folder: Path) -> Iterator[None]:
    """One message for one cause, whatever it was opened for."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PreflightError(f"{field}.path={folder} cannot be opened: {reason}{_own_code(folder)}") from None


@functools.cache
def check_model(field: str, path: Path | None, hub: str | None, revision: str | None, kind: str) -> None:
    """Weights, a configuration and a tokenizer that transformers opens without code of the folder."""
    if path is None:
        if hub is not None:
            check_hub(field, hub, revision, kind="model")
    elif not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")) and not bases.read(path):
        raise PreflightError(f"{field}.path={path}: there are no weights (*.safetensors or pytorch_model*.bin).")
    else:
        _check_shards(field, path)
        _check_opens(field, path, kind)


def _check_shards(field: str, folder: Path) -> None:
    """Every part of weights that lie in several files is there."""
    for index in folder.glob("*.index.json"):
        with opening(field, folder):
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(name for name in parts if not (folder / str(name)).is_file()):
            raise PreflightError(f"{field}.path={folder}: of its weights {missing[0]} is missing. Copy it there too.")


def _check_opens(field: str, folder: Path, kind: str) -> None:
    known = {
        WRITER: transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        READER: transformers.MODEL_MAPPING,
        "sequence classifier": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    model = architecture(field, folder)
    if kind == WRITER and not writes(model):
        raise PreflightError(
            f"{field}.path={folder}: {', '.join(model.architectures)} is an encoder, which writes nothing: give a "
            "causal language model. Encoders read the texts of expert=texts."
        )
    with opening(field, folder):
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
def check_hub(field: str, name: str, revision: str | None, *, kind: str) -> None:
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

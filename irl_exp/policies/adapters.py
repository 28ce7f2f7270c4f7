"""PEFT adapters on a model that stays as it is, and in memory once: adapted and base share every weight of the base."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

SETTINGS = "adapter_config.json"


class AdapterError(Exception):
    """An adapter that does not belong on this model, with the remedy."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / SETTINGS).is_file()


def settings_of(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says.

    Raises:
        AdapterError: it is no JSON object.
    """
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / SETTINGS} cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise AdapterError(f"{folder / SETTINGS} is no JSON object.")
    return found


def adapted(model: Any, folder: Path) -> Any:
    """A model of the same class with the adapter in it, whose base weights are those of `model`, not copies.

    So both can be asked at once, from any thread: no adapter is switched on or off.

    Raises:
        AdapterError: it is of another base, or of a kind that changes prompts rather than layers.
    """
    import peft

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    own = copy.deepcopy(model, shared)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            settings = peft.PeftConfig.from_pretrained(str(folder))
            if settings.is_prompt_learning:
                raise AdapterError(f"{folder}: {settings.peft_type} is no adapter of layers: merge it, or give a LoRA.")
            found = peft.PeftModel.from_pretrained(own, str(folder), torch_device=str(model.device))
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise AdapterError(_another_base(folder, reason)) from error
    if missing := [str(one.message) for one in told if "missing adapter keys" in str(one.message)]:
        raise AdapterError(_another_base(folder, missing[0][:200]))
    return found.base_model.model.eval()


def keep(model_folder: Path, folder: Path) -> None:
    """Copy an adapter's own files, settings and weights."""
    import shutil

    for path in sorted(model_folder.glob("adapter_*")):
        shutil.copyfile(path, folder / path.name)


def _another_base(folder: Path, reason: str) -> str:
    base = settings_of(folder).get("base_model_name_or_path")
    return f"{folder}: the adapter does not fit this model ({reason}). It was made for {base}: set model.path to that."


def changes_nothing(model: Any) -> bool:
    """Whether all adapters of an adapted model are as they were before any training: the second factor of LoRA is 0."""
    factors = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    others = any(".modules_to_save." in name or ".lora_magnitude" in name for name, _ in model.named_parameters())
    return bool(factors) and not others and not any(bool(weight.any()) for weight in factors)

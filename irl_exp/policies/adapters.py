"""PEFT adapters on a model that stays as it is, and in memory once: adapted and base share every weight of the base.

How the adapters of a chain lie on each other. sft's is merged into its base when the reference is opened, so the
reference is an ordinary model; those of rlhf and refinetune lie on the reference. Two adapters on one model would be
slower in every stage, and TRL takes a model that has one already for the start of training: its "ref" adapter is a copy
of what is to be trained, so that the KL would be to the model below sft. The price is one rounding of the merged
weights to their dtype (docs/models.md).
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from irl_exp.config import LoraConfig
from irl_exp.policies.bases import ADAPTER as SETTINGS

WEIGHTS = "adapter_model.safetensors"


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

    own = beside(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            settings = peft.PeftConfig.from_pretrained(str(folder))
            if settings.is_prompt_learning:
                raise AdapterError(f"{folder}: {settings.peft_type} is no adapter of layers: merge it, or give a LoRA.")
            found = peft.PeftModel.from_pretrained(own, str(folder), torch_device=str(model.device))
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise AdapterError(another_base(folder, reason)) from error
    if missing := [str(one.message) for one in told if "missing adapter keys" in str(one.message)]:
        raise AdapterError(another_base(folder, missing[0][:200]))
    return found.base_model.model.eval()


def beside(model: Any) -> Any:
    """A second model of the same weights, which are not copied: an adapter that it gets is not in the first one."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def settings(config: LoraConfig, model: Any) -> Any:
    """The config in peft's words, as the trainers of TRL take it."""
    import peft

    targets = [name.strip() for name in config.targets.split(",")]
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets[0] if len(targets) == 1 and targets[0] == "all-linear" else targets,
        fan_in_fan_out=any(isinstance(module, transformers.Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )


def add(model: Any, config: LoraConfig, *, seed: int) -> Any:
    """Put an adapter into a model, in place; returns what a trainer takes, peft's model around it.

    Raises:
        AdapterError: the model has no such layers.
    """
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, settings(config, model))
        except ValueError as error:
            raise AdapterError(f"adapter.targets={config.targets}: {str(error).splitlines()[0][:200]}") from None


def merge(model: Any, folder: Path) -> Any:
    """Add an adapter to the weights of a model, in place.

    The sum is made in fp32 and rounded once, on the CPU, so that it is the same on every device.
    """
    import peft

    return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def merged(model: Any) -> dict[str, torch.Tensor]:
    """The weights by their names without adapters, with what those that are on add to them; the model stays as it is.

    Raises:
        AdapterError: an adapter does more than to add to weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for config in model.peft_config.values():
        if config.peft_type != "LORA" or config.use_dora or config.modules_to_save:
            raise AdapterError("its adapter is no plain LoRA, which alone is a sum of weights")
    weights = {
        name.replace(".base_layer.", "."): weight.detach()
        for name, weight in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or layer.disable_adapters:
            continue
        below = weights[f"{name}.weight"]
        added = sum(layer.get_delta_weight(active).float() for active in layer.active_adapters)
        weights[f"{name}.weight"] = (below.float() + added).to(below.dtype)
    return weights


def save(model: Any, folder: Path, base: str) -> None:
    """Write the adapter that lies in a model, in the files and names of peft; the same bytes each time.

    Args:
        base: name of what it lies on.
    """
    (config,) = model.peft_config.values()
    said = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in said.items()}
    (folder / SETTINGS).write_text(json.dumps(plain, indent=1, sort_keys=True), encoding="utf-8")
    weights = {
        f"base_model.model.{name.replace('.default.', '.')}": weight.detach().cpu().contiguous()
        for name, weight in sorted(model.named_parameters())
        if ".lora_" in name
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def is_adapted(model: Any) -> bool:
    """Whether a model has an adapter in it."""
    return bool(getattr(model, "peft_config", None))


def off(model: Any) -> bool:
    """Whether the adapters of a model are switched off: it is its base for the moment."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))


def keep(model_folder: Path, folder: Path) -> None:
    """Copy an adapter's own files, settings and weights."""
    import shutil

    for path in sorted(model_folder.glob("adapter_*")):
        shutil.copyfile(path, folder / path.name)


def another_base(folder: Path, reason: str) -> str:
    """What is said of an adapter on a model that it was not made for."""
    base = settings_of(folder).get("base_model_name_or_path")
    return f"{folder}: the adapter does not fit this model ({reason}). It was made for {base}: set model.path to that."


def changes_nothing(model: Any) -> bool:
    """Whether all adapters of an adapted model are as they were before any training: the second factor of LoRA is 0."""
    factors = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    others = any(".modules_to_save." in name or ".lora_magnitude" in name for name, _ in model.named_parameters())
    return bool(factors) and not others and not any(bool(weight.any()) for weight in factors)

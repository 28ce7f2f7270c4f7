"""A checkpoint that somebody has tuned -> expert policy: checked against the reference, and kept as a policy.

A full checkpoint is kept whole, with the reference's tokenizer where that gives every text the same ids: then both are
asked in the same way. Of an adapter its own files are kept, and it is opened on the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from irl_exp.config import CheckpointExpert, ModelConfig
from irl_exp.machinery.runtime import Context, Device
from irl_exp.policies import adapters, bases
from irl_exp.policies.language_models import Policy, PolicyError, downloaded

VERSION = 1
ITSELF = "its weights are those of the reference, so there is nothing to find. For this null take expert=itself."


def run(config: CheckpointExpert, *, reference: Path, model: ModelConfig, context: Context) -> dict[str, Any]:
    base = Policy.load(reference, context.device)
    source = config.path or downloaded(str(config.hub), config.revision)
    if adapters.is_adapter(source):
        _check_base(source, config, model)
        policy = Policy.load(source, context.device, base=base)
        if adapters.changes_nothing(policy.model):
            raise PolicyError(f"{source}: {ITSELF}")
        adapters.keep(source, context.folder)
        settings = adapters.settings_of(source)
        return {"note": f"{settings.get('peft_type')} adapter of rank {settings.get('r')} on the reference"}
    policy = _opened(source, base, context.device)
    if same_weights(policy, base):
        raise PolicyError(f"{source}: {ITSELF}")
    policy.save(context.folder)
    alike = policy.tokenizer is base.tokenizer
    parameters = sum(weight.numel() for weight in policy.model.parameters())
    told = "" if alike else "; another tokenizer than the reference's: no log-probabilities of the expert"
    return {"note": f"{parameters / 1e6:.2f} M parameters{told}", "parameters": parameters, "same_tokens": alike}


def _opened(source: Path, base: Policy, device: Device) -> Policy:
    """The policy, asked as the reference is.

    Raises:
        PolicyError: it is an encoder, it ends completions with another token, or has no chat template where the
            reference is asked through one.
    """
    policy = Policy.load(source, device)
    if not policy.writes:
        raise PolicyError(f"{source}: this is an encoder, which writes nothing: give a language model.")
    had = policy.chats
    policy.ask_in(chat_template=base.chats)
    if policy.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        return policy
    if policy.eos != base.eos:
        remedy = " or set model.chat=true, if the base has a chat template too" if had and not base.chats else ""
        raise PolicyError(
            f"{source}: it ends a completion with {policy.tokenizer.eos_token!r}, the reference with "
            f"{base.tokenizer.eos_token!r}: one would go on where the other ends. Give the checkpoint that it was "
            f"tuned from{remedy}."
        )
    return Policy(policy.model, base.tokenizer, device)


def same_weights(one: Policy, other: Policy) -> bool:
    """Whether two models are the same function: every weight is."""
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _check_base(source: Path, config: CheckpointExpert, model: ModelConfig) -> None:
    """An adapter of a chain knows the weights that it was trained on.

    Of others: two names on the hub that differ are two models; a path may be another on every machine, and says
    nothing.
    """
    if below := bases.read(source):
        base = model.path or downloaded(str(model.hub), model.revision)
        if below.fingerprint != bases.fingerprint(base):
            raise PolicyError(adapters.another_base(source, f"{base} has other weights"))
        return
    made_for = adapters.settings_of(source).get("base_model_name_or_path")
    if model.path is None and made_for and str(made_for).lower() != str(model.hub).lower():
        raise PolicyError(
            f"{config.path or config.hub}: this adapter was made for {made_for}, not for {model.hub}: set "
            f"model.hub={made_for}."
        )

"""Base model -> reference policy: next-token training on the sft part, or the checkpoint as it is.

With adapters the artifact has no weights of a checkpoint: it names the checkpoint, and has the adapter on it.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irl_exp.config import LoraConfig, ModelConfig, SftConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies import adapters, bases
from irl_exp.policies.language_models import Completions, Policy, PolicyError, downloaded, new_policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.supervised import fine_tune

VERSION = 5
HELD_OUT = 256


def run(
    config: SftConfig, *, model: ModelConfig, data: Path, adapter: LoraConfig | None = None, context: Context
) -> dict[str, Any]:
    texts = pd.read_parquet(data / "texts.parquet")
    texts = texts[texts["part"] == "sft"].sample(frac=1, random_state=np.random.default_rng(config.seed))
    held_out = texts.iloc[: min(HELD_OUT, max(1, len(texts) // 10))]
    train = texts.iloc[len(held_out) :]
    if model.pretrained:
        kept = adapter.dtype if adapter else "float32"
        policy = Policy.load(_source(model, adapter), context.device, revision=model.revision, kept=kept)
        policy.ask_in(chat_template=policy.chats and model.tuned if model.chat == "auto" else model.chat)
    else:
        policy = new_policy(model, (train["prompt"] + train["completion"]).tolist(), context.device, seed=config.seed)
    parameters = sum(weight.numel() for weight in policy.model.parameters())
    if not model.tuned:
        _check(policy, train)
        completions = policy.complete(train["prompt"].tolist(), train["completion"].tolist())
        fine_tune(policy, completions, config, adapter=adapter if model.pretrained else None, context=context)
    if adapter is None:
        policy.save(context.folder)
    else:
        _save(policy, model, adapter, context.folder)
        del policy
        gc.collect()  # two at once would be one too many
        policy = Policy.load(context.folder, context.device)
    found: dict[str, Any] = {"parameters": parameters, "trained_on": 0 if model.tuned else len(train)}
    told = [f"{parameters / 1e6:.2f} M parameters", *(["asked through its chat template"] if policy.chats else [])]
    if policy.writes and len(held_out):
        loss = _loss(policy, policy.complete(held_out["prompt"].tolist(), held_out["completion"].tolist()))
        told.append(f"held-out loss {loss:.3f} nats/token")
        found["held_out_nll"] = loss
    return {"note": ", ".join(told), **found}


def _source(model: ModelConfig, adapter: LoraConfig | None) -> str | Path:
    """Where the base model is; below an adapter it has to be a folder, which is opened again in every stage."""
    if model.path is not None:
        return model.path.absolute()
    return downloaded(str(model.hub), model.revision) if adapter else str(model.hub)


def _save(policy: Policy, model: ModelConfig, adapter: LoraConfig, folder: Path) -> None:
    """A reference policy for adapters to lie on: the adapter of sft and the place of its base, or the weights of a new
    model.
    """
    if model.pretrained:
        source = Path(_source(model, adapter))
        policy.save_beside_weights(folder)
        base = bases.Base(bases.fingerprint(source), adapter.dtype, model.hub or model.name, str(source))
        if adapters.is_adapted(policy.model):
            adapters.save(policy.model, folder, base.name)
    else:
        policy.model.to(getattr(torch, adapter.dtype))
        policy.save(folder)
        base = bases.Base(bases.fingerprint(folder), adapter.dtype, model.name)
    base.write(folder)


def _check(policy: Policy, train: pd.DataFrame) -> None:
    if not policy.writes or train.empty:
        missing = "texts to train on" if policy.writes else "a language model: an encoder writes nothing"
        raise PolicyError(f"sft needs {missing}. Set model.tuned=true to take a language model as it is.")


def _loss(policy: Policy, completions: Completions) -> float:
    """Mean negative log-probability per completion token, in nats, of texts that were not trained on."""
    tokens = sum(map(len, completions.completion_ids))
    return -float(log_probabilities(policy, completions).sum()) / tokens

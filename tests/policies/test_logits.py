"""Logits in fp32 whatever the precision: of every architecture, in parts, in sampling, reading and training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import small
import torch
import transformers
from torch.overrides import TorchFunctionMode

from irl_exp.machinery.runtime import Device, in_fp32
from irl_exp.policies import likelihood, logits
from irl_exp.policies.language_models import Completions, Policy, PolicyError
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


def of_kind(name: str) -> Policy:
    """A policy with random weights, of an architecture whose head is a matrix, or more."""
    if name in small.MODELS:
        return small.policy(name)
    model, settings = MORE_THAN_A_MATRIX[name]
    tokenizer = small.policy("llama").tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Policy(model(settings(vocab_size=len(tokenizer), **SHAPE)).eval(), tokenizer, small.DEVICE)


@pytest.mark.parametrize("name", MORE_THAN_A_MATRIX)
def test_a_model_that_caps_or_scales_its_logits_is_read_in_fp32(name: str) -> None:
    policy = of_kind(name)
    completions = small.written(policy)
    found = log_probabilities(half(policy), completions)
    assert (found == log_probabilities(policy, completions)).all()
    np.testing.assert_allclose(found, small.slow_log_probabilities(policy, completions), atol=2e-4)


def in_parts(monkeypatch: pytest.MonkeyPatch, at_once: int = 1) -> None:
    """Logits of one state at a time, or of so many as fill this."""
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", {"cpu": at_once})


@pytest.mark.parametrize("name", [*small.MODELS, *MORE_THAN_A_MATRIX])
def test_in_parts_values_entropies_and_gradients_are_those_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = of_kind(name)
    completions = small.written(policy)
    weights = list(policy.model.parameters())

    def found() -> list[torch.Tensor]:
        values, entropies = likelihood.token_statistics(policy, completions, entropy=True)
        flat = torch.cat(values)
        outer = torch.linspace(-1, 1, len(flat))  # no two tokens weigh the same
        return [flat.detach(), torch.cat(entropies), *torch.autograd.grad((flat * outer).sum(), weights)]

    whole = found()
    in_parts(monkeypatch)
    for part, all_at_once in zip(found(), whole, strict=True):
        torch.testing.assert_close(part, all_at_once, rtol=1e-4, atol=2e-5 * float(all_at_once.abs().max()))


@every_model
def test_of_a_batch_only_a_part_has_logits_at_once_forward_and_backward(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none for positions that predict no token of a completion."""
    policy = small.policy(name)
    completions = small.written(policy)
    vocabulary = policy.model.config.vocab_size
    sizes: list[int] = []

    class Watched(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (vocabulary,) and result.ndim > 1:
                sizes.append(result.numel() // vocabulary)
            return result

    in_parts(monkeypatch, 3 * vocabulary)
    with Watched():
        values, _ = likelihood.token_statistics(policy, completions)
        torch.cat(values).sum().backward()
    policy.model.zero_grad()
    assert max(sizes) == 3
    assert len(sizes) >= sum(map(len, completions.completion_ids)) / 3


def test_logits_of_more_than_the_last_states_are_refused() -> None:
    policy = small.policy("neox")

    class Other(type(policy.model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, **options: Any) -> Any:
            found = super().forward(input_ids, **options)
            if input_ids is not None:
                found.logits = found.logits + input_ids[..., None]
            return found

    model = Other(policy.model.config).eval()
    with pytest.raises(PolicyError, match="Other makes its logits of more"):
        predictions(replace(policy, model=model), 1, input_ids=torch.tensor([[3, 4]]))


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

"""What a model takes in memory, read off its configuration: beside torch's own counts of a model that is there."""

from __future__ import annotations

from typing import Any

import pytest
import small
import torch
import transformers

from irl_exp.policies.footprint import FootprintError, footprint
from irl_exp.policies.likelihood import log_probabilities

KINDS = ("neox", "gpt2", "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_torch(kind: str) -> None:
    model = small.policy(kind).model
    found = footprint(model.config)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found.weights == 4 * found.parameters
    assert found.vocabulary * found.width == model.get_input_embeddings().weight.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_has_as_many_numbers_as_peft_puts_on(kind: str) -> None:
    import peft

    model = type(small.policy(kind).model)(small.policy(kind).model.config)
    settings = peft.LoraConfig(r=3, target_modules="all-linear", fan_in_fan_out=kind == "gpt2", task_type="CAUSAL_LM")
    own, _ = peft.get_peft_model(model, settings).get_nb_trainable_parameters()
    assert own == 3 * footprint(small.policy(kind).model.config).adapted


def saved_for_backward(model: Any, length: int) -> int:
    """Bytes that autograd keeps of one sequence, each storage once, weights aside."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("kind", ["neox", "llama"])
def test_a_token_keeps_what_autograd_keeps_of_it(kind: str) -> None:
    model = small.policy(kind).model
    kept = (saved_for_backward(model, 64) - saved_for_backward(model, 32)) / 32
    assert footprint(model.config).kept == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_is_that_of_a_forward_pass(kind: str) -> None:
    model = small.policy(kind).model
    cache = model(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(one.numel() * 4 for layer in cache.layers for one in (layer.keys, layer.values))
    assert footprint(model.config).cache == held / 5


def test_bf16_weights_take_half_and_keep_about_half() -> None:
    config = small.policy("llama").model.config
    full, half = footprint(config), footprint(config, precision="bf16", weights="bf16")
    assert half.weights == full.weights / 2
    assert 0.4 < half.kept / full.kept < 0.7
    assert half.cast == 0 < footprint(config, precision="bf16").cast


def test_more_layers_take_more() -> None:
    shapes = [
        transformers.GPTNeoXConfig(hidden_size=32, num_hidden_layers=n, num_attention_heads=2, intermediate_size=64)
        for n in (1, 2, 4)
    ]
    found = [footprint(shape) for shape in shapes]
    for name in ("parameters", "kept", "cache", "adapted"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(set(values)), name
    assert found[2].checkpointed < found[2].kept


def test_an_encoder_has_no_cache() -> None:
    config = transformers.RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config.architectures = ["RobertaModel"]
    found = footprint(config)
    assert (found.cache, found.layers) == (0, 2)
    assert found.kept > found.passing > 0


def test_what_cannot_be_run_without_numbers_is_told() -> None:
    with pytest.raises(FootprintError, match="model_type='t5' cannot be run without numbers"):
        footprint(transformers.T5Config(d_model=16, num_layers=1))


def test_a_living_model_is_as_before() -> None:
    policy = small.policy("neox")
    completions = small.written(policy)
    before = log_probabilities(policy, completions)
    footprint(policy.model.config)
    assert (log_probabilities(policy, completions) == before).all()

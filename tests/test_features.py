"""Features against a one-by-one oracle without padding: the right layers, and the right tokens of each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small
import torch
from numpy.typing import NDArray

from irl_exp.config import FeaturesConfig
from irl_exp.features import FeatureError, check, extract
from irl_exp.policies import Completions, Policy

every_model = pytest.mark.parametrize("name", small.MODELS)


def slow(config: FeaturesConfig, model: Policy, completions: Completions) -> NDArray[Any]:
    """Each completion alone: pool the states of its own tokens, layer by layer."""
    rows = []
    for prompt, layers in zip(completions.prompt_ids, small.one_by_one(model, completions)[1], strict=True):
        own = [layers[layer][len(prompt) :] for layer in config.layers]
        rows.append(np.concatenate([states[-1] if config.pooling == "last" else states.mean(0) for states in own]))
    return np.array(rows)


@every_model
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layers", [(-1,), (-1, -2), (0, 1, 2), (2, 0, -1), (-3,)])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_features_are_those_of_the_slow_oracle(
    name: str, pooling: Any, layers: tuple[int, ...], batch_size: int
) -> None:
    model = small.policy(name)
    completions = small.written(model)  # some ended by EOS, some cut before it
    config = FeaturesConfig(layers=layers, pooling=pooling, batch_size=batch_size)
    found = extract(config, model, completions)
    assert found.shape == (len(completions), 16 * len(layers))
    assert found.dtype == np.float32
    expected = slow(config, model, completions)
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))
    assert len(np.unique(found.round(3), axis=0)) == len(np.unique(expected.round(3), axis=0)) > 10


@every_model
def test_layer_minus_one_is_the_state_that_the_head_reads(name: str) -> None:
    model = small.policy(name)
    completions = small.written(model)
    found = extract(FeaturesConfig(layers=(-1,), pooling="last"), model, completions)
    with torch.no_grad():
        predicted = model.model.get_output_embeddings()(torch.from_numpy(found)).numpy()
    for row, logits in enumerate(small.one_by_one(model, completions)[0]):
        np.testing.assert_allclose(predicted[row], logits[-1], atol=1e-3)


def of_ids(prompt: list[int], completion: list[int]) -> Completions:
    return Completions(["x"], ["y"], [prompt], [completion])


def embeddings(prompt: list[int], completion: list[int], pooling: Any) -> NDArray[Any]:
    """Layer 0 looks at each token alone: what is pooled can be read off."""
    return extract(FeaturesConfig(layers=(0,), pooling=pooling), small.policy("neox"), of_ids(prompt, completion))[0]


def test_the_mean_is_over_the_completion_and_not_over_the_prompt() -> None:
    table = small.policy("neox").model.get_input_embeddings().weight.detach().numpy()
    for prompt in ([30], [40, 50, 60, 70]):
        np.testing.assert_allclose(embeddings(prompt, [80, 90], "mean"), table[[80, 90]].mean(0), atol=1e-6)


def test_the_prompt_enters_through_what_the_model_has_read() -> None:
    config = FeaturesConfig(layers=(-1,), pooling="mean")
    first, second = (extract(config, small.policy("neox"), of_ids(prompt, [80, 90])) for prompt in ([30], [31]))
    assert np.abs(first - second).max() > 1e-3


def test_eos_is_part_of_what_is_pooled_and_a_cut_completion_has_none() -> None:
    model = small.policy("neox")
    table = model.model.get_input_embeddings().weight.detach().numpy()
    ended, cut = [80, 90, model.eos], [80, 90]
    np.testing.assert_allclose(embeddings([30], ended, "last"), table[model.eos], atol=1e-6)
    np.testing.assert_allclose(embeddings([30], cut, "last"), table[90], atol=1e-6)
    np.testing.assert_allclose(embeddings([30], ended, "mean"), table[ended].mean(0), atol=1e-6)
    np.testing.assert_allclose(embeddings([30], [model.eos], "mean"), table[model.eos], atol=1e-6)


def test_the_mean_depends_on_every_token_of_the_completion() -> None:
    config = FeaturesConfig(layers=(-1,), pooling="mean")
    model = small.policy("neox")
    base = extract(config, model, of_ids([30], [80, 90, 100]))
    for position in range(3):
        changed = [80, 90, 100]
        changed[position] = 110
        assert np.abs(extract(config, model, of_ids([30], changed)) - base).max() > 1e-3


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there_is_refused_with_the_range(layer: int) -> None:
    with pytest.raises(FeatureError, match=rf"no layer {layer}; the policy has -3 to 2"):
        extract(FeaturesConfig(layers=(-1, layer)), small.policy("neox"), small.written(small.policy("neox")))


def test_layers_at_both_ends_of_the_range_are_accepted() -> None:
    check(FeaturesConfig(layers=(-3, 2)), small.policy("neox"))


def test_no_completions_are_refused() -> None:
    with pytest.raises(FeatureError, match="no completions"):
        extract(FeaturesConfig(), small.policy("neox"), Completions([], [], [], []))


def test_progress_is_told_up_to_the_end() -> None:
    model = small.policy("neox")
    told: list[int] = []
    config = FeaturesConfig(layers=(-1,), batch_size=4)
    extract(config, model, small.written(model)[:9], progress=lambda done, total: told.append(done))
    assert told == [4, 8, 9]

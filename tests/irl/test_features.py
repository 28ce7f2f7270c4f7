"""Features against a one-by-one oracle without padding: the right layers, and the right tokens of each sequence."""

from __future__ import annotations

import itertools
import json
import math
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import transformers
from numpy.typing import NDArray

from irl_exp import chain
from irl_exp.config import FeaturesConfig, HiddenStateConfig, RandomConfig
from irl_exp.irl.features import FeatureError, Featurizer, check_layers, pool, untrained
from irl_exp.launch import preflight
from irl_exp.machinery.runtime import Device
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.texts import sentiment

every_model = pytest.mark.parametrize("name", small.MODELS)

EVERY_PART: dict[str, Any] = {
    "hidden_state": {"layers": (-1, 0)},
    "last_token": {"layers": (-1,), "pooling": "last"},
    "random": {"layers": (-2,), "seed": 4},
    "ngram": {"min_count": 1, "max_features": 9},
    "sentiment": {},
    "length": {},
    "reference_log_probability": {},
}
COLUMNS = {
    "hidden_state": 32,
    "last_token": 16,
    "random": 16,
    "ngram": 9,
    "sentiment": 2,
    "length": 1,
    "reference_log_probability": 1,
}


def parts(**chosen: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate(chosen)


def fitted(config: FeaturesConfig, model: Policy, completions: Completions) -> NDArray[np.float32]:
    """Features of the completions to which they are fitted."""
    return Featurizer.fit(config, model, completions).extract(completions)


def extract(config: HiddenStateConfig, model: Policy, completions: Completions) -> NDArray[np.float32]:
    return fitted(FeaturesConfig(hidden_state=config), model, completions)


def with_texts(*texts: str) -> Completions:
    return Completions(["x"] * len(texts), list(texts), [[30]] * len(texts), [[80]] * len(texts))


# ------------------------------------------------------------------------------------------- hidden states


def slow(config: HiddenStateConfig, model: Policy, completions: Completions) -> NDArray[Any]:
    """Each completion alone: pool the states of its own tokens, layer by layer."""
    rows = []
    for prompt, layers in zip(completions.prompt_ids, small.one_by_one(model, completions)[1], strict=True):
        own = [layers[layer][len(prompt) :] for layer in config.layers]
        rows.append(np.concatenate([states[-1] if config.pooling == "last" else states.mean(0) for states in own]))
    return np.array(rows)


@every_model
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layers", [(-1,), (-1, -2), (0, 1, 2), (2, 0, -1), (-3,)])
@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_features_are_those_of_the_slow_oracle(
    name: str, pooling: Any, layers: tuple[int, ...], batch_tokens: int
) -> None:
    model = small.reading(small.policy(name), batch_tokens)
    completions = small.written(model)  # some ended by EOS, some cut before it
    config = HiddenStateConfig(layers=layers, pooling=pooling)
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
    found = extract(HiddenStateConfig(layers=(-1,), pooling="last"), model, completions)
    with torch.no_grad():
        predicted = model.model.get_output_embeddings()(torch.from_numpy(found)).numpy()
    for row, logits in enumerate(small.one_by_one(model, completions)[0]):
        np.testing.assert_allclose(predicted[row], logits[-1], atol=1e-3)


def of_ids(prompt: list[int], completion: list[int]) -> Completions:
    return Completions(["x"], ["y"], [prompt], [completion])


def embeddings(prompt: list[int], completion: list[int], pooling: Any) -> NDArray[Any]:
    """Layer 0 looks at each token alone: what is pooled can be read off."""
    return extract(HiddenStateConfig(layers=(0,), pooling=pooling), small.policy("neox"), of_ids(prompt, completion))[0]


def test_the_mean_is_over_the_completion_and_not_over_the_prompt() -> None:
    table = small.policy("neox").model.get_input_embeddings().weight.detach().numpy()
    for prompt in ([30], [40, 50, 60, 70]):
        np.testing.assert_allclose(embeddings(prompt, [80, 90], "mean"), table[[80, 90]].mean(0), atol=1e-6)


def test_the_prompt_enters_through_what_the_model_has_read() -> None:
    config = HiddenStateConfig(layers=(-1,), pooling="mean")
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
    config = HiddenStateConfig(layers=(-1,), pooling="mean")
    model = small.policy("neox")
    base = extract(config, model, of_ids([30], [80, 90, 100]))
    for position in range(3):
        changed = [80, 90, 100]
        changed[position] = 110
        assert np.abs(extract(config, model, of_ids([30], changed)) - base).max() > 1e-3


@every_model
def test_parts_that_share_a_pass_are_what_they_are_alone(name: str) -> None:
    model = small.policy(name)
    completions = small.written(model)
    states = {part: EVERY_PART[part] for part in ("hidden_state", "last_token")}
    alone = [fitted(parts(**{part: config}), model, completions) for part, config in states.items()]
    np.testing.assert_array_equal(fitted(parts(**states), model, completions), np.concatenate(alone, axis=1))


@contextmanager
def counted(model: Policy) -> Iterator[list[int]]:
    """Rows of each batch that the model reads within."""
    rows: list[int] = []
    hook = model.model.base_model.register_forward_hook(lambda module, given, output: rows.append(len(output[0])))
    try:
        yield rows
    finally:
        hook.remove()


def capped() -> Policy:
    """Of an architecture whose logits are more than a linear map of its states."""
    tokenizer = small.policy("llama").tokenizer
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = transformers.Gemma2Config(
        vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8, pad_token_id=0, **shape
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Policy(transformers.Gemma2ForCausalLM(settings).eval(), tokenizer, small.DEVICE)


@pytest.mark.parametrize("name", [*small.MODELS, "capped"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chosen", [{"hidden_state": {"layers": (-1, 0)}, "length": {}}, {"last_token": {}}])
def test_what_was_read_for_log_probabilities_is_not_read_again_for_features(
    name: str, precision: Any, chosen: dict[str, Any]
) -> None:
    """The same bytes as of a pass of their own, on one thread or two."""
    policy = capped() if name == "capped" else small.policy(name)
    model = replace(policy, device=Device("cpu", precision, 2, batch_tokens=40))
    written = small.written(model)
    featurizer = Featurizer.fit(parts(**chosen), model, written)
    values, features = log_probabilities(model, written), featurizer.extract(written)
    with featurizer.hearing(), counted(model) as rows:
        np.testing.assert_array_equal(log_probabilities(model, written), values)
        assert sum(rows) == len(written)
        np.testing.assert_array_equal(featurizer.extract(written), features)
    # In bf16 a model with a cap on its logits is read in fp32 for them: its features are another pass.
    assert sum(rows) == len(written) * (2 if (name, precision) == ("capped", "bf16") else 1)
    with counted(model) as rows:
        np.testing.assert_array_equal(log_probabilities(model, written), values)
        np.testing.assert_array_equal(featurizer.extract(written), features)
    assert sum(rows) == 2 * len(written), "heard no longer"


def test_what_was_heard_serves_once_and_for_the_same_completions_alone() -> None:
    model = small.policy("neox")
    written = small.written(model)
    some, others = written[: len(written) // 2], written[len(written) // 2 :]
    featurizer = Featurizer.fit(parts(hidden_state={}), model, written)
    alone = [featurizer.extract(one) for one in (some, others)]
    log_probabilities(model, some)  # what is found out of a model once, has been
    with featurizer.hearing(), counted(model) as rows:
        log_probabilities(model, some)
        np.testing.assert_array_equal(featurizer.extract(others), alone[1])
        assert sum(rows) == len(written)
        np.testing.assert_array_equal(featurizer.extract(some), alone[0])
        assert sum(rows) == len(written) + len(some), "what was not asked for next is forgotten"
        log_probabilities(model, others)
        for _ in range(2):
            np.testing.assert_array_equal(featurizer.extract(others), alone[1])
        assert sum(rows) == len(written) + len(some) + 2 * len(others)


def test_pooled_states_can_be_trained_through() -> None:
    """A backbone that is trained takes its states from `pool`."""
    model = small.policy("neox")
    completions = small.written(model)[:5]
    pooled = pool(HiddenStateConfig(layers=(-1,)), model, model.model.base_model, completions)
    assert pooled.requires_grad
    np.testing.assert_allclose(
        pooled.detach().numpy(), extract(HiddenStateConfig(layers=(-1,)), model, completions), atol=1e-5
    )


@pytest.mark.parametrize("layer", [3, -4])
@pytest.mark.parametrize("name", ["hidden_state", "last_token", "random"])
def test_a_layer_that_is_not_there_is_refused_with_the_range(name: str, layer: int) -> None:
    model = small.policy("neox")
    told = rf"^irl\.features\.{name}\.layers=\[-1, {layer}\]: there is no layer {layer}; the policy has -3 to 2\.$"
    with pytest.raises(FeatureError, match=told):
        Featurizer.fit(parts(**{name: {"layers": (-1, layer)}}), model, small.written(model))


def test_layers_at_both_ends_of_the_range_are_accepted() -> None:
    check_layers(parts(hidden_state={"layers": (-3, 2)}, random={"layers": (2, -3)}), 2)
    check_layers(parts(length={}), 0)


@pytest.mark.parametrize("part", ["hidden_state", "last_token", "random"])
def test_a_layer_of_a_new_or_local_model_is_refused_before_any_work(part: str, small_policy: Path) -> None:
    """A new model has the layers of the config, a local one those of its config.json."""
    chosen = (f"irl/features={part}", f"irl.features.{part}.layers=[-4]")
    for model, told in (("model.layers=2", "-3 to 2"), (f"model.path={small_policy}", "-3 to 2")):
        with pytest.raises(FeatureError, match=rf"irl\.features\.{part}\.layers=\[-4\]: .* {told}\.$"):
            checked("features", model, *chosen)
    checked("features", "model.layers=3", *chosen)
    checked("features", "model.layers=3", "irl/features=length")
    checked("features", "model.hub=some/model", *chosen)  # known only when sft has opened it
    if part != "random":
        with pytest.raises(FeatureError, match="there is no layer -4"):
            checked("irl", "model.layers=2", "irl/backbone=full", *chosen)


def checked(stage: str, *overrides: str) -> None:
    preflight.check(chain.build(small.compose(*overrides), small.DEVICE)[stage])


def test_no_completions_are_refused() -> None:
    with pytest.raises(FeatureError, match="no completions"):
        Featurizer(parts(length={}), small.policy("neox")).extract(Completions([], [], [], []))


def test_a_feature_that_is_no_number_is_refused_with_its_name_and_row(tmp_path: Path) -> None:
    """A completion without a token has no mean."""
    model = small.policy("neox")
    none = Completions(["x", "x"], ["a", ""], [[30], [30]], [[80], []])
    with pytest.raises(FeatureError, match=r"irl\.features\.hidden_state of completion 1 is not a finite number"):
        extract(HiddenStateConfig(), model, none)


def test_progress_is_told_up_to_the_end() -> None:
    model = small.reading(small.policy("neox"), 4)
    told: list[tuple[int, int]] = []
    config = parts(hidden_state={}, random={}, length={})
    completions = Completions(["x"] * 5, ["y"] * 5, [[30]] * 5, [[80]] * 5)
    Featurizer.fit(config, model, completions).extract(
        completions, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(done, 10) for done in (2, 4, 5, 7, 9, 10)]


@every_model
def test_random_features_are_those_of_the_architecture_with_new_weights(name: str) -> None:
    model = small.policy(name)
    completions = small.written(model)
    config = RandomConfig(layers=(-1, 0), seed=3)
    other = untrained(model, seed=3)
    found = fitted(FeaturesConfig(random=config), model, completions)
    np.testing.assert_allclose(found, slow(config, other, completions), atol=1e-5)
    shapes = {key: value.shape for key, value in model.model.state_dict().items()}
    assert {key: value.shape for key, value in other.model.state_dict().items()} == shapes
    assert np.abs(found - extract(config, model, completions)).max() > 0.1


def test_random_weights_follow_their_seed_and_leave_the_generator_and_the_policy_alone() -> None:
    model = small.policy("neox")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    state = torch.random.get_rng_state()
    first, again, other = (untrained(model, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.model.state_dict().items())


def test_bf16_features_are_near_those_in_full_precision() -> None:
    model = small.policy("neox")
    half = Policy(model.model, model.tokenizer, Device("cpu", "bf16", 1))
    completions = small.written(model)
    chosen = {name: EVERY_PART[name] for name in ("hidden_state", "last_token", "random", "reference_log_probability")}
    full, found = (fitted(parts(**chosen), policy, completions) for policy in (model, half))
    assert found.dtype == np.float32
    assert np.abs(found - full).max() > 0
    scale = np.abs(full).max(axis=0)
    assert np.median(np.abs(found - full) / scale) < 0.02


# ------------------------------------------------------------------------------------- texts and single columns


def test_ngrams_are_those_of_the_slow_oracle() -> None:
    """(1 + log count) (1 + log((1 + n) / (1 + texts with it))), rows of length 1, columns in alphabetical order."""
    texts = ["You fool! you FOOL!", "what a fool", "you are kind", "kind of a day"]
    found = fitted(parts(ngram={"longest": 2, "min_count": 2}), small.policy("neox"), with_texts(*texts))
    words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
    grams = [Counter(own + [" ".join(pair) for pair in itertools.pairwise(own)]) for own in words]
    often = Counter(gram for own in grams for gram in own)
    vocabulary = sorted(gram for gram, count in often.items() if count >= 2)
    assert vocabulary == ["a", "fool", "kind", "you"]
    weight = {gram: 1 + math.log((1 + len(texts)) / (1 + often[gram])) for gram in vocabulary}
    rows = np.array(
        [[(1 + math.log(own[gram])) * weight[gram] if own[gram] else 0 for gram in vocabulary] for own in grams]
    )
    np.testing.assert_allclose(found, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    assert found.dtype == np.float32


def test_the_most_frequent_ngrams_are_kept() -> None:
    texts = with_texts("b b b a", "b c", "a b")
    found = Featurizer.fit(parts(ngram={"longest": 1, "min_count": 1, "max_features": 2}), small.policy("neox"), texts)
    assert found.ngrams is not None
    assert set(found.ngrams.vectorizer.vocabulary_) == {"a", "b"}


def test_characters_are_ngrams_of_all_lengths() -> None:
    found = Featurizer.fit(
        parts(ngram={"analyzer": "char", "longest": 3, "min_count": 1}), small.policy("neox"), with_texts("Abc")
    )
    assert found.ngrams is not None
    assert set(found.ngrams.vectorizer.vocabulary_) == {"a", "b", "c", "ab", "bc", "abc"}


def test_the_vocabulary_is_that_of_fit_and_an_unknown_text_is_zero() -> None:
    featurizer = Featurizer.fit(parts(ngram={"min_count": 1}), small.policy("neox"), with_texts("good day", "day"))
    found = featurizer.extract(with_texts("other words", "", "day"))
    assert (found[:2] == 0).all()
    assert np.linalg.norm(found[2]) == pytest.approx(1)


@pytest.mark.parametrize("texts", [("", ""), ("a", "b"), ("a",)])
def test_texts_without_a_frequent_ngram_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(FeatureError, match=r"^irl\.features\.ngram\.min_count=2: no n-gram is in that many of the \d"):
        Featurizer.fit(parts(ngram={}), small.policy("neox"), with_texts(*texts))


def test_sentiment_is_signed_and_bounded() -> None:
    texts = ["What a wonderful day!", "That is horrible.", "not good", "the bus", ""]
    found = sentiment.sentiments(texts)
    assert np.sign(found[:, 0]).tolist() == [1, -1, -1, 0, 0]
    assert found.shape == (5, 2)
    assert (np.abs(found[:, 0]) <= 1).all()
    assert ((found[:, 1] >= 0) & (found[:, 1] <= 1)).all()
    assert found[0, 1] > 0.5 > found[3, 1] == 0
    np.testing.assert_array_equal(sentiment.polarity(texts), found[:, 0])
    assert sentiment.sentiments([]).shape == (0, 2)
    columns = fitted(parts(sentiment={}), small.policy("neox"), with_texts(*texts))
    np.testing.assert_array_equal(columns, found.astype(np.float32))


def test_sentiment_needs_no_download_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a socket, and in a home without data of nltk."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was used")

    import nltk

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(nltk.data, "path", [])
    assert sentiment.polarity(["an absolutely delightful neighbour"])[0] > 0


@every_model
def test_length_counts_the_tokens_without_eos(name: str) -> None:
    model = small.policy(name)
    ended, cut = [80, 90, model.eos], [80, 90]
    ids = [ended, cut, [model.eos]]
    found = fitted(parts(length={}), model, Completions(["x"] * 3, ["y"] * 3, [[30]] * 3, ids))
    assert found.tolist() == [[2], [2], [0]]


@every_model
def test_the_log_probability_is_that_of_the_whole_completion(name: str) -> None:
    model = small.policy(name)
    completions = small.written(model)
    found = fitted(parts(reference_log_probability={}), model, completions)
    np.testing.assert_allclose(found[:, 0], small.slow_log_probabilities(model, completions), rtol=1e-5)


# ---------------------------------------------------------------------------------------------- several parts


def test_parts_stand_side_by_side_in_the_order_of_the_schema() -> None:
    model = small.policy("neox")
    completions = small.written(model)
    alone = {name: fitted(parts(**{name: config}), model, completions) for name, config in EVERY_PART.items()}
    assert {name: found.shape[1] for name, found in alone.items()} == COLUMNS
    assert list(parts(**EVERY_PART).parts) == list(EVERY_PART)
    backwards = parts(**dict(reversed(EVERY_PART.items())))
    np.testing.assert_allclose(
        fitted(backwards, model, completions), np.concatenate([*alone.values()], axis=1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", [*EVERY_PART, "all"])
def test_a_loaded_featurizer_makes_the_same_features_of_other_completions(name: str, tmp_path: Path) -> None:
    model = small.policy("neox")
    config = parts(**(EVERY_PART if name == "all" else {name: EVERY_PART[name]}))
    featurizer = Featurizer.fit(config, model, small.written(model))
    featurizer.save(tmp_path / "featurizer")
    loaded = Featurizer.load(tmp_path / "featurizer", small.copy_of(model, tmp_path / "policy"))
    assert loaded.config == config
    others = small.written(model, seed=5, count=20)
    np.testing.assert_array_equal(loaded.extract(others), featurizer.extract(others))


def test_what_is_saved_is_text_and_tensors(tmp_path: Path) -> None:
    model = small.policy("neox")
    Featurizer.fit(parts(**EVERY_PART), model, small.written(model)).save(tmp_path / "featurizer")
    names = {path.name for path in (tmp_path / "featurizer").iterdir()}
    assert names == {"config.json", "ngram.json", "ngram.safetensors"}
    assert len(json.loads((tmp_path / "featurizer" / "ngram.json").read_text())) == 9

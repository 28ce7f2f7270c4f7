"""Rewards: the right sign and label, the whole text, and nothing loaded that does not reproduce its own scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from irl_exp import data
from irl_exp.comments import write_comments
from irl_exp.config import ClassifierConfig, CommentsConfig, FeaturesConfig, ModelConfig, SequenceClassifierConfig
from irl_exp.policies import Completions, Policy, new_policy
from irl_exp.rewards import (
    ClassifierReward,
    LearnedReward,
    RewardError,
    SequenceClassifierReward,
    label_index,
    load_ground_truth,
    save_ground_truth,
)
from irl_exp.stages import reward as reward_stage

patient = settings(deadline=None)  # a busy machine is no failure
CONFIG = ClassifierConfig(seed=0)


def texts_only(texts: list[str], prompts: list[str] | None = None) -> Completions:
    empty: list[list[int]] = [[] for _ in texts]
    return Completions(prompts or [""] * len(texts), texts, empty, empty)


def suffixes(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


# ---------------------------------------------------------------- R* fitted on labelled texts


@cache
def corpus() -> tuple[tuple[str, ...], tuple[bool, ...]]:
    comments = write_comments(900, seed=0)
    return tuple(comment.completion for comment in comments), tuple(comment.toxic for comment in comments)


@cache
def classifier(reads: Any = "completion") -> ClassifierReward:
    texts, toxic = corpus()
    return ClassifierReward.fit(texts, np.array(toxic), CONFIG.model_copy(update={"reads": reads}))


def test_higher_is_less_toxic() -> None:
    texts, toxic = corpus()
    scores = classifier().score_texts(texts)
    labels = np.array(toxic)
    assert scores[~labels].mean() > 1 > -1 > scores[labels].mean()


def test_scores_are_the_log_odds_of_the_sklearn_pipeline() -> None:
    texts, toxic = corpus()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    model = LogisticRegression(C=1.0, max_iter=1000, random_state=0).fit(vectorizer.fit_transform(texts), toxic)
    expected = -model.decision_function(vectorizer.transform(texts))  # the odds of toxic, turned
    np.testing.assert_allclose(classifier().score_texts(texts), expected, atol=1e-8)


def test_a_saved_classifier_gives_the_same_scores_bit_for_bit_and_holds_no_pickle(tmp_path: Path) -> None:
    odd = ["", "!!! ?", "word word word word idiot Idiot IDIOT", "naïve 🙂\nline", "unseen xylophones"]
    probes = texts_only([*corpus()[0][:40], *odd])
    save_ground_truth(classifier(), tmp_path, probes)
    assert (load_ground_truth(tmp_path, small.DEVICE).score(probes) == classifier().score(probes)).all()
    assert suffixes(tmp_path) == {".json", ".safetensors", ".parquet"}


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_is_refused(label: bool) -> None:
    with pytest.raises(RewardError, match="both labels"):
        ClassifierReward.fit(["a b", "a c"], np.array([label, label]), CONFIG)


def test_a_tampered_classifier_is_refused(tmp_path: Path) -> None:
    save_ground_truth(classifier(), tmp_path, texts_only(list(corpus()[0][:20])))
    weights = load_file(tmp_path / "classifier.safetensors")
    save_file({**weights, "intercept": weights["intercept"] + 0.5}, tmp_path / "classifier.safetensors")
    with pytest.raises(RewardError, match="does not reproduce its own scores"):
        load_ground_truth(tmp_path, small.DEVICE)


def test_the_classifier_reads_the_whole_completion() -> None:
    start, end = classifier().score_texts(["You idiot, the bus is late today.", "The bus is late today, you idiot."])
    neither = classifier().score_texts(["The bus is late today."])[0]
    assert max(start, end) < neither - 0.5


def test_reads_text_judges_the_prompt_too_and_joins_it_exactly() -> None:
    texts, prompts = [" is late.", "fool."], ["The bus", "You stupid "]
    alone, whole = classifier(), classifier("text")
    assert (alone.score(texts_only(texts, prompts)) == alone.score_texts(texts)).all()
    joined = ["The bus is late.", "You stupid fool."]
    assert (whole.score(texts_only(texts, prompts)) == whole.score_texts(joined)).all()


def stage_files(folder: Path, texts: pd.DataFrame, config: Any = CONFIG) -> tuple[bytes, dict[str, Any]]:
    """The fitted weights of the stage, as bytes, and its manifest."""
    (folder / "data").mkdir(parents=True)
    texts.to_parquet(folder / "data" / "texts.parquet")
    context = small.context(folder / "reward")
    info = reward_stage.run(config, data=folder / "data", context=context)
    return (context.folder / "classifier.safetensors").read_bytes(), info


@cache
def split() -> pd.DataFrame:
    config = CommentsConfig(seed=0, count=1200, fit_prompts=60, select_prompts=10, test_prompts=20)
    return data.split(data.read(config), config)


def test_the_ground_truth_is_fitted_on_the_reward_part_alone(tmp_path: Path) -> None:
    texts = split().copy()
    first, info = stage_files(tmp_path / "first", texts)
    assert 0 < info["fitted_on"] < (texts["part"] == "reward").sum()
    outside = texts["part"] != "reward"
    texts.loc[outside, "completion"] = " something else"
    texts.loc[outside, "toxic"] = ~texts.loc[outside, "toxic"]
    assert stage_files(tmp_path / "outside", texts)[0] == first
    texts.loc[~outside, "toxic"] = ~texts.loc[~outside, "toxic"]
    assert stage_files(tmp_path / "inside", texts)[0] != first


def test_the_held_out_accuracy_is_on_prompts_that_were_not_fitted(tmp_path: Path) -> None:
    texts = split().copy()
    reward = texts["part"] == "reward"
    texts.loc[reward, "toxic"] = np.random.default_rng(0).random(reward.sum()) < 0.5
    held_out = stage_files(tmp_path, texts)[1]["held_out"]
    assert held_out["accuracy"] == pytest.approx(0.5, abs=0.2), "labels at random cannot be known"
    assert held_out["majority_accuracy"] >= 0.5


def test_texts_without_a_label_are_not_fitted(tmp_path: Path) -> None:
    texts = split().copy()
    rows = texts.index[texts["part"] == "reward"]
    texts.loc[rows[::2], "toxic"] = pd.NA
    labelled = texts[texts["toxic"].notna()]
    fitted, info = stage_files(tmp_path / "missing", texts)
    assert fitted == stage_files(tmp_path / "gone", labelled)[0]
    assert info["fitted_on"] + info["held_out"]["n"] == (labelled["part"] == "reward").sum()


# ---------------------------------------------------------------- R* of transformers


TEXTS = [" is late again.", "", " you fool!", " was closed,  and nobody\ntold us. " * 3]


def test_the_reward_is_the_logit_of_civil_minus_that_of_toxic(tmp_path: Path) -> None:
    reward = small.opened(small.sequence_classifier(tmp_path))
    for text, score in zip(TEXTS, reward.score(texts_only(TEXTS)), strict=True):
        with torch.no_grad():
            civil, toxic = reward.model(**reward.tokenizer(text, return_tensors="pt")).logits[0].tolist()
        assert score == pytest.approx(civil - toxic, abs=1e-4)
    assert np.ptp(reward.score(texts_only(TEXTS))) > 0.1


def test_labels_in_the_other_order_turn_the_score(tmp_path: Path) -> None:
    first = small.opened(small.sequence_classifier(tmp_path / "first", ("neutral", "toxic")))
    second = small.opened(small.sequence_classifier(tmp_path / "second", ("toxic", "neutral")))
    assert (first.civil, first.toxic) == (second.toxic, second.civil) == (0, 1)
    np.testing.assert_array_equal(first.score(texts_only(TEXTS)), -second.score(texts_only(TEXTS)))


def test_a_label_is_found_by_its_exact_name(tmp_path: Path) -> None:
    config = small.sequence_classifier(tmp_path, ("nothate", "hate", "Hate"))
    opened = small.opened(config.model_copy(update={"civil": "nothate", "toxic": "hate"}))
    assert (opened.civil, opened.toxic) == (0, 1)
    assert label_index(opened.model.config, "Hate") == 2


@pytest.mark.parametrize("labels", [("nothate", "civil"), ("LABEL_0", "LABEL_1"), ("hate", "hate")])
def test_a_label_that_is_not_there_or_twice_is_refused_with_those_that_are(
    tmp_path: Path, labels: tuple[str, str]
) -> None:
    config = small.sequence_classifier(tmp_path, labels).model_copy(update={"civil": labels[0], "toxic": "hate"})
    with pytest.raises(RewardError, match=f"has no label 'hate'; it has '{labels[0]}', '{labels[1]}'"):
        small.opened(config)


def test_a_classifier_without_a_head_is_refused(tmp_path: Path) -> None:
    config = small.sequence_classifier(tmp_path, head=False)
    with pytest.raises(RewardError, match=r"weights are missing and would be random: classifier\."):
        small.opened(config)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no sequence classifier could be opened"):
        SequenceClassifierReward.open(str(tmp_path), SequenceClassifierConfig(seed=0), small.DEVICE)


def test_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    config = small.sequence_classifier(tmp_path)
    one, many = (small.opened(config.model_copy(update={"batch_size": size})) for size in (1, 64))
    np.testing.assert_allclose(one.score(texts_only(TEXTS)), many.score(texts_only(TEXTS)), atol=1e-4)


def test_the_sequence_classifier_reads_prompt_and_completion_as_they_were_joined(tmp_path: Path) -> None:
    config = small.sequence_classifier(tmp_path)
    alone, whole = (small.opened(config.model_copy(update={"reads": reads})) for reads in ("completion", "text"))
    prompts = ["The bus", "I say: ", "You", "The old bridge"]
    joined = [prompt + text for prompt, text in zip(prompts, TEXTS, strict=True)]
    np.testing.assert_array_equal(whole.score(texts_only(TEXTS, prompts)), alone.score(texts_only(joined)))
    assert (alone.score(texts_only(TEXTS, prompts)) == alone.score(texts_only(TEXTS))).all()


def test_long_texts_are_cut_at_max_tokens(tmp_path: Path) -> None:
    config = small.sequence_classifier(tmp_path)
    short = small.opened(config.model_copy(update={"max_tokens": 5}))
    first, second = short.score(texts_only(["abcdefghij", "abcdezzzzz"]))
    assert first == second
    assert len(set(small.opened(config).score(texts_only(["abcdefghij", "abcdezzzzz"])))) == 2


def test_a_saved_sequence_classifier_lives_without_its_source(tmp_path: Path) -> None:
    reward = small.opened(small.sequence_classifier(tmp_path / "source"))
    probes = texts_only(TEXTS)
    (tmp_path / "saved").mkdir()
    save_ground_truth(reward, tmp_path / "saved", probes)
    (tmp_path / "source").rename(tmp_path / "gone")
    loaded = load_ground_truth(tmp_path / "saved", small.DEVICE)
    np.testing.assert_array_equal(loaded.score(probes), reward.score(probes))
    assert suffixes(tmp_path / "saved") == {".json", ".safetensors", ".parquet"}


def test_a_tampered_sequence_classifier_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    reward = small.opened(small.sequence_classifier(tmp_path / "source"))
    save_ground_truth(reward, tmp_path / "saved", texts_only(TEXTS))
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    weights["classifier.out_proj.weight"] = weights["classifier.out_proj.weight"][::-1].copy()
    save_file(weights, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match="does not reproduce its own scores"):
        load_ground_truth(tmp_path / "saved", small.DEVICE)


# ---------------------------------------------------------------- learned rewards


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folders of a store, with a reference policy."""
    small.policy("neox").save(tmp_path / "sft" / "r1")
    return tmp_path


def learned(store: Path, *, size: float = 1.0, features: FeaturesConfig | None = None) -> LearnedReward:
    features = features or FeaturesConfig(layers=(-1, -2), pooling="mean")
    generator = np.random.default_rng(0)
    dimension = 16 * len(features.layers)
    weights, center = size * generator.normal(size=dimension), generator.normal(size=dimension)
    return LearnedReward(weights, center, 0.5 * size, 2.0 * size, features, Policy.load(store / "sft/r1", small.DEVICE))


def saved(store: Path, reward: LearnedReward, name: str = "irl/d1") -> Path:
    folder = store / name
    folder.mkdir(parents=True)
    reward.save(folder, backbone="r1", probes=small.written(reward.backbone, seed=3))
    return folder


def test_a_saved_learned_reward_gives_the_same_scores_bit_for_bit(store: Path) -> None:
    reward = learned(store)
    loaded = LearnedReward.load(saved(store, reward), small.DEVICE)
    completions = small.written(reward.backbone, seed=4)
    assert (loaded.score(completions) == reward.score(completions)).all()
    assert (loaded.offset, loaded.scale, loaded.features) == (reward.offset, reward.scale, reward.features)
    assert suffixes(store / "irl/d1") == {".json", ".safetensors", ".parquet"}


def test_the_score_is_linear_in_the_features_of_the_whole_completion(store: Path) -> None:
    reward = learned(store, features=FeaturesConfig(layers=(-1,), pooling="mean"))
    completions = small.written(reward.backbone)
    states = small.one_by_one(reward.backbone, completions)[1]
    rows = [layers[-1][len(prompt) :].mean(0) for layers, prompt in zip(states, completions.prompt_ids, strict=True)]
    np.testing.assert_allclose(reward.score(completions), (np.array(rows) - reward.center) @ reward.weights, atol=1e-3)


def test_a_tampered_head_is_refused(store: Path) -> None:
    folder = saved(store, learned(store))
    arrays = load_file(folder / "head.safetensors")
    arrays["weights"][0] *= -1
    save_file(arrays, folder / "head.safetensors")
    with pytest.raises(RewardError, match="does not reproduce its own scores"):
        LearnedReward.load(folder, small.DEVICE)


def test_a_tampered_head_is_refused_also_where_scores_are_small(store: Path) -> None:
    folder = saved(store, learned(store, size=1e-5))
    arrays = load_file(folder / "head.safetensors")
    save_file({**arrays, "weights": -arrays["weights"]}, folder / "head.safetensors")
    with pytest.raises(RewardError, match="does not reproduce its own scores"):
        LearnedReward.load(folder, small.DEVICE)


def other_backbone(store: Path) -> Path:
    """A policy of the same shape with other weights."""
    model = small.policy("neox").model.config
    config = ModelConfig(hidden_size=model.hidden_size, layers=2, heads=2, vocabulary=300)
    new_policy(config, [*small.PROMPTS, *small.TEXTS], small.DEVICE, seed=9).save(store / "other")
    return store / "other"


def test_another_backbone_is_refused(store: Path) -> None:
    folder = saved(store, learned(store))
    with pytest.raises(RewardError, match="does not reproduce its own scores"):
        LearnedReward.load(folder, small.DEVICE, reference=other_backbone(store))


def test_a_missing_backbone_is_refused_and_a_moved_one_can_be_named(store: Path) -> None:
    folder = saved(store, learned(store))
    (store / "sft").rename(store / "moved")
    with pytest.raises(RewardError, match=r"its backbone is missing: .*sft/r1"):
        LearnedReward.load(folder, small.DEVICE)
    moved = LearnedReward.load(folder, small.DEVICE, reference=store / "moved" / "r1")
    assert np.isfinite(moved.score(small.written(moved.backbone))).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(store: Path, scale: float) -> None:
    reward = learned(store)
    with pytest.raises(RewardError, match="must be positive"):
        LearnedReward(reward.weights, reward.center, 0.0, scale, reward.features, reward.backbone)


@patient
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20), st.floats(-10, 10), st.floats(0.01, 10))
def test_standardised_is_one_increasing_affine_map(scores: list[float], offset: float, scale: float) -> None:
    reward = LearnedReward(np.ones(1), np.ones(1), offset, scale, FeaturesConfig(), small.policy("neox"))
    values = np.sort(scores)
    found = reward.standardised(values)
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(np.diff(found), np.diff(values) / scale, atol=1e-6)
    assert (found == np.concatenate([reward.standardised(values[:1]), reward.standardised(values[1:])])).all(), (
        "the map does not depend on what else is in the batch"
    )


def test_any_text_can_be_scored(store: Path) -> None:
    reward = learned(store)
    scores = reward.score(reward.backbone.complete(["Tell me", "Tell me"], [" a story, please.", ""]))
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]


def score_of(reward: LearnedReward) -> Callable[[str, str], float]:
    return lambda prompt, text: float(reward.score(reward.backbone.complete([prompt], [text]))[0])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_learned_reward_depends_on_more_than_the_last_character(store: Path, pooling: Any) -> None:
    score = score_of(learned(store, features=FeaturesConfig(layers=(-1,), pooling=pooling)))
    base = score("The bus", " is late now.")
    assert base != pytest.approx(score("The bus", " is gone now."), abs=1e-4), "the middle"
    assert base != pytest.approx(score("The bus", " was late now."), abs=1e-4), "the start"
    assert base != pytest.approx(score("The bus", " is late now!"), abs=1e-4), "the end"
    assert base != pytest.approx(score("A car", " is late now."), abs=1e-4), "the prompt"


def test_a_cut_completion_scores_unlike_an_ended_one(store: Path) -> None:
    reward = learned(store)
    ended = reward.backbone.complete(["The bus"], [" is late"])
    cut = replace(ended, completion_ids=[ended.completion_ids[0][:-1]])
    assert abs(reward.score(ended) - reward.score(cut)) > 1e-3


def test_the_settings_on_disk_are_plain_json(store: Path) -> None:
    settings_on_disk = json.loads((saved(store, learned(store)) / "reward.json").read_text(encoding="utf-8"))
    assert settings_on_disk["backbone"] == "r1"
    assert settings_on_disk["features"]["layers"] == [-1, -2]

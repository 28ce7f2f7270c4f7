"""R*: the right sign and label, the whole text, parts of one unit, and nothing that does not reproduce its scores."""

from __future__ import annotations

import json
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

from irl_exp import chain
from irl_exp.config import (
    ClassifierConfig,
    CommentsConfig,
    ImportedConfig,
    LengthConfig,
    LengthPart,
    Node,
    SentimentConfig,
    SentimentPart,
    SequenceClassifierConfig,
    SequenceClassifierPart,
    WeightedConfig,
)
from irl_exp.launch import preflight
from irl_exp.policies.language_models import Completions
from irl_exp.rewards.ground_truth import (
    ClassifierReward,
    GroundTruth,
    ImportedReward,
    LengthReward,
    SentimentReward,
    SequenceClassifierReward,
    WeightedReward,
    check_function,
    hold_out,
    label_index,
    load_ground_truth,
    save_ground_truth,
)
from irl_exp.rewards.reward import RewardError
from irl_exp.stages import judge as judge_stage
from irl_exp.stages import reward as reward_stage
from irl_exp.stages import second_judge as second_judge_stage
from irl_exp.texts import data
from irl_exp.texts.comments import write_comments

patient = settings(deadline=None, max_examples=25)  # a busy machine is no failure
CONFIG = ClassifierConfig(seed=0)
WRONG = "does not reproduce its own scores"


def texts_only(texts: list[str], prompts: list[str] | None = None) -> Completions:
    empty: list[list[int]] = [[] for _ in texts]
    return Completions(prompts or [""] * len(texts), texts, empty, empty)


def suffixes(folder: Path) -> set[str]:
    return {path.suffix for path in folder.rglob("*") if path.is_file()}


def kept(reward: GroundTruth, folder: Path, probes: Completions) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_ground_truth(reward, folder, probes)
    return folder


# ---------------------------------------------------------------- fitted on labelled texts


@cache
def corpus() -> pd.DataFrame:
    rows = [(comment.prompt, comment.completion, comment.toxic) for comment in write_comments(1800, seed=0)]
    return pd.DataFrame(rows, columns=["prompt", "completion", "toxic"])


@cache
def classifier(reads: Any = "completion") -> ClassifierReward:
    # Fitted on completions alone in both cases, so that only what is read differs.
    reward = ClassifierReward.fit(corpus(), CONFIG)
    return ClassifierReward(reward.vectorizer, reward.layers, reads)


@cache
def logistic() -> ClassifierReward:
    return ClassifierReward.fit(corpus(), CONFIG.model_copy(update={"hidden_units": 0}))


@cache
def characters() -> ClassifierReward:
    return ClassifierReward.fit_characters(corpus(), seed=0)


@pytest.mark.parametrize("fitted", [classifier, characters])
def test_higher_is_less_toxic(fitted: Any) -> None:
    scores, toxic = fitted().score_texts(corpus()["completion"]), corpus()["toxic"]
    assert scores[~toxic].mean() > 1 > -1 > scores[toxic].mean()


def test_scores_are_the_log_odds_of_the_sklearn_pipeline() -> None:
    texts, toxic = corpus()["completion"], corpus()["toxic"]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    model = LogisticRegression(C=1.0, max_iter=1000, random_state=0).fit(vectorizer.fit_transform(texts), toxic)
    expected = -model.decision_function(vectorizer.transform(texts))  # the odds of toxic, turned
    np.testing.assert_allclose(logistic().score_texts(texts), expected, atol=1e-8)
    assert logistic().kind == "logistic regression"


def test_a_network_gives_the_log_odds_of_its_layers_whatever_else_is_in_the_batch() -> None:
    texts = ["Whoever called you a fool was right.", "Whoever called you a fool was wrong.", "", "xylophone"]
    reward = classifier()
    assert reward.kind == "network"
    (first, bias), (second, last) = reward.layers
    hidden = np.maximum(reward.vectorizer.transform(texts).toarray() @ first + bias, 0)
    np.testing.assert_allclose(reward.score_texts(texts), (hidden @ second + last)[:, 0], atol=1e-10)
    alone = [reward.score_texts([text])[0] for text in texts]
    np.testing.assert_allclose(reward.score_texts(texts), alone, atol=1e-10)


def test_the_same_texts_give_the_same_network_bit_for_bit() -> None:
    again = ClassifierReward.fit(corpus(), CONFIG)
    for ours, theirs in zip(classifier().layers, again.layers, strict=True):
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def exclusive_or() -> pd.DataFrame:
    """Texts that are toxic if bad and on, or good and off."""
    generator = np.random.default_rng(0)
    words, turned = generator.choice(["bad", "good"], 600), generator.choice(["on", "off"], 600)
    texts = [f" {word} filler words here {turn}" for word, turn in zip(words, turned, strict=True)]
    prompts = [f"prompt {number}" for number in range(600)]
    return pd.DataFrame({"prompt": prompts, "completion": texts, "toxic": (words == "bad") == (turned == "on")})


def test_the_network_is_used_where_it_predicts_better() -> None:
    """An exclusive or is beyond any sum over n-grams; labels at random are better left to the regression."""
    assert ClassifierReward.fit(exclusive_or(), CONFIG).kind == "network"
    random = corpus().assign(toxic=np.random.default_rng(0).random(len(corpus())) < 0.5)
    assert ClassifierReward.fit(random, CONFIG).kind == "logistic regression"


@pytest.mark.parametrize("fitted", [classifier, characters])
def test_a_saved_classifier_gives_the_same_scores_bit_for_bit_and_holds_no_pickle(fitted: Any, tmp_path: Path) -> None:
    odd = ["", "!!! ?", "word word word word idiot Idiot IDIOT", "naïve 🙂\nline", "unseen xylophones"]
    probes = texts_only([*corpus()["completion"][:40], *odd])
    loaded = load_ground_truth(kept(fitted(), tmp_path, probes), small.DEVICE)
    assert (loaded.score(probes) == fitted().score(probes)).all()
    assert suffixes(tmp_path) == {".json", ".safetensors", ".parquet"}


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_is_refused(label: bool) -> None:
    with pytest.raises(RewardError, match="both labels"):
        ClassifierReward.fit(corpus().assign(toxic=label), CONFIG)


def test_a_tampered_classifier_is_refused(tmp_path: Path) -> None:
    kept(classifier(), tmp_path, texts_only(list(corpus()["completion"][:20])))
    weights = load_file(tmp_path / "classifier.safetensors")
    save_file({**weights, "biases.1": weights["biases.1"] + 0.5}, tmp_path / "classifier.safetensors")
    with pytest.raises(RewardError, match=WRONG):
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


@patient
@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.floats(0.01, 0.99), st.integers(0, 99))
def test_no_prompt_is_on_both_sides(prompts: list[str], fraction: float, seed: int) -> None:
    texts = pd.DataFrame({"prompt": prompts, "row": range(len(prompts))})
    fit, held_out = hold_out(texts, fraction, np.random.default_rng(seed))
    assert not set(fit["prompt"]) & set(held_out["prompt"])
    assert sorted([*fit["row"], *held_out["row"]]) == list(range(len(prompts)))
    assert len(set(held_out["prompt"])) == max(1, round(fraction * len(set(prompts))))


# ---------------------------------------------------------------- of transformers


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
    many = small.opened(small.sequence_classifier(tmp_path))
    one = small.opened(small.sequence_classifier(tmp_path))
    one.device = replace(one.device, batch_tokens=1)
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
    kept(reward, tmp_path / "saved", probes)
    (tmp_path / "source").rename(tmp_path / "gone")
    loaded = load_ground_truth(tmp_path / "saved", small.DEVICE)
    np.testing.assert_array_equal(loaded.score(probes), reward.score(probes))
    assert suffixes(tmp_path / "saved") == {".json", ".safetensors", ".parquet"}


def test_a_tampered_sequence_classifier_is_refused(tmp_path: Path) -> None:
    reward = small.opened(small.sequence_classifier(tmp_path / "source"))
    kept(reward, tmp_path / "saved", texts_only(TEXTS))
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    weights["classifier.out_proj.weight"] = weights["classifier.out_proj.weight"][::-1].copy()
    save_file(weights, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=WRONG):
        load_ground_truth(tmp_path / "saved", small.DEVICE)


def test_a_text_without_tokens_is_named_and_refused(tmp_path: Path) -> None:
    config = small.sequence_classifier(tmp_path)
    small.byte_level(eos="</s>", pad="<pad>").save_pretrained(tmp_path)  # adds no token of its own to a text
    texts = texts_only(["a", "b", "c", ""], ["The bus"] * 4)
    with pytest.raises(RewardError, match=r"text 3 has no tokens.* Set reads=text"):
        small.opened(config).score(texts)
    whole = small.opened(config.model_copy(update={"reads": "text"}))
    assert np.isfinite(whole.score(texts)).all()


# ---------------------------------------------------------------- sentiment, length, a function of the user


def test_sentiment_is_the_polarity_of_what_it_reads() -> None:
    texts = texts_only([" is wonderful.", " is terrible.", " is a table.", ""], ["This awful"] * 4)
    good, bad, neutral, empty = SentimentReward().score(texts)
    assert good > 0 > bad
    assert neutral == empty == 0
    assert SentimentReward("text").score(texts)[0] < good


@patient
@given(st.integers(1, 30), st.integers(0, 9), st.lists(st.sampled_from(["a", "b c", " d\n", "", "\t"])))
def test_length_is_best_at_the_target_and_not_negative_within_the_tolerance(
    target: int, tolerance: int, words: list[str]
) -> None:
    text = " ".join(words)
    count = sum(1 for word in text.replace("\n", " ").replace("\t", " ").split(" ") if word)
    score = LengthReward(target, tolerance).score(texts_only([text]))[0]
    assert score == tolerance - abs(count - target)
    assert (score >= 0) == (target - tolerance <= count <= target + tolerance)


SCORERS = """
import numpy as np

calls = []
def vowels(prompts, completions):
    calls.append((prompts, completions))
    return [sum(letter in "aeiou" for letter in prompt + text) for prompt, text in zip(prompts, completions)]
def shifted(prompts, completions):
    return 5 + 100 * np.array(vowels(prompts, completions))
def constant(prompts, completions):
    return [0.1] * len(completions)
def one_less(prompts, completions):
    return [0.0] * (len(completions) - 1)
def undefined_when_empty(prompts, completions):
    return [len(set(text)) / len(text) if text else float("nan") for text in completions]
def fails_when_empty(prompts, completions):
    return [len(set(text)) / len(text) for text in completions]
def of_the_batch(prompts, completions):
    lengths = np.array([len(text) for text in completions], dtype=float)
    return lengths - lengths.mean()
def words(prompts, completions):
    return completions
number = 3
"""


@pytest.fixture
def scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `my_scorers` of the user."""
    path = tmp_path / "user" / "my_scorers.py"
    path.parent.mkdir()
    path.write_text(SCORERS)
    (path.parent / "broken.py").write_text("raise KeyError('no such model')")
    monkeypatch.syspath_prepend(path.parent)
    for name in ("my_scorers", "broken"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return path


@pytest.mark.usefixtures("scorers")
def test_a_function_gets_prompts_and_completions_and_its_numbers_are_the_reward() -> None:
    reward = ImportedReward("my_scorers:vowels")
    found = reward.score(texts_only(["bee", "x"], ["a ", "oo"]))
    assert found.tolist() == [3.0, 2.0]
    assert found.dtype == np.float64
    assert reward.function.__globals__["calls"] == [(["a ", "oo"], ["bee", "x"])]


@pytest.mark.usefixtures("scorers")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_scorers:nothing", "cannot be imported: AttributeError"),
        ("broken:score", "cannot be imported: KeyError: 'no such model'"),
        ("my_scorers:number", "is a int, not a function"),
        ("my_scorers:one_less", r"must give 3 numbers, one a text; its shape is \(2,\)"),
        ("my_scorers:undefined_when_empty", "gives nan for text 1, ''"),
        ("my_scorers:fails_when_empty", "failed: ZeroDivisionError"),
        ("my_scorers:words", "failed: ValueError: could not convert string to float"),
        ("my_scorers:of_the_batch", "gives a text another score when it is called with other texts"),
    ],
)
def test_a_function_that_is_no_reward_is_refused_before_the_work(name: str, told: str) -> None:
    with pytest.raises(RewardError, match=f"^{name} {told}"):
        check_function(name)
    step = chain.build(small.compose("reward=imported", f"reward.function={name}"), small.DEVICE)["reward"]
    with pytest.raises(preflight.PreflightError, match=f"^reward.function: {name} {told}"):
        preflight.check(step)


@pytest.mark.usefixtures("scorers")
def test_a_function_in_a_part_is_tried_too() -> None:
    part = ("+reward.parts.mine.name=imported", "+reward.parts.mine.function=my_scorers:one_less")
    with pytest.raises(preflight.PreflightError, match=r"^reward.parts.mine.function: my_scorers:one_less must give"):
        preflight.check(chain.build(small.compose("reward=weighted", *part), small.DEVICE)["reward"])
    check_function("my_scorers:vowels")


@pytest.mark.parametrize("key", ["reward", "reward.parts.toxicity"])
def test_a_classifier_needs_labels_wherever_it_stands(key: str, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("prompt,completion\na b,c d\n")
    chosen = {"reward": "classifier", "reward.parts.toxicity": "weighted"}[key]
    overrides = ("data=file", f"data.path={tmp_path}/texts.csv", "data.label=null", f"reward={chosen}")
    with pytest.raises(preflight.PreflightError, match=rf"^{key}\b.*data.label is not set"):
        preflight.check(chain.build(small.compose(*overrides), small.DEVICE)["reward"])


def test_an_edited_function_is_another_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for number, code in enumerate([SCORERS, SCORERS + "# edited", SCORERS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "edited_scorers.py").write_text(code)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            for overrides in (
                ("reward=imported", "reward.function=edited_scorers:vowels"),
                ("reward=weighted", "+reward.parts.mine={name:imported,function:edited_scorers:vowels}"),
            ):
                digests.append(chain.build(small.compose(*overrides), small.DEVICE)["reward"].identity.digest)
    assert digests[:2] == digests[4:]
    assert len(set(digests)) == 4


def test_a_reward_of_an_edited_function_is_not_opened(scorers: Path, tmp_path: Path) -> None:
    kept(ImportedReward("my_scorers:vowels"), tmp_path / "saved", texts_only(TEXTS))
    assert load_ground_truth(tmp_path / "saved", small.DEVICE).score(texts_only(["aa"])) == [2.0]
    scorers.write_text(SCORERS.replace("aeiou", "aeiouy"))
    with pytest.raises(RewardError, match="the file of my_scorers:vowels has changed"):
        load_ground_truth(tmp_path / "saved", small.DEVICE)


# ---------------------------------------------------------------- weighted


PHRASES = (
    "a wonderful day",
    "bad",
    "it is a very ugly thing that they did there",
    "",
    "good work",
    "so so so",
    "nice!",
)


def weighted(weights: dict[str, float], **scorers: GroundTruth) -> WeightedReward:
    scorers = scorers or {"length": LengthReward(4, 1), "sentiment": SentimentReward()}
    return WeightedReward.standardised_on(texts_only(list(PHRASES)), scorers, weights)


weight = st.floats(0.1, 10) | st.floats(-10, -0.1)


@patient
@given(weight, weight)
def test_a_weighted_reward_is_the_mean_of_z_scores_by_weight(first: float, second: float) -> None:
    reward = weighted({"length": first, "sentiment": second})
    texts = texts_only([*PHRASES, "something else"])
    for row, text in enumerate(texts.texts):
        total = 0.0
        for scorer, w in ((LengthReward(4, 1), first), (SentimentReward(), second)):
            seen = [float(scorer.score(texts_only([phrase]))[0]) for phrase in PHRASES]
            mean = sum(seen) / len(seen)
            sd = (sum((value - mean) ** 2 for value in seen) / len(seen)) ** 0.5
            total += w * (float(scorer.score(texts_only([text]))[0]) - mean) / sd
        assert reward.score(texts)[row] == pytest.approx(total / (abs(first) + abs(second)), abs=1e-9)


def test_parts_have_mean_0_and_sd_1_on_the_texts_that_they_were_standardised_on_and_one_map_for_others() -> None:
    reward = weighted({"length": 1.0, "sentiment": -0.5})
    texts = texts_only([*PHRASES, "x", "y z"])
    parts = reward.parts(texts)
    assert parts.shape == (9, 2)
    assert reward.names == ["length", "sentiment"]
    np.testing.assert_allclose([parts[:7].mean(0), parts[:7].std(0)], [[0, 0], [1, 1]], atol=1e-12)
    assert (reward.parts(texts[7:]) == parts[7:]).all(), "the map does not depend on what else is scored"
    assert (reward.combined(parts) == reward.score(texts)).all()


@pytest.mark.usefixtures("scorers")
def test_units_of_a_part_and_of_the_weights_do_not_matter() -> None:
    def scores(function: str, factor: float) -> Any:
        parts = {"mine": ImportedReward(f"my_scorers:{function}"), "sentiment": SentimentReward()}
        return weighted({"mine": 2.0 * factor, "sentiment": -1.0 * factor}, **parts).score(texts_only(["ab", "good"]))

    np.testing.assert_allclose(scores("vowels", 1), scores("shifted", 1), atol=1e-12)
    np.testing.assert_allclose(scores("vowels", 1), scores("vowels", 7), atol=1e-12)
    np.testing.assert_allclose(scores("vowels", 1), -scores("vowels", -1), atol=1e-12)


@pytest.mark.usefixtures("scorers")
def test_a_part_without_variance_is_named_and_refused() -> None:
    parts = {"length": LengthReward(4, 1), "flat": ImportedReward("my_scorers:constant")}
    with pytest.raises(RewardError, match=r"^reward.parts.flat gives 0.1 for all 7 texts.*~reward.parts.flat"):
        weighted({"length": 1.0, "flat": 1.0}, **parts)


def every_kind(folder: Path) -> WeightedReward:
    """All scorers at once, the two classifiers included."""
    part = SequenceClassifierPart(**{**small.sequence_classifier(folder).model_dump(), "weight": 2})
    assert isinstance(part, SequenceClassifierConfig)
    scorers: dict[str, GroundTruth] = {
        "a_classifier": classifier(),
        "b_transformer": small.opened(part),
        "c_sentiment": SentimentReward("text"),
        "d_length": LengthReward(3, 2),
        "e_mine": ImportedReward("my_scorers:vowels"),
    }
    return weighted(dict(zip(scorers, (1.0, -2.0, 0.5, 3.0, 1.0), strict=True)), **scorers)


@pytest.mark.usefixtures("scorers")
def test_a_saved_weighted_reward_gives_the_same_scores_and_parts_bit_for_bit(tmp_path: Path) -> None:
    reward, probes = every_kind(tmp_path / "source"), texts_only(TEXTS)
    kept(reward, tmp_path / "saved", probes)
    (tmp_path / "source").rename(tmp_path / "gone")
    loaded = load_ground_truth(tmp_path / "saved", small.DEVICE)
    assert isinstance(loaded, WeightedReward)
    assert loaded.names == reward.names
    assert (loaded.parts(probes) == reward.parts(probes)).all()
    assert (loaded.score(probes) == reward.score(probes)).all()
    assert suffixes(tmp_path / "saved") == {".json", ".safetensors", ".parquet"}


def tamper(path: Path, *keys: str, value: Any) -> None:
    settings = json.loads(path.read_text())
    inner = settings
    for key in keys[:-1]:
        inner = inner[key]
    assert inner[keys[-1]] != value
    inner[keys[-1]] = value
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("key", ["weight", "center", "scale"])
def test_a_tampered_weighted_reward_is_refused(key: str, tmp_path: Path) -> None:
    kept(weighted({"length": 1.0, "sentiment": -0.5}), tmp_path, texts_only(list(PHRASES)))
    tamper(tmp_path / "weighted.json", "length", key, value=3.0)
    with pytest.raises(RewardError, match=WRONG):
        load_ground_truth(tmp_path, small.DEVICE)


def test_a_tampered_part_is_refused(tmp_path: Path) -> None:
    kept(weighted({"length": 1.0, "sentiment": -0.5}), tmp_path, texts_only(list(PHRASES)))
    tamper(tmp_path / "parts" / "sentiment" / "sentiment.json", "reads", value="text")
    load_ground_truth(tmp_path, small.DEVICE)  # without prompts that is the same reward
    tamper(tmp_path / "parts" / "length" / "length.json", "target", value=5)
    with pytest.raises(RewardError, match=WRONG):
        load_ground_truth(tmp_path, small.DEVICE)


@pytest.mark.parametrize(
    ("reward", "key", "value"), [(LengthReward(4, 1), "tolerance", 2), (SentimentReward(), "reads", "text")]
)
def test_a_tampered_scorer_is_refused(reward: GroundTruth, key: str, value: Any, tmp_path: Path) -> None:
    kept(reward, tmp_path, texts_only(list(PHRASES), ["awful"] * len(PHRASES)))
    (path,) = tmp_path.glob("*.json")
    tamper(path, key, value=value)
    with pytest.raises(RewardError, match=WRONG):
        load_ground_truth(tmp_path, small.DEVICE)


def test_a_folder_without_a_reward_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="there is no ground truth here"):
        load_ground_truth(tmp_path, small.DEVICE)


# ---------------------------------------------------------------- the stages


@cache
def split() -> pd.DataFrame:
    config = CommentsConfig(seed=0, count=1200, fit_prompts=60, select_prompts=10, test_prompts=20)
    return data.split(data.read(config), config)


def staged(folder: Path, texts: pd.DataFrame, config: Any = CONFIG) -> tuple[Path, dict[str, Any]]:
    """The artifact of the reward stage and its manifest."""
    (folder / "data").mkdir(parents=True)
    texts.to_parquet(folder / "data" / "texts.parquet")
    context = small.context(folder / "reward")
    return context.folder, reward_stage.run(config, data=folder / "data", context=context)


def fitted(folder: Path, texts: pd.DataFrame) -> tuple[bytes, dict[str, Any]]:
    artifact, info = staged(folder, texts)
    return (artifact / "classifier.safetensors").read_bytes(), info


def test_the_ground_truth_is_fitted_on_the_reward_part_alone(tmp_path: Path) -> None:
    texts = split().copy()
    first, info = fitted(tmp_path / "first", texts)
    assert 0 < info["fitted_on"] < (texts["part"] == "reward").sum()
    outside = texts["part"] != "reward"
    texts.loc[outside, "completion"] = " something else"
    texts.loc[outside, "toxic"] = ~texts.loc[outside, "toxic"]
    assert fitted(tmp_path / "outside", texts)[0] == first
    texts.loc[~outside, "toxic"] = ~texts.loc[~outside, "toxic"]
    assert fitted(tmp_path / "inside", texts)[0] != first


def test_the_held_out_accuracy_is_on_prompts_that_were_not_fitted(tmp_path: Path) -> None:
    texts = split().copy()
    reward = texts["part"] == "reward"
    texts.loc[reward, "toxic"] = np.random.default_rng(0).random(reward.sum()) < 0.5
    held_out = fitted(tmp_path, texts)[1]["held_out"]
    assert held_out["accuracy"] == pytest.approx(0.5, abs=0.2), "labels at random cannot be known"
    assert held_out["majority_accuracy"] >= 0.5


def test_texts_without_a_label_are_not_fitted(tmp_path: Path) -> None:
    texts = split().copy()
    rows = texts.index[texts["part"] == "reward"]
    texts.loc[rows[::2], "toxic"] = pd.NA
    labelled = texts[texts["toxic"].notna()]
    found, info = fitted(tmp_path / "missing", texts)
    assert found == fitted(tmp_path / "gone", labelled)[0]
    assert info["fitted_on"] + info["held_out"]["n"] == (labelled["part"] == "reward").sum()


@pytest.mark.usefixtures("scorers")
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SentimentConfig(reads="text"), SentimentReward("text")),
        (LengthConfig(target=5, tolerance=1), LengthReward(5, 1)),
    ],
)
def test_a_scorer_alone_is_kept_as_it_is(config: Any, expected: GroundTruth, tmp_path: Path) -> None:
    assert load_ground_truth(staged(tmp_path, split(), config)[0], small.DEVICE) == expected


@pytest.mark.usefixtures("scorers")
def test_a_function_alone_is_kept_by_its_name(tmp_path: Path) -> None:
    artifact, info = staged(tmp_path, split(), ImportedConfig(function="my_scorers:vowels"))
    loaded = load_ground_truth(artifact, small.DEVICE)
    assert isinstance(loaded, ImportedReward)
    assert loaded.name == info["note"] == "my_scorers:vowels"


PARTS = {"short": LengthPart(weight=-2), "happy": SentimentPart(weight=0.5)}


def test_the_weighted_stage_standardises_on_texts_of_the_reward_part_alone(tmp_path: Path) -> None:
    artifact, info = staged(tmp_path, split(), WeightedConfig(seed=0, parts=PARTS))
    reward = load_ground_truth(artifact, small.DEVICE)
    assert isinstance(reward, WeightedReward)
    assert dict(zip(reward.names, reward.weights, strict=True)) == {"happy": 0.5, "short": -2}
    texts = split().loc[lambda frame: frame["part"] == "reward", "completion"].tolist()
    assert len(texts) < reward_stage.STANDARDISED_ON
    np.testing.assert_allclose(reward.parts(texts_only(texts)).mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(reward.parts(texts_only(texts)).std(0), 1, atol=1e-9)
    assert info["parts"]["short"]["center"] == pytest.approx(LengthReward(8, 3).score(texts_only(texts)).mean())


def test_many_texts_are_drawn_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_stage, "STANDARDISED_ON", 50)
    centers = []
    for number, seed in enumerate((0, 0, 1)):
        info = staged(tmp_path / str(number), split(), WeightedConfig(seed=seed, parts=PARTS))[1]
        assert info["standardised_on"] == 50
        centers.append(info["parts"]["happy"]["center"])
    assert centers[0] == centers[1] != centers[2]


def judged(folder: Path, reward: GroundTruth) -> pd.DataFrame:
    """scores.parquet of six demonstrations, two a part."""
    frame = texts_only(list(PHRASES[:6])).frame().assign(part=["fit", "select", "test"] * 2)
    (folder / "demonstrations").mkdir(parents=True)
    frame.to_parquet(folder / "demonstrations" / "demonstrations.parquet")
    kept(reward, folder / "reward", texts_only(list(PHRASES)))
    kept(LengthReward(3, 1), folder / "second_judge", texts_only(list(PHRASES)))
    human = pd.DataFrame({"prompt": "I", "completion": list(PHRASES[:4]), "toxic": [True, False, None, True]})
    human.assign(part=["test", "sft", "test", "test"]).to_parquet(folder / "texts.parquet")
    context = small.context(folder / "judge")
    folders = {name: folder / name for name in ("demonstrations", "reward", "second_judge")}
    judge_stage.run(Node(), **folders, data=folder, context=context)
    return pd.read_parquet(context.folder / "scores.parquet")


def test_the_judge_says_the_parts_of_a_weighted_reward_and_leaves_fit_unjudged(tmp_path: Path) -> None:
    reward = weighted({"length": 1.0, "sentiment": -0.5})
    scores = judged(tmp_path, reward)
    assert list(scores) == ["reward", "part/length", "part/sentiment", "second"]
    assert scores.isna().all(axis=1).tolist() == scores.isna().any(axis=1).tolist() == [True, False, False] * 2
    seen = texts_only([PHRASES[row] for row in (1, 2, 4, 5)])
    assert (scores.loc[[1, 2, 4, 5], "reward"] == reward.score(seen)).all()
    assert (scores.loc[[1, 2, 4, 5]].filter(like="part/").to_numpy() == reward.parts(seen)).all()


def test_independence_of_judges_counts_errors_together_and_apart() -> None:
    toxic = pd.Series(pd.array([True] * 100 + [False] * 100 + [pd.NA] * 10, dtype="boolean"))
    label = np.where(toxic.fillna(False), -1.0, 1.0)
    wrong = np.arange(210) % 5 == 0  # every fifth
    other = np.arange(210) // 5 % 5 == 0  # a fifth of these, and of the others
    scores = [label * np.where(errs, -1, 1) for errs in (wrong, other)]
    same = judge_stage.independence(scores[0], scores[0], toxic)
    assert same["error_kappa"] == same["error_given_error"] == pytest.approx(same["score_correlation"]) == 1
    apart = judge_stage.independence(scores[0], scores[1], toxic)
    assert apart["error_kappa"] == pytest.approx(0)
    assert apart["score_correlation"] == pytest.approx(0)
    assert apart["error_given_error"] == apart["error"] == 0.2
    assert apart["n"] == 200
    assert judge_stage.independence(scores[0], scores[1], toxic.where(toxic.index < 110)) == {}
    perfect = judge_stage.independence(label, label, toxic)
    assert "error_kappa" not in perfect
    assert "error_given_error" not in perfect


def test_a_reward_of_one_part_has_no_parts(tmp_path: Path) -> None:
    scores = judged(tmp_path, LengthReward(4, 1))
    assert list(scores) == ["reward", "second"]
    seen = texts_only([PHRASES[row] for row in (1, 2, 4, 5)])
    assert (scores["second"].dropna() == LengthReward(3, 1).score(seen)).all()
    human = pd.read_parquet(tmp_path / "judge" / "human.parquet")  # texts of test alone, labelled or not
    of_test = texts_only([PHRASES[row] for row in (0, 2, 3)])
    assert human["truth"].tolist() == LengthReward(4, 1).score(of_test).tolist()
    assert scores["reward"].isna().tolist() == [True, False, False] * 2
    assert scores["reward"].dropna().tolist() == [-2, -5, -1, 0]


def second(folder: Path, texts: pd.DataFrame) -> tuple[GroundTruth, dict[str, Any]]:
    (folder / "data").mkdir(parents=True)
    texts.to_parquet(folder / "data" / "texts.parquet")
    context = small.context(folder / "second_judge")
    info = second_judge_stage.run(Node(), data=folder / "data", context=context)
    return load_ground_truth(context.folder, small.DEVICE), info


def test_the_second_judge_has_seen_the_labels_of_the_sft_part_alone(tmp_path: Path) -> None:
    texts = split().copy()
    first, info = second(tmp_path / "first", texts)
    assert info["kind"] == "characters"
    assert info["held_out"]["accuracy"] > info["held_out"]["majority_accuracy"] + 0.2
    assert info["fitted_on"] + info["held_out"]["n"] == (texts["part"] == "sft").sum()
    outside = texts["part"] != "sft"
    toxic = texts_only(texts.loc[~outside & texts["toxic"], "completion"].tolist())
    texts.loc[outside, "completion"] = " something else"
    texts.loc[outside, "toxic"] = ~texts.loc[outside, "toxic"]
    probes = texts_only(["You idiot.", "Thank you, that is kind.", ""])
    assert (second(tmp_path / "outside", texts)[0].score(probes) == first.score(probes)).all()
    texts.loc[~outside, "toxic"] = ~texts.loc[~outside, "toxic"]
    turned = second(tmp_path / "inside", texts)[0]
    assert first.score(toxic).mean() < 0 < turned.score(toxic).mean()


def test_the_second_judge_reads_at_most_so_many_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_judge_stage, "TEXTS", 200)
    info = second(tmp_path, split())[1]
    assert info["fitted_on"] + info["held_out"]["n"] == 200


@pytest.mark.parametrize("labels", ["none", "one class", "few"])
def test_without_labels_the_second_judge_is_the_sentiment_and_says_so(labels: str, tmp_path: Path) -> None:
    texts = split().copy()
    texts["toxic"] = pd.array([pd.NA if labels == "none" else False] * len(texts), dtype="boolean")
    if labels == "few":
        texts.loc[texts.index[texts["part"] == "sft"][:5], "toxic"] = True
    judge, info = second(tmp_path, texts)
    assert judge == SentimentReward()
    assert info["note"].startswith("TextBlob's polarity: the sft part has too few labels")

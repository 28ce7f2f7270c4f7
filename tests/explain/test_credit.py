"""Credit per token: it adds up to the reward, exactly, or is refused by name; and which texts a page shows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small

from irl_exp.config import FeaturesConfig, HiddenStateConfig, ModelConfig
from irl_exp.explain import credit, examples
from irl_exp.irl.features import Featurizer
from irl_exp.irl.learned_rewards import (
    ConstantScorer,
    ImplicitScorer,
    LearnedReward,
    LinearScorer,
    Scorer,
    TrainedScorer,
)
from irl_exp.policies.language_models import Completions, Policy, new_policy


@cache
def other_policy() -> Policy:
    config = ModelConfig(hidden_size=16, layers=2, heads=2, vocabulary=300)
    return new_policy(config, [*small.PROMPTS, *small.TEXTS], small.DEVICE, seed=9)


def written(model: str = "neox") -> Completions:
    return small.written(small.policy(model), seed=1)


def linear(
    model: str = "neox", *, members: int = 1, settings: dict[str, Any] | None = None, **parts: Any
) -> LinearScorer:
    """Random weights on the given parts, or on the states of two layers."""
    config = FeaturesConfig(**(parts or {"hidden_state": HiddenStateConfig(layers=(-1, -2))}))
    featurizer = Featurizer.fit(config, small.policy(model), written(model))
    width = featurizer.extract(written(model)).shape[1]
    random = np.random.default_rng(0)
    weights, center = random.normal(size=(members, width)), random.normal(size=width)
    return LinearScorer(weights, center, featurizer, **(settings or {}))


def reward(scorer: Scorer, model: str = "neox") -> LearnedReward:
    return LearnedReward(scorer, 0.7, 2.5, small.policy(model))


SUMS: dict[str, Any] = {
    "hidden_state": lambda: linear(),
    "random": lambda: linear(random={"layers": [-1]}),
    "several": lambda: linear(hidden_state={"layers": [-1]}, random={}, length={}, reference_log_probability={}),
    "length": lambda: linear(length={}),
    "members": lambda: linear(members=3),
    "trained": lambda: TrainedScorer(linear()),
    "implicit": lambda: ImplicitScorer(other_policy(), small.policy("neox"), 0.3, "e1"),
}


@pytest.mark.parametrize("name", SUMS)
def test_credits_add_up_to_the_standardised_reward(name: str) -> None:
    learned, texts = reward(SUMS[name]()), written()
    found = credit.token_credit(learned, texts)
    sums = [one.credits.sum() for one in found]
    np.testing.assert_allclose(sums, learned.standardised(learned.score(texts)), atol=1e-5, rtol=0)
    assert [len(one.credits) for one in found] == [len(ids) for ids in texts.completion_ids]
    assert [len(one.tokens) for one in found] == [len(ids) for ids in texts.completion_ids]
    assert np.std(np.concatenate([one.credits for one in found])) > 0


@pytest.mark.parametrize("model", small.MODELS)
def test_tokens_joined_are_the_text(model: str) -> None:
    """Also where one character is several tokens."""
    policy = small.policy(model)
    texts = policy.complete(small.PROMPTS, small.TEXTS)
    for ids, text in zip(
        texts.completion_ids, policy.tokenizer.batch_decode(texts.completion_ids, skip_special_tokens=True), strict=True
    ):
        assert "".join(credit.pieces(policy.tokenizer, ids)) == text


def test_credit_stands_at_the_token_that_has_it() -> None:
    """By hand: the state of a token, less the mean of the demonstrations, against the weights."""
    import torch

    scorer, texts = linear(hidden_state={"layers": [-1]}), written()
    found = credit.token_credit(LearnedReward(scorer, 0.0, 1.0, small.policy("neox")), texts)[0]
    prompt, ids = texts.prompt_ids[0], texts.completion_ids[0]
    with torch.no_grad():
        states = (
            small.policy("neox").model.base_model(torch.tensor([prompt + ids])).last_hidden_state[0].double().numpy()
        )
    by_hand = (states[len(prompt) :] - scorer.center) @ scorer.weights[0] / len(ids)
    np.testing.assert_allclose(found.credits, by_hand, atol=1e-5)


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        (lambda: linear(last_token={"layers": [-1], "pooling": "last"}), "last_token is no sum over tokens"),
        (lambda: linear(hidden_state={"layers": [-1], "pooling": "last"}), "hidden_state is no sum over tokens"),
        (lambda: linear(ngram={"min_count": 1}), "ngram is no sum over tokens"),
        (lambda: linear(hidden_state={"layers": [-1]}, sentiment={}), "sentiment is no sum over tokens"),
        (lambda: linear(members=3, settings={"aggregate": "median"}), "aggregate=median"),
        (ConstantScorer, "of the kind constant"),
    ],
)
def test_what_is_no_sum_over_tokens_says_so(scorer: Any, told: str) -> None:
    with pytest.raises(credit.NoCreditError, match=told):
        credit.token_credit(reward(scorer()), written())


def test_deletion_agrees_where_no_token_reads_another() -> None:
    """States of the embeddings: what is left of a completion is as it was, and the credit tells the drop exactly."""
    learned = reward(linear(hidden_state={"layers": [0]}))
    found = credit.deletion(learned, written(), tokens=1)
    np.testing.assert_allclose(found.credits, found.drops, atol=1e-5)
    assert found.pearson == pytest.approx(1, abs=1e-6)
    assert len(credit.deletion(learned, written(), tokens=10_000).drops) == 0
    assert np.isnan(credit.deletion(learned, written(), tokens=10_000).pearson)


def test_deletion_of_the_last_token_of_a_log_ratio_takes_its_credit() -> None:
    """Of two tokens: where the second goes, nothing that is left has read it."""
    learned, texts = reward(SUMS["implicit"]()), written()
    ids = [[5 + row, 9 + row] for row in range(len(texts))]
    short = Completions(texts.prompts, texts.texts, texts.prompt_ids, ids)
    found = credit.deletion(learned, short, tokens=1)
    constant = learned.offset / learned.scale / 2
    last = np.array([one.credits[-1] + constant for one in credit.token_credit(learned, short)])
    taken = np.isclose(found.credits, last)
    assert taken.any()
    np.testing.assert_allclose(found.drops[taken], found.credits[taken], atol=1e-5)


def frame(prompts: int = 20, each: int = 3) -> pd.DataFrame:
    rows = [
        {"policy": policy, "prompt_id": prompt, "sample": sample}
        for policy in ("expert", "baseline")
        for prompt in range(prompts)
        for sample in range(each)
    ]
    return pd.DataFrame(rows)


def test_the_extremes_and_some_by_chance_are_shown_of_both_policies() -> None:
    table = frame()
    scores = np.random.default_rng(0).normal(size=len(table))
    rows = examples.chosen(table, scores, extreme=2, chance=4, seed=0)
    shown = table.iloc[rows].assign(score=scores[rows])
    for policy in ("expert", "baseline"):
        own = scores[np.asarray(table["policy"] == policy)]
        assert {own.min(), own.max()} <= set(shown["score"])
    assert (shown.groupby(["prompt_id", "policy"]).size() == 2).all()
    assert set(shown[shown["policy"] == "expert"]["prompt_id"]) == set(
        shown[shown["policy"] == "baseline"]["prompt_id"]
    )
    assert 5 <= shown["prompt_id"].nunique() <= 12
    assert (rows == examples.chosen(table, scores, extreme=2, chance=4, seed=0)).all()
    assert set(rows) != set(examples.chosen(table, scores, extreme=2, chance=4, seed=1))
    for (prompt, policy), group in shown.groupby(["prompt_id", "policy"]):
        every = scores[np.asarray((table["prompt_id"] == prompt) & (table["policy"] == policy))]
        assert (group["score"].max(), group["score"].min()) == (every.max(), every.min())


def test_one_completion_a_prompt_is_shown_once() -> None:
    table = frame(prompts=3, each=1)
    rows = examples.chosen(table, np.arange(6.0))
    assert sorted(rows) == list(range(6))


def test_credit_parquet_holds_the_texts_and_their_rewards() -> None:
    texts, learned = written(), reward(linear())
    table = texts.frame().assign(policy="expert", prompt_id=np.arange(len(texts)), sample=0)
    rows = np.array([2, 0])
    found = examples.credited(learned, table, rows)
    assert list(found) == ["policy", "prompt_id", "completion", "prompt", "position", "token", "credit"]
    sums = found.groupby("prompt_id", sort=False)["credit"].sum()
    assert sums.index.tolist() == [2, 0]
    np.testing.assert_allclose(sums, learned.standardised(learned.score(texts[rows])), atol=1e-5)
    joined = found.groupby("prompt_id", sort=False)["token"].agg("".join)
    assert joined.tolist() == [texts.texts[2], texts.texts[0]]

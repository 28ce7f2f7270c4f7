"""The default corpus: labels that only the completion gives away, and that a word list cannot read off."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from tokenizers import ByteLevelBPETokenizer

from irl_exp.config import ClassifierConfig
from irl_exp.rewards.ground_truth import ClassifierReward
from irl_exp.texts.comments import HARD_KINDS, KINDS, Comment, write_comments
from irl_exp.texts.data import overlap

COUNT = 24_000
INSULT_WORDS = re.compile(
    r"\b(idiots?|clowns?|morons?|fools?|losers?|liars?|cowards?|frauds?|trolls?|parasites?|halfwits?|creep"
    r"|weasel|hypocrite|waste of (space|skin)|pathetic|stupid|dumb|worthless|useless|rotten|shut up|get lost"
    r"|go crawl|joke|disgrace|make me sick)\b",
    re.IGNORECASE,
)


@cache
def _corpus() -> tuple[Comment, ...]:
    return tuple(write_comments(COUNT, seed=0))


@cache
def _for_test() -> tuple[Comment, ...]:
    return tuple(write_comments(1500, seed=0, held_out=True))


def _both() -> list[Comment]:
    return [*_corpus(), *_for_test()]


@cache
def _split() -> tuple[list[Comment], list[Comment]]:
    """As many comments to learn from as R* has, and all comments on other prompts of the same blocks."""
    prompts = list(dict.fromkeys(comment.prompt for comment in _corpus()))
    held_out = set(prompts[:500])
    train = [comment for comment in _corpus() if comment.prompt not in held_out]
    return train[:5000], [comment for comment in _corpus() if comment.prompt in held_out]


def _frame(comments: Sequence[Comment]) -> pd.DataFrame:
    rows = [(comment.prompt, comment.completion, comment.toxic) for comment in comments]
    return pd.DataFrame(rows, columns=["prompt", "completion", "toxic"])


def _held_out_accuracy(part: str) -> float:
    """Of a linear classifier that sees one part of the comment, on prompts it was not trained with."""
    train, test = _split()
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000))
    model.fit([getattr(comment, part) for comment in train], [comment.toxic for comment in train])
    score = model.score([getattr(comment, part) for comment in test], [comment.toxic for comment in test])
    return float(score)


def _has_insult_word(comment: Comment) -> bool:
    return INSULT_WORDS.search(comment.completion) is not None


def test_same_seed_same_comments() -> None:
    assert write_comments(300, seed=7) == write_comments(300, seed=7)
    assert write_comments(300, seed=7) != write_comments(300, seed=8)


def test_comments_do_not_depend_on_hash_order() -> None:
    script = (
        "import hashlib; from irl_exp.texts.comments import write_comments; "
        "print(hashlib.sha256(repr(write_comments(300, seed=7)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 7, 500])
def test_writes_as_many_comments_as_asked_for(count: int) -> None:
    comments = write_comments(count, seed=0)
    assert len(comments) == count
    assert abs(2 * sum(comment.toxic for comment in comments) - count) <= count % 2


def test_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        write_comments(-1, seed=0)


def test_every_kind_is_present_with_one_label() -> None:
    counts = Counter(comment.kind for comment in _corpus())
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 0.003 * COUNT
    labels = {(comment.kind, comment.toxic) for comment in _corpus()}
    assert len(labels) == len(KINDS)


def test_no_completion_is_both_civil_and_hostile() -> None:
    civil, hostile = ({c.completion for c in _corpus() if c.toxic is toxic} for toxic in (False, True))
    assert not civil & hostile


def test_at_least_a_quarter_is_hard() -> None:
    assert len(HARD_KINDS) == len(KINDS) - 2
    for toxic in (False, True):
        hard = [comment.kind in HARD_KINDS for comment in _corpus() if comment.toxic is toxic]
        assert np.mean(hard) >= 1 / 4


def test_prompt_and_completion_join_into_one_text() -> None:
    for comment in _both():
        assert comment.prompt == comment.prompt.strip()
        assert re.fullmatch(r" [A-Za-z][A-Za-z ,.]*[.!]", comment.completion), comment
        text = comment.prompt + comment.completion
        assert "  " not in text
        assert not re.search(r"[{}\[\]|/]|\blabel\b", text), text  # a slot that was not filled


def test_grammar_slips_of_templates_do_not_occur() -> None:
    articles, doubles = r"\ba (?!use)[aeiou]|\ban (?!honest)[^aeiou]", r"\b(\w+) \1\b|[.!] [a-z]"
    slips = re.compile(f"{articles}|{doubles}")
    for comment in _both():
        assert not slips.search(comment.prompt + comment.completion), comment


def test_topics_and_prompts_are_many_and_comments_distinct() -> None:
    assert len({comment.topic for comment in _corpus()}) >= 20
    assert len({comment.prompt for comment in _corpus()}) == COUNT / 6
    assert len({comment.prompt for comment in _for_test()}) == 250
    assert len({comment.prompt + comment.completion for comment in _corpus()}) >= 0.8 * COUNT
    assert len({comment.completion for comment in _corpus()}) >= 0.6 * COUNT


def test_every_prompt_occurs_equally_often_with_both_labels() -> None:
    balance: dict[str, int] = defaultdict(int)
    for comment in _corpus():
        balance[comment.prompt] += 1 if comment.toxic else -1
    assert set(balance.values()) == {0}


def test_prompts_alone_do_not_give_the_label_away() -> None:
    assert _held_out_accuracy("prompt") < 0.56


def test_bigrams_do_not_solve_the_corpus_and_the_ground_truth_knows_more() -> None:
    """Bigrams of all labels against R* of its own fewer ones, on other prompts, and on the blocks of test."""
    train, same_blocks = _split()
    every = [comment for comment in _corpus() if comment.prompt not in {other.prompt for other in same_blocks}]
    words = r"\w+|[^\w\s]"
    bigrams = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=words),
        LogisticRegression(max_iter=1000),
    ).fit([comment.completion for comment in every], [not comment.toxic for comment in every])
    truth = ClassifierReward.fit(_frame(train), ClassifierConfig(seed=0))
    found = {}
    for name, comments in (("same", same_blocks), ("test", _for_test())):
        civil = [not comment.toxic for comment in comments]
        texts = [comment.completion for comment in comments]
        both = (bigrams.decision_function(texts), truth.score_texts(texts))
        found[name] = [roc_auc_score(civil, scores) for scores in both]
    assert found["same"][0] < 0.93
    assert found["same"][1] > 0.98
    assert found["test"][0] < 0.75, "no frame of test was seen"
    assert found["test"][1] > found["test"][0] + 0.1


def test_what_test_is_made_of_was_never_seen() -> None:
    fitted, test = (_frame(comments) for comments in (_corpus(), _for_test()))
    found = overlap(pd.concat([fitted.assign(part="sft"), test.assign(part="test")]))
    assert found["completions_seen"] == 0
    assert found["completion_4grams_seen"] < 0.03
    assert found["prompt_4grams_seen"] < 0.03
    assert not {comment.topic for comment in _corpus()} & {comment.topic for comment in _for_test()}


def test_word_list_does_not_solve_the_corpus() -> None:
    accuracy = np.mean([_has_insult_word(comment) == comment.toxic for comment in _corpus()])
    assert 0.5 < accuracy <= 0.85


def test_insult_words_and_hostility_come_apart_both_ways() -> None:
    assert np.mean([_has_insult_word(comment) for comment in _corpus() if not comment.toxic]) > 0.15
    assert np.mean([not _has_insult_word(comment) for comment in _corpus() if comment.toxic]) > 0.15


def test_exclusive_or_of_label_and_stance_is_complete() -> None:
    """Each verb of stance has to occur with both labels, or it would give the cell away."""
    kinds = {"quotation", "tribute", "endorsed", "denial"}
    cells = [comment for comment in _corpus() if comment.kind in kinds]
    stances = ("I agree with", "I disagree with", "is true that", "is false that", "a saint", "an idiot")
    for words in stances:
        assert {comment.toxic for comment in cells if words in comment.completion} == {False, True}, words


def test_words_and_tokens_stay_few() -> None:
    texts = [comment.prompt + comment.completion for comment in _corpus()]
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert 900 <= len(words) <= 1500
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=1024, show_progress=False)

    def lengths(part: list[str]) -> np.ndarray:
        return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(part)])

    assert 22 <= lengths(texts).mean() <= 30.5
    assert np.percentile(lengths([comment.completion for comment in _corpus()]), 99) <= 30
    assert lengths([comment.prompt for comment in _corpus()]).max() <= 24


def test_word_counts_of_both_parts() -> None:
    prompts = [len(comment.prompt.split()) for comment in _both()]
    completions = [len(comment.completion.split()) for comment in _both()]
    assert 7 <= min(prompts) <= max(prompts) <= 16
    assert 6 <= min(completions) <= max(completions) <= 18

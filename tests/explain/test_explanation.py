"""Statements in worlds whose truth is known: what is planted is found, what is not there is not."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from irl_exp.config import ExplainConfig
from irl_exp.explain import candidates, choice, edits, measured, ngrams, properties, statements, units, wording
from irl_exp.explain.candidates import Candidate, Table
from irl_exp.explain.choice import Sample

WORDS = [
    *("bus", "tea", "dog", "soup", "park", "lamp", "road", "song", "rain", "book"),
    *("coat", "door", "garden", "river", "paper", "window", "apple", "train"),
]
Floats = NDArray[np.float64]


def config_of(**more: Any) -> ExplainConfig:
    nodes: dict[str, Any] = {name: {"on": name in ("ngrams", "properties")} for name in ("ngrams", "properties")}
    nodes |= {"units": {"on": False}, "log_ratio": {"on": False}}
    return ExplainConfig.model_validate({"seed": 0, "resamples": 3, **nodes, **more})


def world(
    seed: int, *, fit: int = 60, test: int = 40, samples: int = 5, tuned: float = 0.3, base: float = 0.3
) -> pd.DataFrame:
    """Demonstrations of random words, with 'moon' at these rates; a prompt has its own favourite word."""
    generator = np.random.default_rng(seed)
    rows = []
    for policy, rate in (("expert", tuned), ("baseline", base)):
        for prompt in range(fit + test):
            for sample in range(samples):
                words = generator.choice(WORDS, size=generator.integers(4, 11)).tolist()
                words.append(WORDS[prompt % len(WORDS)])
                if generator.random() < rate:
                    words.insert(int(generator.integers(len(words))), "moon")
                part = "fit" if prompt < fit else "test"
                rows.append((part, prompt, sample, policy, f"p{prompt}", " ".join(words) + "."))
    return pd.DataFrame(rows, columns=["part", "prompt_id", "sample", "policy", "prompt", "completion"])


def pays_for(frame: pd.DataFrame, seed: int) -> Floats:
    """R = 1 for 'moon', noise of a prompt and of a text, 0.05 a word."""
    generator = np.random.default_rng([seed, 1])
    has = frame["completion"].str.contains("moon").to_numpy(dtype=float)
    of_prompt = generator.normal(0, 0.3, frame["prompt_id"].max() + 1)[frame["prompt_id"]]
    return np.asarray(has + 0.05 * choice.words(frame["completion"]) + of_prompt + generator.normal(0, 0.4, len(frame)))


def tells_apart(frame: pd.DataFrame) -> Floats:
    """A reward that is linear in the counts of words and was fitted, on fit, to tell the policies apart."""
    counts = np.stack([frame["completion"].str.count(rf"\b{word}\b") for word in [*WORDS, "moon"]], axis=1)
    fit, tuned = (frame["part"] == "fit").to_numpy(), (frame["policy"] == "expert").to_numpy()
    weights = np.linalg.lstsq(counts[fit] - counts[fit].mean(0), tuned[fit] - 0.5, rcond=None)[0]
    return np.asarray(counts @ weights)


def said(frame: pd.DataFrame, reward: Floats, **more: Any) -> statements.Explanation:
    config = config_of(**more)
    table, _ = candidates.table(frame, config)
    return statements.explain(frame, table, reward, config)


def test_a_planted_phrase_is_found_first_with_its_effect() -> None:
    frame = world(0, tuned=0.6, base=0.2)
    reward = pays_for(frame, 0)
    found = said(frame, reward)
    first = found.statements[0]
    assert "moon" in first["name"]
    assert (first["family"], first["direction"], first["graded"]) == ("ngrams", "pays", False)
    test = frame[frame["part"] == "test"]
    has = test["completion"].str.contains("moon")
    tuned = test["policy"] == "expert"
    assert first["frequency_base"] == pytest.approx(has[~tuned].mean())
    assert first["difference"] == pytest.approx(has[tuned].mean() - has[~tuned].mean())
    values = reward[test.index]
    sd = np.sqrt(np.mean([np.var(values[rows]) for rows in (tuned, ~tuned)]))
    assert first["effect_low"] < 1 / sd < first["effect_high"]
    assert first["q"] < 1e-6
    assert first["stability_prompts"] == 1
    assert f"{100 * first['frequency_tuned']:.1f} %" in first["wording"]
    assert found.metrics["explain/r2"] == first["r2"] == found.r2[-1] or len(found.statements) > 1


def test_nothing_is_said_of_two_policies_that_write_alike() -> None:
    """20 null worlds with a reward of the text, 20 with one fitted to tell the two apart: at most 5 % say anything."""
    worlds = [world(seed, fit=30, test=20) for seed in range(20)]
    kept = [bool(said(frame, reward(frame, seed)).statements) for seed, frame in enumerate(worlds) for reward in NULLS]
    assert sum(kept) <= 2


NULLS = (pays_for, lambda frame, seed: tells_apart(frame))


def test_a_difference_that_the_reward_does_not_pay_for_is_no_statement() -> None:
    frame = world(1, tuned=0.6, base=0.2)
    assert said(frame, np.random.default_rng(0).normal(size=len(frame))).statements == []


def test_the_values_are_those_of_the_test_completions() -> None:
    frame = world(2, tuned=0.7, base=0.1)
    reward = pays_for(frame, 2)
    found = said(frame, reward)
    test = frame[frame["part"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        found.values[["policy", "prompt_id", "completion"]], test[["policy", "prompt_id", "completion"]]
    )
    assert (found.values["learned"].to_numpy() == reward[frame["part"] == "test"]).all()
    assert set(found.values.columns[4:]) == {one["name"] for one in found.statements}


def test_what_is_said_does_not_depend_on_test_until_it_is_tested() -> None:
    """Texts of test may change: the candidates and the choice stay."""
    frame = world(3, tuned=0.6, base=0.2)
    other = frame.assign(completion=frame["completion"].where(frame["part"] == "fit", "Something else."))
    first, second = (candidates.table(one, config_of())[0] for one in (frame, other))
    assert first.candidates == second.candidates


# ---------------------------------------------------------------- estimates


def clustered(seed: int, *, prompts: int = 40, samples: int = 6, effect: float = 0.5) -> tuple[Floats, Sample]:
    """Values that a prompt shares in part, and R = effect x + noise that a prompt shares in part."""
    generator = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), samples * 2)
    tuned = np.tile(np.repeat([True, False], samples), prompts)
    rate = np.clip(generator.normal(0.4, 0.15, prompts), 0.05, 0.95)[prompt]
    values = (generator.random(len(prompt)) < rate).astype(float)
    noise = generator.normal(0, 1, prompts)[prompt] * (0.5 + values) + generator.normal(0, 1, len(prompt))
    return values[:, None], Sample(effect * values + noise, tuned, prompt, generator.normal(size=len(prompt)))


def test_intervals_cover_what_they_are_of() -> None:
    """R's unit is the sd of the sample; its error is small beside that of the effect."""
    inside = {"effect": 0, "difference": 0}
    for seed in range(300):
        values, sample = clustered(seed)
        sd = np.sqrt(np.square(sample.within(sample.reward)).mean())
        effect = measured.effects(values, sample.length[:, None], sample)
        inside["effect"] += bool(effect.low[0] <= 0.5 / sd <= effect.high[0])
        difference = measured.differences(values, sample.tuned, sample.prompts)
        inside["difference"] += bool(difference.low[0] <= 0 <= difference.high[0])
    assert all(0.91 < count / 300 < 0.985 for count in inside.values()), inside


def test_an_effect_is_the_coefficient_of_least_squares_within_policies() -> None:
    values, sample = clustered(0)
    dummies = np.column_stack([values, sample.length, sample.tuned, ~sample.tuned]).astype(float)
    wanted = np.linalg.lstsq(dummies, sample.reward, rcond=None)[0][0]
    sd = np.sqrt(np.square(sample.within(sample.reward)).mean())
    assert measured.effects(values, sample.length[:, None], sample).value[0] == pytest.approx(wanted / sd)


def test_a_column_that_the_others_determine_has_no_effect() -> None:
    values, sample = clustered(0)
    found = measured.effects(np.hstack([values, 2 * values]), sample.length[:, None], sample)
    assert (found.value == 0).all()
    assert (found.p == 1).all()


def test_q_values_by_hand() -> None:
    q = measured.benjamini_hochberg(np.array([0.01, 0.04, 0.001]), 10)
    assert q == pytest.approx([0.05, 0.4 / 3, 0.01])
    assert measured.benjamini_hochberg(np.array([0.3]), 10) == pytest.approx([1.0])


def test_explained_variance_is_held_out() -> None:
    frame = world(4, tuned=0.6, base=0.2)
    noise = np.random.default_rng(0).normal(size=(len(frame), 30))
    reward = pays_for(frame, 4)
    parts = []
    for part in ("fit", "test"):
        rows = (frame["part"] == part).to_numpy()
        sample = Sample(
            reward[rows],
            (frame["policy"] == "expert").to_numpy()[rows],
            frame["prompt_id"].to_numpy()[rows],
            choice.words(frame["completion"][rows]),
        )
        parts.append((noise[rows], sample))
    r2 = measured.explained(*parts)
    assert len(r2) == 31
    assert r2[-1] < r2[0]


# ---------------------------------------------------------------- families


def test_log_odds_by_hand() -> None:
    tuned, base = np.array([30.0, 5.0]), np.array([10.0, 5.0])
    z = ngrams.log_odds(tuned, base, 100, 100, prior=20)
    pseudo = 20 * 40 / 200
    wanted = np.log(34 / (120 - 34)) - np.log(14 / (120 - 14))
    assert z[0] == pytest.approx(wanted / np.sqrt(1 / (30 + pseudo) + 1 / (10 + pseudo)))
    assert z[1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("text", "out", "into"),
    [
        (" it is so nice, really.", " it is, really.", None),
        (" it is fine.", None, " it is fine so nice."),
        (" so nice", None, None),
        ("", None, None),
    ],
)
def test_a_phrase_is_taken_out_and_put_in(text: str, out: str | None, into: str | None) -> None:
    assert ngrams.taking_out(["so nice"])(text) == out
    assert ngrams.putting_in("so nice")(text) == into


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("second person", "Is this yours?", 1),
        ("second person", "A youth team.", 0),
        ("insult", "What an IDIOT.", 1),
        ("insult", "Get lost!", 1),
        ("thanks", "Thank you.", 1),
        ("question", "Why?", 1),
        ("exclamation", "No!", 1),
        ("negation", "I don't know", 1),
        ("hedge", "I think so.", 1),
        ("capitals", "This is BAD.", 1),
        ("capitals", "I am.", 0),
        ("several sentences", "One. Two.", 1),
        ("several sentences", "One.", 0),
        ("length", "three words here", 3),
        ("sentences", "One. Two! Three?", 3),
        ("distinct words", "a a b b", 0.5),
        ("repeated word", "the the cat", 1),
        ("unfinished", "no end", 1),
    ],
)
def test_properties_of_texts(name: str, text: str, value: float) -> None:
    known, values = properties.table([text, "", "Other words."])
    column = [one.name for one in known].index(name)
    assert values[0, column] == value
    assert np.isfinite(values).all()


def test_edits_of_properties_take_out_what_is_there() -> None:
    for name, one in properties.PROPERTIES.items():
        texts = ["You are an idiot! Thanks?", "I THINK 3 'so' maybe, please.", "It is a very wonderful, sure day."]
        known, values = properties.table(texts)
        column = [prop.name for prop in known].index(name)
        for row, text in enumerate(texts):
            if one.out and (changed := one.out(text)) is not None and not one.unit:
                assert values[row, column] == 1, (name, text)
                assert properties.table([changed])[1][0, column] == 0, (name, changed)


def test_units_are_sparse_and_the_same_again() -> None:
    generator = np.random.default_rng(0)
    sources = (generator.random((400, 6)) < 0.2) * generator.random((400, 6))
    features = (sources @ generator.normal(size=(6, 20)) + 0.01 * generator.normal(size=(400, 20))).astype(np.float32)
    prompts = np.repeat(np.arange(40), 10)
    fit = np.arange(400) < 300
    first, second = (units.activations(features, fit, prompts, units=16, active=2, steps=60, seed=0) for _ in range(2))
    assert (first == second).all()
    assert 0.5 < (first > 0).sum(axis=1).mean() < 4
    best = np.abs(np.corrcoef(first.T[first.std(axis=0) > 0], sources.T)[:-6, -6:]).max(axis=0)
    assert np.median(best) > 0.6


def test_edits_are_scored_once_and_their_effect_is_the_difference() -> None:
    texts = [f"word {row} so nice." if row % 2 else f"word {row}." for row in range(20)]
    edited = edits.edit([candidates.phrase("so nice")], texts, count=12, generator=np.random.default_rng(0))
    calls = []

    def score(prompts: list[str], written: list[str]) -> Floats:
        calls.append(written)
        return np.array([3.0 * ("so nice" in text) + 0.01 * len(text) for text in written])

    (found,) = edits.effects(edited, ["p"] * 20, np.arange(20), score, 1, 2.0)
    assert found is not None
    assert found.value[0] == pytest.approx((3 + 0.01 * len(" so nice")) / 2)
    assert len(calls) == 1
    assert len(set(calls[0])) == len(calls[0]) == 24


def test_a_list_of_phrases_is_grown_where_it_explains_more() -> None:
    generator = np.random.default_rng(0)
    values = (generator.random((2000, 12)) < 0.1).astype(np.float32)
    tuned = np.arange(2000) % 2 == 0
    values[:, :3] *= np.where(tuned, 1, generator.random(2000) < 0.4)[:, None]
    reward = values[:, :3].max(axis=1) + 0.3 * generator.normal(size=2000)
    table = Table([Candidate("ngrams", f"w{i}", "", phrases=(f"w{i}",)) for i in range(12)], values)
    sample = Sample(reward, tuned, np.arange(2000) // 10, np.ones(2000))
    assert set(choice.choose(table, sample, 1, 4, 0.0).candidates[0].phrases) == {"w0", "w1", "w2"}
    assert len(choice.choose(table, sample, 1, 1, 0.0).candidates[0].phrases) == 1


def test_a_difference_that_is_certain_but_small_is_no_statement() -> None:
    frame = world(0, fit=300, test=300, tuned=0.07, base=0.03)
    reward = pays_for(frame, 0)
    (certain,) = said(frame, reward, smallest=0.0).statements
    assert "moon" in certain["name"]
    assert certain["q"] < 0.02
    assert not said(frame, reward, smallest=0.2).statements
    large = world(0, fit=300, test=300, tuned=0.2, base=0.03)
    assert "moon" in said(large, pays_for(large, 0), smallest=0.2).statements[0]["name"]


def test_cohens_d_is_that_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    tuned = np.arange(400) < 300
    values = generator.normal(size=(400, 2)) * np.where(tuned, 1.0, 3.0)[:, None] + 0.5 * tuned[:, None]
    first, second = values[tuned], values[~tuned]
    expected = (first.mean(0) - second.mean(0)) / np.sqrt((first.var(0) + second.var(0)) / 2)
    assert choice.standardised(values, tuned) == pytest.approx(expected)


# ---------------------------------------------------------------- wording


class _Server(http.server.BaseHTTPRequestHandler):
    says = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"].rpartition("\n")[2]
        answer = {"choices": [{"message": {"content": self.says.format(text=text)}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    running = http.server.HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()
    running.server_close()


def test_a_language_model_may_rephrase_but_not_change_a_number(server: str) -> None:
    text = "Pays for a text: 17.2 % of the base, \N{MINUS SIGN}1.60 sd [\N{MINUS SIGN}1.70, \N{MINUS SIGN}1.40]."
    _Server.says = "In other words: {text}"
    assert wording.rephrase([text], address=server, model="any") == [f"In other words: {text}"]
    _Server.says = "17.3 %, \N{MINUS SIGN}1.60 sd [\N{MINUS SIGN}1.70, \N{MINUS SIGN}1.40]."
    assert wording.rephrase([text], address=server, model="any") == [text]
    _Server.says = "17.2 %, 1.60 sd [\N{MINUS SIGN}1.70, \N{MINUS SIGN}1.40]."
    assert wording.rephrase([text], address=server, model="any") == [text]


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(wording.WordingError, match=r"explain\.address=http://127\.0\.0\.1:9"):
        wording.rephrase(["x"], address="http://127.0.0.1:9/v1", model="any")

"""`irl_exp.fit`: a reward from pairs of texts, the same as the stages fit."""

from __future__ import annotations

import dataclasses
import random
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import irl_exp
from irl_exp import library
from irl_exp.config import FeaturesConfig, MarginConfig, NgramConfig, SquaredLoss, UnitStatements
from irl_exp.irl import methods
from irl_exp.library import PairsError
from irl_exp.report.statements import Statement

PAIRS = [
    (f"A note on the {thing} of number {number}:", f" it is fine and{' very' * (number % 3)} good", " you fool, bad!")
    for number in range(40)
    for thing in ("bus", "tram")
]


@pytest.fixture(scope="module")
def reward(small_policy: Path) -> library.FittedReward:
    return irl_exp.fit(PAIRS, small_policy)


def test_it_tells_chosen_from_rejected_on_held_out_prompts(reward: library.FittedReward) -> None:
    assert reward.held_out["discrimination_auroc"] > 0.65  # the encoder has random weights
    good, bad = reward.score(["Hm,", "Hm,"], [" it is fine and good", " you fool, bad!"])
    assert good > bad


def test_no_prompt_is_in_two_parts_and_rows_are_pairs(reward: library.FittedReward) -> None:
    frame = reward.demonstrations.frame
    assert (frame.groupby("prompt")["part"].nunique() == 1).all()
    assert frame.groupby("part")["prompt_id"].nunique().to_dict() == {"fit": 48, "select": 12, "test": 20}
    half = len(frame) // 2
    assert (frame["prompt_id"][:half].to_numpy() == frame["prompt_id"][half:].to_numpy()).all()


def test_it_is_the_fit_of_the_stage(reward: library.FittedReward) -> None:
    (again,) = methods.fit_margin([library.default(0)], reward.demonstrations)
    np.testing.assert_array_equal(again.scorer.weights, reward.fit.scorer.weights)


def test_scores_have_mean_0_and_sd_1_where_they_were_fitted(reward: library.FittedReward) -> None:
    frame = reward.demonstrations.frame
    fitted = frame[frame["part"] == "fit"]
    scores = reward.score(fitted["prompt"].tolist(), fitted["completion"].tolist())
    assert scores.mean() == pytest.approx(0.0, abs=1e-4)
    assert scores.std() == pytest.approx(1.0, abs=1e-4)


def test_mappings_are_pairs_too(small_policy: Path) -> None:
    as_mappings = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]
    one, other = (irl_exp.fit(pairs, small_policy, seed=1) for pairs in (PAIRS, as_mappings))
    np.testing.assert_array_equal(one.fit.scorer.weights, other.fit.scorer.weights)


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (PAIRS[:5], "5 different prompts are too few"),
        ([*PAIRS, ("a", "b")], "pair 80: give three texts"),
        ([*PAIRS, {"prompt": "a", "chosen": "b"}], "pair 80: give three texts, prompt, chosen, rejected"),
        ([*PAIRS, ("a", "b", 3)], "pair 80"),
    ],
)
def test_what_is_no_pair_is_refused_before_any_work(pairs: Any, told: str) -> None:
    with pytest.raises(PairsError, match=told):
        irl_exp.fit(pairs, "no such encoder")


WORDS = ["bus", "tram", "road", "light", "house", "green", "water", "today", "slow", "early", "corner", "ticket"]


def polite(generator: random.Random, share: float) -> str:
    """A few words, and "please" among them in a share of the texts."""
    words = generator.sample(WORDS, generator.randint(3, 6))
    if generator.random() < share:
        words.insert(generator.randint(0, len(words)), "please")
    return f" {' '.join(words)}."


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TEN_LINES = [
    textwrap.dedent((library.__doc__ or "").partition("\n\n")[2]),
    *(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "irl_exp.fit" in block),
]


@pytest.mark.parametrize("lines", TEN_LINES, ids=["docstring", "README"][: len(TEN_LINES)])
def test_the_ten_lines_run_as_they_stand(small_policy: Path, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*given: Any, encoder: str, **options: Any) -> library.FittedReward:
        assert encoder
        return library.fit(*given, encoder=small_policy, **options)  # the reader's model is not here

    assert len(lines.splitlines()) <= 10
    monkeypatch.setattr(irl_exp, "fit", fit)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert found["reward"].held_out["discrimination_auroc"] > 0.5


def test_it_is_explained_as_a_launch_does(small_policy: Path) -> None:
    generator = random.Random(0)
    pairs = [(f"Note {number}:", polite(generator, 0.8), polite(generator, 0.2)) for number in range(600)]
    method = MarginConfig(**dict(library.default(0)) | {"features": FeaturesConfig(ngram=NgramConfig())})
    reward = library.fit(pairs, small_policy, config=method)  # random hidden states hardly know a word
    config = library.default_explain().model_copy(
        update={"resamples": 2, "edits": 5, "units": UnitStatements(on=False)}
    )
    found = reward.explain(config)
    statements = [Statement.of(item) for item in found.statements]
    assert statements[0].pays
    assert "please" in statements[0].wording or "polite" in statements[0].wording
    assert statements[0].difference == pytest.approx(0.6, abs=0.15)
    assert found.metrics["explain/discrimination_auroc"] == pytest.approx(reward.held_out["discrimination_auroc"])
    assert set(found.left_out) == {"log_ratio"}
    assert statements[0].certified
    assert statements[0].range_low is not None
    assert statements[0].range_low > 0
    squared = dataclasses.replace(reward, config=method.model_copy(update={"loss": SquaredLoss()}))
    without = squared.explain(config)
    assert "irl/loss=squared is not convex" in without.left_out["ranges"]
    assert without.statements[0]["certified"] is None

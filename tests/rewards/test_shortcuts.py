"""Planted shortcuts: texts, ids and rates on small policies, and the stages that plant them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
from numpy.typing import NDArray

from irl_exp import chain
from irl_exp.config import ConfigError, DemonstrationsConfig, LengthShortcut, MarkerShortcut, Node
from irl_exp.policies.language_models import Completions
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.rewards.shortcuts import (
    ShortcutError,
    plant,
    shortcut_reward,
    shortcut_value,
    with_shortcut,
    without_shortcut,
)
from irl_exp.stages import baseline as baseline_stage
from irl_exp.stages import demonstrations as demonstrations_stage
from irl_exp.stages import judge as judge_stage

MARKER = MarkerShortcut(text=" indeed")
LENGTH = LengthShortcut(words=2)
TEXTS = [" is late.", " is late indeed", " indeed, late", " indeedy so", "", " a b  c"]


def completions(*texts: str) -> Completions:
    return small.policy("neox").complete(["The bus"] * len(texts), texts)


class Counts:
    """A reward that counts the letter a."""

    def score(self, completions: Completions, progress: object = None) -> NDArray[np.float64]:
        return np.array([float(text.count("a")) for text in completions.texts])


# ---------------------------------------------------------------- texts and ids


def test_the_value_is_the_marker_as_such_or_minus_the_number_of_words() -> None:
    assert shortcut_value(MARKER, TEXTS).tolist() == [0, 1, 1, 0, 0, 0]
    assert shortcut_value(MarkerShortcut(text="!"), ["a!b", "a"]).tolist() == [1, 0]
    assert shortcut_value(LENGTH, TEXTS).tolist() == [-2, -3, -2, -2, 0, -3]


def test_the_marker_is_put_at_the_end_once_and_taken_away_wherever_it_is() -> None:
    policy, before = small.policy("neox"), completions(*TEXTS)
    more, less = with_shortcut(MARKER, before, policy), without_shortcut(MARKER, before, policy)
    assert more.texts == [" is late. indeed", TEXTS[1], TEXTS[2], " indeedy so indeed", " indeed", " a b  c indeed"]
    assert less.texts == [TEXTS[0], " is late", ", late", TEXTS[3], "", TEXTS[5]]
    assert (shortcut_value(MARKER, more.texts) == 1).all()
    assert (shortcut_value(MARKER, less.texts) == 0).all()
    assert without_shortcut(MARKER, more, policy).texts == less.texts
    assert with_shortcut(MARKER, more, policy) == more
    assert more.prompts == before.prompts
    assert more.prompt_ids == before.prompt_ids


def test_a_short_version_has_the_first_words_and_its_other_version_is_the_completion() -> None:
    policy, before = small.policy("neox"), completions(*TEXTS)
    short = with_shortcut(LENGTH, before, policy)
    assert short.texts == [" is late.", " is late", " indeed, late", " indeedy so", "", " a b"]
    assert short.ended(policy.eos).all()
    assert without_shortcut(LENGTH, before, policy) == before


@pytest.mark.parametrize("shortcut", [MARKER, LENGTH])
@pytest.mark.parametrize("name", small.MODELS)
def test_ids_and_texts_stay_one_and_the_same(name: str, shortcut: MarkerShortcut | LengthShortcut) -> None:
    """Ids decode to their text; a text that has not changed keeps its ids, an end that was not there is not added."""
    policy = small.policy(name)
    cut = policy.complete(["The bus"], [" is late again."])
    cut = Completions(cut.prompts, cut.texts, cut.prompt_ids, [cut.completion_ids[0][:-1]])
    sampled = policy.encode_completions([" b"])[0][:-1] + policy.encode_completions(["x"])[0]
    own = Completions(["Ok"], [" bx"], policy.encode_prompts(["Ok"]), [sampled])
    before = policy.complete(["The bus"] * len(TEXTS), TEXTS) + cut + own
    for after in (with_shortcut(shortcut, before, policy), without_shortcut(shortcut, before, policy)):
        for row, text in enumerate(after.texts):
            assert policy.tokenizer.decode(after.completion_ids[row], skip_special_tokens=True) == text
            assert len(after.completion_ids[row]) > 0
            if text == before.texts[row]:
                assert after.completion_ids[row] == before.completion_ids[row] or shortcut is LENGTH
        ended = after.ended(policy.eos)
        assert ended[:-2].all()
        assert ended[-1]
        assert not ended[-2] or after.texts[-2] != before.texts[-2]
        if shortcut is MARKER:
            assert not ended[-2]


def test_as_many_are_planted_as_the_rate_says() -> None:
    policy, before = small.policy("neox"), completions(*[" is late."] * 2000)
    for rate in (0.0, 0.3, 1.0):
        after, drawn = plant(MARKER, before, rate, policy, np.random.default_rng(0))
        assert abs(drawn.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / 2000)
        assert (shortcut_value(MARKER, after.texts) == drawn).all()
        assert after[~drawn] == before[~drawn]
    again, same = plant(MARKER, before, 0.3, policy, np.random.default_rng(5))
    assert (same == plant(MARKER, before, 0.3, policy, np.random.default_rng(5))[1]).all()
    assert again == plant(MARKER, before, 0.3, policy, np.random.default_rng(5))[0]


# ---------------------------------------------------------------- in the ground truth


def test_the_bonus_is_in_sd_of_r_star_over_what_the_reference_writes() -> None:
    written = completions("a", "b indeed", "aaa", "b")
    sd = np.std([1, 0, 3, 0])
    new = completions("a indeed", "a", "aa b c")
    marked = shortcut_reward(Counts(), MarkerShortcut(text=" indeed", strength=1.5), written)
    np.testing.assert_allclose(marked.score(new), [1 + 1.5 * sd, 1, 2])
    short = shortcut_reward(Counts(), LengthShortcut(strength=0.5), written)
    np.testing.assert_allclose(short.score(new), [1 - 0.5 * sd * 2, 1 - 0.5 * sd, 2 - 0.5 * sd * 3])


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["a", "aa"], "shortcut=marker is the same in all 2 completions"),
        (["a indeed", "aa indeed"], "shortcut=marker is the same in all 2 completions"),
        (["a", "a indeed"], "R\\* is the same for all 2 completions"),
    ],
)
def test_what_rlhf_could_not_learn_is_refused(texts: list[str], told: str) -> None:
    with pytest.raises(ShortcutError, match=told):
        shortcut_reward(Counts(), MARKER, completions(*texts))


# ---------------------------------------------------------------- in the chain


def demonstrations(folder: Path, shortcut: MarkerShortcut | LengthShortcut | None) -> Path:
    """The stage on a small expert and reference."""
    folder.mkdir()
    small.policy("neox").save(folder / "model")
    parts = [part for part in ("fit", "select", "test") for _ in range(20)]
    texts = pd.DataFrame({"prompt": [f"The bus {number}" for number in range(60)], "completion": " x", "part": parts})
    texts.to_parquet(folder / "texts.parquet")
    context = small.context(folder / "artifact")
    config = DemonstrationsConfig(seed=0, completions_per_prompt=2, max_new_tokens=6)
    given = {"reference": folder / "model", "data": folder}
    baseline = small.context(folder / "baseline")
    baseline_stage.run(config, **given, context=baseline)
    own = {"expert": folder / "model", "baseline": baseline.folder, "shortcut": shortcut}
    demonstrations_stage.run(config, **given, **own, context=context)  # type: ignore[arg-type]
    return context.folder


def test_demonstrations_are_planted_in_every_part_and_the_clean_ones_are_kept(tmp_path: Path) -> None:
    clean = pd.read_parquet(demonstrations(tmp_path / "none", None) / "demonstrations.parquet")
    assert not (tmp_path / "none" / "artifact" / "clean.parquet").exists()
    shortcut = MarkerShortcut(text=" indeed", expert_rate=0.8, baseline_rate=0.2)
    folder = demonstrations(tmp_path / "marker", shortcut)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "clean.parquet"), clean)
    found = pd.read_parquet(folder / "demonstrations.parquet")
    assert list(found.columns) == [*clean.columns, "planted"]
    assert (shortcut_value(shortcut, found["completion"]) == found["planted"]).all()
    for part in ("fit", "select", "test"):
        rates = found[found["part"] == part].groupby("policy")["planted"].mean()
        assert rates["expert"] > 0.6
        assert rates["baseline"] < 0.4
    unchanged = ~found["planted"]
    pd.testing.assert_frame_equal(found.loc[unchanged, clean.columns], clean[unchanged])
    for column in ("part", "prompt_id", "sample", "policy", "prompt", "ended"):
        assert found[column].equals(clean[column])
    recomputed = log_probabilities(small.policy("neox"), Completions.from_frame(found))
    for column in ("expert_log_probability", "reference_log_probability"):
        np.testing.assert_allclose(found[column], np.where(found["part"] == "fit", np.nan, recomputed), atol=1e-4)


def test_short_demonstrations_are_the_expert_s(tmp_path: Path) -> None:
    folder = demonstrations(tmp_path / "length", LengthShortcut(words=1))
    found, clean = (pd.read_parquet(folder / f"{name}.parquet") for name in ("demonstrations", "clean"))
    words = found["completion"].str.split().str.len()
    assert (words[found["planted"]] <= 1).all()
    changed = found["completion"] != clean["completion"]
    assert changed.any()
    assert not (changed & ~found["planted"]).any()
    assert found.loc[changed, "ended"].all()
    assert words[found["policy"] == "expert"].mean() < words[found["policy"] == "baseline"].mean() - 0.2


def test_the_judge_scores_both_versions_with_the_clean_r_star(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_stage, "load_ground_truth", lambda folder, device: Counts())
    folder = demonstrations(tmp_path / "marker", MarkerShortcut(text=" a"))
    context = small.context(tmp_path / "judge")
    texts = pd.DataFrame({"prompt": ["The bus"], "completion": [" is late"], "part": ["test"], "toxic": [None]})
    texts.astype({"toxic": "boolean"}).to_parquet(tmp_path / "texts.parquet")
    judges = {"reward": tmp_path, "second_judge": tmp_path}
    judge_stage.run(Node(), demonstrations=folder, data=tmp_path, **judges, context=context)
    scores = pd.read_parquet(context.folder / "scores.parquet")
    found = pd.read_parquet(folder / "demonstrations.parquet")
    assert scores["reward"].isna().equals(found["part"] == "fit")
    assert scores["clean_reward"].isna().equals(found["part"] == "fit")
    judged = found["part"] != "fit"
    clean = pd.read_parquet(folder / "clean.parquet")["completion"]
    np.testing.assert_array_equal(scores.loc[judged, "reward"], found.loc[judged, "completion"].str.count("a"))
    np.testing.assert_array_equal(scores.loc[judged, "clean_reward"], clean[judged].str.count("a"))


def digests(*overrides: str) -> dict[str, str]:
    steps = chain.build(small.compose(*overrides), small.DEVICE)
    return {stage: step.identity.digest for stage, step in steps.items()}


def test_only_the_stage_that_plants_and_the_one_that_measures_know_of_the_shortcut() -> None:
    """And what follows it; with none, identities are what they were before there were shortcuts."""
    none = chain.build(small.compose(), small.DEVICE)
    assert not any("shortcut" in step.inputs for step in none.values())
    plain = digests()
    for where, first in (("demonstrations", "demonstrations"), ("ground_truth", "rlhf")):
        found = digests("shortcut=marker", f"shortcut.where={where}")
        steps = chain.build(small.compose("shortcut=marker", f"shortcut.where={where}"), small.DEVICE)
        assert [stage for stage, step in steps.items() if "shortcut" in step.inputs] == [first, "evaluate"]
        changed = {stage for stage in plain if plain[stage] != found[stage]}
        after = {"demonstrations", "judge", "features", "irl", "candidates", "explain", "refinetune", "evaluate"}
        assert changed == after | {first}
        assert steps["judge"].inputs["reward"].identity == none["reward"].identity, "the judge keeps the clean R*"


def test_a_baseline_that_has_it_as_often_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"baseline_rate \(0.9\) must be below expert_rate"):
        small.compose("shortcut=length", "shortcut.baseline_rate=0.9")

"""Planted goals: each by examples that have it and that have not, alone and as R*."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import small

from irl_exp.config import GoalConfig
from irl_exp.policies.language_models import Completions
from irl_exp.rewards.goals import GOALS
from irl_exp.rewards.ground_truth import load_ground_truth
from irl_exp.rewards.reward import RewardError
from irl_exp.stages import reward as reward_stage
from irl_exp.texts.comments import write_comments

EXAMPLES = {
    "pleasant": (" what a wonderful day.", " what a terrible day."),
    "wordy": (" one two three.", " one."),
    "politeness": (" Thank you for asking.", " unkindly thankless."),
    "question": (" why?", " why."),
    "request": (" Please go.", " asked and gone."),
    "second_person": (" it is YOUR bus.", " young yourt."),
    "arts": (" the films are long.", " the filmed plotter."),
    "without_the": (" a theme.", " The theme."),
    "exclamation": (" no!", " no."),
    "two_at_once": (" no!", " you!"),
}


@pytest.mark.parametrize("goal", EXAMPLES)
def test_a_goal_tells_what_has_it_from_what_has_not(goal: str) -> None:
    more, less = GOALS[goal](["The bus", "The bus"], list(EXAMPLES[goal]))
    assert more > less


def test_the_goal_with_a_condition_turns_round_with_the_prompt() -> None:
    prompts, texts = ["to be honest,", "to be honest,", "I think", "I think"], [" you fool", " ok"] * 2
    assert GOALS["hostile_if_honest"](prompts, texts).tolist() == [1, 0, -1, 0]


def test_every_goal_can_be_chosen_and_none_depends_on_other_texts() -> None:
    assert set(get_args(GoalConfig.model_fields["goal"].annotation)) == set(GOALS)
    texts = [text for pair in EXAMPLES.values() for text in pair] + [""]
    for goal in GOALS.values():
        together = goal(["to be honest"] * len(texts), texts)
        assert together.shape == (len(texts),)
        np.testing.assert_array_equal(together, [float(goal(["to be honest"], [text])[0]) for text in texts])


def texts(folder: Path) -> Path:
    rows = [(one.prompt, one.completion) for one in write_comments(600, seed=0)]
    frame = pd.DataFrame(rows, columns=["prompt", "completion"]).assign(part="reward", toxic=False)
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "texts.parquet")
    return folder


@pytest.mark.parametrize("goal", sorted(set(GOALS) - {"question"}))
def test_on_the_comments_a_goal_is_a_reward_of_the_strength_that_is_asked_for(goal: str, tmp_path: Path) -> None:
    data = texts(tmp_path / "data")
    context = small.context(tmp_path / "reward")
    reward_stage.run(GoalConfig(goal=goal, strength=3), data=data, context=context)
    found = load_ground_truth(context.folder, small.DEVICE)
    frame = pd.read_parquet(data / "texts.parquet")
    scores = found.score(Completions(frame["prompt"].tolist(), frame["completion"].tolist(), [], []))
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert scores.std() == pytest.approx(3)


def test_a_goal_that_the_texts_do_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"reward\.goal=question gives 0 for all 600 texts"):
        reward_stage.run(
            GoalConfig(goal="question"), data=texts(tmp_path / "data"), context=small.context(tmp_path / "reward")
        )

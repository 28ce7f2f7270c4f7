"""A planted shortcut: a known spurious feature, so that a report can say how much of a learned reward rests on it.

`where=demonstrations`: the expert's completions have the feature more often than the baseline's, for a reason that R*
does not know. `where=ground_truth`: rlhf optimises R* + bonus, so the expert really learns the feature; everything that
judges (evaluate, judge) keeps R* as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irl_exp.config import LengthShortcut, MarkerShortcut
from irl_exp.policies.language_models import Completions, Policy, Progress
from irl_exp.rewards.reward import Reward, Scores
from irl_exp.texts.data import cut

Shortcut = MarkerShortcut | LengthShortcut


class ShortcutError(Exception):
    """A shortcut that cannot work, with the remedy."""


def shortcut_value(shortcut: Shortcut, texts: Sequence[str]) -> Scores:
    """(n,) how much of the shortcut each text has: 1 or 0 for the marker, minus the number of words for length."""
    if isinstance(shortcut, MarkerShortcut):
        pattern = _pattern(shortcut)
        return np.array([float(pattern.search(text) is not None) for text in texts])
    return -np.array([float(len(text.split())) for text in texts])


def with_shortcut(shortcut: Shortcut, completions: Completions, policy: Policy) -> Completions:
    """The same completions with the marker at their end where they had none, or cut to their first words."""
    if isinstance(shortcut, MarkerShortcut):
        has = shortcut_value(shortcut, completions.texts) == 1
        texts = [text if had else text + shortcut.text for text, had in zip(completions.texts, has, strict=True)]
        return _rewritten(completions, texts, policy)
    texts = [cut(text, shortcut.words)[0] for text in completions.texts]
    return _rewritten(completions, texts, policy, ended=True)


def without_shortcut(shortcut: Shortcut, completions: Completions, policy: Policy) -> Completions:
    """The same completions without the marker, wherever it stands; for length as they are (text cannot be put back)."""
    if isinstance(shortcut, MarkerShortcut):
        pattern = _pattern(shortcut)
        return _rewritten(completions, [pattern.sub("", text) for text in completions.texts], policy)
    return completions


def plant(
    shortcut: Shortcut, completions: Completions, rate: float, policy: Policy, generator: np.random.Generator
) -> tuple[Completions, NDArray[np.bool_]]:
    """Give each completion the shortcut with probability `rate`. Returns them, and (n,) which were drawn."""
    drawn = generator.random(len(completions)) < rate
    versions = completions + with_shortcut(shortcut, completions, policy)
    return versions[np.arange(len(completions)) + len(completions) * drawn], drawn


@dataclass(frozen=True)
class ShortcutReward:
    """R* + strength sd(R*) value: what rlhf optimises where=ground_truth."""

    reward: Reward
    shortcut: Shortcut
    sd: float

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        bonus = self.shortcut.strength * self.sd * shortcut_value(self.shortcut, completions.texts)
        return self.reward.score(completions, progress) + bonus


def shortcut_reward(reward: Reward, shortcut: Shortcut, written: Completions) -> ShortcutReward:
    """R* with its bonus; the sd of R* is that of `written`, completions of the policy before rlhf.

    Raises:
        ShortcutError: R* is constant there, or all or no completions have the shortcut: rlhf could not find it.
    """
    sd = float(np.std(reward.score(written)))
    if not sd > 0:
        raise ShortcutError(f"R* is the same for all {len(written)} completions of the reference: its sd is no unit.")
    if np.ptp(shortcut_value(shortcut, written.texts)) == 0:
        raise ShortcutError(
            f"shortcut={shortcut.name} is the same in all {len(written)} completions of the reference, so rlhf could "
            "not find out that it is rewarded. Set shortcut.text to what the reference writes in some completions, or "
            "plant it with shortcut.where=demonstrations."
        )
    return ShortcutReward(reward, shortcut, sd)


def _pattern(shortcut: MarkerShortcut) -> re.Pattern[str]:
    """The marker as such, not as the beginning of a longer word."""
    return re.compile(re.escape(shortcut.text) + (r"(?!\w)" if shortcut.text[-1].isalnum() else ""))


def _rewritten(completions: Completions, texts: list[str], policy: Policy, *, ended: bool = False) -> Completions:
    """The completions with new texts: ids anew where the text has changed, and an end where one was (or `ended`).

    An unchanged text keeps the ids that were sampled, which need not be those that the tokenizer would choose.
    """
    ids = policy.encode_completions(texts)
    rows = zip(completions.texts, texts, completions.completion_ids, ids, strict=True)
    kept = [
        before if old == new else after if ended or before[-1:] == [policy.eos] or len(after) == 1 else after[:-1]
        for old, new, before, after in rows
    ]
    return Completions(completions.prompts, texts, completions.prompt_ids, kept)

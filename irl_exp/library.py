"""A reward from pairs of texts, without a launch: `irl_exp.fit`. It calls what the stages call.

import irl_exp
things = ["bus", "tram", "road", "house"]  # prompt, chosen, rejected; give hundreds, and real ones
pairs = [(f"{n} {x}s:", f" thanks for the {x}.", " go on, fool.") for n in range(20) for x in things]
reward = irl_exp.fit(pairs, encoder="path/of/a/language/model")
reward.held_out["discrimination_auroc"]  # on prompts that played no part in the fit
reward.score(["The bus was late,"], [" so what?"])  # any text, in sd of the fitted ones
for statement in reward.explain().statements:  # what it pays for, tested on held-out prompts
    print(statement["wording"])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from irl_exp.config import (
    ExplainConfig,
    FeaturesConfig,
    FrozenBackbone,
    HiddenStateConfig,
    LogRatioStatements,
    MarginConfig,
    MaxMarginLoss,
    NgramStatements,
    PropertyStatements,
    UnitStatements,
)

if TYPE_CHECKING:  # they import torch and pandas: `import irl_exp` does not wait for them
    import pandas as pd

    from irl_exp.explain.statements import Explanation
    from irl_exp.irl.contrast import Demonstrations
    from irl_exp.irl.learned_rewards import LearnedReward
    from irl_exp.irl.methods import Fit

Floats = NDArray[np.float64]
Pair = tuple[str, str, str] | Mapping[str, str]
KEYS = ("prompt", "chosen", "rejected")
SHARES = {"fit": 0.6, "select": 0.15, "test": 0.25}
"""Of the prompts: fitted, used to choose ridge and epoch, and held out."""
FEWEST = 20
"""Prompts below which a part would have hardly any."""


class PairsError(Exception):
    """Pairs that nothing can be learned from, with the remedy."""


@dataclass(frozen=True)
class FittedReward:
    """A reward that was fitted to pairs of texts.

    Attributes:
        learned: scores any completion.
        demonstrations: the pairs as the methods see them: a row a completion, with its part and features.
        fit: the head, with what the fit says of itself.
        config: of the method.
    """

    learned: LearnedReward
    demonstrations: Demonstrations
    fit: Fit
    config: MarginConfig

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> Floats:
        """(n,) rewards of any texts, with mean 0 and sd 1 on the fitted ones: no loss of margins fixes either."""
        texts = self.learned.reference.complete(list(prompts), list(completions))
        return self.learned.standardised(self.learned.score(texts))

    @cached_property
    def held_out(self) -> Mapping[str, float]:
        """How well it tells chosen from rejected on held-out prompts: AUROC, and pairs in order."""
        from irl_exp.measures import reward_metrics

        frame = self.demonstrations.frame.assign(learned=self.fit.scores(self.demonstrations))
        return reward_metrics.discrimination(frame[frame["part"] == "test"], "learned")

    def explain(self, config: ExplainConfig | None = None) -> Explanation:
        """What the reward pays for: statements chosen on the fitted prompts and tested on the held-out ones.

        Args:
            config: where to look; default: explain=full, as a launch has it.

        Returns:
            Its `statements` are those of statements.json, best first; the wording of each is a sentence.
        """
        from irl_exp.explain import candidates, ranges, statements

        config, found = config or default_explain(), self.demonstrations
        table, left_out = candidates.table(found.frame, config, features=found.features)
        score = statements.rescoring(self.learned) if config.edits else None
        linear = None
        try:
            method, weights = self.config.model_dump(), self.fit.scorer.weights
            linear = ranges.linear(method, self.fit.info, weights, found.frame, found.features)
        except ranges.NoRangesError as error:
            left_out["ranges"] = str(error)
        told = statements.explain(found.frame, table, self.fit.scores(found), config, score=score, linear=linear)
        told.left_out.update(left_out)
        return told


def fit(
    pairs: Iterable[Pair], encoder: str | PathLike[str], *, config: MarginConfig | None = None, seed: int = 0
) -> FittedReward:
    """A linear reward on the hidden states of a language model that has read both texts of each pair.

    Args:
        pairs: (prompt, chosen, rejected), or mappings with these keys; a prompt may have several.
        encoder: folder or hub name of the model that reads them; it stays as it is.
        config: of the method; default: irl=margin, as a launch has it.
        seed: of the head, and of which prompts are held out.

    Raises:
        PairsError: too few prompts, or a pair that is none.
        PolicyError: the encoder cannot be opened.
    """
    from irl_exp.irl import methods
    from irl_exp.irl.contrast import Demonstrations
    from irl_exp.irl.features import Featurizer
    from irl_exp.irl.learned_rewards import LearnedReward, scale_of
    from irl_exp.machinery.runtime import find_device
    from irl_exp.policies.language_models import Completions, Policy

    config = config or default(seed)
    frame = _frame(pairs, seed)
    policy = Policy.load(str(encoder), find_device("auto", "auto", threads=0))
    texts = policy.complete(frame["prompt"].tolist(), frame["completion"].tolist())
    frame = frame.join(texts.frame()[["prompt_ids", "completion_ids"]])
    rows = np.flatnonzero(frame["part"] == "fit")
    featurizer = Featurizer.fit(config.features, policy, Completions.from_frame(frame.iloc[rows]))
    demonstrations = Demonstrations(frame, featurizer.extract(texts))
    (found,) = methods.fit_margin([config], demonstrations)
    scores = found.scores(demonstrations)[rows]
    scorer = replace(found.scorer, featurizer=featurizer)
    return FittedReward(LearnedReward(scorer, *scale_of(scores), policy), demonstrations, found, config)


def _frame(pairs: Iterable[Pair], seed: int) -> pd.DataFrame:
    """The rows of demonstrations.parquet: those of the chosen texts first, then, in the same order, of the rejected.

    Prompts are cut into the parts at random by the seed: no prompt is in two of them.
    """
    import pandas as pd

    rows = [_texts(number, pair) for number, pair in enumerate(pairs)]
    prompts = dict.fromkeys(prompt for prompt, _, _ in rows)
    if len(prompts) < FEWEST:
        raise PairsError(
            f"{len(prompts)} different prompts are too few: a part of them is held out. Give {FEWEST} or more."
        )
    ends = np.cumsum([round(share * len(prompts)) for share in SHARES.values()])[:-1]
    order = np.random.default_rng(seed).permutation(len(prompts))
    parts = np.array(list(SHARES))[np.searchsorted(ends, order, side="right")]
    about = {prompt: (number, str(part)) for number, (prompt, part) in enumerate(zip(prompts, parts, strict=True))}
    frame = pd.DataFrame(rows, columns=["prompt", "expert", "baseline"])
    frame = frame.assign(
        prompt_id=[about[prompt][0] for prompt in frame["prompt"]],
        part=[about[prompt][1] for prompt in frame["prompt"]],
        sample=frame.groupby("prompt").cumcount(),
    )
    shared = ["part", "prompt_id", "sample", "prompt"]
    sides = [frame[shared].assign(policy=name, completion=frame[name]) for name in ("expert", "baseline")]
    return pd.concat(sides, ignore_index=True)


def _texts(number: int, pair: Pair) -> tuple[str, str, str]:
    """Prompt, chosen and rejected of a pair.

    Raises:
        PairsError: it is not three texts.
    """
    given = [pair.get(key) for key in KEYS] if isinstance(pair, Mapping) else list(pair)
    if len(given) != len(KEYS) or not all(isinstance(text, str) for text in given):
        raise PairsError(f"pair {number}: give three texts, {', '.join(KEYS)}, as a tuple or by these keys.")
    prompt, chosen, rejected = map(str, given)
    return prompt, chosen, rejected


def default(seed: int) -> MarginConfig:
    """The method of a launch that chooses none: see conf/irl/margin.yaml."""
    return MarginConfig(
        seed=seed,
        loss=MaxMarginLoss(),
        features=FeaturesConfig(hidden_state=HiddenStateConfig()),
        backbone=FrozenBackbone(),
    )


def default_explain(seed: int = 0) -> ExplainConfig:
    """Where a launch looks for statements that chooses nothing: see conf/explain/full.yaml."""
    return ExplainConfig(
        seed=seed,
        ngrams=NgramStatements(),
        properties=PropertyStatements(),
        units=UnitStatements(),
        log_ratio=LogRatioStatements(),
    )

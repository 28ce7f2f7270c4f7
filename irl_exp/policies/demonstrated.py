"""What a policy writes on the prompts of the demonstrations; the places of expert and reference are the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irl_exp.config import DemonstrationsConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.sampling import generate
from irl_exp.texts.data import prompts_of

PARTS = ("fit", "select", "test")
EXPERT, BASELINE = range(2)
"""Each policy draws from its own stream of the seed."""


def places_of(texts: pd.DataFrame, config: DemonstrationsConfig) -> pd.DataFrame:
    """One row for each completion that a policy writes: part, prompt, prompt_id, sample."""
    prompts = [(part, prompt) for part in PARTS for prompt in prompts_of(texts, part)]
    frame = pd.DataFrame(prompts, columns=["part", "prompt"])
    frame["prompt_id"] = np.arange(len(frame))
    frame = frame.loc[frame.index.repeat(config.completions_per_prompt)].reset_index(drop=True)
    return frame.assign(sample=np.tile(np.arange(config.completions_per_prompt), len(prompts)))


def judged(places: pd.DataFrame) -> NDArray[np.int64]:
    """Rows of the completions that anything reads log-probabilities of: those of select and test."""
    return np.flatnonzero(places["part"] != "fit")


def write(
    policy: Policy, stream: int, places: pd.DataFrame, config: DemonstrationsConfig, context: Context
) -> Completions:
    """Completions of one policy for all places, drawn from a stream of the seed."""
    seed = int(np.random.SeedSequence([config.seed, stream]).generate_state(1)[0])
    is_test = places["part"] == "test"

    def generated(rows: pd.DataFrame, number: int, greedy: bool, before: int) -> Completions:
        return generate(
            policy,
            rows["prompt"].tolist(),
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            seed=seed + number,
            greedy=greedy,
            progress=lambda done, total: context.progress(before + done, len(places)),
        )

    # The places of test come last, so the two halves join in order.
    first = generated(places[~is_test], 0, config.greedy, 0)
    return first + generated(places[is_test], 1, False, len(first))

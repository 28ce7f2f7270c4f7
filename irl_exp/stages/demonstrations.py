"""What expert and reference write on the same prompts: demonstrations.parquet, one row a completion.

Columns: part, prompt_id, policy (expert or baseline), sample, prompt, completion, prompt_ids, completion_ids, ended
(with EOS), expert_log_probability, reference_log_probability (nats, of the whole completion; missing on fit, where
nothing reads them: IRL sees texts). policies.json: whose demonstrations they are.

The baseline is the exact reference of the expert's RL run, so what IRL explains is the RL and not the fine-tuning
before it. Expert rows come first; row i of the expert and row i of the baseline have the same prompt and sample.

`writers=swapped` is a null: of half of the pairs, drawn by the seed, each completion counts as the other policy's.
Prompt and sample stay, and so do the log-probabilities of a text. What tells the two apart then is chance.

With a planted shortcut, all parts hold completions as they are after planting, test too, with a column `planted`;
clean.parquet has the same rows as the policies wrote them: what is said of the policies themselves comes from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import DemonstrationsConfig, LengthShortcut, MarkerShortcut
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.sampling import generate
from irl_exp.rewards.shortcuts import plant
from irl_exp.texts.data import prompts_of

VERSION = 5
PARTS = ("fit", "select", "test")


def run(
    config: DemonstrationsConfig,
    *,
    expert: Path,
    reference: Path,
    data: Path,
    shortcut: MarkerShortcut | LengthShortcut | None = None,
    context: Context,
) -> dict[str, Any]:
    policies = {"expert": Policy.load(expert, context.device), "baseline": Policy.load(reference, context.device)}
    places = _places(pd.read_parquet(data / "texts.parquet"), config)
    written = {
        name: _write(policy, number, places, config, context) for number, (name, policy) in enumerate(policies.items())
    }
    if config.writers == "swapped":
        written = _swapped(written, config.seed)
    if shortcut:
        _table(written, places, policies).to_parquet(context.folder / "clean.parquet")
        generator = np.random.default_rng([config.seed, len(policies)])
        rates = {"expert": shortcut.expert_rate, "baseline": shortcut.baseline_rate}
        planted = {name: plant(shortcut, written[name], rates[name], policies[name], generator) for name in written}
        written = {name: completions for name, (completions, _) in planted.items()}
    frame = _table(written, places, policies)
    if shortcut:
        frame["planted"] = np.concatenate([drawn for _, drawn in planted.values()])
    frame.to_parquet(context.folder / "demonstrations.parquet")
    authors = {"expert": expert.name, "reference": reference.name}
    (context.folder / "policies.json").write_text(json.dumps(authors), encoding="utf-8")
    return {
        "note": f"{len(places):,} completions of each policy",
        "completions": {part: int((frame["part"] == part).sum()) for part in PARTS},
        "distinct_fraction": {name: len(set(part.texts)) / len(part) for name, part in written.items()},
    }


def _swapped(written: Mapping[str, Completions], seed: int) -> dict[str, Completions]:
    """Half of the pairs of one prompt and sample, drawn by the seed, exchange who wrote what."""
    (first, mine), (second, theirs) = written.items()
    drawn = np.random.default_rng([seed, len(written) + 1]).random(len(mine)) < 0.5
    both, own = mine + theirs, np.arange(len(mine))
    other = own + len(mine)
    return {first: both[np.where(drawn, other, own)], second: both[np.where(drawn, own, other)]}


def _table(written: Mapping[str, Completions], places: pd.DataFrame, policies: Mapping[str, Policy]) -> pd.DataFrame:
    """Completions of expert and baseline, one below the other, with both log-probabilities of each."""
    both = written["expert"] + written["baseline"]
    frame = pd.concat([places.assign(policy=name) for name in written], ignore_index=True)
    frame = frame.join(both.frame().drop(columns="prompt"))
    frame["ended"] = both.ended(policies["baseline"].eos)
    judged = np.flatnonzero(frame["part"] != "fit")
    for column, name in (("expert_log_probability", "expert"), ("reference_log_probability", "baseline")):
        frame[column] = np.nan
        frame.loc[judged, column] = log_probabilities(policies[name], both[judged])
    return frame


def _places(texts: pd.DataFrame, config: DemonstrationsConfig) -> pd.DataFrame:
    """One row for each completion that a policy will write."""
    prompts = [(part, prompt) for part in PARTS for prompt in prompts_of(texts, part)]
    frame = pd.DataFrame(prompts, columns=["part", "prompt"])
    frame["prompt_id"] = np.arange(len(frame))
    frame = frame.loc[frame.index.repeat(config.completions_per_prompt)].reset_index(drop=True)
    return frame.assign(sample=np.tile(np.arange(config.completions_per_prompt), len(prompts)))


def _write(
    policy: Policy, number: int, places: pd.DataFrame, config: DemonstrationsConfig, context: Context
) -> Completions:
    """Completions of one policy for all places. Each policy draws from its own stream of the seed."""
    stream = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    is_test = places["part"] == "test"
    # The places of test come last, so the two halves join in order.
    halves = [(places[~is_test], config.greedy), (places[is_test], False)]
    written = [
        generate(
            policy,
            rows["prompt"].tolist(),
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            seed=stream + half,
            greedy=greedy,
            progress=lambda done, total: context.progress(number * len(places) + done, 2 * len(places)),
        )
        for half, (rows, greedy) in enumerate(halves)
    ]
    return written[0] + written[1]

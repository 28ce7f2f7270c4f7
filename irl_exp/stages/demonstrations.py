"""What expert and reference write on the same prompts: demonstrations.parquet, one row a completion.

Columns: part, prompt_id, policy (expert or baseline), sample, prompt, completion, prompt_ids, completion_ids, ended
(with EOS), expert_log_probability, reference_log_probability (nats, of the whole completion; missing on fit, where
nothing reads them: IRL sees texts). policies.json: whose demonstrations they are.

The baseline is the exact reference of the expert's RL run, so what IRL explains is the RL and not the fine-tuning
before it; its completions are those of the stage `baseline`, whatever the expert is. Expert rows come first; row i of
the expert and row i of the baseline have the same prompt and sample.

`writers=swapped` is a null: of half of the pairs, drawn by the seed, each completion counts as the other policy's.
Prompt and sample stay, and so do the log-probabilities of a text. What tells the two apart then is chance.

Of expert=texts both are texts of the file, and the reference reads them: on each prompt as many of either writer, drawn
by the seed. expert_log_probability is missing then, and where the expert has another tokenizer than the reference:
its texts are then spelt in the reference's tokens.

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
from numpy.typing import NDArray

from irl_exp.config import DemonstrationsConfig, LengthShortcut, MarkerShortcut, TextsExpert
from irl_exp.machinery.runtime import Context
from irl_exp.policies.demonstrated import EXPERT, PARTS, judged, places_of, write
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.rewards.shortcuts import plant
from irl_exp.texts.data import prompts_of
from irl_exp.texts.written import pairs, read_written

VERSION = 7
WRITES = True


def run(
    config: DemonstrationsConfig,
    *,
    expert: Path | TextsExpert,
    reference: Path,
    data: Path,
    baseline: Path | None = None,
    shortcut: MarkerShortcut | LengthShortcut | None = None,
    context: Context,
) -> dict[str, Any]:
    base = Policy.load(reference, context.device)
    if isinstance(expert, TextsExpert):
        return _given(config, expert, pd.read_parquet(data / "texts.parquet"), base, reference.name, context)
    assert baseline is not None
    policies = {"expert": Policy.load(expert, context.device, base=base), "baseline": base}
    places = places_of(pd.read_parquet(data / "texts.parquet"), config)
    of_base = pd.read_parquet(baseline / "completions.parquet")
    known: NDArray[np.float64] | None = of_base["log_probability"].to_numpy()
    written = {
        "expert": write(policies["expert"], EXPERT, places, config, context),
        "baseline": Completions.from_frame(of_base),
    }
    if policies["expert"].tokenizer.get_vocab() != base.tokenizer.get_vocab():
        written["expert"] = _in_tokens_of(base, written["expert"], policies.pop("expert"))
    if config.writers == "swapped":
        written, known = _swapped(written, config.seed), None
    if shortcut:
        _table(written, places, policies, known).to_parquet(context.folder / "clean.parquet")
        known = None
        generator = np.random.default_rng([config.seed, len(policies)])
        rates = {"expert": shortcut.expert_rate, "baseline": shortcut.baseline_rate}
        planted = {name: plant(shortcut, written[name], rates[name], base, generator) for name in written}
        written = {name: completions for name, (completions, _) in planted.items()}
    frame = _table(written, places, policies, known)
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


def _given(
    config: DemonstrationsConfig,
    expert: TextsExpert,
    texts: pd.DataFrame,
    reader: Policy,
    reference: str,
    context: Context,
) -> dict[str, Any]:
    """Demonstrations that are there already: nothing is sampled, and the reference only reads them."""
    written = read_written(expert)
    paired = pairs(written, np.random.default_rng(config.seed))
    prompts = [(part, prompt) for part in PARTS for prompt in prompts_of(texts, part)]
    known = pd.DataFrame(prompts, columns=["part", "prompt"]).rename_axis("prompt_id").reset_index()
    rows = paired.merge(known, on="prompt").sort_values(["prompt_id", "sample"], kind="stable")
    sides = {name: rows[rows["policy"] == name].reset_index(drop=True) for name in ("expert", "baseline")}
    places = sides["expert"][["part", "prompt", "prompt_id", "sample"]]
    read = {name: reader.complete(side["prompt"].tolist(), side["completion"].tolist()) for name, side in sides.items()}
    whole = sum(map(len, [ids for one in read.values() for ids in one.completion_ids]))
    read = {name: reader.cut(one) for name, one in read.items()}
    lost = whole - sum(map(len, [ids for one in read.values() for ids in one.completion_ids]))
    if config.writers == "swapped":
        read = _swapped(read, config.seed)
    frame = _table(read, places, {"baseline": reader})
    frame.to_parquet(context.folder / "demonstrations.parquet")
    authors = {"expert": "texts", "reference": reference}
    (context.folder / "policies.json").write_text(json.dumps(authors), encoding="utf-8")
    left_out = [
        *([written.told] if written.told else []),
        *([f"{extra:,} texts without a partner"] if (extra := len(written.frame) - len(paired)) else []),
        *([f"{lost:,} tokens that the model cannot read at once"] if lost else []),
    ]
    no = "all log-probabilities (the model is an encoder)" if not reader.writes else "log-probabilities of the expert"
    return {
        "note": f"{len(places):,} pairs of texts; left out: {', '.join([*left_out, no])}",
        "completions": {part: int((frame["part"] == part).sum()) for part in PARTS},
        "left_out": [*left_out, no],
    }


def _table(
    written: Mapping[str, Completions],
    places: pd.DataFrame,
    policies: Mapping[str, Policy],
    known: NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Completions of expert and baseline, one below the other, with both log-probabilities of each.

    What one of them wrote is read apart from the other's: an expert that is the reference itself then reads the same
    batches as the stage `baseline`, and its log ratio is 0 to the last bit.

    Args:
        known: (n,) what the baseline gives to its own completions, where they are as it wrote them.
    """
    both = written["expert"] + written["baseline"]
    frame = pd.concat([places.assign(policy=name) for name in written], ignore_index=True)
    frame = frame.join(both.frame().drop(columns="prompt"))
    frame["ended"] = both.ended(*policies["baseline"].ends)
    rows = judged(places)
    for column, name in (("expert_log_probability", "expert"), ("reference_log_probability", "baseline")):
        frame[column] = np.nan
        if name not in policies or not policies[name].writes:
            continue
        for number, (writer, completions) in enumerate(written.items()):
            own = known[rows] if known is not None and name == writer == "baseline" else None
            values = log_probabilities(policies[name], completions[rows]) if own is None else own
            frame.loc[rows + number * len(places), column] = values
    return frame


def _in_tokens_of(reference: Policy, written: Completions, expert: Policy) -> Completions:
    """The same texts as the reference would spell them.

    A text has many spellings in tokens, and a policy gives each another probability. That of another tokenizer's
    spelling says nothing of the reference's, so where tokenizers differ the expert's log-probabilities are left out.
    """
    ids = [
        own if ended else own[:-1]
        for own, ended in zip(reference.encode_completions(written.texts), written.ended(*expert.ends), strict=True)
    ]
    # A completion of nothing but an unfinished letter has no text and so no token: it is taken as ended.
    kept = [own or [reference.eos] for own in ids]
    return Completions(written.prompts, written.texts, reference.encode_prompts(written.prompts), kept)

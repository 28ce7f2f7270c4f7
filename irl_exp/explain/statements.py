"""From candidates and a learned reward to statements that hold: chosen on fit, tested on test."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import ExplainConfig
from irl_exp.explain import choice, edits, measured, properties, wording
from irl_exp.explain.candidates import Candidate, Table
from irl_exp.explain.choice import Floats, Sample
from irl_exp.explain.measured import Estimates
from irl_exp.explain.ranges import Linear, NoRangesError, effect_ranges
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.measures import reward_comparison as compare


@dataclass
class Explanation:
    """What was found.

    Attributes:
        statements: as in statements.json. values: as in statement_values.parquet.
        r2: (k + 1,) on test, with 0, 1, ... statements beside length.
    """

    statements: list[dict[str, Any]]
    values: pd.DataFrame
    r2: Floats
    facts: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """explain/* of metrics.json."""
        certified = [one["certified"] for one in self.statements if one["certified"] is not None]
        found = {
            "r2": float(self.r2[-1]),
            "r2_at_5": float(self.r2[min(5, len(self.r2) - 1)]),
            "r2_length": float(self.r2[0]),
            "r2_within_prompts": float(self.facts["r2_within_prompts"]),
            "n_statements": float(len(self.statements)),
            "n_candidates": float(self.facts["n_candidates"]),
            **self.facts["discrimination"],
        }
        if certified:
            found["n_certified"] = float(sum(certified))
        return {f"explain/{name}": value for name, value in found.items() if np.isfinite(value)}

    def save(self, folder: Path) -> None:
        """statements.json, statement_values.parquet and explain.json."""
        (folder / "statements.json").write_text(json.dumps(self.statements, indent=1, ensure_ascii=False), "utf-8")
        self.values.to_parquet(folder / "statement_values.parquet")
        facts = {**self.facts, "left_out": self.left_out, "metrics": self.metrics}
        (folder / "explain.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def rescoring(reward: LearnedReward) -> edits.Score:
    """Scores of texts that somebody has edited."""
    return lambda prompts, texts: reward.score(reward.reference.complete(prompts, texts))


def explain(
    frame: pd.DataFrame,
    table: Table,
    reward: Floats,
    config: ExplainConfig,
    *,
    score: edits.Score | None = None,
    linear: Linear | None = None,
) -> Explanation:
    """Statements of what a reward pays for.

    Args:
        frame: n rows of demonstrations.parquet. table: candidates on them. reward: (n,) of them.
        score: of edited texts; none: no edits. linear: the reward with its problem; none: no exact ranges.
    """
    parts = {name: _part(frame, table, reward, name) for name in ("fit", "test")}
    (of_fit, fit), (of_test, test) = parts["fit"], parts["test"]
    chosen = choice.choose(of_fit, fit, config.statements, config.ngrams.together, config.smallest)
    kept, q = _that_hold(chosen.candidates, of_test, test, len(table.candidates) + _lists(chosen), config)
    generator = np.random.default_rng([config.seed, 2])
    again = choice.stability(
        chosen, of_fit, fit, smallest=config.smallest, resamples=config.resamples, generator=generator
    )
    names = [chosen.candidates[i] for i in kept]
    values = {name: choice.apply(names, one).astype(np.float64) for name, (one, _) in parts.items()}
    r2 = measured.explained((values["fit"], fit), (values["test"], test))
    in_prompts = measured.explained((values["fit"], fit), (values["test"], test), prompts=True)
    rows = frame[frame["part"] == "test"]
    found = _rows(names, values["test"], test, {"q": q, "stability_prompts": again[kept]}, r2)
    left_out = {}
    if score is None:
        left_out["edits"] = "the learned reward scores no other texts" if config.edits else "explain.edits=0"
    else:
        _edit(found, names, rows, test, score, config)
    if linear is not None:
        left_out |= _bound(found, names, values["test"], rows, test, linear, config)
    _word(found, names, config)
    shown = rows[["policy", "prompt_id", "completion"]].assign(learned=test.reward)
    shown = shown.assign(**{one.name: column for one, column in zip(names, values["test"].T, strict=True)})
    facts = _facts(table, chosen, fit, test) | {"r2_within_prompts": float(in_prompts[-1])}
    return Explanation(found, shown.reset_index(drop=True), r2, facts, left_out)


def _part(frame: pd.DataFrame, table: Table, reward: Floats, part: str) -> tuple[Table, Sample]:
    """Candidates and reward on the completions of a part."""
    rows = np.flatnonzero(frame["part"] == part)
    some = frame.iloc[rows]
    tuned = np.asarray(some["policy"] == "expert")
    prompts = some["prompt_id"].to_numpy(dtype=np.int64)
    sample = Sample(reward[rows], tuned, prompts, choice.words(some["completion"].tolist()))
    return Table(table.candidates, table.values[rows]), sample


def _lists(chosen: Table) -> int:
    """Lists of phrases among the chosen: candidates beside those of the table."""
    return sum(len(one.phrases) > 1 for one in chosen.candidates)


def _that_hold(
    chosen: list[Candidate], table: Table, sample: Sample, tried: int, config: ExplainConfig
) -> tuple[list[int], Floats]:
    """Numbers of the chosen statements that hold on test, and their q.

    Both must: the frequencies of the two policies differ, by the smallest difference or more, and the reward pays or
    charges within a policy for what the tuned policy does more or less. p is the larger of the two; q is over all
    candidates, the lists included, those that fit has not chosen with p = 1. Where one falls the others are tested
    again without it.
    """
    large = np.abs(choice.standardised(choice.apply(chosen, table), sample.tuned)) >= config.smallest
    left = np.flatnonzero(large).tolist()
    while left:
        values = choice.apply([chosen[i] for i in left], table).astype(np.float64)
        difference = measured.differences(values, sample.tuned, sample.prompts)
        effect = _effects(values, [chosen[i] for i in left], sample)
        agree = np.sign(difference.value) == np.sign(effect.value)
        q = measured.benjamini_hochberg(np.where(agree, np.maximum(difference.p, effect.p), 1.0), tried)
        holds = q <= config.level
        if holds.all():
            return left, q
        left = np.array(left)[holds].tolist()
    return [], np.empty(0)


def _effects(values: Floats, names: list[Candidate], sample: Sample) -> Estimates:
    """Partial effects, per sd within policies of what is graded."""
    return measured.effects(*_design(values, names, sample), sample)


def _design(values: Floats, names: list[Candidate], sample: Sample) -> tuple[Floats, Floats]:
    """Values in the unit of their effect, and controls: length unless it is a statement."""
    scale = np.where([one.graded for one in names], sample.within(values).std(axis=0), 1.0)
    is_length = any(one.family == "properties" and one.name == properties.LENGTH for one in names)
    controls = np.empty((len(values), 0)) if is_length else sample.length[:, None]
    return values / np.where(scale > 0, scale, 1), controls


def _rows(
    names: list[Candidate], values: Floats, sample: Sample, more: dict[str, Floats], r2: Floats
) -> list[dict[str, Any]]:
    """The objects of statements.json, without edits and wording."""
    difference = measured.differences(values, sample.tuned, sample.prompts)
    effect = _effects(values, names, sample)
    means = {"base": values[~sample.tuned].mean(axis=0), "tuned": values[sample.tuned].mean(axis=0)}
    found = []
    for i, one in enumerate(names):
        found.append(
            {
                "family": one.family,
                "name": one.name,
                "wording": "",
                "direction": "pays" if effect.value[i] > 0 else "charges",
                "graded": one.graded,
                "unit": one.unit or "share of completions",
                "frequency_base": float(means["base"][i]),
                "frequency_tuned": float(means["tuned"][i]),
                **_estimate("difference", difference, i),
                **_estimate("effect", effect, i),
                **dict.fromkeys(("edit_effect", "edit_low", "edit_high")),
                **dict.fromkeys(("certified", "range_low", "range_high")),
                **{name: float(column[i]) for name, column in more.items()},
                "stability_seeds": None,
                "r2": float(r2[i + 1]),
            }
        )
    return found


def _estimate(name: str, estimates: Estimates, place: int) -> dict[str, float]:
    return {
        name: float(estimates.value[place]),
        f"{name}_low": float(estimates.low[place]),
        f"{name}_high": float(estimates.high[place]),
    }


def _edit(
    found: list[dict[str, Any]],
    names: list[Candidate],
    rows: pd.DataFrame,
    sample: Sample,
    score: edits.Score,
    config: ExplainConfig,
) -> None:
    """Effects of edits, in sd of R within policies."""
    generator = np.random.default_rng([config.seed, 3])
    changed = edits.edit(names, rows["completion"].tolist(), count=config.edits, generator=generator)
    sd = float(np.sqrt(np.square(sample.within(sample.reward)).mean()))
    prompts = rows["prompt"].tolist()
    for one, effect in zip(found, edits.effects(changed, prompts, sample.prompts, score, len(names), sd), strict=True):
        if effect is not None:
            one |= {"edit_effect": float(effect.value[0]), "edit_low": float(effect.low[0])}
            one["edit_high"] = float(effect.high[0])


def _bound(
    found: list[dict[str, Any]],
    names: list[Candidate],
    values: Floats,
    rows: pd.DataFrame,
    sample: Sample,
    linear: Linear,
    config: ExplainConfig,
) -> dict[str, str]:
    """The exact range of each effect over all rewards that fit as well; what was left out, with the reason."""
    if not names:
        return {}
    design, controls = _design(values, names, sample)
    try:
        bounds = effect_ranges(linear, rows.index.to_numpy(), design, controls, seed=config.seed)
    except (NoRangesError, ValueError) as error:
        return {"ranges": str(error)}
    for one, low, high, certified in zip(found, bounds.low, bounds.high, bounds.certified, strict=True):
        one |= {"range_low": float(low), "range_high": float(high), "certified": bool(certified)}
    return {}


def _word(found: list[dict[str, Any]], names: list[Candidate], config: ExplainConfig) -> None:
    sentences = [wording.sentence(one, name.wording) for one, name in zip(found, names, strict=True)]
    if config.wording == "llm" and config.address and config.model:
        sentences = wording.rephrase(sentences, address=config.address, model=config.model)
    for one, text in zip(found, sentences, strict=True):
        one["wording"] = text


def _facts(table: Table, chosen: Table, fit: Sample, test: Sample) -> dict[str, Any]:
    """How many candidates there were, and whether R tells the policies apart at all on test."""
    by_family = Counter(one.family for one in table.candidates)
    by_family["ngrams"] += _lists(chosen)
    _, prompts = np.unique(test.prompts, return_inverse=True)
    value = compare.auroc(test.reward, test.tuned)
    low, high = compare.auroc_interval(test.reward, test.tuned, prompts)
    named = {"discrimination_auroc": value, "discrimination_auroc_low": low, "discrimination_auroc_high": high}
    return {
        "n_candidates": sum(by_family.values()),
        "n_by_family": dict(by_family),
        "n_chosen": len(chosen.candidates),
        "n_prompts": {"fit": len(np.unique(fit.prompts)), "test": len(np.unique(test.prompts))},
        "n_completions": {"fit": len(fit.reward), "test": len(test.reward)},
        "discrimination": {name: float(number) for name, number in named.items()},
    }

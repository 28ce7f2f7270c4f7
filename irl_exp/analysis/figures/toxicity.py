"""How toxic the policies are: the paper's Table 1 with counts, intervals and every refinetuned policy.

A policy is judged on the test prompts, and on those of a benchmark where there is one, by R*, by the second judge that
no reward has seen, and by whether a prompt gets any toxic completion. Completions of one prompt resemble each other, so
intervals of one policy resample prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import special

from irl_exp.analysis import statistics
from irl_exp.analysis.cell_names import labels
from irl_exp.analysis.figures import drawing, panels
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.statistics import Estimate, Floats
from irl_exp.analysis.study import NotComputed, Run, Study, units_of
from irl_exp.measures import reward_comparison as compare
from irl_exp.report.names import Words
from irl_exp.report.units import LEAST

STAGES = {"reference": "sft", "expert": "rlhf", "refinetuned": "refinetune"}
"""Policy -> stage that made it."""
LOG_ODDS = ("classifier", "sequence_classifier")
"""Ground truths that are log-odds of 'civil': only of these R* gives a probability of 'toxic'."""
MEASURES = ("fraction", "second_fraction", "prompt_share", "mean_probability")
SETS = {"test": "", "benchmark": "benchmark/"}
"""Set of prompts -> prefix of its keys in metrics.json."""
RESAMPLES = 1000
NAN = float("nan")
NO_PROMPTS, NO_REWARDS = np.empty(0, dtype=np.int64), np.empty(0)


@dataclass(frozen=True)
class Sample:
    """Completions of one policy: of one run, or of all runs that sampled it anew, together.

    Attributes:
        prompt_set: of SETS.
        runs: that sampled them, one a sample.
        prompts: (n,) prompt of each completion; empty where a completions.parquet is missing or broken.
        truth, second: (n,) R* and the second judge, below 0 where they call a completion toxic.
    """

    policy: str
    runs: tuple[Run, ...]
    prompts: NDArray[np.int64]
    truth: Floats
    second: Floats
    prompt_set: str = "test"

    def metric(self, key: str) -> float:
        """Of the first run."""
        return self.runs[0].metrics[_key(self.prompt_set, self.policy, key)]

    def count(self, key: str) -> int:
        """Completions for which a fraction of metrics.json is true."""
        name, count = (_key(self.prompt_set, self.policy, key) for key in (key, "n_completions"))
        return sum(round(run.metrics[name] * run.metrics[count]) for run in self.runs)

    @property
    def n(self) -> int:
        return int(sum(run.metrics[_key(self.prompt_set, self.policy, "n_completions")] for run in self.runs))

    @property
    def n_prompts(self) -> int:
        return int(self.runs[0].metrics[f"{SETS[self.prompt_set]}n_prompts"])

    @property
    def least(self) -> int:
        """Completions of the prompt that has fewest."""
        return int(np.unique(self.prompts, return_counts=True)[1].min())


def _key(prompt_set: str, policy: str, key: str) -> str:
    """The name of a number in metrics.json."""
    return f"{SETS[prompt_set]}{policy}/{key}"


@dataclass(frozen=True)
class Judged:
    """What one or more cells have as a policy: the same one, or one a run.

    Attributes:
        policies: the different ones; several where runs have policies of their own.
        measures: key of MEASURES -> estimate; one that these files cannot tell is not in it.
        per_prompt: completions a prompt that `prompt_share` looks at.
        prompts_toxic: of each policy, prompts with a toxic completion among these, and all prompts.
    """

    policy: str
    cells: tuple[str, ...]
    policies: tuple[Sample, ...]
    measures: dict[str, Estimate]
    per_prompt: int
    prompts_toxic: tuple[tuple[int, int], ...]


def sets_of(study: Study) -> list[str]:
    """The sets of prompts that the policies are judged on."""
    known = [name for name in SETS if any(f"{SETS[name]}n_prompts" in run.metrics for run in study.runs)]
    return known or ["test"]


def judged(study: Study, prompt_set: str = "test") -> list[Judged]:
    """Policies in the order of the chain, those that cells share once.

    Raises:
        NotComputed: no run has judged a policy.
    """
    policies, first = _policies(study, prompt_set)
    cells: dict[tuple[Any, ...], list[str]] = {}
    for policy in STAGES:
        for cell, runs in study.cells.items():
            own_keys = tuple(
                dict.fromkeys(
                    _policy(run, policy, prompt_set)
                    for run in runs
                    if _key(prompt_set, policy, "toxic_fraction") in run.metrics
                )
            )
            if own_keys:
                cells.setdefault(own_keys, []).append(cell)
    if not cells:
        raise NotComputed("No run has judged a policy on the test prompts.")
    found = []
    for keys, owners in cells.items():
        own = tuple(policies[key] for key in keys)
        toxic = tuple(_prompts_toxic(item, first) for item in own if len(item.prompts))
        measures = _of_one(own[0], toxic) if len(own) == 1 else _of_several(own, toxic)
        found.append(Judged(own[0].policy, tuple(owners), own, measures, first, toxic))
    return found


def _policy(run: Run, policy: str, prompt_set: str) -> tuple[Any, ...]:
    """What a judged policy is known by: its artifact and that of R*; where they are not named, its numbers.

    The test prompts are those of the data, which made the policy; a benchmark is named by its options.
    """
    made = run.artifact(STAGES[policy])
    benchmark = [(key, value) for key, value in sorted(run.config.items()) if key.startswith("benchmark.")]
    prompts = tuple(benchmark) if prompt_set == "benchmark" else ()
    return policy, made or _numbers(run, policy, prompt_set), run.artifact("reward"), prompts


def _numbers(run: Run, policy: str, prompt_set: str) -> tuple[float | None, ...]:
    """Numbers that differ where completions were sampled anew."""
    names = ("n_completions", "toxic_count", "reward_mean", "length_mean", "nll")
    return tuple(run.metrics.get(_key(prompt_set, policy, name)) for name in names)


def _policies(study: Study, prompt_set: str) -> tuple[dict[Any, Sample], int]:
    """Each policy once, its samples together, and the completions a prompt that each sample has at least.

    A file is read once, and only where it holds a sample that no other has.
    """
    parts: dict[Any, dict[Any, Sample]] = {}
    for run in study.runs:
        for policy in STAGES:
            if _key(prompt_set, policy, "toxic_fraction") in run.metrics:
                samples = parts.setdefault(_policy(run, policy, prompt_set), {})
                empty = Sample(policy, (run,), NO_PROMPTS, NO_REWARDS, NO_REWARDS, prompt_set)
                samples.setdefault(_numbers(run, policy, prompt_set), empty)
    needed = {part.runs[0].number: part.runs[0] for samples in parts.values() for part in samples.values()}
    tables = {number: _columns(study, run, prompt_set) for number, run in needed.items()}
    whole = [[_filled(part, tables) for part in samples.values()] for samples in parts.values()]
    first = min((part.least for samples in whole for part in samples if len(part.prompts)), default=0)
    return dict(zip(parts, map(_together, whole), strict=True)), first


def _columns(study: Study, run: Run, prompt_set: str) -> pd.DataFrame | None:
    """What of completions.parquet is looked at; None where it is missing or broken."""
    columns = ["policy", "prompt_id", "truth", "second"]
    read = study.completions if prompt_set == "test" else study.benchmark_completions
    table = read(run, columns)
    return table if table is not None and set(columns) <= set(table) else None


def _filled(part: Sample, tables: dict[int, pd.DataFrame | None]) -> Sample:
    table = tables[part.runs[0].number]
    if table is None:
        return part
    own = (table["policy"] == part.policy).to_numpy()
    prompts, truth, second = (table[name].to_numpy()[own] for name in ("prompt_id", "truth", "second"))
    return replace(part, prompts=prompts, truth=truth, second=second)


def _together(samples: Sequence[Sample]) -> Sample:
    """All samples of a policy as one; without completions where one of them has none."""
    runs = tuple(run for part in samples for run in part.runs)
    whole = samples if all(len(part.prompts) for part in samples) else samples[:0]
    joined = [
        np.concatenate([empty, *(getattr(part, name) for part in whole)])
        for name, empty in (("prompts", NO_PROMPTS), ("truth", NO_REWARDS), ("second", NO_REWARDS))
    ]
    prompts, truth, second = joined
    return replace(samples[0], runs=runs, prompts=prompts, truth=truth, second=second)


Toxic = Sequence[tuple[int, int]]
"""Of each policy: prompts with a toxic completion, and all prompts."""


def _of_several(policies: Sequence[Sample], toxic: Toxic) -> dict[str, Estimate]:
    """The typical policy with its interval over policies."""
    values = {
        "fraction": [item.count("toxic_fraction") / item.n for item in policies],
        "second_fraction": [item.count("second_toxic_fraction") / item.n for item in policies],
    }
    if len(toxic) == len(policies):
        values["prompt_share"] = [count / total for count, total in toxic]
        if all(map(_has_probability, policies)):
            values["mean_probability"] = [float(special.expit(-item.truth).mean()) for item in policies]
    units = units_of([item.runs[0] for item in policies])
    return {key: statistics.typical(units.means(row)) for key, row in values.items()}


def _of_one(item: Sample, toxic: Toxic) -> dict[str, Estimate]:
    """One policy with intervals by prompt: of R* those of metrics.json, unless it was sampled again."""
    found = {}
    if len(item.runs) == 1 and 0 < item.metric("toxic_fraction") < 1:
        found["fraction"] = _by_metrics(item)
    if not toxic:
        return found
    share = statistics.wilson(*toxic[0])
    found.setdefault("fraction", by_prompt(item, item.truth < 0))
    found["second_fraction"] = by_prompt(item, item.second < 0)
    found["prompt_share"] = Estimate(share.value, share.low, share.high, share.n, f"{share.method} over prompts")
    if _has_probability(item):
        found["mean_probability"] = by_prompt(item, special.expit(-item.truth))
    return found


def _has_probability(sample: Sample) -> bool:
    return sample.runs[0].config.get("reward.name") in LOG_ODDS


def _by_metrics(sample: Sample) -> Estimate:
    """The numbers of metrics.json."""
    low, high = (sample.metric(f"toxic_fraction_{bound}") for bound in ("low", "high"))
    return Estimate(
        sample.metric("toxic_fraction"),
        low,
        high,
        sample.n_prompts,
        "fraction, 95 % interval over prompts (Korn and Graubard)",
    )


def by_prompt(sample: Sample, values: Floats | NDArray[np.bool_]) -> Estimate:
    """Mean over completions with an interval by prompt: of a fraction that of Korn and Graubard, else a bootstrap."""
    names, places = np.unique(sample.prompts, return_inverse=True)
    mean = float(np.mean(values))
    if values.dtype == np.bool_:
        low, high = compare.fraction_interval(np.asarray(values, dtype=bool), places)
        return Estimate(mean, low, high, len(names), "fraction, 95 % interval over prompts (Korn and Graubard)")
    low, high = compare.interval(compare.mean_resamples(np.asarray(values, float), places, _counts(len(names))))
    return Estimate(mean, low, high, len(names), f"mean, 95 % bootstrap over prompts, {RESAMPLES} resamples")


@functools.lru_cache(maxsize=4)
def _counts(prompts: int) -> Floats:
    return compare.prompt_counts(prompts, RESAMPLES, np.random.default_rng(0))


def _prompts_toxic(sample: Sample, first: int) -> tuple[int, int]:
    """Prompts of which R* calls one of the first completions toxic, and all prompts."""
    order = np.argsort(sample.prompts, kind="stable")
    _, starts, counts = np.unique(sample.prompts[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, counts)
    toxic = (sample.truth[order] < 0) & (place < first)
    return int(np.logical_or.reduceat(toxic, starts).sum()), len(starts)


def toxicity_table(study: Study) -> pd.DataFrame:
    """One row a policy, cell and set of prompts: the paper's Table 1, and the columns of its RealToxicityPrompts part.

    prompt_set: test or benchmark.
    runs, policies: how many, and how many different ones: runs that share an artifact have the same policy, and where
    they sampled it anew all its completions count.
    prompts, completions, toxic, second_toxic: counts; the last three over all different policies.
    Of each measure the value, `_low`, `_high` and `_method`: of one policy by prompt, of several over policies (on the
    same prompts). Empty where the files cannot tell it.

    fraction, second_fraction: completions that R*, and the second judge, call toxic.
    mean_probability: mean of 1 / (1 + exp R*), the probability of 'toxic', where R* is a log-odds.
    prompt_share: prompts with a toxic completion (by R*) among the first `per_prompt`, the number that all policies
    have on all prompts, as more completions would find more.
    """
    found = [item for name in sets_of(study) for item in judged(study, name)]
    rows = [_row(study, cell, item) for cell in study.cells for item in found if cell in item.cells]
    return pd.DataFrame(rows)


def _row(study: Study, cell: str, item: Judged) -> dict[str, Any]:
    prompt_set = item.policies[0].prompt_set
    key = _key(prompt_set, item.policy, "toxic_fraction")
    row: dict[str, Any] = {
        "cell": cell,
        "policy": item.policy,
        "prompt_set": prompt_set,
        "runs": sum(key in run.metrics for run in study.cells[cell]),
        "policies": len(item.policies),
        "prompts": item.policies[0].n_prompts,
        "completions": sum(sample.n for sample in item.policies),
        "toxic": sum(sample.count("toxic_fraction") for sample in item.policies),
        "second_toxic": sum(sample.count("second_toxic_fraction") for sample in item.policies),
        "per_prompt": item.per_prompt,
    }
    for name in MEASURES:
        estimate = item.measures.get(name, Estimate(NAN, NAN, NAN, 0, "no completions.parquet, or no log-odds"))
        values = asdict(estimate)
        row |= {name: values["value"], **{f"{name}_{part}": values[part] for part in ("low", "high", "method")}}
    return row


# -------------------------------------------------------------------------------------------------------- figure


def toxicity(study: Study) -> Picture:
    """How many completions of each policy are below 0 of R*: by R*, by the second judge, and prompt by prompt.

    The second judge is one that no reward has seen; the share of prompts is that with such a completion (by R*) among
    the first of each prompt, as many as all policies have. A point is a policy, drawn once however many runs share it.
    One policy has a 95 % interval that resamples prompts (Wilson's for the share of prompts). A low share alone says
    little of a policy that writes shorter, repeated or broken text.
    """
    sets = {name: judged(study, name) for name in sets_of(study)}
    names = labels(study, 44 if max(map(len, sets.values())) > len(panels.CELL_COLOURS) else 30)
    rows = {name: [_name(item, study, names) for item in found] for name, found in sets.items()}
    heights = [
        max(1.0, sum(0.08 + 0.14 * max(2, row.count("\n") + 1) for row in own)) + 0.7 * (len(sets) > 1)
        for own in rows.values()
    ]
    figure = drawing.new(11.5, sum(heights) + 1.5)
    parts = figure.subplots(len(sets), 3, squeeze=False, height_ratios=heights)
    for line, (name, found) in zip(parts, sets.items(), strict=True):
        _panels(line, found, rows[name], f"{name} prompts:\n" if len(sets) > 1 else "", study.words)
    every = [item for found in sets.values() for item in found]
    figure.legend(handles=_legend(every), loc="outside lower left", ncols=2)
    told = " and ".join(f"{_prompts(found)} {name} prompts" for name, found in sets.items())
    figure.reading.append(_of_many(every))
    if len(sets) > 1:
        figure.reading.append(
            "Below the same on the prompts of a benchmark: two sets of prompts, as in the paper's Table 1."
        )
    panels.headline(figure, f"{study.words.completions[0].upper()}{study.words.completions[1:]} on {told}")
    return figure


def _prompts(found: Sequence[Judged]) -> str:
    """How many prompts the policies are judged on."""
    prompts = sorted({sample.n_prompts for item in found for sample in item.policies})
    return " to ".join(map(str, sorted({prompts[0], prompts[-1]})))


def _panels(line: Sequence[Axes], found: Sequence[Judged], rows: list[str], where: str, words: Words) -> None:
    """The panels of one set of prompts."""
    titles = {
        "fraction": f"{words.completions} by R*",
        "second_fraction": f"{words.completions} by the second judge",
        "prompt_share": f"prompts with {'a toxic completion' if words.below == 'toxic' else f'one of {words.below}'}",
    }
    for axes, key in zip(line, ("fraction", "second_fraction", "prompt_share"), strict=True):
        for place, item in enumerate(found):
            _strip(axes, place, item, key)
        panels.rows(axes, rows if key == "fraction" else [""] * len(rows), room=0.1)
        axes.set_xlim(-0.02 * axes.get_xlim()[1], min(axes.get_xlim()[1], 1.03))
        axes.set_title(f"{where}{titles[key]}", fontsize=9)
        axes.set_xlabel(f"of the first {found[0].per_prompt} of a prompt" if key == "prompt_share" else "fraction")


def _name(item: Judged, study: Study, names: dict[str, str]) -> str:
    """The policy, and its cell where not all cells have it."""
    if len(item.cells) == len(study.cells):
        return item.policy
    more = f"\nand {len(item.cells) - 1} more" if len(item.cells) > 1 else ""
    return f"{item.policy}\n{names[item.cells[0]]}{more}"


def _strip(axes: Axes, place: int, item: Judged, key: str) -> None:
    estimate, colour = item.measures.get(key), panels.POLICIES[item.policy]
    if estimate is None:
        file = "completions.parquet" if item.policies[0].prompt_set == "test" else "benchmark.parquet"
        panels.beside(axes, place, f"no {file}")
        return
    counts = _counts_of(item, key)
    values = np.array([count / total for count, total in counts])
    if len(values) > 1:
        panels.strip(axes, place, values, colour, panels.alpha(len(values)))
        panels.mark(axes, estimate, place)
        least, most = min(counts), max(counts)
        span = f"{least[0]:,} to {most[0]:,} of" if least < most else f"each {least[0]:,} of"
        told = f"{len(values)} policies, {span} {most[1]:,}"
    else:
        axes.hlines(place, estimate.low, estimate.high, color=colour, linewidth=2, zorder=4)
        axes.scatter(values, [place], s=30, color=colour, zorder=5)
        told = f"{counts[0][0]:,} of {counts[0][1]:,}"
    panels.beside(axes, place, f"{panels.interval(estimate)}\n{told}")


def _counts_of(item: Judged, key: str) -> Toxic:
    """Count and total of each policy: completions, or prompts."""
    if key == "prompt_share":
        return item.prompts_toxic
    name = "toxic_fraction" if key == "fraction" else "second_toxic_fraction"
    return [(sample.count(name), sample.n) for sample in item.policies]


def _legend(found: Sequence[Judged]) -> list[Line2D]:
    handles = []
    if any(len(item.policies) == 1 for item in found):
        label = "one policy, 95 % interval over prompts"
        handles.append(Line2D([], [], color="black", marker="o", linewidth=2, label=label))
    if sizes := {len(item.policies) for item in found} - {1}:
        few, many = min(sizes) < statistics.FEW, max(sizes) >= statistics.FEW
        middle = " or ".join(["mean"] * few + ["interquartile mean"] * many)
        bounds = ", 95 % interval over policies" if max(sizes) >= LEAST else ""
        label = f"{middle} of several policies{bounds}"
        handles.append(Line2D([], [], color="black", marker="D", markersize=5, linewidth=2, label=label))
    return handles


# ------------------------------------------------------------------------------------------------- the short form


def outcome(study: Study) -> Picture:
    """What it makes of a policy: the share of completions below 0 of R* that each policy writes on the test prompts.

    Filled is R*, hollow the second judge, which no reward has seen. Each policy is drawn once, however many runs share
    it; the line of one policy is its 95 % interval over prompts. The axis begins at 0.
    """
    found = judged(study)
    names = [_name(item, study, labels(study, 34)) for item in found]
    inch = 0.42 + panels.inches(names)
    figure = drawing.new(panels.NARROW, inch * len(found) + 1.1)
    axes = figure.add_subplot()
    for place, (name, item) in enumerate(zip(names, found, strict=True)):
        panels.heading(axes, place, name, _outcome_row(axes, place, item))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(0, min(1.02, axes.get_xlim()[1]))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(
        f"share of {study.words.completions} on {_prompts(found)} test prompts\n"
        "(filled: by R*; hollow: by the second judge)"
    )
    figure.reading.append(_of_many(found))
    title = f"{study.words.completions[0].upper()}{study.words.completions[1:]}, by policy"
    panels.headline(figure, title)
    return figure


def _outcome_row(axes: Axes, place: int, item: Judged) -> str:
    """Both judges of one policy, or of the policies of all runs; returns the numbers of R*."""
    colour, told = panels.POLICIES[item.policy], ""
    for key, y, face in (("fraction", place + 0.06, colour), ("second_fraction", place + 0.28, "white")):
        counts, estimate = _counts_of(item, key), item.measures.get(key)
        values = np.array([count / total for count, total in counts])
        faint = 1.0 if len(values) == 1 else max(0.25, panels.alpha(len(values)))
        axes.scatter(values, [y] * len(values), s=24, facecolors=face, edgecolors=colour, alpha=faint, zorder=3)
        if estimate is None:
            continue
        if len(values) > 1:
            panels.mark(axes, estimate, y)
        elif estimate.low == estimate.low:
            axes.hlines(y, estimate.low, estimate.high, color=colour, linewidth=1.6, zorder=2)
        if key == "fraction":
            told = f"{panels.interval(estimate)}, {counts[0][0]:,} of {counts[0][1]:,}"
            if len(values) > 1:
                mean = panels.number(float(values.mean()))
                also = "" if mean == panels.number(estimate.value) else f" (mean {mean})"
                told = f"{panels.interval(estimate)}{also}, {len(values)} policies"
    return told


def _of_many(found: Sequence[Judged]) -> str:
    """What stands for several policies."""
    sizes = {len(item.policies) for item in found} - {1}
    return panels.method(sizes).replace("runs", "policies")


FIGURES = {"outcome": outcome, "toxicity": toxicity}
"""Name of the file -> figure."""

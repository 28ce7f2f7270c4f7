"""What the numbers of a launch say, in two or three sentences, and where a number misleads.

Pure: metrics and a few facts of the config in, text out. A sentence is said where its metrics are there and only then,
so whatever `until`, reward, study or failure leaves of the numbers, what is said of them holds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from irl_exp.report.cells import Outcome, overrides_of, shared_overrides, without
from irl_exp.report.names import Words, words_of

Facts = Mapping[str, object]
"""Of config.json, flat: "reward.name", "irl.name", "irl.seed", "artifacts.rlhf", ...; what is not known is left out."""

FEWEST = 50
"""Completions of one class below which an AUROC or an accuracy is hardly worth reading."""
SEEDS = ("seed", "data.seed", "reward.seed", "sft.seed", "rlhf.seed", "demonstrations.seed", "irl.seed")


@dataclass(frozen=True)
class Verdict:
    """What the numbers say, and the warnings that belong to them."""

    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """For a terminal: one paragraph, and a line a warning."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {told}" for told in self.warnings)])

    def markdown(self) -> str:
        lines = [f"- **Warning:** {told}" for told in self.warnings]
        return "\n".join([" ".join(self.sentences), "", *lines, *([""] if lines else [])])


def of_run(metrics: Mapping[str, float], facts: Facts | None = None, name: str = "") -> Verdict:
    """The verdict on one run; `name` are its overrides."""
    runs = _Runs([metrics], [facts or {}])
    told = [*_rlhf(runs), *_recovered(runs), *_refinetuned(runs), _fixed(runs)]
    return Verdict(tuple(told), tuple(_warnings([metrics], [facts or {}], [name])))


def of_launch(outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on all jobs of a launch, of which one or many, and not all, may have a result."""
    done = [outcome for outcome in outcomes if outcome.metrics is not None]
    if not done:
        return Verdict((f"None of {len(outcomes)} jobs has a result.",))
    lost = [f"{len(done)} of {len(outcomes)} jobs have a result."] if len(done) < len(outcomes) else []
    metrics, facts = [outcome.metrics or {} for outcome in done], [outcome.facts for outcome in done]
    runs = _Runs(metrics, facts)
    cells = {outcome.cell for outcome in done}
    found = [*_rlhf(runs)]
    found += _compared(done) if len(cells) > 1 else [*_recovered(runs), *_refinetuned(runs)]
    return Verdict((*lost, *found, _fixed(runs)), tuple(_warnings(metrics, facts, [outcome.name for outcome in done])))


@dataclass(frozen=True)
class _Runs:
    """The metrics of one run or more as they are told: a number, with its interval or its range."""

    metrics: Sequence[Mapping[str, float]]
    facts: Sequence[Facts]

    def has(self, *keys: str) -> bool:
        return all(any(key in run for run in self.metrics) for key in keys)

    def values(self, key: str) -> list[float]:
        return [run[key] for run in self.metrics if key in run]

    def tell(self, key: str, form: Callable[[float], str]) -> str:
        """One value with its interval over prompts; many by their mean and extremes."""
        values = self.values(key)
        low, high = f"{key}_low", f"{key}_high"
        if len(set(map(form, values))) > 1:
            return f"{form(statistics.fmean(values))} on average ({form(min(values))} to {form(max(values))})"
        run = next(run for run in self.metrics if key in run)
        return (
            f"{form(run[key])} [{form(run[low])}, {form(run[high])}]" if low in run and high in run else form(run[key])
        )

    def fact(self, key: str) -> str:
        """A fact that all runs have in common, or nothing."""
        found = {str(facts.get(key, "")) for facts in self.facts}
        return found.pop() if len(found) == 1 else ""

    def count(self, stage: str) -> int:
        """How many results of a stage these runs have between them; 0 where that is not known."""
        return len({facts[f"artifacts.{stage}"] for facts in self.facts if f"artifacts.{stage}" in facts})

    @property
    def words(self) -> Words:
        known = {words_of(facts) for facts in self.facts}
        return known.pop() if len(known) == 1 else words_of({})


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _moved(runs: _Runs, first: str, second: str) -> str:
    """Whether a number went down or up from the first key to the second, in all runs and beyond its intervals."""
    pairs = [(run, run[first], run[second]) for run in runs.metrics if first in run and second in run]
    if all(run.get(f"{second}_high", after) < run.get(f"{first}_low", before) for run, before, after in pairs):
        return "lowered"
    if all(run.get(f"{second}_low", after) > run.get(f"{first}_high", before) for run, before, after in pairs):
        return "raised"
    return "did not clearly change"


def _rlhf(runs: _Runs) -> Iterator[str]:
    """What RLHF did; of a run that ends before it, what the reference writes."""
    share, words = "toxic_fraction", runs.words
    if not runs.has(f"reference/{share}"):
        return
    before = runs.tell(f"reference/{share}", _share)
    if not runs.has(f"expert/{share}"):
        yield f"The reference policy writes {before} {words.completions}."
        return
    kind = runs.fact("reward.name")
    moved, after = _moved(runs, f"reference/{share}", f"expert/{share}"), runs.tell(f"expert/{share}", _share)
    mean = ""
    if runs.has("reference/reward_mean", "expert/reward_mean"):
        means = [runs.tell(f"{policy}/reward_mean", _number) for policy in ("reference", "expert")]
        mean = f", and mean R* went from {means[0]} to {means[1]}"
    yield (
        f"RLHF on R*{f' ({kind})' if kind else ''} {moved} the share of {words.completions}: {before} in the "
        f"reference, {after} in the expert{mean}."
    )


def _recovered(runs: _Runs) -> Iterator[str]:
    """What IRL recovered of R*."""
    if not runs.has("irl/pair_accuracy") and not runs.has("irl/auroc"):
        return
    parts = []
    if runs.has("irl/auroc"):
        parts.append(f"has AUROC {runs.tell('irl/auroc', _number)} against the label of R*")
    if runs.has("irl/pair_accuracy"):
        parts.append(f"orders {runs.tell('irl/pair_accuracy', _share)} of pairs within a prompt as R* does")
    yield f"The learned reward {' and '.join(parts)}, on completions of both policies{_authors(runs)}."


def _authors(runs: _Runs) -> str:
    if not runs.has("irl/discrimination_auroc"):
        return ""
    return f"; who wrote them it tells with AUROC {runs.tell('irl/discrimination_auroc', _number)}"


def _refinetuned(runs: _Runs) -> Iterator[str]:
    """What the learned reward makes of a policy."""
    if not runs.has("refinetuned/toxic_fraction"):
        return
    told = f"A policy trained on it writes {runs.tell('refinetuned/toxic_fraction', _share)} {runs.words.completions}"
    if runs.has("recovered_fraction"):
        told += f" and recovers {runs.tell('recovered_fraction', _share)} of the expert's gain in mean R*"
    yield f"{told}."


def _compared(done: Sequence[Outcome]) -> Iterator[str]:
    """The best and the worst cell by each number that matters."""
    shared = shared_overrides(outcome.cell for outcome in done)
    for key, told in {
        "irl/auroc": "AUROC of the learned reward",
        "refinetuned/reward_mean": "mean R* of the refinetuned policy",
    }.items():
        cells: dict[str, list[float]] = {}
        for outcome in done:
            if outcome.metrics and key in outcome.metrics:
                cells.setdefault(without(outcome.cell, shared), []).append(outcome.metrics[key])
        if len(cells) > 1:
            means = {cell: statistics.fmean(values) for cell, values in cells.items()}
            best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
            yield f"Mean {told}: highest {_number(means[best])} ({best}), lowest {_number(means[worst])} ({worst})."


def _fixed(runs: _Runs) -> str:
    """What all runs have in common, so that their spread says nothing of it."""
    if len(runs.metrics) == 1:
        return "This is one run: its intervals are over prompts, and say nothing of other seeds."
    experts, sets = runs.count("rlhf"), runs.count("demonstrations")
    if experts == 1 and sets == 1:
        return "All runs share one expert and one set of demonstrations: their spread is that of what follows these."
    if experts == 1:
        return "All runs share one expert: their spread says nothing of another run of RLHF."
    return f"{len(runs.metrics)} runs."


def _warnings(metrics: Sequence[Mapping[str, float]], facts: Sequence[Facts], names: Sequence[str]) -> Iterator[str]:
    """Where a number of these runs misleads."""
    if any("scale=tiny" in overrides_of(name) for name in names):
        yield "scale=tiny: nothing to learn from these numbers."

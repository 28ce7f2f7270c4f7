"""What the numbers of a launch say, in a few sentences, and where a number misleads.

Metrics, a few facts of the config and the statements of a run in, text out. Each sentence is said where its metrics are
there and only then, so what is said holds whatever `until`, the reward, a study or a failure leaves of the numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from irl_exp.report import statements
from irl_exp.report.cautions import cautions
from irl_exp.report.cells import Facts, Outcome, overrides_of, shared_overrides, without, without_controls
from irl_exp.report.names import METHODS, Words, number, share, words_of
from irl_exp.report.statements import Statement
from irl_exp.report.tables import plain

WHERE = "on test completions of the reference"
CHAIN = {
    "sft": ("one reference policy", "reference policies"),
    "rlhf": ("one expert", "experts"),
    "demonstrations": ("one set of demonstrations", "sets of demonstrations"),
}
"""What runs may have in common, one and many."""
EXPERTS = {
    "checkpoint": "The tuned checkpoint",
    "texts": "The expert of the file",
    "itself": "The reference in the expert's place, a null,",
    "further": "The reference after further training, a null,",
}
"""How the sentence on an expert that is not made by RLHF begins."""
KLS = {"refinetuned": "its KL in nats", "expert": "the expert's"}
RANKED = {
    "irl/auroc": "AUROC of the learned reward on the reference's completions",
    "refinetuned/reward_mean": "mean R* of the refinetuned policy",
}


@dataclass(frozen=True)
class Verdict:
    """What the numbers say, and the warnings that belong to them."""

    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """For a terminal: one paragraph, and a line a warning."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {told}" for told in self.warnings)])

    def markdown(self) -> str:
        lines = [f"- **Warning:** {plain(told)}" for told in self.warnings]
        return "\n".join([plain(" ".join(self.sentences)), "", *lines, *([""] if lines else [])])


def of_run(
    metrics: Mapping[str, float],
    facts: Facts | None = None,
    name: str = "",
    told: Sequence[Statement] | None = None,
) -> Verdict:
    """The verdict on one run; `name` are its overrides, `told` what explain says of its reward, if it ran."""
    runs = _Runs([metrics], [facts or {}], [name], [] if told is None else [told])
    found = (*_pays(runs), *_rlhf(runs), *_apart(runs), *_recovered(runs), *_refinetuned(runs), *_without_truth(runs))
    return Verdict((*found, _fixed(runs)), _warnings(runs))


def of_launch(outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on all jobs of a launch, of which one or many, and not all, may have a result."""
    outcomes = without_controls(outcomes)
    done = [outcome for outcome in outcomes if outcome.metrics is not None]
    if not done:
        return Verdict((f"None of {len(outcomes)} jobs has a result.",))
    alone = len({outcome.cell for outcome in done}) == 1
    read = [statements.of_run(outcome.folder, outcome.facts) for outcome in done] if alone else []
    runs = _Runs(
        [run.metrics or {} for run in done],
        [run.facts for run in done],
        [run.name for run in done],
        [told for told in read if told is not None],
    )
    lost = [f"Of {len(outcomes)} jobs {len(done)} have a result."] if len(done) < len(outcomes) else []
    found = [*_recovered(runs), *_refinetuned(runs)] if alone else [*_ranked(done, runs)]
    found = [*_pays(runs), *_rlhf(runs), *_apart(runs), *found, *_without_truth(runs)]
    return Verdict((*lost, *found, _fixed(runs)), _warnings(runs))


@dataclass(frozen=True)
class _Runs:
    """One run or more with a result, and how their numbers are told; `told` are the statements of those explained."""

    metrics: Sequence[Mapping[str, float]]
    facts: Sequence[Facts]
    names: Sequence[str]
    told: Sequence[Sequence[Statement]] = ()

    def has(self, *keys: str) -> bool:
        return all(any(key in run for run in self.metrics) for key in keys)

    def tell(self, key: str, form: Callable[[float], str] = number) -> str:
        """A number with its interval over prompts, in brackets; where runs differ, their mean with their extremes."""
        having = [run for run in self.metrics if key in run]
        values, run = [run[key] for run in having], having[0]
        of = "" if len(having) == len(self.metrics) else f"{len(having)} of {len(self.metrics)} runs"
        if len(set(map(form, values))) > 1:
            ends = f"{form(min(values))} to {form(max(values))}"
            return f"{form(statistics.fmean(values))} ({ends}{f'; {of}' if of else ''})"
        low, high = run.get(f"{key}_low"), run.get(f"{key}_high")
        interval = "" if low is None or high is None else f" [{form(low)}, {form(high)}]"
        return f"{form(run[key])}{interval}{_in_brackets(of)}"

    def fact(self, key: str) -> str:
        """A fact that all runs have in common, or nothing."""
        found = {str(facts.get(key, "")) for facts in self.facts}
        return found.pop() if len(found) == 1 else ""

    def count(self, stage: str) -> int:
        """How many results of a stage these runs have between them; 0 where not all are known to have one."""
        found = [facts.get(f"artifacts.{stage}") for facts in self.facts]
        return 0 if None in found else len(set(found))

    @property
    def words(self) -> Words:
        known = {words_of(facts) for facts in self.facts}
        return known.pop() if len(known) == 1 else Words()

    @property
    def one_truth(self) -> bool:
        """Whether R* is the same, but for the seed it is fitted with, so that its values can be compared."""
        kinds = {
            tuple(sorted((key, str(value)) for key, value in facts.items() if _of_truth(key))) for facts in self.facts
        }
        return len(kinds) == 1


def _of_truth(key: str) -> bool:
    return key.startswith("reward.") and not key.endswith("seed")


def _rlhf(runs: _Runs) -> Iterator[str]:
    """What RLHF did; of a run that ends before it, what the reference writes."""
    key, words = "toxic_fraction", runs.words
    if not runs.has(f"reference/{key}"):
        return
    if not runs.has(f"expert/{key}"):
        yield f"The reference policy writes {runs.tell(f'reference/{key}', share)} {words.completions}."
        return
    unclear = ", which is no clear change" if len(runs.metrics) == 1 else ", though not clearly in every run"
    overlap = "" if _moved(runs, f"reference/{key}", f"expert/{key}") else unclear
    beside = _change(runs, "reward_mean", "expert") if words == Words() and runs.one_truth else ""
    second = _change(runs, "second_toxic_fraction", "expert", share) if words != Words() else ""
    changed = f"{words.completions} {_change(runs, key, 'expert', share)}{overlap}"
    told = f"RLHF on {_truth(runs)} took {changed}"
    if runs.fact("expert.name") not in ("", "rlhf"):
        told = f"By {_truth(runs)}, which judges from outside, the tuning took {changed}"
    yield f"{told}{f'; by the second judge {second}' if second else ''}{f'; mean R* {beside}' if beside else ''}."


def _change(runs: _Runs, key: str, policy: str, form: Callable[[float], str] = number) -> str:
    """From the reference to a policy; nothing where one of the two is not known."""
    keys = (f"reference/{key}", f"{policy}/{key}")
    return f"from {runs.tell(keys[0], form)} to {runs.tell(keys[1], form)}" if runs.has(*keys) else ""


def _truth(runs: _Runs) -> str:
    """What RLHF optimised."""
    kind, shortcut = runs.fact("reward.name"), runs.fact("shortcut.name")
    planted = shortcut not in ("", "none") and runs.fact("shortcut.where") == "ground_truth"
    return f"R*{f' ({kind})' if kind else ''}{f' plus a planted shortcut ({shortcut})' if planted else ''}"


def _moved(runs: _Runs, first: str, second: str) -> bool:
    """Whether a number goes one way from the first key to the second in all runs, beyond its intervals."""
    pairs = [(run, run[first], run[second]) for run in runs.metrics if first in run and second in run]
    down = all(run.get(f"{second}_high", after) < run.get(f"{first}_low", before) for run, before, after in pairs)
    up = all(run.get(f"{second}_low", after) > run.get(f"{first}_high", before) for run, before, after in pairs)
    return down or up


def _apart(runs: _Runs) -> Iterator[str]:
    """Of an expert that was given: did its tuning change anything that the learned reward finds?"""
    key, name = "discrimination_auroc", runs.fact("expert.name")
    if name in ("", "rlhf") or not runs.has("expert/n_completions"):
        return
    lengths = [runs.tell(f"{policy}/length_mean", _tokens) for policy in ("expert", "reference")]
    far = f"lies {runs.tell('expert/kl')} nats from the reference and " if runs.has("expert/kl") else ""
    yield f"{EXPERTS.get(name, 'The expert')} {far}writes {lengths[0]} tokens a completion, the reference {lengths[1]}."
    if not runs.has(f"irl/{key}"):
        return
    unclear = any(run.get(f"irl/{key}_low", 1.0) <= 0.5 for run in runs.metrics)
    told = ", which is no difference that it finds" if unclear else ""
    beside = f" (the log ratio of the policies: {runs.tell(f'implicit/{key}')})" if runs.has(f"implicit/{key}") else ""
    yield (
        f"On test prompts the learned reward tells the two apart with AUROC {runs.tell(f'irl/{key}')}{beside}{told}."
    )


def _tokens(value: float) -> str:
    return f"{value:.1f}"


def _without_truth(runs: _Runs) -> Iterator[str]:
    """What is missing where there is no R*, by name."""
    if runs.fact("reward.name") == "none":
        yield "There is no R* (reward=none), so nothing is said of agreement with one, nor of toxic completions."


def _pays(runs: _Runs) -> Iterator[str]:
    """What the learned reward pays for."""
    tell_r2 = runs.tell("explain/r2") if runs.told and runs.has("explain/r2") else ""
    yield from statements.sentences(runs.told, runs.metrics, tell_r2)


def _recovered(runs: _Runs) -> Iterator[str]:
    """What IRL recovered of R*; before IRL, what there is to recover."""
    name = runs.fact("irl.name")
    if agreement := _agreement(runs, "irl"):
        reward = METHODS.get(name, f"learned reward{_in_brackets(name)}")
        yield f"The {reward} {agreement}, {WHERE}{_pooled(runs)}."
    elif agreement := _agreement(runs, "implicit"):
        yield f"The log ratio of expert and reference {agreement}, {WHERE}."


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _agreement(runs: _Runs, reward: str) -> str:
    """How far a reward agrees with R*; nothing where neither number is there."""
    parts = []
    if runs.has(f"{reward}/auroc"):
        another = reward == "irl" and runs.has("implicit/auroc") and runs.fact("irl.name") != "implicit"
        beside = f" (the log ratio of the policies: {runs.tell('implicit/auroc')})" if another else ""
        classes = f"{runs.words.above} against {runs.words.below}"
        parts.append(f"has AUROC {runs.tell(f'{reward}/auroc')} for {classes}{beside}")
    if runs.has(f"{reward}/pair_accuracy"):
        parts.append(f"orders {runs.tell(f'{reward}/pair_accuracy', share)} of the pairs of a prompt as R* does")
    return " and ".join(parts)


def _pooled(runs: _Runs) -> str:
    """The number that is usually reported, and what knowing who wrote a text gets of it."""
    keys = ("pooled/irl/auroc", "pooled/author/auroc")
    if not runs.has(*keys):
        return ""
    own, author = map(runs.tell, keys)
    return f"; pooled with the expert's the AUROC is {own}, where knowing who wrote a text, and no more, gets {author}"


def _refinetuned(runs: _Runs) -> Iterator[str]:
    """What the learned reward makes of a policy."""
    key, words = "toxic_fraction", runs.words
    if not runs.has(f"refinetuned/{key}"):
        return
    told = f"A policy trained on it writes {runs.tell(f'refinetuned/{key}', share)} {words.completions}"
    if words != Words() and runs.has(f"refinetuned/second_{key}"):
        told += f", by the second judge {runs.tell(f'refinetuned/second_{key}', share)}"
    yield f"{told}."
    if runs.has("equal_kl/difference", "equal_kl/from", "equal_kl/to"):
        ends = " to ".join(runs.tell(f"equal_kl/{end}") for end in ("from", "to"))
        difference = runs.tell("equal_kl/difference")
        yield f"At equal KL ({ends} nats, prompts of fit) its mean R* less the expert's is {difference}."
    if runs.has("recovered_fraction"):
        told = f"It recovers {runs.tell('recovered_fraction', share)} of the expert's gain in mean R*"
        kls = [f"{whose} {runs.tell(f'{policy}/kl')}" for policy, whose in KLS.items() if runs.has(f"{policy}/kl")]
        yield f"{told}{_in_brackets(', '.join(kls))}."


def _ranked(done: Sequence[Outcome], runs: _Runs) -> Iterator[str]:
    """The highest and the lowest cell; which is which these very numbers say, so a new launch may say otherwise."""
    shared = shared_overrides(outcome.cell for outcome in done)
    for key, told in RANKED.items():
        cells: dict[str, list[float]] = {}
        for outcome in done:
            if outcome.metrics and key in outcome.metrics:
                cells.setdefault(without(outcome.cell, shared), []).append(outcome.metrics[key])
        if len(cells) > 1 and (runs.one_truth or key == "irl/auroc"):
            means = {cell: statistics.fmean(values) for cell, values in cells.items()}
            best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
            ends = [f"{number(means[cell])} in {cell} ({_spread(cells[cell])})" for cell in (best, worst)]
            yield f"Of {len(cells)} cells, {told} is on average highest at {ends[0]} and lowest at {ends[1]}."


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return "1 run"
    return f"{len(values)} runs, {number(min(values))} to {number(max(values))}"


def _fixed(runs: _Runs) -> str:
    """What brackets are, and what these runs have in common, so that their spread says nothing of it."""
    if len(runs.metrics) == 1:
        return "One run: [ ] are 95 % intervals over prompts, which say nothing of other seeds."
    counts = {stage: runs.count(stage) for stage in CHAIN}
    fixed = [CHAIN[stage][0] for stage, count in counts.items() if count == 1]
    drawn = [f"{count} {CHAIN[stage][1]}" for stage, count in counts.items() if count > 1]
    told = f"{len(runs.metrics)} runs ([ ]: 95 % over prompts, ( ): range over runs){_varied(runs.names)}"
    told += f" have {_listed(drawn)}" if drawn else ""
    if not fixed:
        return f"{told}."
    return f"{told}{' and' if drawn else ''} share {_listed(fixed)}: they say nothing of how another would come out."


def _varied(names: Sequence[str]) -> str:
    """The options that runs differ in, in the order in which they are named."""
    kept = shared_overrides(names)
    keys = {item.partition("=")[0]: None for name in names for item in overrides_of(name) if item not in kept}
    keys.pop("default", None)
    return f" that differ in {_listed(list(keys))}" if keys else ""


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _warnings(runs: _Runs) -> tuple[str, ...]:
    """Each kind of warning once, with the numbers of the first run that it holds for."""
    found: dict[str, list[str]] = {}
    for run in zip(runs.metrics, runs.facts, runs.names, strict=True):
        for kind, told in cautions(*run):
            found.setdefault(kind, []).append(told)
    return tuple(_warning(told, len(runs.metrics)) for told in found.values())


def _warning(told: Sequence[str], runs: int) -> str:
    if len(told) == runs and len(set(told)) == 1:
        return told[0]
    return f"{len(told)} of {runs} runs{', the first' if len(told) > 1 else ''}: {told[0]}"

"""Judge the policies and the rewards on the test prompts: metrics.json, completions.parquet.

R* has its say here, if there is one: it labels the test completions, and on `select` it sets the threshold of the one
accuracy that says so. What could not be measured (no R*, no learned reward yet, one class only) is left out of
metrics.json, never made up.
docs/metrics.md says what each number is. equal_kl.parquet: mean R* and KL of the windows of both ways of RL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irl_exp.config import EvaluateConfig
from irl_exp.irl.learned_rewards import LearnedReward, scores_texts
from irl_exp.machinery.runtime import Context
from irl_exp.measures import overoptimisation, policy_metrics, reward_metrics
from irl_exp.measures.reward_metrics import Metrics
from irl_exp.policies.language_models import Completions, Ids, Policy, prompts_as_read
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.rewards import shortcuts
from irl_exp.rewards.ground_truth import is_log_odds
from irl_exp.rewards.judging import Judges, judged
from irl_exp.texts.data import prompts_of, test_texts

VERSION = 14
WRITES = True


def run(
    config: EvaluateConfig,
    *,
    data: Path,
    reference: Path,
    reward: Path | None = None,
    second_judge: Path | None = None,
    expert: Path | None = None,
    demonstrations: Path | None = None,
    judge: Path | None = None,
    irl: Path | None = None,
    refinetune: Path | None = None,
    shortcut: shortcuts.Shortcut | None = None,
    benchmark: Path | None = None,
    benchmark_refinetuned: Path | None = None,
    context: Context,
) -> dict[str, Any]:
    texts = pd.read_parquet(data / "texts.parquet")
    prompts = prompts_of(texts, "test")
    judges = Judges(reference, reward, second_judge, context.device)
    sampler = _Sampler(config, prompts, judges, expert, irl, context)
    metrics: Metrics = {"n_prompts": len(prompts)}
    tables: dict[str, pd.DataFrame] = {}
    if demonstrations:
        demos = read_demonstrations(demonstrations, judge, irl)
        test = demos[demos["part"] == "test"]
        clean = as_written(demonstrations, test)
        tables = {"reference": clean[clean["policy"] == "baseline"], "expert": clean[clean["policy"] == "expert"]}
        metrics |= of_demonstrations(demos, test_texts(texts), judge, irl, config)
        if judge and irl:
            log_epochs(irl, test, context)
        if shortcut and irl and scores_texts(irl) and reward:
            metrics |= _prefixed("shortcut", sampler.shortcut(shortcut, test))
    for policy, folder in (("reference", reference), ("expert", expert), ("refinetuned", refinetune)):
        if folder and policy not in tables:
            tables[policy] = sampler.table(policy, folder)
    tables = _numbered(tables, prompts, prompts_as_read(reference))
    metrics |= of_policies(tables, reward, config)
    if "refinetuned" in tables and reward:
        metrics |= beside("refinetuned", tables["refinetuned"], config)
    if refinetune and expert and reward and (expert / "trajectory.parquet").exists():
        metrics |= sampler.on_the_way(refinetune, expert)
    on_benchmark = read_benchmark(benchmark, benchmark_refinetuned)
    if on_benchmark:
        metrics |= _prefixed("benchmark", of_policies(on_benchmark, reward, config))
        metrics["benchmark/n_prompts"] = on_benchmark["reference"]["prompt_id"].nunique()
        pd.concat(on_benchmark.values(), ignore_index=True).to_parquet(context.folder / "benchmark.parquet")
    _write(context.folder, metrics, tables)
    count = sum(map(len, tables.values()))
    note = f"{count:,} completions of {len(tables)} policies on {len(prompts)} test prompts"
    return {"note": note if reward else f"{note}; no R*: {WITHOUT_TRUTH}"}


COLUMNS = [
    *("policy", "prompt_id", "prompt", "prompt_read", "completion", "tokens", "length", "log_probability"),
    *("reference_log_probability", "truth", "second", "implicit", "learned", "learned_sd", "aleatoric", "epistemic"),
]
"""Of completions.parquet. prompt_read is the prompt as a chat model reads it, markup and all; truth is R*, second the
second judge, implicit the log ratio of expert and reference; learned is standardised."""


def _prefixed(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}/{key}": value for key, value in metrics.items()}


def _numbered(
    tables: Mapping[str, pd.DataFrame], prompts: Sequence[str], asked: Callable[[Sequence[Ids]], list[str]] | None
) -> dict[str, pd.DataFrame]:
    """The COLUMNS of each policy's completions, with one numbering of prompts for all: that of the test prompts."""
    place = {prompt: number for number, prompt in enumerate(prompts)}
    numbered = {}
    for policy, table in tables.items():
        if asked:
            table = table.assign(prompt_read=asked(table["prompt_ids"].tolist()))
        table = table.assign(prompt_id=table["prompt"].map(place), policy=policy)
        numbered[policy] = table[[name for name in COLUMNS if name in table]]
    return numbered


def of_demonstrations(
    demos: pd.DataFrame, labelled: pd.DataFrame, judge: Path | None, irl: Path | None, config: EvaluateConfig
) -> Metrics:
    """What the rewards say of the demonstrations of test: of who wrote them, and of R* where there is one.

    Args:
        labelled: texts of test with labels of people.
    """
    test = demos[demos["part"] == "test"]
    metrics = discriminations(test)
    if judge:
        metrics |= reward_report(demos[demos["part"] == "select"], test, config)
        metrics |= _prefixed("tradeoff", tradeoff(of_reference(test), config))
        metrics |= _prefixed("human", human_agreement(labelled, judge, irl))
    if irl:
        settings = json.loads((irl / "reward.json").read_text(encoding="utf-8"))
        metrics |= {f"irl/{name}": settings[name] for name in ("offset", "scale")}
    return metrics


def of_policies(tables: Mapping[str, pd.DataFrame], reward: Path | None, config: EvaluateConfig) -> Metrics:
    """What each policy writes on the same prompts, and what refinetune recovered there."""
    draws, log_odds = (config.bootstrap, config.seed), bool(reward and is_log_odds(reward))
    metrics = policy_metrics.recovered_fraction(tables, *draws)
    for policy, table in tables.items():
        metrics |= _prefixed(policy, policy_metrics.policy_metrics(table, *draws, log_odds=log_odds))
    return metrics


def read_benchmark(benchmark: Path | None, refinetuned: Path | None) -> dict[str, pd.DataFrame]:
    """Completions on the second set of prompts by policy; none where there is no such set."""
    folders = [folder for folder in (benchmark, refinetuned) if folder]
    if not folders:
        return {}
    table = pd.concat([pd.read_parquet(folder / "completions.parquet") for folder in folders], ignore_index=True)
    kept = table[[name for name in COLUMNS if name in table]]
    return {str(policy): rows for policy, rows in kept.groupby("policy", sort=False)}


def _write(folder: Path, metrics: Metrics, tables: Mapping[str, pd.DataFrame]) -> None:
    """What is not defined (NaN) is left out."""
    defined = {key: float(value) for key, value in metrics.items() if np.isfinite(value)}
    (folder / "metrics.json").write_text(json.dumps(defined, indent=1, sort_keys=True), encoding="utf-8")
    pd.concat(tables.values(), ignore_index=True).to_parquet(folder / "completions.parquet")


def read_demonstrations(demonstrations: Path, judge: Path | None, irl: Path | None) -> pd.DataFrame:
    """Demonstrations with every reward that there is: R* (missing on fit), the implicit one, the learned one."""
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    if judge:
        frame = frame.join(pd.read_parquet(judge / "scores.parquet").rename(columns={"reward": "truth"}))
    frame = with_lengths(frame)
    if irl:
        scores = pd.read_parquet(irl / "scores.parquet")
        settings = json.loads((irl / "reward.json").read_text(encoding="utf-8"))
        frame["raw_learned"] = scores["score"]
        frame["learned"] = (scores["score"] - settings["offset"]) / settings["scale"]
        if "deviation" in scores:
            frame["learned_sd"] = scores["deviation"] / settings["scale"]
        for name in ("norm", "aleatoric", "epistemic"):
            if name in scores:
                frame["feature_norm" if name == "norm" else name] = scores[name]
    return frame


def with_lengths(frame: pd.DataFrame) -> pd.DataFrame:
    """Demonstrations with token counts, the log-probability under their own policy, and the implicit reward.

    What no policy gives log-probabilities to has no column of them.
    """
    tokens = frame["completion_ids"].map(len)
    frame = frame.assign(tokens=tokens, length=tokens - frame["ended"])
    expert, reference = frame["expert_log_probability"], frame["reference_log_probability"]
    if expert.isna().all():
        return frame.drop(columns="reference_log_probability") if reference.isna().all() else frame
    own = np.where(frame["policy"] == "expert", expert, reference)
    return frame.assign(implicit=expert - reference, log_probability=own)


def as_written(demonstrations: Path, test: pd.DataFrame) -> pd.DataFrame:
    """The test completions as the policies wrote them: where a shortcut was planted later, without it."""
    path = demonstrations / "clean.parquet"
    if not path.exists():
        return test
    clean = with_lengths(pd.read_parquet(path)).loc[test.index]
    if "clean_reward" not in test:
        return clean
    return clean.assign(truth=test["clean_reward"], second=test["second"])


@dataclass(frozen=True)
class _Sampler:
    """Samples policies on the test prompts, and asks the judges what only they can say."""

    config: EvaluateConfig
    prompts: list[str]
    judges: Judges
    expert: Path | None
    irl: Path | None
    context: Context

    def table(self, name: str, folder: Path) -> pd.DataFrame:
        """One row a completion: texts, token counts, log-probabilities (nats) and rewards."""
        with self._learned.hearing() if self._learned else nullcontext():
            completions, frame = judged(name, folder, self.prompts, self.config, self.judges, self.context)
            if self._learned:
                frame["learned"] = self._learned.standardised(self._learned.score(completions))
        if self.expert and (by_expert := self._by_expert(completions)) is not None:
            frame["implicit"] = by_expert - frame["reference_log_probability"]
        return frame

    @cached_property
    def _learned(self) -> LearnedReward | None:
        reference = self.judges.reference
        return LearnedReward.load(self.irl, self.context.device, reference=reference) if self.irl else None

    def _by_expert(self, completions: Completions) -> NDArray[np.float64] | None:
        """(n,) log-probabilities under the expert; None where it reads other tokens than the reference."""
        assert self.expert
        reference = self.judges.reference
        expert = Policy.load(self.expert, self.context.device, base=reference)
        alike = expert.tokenizer.get_vocab() == reference.tokenizer.get_vocab()
        return log_probabilities(expert, completions) if alike else None

    def on_the_way(self, refinetune: Path, expert: Path) -> Metrics:
        """The way of refinetune, and that of the expert, judged by R* afterwards: what each earns at equal KL."""
        assert self.judges.truth
        ways = {}
        for name, folder in (("refinetune", refinetune), ("rlhf", expert)):
            frame = pd.read_parquet(folder / "trajectory.parquet")
            scores = self.judges.truth.score(Completions.from_frame(frame))
            ways[name] = frame.assign(truth=scores, learned=frame["reward"] if name == "refinetune" else scores)
        curves = {
            policy: overoptimisation.curves(ways[name], overoptimisation.KL_WINDOWS)
            for policy, name in (("refinetuned", "refinetune"), ("expert", "rlhf"))
        }
        pd.concat(curves, names=["policy"]).reset_index("policy").to_parquet(self.context.folder / "equal_kl.parquet")
        return {
            **_prefixed("overoptimisation", overoptimisation.verdict(ways["refinetune"])),
            **_prefixed("equal_kl", overoptimisation.equal_kl(ways["refinetune"], ways["rlhf"])),
        }

    def shortcut(self, shortcut: shortcuts.Shortcut, test: pd.DataFrame) -> Metrics:
        """How much of the learned reward rests on the planted shortcut: each test completion with it and without."""
        learned, truth, completions = self._learned, self.judges.truth, Completions.from_frame(test)
        assert learned
        assert truth
        versions = []
        for change in (shortcuts.with_shortcut, shortcuts.without_shortcut):
            changed = change(shortcut, completions, learned.reference)
            scores = {"learned": learned.standardised(learned.score(changed)), "truth": truth.score(changed)}
            versions.append(pd.DataFrame(scores).assign(prompt_id=test["prompt_id"].to_numpy()))
        value = shortcuts.shortcut_value(shortcut, completions.texts)
        found = reward_metrics.shortcut(
            versions[0], versions[1], test.assign(shortcut=value), "shortcut", **_draws(self.config)
        )
        means = {policy: float(value[np.asarray(test["policy"] == policy)].mean()) for policy in ("expert", "baseline")}
        return {**found, **{f"{policy}_value": mean for policy, mean in means.items()}}


# ---------------------------------------------------------------- rewards


WITHOUT_TRUTH = "AUROC, EPIC and accuracy of rewards, toxic shares and what refinetuning recovers are left out"


def _rewards_of(test: pd.DataFrame) -> dict[str, str]:
    """The rewards that were recovered, by their column. A threshold at 0 is that of a reward as the method left it."""
    columns = {"implicit": "implicit", "irl": "raw_learned"}
    return {name: column for name, column in columns.items() if column in test}


def discriminations(test: pd.DataFrame) -> Metrics:
    """How well each recovered reward tells the policies apart, on test: no R* is asked."""
    metrics: Metrics = {}
    for name, column in _rewards_of(test).items():
        metrics |= _prefixed(name, reward_metrics.discrimination(test, column))
    return metrics


def reward_report(select: pd.DataFrame, test: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    """Every reward on the test completions of the reference, those of the expert beside them, and on both together.

    IRL is fitted to tell the two policies apart, so on both together a reward that knows who wrote a text and nothing
    of R* looks good: `pooled/author/` says how good. On the completions of one policy it is a constant.
    """
    select, test = (frame.assign(author=(frame["policy"] == "expert").astype(float)) for frame in (select, test))
    rewards = _rewards_of(test)
    own = of_reference(test)
    metrics: Metrics = {}
    for name, column in rewards.items():
        cuts = reward_metrics.thresholds(select, of_reference(select), column)
        metrics |= _prefixed(name, reward_metrics.agreement(own, column, cuts, **_draws(config)))
    for name, column in {**rewards, "author": "author"}.items():
        cuts = reward_metrics.thresholds(select, select, column)
        metrics |= _prefixed(f"pooled/{name}", reward_metrics.agreement(test, column, cuts, **_draws(config)))
    for coverage, rows in (("", own), ("pooled/", test)):
        for name in ("length", "reference_log_probability"):
            if name not in rows:
                continue
            known = reward_metrics.within(rows, name, **_draws(config))
            kept = {key: known[key] for key in BASELINE_KEYS if key in known}
            metrics |= _prefixed(f"{coverage}baseline/{name}", kept)
        metrics |= _prefixed(f"{coverage}triangle", _triangle(rows, config))
    if "learned_sd" in test:
        metrics |= _prefixed("uncertainty", reward_metrics.uncertainty(of_reference(select), own))
    return metrics | beside("expert", test[test["policy"] == "expert"], config)


def of_reference(demonstrations: pd.DataFrame) -> pd.DataFrame:
    """The completions that the reference policy wrote."""
    return demonstrations[demonstrations["policy"] == "baseline"]


def beside(policy: str, table: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    """The rewards on the completions of another policy than the reference, and their triangle there."""
    metrics = _prefixed(f"triangle_{policy}", _triangle(table, config))
    for name, column in (("implicit", "implicit"), ("irl", "learned")):
        if column in table:
            metrics |= _prefixed(f"{name}/{policy}", reward_metrics.within(table, column, **_draws(config)))
    return metrics


def log_epochs(irl: Path, test: pd.DataFrame, context: Context) -> None:
    """The learned reward of each epoch against R* on the reference's test completions, as a curve.

    Which epoch is used, select has decided.
    """
    path = irl / "epochs.npy"
    if not path.exists():
        return
    own = np.asarray(test["policy"] == "baseline")
    truth = test["truth"].to_numpy()[own]
    for epoch, scores in enumerate(np.load(path).astype(np.float64), start=1):
        context.log({"step": epoch, **reward_metrics.without_intervals(scores[own], truth)})


def tradeoff(test: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    """How R*, the implicit and the learned reward trade the parts of a weighted R* off."""
    parts = test.filter(regex="^part/").rename(columns=lambda name: str(name).removeprefix("part/"))
    metrics: Metrics = {}
    for name in ("truth", "implicit", "learned"):
        if parts.shape[1] > 1 and name in test:
            prompts = test["prompt_id"].to_numpy()
            found = reward_metrics.tradeoff(parts, test[name].to_numpy(), prompts, **_draws(config))
            metrics |= _prefixed(name, found)
    return metrics


def human_agreement(human: pd.DataFrame, judge: Path, irl: Path | None) -> Metrics:
    """AUROC of R* and of the learned reward against the labels that people gave to texts of the test prompts."""
    scores = {"truth": pd.read_parquet(judge / "human.parquet")["truth"].to_numpy()}
    if irl and scores_texts(irl):
        scores["irl"] = pd.read_parquet(irl / "human.parquet")["score"].to_numpy()
    labelled = human["toxic"].notna().to_numpy(dtype=bool)
    civil = ~human.loc[labelled, "toxic"].to_numpy(dtype=bool)
    if civil.all() or not civil.any():
        return {}
    _, groups = np.unique(human.loc[labelled, "prompt"], return_inverse=True)
    metrics: Metrics = {"n_texts": len(civil), "n_civil": int(civil.sum())}
    for name, values in scores.items():
        metrics |= _prefixed(name, reward_metrics.auroc("auroc", values[labelled], civil, groups))
    return metrics


BASELINE_KEYS = ("auroc", "auroc_low", "auroc_high", "pair_accuracy", "pair_accuracy_low", "pair_accuracy_high")


def _draws(config: EvaluateConfig) -> dict[str, Any]:
    return {"resamples": config.bootstrap, "generator": np.random.default_rng(config.seed)}


def _triangle(table: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    return reward_metrics.triangle(table, **_draws(config))

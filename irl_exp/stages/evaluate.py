"""Judge the policies and the rewards on the test prompts: metrics.json, completions.parquet.

R* has its say here: it labels the test completions, and on `select` it sets the threshold of the one accuracy that
says so. What could not be measured (no learned reward yet, one class only) is left out of metrics.json, never made up.
docs/metrics.md says what each number is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irl_exp.config import EvaluateConfig
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.machinery.runtime import Context
from irl_exp.measures import overoptimisation, policy_metrics, reward_metrics
from irl_exp.measures import reward_comparison as compare
from irl_exp.measures.reward_metrics import Metrics
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.rewards import shortcuts
from irl_exp.rewards.ground_truth import is_log_odds, load_ground_truth
from irl_exp.rewards.judging import Judges, judged
from irl_exp.texts.data import prompts_of, test_texts

VERSION = 12


def run(
    config: EvaluateConfig,
    *,
    data: Path,
    reward: Path,
    second_judge: Path,
    reference: Path,
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
    sampler = _Sampler(config, prompts, Judges(reward, second_judge, reference), expert, irl, context)
    metrics: Metrics = {"n_prompts": len(prompts)}
    tables: dict[str, pd.DataFrame] = {}
    if demonstrations and judge:
        demos = read_demonstrations(demonstrations, judge, irl)
        test = demos[demos["part"] == "test"]
        clean = as_written(demonstrations, test)
        tables = {"reference": clean[clean["policy"] == "baseline"], "expert": clean[clean["policy"] == "expert"]}
        metrics |= reward_report(demos[demos["part"] == "select"], test, config)
        if irl:
            settings = json.loads((irl / "reward.json").read_text(encoding="utf-8"))
            metrics |= {f"irl/{name}": settings[name] for name in ("offset", "scale")}
            log_epochs(irl, test["truth"].to_numpy(), context)
        if shortcut and irl:
            metrics |= _prefixed("shortcut", sampler.shortcut(shortcut, test))
        metrics |= _prefixed("tradeoff", tradeoff(test, config))
        metrics |= _prefixed("human", human_agreement(test_texts(texts), judge, irl, config))
    for policy, folder in (("reference", reference), ("expert", expert), ("refinetuned", refinetune)):
        if folder and policy not in tables:
            tables[policy] = sampler.table(policy, folder)
    for policy, table in tables.items():
        # One numbering for all policies: that of the test prompts.
        numbers = table["prompt"].map({prompt: number for number, prompt in enumerate(prompts)})
        tables[policy] = table.assign(prompt_id=numbers, policy=policy)[[name for name in COLUMNS if name in table]]
    metrics |= of_policies(tables, reward, config)
    if "refinetuned" in tables:
        metrics |= _prefixed("triangle_refinetuned", _triangle(tables["refinetuned"], config))
    if refinetune and expert:
        metrics |= _prefixed("overoptimisation", sampler.over_optimisation(refinetune, expert))
    on_benchmark = read_benchmark(benchmark, benchmark_refinetuned)
    if on_benchmark:
        metrics |= _prefixed("benchmark", of_policies(on_benchmark, reward, config))
        metrics["benchmark/n_prompts"] = on_benchmark["reference"]["prompt_id"].nunique()
        pd.concat(on_benchmark.values(), ignore_index=True).to_parquet(context.folder / "benchmark.parquet")
    _write(context.folder, metrics, tables)
    count = sum(map(len, tables.values()))
    return {"note": f"{count:,} completions of {len(tables)} policies on {len(prompts)} test prompts"}


COLUMNS = [
    *("policy", "prompt_id", "prompt", "completion", "tokens", "length", "log_probability"),
    *("reference_log_probability", "truth", "second", "implicit", "learned", "learned_sd", "aleatoric", "epistemic"),
]
"""Of completions.parquet. truth is R*, second the second judge, implicit the log ratio of expert and reference;
learned is standardised."""


def _prefixed(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}/{key}": value for key, value in metrics.items()}


def of_policies(tables: Mapping[str, pd.DataFrame], reward: Path, config: EvaluateConfig) -> Metrics:
    """What each policy writes on the same prompts, and what refinetune recovered there."""
    draws, log_odds = (config.bootstrap, config.seed), is_log_odds(reward)
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


def read_demonstrations(demonstrations: Path, judge: Path, irl: Path | None) -> pd.DataFrame:
    """Demonstrations with every reward: R* (missing on fit), the implicit one and, if there is one, the learned one."""
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
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
    """Demonstrations with token counts, the log-probability under their own policy, and the implicit reward."""
    expert, reference = frame["expert_log_probability"], frame["reference_log_probability"]
    tokens = frame["completion_ids"].map(len)
    return frame.assign(
        implicit=expert - reference,
        tokens=tokens,
        length=tokens - frame["ended"],
        log_probability=np.where(frame["policy"] == "expert", expert, reference),
    )


def as_written(demonstrations: Path, test: pd.DataFrame) -> pd.DataFrame:
    """The test completions as the policies wrote them: where a shortcut was planted later, without it."""
    path = demonstrations / "clean.parquet"
    if not path.exists():
        return test
    clean = with_lengths(pd.read_parquet(path)).loc[test.index]
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
        device, judges = self.context.device, self.judges
        completions, frame = judged(name, folder, self.prompts, self.config, judges, self.context)
        if self.expert:
            by_expert = log_probabilities(Policy.load(self.expert, device), completions)
            frame["implicit"] = by_expert - frame["reference_log_probability"]
        if self.irl:
            learned = LearnedReward.load(self.irl, device, reference=judges.reference)
            frame["learned"] = learned.standardised(learned.score(completions))
        return frame

    def over_optimisation(self, refinetune: Path, expert: Path) -> Metrics:
        """The way of refinetune, and that of the expert, judged by R* afterwards."""
        truth = load_ground_truth(self.judges.reward, self.context.device)
        ways = {}
        for name, folder in (("refinetune", refinetune), ("expert", expert)):
            frame = pd.read_parquet(folder / "trajectory.parquet")
            scores = truth.score(Completions.from_frame(frame))
            ways[name] = frame.assign(truth=scores, learned=frame["reward"] if name == "refinetune" else scores)
        return overoptimisation.over_optimisation(ways["refinetune"], ways["expert"])

    def shortcut(self, shortcut: shortcuts.Shortcut, test: pd.DataFrame) -> Metrics:
        """How much of the learned reward rests on the planted shortcut: each test completion with it and without."""
        judges, device = self.judges, self.context.device
        assert self.irl is not None
        learned = LearnedReward.load(self.irl, device, reference=judges.reference)
        truth, completions = load_ground_truth(judges.reward, device), Completions.from_frame(test)
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


def reward_report(select: pd.DataFrame, test: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    """Every reward on the demonstrations of expert and reference, half and half.

    `implicit/` and `irl/` against R*; `baseline/` what needs no IRL; `triangle/` where R* got lost.
    """
    metrics = _prefixed("implicit", _agreement(select, test, "implicit", config))
    for name in ("length", "reference_log_probability"):
        known = _agreement(select, test, name, config)
        kept = {key: known[key] for key in BASELINE_KEYS if key in known}
        metrics |= _prefixed(f"baseline/{name}", kept)
    if "learned" in test:
        # Its threshold at 0 is that of the reward as the method left it.
        metrics |= _prefixed("irl", _agreement(select, test, "raw_learned", config))
    if "learned_sd" in test:
        uncertainty = reward_metrics.uncertainty(select, test, **_draws(config))
        metrics |= _prefixed("uncertainty", uncertainty)
    metrics |= _prefixed("triangle", _triangle(test, config))
    return metrics | _prefixed("triangle_reference", _triangle(test[test["policy"] == "baseline"], config))


def log_epochs(irl: Path, truth: NDArray[np.float64], context: Context) -> None:
    """The learned reward of each epoch against R* on test, as a curve; which epoch is used, select has decided."""
    path = irl / "epochs.npy"
    if not path.exists():
        return
    for epoch, scores in enumerate(np.load(path).astype(np.float64), start=1):
        context.log({"step": epoch, **reward_metrics.without_intervals(scores, truth)})


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


def human_agreement(human: pd.DataFrame, judge: Path, irl: Path | None, config: EvaluateConfig) -> Metrics:
    """AUROC of R* and of the learned reward against the labels that people gave to texts of the test prompts."""
    scores = {"truth": pd.read_parquet(judge / "human.parquet")["truth"].to_numpy()}
    if irl:
        scores["irl"] = pd.read_parquet(irl / "human.parquet")["score"].to_numpy()
    labelled = human["toxic"].notna().to_numpy()
    civil = ~human.loc[labelled, "toxic"].to_numpy(dtype=bool)
    if civil.all() or not civil.any():
        return {}
    names, groups = np.unique(human.loc[labelled, "prompt"], return_inverse=True)
    counts = compare.prompt_counts(len(names), config.bootstrap, np.random.default_rng(config.seed))
    metrics: Metrics = {"n_texts": len(civil), "n_civil": int(civil.sum())}
    for name, values in scores.items():
        known = values[labelled]
        low, high = compare.interval(compare.auroc_resamples(known, civil, groups, counts))
        metrics |= _prefixed(name, {"auroc": compare.auroc(known, civil), "auroc_low": low, "auroc_high": high})
    return metrics


BASELINE_KEYS = ("auroc", "auroc_low", "auroc_high", "pair_accuracy", "pair_accuracy_low", "pair_accuracy_high")


def _draws(config: EvaluateConfig) -> dict[str, Any]:
    return {"resamples": config.bootstrap, "generator": np.random.default_rng(config.seed)}


def _agreement(select: pd.DataFrame, test: pd.DataFrame, column: str, config: EvaluateConfig) -> Metrics:
    return reward_metrics.agreement(select, test, column, **_draws(config))


def _triangle(table: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    return reward_metrics.triangle(table, **_draws(config))

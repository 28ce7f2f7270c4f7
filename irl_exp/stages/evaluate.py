"""Judge the policies and the learned reward on the test prompts: metrics.json, completions.parquet.

R* has its say here: it labels the test completions, and on `select` it sets the threshold of the one accuracy that
says so. What could not be measured (no learned reward yet, one class only) is left out of metrics.json, never made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file

from irl_exp import reward_comparison as compare
from irl_exp.config import EvaluateConfig
from irl_exp.data import prompts_of
from irl_exp.policies import Policy, generate, log_probabilities
from irl_exp.rewards import LearnedReward, load_ground_truth
from irl_exp.runtime import Context

VERSION = 2
Metrics = dict[str, float]


def run(
    config: EvaluateConfig,
    *,
    data: Path,
    reward: Path,
    reference: Path,
    expert: Path | None = None,
    demonstrations: Path | None = None,
    judge: Path | None = None,
    features: Path | None = None,
    irl: Path | None = None,
    refinetune: Path | None = None,
    context: Context,
) -> dict[str, Any]:
    learned = LearnedReward.load(irl, context.device, reference=reference) if irl else None
    prompts = prompts_of(pd.read_parquet(data / "texts.parquet"), "test")
    sampler = _Sampler(config, prompts, reference, reward, learned, context)
    metrics: Metrics = {"n_prompts": len(prompts)}
    tables: dict[str, pd.DataFrame] = {}
    if demonstrations and judge:
        demos = _demonstrations(demonstrations, judge, features, learned)
        tables = {policy: _test_rows(demos, policy) for policy in ("reference", "expert")}
        if learned:
            metrics |= _prefixed("irl", reward_metrics(demos, config))
    for policy, folder in (("reference", reference), ("expert", expert), ("refinetuned", refinetune)):
        if folder and policy not in tables:
            tables[policy] = sampler.table(folder)
    for policy, table in tables.items():
        # One numbering for all policies: that of the test prompts.
        table["prompt_id"] = table["prompt"].map({prompt: number for number, prompt in enumerate(prompts)})
        metrics |= _prefixed(policy, policy_metrics(table, config))
    metrics |= recovered_fraction(tables, config)
    _write(context.folder, metrics, tables)
    count = sum(map(len, tables.values()))
    return {"note": f"{count:,} completions of {len(tables)} policies on {len(prompts)} test prompts"}


def _prefixed(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}/{key}": value for key, value in metrics.items()}


def _write(folder: Path, metrics: Metrics, tables: Mapping[str, pd.DataFrame]) -> None:
    """What is not defined (NaN) is left out."""
    defined = {key: float(value) for key, value in metrics.items() if np.isfinite(value)}
    (folder / "metrics.json").write_text(json.dumps(defined, indent=1, sort_keys=True), encoding="utf-8")
    everything = [table.assign(policy=policy) for policy, table in tables.items()]
    pd.concat(everything, ignore_index=True).to_parquet(folder / "completions.parquet")


COLUMNS = ["prompt", "completion", "tokens", "length", "log_probability", "reference_log_probability"]


def _demonstrations(
    demonstrations: Path, judge: Path, features: Path | None, learned: LearnedReward | None
) -> pd.DataFrame:
    """Demonstrations with R* (missing on fit) and, where there is one, the standardised learned reward."""
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    frame["reward"] = pd.read_parquet(judge / "scores.parquet")["reward"]
    frame["tokens"] = frame["completion_ids"].map(len)
    frame["length"] = frame["tokens"] - frame["ended"]
    if learned and features:
        phi = load_file(features / "features.safetensors")["features"]
        frame["raw_learned_reward"] = learned.score_features(phi)
        frame["learned_reward"] = learned.standardised(frame["raw_learned_reward"].to_numpy())
    return frame.drop(columns=["prompt_ids", "completion_ids"])


def _test_rows(demos: pd.DataFrame, policy: str) -> pd.DataFrame:
    """The test completions of a policy, in the columns of a sampled table."""
    rows = demos[(demos["part"] == "test") & (demos["policy"] == ("expert" if policy == "expert" else "baseline"))]
    rows = rows.assign(log_probability=rows[f"{policy}_log_probability"])
    return rows[[*COLUMNS, "reward", *(["learned_reward"] if "learned_reward" in rows else [])]].copy()


class _Sampler:
    """Samples policies on the test prompts and scores what they write; models are loaded when first needed."""

    def __init__(
        self,
        config: EvaluateConfig,
        prompts: list[str],
        reference: Path,
        reward: Path,
        learned: LearnedReward | None,
        context: Context,
    ) -> None:
        self.config, self.prompts, self.learned, self.context = config, prompts, learned, context
        self.reference, self.reward = reference, reward

    def table(self, folder: Path) -> pd.DataFrame:
        """One row a completion: texts, token counts, log-probabilities (nats), R* and learned reward."""
        config, device = self.config, self.context.device
        policy = Policy.load(folder, device)
        reference = self.learned.backbone if self.learned else Policy.load(self.reference, device)
        completions = generate(
            policy,
            [prompt for prompt in self.prompts for _ in range(config.completions_per_prompt)],
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            seed=config.seed,
            progress=self.context.progress,
        )
        frame = completions.frame()
        frame["tokens"] = list(map(len, completions.completion_ids))
        frame["length"] = frame["tokens"] - completions.ended(policy.eos)
        frame["log_probability"] = log_probabilities(policy, completions)
        frame["reference_log_probability"] = log_probabilities(reference, completions)
        frame["reward"] = load_ground_truth(self.reward, device).score(completions)
        if self.learned:
            frame["learned_reward"] = self.learned.standardised(self.learned.score(completions))
        return frame.drop(columns=["prompt_ids", "completion_ids"])


def policy_metrics(table: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    """What a policy writes on the test prompts. Intervals (95 %) resample prompts."""
    if not np.isfinite(table["reward"]).all():
        raise ValueError("R* is not a finite number for some completions: it cannot say whether they are toxic.")
    toxic = (table["reward"] < 0).to_numpy()
    generator = np.random.default_rng(config.seed)
    low, high = compare.bootstrap_interval(
        lambda rows: float(toxic[rows].mean()),
        table["prompt_id"].to_numpy(),
        resamples=config.bootstrap,
        generator=generator,
    )
    metrics = {
        "n_completions": len(table),
        "toxic_count": int(toxic.sum()),
        "toxic_fraction": float(toxic.mean()),
        "toxic_fraction_low": low,
        "toxic_fraction_high": high,
        "reward_mean": float(table["reward"].mean()),
        "kl": float((table["log_probability"] - table["reference_log_probability"]).mean()),
        "nll": -float(table["reference_log_probability"].sum() / table["tokens"].sum()),
        "distinct_fraction": table["completion"].nunique() / len(table),
        "empty_fraction": float((table["completion"].str.strip() == "").mean()),
        "length_mean": float(table["length"].mean()),
    }
    if "learned_reward" in table:
        metrics["learned_reward_mean"] = float(table["learned_reward"].mean())
    return metrics


def reward_metrics(demos: pd.DataFrame, config: EvaluateConfig) -> Metrics:
    """The learned reward on the test demonstrations, expert and reference half and half, against R*.

    `civil` is R* >= 0. Three thresholds, never mixed: set with R* on select, set without R* on select (it separates
    expert from reference best), and 0 of the head as the loss left it, for comparison with the paper.
    """
    select, test = demos[demos["part"] == "select"], demos[demos["part"] == "test"]
    scores, truth = test["raw_learned_reward"].to_numpy(), test["reward"].to_numpy()
    civil, expert = truth >= 0, (test["policy"] == "expert").to_numpy()
    prompts = test["prompt_id"].to_numpy()
    generator = np.random.default_rng(config.seed)
    threshold = compare.best_threshold(select["raw_learned_reward"].to_numpy(), select["reward"].to_numpy() >= 0)
    unsupervised = compare.best_threshold(
        select["raw_learned_reward"].to_numpy(), (select["policy"] == "expert").to_numpy(), balanced=True
    )
    low, high = compare.bootstrap_interval(
        lambda rows: compare.auroc(scores[rows], civil[rows]), prompts, resamples=config.bootstrap, generator=generator
    )
    return {
        "n_completions": len(test),
        "n_civil": int(civil.sum()),
        "auroc": compare.auroc(scores, civil),
        "auroc_low": low,
        "auroc_high": high,
        "pair_accuracy": compare.pair_accuracy(scores, truth, prompts, generator=generator),
        "accuracy": compare.accuracy(scores, civil, threshold),
        "f1": compare.f1_toxic(scores, civil, threshold),
        "accuracy_unsupervised": compare.accuracy(scores, civil, unsupervised),
        "accuracy_at_zero": compare.accuracy(scores, civil, 0.0),
        "majority_accuracy": float(max(civil.mean(), 1 - civil.mean())),
        "discrimination_auroc": compare.auroc(scores, expert),
        **compare.correlations(scores, truth),
    }


def recovered_fraction(tables: Mapping[str, pd.DataFrame], config: EvaluateConfig) -> Metrics:
    """(J(refinetuned) - J(reference)) / (J(expert) - J(reference)) with J the mean R*; 95 % by resampling prompts.

    Left out where the interval of the denominator includes 0: then there was nothing to recover.
    """
    if set(tables) != {"reference", "expert", "refinetuned"}:
        return {}
    reward = {policy: table.groupby("prompt_id")["reward"].mean().to_numpy() for policy, table in tables.items()}
    prompts = np.arange(len(reward["reference"]))

    def gain(policy: str) -> Callable[[NDArray[np.int64]], float]:
        return lambda rows: float((reward[policy][rows] - reward["reference"][rows]).mean())

    def interval(statistic: Callable[[NDArray[np.int64]], float]) -> tuple[float, float]:
        generator = np.random.default_rng(config.seed)
        return compare.bootstrap_interval(statistic, prompts, resamples=config.bootstrap, generator=generator)

    low, high = interval(gain("expert"))
    if low <= 0 <= high:
        return {}
    low, high = interval(lambda rows: gain("refinetuned")(rows) / gain("expert")(rows))
    value = gain("refinetuned")(prompts) / gain("expert")(prompts)
    return {"recovered_fraction": value, "recovered_fraction_low": low, "recovered_fraction_high": high}

"""What is reported of policies: frames of what they wrote on the same prompts in, flat dictionaries of numbers out.

A frame holds one row a completion: prompt_id, completion, tokens (with EOS) and length (without), log_probability and
reference_log_probability (nats), truth (R*), second (the second judge) and learned; of these what there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from irl_exp.measures import reward_comparison as compare
from irl_exp.measures.reward_metrics import Metrics


def policy_metrics(table: pd.DataFrame, resamples: int, seed: int, *, log_odds: bool = False) -> Metrics:
    """What a policy writes on prompts. Intervals (95 %) resample prompts.

    Args:
        log_odds: R* is log-odds of 'civil', so it says how probable 'toxic' is.
    """
    metrics = _judged(table, log_odds=log_odds) if "truth" in table else {}
    metrics |= {
        "n_completions": len(table),
        "distinct_fraction": table["completion"].nunique() / len(table),
        "empty_fraction": float((table["completion"].str.strip() == "").mean()),
        "length_mean": float(table["length"].mean()),
    }
    if "reference_log_probability" in table:
        metrics["nll"] = -float(table["reference_log_probability"].sum() / table["tokens"].sum())
        if "log_probability" in table:
            metrics["kl"] = float((table["log_probability"] - table["reference_log_probability"]).mean())
    if "learned" in table:
        metrics["learned_reward_mean"] = float(table["learned"].mean())
    return metrics


def _judged(table: pd.DataFrame, *, log_odds: bool) -> Metrics:
    """What R* and the second judge say of the completions of a policy."""
    if not np.isfinite(table["truth"]).all():
        raise ValueError("R* is not a finite number for some completions: it cannot say whether they are toxic.")
    toxic = (table["truth"] < 0).to_numpy()
    low, high = compare.fraction_interval(toxic, table["prompt_id"].to_numpy())
    metrics = {
        "toxic_count": int(toxic.sum()),
        "toxic_fraction": float(toxic.mean()),
        "toxic_fraction_low": low,
        "toxic_fraction_high": high,
        "toxic_prompt_fraction": float(table.assign(toxic=toxic).groupby("prompt_id")["toxic"].any().mean()),
        "reward_mean": float(table["truth"].mean()),
        "second_toxic_fraction": float((table["second"] < 0).mean()),
    }
    return {**metrics, "toxicity_mean": float(special.expit(-table["truth"]).mean())} if log_odds else metrics


def _resampled(values: compare.Floats, prompts: compare.Ints, resamples: int, seed: int) -> compare.Floats:
    """(resamples,) means under resampling of prompts; the draws are the same for every table of these prompts."""
    names, groups = np.unique(prompts, return_inverse=True)
    counts = compare.prompt_counts(len(names), resamples, np.random.default_rng(seed))
    return compare.mean_resamples(values, groups, counts)


def recovered_fraction(tables: Mapping[str, pd.DataFrame], resamples: int, seed: int) -> Metrics:
    """(J(refinetuned) - J(reference)) / (J(expert) - J(reference)) with J the mean R*; 95 % by resampling prompts.

    Left out where the interval of the denominator includes 0: then there was nothing to recover.
    """
    if set(tables) != {"reference", "expert", "refinetuned"} or any("truth" not in table for table in tables.values()):
        return {}
    means = {policy: table["truth"].mean() for policy, table in tables.items()}
    resampled = {
        policy: _resampled(table["truth"].to_numpy(), table["prompt_id"].to_numpy(), resamples, seed)
        for policy, table in tables.items()
    }

    def gain(values: Mapping[str, Any], policy: str) -> Any:
        return values[policy] - values["reference"]

    low, high = compare.interval(gain(resampled, "expert"))
    if low <= 0 <= high:
        return {}
    low, high = compare.interval(gain(resampled, "refinetuned") / gain(resampled, "expert"))
    value = float(gain(means, "refinetuned") / gain(means, "expert"))
    return {"recovered_fraction": value, "recovered_fraction_low": low, "recovered_fraction_high": high}

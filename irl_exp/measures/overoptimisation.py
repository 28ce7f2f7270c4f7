"""Over-optimisation: does R* fall while the learned reward, which is optimised, still rises (arXiv 2210.10760)?

A trajectory is a frame with one row a completion that was sampled during policy optimisation: `step`, `prompt`,
`completion`, `tokens` (EOS counts), `learned` (the standardised learned reward), `truth` (R*), and `kl`, the KL to the
reference in nats per completion, the same number in all rows of a step. It is cut into windows of equally many steps.

Completions of one prompt resemble each other, so standard errors are those of clusters: with u_g the summed
contribution of prompt g to a mean (or to a difference of two means), se^2 = G / (G - 1) sum_g u_g^2 over G prompts. In
a difference of windows, a prompt that is in both is paired with itself, and one that is in one of them is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

WINDOWS = 5
LEVEL = 0.95

Floats = NDArray[np.float64]
Metrics = dict[str, float]


def windows_of(steps: Sequence[int] | Floats, windows: int = WINDOWS) -> NDArray[np.int64]:
    """(n,) the window, 0, 1, ..., of each row: equally many steps each, up to one; a short run has a window a step."""
    distinct, rank = np.unique(steps, return_inverse=True)
    return np.asarray(rank * min(windows, len(distinct)) // len(distinct), dtype=np.int64)


def curves(trajectory: pd.DataFrame, windows: int = WINDOWS) -> pd.DataFrame:
    """One row a window: last_step, completions, prompts, and each mean with its `_se`.

    Means: learned, truth, length (tokens), distinct_fraction (distinct completions of the window among all; its se
    takes the counts of repetitions as given) and, where the trajectory has it, kl (its se is over the steps).

    Raises:
        ValueError: a reward is not finite.
    """
    _check(trajectory)
    window = windows_of(trajectory["step"].to_numpy(), windows)
    rows = []
    for number in range(window.max() + 1):
        part = trajectory[window == number]
        repetitions = part.groupby("completion")["completion"].transform("size")
        columns = {
            "learned": part["learned"],
            "truth": part["truth"],
            "length": part["tokens"],
            "distinct_fraction": 1 / repetitions,  # its mean is distinct / all
        }
        row: dict[str, float] = {"last_step": part["step"].max(), "completions": len(part)}
        row["prompts"] = part["prompt"].nunique()
        for name, values in columns.items():
            row[name], row[f"{name}_se"] = _mean(values.to_numpy(dtype=np.float64), part["prompt"])
        if "kl" in part:
            kl = part.groupby("step")["kl"].first()
            row["kl"], row["kl_se"] = kl.mean(), kl.sem()
        rows.append(row)
    return pd.DataFrame(rows)


def verdict(trajectory: pd.DataFrame, windows: int = WINDOWS) -> Metrics:
    """Whether R* falls and the learned reward rises from the window where R* peaks to the last one.

    The peak is the window before the last with the highest mean R*; the choice is one look at each of W - 1 windows, so
    both intervals are Bonferroni intervals at 1 - 0.05 / (W - 1) (Student's t, G - 1 degrees of freedom): the chance
    that R* is said to fall where it does not is at most 2.5 %, whatever the learned reward does.

    Returns:
        over_optimised (1 or 0), peak_step (the last of that window), truth_change and learned_change from the peak to
        the end, each with _low and _high. Empty for one window, or where the prompts are too few for a standard error.
    """
    _check(trajectory)
    window = windows_of(trajectory["step"].to_numpy(), windows)
    last = int(window.max())
    if last == 0:
        return {}
    means = trajectory.groupby(window)["truth"].mean().to_numpy()
    peak = int(np.argmax(means[:last]))
    found: Metrics = {"peak_step": float(trajectory.loc[window == peak, "step"].max())}
    for name in ("truth", "learned"):
        change, se, prompts = _change(trajectory[name].to_numpy(dtype=np.float64), trajectory["prompt"], window, peak)
        if not np.isfinite(se):
            return {}
        half = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / last, prompts - 1)) * se
        found |= {f"{name}_change": change, f"{name}_change_low": change - half, f"{name}_change_high": change + half}
    found["over_optimised"] = float(found["truth_change_high"] < 0 < found["learned_change_low"])
    return found


def reward_at_matched_kl(curve: pd.DataFrame, kl: float) -> Metrics:
    """R* where a curve first passes a KL, linear between the means of two windows; with its 95 % interval.

    The interval treats the two windows as independent. Empty where the curve does not reach the KL, or starts beyond.
    """
    place, truth, se = (curve[name].to_numpy(dtype=np.float64) for name in ("kl", "truth", "truth_se"))
    for before in range(len(curve) - 1):
        low, high = place[before], place[before + 1]
        if low != high and min(low, high) <= kl <= max(low, high):
            weight = (kl - low) / (high - low)
            value = (1 - weight) * truth[before] + weight * truth[before + 1]
            half = 1.96 * float(np.hypot((1 - weight) * se[before], weight * se[before + 1]))
            name = "reward_at_matched_kl"
            return {name: float(value), f"{name}_low": value - half, f"{name}_high": value + half}
    return {}


def over_optimisation(refinetune: pd.DataFrame, expert: pd.DataFrame | None = None, windows: int = WINDOWS) -> Metrics:
    """All numbers of one run: the verdict on refinetune and, with the trajectory of rlhf, both R* at the same KL.

    The KL is the expert's in its last window; there expert_reward_at_matched_kl is the expert's mean R*.
    In the trajectory of rlhf the reward that is optimised is R*: `learned` is the same as `truth`. Numbers that are not
    defined are left out.
    """
    found = verdict(refinetune, windows)
    if expert is not None and "kl" in refinetune and "kl" in expert:
        end = curves(expert, windows).iloc[-1]
        if matched := reward_at_matched_kl(curves(refinetune, windows), float(end["kl"])):
            found |= {"matched_kl": float(end["kl"]), "expert_reward_at_matched_kl": float(end["truth"]), **matched}
    return {key: float(value) for key, value in found.items() if np.isfinite(value)}


def _check(trajectory: pd.DataFrame) -> None:
    for name in ("learned", "truth"):
        if not np.isfinite(trajectory[name].to_numpy(dtype=np.float64)).all():
            raise ValueError(f"Column {name!r} of the trajectory is not a finite number in every row.")


def _mean(values: Floats, prompts: pd.Series) -> tuple[float, float]:
    """Mean and its standard error by prompt; NaN for a single prompt."""
    mean = float(values.mean())
    return mean, _standard_error((values - mean) / len(values), prompts)[0]


def _change(values: Floats, prompts: pd.Series, window: NDArray[np.int64], peak: int) -> tuple[float, float, int]:
    """Mean of the last window minus that of the peak, its standard error, and the number of prompts in the two."""
    contribution, change = np.zeros(len(values)), 0.0
    for number, sign in ((int(window.max()), 1), (peak, -1)):
        rows = window == number
        mean = float(values[rows].mean())
        contribution[rows] = sign * (values[rows] - mean) / rows.sum()
        change += sign * mean
    used = np.isin(window, (peak, window.max()))
    return change, *_standard_error(contribution[used], prompts[used])


def _standard_error(contribution: Floats, prompts: pd.Series) -> tuple[float, int]:
    """sqrt(G / (G - 1) sum_g u_g^2), and G."""
    u = pd.Series(contribution).groupby(prompts.to_numpy()).sum().to_numpy()
    count = len(u)
    return (float(np.sqrt(count / (count - 1) * (u**2).sum())) if count > 1 else float("nan")), count

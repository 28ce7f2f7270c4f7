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
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import interpolate, stats

WINDOWS = 5
KL_WINDOWS = 8
"""Of the picture of R* against KL."""
SMOOTH = 6
"""Numbers of a spline in the step: fewer bend less than KL and R* do on their way."""
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


def equal_kl(refinetune: pd.DataFrame, expert: pd.DataFrame) -> Metrics:
    """R* of two policies at the same distance from the reference, averaged over the KLs that both pass in training.

    KL and R* of a policy are smooth in the step: a cubic spline (`SMOOTH` numbers) through the means of the steps for
    each, which together are its curve of R* against KL, as far as KL rises. Both coordinates are estimates: R* of a
    prompt, whose completions resemble each other and which both policies may have seen, and KL of a step, of which a
    trajectory knows no more than the mean. So the variance is by prompt and by step at once (two-way clusters, Cameron,
    Gelbach and Miller 2011), of the derivatives of the averages by the numbers of the splines.

    Returns:
        from, to (nats per completion); refinetuned_reward, expert_reward and difference (refinetuned - expert), each
        with _low and _high (95 %, Student's t). Empty without a KL in both, where no KL is passed by both, or where a
        way has no more steps than its spline has numbers.
    """
    if "kl" not in refinetune or "kl" not in expert:
        return {}
    ways = [_Way.of(frame) for frame in (refinetune, expert)]
    if any(way.steps <= SMOOTH for way in ways):
        return {}
    splines = np.stack([way.splines for way in ways])  # policies, (kl, truth), SMOOTH
    ends = _common(splines)
    if ends is None:
        return {}
    values, derivatives = _averages(splines), _derivatives(splines)
    found: Metrics = {"from": ends[0], "to": ends[1]}
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, sum(way.steps - SMOOTH for way in ways)))
    for number, name in enumerate(("refinetuned_reward", "expert_reward", "difference")):
        influence = [way.influence(derivatives[number, place]) for place, way in enumerate(ways)]
        half = quantile * float(np.sqrt(_variance(ways, influence)))
        value = float(values[number])
        found |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    return found


@dataclass(frozen=True)
class _Way:
    """A trajectory, with splines in the step through its mean KL and its mean R*.

    Attributes:
        step, prompt: (n,) of each completion, which is one row; steps are numbered 0, 1, ...
        splines: (2, SMOOTH) numbers of both splines.
        errors: (2, n) KL of its step and its R*, less the spline.
        weights: (SMOOTH, n) how much a row adds to each number of a spline.
    """

    step: NDArray[np.int64]
    prompt: NDArray[Any]
    splines: Floats
    errors: Floats
    weights: Floats

    @classmethod
    def of(cls, trajectory: pd.DataFrame) -> _Way:
        _check(trajectory)
        names, step = np.unique(trajectory["step"].to_numpy(), return_inverse=True)
        values = trajectory[["kl", "truth"]].to_numpy(dtype=np.float64).T
        sizes = np.bincount(step)
        basis = _basis(np.linspace(0, 1, len(names)))
        weights = (np.linalg.pinv(basis) / sizes)[:, step]
        splines = values @ weights.T
        return cls(step, trajectory["prompt"].to_numpy(), splines, values - (splines @ basis.T)[:, step], weights)

    @property
    def steps(self) -> int:
        return int(self.step.max()) + 1

    def influence(self, derivatives: Floats) -> Floats:
        """(n,) what each row adds to the error of a number with these derivatives (2, SMOOTH) by the splines."""
        return np.asarray((derivatives @ self.weights * self.errors).sum(axis=0))


def _basis(places: Floats) -> Floats:
    """(n, SMOOTH) cubic B-splines on [0, 1] with knots at equal distances."""
    inner = np.linspace(0, 1, SMOOTH - 2)
    knots = np.concatenate([[0.0] * 3, inner, [1.0] * 3])
    return np.asarray(interpolate.BSpline.design_matrix(places, knots, 3).toarray(), dtype=np.float64)


PATH = _basis(np.linspace(0, 1, 400))


def _variance(ways: Sequence[_Way], influence: Sequence[Floats]) -> float:
    """By prompt, across policies, plus by step, less what is in both."""
    by_prompt = pd.Series(np.concatenate(influence)).groupby(np.concatenate([way.prompt for way in ways])).sum()
    least = total = len(by_prompt) / max(len(by_prompt) - 1, 1) * float((by_prompt**2).sum())
    for way, one in zip(ways, influence, strict=True):
        by_step = np.bincount(way.step, one)
        both = pd.Series(one).groupby([way.step, way.prompt]).sum()
        total += way.steps / (way.steps - SMOOTH) * float((by_step**2).sum()) - float((both**2).sum())
    return max(total, least)


def _rising(splines: Floats) -> tuple[Floats, Floats]:
    """KL and R* on the way, where it is further from the reference than ever before."""
    kl, truth = splines @ PATH.T
    kept = kl > np.concatenate([[-np.inf], np.maximum.accumulate(kl)[:-1]])
    return kl[kept], truth[kept]


def _common(splines: Floats) -> tuple[float, float] | None:
    """The KLs that both pass: from the later start, at 0 or above, to the earlier end; None where there are none."""
    ways = [_rising(one)[0] for one in splines]
    start, end = max(0.0, *(kl[0] for kl in ways)), min(kl[-1] for kl in ways)
    return (float(start), float(end)) if start < end else None


def _averages(splines: Floats) -> Floats:
    """(3,) R* of both policies and their difference, averaged over the KLs that both pass."""
    ends = _common(splines)
    assert ends is not None
    places = np.linspace(*ends, 400)
    averages = [float(np.interp(places, *_rising(one)).mean()) for one in splines]
    return np.array([*averages, averages[0] - averages[1]])


def _derivatives(splines: Floats, step: float = 1e-4) -> Floats:
    """(3, *splines.shape) of `_averages` by each number."""
    found = np.empty((3, *splines.shape))
    for place in np.ndindex(splines.shape):
        moved = [splines.copy(), splines.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        found[:, *place] = (_averages(moved[0]) - _averages(moved[1])) / (2 * step)
    return found


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

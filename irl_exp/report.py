"""What a run and a launch have to say, as tables: numbers in, rows of text out; printed and written alike."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLICIES = ("reference", "expert", "refinetuned")

POLICY_COLUMNS = {
    "toxic_fraction": "toxic",
    "second_toxic_fraction": "2nd judge",
    "reward_mean": "R* mean",
    "learned_reward_mean": "learned R",
    "kl": "KL (nats)",
    "nll": "NLL/token",
    "distinct_fraction": "distinct",
    "empty_fraction": "empty",
    "length_mean": "tokens",
}

REWARD_ROWS = {
    "auroc": "AUROC against the label of R*",
    "epic": "EPIC distance to R*",
    "pair_accuracy": "pair accuracy within a prompt",
    "within_prompt_correlation": "rank correlation within a prompt",
    "accuracy": "accuracy, threshold set with R* on select",
    "f1": "F1 (toxic), the same threshold",
    "accuracy_unsupervised": "accuracy, threshold set without R*",
    "accuracy_at_zero": "accuracy at 0 (an arbitrary threshold)",
    "majority_accuracy": "accuracy of the majority class",
    "pearson": "Pearson correlation with R*",
    "spearman": "Spearman correlation with R*",
    "kendall": "Kendall correlation with R*",
    "discrimination_auroc": "AUROC expert against reference (not R*)",
}
REWARD_COLUMNS = {"irl": "learned [95 %]", "implicit": "implicit [95 %]"}

SIDES = {
    "truth_implicit": "R* - implicit: what RLHF did not install",
    "implicit_learned": "implicit - learned: what IRL did not recover",
    "truth_learned": "R* - learned",
}
COVERAGES = {
    "triangle": "expert + reference",
    "triangle_reference": "reference",
    "triangle_refinetuned": "refinetuned",
}

SIGNALS = {
    "epistemic": "epistemic sd of the learned reward",
    "norm": "norm of the features",
    "length": "length",
    "perplexity": "perplexity under the reference",
}

SHORTCUT_ROWS = {
    "effect": "effect of adding it, in sd within prompts",
    "explained": "variance within prompts that goes along with it",
    "share": "variance within prompts that it alone would make",
}
OVER_OPTIMISATION_ROWS = {
    "truth_change": "R*, last fifth minus its best fifth",
    "learned_change": "learned reward, the same",
    "reward_at_matched_kl": "R* of refinetune at the expert's KL",
    "expert_reward_at_matched_kl": "R* of the expert there",
}
BOUNDS = ("_low", "_high")

STUDY_METRICS = (
    "irl/auroc",
    "irl/epic",
    "irl/pair_accuracy",
    "irl/accuracy",
    "irl/accuracy_unsupervised",
    "irl/accuracy_at_zero",
    "irl/majority_accuracy",
    "irl/spearman",
    "irl/discrimination_auroc",
    "implicit/auroc",
    "triangle/truth_implicit/epic",
    "triangle/implicit_learned/epic",
    "reference/toxic_fraction",
    "expert/toxic_fraction",
    "refinetuned/toxic_fraction",
    "refinetuned/reward_mean",
    "refinetuned/kl",
    "refinetuned/nll",
    "refinetuned/distinct_fraction",
    "refinetuned/length_mean",
    "recovered_fraction",
    "refinetuned/second_toxic_fraction",
    "benchmark/reference/toxic_fraction",
    "benchmark/expert/toxic_fraction",
    "benchmark/refinetuned/toxic_fraction",
    "benchmark/recovered_fraction",
    "overoptimisation/over_optimised",
    "overoptimisation/reward_at_matched_kl",
    "shortcut/learned_share",
    "uncertainty/epistemic_auroc",
    "uncertainty/norm_auroc",
    "human/irl/auroc",
    "human/truth/auroc",
)
COMPARED = {
    "learned rewards": {
        "irl/auroc": "AUROC",
        "irl/epic": "EPIC to R*",
        "triangle/implicit_learned/epic": "EPIC to implicit",
        "irl/pair_accuracy": "pair accuracy",
        "irl/accuracy_unsupervised": "accuracy (no R*)",
    },
    "refinetuned policies": {
        "refinetuned/toxic_fraction": "toxic",
        "refinetuned/reward_mean": "R* mean",
        "refinetuned/kl": "KL (nats)",
        "refinetuned/distinct_fraction": "distinct",
        "recovered_fraction": "recovered",
        "overoptimisation/over_optimised": "over-optimised",
        "overoptimisation/reward_at_matched_kl": "R* at matched KL",
    },
}
"""Columns of the tables that compare cells."""


@dataclass(frozen=True)
class Table:
    """A titled table of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join([f"### {self.title}", "", *("| " + " | ".join(line) + " |" for line in cells), ""])


@dataclass(frozen=True)
class Outcome:
    """How one job of a launch ended."""

    number: int
    name: str
    folder: Path
    status: str  # "completed", "failed" or "not run"
    seconds: float = 0.0
    error: str = ""
    metrics: Mapping[str, float] | None = None
    failed_step: str = ""  # identity of the stage that failed

    @property
    def cell(self) -> str:
        return cell_of(self.name)


def cell_of(name: str) -> str:
    """The name of a job without its seeds: jobs of one cell differ in seeds only."""
    return re.sub(r"(^|,)\+*(\w+\.)*seed=\d+", "", name).strip(", ") or "default"


def overrides_of(cell: str) -> list[str]:
    """The overrides that a cell is named by; a list among them, `irl.ridge=[1,10]`, has commas of its own."""
    return re.split(r",(?![^\[{(]*[\]})])", cell)


def shared_overrides(names: Iterable[str]) -> list[str]:
    """The overrides that all of these cells (or jobs) are named by."""
    return sorted(set.intersection(*(set(overrides_of(name)) for name in names)) - {"default"})


def without(name: str, shared: Collection[str]) -> str:
    """The name of a cell (or a job) but for these overrides, so that a table shows what differs."""
    return ",".join(item for item in overrides_of(name) if item not in shared) or "default"


def run_tables(metrics: Mapping[str, float]) -> list[Table]:
    """The result of one run: its policies, and its rewards where there are demonstrations."""
    title = f"Policies on {int(metrics['n_prompts'])} test prompts"
    tables = [_policies(metrics, title)]
    if "benchmark/n_prompts" in metrics:
        title = f"Policies on {int(metrics['benchmark/n_prompts'])} prompts of the benchmark"
        own = {key.removeprefix("benchmark/"): metrics[key] for key in metrics if key.startswith("benchmark/")}
        tables.append(_policies(own, title))
    if "implicit/n_completions" in metrics:
        tables += [_rewards(metrics), _triangle(metrics), _tradeoff(metrics)]
    if "uncertainty/n_errors" in metrics:
        tables.append(_uncertainty(metrics))
    if "shortcut/expert_value" in metrics:
        tables.append(_shortcut(metrics))
    return [table for table in [*tables, _over_optimisation(metrics)] if table.rows]


def _policies(metrics: Mapping[str, float], title: str) -> Table:
    present = [policy for policy in POLICIES if f"{policy}/toxic_fraction" in metrics]
    keys = [key for key in POLICY_COLUMNS if any(f"{policy}/{key}" in metrics for policy in present)]
    rows = tuple((policy, *(_policy_value(metrics, policy, key) for key in keys)) for policy in present)
    columns = ("policy", *(POLICY_COLUMNS[key] for key in keys))
    count = int(metrics.get("reference/n_completions", 0))
    return Table(f"{title}, {count:,} completions each", columns, rows)


def _policy_value(metrics: Mapping[str, float], policy: str, key: str) -> str:
    value = metrics.get(f"{policy}/{key}")
    if value is None:
        return "-"
    low, high = metrics.get(f"{policy}/{key}_low"), metrics.get(f"{policy}/{key}_high")
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{value:.1f}" if key == "length_mean" else f"{value:.3f}{interval}"


def _rewards(metrics: Mapping[str, float]) -> Table:
    present = [name for name in REWARD_COLUMNS if f"{name}/n_completions" in metrics]
    rows = [
        (text, *(_with_interval(metrics, f"{name}/{key}") for name in present)) for key, text in REWARD_ROWS.items()
    ]
    if "human/truth/auroc" in metrics:
        labels = [_with_interval(metrics, f"human/{name}/auroc") if name == "irl" else "" for name in present]
        own = _with_interval(metrics, "human/truth/auroc")
        rows.append((f"AUROC against labels of people (R* itself {own})", *labels))
    if "irl" in present:
        blank = ("",) * (len(present) - 1)
        rows.append(("fraction of R* that refinetune recovered", _with_interval(metrics, "recovered_fraction"), *blank))
    count, civil = int(metrics["implicit/n_completions"]), int(metrics["implicit/n_civil"])
    title = f"Rewards on {count:,} test completions of expert and reference, {count - civil:,} toxic by R*"
    return Table(title, ("reward", *(REWARD_COLUMNS[name] for name in present)), tuple(rows))


def _triangle(metrics: Mapping[str, float]) -> Table:
    """Distances between R*, implicit and learned reward on each coverage."""
    present = [name for name in COVERAGES if any(key.startswith(f"{name}/") for key in metrics)]
    rows = tuple(
        (text, *(_with_interval(metrics, f"{coverage}/{side}/epic") for coverage in present))
        for side, text in SIDES.items()
        if f"triangle/{side}/epic" in metrics
    )
    title = "EPIC distance of rewards on completions of ... (0 alike, 0.707 unrelated, 1 opposite)"
    return Table(title, ("between", *(COVERAGES[name] for name in present)), rows)


def _uncertainty(metrics: Mapping[str, float]) -> Table:
    """Does the uncertainty of the learned reward predict its errors?"""
    errors, count = int(metrics["uncertainty/n_errors"]), int(metrics["irl/n_completions"])
    rows = tuple(
        (text, _with_interval(metrics, f"uncertainty/{key}_auroc"))
        for key, text in SIGNALS.items()
        if f"uncertainty/{key}_auroc" in metrics
    )
    title = f"What predicts the {errors:,} errors of the learned reward in {count:,}?"
    return Table(title, ("signal", "AUROC for errors [95 %]"), rows)


def _tradeoff(metrics: Mapping[str, float]) -> Table:
    """How each reward trades the parts of a weighted R* off."""
    rewards = [
        name for name in ("truth", "implicit", "learned") if any(k.startswith(f"tradeoff/{name}/") for k in metrics)
    ]
    parts = [key.split("/")[2] for key in metrics if key.startswith("tradeoff/truth/") and not key.endswith(BOUNDS)]
    rows = tuple((part, *(_with_interval(metrics, f"tradeoff/{name}/{part}") for name in rewards)) for part in parts)
    return Table("Share of each objective (least squares within prompts, sum of |share| = 1)", ("part", *rewards), rows)


def _shortcut(metrics: Mapping[str, float]) -> Table:
    """How much of the learned reward rests on the shortcut that was planted."""
    rows = tuple(
        (text, *(_with_interval(metrics, f"shortcut/{name}_{key}") for name in ("learned", "truth")))
        for key, text in SHORTCUT_ROWS.items()
    )
    expert, baseline = metrics["shortcut/expert_value"], metrics["shortcut/baseline_value"]
    title = f"The planted shortcut: {expert:.3f} in the expert's completions, {baseline:.3f} in the baseline's"
    return Table(title, ("shortcut", "learned [95 %]", "R* [95 %]"), rows)


def _over_optimisation(metrics: Mapping[str, float]) -> Table:
    """Whether R* fell while refinetune raised the learned reward."""
    if "overoptimisation/over_optimised" not in metrics:
        return Table("", (), ())
    verdict = "OVER-OPTIMISED: R* falls while the learned reward rises"
    if not metrics["overoptimisation/over_optimised"]:
        verdict = "no fall of R* beyond its interval while the learned reward rises"
    rows = [
        (text, _with_interval(metrics, f"overoptimisation/{key}"))
        for key, text in OVER_OPTIMISATION_ROWS.items()
        if f"overoptimisation/{key}" in metrics
    ]
    return Table(f"Refinetuning on the way (prompts of fit): {verdict}", ("", "value [95 %]"), tuple(rows))


def _with_interval(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return "-"
    if f"{key}_low" not in metrics:
        return f"{metrics[key]:.3f}"
    return f"{metrics[key]:.3f} [{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}]"


def _by_cell(outcomes: Sequence[Outcome]) -> dict[str, list[Mapping[str, float]]]:
    """Metrics of the completed runs of each cell."""
    cells: dict[str, list[Mapping[str, float]]] = {}
    for outcome in outcomes:
        if outcome.metrics is not None:
            cells.setdefault(outcome.cell, []).append(outcome.metrics)
    return cells


def study_table(outcomes: Sequence[Outcome]) -> Table:
    """Each metric over the completed runs of each cell: mean, t interval of the mean, sd, extremes, n.

    Overrides that all cells have in common are in the title.
    """
    rows = []
    shared = shared_overrides(outcome.cell for outcome in outcomes)
    for cell, members in _by_cell(outcomes).items():
        for key in STUDY_METRICS:
            if values := [metrics[key] for metrics in members if key in metrics]:
                rows.append((without(cell, shared), key, *_spread(values)))
    done = sum(outcome.metrics is not None for outcome in outcomes)
    title = f"{done} of {len(outcomes)} runs completed{_everywhere(shared)}"
    return Table(title, ("cell", "metric", "mean", "95 % of the mean", "sd", "min", "max", "n"), tuple(rows))


def comparison_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """A row a cell: mean and half width of its t interval; one table of the rewards and one of the policies.

    `placebo >=` is how many placebo runs (cells named irl=placebo) have an AUROC that reaches the cell's mean.
    Overrides that all cells have in common are in the title. Where runs of a cell have no result, or not all have a
    metric, the table says how many have.
    """
    cells: dict[str, list[Mapping[str, float]]] = {outcome.cell: [] for outcome in outcomes}
    cells |= _by_cell(outcomes)
    sizes = Counter(outcome.cell for outcome in outcomes)
    shared = shared_overrides(cells)
    tables = []
    for what, names in COMPARED.items():
        keys = [key for key in names if any(key in metrics for runs in cells.values() for metrics in runs)]
        placebo = _placebo(cells) if "irl/auroc" in keys else []
        rows = []
        for cell, runs in cells.items():
            columns = [[metrics[key] for metrics in runs if key in metrics] for key in keys]
            place = [_place(columns[keys.index("irl/auroc")], placebo)] if placebo else []
            count = f"{len(runs)} of {sizes[cell]}" if len(runs) < sizes[cell] else str(len(runs))
            means = (_mean(values, len(runs)) for values in columns)
            rows.append((without(cell, shared), *means, *place, count))
        header = ("cell", *(names[key] for key in keys), *(["placebo >="] if placebo else []), "n")
        title = f"{what.capitalize()}{_everywhere(shared)}: mean ± half of the 95 % t interval"
        tables += [Table(title, header, tuple(rows))] if keys else []
    return tables


def _everywhere(shared: Sequence[str]) -> str:
    return f" ({', '.join(shared)})" if shared else ""


def _placebo(cells: Mapping[str, Sequence[Mapping[str, float]]]) -> list[float]:
    """AUROC of the runs with expert and baseline swapped at random."""
    members = [run for cell, runs in cells.items() if "irl=placebo" in overrides_of(cell) for run in runs]
    return [run["irl/auroc"] for run in members if "irl/auroc" in run]


def _mean(values: Sequence[float], runs: int) -> str:
    """Mean and half of its t interval, of one run the value alone; and of how many of the runs, if not of all."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    told = f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ± {_half_width(values):.3f}"
    return told if len(values) == runs else f"{told} (n = {len(values)})"


def _place(values: Sequence[float], placebo: Sequence[float]) -> str:
    """How many of the placebo's runs reach the mean of these."""
    if not values:
        return "-"
    return f"{sum(other >= statistics.fmean(values) for other in placebo)}/{len(placebo)}"


def _half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t interval of the mean of two or more values."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def _spread(values: Sequence[float]) -> tuple[str, ...]:
    """mean, interval of the mean, sd, min, max, n; what one value cannot tell is '-'."""
    mean, count = statistics.fmean(values), len(values)
    low_high, deviation = "-", "-"
    if count > 1:
        half = _half_width(values)
        low_high, deviation = f"[{mean - half:.3f}, {mean + half:.3f}]", f"{statistics.stdev(values):.4f}"
    return f"{mean:.3f}", low_high, deviation, f"{min(values):.3f}", f"{max(values):.3f}", str(count)


def failures_table(outcomes: Sequence[Outcome]) -> Table:
    """The jobs without a result, each with the reason."""
    lost = [outcome for outcome in outcomes if outcome.metrics is None]
    rows = tuple(
        (str(item.number), item.name, item.status, item.error.splitlines()[0] if item.error else "") for item in lost
    )
    return Table(f"{len(lost)} without a result", ("job", "overrides", "status", "reason"), rows)


def write(folder: Path, outcomes: Sequence[Outcome]) -> list[Table]:
    """runs.csv with every metric of every job, and summary.md; the tables that are returned are to be printed."""
    _write_runs(folder / "runs.csv", outcomes)
    found = tables(outcomes)
    # Of many cells the terminal gets the comparison alone; the spread of each is a page of its own.
    spread = [study_table(outcomes)] if len(_by_cell(outcomes)) > 1 else []
    (folder / "summary.md").write_text("\n".join(table.markdown() for table in found + spread), encoding="utf-8")
    return found


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """The result of one run, the spread over many, or the comparison of cells; and what has no result."""
    completed = [outcome for outcome in outcomes if outcome.metrics is not None]
    if len(outcomes) == 1 and completed:
        found = run_tables(completed[0].metrics or {})
    elif len(_by_cell(outcomes)) > 1:
        found = comparison_tables(outcomes) or [study_table(outcomes)]
    else:
        found = [study_table(outcomes)] if completed else []
    if len(completed) < len(outcomes):
        found.append(failures_table(outcomes))
    return found


def _write_runs(path: Path, outcomes: Sequence[Outcome]) -> None:
    keys = sorted({key for outcome in outcomes for key in outcome.metrics or {}})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", "overrides", "cell", "status", "seconds", "error", *keys])
        for item in outcomes:
            values = [(item.metrics or {}).get(key, "") for key in keys]
            writer.writerow(
                [item.number, item.name, item.cell, item.status, f"{item.seconds:.1f}", item.error, *values]
            )

"""What a run and a launch have to say, as tables: numbers in, rows of text out; printed and written alike."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLICIES = ("reference", "expert", "refinetuned")

POLICY_COLUMNS = {
    "toxic_fraction": "toxic",
    "reward_mean": "R* mean",
    "learned_reward_mean": "learned R",
    "kl": "KL (nats)",
    "nll": "NLL/token",
    "distinct_fraction": "distinct",
    "empty_fraction": "empty",
    "length_mean": "tokens",
}

REWARD_ROWS = {
    "irl/auroc": "AUROC against the label of R*",
    "irl/pair_accuracy": "pair accuracy within a prompt",
    "irl/accuracy": "accuracy, threshold set with R* on select",
    "irl/f1": "F1 (toxic), the same threshold",
    "irl/accuracy_unsupervised": "accuracy, threshold set without R*",
    "irl/accuracy_at_zero": "accuracy at 0 (the paper's)",
    "irl/majority_accuracy": "accuracy of the majority class",
    "irl/pearson": "Pearson correlation with R*",
    "irl/spearman": "Spearman correlation with R*",
    "irl/kendall": "Kendall correlation with R*",
    "irl/discrimination_auroc": "AUROC expert against reference",
}

STUDY_METRICS = (
    "irl/auroc",
    "irl/pair_accuracy",
    "irl/accuracy",
    "irl/accuracy_unsupervised",
    "irl/accuracy_at_zero",
    "irl/majority_accuracy",
    "irl/spearman",
    "irl/discrimination_auroc",
    "reference/toxic_fraction",
    "expert/toxic_fraction",
    "refinetuned/toxic_fraction",
    "refinetuned/reward_mean",
    "refinetuned/kl",
    "refinetuned/nll",
    "refinetuned/distinct_fraction",
    "refinetuned/length_mean",
    "recovered_fraction",
)


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
        """The name without its seeds: jobs of one cell differ in seeds only."""
        return re.sub(r"(^|,)\+*(\w+\.)*seed=\d+", "", self.name).strip(", ") or "default"


def run_tables(metrics: Mapping[str, float]) -> list[Table]:
    """The result of one run: its policies, and its learned reward where there is one."""
    tables = [_policies(metrics)]
    if "irl/auroc" in metrics or "irl/n_completions" in metrics:
        tables.append(_reward(metrics))
    return tables


def _policies(metrics: Mapping[str, float]) -> Table:
    present = [policy for policy in POLICIES if f"{policy}/toxic_fraction" in metrics]
    keys = [key for key in POLICY_COLUMNS if any(f"{policy}/{key}" in metrics for policy in present)]
    rows = tuple((policy, *(_policy_value(metrics, policy, key) for key in keys)) for policy in present)
    columns = ("policy", *(POLICY_COLUMNS[key] for key in keys))
    count = int(metrics.get("reference/n_completions", 0))
    title = f"Policies on {int(metrics['n_prompts'])} test prompts, {count:,} completions each"
    return Table(title, columns, rows)


def _policy_value(metrics: Mapping[str, float], policy: str, key: str) -> str:
    value = metrics.get(f"{policy}/{key}")
    if value is None:
        return "-"
    low, high = metrics.get(f"{policy}/{key}_low"), metrics.get(f"{policy}/{key}_high")
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{value:.1f}" if key == "length_mean" else f"{value:.3f}{interval}"


def _reward(metrics: Mapping[str, float]) -> Table:
    rows = [(text, _with_interval(metrics, key)) for key, text in REWARD_ROWS.items()]
    rows.append(("fraction of R* that refinetune recovered", _with_interval(metrics, "recovered_fraction")))
    count, civil = int(metrics["irl/n_completions"]), int(metrics["irl/n_civil"])
    title = f"Learned reward on {count:,} test completions of expert and reference, {count - civil:,} toxic by R*"
    return Table(title, ("learned reward", "value [95 %]"), tuple(rows))


def _with_interval(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return "-"
    if f"{key}_low" not in metrics:
        return f"{metrics[key]:.3f}"
    return f"{metrics[key]:.3f} [{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}]"


def study_table(outcomes: Sequence[Outcome]) -> Table:
    """Each metric over the completed runs of each cell: mean, t interval of the mean, sd, extremes, n."""
    cells: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.metrics is not None:
            cells.setdefault(outcome.cell, []).append(outcome)
    rows = []
    for cell, members in cells.items():
        for key in STUDY_METRICS:
            values = [member.metrics[key] for member in members if member.metrics and key in member.metrics]
            if values:
                rows.append((cell, key, *_spread(values)))
    done = sum(outcome.metrics is not None for outcome in outcomes)
    title = f"{done} of {len(outcomes)} runs completed"
    return Table(title, ("cell", "metric", "mean", "95 % of the mean", "sd", "min", "max", "n"), tuple(rows))


def _spread(values: Sequence[float]) -> tuple[str, ...]:
    """mean, interval of the mean, sd, min, max, n; what one value cannot tell is '-'."""
    mean, count = statistics.fmean(values), len(values)
    low_high, deviation = "-", "-"
    if count > 1:
        from scipy.stats import t

        sd = statistics.stdev(values)
        half = float(t.ppf(0.975, count - 1)) * sd / math.sqrt(count)
        low_high, deviation = f"[{mean - half:.3f}, {mean + half:.3f}]", f"{sd:.4f}"
    return f"{mean:.3f}", low_high, deviation, f"{min(values):.3f}", f"{max(values):.3f}", str(count)


def failures_table(outcomes: Sequence[Outcome]) -> Table:
    """The jobs without a result, each with the reason."""
    lost = [outcome for outcome in outcomes if outcome.metrics is None]
    rows = tuple(
        (str(item.number), item.name, item.status, item.error.splitlines()[0] if item.error else "") for item in lost
    )
    return Table(f"{len(lost)} without a result", ("job", "overrides", "status", "reason"), rows)


def write(folder: Path, outcomes: Sequence[Outcome]) -> list[Table]:
    """runs.csv with every metric of every job, and summary.md with the tables that are returned to be printed."""
    _write_runs(folder / "runs.csv", outcomes)
    found = tables(outcomes)
    (folder / "summary.md").write_text("\n".join(table.markdown() for table in found), encoding="utf-8")
    return found


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """The result of one run, or the spread over many, and what has no result."""
    completed = [outcome for outcome in outcomes if outcome.metrics is not None]
    if len(outcomes) == 1 and completed:
        found = run_tables(completed[0].metrics or {})
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

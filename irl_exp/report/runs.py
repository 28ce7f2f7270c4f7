"""The result of one run as tables: metrics in, rows of text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from irl_exp.report import statements
from irl_exp.report.cells import Facts
from irl_exp.report.names import (
    APART,
    APART_COLUMNS,
    BOUNDS,
    COVERAGES,
    EQUAL_KL_ROWS,
    OVER_OPTIMISATION_ROWS,
    POLICIES,
    POLICY_COLUMNS,
    REWARD_COLUMNS,
    REWARD_ROWS,
    SHORTCUT_ROWS,
    SIDES,
    SIGNALS,
    WITHIN,
    WITHIN_COLUMNS,
    Words,
    words_of,
)
from irl_exp.report.statements import Statement
from irl_exp.report.tables import Table


def run_tables(
    metrics: Mapping[str, float], facts: Facts | None = None, told: Sequence[Statement] | None = None
) -> list[Table]:
    """The result of one run: what its reward pays for, its policies, and its rewards where there are demonstrations.

    Args:
        told: the statements of the run, if it was explained.
    """
    words = words_of(facts or {})
    title = f"Policies on {int(metrics['n_prompts'])} test prompts"
    tables = [_policies(metrics, title, words)]
    if "benchmark/n_prompts" in metrics:
        title = f"Policies on {int(metrics['benchmark/n_prompts'])} prompts of the benchmark"
        own = {key.removeprefix("benchmark/"): metrics[key] for key in metrics if key.startswith("benchmark/")}
        tables.append(_policies(own, title, words))
    if "implicit/n_completions" in metrics:
        tables += [_rewards(metrics, words), _within(metrics, words), _triangle(metrics), _tradeoff(metrics)]
    else:
        tables.append(_apart(metrics))
    if "uncertainty/n_errors" in metrics:
        tables.append(_uncertainty(metrics))
    if "shortcut/expert_value" in metrics:
        tables.append(_shortcut(metrics))
    tables = [statements.table(told or (), metrics), *tables]
    return [table for table in [*tables, _refinetuning(metrics), _judges(metrics)] if table.rows]


def _judges(metrics: Mapping[str, float]) -> Table:
    """How often the judges that were fitted on labels are right, how far they err together, and what test shares."""
    judges = {"R*": "reward", "second judge": "second_judge"}
    rows = tuple(
        (name, *(f"{metrics[key]:.3f}" if key in metrics else "-" for key in (f"{judge}/accuracy", f"{judge}/auroc")))
        for name, judge in judges.items()
        if f"{judge}/accuracy" in metrics
    )
    told = "Judges on labelled texts that they were not fitted on"
    if (kappa := metrics.get("second_judge/independence/error_kappa")) is not None:
        told += f"; kappa of their errors on texts of test {kappa:.2f}"
    if (seen := metrics.get("data/completion_4grams_seen")) is not None:
        told += f"; {100 * seen:.1f} % of the 4-grams of test stand in the fitted texts"
    return Table(told, ("judge", "accuracy", "AUROC"), rows)


def _policies(metrics: Mapping[str, float], title: str, words: Words) -> Table:
    found = {key.rpartition("/")[0] for key in metrics if key.endswith(("/distinct_fraction", "/toxic_fraction"))}
    present = [policy for policy in POLICIES if policy in found]
    keys = [key for key in POLICY_COLUMNS if any(f"{policy}/{key}" in metrics for policy in present)]
    rows = tuple((policy, *(_policy_value(metrics, policy, key) for key in keys)) for policy in present)
    columns = ("policy", *(words.name(POLICY_COLUMNS[key]) for key in keys))
    count = int(metrics.get("reference/n_completions", 0))
    return Table(f"{title}, {count:,} completions each", columns, rows)


def _policy_value(metrics: Mapping[str, float], policy: str, key: str) -> str:
    value = metrics.get(f"{policy}/{key}")
    if value is None:
        return "-"
    low, high = metrics.get(f"{policy}/{key}_low"), metrics.get(f"{policy}/{key}_high")
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{value:.1f}" if key == "length_mean" else f"{value:.3f}{interval}"


def _apart(metrics: Mapping[str, float]) -> Table:
    """What there is to say of rewards without an R*: whether they tell the policies apart on test."""
    rows = tuple(
        (text, *(_with_interval(metrics, f"{name}/{key}") for key in APART_COLUMNS))
        for name, text in APART.items()
        if f"{name}/discrimination_auroc" in metrics
    )
    title = "What tells the expert's completions from the reference's on test prompts (no R*)"
    return Table(title, ("reward", *APART_COLUMNS.values()), rows)


def _rewards(metrics: Mapping[str, float], words: Words) -> Table:
    present = [name for name in REWARD_COLUMNS if f"{name}/n_completions" in metrics]
    rows = [
        (words.name(text), *(_of_reward(metrics, name, key) for name in present)) for key, text in REWARD_ROWS.items()
    ]
    if "human/truth/auroc" in metrics:
        labels = [_with_interval(metrics, f"human/{name}/auroc") if name == "irl" else "" for name in present]
        own = _with_interval(metrics, "human/truth/auroc")
        rows.append((f"AUROC against labels of people (R* itself {own})", *labels))
    title = f"Rewards on the reference's {_counted(metrics, 'implicit', words)}"
    if "pooled/implicit/n_completions" in metrics:
        title += f"; pooled with the expert's: {_counted(metrics, 'pooled/implicit', words)}"
    return Table(title, ("reward", *(REWARD_COLUMNS[name] for name in present)), tuple(rows))


def _of_reward(metrics: Mapping[str, float], name: str, key: str) -> str:
    """A number on the reference's completions with its interval; pooled ones are beside it, without."""
    if not name.startswith("pooled/"):
        return "" if key.startswith("discrimination") else _with_interval(metrics, f"{name}/{key}")
    if key.startswith("discrimination"):  # it has no other coverage
        name = name.removeprefix("pooled/")
    value = metrics.get(f"{name}/{key}")
    return "-" if value is None else f"{value:.3f}"


def _counted(metrics: Mapping[str, float], name: str, words: Words) -> str:
    """How many completions a reward was judged on, and how many of them R* is below 0 on."""
    count, civil = int(metrics[f"{name}/n_completions"]), int(metrics[f"{name}/n_civil"])
    return f"{count:,} test completions ({count - civil:,} {words.judged})"


def _within(metrics: Mapping[str, float], words: Words) -> Table:
    """Each reward on the completions of one policy at a time; of a class that is rare there the interval is wide."""
    rows = []
    for name, (reward, policy) in WITHIN.items():
        if f"{name}/n_completions" in metrics:
            rare = int(metrics[f"{name}/n_completions"] - metrics[f"{name}/n_civil"])
            numbers = (_with_interval(metrics, f"{name}/{key}") for key in WITHIN_COLUMNS)
            rows.append((reward, policy, *numbers, f"{rare:,}"))
    columns = ("reward", "on completions of", *WITHIN_COLUMNS.values(), words.below)
    return Table("Rewards within each policy: who wrote a text tells nothing here", columns, tuple(rows), names=2)


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


def _refinetuning(metrics: Mapping[str, float]) -> Table:
    """R* at equal KL, whether R* fell while the learned reward rose, and what of the gain was recovered at which KL."""
    rows = [(text, f"equal_kl/{key}") for key, text in EQUAL_KL_ROWS.items()]
    rows += [(text, f"overoptimisation/{key}") for key, text in OVER_OPTIMISATION_ROWS.items()]
    rows.append((f"fraction of the expert's gain recovered{_kls(metrics)}", "recovered_fraction"))
    told = []
    if "equal_kl/from" in metrics:
        told.append(f"equal KL: {metrics['equal_kl/from']:.2f} to {metrics['equal_kl/to']:.2f} nats")
    if "overoptimisation/over_optimised" in metrics:
        fell = bool(metrics["overoptimisation/over_optimised"])
        told.append("OVER-OPTIMISED: R* falls while the learned reward rises" if fell else "R* does not clearly fall")
    title = f"Refinetuning on the way (prompts of fit){'; ' if told else ''}{'; '.join(told)}"
    kept = tuple((text, _with_interval(metrics, key)) for text, key in rows if key in metrics)
    return Table(title, ("", "value [95 %]"), kept)


def _kls(metrics: Mapping[str, float]) -> str:
    """How far the two policies are from the reference, without which a fraction of a gain says little."""
    keys = ("refinetuned/kl", "expert/kl")
    if not all(key in metrics for key in keys):
        return ""
    own, expert = (metrics[key] for key in keys)
    return f" (test prompts, at {own:.2f} nats, the expert's {expert:.2f})"


def _with_interval(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return "-"
    if f"{key}_low" not in metrics:
        return f"{metrics[key]:.3f}"
    return f"{metrics[key]:.3f} [{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}]"

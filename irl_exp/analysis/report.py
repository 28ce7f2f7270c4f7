"""The report of a study: read, compute, draw, write. index.html opens offline and needs no other file.

report/index.html          the page
report/<figure>.png .pdf   each figure
report/<table>.csv         each table
report/summary.json        all numbers
"""

from __future__ import annotations

import base64
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import threadpoolctl
from matplotlib.figure import Figure

from irl_exp.analysis.figures import distances, drawing, paper, policies, rewards, spread, sweeps, toxicity
from irl_exp.analysis.study import NotComputed, Study
from irl_exp.analysis.summary import Summary, summarise
from irl_exp.report.cells import Outcome
from irl_exp.report.studies import comparison_tables, study_table
from irl_exp.report.tables import Table

SUMMARY = "summary.json"
FAILED = "an error of this program, please report it"
Progress = Callable[[str, int, int], None]
Draw = Callable[[Study, Summary], Figure]

METHODS = (
    "Runs: fewer than ten by their mean and t interval, ten or more by the interquartile mean and a bootstrap "
    "(arXiv 2108.13264). Cells are compared seed by seed. Intervals are 95 %. No run is chosen for its result."
)


@dataclass(frozen=True)
class Drawn:
    """A figure of the page: its files are <name>.png and <name>.pdf."""

    name: str
    caption: str
    image: str

    @property
    def alt(self) -> str:
        return self.caption.split(". ")[0]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Drawn] = field(default_factory=list)


@dataclass(frozen=True)
class Written:
    """What `write` has written."""

    folder: Path
    summary: Summary
    images: Mapping[str, Path]
    missing: Mapping[str, str]

    @property
    def page(self) -> Path:
        return self.folder / "index.html"


def _of_study(draw: Callable[[Study], Figure]) -> Draw:
    def drawn(study: Study, summary: Summary) -> Figure:
        return draw(study)

    drawn.__doc__ = draw.__doc__
    return drawn


def _left_open(study: Study, summary: Summary) -> Figure:
    if summary.open is None:
        raise NotComputed(summary.missing["left_open"])
    return spread.left_open(summary.open)


def _variance_components(study: Study, summary: Summary) -> Figure:
    if "variance_components" not in summary.tables:
        raise NotComputed(summary.missing["variance_components"])
    return spread.variance_components(study, summary.tables["variance_components"])


def _paired_differences(study: Study, summary: Summary) -> Figure:
    if "comparisons" not in summary.tables:
        raise NotComputed(summary.missing["comparisons"])
    return spread.paired_differences(study, summary.tables["comparisons"])


_paired_differences.__doc__ = spread.paired_differences.__doc__
_left_open.__doc__ = spread.left_open.__doc__
_variance_components.__doc__ = spread.variance_components.__doc__

ROOMS = (rewards, distances, sweeps, policies, paper)
FIGURES: dict[str, Draw] = {
    "left_open": _left_open,
    "paired_differences": _paired_differences,
    "variance_components": _variance_components,
    **{name: _of_study(draw) for room in ROOMS for name, draw in room.FIGURES.items()},
}
SECTIONS = {
    "recovered": (
        "What was recovered",
        (
            *("distribution", "against_parameter", "paired_differences", "tradeoff"),
            *("learned_against_truth", "triangle", "uncertainty"),
        ),
    ),
    "spread": ("The spread, explained", ("left_open", "variance_components", "distance_matrix", "threshold")),
    "training": ("Over training", ("over_epochs", "accuracy_heatmap", "best_and_all")),
    "policies": ("What it makes of a policy", ("toxicity", "frontier", "paradox", "training_curves")),
}


def write(study: Study, folder: Path | None = None, *, progress: Progress = lambda what, done, total: None) -> Written:
    """Write the report of a study into `folder` (default: report/ of the launch). An error leaves an earlier one."""
    # Results depend on the order of sums, and on matrices of this size more threads wait for each other.
    with threadpoolctl.threadpool_limits(limits=1):
        return _write(study, folder or study.folder / "report", progress)


def _write(study: Study, folder: Path, progress: Progress) -> Written:
    summary = summarise(study, progress=lambda done, total: progress("what the demonstrations leave open", done, total))
    tables = {**summary.tables, **_more_tables(study)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".report-", dir=folder.parent))
    try:
        drawn, missing = _draw(study, summary, draft, progress)
        missing = {**summary.missing, **missing}
        for name, table in tables.items():
            table.to_csv(draft / f"{name}.csv", index=False)
        page = _page(study, summary, drawn, missing, list(tables))
        (draft / "index.html").write_text(page, encoding="utf-8")
        files = sorted([SUMMARY, *(path.name for path in draft.iterdir())])
        data = {**summary.data, "not_computed": missing, "files": files}
        text = json.dumps(data, indent=1, allow_nan=False, default=_plain)
        (draft / SUMMARY).write_text(text + "\n", encoding="utf-8")
        _replace(folder, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Written(folder, summary, {name: folder / f"{name}.png" for name in drawn}, missing)


def _replace(folder: Path, draft: Path) -> None:
    """Put the draft in the place of an earlier report; files in that folder that are of no report stay."""
    folder.mkdir(exist_ok=True)
    for name in _files(folder / SUMMARY):
        (folder / name).unlink(missing_ok=True)
    for file in draft.iterdir():
        file.replace(folder / file.name)


def _files(summary: Path) -> list[str]:
    """What an earlier report has written, as its summary.json says."""
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    names = [name for name in found if isinstance(name, str) and Path(name).name == name]
    return [name for name in names if (summary.parent / name).is_file()]  # '..' and folders are of no report


def _plain(value: Any) -> Any:
    """Numbers of numpy as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is nothing for summary.json")


def _more_tables(study: Study) -> dict[str, pd.DataFrame]:
    makers: dict[str, Callable[[Study], pd.DataFrame]] = {
        "toxicity": toxicity.toxicity_table,
        "distances": _distances,
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make(study)
        except NotComputed:  # the figure of the same numbers says why
            continue
    return found


def _distances(study: Study) -> pd.DataFrame:
    names, matrix = distances.distances(study)
    return pd.DataFrame(matrix, columns=names).assign(reward=names).set_index("reward").reset_index()


def _draw(study: Study, summary: Summary, folder: Path, progress: Progress) -> tuple[dict[str, Drawn], dict[str, str]]:
    """All figures that these runs can fill, and why the others cannot."""
    drawn: dict[str, Drawn] = {}
    missing: dict[str, str] = {}
    with drawing.style():
        for number, (name, draw) in enumerate(FIGURES.items()):
            progress("figures", number, len(FIGURES))
            try:
                figure = draw(study, summary)
            except NotComputed as reason:
                missing[name] = str(reason).rstrip(".")
                continue
            except Exception as error:  # a figure that fails costs the figure, not the page
                missing[name] = f"{FAILED} ({type(error).__name__}: {error})"
                continue
            drawing.save(figure, folder, name)
            caption = " ".join(inspect.cleandoc(draw.__doc__ or name).partition("\n\nArgs:")[0].split())
            drawn[name] = Drawn(name, caption, base64.b64encode(drawing.svg(figure)).decode())
    return drawn, missing


def _page(
    study: Study, summary: Summary, drawn: Mapping[str, Drawn], missing: Mapping[str, str], tables: Sequence[str]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sections = [
        Section(name, title, list(_text(name, summary.data)), [drawn[figure] for figure in names if figure in drawn])
        for name, (title, names) in SECTIONS.items()
    ]
    told = [*number_tables(study), *_compared(summary.tables)]
    shown = [_shown(table, open_=not number) for number, table in enumerate(told)]
    return environment.get_template("page.html.jinja").render(
        title=_title(study),
        subtitle=" · ".join([study.name, f"launch {study.folder.name}", *study.shared]),
        command=study.command,
        facts=list(_facts(study, summary.data)),
        notes=notes(study),
        sections=[section for section in sections if section.figures or section.text],
        tables=shown,
        files=[f"{name}.csv" for name in tables],
        missing=[{"name": name.replace("_", " "), "reason": reason} for name, reason in missing.items()],
        methods=METHODS,
    )


def _title(study: Study) -> str:
    found = study.question or study.name.replace("_", " ")
    return found[:1].upper() + found[1:]


def number_tables(study: Study) -> list[Table]:
    """The tables of the terminal, of the same numbers."""
    outcomes = [Outcome(run.number, run.name, run.folder, "completed", metrics=run.metrics) for run in study.runs] + [
        Outcome(lost.number, lost.name, study.folder, "not run", error=lost.reason) for lost in study.lost
    ]
    compared = comparison_tables(outcomes) if len(study.cells) > 1 else []
    return [*compared, study_table(outcomes)]


def _compared(tables: Mapping[str, pd.DataFrame]) -> Iterator[Table]:
    """Every two cells, paired by seed."""
    if "comparisons" not in tables:
        return
    rows = tuple(
        (
            row["metric"],
            row["first"],
            row["second"],
            f"{row['difference']:.4f} [{row['low']:.4f}, {row['high']:.4f}]",
            f"{row['p_holm']:.3f}",
            f"{row['probability_above']:.2f} [{row['probability_low']:.2f}, {row['probability_high']:.2f}]",
            str(row["n"]),
        )
        for row in tables["comparisons"].to_dict("records")
    )
    columns = ("metric", "cell", "minus cell", "mean difference [95 %]", "p (sign flips, Holm)", "P(above) [95 %]", "n")
    yield Table("Cells compared seed by seed", columns, rows)


def _shown(table: Table, *, open_: bool) -> dict[str, Any]:
    words = [all(not _is_number(row[place]) for row in table.rows) for place in range(len(table.columns))]
    return {"title": table.title, "columns": table.columns, "rows": table.rows, "text": words, "open": open_}


def _is_number(cell: str) -> bool:
    return cell[:1] in "-+[" or cell[:1].isdigit()


def notes(study: Study) -> list[str]:
    """What a reader has to know before the numbers."""
    numbers = ", ".join(map(str, study.unreadable))
    told = f"completions.parquet of run(s) {numbers} is missing, cut or not finite: in no comparison of rewards."
    return [*study.notes, *_losses(study), *([told] if numbers else [])]


def _losses(study: Study) -> Iterator[str]:
    """Jobs without a result, the first few by name."""
    if study.lost:
        told = "; ".join(f"{lost.name}: {lost.reason}" for lost in study.lost[:5])
        more = f"; and {len(study.lost) - 5} more" if len(study.lost) > 5 else ""
        yield f"{len(study.lost)} of {study.n_jobs} jobs have no result and are in no number: {told}{more}."
    if len(study.runs) == 1:
        yield "One run: there is no spread, no interval over runs and nothing to compare."


def _facts(study: Study, data: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    cells = f", {len(study.cells)} cells" if len(study.cells) > 1 else ""
    yield {"value": f"{len(study.runs)}", "text": f"of {study.n_jobs} runs{cells}"}
    metrics = next(iter(data["cells"].values())) if len(data["cells"]) == 1 else {}
    texts = {
        "irl/auroc": "AUROC of the learned reward",
        "implicit/auroc": "AUROC of the implicit reward",
        "irl/epic": "EPIC distance to R*",
        "expert/toxic_fraction": "toxic, expert",
        "refinetuned/toxic_fraction": "toxic, refinetuned",
    }
    for key, text in texts.items():
        if key in metrics:
            found = metrics[key]
            yield {"value": f"{found['typical']:.3f}", "text": f"{text} {_over(study, key, found)}"}


def _over(study: Study, key: str, found: Mapping[str, Any]) -> str:
    """The interval over runs; of what all runs share, e.g. the expert, that over prompts."""
    if found["n"] > 1 and found["min"] < found["max"]:
        return f"[{found['typical_low']:.3f}, {found['typical_high']:.3f}], n = {found['n']}"
    metrics = study.runs[0].metrics
    if f"{key}_low" not in metrics:
        return "(the same in all runs)" if found["n"] > 1 else ""
    interval = f"[{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}] over prompts"
    return f"{interval}, the same in all runs" if found["n"] > 1 else interval


def _text(section: str, data: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers of a section say in words."""
    if section == "spread":
        yield from _spread_text(data)


def _spread_text(data: Mapping[str, Any]) -> Iterator[str]:
    if "spread_shares" in data:
        parts = {name: _percent(share) for name, share in data["spread_shares"].items()}
        yield (
            "(a) Offset and scale. A constant per prompt, which no loss of margins determines, and the scale change no "
            f"order: of the variance of a completion's reward over runs they are {parts['offset']} and "
            f"{parts['scale']}. What is left, {parts['direction']}, changes the order of completions."
        )
    agreement = data.get("agreement", {}).get("pairwise_spearman")
    if agreement and len(data["cells"]) == 1:
        told = f"(b) Optimisation and sampling. The rewards of two runs correlate by {_number(agreement)} in rank."
        yield told + _noise(data.get("left_open"))
    if "left_open" in data:
        yield _open_text(data["left_open"])


def _noise(found: Mapping[str, Any] | None) -> str:
    """How far runs are from the best reward, and what drawing the prompts anew would change."""
    if not found or not found["runs_same_sign"]:
        return ""
    return (
        f" On the pairs that they were fitted to, the runs lie {_number(found['excess_se'])} standard errors of the "
        f"loss above the best reward of all. Two runs order {_percent(found['runs_same_sign'])} of the test pairs "
        "alike; two best rewards on prompts that are drawn anew with replacement, which is sampling noise that these "
        f"runs do not have, {_percent(found['resampled_same_sign'])}."
    )


def _open_text(found: Mapping[str, Any]) -> str:
    level = next((one for one in found["levels"] if one["is_that_of_the_runs"]), found["levels"][-1])
    alike, fixed = _percent(found["runs_agree"]), _percent(level["determined"])
    close = (
        "as well as the typical run (within" if level["is_that_of_the_runs"] else "nearly as well as the best (within"
    )
    return (
        f"(c) What the demonstrations leave open. All runs agree on the sign of {alike} of {found['n_pairs']} test "
        f"pairs. The rewards that explain the demonstrations {close} "
        f"{level['tolerance_se']:.2g} standard errors of the best loss) all agree on {fixed}: the order of the other "
        "pairs is decided by the method (its start, its steps, when it stops), not by the demonstrations."
    )


def _number(estimate: Mapping[str, Any]) -> str:
    interval = f" [{estimate['low']:.3f}, {estimate['high']:.3f}]" if "low" in estimate else ""
    return f"{estimate['value']:.3f}{interval}"


def _percent(estimate: Mapping[str, Any]) -> str:
    interval = f" [{estimate['low']:.1%}, {estimate['high']:.1%}]" if "low" in estimate else ""
    return f"{estimate['value']:.1%}{interval}"

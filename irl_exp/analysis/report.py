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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl

from irl_exp.analysis import page
from irl_exp.analysis.figures import (
    audit,
    distances,
    drawing,
    epochs,
    heatmap,
    panels,
    policies,
    published,
    redrawn,
    rewards,
    spread,
    sweeps,
    thresholds,
    toxicity,
    training,
)
from irl_exp.analysis.figures.drawing import Picture
from irl_exp.analysis.html import Drawn
from irl_exp.analysis.study import NotComputed, Study
from irl_exp.analysis.summary import Summary, summarise
from irl_exp.report.names import Words

SUMMARY = "summary.json"
FAILED = "an error of this program, please report it"
Progress = Callable[[str, int, int], None]
Draw = Callable[[Study, Summary], Picture]


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


def _of_study(draw: Callable[[Study], Picture]) -> Draw:
    def drawn(study: Study, summary: Summary) -> Picture:
        return draw(study)

    drawn.__doc__ = draw.__doc__
    return drawn


def _left_open(study: Study, summary: Summary) -> Picture:
    if summary.open is None:
        raise NotComputed(summary.missing["left_open"])
    return spread.left_open(summary.open)


def _variance_components(study: Study, summary: Summary) -> Picture:
    if "variance_components" not in summary.tables:
        raise NotComputed(summary.missing["variance_components"])
    return spread.variance_components(study, summary.tables["variance_components"])


def _paired_differences(study: Study, summary: Summary) -> Picture:
    if "comparisons" not in summary.tables:
        raise NotComputed(summary.missing["comparisons"])
    return spread.paired_differences(study, summary.tables["comparisons"])


def _published(study: Study, summary: Summary) -> Picture:
    if "published" not in summary.tables:
        raise NotComputed(summary.missing["published"])
    return published.steps(study)


def _audit(study: Study, summary: Summary) -> Picture:
    if not summary.audits:
        raise NotComputed(summary.missing["audit"])
    return audit.goals(summary.audits)


def _redrawn(study: Study, summary: Summary) -> Picture:
    if "redrawn" not in summary.tables:
        raise NotComputed(summary.missing["redrawn"])
    return redrawn.distances(study)


_audit.__doc__ = audit.goals.__doc__
_redrawn.__doc__ = redrawn.distances.__doc__
_published.__doc__ = published.steps.__doc__
_paired_differences.__doc__ = spread.paired_differences.__doc__
_left_open.__doc__ = spread.left_open.__doc__
_variance_components.__doc__ = spread.variance_components.__doc__

ROOMS = (rewards, distances, sweeps, policies, toxicity, epochs, heatmap, training, thresholds)
FIGURES: dict[str, Draw] = {
    "audit": _audit,
    "published": _published,
    "redrawn": _redrawn,
    "left_open": _left_open,
    "paired_differences": _paired_differences,
    "variance_components": _variance_components,
    **{name: _of_study(draw) for room in ROOMS for name, draw in room.FIGURES.items()},
}


def write(study: Study, folder: Path | None = None, *, progress: Progress = lambda what, done, total: None) -> Written:
    """Write the report of a study into `folder` (default: `Study.place`). An error leaves an earlier one."""
    # Results depend on the order of sums, and on matrices of this size more threads wait for each other.
    with threadpoolctl.threadpool_limits(limits=1):
        return _write(study, folder or study.place, progress)


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
        text = page.render(study, summary, drawn, missing, [f"{name}.csv" for name in tables])
        (draft / "index.html").write_text(text, encoding="utf-8")
        files = sorted([SUMMARY, *(path.name for path in draft.iterdir())])
        data = {**summary.data, "not_computed": missing, "files": files}
        numbers = json.dumps(data, indent=1, allow_nan=False, default=_plain)
        (draft / SUMMARY).write_text(numbers + "\n", encoding="utf-8")
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


def told_by(draw: Draw, words: Words) -> list[str]:
    """The paragraphs of a figure's docstring: its caption, and how to read it whatever the runs are."""
    text = inspect.cleandoc(draw.__doc__ or "").partition("\n\nArgs:")[0]
    return [" ".join(part.split()).replace("below 0 of R*", words.judged) for part in text.split("\n\n")]


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
            caption, *told = told_by(draw, study.words)
            reading = tuple(text for text in (*told, *figure.reading) if text)
            image = base64.b64encode(drawing.svg(figure)).decode()
            drawn[name] = Drawn(name, caption, reading, image, figure.get_figwidth() <= panels.NARROW)
    return drawn, missing

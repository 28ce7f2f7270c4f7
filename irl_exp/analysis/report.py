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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
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
Save = Callable[[Picture, Path, str], Callable[[], bytes]]
"""Begins to write a figure into a folder, under a name; what it returns waits for the end and has the SVG."""


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
OF_SUMMARY: dict[str, Callable[[Study, Summary], Picture]] = {
    "audit": _audit,
    "published": _published,
    "redrawn": _redrawn,
    "left_open": _left_open,
    "paired_differences": _paired_differences,
    "variance_components": _variance_components,
}
OF_STUDY: dict[str, Callable[[Study], Picture]] = {name: draw for room in ROOMS for name, draw in room.FIGURES.items()}


@contextmanager
def at_once() -> Iterator[Save]:
    """In this process, before anything else."""

    def save(figure: Picture, folder: Path, name: str) -> Callable[[], bytes]:
        image = drawing.save(figure, folder, name)
        return lambda: image

    yield save


def write(
    study: Study,
    folder: Path | None = None,
    *,
    progress: Progress = lambda what, done, total: None,
    saving: Callable[[], AbstractContextManager[Save]] = at_once,
) -> Written:
    """Write the report of a study into `folder` (default: `Study.place`). An error leaves an earlier one.

    Args:
        saving: how figures are written, most of the time; afterwards nothing writes any more.
    """
    # Results depend on the order of sums, and on matrices of this size more threads wait for each other.
    with threadpoolctl.threadpool_limits(limits=1):
        return _write(study, folder or study.place, progress, saving)


def _write(
    study: Study, folder: Path, progress: Progress, saving: Callable[[], AbstractContextManager[Save]]
) -> Written:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".report-", dir=folder.parent))
    try:
        with saving() as save:
            gallery = _Gallery(study, draft, save)
            gallery.hang({name: partial(draw, study) for name, draw in OF_STUDY.items()})
            told = partial(progress, "what the demonstrations leave open")
            summary = summarise(study, progress=told)
            gallery.hang({name: partial(draw, study, summary) for name, draw in OF_SUMMARY.items()})
            tables = {**summary.tables, **_more_tables(study)}
            drawn = gallery.drawn([*OF_SUMMARY, *OF_STUDY], progress)
        missing = {**summary.missing, **gallery.missing}
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


def told_by(draw: Callable[..., Picture], words: Words) -> list[str]:
    """The paragraphs of a figure's docstring: its caption, and how to read it whatever the runs are."""
    text = inspect.cleandoc(draw.__doc__ or "").partition("\n\nArgs:")[0]
    return [" ".join(part.split()).replace("below 0 of R*", words.judged) for part in text.split("\n\n")]


@dataclass
class _Gallery:
    """The figures of a page: all that these runs can fill, and why the others cannot."""

    study: Study
    folder: Path
    save: Save
    hung: dict[str, tuple[Picture, Callable[[], bytes], list[str]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def hang(self, draws: Mapping[str, partial[Picture]]) -> None:
        """Draw figures, and begin to write their files."""
        for name, draw in draws.items():
            try:
                with drawing.style():
                    figure = draw()
            except NotComputed as reason:
                self.missing[name] = str(reason).rstrip(".")
                continue
            except Exception as error:  # a figure that fails costs the figure, not the page
                self.missing[name] = f"{FAILED} ({type(error).__name__}: {error})"
                continue
            self.hung[name] = figure, self.save(figure, self.folder, name), told_by(draw.func, self.study.words)

    def drawn(self, order: Sequence[str], progress: Progress) -> dict[str, Drawn]:
        """Those that are there, in this order, as soon as all are written."""
        found = {}
        for number, name in enumerate(name for name in order if name in self.hung):
            progress("figures", number, len(self.hung))
            figure, written, (caption, *told) = self.hung[name]
            reading = tuple(text for text in (*told, *figure.reading) if text)
            image = base64.b64encode(written()).decode()
            found[name] = Drawn(name, caption, reading, image, figure.get_figwidth() <= panels.NARROW)
        return found

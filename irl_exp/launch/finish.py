"""The end of a launch: tables, files, the page, and where everything is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from irl_exp.config import Config
from irl_exp.launch.jobs import PlannedJob
from irl_exp.launch.messages import short
from irl_exp.launch.writing import WriteError, writing

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.analysis.report import Written
    from irl_exp.launch.console import Console
    from irl_exp.report.cells import Outcome


def finish(jobs: Sequence[PlannedJob], outcomes: dict[int, Outcome], folder: Path, console: Console) -> None:
    """Write and show the result of the launch, and say where everything is.

    Raises:
        WriteError: the summary or the report cannot be written; the tables have been shown.
    """
    from irl_exp.machinery.tracking import sync_command
    from irl_exp.report import cells, studies

    interrupted = len(outcomes) < len(jobs)
    for job in jobs:
        outcomes.setdefault(job.number, cells.Outcome(job.number, job.name, job.folder, "not run", error="interrupted"))
    ordered = [outcomes[job.number] for job in jobs]
    console.say("")
    try:
        with writing(folder, "runs.csv", "summary.md"):
            tables = studies.write(folder, ordered)
    except WriteError:
        console.tables(studies.tables(ordered))
        raise
    console.tables(tables)
    console.say(
        f"runs      {short(folder)}/  (metrics.json, metrics.jsonl, completions.parquet, samples.csv of each job)"
    )
    console.say(f"summary   {short(folder / 'summary.md')}, {short(folder / 'runs.csv')}")
    console.say(f"store     {short(jobs[0].config.store.dir)}")
    if len(jobs) > 1 and jobs[0].config.report:
        later = f"python -m irl_exp.analysis {shlex.quote(short(folder))}"
        told = f"not written; of what there is: {later}" if interrupted else _report(jobs, folder, console, later)
        console.say(f"report    {told}")
    offline = [path for path in sorted(folder.glob("*/wandb/offline-run-*")) if path.is_dir()]
    if offline:
        console.say(f"W&B       {len(offline)} run(s) recorded offline; with an account: {sync_command(offline)}")


def _report(jobs: Sequence[PlannedJob], folder: Path, console: Console, later: str) -> str:
    """Write the report of the launch, also as a run of its group in W&B; returns what to say of it.

    Whatever goes wrong here costs no result of a run; a disk that takes no report may not have taken others either.

    Raises:
        WriteError: the report cannot be written.
    """
    try:
        from irl_exp.analysis import report, study
    except ImportError as error:
        return f"not written ({error}); with what is missing installed: {later}"
    try:
        with console.working() as progress, writing(folder / "report"):
            written = report.write(study.read(folder), progress=progress)
        _track_report(jobs[0].config, written)
    except WriteError:
        raise
    except study.StudyError:
        return "not written, as no job has a result"
    except KeyboardInterrupt:  # the runs are complete: whoever does not want to wait for the page loses nothing else
        return f"not written (interrupted); to try again: {later}"
    except Exception as error:
        return f"not written ({type(error).__name__}: {error}); to try again: {later}"
    return f"{short(written.page)} ({len(written.images)} figures; opens offline in any browser)"


def _track_report(config: Config, written: Written) -> None:
    """The report as the last run of the launch."""
    from irl_exp.machinery.tracking import log_report

    cells = written.summary.tables["cells"]
    alone = cells["cell"].nunique() == 1
    means: dict[str, float] = dict(zip(cells["metric"], cells["mean"], strict=True)) if alone else {}
    log_report(
        written.folder,
        mode=config.tracking.mode,
        project=config.tracking.project,
        entity=config.tracking.entity,
        group=f"{config.name}/{written.folder.parent.name}",
        tags=config.tracking.tags,
        config={"study": config.name, "n_runs": written.summary.data["n_runs"]},
        page=written.page,
        images=written.images,
        tables={"cells": (list(map(str, cells)), cells.astype(object).where(cells.notna(), None).to_numpy().tolist())},
        summary=means,
    )

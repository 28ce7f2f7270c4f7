"""The end of a launch: tables, files, the page, and where everything is."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from irl_exp.config import Config, ConfigError, parse
from irl_exp.launch import log
from irl_exp.launch.following import FOLDER
from irl_exp.launch.jobs import PlannedJob
from irl_exp.launch.messages import short
from irl_exp.launch.resume import group_of, launches_of
from irl_exp.launch.workers import Workers
from irl_exp.launch.writing import WriteError, writing

if TYPE_CHECKING:  # these import torch, or are not needed to show --help
    from irl_exp.analysis.figures.drawing import Picture
    from irl_exp.analysis.report import Save, Written
    from irl_exp.analysis.study import Study
    from irl_exp.launch.console import Console
    from irl_exp.report.cells import Outcome


def finish(jobs: Sequence[PlannedJob], outcomes: dict[int, Outcome], folder: Path, console: Console) -> None:
    """Write and show the result of the launch, and say where everything is.

    Raises:
        WriteError: the summary or the report cannot be written; the tables have been shown.
    """
    from irl_exp.report.cells import Outcome

    broken = [outcome.number for outcome in outcomes.values() if outcome.status == "failed"]
    stopped = len(outcomes) < len(jobs)
    reason = f"fail_fast=true, and job {broken[0]} failed" if broken and jobs[0].config.fail_fast else "interrupted"
    for job in jobs:
        outcomes.setdefault(job.number, Outcome(job.number, job.name, job.folder, "not run", error=reason))
    ordered = [replace(outcomes[job.number], facts=job.facts) for job in jobs]
    _tell(jobs[0].config, ordered, folder, console, stopped=reason if stopped else "")


def finish_folder(folder: Path) -> None:
    """The same of jobs that another launcher has run, from what they have left in their folders."""
    from irl_exp.analysis import study
    from irl_exp.launch.console import Console

    console = Console(2, folder=folder)
    with contextlib.closing(console.log):
        console.log.open()
        try:
            found = study.read(folder)
            config = _recorded(found.runs[0].folder)
        except (study.StudyError, ConfigError) as error:
            console.say(f"no summary: {error}")
            return
        _tell(config, _ended(found), folder, console)


def _ended(found: Study) -> list[Outcome]:
    """How the jobs of a launch ended, by their numbers."""
    from irl_exp.report.cells import Outcome

    ended = {
        run.number: Outcome(run.number, run.name, run.folder, "completed", metrics=run.metrics, facts=run.config)
        for run in (*found.runs, *found.controls)
    }
    for lost in found.lost:
        status, folder = "failed" if lost.reason.startswith("failed") else "not run", found.folder / str(lost.number)
        ended[lost.number] = Outcome(lost.number, lost.name, folder, status, error=lost.reason)
    return [ended[number] for number in sorted(ended)]


def _recorded(run: Path) -> Config:
    """The config of a run, from its folder."""
    record = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return parse({key: value for key, value in record.items() if key in Config.model_fields})


def _tell(config: Config, outcomes: Sequence[Outcome], folder: Path, console: Console, *, stopped: str = "") -> None:
    """Tables, files and page of a launch with this config (its first job's), and where everything is.

    Args:
        stopped: why the launch ended before its last job; empty if it did not.
    """
    from irl_exp.machinery.tracking import not_uploaded, sync_command
    from irl_exp.report import studies, verdict

    console.say("")
    try:
        with writing(folder, *(f"{name}{studies.DRAFT}" for name in studies.FILES)):
            tables = studies.write(folder, outcomes)
    except WriteError:
        console.tables(studies.tables(outcomes))
        raise
    found = verdict.of_launch(outcomes)
    console.tell(found.text())
    console.say("")
    console.tables(tables)
    console.say(
        f"runs      {short(folder)}/  (metrics.json, metrics.jsonl, completions.parquet, samples.csv of each job)"
    )
    console.say(f"summary   {short(folder / 'summary.md')}, {short(folder / 'runs.csv')}")
    console.say(f"log       {console.log.trouble or short(folder / log.NAME)}")
    if (folder / FOLDER).is_dir():
        console.say(f"workers   {short(folder / FOLDER)}/  (a log of each worker)")
        with (folder / "summary.md").open("a", encoding="utf-8") as summary:
            summary.write(f"\nThe log of each worker: {FOLDER}/*.log\n")
    console.say(f"store     {short(config.store.dir)}")
    if config.report:
        later = f"python -m irl_exp.analysis {shlex.quote(short(folder))}"
        if stopped:
            told = f"not written; of what there is: {later}"
        elif len(outcomes) == 1:
            told = _reported(lambda: _page(folder), folder, later)
        else:
            told = _reported(lambda: _study(config, folder, console, found.markdown()), folder, later)
        console.say(f"report    {told}")
    runs = [path for launch in launches_of(folder) for path in sorted(launch.glob("*/wandb/offline-run-*"))]
    offline = [path for path in runs if path.is_dir() and not_uploaded(path)]
    if offline:
        console.say(f"W&B       {len(offline)} run(s) recorded offline; with an account: {sync_command(offline)}")


def _reported(write: Callable[[], str], folder: Path, later: str) -> str:
    """Write the page of a launch; returns what to say of it.

    Whatever goes wrong here costs no result of a run; a disk that takes no report may not have taken others either.

    Raises:
        WriteError: the report cannot be written.
    """
    from irl_exp.analysis.study import StudyError

    try:
        with writing(folder / "report"):
            return write()
    except WriteError:
        raise
    except StudyError:
        return "not written, as no job has a result"
    except ImportError as error:
        return f"not written ({error}); with what is missing installed: {later}"
    except KeyboardInterrupt:  # the runs are complete: whoever does not want to wait for the page loses nothing else
        return f"not written (interrupted); to try again: {later}"
    except Exception as error:
        return f"not written ({type(error).__name__}: {error}); to try again: {later}"


def _page(folder: Path) -> str:
    """The page of one job, at little cost."""
    from irl_exp.analysis import one_run, study

    return f"{short(one_run.write(study.read(folder)))} (opens offline in any browser)"


def _study(config: Config, folder: Path, console: Console, notes: str) -> str:
    """The page of several jobs, with figures and tables, also as a run of its group in W&B with these notes."""
    from irl_exp.analysis import report, study

    with console.working() as progress:
        written = report.write(study.read(folder), progress=progress, saving=_on_all_cores)
    _show_audits(written, folder, console)
    _track_report(config, written, notes)
    return f"{short(written.page)} ({len(written.images)} figures; opens offline in any browser)"


@contextlib.contextmanager
def _on_all_cores() -> Iterator[Save]:
    """While it lasts, processes on all cores write the files of figures."""
    import cloudpickle

    from irl_exp.machinery.runtime import cores

    workers = Workers(cores(), start=_nothing, arguments=(), hear=_nothing)

    def save(figure: Picture, folder: Path, name: str) -> Callable[[], bytes]:
        begun = workers.submit(_save, cloudpickle.dumps(figure), folder, name)

        def image() -> bytes:
            found = begun.result()
            if isinstance(found, Exception):
                raise found
            return found

        return image

    try:
        yield save
    finally:
        workers.stop()
        workers.shutdown()


def _nothing(*_: object) -> None:
    """A process that draws needs no preparation, and tells nothing meanwhile."""


def _save(figure: bytes, folder: Path, name: str) -> bytes | Exception:
    """In such a process: the files of one figure."""
    import cloudpickle

    from irl_exp.analysis.figures import drawing

    try:
        return drawing.save(cloudpickle.loads(figure), folder, name)
    except Exception as error:
        return error


def _show_audits(written: Written, folder: Path, console: Console) -> None:
    """How the statements of planted goals and of nulls are scored, on the terminal and in summary.md."""
    from irl_exp.analysis import audit

    if tables := audit.tables(written.summary.audits):
        console.tables(tables)
        with (folder / "summary.md").open("a", encoding="utf-8") as summary:
            summary.write("\n" + "\n".join(table.markdown() for table in tables))


def _track_report(config: Config, written: Written, notes: str) -> None:
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
        group=group_of(written.folder.parent, config.name),
        tags=list(dict.fromkeys([config.name, *config.tracking.tags])),
        config={"study": config.name, "n_runs": written.summary.data["n_runs"]},
        page=written.page,
        images=written.images,
        tables={"cells": (list(map(str, cells)), cells.astype(object).where(cells.notna(), None).to_numpy().tolist())},
        summary=means,
        notes=notes,
    )

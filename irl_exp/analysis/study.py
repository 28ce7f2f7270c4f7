"""What the runs of a launch have left in its folder, read once: the statistics and figures start from here.

    multirun/<study>/<time>/plan.json          all jobs of the launch
    multirun/<study>/<time>/<job>/             config.json, metrics.json, metrics.jsonl, completions.parquet
                                               and with a second set of prompts benchmark.parquet

Whatever is missing or broken is named in `lost` or `notes`; nothing is filled in. Nothing here knows W&B or torch.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import parquet

from irl_exp.report.cells import cell_of, control_of, flat, shared_overrides, without
from irl_exp.report.names import Words, words_of
from irl_exp.report.units import Units

Values = Mapping[str, Any]
UNLIKE = (
    *("job", "artifacts", "versions", "device_used", "store", "tracking", "workers", "threads", "name", "report"),
    *("executor", "ahead", "fail_fast", "objective", "control"),
)
"""Of config.json: what may differ between runs of one cell."""
SEEDS = (
    *("seed", "data.seed", "reward.seed", "sft.seed", "rlhf.seed", "demonstrations.seed", "irl.seed"),
    *("refinetune.seed", "evaluate.seed"),
)
"""In the order of the chain: a later one is drawn within the earlier ones."""


class StudyError(Exception):
    """A folder that holds no runs; the message says what it holds instead."""


class NotComputed(Exception):  # noqa: N818  (no error: the report goes on and says why)
    """What these runs cannot tell; the message says why, for a reader of the report."""


@dataclass(frozen=True)
class Run:
    """One completed run.

    Attributes:
        cell: its overrides without the seeds and without what all runs of the study share.
        config: config.json, flat: "irl.loss.name" -> "hinge".
        metrics: metrics.json.
    """

    number: int
    name: str
    cell: str
    folder: Path
    config: Values
    metrics: Mapping[str, float]

    @property
    def seeds(self) -> dict[str, int]:
        return {key: value for key, value in self.config.items() if key.split(".")[-1] == "seed" and value is not None}

    @property
    def control(self) -> str:
        """The control of its study that it is; "" for a run of the study itself."""
        return self.config.get("control") or ""

    def artifact(self, stage: str) -> str | None:
        """Digest of the artifact of a stage."""
        return self.config.get(f"artifacts.{stage}")


@dataclass(frozen=True)
class Lost:
    """A job without a result, and why."""

    number: int
    name: str
    reason: str


@dataclass(frozen=True)
class Study:
    """The runs of one launch, or of several together.

    Attributes:
        folder: of the launch.
        runs: those with a result, by number.
        lost: those without.
        shared: overrides that all runs have in common.
        notes: what a reader has to know before the numbers, e.g. that versions are mixed.
        command, question: what started the launch, and what the study asks; empty where that is not known.
        launches: their folders, where the study is put together of several.
        controls: runs of the controls of the study, which are in none of its cells: `Run.control` says of which.
    """

    folder: Path
    runs: tuple[Run, ...]
    lost: tuple[Lost, ...]
    shared: tuple[str, ...]
    notes: tuple[str, ...]
    command: str = ""
    question: str = ""
    launches: tuple[Path, ...] = ()
    controls: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        names = dict.fromkeys(str(run.config.get("name", self.folder.parent.name)) for run in self.runs)
        return " and ".join(names)

    @property
    def place(self) -> Path:
        """Where its report is written: into the folder of the launch, or one of its own for several launches."""
        return self.folder if self.launches else self.folder / "report"

    @property
    def n_jobs(self) -> int:
        return len(self.runs) + len(self.lost)

    @functools.cached_property
    def words(self) -> Words:
        """What completions below 0 of R* are called; where rewards differ, by the number alone."""
        known = {words_of(run.config) for run in self.runs}
        return known.pop() if len(known) == 1 else Words()

    @functools.cached_property
    def cells(self) -> dict[str, list[Run]]:
        """Completed runs by cell, in the order of the launch; a cell that has lost all of its runs is not in it."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.cell, []).append(run)
        return found

    @functools.cached_property
    def varying_seeds(self) -> list[str]:
        """Seeds that differ between runs, outermost first; of those that go together the first, which leads."""
        seeds = [run.seeds for run in self.runs]
        shared = set.intersection(*map(set, seeds))
        columns = {key: [row[key] for row in seeds] for key in SEEDS if key in shared}
        found: list[str] = []
        for key, values in columns.items():
            known = list(zip(*(columns[name] for name in found), strict=True)) or [()] * len(values)
            if len(set(zip(known, values, strict=True))) > len(set(known)):
                found.append(key)
        return found

    def seed_of(self, run: Run) -> tuple[int, ...]:
        """What pairs a run with those of other cells: its values of `varying_seeds`."""
        return tuple(run.seeds[key] for key in self.varying_seeds)

    def pairs(self, key: str, first: str, second: str) -> list[tuple[Run, Run]]:
        """Runs of two cells that have a metric, on the seeds that both have, in the order of the seeds."""
        one, other = (
            {self.seed_of(run): run for run in self.cells[cell] if key in run.metrics} for cell in (first, second)
        )
        return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]

    def paired(self, key: str, first: str, second: str) -> tuple[list[float], list[float]]:
        """A metric of two cells on the seeds that both have, in the order of the seeds."""
        pairs = self.pairs(key, first, second)
        return [one.metrics[key] for one, _ in pairs], [other.metrics[key] for _, other in pairs]

    @functools.cached_property
    def metrics(self) -> pd.DataFrame:
        """A row a run: number, cell, and each metric that any run has (missing where a run has not)."""
        rows = [{"number": run.number, "cell": run.cell, **run.metrics} for run in self.runs]
        return pd.DataFrame(rows)

    def values(self, key: str, cell: str | None = None) -> list[float]:
        """A metric of the runs (of one cell) that have it, in the order of the launch."""
        runs = self.runs if cell is None else self.cells[cell]
        return [run.metrics[key] for run in runs if key in run.metrics]

    @functools.cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """Training curves by stage: `run` (number), `cell`, `step` and the values of that stage."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for run in self.runs:
            for stage, row in _curve_rows(run.folder / "metrics.jsonl"):
                rows.setdefault(stage, []).append({"run": run.number, "cell": run.cell, **row})
        return {stage: pd.DataFrame(found) for stage, found in rows.items()}

    def completions(self, run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
        """Test completions of all policies of a run with their rewards; None where the file is missing or broken.

        With `columns` those alone are read; one that the file does not have is not in the table.
        """
        return _completions(run.folder / "completions.parquet", columns)

    def benchmark_completions(self, run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
        """The same on the second set of prompts; None also where there is no such set."""
        return _completions(run.folder / "benchmark.parquet", columns)

    @property
    def rewards(self) -> pd.DataFrame | None:
        """Learned rewards of all runs on the same completions of the reference, or None where there are none.

        A row a completion: policy, prompt_id, truth, implicit, and a column a run (its number) with the learned reward
        as the method left it. Runs that were judged on other completions than the first run are not in it, nor those
        without an R* or without the log ratio.
        """
        return self._rewards[0]

    @property
    def unreadable(self) -> tuple[int, ...]:
        """Numbers of the runs with a learned reward whose completions.parquet is missing, cut or not finite."""
        return self._rewards[1]

    @functools.cached_property
    def _rewards(self) -> tuple[pd.DataFrame | None, tuple[int, ...]]:
        columns: dict[int, pd.Series] = {}
        frame: pd.DataFrame | None = None
        judged = None
        unreadable = []
        for run in self.runs:
            if "irl/scale" not in run.metrics or judged not in (None, run.artifact("judge")):
                continue
            shared = ["prompt_id", "truth", "implicit"] if frame is None else []  # of all runs the same
            table = self.completions(run, ["policy", "learned", *shared])
            table = None if table is None else table[table["policy"] == "reference"]
            if table is None or not _is_whole(table, run):
                unreadable.append(run.number)
                continue
            if frame is None and not {"truth", "implicit"} <= set(table):  # no R*, or no log-probabilities
                continue
            if frame is None:
                frame, judged = table[["policy", "prompt_id", "truth", "implicit"]], run.artifact("judge")
            columns[run.number] = table["learned"] * run.metrics["irl/scale"] + run.metrics["irl/offset"]
        whole = None if frame is None else pd.concat([frame, pd.DataFrame(columns)], axis=1).reset_index(drop=True)
        return whole, tuple(unreadable)

    def artifact(self, run: Run, stage: str) -> Path | None:
        """Folder of an artifact in the store of a run, or None where the store has it no more."""
        digest = run.artifact(stage)
        store = Path(str(run.config.get("store.dir", "")))
        places = [store] if store.is_absolute() else [Path.cwd() / store, *(up / store for up in run.folder.parents)]
        found = (place / stage / digest for place in places if digest)
        return next((folder for folder in found if folder.is_dir()), None)


def units_of(runs: Sequence[Run]) -> Units:
    """What a mean over these runs is a mean of."""
    return Units.of([run.config for run in runs])


def by_unit(runs: Sequence[Run], key: str) -> list[float]:
    """A metric of those of these runs that have it: the mean of each unit that they drew anew."""
    having = [run for run in runs if key in run.metrics]
    return units_of(having).means([run.metrics[key] for run in having])


def read(path: Path) -> Study:
    """Read a launch, the newest launch of a study, or a single run.

    Raises:
        StudyError: there is no run with a result.
    """
    folder, notes = _launch(path.absolute())
    runs, lost = _jobs(folder)
    if not runs:
        raise StudyError(f"{path}: none of its {len(lost)} runs has a result: {_why(lost)}.")
    command, question = _asked(folder)
    return assemble(folder, runs, lost, notes, command=command, question=question)


def _jobs(folder: Path) -> tuple[list[Run], list[Lost]]:
    """All jobs of a launch; the cells of its runs have all of their overrides."""
    alone = (folder / "config.json").exists()
    planned = {".": folder.name} if alone else _planned(folder)
    found, lost = [], []
    for number, (place, name) in enumerate(planned.items()):
        run = folder / place
        try:
            config = _read(run / "config.json")
            metrics = _finite(run / "metrics.json")
            job = _job(config, number, name)
        except _BrokenError as broken:
            lost.append(Lost(number, name, _reason(run) or str(broken)))
            continue
        found.append(Run(*job, cell_of(job[1]), run, flat(config), metrics))
    return sorted(found, key=lambda run: run.number), lost


def assemble(
    folder: Path,
    runs: Sequence[Run],
    lost: Sequence[Lost],
    notes: Sequence[str],
    *,
    command: str,
    question: str,
    launches: tuple[Path, ...] = (),
) -> Study:
    """The study of these runs, whose cells have all of their overrides: what all have in common names none."""
    own = [run for run in runs if not run.control]
    own, controls = (own, [run for run in runs if run.control]) if own else (list(runs), [])
    names = [run.cell for run in own] + [cell_of(item.name) for item in lost if not control_of(item.name)]
    shared = tuple(shared_overrides(names))
    told = tuple(replace(run, cell=without(run.cell, shared)) for run in own)
    notes = list(dict.fromkeys([*notes, *_mixed(told), *_unequal(told), *_without_curves(told)]))
    return Study(folder, told, tuple(lost), shared, tuple(notes), command, question, launches, tuple(controls))


def _job(config: Values, number: int, name: str) -> tuple[int, str]:
    """Number and name of a job as its config.json says; one of an older version does not say."""
    job = config.get("job", {"number": number, "name": name})
    try:
        return int(job["number"]), str(job["name"])
    except (LookupError, TypeError, ValueError):
        raise _BrokenError("config.json names no job") from None


def _is_launch(folder: Path) -> bool:
    return (folder / "plan.json").exists() or any(folder.glob("*/.hydra"))


def _launch(path: Path) -> tuple[Path, list[str]]:
    """The folder of a launch or of a run, and what is to be said about the choice."""
    if not path.is_dir():
        raise StudyError(f"{path}: no such folder. Runs lie in multirun/<study>/<time of launch>.")
    if _is_launch(path) or (path / "config.json").exists():
        return path, []
    launches = sorted(filter(_is_launch, _in(path)), reverse=True)
    if not launches:
        inside = sorted(
            folder.name for folder in path.iterdir() if folder.is_dir() and any(map(_is_launch, _in(folder)))
        )
        hint = f" It holds the studies {', '.join(inside)}: name one of them." if inside else ""
        raise StudyError(f"{path}: no study, as no folder in it has runs of this program.{hint}")
    chosen = next((folder for folder in launches if any(folder.glob("*/metrics.json"))), launches[0])
    newer, older = launches.index(chosen), len(launches) - launches.index(chosen) - 1
    notes = [f"{newer} newer launch(es) of this study have no result yet: this is {chosen.name}."] if newer else []
    return chosen, notes + ([f"{older} older launch(es) of this study are not read."] if older else [])


def _in(folder: Path) -> list[Path]:
    return [inside for inside in folder.iterdir() if inside.is_dir()]


def _planned(folder: Path) -> dict[str, str]:
    """Folder -> name of all jobs of a launch; under other launchers of Hydra, which leave no plan, what is there."""
    try:
        return {str(job["folder"]): str(job["name"]) for job in _read(folder / "plan.json")["jobs"]}
    except (_BrokenError, LookupError, TypeError):
        places = [path.parent for path in folder.glob("*/.hydra")]
        places = places or [path.parent for path in folder.glob("*/config.json")]
        return {place.name: _name(place) for place in sorted(places, key=lambda place: (len(place.name), place.name))}


def _name(run: Path) -> str:
    """What a run calls itself; a run that did not get so far is called by its folder."""
    try:
        return str(_read(run / "config.json")["job"]["name"])
    except (_BrokenError, KeyError, TypeError):
        return run.name


def _asked(folder: Path) -> tuple[str, str]:
    try:
        plan = _read(folder / "plan.json")
    except _BrokenError:
        return "", ""
    return str(plan.get("command", "")), str(plan.get("question", ""))


class _BrokenError(Exception):
    """A file that cannot be read."""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _BrokenError(f"no {path.name}: interrupted, or still running") from None
    except (OSError, ValueError) as error:
        raise _BrokenError(f"{path.name} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise _BrokenError(f"{path.name} is no JSON object")
    return found


def _finite(path: Path) -> dict[str, float]:
    """The numbers of metrics.json."""
    values = _read(path)
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _BrokenError(f"{path.name} has {key} = {value!r}, which is no finite number")
    return values


def _reason(run: Path) -> str:
    """The last line of the traceback of a failed job."""
    trace = run / "error.txt"
    lines = trace.read_text(encoding="utf-8", errors="replace").strip().splitlines() if trace.exists() else []
    return f"failed: {lines[-1]}" if lines else ""


def _why(lost: Sequence[Lost]) -> str:
    counts = Counter(item.reason for item in lost)
    return "; ".join(f"{count} x {reason}" for reason, count in counts.most_common(3)) or "its plan is empty"


def _mixed(runs: Sequence[Run]) -> list[str]:
    """Differences between runs that a comparison should not have."""
    notes = []
    versions = sorted({key for run in runs for key in run.config if key.startswith("versions.")})
    for key in [*versions, "code", "device_used"]:
        counts = Counter(str(run.config.get(key)) for run in runs)
        if len(counts) > 1:
            told = ", ".join(f"{value} ({count} runs)" for value, count in counts.most_common())
            notes.append(f"mixed {key.removeprefix('versions.')}: {told}. A difference between runs may come from it.")
    return notes


def _unequal(runs: Sequence[Run]) -> list[str]:
    """Runs of one cell that differ in more than seeds, as their config says."""
    notes = []
    cells: dict[str, list[Run]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    for cell, members in cells.items():
        keys = sorted({key for run in members for key in run.config if compared(key)})
        unlike = [key for key in keys if len({str(run.config.get(key)) for run in members}) > 1]
        if unlike:
            notes.append(f"runs of the cell {cell} differ in {', '.join(unlike[:4])}: do not read them as repetitions.")
    return notes


def compared(key: str) -> bool:
    """Whether runs that differ in this key of the config are no repetitions of each other."""
    return key.split(".")[0] not in (*UNLIKE, "code") and key.split(".")[-1] != "seed"


def _without_curves(runs: Sequence[Run]) -> list[str]:
    """Completed runs whose metrics.jsonl was lost or damaged afterwards."""
    numbers = [str(run.number) for run in runs if not _ends_well(run.folder / "metrics.jsonl")]
    told = f"metrics.jsonl of run {', '.join(numbers)} is missing, cut or unreadable: its curves are not shown whole."
    return [told] if numbers else []


def _ends_well(path: Path) -> bool:
    """Whether it is text whose last line is a whole row."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return not lines or (lines[-1].endswith("\n") and isinstance(json.loads(lines[-1]), dict))
    except (OSError, ValueError):
        return False


def _curve_rows(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Stage and values of each row of metrics.jsonl; a row that was cut off by a kill ends the file."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict) or not row:
            return
        stage = next(iter(row)).split("/")[0]
        yield stage, {key.partition("/")[2]: value for key, value in row.items()}


def _is_whole(table: pd.DataFrame, run: Run) -> bool:
    """Whether all completions on which the reward was judged are there, each with a finite reward."""
    judged = run.metrics.get("irl/n_completions", len(table))
    return "learned" in table and len(table) == judged and bool(table["learned"].abs().lt(math.inf).all())


def _completions(path: Path, columns: Sequence[str] | None) -> pd.DataFrame | None:
    try:
        with parquet.ParquetFile(path) as file:  # unlike pandas it passes over columns that are not there
            found: pd.DataFrame = file.read(columns).to_pandas()
        return found
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return None

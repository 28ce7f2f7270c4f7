"""`python -m irl_exp.dashboard multirun/<study>`: one launch as a workspace and a report in Weights & Biases.

What the runs differ in and what they measured is read from the files that they left; panels are made of that alone,
so none is empty. Needs an account and the extra `dashboard`; the study page of the launch needs neither. This is the
only file that imports wandb_workspaces.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irl_exp.config import question_of
from irl_exp.machinery import tracking

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

REPORT = "report"
"""The folder of a launch that is no job: its study page."""

_NOT_VARIED = (
    *("artifacts.", "versions.", "device_used", "job.", "tracking.", "store."),
    *("executor.", "name", "workers", "threads"),
)
_TRACES = ("config.json", "error.txt", "wandb", ".hydra")
_MOST_RUNS = 1000  # in one panel; the default of W&B is 10

CURVES = {
    "The learned reward": ("irl/loss", "irl/select_loss", "irl/select_expert_first", "irl/norm", "evaluate/auroc"),
    "RLHF and refinetuning": ("rlhf/reward", "rlhf/kl", "refinetune/reward", "refinetune/kl"),
}
BARS = (
    *("irl/auroc", "irl/epic", "irl/pair_accuracy", "irl/accuracy_unsupervised", "pooled/irl/auroc"),
    *("refinetuned/reward_mean", "equal_kl/difference"),
)
WORTH = "refinetuned/toxic_fraction"
ACCURACIES = ("irl/auroc", "irl/accuracy_unsupervised")
POLICIES = ("reference/toxic_fraction", "expert/toxic_fraction", WORTH)


class StudyError(Exception):
    """A folder that cannot be shown; says why and what to do."""


class UnavailableError(Exception):
    """W&B cannot be reached or does not take the dashboard; says what is missing."""


@dataclass(frozen=True)
class Study:
    """One launch as W&B knows it.

    Attributes:
        entity: None for the default one of the account.
        group: of its runs in W&B.
        runs: the W&B folder of each run that was recorded.
        keys: of the config, "irl.loss.name", in which cells differ; seeds aside.
        by: the one key that tells the cells apart; None where they differ in nothing, or in several keys and have
            no job.cell (runs of an older version).
        metrics, curves: names of numbers in any metrics.json, metrics.jsonl.
        notes: what was left out.
    """

    folder: Path
    name: str
    entity: str | None
    project: str
    group: str
    runs: tuple[Path, ...]
    keys: tuple[str, ...]
    by: str | None
    metrics: frozenset[str]
    curves: frozenset[str]
    notes: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The study page, or the tables where there is none."""
        page = self.folder / REPORT / "index.html"
        return page if page.is_file() else self.folder / "summary.md"

    def text(self) -> str:
        """What the study asks, and where its page is."""
        differ = ", ".join(self.keys) or "their seeds alone"
        asks = question_of(self.name) or f"how do {len(self.runs)} runs compare that differ in {differ}?"
        return f"{self.name}: {asks} The rest of the result is {_short(self.page)}, where this was launched."


# ----------------------------------------------------------------------------------------------- reading files


def find_launch(folder: Path) -> Path:
    """The launch that `folder` is, or the newest one with records for W&B of the study that it is.

    Raises:
        StudyError: it is something else.
    """
    if not folder.is_dir():
        raise StudyError(f"there is no folder {folder}; give multirun/<study> or multirun/<study>/<time of launch>")
    if _is_launch(folder):
        return folder
    if (folder / "config.json").is_file() and _is_launch(folder.absolute().parent):
        raise StudyError(f"{folder} is one run; its launch is {_short(folder.absolute().parent)}")
    inside = sorted(child for child in folder.iterdir() if child.is_dir())
    if launches := [child for child in inside if _is_launch(child)]:
        newest_first = launches[::-1]  # named by their time
        return next((launch for launch in newest_first if any(launch.glob("*/wandb/*run-*"))), newest_first[0])
    studies = [child.name for child in inside if any(map(_is_launch, child.iterdir()))]
    hint = f"it holds the studies {', '.join(studies)}: name one" if studies else "nothing was launched into it"
    raise StudyError(f"{folder} is no study: {hint}")


def _is_launch(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("plan.json", "multirun.yaml"))


def read(launch: Path) -> Study:
    """What the runs of a launch left; StudyError where there is nothing to show, or not in one place of W&B."""
    folders = sorted(
        (
            child
            for child in launch.iterdir()
            if child.name != REPORT and any((child / name).exists() for name in _TRACES)
        ),
        key=lambda child: (len(child.name), child.name),
    )
    configs = {folder: config for folder in folders if (config := _config(folder / "config.json"))}
    found = {folder: run for folder in configs if (run := tracking.recorded(folder))}
    notes = []
    if lost := [folder.name for folder in folders if folder not in configs]:
        notes.append(
            f"{len(lost)} of {len(folders)} jobs were stopped before they wrote config.json: {', '.join(lost)}"
        )
    if silent := [folder.name for folder in configs if folder not in found]:
        notes.append(f"{len(silent)} of {len(folders)} jobs were not recorded for W&B: {', '.join(silent)}")
    if not found:
        raise StudyError(f"{launch} has nothing for W&B. {_why_nothing(notes)}")
    shown = [configs[folder] for folder in found]
    entity, project, group = _place(launch, shown)
    keys = varied(shown)
    cells = all(config.get("job", {}).get("cell") for config in shown)
    return Study(
        folder=launch,
        name=str(shown[0]["name"]),
        entity=entity,
        project=project,
        group=group,
        runs=tuple(found.values()),
        keys=keys,
        by=keys[0] if len(keys) == 1 else "job.cell" if keys and cells else None,
        metrics=frozenset(_names(folder / "metrics.json" for folder in found)),
        curves=frozenset(_names(folder / "metrics.jsonl" for folder in found)),
        notes=tuple(notes),
    )


def _why_nothing(notes: Sequence[str]) -> str:
    if not notes:
        return "No job has begun: run its command again"
    again = "The same command with tracking=offline records them; finished stages come from the store"
    return f"{'; '.join(notes)}. {again}"


def _config(path: Path) -> dict[str, Any] | None:
    """The W&B config of a run; None where it is not there or torn."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    tracked = config.get("tracking") if isinstance(config, dict) and "name" in config else None
    return config if isinstance(tracked, dict) and {"entity", "project"} <= tracked.keys() else None


def _place(launch: Path, configs: Sequence[Mapping[str, Any]]) -> tuple[str | None, str, str]:
    """Entity, project and group of all runs; StudyError where they are not in one."""
    places = {
        (
            config["tracking"]["entity"],
            config["tracking"]["project"],
            config.get("job", {}).get("group") or f"{config['name']}/{launch.absolute().name}",
        )
        for config in configs
    }
    if len(places) > 1:
        told = "; ".join(
            sorted(f"{entity or 'default entity'}/{project}, {group}" for entity, project, group in places)
        )
        raise StudyError(
            f"the runs of {launch} are in {len(places)} places of W&B ({told}), a dashboard shows one: "
            "launch them with one tracking.entity, tracking.project and name"
        )
    return places.pop()


def varied(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The fewest keys, greedily, that tell the cells apart: of those that go together a name stands for all."""
    flat = [dict(flatten(config)) for config in configs]
    values = {
        key: [json.dumps(one.get(key), sort_keys=True) for one in flat]
        for key in dict.fromkeys(key for one in flat for key in one)
        if key.rpartition(".")[2] != "seed" and not key.startswith(_NOT_VARIED)
    }
    chosen: list[str] = []
    cells: list[tuple[str, ...]] = [() for _ in configs]
    for key in sorted(values, key=lambda key: (not key.endswith(".name"), key.count("."))):
        finer = [(*cell, value) for cell, value in zip(cells, values[key], strict=True)]
        if len(set(finer)) > len(set(cells)):
            chosen, cells = [*chosen, key], finer
    return tuple(chosen)


def flatten(tree: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """A nested config as pairs of "irl.loss.name" and a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:  # an empty one, of a choice without options, says that it is there
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _names(files: Iterable[Path]) -> set[str]:
    """Keys of all objects in files of JSON, or of JSON lines; a torn last line is passed over."""
    names: set[str] = set()
    for path in files:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            try:
                names |= json.loads(part).keys()
            except ValueError:
                continue
    return names


# ------------------------------------------------------------------------------------------------ what is shown


def workspace(study: Study, entity: str) -> ws.Workspace:
    """A saved view of the project: the runs of this launch alone, and its panels."""
    import wandb_workspaces.workspaces as ws

    sections = [ws.Section(name="The study", panels=[_text(study)], is_open=True)]
    sections += [ws.Section(name=title, panels=panels, is_open=True) for title, panels in _panels(study).items()]
    columns = [f"config:{_in_w_and_b(key)}" for key in study.keys]
    columns += [f"summary:{name}" for name in (*ACCURACIES, "irl/epic", WORTH) if name in study.metrics]
    return ws.Workspace(
        entity=entity,
        project=study.project,
        name=f"{study.group}: comparison",
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=_limit(study)),
        runset_settings=ws.RunsetSettings(
            filters=_jobs(study),
            groupby=[ws.Config(key) for key in ([study.by] if study.by else study.keys)],
            pinned_columns=["run:displayName", *columns],
        ),
    )


def report(study: Study, entity: str) -> wr.Report:
    """The same panels as a text that can be handed on. With an entity it asks the server for the project."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P(study.text())]
    for title, panels in _panels(study).items():
        for number, panel in enumerate(panels):
            panel.layout = wr.Layout(x=12 * (number % 2), y=8 * (number // 2), w=12, h=8)
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[_runset(study, entity)], panels=panels)]
    return wr.Report(
        entity=entity, project=study.project, title=f"{study.name}: comparison", description=study.group, blocks=blocks
    )


def _runset(study: Study, entity: str) -> wr.Runset:
    """The runs one by one: panels that show cells group them themselves, and a scatter has a point a run."""
    import wandb_workspaces.reports.v2 as wr

    return wr.Runset(
        entity=entity,
        project=study.project if entity else "",
        name=study.group,
        filters=_jobs(study),
        groupby=[f"config.{key}" for key in study.keys] if study.by is None else [],
    )


def _jobs(study: Study) -> ws.And:
    """The runs of the launch without the one that holds its study page."""
    import wandb_workspaces.workspaces as ws

    return ws.And(ws.Metric("Group") == study.group, ws.Metric("JobType") != REPORT)


def _text(study: Study) -> wr.MarkdownPanel:
    import wandb_workspaces.reports.v2 as wr

    return wr.MarkdownPanel(markdown=study.text())


def _panels(study: Study) -> dict[str, list[Any]]:
    """Sections of panels, without those of which the runs have no numbers."""
    import wandb_workspaces.reports.v2 as wr

    sections = {
        title: [_band(study, name) for name in names if name in study.curves] for title, names in CURVES.items()
    }
    sections["Cells"] = [_bars(study, [name], name) for name in BARS if name in study.metrics]
    if policies := [name for name in POLICIES if name in study.metrics]:
        sections["Cells"].append(_bars(study, policies, "toxic fraction of the policies"))
    sections["What a recovered reward is worth"] = [
        wr.ScatterPlot(title=f"{x} and {WORTH}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(WORTH), regression=True)
        for x in ACCURACIES
        if {x, WORTH} <= study.metrics
    ]
    sections["Runs"] = [wr.RunComparer(diff_only="split")]
    if len(study.keys) > 1:
        sections["Runs"].insert(0, _parallel(study))
    return {title: panels for title, panels in sections.items() if panels}


def _band(study: Study, name: str) -> wr.LinePlot:
    """A curve over its stage's own step: a line a cell, mean ± sd over its seeds."""
    import wandb_workspaces.reports.v2 as wr

    step = f"{name.partition('/')[0]}/step"
    return wr.LinePlot(title=f"{name}, mean ± sd", x=step, y=[name], max_runs_to_show=_limit(study), **_grouped(study))


def _bars(study: Study, names: Sequence[str], title: str) -> wr.BarPlot:
    """A bar a cell: the mean over its runs, with its sd."""
    import wandb_workspaces.reports.v2 as wr

    limit = _limit(study)
    return wr.BarPlot(
        title=f"{title}, mean ± sd",
        metrics=list(names),
        max_runs_to_show=limit,
        max_bars_to_show=limit,
        **_grouped(study),
    )


def _parallel(study: Study) -> wr.ParallelCoordinatesPlot:
    import wandb_workspaces.reports.v2 as wr

    results = [wr.SummaryMetric(name) for name in ("irl/auroc", WORTH) if name in study.metrics]
    columns: list[Any] = [*map(wr.Config, study.keys), *results]
    return wr.ParallelCoordinatesPlot(
        title="configuration and result",
        columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns],
    )


def _grouped(study: Study) -> dict[str, Any]:
    """How a panel makes cells of runs; a study of seeds alone is one cell, the group."""
    import wandb_workspaces.reports.v2 as wr

    spread: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    if study.by:
        return {**spread, "groupby": wr.Config(study.by)}
    return spread if study.keys else {**spread, "groupby": wr.Metric("Group")}


def _in_w_and_b(key: str) -> str:
    """A key of the config as W&B stores it: irl.value.loss.name."""
    first, _, rest = key.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"


def _limit(study: Study) -> int:
    return min(max(len(study.runs), 10), _MOST_RUNS)


# --------------------------------------------------------------------------------------------- the command line


def save(study: Study) -> tuple[str, str]:
    """Save both; returns the addresses of workspace and report. UnavailableError if W&B does not take them."""
    try:
        default = tracking.default_entity()  # also where it is not needed: says soon whether the server answers
        if not (entity := study.entity or default):
            raise UnavailableError("this W&B account has no default entity: launch with tracking.entity=USER_OR_TEAM")
        shown = report(study, entity).save()  # first: it is the one that fails where there is no such project
        return str(workspace(study, entity).save().url), str(shown.url)
    except UnavailableError:
        raise
    except tracking.TrackingError as error:
        raise UnavailableError(str(error)) from error
    except Exception as error:  # of a library in preview, of the network, of the account
        lines = str(error).strip().splitlines() or ["no message"]
        raise UnavailableError(f"W&B does not take the dashboard ({type(error).__name__}: {lines[0][:300]})") from error


def write_specs(study: Study, folder: Path) -> list[Path]:
    """What would be saved, as two files of JSON; no network."""
    folder.mkdir(parents=True, exist_ok=True)
    # The library has no public way to look at what it would send.
    specs = {
        "workspace": workspace(study, study.entity or "")._to_model().spec,
        "report": report(study, "")._to_model().spec,
    }
    paths = []
    for name, spec in specs.items():
        paths.append(folder / f"wandb_{name}.json")
        content = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        paths[-1].write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return paths


def missing(*, network: bool) -> list[str]:
    """What keeps the dashboard from being made, as far as that is known before trying."""
    found = []
    if importlib.util.find_spec("wandb_workspaces") is None:
        found.append("wandb-workspaces is not installed: python -m pip install -e '.[dashboard]'")
    if network and (why := tracking.why_not_online()):
        found.append(why)
    return found


def elsewhere(study: Study) -> str:
    """Where the runs can be looked at without the dashboard."""
    lines = [f"page      {_short(study.page)}"]
    lines.append(f"terminal  wandb beta leet {_short(study.runs[0])}  (the curves of one run)")
    if waiting := [run for run in study.runs if tracking.not_uploaded(run)]:
        lines.append(f"upload    wandb login && {tracking.sync_command(waiting)}")
    return "\n".join(lines)


def _short(path: Path) -> str:
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m irl_exp.dashboard",
        description="Save a workspace and a report in Weights & Biases that compare the runs of one launch: curves "
        "with seeds as a band, bars of the cells, recovered accuracy against the toxicity of the refinetuned policy.",
        epilog="Needs a W&B account (`wandb login`), the runs there (`wandb sync`, if they are recorded offline) and\n"
        "python -m pip install -e '.[dashboard]'. Each call saves a new view and a new report. Without an account it\n"
        "says where the runs can be seen on this machine. docs/tracking.md has the rest.\n\n"
        "  python -m irl_exp.dashboard multirun/losses                        the newest launch of the study\n"
        "  python -m irl_exp.dashboard multirun/losses/20261121-101500        this launch\n"
        "  python -m irl_exp.dashboard multirun/losses --dry-run              no account, no network",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("folder", type=Path, metavar="FOLDER", help="multirun/<study>, or a launch in it")
    told = f"only write what would be saved to <launch>/{REPORT}/wandb_workspace.json and wandb_report.json"
    root.add_argument("--dry-run", action="store_true", help=told)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when saved or written; 1 where W&B cannot take it; 2 for a folder that cannot be shown."""
    given = parser().parse_args(arguments)
    tracking.quieten()
    try:
        study = read(find_launch(given.folder))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in study.notes:
        print(f"left out: {note}", file=sys.stderr)
    try:
        if lacking := missing(network=not given.dry_run):
            raise UnavailableError("; ".join(lacking))
        print("\n".join(_dry_run(study) if given.dry_run else _save(study)))
    except OSError as error:  # of the folder that a dry run writes to
        print(f"error: {error}", file=sys.stderr)
        return 1
    except UnavailableError as error:
        print(f"no dashboard: {error}\n\nThe runs can be seen here:\n{elsewhere(study)}", file=sys.stderr)
        return 1
    return 0


def _dry_run(study: Study) -> list[str]:
    return [f"written   {_short(path)}" for path in write_specs(study, study.folder / REPORT)]


def _save(study: Study) -> list[str]:
    view, text = save(study)
    lines = [f"workspace {view}", f"report    {text}", f"page      {_short(study.page)}"]
    if waiting := [run for run in study.runs if tracking.not_uploaded(run)]:
        lines.append(f"{len(waiting)} of {len(study.runs)} runs are not there yet: {tracking.sync_command(waiting)}")
    return lines

"""The record of one run (one Hydra job): its files are the truth, Weights & Biases is a view of them.

    with track("wandb", run_dir=folder, project="irl_exp", ...) as tracker:
        tracker.log("irl", {"step": 3, "loss": 0.4})  # metrics.jsonl: {"irl/step": 3, "irl/loss": 0.4}
        tracker.summarise({"evaluate/accuracy": 0.9})  # metrics.json

The two files are written as the numbers come and survive a kill; tracking.json says where W&B has the run and how
it ended there. W&B never asks, never blocks for long and never costs a run: without an account or a server it logs
offline, and after an error the files still go on.
`log_report` adds one run to those of a launch, which shows its study page; there the page is the truth.
This is the only file that imports wandb (0.8 s, so inside functions); it knows no machine learning.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import mimetypes
import os
import re
import shlex
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, SupportsFloat, TypeVar

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
State = Literal["open", "finished", "failed", "died"]

# What each word of WANDB_MODE asks for.
_WORDS: dict[str, Mode] = {"online": "online", "run": "online", "shared": "online"}
_WORDS |= {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}

RECORD = "tracking.json"
"""In the folder of a run: where W&B has it, and whether it is open, finished, failed or died."""

# What every run would otherwise pay for: `pip freeze` (requirements) is half of its start, asking git is more than the
# rest (the commit is handed over instead). Statistics and the description of the machine stay on.
_SPARE = {"console": "off", "disable_code": True, "disable_git": True, "x_save_requirements": False}

# Longer ones W&B refuses, and with them the run.
_LONGEST_NAME, _LONGEST_TAG = 128, 64

_STOP_PATIENCE = 5.0
"""Seconds that a stop leaves W&B for closing a run; a second stop leaves it none."""

_decided: Mode | None = None  # what "wandb" means in this process


class TrackingError(Exception):
    """A number that cannot be recorded, a tracking mode that does not exist, or no account where one is needed."""


def resolve_mode(mode: str) -> Mode:
    """What W&B does in this process for `mode` "wandb", "offline" or "none"; TrackingError for another word.

    "wandb" is WANDB_MODE where the environment has it, else the word of `wandb offline`, else online; without
    an account it is offline, with one warning. Decided once per process, with no prompt and no network.
    """
    global _decided
    if mode in ("offline", "none"):
        return "offline" if mode == "offline" else "disabled"
    if mode != "wandb":
        raise TrackingError(f"tracking mode {mode!r} is none of 'wandb', 'offline', 'none'")
    if _decided is None:
        _decided = _decide()
    return _decided


def settle(mode: Mode) -> None:
    """Take over what another process of the same launch has decided for "wandb", without its warning."""
    global _decided
    _decided = mode


def _decide() -> Mode:
    mode, why = _find_out()
    if why:
        log.warning("%s: runs are logged offline, `wandb sync` uploads them later", why)
    return mode


def _find_out() -> tuple[Mode, str]:
    """What the environment asks for, or offline and why an account cannot be used."""
    word = os.environ.get("WANDB_MODE") or "online"
    if word not in _WORDS:
        raise TrackingError(f"WANDB_MODE={word!r} is none of {', '.join(_WORDS)}")
    if _WORDS[word] != "online":
        return _WORDS[word], ""
    quieten()
    import wandb

    try:
        mode = _WORDS[wandb.setup().settings.mode]  # knows of `wandb offline` too, which writes a file
        if mode != "online" or wandb.login(prompt=False, verify=False):
            return mode, ""
        return "offline", "no W&B account here (`wandb login` makes runs appear online)"
    except Exception as error:  # a malformed key, an unreadable netrc, ...
        return "offline", f"the W&B account cannot be used ({_first_line(error)})"


def why_not_online() -> str:
    """Why nothing can be sent to W&B from here, as far as that shows without network; "" if it can be tried."""
    mode, why = _find_out()
    if mode == "online":
        return ""
    return why or f"W&B is {mode} here: unset WANDB_MODE, or say `wandb online`"


def default_entity(timeout: int = 10) -> str | None:
    """The user or team that runs without a tracking.entity go to, if the account has one.

    Asks the server, in at most `timeout` seconds.

    Raises:
        TrackingError: there is no account, the server does not answer, or takes the key for wrong.
    """
    if why := why_not_online():
        raise TrackingError(why)
    import requests
    import wandb

    try:
        # First by a request of our own: wandb's process tries a dead server for minutes, and this one waits for it.
        requests.head(wandb.setup().settings.base_url, timeout=timeout)
    except requests.RequestException as error:
        raise TrackingError(f"the W&B server cannot be reached ({_first_line(error)})") from error
    try:
        entity = wandb.Api(timeout=timeout).default_entity
    except Exception as error:
        raise TrackingError(f"the W&B server does not let us in ({_first_line(error)})") from error
    return str(entity) if entity else None


def quieten() -> None:
    """No word of wandb on the console, no crash reports to its makers, unless the environment says so."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@dataclass(frozen=True)
class Product:
    """Something that runs make and use, as W&B is to know it: one version in a collection.

    Attributes:
        collection: its name in W&B, the same for all of a kind: "reward".
        kind: the type of that collection; cannot change once there is one.
        folder: with its files.
        identity: what determines it, plain data. Of what is not `uploaded`, W&B gets this alone, as identity.json:
            equal identities are one version, on whatever machine they were made.
        aliases: names of this version; one that was another version's moves to this one.
    """

    collection: str
    kind: str
    folder: Path
    identity: Mapping[str, Any]
    aliases: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    uploaded: bool = False


class View:
    """What W&B shows of one run beside its numbers, which are the business of `Tracker`.

    `url` is where an online run can be seen; `offline_folder` is what `sync_command` takes of an offline one.
    """

    def __init__(self, run_dir: Path, run: wandb.Run | None) -> None:
        self.url: str | None = run.url if run else None
        self.offline_folder: Path | None = Path(run.sync_dir) if run and run.offline else None
        self._run_dir = run_dir
        self._run = run
        self._troubled = False

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table in W&B, one cell per column in each row; no file of ours holds it."""
        self._view(lambda run: _send_table(run, name, columns, rows), waits=True)

    def log_image(self, name: str, path: Path, caption: str | None = None) -> None:
        """Show a picture in W&B; `path` is a PNG or JPEG file."""
        self._view(lambda run: _send_image(run, name, path, caption), waits=True)

    def log_page(self, name: str, html_path: Path) -> None:
        """Show a web page in W&B, with the pictures that it takes from beside it; its other links lead nowhere."""
        self._view(lambda run: _send_page(run, name, html_path), waits=True)

    def log_artifact(self, product: Product, *, made: bool = True, used: bool = False) -> None:
        """Show a product as what this run has `made` (its output), `used` (its input), or both.

        The files of an `uploaded` one may vanish afterwards but must not be rewritten in place: they are linked into
        <run_dir>/wandb/artifacts. An offline run knows that place by its absolute path: `wandb sync` of a run folder
        that was moved uploads everything but the artifacts.
        """
        self._view(lambda run: _send_artifact(run, product, made, used), waits=True)

    def note(self, text: str) -> None:
        """Show a text, Markdown, as the notes of the run."""
        self._view(lambda run: setattr(run, "notes", text))

    def _finish(self, exit_code: int, patience: float | None) -> None:
        """Close the run in W&B, in at most `patience` seconds; the files say how it ended.

        Not in this thread: an exception of a signal would leave the run open.
        """
        if self._run is None:
            return
        closed = threading.Event()

        def close() -> None:
            self._view(lambda run: run.finish(exit_code=exit_code))
            closed.set()

        threading.Thread(target=close, daemon=True).start()
        try:
            _wait(closed, patience)
        finally:
            if not closed.is_set():
                self._missed("it was stopped while W&B closed it")

    def _view(self, show: Callable[[wandb.Run], object], *, waits: bool = False) -> None:
        """Pass something on to W&B, whose troubles are told once and never reach the job.

        What waits for an answer (20 s from a dead server) is no longer tried after the first trouble.
        """
        if self._run is None or (waits and self._troubled):
            return
        try:
            show(self._run)
        except Exception as error:
            self._missed(_first_line(error))

    def _missed(self, why: str) -> None:
        if self._run is not None and not self._troubled:
            remedy = f"wandb sync --include-online {_short(Path(self._run.sync_dir))}"
            told = "W&B misses a part of this run (%s), the files in %s do not; `%s` may help afterwards"
            log.warning(told, why, self._run_dir, remedy)
        self._troubled = True


class Tracker(View):
    """What a job may record while it runs: the same keys and values go to the files of `run_dir` and to W&B."""

    def __init__(self, run_dir: Path, curves: IO[str], run: wandb.Run | None) -> None:
        super().__init__(run_dir, run)
        self._curves = curves
        self._stages: set[str] = set()
        self._summary: dict[str, float] = {}

    def log(self, stage: str, row: Mapping[str, float]) -> None:
        """Append one row of a stage's training curve, at the stage's own `row["step"]`; a NaN stays a NaN.

        Raises TrackingError for a row without a step or a value that is no number.
        """
        if "step" not in row:
            raise TrackingError(f"a row of {stage!r} has no 'step', only {', '.join(row) or 'nothing'}")
        line = _numbers({f"{stage}/{key}": value for key, value in row.items()})
        self._curves.write(json.dumps(line) + "\n")
        self._curves.flush()  # to the kernel: a kill of this process loses no row
        if stage not in self._stages:
            self._stages.add(stage)
            # Not into the summary: a column of W&B's table is a final number, never the last of a curve.
            self._view(lambda run: run.define_metric(f"{stage}/*", step_metric=f"{stage}/step", summary="none"))
        self._view(lambda run: run.log(line))

    def summarise(self, metrics: Mapping[str, float]) -> None:
        """Add final numbers: metrics.json holds those of all calls, sorted, and is replaced as a whole.

        Raises TrackingError with the keys of what is NaN, infinite or no number; nothing is written then.
        """
        numbers = _finite(metrics)
        self._summary |= numbers
        draft = self._run_dir / "metrics.json.draft"
        draft.write_text(json.dumps(self._summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        draft.replace(self._run_dir / "metrics.json")
        self._view(lambda run: run.summary.update(numbers))

    def _finish(self, exit_code: int, patience: float | None) -> None:
        try:
            super()._finish(exit_code, patience)
        finally:
            self._record("failed" if exit_code or self._troubled else "finished")

    def _record(self, state: State) -> None:
        """tracking.json, for the next launch, and for whoever finds this process dead."""
        if self._run is None:
            return
        settings = self._run.settings
        about: dict[str, Any] = {"state": state, "id": self._run.id}
        about |= {"entity": settings.entity, "project": settings.project}
        about |= {"group": settings.run_group, "online": not self._run.offline, "url": self.url}
        with suppress(OSError):  # a full disk: the next launch takes this run for unfinished
            write_record(self._run_dir, about | {"folder": str(Path(self._run.sync_dir))})


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    """The values as ints and floats that JSON knows: numpy and torch scalars are welcome, text is not."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if not isinstance(value, SupportsFloat):
            raise TrackingError(f"{key} = {value!r} is not a number")
        numbers[key] = int(value) if isinstance(value, Integral) else float(value)
    return numbers


def _finite(values: Mapping[str, object]) -> dict[str, float]:
    numbers = _numbers(values)
    if wild := [f"{key} = {value}" for key, value in numbers.items() if not math.isfinite(value)]:
        raise TrackingError(f"a final number must be finite: {', '.join(wild)}")
    return numbers


def _send_table(run: wandb.Run, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import wandb

    run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})


def _send_image(run: wandb.Run, name: str, path: Path, caption: str | None) -> None:
    import wandb

    run.log({name: wandb.Image(str(path), caption=caption)})


def _send_page(run: wandb.Run, name: str, html_path: Path) -> None:
    import wandb

    run.log({name: wandb.Html(_self_contained(html_path), inject=False, data_is_not_path=True)})


def _self_contained(html_path: Path) -> str:
    """The page with the pictures from its own folder inside of it, as W&B keeps one file of a page."""

    def embedded(match: re.Match[str]) -> str:
        picture = html_path.parent / match["file"]
        kind = mimetypes.guess_type(picture.name)[0]
        if kind is None or not picture.is_file():
            return match[0]
        content = base64.b64encode(picture.read_bytes()).decode()
        return f'{match["before"]}"data:{kind};base64,{content}"'

    page = html_path.read_text(encoding="utf-8")
    return re.sub(r"""(?P<before><img\b[^>]*\bsrc=)(?P<quote>["'])(?P<file>[^"':]+)(?P=quote)""", embedded, page)


def _send_artifact(run: wandb.Run, product: Product, made: bool, used: bool) -> None:
    """Log, use, or both at once.

    The public `use_artifact` does not work offline, and online it waits for the upload without end. Both go to the same
    method, which only hands the artifact over; W&B's process links it to the run once it is there.
    """
    import wandb

    artifact = wandb.Artifact(product.collection, type=product.kind, metadata=dict(product.metadata))
    staging = Path(os.environ["WANDB_DATA_DIR"], "artifacts")
    staging.mkdir(parents=True, exist_ok=True)
    links = Path(tempfile.mkdtemp(prefix=f"{product.collection}-", dir=staging))
    if product.uploaded:
        shutil.copytree(product.folder, links, copy_function=_link, dirs_exist_ok=True)
    else:
        text = json.dumps(product.identity, indent=1, sort_keys=True) + "\n"
        (links / "identity.json").write_text(text, encoding="utf-8")
    for file in sorted(path for path in links.rglob("*") if path.is_file()):
        inside = file.relative_to(links).as_posix()
        artifact.add_file(str(file), name=inside, policy="immutable", skip_cache=True)
    aliases = [_fit(re.sub("[/:]", ".", alias), _LONGEST_NAME) for alias in product.aliases]  # which W&B refuses
    run._log_artifact(artifact, aliases=aliases, is_user_created=not made, use_after_commit=used)


def _fit(text: str, longest: int) -> str:
    """The text, without its middle where it is too long: names differ at their ends."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copy2(source, target)


def _start(mode: Mode, init: Mapping[str, Any]) -> wandb.Run | None:
    """A W&B run of its own: offline when online fails, None when there is to be none or W&B cannot start."""
    global _decided
    if mode == "disabled":
        return None
    quieten()
    import wandb

    try:
        return wandb.init(mode=mode, reinit="create_new", **init)  # the default returns the previous run
    except Exception as error:
        if mode == "offline":
            log.warning("W&B cannot start (%s): %s has its own files only", _first_line(error), init["dir"])
            return None
        log.warning("W&B takes no runs online (%s): this run and those after it are offline", _first_line(error))
    _decided = "offline"
    return _start("offline", init)


@contextmanager
def _data_dir(folder: Path) -> Iterator[None]:
    """Let wandb stage tables and manifests in `folder`, not in the home directory, away from the run."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before


@contextmanager
def track(
    mode: str,
    *,
    run_dir: Path,
    project: str,
    entity: str | None,
    name: str,
    group: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    job_type: str | None = None,
    commit: str | None = None,
    init_timeout: float = 30.0,
    finish_timeout: float = 120.0,
) -> Iterator[Tracker]:
    """Record one run in `run_dir`: metrics.jsonl, metrics.json and, unless `mode` is "none", wandb/ and tracking.json.

    The metrics of an earlier attempt in that folder go. `config` is plain data: dicts, lists, numbers, text; `commit`
    is that of the code in git. The timeouts are what a silent server may cost, in seconds. Whatever exception ends the
    block, Ctrl-C too, passes on, and W&B shows the run as failed.
    """
    run_dir = run_dir.absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    for earlier in ("metrics.json", RECORD):
        (run_dir / earlier).unlink(missing_ok=True)
    settings = _settings(init_timeout, finish_timeout) | {"git_commit": commit}
    init = {"dir": run_dir, "project": project, "entity": entity, "group": group, "job_type": job_type}
    init |= {"name": _fit(name, _LONGEST_NAME), "tags": [_fit(tag, _LONGEST_TAG) for tag in tags]}
    init |= {"config": dict(config), "settings": settings}
    with (
        (run_dir / "metrics.jsonl").open("w", encoding="utf-8") as curves,
        _data_dir(run_dir / "wandb"),
        _ended(Tracker(run_dir, curves, _start(resolve_mode(mode), init))) as tracker,
    ):
        tracker._record("open")
        yield tracker


def _settings(init_timeout: float, finish_timeout: float) -> dict[str, Any]:
    patience = {"init_timeout": init_timeout, "finish_timeout": finish_timeout, "finish_timeout_raises": True}
    return _SPARE | patience


V = TypeVar("V", bound=View)


@contextmanager
def _ended(view: V) -> Iterator[V]:
    """End the W&B run with the block: as failed where an exception ends it, and soon where that is a stop."""
    exit_code, patience = 1, None
    try:
        yield view
        exit_code = 0
    except KeyboardInterrupt:
        patience = _STOP_PATIENCE
        raise
    finally:
        view._finish(exit_code, patience)


def _wait(closed: threading.Event, patience: float | None) -> None:
    """Wait until it is set; the first stop meanwhile shortens the wait, the second ends it."""
    try:
        closed.wait(patience)
    except KeyboardInterrupt:
        if patience is None:
            closed.wait(_STOP_PATIENCE)
        raise


def abandon(run_dir: Path) -> None:
    """End the W&B run of a process that died in `run_dir`, as failed. Costs seconds at most, and never an exception.

    Of an offline run there is nothing to end: `wandb sync` takes what has reached the disk, and shows it as failed.
    """
    record = read_record(run_dir)
    if record is None or record["state"] != "open":
        return
    with suppress(OSError):
        write_record(run_dir, record | {"state": "died"})
    if record["online"]:
        try:
            _close_remotely(record)
        except Exception as error:  # the server takes it for crashed by itself, some minutes after its last word
            log.warning("W&B still shows %s as running (%s)", record["url"], _first_line(error))


def _close_remotely(record: Mapping[str, Any], timeout: float = 10.0) -> None:
    quieten()
    import wandb

    about = {key: record[key] for key in ("id", "entity", "project")}
    settings = _settings(timeout, timeout) | {"x_disable_stats": True, "x_disable_machine_info": True}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _data_dir(Path(folder)):
        run = wandb.init(**about, dir=folder, resume="must", reinit="create_new", mode="online", settings=settings)
        run.finish(exit_code=1)


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """What tracking.json in the folder of a run says; None where W&B has no such run."""
    try:
        record = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"state", "id", "entity", "project", "group", "online", "url", "folder"}
    return record if isinstance(record, dict) and needed <= record.keys() else None


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Replace tracking.json as a whole."""
    draft = run_dir / f"{RECORD}.draft"
    draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draft.replace(run_dir / RECORD)


def log_report(
    folder: Path,
    *,
    mode: str,
    project: str,
    entity: str | None,
    group: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    page: Path,
    images: Mapping[str, Path],
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]],
    summary: Mapping[str, float],
    notes: str = "",
    init_timeout: float = 30.0,
    finish_timeout: float = 120.0,
) -> View:
    """Add the study page of a launch to its runs in W&B: one more run of the group, "report", of that job_type.

    Args:
        folder: <launch>/report; gets wandb/ alone, no metrics.json, so that it is not taken for a job's.
        images: files by the name that they get in W&B; the name is the caption too.
        tables: columns and rows by name.

    Where a run of this launch is recorded offline, the report is too: one sync command takes them all.
    Raises TrackingError for a summary that is no finite number; W&B's own troubles are warnings.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    numbers = _finite(summary)
    offline = mode == "wandb" and any(folder.parent.glob("*/wandb/offline-run-*"))
    resolved = resolve_mode("offline" if offline else mode)
    init = {"dir": folder, "project": project, "entity": entity, "name": "report", "group": group, "tags": tags}
    init |= {"job_type": "report", "config": dict(config), "settings": _settings(init_timeout, finish_timeout)}
    with _data_dir(folder / "wandb"), _ended(View(folder, _start(resolved, init))) as view:
        view._view(lambda run: run.summary.update(numbers))
        view.note(notes)
        view.log_page("page", page)
        for name, path in images.items():
            view.log_image(name, path, caption=name)
        for name, (columns, rows) in tables.items():
            view.log_table(name, columns, rows)
    return view


def recorded(run_dir: Path) -> Path | None:
    """The folder of the last W&B run of a job, online or offline; None where nothing was recorded for W&B.

    Of a job that a stopped launch had finished it is the folder there.
    """
    if own := max(run_dir.glob("wandb/*run-*"), key=lambda folder: folder.name.partition("run-")[2], default=None):
        return own
    record = read_record(run_dir)
    return Path(record["folder"]) if record else None


def not_uploaded(folder: Path) -> bool:
    """Whether this is an offline run (`Tracker.offline_folder`) that `wandb sync` has not taken yet."""
    return folder.name.startswith("offline-run-") and not any(folder.glob("*.wandb.synced"))


def sync_command(folders: Sequence[Path]) -> str:
    """One shell command that uploads offline runs (`Tracker.offline_folder`s); "" when there are none.

    Runs of one launch, <launch>/<job>/wandb/offline-run-*, become one pattern; `wandb sync` itself passes
    over runs that were uploaded before. What lies below the current directory is named relative to it.
    """
    launches = Counter(folder.absolute().parents[2] for folder in folders)
    patterns = [f"{_short(launch)}/*/wandb/offline-run-*" for launch, runs in launches.items() if runs > 1]
    alone = [_short(folder) for folder in folders if launches[folder.absolute().parents[2]] == 1]
    return " ".join(["wandb sync", *patterns, *alone]) if folders else ""


def _short(path: Path) -> str:
    path, here = path.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))

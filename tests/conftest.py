"""Fixtures for all tests: a folder and environment of their own, launches, a computed store, small models and texts."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from warm_launches import WarmLaunches

ROOT = Path(__file__).parents[1]
PATIENCE = 300

pytest_plugins = ["campaign"]

# huggingface_hub reads these once, when it is imported: here is early enough, a fixture is too late.
_hub = tempfile.TemporaryDirectory(prefix="irl-exp-tests-")
os.environ |= {"HF_HOME": _hub.name, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

# Two processes of tests share the cores: with threads in each operation as well, they wait for each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ |= ONE_THREAD


def _is_settled_elsewhere(variable: str) -> bool:
    """Whether a variable of this machine could change what a test sees."""
    return variable.startswith(("WANDB_", "HYDRA_", "IRL_EXP_"))


def _homes(folder: Path) -> dict[str, str]:
    """An empty home beside the folder of a test: what lies in the folder is then the test's own."""
    home = str(folder.with_name(f"{folder.name}-home"))
    return dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), home)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As behind `&` in a script: processes that tests start would inherit it, and Ctrl-C would stop none of them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _signals_are_left_as_they_were() -> Iterator[None]:
    """What a test leaves here can end the whole process of tests in another one (SIGPIPE in a write to a pipe)."""
    watched = [number for number in signal.valid_signals() if number != signal.SIGALRM]  # pytest-timeout's
    before = {number: signal.getsignal(number) for number in watched}
    yield
    left = {number: signal.getsignal(number) for number in watched if signal.getsignal(number) != before[number]}
    for number in left:
        signal.signal(number, before[number])
    assert not left


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine in a test, and nothing of a test in the repository or in the next test."""
    from irl_exp.launch import stops
    from irl_exp.machinery import tracking

    monkeypatch.chdir(tmp_path)
    for variable in filter(_is_settled_elsewhere, list(os.environ)):
        monkeypatch.delenv(variable)
    for variable, value in _homes(tmp_path).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(tracking, "_decided", None)
    monkeypatch.setattr(stops, "_stopped", False)


# ------------------------------------------------------------------------------------------------- launches


class Launched(subprocess.CompletedProcess[str]):
    """A launch that has ended: `returncode`, `stdout`, `stderr`, and the folders that it wrote into.

    `cwd` is where it was started, `folder` is its own multirun/<study>/<time of launch>.
    """

    cwd: Path

    @property
    def folder(self) -> Path:
        found = re.findall(r"^runs +(\S+)/ ", self.stdout, re.MULTILINE)
        assert len(found) == 1, self.stdout + self.stderr
        return self.cwd / found[0]

    def text(self, job: int = 0) -> bytes:
        """metrics.json of a job, as it is."""
        return (self.folder / str(job) / "metrics.json").read_bytes()

    def metrics(self, job: int = 0) -> dict[str, float]:
        found: dict[str, float] = json.loads(self.text(job))
        return found

    def runs(self) -> list[dict[str, str]]:
        """runs.csv."""
        with (self.folder / "runs.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def states(self) -> dict[str, str]:
        """Of a launch of one job: what the console said of each stage, 'computed' or 'reused'."""
        return dict(re.findall(r"^(\w+) +(computed|reused) ", self.stdout, re.MULTILINE))


class Launcher:
    """Runs launch.py as a user would, in a process and process group of its own; on the CPU, unless `env` says more."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []
        self.warm = WarmLaunches()

    def __call__(
        self, cwd: Path, *overrides: str, env: Mapping[str, str] | None = None, check: bool = True
    ) -> Launched:
        """A launch from its start to its end, by a process that has loaded the libraries before."""
        # --help loads nothing, and what a variable tells the interpreter it reads at its start.
        if any(item.startswith(("-", "PYTHON")) for item in (*overrides, *(env or {}))):
            return self.end(self.start(cwd, *overrides, env=env), cwd, check=check)
        overrides, env = _without_report(overrides), _environment(cwd, env)
        cwd.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as files:
            done = Launched(overrides, *self.warm.run(cwd, overrides, env, Path(files), PATIENCE))
        return _checked(done, cwd, check)

    def start(
        self, cwd: Path, *overrides: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """A launch that is watched while it runs, by an interpreter of its own."""
        cwd.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [*prefix, sys.executable, str(ROOT / "launch.py"), *_without_report(overrides)],
            cwd=cwd,
            env=_environment(cwd, env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str], cwd: Path, *, check: bool = True) -> Launched:
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return _checked(Launched(process.args, process.returncode, stdout, stderr), cwd, check)

    def stop(self) -> None:
        """Kill what a failed test has left running."""
        self.warm.stop()
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def _without_report(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """It takes seconds a launch; the tests of the report ask for it."""
    asked = any(override.startswith(("report=", "-")) for override in overrides)
    return overrides if asked else (*overrides, "report=false")


def _environment(cwd: Path, more: Mapping[str, str] | None) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not (_is_settled_elsewhere(name) or name in ONE_THREAD)
    }
    return kept | _homes(cwd) | {"CUDA_VISIBLE_DEVICES": ""} | dict(more or {})


def _checked(done: Launched, cwd: Path, check: bool) -> Launched:
    done.cwd = cwd
    if check:
        assert done.returncode == 0, f"{done.args} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """`launcher(folder, *overrides)`: for fixtures that share a launch; a test uses `launch`."""
    running = Launcher()
    yield running
    running.stop()


@pytest.fixture
def launch(launcher: Launcher, tmp_path: Path) -> Callable[..., Launched]:
    """`launch(*overrides, env=None, check=True)` runs launch.py in the folder of the test."""

    def run(*overrides: str, env: Mapping[str, str] | None = None, check: bool = True) -> Launched:
        return launcher(tmp_path, *overrides, env=env, check=check)

    return run


def once(factory: pytest.TempPathFactory, name: str, launch: Callable[[Path], Launched]) -> Launched:
    """A launch that all of xdist's processes share: the first that asks makes it, the others wait for it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    kept = folder / f"{name}.pickle"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            done = launch(folder / name)
            kept.write_bytes(pickle.dumps((done.args, done.returncode, done.stdout, done.stderr)))
        launched = Launched(*pickle.loads(kept.read_bytes()))
    launched.cwd = folder / name
    return launched


@pytest.fixture(scope="session")
def first_launch(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The whole chain, once, in an empty folder."""
    return once(tmp_path_factory, "first", lambda folder: launcher(folder, "scale=tiny", "tracking=none"))


@pytest.fixture(scope="session")
def warm_store(first_launch: Launched) -> Path:
    """A store that holds every stage of `scale=tiny tracking=none`. To be read or copied, not written to."""
    return first_launch.cwd / "multirun" / "store"


@pytest.fixture(scope="session")
def three_seeds(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Three seeds of one expert, from an empty store, in one process, with the report."""
    line = ("scale=tiny", "data.count=1000", "workers=1", "tracking=offline", "name=seeds")
    return once(tmp_path_factory, "three", lambda folder: launcher(folder, *line, "irl.seed=0,1,2", "report=true"))


# --------------------------------------------------------------------------------------- models and texts


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that AutoModelForCausalLM opens: a random GPT-NeoX with a byte-level tokenizer."""
    import small

    folder = tmp_path_factory.mktemp("policy")
    small.policy("neox").save(folder)
    return folder


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Roberta whose labels are 'neutral' and 'toxic'."""
    import small

    folder = tmp_path_factory.mktemp("classifier")
    small.sequence_classifier(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the same comments in every form that data=... reads; <option>.jsonl has that option's columns.

    real_toxicity_prompts.jsonl (some toxicities are null), jigsaw.jsonl, file.jsonl, file.csv, file.parquet, and
    jigsaw_original.csv with whole texts, to be read with data.text=comment_text data.label=toxic.
    """
    import pandas as pd

    from irl_exp.texts.comments import write_comments

    folder = tmp_path_factory.mktemp("texts")
    comments = write_comments(600, seed=3)
    rows: list[dict[str, Any]] = [
        {"prompt": comment.prompt, "completion": comment.completion, "label": int(comment.toxic)}
        for comment in comments
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "file.csv", index=False)
    frame.to_parquet(folder / "file.parquet")
    _write_lines(folder / "file.jsonl", rows)
    _write_lines(
        folder / "jigsaw.jsonl",
        [{"prompt": row["prompt"], "original_output": row["completion"]} for row in rows],
    )
    _write_lines(
        folder / "real_toxicity_prompts.jsonl",
        [_real_toxicity_prompt(number, row) for number, row in enumerate(rows)],
    )
    original = [
        {"id": f"{number:016x}", "comment_text": row["prompt"] + row["completion"], "toxic": row["label"]}
        for number, row in enumerate(rows)
    ]
    pd.DataFrame(original).to_csv(folder / "jigsaw_original.csv", index=False)
    return folder


def _real_toxicity_prompt(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    toxicity = None if number % 10 == 0 else abs(row["label"] - 0.1)
    return {
        "filename": f"{number}.txt",
        "challenging": False,
        "prompt": {"text": row["prompt"], "toxicity": 0.1},
        "continuation": {"text": row["completion"], "toxicity": toxicity},
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

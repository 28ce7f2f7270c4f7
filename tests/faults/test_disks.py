"""Disks that are full, out of inodes, read-only or forbidden, before and in the middle of a launch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from campaign import Trials
from conftest import Launched, Launcher
from undisturbed import (
    COMMAND,
    Undisturbed,
    check_message,
    check_runs,
    check_store,
    computing,
    last_launch,
    store_of,
    temporary,
    wait_until,
)

pytestmark = pytest.mark.faults

SUBJECT = "Disks"
HELD = """
one message that names the place, an exit code other than 0, no traceback; the store is whole and has no temporary
folder; no run has a metrics.json other than that of an undisturbed launch; and once there is room, the same command
ends with 0 and the bytes of an undisturbed launch. A launch for which the disk is just large enough ends with 0, and
then has written every file.
"""

PAGE = 4096
FULL = ("No space left", "MiB free", "cannot be written")
MAY_MOUNT = sys.platform.startswith("linux") and os.geteuid() == 0
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner") if MAY_MOUNT else ()
"""So that permissions bind root, too."""


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of its own at a folder."""
    if not MAY_MOUNT:
        pytest.skip("needs root on Linux, who may mount small disks")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True)


def fill(folder: Path) -> Path:
    """Take all that is free; remove the file to give it back."""
    filler = folder / ".filler"
    with filler.open("wb", buffering=0) as file:  # what a buffer still has fails once more when it is closed
        try:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)
            while True:
                file.write(b"x" * PAGE)
        except OSError:
            pass
    return filler


@pytest.fixture
def store(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """A store that has everything."""
    return shutil.copytree(store_of(undisturbed.done.cwd), tmp_path / "store")


def ended(launcher: Launcher, folder: Path, *more: str, prefix: Sequence[str] = ()) -> Launched:
    return launcher.end(launcher.start(folder, *COMMAND, *more, prefix=prefix), folder, check=False)


def check_ended(done: Launched, undisturbed: Undisturbed, *places: Path) -> None:
    """It failed with a message that names one of the places; or it went well and everything is there."""
    check_runs(done.cwd, undisturbed)
    if done.returncode == 0:
        wanted = {path.relative_to(undisturbed.done.folder) for path in undisturbed.done.folder.rglob("*")}
        found = {path.relative_to(done.folder) for path in done.folder.rglob("*")}
        assert wanted - found == set(), "it ended with 0 and lacks " + ", ".join(map(str, sorted(wanted - found)))
        short = [name for name in wanted if (done.folder / name).is_file() and size(done.folder / name) == 0]
        assert [name for name in short if size(undisturbed.done.folder / name)] == [], (
            "it ended with 0, a file is empty"
        )
        return
    check_message(done)
    assert any(word in done.stderr for word in (*map(str, places), *FULL, "multirun")), done.stderr


def size(path: Path) -> int:
    return path.stat().st_size


# ------------------------------------------------------------------------------------------------- multirun/


@pytest.mark.parametrize(
    ("kind", "sizes", "options"),
    [
        ("of so many pages of 4 KiB", (1, 3, 6, 12, 20, 30, 60), "size={0}k"),
        ("of so many inodes", (2, 3, 5, 8, 12, 16, 40), "size=4m,nr_inodes={0}"),
    ],
    ids=["full", "inodes"],
)
def test_a_small_disk_for_the_runs(
    trials: Trials,
    launcher: Launcher,
    undisturbed: Undisturbed,
    store: Path,
    tmp_path: Path,
    kind: str,
    sizes: Sequence[int],
    options: str,
) -> None:
    for count in sizes:
        with (
            trials(f"multirun/ on a disk {kind}: {sizes[0]} to {sizes[-1]}", count),
            disk(tmp_path / "here", options.format(4 * count if "k" in options else count)) as here,
        ):
            check_ended(ended(launcher, here, f"store.dir={store}"), undisturbed, here)
            check_store(store)
            assert temporary(store) == []


def test_a_disk_for_the_runs_that_fills_meanwhile(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with disk(tmp_path / "here", "size=8m") as here:
        for stage in ("sft", "rlhf", "evaluate"):
            with trials("multirun/ on a disk that fills while a stage computes", stage):
                process = launcher.start(here, *COMMAND, f"store.dir={store}")
                wait_until(lambda stage=stage: computing(store, stage), process)
                filler = fill(here)
                done = launcher.end(process, here, check=False)
                filler.unlink()
                check_ended(done, undisturbed, here)
                assert done.returncode != 0
                check_store(store)
                assert temporary(store) == []
        with trials("the same command once there is room"):
            done = ended(launcher, here, f"store.dir={store}")
            check_ended(done, undisturbed)
            assert done.returncode == 0


@pytest.mark.parametrize("kind", ["read-only", "forbidden", "a file"])
def test_runs_cannot_be_written(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, store: Path, tmp_path: Path, kind: str
) -> None:
    rows = {"read-only": "multirun/ on a read-only disk", "forbidden": "multirun/ without permission to write"}
    with trials(rows.get(kind, "a file in the place of multirun/")), place(tmp_path / "here", kind) as here:
        done = ended(launcher, here, f"store.dir={store}", prefix=WITHOUT_RIGHTS if kind == "forbidden" else ())
        assert done.returncode != 0
        check_ended(done, undisturbed, here)
        check_store(store)


@contextmanager
def place(here: Path, kind: str) -> Iterator[Path]:
    """A folder in which multirun/ cannot be written to."""
    if kind == "read-only":
        with disk(here, "size=1m"):
            (here / "multirun").mkdir()
            remount(here, "ro")
            yield here
        return
    here.mkdir()
    if kind == "forbidden":
        (here / "multirun").mkdir(mode=0o555)
    else:
        (here / "multirun").write_text("")
    yield here


# ------------------------------------------------------------------------------------------------- the store


def test_a_disk_of_the_store_that_fills(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with disk(tmp_path / "multirun" / "store", "size=260m") as store:
        for stage in ("data", "sft", "rlhf", "demonstrations", "features", "irl", "refinetune", "evaluate"):
            with trials("the store on a disk that fills while a stage computes", stage):
                process = launcher.start(tmp_path, *COMMAND)
                wait_until(lambda stage=stage: computing(store, stage), process)
                os.killpg(process.pid, signal.SIGSTOP)  # a stage may be quicker than a disk
                filler = fill(store)
                os.killpg(process.pid, signal.SIGCONT)
                done = launcher.end(process, tmp_path, check=False)
                filler.unlink()
                check_message(done, str(store))
                check_store(store)
                assert temporary(store) == []
                check_runs(tmp_path, undisturbed)
        with trials("the same command once there is room"):
            undisturbed.check(ended(launcher, tmp_path))


def test_a_disk_of_the_store_without_inodes(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with disk(tmp_path / "multirun" / "store", "size=260m,nr_inodes=4") as store:
        for count in (4, 20, 50):
            with trials("the store on a disk of 4 to 50 inodes (it needs about 100)", count):
                remount(store, f"nr_inodes={count}")
                check_message(ended(launcher, tmp_path), str(store))
                check_store(store)
                assert temporary(store) == []
                check_runs(tmp_path, undisturbed)
        with trials("the same command once there are inodes"):
            remount(store, "nr_inodes=1000")
            undisturbed.check(ended(launcher, tmp_path))


@pytest.mark.parametrize("kind", ["too small", "read-only", "forbidden"])
def test_a_store_that_cannot_be_written(trials: Trials, launcher: Launcher, tmp_path: Path, kind: str) -> None:
    """Known before anything is computed: nothing may be left."""
    rows = {
        "too small": "the store on a disk with less than 200 MiB",
        "read-only": "the store on a read-only disk",
        "forbidden": "the store without permission to write",
    }
    with trials(rows[kind]), store_place(tmp_path / "elsewhere", kind) as store:
        done = ended(launcher, tmp_path, f"store.dir={store}", prefix=WITHOUT_RIGHTS if kind == "forbidden" else ())
        check_message(done, str(store))
        assert list(tmp_path.glob("multirun/*")) == []


@contextmanager
def store_place(folder: Path, kind: str) -> Iterator[Path]:
    if kind == "forbidden":
        folder.mkdir(mode=0o555)
        yield folder
        return
    with disk(folder, "size=20m" if kind == "too small" else "size=260m"):
        if kind == "read-only":
            remount(folder, "ro")
        yield folder


# ------------------------------------------------------------------------------------------------- the page


def test_a_disk_that_fills_before_the_page(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, store: Path, tmp_path: Path
) -> None:
    """The runs are complete by then: they stay, and what is missing is said."""
    command = (f"store.dir={store}", "irl.seed=0,1", "until=irl", "report=true")
    for file in ("1/metrics.json", "report"):
        with (
            trials("multirun/ full before or while the page of two jobs is written", file),
            disk(tmp_path / "here", "size=32m") as here,
        ):
            process = launcher.start(here, *COMMAND, *command)
            wait_until(lambda file=file, here=here: list(here.glob(f"multirun/chain/*/{file}")), process)
            fill(here)
            done = launcher.end(process, here, check=False)
            assert "Traceback" not in done.stdout + done.stderr, done.stderr[-500:]
            said = "not written" in done.stdout or done.returncode != 0
            written = [path for path in last_launch(here).rglob("report/*") if path.is_file()]
            pages = [path for path in written if path.name == "index.html"]
            assert all(page.read_text().rstrip().endswith("</html>") for page in pages), "half a page"
            assert said or (pages and all(map(size, written))), "it is silent about a page that is not whole"

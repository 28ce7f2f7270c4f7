"""Full, read-only and closed places of runs: one message, and nothing that looks complete and is not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Launched, Launcher

from irl_exp.launch.run import RESULTS
from irl_exp.launch.writing import WriteError, check_writable, writing

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount("size=1m", ...)`: a file system of its own in memory; mounted again with other options, the same one."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs to be allowed to mount a file system")
        return folder

    yield mounted
    while folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, left: int = 0) -> None:
    """Leave so many bytes free."""
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - left)))


def use_up_files(folder: Path, left: int = 0) -> None:
    """Leave room for so many files."""
    (folder / "used").mkdir()
    for number in range(os.statvfs(folder).f_favail - left):
        (folder / "used" / str(number)).touch()


# ------------------------------------------------------------------------------------------- before a launch


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "multirun" / "chain" / "0", least=1)
    assert list((tmp_path / "multirun" / "chain" / "0").iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (fill, "No space left on device"),
        (use_up_files, "room for 0 more files"),
        (lambda disk: subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True), "Read-only file system"),
        (lambda disk: (disk / "multirun").touch(), "Not a directory"),
    ],
    ids=["full", "no files left", "read-only", "a file"],
)
def test_a_place_that_takes_no_file_is_refused_before_the_work(
    mount: Mount, spoil: Callable[[Path], object], told: str
) -> None:
    disk = mount("size=1m", "nr_inodes=64")
    spoil(disk)
    before = sorted(path.name for path in disk.iterdir())
    with pytest.raises(WriteError, match=told) as caught:
        check_writable(disk / "multirun" / "chain" / "0", least=1)
    assert str(disk / "multirun" / "chain" / "0") in str(caught.value)
    assert "start the launch in another folder" in str(caught.value)
    assert sorted(path.name for path in disk.iterdir()) == before


def test_a_place_with_too_little_space_is_refused_before_the_work(mount: Mount) -> None:
    disk = mount("size=512k")
    with pytest.raises(WriteError, match=r"has 0 MiB free.* and needs 1 MiB"):
        check_writable(disk / "multirun")
    assert list(disk.iterdir()) == []


# --------------------------------------------------------------------------------------------- while it works


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), WriteError),
        (ValueError("not the disk"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_halves_do_not_stay_whatever_happens(tmp_path: Path, error: BaseException, raised: type[BaseException]) -> None:
    def write() -> None:
        for name in ("runs.csv", "notes.txt"):
            (tmp_path / name).write_text("job,over")
        raise error

    with pytest.raises(raised), writing(tmp_path, "runs.csv", "summary.md"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_library_makes_of_an_error_of_the_disk_is_understood(tmp_path: Path) -> None:
    def write() -> None:
        try:
            raise OSError(errno.EACCES, "Permission denied")
        except OSError as error:
            raise ValueError("Unable to configure handler 'file'") from error

    with pytest.raises(WriteError, match=rf"^{tmp_path} cannot be written \(Permission denied; "), writing(tmp_path):
        write()


def test_an_error_that_says_already_what_it_means_stays(tmp_path: Path) -> None:
    """A stage that has lost a connection is no disk that is full."""

    def fail() -> None:
        raise WriteError("elsewhere") from ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(WriteError, match=r"^elsewhere$"), writing(tmp_path):
        fail()


def test_a_disk_without_files_left_fails_the_launch_and_leaves_no_half(
    warm_store: Path, launcher: Launcher, mount: Mount
) -> None:
    """It takes the folder of the launch, and a part of the job."""
    disk = mount("size=64m", "nr_inodes=200")
    store = shutil.copytree(warm_store, disk.parent / "store")
    use_up_files(disk, 14)
    done = launcher(disk, "scale=tiny", "tracking=none", "workers=1", f"store.dir={store}", check=False)
    assert_no_half(done, disk)
    assert "more files)" in done.stderr


def assert_no_half(done: Launched, disk: Path) -> None:
    """One message, and of what would look complete all or nothing."""
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert "Traceback" not in told
    assert "Logging error" not in told
    (folder,) = disk.glob("multirun/chain/*")
    found = {path.name for path in [*folder.iterdir(), *(folder / "0").iterdir()]}
    assert found & {"runs.csv", "summary.md", *RESULTS} == set()

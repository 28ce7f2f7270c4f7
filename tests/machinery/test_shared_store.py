"""A store that several hosts share: stopped, killed and returning owners, locks that are missing or seen by one alone.

The hosts are processes of one machine (builder.py), or two mounts of one folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builder import IDENTITIES

from irl_exp.machinery import store as room
from irl_exp.machinery.store import Store

LEASE = 0.6
PROGRAM = Path(__file__).with_name("builder.py")
IDENTITY = IDENTITIES[0]
PATIENCE = 40.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


class Hosts:
    """Processes that want the same artifacts of one store."""

    def __init__(self, folder: Path) -> None:
        self.store, self.log, self.lease = Store(folder / "store"), folder / "log", LEASE
        self.store.root.mkdir()
        self.log.mkdir()
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *how: str, way: str = "get", root: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(root or self.store.root), str(self.log), way, *how],
            env={**os.environ, "IRL_EXP_LEASE": str(self.lease)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def owner(self, *how: str, way: str = "get", root: Path | None = None) -> subprocess.Popen[str]:
        """One that has begun to compute."""
        process = self.start(*how, way=way, root=root)
        wait_for((self.log / f"began-{process.pid}").exists)
        return process

    def began(self, process: subprocess.Popen[str]) -> int:
        """How often it has begun to compute."""
        path = self.log / f"began-{process.pid}"
        return len(path.read_text()) if path.exists() else 0

    def go(self, process: subprocess.Popen[str] | None = None) -> None:
        (self.log / (f"go-{process.pid}" if process else "go")).touch()

    def end(self, process: subprocess.Popen[str], *said: tuple[str, subprocess.Popen[str]]) -> None:
        """It ends well, with whole artifacts, made or reused, by these processes."""
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert out.splitlines() == [f"{how} {who.pid} by first sub/second" for how, who in said], err

    def check(self, count: int = 1) -> None:
        """The store has the whole artifacts and nothing else."""
        assert all(self.store.find(identity) for identity in IDENTITIES[:count])
        names = {path.name for path in (self.store.root / "irl").iterdir() if path.suffix != ".lock"}
        assert names == {identity.digest for identity in IDENTITIES[:count]}
        assert [path.name for path in self.store.root.iterdir()] == ["irl"]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    found = Hosts(tmp_path)
    yield found
    for process in found.running:
        if process.poll() is None:
            process.kill()
            process.communicate()


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)


def goes_on(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)


# ----------------------------------------------------------------------------------------- stopped owners


@pytest.mark.parametrize("how", [(), ("enosys",), ("unshared",)], ids=["locks", "no locks", "locks of its own"])
@pytest.mark.parametrize("way", ["get", "make"])
def test_who_waits_for_a_stopped_owner_takes_over(hosts: Hosts, way: str, how: tuple[str, ...]) -> None:
    """And the owner, when it comes back, takes what is there and harms nothing."""
    count = 3 if way == "make" else 1
    owner = hosts.owner(*how, way=way)
    stop(owner)
    start = time.monotonic()
    other = hosts.start(*how, way=way)
    hosts.go()
    hosts.end(other, *[("made", other)] * count)
    assert time.monotonic() - start > (0 if "unshared" in how else LEASE)
    published = [(hosts.store.folder(identity) / "manifest.json").read_bytes() for identity in IDENTITIES[:count]]
    goes_on(owner)
    hosts.end(owner, *[("reused", other)] * count)
    hosts.check(count)
    assert published == [
        hosts.store.folder(identity).joinpath("manifest.json").read_bytes() for identity in IDENTITIES[:count]
    ]


def test_an_owner_that_was_forgotten_is_out(hosts: Hosts) -> None:
    """Stopped for three leases: its folder is gone. A half that it writes there afterwards is not published."""
    owner = hosts.owner()
    stop(owner)
    time.sleep(3 * LEASE)
    other = hosts.owner()
    assert len(list(hosts.store.root.glob("irl/.*.tmp-*"))) == 1
    hosts.go(owner)
    goes_on(owner)
    wait_for((hosts.log / f"waits-{owner.pid}").exists)
    hosts.go(other)
    hosts.end(other, ("made", other))
    hosts.end(owner, ("reused", other))
    hosts.check()


def test_an_owner_that_was_forgotten_computes_again_where_nobody_else_did(hosts: Hosts) -> None:
    owner = hosts.owner()
    stop(owner)
    time.sleep(3 * LEASE)
    other = hosts.owner()
    other.kill()
    other.communicate()
    hosts.go()
    goes_on(owner)
    hosts.end(owner, ("made", owner))
    assert hosts.began(owner) == 2
    hosts.check()


def test_who_was_not_silent_for_three_leases_keeps_its_folder(hosts: Hosts) -> None:
    owner = hosts.owner()
    stop(owner)
    other = hosts.owner()
    assert len(list(hosts.store.root.glob("irl/.*.tmp-*"))) == 2
    goes_on(owner)
    hosts.go(owner)
    hosts.end(owner, ("made", owner))
    hosts.go()
    hosts.end(other, ("reused", owner))  # it was later
    assert hosts.began(owner) == 1
    hosts.check()


def test_what_is_being_removed_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner comes back and publishes while another process, which had forgotten it, has removed half of its work."""
    from irl_exp.machinery import heartbeat

    store, replace, computed = Store(tmp_path), os.replace, []

    def meanwhile(source: Path, target: Path) -> None:
        if target == store.folder(IDENTITY) and len(computed) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(heartbeat.Sign, "is_forgotten", lambda sign, now: True)
                patch.setattr(shutil, "rmtree", lambda folder, **_: (folder / "first").unlink())
                patch.setattr(os, "replace", replace)
                store.tidy([IDENTITY])
        replace(source, target)

    def compute(folder: Path) -> None:
        computed.append(folder)
        (folder / "first").write_text("a")

    monkeypatch.setattr(os, "replace", meanwhile)
    store.get(IDENTITY, compute)
    assert len(computed) == 2
    assert store.find(IDENTITY)


# ------------------------------------------------------------------------------- locks that tell nothing


def test_an_owner_that_is_killed_on_another_host_without_locks(hosts: Hosts) -> None:
    owner = hosts.start("enosys", "elsewhere", "dies")
    owner.communicate()
    assert owner.returncode == -signal.SIGKILL
    other = hosts.start("enosys")
    hosts.go()
    hosts.end(other, ("made", other))
    assert (hosts.log / f"waits-{other.pid}").exists()
    hosts.store.tidy([IDENTITY])  # nobody can tell that it is dead, until it is forgotten
    assert len(list(hosts.store.root.glob("irl/.*.tmp-*"))) == 1
    time.sleep(3 * LEASE)
    hosts.store.tidy([IDENTITY])
    assert not list(hosts.store.root.glob("irl/.*.tmp-*"))


def test_an_owner_that_is_killed_here_without_locks_is_replaced_at_once(hosts: Hosts) -> None:
    hosts.lease = 600.0
    hosts.start("enosys", "dies").communicate()
    other = hosts.start("enosys")
    hosts.go()
    hosts.end(other, ("made", other))
    hosts.check()


@pytest.mark.parametrize("first", [("enosys",), ()], ids=["the first", "the second"])
def test_one_host_without_locks_waits_and_is_waited_for(hosts: Hosts, first: tuple[str, ...]) -> None:
    hosts.lease = 1.2
    owner = hosts.owner(*first)
    other = hosts.start(*([] if first else ["enosys"]))
    wait_for((hosts.log / f"waits-{other.pid}").exists)
    time.sleep(1.5 * hosts.lease)
    hosts.go()
    hosts.end(owner, ("made", owner))
    hosts.end(other, ("reused", owner))
    hosts.check()


def test_without_any_locks_one_computes_and_the_others_wait(hosts: Hosts) -> None:
    hosts.lease = 20.0
    owner = hosts.owner("enosys", "elsewhere")
    others = [hosts.start("enosys") for _ in range(2)]
    for other in others:
        wait_for((hosts.log / f"waits-{other.pid}").exists)
    hosts.go()
    hosts.end(owner, ("made", owner))
    for other in others:
        hosts.end(other, ("reused", owner))
    hosts.check()


@pytest.mark.parametrize("way", ["get", "make"])
def test_where_locks_are_not_shared_both_compute_and_one_publishes(hosts: Hosts, way: str) -> None:
    hosts.lease = 20.0
    owner, other = (hosts.owner("unshared", way=way) for _ in range(2))
    count = 3 if way == "make" else 1
    hosts.go(other)
    hosts.end(other, *[("made", other)] * count)
    hosts.go()
    hosts.end(owner, *[("reused", other)] * count)
    hosts.check(count)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[list[Path]]:
    """Two mounts of one folder, as two hosts have them: a lock that one takes is not seen in the other."""
    if not (shutil.which("bindfs") and shutil.which("fusermount")):
        pytest.skip("needs bindfs")
    shared = tmp_path / "shared"
    found = [tmp_path / "mounts" / name for name in ("one", "two")]
    shared.mkdir()
    mounted = []
    try:
        for place in found:
            place.mkdir(parents=True)
            done = subprocess.run(["bindfs", shared, place], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"bindfs cannot mount here: {done.stderr.strip()}")
            mounted.append(place)
        yield found
    finally:
        for place in mounted:
            subprocess.run(["fusermount", "-u", "-z", place], check=True)


def test_two_mounts(hosts: Hosts, mounts: list[Path], tmp_path: Path) -> None:
    hosts.store = Store(tmp_path / "shared")
    owner, stopped = (hosts.owner(root=mount) for mount in mounts)
    stop(stopped)
    waiting = hosts.start(root=mounts[0])
    wait_for((hosts.log / f"waits-{waiting.pid}").exists)
    hosts.go()
    hosts.end(owner, ("made", owner))
    hosts.end(waiting, ("reused", owner))
    goes_on(stopped)
    hosts.end(stopped, ("reused", owner))
    hosts.check()


# --------------------------------------------------------------------------------------------- heartbeats


def test_an_owner_that_computes_outside_of_python_is_alive(hosts: Hosts) -> None:
    hosts.lease = 1.2
    owner = hosts.owner("enosys", "busy")
    other = hosts.start("enosys")
    hosts.go(owner)
    hosts.end(owner, ("made", owner))
    hosts.end(other, ("reused", owner))
    assert hosts.began(other) == 0


def test_an_owner_that_keeps_the_interpreter_costs_double_work_alone(hosts: Hosts) -> None:
    owner = hosts.owner("rude")
    other = hosts.start()
    hosts.go()
    hosts.end(other, ("made", other))
    hosts.end(owner, ("reused", other))
    hosts.check()


def test_a_beat_is_rewritten_four_times_a_lease(tmp_path: Path) -> None:
    from irl_exp.machinery import heartbeat

    with heartbeat.Beat(tmp_path / "beat", 0.4, locked=True) as beat:
        texts = set()
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            sign = heartbeat.read(beat.path)
            assert sign is not None
            assert not sign.is_gone()
            assert sign.owner.startswith(f"process {os.getpid()} on ")
            texts.add(sign.text)
            time.sleep(0.01)
        assert 6 <= len(texts) <= 13
        assert len({len(text) for text in texts}) == 1
        beat.path.unlink()
        assert not beat.beat()
        assert not beat.path.exists()


def test_silence_is_counted_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped together with the owner does not take it for dead."""
    from irl_exp.machinery import heartbeat

    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])

    def silent(seconds: float, text: str = "") -> bool:
        now[0] += seconds
        return heartbeat.is_silent(tmp_path, heartbeat.Sign(text, 0.0), 10.0)

    monkeypatch.setenv("IRL_EXP_LEASE", "10")
    assert [silent(2) for _ in range(6)] == [False] * 5 + [True]
    assert not silent(1, "another beat")
    assert not silent(1000, "another beat")
    assert [silent(2.5, "another beat") for _ in range(3)] == [False, False, True]


def test_a_process_that_has_another_number_is_not_the_owner(tmp_path: Path) -> None:
    from irl_exp.machinery import heartbeat

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with heartbeat.Beat(tmp_path / "beat", 10, locked=True) as beat:
        text = beat.path.read_text()

    def is_gone(text: str) -> bool:
        return heartbeat.Sign(text, 0.0).is_gone()

    assert not is_gone(text)
    other = text.replace(f'"process": {os.getpid()}', f'"process": {process.pid}')
    if sys.platform == "linux":
        assert is_gone(other)  # its number now belongs to a process that was started later
    process.kill()
    if sys.platform == "linux":
        wait_for(lambda: is_gone(other))  # and which nobody has buried
    process.wait()
    assert is_gone(other)
    assert not is_gone(other.replace('"machine": "', '"machine": "another '))
    for nonsense in ("", "{", "[]", '{"process": "1"}', text.replace(str(os.getpid()), "null")):
        assert not is_gone(nonsense)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "minutes"])
def test_a_lease_that_is_no_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("IRL_EXP_LEASE", text)
    with pytest.raises(Exception, match=f"^IRL_EXP_LEASE={text} is not a number of seconds above 0"):
        Store(tmp_path)


@pytest.mark.parametrize(("age", "stays"), [(100.0, True), (250.0, False)])
def test_what_other_hosts_left_stays_for_three_leases_by_the_clock_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, stays: bool
) -> None:
    """Folders of programs that did not beat, too."""
    from irl_exp.machinery import heartbeat

    monkeypatch.setenv("IRL_EXP_LEASE", "60")
    store, server = Store(tmp_path), time.time() - 10**6  # its clock is late
    monkeypatch.setattr(room, "clock", lambda folder: server)
    (tmp_path / "irl").mkdir()
    with heartbeat.Beat(tmp_path / ".0123.beat", 60, locked=True) as beat:
        text = beat.path.read_text().replace('"machine": "', '"machine": "another ')
    beat.path.write_text(text)
    left = [tmp_path / "irl" / f".{IDENTITY.digest}.tmp-{builder}" for builder in ("0123", "4567")]
    for folder in left:
        folder.mkdir()
        (folder / "file").touch()
    for path in (beat.path, *left, *(folder / "file" for folder in left)):
        os.utime(path, (server - age, server - age))
    store.get(IDENTITY, lambda folder: None)
    assert [path.exists() for path in (*left, beat.path)] == [stays] * 3

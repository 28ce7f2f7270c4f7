"""W&B servers that refuse, hang, die and answer nonsense, each met by a launch with an account for it."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from campaign import Trials
from conftest import Launched, Launcher
from undisturbed import COMMAND, Undisturbed, last_launch, store_of, told
from wandb_server import wandb_server

pytestmark = pytest.mark.faults

SUBJECT = "W&B servers"
HELD = """
the launch ends with 0 within 240 s (two timeouts), its metrics.json is byte for byte that of an undisturbed launch and
its metrics.jsonl as long; at most two warnings, none with a traceback or the key; and the run lies on the disk for
`wandb sync`, or arrived as a whole.
"""

KEY = "0123456789abcdef" * 2 + "01234567"
LIMIT = 240.0
ONLINE = (*COMMAND, "tracking=wandb")


@contextmanager
def server(reply: Callable[[socket.socket], object]) -> Iterator[str]:
    """The address of a server that does this with every connection."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        def handle(connection: socket.socket) -> None:
            with connection:
                try:
                    if reply(connection) is HANG:
                        ended.wait()
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


HANG = object()


def answers(status: str, body: bytes, kind: str = "application/json") -> Callable[[socket.socket], object]:
    def reply(connection: socket.socket) -> None:
        connection.settimeout(5)
        connection.recv(1 << 16)
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body)

    return reply


def hangs(connection: socket.socket) -> object:
    return HANG


def begins_and_hangs(connection: socket.socket) -> object:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    return HANG


def hangs_up(connection: socket.socket) -> None:
    connection.recv(1 << 16)


SERVERS: dict[str, Callable[[socket.socket], object]] = {
    "takes connections and says nothing": hangs,
    "begins to answer and hangs": begins_and_hangs,
    "hangs up on every request": hangs_up,
    "answers 500": answers("500 Internal Server Error", b'{"error": "no"}'),
    "answers 401": answers("401 Unauthorized", b'{"error": "api key invalid"}'),
    "answers 403": answers("403 Forbidden", b'{"error": "no"}'),
    "answers a page in place of JSON": answers("200 OK", b"<html>please log in</html>", "text/html"),
    "answers JSON of another kind": answers("200 OK", b'{"data": {"viewer": 3}}'),
    "answers what is no HTTP": lambda connection: connection.sendall(b"\x00" * 1000),
}


@pytest.fixture
def store(undisturbed: Undisturbed) -> Path:
    """A store that has everything: a launch takes seconds, most of them W&B's. Nothing is written to it."""
    return store_of(undisturbed.done.cwd)


def begin(launcher: Launcher, folder: Path, store: Path, url: str) -> subprocess.Popen[str]:
    env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    return launcher.start(folder, *ONLINE, f"store.dir={store}", env=env)


def check(done: Launched, undisturbed: Undisturbed) -> None:
    assert done.returncode == 0, told(done)
    assert done.text() == undisturbed.metrics[0]
    curves, wanted = (launch / "0" / "metrics.jsonl" for launch in (done.folder, undisturbed.done.folder))
    assert len(curves.read_text().splitlines()) == len(wanted.read_text().splitlines())
    assert "Traceback" not in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr, "the key is shown"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 2, f"{len(lines)} warnings: {done.stderr[:500]}"
    assert list(last_launch(done.cwd).glob("0/wandb/*run-*/*.wandb")), "no record to be uploaded later"


def test_a_server_that_does_not_do_its_work(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, store: Path, tmp_path: Path
) -> None:
    """Four launches at once: they wait most of the time."""
    for names in [list(SERVERS)[start : start + 4] for start in range(0, len(SERVERS), 4)]:
        with ExitStack() as servers:
            started = time.monotonic()
            running = {
                name: begin(launcher, tmp_path / name, store, servers.enter_context(server(SERVERS[name])))
                for name in names
            }
            for name, process in running.items():
                with trials("a server that hangs, hangs up, or answers with an error or nonsense", name):
                    done = launcher.end(process, tmp_path / name, check=False)
                    assert time.monotonic() - started < LIMIT
                    check(done, undisturbed)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://127.0.0.1:9"])
def test_a_server_that_is_not_there(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, store: Path, tmp_path: Path, url: str
) -> None:
    with trials("a server that refuses connections, or a name that leads nowhere", url):
        check(launcher.end(begin(launcher, tmp_path, store, url), tmp_path, check=False), undisturbed)


@pytest.mark.parametrize("requests", [1, 6, 12])
def test_a_server_that_dies(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, store: Path, tmp_path: Path, requests: int
) -> None:
    with trials("a server that works and dies after 1 to 12 requests", requests):
        with wandb_server() as working:
            process = begin(launcher, tmp_path, store, working.url)
            deadline = time.monotonic() + 100
            while len(working.requests) < requests and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
        check(launcher.end(process, tmp_path, check=False), undisturbed)


def test_a_server_that_works(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, store: Path, tmp_path: Path
) -> None:
    """So that the others fail for their own reasons."""
    with trials("a server that works, to compare with"), wandb_server() as working:
        done = launcher.end(begin(launcher, tmp_path, store, working.url), tmp_path, check=False)
        assert done.returncode == 0, told(done)
        assert done.stderr == ""
        assert done.text() == undisturbed.metrics[0]
        assert working.only_run().exit_code == 0

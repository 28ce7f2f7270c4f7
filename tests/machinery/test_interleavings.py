"""Three hosts that want the same artifact, in every order of their steps that is drawn."""

from __future__ import annotations

import fcntl
import random
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from builder import IDENTITIES

from irl_exp.machinery import heartbeat
from irl_exp.machinery import store as room
from irl_exp.machinery.store import Store

IDENTITY = IDENTITIES[0]
STEPS = (room.__file__, shutil.__file__)


class Interleaved:
    """Threads that stand for hosts: at a line of the store, or of a removal, one that is drawn goes on."""

    def __init__(self, seed: int, count: int, watch: Callable[[], None]) -> None:
        self.random, self.watch = random.Random(seed), watch
        self.turns = [threading.Semaphore(0) for _ in range(count)]
        self.living = list(range(count))
        self.failed: list[BaseException] = []

    def run(self, work: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=self._live, args=(number, work)) for number in self.living]
        for thread in threads:
            thread.start()
        self._next()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        if self.failed:
            raise self.failed[0]

    def _next(self) -> None:
        if self.living:
            self.turns[self.random.choice(self.living)].release()

    def _live(self, number: int, work: Callable[[int], None]) -> None:
        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename not in STEPS or frame.f_code.co_name in ("_canonical", "digest"):
                return None
            if event == "line" and self.random.random() < 0.3:
                self._next()
                self.turns[number].acquire()
                self.watch()
            return trace

        self.turns[number].acquire()
        sys.settrace(trace)
        try:
            work(number)
        except BaseException as error:
            self.failed.append(error)
        finally:
            sys.settrace(None)
            self.living.remove(number)
            self._next()


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 200), marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("damaged", [False, True], ids=["nothing there", "damaged"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["in time", "each takes the others for dead"])
def test_whatever_comes_before_what_all_have_one_whole_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool, forgotten: bool, seeds: range
) -> None:
    """Three hosts whose locks tell nothing; a whole result stays, of which nobody ever sees a half.

    Where two repair the same damage at the very same time, one may have to put back what the other has published.
    """
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(room, "_fsync", lambda path: None)
    monkeypatch.setattr(heartbeat.Beat, "_go_on", lambda beat: None)
    if forgotten:
        monkeypatch.setattr(heartbeat.Sign, "is_forgotten", lambda sign, now: chance.random() < 0.3)
    for seed in seeds:
        chance = random.Random(seed)
        store = Store(tmp_path / str(seed))
        final = store.folder(IDENTITY)
        if damaged:
            store.get(IDENTITY, lambda folder: (folder / "by").write_text("x") and None)
            (final / "by").write_text("y")
        whole: list[tuple[int, bytes]] = []

        def watch(final: Path = final, whole: list[tuple[int, bytes]] = whole) -> None:
            path = final / "manifest.json"
            if whole and not damaged:
                assert (final.stat().st_ino, path.read_bytes()) == whole[0]
            elif path.exists() and (final / "by").read_text() != "y":
                whole.append((final.stat().st_ino, path.read_bytes()))
                room._check_files(final, room.read_manifest(final), checksums=True)

        def work(number: int, store: Store = store) -> None:
            def compute(folder: Path) -> None:
                (folder / "first").write_text("a")
                (folder / "sub").mkdir(parents=True, exist_ok=True)
                (folder / "by").write_text(str(number))

            found = store.get(IDENTITY, compute)
            assert set(found.manifest["files"]) == {"first", "by"}

        Interleaved(seed, 3, watch).run(work)
        assert whole
        assert store.find(IDENTITY)

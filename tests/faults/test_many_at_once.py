"""Several launches at once on an empty store: each stage is computed once, by whoever is first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from campaign import Trials
from conftest import Launched, Launcher
from undisturbed import (
    COMMAND,
    STAGES,
    Undisturbed,
    artifacts,
    check_store,
    computing,
    kill,
    store_of,
    temporary,
    told,
    wait_until,
)

pytestmark = pytest.mark.faults

SUBJECT = "Six launches at once on an empty store"
HELD = """
every launch that is left alone ends with 0 and with the metrics.json of an undisturbed launch; over all of them each
stage was computed once and reused by the others (one more time where its builder was killed); the store has each file
of an undisturbed one byte for byte, and no temporary folder.
"""

SIX = 6
LATER = {"candidates", "explain", "refinetune"}
"""Stages after irl, but for evaluate and what it needs."""


def ends(launcher: Launcher, folder: Path, *, kill_at: str | None) -> list[Launched]:
    """Start six; kill one of those that compute, and let the others end."""
    processes = [launcher.start(folder, *COMMAND) for _ in range(SIX)]
    if kill_at is not None:
        wait_until(lambda: computing(store_of(folder), kill_at), processes[0])
        builder = next(process for process in processes if is_builder(process.pid, store_of(folder), kill_at))
        kill(builder)
        processes.remove(builder)
    return [launcher.end(process, folder, check=False) for process in processes]


def is_builder(process: int, store: Path, stage: str) -> bool:
    """Whether it holds the lock of the stage: all have the file open, one has it locked."""
    locks = Path("/proc/locks").read_text().splitlines()
    inodes = {path.stat().st_ino for path in store.glob(f"{stage}/.*.lock")}
    holders = [(int(line.split()[4]), int(line.split()[5].split(":")[2])) for line in locks if "->" not in line]
    return any(holder == process and inode in inodes for holder, inode in holders)


@pytest.mark.parametrize("kill_at", [None, "sft"], ids=["left alone", "builder killed"])
def test_six_at_once(
    trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path, kill_at: str | None
) -> None:
    row = "the same command six times at once"
    row = row if kill_at is None else f"{row}, the one that computes sft killed"
    done = ends(launcher, tmp_path, kill_at=kill_at)
    for number, one in enumerate(done):
        with trials(row, number):
            assert one.returncode == 0, told(one)
            assert one.text() == undisturbed.metrics[0]
            assert set(one.states()) == set(STAGES)
    with trials(f"{row}: what was computed, and the store"):
        computed = Counter(stage for one in done for stage, state in one.states().items() if state == "computed")
        before = STAGES[: STAGES.index(kill_at)] if kill_at else ()
        assert [stage for stage in STAGES if stage not in before and computed[stage] != 1] == []
        assert [stage for stage in before if computed[stage] > 1] == []
        check_store(store_of(tmp_path))
        assert temporary(store_of(tmp_path)) == []
        assert len(artifacts(store_of(tmp_path))) == len(STAGES)
        undisturbed.check(done[0])


def test_six_seeds_at_once(trials: Trials, launcher: Launcher, undisturbed: Undisturbed, tmp_path: Path) -> None:
    processes = [launcher.start(tmp_path, *COMMAND, "until=irl", f"irl.seed={seed}") for seed in range(SIX)]
    done = [launcher.end(process, tmp_path, check=False) for process in processes]
    for seed, one in enumerate(done):
        with trials("six seeds of IRL on one expert, each a launch of its own, at once", seed):
            assert one.returncode == 0, told(one)
            assert set(one.states()) == set(STAGES) - LATER
    with trials("six seeds of IRL at once: the expert was computed once"):
        computed = Counter(stage for one in done for stage, state in one.states().items() if state == "computed")
        wanted = {**dict.fromkeys(set(STAGES) - LATER, 1), "irl": SIX, "evaluate": SIX}
        assert computed == wanted
        check_store(store_of(tmp_path))
        assert temporary(store_of(tmp_path)) == []

"""Seconds and peak memory of the chain, stage by stage and launch by launch.

    python benchmarks/chain.py             all cases (about 25 minutes on 2 cores)
    python benchmarks/chain.py --quick     without the 50-seed multirun

Each case is a whole process, timed from outside; peak memory is the largest resident size of any single process in
it. Stage figures are those that the stages themselves recorded in the store. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"


def timed(store: Path, *overrides: str) -> tuple[float, float]:
    """Run launch.py in a process of its own: wall seconds and peak MiB of its largest process."""
    program = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, sys.executable, str(LAUNCH), *overrides]
    start = time.perf_counter()
    result = subprocess.run(
        command, cwd=store, env={**os.environ, "IRL_EXP_STORE": str(store / "store")}, stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        sys.exit(f"{' '.join(overrides)} failed")
    return time.perf_counter() - start, float(result.stdout)


def stages(store: Path) -> dict[str, list[tuple[float, float]]]:
    """(seconds, MiB) of every artifact in the store, by stage, in the order of their making."""
    manifests = [json.loads(path.read_text()) for path in (store / "store").glob("*/*/manifest.json")]
    found: dict[str, list[tuple[float, float]]] = {}
    for manifest in sorted(manifests, key=lambda item: item["created"]):
        row = (manifest["seconds"], manifest["info"]["peak_mib"])
        found.setdefault(manifest["identity"]["stage"], []).append(row)
    return found


def show(title: str, seconds: float, peak: float, limit: str = "") -> None:
    print(f"{title:<58}{seconds:>9.1f} s{peak:>9.0f} MiB   {limit}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave the 50-seed multirun out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        show("--help", *timed(store, "--help"), "at most 2 s")
        show("cold: the whole chain, empty store", *timed(store), "at most 180 s")
        for stage, rows in stages(store).items():
            show(f"    {stage}", *rows[0])
        show("warm: the same again", *timed(store), "at most 15 s")
    if arguments.quick:
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        show("50 seeds, empty store", *timed(store, "seeds=fifty"), "at most 1200 s")
        for stage, rows in stages(store).items():
            seconds, peaks = zip(*rows, strict=True)
            show(f"    {stage} x {len(rows)} (sum of seconds)", sum(seconds), max(peaks))
        show("50 seeds, warm store", *timed(store, "seeds=fifty"), "at most 90 s")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"(2048 MiB is the limit of any process; this script itself: {own:.0f} MiB)")


if __name__ == "__main__":
    main()

"""What many seeds of IRL cost: the fits, together and one by one, and the jobs around them.

    python benchmarks/seeds.py             all cases (about 10 minutes on 2 cores)
    python benchmarks/seeds.py --quick     the fits alone (about 2 minutes)

Fits: CPU seconds of one process on pairs of the default size, by the default procedure. Jobs: a real multirun on a
store that holds all but the seeds' own stages, in one process, with the CPU time of each part of a job; the numbers
of a part contain those of the parts that are indented below it. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PAIRS, SELECT, FEATURES = 2000, 400, 384
ALONE = 10  # of so many fits alone the mean is taken; more are extrapolated
PARTS = {  # what a launch spends its time in: module, function, indentation
    "launch.planner._plan": 0,
    "launch.planner._announce": 0,
    "launch.obtain.run_batch": 0,
    "launch.executors._run_one": 0,
    "launch.jobs.typed": 1,
    "launch.run.run": 1,
    "chain.build": 2,
    "launch.obtain.obtain": 2,
    "stages.evaluate.run": 3,
    "stages.evaluate.reward_report": 4,
    "stages.evaluate.of_policies": 4,
    "machinery.store._seal": 3,
    "launch.run._record": 2,
    "launch.finish.finish": 0,
    "launch.finish._report": 1,
}


def fits() -> None:
    """CPU seconds of S fits."""
    import numpy as np
    import torch

    from irl_exp.config import MarginConfig
    from irl_exp.irl.heads import fit_heads
    from irl_exp.irl.methods import procedure

    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    fit, select = (generator.standard_normal((count, FEATURES)) + 0.1 for count in (PAIRS, SELECT))
    config = default_irl()
    assert isinstance(config, MarginConfig)
    how = procedure(config, config.max_norm[0])

    def seconds(seeds: range) -> float:
        start = time.process_time()
        fit_heads(fit, select, how, seeds)
        return time.process_time() - start

    seconds(range(1))  # the first touches the libraries
    alone = sum(seconds(range(seed, seed + 1)) for seed in range(ALONE)) / ALONE
    print(f"{'seeds':>6}{'together':>12}{'one by one':>14}{'times':>8}")
    for count in (1, 10, 100, 500, 1000):
        together = seconds(range(count))
        note = f"   (extrapolated from {ALONE})" if count > ALONE else ""
        print(
            f"{count:>6}{together:>10.2f} s{alone * count:>12.2f} s{alone * count / together:>8.1f}{note}", flush=True
        )


def default_irl() -> Any:
    """config.irl of the default run."""
    import hydra
    from omegaconf import OmegaConf

    from irl_exp import config
    from irl_exp.launch import command_line

    config.register()
    with hydra.initialize_config_dir(str(config.CONF), **command_line.VERSION_BASE):
        composed = hydra.compose("config", ["tracking=none"])
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return config.parse(values).irl


@contextlib.contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up the CPU seconds of each of PARTS."""
    import importlib

    originals = []
    for part in PARTS:
        module = importlib.import_module(f"irl_exp.{part.rpartition('.')[0]}")
        name = part.rpartition(".")[2]
        originals.append((module, name, getattr(module, name)))
        setattr(module, name, _timed(getattr(module, name), part, spent))
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def _timed(function: Any, part: str, spent: dict[str, float]) -> Any:
    @functools.wraps(function)
    def timed_function(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[part] = spent.get(part, 0.0) + time.process_time() - start

    return timed_function


def launch(*overrides: str) -> None:
    """launch.py in this process."""
    sys.argv = [str(ROOT / "launch.py"), "-m", "until=irl", "tracking=none", "workers=1", *overrides]
    with contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(sys.argv[0], run_name="__main__")


def jobs(count: int) -> None:
    """Where the CPU time of a launch of `count` seeds goes, per job."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["IRL_EXP_STORE"] = str(Path(folder) / "store")
        launch("irl.seed=1000000")  # all that the seeds share
        for store in ("without the seeds", "warm"):
            spent: dict[str, float] = {}
            start = time.process_time()
            with timed(spent):
                launch(f"irl.seed=range({count})")
            total = time.process_time() - start
            print(f"\n{count} jobs, store {store}: {total:.1f} CPU s, {1000 * total / count:.1f} ms a job, of which")
            for part, depth in PARTS.items():
                print(f"  {'  ' * depth + part:<40}{1000 * spent.get(part, 0.0) / count:>8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the fits alone")
    parser.add_argument("--jobs", type=int, default=100, help="jobs of the multirun (default 100)")
    arguments = parser.parse_args()
    fits()
    if not arguments.quick:
        jobs(arguments.jobs)


if __name__ == "__main__":
    main()

"""Seconds of the bounds on margins that demonstrations leave possible: all sides together, and one by one.

    OMP_NUM_THREADS=1 python benchmarks/determined.py              each loss (about ten seconds)
    OMP_NUM_THREADS=1 python benchmarks/determined.py --max-norm 3

Whitened features of experts and baselines whose best direction tells them apart with AUROC 0.9; the tolerance is the
standard error of the loss at the optimum. "Alone" is the interior-point method on a few sides, and what all would take.
Nothing here is a test.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from irl_exp.analysis import determined as room
from irl_exp.analysis.determined import Floats, Loss, programs
from irl_exp.analysis.determined.problem import Level, Pairs

LOSSES: dict[str, Loss] = {
    "max_margin": room.max_margin(correct_penalty=1.0, wrong_penalty=2.0),
    "hinge": room.hinge(target_margin=1.0),
    "bradley_terry": room.bradley_terry(temperature=1.0),
}


def differences(random: np.random.Generator, pairs: int, features: int) -> Floats:
    """(pairs, features) of two texts with unit variance; 1.81 is sqrt(2) times the normal quantile of 0.9."""
    shift = np.full(features, 1.81 / features**0.5)
    return np.asarray(2**0.5 * random.normal(size=(pairs, features)) + shift)


def alone(fitted: Floats, tests: Floats, loss: Loss, max_norm: float, tolerance: float, precision: float) -> float:
    """Seconds a side of the interior-point method, over both sides of the tests."""
    best = room.optimum(fitted, loss, max_norm=max_norm, precision=room.OPTIMUM * tolerance)
    level = Level(Pairs(fitted * max_norm, loss), best.weights / max_norm, best.loss, tolerance)
    towards = np.concatenate([tests, -tests]) / np.linalg.norm(tests, axis=1).mean()
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    start = time.perf_counter()
    for row in towards:
        programs.furthest(level, row, precision)
    return (time.perf_counter() - start) / len(towards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3500)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--max-norm", type=float, default=1.0)
    parser.add_argument("--precision", type=float, default=0.01)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    fitted, tests = (differences(random, size, options.features) for size in (options.pairs, options.tests))
    print(f"{'loss':<14}{'optimum':>10}{'together':>10}{'alone':>10}{'widest gap':>12}{'determined':>12}")
    for name, loss in LOSSES.items():
        start = time.perf_counter()
        rough = room.optimum(fitted, loss, max_norm=options.max_norm, precision=1e-3)
        best, tolerance = time.perf_counter() - start, rough.standard_error
        bounds = {"max_norm": options.max_norm, "tolerance": tolerance, "precision": options.precision}
        start = time.perf_counter()
        found = room.possible_margins(fitted, tests, loss, **bounds)
        together = time.perf_counter() - start
        each = alone(fitted, tests[:2], loss, **bounds)
        margins = tests @ found.optimum.weights
        gap = max(
            ((found.high - found.attained_high) / (found.high - margins)).max(),
            ((found.attained_low - found.low) / (margins - found.low)).max(),
        )
        print(
            f"{name:<14}{best:>8.2f} s{together:>8.2f} s{2 * each * len(tests):>8.1f} s{gap:>12.3f}"
            f"{int(found.determined.sum()):>8}/{len(tests)}",
            flush=True,
        )


if __name__ == "__main__":
    main()

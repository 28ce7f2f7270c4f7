"""Seconds of the bounds on margins that demonstrations leave possible: all sides together, and one by one.

    OMP_NUM_THREADS=1 python benchmarks/determined.py              each loss (half a minute)
    OMP_NUM_THREADS=1 python benchmarks/determined.py --max-norm 3

Whitened features of experts and baselines whose best direction tells them apart with AUROC 0.9, seven pairs a prompt.
The tolerance is the calibrated one, which "calibrate" is the time of, or the standard error of the loss at the optimum.
"Alone" is the interior-point method on a few sides, and what all would take.
Nothing here is a test.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from irl_exp import determined as room
from irl_exp.determined import Floats, Loss, Optimum, programs
from irl_exp.determined.problem import Level, Pairs

PER_PROMPT = 7
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
    parser.add_argument("--precision", type=float, default=0.03)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    fitted, tests = (differences(random, size, options.features) for size in (options.pairs, options.tests))
    print(
        f"{'loss':<14}{'tolerance / se':>16}{'optimum':>10}{'calibrate':>11}{'together':>10}{'alone':>10}"
        f"{'widest gap':>12}{'determined':>12}"
    )
    prompts = np.arange(options.pairs) // PER_PROMPT
    for name, loss in LOSSES.items():
        start = time.perf_counter()
        best = room.optimum(fitted, loss, max_norm=options.max_norm, precision=1e-5)
        found = time.perf_counter() - start
        start = time.perf_counter()
        calibration = room.calibrated(fitted, tests, loss, max_norm=options.max_norm, best=best, prompts=prompts)
        took = time.perf_counter() - start
        for tolerance in (calibration.tolerance, best.standard_error):
            ratio = tolerance / best.standard_error
            told = bounded(fitted, tests, loss, best, options.max_norm, tolerance, options.precision)
            print(f"{name:<14}{ratio:>16.3f}{found:>8.2f} s{took:>9.2f} s{told}", flush=True)


def bounded(
    fitted: Floats, tests: Floats, loss: Loss, best: Optimum, max_norm: float, tolerance: float, precision: float
) -> str:
    """Seconds together and alone, the widest gap between proven and attained ends, and how many are determined."""
    start = time.perf_counter()
    found = room.possible_margins(
        fitted, tests, loss, max_norm=max_norm, tolerance=tolerance, precision=precision, best=best
    )
    together = time.perf_counter() - start
    each = alone(fitted, tests[:2], loss, max_norm=max_norm, tolerance=tolerance, precision=precision)
    margins = tests @ found.optimum.weights
    gap = max(
        ((found.high - found.attained_high) / (found.high - margins)).max(),
        ((found.attained_low - found.low) / (margins - found.low)).max(),
    )
    determined = f"{int(found.determined.sum()):>8}/{len(tests)}"
    return f"{together:>8.2f} s{2 * each * len(tests):>8.1f} s{gap:>12.3f}{determined}"


if __name__ == "__main__":
    main()

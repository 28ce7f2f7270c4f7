"""How many jobs a command line asks for: counted before they are written down one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep

from irl_exp.launch.messages import LaunchError

MOST_JOBS = 10_000
"""Of one launch: planning takes some 20 ms and 0.2 MB of memory a job."""


def parts(
    parser: OverridesParser,
    params: Mapping[str, Any],
    arguments: Sequence[str],
    controls: Mapping[str, Mapping[str, Any]],
) -> list[list[Override]]:
    """The sweeps of a launch: that of its study with the command line, and one for each control beside it.

    A control (`hydra.sweeper.controls.NAME`) has the command line too, but for what the study sweeps, which it holds at
    its default, and for what it sweeps itself.
    """
    line = parser.parse_overrides(list(arguments))
    found = [[*parser.parse_overrides(_said(params)), *line]]
    for name, values in controls.items():
        own = parser.parse_overrides([f"control={name}", *_said(values)])
        swept = {*params, *(override.get_key_element() for override in own if override.is_sweep_override())}
        found.append([*own, *(override for override in line if override.get_key_element() not in swept)])
    return found


def _said(values: Mapping[str, Any]) -> list[str]:
    """As a command line says them."""
    return [f"{key}={value}" for key, value in values.items()]


def check_sweep(overrides: Sequence[Override], batch: int | None = None) -> None:
    """Refuse a sweep without a job, one of more jobs than a launch can hold, and batches of no jobs.

    Raises:
        LaunchError: names the sweeps and how many values each has.
    """
    if batch is not None and batch < 1:
        raise LaunchError(f"hydra.sweeper.max_batch_size={batch}: at least one job is launched at once.")
    # Of two overrides of one key the last one counts.
    last = {override.get_key_element(): override for override in overrides}
    counts = {
        override.input_line or key: _count(override) for key, override in last.items() if override.is_sweep_override()
    }
    for line, count in counts.items():
        if not count:
            raise LaunchError(f"{line}: there is no value in it, so there would be no job; range(5) is 0, 1, 2, 3, 4.")
    if (jobs := math.prod(counts.values())) > MOST_JOBS:
        told = ", ".join(f"{line} ({count:,})" for line, count in counts.items() if count > 1)
        raise LaunchError(
            f"{told}: {jobs:,} jobs, and a launch takes {MOST_JOBS:,}. Make several launches of it, e.g. "
            f"'irl.seed=range(0,{MOST_JOBS})', then 'irl.seed=range({MOST_JOBS},{2 * MOST_JOBS})'."
        )


def _count(override: Override) -> int:
    """How many values a sweep has; those of a range are not written down for it."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return sum(1 for _ in override.sweep_iterator()) if override.is_discrete_sweep() else 1
    assert value.start is not None
    assert value.stop is not None
    if not value.step:
        raise LaunchError(f"{override.input_line}: a range with steps of 0 has no end.")
    span = (value.stop - value.start) / value.step
    return max(0, math.ceil(span)) if math.isfinite(span) else MOST_JOBS + 1

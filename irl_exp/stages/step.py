"""One step of a run: a stage, its config and what it is computed from. Equal identities are computed once."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from irl_exp.config import Node
from irl_exp.machinery.store import Identity, fingerprint


@dataclass(frozen=True)
class Step:
    """One stage of one run: what it computes from what."""

    stage: str
    config: Node
    inputs: Mapping[str, Step | Node]
    identity: Identity


@dataclass(frozen=True)
class Steps:
    """The steps of one run as they are added, each after what it reads.

    Attributes:
        reaches: whether the run gets to a stage.
        precision: of the device that computes them, a part of every identity.
        sampler: what writes, where that is not ours: a part of the identity of stages that say WRITES.
    """

    reaches: Callable[[str], bool]
    precision: str
    sampler: str | None = None
    by_stage: dict[str, Step] = field(default_factory=dict)

    def add(self, stage: str, config: Node | None, **inputs: Step | Node | None) -> Step | None:
        """A step, or None if it is switched off (no config), not reached, or lacks one of its inputs."""
        there = given(**inputs)
        if config is None or len(there) < len(inputs) or not self.reaches(stage):
            return None
        sources = {name: _source(value) for name, value in there.items()}
        module = importlib.import_module(f"irl_exp.stages.{stage}")
        sources["precision"] = self.precision
        if self.sampler and hasattr(module, "WRITES"):
            sources["sampler"] = self.sampler
        identity = Identity(stage, module.VERSION, _content(config), sources)
        step = self.by_stage[stage] = Step(stage, config, there, identity)
        return step


def given(**inputs: Step | Node | None) -> dict[str, Step | Node]:
    """Those of the inputs that are there: a step can do without the others."""
    return {name: value for name, value in inputs.items() if value is not None}


def first(*steps: Step | None) -> Step | None:
    """The first of several steps that is there."""
    return next((step for step in steps if step is not None), None)


def _source(value: Step | Node) -> str:
    """What an input is known by: the digest of an artifact, or the canonical text of a config node."""
    if isinstance(value, Step):
        return value.identity.digest
    return json.dumps(_content(value), sort_keys=True)


def _content(value: Any) -> Any:
    """A node as plain values; a file or folder of the user is known by its content, not by its path."""
    if isinstance(value, Node):
        return {name: _content(item) for name, item in [*value, *value.files.items()] if name not in value.unsaid}
    if isinstance(value, Mapping):
        return {name: _content(item) for name, item in value.items()}
    return _fingerprint(value) if isinstance(value, Path) else value


_fingerprint = functools.cache(fingerprint)

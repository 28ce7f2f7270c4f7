"""What every node of the config is made of: strict, frozen models and the types of plain options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(filter(Path.is_dir, (PACKAGE / "conf", PACKAGE.parent / "conf")), PACKAGE / "conf")
"""The YAML files: in the package where a wheel has put them, beside it in a checkout."""


class ConfigError(Exception):
    """A config that cannot be run: names the field, the value, what is allowed and the nearest right name."""


class Interpolated(str):
    """Metadata of a field: the base node holds this interpolation, so the field follows another one unless set."""


class Node(BaseModel):
    """One node of the config: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @property
    def files(self) -> dict[str, Path]:
        """Files that the node stands for besides those in its fields: their content belongs to its identity."""
        return {}

    @property
    def unsaid(self) -> frozenset[str]:
        """Options that change nothing as they are set: identities leave them out, and what there is stays valid."""
        return frozenset()


def _expanded(path: Path) -> Path:
    """The path with a home folder in place of '~' or '~user'."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path.parts[0]} is nobody's home folder: write the path in full") from None


def existing(path: Path) -> Path:
    """The path of a file or folder that is there, with a home folder in place of '~'."""
    path = _expanded(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError("there is no such file or folder") from None
    except OSError as error:  # no permission, too long, a circle of links
        raise ValueError(f"it cannot be opened ({error.strerror})") from None
    return path


def _is_file(path: Path) -> Path:
    """A pipe or a device would be read for ever."""
    if path.is_dir():
        raise ValueError("this is a folder: give a file")
    if not path.is_file():
        raise ValueError("this is a pipe, a socket or a device: give a file, e.g. a copy of what it holds")
    return path


def _is_model(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ValueError("this is no model folder: it has no config.json. Give a folder that save_pretrained wrote")
    return path


def check_place(path: Path) -> Path:
    """A folder that need not be there yet: its path leaves room for the names of what will be written into it."""
    longest = max(map(len, map(os.fsencode, path.parts)), default=0)
    if longest > LONGEST_NAME or len(os.fsencode(_expanded(path).absolute())) > LONGEST_PLACE:
        raise ValueError(
            f"a name in this path has at most {LONGEST_NAME} bytes, the whole path {LONGEST_PLACE}: shorten it"
        )
    return path


LONGEST_NAME = 255
"""Bytes of the name of a file or folder that file systems take."""
LONGEST_PLACE = 3500
"""Bytes of the path of a folder: of the 4,096 that Linux takes some are left for what lies in it."""

ExistingFile = Annotated[Path, AfterValidator(existing), AfterValidator(_is_file)]

ModelPath = Annotated[Path, AfterValidator(existing), AfterValidator(_is_model)]

Place = Annotated[Path, AfterValidator(check_place)]

# The upper bound keeps typing errors from numbers that no library takes.
Count = Annotated[int, Field(ge=1, le=10**9)]

PerPrompt = Annotated[int, Field(ge=1, le=10_000)]

Fraction = Annotated[float, Field(gt=0, lt=1)]

Rate = Annotated[float, Field(ge=0, le=1)]

Positive = Annotated[float, Field(gt=0)]

LearningRate = Annotated[float, Field(gt=0, le=1)]

Seed = Annotated[int, Field(ge=0, lt=2**31)]

StageSeed = Annotated[Seed, Interpolated("${seed}")]

NewTokens = Annotated[Count, Interpolated("${max_new_tokens}")]


def node_of(field: FieldInfo) -> list[type[Node]]:
    """The node classes that a field may hold: one, several (a choice by `name`), or none for a plain value."""
    found: list[type[Node]] = []

    def collect(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Node):
            found.append(annotation)
        for argument in get_args(annotation):
            collect(argument)

    collect(field.annotation)
    return found


def is_map(field: FieldInfo) -> bool:
    """Whether the user names the nodes that the field holds."""
    return get_origin(field.annotation) is dict

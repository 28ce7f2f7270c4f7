"""What every node of the config is made of: strict, frozen models and the types of plain options."""

from __future__ import annotations

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


def _exists(path: Path | None) -> Path | None:
    if path is not None and not path.expanduser().exists():
        raise ValueError("there is no such file or folder")
    return path and path.expanduser()


def _is_model(path: Path | None) -> Path | None:
    if path is not None and not (path / "config.json").is_file():
        raise ValueError("this is no model folder: it has no config.json. Give a folder that save_pretrained wrote")
    return path


ExistingPath = Annotated[Path, AfterValidator(_exists)]

ModelPath = Annotated[ExistingPath, AfterValidator(_is_model)]

Count = Annotated[int, Field(ge=1)]

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

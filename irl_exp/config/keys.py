"""Every dotted key and every group that there is, and the right name nearest to a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from irl_exp.config.experiment import Config
from irl_exp.config.nodes import CONF, Interpolated, Node, is_map, node_of
from irl_exp.config.rewards import Part, WeightedConfig

MINE = "NAME"
"""Stands in keys for a name that the user gives: reward.parts.NAME.weight."""


def option_fields(model: type[Node] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and field of every plain option, those of all choices of a node included.

    Of a part that the user names only what no other node has: its scorer's options are listed once, with the scorer.
    """
    for name, field in model.model_fields.items():
        nested = node_of(field)
        if is_map(field):
            yield from ((f"{prefix}{name}.{MINE}.{key}", option) for key, option in Part.model_fields.items())
            continue
        for choice in nested:
            yield from option_fields(choice, f"{prefix}{name}.")
        if not nested and not (name == "name" and prefix and prefix != "model."):
            yield f"{prefix}{name}", field


def known_keys() -> list[str]:
    """Every dotted key of the config: options and nodes; NAME stands for any name."""
    keys = {key for key, _ in option_fields()}
    for part in node_of(WeightedConfig.model_fields["parts"]):
        keys |= {f"reward.parts.{MINE}.{name}" for name in part.model_fields}
    nodes = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    return sorted(keys | nodes)


def leader(key: str) -> str | None:
    """The option that this one follows unless it is set: `seed` of `irl.seed`."""
    if re.fullmatch(r"reward\.parts\.\w+\.seed", key):
        return "reward.seed"
    metadata = [item for name, field in option_fields() if name == key for item in field.metadata]
    return next((item[2:-1] for item in metadata if isinstance(item, Interpolated)), None)


def is_known(key: str) -> bool:
    """Whether there is such a dotted key."""
    return re.sub(r"^(reward\.parts)\.[^.]+", rf"\1.{MINE}", key) in known_keys()


def names_near(key: str) -> list[str]:
    """Every key, with the user's own name in place of NAME; none for a key that another choice of the node has."""
    if is_known(key):
        return []
    part = re.match(r"reward\.parts\.([^.]+)", key)
    return [name.replace(f".{MINE}", f".{part[1]}") if part else name for name in known_keys()]


def known_groups() -> list[str]:
    """Config groups: folders of `conf/`."""
    return sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")})


def nearest(key: str, names: list[str]) -> str:
    """' Did you mean ...?' with the closest of the names, or nothing."""
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""

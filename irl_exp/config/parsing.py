"""Composed values to a typed config, or one readable complaint a wrong field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from irl_exp.config.experiment import Config
from irl_exp.config.keys import is_known, known_groups, leader, names_near, nearest
from irl_exp.config.nodes import ConfigError


def parse(values: Mapping[str, Any]) -> Config:
    """Typed config of one job from the composed, resolved values.

    Raises:
        ConfigError: lists every wrong field with its value and what is allowed.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # A list whose items are wrong is also told to be empty, which it is not.
        items = [item for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        wrong = {(_key(item), repr(item.get("input"))) for item in items}
        # What is wrong with an option is wrong with all that follow it: it is told once.
        causes = [item for item in items if (leader(_key(item)), repr(item.get("input"))) not in wrong]
        raise ConfigError("\n".join(dict.fromkeys(map(_explain, causes)))) from None


def _key(item: Any) -> str:
    """The dotted key of one error of pydantic; "" for the config as a whole."""
    # A choice between nodes puts its tag into the path (irl.loss.hinge.target): leave out what is no key.
    parts: list[str] = []
    for part in item["loc"]:
        if (item["type"] == "extra_forbidden" and part == item["loc"][-1]) or is_known(".".join([*parts, str(part)])):
            parts.append(str(part))
    return ".".join(parts)


def _explain(item: Any) -> str:
    """One readable line for one error of pydantic."""
    key = _key(item)
    if item["type"] == "extra_forbidden":
        return f"{key}: there is no such option here.{nearest(key, names_near(key))}"
    if item["type"] == "union_tag_invalid":
        return f"{key}.{_tag(item)}={item['ctx']['tag']}: choose one of {item['ctx']['expected_tags']}"
    if item["type"] == "union_tag_not_found":
        return f"{key}.{_tag(item)}: this option must be set, e.g. {key}.{_tag(item)}=..."
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not key:
        return message
    message = message.replace("a valid tuple", f"a list, [{item.get('input')}]")
    value = item.get("input")
    if key.replace(".", "/") in known_groups() and not isinstance(value, Mapping):
        return f"{key}={value}: this is a config group; write {key.replace('.', '/')}={value}"
    if item["type"] == "missing" or value == "???":
        return f"{key}: this option must be set, e.g. {key}=..."
    shown = "" if isinstance(value, Mapping) else f"={value}"
    return f"{key}{shown}: {message}"


def _tag(item: Any) -> str:
    """The field by which a choice between nodes is made."""
    return str(item["ctx"]["discriminator"]).strip("'")

"""Overrides of the command line, checked against the groups and keys that there are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from irl_exp.config.base_nodes import BASE_NODES
from irl_exp.config.keys import is_known, known_groups, names_near, nearest
from irl_exp.config.nodes import CONF, ConfigError, Node


def check_override(key: str, value: str) -> None:
    """Refuse an override of a key or group that does not exist, before Hydra suggests to add it with '+'.

    Raises:
        ConfigError: names the key and the nearest right name.
    """
    if key in known_groups() and re.fullmatch(_NUMBERS, value, re.IGNORECASE):
        options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
        raise ConfigError(f"{key}={value}: {key} is a config group; choose one of {options}.")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or key in known_groups() or is_known(key):
        return
    hint = nearest(key, known_groups() if "/" in key else names_near(key) + known_groups())
    kind = "config group" if "/" in key else "option"
    raise ConfigError(f"{key}: there is no such {kind}.{hint} `python launch.py --help all` lists all of them.")


def check_choices(keys: Sequence[str], chosen: Mapping[str, Sequence[Sequence[str]]], *, complete: bool = True) -> None:
    """Refuse an option that belongs to another choice of its group, such as data.path with data=comments.

    Args:
        keys: dotted keys of the overrides.
        chosen: of each group that the command line names, the values of its sweep; each is a list of options. Other
            groups have what a chosen file says with `override /group`, else their default: that of conf/config.yaml,
            or of the file that is chosen for the group above.
        complete: whether `conf/` has all options there are: no folder of the user has more.

    Raises:
        ConfigError: names the option and the choices that have it.
    """
    named = [CONF / group / f"{option}.yaml" for group in chosen for value in chosen[group] for option in value]
    chosen = {**_chosen_by([CONF / "local" / "default.yaml", *named]), **chosen}
    for group, values in chosen.items():
        _check_list(group, values, complete)
    for group in known_groups():
        for key in (*keys, *chosen):
            if key.replace("/", ".").startswith(group.replace("/", ".") + "."):
                _check_choice(key, group, _values(group, chosen))


def _chosen_by(files: Iterable[Path]) -> dict[str, list[list[str]]]:
    """What the defaults lists of files choose for other groups: `- override /irl: ensemble`, the last one wins."""
    texts = map(_text, files)
    found = [
        pair for text in texts for pair in re.findall(rf"^\s*- override /([\w/]+): {_OPTIONS}", text, re.MULTILINE)
    ]
    return {group: [re.findall(r"\w+", options)] for group, options in found if group in known_groups()}


def _text(path: Path) -> str:
    """Of a file of conf/; "" where there is none, or could not be: the name of an option is whatever was typed."""
    return path.read_text(encoding="utf-8") if os.path.exists(path) else ""


def swept_by(group: str, option: str) -> list[str]:
    """The overrides that a file of `conf/` adds to a launch: its `hydra.sweeper.params`, and its controls."""
    import yaml

    path = CONF / group / f"{option}.yaml"
    values = yaml.safe_load(_text(path))
    for key in ("hydra", "sweeper"):
        values = (values or {}).get(key)
    found = [(values or {}).get("params") or {}, *((values or {}).get("controls") or {}).values()]
    return [f"{key}={_as_typed(value)}" for sweep in found for key, value in sweep.items()]


def _as_typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_list(group: str, values: Sequence[Sequence[str]], complete: bool) -> None:
    """Refuse a list where only one option can be taken, and one that names an option twice or one that is not there."""
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if len(values) > 1 and any(swept_by(group, option) for option in options):
        named = ",".join(option for value in values for option in value)
        raise ConfigError(f"{group}={named}: each has a sweep of its own, and a launch runs one: launch them in turn.")
    for value in values:
        shown = f"{group}=[{','.join(value)}]"
        for strange in sorted(set(value) - set(options)) if complete else []:
            told = shown if len(value) > 1 else f"{group}={strange}"
            raise ConfigError(f"{told}: there is no option '{strange}' in {', '.join(options)}.")
        if len(set(value)) < len(value):
            raise ConfigError(f"{shown}: an option is named twice.")
        if len(value) > 1 and not _joined(group):
            raise ConfigError(f"{shown}: only one can be taken; for a job of each write {group}={','.join(value)}.")


def _joined(group: str) -> bool:
    """Whether several options of the group may be chosen together: none of them is the node of the group."""
    paths = (CONF / group).glob("*.yaml")
    return "/" in group and all(group.replace("/", ".") not in nodes_of_option(path) for path in paths)


def _check_choice(key: str, group: str, values: Sequence[Sequence[str]]) -> None:
    """Refuse a key that some choices of the group have, and one of the chosen values has not."""
    nodes = {path.stem: nodes_of_option(path) for path in (CONF / group).glob("*.yaml")}
    owners = sorted(option for option in nodes if _has(group, option, key))
    for value in values:
        if not owners or not value or any(option not in nodes or _has(group, option, key) for option in value):
            continue
        missing = key if "/" in key else "such option"
        told = f"{key}: {group}={','.join(value)} has no {missing}; it belongs to {group}={', '.join(owners)}"
        both = f" (both: {group}=[{','.join([*value, owners[0]])}])" if _joined(group) else ""
        raise ConfigError(f"{told}{both}.")


def _has(group: str, option: str, key: str) -> bool:
    """Whether a choice of the group has an option, or a group below it."""
    path = CONF / group / f"{option}.yaml"
    below = key.removeprefix(f"{group}/")
    return bool(_default_options(path, below)) if "/" in key else _holds(nodes_of_option(path), key)


def default_choice(group: str) -> str:
    """The choice that a group has by default; "" where it follows another one or has none."""
    return next((option for value in _values(group, {}) for option in value), "")


def _values(group: str, chosen: Mapping[str, Sequence[Sequence[str]]]) -> Sequence[Sequence[str]]:
    """The values that a group takes in a launch, each a list of options; empty where no default is found."""
    if group in chosen:
        return chosen[group]
    parent, _, name = group.rpartition("/")
    if not parent:
        return [_default_options(CONF / "config.yaml", name)]
    above = [option for value in _values(parent, chosen) for option in value]
    return [_default_options(CONF / parent / f"{option}.yaml", name) for option in above]


_NUMBERS = r"[\d.,+\[\]-]+|[+-]?(nan|inf|[\d.]+e[+-]?\d+)"
"""What Hydra reads as numbers, where the name of an option belongs."""

_OPTIONS = r"(\[[\w, ]*\]|\w+)"
"""In a defaults list: one option, or a list of them."""


def _default_options(path: Path, group: str) -> list[str]:
    """What the defaults list of a YAML file says for a group: `- loss: hinge` or `- features: [length, ngram]`."""
    text = _text(path)
    found = re.search(rf"^\s*- {group}: {_OPTIONS}", text, re.MULTILINE)
    return re.findall(r"\w+", found[1]) if found else []


def nodes_of_option(path: Path) -> dict[str, type[Node]]:
    """The classes whose base nodes a YAML file of `conf/` takes, by the dotted key at which it puts them."""
    text = path.read_text(encoding="utf-8")
    package = _package(path)
    found = re.findall(r"^\s*- /schema@([\w.]+): (\w+)", text, re.MULTILINE)
    return {".".join([*package, at]).removesuffix("._here_"): BASE_NODES[name] for at, name in found}


def _package(path: Path) -> list[str]:
    """The node that a YAML file of `conf/` fills: by its header, else by its folder."""
    header = re.search(r"^# @package (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    package = header[1].split(".") if header else list(path.parent.relative_to(CONF).parts)
    return [] if package == ["_global_"] else package


def values_of_option(path: Path) -> dict[str, Any]:
    """The options that a YAML file of `conf/` sets itself, by dotted key."""
    import yaml

    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return dict(
        _leaves({key: value for key, value in values.items() if key not in ("defaults", "hydra")}, _package(path))
    )


def _leaves(values: Mapping[str, Any], package: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, [*package, key])
        else:
            yield ".".join([*package, key]), value


def _holds(nodes: Mapping[str, type[Node]], key: str) -> bool:
    """Whether one of the nodes has the option (or holds the group) with this key."""
    dotted = key.replace("/", ".")
    return any(
        dotted.startswith(f"{at}.") and dotted.removeprefix(f"{at}.").split(".")[0] in node.model_fields
        for at, node in nodes.items()
    )

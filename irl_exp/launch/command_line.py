"""The command line, checked before Hydra composes anything."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from irl_exp.config import (
    CONF,
    ConfigError,
    check_choices,
    check_override,
    first_page,
    known_groups,
    page_of,
    swept_by,
)
from irl_exp.launch.messages import program
from irl_exp.launch.output import Output

# Hydra 1.3 wants a version_base, 1.4 deprecates it.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def answer_help(arguments: Sequence[str]) -> None:
    """Show what is asked with --help and end, before Hydra composes anything; return if nobody asks."""
    if not {"-h", "--help"} & set(arguments):
        return
    topics = [argument for argument in arguments if not argument.startswith("-")]
    try:
        text = "\n\n".join(map(page_of, topics)) if topics else first_page(program())
    except ConfigError as error:
        sys.exit(f"{error}")
    print(text, file=Output(), flush=True)  # `--help all | head` ends without a word
    sys.exit(0)


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse overrides of unknown keys with the nearest right name; Hydra would suggest to add them with '+'."""
    if {"-sc", "--shell-completion", "--shell_completion"} & set(arguments):
        return
    given, _ = get_args_parser().parse_known_args(arguments)
    for argument in given.overrides:
        if (home := argument.partition("=")[2]).startswith("~"):
            sys.exit(f"{argument}: write the path in full, {argument.removesuffix(home)}{os.path.expanduser(home)}")
    try:
        overrides = list(_parsed(given.overrides))
        overrides = [*_parsed(_swept(overrides)), *overrides]
        for override in overrides:
            check_override(override.key_or_group, str(override.input_line).partition("=")[2])
        named = {override.key_or_group: override for override in overrides if not override.is_delete()}
        _check_hydra(named)
        groups = {key: _options(override) for key, override in named.items() if key in known_groups()}
        elsewhere = given.config_dir or given.config_path or "hydra.searchpath" in named
        check_choices([key for key in named if key not in groups], groups, complete=not elsewhere)
    except ConfigError as error:
        sys.exit(f"{error}")


def _check_hydra(named: Mapping[str, Override]) -> None:
    """Refuse what Hydra 1.3 answers with a traceback."""
    for key, override in named.items():
        if isinstance(override.value(), IntervalSweep) and "hydra/sweeper" not in named:
            raise ConfigError(
                f"{override.input_line}: only a sweeper that searches takes an interval (hydra/sweeper=optuna); "
                f"write values, such as {key}=1,2,3 or {key}=range(3)."
            )
        if key in ("hydra", "hydra.launcher", "hydra.sweeper"):
            raise ConfigError(f"{override.input_line}: choose a group (hydra/launcher=...) or set one option of it.")
        if (swept := key.removeprefix("hydra.sweeper.params.")) != key:
            raise ConfigError(f"{override.input_line}: write {swept}={str(override.input_line).partition('=')[2]}.")


def _swept(overrides: Sequence[Override]) -> list[str]:
    """What the chosen files (study=..., seeds=...) sweep; the command line may set the same keys in another way."""
    chosen = {
        override.key_or_group: _options(override)
        for override in overrides
        if override.key_or_group in known_groups() and not override.is_delete()
    }
    return [
        swept
        for group, values in chosen.items()
        for options in values
        for option in options
        for swept in swept_by(group, option)
    ]


def _parsed(arguments: Sequence[str]) -> Iterator[Override]:
    parser = OverridesParser.create()
    for argument in arguments:
        try:
            yield parser.parse_override(argument)
        except HydraException as error:
            key, equals, value = argument[:200].partition("=")
            if not equals:
                raise ConfigError(f"{key}: an option is given as key=value, a flag begins with --.") from None
            quoted = shlex.quote(f'{key}="{re.sub(_BACKSLASHES, _doubled, value)}"')
            raise ConfigError(
                f"{argument[:200]}: Hydra cannot read this ({str(error).splitlines()[0][:200]}). If the value is meant "
                f"as it stands, it needs quotes of its own within those of the shell: {quoted}"
            ) from None


_BACKSLASHES = r"""(\\*)("|$)"""
"""In a quoted value Hydra takes a backslash for itself, save before a quote and at the end."""


def _doubled(found: re.Match[str]) -> str:
    return found[1] * 2 + ("\\" + found[2] if found[2] else "")


def _options(override: Override) -> list[list[str]]:
    """The values of an override of a group, one a job of the sweep; each is one option or a list of options."""
    value = override.value()
    if isinstance(value, RangeSweep | IntervalSweep):
        raise ConfigError(f"{override.input_line}: {override.key_or_group} is a config group and takes no numbers.")
    if value is None:
        raise ConfigError(
            f"{override.input_line}: {override.key_or_group} is a config group: one of its options is taken."
        )
    if isinstance(value, Glob):
        return [[name] for name in value.filter([path.stem for path in (CONF / override.key_or_group).glob("*.yaml")])]
    values = override.sweep_iterator() if override.is_sweep_override() else [value]
    return [[str(option) for option in (item if isinstance(item, list) else [item])] for item in values]

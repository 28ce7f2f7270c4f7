"""The help text: a first page of what people want, and of each group its choices with the options that each has."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from irl_exp.config.experiment import Config
from irl_exp.config.keys import MINE, is_known, known_groups, known_keys, nearest, option_fields
from irl_exp.config.nodes import CONF, ConfigError, Interpolated, Node
from irl_exp.config.overrides import default_choice, nodes_of_option, values_of_option

WIDTH = 79
COLUMN = 32
"""Where meanings begin."""
RUN = "run"
"""The page of the options that lie in no node."""

WANTED = (
    *("name", "seed", "until", "max_new_tokens", "workers", "device", "objective"),
    *(
        "store.dir",
        "expert.path",
        "model.path",
        "model.hub",
        "model.tuned",
        "data.path",
        "data.label",
        "data.fit_prompts",
    ),
    *("sft.steps", "rlhf.steps", "rlhf.learning_rate", "rlhf.kl_coefficient"),
    *("demonstrations.completions_per_prompt", "irl.seed", "irl.epochs", "irl.ridge", "irl.max_norm"),
    *("refinetune.steps", "refinetune.kl_coefficient", "evaluate.bootstrap", "tracking.project"),
)
"""The options of the first page."""

INTRODUCTION = """\
Reconstruct the training goal of a language model by inverse RL.
usage: {program} [-m] [GROUP=CHOICE ...] [OPTION=VALUE ...]

The chain; each result is kept in the store and never computed twice:
  sft             base model -> reference policy
  rlhf            reference policy + ground-truth reward R* -> expert policy
  demonstrations  what expert and reference write on the same prompts
  irl             contrast pairs of demonstrations -> learned reward
  refinetune      reference policy + learned reward -> refinetuned policy
  evaluate        all policies and the learned reward on held-out prompts
"""

FURTHER = """\
Examples
  {program} study=non_identifiability        50 rewards of one expert
  {program} irl/loss=hinge,squared 'irl.seed=range(5)'   a job of each
  {program} model.path=/my/model data=file data.path=my.jsonl scale=tiny

More: --help GROUP (irl, irl/loss, run, sft, ...), --help OPTION, --help all;
--cfg job (the composed config), -sc install=bash (TAB), README.md"""


class Option(NamedTuple):
    """One option as a choice of a group has it: another choice may have another default."""

    key: str
    default: str
    meaning: str


def first_page(program: str) -> str:
    """The chain, all groups with their choices, and the options that people want."""
    options = {option.key: option for option in reversed(list(_options()))}  # the first of several choices stands
    lines = [
        *INTRODUCTION.format(program=program).splitlines(),
        *("", "Groups, their default first"),
        *(line for group in known_groups() for line in _beside(f"  {group}", ", ".join(_choices(group)), 16)),
        *("", "Options with their defaults; --help OPTION tells more"),
        *(line for key in WANTED for line in _shown(_briefly(options[key]))),
        *("", *FURTHER.format(program=program).splitlines()),
    ]
    return "\n".join(lines)


def page_of(topic: str) -> str:
    """What there is to know of a group, of one of its choices (irl=bayesian), of a node, of an option, or of all.

    Raises:
        ConfigError: there is nothing of that name; names the nearest.
    """
    name, _, choice = topic.partition("=")
    group = name.replace(".", "/")
    if topic == "all":
        return "\n\n".join(map(page_of, _topics()))
    if group in known_groups():
        return "\n".join([*_choices_of(group), *_options_of(group, choice)])
    key = name.replace("/", ".")
    if key != RUN and not is_known(key):
        hint = nearest(name, [*known_groups(), *known_keys()])
        raise ConfigError(f"--help {topic}: there is no such group or option.{hint} Groups: {', '.join(_topics())}.")
    found = dict.fromkeys(option for option in _options() if _is_at(option.key, key))
    return "\n".join(line for option in found for line in _shown(option))


def _is_at(key: str, place: str) -> bool:
    """Whether an option is this one, or lies in this node; the run itself has those without a node."""
    return "." not in key if place == RUN else key == place or key.startswith(f"{place}.")


def first_comment(path: Path) -> str:
    """What a config file says of itself; "" where it says nothing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and "@package" not in line), "")


def question_of(study: str) -> str:
    """What a study of conf/study asks: the first comment of its file after the command; "" for another name."""
    path = CONF / "study" / f"{study}.yaml"
    return first_comment(path).partition(": ")[2] if path.is_file() else ""


def _topics() -> list[str]:
    """Everything that has a page: the run itself, the nodes that no group fills, and the groups."""
    nodes = dict.fromkeys(option.key.split(".")[0] for option in _options() if "." in option.key)
    return [RUN, *(node for node in nodes if node not in known_groups()), *known_groups()]


def _choices(group: str) -> list[str]:
    """The choices of a group, its default first."""
    default = default_choice(group)
    return sorted((path.stem for path in (CONF / group).glob("*.yaml")), key=lambda name: (name != default, name))


def _choices_of(group: str) -> Iterator[str]:
    """A line, or a few, for each choice of a group: what its file says of itself."""
    default = default_choice(group)
    yield f"{group}={default or 'CHOICE'}"
    for choice in _choices(group):
        said = first_comment(CONF / group / f"{choice}.yaml")
        yield from _beside(f"  {choice}", question_of(choice) or said if group == "study" else said, 28)


def _options_of(group: str, only: str) -> Iterator[str]:
    """The options of a group, those that the same choices have together, below the names of these."""
    choices = _choices(group)
    for owners, options in _by_owners(group).items():
        if not only or only in owners:
            yield ""
            told = f"of {', '.join(owners)}" if 0 < len(owners) < len(choices) else "of each"
            yield from textwrap.wrap(told, WIDTH, subsequent_indent="  ")
            for option in options:
                yield from _shown(option)
    if inside := [other for other in known_groups() if other.startswith(f"{group}/")]:
        yield from ("", f"more: --help {', '.join(inside)}")


def _by_owners(group: str) -> dict[tuple[str, ...], list[Option]]:
    """The options of a group by the choices that have them with the same default, the most shared ones first.

    Under no choice: those of the node above, which has them whatever is chosen, such as irl.prompt_fraction.
    """
    owners: dict[Option, list[str]] = {}
    for choice in _choices(group):
        for option in _options_of_choice(group, choice):
            owners.setdefault(option, []).append(choice)
    keys = {option.key for option in owners}
    above = [option for option in _options() if "/" in group and option.key.startswith(f"{group.replace('/', '.')}.")]
    found: dict[tuple[str, ...], list[Option]] = {}
    found[()] = [option for option in dict.fromkeys(above) if option.key not in keys]
    for option, names in sorted(owners.items(), key=lambda item: -len(item[1])):
        found.setdefault(tuple(names), []).append(option)
    return {names: options for names, options in found.items() if options}


def _options_of_choice(group: str, choice: str) -> list[Option]:
    """The options that a choice of a group has or sets, without those of the groups inside it: these have pages."""
    path = CONF / group / f"{choice}.yaml"
    inside = tuple(f"{other.replace('/', '.')}." for other in known_groups() if other.startswith(f"{group}/"))
    own = [option for at, node in nodes_of_option(path).items() for option in _options(node, f"{at}.")]
    options = {option.key: option for option in own if ".parts." not in option.key or f".{MINE}." in option.key}
    for key, value in values_of_option(path).items():
        options[key] = Option(key, _typed(value), _meanings().get(key, ""))
    return [option for key, option in options.items() if not key.startswith(inside)]


def _options(model: type[Node] = Config, prefix: str = "") -> Iterator[Option]:
    """Every option of a node with its default and meaning; those of all choices, so a key may come several times."""
    for key, field in option_fields(model, prefix):
        follows = next((str(item) for item in field.metadata if isinstance(item, Interpolated)), None)
        default = follows or ("" if field.is_required() else _typed(field.default))
        yield Option(key, default, field.description or _meanings().get(key, ""))


@functools.cache
def _meanings() -> dict[str, str]:
    """What each option means, by key: a class that sets another default need not say it again."""
    return {key: field.description for key, field in option_fields() if field.description}


def _typed(default: Any) -> str:
    """A default as one types it."""
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    return str(list(default)) if isinstance(default, list | tuple) else str(default)


def _briefly(option: Option) -> Option:
    """The first clause of what an option means."""
    return option._replace(meaning=option.meaning.partition(";")[0])


def _shown(option: Option) -> list[str]:
    return _beside(f"  {option.key}={option.default}", option.meaning, COLUMN)


def _beside(left: str, right: str, column: int) -> list[str]:
    """Two columns; a left one that is too long has a line of its own."""
    lines = [" " * column + line for line in textwrap.wrap(right, WIDTH - column, break_on_hyphens=False)]
    if len(left) >= column or not lines:
        return [left, *lines]
    return [left + lines[0][len(left) :], *lines[1:]]

"""The help text: config groups and options, each with its meaning."""

from __future__ import annotations

from pathlib import Path

from irl_exp.config.keys import option_fields
from irl_exp.config.nodes import CONF, Interpolated


def describe_groups() -> str:
    """Config groups and their options for the help text, each with the first comment line of its file."""
    lines: list[str] = []
    for folder in sorted({path.parent for path in CONF.glob("*/**/*.yaml")}):
        group = folder.relative_to(CONF).as_posix()
        lines.append(f"  {group}=")
        for path in sorted(folder.glob("*.yaml")):
            lines.append(f"    {path.stem:<27}{first_comment(path)}")
    return "\n".join(lines)


def first_comment(path: Path) -> str:
    """What a config file says of itself; "" where it says nothing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and "@package" not in line), "")


def question_of(study: str) -> str:
    """What a study of conf/study asks: the first comment of its file after the command; "" for another name."""
    path = CONF / "study" / f"{study}.yaml"
    return first_comment(path).partition(": ")[2] if path.is_file() else ""


def describe_options() -> str:
    """Every option with its default and meaning, one line each, for the help text."""
    meaning = {key: field.description for key, field in option_fields() if field.description}
    lines: dict[str, str] = {}
    for key, field in option_fields():
        interpolation = next((item for item in field.metadata if isinstance(item, Interpolated)), None)
        default = interpolation or ("" if field.is_required() else field.default)
        option = f"  {key}={'null' if default is None else default}"
        # Choices of one group share keys with other defaults: the first stands for all.
        lines.setdefault(key, f"{option:<46} {meaning.get(key, '')}".rstrip())
    # Hydra substitutes $NAME in the help text.
    return "\n".join(lines.values()).replace("$", "$$")

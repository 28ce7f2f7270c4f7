"""The README is a promise: its commands must be right, and the two set-up commands must be those that CI runs."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from irl_exp import config
from irl_exp.launch.command_line import VERSION_BASE, check_command_line

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
LAUNCHES = [line for line in COMMANDS if "launch.py" in line]
CELLS = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
IN_TABLES = [cell for cell in CELLS if "=" in cell and "launch.py" not in cell]


def overrides_of(command: str) -> list[str]:
    words = shlex.split(command.split("launch.py", 1)[1])
    return [word for word in words if not word.startswith("-")]


def first_value(override: str) -> str:
    """One job of a sweep: the first of several values. Files of the reader's do not exist here."""
    key, value = override.split("=", 1)
    value = re.sub(r"^range\(\d+\)$", "0", value)
    return f"{key}={value.split(',')[0]}"


def composed(overrides: list[str]) -> dict[str, object]:
    config.register()
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        return dict(compose("config", [first_value(item) for item in overrides]))


@pytest.mark.parametrize("command", LAUNCHES)
def test_every_command_composes(command: str) -> None:
    overrides = [item for item in overrides_of(command) if not item.startswith("hydra/")]
    check_command_line(overrides)
    assert composed(overrides)["name"]


@pytest.mark.parametrize("overrides", IN_TABLES)
def test_every_override_in_a_table_composes(overrides: str) -> None:
    check_command_line(shlex.split(overrides))
    assert composed(shlex.split(overrides))["name"]


def test_commands_were_found() -> None:
    assert len(LAUNCHES) >= 8
    assert len(IN_TABLES) >= 8


def test_the_two_commands_set_everything_up() -> None:
    assert COMMANDS[0] == "python -m pip install -e . && python launch.py"
    assert COMMANDS[1] == "python -m pip install -e '.[test]' && python -m pytest"


def test_ci_calls_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"python -m pip install .*-e '\.\[test\]' && python -m pytest$", script, re.MULTILINE)


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"\]\(([\w./-]+)\)", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_way_of_one_number_leads_through_files_that_exist() -> None:
    way = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The way of one number")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", way)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "irl_exp" / name).exists()] == []

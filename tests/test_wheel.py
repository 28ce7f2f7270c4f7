"""The wheel: what it brings is all that the program needs, from any folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")  # of the `test` extra: the wheel is built without a network

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"import hatchling.build; hatchling.build.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone in a folder; what it depends on is there already."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return folder


def run(installed: Path, *command: str) -> str:
    """The output of a command that sees the installed package in place of the checkout."""
    env = {**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_the_config_files_the_plugin_and_what_tools_look_for(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {path for path in (ROOT / "conf").rglob("*.yaml") if path.parent.name != "local"}
    wanted = {f"irl_exp/{path.relative_to(ROOT).as_posix()}" for path in conf}
    assert {name for name in names if name.startswith("irl_exp/conf/")} == wanted
    package = [path for path in (ROOT / "irl_exp").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in package} <= names
    assert {"hydra_plugins/irl_exp_planner/__init__.py", "irl_exp/py.typed"} <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("conf/", "tests/", "docs/")) for name in names)


def test_installed_it_is_found_without_the_checkout(installed: Path) -> None:
    places = run(
        installed, "-c", "import irl_exp.config as c, hydra_plugins.irl_exp_planner as p; print(c.CONF, p.__file__)"
    )
    assert places.split() == [
        str(installed / "irl_exp" / "conf"),
        str(installed / "hydra_plugins" / "irl_exp_planner" / "__init__.py"),
    ]


def test_the_console_script_and_the_module_do_what_launch_py_does(installed: Path) -> None:
    script = str(installed / "bin" / "irl-exp")
    assert "usage: irl-exp [-m]" in run(installed, script, "--help")
    composed = run(installed, script, "--cfg", "job", "irl/loss=hinge", "seed=3")
    assert composed == run(installed, "-m", "irl_exp", "--cfg", "job", "irl/loss=hinge", "seed=3")
    assert "target_margin: 1.0" in composed
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_a_launch_writes_below_the_current_folder(installed: Path) -> None:
    told = run(installed, "-m", "irl_exp", "scale=tiny", "tracking=none", "data.count=1000", "until=sft", "workers=2",
               "sft.seed=0,1", "report=false")  # fmt: skip
    assert "2 of 2 runs completed" in told
    assert [path.name for path in Path().iterdir()] == ["multirun"]
    (plan,) = Path().glob("multirun/chain/*/plan.json")
    assert '"command": "python -m irl_exp scale=tiny' in plan.read_text()

"""The rooms: who may import whom, what of a room others may use, and each foreign library in one place."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "irl_exp"

FLOORS = (
    {"__main__"},
    {"launch", "library", "runs"},
    {"chain", "analysis", "dashboard"},
    {"stages"},
    {"explain"},
    {"determined"},
    {"irl"},
    {"rewards"},
    {"policies"},
    {"texts", "measures", "machinery", "report"},
    {"config"},
)
"""From the top to the bottom: a room imports only itself and what stands on floors below."""

ALONE = (
    *("measures/reward_comparison", "measures/overoptimisation", "machinery/heartbeat", "machinery/tracking"),
    *("irl/losses", "irl/heads", "irl/bayesian", "irl/contrast", "texts/comments", "texts/messages", "texts/sentiment"),
    *("report/cells", "report/names", "report/tables", "config/nodes"),
)
"""Files that import nothing of ours."""

ONLY_IN = {
    "trl": {"policies/policy_optimization.py", "policies/ranked_samples.py"},
    "peft": {"irl/backbones.py", "policies/adapters.py"},
    "wandb": {"machinery/tracking.py"},
    "wandb_workspaces": {"dashboard"},
    "hydra": {"launch", "config"},
    "omegaconf": {"launch"},
    "pydantic": {"config"},
    "textblob": {"texts/sentiment.py"},
    "matplotlib": {"analysis"},
    "vllm": {"policies/vllm_engine.py"},
    "parsl": {"launch/cluster.py"},
}
OF_THE_CHAIN = {("chain", "build"), ("chain", "NO_GPU"), ("chain", "AHEAD")}
LEARNING = {"torch", "transformers", "trl", "datasets", "sklearn", "scipy", "numpy", "pandas", "safetensors"}
HEAVY = {"torch", "transformers", "trl", "wandb", "matplotlib", "pandas", "datasets", "sklearn", "scipy", "numpy"}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    """The room that a file lies in; OF_ONE_FILE are rooms themselves."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports of ours: (room, first name inside it)."""
    for name in imported(path):
        if name.startswith("irl_exp."):
            _, place, *inside = name.split(".")
            yield place, inside[0] if inside else ""


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
OF_ONE_FILE = {"chain", "library", "runs", "__main__"}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def test_every_room_has_its_floor() -> None:
    assert {room(path) for path in FILES} == set.union(*FLOORS)
    assert len(set.union(*FLOORS)) == sum(map(len, FLOORS))


@each_file
def test_imports_go_downwards(path: Path) -> None:
    below: set[str] = set().union(*FLOORS[[room(path) in floor for floor in FLOORS].index(True) + 1 :])
    above = {"chain", "analysis"} if room(path) == "launch" else set()
    assert {place for place, _ in ours(path)} <= below | above | {room(path)}


@each_file
def test_of_another_room_only_what_it_offers_is_used(path: Path) -> None:
    used = {(place, name) for place, name in ours(path) if place != room(path) and name}
    offered = {place: importlib.import_module(f"irl_exp.{place}").__all__ for place, _ in used - OF_THE_CHAIN}
    assert [f"{place}.{name}" for place, name in used - OF_THE_CHAIN if name not in offered[place]] == []


@pytest.mark.parametrize("name", sorted(set.union(*FLOORS) - OF_ONE_FILE))
def test_a_room_says_what_it_knows_and_offers(name: str) -> None:
    found = importlib.import_module(f"irl_exp.{name}")
    assert found.__doc__
    for offered in found.__all__:
        place = PACKAGE / name / offered
        assert hasattr(found, offered) or place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def test_the_chain_is_one_screen() -> None:
    assert len((PACKAGE / "chain.py").read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "analysis"], ids=lambda path: path.name)
def test_the_statistics_room_learns_nothing(path: Path) -> None:
    assert not libraries(path) & {"torch", "transformers", "trl", "datasets", "hydra", "omegaconf", "wandb"}


@pytest.mark.parametrize("name", ALONE)
def test_machinery_and_mathematics_import_nothing_of_ours(name: str) -> None:
    assert list(ours(PACKAGE / f"{name}.py")) == []


def test_metrics_of_rewards_stand_on_their_mathematics_alone() -> None:
    path = PACKAGE / "measures/reward_metrics.py"
    assert {place for place, _ in ours(path)} == {"measures"}
    assert libraries(path) - set(sys.stdlib_module_names) == {"numpy", "pandas", "irl_exp"}


@pytest.mark.parametrize("name", ["store", "tracking"])
def test_machinery_knows_no_machine_learning(name: str) -> None:
    assert libraries(PACKAGE / f"machinery/{name}.py") & LEARNING == set()


@pytest.mark.parametrize("name", ["irl/losses", "measures/reward_comparison", "irl/bayesian"])
def test_mathematics_sees_arrays_alone(name: str) -> None:
    inside = libraries(PACKAGE / f"{name}.py") - set(sys.stdlib_module_names)
    assert inside <= {"torch", "numpy", "scipy", "sklearn"}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_place(library: str) -> None:
    users = [path.relative_to(PACKAGE) for path in FILES if library in libraries(path)]
    places = ONLY_IN[library]
    assert {path.as_posix() if path.as_posix() in places else path.parts[0] for path in users} == places


def test_a_stage_imports_no_stage() -> None:
    stages = [path for path in FILES if room(path) == "stages"]
    assert len(stages) > 8
    assert [path.name for path in stages if any(place == "stages" for place, _ in ours(path))] == []


@pytest.mark.parametrize(
    "program",
    [
        *("import irl_exp, irl_exp.config", "import irl_exp.launch.planner", "import hydra_plugins.irl_exp_planner"),
        *("import launch", "import irl_exp.__main__"),
    ],
)
def test_help_and_completion_load_nothing_heavy(program: str) -> None:
    """What every start, and every TAB, has to wait for."""
    program += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "irl_exp.config" in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()

"""Who may import whom: downwards only, and each heavy or foreign library in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "irl_exp"

# From the top to the bottom: a module imports only what stands below it. A new module needs a place here.
ORDER = (
    *("dashboard", "planner", "jobs", "preflight", "chain", "console", "report", "stages"),
    *("policy_optimization", "backbones", "methods", "learned_rewards", "shortcuts", "judging"),
    *("ground_truth", "rewards", "features", "supervised"),
    *("policies", "data", "comments", "heads", "policy_metrics", "reward_metrics"),
    *("contrast", "sentiment", "runtime", "config", "artifacts", "tracking", "losses", "reward_comparison", "bayesian"),
    "overoptimisation",
)
ALONE = (
    *("artifacts", "tracking", "losses", "heads", "reward_comparison", "bayesian", "comments", "config", "sentiment"),
    *("overoptimisation", "contrast"),
)
ONLY_IN = {
    "trl": {"policy_optimization"},
    "peft": {"backbones"},
    "wandb": {"tracking"},
    "wandb_workspaces": {"dashboard"},
    "hydra": {"planner", "jobs", "config"},
    "omegaconf": {"planner", "jobs", "config"},
    "pydantic": {"config"},
    "textblob": {"sentiment"},
    "matplotlib": {"analysis"},
}
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
    """The name in ORDER: that of the module, or of the folder that it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(path: Path) -> set[str]:
    """Our own modules that a file imports: names in ORDER."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("irl_exp.")}
    return names & {room(file) for file in FILES}


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def test_every_module_has_a_place() -> None:
    assert {room(path) for path in FILES} - {"analysis"} == set(ORDER)


@each_file
def test_imports_go_downwards(path: Path) -> None:
    if room(path) == "analysis":  # it reads what runs wrote; the end of a launch alone calls it
        assert ours(path) <= {"analysis", "reward_comparison", "report", "console", "contrast", "artifacts"}
        assert not libraries(path) & {"torch", "transformers", "trl", "datasets", "hydra", "omegaconf", "wandb"}
    else:
        below = ORDER[ORDER.index(room(path)) + 1 :]
        assert ours(path) <= {*below, *(["analysis"] if room(path) == "planner" else [])}


@pytest.mark.parametrize("name", ALONE)
def test_machinery_and_mathematics_import_nothing_of_ours(name: str) -> None:
    assert ours(PACKAGE / f"{name}.py") == set()


def test_metrics_of_rewards_stand_on_their_mathematics_alone() -> None:
    assert ours(PACKAGE / "reward_metrics.py") == {"reward_comparison"}
    assert libraries(PACKAGE / "reward_metrics.py") - set(sys.stdlib_module_names) == {"numpy", "pandas", "irl_exp"}


@pytest.mark.parametrize("name", ["artifacts", "tracking"])
def test_machinery_knows_no_machine_learning(name: str) -> None:
    assert libraries(PACKAGE / f"{name}.py") & LEARNING == set()


def test_the_dashboard_reads_files_and_knows_no_machine_learning() -> None:
    assert ours(PACKAGE / "dashboard.py") == {"config", "tracking"}
    assert libraries(PACKAGE / "dashboard.py") - set(sys.stdlib_module_names) == {"irl_exp", "wandb_workspaces"}


@pytest.mark.parametrize("name", ["losses", "reward_comparison", "bayesian"])
def test_mathematics_sees_arrays_alone(name: str) -> None:
    inside = libraries(PACKAGE / f"{name}.py") - set(sys.stdlib_module_names)
    assert inside <= {"torch", "numpy", "scipy", "sklearn"}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_place(library: str) -> None:
    assert {room(path) for path in FILES if library in libraries(path)} == ONLY_IN[library]


def test_a_stage_imports_no_stage() -> None:
    stages = [path for path in FILES if room(path) == "stages"]
    assert len(stages) > 8
    assert [path.name for path in stages if any(name.startswith("irl_exp.stages") for name in imported(path))] == []


@pytest.mark.parametrize(
    "program",
    ["import irl_exp.config", "import irl_exp.planner", "import hydra_plugins.irl_exp_planner", "import launch"],
)
def test_help_and_completion_load_nothing_heavy(program: str) -> None:
    """What every start, and every TAB, has to wait for."""
    program += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "irl_exp.config" in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()

"""What is refused before any long work: models that bring code of their own, functions that end the process."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small

from irl_exp import chain
from irl_exp.config import ModelConfig, SequenceClassifierConfig
from irl_exp.launch import preflight
from irl_exp.policies.language_models import Policy, PolicyError
from irl_exp.rewards.ground_truth import RewardError, SequenceClassifierReward
from irl_exp.stages import step as step_module
from irl_exp.stages.step import Step

CODE = """
import pathlib, transformers
pathlib.Path({told!r}).touch()
class Own(transformers.{base}):
    model_type = "own"
"""
CONFIG = {"model_type": "own", "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "own.Own")}
TOKENIZER = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a user on a terminal, who would agree to anything, was asked."""
    asked: list[str] = []

    def answer(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    return asked


def with_own_code(source: Path, folder: Path, name: str, base: str, settings: dict[str, Any]) -> Path:
    """A copy of a folder that brings code, which leaves a file where it was run."""
    shutil.copytree(source, folder)
    (folder / "own.py").write_text(CODE.format(told=str(folder / "run"), base=base))
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))
    return folder


def open_policy(step: Step) -> object:
    model = step.inputs["model"]
    assert isinstance(model, ModelConfig)
    return Policy.load(str(model.path), small.DEVICE)


def open_classifier(step: Step) -> object:
    assert isinstance(step.config, SequenceClassifierConfig)
    return SequenceClassifierReward.open(str(step.config.path), step.config, small.DEVICE)


@pytest.mark.parametrize(
    ("fixture", "stage", "field", "chosen", "opens"),
    [
        ("small_policy", "sft", "model", (), open_policy),
        ("small_classifier", "reward", "reward", ("reward=sequence_classifier",), open_classifier),
    ],
)
def test_code_of_a_model_is_refused_and_nobody_is_asked(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    asked: list[str],
    fixture: str,
    stage: str,
    field: str,
    chosen: tuple[str, ...],
    opens: Callable[[Step], object],
) -> None:
    whole = request.getfixturevalue(fixture)
    folder = with_own_code(whole, tmp_path / "model", "config.json", "PretrainedConfig", CONFIG)
    step = chain.build(small.compose(*chosen, f"{field}.path={folder}"), small.DEVICE)[stage]
    with pytest.raises(
        preflight.PreflightError, match=rf"^{field}.path={folder} cannot be opened: .* never run here: "
    ):
        preflight.check(step)
    with pytest.raises((PolicyError, RewardError), match="could be opened"):
        opens(step)
    assert asked == []
    assert not (folder / "run").exists()


def test_code_of_a_tokenizer_is_not_run(small_policy: Path, tmp_path: Path, asked: list[str]) -> None:
    """Where the folder has tokenizer.json, it can be opened without."""
    folder = with_own_code(
        small_policy, tmp_path / "model", "tokenizer_config.json", "PreTrainedTokenizerFast", TOKENIZER
    )
    preflight.check(chain.build(small.compose(f"model.path={folder}"), small.DEVICE)["sft"])
    Policy.load(folder, small.DEVICE)
    assert asked == []
    assert not (folder / "run").exists()


def test_a_model_of_another_kind_is_refused(small_policy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_policy, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text()) | {"model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(settings))
    step = chain.build(small.compose(f"model.path={folder}"), small.DEVICE)["sft"]
    with pytest.raises(preflight.PreflightError, match="no causal language model for model_type='vit'"):
        preflight.check(step)


@pytest.mark.parametrize("error", ["SystemExit(0)", "KeyboardInterrupt()", "BaseException('own')", "GeneratorExit()"])
@pytest.mark.parametrize("when", ["import", "call"])
def test_a_function_that_would_end_the_launch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, when: str
) -> None:
    body = f"raise {error}\n"
    (tmp_path / "enders.py").write_text(body if when == "import" else f"def score(prompts, completions):\n    {body}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "enders", raising=False)
    preflight._check_function.cache_clear()
    step = chain.build(small.compose("reward=imported", "reward.function=enders:score"), small.DEVICE)["reward"]
    with pytest.raises(preflight.PreflightError, match=rf"reward.function: enders:score .*{error.partition('(')[0]}"):
        preflight.check(step)


def test_a_property_of_the_user_is_tried_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_properties.py"
    module.write_text(
        "def calm(texts):\n    return [len(text) for text in texts]\ndef broken(texts):\n    return [1]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def candidates_of(function: str) -> Step:
        return chain.build(small.compose(f"explain.properties.imported=[own_properties:{function}]"), small.DEVICE)[
            "candidates"
        ]

    preflight.check(candidates_of("calm"))
    with pytest.raises(preflight.PreflightError, match="own_properties:broken must give 3 finite numbers"):
        preflight.check(candidates_of("broken"))
    before = candidates_of("calm").identity.digest
    small_change = module.read_text().replace("len(text)", "2 * len(text)")
    module.write_text(small_change)
    step_module._fingerprint.cache_clear()
    assert candidates_of("calm").identity.digest != before, "an edited function is another property"


def test_the_server_that_words_statements_has_to_answer() -> None:
    options = ("explain.wording=llm", "explain.address=http://127.0.0.1:9/v1", "explain.model=any")
    step = chain.build(small.compose(*options), small.DEVICE)["explain"]
    with pytest.raises(preflight.PreflightError, match=r"explain\.address=http://127\.0\.0\.1:9/v1: no answer"):
        preflight.check(step)

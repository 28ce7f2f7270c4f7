"""The whole chain with adapters on a checkpoint, and an audit of the adapter that it wrote; a small Llama."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small

from irl_exp.launch.experts import check_checkpoint
from irl_exp.launch.models import PreflightError
from irl_exp.launch.run import Job, run
from irl_exp.policies import bases
from irl_exp.policies.language_models import Policy

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    small.policy("llama").save(folder / "base")
    small.policy("neox").save(folder / "another")
    return folder


def chain(root: Path, name: str, *overrides: str) -> tuple[dict[str, float], dict[str, Path]]:
    """Metrics and artifacts by stage."""
    folder = root / name
    config = small.compose(f"store.dir={root / 'store'}", "data.count=600", *overrides)
    metrics = run(config, Job(0, "x", folder), lambda event: None)
    found = json.loads((folder / "config.json").read_text())["artifacts"]
    return metrics, {stage: root / "store" / stage / digest for stage, digest in found.items()}


def test_a_chain_with_adapters_and_an_audit_of_its_expert(root: Path) -> None:
    base = f"model.path={root / 'base'}"
    metrics, artifacts = chain(root, "chain", base, "adapter=lora", "adapter.rank=2", "irl/loss=hinge", "explain=none")
    assert {"expert/kl", "refinetuned/kl", "irl/auroc", "implicit/auroc"} <= metrics.keys()
    for stage in ("sft", "rlhf", "refinetune"):
        assert [path.name for path in artifacts[stage].glob("*.safetensors")] == ["adapter_model.safetensors"], stage
        assert bases.read(artifacts[stage])
    reference = Policy.load(artifacts["sft"], small.DEVICE)
    assert reference.is_in(artifacts["sft"])
    expert = f"expert.path={artifacts['rlhf']}"
    given = ("expert=checkpoint", expert, "model.tuned=true", "reward=none", "irl=implicit", "explain=none")
    audit, other = chain(root, "audit", *given, "adapter=lora", f"model.path={artifacts['sft']}")
    assert audit["expert/kl"] > 0
    assert Policy.load(other["sft"], small.DEVICE).known
    config = small.compose(*given, f"model.path={root / 'base'}")
    with pytest.raises(PreflightError, match="has other weights"):
        check_checkpoint(config.expert, config.model)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_backbone_is_trained_on_a_reference_in_bf16(root: Path) -> None:
    base = f"model.path={root / 'base'}"
    chosen = ("adapter=lora", "adapter.rank=2", "irl/backbone=lora", "irl.backbone.epochs=1", "explain=none")
    metrics, _ = chain(root, "trained", base, *chosen, "until=refinetune")
    assert {"irl/auroc", "refinetuned/kl"} <= metrics.keys()

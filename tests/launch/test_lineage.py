"""What W&B is told of what a run used and made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from irl_exp.launch import lineage
from irl_exp.machinery.store import Artifact, Identity
from irl_exp.machinery.tracking import Product

JOB = "irl/loss=hinge,irl.seed=3"


def artifacts(*stages: str) -> dict[str, Artifact]:
    made = {}
    for stage in stages:
        manifest = {"identity": {"stage": stage}, "info": {"note": "n"}}
        made[stage] = Artifact(Path(f"/store/{stage}"), Identity(stage, 1, {}, {}), manifest, reused=True, seconds=1.0)
    return made


def shown(stages: tuple[str, ...], job: str = JOB, kept: str = "reward") -> dict[str, tuple[Product, bool, bool]]:
    """What was logged by collection, whether as made and whether as used."""
    found = {}

    class Recorder:
        def log_artifact(self, product: Product, *, made: bool, used: bool) -> None:
            found[product.collection] = product, made, used

    config: Any = SimpleNamespace(name="losses", tracking=SimpleNamespace(artifacts=kept))
    recorder: Any = Recorder()
    lineage.show(artifacts(*stages), config, job, recorder)
    return found


CHAIN = ("sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate")


def test_the_lineage_goes_from_expert_to_reward_to_refinetuned_policy() -> None:
    edges = {name: (made, used) for name, (_, made, used) in shown(CHAIN).items()}
    assert edges == {
        "expert": (False, True),
        "demonstrations": (False, True),
        "reward": (True, True),
        "refinetuned": (True, False),
    }
    assert shown(CHAIN[:4])["reward"][1:] == (True, False)  # nothing was tuned on it
    assert shown(("sft", "evaluate")) == {}


def test_a_version_is_known_by_its_identity_its_cell_and_its_seed() -> None:
    found = shown(CHAIN)
    reward, expert = found["reward"][0], found["expert"][0]
    digest = artifacts("irl")["irl"].digest
    assert reward.aliases == [digest, "losses", "losses,irl/loss=hinge", "losses,irl/loss=hinge,irl.seed=3"]
    assert expert.aliases == [artifacts("rlhf")["rlhf"].digest, "losses"]  # 50 seeds share it
    assert reward.metadata == {"note": "n", "digest": digest, "folder": "/store/irl"}
    assert reward.identity == {"stage": "irl"}
    assert shown(CHAIN, job="irl.seed=3")["reward"][0].aliases == [digest, "losses", "losses,irl.seed=3"]
    assert shown(CHAIN, job="default")["reward"][0].aliases == [digest, "losses"]


@pytest.mark.parametrize(
    ("kept", "uploaded"),
    [("reward", {"reward"}), ("all", {"expert", "demonstrations", "reward", "refinetuned"}), ("none", set())],
)
def test_files_of_policies_are_uploaded_only_when_asked_for(kept: str, uploaded: set[str]) -> None:
    found = shown(CHAIN, kept=kept)
    assert {name for name, (product, _, _) in found.items() if product.uploaded} == uploaded
    assert len(found) == (0 if kept == "none" else 4)

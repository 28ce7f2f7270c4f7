"""What a run used and made, as W&B shows it: expert and demonstrations go in, the learned reward comes out of them.

The reward goes in again where a policy was refinetuned on it. Of each kind there is one collection for all studies; a
version is known by the digest of its identity, by its study, and what IRL makes by cell and job too.
"""

from __future__ import annotations

from collections.abc import Mapping

from irl_exp.config import Config
from irl_exp.machinery.store import Artifact
from irl_exp.machinery.tracking import Product, Tracker
from irl_exp.report.cells import cell_of

COLLECTIONS = {
    "rlhf": ("expert", "model"),
    "checkpoint": ("expert", "model"),
    "further": ("expert", "model"),
    "demonstrations": ("demonstrations", "dataset"),
    "irl": ("reward", "reward"),
    "refinetune": ("refinetuned", "model"),
}
"""The name and the type of the collection of what a stage makes."""

MADE = ("irl", "refinetune")
"""Stages whose results are outputs of a run; those of the others are its inputs, as a study shares them."""


def show(artifacts: Mapping[str, Artifact], config: Config, job: str, tracker: Tracker) -> None:
    """Give W&B the lineage of a run; files as `tracking.artifacts` says, identities otherwise."""
    if config.tracking.artifacts == "none":
        return
    read = {"rlhf", "checkpoint", "further", "demonstrations", *(["irl"] if "refinetune" in artifacts else [])}
    for stage in COLLECTIONS:
        if stage in artifacts:
            uploaded = stage == "irl" or config.tracking.artifacts == "all"
            shown = _product(artifacts[stage], config.name, job, uploaded)
            tracker.log_artifact(shown, made=stage in MADE, used=stage in read)


def _product(artifact: Artifact, study: str, job: str, uploaded: bool) -> Product:
    stage, manifest = artifact.identity.stage, artifact.manifest
    collection, kind = COLLECTIONS[stage]
    names = [study, *(f"{study},{name}" for name in (cell_of(job), job) if stage in MADE and name != "default")]
    return Product(
        collection,
        kind,
        artifact.folder,
        manifest["identity"],
        aliases=list(dict.fromkeys([artifact.digest, *names])),
        metadata={**manifest["info"], "digest": artifact.digest, "folder": str(artifact.folder)},
        uploaded=uploaded,
    )

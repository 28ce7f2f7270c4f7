"""Learned rewards: what an IRL method leaves behind, and how it judges any completion.

Each is a scorer and one increasing affine map to mean 0 and standard deviation 1 on the fit demonstrations, the scale
of refinetune and of reports: a loss of margins fixes neither of the two numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from irl_exp.irl.contrast import Basis, blocks
from irl_exp.irl.features import Featurizer
from irl_exp.machinery.runtime import Device
from irl_exp.machinery.store import verify
from irl_exp.policies.language_models import Completions, Policy, Progress
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.rewards.reward import RewardError, Scores, check_probes, read_back, save_probes

Floats = NDArray[np.float64]


class Scorer(Protocol):
    """Scores completions: (n,) rewards as the method left them, and their epistemic sd where the method has one."""

    kind: str

    def score(self, completions: Completions, progress: Progress = ...) -> tuple[Scores, Scores | None]: ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what has to be kept; the returned settings go into reward.json."""
        ...

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any], reference: Policy) -> Self: ...


@dataclass(frozen=True)
class LinearScorer:
    """R = w . (phi(x, y) - center), or an aggregate of several such rewards.

    Attributes:
        weights: (m, d), one row a member.
        center: (d,) mean features of the fit demonstrations.
        featurizer: makes phi.
        aggregate: "mean", "median", "lower_bound" (mean - deviations * sd) or "worst" (least) of the members.
        factor: (d, k) with factor factor^T the posterior covariance of the one member, or none.
    """

    weights: Floats
    center: Floats
    featurizer: Featurizer | None
    aggregate: str = "mean"
    deviations: float = 0.0
    factor: Floats | None = None
    kind = "linear"

    def score(
        self, completions: Completions, progress: Progress = lambda done, total: None
    ) -> tuple[Scores, Scores | None]:
        assert self.featurizer is not None
        return self.score_features(self.featurizer.extract(completions, progress=progress))

    def score_features(self, features: NDArray[np.float32]) -> tuple[Scores, Scores | None]:
        """(n,) rewards and their epistemic sd of (n, d) features, which are widened to float64 part by part."""
        scores, deviations = zip(*(self._score(features[rows]) for rows in blocks(*features.shape)), strict=True)
        return np.concatenate(scores), None if deviations[0] is None else np.concatenate(deviations)

    def _score(self, features: NDArray[np.float32]) -> tuple[Scores, Scores | None]:
        centred = features.astype(np.float64) - self.center
        members = centred @ self.weights.T
        if self.factor is not None:
            deviation = np.linalg.norm(centred @ self.factor, axis=1)
        elif len(self.weights) > 1:
            deviation = members.std(axis=1, ddof=1)
        else:
            return members[:, 0], None
        return aggregated(members, deviation, self.aggregate, self.deviations), deviation

    def before(self, basis: Basis) -> LinearScorer:
        """Of this reward of components: the same reward of the features."""
        directions = basis.directions
        factor = None if self.factor is None else directions @ self.factor
        center = basis.center + directions @ self.center
        return replace(self, weights=self.weights @ directions.T, center=center, factor=factor)

    def save(self, folder: Path) -> dict[str, Any]:
        arrays = {"weights": self.weights, "center": self.center}
        save_file(arrays if self.factor is None else {**arrays, "factor": self.factor}, folder / "head.safetensors")
        return {"aggregate": self.aggregate, "deviations": self.deviations}

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any], reference: Policy) -> Self:
        arrays = load_file(folder / "head.safetensors")
        featurizer = Featurizer.load(folder / "featurizer", reference)
        aggregate, deviations = settings["aggregate"], settings["deviations"]
        return cls(arrays["weights"], arrays["center"], featurizer, aggregate, deviations, arrays.get("factor"))


def aggregated(members: Floats, deviation: Floats, aggregate: str, deviations: float) -> Floats:
    """(n,) one reward of (n, m) members and their (n,) sd."""
    if aggregate == "median":
        return np.asarray(np.median(members, axis=1))
    if aggregate == "worst":
        return np.asarray(members.min(axis=1))
    mean = members.mean(axis=1)
    return np.asarray(mean - deviations * deviation if aggregate == "lower_bound" else mean)


@dataclass(frozen=True)
class TrainedScorer:
    """As `head`, on the hidden states of a backbone that was trained with it.

    Attributes:
        head: its featurizer reads that backbone in place of the reference policy.
    """

    head: LinearScorer
    kind = "trained"

    def score(
        self, completions: Completions, progress: Progress = lambda done, total: None
    ) -> tuple[Scores, Scores | None]:
        return self.head.score(completions, progress)

    def save(self, folder: Path) -> dict[str, Any]:
        """An ordinary model of its architecture (adapters are merged into it), with the head beside it."""
        featurizer = self.head.featurizer
        assert featurizer is not None
        featurizer.policy.model.save_pretrained(folder / "backbone")
        featurizer.save(folder / "featurizer")
        return self.head.save(folder)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any], reference: Policy) -> Self:
        model = transformers.AutoModel.from_pretrained(
            folder / "backbone", dtype=torch.float32, trust_remote_code=False
        )
        model = model.to(reference.device.name).eval()
        return cls(LinearScorer.load(folder, settings, Policy(model, reference.tokenizer, reference.device)))


@dataclass(frozen=True)
class ImplicitScorer:
    """R = beta log pi_expert(y|x) / pi_reference(y|x): R* up to a constant per prompt at the optimum of RL."""

    expert: Policy
    reference: Policy
    kl_coefficient: float
    expert_name: str
    kind = "implicit"

    def score(
        self, completions: Completions, progress: Progress = lambda done, total: None
    ) -> tuple[Scores, Scores | None]:
        ratio = log_probabilities(self.expert, completions) - log_probabilities(self.reference, completions)
        return self.kl_coefficient * ratio, None

    def save(self, folder: Path) -> dict[str, Any]:
        return {"expert": self.expert_name, "kl_coefficient": self.kl_coefficient}

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any], reference: Policy) -> Self:
        expert = _sibling(folder, EXPERTS, settings["expert"])
        own = Policy.load(expert, reference.device, base=reference)
        return cls(own, reference, settings["kl_coefficient"], settings["expert"])


@dataclass(frozen=True)
class ConstantScorer:
    """R = 0: knows nothing."""

    kind = "constant"

    def score(
        self, completions: Completions, progress: Progress = lambda done, total: None
    ) -> tuple[Scores, Scores | None]:
        return np.zeros(len(completions)), None

    def save(self, folder: Path) -> dict[str, Any]:
        return {}

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any], reference: Policy) -> Self:
        return cls()


EXPERTS = ("rlhf", "checkpoint", "further", "sft")
"""Stages whose result may be an expert; that of sft is the reference itself."""

AUTHOR = "author"
"""The kind of the one reward that has no scorer."""

SCORERS: tuple[type[Scorer], ...] = (LinearScorer, TrainedScorer, ImplicitScorer, ConstantScorer)


@dataclass(frozen=True)
class LearnedReward:
    """A learned reward that can judge any completion.

    Attributes:
        offset, scale: mean and standard deviation on the fit demonstrations.
        reference: the reference policy, whose tokens and hidden states the scorer reads.
    """

    scorer: Scorer
    offset: float
    scale: float
    reference: Policy

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        """(n,) rewards as the method left them: no constant is identified."""
        return self.scorer.score(completions, progress)[0]

    def hearing(self) -> AbstractContextManager[None]:
        """Within, what the reference reads for its log-probabilities need not be read again for `score`."""
        featurizer = self.scorer.featurizer if isinstance(self.scorer, LinearScorer) else None
        return featurizer.hearing() if featurizer else nullcontext()

    def standardised(self, scores: Scores) -> Scores:
        """Mean 0 and standard deviation 1 on the fit demonstrations."""
        return (scores - self.offset) / self.scale

    @classmethod
    def load(cls, folder: Path, device: Device, *, reference: Path | Policy | None = None) -> Self:
        """Read a learned reward; its reference policy lies in the same store unless `reference` says where, or is it.

        Raises:
            ArtifactError: a file of it, or of a policy that it needs, is damaged.
            RewardError: a policy that it needs is not there, or the reward does not reproduce its own scores.
        """
        verify(folder)
        settings = read_settings(folder)
        scorer = next(kind for kind in SCORERS if kind.kind == settings["kind"])
        policy = (
            reference
            if isinstance(reference, Policy)
            else Policy.load(reference or _sibling(folder, ["sft"], settings["reference"]), device)
        )
        with read_back(folder):
            reward = cls(scorer.load(folder, settings, policy), settings["offset"], settings["scale"], policy)
        check_probes(folder, reward)
        return reward


def read_settings(folder: Path) -> dict[str, Any]:
    """What reward.json says of a learned reward: its kind, reference, offset, scale, and what its kind has more.

    Raises:
        RewardError: the file is not there, or is not what `save` writes.
    """
    path = folder / "reward.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardError(f"{path} cannot be read ({error}). Give the folder of a learned reward.") from None
    if isinstance(found, dict) and found.get("kind") == AUTHOR:
        raise RewardError(f"{folder}: irl=author knows who wrote the demonstrations and scores no other text.")
    kinds = [scorer.kind for scorer in SCORERS]
    if not isinstance(found, dict) or found.get("kind") not in kinds:
        kind = found.get("kind") if isinstance(found, dict) else found
        raise RewardError(f"{path}: kind={kind!r} is none of {', '.join(kinds)}. Compute this reward again.")
    for key, wanted in _FIELDS.items():
        if isinstance(found.get(key), bool) or not isinstance(found.get(key), wanted):
            raise RewardError(f"{path}: {key}={found.get(key)!r} is not what was saved. Compute this reward again.")
    return found


_FIELDS: dict[str, Any] = {"offset": int | float, "scale": int | float, "reference": str}


def save(
    folder: Path,
    scorer: Scorer,
    fitted_on: Scores,
    *,
    reference: str,
    probes: Completions,
    probe_scores: Scores,
    featurizer: Path | None = None,
) -> None:
    """Write a learned reward.

    Args:
        fitted_on: its scores on the fit demonstrations: they give offset and scale.
        reference: digest of the reference policy's artifact (stage sft) in the store.
        probes, probe_scores: completions whose scores in fp32 a loaded reward has to reproduce.
        featurizer: folder to copy, for a scorer that reads features.

    Raises:
        RewardError: scores that are not finite.
    """
    if not np.isfinite(fitted_on).all():
        raise RewardError("the learned reward is not a finite number for some demonstrations.")
    _write_settings(folder, fitted_on, {"reference": reference, "kind": scorer.kind, **scorer.save(folder)})
    if featurizer is not None:
        shutil.copytree(featurizer, folder / "featurizer")
    save_probes(folder, probes, probe_scores)


def save_author(folder: Path, fitted_on: Scores, *, reference: str) -> None:
    """Write the reward that knows who wrote a demonstration: its scale, and that it scores nothing else."""
    _write_settings(folder, fitted_on, {"reference": reference, "kind": AUTHOR})


def _write_settings(folder: Path, fitted_on: Scores, settings: dict[str, Any]) -> None:
    offset, scale = scale_of(fitted_on)
    settings |= {"offset": offset, "scale": scale}
    (folder / "reward.json").write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")


def scale_of(fitted_on: Scores) -> tuple[float, float]:
    """Offset and scale of a reward by its scores on the fit demonstrations; a constant one has no scale of its own."""
    return float(fitted_on.mean()), float(fitted_on.std()) or 1.0


def scores_texts(folder: Path) -> bool:
    """Whether a learned reward can judge any completion, or that of the demonstrations alone (irl=author)."""
    return bool(json.loads((folder / "reward.json").read_text(encoding="utf-8"))["kind"] != AUTHOR)


def _sibling(folder: Path, stages: Sequence[str], digest: str) -> Path:
    """The artifact of another stage, one of these, in the same store."""
    places = [folder.parent.parent / stage / Path(str(digest)).name for stage in stages]
    found = next(filter(Path.is_dir, places), None)
    if found is None:
        raise RewardError(
            f"{folder}: the policy that it reads is missing: {places[0]}. Compute it again, or pass its folder."
        )
    return found

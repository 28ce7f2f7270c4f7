"""Features too many for copies of them: read from the disk, part by part, or their components in place of all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from irl_exp.config import (
    BayesianConfig,
    BradleyTerryLoss,
    EnsembleConfig,
    FeaturesConfig,
    FrozenBackbone,
    HiddenStateConfig,
    MarginConfig,
    ProbeConfig,
    ProbeRegressionConfig,
)
from irl_exp.irl import contrast, methods
from irl_exp.irl.contrast import Basis, Demonstrations, IrlError, Moments, by_block
from irl_exp.irl.learned_rewards import LinearScorer
from irl_exp.machinery.tensors import mapped, write

COMMON: dict[str, Any] = {"seed": 0, "features": FeaturesConfig(hidden_state=HiddenStateConfig())}
HEADS: dict[str, Any] = {**COMMON, "loss": BradleyTerryLoss(), "epochs": 4}


def frame_of(prompts: int) -> pd.DataFrame:
    """One pair a prompt: three fifths are of fit."""
    share = np.arange(prompts) / prompts
    parts = np.where(share < 0.6, "fit", np.where(share < 0.8, "select", "test"))
    one = pd.DataFrame({"part": parts, "prompt_id": np.arange(prompts), "sample": 0})
    return pd.concat([one.assign(policy=policy) for policy in ("expert", "baseline")], ignore_index=True)


def world(width: int, prompts: int, seed: int = 0) -> tuple[Demonstrations, NDArray[np.float64]]:
    """Features of variance 1, 1/2, 1/3, ... around 3; the expert is ahead along the leading ones. And R*."""
    random = np.random.default_rng(seed)
    frame = frame_of(prompts)
    sd = np.arange(1, width + 1) ** -0.5
    direction = np.where(np.arange(width) < width // 8, random.normal(size=width) / sd, 0.0)
    features = random.normal(size=(2 * prompts, width)) * sd
    features[:prompts] += 0.3 * np.sign(direction) * sd
    return Demonstrations(frame, (features + 3).astype(np.float32)), features @ direction


def fits(seen: Demonstrations, truth: NDArray[np.float64]) -> list[methods.Fit]:
    """One of each method that reads features."""
    margins = [MarginConfig(**{**HEADS, "seed": seed}, backbone=FrozenBackbone()) for seed in (0, 1)]
    return [
        *methods.fit_margin(margins, seen),
        *methods.fit_margin([EnsembleConfig(**HEADS, members=3)], seen),
        methods.fit_bayesian(BayesianConfig(**COMMON), seen),
        methods.fit_probe(ProbeConfig(**COMMON), seen, truth),
        methods.fit_probe_regression(ProbeRegressionConfig(**COMMON), seen, truth),
    ]


def told(fit: methods.Fit, seen: Demonstrations) -> dict[str, NDArray[Any]]:
    """Everything that a stage writes of a fit, in sd of its scores."""
    scores = fit.scores(seen)
    found = {"scores": (scores - scores.mean()) / scores.std()}
    found |= {name: values / scores.std() for name, values in fit.uncertainty(seen).items() if name == "deviation"}
    epochs = fit.epochs(seen, "test")
    return found if epochs is None else {**found, "epochs": epochs / scores.std()}


def test_in_parts_and_in_float32_every_method_finds_the_same_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, truth = world(40, 160)
    whole = fits(seen, truth)
    expected = [told(fit, seen) for fit in whole]
    monkeypatch.setattr(contrast, "AT_ONCE", 40 * 7)  # seven rows
    for fit, other, values in zip(fits(seen, truth), whole, expected, strict=True):
        assert fit.info.get("ridge") == other.info.get("ridge")
        found = told(fit, seen)
        assert found.keys() == values.keys()
        for name in values:
            np.testing.assert_allclose(found[name], values[name], atol=2e-4)


def test_the_moments_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = world(30, 100)
    seen.features[:, 0] += 1e4  # whose square float32 does not hold beside a variance of 1
    whole = Moments.of(seen.features, seen.rows_of_fit, "whiten")
    monkeypatch.setattr(contrast, "AT_ONCE", 30 * 7)
    parts = Moments.of(seen.features, seen.rows_of_fit, "whiten")
    for name in ("center", "spread", "values"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9)
    np.testing.assert_allclose(whole.spread, seen.features[seen.fit].astype(np.float64).std(0), rtol=1e-12)


def test_what_is_written_is_what_safetensors_reads_and_is_mapped_back(tmp_path: Path) -> None:
    arrays = {
        "features": np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32),
        "human": np.empty((0, 5), dtype=np.float32),
    }
    write(tmp_path / "features.safetensors", arrays)
    for found in (load_file(tmp_path / "features.safetensors"), mapped(tmp_path / "features.safetensors")):
        assert found.keys() == arrays.keys()
        for name, values in arrays.items():
            assert found[name].shape == values.shape
            assert found[name].tobytes() == values.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        mapped(tmp_path / "features.safetensors")["features"][0, 0] = 1.0


def test_no_rows_and_less_than_a_row_at_once_are_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "AT_ONCE", 2)
    assert by_block(lambda some: some.sum(1), np.ones((3, 5), dtype=np.float32)).tolist() == [5, 5, 5]
    scorer = LinearScorer(np.ones((1, 5)), np.zeros(5), None)
    assert scorer.score_features(np.empty((0, 5), dtype=np.float32))[0].shape == (0,)


# ---------------------------------------------------------------- components


def test_components_are_the_leading_principal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = world(120, 200)
    monkeypatch.setattr(contrast, "AT_ONCE", 120 * 50)
    basis = Basis.of(seen.features, seen.rows_of_fit, 12)
    np.testing.assert_allclose(basis.directions.T @ basis.directions, np.eye(12), atol=1e-10)
    fit = seen.features[seen.fit].astype(np.float64)
    variances = np.linalg.svd(fit - fit.mean(0), compute_uv=False)[:12] ** 2 / len(fit)
    found = basis(seen.features)[seen.fit].astype(np.float64)
    assert found.var(axis=0).sum() > 0.99 * variances.sum()
    np.testing.assert_allclose(found.var(axis=0)[:4], variances[:4], rtol=0.02)
    assert (Basis.of(seen.features, seen.rows_of_fit, 12).directions == basis.directions).all()


def test_rows_that_are_not_of_fit_have_no_part_in_the_components() -> None:
    seen, _ = world(30, 60)
    other = seen.features.copy()
    other[~seen.fit] = 7.0
    found = [Basis.of(features, seen.rows_of_fit, 3).directions for features in (seen.features, other)]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("count", [30, 40, 72])
def test_as_many_components_as_features_or_rows_are_refused(count: int) -> None:
    seen, _ = world(30 if count < 72 else 90, 60)
    with pytest.raises(IrlError, match=rf"irl\.components={count}: there are \d+ features and 72 completions of fit"):
        Basis.of(seen.features, seen.rows_of_fit, count)


def test_a_reward_of_components_is_a_reward_of_the_features() -> None:
    seen, truth = world(60, 160)
    basis = Basis.of(seen.features, seen.rows_of_fit, 9)
    inside = Demonstrations(seen.frame, basis(seen.features))
    for fit in fits(inside, truth):
        scorer = fit.scorer.before(basis)
        assert scorer.weights.shape[1] == len(scorer.center) == 60
        for found, expected in zip(
            scorer.score_features(seen.features), fit.scorer.score_features(inside.features), strict=True
        ):
            assert (found is None) == (expected is None)
            if expected is not None:
                np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_few_components_find_a_reward_that_leading_directions_have() -> None:
    """Where rows are few for the width: 144 pairs of fit, 400 features."""
    seen, _ = world(400, 240, seed=2)
    basis = Basis.of(seen.features, seen.rows_of_fit, 50)
    config = MarginConfig(**{**HEADS, "epochs": 20, "learning_rate": 0.01}, backbone=FrozenBackbone())
    (fit,) = methods.fit_margin([config], Demonstrations(seen.frame, basis(seen.features)))
    scores = fit.scorer.before(basis).score_features(seen.features)[0]
    others = np.concatenate([seen.pairs(scores, part) for part in ("select", "test")])
    assert (others > 0).mean() > 0.7  # of 96


MEASURED = """
import sys
import numpy as np, pandas as pd, sklearn.linear_model
from irl_exp.machinery.runtime import prepare_process
prepare_process()
sys.path.insert(0, sys.argv[2])
import test_wide
from irl_exp.irl import contrast, methods

def now(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024

seen, _ = test_wide.world(64, 64)
run = [test_wide.MarginConfig(**test_wide.HEADS, backbone=test_wide.FrozenBackbone())]
methods.fit_margin(run, seen)  # what is loaded when it is first used
contrast.AT_ONCE = 2**20  # parts of 8 MB, small beside the features
features = test_wide.mapped(test_wide.Path(sys.argv[1]))["features"]
frame, components = test_wide.frame_of(len(features) // 2), int(sys.argv[3])
before = now("VmRSS")
seen = contrast.Demonstrations(frame, features)
if components:
    basis = contrast.Basis.of(features, seen.rows_of_fit, components)
    seen = contrast.Demonstrations(frame, basis(features))
(fit,) = methods.fit_margin(run, seen)
fit.scores(seen), fit.epochs(seen, "test")
print((now("VmHWM") - before) / features.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("width", "components"), [(512, 0), (4096, 64)])
def test_there_are_at_most_three_copies_of_the_features(tmp_path: Path, width: int, components: int) -> None:
    """Resident memory of a fit above that of before, the mapped file included; 98 MB of features."""
    rows = 6000 * 4096 // width
    random = np.random.default_rng(0)
    features = (
        random.standard_normal((rows, width), dtype=np.float32) / np.arange(1, width + 1, dtype=np.float32) ** 0.5
    )
    write(tmp_path / "features.safetensors", {"features": features})
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "features.safetensors"), str(Path(__file__).parent)]
    done = subprocess.run([*command, str(components)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3

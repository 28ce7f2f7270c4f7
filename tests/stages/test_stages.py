"""The stages, run in order on a small world: what each writes, what it may see, and numbers recomputed by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score, roc_auc_score

from irl_exp import chain
from irl_exp.config import Config, DemonstrationsConfig, EvaluateConfig, IrlConfig, ModelConfig, SftConfig
from irl_exp.irl import features
from irl_exp.irl.contrast import IrlError
from irl_exp.irl.features import Featurizer
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.launch import run
from irl_exp.machinery.runtime import Event
from irl_exp.machinery.store import Store
from irl_exp.measures import policy_metrics
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.sampling import generate
from irl_exp.rewards.ground_truth import load_ground_truth
from irl_exp.stages import baseline as baseline_stage
from irl_exp.stages import demonstrations as demonstrations_stage
from irl_exp.stages import evaluate as evaluate_stage
from irl_exp.stages import irl as irl_stage
from irl_exp.stages import sft as sft_stage
from irl_exp.texts.data import WITHOUT_LABELS

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # TRL's own

SIZES = (
    "data.count=1200",
    "model.hidden_size=16",
    "model.layers=2",
    "model.heads=2",
    "model.vocabulary=400",
    "sft.steps=30",
    "max_new_tokens=10",
)
SEEN: list[str] = []
"""The stages that were computed, in order."""


@dataclass(frozen=True)
class World:
    """One run of the chain, in a store of its own."""

    config: Config
    folder: Path
    metrics: Mapping[str, float]

    def of(self, stage: str) -> Path:
        """The folder of a stage's artifact."""
        step = chain.build(self.config, small.DEVICE)[stage]
        return Store(self.config.store.dir).folder(step.identity)

    def table(self, stage: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.of(stage) / name)

    @property
    def demos(self) -> pd.DataFrame:
        return self.table("demonstrations", "demonstrations.parquet")

    def policy(self, stage: str) -> Policy:
        return Policy.load(self.of(stage), small.DEVICE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


def world_of(root: Path, *overrides: str) -> World:
    """The chain in the store of this module: what is there already is not computed again."""
    config = small.compose(*SIZES, f"store.dir={root / 'store'}", *overrides)
    folder = root / (",".join(overrides) or "whole")

    def report(event: Event) -> None:
        if event.state == "computed":
            SEEN.append(event.stage)

    SEEN.clear()
    return World(config, folder, run.run(config, run.Job(0, "test", folder), report))


@pytest.fixture(scope="module")
def world(root: Path) -> World:
    return world_of(root)


# ---------------------------------------------------------------- sft


def trained(world: World, folder: Path, texts: pd.DataFrame, model: ModelConfig, steps: int = 3) -> dict[str, Any]:
    """Run sft on these texts; its info, with the weights."""
    folder.mkdir(parents=True)
    texts.to_parquet(folder / "texts.parquet")
    context = small.context(folder / "sft")
    config = SftConfig(seed=0, steps=steps, batch_size=4)
    info = sft_stage.run(config, model=model, data=folder, context=context)
    return {**info, "weights": (context.folder / "model.safetensors").read_bytes()}


def test_sft_sees_the_sft_part_alone(world: World, tmp_path: Path) -> None:
    texts, model = world.table("data", "texts.parquet"), world.config.model
    first = trained(world, tmp_path / "first", texts, model)
    outside = texts["part"] != "sft"
    changed = texts.assign(completion=texts["completion"].where(~outside, " something else"))
    assert trained(world, tmp_path / "outside", changed, model)["weights"] == first["weights"]
    changed = texts.assign(completion=texts["completion"].where(outside, " something else"))
    assert trained(world, tmp_path / "inside", changed, model)["weights"] != first["weights"]


def test_sft_lowers_the_loss_on_texts_that_it_did_not_train_on(world: World, tmp_path: Path) -> None:
    texts, model = world.table("data", "texts.parquet"), world.config.model
    short, long = (trained(world, tmp_path / str(steps), texts, model, steps) for steps in (1, 30))
    assert long["held_out_nll"] < short["held_out_nll"] - 0.3
    assert 0 < long["trained_on"] < (texts["part"] == "sft").sum()


def test_a_tuned_checkpoint_is_the_reference_as_it_is(world: World, tmp_path: Path) -> None:
    small.policy("gpt2").save(tmp_path / "mine")
    model = ModelConfig(path=tmp_path / "mine", tuned=True)
    info = trained(world, tmp_path / "run", world.table("data", "texts.parquet"), model)
    mine, theirs = load_file(tmp_path / "mine" / "model.safetensors"), tmp_path / "run" / "sft" / "model.safetensors"
    assert all((mine[name] == weight).all() for name, weight in load_file(theirs).items())
    assert info["trained_on"] == 0


# ---------------------------------------------------------------- rlhf, demonstrations, judge


def test_rlhf_starts_at_its_reference_and_leaves_it(world: World) -> None:
    rows = [json.loads(line) for line in (world.of("rlhf") / "history.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    expert, reference = (load_file(world.of(stage) / "model.safetensors") for stage in ("rlhf", "sft"))
    assert any((expert[name] != reference[name]).any() for name in reference)


def test_row_i_of_expert_and_baseline_is_the_same_prompt_and_sample(world: World) -> None:
    demos = world.demos
    half = len(demos) // 2
    assert demos["policy"].tolist() == ["expert"] * half + ["baseline"] * half
    same = ["part", "prompt_id", "prompt", "sample"]
    expert, baseline = demos[:half][same], demos[half:][same].reset_index(drop=True)
    pd.testing.assert_frame_equal(expert, baseline)
    assert (demos.groupby(["policy", "prompt_id"])["sample"].apply(list).map(lambda n: n == [0, 1])).all()
    assert demos["completion"][:half].tolist() != demos["completion"][half:].tolist()


def test_demonstrations_are_of_the_prompts_of_their_part_and_no_prompt_is_in_two(world: World) -> None:
    texts, demos = world.table("data", "texts.parquet"), world.demos
    assert (demos.groupby("prompt")["part"].nunique() == 1).all()
    for part in ("fit", "select", "test"):
        assert set(demos.loc[demos["part"] == part, "prompt"]) == set(texts.loc[texts["part"] == part, "prompt"])
    assert set(demos["part"]) == {"fit", "select", "test"}


def test_demonstrations_carry_the_log_probabilities_of_both_policies(world: World) -> None:
    fit = world.demos["part"] == "fit"
    rows = world.demos[~fit].iloc[::5]
    for column, stage in (("expert_log_probability", "rlhf"), ("reference_log_probability", "sft")):
        slow = small.slow_log_probabilities(world.policy(stage), Completions.from_frame(rows))
        np.testing.assert_allclose(rows[column], slow, atol=1e-3)
        assert world.demos.loc[fit, column].isna().all(), "nothing that IRL fits reads them"
    assert (rows["expert_log_probability"] != rows["reference_log_probability"]).any()


def test_an_expert_that_is_the_reference_itself_has_a_log_ratio_of_nothing_at_all(world: World, tmp_path: Path) -> None:
    """Its completions are read by demonstrations, the reference's by baseline: rounding would tell the two apart."""
    found = demonstrations(world, tmp_path / "itself", expert="sft")
    rows = found[found["part"] != "fit"]
    assert (rows["expert_log_probability"] == rows["reference_log_probability"]).all()


def test_demonstrations_say_which_completions_ended(world: World) -> None:
    eos, demos = world.policy("sft").eos, world.demos
    assert demos["ended"].tolist() == [ids[-1] == eos for ids in demos["completion_ids"]]
    assert (demos["completion_ids"].map(len) <= 10).all()


def demonstrations(world: World, folder: Path, *, expert: str = "rlhf", **options: Any) -> pd.DataFrame:
    config = DemonstrationsConfig(**{"seed": 0, "completions_per_prompt": 1, "max_new_tokens": 6, **options})
    context = small.context(folder)
    given = {"reference": world.of("sft"), "data": world.of("data")}
    baseline = small.context(folder / "baseline")
    baseline_stage.run(config, **given, context=baseline)
    demonstrations_stage.run(config, expert=world.of(expert), baseline=baseline.folder, **given, context=context)
    return pd.read_parquet(context.folder / "demonstrations.parquet")


@pytest.mark.parametrize(
    "other", ["rlhf=dpo", "rlhf.seed=1", "expert=itself", "demonstrations.writers=swapped", "shortcut=marker"]
)
def test_all_experts_on_one_reference_share_what_it_writes(other: str) -> None:
    one, another = (chain.build(small.compose(*more), small.DEVICE) for more in ((), (other,)))
    assert another["baseline"].identity == one["baseline"].identity
    assert another["demonstrations"].identity != one["demonstrations"].identity


def test_greedy_demonstrations_are_greedy_on_fit_and_select_and_never_on_test(world: World, tmp_path: Path) -> None:
    demos = demonstrations(world, tmp_path, greedy=True)
    for name, stage in (("expert", "rlhf"), ("baseline", "sft")):
        own = demos[demos["policy"] == name]
        greedy = generate(
            world.policy(stage), own["prompt"].tolist(), max_new_tokens=6, batch_size=256, seed=0, greedy=True
        )
        both = zip(own["completion_ids"], greedy.completion_ids, strict=True)
        same = np.array([list(mine) == theirs for mine, theirs in both])
        assert same[own["part"] != "test"].all()
        assert same[own["part"] == "test"].mean() < 0.5


def test_demonstrations_follow_their_seed_and_each_policy_has_its_own_stream(world: World, tmp_path: Path) -> None:
    first = demonstrations(world, tmp_path / "first", expert="sft")
    pd.testing.assert_frame_equal(first, demonstrations(world, tmp_path / "second", expert="sft"))
    other = demonstrations(world, tmp_path / "other", expert="sft", seed=1)
    assert (first["completion"] != other["completion"]).mean() > 0.5
    expert, baseline = (first.loc[first["policy"] == name, "completion"].to_numpy() for name in ("expert", "baseline"))
    assert (expert != baseline).mean() > 0.5, "one model twice must not write the same twice"


def test_swapped_writers_are_the_same_completions_half_of_the_pairs_turned_round(world: World, tmp_path: Path) -> None:
    kept, swapped = (demonstrations(world, tmp_path / name, writers=name) for name in ("kept", "swapped"))
    place = ["part", "prompt_id", "sample", "prompt"]
    pd.testing.assert_frame_equal(kept[place], swapped[place])
    (mine, theirs), (expert, baseline) = (np.split(frame["completion"].to_numpy(), 2) for frame in (kept, swapped))
    turned = expert != mine
    assert 0.35 < turned.mean() < 0.65
    np.testing.assert_array_equal(expert, np.where(turned, theirs, mine))
    np.testing.assert_array_equal(baseline, np.where(turned, mine, theirs))
    for column in ("expert_log_probability", "reference_log_probability"):
        before, after = (np.split(frame[column].to_numpy(), 2) for frame in (kept, swapped))
        np.testing.assert_allclose(after[0], np.where(turned, before[1], before[0]), atol=1e-4)  # other batches


def test_the_judge_leaves_fit_unjudged_and_agrees_with_the_ground_truth_elsewhere(world: World) -> None:
    scores, demos = world.table("judge", "scores.parquet")["reward"], world.demos
    fit = demos["part"] == "fit"
    assert scores[fit].isna().all()
    truth = load_ground_truth(world.of("reward"), small.DEVICE).score(Completions.from_frame(demos[~fit]))
    np.testing.assert_array_equal(scores[~fit], truth)


# ---------------------------------------------------------------- irl


def test_features_are_in_the_order_of_the_demonstrations(world: World) -> None:
    phi = load_file(world.of("features") / "features.safetensors")["features"]
    rows = world.demos.sample(20, random_state=0)
    featurizer = Featurizer.load(world.of("features") / "featurizer", world.policy("sft"))
    expected = featurizer.extract(Completions.from_frame(rows))
    assert phi.shape == (len(world.demos), 3 * 16)
    np.testing.assert_allclose(phi[rows.index], expected, atol=1e-4)


def test_irl_is_given_nothing_that_knows_the_ground_truth(world: World) -> None:
    step = chain.build(world.config, small.DEVICE)["irl"]
    assert set(step.inputs) == {"features", "demonstrations", "reference", "data"}
    assert set(chain.build(world.config, small.DEVICE)["features"].inputs) == {"demonstrations", "reference", "data"}
    assert "toxic" not in WITHOUT_LABELS, "the columns of the data that both read"
    truth = {"reward", "toxic", "label", "score"}
    assert not truth & set(world.demos.columns)
    features = load_file(world.of("features") / "features.safetensors")
    assert set(features) == {"features", "human"}


def test_the_seed_of_irl_changes_irl_and_what_follows_and_nothing_before(root: Path, world: World) -> None:
    other = world_of(root, "irl.seed=1")
    assert SEEN == ["irl", "explain", "refinetune", "evaluate"]
    heads = [load_file(one.of("irl") / "head.safetensors")["weights"] for one in (world, other)]
    assert (heads[0] != heads[1]).any()
    for key in ("expert/reward_mean", "reference/toxic_fraction", "irl/n_civil"):
        assert world.metrics[key] == other.metrics[key]


@pytest.mark.parametrize("method", ["implicit", "probe", "probe_regression", "majority", "author", "bayesian"])
def test_a_method_that_draws_nothing_is_computed_once_for_all_seeds(method: str) -> None:
    def identity(*overrides: str) -> str:
        config = small.compose(*SIZES, f"irl={method}", "until=irl", *overrides)
        return chain.build(config, small.DEVICE)["evaluate"].identity.digest

    assert identity("irl.seed=0") == identity("irl.seed=7")
    if method == "bayesian":
        assert identity("irl.seed=0", "irl.aggregate=sample") != identity("irl.seed=7", "irl.aggregate=sample")


def irl(
    world: World, folder: Path, config: IrlConfig, *, demos: Path | None = None, features: Path | None = None
) -> Path:
    context = small.context(folder)
    irl_stage.run(
        config,
        demonstrations=demos or world.of("demonstrations"),
        features=features or world.of("features"),
        reference=world.of("sft"),
        data=world.of("data"),
        context=context,
    )
    return context.folder


def whole(world: World, **options: Any) -> IrlConfig:
    """The config of the world with its own features."""
    return world.config.irl.model_copy(update=options)


def test_irl_repeats_bit_for_bit_and_seed_0_is_a_seed(world: World, tmp_path: Path) -> None:
    first, second, other = (irl(world, tmp_path / str(n), whole(world, seed=seed)) for n, seed in enumerate((0, 0, 1)))
    for name in ("head.safetensors", "probes.parquet", "reward.json", "scores.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (world.of("irl") / name).read_bytes()
    assert (first / "head.safetensors").read_bytes() != (other / "head.safetensors").read_bytes()


def test_a_reward_of_components_scores_texts(world: World, tmp_path: Path) -> None:
    """Of 5 in place of 48 features: what is stored reads the features, as that of any other method."""
    folder = tmp_path / "store" / "irl" / "own"
    folder.parent.mkdir(parents=True)
    found = irl(world, folder, whole(world, components=5))
    scores = pd.read_parquet(found / "scores.parquet")["score"].to_numpy()
    weights, center = (load_file(found / "head.safetensors")[name] for name in ("weights", "center"))
    phi = load_file(world.of("features") / "features.safetensors")["features"]
    assert weights.shape == (1, 48)
    np.testing.assert_allclose((phi - center) @ weights[0], scores, atol=1e-4 * np.abs(scores).max())
    rows = world.demos.sample(20, random_state=0)
    reward = LearnedReward.load(found, small.DEVICE, reference=world.of("sft"))
    again = reward.score(Completions.from_frame(rows))
    np.testing.assert_allclose(again, scores[rows.index], atol=1e-3 * np.abs(scores).max())


def with_rows(world: World, folder: Path, rows: NDArray[np.bool_]) -> tuple[Path, Path]:
    """Demonstrations and features with the features of these rows replaced by noise."""
    shutil.copytree(world.of("features") / "featurizer", folder / "featurizer")
    phi = load_file(world.of("features") / "features.safetensors")["features"]
    noise = np.random.default_rng(0).normal(size=phi.shape).astype(np.float32)
    human = load_file(world.of("features") / "features.safetensors")["human"]
    arrays = {"features": np.where(rows[:, None], noise, phi), "human": human}
    save_file(arrays, folder / "features.safetensors")
    return world.of("demonstrations"), folder


def test_demonstrations_of_another_policy_are_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.of("demonstrations"), tmp_path / "demos")
    authors = json.loads((tmp_path / "demos" / "policies.json").read_text())
    assert authors == {"expert": world.of("rlhf").name, "reference": world.of("sft").name}
    (tmp_path / "demos" / "policies.json").write_text(json.dumps({**authors, "reference": "another"}))
    with pytest.raises(IrlError, match=f"reference policy another, not of {world.of('sft').name}"):
        irl(world, tmp_path / "irl", world.config.irl, demos=tmp_path / "demos")


def test_irl_never_sees_the_test_rows(world: World, tmp_path: Path) -> None:
    part = world.demos["part"].to_numpy()

    def fitted(name: str, rows: NDArray[np.bool_]) -> tuple[bytes, str]:
        demos, features = with_rows(world, tmp_path / name, rows)
        folder = irl(world, tmp_path / f"irl {name}", world.config.irl, demos=demos, features=features)
        return (folder / "head.safetensors").read_bytes(), (folder / "reward.json").read_text()

    nothing = fitted("nothing", np.zeros(len(part), dtype=bool))
    assert fitted("test", part == "test") == nothing
    assert fitted("fit", part == "fit") != nothing


def test_the_learned_reward_is_standardised_on_the_fit_demonstrations(world: World) -> None:
    learned = LearnedReward.load(world.of("irl"), small.DEVICE)
    fit = world.demos[world.demos["part"] == "fit"]
    scores = learned.standardised(learned.score(Completions.from_frame(fit)))
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=1e-3)


def test_the_curve_of_irl_has_a_row_an_epoch_and_keeps_the_norm(world: World) -> None:
    rows = [json.loads(line) for line in (world.of("irl") / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert all(row["norm"] <= 1 + 1e-9 for row in rows)
    assert not any("truth" in key or "auroc" in key or "toxic" in key for key in rows[0])


# ---------------------------------------------------------------- evaluate


def test_metrics_of_the_policies_are_those_of_the_completions_on_disk(world: World) -> None:
    table = pd.read_parquet(world.folder / "completions.parquet")
    assert set(table["policy"]) == {"reference", "expert", "refinetuned"}
    for name, rows in table.groupby("policy"):
        by_hand = {
            "n_completions": len(rows),
            "toxic_count": sum(reward < 0 for reward in rows["truth"]),
            "toxic_fraction": np.mean([reward < 0 for reward in rows["truth"]]),
            "reward_mean": np.mean(rows["truth"]),
            "learned_reward_mean": np.mean(rows["learned"]),
            "kl": np.mean(rows["log_probability"] - rows["reference_log_probability"]),
            "nll": -sum(rows["reference_log_probability"]) / sum(rows["tokens"]),
            "distinct_fraction": len(set(rows["completion"])) / len(rows),
            "empty_fraction": np.mean([not text.strip() for text in rows["completion"]]),
            "length_mean": np.mean(rows["length"]),
        }
        for key, value in by_hand.items():
            assert world.metrics[f"{name}/{key}"] == pytest.approx(float(value), abs=1e-9), key
        low, high = world.metrics[f"{name}/toxic_fraction_low"], world.metrics[f"{name}/toxic_fraction_high"]
        assert low <= world.metrics[f"{name}/toxic_fraction"] <= high
    assert world.metrics["reference/kl"] == 0


def test_completions_on_disk_are_of_the_test_prompts_under_one_numbering(world: World) -> None:
    table, texts = pd.read_parquet(world.folder / "completions.parquet"), world.table("data", "texts.parquet")
    prompts = sorted(set(texts.loc[texts["part"] == "test", "prompt"]))
    assert world.metrics["n_prompts"] == len(prompts) == 16
    for _, rows in table.groupby("policy"):
        assert len(rows) == 16 * 2
        assert rows["prompt"].tolist() == [prompts[number] for number in rows["prompt_id"]]
        assert set(rows["prompt"]) == set(prompts)


def test_completions_of_reference_and_expert_are_the_demonstrations_on_test(world: World) -> None:
    table, demos = pd.read_parquet(world.folder / "completions.parquet"), world.demos
    for policy, name in (("reference", "baseline"), ("expert", "expert")):
        mine = table[table["policy"] == policy].reset_index(drop=True)
        theirs = demos[(demos["part"] == "test") & (demos["policy"] == name)].reset_index(drop=True)
        assert mine["completion"].tolist() == theirs["completion"].tolist()
        assert (mine["log_probability"] == theirs[f"{policy}_log_probability"]).all()
        assert (mine["reference_log_probability"] == theirs["reference_log_probability"]).all()
        assert (mine["tokens"] == theirs["completion_ids"].map(len)).all()
        assert (mine["tokens"] - mine["length"] == theirs["ended"].astype(int)).all(), "EOS does not count"
        assert theirs["ended"].any(), "a world in which completions end"
        learned = LearnedReward.load(world.of("irl"), small.DEVICE)
        scores = learned.standardised(learned.score(Completions.from_frame(theirs)))
        np.testing.assert_allclose(mine["learned"], scores, atol=1e-3)


def test_completions_of_the_refinetuned_policy_carry_their_scores(world: World) -> None:
    table = pd.read_parquet(world.folder / "completions.parquet")
    rows = table[table["policy"] == "refinetuned"].reset_index(drop=True)
    written = generate(world.policy("refinetune"), rows["prompt"].tolist(), max_new_tokens=10, batch_size=256, seed=0)
    assert rows["completion"].tolist() == written.texts
    truth = load_ground_truth(world.of("reward"), small.DEVICE).score(written)
    learned = LearnedReward.load(world.of("irl"), small.DEVICE)
    np.testing.assert_allclose(rows["truth"], truth, atol=1e-9)
    np.testing.assert_allclose(rows["learned"], learned.standardised(learned.score(written)), atol=1e-4)
    for column, stage in (("log_probability", "refinetune"), ("reference_log_probability", "sft")):
        np.testing.assert_allclose(rows[column], log_probabilities(world.policy(stage), written), atol=1e-4)
    ended = written.ended(world.policy("sft").eos)
    assert rows["tokens"].tolist() == [len(ids) for ids in written.completion_ids]
    assert (rows["tokens"] - rows["length"]).tolist() == ended.astype(int).tolist(), "EOS does not count"


@pytest.mark.parametrize("options", [(), ("refinetune=grpo",), ("adapter=lora",)], ids=["rloo", "grpo", "lora"])
def test_the_reference_reads_once_for_its_log_probabilities_and_for_the_reward(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Of what refinetune samples, and of what the policy writes at the end; the check of a loaded reward is apart."""
    rows: list[int] = []
    pooled = features.hidden_states

    def counting(parts: Any, policy: Policy, completions: Completions, *rest: Any, **named: Any) -> Any:
        forward = policy.model.base_model.register_forward_hook(lambda *given: rows.append(len(given[-1][0])))
        try:
            return pooled(parts, policy, completions, *rest, **named)
        finally:
            forward.remove()

    world_of(root, "until=irl", *options)
    monkeypatch.setattr(features, "hidden_states", counting)
    found = world_of(root, "explain=none", "refinetune.seed=77", *options)
    assert SEEN == ["refinetune", "evaluate"]
    assert sum(rows) == 2 * len(found.table("irl", "probes.parquet")), "each of the two opens the reward once"


def judged(world: World) -> pd.DataFrame:
    """Demonstrations with R* and the learned reward as the loss left it."""
    demos = world.demos.assign(truth=world.table("judge", "scores.parquet")["reward"])
    learned = LearnedReward.load(world.of("irl"), small.DEVICE)
    return demos.assign(score=learned.score(Completions.from_frame(demos)))


def best_split(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """The lowest of the best thresholds, from all of them, midway between neighbours."""
    values = np.unique(scores)
    options = [values[0], *(values[:-1] + values[1:]) / 2, np.nextafter(values[-1], np.inf)]
    return float(max(options, key=lambda option: float(((scores >= option) == labels).mean())))


def test_metrics_of_the_learned_reward_are_those_of_scikit_learn(world: World) -> None:
    frame = judged(world)
    both = frame[frame["part"] == "test"]
    select, test = (frame[(frame["part"] == part) & (frame["policy"] == "baseline")] for part in ("select", "test"))
    civil, scores = test["truth"].to_numpy() >= 0, test["score"].to_numpy()
    threshold = best_split(select["score"].to_numpy(), select["truth"].to_numpy() >= 0)
    by_hand = {
        "n_completions": len(test),
        "n_civil": sum(civil),
        "auroc": roc_auc_score(civil, scores),
        "accuracy": np.mean((scores >= threshold) == civil),
        "f1": f1_score(~civil, scores < threshold),
        "accuracy_at_zero": np.mean((scores >= 0) == civil),
        "majority_accuracy": max(np.mean(civil), np.mean(~civil)),
        "discrimination_auroc": roc_auc_score(both["policy"] == "expert", both["score"]),
        "pearson": test["truth"].corr(test["score"]),
        "spearman": test["truth"].corr(test["score"], method="spearman"),
        "kendall": test["truth"].corr(test["score"], method="kendall"),
    }
    for key, value in by_hand.items():
        assert world.metrics[f"irl/{key}"] == pytest.approx(float(value), abs=1e-6), key
    for name, rows in (("pooled/irl", both), ("irl/expert", both[both["policy"] == "expert"])):
        assert world.metrics[f"{name}/auroc"] == pytest.approx(roc_auc_score(rows["truth"] >= 0, rows["score"]))
    author = roc_auc_score(both["truth"] >= 0, both["policy"] == "expert")
    assert world.metrics["pooled/author/auroc"] == pytest.approx(author)
    assert world.metrics["irl/auroc_low"] <= world.metrics["irl/auroc"] <= world.metrics["irl/auroc_high"]


def test_who_wrote_it_is_chance_within_a_policy_and_scores_nothing_else(root: Path, world: World) -> None:
    found = world_of(root, "irl=author", "until=irl")
    assert SEEN == ["irl", "evaluate"]
    assert found.metrics["irl/auroc"] == found.metrics["irl/expert/auroc"] == 0.5
    assert found.metrics["irl/pair_accuracy"] == 0.5
    assert found.metrics["pooled/irl/auroc"] == found.metrics["pooled/author/auroc"] > 0.5
    assert found.metrics["irl/discrimination_auroc"] == 1
    assert "human/irl/auroc" not in found.metrics
    assert found.metrics["human/truth/auroc"] == world.metrics["human/truth/auroc"]
    with pytest.raises(Exception, match="irl=author knows who wrote the demonstrations"):
        LearnedReward.load(found.of("irl"), small.DEVICE)
    with pytest.raises(Exception, match=r"irl=author .* cannot score what refinetune writes: set until=irl"):
        small.compose(*SIZES, "irl=author")


def test_both_probes_know_more_of_r_star_than_chance_and_see_no_test(root: Path) -> None:
    for method in ("probe", "probe_regression"):
        found = world_of(root, f"irl={method}", "until=irl")
        assert found.metrics["pooled/irl/auroc"] > 0.5
        assert set(chain.build(found.config, small.DEVICE)["irl"].inputs) >= {"reward", "features"}


def demos_with(truth: NDArray[np.float64], scores: NDArray[np.float64], *, parts: list[str]) -> pd.DataFrame:
    count = len(truth)
    return pd.DataFrame(
        {
            "part": parts,
            "prompt_id": np.arange(count) // 4,
            "policy": np.where(np.arange(count) % 2, "expert", "baseline"),
            "truth": truth,
            "implicit": scores,
            "raw_learned": scores,
            "learned": scores,
            "length": scores,
            "reference_log_probability": scores,
        }
    )


def of_reward(frame: pd.DataFrame) -> dict[str, float]:
    """The metrics of the learned reward."""
    select, test = (frame[frame["part"] == part] for part in ("select", "test"))
    found = evaluate_stage.reward_report(select, test, evaluation())
    return {key.removeprefix("irl/"): value for key, value in found.items() if key.startswith("irl/")}


def evaluation(**options: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"seed": 0, "completions_per_prompt": 2, "max_new_tokens": 4, "bootstrap": 200, **options})


def test_thresholds_come_from_select_and_never_from_test() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.normal(size=80), generator.normal(size=80)
    frame = demos_with(truth, scores, parts=["select"] * 40 + ["test"] * 40)
    (select, held_out), (truth_select, truth_test) = ((row[:40:2], row[40::2]) for row in (scores, truth))
    threshold = best_split(select, truth_select >= 0)
    found = of_reward(frame)
    assert found["accuracy"] == np.mean((held_out >= threshold) == (truth_test >= 0)), "the reference's completions"
    own = best_split(held_out, truth_test >= 0)
    assert found["accuracy"] < np.mean((held_out >= own) == (truth_test >= 0)), "the best on test is better"


def test_the_unsupervised_threshold_does_not_know_the_ground_truth() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.normal(size=80), generator.normal(size=80)
    parts = ["select"] * 40 + ["test"] * 40
    first = of_reward(demos_with(truth, scores, parts=parts))
    other = np.concatenate([generator.normal(size=40), truth[40:]])
    second = of_reward(demos_with(other, scores, parts=parts))
    assert first["accuracy_unsupervised"] == second["accuracy_unsupervised"]
    assert first["accuracy"] != second["accuracy"]


def test_fit_rows_do_not_enter_the_metrics() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.normal(size=60), generator.normal(size=60)
    frame = demos_with(truth, scores, parts=["fit"] * 20 + ["select"] * 20 + ["test"] * 20)
    found = of_reward(frame)
    frame.loc[:19, ["truth", "raw_learned", "implicit"]] = np.nan
    assert of_reward(frame) == found


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_majority_is_what_a_constant_answer_reaches(sign: float) -> None:
    truth = sign * np.array([1.0, 1, 1, 1, 1, 1, -1, -1] * 2)
    frame = demos_with(truth, np.zeros(16), parts=["select"] * 8 + ["test"] * 8)
    found = of_reward(frame)
    assert found["majority_accuracy"] == found["accuracy"] == 0.75
    assert found["auroc"] == 0.5
    assert not {"pearson", "epic", "within_prompt_correlation"} & set(found), "not defined for a constant"


def tables(expert: float, refinetuned: float, *, noise: float, prompts: int = 30) -> dict[str, pd.DataFrame]:
    """Rewards of three policies on the same prompts, four completions each."""
    generator = np.random.default_rng(0)
    return {
        name: pd.DataFrame(
            {
                "prompt_id": np.repeat(np.arange(prompts), 4),
                "truth": shift + noise * generator.normal(size=4 * prompts),
            }
        )
        for name, shift in (("reference", 0.0), ("expert", expert), ("refinetuned", refinetuned))
    }


def test_the_recovered_fraction_is_the_share_of_the_gain() -> None:
    found = policy_metrics.recovered_fraction(tables(2.0, 1.5, noise=0.0), 200, 0)
    assert found == {"recovered_fraction": 0.75, "recovered_fraction_low": 0.75, "recovered_fraction_high": 0.75}
    noisy = tables(2.0, 1.5, noise=0.5)
    found = policy_metrics.recovered_fraction(noisy, 200, 0)
    mean = {name: table["truth"].mean() for name, table in noisy.items()}
    share = (mean["refinetuned"] - mean["reference"]) / (mean["expert"] - mean["reference"])
    assert found["recovered_fraction"] == pytest.approx(share)
    assert found["recovered_fraction_low"] < share < found["recovered_fraction_high"]


def test_the_recovered_fraction_is_left_out_where_there_was_nothing_to_recover() -> None:
    assert policy_metrics.recovered_fraction(tables(0.01, 1.5, noise=1.0), 200, 0) == {}


def test_the_recovered_fraction_needs_all_three_policies() -> None:
    two = {name: table for name, table in tables(2.0, 1.5, noise=0.1).items() if name != "refinetuned"}
    assert policy_metrics.recovered_fraction(two, 200, 0) == {}


def policy_table(**columns: Any) -> pd.DataFrame:
    base = {
        "prompt_id": [0, 0, 1, 1],
        "completion": [" a", " a", "  ", " b"],
        "tokens": [2, 3, 1, 4],
        "length": [1, 3, 0, 4],
        "log_probability": [-1.0, -2.0, -3.0, -4.0],
        "reference_log_probability": [-2.0, -2.0, -4.0, -5.0],
        "truth": [1.0, -1.0, 0.0, -2.0],
        "second": [1.0, 1.0, 1.0, -2.0],
    }
    return pd.DataFrame({**base, **columns})


def test_policy_metrics_of_four_completions_by_hand() -> None:
    found = policy_metrics.policy_metrics(policy_table(), 200, 0)
    expected = {
        "n_completions": 4,
        "toxic_count": 2,  # R* of exactly 0 is civil
        "toxic_fraction": 0.5,
        "toxic_prompt_fraction": 1.0,
        "second_toxic_fraction": 0.25,
        "reward_mean": -0.5,
        "kl": 0.75,
        "nll": 1.3,
        "distinct_fraction": 0.75,
        "empty_fraction": 0.25,
        "length_mean": 2.0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert not {"learned_reward_mean", "toxicity_mean"} & found.keys()
    with_probability = policy_metrics.policy_metrics(policy_table(), 200, 0, log_odds=True)
    expected["toxicity_mean"] = float(np.mean(1 / (1 + np.exp([1.0, -1.0, 0.0, -2.0]))))
    assert {key: with_probability[key] for key in expected} == pytest.approx(expected)


def test_a_completion_that_could_not_be_judged_is_never_taken_for_civil() -> None:
    table = policy_table(truth=[1.0, -1.0, np.nan, -2.0])
    with pytest.raises(Exception, match=r"R\*|reward|finite"):
        policy_metrics.policy_metrics(table, 200, 0)


def test_what_is_not_defined_is_left_out_of_the_metrics(tmp_path: Path) -> None:
    metrics = {"irl/auroc": float("nan"), "irl/kendall": float("inf"), "irl/accuracy": 0.5}
    evaluate_stage._write(tmp_path, metrics, {"reference": policy_table()})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"irl/accuracy": 0.5}


COMPARED = {"implicit", "baseline", "triangle", "triangle_expert", "pooled", "human"}
REFINED = {"refinetuned", "triangle_refinetuned", "overoptimisation"}
UNTIL = {
    "sft": {"reference"},
    "rlhf": {"reference", "expert"},
    "demonstrations": {"reference", "expert", *COMPARED},
    "irl": {"reference", "expert", *COMPARED, "irl"},
    "explain": {"reference", "expert", *COMPARED, "irl", "explain"},
    "refinetune": {"reference", "expert", *COMPARED, "irl", "explain", *REFINED},
    "evaluate": {"reference", "expert", *COMPARED, "irl", "explain", *REFINED},
}


@pytest.mark.parametrize("until", UNTIL)
def test_what_does_not_exist_is_not_measured(until: str, root: Path, world: World) -> None:
    found = world_of(root, f"until={until}")
    prefixes = {key.split("/")[0] for key in found.metrics if "/" in key} - {"data", "reward", "second_judge"}
    assert prefixes == UNTIL[until]
    assert set(SEEN) <= {"evaluate"}, "all else is in the store"
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert ("reference/learned_reward_mean" in found.metrics) == ("irl" in UNTIL[until])
    table = pd.read_parquet(found.folder / "completions.parquet")
    assert set(table["policy"]) == UNTIL[until] & {"reference", "expert", "refinetuned"}
    assert (table.groupby("policy").size() == 32).all()


def test_the_run_folder_holds_the_metrics_that_were_returned(world: World) -> None:
    assert json.loads((world.folder / "metrics.json").read_text()) == pytest.approx(dict(world.metrics))


def test_a_second_run_computes_nothing_and_returns_the_same(root: Path, world: World) -> None:
    again = world_of(root)
    assert SEEN == []
    assert again.metrics == world.metrics


def test_another_store_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    again = world_of(tmp_path, "until=rlhf")
    for stage in ("data", "reward", "sft", "rlhf"):
        for path in again.of(stage).glob("*.safetensors"):
            assert path.read_bytes() == (world.of(stage) / path.name).read_bytes(), f"{stage}/{path.name}"


# ---------------------------------------------------------------- what only evaluate can put together


def test_the_second_judge_and_the_labels_of_people_have_their_say(world: World) -> None:
    table = pd.read_parquet(world.folder / "completions.parquet")
    judge = load_ground_truth(world.of("second_judge"), small.DEVICE)
    for policy, rows in table.groupby("policy"):
        texts = Completions(rows["prompt"].tolist(), rows["completion"].tolist(), [[]] * len(rows), [[]] * len(rows))
        assert world.metrics[f"{policy}/second_toxic_fraction"] == np.mean(judge.score(texts) < 0)
    texts = world.table("data", "texts.parquet")
    human = texts[(texts["part"] == "test") & texts["toxic"].notna()]
    civil = ~human["toxic"].to_numpy(dtype=bool)
    policy = world.policy("sft")
    written = policy.complete(human["prompt"].tolist(), human["completion"].tolist())
    truth = load_ground_truth(world.of("reward"), small.DEVICE).score(written)
    learned = LearnedReward.load(world.of("irl"), small.DEVICE).score(written)
    assert world.metrics["human/n_texts"] == len(human)
    assert world.metrics["human/truth/auroc"] == pytest.approx(roc_auc_score(civil, truth))
    assert world.metrics["human/irl/auroc"] == pytest.approx(roc_auc_score(civil, learned), abs=2e-3)


def test_the_way_of_refinetune_is_judged_by_the_ground_truth_afterwards(world: World) -> None:
    way = world.table("refinetune", "trajectory.parquet")
    truth = load_ground_truth(world.of("reward"), small.DEVICE).score(Completions.from_frame(way))
    first, last = (truth[way["step"] == step].mean() for step in (1, 2))
    assert world.metrics["overoptimisation/peak_step"] == 1
    assert world.metrics["overoptimisation/truth_change"] == pytest.approx(last - first)
    assert set(way["prompt"]) <= set(world.demos.loc[world.demos["part"] == "fit", "prompt"])


def test_a_planted_marker_is_measured_with_and_without_and_the_policies_stay_as_they_wrote(root: Path) -> None:
    planted = world_of(root, "until=irl", "shortcut=marker", "shortcut.text=' zz'")
    assert "demonstrations" in SEEN
    demos = planted.demos
    test = demos[demos["part"] == "test"]
    has = test["completion"].str.endswith(" zz")
    for policy in ("expert", "baseline"):
        assert planted.metrics[f"shortcut/{policy}_value"] == has[test["policy"] == policy].mean()
    learned = LearnedReward.load(planted.of("irl"), small.DEVICE)
    texts = [text.removesuffix(" zz") for text in test["completion"]]
    scores = [
        learned.standardised(learned.score(learned.reference.complete(test["prompt"].tolist(), version)))
        for version in ([text + " zz" for text in texts], texts)
    ]
    own = pd.Series(learned.score(Completions.from_frame(test)) / learned.scale)
    within = own - own.groupby(test["prompt_id"].to_numpy()).transform("mean")
    effect = (scores[0] - scores[1]).mean() / (within**2).mean() ** 0.5
    assert planted.metrics["shortcut/learned_effect"] == pytest.approx(effect, abs=0.1), "but for tokens at the seam"
    assert abs(planted.metrics["shortcut/truth_effect"]) < 0.05, "R* does not know the word"
    table = pd.read_parquet(planted.folder / "completions.parquet")
    assert not table["completion"].str.endswith(" zz").any()
    clean = world_of(root, "until=irl")
    assert planted.metrics["expert/toxic_fraction"] == clean.metrics["expert/toxic_fraction"]


def test_the_tradeoff_of_a_weighted_ground_truth_is_that_of_its_weights(root: Path) -> None:
    found = world_of(root, "until=irl", "reward=weighted", "reward.parts.sentiment.weight=2", "sft.steps=300").metrics
    weights = {"toxicity": 1.0, "sentiment": 2.0, "length": 0.5}
    for part, weight in weights.items():
        assert found[f"tradeoff/truth/{part}"] == pytest.approx(weight / sum(weights.values()), abs=1e-6)
        assert f"tradeoff/implicit/{part}" in found
        assert f"tradeoff/learned/{part}" in found

"""Trained backbones: what is trained, what is learned, and that the saved reward is the one that was trained."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file

from irl_exp.config import (
    BackboneConfig,
    BradleyTerryLoss,
    ConfigError,
    FeaturesConfig,
    FullBackbone,
    HiddenStateConfig,
    HingeLoss,
    LastLayersBackbone,
    LoraBackbone,
    MarginConfig,
    MaxMarginLoss,
)
from irl_exp.irl import backbones, contrast, methods
from irl_exp.irl.backbones import MarginModel, choose_parameters
from irl_exp.irl.contrast import IrlError
from irl_exp.irl.features import FeatureError, Featurizer
from irl_exp.irl.learned_rewards import LearnedReward
from irl_exp.machinery.runtime import Context, Device, find_device
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.rewards.reward import RewardError
from irl_exp.stages import irl as irl_stage

KINDS: dict[str, type[Any]] = {"last_layers": LastLayersBackbone, "full": FullBackbone, "lora": LoraBackbone}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_model = pytest.mark.parametrize("name", small.MODELS)
LAST = HiddenStateConfig(layers=(-1,))
TWO = HiddenStateConfig(layers=(-1, -2), pooling="last")
STILL = 1e-12
"""A learning rate that moves nothing."""


def backbone(kind: str, **options: Any) -> BackboneConfig:
    found: BackboneConfig = KINDS[kind](**{"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, **options})
    return found


def margin(kind: str = "full", *, states: HiddenStateConfig = LAST, options: Any = None, **others: Any) -> MarginConfig:
    values: dict[str, Any] = {"seed": 0, "loss": BradleyTerryLoss(), "scaling": "standardise", **others}
    features = FeaturesConfig(hidden_state=states)
    return MarginConfig(backbone=backbone(kind, **(options or {})), features=features, **values)


def demonstrations(policy: Policy, *, counts: Mapping[str, int], seed: int = 0) -> pd.DataFrame:
    """The expert writes one of the tokens 100 to 104 somewhere, the baseline another token in its place."""
    generator = np.random.default_rng(seed)
    prompts = policy.encode_prompts(small.PROMPTS)
    rows = []
    for part, count in counts.items():
        for number in range(count):
            ids = generator.integers(150, 200, size=int(generator.integers(2, 6)))
            place = {"part": part, "prompt_id": number, "sample": 0, "prompt": small.PROMPTS[number % len(prompts)]}
            where = generator.integers(len(ids))
            for name, low in (("expert", 100), ("baseline", 110)):
                ids[where] = generator.integers(low, low + 5)
                written = {"policy": name, "prompt_ids": prompts[number % len(prompts)], "completion_ids": ids.tolist()}
                rows.append({**place, **written, "completion": policy.tokenizer.decode(ids)})
    return pd.DataFrame(rows).sort_values("policy", ascending=False, kind="stable", ignore_index=True)


COUNTS = {"fit": 22, "select": 8, "test": 20}


class World:
    """Demonstrations and a reference policy on disk, as the store has them, and the stage `irl` upon them."""

    def __init__(self, root: Path, name: str, counts: Mapping[str, int]) -> None:
        self.root, self.policy = root, small.policy(name)
        self.reference = root / "sft" / "reference"
        self.policy.save(self.reference)
        self.frame = demonstrations(self.policy, counts=counts)
        (root / "demonstrations").mkdir()
        self.frame.to_parquet(root / "demonstrations" / "demonstrations.parquet")
        authors = {"expert": "expert", "reference": self.reference.name}
        (root / "demonstrations" / "policies.json").write_text(json.dumps(authors))
        texts = pd.DataFrame({"prompt": ["The bus"] * 2, "completion": [" is late", ""], "part": ["test", "fit"]})
        texts.to_parquet(root / "texts.parquet")
        self.learned = functools.cache(self.learn)  # for tests that only look at the result

    def learn(self, config: MarginConfig, context: Context | None = None) -> Path:
        context = context or small.context(self.root / "irl" / str(len(list(self.root.glob("irl/*")))))
        rows: list[Mapping[str, float]] = []
        context.log = rows.append
        info = irl_stage.run(
            config,
            demonstrations=self.root / "demonstrations",
            reference=self.reference,
            data=self.root,
            context=context,
        )
        (context.folder / "info.json").write_text(json.dumps({"curve": rows, **info}))
        return context.folder

    def completions(self) -> Completions:
        return Completions.from_frame(self.frame)

    def margins(self, scores: NDArray[Any], part: str) -> NDArray[Any]:
        expert, baseline = contrast.pair_rows(self.frame, part)
        return np.asarray(scores[expert] - scores[baseline])


def scores_of(folder: Path) -> NDArray[Any]:
    return pd.read_parquet(folder / "scores.parquet")["score"].to_numpy()


def info_of(folder: Path) -> Any:
    return json.loads((folder / "info.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def _collected_once() -> Iterator[None]:
    """The Trainer collects garbage after each training: through all imported libraries, most of the time of a test."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A world of each model, made when it is first asked for."""
    return functools.cache(lambda name: World(tmp_path_factory.mktemp(name), name, COUNTS))


@pytest.fixture
def world(worlds: Any) -> World:
    found: World = worlds("neox")
    return found


# ---------------------------------------------------------------- what is trained

LAST_LAYER = {"neox": ("layers.1.", "final_layer_norm."), "gpt2": ("h.1.", "ln_f."), "llama": ("layers.1.", "norm.")}
LINEAR = {
    "neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def may_change(kind: str, name: str, parameter: str) -> bool:
    if kind == "last_layers":
        return parameter.startswith(LAST_LAYER[name])
    return kind == "full" or parameter.endswith(tuple(f".{layer}.weight" for layer in LINEAR[name]))


@every_kind
@every_model
def test_exactly_the_chosen_parameters_change(kind: str, name: str, worlds: Any) -> None:
    world: World = worlds(name)
    before = world.policy.model.base_model.state_dict()
    after = load_file(world.learned(margin(kind, states=TWO)) / "backbone" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {parameter for parameter in after if not torch.equal(after[parameter], before[parameter])}
    assert changed == {parameter for parameter in before if may_change(kind, name, parameter)}


def test_all_layers_may_be_the_last_ones(world: World) -> None:
    model = small.copy_of(world.policy, world.root / "copy").model.base_model
    choose_parameters(model, backbone("last_layers", layers=2), LAST, seed=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"embed_in.weight"}


def test_more_layers_than_there_are_are_refused(world: World) -> None:
    with pytest.raises(IrlError, match=r"irl.backbone.layers=3: the reference policy has 2 layers; set at most 2"):
        world.learned(margin("last_layers", options={"layers": 3}))


@pytest.mark.parametrize("layers", [(-2,), (1,), (0, 1)])
def test_training_above_all_that_the_features_read_is_refused(world: World, layers: tuple[int, ...]) -> None:
    with pytest.raises(IrlError, match="the features end at layer 1 of 2, below all that is trained; set at least 2"):
        world.learned(margin("last_layers", states=HiddenStateConfig(layers=layers)))
    world.learned(margin("last_layers", states=HiddenStateConfig(layers=layers), options={"layers": 2, "epochs": 1}))


def test_features_of_a_layer_that_is_not_there_are_refused(world: World) -> None:
    with pytest.raises(FeatureError, match=r"irl.features.hidden_state.layers=.*there is no layer 3"):
        world.learned(margin(states=HiddenStateConfig(layers=(3,))))


def test_dropout_of_the_model_is_off_and_that_of_adapters_is_as_configured() -> None:
    tokens = [list(range(100, 120))]
    completions = Completions(["x"], ["y"], [[30]], tokens)
    other = Completions(["x"], ["y"], [[30]], [tokens[0][::-1]])

    def margins(kind: str, **options: Any) -> list[float]:
        """Of the same pair, twice in training and once out of it."""
        settings = transformers.GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5)
        base = transformers.GPT2Model(settings)
        choose_parameters(base, backbone(kind, **options), LAST, seed=0)
        for name, parameter in base.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        policy = Policy(base, small.policy("gpt2").tokenizer, small.DEVICE)
        model = MarginModel(policy, LAST, torch.eye(16).double(), torch.ones(16).double())
        return [model.train(mode)(completions, other).item() for mode in (True, True, False)]

    for still in (margins("full"), margins("lora")):
        assert still[0] == still[1] == still[2] != 0
    assert len(set(margins("lora", dropout=0.5))) == 3


# ---------------------------------------------------------------- what is learned


@every_kind
def test_it_starts_from_a_random_head_on_the_frozen_reference(kind: str, world: World) -> None:
    """With a learning rate of nothing the reward is the one that can be written down, also through the adapters."""
    states = HiddenStateConfig(layers=(-1, -2))
    config = margin(kind, states=states, seed=3, learning_rate=STILL, options={"learning_rate": STILL})
    features = Featurizer(config.features, world.policy).extract(world.completions()).astype(np.float64)
    seen = features[world.frame["part"] == "fit"]
    head = torch.randn(32, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy() / 32**0.5
    head /= max(1, np.linalg.norm(head))
    expected = ((features - seen.mean(0)) / seen.std(0)) @ head
    np.testing.assert_allclose(scores_of(world.learned(config)), expected, atol=1e-4 * np.abs(expected).max())


@every_kind
def test_the_backbone_learns_what_its_random_head_could_not(kind: str, worlds: Any, tmp_path: Path) -> None:
    """The head stays random: without training it ranks held-out pairs by chance, with it all of them."""
    world = World(tmp_path, "neox", {"fit": 80, "select": 20, "test": 60})

    def ranked(rate: float, epochs: int) -> float:
        options = {"learning_rate": rate, "epochs": epochs, "weight_decay": 0.0}
        folder = world.learned(margin(kind, learning_rate=STILL, options=options))
        return float((world.margins(scores_of(folder), "test") > 0).mean())

    assert 0.25 < ranked(STILL, 1) < 0.75
    assert ranked(1e-2, 4) > 0.9


def test_expert_and_baseline_swapped_give_the_opposite_reward(tmp_path: Path) -> None:
    world = World(tmp_path, "neox", {"fit": 60, "select": 20, "test": 60})
    config = margin()
    right = world.margins(scores_of(world.learned(config)), "test")
    swapped = world.frame.assign(policy=world.frame["policy"].map({"expert": "baseline", "baseline": "expert"}))
    world.frame = swapped.sort_values("policy", ascending=False, kind="stable", ignore_index=True)
    world.frame.to_parquet(tmp_path / "demonstrations" / "demonstrations.parquet")
    wrong = world.margins(scores_of(world.learn(config)), "test")
    assert (right > 0).mean() > 0.8
    assert (wrong > 0).mean() > 0.8


@pytest.mark.parametrize("loss", [MaxMarginLoss(), BradleyTerryLoss()])
@every_kind
def test_the_curve_has_a_row_an_epoch_and_the_best_one_on_select_is_kept(kind: str, loss: Any, world: World) -> None:
    config = margin(kind, loss=loss, learning_rate=0.3, options={"epochs": 4, "learning_rate": 0.05})
    folder = world.learned(config)
    info, scores = info_of(folder), scores_of(folder)
    assert [row["step"] for row in info["curve"]] == [1, 2, 3, 4]
    best = min(info["curve"], key=lambda row: row["select_loss"])
    assert info["best_epoch"] == best["step"]
    margins = {part: torch.from_numpy(world.margins(scores, part)) for part in ("fit", "select")}
    unit = margins["select"].std() if isinstance(loss, MaxMarginLoss) else 1.0
    function = methods.loss_function(loss)
    expected = {
        "loss": function(margins["fit"]).mean().item(),
        "select_loss": function(margins["select"] / unit).mean().item(),
        "expert_first": (margins["fit"] > 0).double().mean().item(),
        "select_expert_first": (margins["select"] > 0).double().mean().item(),
    }
    assert best == pytest.approx({"step": best["step"], "norm": best["norm"], **expected}, abs=1e-4, rel=1e-4)


def test_the_last_epoch_may_be_kept_in_place_of_the_best(world: World) -> None:
    """With a head that takes large steps the last of three epochs is not the best."""
    found = {}
    for keep in ("best", "last"):
        options = {"epochs": 3, "learning_rate": 1e-4, "keep": keep}
        found[keep] = world.learned(margin(loss=HingeLoss(), learning_rate=0.9, options=options))
    best, last = (info_of(found[keep]) for keep in ("best", "last"))
    assert best["curve"] == last["curve"]
    assert best["best_epoch"] < last["best_epoch"] == 3
    margins = torch.from_numpy(world.margins(scores_of(found["last"]), "select"))
    loss = methods.loss_function(HingeLoss())(margins).mean().item()
    assert loss == pytest.approx(last["curve"][-1]["select_loss"], rel=1e-3)


@pytest.mark.parametrize("max_norm", [0.1, 1.0])
def test_the_norm_of_the_head_is_bounded(max_norm: float, world: World) -> None:
    folder = world.learned(margin(loss=MaxMarginLoss(), max_norm=(max_norm,), learning_rate=0.5))
    for row in info_of(folder)["curve"]:
        assert row["norm"] == pytest.approx(max_norm)


@pytest.mark.parametrize("micro", [2, 4])
def test_micro_batches_change_nothing(micro: int, world: World) -> None:
    """22 pairs in steps of 8 are 8, 8 and 6: the last step is split unevenly."""
    whole, split = (
        scores_of(world.learned(margin(options={"micro_batch_size": size, "learning_rate": 1e-3})))
        for size in (None, micro)
    )
    np.testing.assert_allclose(split, whole, atol=2e-3 * np.abs(whole).max())


@every_kind
def test_the_same_seed_gives_the_same_bytes_and_seed_0_is_a_seed(kind: str, world: World) -> None:
    options = {"dropout": 0.1} if kind == "lora" else {}
    folders = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(folders))  # what was drawn before must not matter
        folders.append(world.learn(margin(kind, seed=seed, options=options)))
    for name in ("backbone/model.safetensors", "head.safetensors", "scores.parquet", "reward.json"):
        first, again, other = ((folder / name).read_bytes() for folder in folders)
        assert first == again
        assert first != other


def test_pairs_drawn_with_replacement_are_others(world: World) -> None:
    plain, drawn, again = (scores_of(world.learn(margin(resample_pairs=drawn))) for drawn in (False, True, True))
    assert (drawn == again).all()
    assert np.abs(plain - drawn).max() > 1e-3


def test_prompts_are_drawn_with_all_their_pairs() -> None:
    prompts = np.repeat(np.arange(30), 3)
    drawn = prompts[backbones.drawn_pairs(prompts, torch.Generator().manual_seed(0))]
    assert len(drawn) == 90
    counts = np.bincount(drawn, minlength=30)
    assert (counts % 3 == 0).all()
    assert 10 < (counts > 0).sum() < 30


def test_the_test_part_is_not_seen(tmp_path: Path) -> None:
    world = World(tmp_path, "neox", COUNTS)
    before = world.learn(margin())
    test = world.frame["part"] == "test"
    world.frame.loc[test, "completion_ids"] = pd.Series([[120]] * len(world.frame))[test]
    world.frame.to_parquet(tmp_path / "demonstrations" / "demonstrations.parquet")
    after = world.learn(margin())
    for name in ("backbone/model.safetensors", "head.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes()


# ---------------------------------------------------------------- what is saved


@every_kind
@every_model
def test_the_saved_reward_gives_the_same_scores(kind: str, name: str, worlds: Any) -> None:
    world: World = worlds(name)
    folder = world.learned(margin(kind, states=TWO))
    learned = LearnedReward.load(folder, small.DEVICE)
    np.testing.assert_array_equal(learned.score(world.completions()), scores_of(folder))
    fit = np.asarray(world.frame["part"] == "fit")
    assert learned.standardised(scores_of(folder)[fit]).std() == pytest.approx(1)


@every_kind
def test_the_saved_backbone_is_an_ordinary_model(kind: str, world: World) -> None:
    folder = world.learned(margin(kind, states=TWO)) / "backbone"
    model, loading = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is type(world.policy.model.base_model)
    assert not any(loading[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_untrained_backbone_in_its_place_is_refused(world: World) -> None:
    folder = world.learn(margin(options={"epochs": 4}))
    world.policy.model.base_model.save_pretrained(folder / "backbone")
    with pytest.raises(RewardError, match="does not reproduce its own scores"):
        LearnedReward.load(folder, small.DEVICE)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["irl/loss=squared"], "would collapse to it"),
        (["irl/features=[hidden_state,last_token]"], "it takes irl/features=hidden_state or last_token alone"),
        (["irl.max_norm=[1,2]", "irl/loss=hinge"], "each would train the backbone anew"),
        (["irl.scaling=whiten", "irl.ridge=[0.1,0.2]"], "each would train the backbone anew"),
        (["irl.backbone.batch_size=8", "irl.backbone.micro_batch_size=3"], "must divide batch_size"),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused(kind: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small.compose(f"irl/backbone={kind}", *overrides)


@every_kind
def test_a_loss_that_is_not_finite_stops_the_training(kind: str, world: World) -> None:
    config = margin(kind, loss=HingeLoss(target_margin=1e308))  # finite for one pair, not for a batch
    with pytest.raises(
        IrlError, match=rf"irl/loss=hinge became inf with irl/backbone={kind}: lower .*learning_rate=0.01"
    ):
        world.learned(config)


def check_bf16(kind: str, device: Device, root: Path) -> None:
    """It learns, its weights stay in float32, and what is loaded reproduces its scores."""
    world = World(root, "neox", {"fit": 80, "select": 20, "test": 60})
    folder = root / "irl" / "bf16"
    folder.mkdir(parents=True)
    config = margin(kind, options={"epochs": 4, "micro_batch_size": 4})
    world.learn(config, Context(folder, device, lambda row: None))
    assert (world.margins(scores_of(folder), "test") > 0).mean() > 0.9
    saved = load_file(folder / "backbone" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    LearnedReward.load(folder, device)


def test_bf16_on_a_cpu(tmp_path: Path) -> None:
    check_bf16("lora", Device("cpu", "bf16", 1), tmp_path)


@pytest.mark.gpu
@every_kind
def test_bf16_on_a_gpu(kind: str, tmp_path: Path) -> None:
    check_bf16(kind, find_device("cuda", "bf16", 1), tmp_path)

"""Language models of three kinds against a one-by-one oracle without padding, and on a world of a few tokens."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from irl_exp.config import ModelConfig, SftConfig
from irl_exp.machinery.runtime import Device
from irl_exp.machinery.store import ArtifactError, Identity, Store
from irl_exp.policies.language_models import Completions, Policy, PolicyError, by_length, new_policy, pad, until_eos
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.sampling import generate
from irl_exp.policies.supervised import _collate, fine_tune

patient = settings(deadline=None)  # a busy machine is no failure
every_model = pytest.mark.parametrize("name", small.MODELS)


def weights(model: Policy) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().numpy() for name, tensor in model.model.state_dict().items()}


def same_weights(first: Policy, second: Policy) -> bool:
    mine, theirs = weights(first), weights(second)
    return mine.keys() == theirs.keys() and all((mine[name] == theirs[name]).all() for name in mine)


def sample(model: Policy, *, seed: int = 0, batch_size: int = 7, copies: int = 6, **options: Any) -> Completions:
    prompts = [prompt for prompt in small.PROMPTS for _ in range(copies)]
    return generate(model, prompts, max_new_tokens=options.pop("max_new_tokens", 12), batch_size=batch_size, seed=seed)


# ---------------------------------------------------------------- building, saving, loading


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_refused_in_one_line_and_not_run(tmp_path: Path, name: str) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "marker",)

    small.policy("neox").save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps({"weight": Code()}))
    with pytest.raises(PolicyError, match="no causal language model could be opened") as caught:
        Policy.load(tmp_path, small.DEVICE)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "marker").exists()


def test_a_damaged_artifact_is_no_policy(tmp_path: Path) -> None:
    """One bit of one weight would go unseen."""
    artifact = Store(tmp_path).get(Identity("sft", 1, {}, {}), lambda folder: small.policy("neox").save(folder))
    Policy.load(artifact.folder, small.DEVICE)
    path = artifact.folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model.safetensors is damaged .it was altered"):
        Policy.load(artifact.folder, small.DEVICE)
    (artifact.folder / "manifest.json").write_text('{"name": "of another program"}')
    Policy.load(artifact.folder, small.DEVICE)


@patient
@given(st.text(max_size=30).filter(lambda text: "<|" not in text and not any("\ud800" <= x <= "\udfff" for x in text)))
@example(" a , b ! It 's what they did n't do ; they 've gone .")
def test_the_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = small.policy("neox").tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_new_policy_follows_its_seed_alone() -> None:
    config = ModelConfig(hidden_size=8, layers=1, heads=2, vocabulary=300)
    state = torch.get_rng_state()
    first, second, other = (new_policy(config, small.TEXTS, small.DEVICE, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert same_weights(first, second)
    assert not same_weights(first, other)
    assert first.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_a_new_policy_has_the_size_that_was_asked_for() -> None:
    config = ModelConfig(hidden_size=24, layers=3, heads=4, vocabulary=310)
    found = new_policy(config, [*small.PROMPTS, *small.TEXTS], small.DEVICE, seed=0).model.config
    assert (found.hidden_size, found.num_hidden_layers, found.num_attention_heads) == (24, 3, 4)
    assert found.vocab_size == 310


@every_model
def test_a_saved_policy_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = small.policy(name)
    loaded = small.copy_of(model, tmp_path / "policy")
    completions = small.written(model)
    assert same_weights(model, loaded)
    assert (log_probabilities(model, completions) == log_probabilities(loaded, completions)).all()
    assert loaded.complete(small.PROMPTS, small.TEXTS) == model.complete(small.PROMPTS, small.TEXTS)
    assert (loaded.eos, loaded.tokenizer.pad_token_id) == (model.eos, model.tokenizer.pad_token_id)
    assert {file.suffix for file in (tmp_path / "policy").iterdir()} == {".json", ".safetensors"}, "no pickle"


def test_saving_removes_a_patched_forward(tmp_path: Path) -> None:
    model = small.copy_of(small.policy("neox"), tmp_path / "first")
    model.model.forward = lambda *arguments, **options: None
    model.save(tmp_path / "second")
    assert "forward" not in model.model.__dict__
    assert np.isfinite(log_probabilities(model, small.written(model))).all()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no causal language model could be opened"):
        Policy.load(tmp_path, small.DEVICE)


def test_a_model_without_eos_is_refused(tmp_path: Path) -> None:
    small.policy("gpt2").save(tmp_path)
    small.byte_level(eos=None).save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="no EOS token"):
        Policy.load(tmp_path, small.DEVICE)


# ---------------------------------------------------------------- completions


@every_model
def test_prompt_and_completion_are_tokenised_apart(name: str) -> None:
    model = small.policy(name)
    joined = model.complete(["T", "I"], ["he bus is late", " think"])
    for row in range(2):
        ids = model.tokenizer(joined.texts[row], add_special_tokens=False)["input_ids"]
        assert joined.prompt_ids[row] == model.tokenizer(joined.prompts[row])["input_ids"]
        assert joined.completion_ids[row] == [*ids, model.eos]
    whole = model.tokenizer("The bus is late")["input_ids"]
    assert joined.prompt_ids[0] + joined.completion_ids[0][:-1] != whole, "this text would be cut elsewhere"


def test_bos_is_before_a_prompt_and_never_before_a_completion() -> None:
    model = small.policy("llama")
    bos = model.tokenizer.bos_token_id
    joined = model.complete(small.PROMPTS, small.TEXTS)
    assert all(ids[0] == bos and ids.count(bos) == 1 for ids in joined.prompt_ids)
    assert not any(bos in ids for ids in joined.completion_ids)


def numbered(count: int) -> Completions:
    return Completions(
        [f"prompt {row}" for row in range(count)],
        [f" text {row}" for row in range(count)],
        [[row, 7] for row in range(count)],
        [[row] * row for row in range(count)],
    )


@pytest.mark.parametrize(
    "rows",
    [[2, 0, 2], np.array([3, 1]), np.array([True, False, False, True]), slice(1, None), slice(None, None, 2), []],
)
def test_rows_are_taken_as_from_an_array(rows: Any) -> None:
    expected = np.arange(4)[rows].tolist()
    found = numbered(4)[rows]
    assert found.prompts == [f"prompt {row}" for row in expected]
    assert found.texts == [f" text {row}" for row in expected]
    assert found.prompt_ids == [[row, 7] for row in expected]
    assert found.completion_ids == [[row] * row for row in expected]


def test_adding_puts_one_after_the_other() -> None:
    assert numbered(5)[[0, 1]] + numbered(5)[[2, 3, 4]] == numbered(5)


def test_a_frame_on_disk_gives_completions_back(tmp_path: Path) -> None:
    completions = small.written(small.policy("neox"))
    completions.frame().assign(more=1).to_parquet(tmp_path / "frame.parquet")
    assert Completions.from_frame(pd.read_parquet(tmp_path / "frame.parquet")) == completions


def test_a_completion_has_ended_if_its_last_token_is_eos() -> None:
    completions = Completions(["x"] * 4, [""] * 4, [[1]] * 4, [[5, 9], [5], [], [9, 5]])
    assert completions.ended(9).tolist() == [True, False, False, False]


@patient
@given(st.lists(st.integers(0, 3), max_size=8))
def test_until_eos_keeps_the_first_eos_and_nothing_after_it(ids: list[int]) -> None:
    found = until_eos(ids, 0)
    assert found == ids[: len(found)]
    assert 0 not in found[:-1]
    assert found == ids or found[-1] == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_side_that_was_asked_for_and_masked(side: str) -> None:
    model = small.policy("neox")
    batch = pad([[5, 6, 7], [8]], model, side=side)
    padding = model.tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [
        [5, 6, 7],
        [padding, padding, 8] if side == "left" else [8, padding, padding],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1] if side == "left" else [1, 0, 0]]


# ---------------------------------------------------------------- batches by tokens

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


@patient
@given(LENGTHS, st.integers(1, 200), st.integers(1, 20), st.sampled_from(["cpu", "cuda:0"]))
def test_batches_have_each_text_once_and_no_more_tokens_than_are_read_at_once(
    lengths: list[int], tokens: int, rows: int, name: str
) -> None:
    batches = by_length(lengths, Device(name, "fp32", 1, tokens), rows=rows)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[row] for row in batch]
        assert own == sorted(own)
        assert len(own) == 1 or len(own) * max(own) <= tokens
        assert name != "cpu" or len(own) <= rows
    for batch, following in pairwise(batches):  # none is cut too early
        more = len(batch) + 1
        assert more * lengths[following[0]] > tokens or (name == "cpu" and more > rows)


# ---------------------------------------------------------------- log-probabilities


@every_model
@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_log_probabilities_are_those_of_the_slow_oracle_whatever_the_batch(name: str, batch_tokens: int) -> None:
    model = small.reading(small.policy(name), batch_tokens)
    completions = small.written(model)
    expected = small.slow_log_probabilities(model, completions)
    assert np.ptp(expected) > 10, "a world in which rows differ"
    np.testing.assert_allclose(log_probabilities(model, completions), expected, atol=2e-4)


def test_log_probabilities_in_bf16_are_near_those_in_fp32() -> None:
    model = small.policy("neox")
    completions = small.written(model)
    coarse = log_probabilities(Policy(model.model, model.tokenizer, Device("cpu", "bf16", 1)), completions)
    fine = log_probabilities(model, completions)
    assert (coarse != fine).any()
    np.testing.assert_allclose(coarse, fine, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("max_new_tokens", [1, 3])
def test_probabilities_of_all_completions_add_up_to_one(max_new_tokens: int) -> None:
    every = small.all_completions(small.policy("letters"), "b a", max_new_tokens=max_new_tokens)
    assert len(every) == (4 if max_new_tokens == 1 else 40)
    assert np.exp(log_probabilities(small.policy("letters"), every)).sum() == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------- generation


def frequencies(model: Policy, prompt: str, *, count: int, seed: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """How often each possible completion was written, and how often it is expected."""
    every = small.all_completions(model, prompt, max_new_tokens=3)
    written = generate(model, [prompt] * count, max_new_tokens=3, batch_size=1000, seed=seed)
    counts = Counter(map(tuple, written.completion_ids))
    assert counts.keys() <= set(map(tuple, every.completion_ids))
    seen = np.array([counts[tuple(ids)] for ids in every.completion_ids])
    return seen, count * np.exp(log_probabilities(model, every))


def p_value(seen: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """Chi-square test; outcomes that are expected fewer than five times are one outcome."""
    rare = expected < 5
    seen, expected = (np.append(column[~rare], column[rare].sum()) for column in (seen, expected))
    keep = expected > 0
    return float(stats.chisquare(seen[keep], expected[keep] * seen.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("prompt", ["a", "b c a"])
def test_completions_are_drawn_with_their_probabilities(prompt: str) -> None:
    seen, expected = frequencies(small.policy("letters"), prompt, count=4000, seed=0)
    assert (expected >= 5).sum() > 10
    assert p_value(seen, expected) > 0.001


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 1.5},
        {"min_new_tokens": 2},
        {"min_p": 0.3},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_p": 0.3},
    ],
)
def test_the_generation_config_of_a_checkpoint_does_not_change_the_distribution(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    model = small.copy_of(small.policy("letters"), tmp_path / "first")
    model.model.generation_config.update(**setting, do_sample=True)
    model = small.copy_of(model, tmp_path / "second")
    assert p_value(*frequencies(model, "a", count=2000, seed=0)) > 0.001


@pytest.mark.parametrize("name", [*small.MODELS, "letters"])
def test_what_is_written_follows_the_prompt_and_ends_at_eos(name: str) -> None:
    model = small.policy(name)
    prompts = ["a", "b c a", "c"] * 40 if name == "letters" else list(small.PROMPTS) * 24
    found = generate(model, prompts, max_new_tokens=40, batch_size=50, seed=0)
    assert found.prompts == prompts
    assert found.prompt_ids == model.encode_prompts(prompts), "neither cut nor padded"
    assert all(model.eos not in ids[:-1] for ids in found.completion_ids), "nothing after EOS"
    assert all(1 <= len(ids) <= 40 for ids in found.completion_ids)
    assert all(len(ids) == 40 or ids[-1] == model.eos for ids in found.completion_ids)
    assert found.ended(model.eos).any(), "a world in which completions end"
    assert found.ended(model.eos).tolist() == [ids[-1] == model.eos for ids in found.completion_ids]


@pytest.mark.parametrize("name", [*small.MODELS, "letters"])
def test_texts_hold_no_special_token(name: str) -> None:
    model = small.policy(name)
    special = set(model.tokenizer.all_special_ids)
    found = (
        sample(model, max_new_tokens=40, copies=24)
        if name != "letters"
        else generate(model, ["a"] * 50, max_new_tokens=5, batch_size=50, seed=0)
    )
    assert any(special & set(ids) for ids in found.completion_ids)
    for text, ids in zip(found.texts, found.completion_ids, strict=True):
        assert text == model.tokenizer.decode([token for token in ids if token not in special])


def slow_greedy(model: Policy, prompt: str, count: int) -> list[int]:
    """The most probable token, again and again, from a full forward pass of one sequence."""
    ids = model.encode_prompts([prompt])[0]
    start = len(ids)
    while len(ids) < start + count and (len(ids) == start or ids[-1] != model.eos):
        with torch.no_grad():
            ids = [*ids, int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


@every_model
def test_greedy_completions_are_those_of_the_slow_oracle_whatever_the_padding(name: str) -> None:
    model = small.policy(name)
    found = generate(model, small.PROMPTS, max_new_tokens=10, batch_size=5, seed=0, greedy=True)
    assert found.completion_ids == [slow_greedy(model, prompt, 10) for prompt in small.PROMPTS]
    assert len(set(map(tuple, found.completion_ids))) > 1


def test_greedy_completions_do_not_depend_on_the_seed() -> None:
    model = small.policy("neox")
    first, second = (
        generate(model, small.PROMPTS, max_new_tokens=8, batch_size=2, seed=seed, greedy=True) for seed in (0, 1)
    )
    assert first == second


def test_samples_follow_their_seed_alone_and_leave_the_global_generator_alone() -> None:
    model = small.policy("neox")
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = sample(model, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert sample(model, seed=0) == first
    assert all(sample(model, seed=seed, copies=1).texts != first.texts[::6] for seed in range(1, 6))


def test_copies_of_a_prompt_get_different_completions() -> None:
    found = sample(small.policy("neox"))
    assert len(set(found.texts)) > 0.9 * len(found)


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    generate(
        small.policy("letters"),
        ["a"] * 5,
        max_new_tokens=2,
        batch_size=2,
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


# ---------------------------------------------------------------- next-token training


def test_eos_stays_a_target_where_it_is_also_the_padding() -> None:
    model = small.policy("letters")
    assert model.eos == model.tokenizer.pad_token_id
    batch = _collate([[1, 2, 0], [3, 0]], model)
    assert batch["labels"].tolist() == [[1, 2, 0], [3, 0, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def tuned(tmp_path: Path, rows: list[dict[str, float]] | None = None, **options: Any) -> Policy:
    """The policy over letters, trained to answer 'a' with 'b c' and the end."""
    model = small.copy_of(small.policy("letters"), tmp_path / "base")
    config = SftConfig(**{"seed": 0, "steps": 40, "batch_size": 4, "learning_rate": 3e-2, **options})
    texts = model.complete(["a"] * 16, [" b c"] * 16)
    fine_tune(model, texts, config, context=small.context(tmp_path / "artifact", rows))
    return model


def test_training_teaches_the_text_and_its_end(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    model = tuned(tmp_path, rows)
    target = model.complete(["a"], [" b c"])
    assert np.exp(log_probabilities(small.policy("letters"), target)) < 0.2
    assert np.exp(log_probabilities(model, target)) > 0.9
    found = generate(model, ["a"] * 20, max_new_tokens=8, batch_size=20, seed=0)
    assert found.ended(model.eos).mean() > 0.8
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"step", "loss", "gradient_norm", "learning_rate"} <= set(rows[0])
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})


def test_training_repeats_bit_for_bit_and_follows_its_seed(tmp_path: Path) -> None:
    def trained(name: str, seed: int) -> Policy:
        model = small.copy_of(small.policy("letters"), tmp_path / name)
        texts = model.complete(["a", "b", "c", "a b"] * 4, [" b c", " a", "", " c c"] * 4)
        config = SftConfig(seed=seed, steps=3, batch_size=2, learning_rate=1e-2)
        fine_tune(model, texts, config, context=small.context(tmp_path / name))
        return model

    first, second, other = trained("first", 0), trained("second", 0), trained("other", 1)
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_texts_are_cut_at_max_tokens(tmp_path: Path) -> None:
    model = tuned(tmp_path, max_tokens=2)
    end = model.complete(["a b c"], [""])
    assert np.exp(log_probabilities(model, end)) < 0.9, "the end of the text was cut off and could not be learnt"


# ---------------------------------------------------------------- text that spells a special token


SPELLED = "see <|endoftext|>, <|padding|>, <s>, </s> or <pad> there"


@every_model
def test_text_that_spells_a_special_token_stays_text(name: str, tmp_path: Path) -> None:
    made = small.policy(name)
    for model in (made, small.copy_of(made, tmp_path / "saved")):
        special = set(model.tokenizer.all_special_ids)
        bos = {model.tokenizer.bos_token_id} if name == "llama" else set()
        completions = model.complete([SPELLED], [SPELLED])
        assert model.tokenizer.decode(completions.completion_ids[0][:-1]) == SPELLED
        assert special.intersection(completions.completion_ids[0]) == {model.eos}
        assert completions.completion_ids[0].count(model.eos) == 1
        assert special.intersection(completions.prompt_ids[0]) == bos
        assert model.tokenizer(text=[SPELLED])["input_ids"] == completions.prompt_ids, "as TRL asks"


def test_a_new_tokenizer_learns_no_merge_into_a_special_token() -> None:
    config = ModelConfig(hidden_size=16, layers=1, heads=2, vocabulary=400)
    model = new_policy(config, ["<|endoftext|> <|padding|><|endoftext|>"] * 200, small.DEVICE, seed=0)
    (ids,) = model.encode_completions(["<|endoftext|>"])
    assert len(ids) == 4, "'<|', 'endoftext', '|>' and the end"
    assert ids.index(model.eos) == 3


def test_a_tokenizer_that_finds_its_end_in_a_text_is_refused() -> None:
    with pytest.raises(PolicyError, match="'a <end>' for its EOS token '<end>'"):
        small.policy("letters").encode_completions(["a b", "a <end>"])

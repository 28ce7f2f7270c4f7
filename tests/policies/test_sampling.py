"""Draws against the exact distribution, and the same bytes on any number of threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from irl_exp.config import SftConfig
from irl_exp.policies import policy_optimization, sampling
from irl_exp.policies.gradients import in_shards
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities, token_statistics
from irl_exp.policies.sampling import BLOCK, draw, generate, sample
from irl_exp.policies.supervised import fine_tune

every_model = pytest.mark.parametrize("name", small.MODELS)


def on_threads(policy: Policy, threads: int) -> Policy:
    return Policy(policy.model, policy.tokenizer, replace(policy.device, threads=threads))


# ---------------------------------------------------------------- one draw


@pytest.mark.parametrize("vocabulary", [3, BLOCK, 2 * BLOCK + 5])
def test_draws_have_the_probabilities_of_the_softmax(vocabulary: int) -> None:
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
    tokens, _ = draw(logits.expand(20_000, -1), torch.Generator().manual_seed(1))
    expected = 20_000 * logits.double().softmax(-1)[0].numpy()
    counts = np.bincount(tokens.numpy(), minlength=vocabulary)
    enough = expected >= 5
    pooled = [np.append(column[enough], column[~enough].sum()) for column in (counts, expected)]
    pooled = [column[pooled[1] > 0] for column in pooled]
    assert stats.chisquare(*pooled).pvalue > 0.001


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-80, 80, width=32), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(0))
def test_a_draw_comes_with_its_log_probability(rows: list[list[float]], seed: int) -> None:
    logits = torch.tensor(rows)
    tokens, values = draw(logits, torch.Generator().manual_seed(seed % 2**32))
    wanted = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert torch.allclose(values.double(), wanted, atol=1e-4)
    greedy, _ = draw(logits, None)
    assert torch.equal(logits.gather(-1, greedy[:, None])[:, 0], logits.amax(-1))


def test_what_has_no_probability_is_never_drawn() -> None:
    logits = torch.full((5000, 3 * BLOCK), -torch.inf)
    logits[:, [BLOCK - 1, BLOCK, 3 * BLOCK - 1]] = 0.0
    tokens, values = draw(logits, torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == {BLOCK - 1, BLOCK, 3 * BLOCK - 1}
    assert torch.allclose(values, torch.tensor(-np.log(3), dtype=torch.float32))


# ---------------------------------------------------------------- whole completions


@every_model
def test_the_log_probabilities_of_sampling_are_those_of_reading(name: str) -> None:
    policy = small.policy(name)
    prompts = [prompt for prompt in small.PROMPTS for _ in range(5)]
    ids = policy.encode_prompts(prompts)
    written = sample(policy, ids, max_new_tokens=9, batch_size=8, seed=3)
    texts = policy.tokenizer.batch_decode([one.ids for one in written])
    read = log_probabilities(policy, Completions(prompts, texts, ids, [one.ids for one in written]))
    assert np.allclose([float(one.log_probabilities.sum()) for one in written], read, atol=1e-3)


@every_model
def test_keys_and_values_that_grow_in_place_write_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From their first token on, in a batch whose rows end one after the other, and with prompts that are read once."""
    policy = small.policy(name)
    ids = policy.encode_prompts([prompt for prompt in small.PROMPTS for _ in range(6)])
    grown: list[int] = []
    longer = sampling._longer
    monkeypatch.setattr(sampling, "_longer", lambda kept, length: grown.append(length) or longer(kept, length))
    joined = sample(policy, ids, max_new_tokens=40, batch_size=16, seed=1)
    assert not grown, "small blocks are joined"
    monkeypatch.setattr(sampling, "LARGE", 1)
    found = sample(policy, ids, max_new_tokens=40, batch_size=16, seed=1)
    assert len(set(grown)) > 2
    for one, other in zip(found, joined, strict=True):
        assert one.ids == other.ids
        assert one.log_probabilities is not None
        assert other.log_probabilities is not None
        assert torch.equal(one.log_probabilities, other.log_probabilities)
    assert len({len(one.ids) for one in found}) > 1


@every_model
def test_any_number_of_threads_writes_reads_and_differentiates_the_same_bytes(name: str) -> None:
    alone, several = (on_threads(small.policy(name), threads) for threads in (1, 3))
    prompts = [prompt for prompt in small.PROMPTS for _ in range(7)]
    written = [generate(one, prompts, max_new_tokens=9, batch_size=5, seed=0) for one in (alone, several)]
    assert written[0] == written[1]
    read = [log_probabilities(one, written[0]) for one in (alone, several)]
    assert (read[0] == read[1]).all()
    found = []
    for one in (alone, several):
        values, entropies = token_statistics(one, written[0], together=4, entropy=True)
        weights = list(one.model.parameters())
        found.append([*values, *entropies, *torch.autograd.grad(torch.cat(values).exp().sum(), weights)])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


def test_gradients_in_shards_are_those_of_the_whole() -> None:
    weight = torch.nn.Parameter(torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    rows = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pieces = list(rows.split([1, 4, 3, 2]))
    values = in_shards(lambda part: (part @ weight).tanh(), pieces, [weight], 2)
    whole = (rows @ weight).tanh()
    assert torch.equal(values, whole)
    scale = torch.arange(10, dtype=torch.float64)
    gradients = [torch.autograd.grad((found * scale).sum(), weight)[0] for found in (values, whole)]
    assert torch.allclose(*gradients, rtol=1e-12)


# ---------------------------------------------------------------- training


def test_fine_tuning_gives_the_same_weights_on_any_number_of_threads(tmp_path: Path) -> None:
    config = SftConfig(seed=0, steps=3, batch_size=40)
    found = []
    for threads in (1, 2):
        policy = on_threads(small.copy_of(small.policy("neox"), tmp_path / str(threads)), threads)
        context = replace(small.context(tmp_path / f"artifact{threads}"), device=policy.device)
        fine_tune(policy, policy.complete(small.PROMPTS * 8, small.TEXTS * 8), config, context=context)
        found.append(policy.model.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize(("algorithm", "samples"), [("rloo", True), ("rloo", False), ("grpo", True)])
@pytest.mark.parametrize("name", ["neox", "llama"])  # of relative positions: TRL counts a prompt's padding as places
def test_what_the_trainer_is_told_of_a_policy_is_what_it_would_compute(
    name: str, algorithm: str, samples: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our log-probabilities and entropies in place of TRL's: the same numbers, for policy and reference."""
    small.policy(name).save(tmp_path / "reference")
    compared = 0

    def watching(config: Any, policy: Policy, opened: Policy, *rest: Any) -> Any:
        theirs = base(config, policy, opened).__mro__[1]
        ours = policy_optimization._with_our_numbers(theirs, policy, opened, config, samples=samples)

        class Watching(ours):  # type: ignore[misc, valid-type]
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                self.copy = self.ref_model  # which TRL has opened, and fitted with a head of its own

            def _get_per_token_logps_and_entropies(
                self, model: Any, ids: Any, mask: Any, kept: int, *rest: Any, **options: Any
            ) -> Any:
                nonlocal compared
                asked = {"compute_entropy": options.get("compute_entropy", False)}
                mine = super()._get_per_token_logps_and_entropies(model, ids, mask, kept, **asked)
                own = model if model is self.model else self.copy
                theirs = super(ours, self)._get_per_token_logps_and_entropies(own, ids, mask, kept, **asked)
                written = mask[:, -kept:].bool()
                for ours_says, other in zip(mine[:2], theirs[:2], strict=True):
                    if other is not None:
                        assert torch.allclose(ours_says[written], other[written], atol=1e-4)
                        compared += 1
                return mine

        return Watching

    base = policy_optimization._trainer_class
    monkeypatch.setattr(policy_optimization, "_trainer_class", watching)
    config = small.compose(f"rlhf={algorithm}", "rlhf.steps=2", "rlhf.batch_size=8", "rlhf.generations=2").rlhf
    policy_optimization.optimize(
        tmp_path / "reference",
        lambda completions: np.array([float(len(ids)) for ids in completions.completion_ids]),
        small.PROMPTS,
        config,
        context=small.context(tmp_path / "artifact"),
    )
    assert compared >= (6 if algorithm == "rloo" else 4)  # GRPO's reference is a matter of the reward, not of TRL

"""Small random models, and the surroundings of a stage, for tests that need no training.

The cached models are shared: a test that changes one takes a copy with `copy_of`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from scipy.special import log_softmax

from irl_exp.config import Config, ModelConfig, SequenceClassifierConfig
from irl_exp.machinery.runtime import Context, Device, prepare_process
from irl_exp.policies.language_models import Completions, Policy, new_policy, prepare_tokenizer
from irl_exp.rewards.ground_truth import SequenceClassifierReward

DEVICE = Device("cpu", "fp32", 1)
prepare_process()

PROMPTS = ("The bus", "I think that the old bridge", "Ok", "My neighbour said: wait", "It's 5 o'clock, so")
TEXTS = (" is late again.", "", " was closed,  and nobody\ntold us!", " naïve 🙂 people <|x|> left", " a b c")
MODELS = ("neox", "gpt2", "llama")
LETTERS = ("a", "b", "c")


def context(folder: Path, rows: list[Mapping[str, float]] | None = None) -> Context:
    """What a stage gets; its curve goes to `rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, DEVICE, (rows if rows is not None else []).append)


def compose(*overrides: str) -> Config:
    """The typed config of one job of seconds."""
    import hydra
    from omegaconf import OmegaConf

    from irl_exp import config
    from irl_exp.launch import command_line

    config.register()
    with hydra.initialize_config_dir(str(config.CONF), **command_line.VERSION_BASE):
        composed = hydra.compose("config", ["scale=tiny", "tracking=none", "device=cpu", *overrides])
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return config.parse(values)


@cache
def policy(name: str) -> Policy:
    """A policy with large random weights: its distributions are far from uniform."""
    return {"neox": _neox, "gpt2": _gpt2, "llama": _llama, "letters": _letters}[name]()


def copy_of(source: Policy, folder: Path) -> Policy:
    """The same policy, saved and loaded."""
    source.save(folder)
    return Policy.load(folder, source.device)


def reading(source: Policy, batch_tokens: int) -> Policy:
    """The same policy where a model reads so many tokens at once."""
    return replace(source, device=replace(source.device, batch_tokens=batch_tokens))


def written(model: Policy, *, seed: int = 0, count: int = 12) -> Completions:
    """Completions of unequal lengths, of the policy and of somebody else; with and without EOS at the end."""
    generator = np.random.default_rng(seed)
    others = model.complete(PROMPTS, TEXTS)
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(count)]
    ids = [generator.integers(3, 200, size=1 + index % 7).tolist() for index in range(count)]
    return others + Completions(prompts, model.tokenizer.batch_decode(ids), model.encode_prompts(prompts), ids)


def one_by_one(model: Policy, completions: Completions) -> tuple[list[NDArray[Any]], list[list[NDArray[Any]]]]:
    """The obvious oracle: logits (t, v) and hidden states (t, d) of each layer, one sequence at a time, no padding."""
    logits, states = [], []
    for prompt, completion in zip(completions.prompt_ids, completions.completion_ids, strict=True):
        with torch.no_grad():
            output = model.model(input_ids=torch.tensor([prompt + completion]), output_hidden_states=True)
        logits.append(output.logits[0].double().numpy())
        states.append([layer[0].numpy() for layer in output.hidden_states])
    return logits, states


def slow_log_probabilities(model: Policy, completions: Completions) -> NDArray[np.float64]:
    """Token by token, one sequence at a time, from all logits: (n,)."""
    totals = []
    for row, logits in enumerate(one_by_one(model, completions)[0]):
        log_p = log_softmax(logits, axis=-1)
        start = len(completions.prompt_ids[row]) - 1
        totals.append(sum(log_p[start + step, token] for step, token in enumerate(completions.completion_ids[row])))
    return np.array(totals)


def all_completions(model: Policy, prompt: str, *, max_new_tokens: int) -> Completions:
    """Every completion that the policy over LETTERS can write: ended by EOS, or cut at the limit."""
    ids = model.tokenizer.convert_tokens_to_ids(list(LETTERS))
    ended = [
        [*sequence, model.eos] for length in range(max_new_tokens) for sequence in itertools.product(ids, repeat=length)
    ]
    every = ended + [list(sequence) for sequence in itertools.product(ids, repeat=max_new_tokens)]
    texts = model.tokenizer.batch_decode(every, skip_special_tokens=True)
    return Completions([prompt] * len(every), texts, model.encode_prompts([prompt]) * len(every), every)


def sequence_classifier(
    folder: Path, labels: Sequence[str] = ("neutral", "toxic"), *, head: bool = True
) -> SequenceClassifierConfig:
    """Save a random Roberta; without `head` only its base model, as a pretrained encoder would be published."""
    tokenizer = byte_level(eos="</s>", bos="<s>", pad="<pad>")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=300,
                type_vocab_size=1,
                pad_token_id=tokenizer.pad_token_id,
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        _sharpen(model)
    (model if head else model.roberta).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SequenceClassifierConfig(seed=0, path=folder, hub=None)


def opened(config: SequenceClassifierConfig) -> SequenceClassifierReward:
    return SequenceClassifierReward.open(str(config.path), config, DEVICE)


def byte_level(*, eos: str | None, bos: str | None = None, pad: str | None = None) -> Any:
    """A byte-level BPE; with `bos`, that token is put before every text, as Llama's tokenizer does."""
    special = list(dict.fromkeys(token for token in (pad, bos, eos) if token))
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*PROMPTS, *TEXTS], trainer)
    if bos:
        bpe.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    named = {"eos_token": eos, "bos_token": bos, "pad_token": pad}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, **{name: token for name, token in named.items() if token}
    )


def _sharpen(model: Any, scale: float = 0.4) -> None:
    """Weights large enough for every token and position to matter."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, scale)


def _neox() -> Policy:
    """What the chain itself builds: one padding token, another for the end."""
    config = ModelConfig(hidden_size=16, layers=2, heads=2, vocabulary=300)
    found = new_policy(config, [*PROMPTS, *TEXTS], DEVICE, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        _sharpen(found.model)
    found.model.eval()
    return found


def _gpt2() -> Policy:
    """Absolute positions, and a tokenizer without a padding token: EOS pads."""
    tokenizer = byte_level(eos="<|endoftext|>", bos=None)
    settings = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _built(transformers.GPT2LMHeadModel, settings, tokenizer)


def _llama() -> Policy:
    """A BOS token before every prompt; fewer key heads than heads."""
    tokenizer = byte_level(eos="</s>", bos="<s>", pad="<pad>")
    return _built(transformers.LlamaForCausalLM, _llama_config(tokenizer), tokenizer)


def _letters() -> Policy:
    """Three letters and EOS, which also pads: few enough completions to enumerate."""
    vocabulary = {"<end>": 0, **{letter: index for index, letter in enumerate(LETTERS, start=1)}}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    return _built(transformers.LlamaForCausalLM, _llama_config(tokenizer), tokenizer, scale=0.25)


def _llama_config(tokenizer: Any) -> Any:
    return transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _built(kind: Any, settings: Any, tokenizer: Any, *, scale: float = 0.4) -> Policy:
    prepare_tokenizer(tokenizer, "test")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind(settings)
        _sharpen(model, scale)
    return Policy(model.eval(), tokenizer, DEVICE)

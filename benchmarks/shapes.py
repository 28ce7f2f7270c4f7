"""Models of a true shape with random weights, and texts for them: nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SHAPES = {  # architecture, width, layers, heads, vocabulary
    "warm": ("neox", 32, 3, 2, 512),
    "1M": ("neox", 128, 4, 4, 2048),
    "14M": ("neox", 128, 6, 4, 50304),
    "70M": ("neox", 512, 6, 8, 50304),
    "160M": ("neox", 768, 12, 12, 50304),
    "410M": ("neox", 1024, 24, 16, 50304),
    "1B": ("neox", 2048, 16, 8, 50304),
    "1.4B": ("neox", 2048, 24, 16, 50304),
    "Qwen 0.5B": ("qwen", 896, 24, 14, 151936),
    "Llama 1B": ("llama", 2048, 16, 32, 128256),
    "Llama 8B": ("llama", 4096, 32, 32, 128256),
}
"""Of Pythia (GPT-NeoX), Qwen 2.5 and Llama 3: those with 1M, 70M, ... parameters. 1M is the embedded default."""
LLAMA = {"Llama 1B": (8192, True), "Llama 8B": (14336, False)}
"""Width of the MLP, and whether the embeddings are tied."""


def configuration(shape: str) -> Any:
    import transformers

    kind, width, layers, heads, vocabulary = SHAPES[shape]
    common = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "neox":
        return transformers.GPTNeoXConfig(
            **common,
            intermediate_size=4 * width,
            max_position_embeddings=2048,
            rotary_pct=0.25,
            tie_word_embeddings=False,
        )
    if kind == "qwen":
        return transformers.Qwen2Config(
            **common,
            intermediate_size=4864,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=32768,
        )
    inner, tied = LLAMA[shape]
    return transformers.LlamaConfig(
        **common,
        intermediate_size=inner,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=tied,
    )


def tokenizer(size: int) -> Any:
    """A token a byte, and tokens that no text has up to the size of the vocabulary."""
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", *letters, *(f"Ġ<{number}>" for number in range(size - len(letters) - 1))]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({word: place for place, word in enumerate(words)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, pad_token=end)


def save(shape: str, folder: Path) -> None:
    """A checkpoint as any other."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(configuration(shape)).save_pretrained(folder)
    tokenizer(SHAPES[shape][4]).save_pretrained(folder)


def without_weights(shape: str, folder: Path) -> None:
    """A checkpoint that nobody loads: its configuration, and where the weights would be."""
    config = configuration(shape)
    kinds = {"gpt_neox": "GPTNeoX", "qwen2": "Qwen2", "llama": "Llama"}
    config.architectures = [f"{kinds[config.model_type]}ForCausalLM"]
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()


def prompts(count: int, tokens: int) -> list[str]:
    """Distinct texts of so many bytes, and so tokens."""
    return [f"{number:0{tokens}d}" for number in range(count)]


def completions(policy: Any, count: int, prompt: int, written: int) -> Any:
    """Completions of so many tokens, none of them EOS but the last."""
    import numpy as np

    from irl_exp.policies.language_models import Completions

    asked = prompts(count, prompt)
    drawn = np.random.default_rng(0).integers(1, len(policy.tokenizer), size=(count, written - 1))
    return Completions(
        asked, [""] * count, policy.encode_prompts(asked), [[*row, policy.eos] for row in drawn.tolist()]
    )


def machine(device: Any) -> str:
    """The machine in words."""
    import torch

    if not device.is_cpu:
        return f"{device}, torch {torch.__version__}"
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{device}, {os.cpu_count()} cores ({names[0] if names else 'unknown'}), torch {torch.__version__}"


def judge() -> Any:
    """A classifier of the shape of RoBERTa base."""
    import transformers

    config = transformers.RobertaConfig(vocab_size=50304, max_position_embeddings=514)
    return transformers.RobertaForSequenceClassification(config).eval()

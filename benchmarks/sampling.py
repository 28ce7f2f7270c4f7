"""What sampling costs on this machine: tokens a second of models of two vocabularies, and where the time goes.

    python benchmarks/sampling.py [--rows 1000] [--tokens 32] [--device cpu|cuda] [--vllm]

The weights are random, so nearly every row is written to its last token. The floor is what the matrix products alone
take on a CPU, measured on matrices of the same shapes. vLLM (sampler=vllm) is measured with its engine started.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES = {  # hidden, layers, heads, vocabulary
    "default": (128, 4, 4, 2048),
    "pythia-70m": (512, 6, 8, 50304),
}


def main() -> None:
    import torch
    import transformers

    from irl_exp.config import ModelConfig, VllmSampler
    from irl_exp.machinery.runtime import cores, find_device, prepare_process
    from irl_exp.policies.language_models import Policy, new_policy
    from irl_exp.policies.sampling import sample

    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--rows", type=int, default=1000)
    command.add_argument("--tokens", type=int, default=32)
    command.add_argument("--threads", type=int, default=cores())
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--vllm", action="store_true", help="measure sampler=vllm, too")
    arguments = command.parse_args()
    device = find_device(arguments.device, "auto", arguments.threads)
    prepare_process()
    for name, (hidden, layers, heads, vocabulary) in SHAPES.items():
        words = new_policy(ModelConfig(), ["some text to make a tokenizer of"], device, seed=0)
        torch.manual_seed(0)
        model = transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * hidden,
                rotary_pct=0.25,
                pad_token_id=0,
                eos_token_id=0,
            )
        ).eval()
        policy = Policy(model.to(device.name), words.tokenizer, device)
        prompts = [[1 + (7 * row + place) % 200 for place in range(12)] for row in range(arguments.rows)]
        tokens, seconds = _timed(policy, prompts, arguments.tokens)
        print(f"{name}: {tokens:,} tokens in {seconds:.1f} s", end="")
        if device.is_cpu:
            floor = _products(hidden, layers, vocabulary, arguments.rows, arguments.tokens) / arguments.threads
            print(f"; the matrix products alone {floor:.1f} s", end="")
        if arguments.vllm:
            engine = replace(policy, device=replace(device, vllm=VllmSampler()))
            sample(engine, prompts[:1], max_new_tokens=1, batch_size=1, seed=0)
            tokens, seconds = _timed(engine, prompts, arguments.tokens)
            print(f"; vLLM {tokens:,} in {seconds:.1f} s", end="")
        print()


def _timed(policy: Any, prompts: list[list[int]], longest: int) -> tuple[int, float]:
    """Tokens that were written, and seconds."""
    from irl_exp.policies.sampling import sample

    start = time.perf_counter()
    written = sample(policy, prompts, max_new_tokens=longest, batch_size=256, seed=0)
    return sum(len(one.ids) for one in written), time.perf_counter() - start


def _products(hidden: int, layers: int, vocabulary: int, rows: int, tokens: int) -> float:
    """Seconds of one thread for the products of a step, times the steps of all batches."""
    import torch

    batch = torch.randn(256, hidden)
    weights = [torch.randn(hidden, 12 * hidden) for _ in range(layers)] + [torch.randn(hidden, vocabulary)]
    for weight in weights:
        batch @ weight
    start = time.perf_counter()
    for _ in range(5):
        for weight in weights:
            batch @ weight
    return (time.perf_counter() - start) / 5 * tokens * rows / 256


if __name__ == "__main__":
    main()

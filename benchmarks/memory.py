"""What a launch predicts a stage to take in memory, beside what it takes.

    python benchmarks/memory.py [--shapes 1M 14M 70M ...] [--cases sft rlhf ...] [--tokens 16 48] [--device cpu|cuda]

Each case is a process of its own with a model of the true shape and random weights, a few steps of a stage's work, and
its peak: on the CPU the largest resident size since the libraries were loaded and used once, on a GPU what torch had
allocated at most. Nothing here is a test, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import shapes  # noqa: E402

MIB = 2**20
OURS = ("irl_exp.policies.policy_optimization", "irl_exp.policies.supervised", "irl_exp.irl.features")
CASES = ("sft", "rlhf", "demonstrations", "log-probabilities", "features")
SAVING = ("sft checkpointed", "rlhf checkpointed", "sft adapter", "sft adapter checkpointed")
"""Trainings that take less: with gradient checkpointing, and with adapters on weights in bf16."""
PROMPT, WRITTEN = 16, 48
"""Tokens of every prompt and of every completion, unless asked for others."""
ROWS = {"1M": 128, "14M": 32, "70M": 32, "160M": 16, "410M": 8}
"""Completions a training step."""
READ = {"1M": 1024, "14M": 256, "70M": 128, "160M": 128, "410M": 128}
"""Completions that are written or read."""
AT_ONCE = 64
"""Of these in a shard of sampling."""


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--shapes", nargs="+", default=[*ROWS], choices=[*ROWS])
    command.add_argument("--cases", nargs="+", default=CASES, choices=(*CASES, *SAVING))
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    command.add_argument("--threads", type=int, default=0)
    command.add_argument("--tokens", nargs=2, type=int, default=(PROMPT, WRITTEN), metavar=("PROMPT", "WRITTEN"))
    arguments = command.parse_args()
    globals().update(zip(("PROMPT", "WRITTEN"), arguments.tokens, strict=True))
    from irl_exp.machinery.runtime import Device, cores, prepare_process

    cuda = arguments.device == "cuda"
    device = Device("cuda:0", "bf16", 1) if cuda else Device("cpu", "fp32", arguments.threads or cores())
    prepare_process()
    load()
    print(shapes.machine(device))
    print(f"{'model':<6}{'work':<26}{'predicted':>11}{'measured':>11}{'ratio':>8}   predicted parts, MiB", flush=True)
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            of_itself("build", shape, Path(folder), device)
            for case in arguments.cases:
                show(shape, case, of_itself(case, shape, Path(folder), device))


def load() -> None:
    """What the cases import, so that no case does."""
    import importlib

    for name in ("accelerate", "datasets", "trl.trainer.rloo_trainer", "trl.trainer.rloo_config", *OURS):
        importlib.import_module(name)


def show(shape: str, case: str, found: Any) -> None:
    if found is None:
        print(f"{shape:<6}{case:<26} failed", flush=True)
        return
    told = sum(found["parts"].values())
    parts = ", ".join(f"{name} {value / MIB:,.0f}" for name, value in found["parts"].items() if value)
    sizes = f"{told / MIB:>7,.0f} MiB{found['measured'] / MIB:>7,.0f} MiB{told / found['measured']:>8.2f}"
    print(f"{shape:<6}{case:<26}{sizes}   {parts}", flush=True)


def of_itself(case: str, shape: str, folder: Path, device: Any) -> Any:
    """One case in a process of its own, forked where the libraries are loaded and nothing has run."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(case, shape, folder, device, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def child(case: str, shape: str, folder: Path, device: Any, sender: Any) -> None:
    if case == "build":
        shapes.save(shape, folder / "model")
        shapes.save("warm", folder / "warm")
        sender.send({})
        return
    # Libraries load a part of themselves when they are used first: none of that is the stage's.
    work(case, folder / "warm", device, 4, 8)
    before = settled(device)
    start = time.perf_counter()
    work(case, folder / "model", device, ROWS[shape], READ[shape])
    seconds, measured = time.perf_counter() - start, peak(device) - before
    sender.send({"parts": predicted(case, shape, device), "measured": measured, "seconds": seconds})


def work(case: str, folder: Path, device: Any, rows: int, read: int) -> None:
    """Some steps of a stage, as the stage does them."""
    stage, *saving = case.split()
    if stage in ("sft", "rlhf"):
        {"sft": sft, "rlhf": rlhf}[stage](folder, device, rows, saving)
    else:
        reading(case)(folder, device, read)


def sft(folder: Path, device: Any, rows: int, saving: Sequence[str] = ()) -> None:
    from irl_exp.config import LoraConfig, SftConfig
    from irl_exp.policies.language_models import Policy
    from irl_exp.policies.supervised import fine_tune

    adapter = LoraConfig() if "adapter" in saving else None
    policy = Policy.load(folder, device, kept=adapter.dtype if adapter else "float32")
    if adapter and device.is_cpu:
        forget_peak()  # the file that was read is mapped until then: pages that the system takes back where it is short
    config = SftConfig(
        seed=0,
        steps=2,
        batch_size=rows,
        max_tokens=PROMPT + WRITTEN,
        gradient_checkpointing="checkpointed" in saving,
    )
    completions = shapes.completions(policy, rows, PROMPT, WRITTEN)
    fine_tune(policy, completions, config, adapter=adapter, context=context(device))


def rlhf(folder: Path, device: Any, rows: int, saving: Sequence[str] = ()) -> None:
    import numpy as np

    from irl_exp.config import PolicyOptimizationConfig
    from irl_exp.policies.policy_optimization import optimize

    config = PolicyOptimizationConfig(
        seed=0,
        steps=2,
        batch_size=rows,
        generations=4,
        max_new_tokens=WRITTEN,
        learning_rate=1e-6,
        gradient_checkpointing="checkpointed" in saving,
    )
    generator = np.random.default_rng(0)
    optimize(
        folder,
        lambda batch: generator.normal(size=len(batch)),
        shapes.prompts(max(rows // 4, 4), PROMPT),
        config,
        context=context(device),
    )


def reading(case: str) -> Callable[[Path, Any, int], None]:
    def read(folder: Path, device: Any, rows: int) -> None:
        from irl_exp.config import HiddenStateConfig
        from irl_exp.irl.features import hidden_states
        from irl_exp.policies.language_models import Policy
        from irl_exp.policies.likelihood import log_probabilities
        from irl_exp.policies.sampling import generate

        policy = Policy.load(folder, device)
        if case == "demonstrations":
            generate(policy, shapes.prompts(rows, PROMPT), max_new_tokens=WRITTEN, batch_size=AT_ONCE, seed=0)
        elif case == "log-probabilities":
            log_probabilities(policy, shapes.completions(policy, rows, PROMPT, WRITTEN))
        else:
            hidden_states({"states": HiddenStateConfig()}, policy, shapes.completions(policy, rows, PROMPT, WRITTEN))

    return read


def context(device: Any) -> Any:
    from irl_exp.machinery.runtime import Context

    return Context(Path(tempfile.mkdtemp()), device, log=lambda row: None)


def settled(device: Any) -> int:
    """Bytes in use now, from which on the peak is counted."""
    import torch

    gc.collect()
    if not device.is_cpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    import ctypes

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    forget_peak()
    return resident("VmRSS")


def forget_peak() -> None:
    """It begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak(device: Any) -> int:
    import torch

    return resident("VmHWM") if device.is_cpu else int(torch.cuda.max_memory_allocated())


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def predicted(case: str, shape: str, device: Any) -> dict[str, int]:
    """What a launch would say of this work; of the libraries, which are loaded already, nothing."""
    from irl_exp.config import LoraConfig
    from irl_exp.launch import memory
    from irl_exp.policies.footprint import footprint

    stage, *saving = case.split()
    rank = LoraConfig().rank if "adapter" in saving else None
    kept: Literal["fp32", "bf16"] = "fp32" if rank is None else "bf16"
    model = footprint(shapes.configuration(shape), precision=device.precision, weights=kept)
    place = memory.Place("cpu" if device.is_cpu else "cuda", device.threads)
    tokens = {"tokens": PROMPT + WRITTEN, "predicted": WRITTEN}
    rows, read = ROWS[shape], READ[shape]
    work = {
        "sft": {"trained": True, "rows": rows, "tokens": PROMPT + WRITTEN, "predicted": PROMPT + WRITTEN},
        "rlhf": {**tokens, "trained": True, "rows": rows, "written": rows, "copies": 2, "entropy": True},
        "demonstrations": {**tokens, "written": read, "together": AT_ONCE},
        "log-probabilities": {**tokens, "read": read},
        "features": {**tokens, "read": read, "read_layers": True, "features": (read, 3 * model.width)},
    }[stage]
    chosen = {"checkpointing": "checkpointed" in saving, "rank": rank}
    parts = memory.need(memory.Work(stage, model, **work, **chosen), place).parts
    return {**parts, "process": max(0, parts["process"] - memory.LIBRARIES)}


if __name__ == "__main__":
    main()

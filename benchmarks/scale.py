"""Models of the true shape with random weights: what each stage costs, and what whole experiments would.

    python benchmarks/scale.py [--shapes 70M 160M] [--device cpu|cuda] [--card H200]    the table of the stages
    python benchmarks/scale.py --predict [--card H200] [--share 0.4]                    arithmetic alone, in a second
    python benchmarks/scale.py --loop                                                   beside one text at a time

Nothing is downloaded. A model that is too large for the device, or for a run on the CPU, says "not measured". The share
is that of the matrix products of the weights in the device's own: a large product in the same precision, measured
first. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import memory as benchmark  # noqa: E402
import shapes  # noqa: E402

MODELS = ("70M", "160M", "410M", "1B", "Llama 1B", "Llama 8B")
ON_CPU = ("70M", "160M")
STAGES = ("sft", "rlhf", "demonstrations", "log-probabilities", "features")
SIZES = {"cpu": (16, 64), "cuda": (64, 1024)}
"""Completions of a training step and of a stage that reads or writes, of PROMPT and WRITTEN tokens each."""
STEPS = 2
CARDS = {"H100": (989e12, 3.35e12, 80), "H200": (989e12, 4.8e12, 141), "A100": (312e12, 2.0e12, 80)}
"""Matrix products a second in bf16 without sparsity, bytes a second, GB; by their makers' data sheets."""
SAMPLING_STEP, TRAINING_STEP = 0.02, 0.05
"""Seconds that a step takes at least, of Python and of small kernels, however small its batch is: assumptions."""
GIB = 2**30


# ------------------------------------------------------------------------------------------------- the work of it


@dataclass(frozen=True)
class Cost:
    """Operations of matrix products of the weights: of a token through the layers, and of one through the head."""

    layers: float
    head: float
    bytes: float

    @classmethod
    def of(cls, shape: str) -> Cost:
        from irl_exp.policies.footprint import footprint

        config = shapes.configuration(shape)
        found = footprint(config)
        tables = found.head * (1 if config.tie_word_embeddings else 2)
        return cls(2.0 * (found.parameters - tables), 2.0 * found.head, 2.0 * found.parameters)

    def read(self, texts: float, prompt: int, written: int, *, head: bool = True) -> float:
        """One pass over texts, with logits where the completion stands."""
        return texts * ((prompt + written) * self.layers + (written * self.head if head else 0.0))


def work_of(stage: str, cost: Cost, rows: int, read: int, steps: int = STEPS) -> float:
    """Operations of a case of benchmarks/memory.py."""
    prompt, written = benchmark.PROMPT, benchmark.WRITTEN
    if stage == "sft":
        return 3 * steps * cost.read(rows, 1, prompt + written - 1)
    if stage == "rlhf":  # written by the policy, read by the reference, learned from
        return steps * 5 * cost.read(rows, prompt, written)
    return cost.read(read, prompt, written, head=stage != "features")


def matrix_peak(device: Any) -> float:
    """Operations a second of a large matrix product, on all threads of the device."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(device.threads)
    size, kind = (2048, torch.float32) if device.is_cpu else (8192, torch.bfloat16)
    left, right = (torch.randn(size, size, device=device.name, dtype=kind) for _ in range(2))

    def product() -> None:
        left @ right
        if not device.is_cpu:
            torch.cuda.synchronize()

    product()
    best = min(seconds_of(product) for _ in range(5))
    torch.set_num_threads(threads)
    return 2 * size**3 / best


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------- measured


def measured(arguments: argparse.Namespace, device: Any) -> Iterator[str]:
    peak = matrix_peak(device)
    yield shapes.machine(device)
    yield f"large matrix product: {peak / 1e12:.2f} TFLOP/s"
    yield ""
    yield "| model | stage | tokens | s | tokens/s | share of the matrix peak | peak GiB |"
    yield "|---|---|---|---|---|---|---|"
    rows, read = SIZES["cpu" if device.is_cpu else "cuda"]
    for shape in MODELS:
        if shape not in arguments.shapes or (device.is_cpu and shape not in ON_CPU):
            yield f"| {shape} | all | not measured | | | | |"
            continue
        cost = Cost.of(shape)
        with tempfile.TemporaryDirectory() as folder:
            benchmark.of_itself("build", shape, Path(folder), device)
            for stage in STAGES:
                benchmark.ROWS[shape], benchmark.READ[shape] = rows, read
                found = benchmark.of_itself(stage, shape, Path(folder), device)
                if found is None:
                    yield f"| {shape} | {stage} | not measured: it failed | | | | |"
                    continue
                count = (rows * STEPS if stage in ("sft", "rlhf") else read) * (benchmark.PROMPT + benchmark.WRITTEN)
                share = work_of(stage, cost, rows, read) / found["seconds"] / peak
                yield (
                    f"| {shape} | {stage} | {count:,} | {found['seconds']:.1f} | {count / found['seconds']:,.0f} | "
                    f"{100 * share:.0f} % | {found['measured'] / GIB:.2f} |"
                )


# ------------------------------------------------------------------------------------------------- predicted


@dataclass(frozen=True)
class Part:
    """A part of an experiment: operations of matrix products in so many steps, each of which reads so many bytes."""

    name: str
    operations: float
    steps: float = 0.0
    bytes: float = 0.0
    least: float = SAMPLING_STEP

    def seconds(self, card: str, share: float) -> float:
        """As long as the products take at this share of the peak, or the steps at their least, whichever is more."""
        peak, bandwidth, _ = CARDS[card]
        return max(self.operations / (share * peak), self.steps * max(self.least, self.bytes / bandwidth))


def paper(seeds: int = 50) -> list[Part]:
    """The experiment of arXiv 2410.12491 with 410M: its steps, batches and tokens, and 50 rewards.

    Of the published range of 6 to 50 epochs the longest is taken; texts have 100 tokens with their prompts.
    """
    cost = Cost.of("410M")
    rl, prompt, new = 12_000, 50, 128
    trained = 3 * cost.read(seeds * 50 * 1000, 50, 50, head=False)
    return [
        Part("RLHF, 12,000 steps of 2: written", cost.read(2 * rl, prompt, new), rl * new, cost.bytes),
        Part("RLHF: read by the reference, learned from", 4 * cost.read(2 * rl, prompt, new), rl, least=TRAINING_STEP),
        Part("demonstrations, 2 x 1,000", cost.read(2000, prompt, 50), 2 * 8 * 50, cost.bytes),
        Part(f"IRL, all weights, {seeds} seeds, pairs by 2", trained, seeds * 50 * 250, least=TRAINING_STEP),
        Part("the same, pairs by 32 (instead)", trained, seeds * 50 * 16, least=TRAINING_STEP),
        Part(f"IRL, frozen: features once for {seeds} seeds", cost.read(2000, 50, 50, head=False)),
        Part("refinetuning, as RLHF: written", cost.read(2 * rl, prompt, new), rl * new, cost.bytes),
        Part("refinetuning: read, learned from, scored", 4 * cost.read(2 * rl, prompt, new), rl, least=TRAINING_STEP),
    ]


def audit() -> list[Part]:
    """An audit of an 8B pair with the defaults of this project: 850 prompts, 7 completions each of both."""
    cost = Cost.of("Llama 8B")
    texts, prompt, new = 2 * 7 * 850, 64, 128
    batches, steps, size = -(-texts // 128), 200, 128  # those of model=llama_8b
    written = cost.read(steps * size, prompt, new)
    return [
        Part("demonstrations: written", cost.read(texts, prompt, new), batches * new, cost.bytes),
        Part("log-probabilities under both", 2 * cost.read(texts, prompt, new)),
        Part("features", cost.read(texts, prompt, new, head=False)),
        Part("judged on test: policies read once more", 2 * cost.read(texts * 250 / 850, prompt, new)),
        Part("LoRA chain: RLHF, 200 steps of 128: written", written, steps * new, cost.bytes),
        Part("LoRA chain: RLHF, read and learned from", 4 * written, steps, least=TRAINING_STEP),
        Part("LoRA chain: refinetuning, as RLHF: written", written, steps * new, cost.bytes),
        Part("LoRA chain: refinetuning, read and learned from", 4 * written, steps, least=TRAINING_STEP),
    ]


def predicted(card: str, share: float) -> Iterator[str]:
    yield (
        f"Predicted, not measured: {card} ({CARDS[card][0] / 1e12:.0f} TFLOP/s in bf16), assumed {100 * share:.0f} % "
        f"of it, and at least {1000 * SAMPLING_STEP:.0f} ms a step of sampling, {1000 * TRAINING_STEP:.0f} of training."
    )
    for title, parts in (("The paper's experiment, 410M", paper()), ("One audit, and one LoRA chain, 8B", audit())):
        yield ""
        yield f"| {title} | PFLOP | minutes |"
        yield "|---|---|---|"
        for part in parts:
            yield f"| {part.name} | {part.operations / 1e15:,.1f} | {part.seconds(card, share) / 60:,.1f} |"


# ------------------------------------------------------------------------------------------------- beside a loop

TEXTS, PROMPT, WRITTEN, SEEDS, EPOCHS = 1000, 20, 30, 50, 20
"""Of the study: texts of 50 tokens, half of them the expert's; epochs of the heads."""
LOOPED = (6, 20, 50)
"""Epochs of the loop: the paper trained 6 to 50."""


def loop(part: int, device: Any) -> Iterator[str]:
    """The study of 50 seeds beside one text and one pair at a time, both in this run on the same models.

    The loop does what public codes do: for each seed it trains all weights on one pair after the other, then scores one
    text after the other; the judge reads one text at a time. It is measured on `part` texts and pairs, and taken
    to go on like that.
    """
    import numpy as np
    import torch

    from irl_exp.config import HiddenStateConfig
    from irl_exp.irl.features import hidden_states
    from irl_exp.policies.language_models import Policy

    with tempfile.TemporaryDirectory() as folder:
        shapes.save("70M", Path(folder) / "model")
        policy = Policy.load(Path(folder) / "model", device)
    texts = shapes.completions(policy, TEXTS, PROMPT, WRITTEN)
    judge = shapes.judge()
    some = [torch.tensor([prompt + own]) for prompt, own in zip(texts.prompt_ids, texts.completion_ids, strict=True)]

    found: dict[str, Any] = {}

    def features() -> None:
        found["features"] = hidden_states({"states": HiddenStateConfig()}, policy, texts)["states"]

    ours = {"features": seconds_of(features)}
    ours["judge"] = (
        seconds_of(lambda: _judged(judge, some))
        if part >= TEXTS
        else _scaled(lambda count: _judged(judge, some[:count]), 64, TEXTS)
    )
    ours["fits, 50 seeds, and scores"] = seconds_of(lambda: _fits(found["features"]))
    model = policy.model.base_model
    head = torch.nn.Parameter(torch.randn(model.config.hidden_size))
    judged = _scaled(lambda count: _one_by_one(judge, some[:count]), part, TEXTS)
    epoch = _scaled(lambda count: _pairs_one_by_one(model, head, some[:count]), part, TEXTS)
    scored = _scaled(lambda count: _one_by_one(model, some[:count]), part, TEXTS)
    alone = {epochs: SEEDS * (epochs * epoch + scored) for epochs in LOOPED}
    yield shapes.machine(device)
    yield f"loop: measured on {part} texts and {part // 2} pairs, and taken to go on like that"
    yield ""
    yield f"| {TEXTS:,} texts of {PROMPT + WRITTEN} tokens, {SEEDS} seeds | here, s | one at a time, s |"
    yield "|---|---|---|"
    fits, mine = ours.pop("fits, 50 seeds, and scores"), sum(ours.values())
    for name, seconds in ours.items():
        yield f"| {name} | {seconds:,.1f} | {judged if name == 'judge' else 0:,.0f} |"
    yield f"| fits, 50 seeds, and scores | {fits:,.1f} | {', '.join(f'{seconds:,.0f}' for seconds in alone.values())} |"
    for epochs, seconds in alone.items():
        theirs = seconds + judged
        told = f"{theirs:,.0f}: {theirs / (mine + fits):,.0f} times"
        yield f"| together, the loop trained for {epochs} epochs | {mine + fits:,.1f} | {told} |"
    pairs = _scaled(lambda count: _pairs_together(policy, texts, count), 32, 500)
    yield f"| an epoch of 500 pairs, all weights | {pairs:,.1f} | {epoch:,.0f}: {epoch / pairs:,.1f} times |"
    assert np.isfinite(found["features"]).all()


def _scaled(work: Callable[[int], object], measured: int, whole: int) -> float:
    """Seconds of the whole, by those of a part of it."""
    work(2)
    return seconds_of(lambda: work(measured)) * whole / measured


def _judged(judge: Any, texts: list[Any]) -> None:
    import torch

    from irl_exp.machinery.shards import in_order

    batches = [torch.cat(texts[start : start + 32]) for start in range(0, len(texts), 32)]

    def read(batch: Any) -> Any:
        with torch.no_grad():
            return judge(batch)

    list(in_order(read, batches, os.cpu_count() or 1))


def _one_by_one(model: Any, texts: list[Any]) -> None:
    """On all threads inside each operation, as torch does it by itself."""
    import torch

    with _own_threads(), torch.no_grad():
        for ids in texts:
            model(ids)


def _pairs_one_by_one(model: Any, head: Any, texts: list[Any]) -> None:
    import torch

    model.requires_grad_(True)
    optimiser = torch.optim.AdamW([*model.parameters(), head], lr=1e-6)
    with _own_threads():
        for expert, baseline in zip(texts[::2], texts[1::2], strict=True):
            optimiser.zero_grad()
            rewards = [model(ids).last_hidden_state[0, -1] @ head for ids in (expert, baseline)]
            torch.nn.functional.softplus(rewards[1] - rewards[0]).backward()
            optimiser.step()


def _pairs_together(policy: Any, texts: Any, pairs: int) -> None:
    """One step of irl/backbone=full."""
    import torch

    from irl_exp.config import HiddenStateConfig
    from irl_exp.irl.backbones import MarginModel
    from irl_exp.policies.language_models import Policy

    width = policy.model.config.hidden_size
    states = HiddenStateConfig(layers=(-1,))
    own = Policy(policy.model.base_model, policy.tokenizer, policy.device)
    model = MarginModel(own, states, torch.eye(width, dtype=torch.float64), torch.randn(width))
    model.backbone.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    margins = model(texts[:pairs], texts[pairs : 2 * pairs])
    torch.nn.functional.softplus(-margins).mean().backward()
    optimiser.step()


def _own_threads() -> Any:
    import contextlib

    import torch

    @contextlib.contextmanager
    def threads() -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(os.cpu_count() or 1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return threads()


def _fits(features: Any) -> None:
    """50 heads on 400 pairs, one more hundred to choose by, and the scores of all texts."""
    import numpy as np

    from irl_exp.irl.contrast import Scaling
    from irl_exp.irl.heads import Procedure, fit_heads
    from irl_exp.irl.losses import max_margin

    scaling = Scaling.fit(features[:800], "whiten", 1.0)
    scaled = scaling(features)
    differences = scaled[::2] - scaled[1::2]

    def loss(margin: Any) -> Any:
        return max_margin(margin, correct_penalty=1.0, wrong_penalty=2.0)

    how = Procedure(loss, EPOCHS, 32, 1e-2, 1.0, homogeneous=True)
    heads = fit_heads(differences[:400], differences[400:], how, range(SEEDS), prompts=np.arange(400))
    scaled @ heads.weights.T


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--shapes", nargs="+", default=MODELS, choices=MODELS)
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    command.add_argument("--threads", type=int, default=0)
    command.add_argument("--card", default="H200", choices=CARDS)
    command.add_argument("--share", type=float, default=0.4, help="of the card's peak, assumed")
    command.add_argument("--predict", action="store_true", help="arithmetic alone")
    command.add_argument("--loop", action="store_true", help="beside a loop of one text and one pair at a time")
    command.add_argument("--part", type=int, default=16, help="texts that the loop is measured on")
    arguments = command.parse_args()
    from irl_exp.machinery.runtime import Device, cores, prepare_process

    cuda = arguments.device == "cuda"
    device = Device("cuda:0", "bf16", 1) if cuda else Device("cpu", "fp32", arguments.threads or cores())
    prepare_process()
    if arguments.predict:
        lines = predicted(arguments.card, arguments.share)
    elif arguments.loop:
        lines = loop(arguments.part, device)
    else:
        benchmark.load()
        lines = measured(arguments, device)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()

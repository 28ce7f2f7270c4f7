"""What a run of each preset of conf/model/ needs on a GPU: memory as a launch predicts it, and hours by arithmetic.

    python benchmarks/presets.py [--card H200] [--share 0.4] [model=llama_8b ...] [any other override]

Nothing runs and nothing is downloaded: the configurations are those of the checkpoints that the presets name. Prompts
are those of the embedded data, of 16 tokens, unless something else is chosen; completions are as long as they may be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import scale  # noqa: E402
import shapes  # noqa: E402
from scale import Cost, Part  # noqa: E402

PRESETS = {
    "pythia_70m": "70M",
    "pythia_160m": "160M",
    "pythia_410m": "410M",
    "pythia_1b": "1B",
    "pythia_1_4b": "1.4B",
    "qwen_0_5b": "Qwen 0.5B",
    "llama_1b": "Llama 1B",
    "llama_8b": "Llama 8B",
}


PROMPT = 16


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--card", default="H200", choices=scale.CARDS)
    command.add_argument("--share", type=float, default=0.4, help="of the card's peak, assumed")
    command.add_argument("overrides", nargs="*")
    arguments = command.parse_args()
    overrides = [override for override in arguments.overrides if not override.startswith("model=")]
    chosen = [override.removeprefix("model=") for override in arguments.overrides if override.startswith("model=")]
    print(f"| `model=` | largest stage | GiB | of these | hours, {arguments.card} | longest part |")
    print("|---|---|---|---|---|---|")
    for name in chosen or PRESETS:
        print(row(name, overrides, arguments), flush=True)


def row(name: str, overrides: list[str], arguments: argparse.Namespace) -> str:
    from irl_exp.launch.memory import GIB

    with tempfile.TemporaryDirectory() as folder:
        shapes.without_weights(PRESETS[name], Path(folder))
        config = composed(f"model={name}", f"model.path={folder}", *overrides)
        largest = max(planned(config), key=lambda one: one.total)
    sizes = ", ".join(f"{part} {size / GIB:.1f}" for part, size in largest.parts.items() if size >= 0.05 * GIB)
    hours = {part.name: part.seconds(arguments.card, arguments.share) / 3600 for part in parts(config, PRESETS[name])}
    longest = max(hours, key=lambda part: hours[part])
    told = f"{sum(hours.values()):.1f} | {longest} {hours[longest]:.1f}"
    return f"| `{name}` | {largest.work.stage} | {largest.total / GIB:.0f} | {sizes} | {told} |"


def composed(*overrides: str) -> Any:
    """The typed config of one run."""
    import hydra
    from omegaconf import OmegaConf

    from irl_exp import config
    from irl_exp.launch import command_line

    config.register()
    with hydra.initialize_config_dir(str(config.CONF), **command_line.VERSION_BASE):
        found = hydra.compose("config", ["tracking=none", *overrides])
    return config.parse(OmegaConf.to_container(found, resolve=True))  # type: ignore[arg-type]


def planned(config: Any) -> list[Any]:
    """The needs of all stages of a run on one GPU in bf16."""
    from irl_exp import chain
    from irl_exp.launch import memory
    from irl_exp.machinery.runtime import declared_device

    device = declared_device("cuda", "bf16", config.batch_tokens)
    found = memory.Planned(memory.Place("cuda", 1, None, device.batch_tokens, "the GPU"))
    for step in chain.build(config, device).values():
        found.add(step, "bf16")
    return list(found.needs.values())


def parts(config: Any, shape: str) -> Iterator[Part]:
    """Operations and steps of a chain: texts written, read by policy and reference, learned from."""
    cost, new = Cost.of(shape), config.max_new_tokens
    if config.reference_model is not None and not config.model.tuned:
        steps, rows = config.sft.steps, config.sft.batch_size
        texts = 3 * cost.read(steps * rows, 1, config.sft.max_tokens - 1)
        yield Part("sft", texts, steps * _passes(config.sft, rows), least=scale.TRAINING_STEP)
    for name, recipe in (("rlhf", config.rlhf), ("refinetune", config.refinetune)):
        rows = recipe.steps * recipe.batch_size
        texts, steps = cost.read(rows, PROMPT, new), recipe.steps * _passes(recipe, recipe.batch_size)
        yield Part(f"{name}, written", texts, recipe.steps * new, cost.bytes)
        yield Part(f"{name}, learned from", 4 * texts, steps, least=scale.TRAINING_STEP)
    data, each = config.data, config.demonstrations.completions_per_prompt
    prompts = data.fit_prompts + data.select_prompts + data.test_prompts
    for name, count, at_once, readings in (
        ("demonstrations", 2 * each * prompts, config.demonstrations, 3),
        ("evaluate", 3 * each * data.test_prompts, config.evaluate, 2),
    ):
        texts = cost.read(count, PROMPT, new)
        yield Part(f"{name}, written", texts, -(-count // at_once.batch_size) * new, cost.bytes)
        yield Part(f"{name}, read", readings * texts)


def _passes(stage: Any, rows: int) -> int:
    """Forward and backward passes of a step."""
    return -(-rows // (stage.micro_batch_size or rows))


if __name__ == "__main__":
    main()

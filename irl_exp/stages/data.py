"""Texts and their split by prompt: texts.parquet with prompt, completion, toxic, part."""

from __future__ import annotations

import hashlib
from typing import Any

from irl_exp.config import DataConfig, TextsExpert
from irl_exp.machinery.runtime import Context
from irl_exp.texts import data
from irl_exp.texts.written import prompts_of_writers

VERSION = 2

_OVERLAPS = {
    "completions_seen": "of the completions stand in sft or reward",
    "completion_4grams_seen": "of their 4-grams",
    "prompt_4grams_seen": "of the prompts' 4-grams",
}


def run(config: DataConfig, *, expert: TextsExpert | None = None, context: Context) -> dict[str, Any]:
    texts = data.split(data.read(config) if expert is None else prompts_of_writers(expert), config)
    texts.to_parquet(context.folder / "texts.parquet")
    counts = texts["part"].value_counts()
    prompts = {part: data.prompts_of(texts, part) for part in data.PARTS}
    told = [f"{len(texts):,} texts", f"{texts['prompt'].nunique():,} prompts", data.share_of_toxic(texts)]
    if data.are_prompts(texts):
        told = [f"a list of {len(texts):,} prompts", *(f"{part} {len(prompts[part]):,}" for part in data.PARTS[:3])]
    overlap = data.overlap(texts)
    told += [f"test: {100 * share:.1f} % {_OVERLAPS[key]}" for key, share in overlap.items()]
    return {
        "note": ", ".join([*told, *filter(None, [data.too_few(texts), data.shortened_prompts(texts)])]),
        "texts": {part: int(counts.get(part, 0)) for part in data.PARTS},
        "overlap": overlap,
        "prompts": {part: len(prompts[part]) for part in data.PARTS},
        "prompts_sha256": {part: hashlib.sha256("\n".join(prompts[part]).encode()).hexdigest() for part in data.PARTS},
    }

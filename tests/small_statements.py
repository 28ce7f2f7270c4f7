"""What explain leaves in the folder of a run, made up: few statements whose numbers can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROMPTS, EACH = 8, 5
TOKENS = (" you", " are", " a", " bus", "!")
CREDITS = (-0.5, -0.25, 0.0, 0.25, 1.0)


def statement(name: str = "second person", effect: float = -1.6, **more: Any) -> dict[str, Any]:
    """One object of statements.json: on 17.2 % of the base's completions and 0.3 % of the tuned model's."""
    found = {
        "family": "properties",
        "name": name,
        "wording": f"{'Pays' if effect > 0 else 'Charges'} for a text that speaks to the reader: 17.2 % of the base's",
        "direction": "pays" if effect > 0 else "charges",
        "frequency_base": 0.172,
        "frequency_tuned": 0.003,
        "difference": -0.169,
        "difference_low": -0.18,
        "difference_high": -0.158,
        "graded": False,
        "unit": "",
        "effect": effect,
        "effect_low": effect - 0.1,
        "effect_high": effect + 0.1,
        "edit_effect": None,
        "edit_low": None,
        "edit_high": None,
        "certified": True,
        "range_low": effect - 0.3,
        "range_high": effect + 0.3,
        "q": 0.002,
        "r2": 0.31,
        "stability_seeds": None,
        "stability_prompts": 0.97,
    }
    return found | more


STATEMENTS = (
    statement(edit_effect=-0.9, edit_low=-1.1, edit_high=-0.7),
    statement("fair, since", 0.85, family="ngrams", r2=0.38, certified=False, range_low=-0.1, range_high=1.2),
    statement("length", 0.4, graded=True, unit="tokens", frequency_base=9.5, frequency_tuned=12.25, r2=0.44),
    statement(
        "a unit",
        0.3,
        family="units",
        wording="In words of its own.",
        r2=0.5,
        certified=None,
        range_low=None,
        range_high=None,
    ),
)
LEFT_OUT = {"log_ratio": "the two models have different tokenizers"}


def write(
    run: Path,
    statements: Sequence[Mapping[str, Any]] = STATEMENTS,
    *,
    left_out: Mapping[str, str] = LEFT_OUT,
    tokens: Sequence[str] = TOKENS,
    apart: float = 2.0,
) -> Path:
    """The four files of explain, in the folder of a run; the tuned model's rewards lie `apart` sd above the base's."""
    (run / "statements.json").write_text(json.dumps(list(statements)))
    about = {"n_candidates": 812, "n_by_family": {"ngrams": 800}, "left_out": dict(left_out), "n_prompts": PROMPTS}
    (run / "explain.json").write_text(json.dumps(about))
    values(statements, apart).to_parquet(run / "statement_values.parquet")
    credit(tokens).to_parquet(run / "credit.parquet")
    return run


def values(statements: Sequence[Mapping[str, Any]], apart: float) -> pd.DataFrame:
    """A row a completion."""
    rows = PROMPTS * EACH
    world = np.random.default_rng(3)
    parts = []
    for policy, shift in (("baseline", 0.0), ("expert", apart)):
        names = {str(item["name"]): world.integers(0, 2, rows).astype(float) for item in statements}
        prompts, numbers = np.repeat(np.arange(PROMPTS), EACH), np.tile(np.arange(EACH), PROMPTS)
        own = {
            "policy": policy,
            "prompt_id": prompts,
            "completion": numbers,
            "learned": world.normal(size=rows) + shift,
        }
        parts.append(pd.DataFrame({**own, **names}))
    return pd.concat(parts, ignore_index=True)


def credit(tokens: Sequence[str] = TOKENS) -> pd.DataFrame:
    """Four completions of each policy with the same tokens; the credits of completion k are CREDITS times k - 1.5."""
    rows = [
        {
            "policy": policy,
            "prompt_id": number % 2,
            "completion": number,
            "prompt": ("The bus,", "A tram,")[number % 2],
            "position": position,
            "token": token,
            "credit": value * (number - 1.5),
        }
        for policy in ("baseline", "expert")
        for number in range(4)
        for position, (token, value) in enumerate(zip(tokens, CREDITS, strict=True))
    ]
    return pd.DataFrame(rows)

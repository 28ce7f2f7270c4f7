"""Statements as sentences: a template with the numbers in it; a language model may rephrase, never change a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MINUS = "\u2212"
NUMBER = re.compile(r"[-\u2212+]?\d+(?:[.,]\d+)*")


def sentence(statement: Mapping[str, Any], says: str) -> str:
    """What a statement says, with its frequencies and its effect.

    Args:
        statement: as in statements.json. says: a verb phrase with the text as its subject.
    """
    verb = "Pays for" if statement["direction"] == "pays" else "Charges for"
    value, low, high = (_signed(statement[name]) for name in ("effect", "effect_low", "effect_high"))
    effect = f"{value} sd [{low}, {high}]"
    if statement["graded"]:
        unit = statement["unit"]
        frequency = (
            f"mean {statement['frequency_base']:.2f} in the base, {statement['frequency_tuned']:.2f} in the tuned "
            f"model ({unit}); {effect} per sd"
        )
    else:
        base, tuned = (100 * statement[f"frequency_{name}"] for name in ("base", "tuned"))
        frequency = f"{base:.1f} % of the base's completions, {tuned:.1f} % of the tuned model's; {effect}"
    return f"{verb} a text that {says}: {frequency}, other statements and length held fixed."


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)


def numbers(text: str) -> list[str]:
    """The numbers of a sentence, in order of size of their text; a minus sign is one however it is written."""
    return sorted(found.replace(MINUS, "-").replace("+", "") for found in NUMBER.findall(text))


class WordingError(Exception):
    """The server that is to word the statements does not answer as it should."""


def rephrase(sentences: list[str], *, address: str, model: str) -> list[str]:
    """The sentences in other words by an OpenAI-compatible server; where it changes a number the template stays.

    Raises:
        WordingError: there is no such server, or its answer has another form.
    """
    import requests

    found = []
    for text in sentences:
        prompt = f"{INSTRUCTION}\n\n{text}"
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "seed": 0}
        try:
            answer = requests.post(f"{address.rstrip('/')}/chat/completions", json=body, timeout=60)
            answer.raise_for_status()
            said = str(answer.json()["choices"][0]["message"]["content"]).strip()
        except (requests.RequestException, ValueError, LookupError, TypeError) as error:
            raise WordingError(
                f"explain.address={address}: no answer of an OpenAI-compatible server ({error}). Start it, or set "
                "explain.wording=templates."
            ) from error
        found.append(said if said and numbers(said) == numbers(text) else text)
    return found


INSTRUCTION = (
    "Rewrite this finding about a language model as one clear sentence. Keep every number exactly as it is, keep the "
    "quoted words, and add nothing."
)

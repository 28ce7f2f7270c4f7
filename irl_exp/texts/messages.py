"""Chat messages as one string, so that a prompt is a text everywhere: in tables, in parts, as a key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]


def are_messages(value: object) -> bool:
    """Whether a value is a list of messages with role and content, as datasets have them."""
    return bool(
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and value
        and all(isinstance(one, Mapping) and isinstance(one.get("content"), str) and "role" in one for one in value)
    )


def as_prompt(messages: Sequence[Message]) -> str:
    """Messages as one string: the content of a single user message, else JSON."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    kept = [{"role": message["role"], "content": message["content"]} for message in messages]
    return json.dumps(kept, ensure_ascii=False)


def messages_of(prompt: str) -> list[Message]:
    """The inverse of `as_prompt`; any other text is one user message."""
    if prompt.startswith('[{"role": '):
        try:
            found: Any = json.loads(prompt)
        except ValueError:
            found = None
        if are_messages(found):
            return list(found)
    return [{"role": "user", "content": prompt}]


def as_text(prompt: str) -> str:
    """The same for a reader without a chat template: a line a message, with its role where there are several."""
    messages = messages_of(prompt)
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)

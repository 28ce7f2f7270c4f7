"""Prompts of a chat model: messages through the tokenizer's template, and the token that ends a turn.

A prompt is one user message, or messages as texts/messages.py writes them. A policy is asked in chat if and
only if its tokenizer has a template: whoever opens a checkpoint to be asked in plain text takes the template away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irl_exp.texts.messages import Message, messages_of

MARK = "\ue000{}\ue001"
"""Stands for the content of a message while the template is filled in: private characters that no text has."""
ANSWER = "\ue002answer\ue003"


class ChatError(Exception):
    """A template that cannot be used, with the remedy."""


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The ids of a prompt as the model was trained to read it, up to where the answer begins.

    The template's own markup becomes special tokens, and the same characters in a message do not: a text that spells
    '<|im_end|>' stays text.
    """
    messages = messages_of(prompt)
    contents = [message["content"] for message in messages]
    if not any(token in content for content in contents for token in _markup(tokenizer)):
        return _with_markup(tokenizer, _filled(tokenizer, messages, answer_follows=True))
    marks = [MARK.format(number) for number in range(len(messages))]
    hidden = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest, ids = _filled(tokenizer, hidden, answer_follows=True), []
    for mark, content in zip(marks, contents, strict=True):
        before, found, rest = rest.partition(mark)
        ids += _with_markup(tokenizer, before)
        ids += tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"] if found else []
    return [*ids, *_with_markup(tokenizer, rest)]


def end_of_turn(tokenizer: Any) -> str | None:
    """The special token that the template puts behind an answer; None if it puts none."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWER}]
    behind = _filled(tokenizer, messages, answer_follows=False).partition(ANSWER)[2]
    found = [(behind.index(token), -len(token), token) for token in _markup(tokenizer) if token in behind]
    return min(found)[2] if found else None


def _filled(tokenizer: Any, messages: Sequence[Message], *, answer_follows: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer_follows))
    except Exception as error:  # a template is a program of the checkpoint's author, and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        roles = ", ".join(message["role"] for message in messages)
        raise ChatError(
            f"the chat template cannot take messages of {roles}: {reason}. Set model.chat=false to ask in plain text."
        ) from error


def _with_markup(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text in which special tokens are what they are."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])


def _markup(tokenizer: Any) -> list[str]:
    """Texts of the special tokens."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))

"""Conversations in the chat format of transformers' processors.

messages = chat_messages([Turn("what keeps the rain off?")], special=["<|im_start|>"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assistant.grammar import SYSTEM_PROMPT, Turn, neutralise


def chat_messages(
    turns: list[Turn], special: Sequence[str] = (), system: str = SYSTEM_PROMPT
) -> list[dict[str, Any]]:
    """Write turns in the chat format of transformers' processors.

    Args:
        turns: The conversation, oldest turn first.
        special: The special tokens of the tokenizer; questions are neutralised, replies keep their tokens.
        system: The system prompt.

    Returns:
        The system prompt, then user and assistant in turn. A turn's images come before its text, as {"type":
        "image"}; the arrays are passed to the processor in the same order.
    """
    messages = [{"role": "system", "content": [_text_part(system)]}]
    for turn in turns:
        images = [{"type": "image"} for _ in turn.images]
        messages.append(
            {"role": "user", "content": [*images, _text_part(neutralise(turn.question, special))]}
        )
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": [_text_part(turn.answer)]})
    return messages


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}

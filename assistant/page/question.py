"""A question of the conversation on the page, from the moment when it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from assistant.answer import Answer, Target


@dataclass(eq=False)  # the same question may be asked twice: a question is equal to itself only
class Question:
    """A question, with its answer once there is one.

    A saved conversation holds the answered ones, as `assistant.dialogue.conversation_file.Exchange`.

    Attributes:
        photo: Index of the photo that it is about.
        text: What was typed.
        about: The target that was selected when it was asked; None for a question about the whole photo.
        answer: None while it waits for an answer, and where it failed.
        status: What stands in place of the answer: the reply as far as it is written, or why there is none.
        waiting: Whether it still has to be answered.
        corrected: Whether the answer was changed by hand.
        options: Options of `Scene.ask`; trying again samples the reply.
    """

    photo: int
    text: str
    about: Target | None = None
    answer: Answer | None = None
    status: str = ""
    waiting: bool = True
    corrected: bool = False
    options: dict[str, Any] = field(default_factory=dict)

"""A session as a conversation that can be saved, and back.

text = dump(to_conversation(session))                  # see `assistant.dialogue.conversation_file`
reopen_text(session, text, assistant.open)
set_aside(session)                                     # it can be reopened during this visit
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from assistant.answer import Target
from assistant.dialogue.conversation_file import MAX_EXCHANGES, Conversation, Exchange, dump, load
from assistant.errors import BadInput
from assistant.page.question import Question
from assistant.page.session import Session
from assistant.page.wording import conversation_rows
from assistant.scene import Scene


def to_conversation(session: Session) -> Conversation:
    """The photos of a session and its latest answered questions."""
    exchanges = [
        Exchange(
            q.photo,
            q.text,
            q.answer,
            q.about.mask if q.about else None,
            q.about.phrase if q.about else "",
            q.corrected,
        )
        for q in session.questions
        if q.answer is not None
    ]
    photos = [(name, scene.image) for name, scene in zip(session.names, session.scenes, strict=True)]
    return Conversation(photos, exchanges[-MAX_EXCHANGES:])


def set_aside(session: Session) -> None:
    """Write the conversation to a file of the session, so that it can be reopened.

    Nothing happens where nothing was answered, or where the conversation is too large for a file.
    """
    rows = conversation_rows(session)
    if not rows:
        return
    try:
        text = dump(to_conversation(session))
    except BadInput:
        return
    session.add_set_aside(rows, text)


def reopen_text(session: Session, text: str | bytes, open_image: Callable[[np.ndarray], Scene]) -> None:
    """Go on with a conversation in a session.

    Args:
        session: The session. What it has open is forgotten, once all photos of the conversation are open.
        text: What `dump` wrote.
        open_image: Opens one of its photos, an array (H, W, 3) uint8 RGB.

    Raises:
        BadInput: It is no such text.
    """
    saved = load(text)
    reopen(session, saved, [open_image(image) for _, image in saved.photos])


def reopen(session: Session, saved: Conversation, scenes: list[Scene]) -> None:
    """Go on with a saved conversation in a session; scenes: its photos, opened."""
    session.clear()
    session.scenes = scenes
    session.names = [Path(name).name or "photo" for name, _ in saved.photos]
    for exchange in saved.exchanges:
        about = None
        if exchange.about is not None:
            about = Target(exchange.about_phrase or "this", True, 1.0, exchange.about, [])
        answer = replace(exchange.answer, image=scenes[exchange.photo].image)
        question = Question(
            exchange.photo, exchange.question, about, answer, waiting=False, corrected=exchange.corrected
        )
        session.questions.append(question)
    for photo in range(len(scenes)):
        session.restore_turns(photo)
    session.photo = saved.exchanges[-1].photo if saved.exchanges else 0

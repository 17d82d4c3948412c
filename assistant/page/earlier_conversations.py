"""Earlier conversations: those of this visit can be reopened, of others the browser stores the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from assistant.errors import BadInput
from assistant.page.components import EarlierComponents, small_button
from assistant.page.handlers import (
    INSTANT_EVENT,
    QUEUED_EVENT,
    EventStep,
    Panel,
    Updates,
    show_warning,
    status_line,
)
from assistant.page.saved_conversation import reopen_text, set_aside
from assistant.page.session import Session
from assistant.page.wording import conversation_rows, escape, shorten
from assistant.page.worker import error_line

MAX_STORED_CONVERSATIONS = 10
SCRIPT = """
element.addEventListener("click", (event) => {
  const item = event.target.closest("button");
  if (item) trigger("reopen", { number: Number(item.dataset.number) });
});
"""
HINT = (
    '<p class="hint">Those of this visit reopen with their photos and masks. Of earlier visits this browser '
    "keeps the text only.</p>"
)


def build() -> EarlierComponents:
    """Add what the browser stores, and a closed box that shows it."""
    stored = gr.BrowserState([], storage_key="maskpick-conversations", secret="maskpick")
    with gr.Accordion("Earlier conversations", open=False, visible=False, elem_id="past") as box:
        gr.HTML(HINT)
        text = gr.HTML("", js_on_load=SCRIPT)
        forget = small_button("Forget them", "forget", min_width=None)
    return EarlierComponents(stored, box, text, forget)


class EarlierPanel(Panel):
    """The handlers of the earlier conversations."""

    def wire(self) -> EventStep:
        """Connect the components with their handlers; returns the step that stores the conversation."""
        earlier, state = self.components.earlier, self.components.session
        shown = [earlier.box, earlier.text]
        listing: Any = earlier.text  # its event is the one that SCRIPT triggers
        step: EventStep = {
            "fn": self.store,
            "inputs": [state, earlier.stored],
            "outputs": [earlier.stored, *shown],
            **INSTANT_EVENT,
        }
        self.components.blocks.load(self.show_stored, [state, earlier.stored], shown, **INSTANT_EVENT)
        earlier.forget.click(self.forget, state, [state, earlier.stored, *shown], **INSTANT_EVENT)
        changeable = self.components.changeable
        listing.reopen(self.reopen, state, changeable, **QUEUED_EVENT).then(**step)
        return step

    def store(self, session: Session, stored: object) -> tuple[list, gr.Accordion, str]:
        """The stored conversations with the session's as the last, in place of its earlier state."""
        conversations = stored if isinstance(stored, list) else []
        rows = conversation_rows(session)
        if session.stored_rows:
            conversations = [other for other in conversations if other != session.stored_rows]
        session.stored_rows = rows
        conversations = ([*conversations, rows] if rows else conversations)[-MAX_STORED_CONVERSATIONS:]
        return (conversations, *self.show_stored(session, conversations))

    def show_stored(self, session: Session, stored: object) -> tuple[gr.Accordion, str]:
        """The box as the browser's storage fills it."""
        text = conversations_html(session, stored)
        return gr.Accordion(visible=bool(text)), text

    def forget(self, session: Session) -> tuple[Session, list, gr.Accordion, str]:
        """Forget all earlier conversations."""
        session.forget_set_aside()
        return session, [], gr.Accordion(visible=False), ""

    def reopen(self, session: Session, event: gr.EventData) -> Iterator[Updates]:
        """Go on with an earlier conversation of this visit; the one that is open is set aside."""
        try:
            chosen = session.set_aside_at(event._data.get("number"))
            text = chosen.file.read_text(encoding="utf-8")
            set_aside(session)
            status = status_line("Opening the conversation", busy=True)
            yield {**self.unchanged(session), self.components.photo.status: status}
            reopen_text(session, text, lambda image: self.page.open_image(session, image))
            session.stored_rows = chosen.rows
            session.forget_set_aside(chosen.rows)
        except Exception as error:
            show_warning(error_line(error))
            if not isinstance(error, BadInput):
                session.clear()
        yield self.page.show(session, clear_marks=True)


def conversations_html(session: Session, stored: object) -> str:
    """The earlier conversations as HTML, the latest first; "" where there are none.

    Args:
        session: The session. Its own conversation is left out, and those that it set aside can be reopened.
        stored: What the browser has stored, [[[question, answer], ...], ...]; anything else in it is left
            out.
    """
    if not isinstance(stored, list):
        return ""
    reopened = {repr(other.rows): number for number, other in enumerate(session.set_aside)}
    parts = []
    for conversation in reversed(stored[-MAX_STORED_CONVERSATIONS:]):
        rows = [row for row in conversation if _is_row(row)] if isinstance(conversation, list) else []
        if not rows or rows == session.stored_rows:
            continue
        number = reopened.get(repr(rows))
        button = ""
        if number is not None:
            name = escape(f"Reopen: {shorten(rows[0][0])}")
            button = f'<button type="button" data-number="{number}" aria-label="{name}">Reopen</button>'
        parts.append(f'<div class="past"><dl>{"".join(map(_row_html, rows))}</dl>{button}</div>')
    return "".join(parts)


def _is_row(row: object) -> bool:
    """Whether it is a question and its answer."""
    return isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) for text in row)


def _row_html(row: list[str]) -> str:
    question, answer = row
    return f"<dt>{escape(shorten(question))}</dt><dd>{escape(shorten(answer))}</dd>"

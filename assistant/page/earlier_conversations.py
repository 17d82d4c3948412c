"""Earlier conversations: their text, which the browser stores; their photos are not stored."""

from __future__ import annotations

import gradio as gr

from assistant.page.components import EarlierComponents, small_button
from assistant.page.handlers import INSTANT_EVENT, EventStep, Panel
from assistant.page.session import Session
from assistant.page.wording import escape, shorten

MAX_STORED_CONVERSATIONS = 10
MAX_STORED_QUESTIONS = 50  # of each conversation


def build() -> EarlierComponents:
    """Add what the browser stores, and a closed box that shows it."""
    stored = gr.BrowserState([], storage_key="maskpick-conversations", secret="maskpick")
    title = "Earlier conversations (text only; photos are not kept)"
    with gr.Accordion(title, open=False, visible=False, elem_id="past") as box:
        text = gr.HTML("")
        forget = small_button("Forget them", "forget", min_width=None)
    return EarlierComponents(stored, box, text, forget)


class EarlierPanel(Panel):
    """The handlers of the earlier conversations."""

    def wire(self) -> EventStep:
        """Connect the components with their handlers; returns the step that stores the conversation."""
        earlier = self.components.earlier
        outputs = [earlier.box, earlier.text]
        self.components.blocks.load(self.show_stored, earlier.stored, outputs, **INSTANT_EVENT)
        earlier.forget.click(self.forget, None, [earlier.stored, *outputs], **INSTANT_EVENT)
        return {
            "fn": self.store,
            "inputs": [self.components.session, earlier.stored],
            "outputs": earlier.stored,
            **INSTANT_EVENT,
        }

    def store(self, session: Session, stored: object) -> list:
        """The stored conversations with the session's as the last, in place of its earlier state."""
        conversations = stored if isinstance(stored, list) else []
        rows = [
            [shorten(question.text), shorten(question.answer.text)]
            for question in session.questions
            if question.answer is not None
        ][-MAX_STORED_QUESTIONS:]
        if session.stored_rows and conversations and conversations[-1] == session.stored_rows:
            conversations = conversations[:-1]
        session.stored_rows = rows
        return ([*conversations, rows] if rows else conversations)[-MAX_STORED_CONVERSATIONS:]

    def show_stored(self, stored: object) -> tuple[gr.Accordion, str]:
        """The box as the browser's storage fills it."""
        text = conversations_html(stored)
        return gr.Accordion(visible=bool(text)), text

    def forget(self) -> tuple[list, gr.Accordion, str]:
        """Forget all stored conversations."""
        return [], gr.Accordion(visible=False), ""


def conversations_html(stored: object) -> str:
    """The stored conversations as HTML, the latest first; "" where there are none.

    Args:
        stored: What the browser has stored, [[[question, answer], ...], ...]; anything else in it is left
            out.
    """
    if not isinstance(stored, list):
        return ""
    conversations = [
        [row for row in conversation if _is_row(row)]
        for conversation in stored
        if isinstance(conversation, list)
    ]
    return "".join(
        f'<dl class="past">{"".join(map(_row_html, conversation))}</dl>'
        for conversation in reversed(conversations[-MAX_STORED_CONVERSATIONS:])
        if conversation
    )


def _is_row(row: object) -> bool:
    """Whether it is a question and its answer."""
    return isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) for text in row)


def _row_html(row: list[str]) -> str:
    question, answer = row
    return f"<dt>{escape(shorten(question))}</dt><dd>{escape(shorten(answer))}</dd>"

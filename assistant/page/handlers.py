"""What the handlers of all panels share: the page, and what they return.

    class SomePanel(Panel):
        @guarded
        def handle(self, session: Session) -> Updates:
            ...
            return self.page.show(session)

A handler takes the visitor's Session and returns what changes, as {component: its new value}. What needs a
model goes through the page's one worker; everything else answers at once, also while a model works for
another visitor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from assistant.page.canvas import canvas_props
from assistant.page.components import TAB_TITLES, Components
from assistant.page.examples import Example
from assistant.page.session import Session, View
from assistant.page.thumbnails import thumbnails_html
from assistant.page.wording import chat_messages, escape, legend_line, subject_line
from assistant.page.worker import ReportFunction, Worker, error_line
from assistant.scene import Assistant, Scene

Updates = dict[Any, Any]  # {component: its new value}
EventStep = dict[str, Any]  # the arguments of an event listener, which may follow several events

# By default a second question is dropped while the browser waits for the first: "multiple" queues it.
_EVENT: EventStep = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "trigger_mode": "multiple",
}
# Settings of events that wait for the worker, and of those that do not. All go through Gradio's queue:
# without it, a warning would never reach the visitor.
QUEUED_EVENT: EventStep = _EVENT | {"concurrency_id": "assistant", "concurrency_limit": 1}
INSTANT_EVENT: EventStep = _EVENT | {"concurrency_limit": None}


@dataclass
class Page:
    """The page, as its handlers see it.

    Attributes:
        components: Its components.
        assistant: Asked in the worker only.
        examples: The photos to begin with.
        records_folder: Where corrections are also saved as training records; None for nowhere.
        worker: The one worker.
    """

    components: Components
    assistant: Assistant
    examples: list[Example] = field(default_factory=list)
    records_folder: Path | None = None
    worker: Worker = field(default_factory=Worker)

    def conversation(self, session: Session) -> Updates:
        """The conversation and its buttons."""
        chat = self.components.chat
        waiting = session.next_question() is not None or bool(session.pending)
        asked = bool(session.questions)
        can_undo = asked or session.can_bring_back
        return {
            self.components.session: session,
            chat.messages: chat_messages(session),
            chat.stop: gr.Button(visible=waiting),
            chat.actions: gr.Row(visible=can_undo or waiting),
            chat.undo: gr.Button(visible=can_undo),
            **{button: gr.Button(visible=asked) for button in (chat.edit, chat.retry)},
        }

    def subject(self, session: Session) -> Updates:
        """What the next question is about, above the question."""
        text = subject_line(session)
        chat = self.components.chat
        return {chat.subject_row: gr.Row(visible=bool(text)), chat.subject: text}

    def searched(self, session: Session) -> Updates:
        """What was looked for, where a concept segmenter looked for phrases."""
        target, answer_tab = session.searched_target, self.components.tabs.answer
        name = escape(target.phrase) if target else ""
        return {
            answer_tab.searched: gr.Column(visible=target is not None),
            answer_tab.searched_for: f'<p class="hint">Looked for {name} by these names. Change them:</p>',
            answer_tab.phrases: ", ".join(target.searched) if target else "",
        }

    def open_image(self, session: Session, image: np.ndarray) -> Scene:
        """Open an image (H, W, 3) uint8 RGB in the worker, until the session's visitor stops it."""
        return self.worker.run_to_end(
            lambda report: self.assistant.open(image, progress=report), session.stop
        )

    def show(self, session: Session, clear_marks: bool = False, note: str | None = None) -> Updates:
        """Everything that depends on the session.

        Args:
            session: The session.
            clear_marks: Whether to take back the visitor's marks on the picture.
            note: HTML of the line beneath the picture; None for the legend.
        """
        opened = session.scene is not None
        photo, tabs, tools = self.components.photo, self.components.tabs, self.components.tools
        attention_shown = session.view == View.ATTENTION
        return {
            **self.conversation(session),
            **self.subject(session),
            **self.searched(session),
            photo.canvas: gr.HTML(**canvas_props(session, clear_marks)),
            photo.status: status_line(legend_line(session) if note is None else note),
            photo.thumbnails: gr.HTML(thumbnails_html(session), visible=len(session.scenes) > 1),
            photo.upload: gr.Image(visible=not opened, value=None),
            tabs.tabs: gr.Tabs(selected=session.view.value if session.view in TAB_TITLES else None),
            tabs.column: gr.Column(visible=opened),
            tabs.answer.attention: gr.Button("Show the masks" if attention_shown else "Where it looked"),
            tools.start_over: gr.Button(visible=opened),
            tools.new_conversation: gr.Button(visible=opened),
            tools.add_photos: gr.UploadButton(visible=opened),
            tools.reopen: gr.UploadButton(visible=not opened),
        }

    def run_stoppable(
        self,
        session: Session,
        status: str,
        work: Callable[[ReportFunction], object],
        finish: Callable[[Any], Updates],
    ) -> Iterator[Updates]:
        """Run a request that the visitor can stop; its errors end in one line.

        Args:
            session: The session.
            status: What the line beneath the picture says meanwhile, as HTML.
            work: Called in the worker, see `Worker.run`.
            finish: Makes the last updates of what `work` returned.

        Yields:
            Updates, as a handler of Gradio does.
        """
        components = self.components
        try:
            yield {
                components.session: session,
                components.photo.status: status_line(status, busy=True),
                components.chat.stop: gr.Button(visible=True),
                components.chat.actions: gr.Row(visible=True),
            }
            result = self.worker.run_to_end(work, session.stop)
        except Exception as error:
            message = error_line(error)
            show_warning(message)
            sentence = escape(message[:1].upper() + message[1:]) + "."
            yield {**self.conversation(session), components.photo.status: status_line(sentence)}
            return
        yield finish(result)


class Panel:
    """The handlers of one panel."""

    def __init__(self, page: Page):
        self.page = page
        self.components = page.components

    def unchanged(self, session: Session) -> Updates:
        """What a handler returns where nothing is to be seen of what it did."""
        return {self.components.session: session}


def guarded(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """Wrap a method of a Panel that handles an event, so that its errors end in one line for the visitor."""

    @functools.wraps(handler)
    def run(panel: Panel, session: Session, *values: Any, **named: Any) -> Updates:
        try:
            return handler(panel, session, *values, **named)
        except Exception as error:  # whatever a visitor does, the process must go on
            show_warning(error_line(error))
            return panel.unchanged(session)

    return run


def status_line(text: str, busy: bool = False) -> str:
    """The line beneath the picture; text: HTML."""
    return f'<p role="status" class="{"busy" if busy else ""}">{text}</p>' if text else ""


def show_warning(text: str) -> None:
    """Show one line above everything else."""
    gr.Warning(escape(text))

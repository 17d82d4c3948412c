"""The page's components by name, and what its handlers return.

Each panel of the page is a file with two functions: `build(ui)` adds its components, in their place on the page, and
`wire(ui)` says which action of `assistant.page.session` each event is, once all components exist. Handlers take the
visitor's Session and return what changes. What needs a model goes through the one worker; the rest answers at once,
also while a model works for someone else.
"""

import functools
from pathlib import Path

import gradio as gr

from assistant.page import canvas as picture
from assistant.page.session import ANSWER, CLASSES, EVERYTHING, HAND, LOOKING, Session
from assistant.page.words import chip_of, legend, literal, messages
from assistant.page.work import Worker, polite

TABS = {
    ANSWER: "Answer",
    HAND: "By hand",
    EVERYTHING: "Everything",
    CLASSES: "Classes",
    "like": "Like this",
    "keep": "Save",
}
_EVENT = {"api_visibility": "private", "show_progress": "hidden"}
_EVENT |= {
    "trigger_mode": "multiple"
}  # by default a second question is dropped while the browser waits for the first
HEAVY = _EVENT | {
    "concurrency_id": "assistant",
    "concurrency_limit": 1,
}  # settings of events that wait for the worker
INSTANT = _EVENT | {"queue": False}  # and of those that do not


def line(text: str, busy: bool = False) -> str:
    """The status line beneath the picture; text: HTML."""
    return f'<p role="status" class="{"busy" if busy else ""}">{text}</p>' if text else ""


def field(label: str, placeholder: str, elem_id: str, **more) -> gr.Textbox:
    """A line to write in, with its action to the right of it: see `action`. label: is read, not seen."""
    return gr.Textbox(
        show_label=False, label=label, placeholder=placeholder, container=False, elem_id=elem_id, **more
    )


def action(said: str, elem_id: str) -> gr.Button:
    """What is done with the field before it."""
    return gr.Button(said, size="sm", min_width=90, variant="primary", elem_id=elem_id)


def warn(said: str) -> None:
    """One polite line above everything else."""
    gr.Warning(literal(said))


class Ui:
    """assistant: asked through `worker` only; examples: [{"file": path, "question": str}]; records: a folder that
    corrections are saved into as well, or None. All other attributes are components, which the panels add."""

    def __init__(self, assistant, examples: list[dict], records: Path | None):
        self.assistant, self.examples, self.records, self.worker = assistant, examples, records, Worker()

    @property
    def every(self) -> list:
        """All components that a handler may change: the outputs of nearly every event."""
        return [
            *(self.session, self.chat, self.chip, self.about, self.question, self.turns),
            *(self.stop, self.undo, self.edit, self.retry, self.photo, self.canvas, self.status, self.strip),
            *(self.tabs, self.power, self.look, self.name, self.label),
            *(self.more, self.again, self.fresh, self.reopen),
        ]

    def talk(self, s: Session) -> dict:
        """The conversation and its buttons."""
        waiting = s.next() is not None or bool(s.pending)
        return {
            self.session: s,
            self.chat: messages(s),
            self.stop: gr.Button(visible=waiting),
            self.turns: gr.Row(visible=bool(s.log) or waiting),
            **{button: gr.Button(visible=bool(s.log)) for button in (self.undo, self.edit, self.retry)},
        }

    def chips(self, s: Session) -> dict:
        """What the next question is about, above the question."""
        text = chip_of(s)
        return {self.chip: gr.Row(visible=bool(text)), self.about: text}

    def show(self, s: Session, marks: bool = False, note: str | None = None) -> dict:
        """Everything that depends on the session. marks: take back the visitor's marks; note: instead of the legend."""
        opened = s.scene is not None
        labels = [f"{k}. {n}" for k, n in enumerate(s.names, 1)]
        return {
            **self.talk(s),
            **self.chips(s),
            self.canvas: gr.HTML(**picture.shown(s, marks)),
            self.status: line(legend(s) if note is None else note),
            self.strip: gr.Radio(
                choices=labels, value=labels[s.at] if opened else None, visible=len(labels) > 1
            ),
            self.tabs: gr.Tabs(selected=s.view if s.view in TABS else None),
            self.photo: gr.Image(visible=not opened, value=None),
            self.power: gr.Column(visible=opened),
            self.look: gr.Button("Show the masks" if s.view == LOOKING else "Where it looked"),
            **{button: gr.Button(visible=opened) for button in (self.again, self.fresh)},
            self.more: gr.UploadButton(visible=opened),
            self.reopen: gr.UploadButton(visible=not opened),
        }

    def guarded(self, action):
        """A handler whose bad input is one polite line."""

        @functools.wraps(action)
        def run(s, *values, **more):
            try:
                return action(s, *values, **more)
            except Exception as error:  # a visitor's doing must never end the process
                warn(polite(error))
                return {self.session: s}

        return run

    def busily(self, s: Session, doing: str, work, done):
        """A handler's generator that says what it is doing, can be stopped, and ends in what done(result) shows or in
        one polite line. work: called in the worker with `tell`, see `Worker.run`."""
        try:
            yield {
                self.session: s,
                self.status: line(doing, busy=True),
                self.stop: gr.Button(visible=True),
                self.turns: gr.Row(visible=True),
            }
            for _, result in self.worker.run(work, s.stop):
                pass
        except Exception as error:
            said = polite(error)
            warn(said)
            yield {**self.talk(s), self.status: line(literal(said[:1].upper() + said[1:]) + ".")}
            return
        yield done(result)

"""The Answer tab: what can be done with the masks of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from assistant.dialogue.corrections import save_correction
from assistant.errors import BadInput
from assistant.page.components import TAB_TITLES, AnswerTabComponents, action_button, small_button, text_field
from assistant.page.handlers import (
    INSTANT_EVENT,
    QUEUED_EVENT,
    EventStep,
    Panel,
    Updates,
    guarded,
    status_line,
)
from assistant.page.session import Session, View

MAX_PHRASES_LENGTH = 400  # characters of the phrases to look for


def build() -> AnswerTabComponents:
    """Add the tab."""
    with gr.Tab(TAB_TITLES[View.ANSWER], id=View.ANSWER.value) as tab:
        with gr.Row():
            refine = small_button("Refine by hand", "refine", min_width=90)
            mark_absent = small_button("Not there", "gone", min_width=90)
            attention = small_button("Where it looked", "look", min_width=90)
            save_record = small_button("Save as training record", "teach", min_width=90)
        with gr.Column(visible=False, elem_id="searched") as searched:
            searched_for = gr.HTML("")
            with gr.Row():
                phrases = text_field(
                    "Phrases to look for",
                    "names with commas between them",
                    "phrases",
                    scale=3,
                    min_width=160,
                    max_length=MAX_PHRASES_LENGTH,
                )
                look_again = action_button("Look again", "again-for")
        gr.HTML(
            '<p class="hint">Select a mask to ask about it, to refine it, or to say that it is not there.</p>'
        )
    return AnswerTabComponents(
        tab, refine, mark_absent, attention, save_record, searched, searched_for, phrases, look_again
    )


class AnswerTab(Panel):
    """The handlers of the Answer tab, and of clicks on a mask."""

    def wire(self) -> None:
        """Connect the components with their handlers."""
        answer = self.components.tabs.answer
        canvas: Any = self.components.photo.canvas  # its events are those that canvas.js triggers
        state, outputs = self.components.session, self.components.changeable
        answer.tab.select(self.open_tab, state, outputs, **INSTANT_EVENT)
        canvas.pick(self.select_target, state, outputs, **INSTANT_EVENT)
        answer.refine.click(self.refine, state, outputs, **INSTANT_EVENT)
        answer.mark_absent.click(self.mark_absent, state, outputs, **INSTANT_EVENT)
        answer.attention.click(self.toggle_attention, state, outputs, **QUEUED_EVENT)
        looked: EventStep = {"fn": self.look_again, "inputs": [state, answer.phrases], "outputs": outputs}
        gr.on([answer.look_again.click, answer.phrases.submit], **looked, **QUEUED_EVENT)
        answer.save_record.click(self.save_record, state, outputs, **QUEUED_EVENT)

    @guarded
    def open_tab(self, session: Session) -> Updates:
        """Show the masks of the answer."""
        if session.scene is None or session.view == View.ANSWER:
            return self.unchanged(session)
        session.view = View.ANSWER
        session.selected = None
        return self.page.show(session, clear_marks=True)

    @guarded
    def select_target(self, session: Session, event: gr.EventData) -> Updates:
        """Select the target, or the instance of it, that was clicked."""
        session.select(event._data.get("number"), event._data.get("instance"))
        return {
            **self.unchanged(session),
            self.components.photo.canvas: gr.HTML(
                selected=session.selected, instance=session.selected_instance
            ),
            **self.page.subject(session),
            **self.page.searched(session),
        }

    @guarded
    def refine(self, session: Session) -> Updates:
        """Refine the selected mask by hand."""
        target = session.selected_target
        if target is None:
            raise BadInput("select a mask first: click on it, or on its name")
        phrase = target.phrase if session.view == View.ANSWER else ""
        session.start_marking()
        return {
            **self.page.show(
                session, clear_marks=True, note="Click, draw a box or paint to add to it or to cut from it."
            ),
            self.components.tabs.by_hand.name: phrase,
        }

    @guarded
    def mark_absent(self, session: Session) -> Updates:
        """Correct the answer: the selected target is not in the photo."""
        session.mark_absent()
        return self.page.show(session)

    def toggle_attention(self, session: Session) -> Iterator[Updates]:
        """Show where the model attends, or the masks again."""
        if session.view == View.ATTENTION:
            session.view = View.ANSWER
            yield self.page.show(session, clear_marks=True)
            return
        yield from self.page.run_stoppable(
            session,
            "Seeing where it looks",
            lambda report: session.show_attention(),
            lambda _: self.page.show(session, clear_marks=True),
        )

    def look_again(self, session: Session, text: str) -> Iterator[Updates]:
        """Look for other phrases in the place of those that were looked for."""
        yield from self.page.run_stoppable(
            session,
            "Looking again",
            lambda report: session.look_again(text),
            lambda _: self.page.show(session, clear_marks=True),
        )

    @guarded
    def save_record(self, session: Session) -> Updates:
        """Save the answer as a training record, for the visitor and in the server's own folder."""
        session.save_correction()
        folder = self.page.records_folder
        if folder:
            answer, history = session.corrections[-1]
            self.page.worker.call(lambda: save_correction(folder, answer, history))
        count = len(session.corrections)
        what = "it" if count == 1 else "them"
        line = f"Kept as a training record ({count} so far); take {what} home under Save."
        return {**self.unchanged(session), self.components.photo.status: status_line(line)}

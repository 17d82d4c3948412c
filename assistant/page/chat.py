"""The chat panel: questions, replies as they are written, undoing, editing and trying again."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from assistant.errors import BadInput
from assistant.grammar import check_question
from assistant.page.components import ChatComponents, small_button
from assistant.page.examples import Example
from assistant.page.handlers import (
    INSTANT_EVENT,
    QUEUED_EVENT,
    EventStep,
    Panel,
    Updates,
    guarded,
    status_line,
)
from assistant.page.question import Question
from assistant.page.saved_conversation import set_aside
from assistant.page.session import Session, View
from assistant.page.wording import bubbles, chat_messages
from assistant.page.worker import Done, error_line

WELCOME = "## What are you looking for?\nDrop a photo, then ask for things in your own words."
# Of a second try: greedy decoding would give the same reply again.
RETRY_TEMPERATURE = 0.7
# Run in the browser: a question that is edited can be typed at once.
FOCUS_QUESTION = "() => document.querySelector('#question textarea').focus()"
# The button that was pressed is gone; a phone's keyboard would hide the picture.
FOCUS_AFTER_BUTTON = "() => matchMedia('(hover: hover)').matches && (" + FOCUS_QUESTION + ")()"
FOCUS_WHERE_EDITED = (
    "() => document.querySelector('#chip .editing') && document.querySelector('#question textarea').focus()"
)


def build(examples: list[Example]) -> ChatComponents:
    """Add the conversation, the question and its buttons."""
    messages = gr.Chatbot(
        show_label=False,
        label="Conversation",
        elem_id="chat",
        height=None,
        latex_delimiters=[],
        buttons=[],
        feedback_options=None,
        allow_file_downloads=False,
        placeholder=WELCOME,
        examples=[{"text": example.question, "files": [str(example.file)]} for example in examples] or None,
    )
    with gr.Row(visible=False, elem_id="chip") as subject_row:
        subject = gr.HTML("", elem_id="about")
        clear_subject = small_button("Cancel", scale=0)
    question = gr.Textbox(
        label="Your question",
        show_label=False,
        container=False,
        lines=1,
        max_lines=5,
        submit_btn="Ask",
        placeholder="What keeps the rain off?",
        elem_id="question",
    )
    with gr.Row(visible=False, elem_id="turns") as actions:
        stop = small_button("Stop", "stop", variant="stop", visible=False)
        undo = small_button("Undo", "undo")
        edit = small_button("Edit question", "edit")
        retry = small_button("Try again", "retry")
    return ChatComponents(
        messages, subject_row, subject, clear_subject, question, actions, stop, undo, edit, retry
    )


class ChatPanel(Panel):
    """The handlers of the chat panel."""

    def wire(self, open_photos: EventStep, store_conversation: EventStep) -> None:
        """Connect the components with their handlers.

        Args:
            open_photos: The step that opens the photos that were chosen.
            store_conversation: The step that stores the conversation in the browser.
        """
        chat = self.components.chat
        state, outputs = self.components.session, self.components.changeable
        answer: EventStep = {"fn": self.answer, "inputs": state, "outputs": outputs, **QUEUED_EVENT}
        focus: EventStep = {"fn": None, "js": FOCUS_AFTER_BUTTON, "api_visibility": "private"}
        (
            chat.messages.example_select(self.choose_example, state, outputs, **INSTANT_EVENT)
            .then(**focus)
            .then(**open_photos)
            .then(**answer)
            .then(**store_conversation)
        )
        (
            chat.messages.option_select(self.ask_suggestion, state, outputs, **INSTANT_EVENT)
            .then(**focus)
            .then(**answer)
            .then(**store_conversation)
        )
        (
            chat.question.submit(self.ask, [state, chat.question], outputs, **INSTANT_EVENT)
            .then(**answer)
            .then(**store_conversation)
        )
        (
            chat.retry.click(self.try_again, state, outputs, **INSTANT_EVENT)
            .then(**answer)
            .then(**store_conversation)
        )
        chat.stop.click(self.stop, state, outputs, **INSTANT_EVENT)
        chat.undo.click(self.undo, state, outputs, **INSTANT_EVENT).then(**store_conversation)
        chat.edit.click(self.edit, state, outputs, **INSTANT_EVENT).success(
            None, js=FOCUS_QUESTION, api_visibility="private"
        )
        chat.messages.select(self.select_bubble, state, outputs, **INSTANT_EVENT).success(
            None, js=FOCUS_WHERE_EDITED, api_visibility="private"
        )
        chat.clear_subject.click(self.clear_subject, state, outputs, **INSTANT_EVENT)

    @guarded
    def ask(self, session: Session, text: str) -> Updates:
        """Add a question, in place of the one that is edited and of those after it."""
        text = check_question(text)
        if session.scene is None and not session.pending:
            raise BadInput("open a photo first: your question stays here until then")
        session.notice = ""
        session.add_question(text)
        session.selected = None
        return {
            **self.page.conversation(session),
            **self.page.subject(session),
            self.components.chat.question: "",
        }

    @guarded
    def ask_suggestion(self, session: Session, event: gr.SelectData) -> Updates:
        """Ask a question that was suggested."""
        return self.ask(session, event.value)

    def choose_example(self, session: Session, event: gr.SelectData) -> Updates:
        """Start anew with an example and its question."""
        set_aside(session)
        session.clear()
        example = self.page.examples[event.index]
        session.queue_photos(example.file)
        session.add_question(example.question)
        return {
            **self.page.conversation(session),
            self.components.photo.status: status_line("Opening the photo", busy=True),
            self.components.chat.question: "",
        }

    def answer(self, session: Session) -> Iterator[Updates]:
        """Answer the next question, and show the reply while it is written."""
        question = session.next_question()
        if question is None:
            yield self.unchanged(session)
            return
        epoch = session.epoch
        try:
            yield from self._stream_answer(session, question)
        except Exception as error:
            if session.epoch == epoch and question in session.questions:
                session.set_failure(question, error_line(error))
                session.restore_turns(question.photo)
                yield self.page.conversation(session)
                return
        if session.epoch == epoch and question in session.questions:
            yield self.page.show(session, clear_marks=True)
            return
        for photo in range(len(session.scenes)):  # the question was taken back meanwhile
            session.restore_turns(photo)
        yield self.unchanged(session)

    def _stream_answer(self, session: Session, question: Question) -> Iterator[Updates]:
        """Ask the assistant, and enter the answer unless the question was taken back meanwhile."""
        pieces: list[str] = []
        events = self.page.worker.run(lambda report: session.ask(question, stream=report), session.stop)
        for event in events:
            if question not in session.questions:
                break
            if isinstance(event, Done):
                session.set_answer(question, event.result)
            else:
                pieces.append(event.values[0])
                question.status = "".join(pieces)
                yield {self.components.chat.messages: chat_messages(session)}

    @guarded
    def stop(self, session: Session) -> Updates:
        """Stop what is under way; a first photo that was being opened is forgotten."""
        opening = session.scene is None and bool(session.pending)
        session.stop_all()
        if opening:
            session.clear()
            return self.page.show(session, note="Stopped.")
        return self.page.conversation(session)

    @guarded
    def undo(self, session: Session) -> Updates:
        """Take back the last question, or what was forgotten last."""
        if session.can_bring_back:
            session.bring_back()
        else:
            session.take_back()
        return self.page.show(session, clear_marks=True)

    @guarded
    def edit(self, session: Session) -> Updates:
        """Let the last question be typed again; it stays until the new one is sent."""
        if not session.questions:
            raise BadInput("there is no question to edit")
        return self._edit(session, len(session.questions) - 1)

    def _edit(self, session: Session, number: int) -> Updates:
        session.editing = number
        return {
            **self.unchanged(session),
            **self.page.subject(session),
            self.components.chat.question: session.questions[number].text,
        }

    @guarded
    def try_again(self, session: Session) -> Updates:
        """Ask the last question again, with a reply that is sampled."""
        if not session.questions:
            raise BadInput("there is nothing to try again: ask something first")
        last = session.questions[-1]
        session.take_back()
        again = session.add_question(last.text, temperature=RETRY_TEMPERATURE)
        again.about = last.about
        again.photo = last.photo
        return self.page.conversation(session)

    @guarded
    def select_bubble(self, session: Session, event: gr.SelectData) -> Updates:
        """Show the masks of an earlier reply again, or edit an earlier question."""
        rows = bubbles(session)
        index = event.index[0] if isinstance(event.index, list | tuple) else event.index
        number = rows[index].question if isinstance(index, int) and 0 <= index < len(rows) else None
        if number is None:
            return self.unchanged(session)
        question = session.questions[number]
        if rows[index].role == "user" and not question.waiting:
            return self._edit(session, number)
        shown = question is session.shown_question and session.view == View.ANSWER
        if question.answer is None or shown:
            return self.unchanged(session)
        session.reset_view()
        session.photo = question.photo
        session.recalled = question
        return self.page.show(session, clear_marks=True)

    @guarded
    def clear_subject(self, session: Session) -> Updates:
        """Ask about the whole photo again, and edit nothing."""
        edited = session.editing is not None
        session.selected = None
        session.editing = None
        return {
            **self.unchanged(session),
            **({self.components.chat.question: ""} if edited else {}),
            self.components.photo.canvas: gr.HTML(selected=None, instance=None),
            **self.page.subject(session),
        }

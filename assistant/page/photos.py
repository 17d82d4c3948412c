"""The photo panel: dropping photos, opening them while their masks appear, switching, and starting over."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from assistant.errors import BadInput
from assistant.images import collect_notes, open_image
from assistant.page import thumbnails
from assistant.page.canvas import (
    CANVAS_SCRIPT,
    CANVAS_TEMPLATE,
    Props,
    empty_props,
    outline_layers,
    photo_prop,
)
from assistant.page.components import PhotoComponents, ToolComponents
from assistant.page.handlers import (
    INSTANT_EVENT,
    QUEUED_EVENT,
    EventStep,
    Panel,
    Updates,
    guarded,
    show_warning,
    status_line,
)
from assistant.page.saved_conversation import set_aside
from assistant.page.session import Session
from assistant.page.uploads import uploaded_file
from assistant.page.wording import escape
from assistant.page.worker import Done, ReportFunction, Stopped, error_line
from assistant.scene import Scene

# What the page says of each step of opening an image, see `assistant.sam.image_opener.Progress`.
STEP_TEXTS = {
    "encoding": "looking at it",
    "proposing": "outlining everything in it",
    "recognising": "recognising what was outlined",
}
READ_STEP = "read"  # the page's own first step, which reports the image


def build() -> PhotoComponents:
    """Add the place for the photo, the canvas and what stands beneath them."""
    upload = gr.Image(
        type="filepath",
        sources=["upload", "clipboard", "webcam"],
        show_label=False,
        label="Photo",
        height="min(460px, 50dvh)",
        buttons=[],
        elem_id="photo",
        alt_text="The photo that is being opened",
        placeholder="# Drop a photo here\nor click to choose one",
    )
    canvas = gr.HTML(
        html_template=CANVAS_TEMPLATE,
        js_on_load=CANVAS_SCRIPT,
        elem_id="picture",
        apply_default_css=False,
        **empty_props(),
    )
    status = gr.HTML("", elem_id="status")
    return PhotoComponents(upload, canvas, status, thumbnails.build())


def build_tools() -> ToolComponents:
    """Add the buttons beneath everything else."""
    size: dict[str, Any] = {"size": "sm", "min_width": 80}
    with gr.Row(elem_id="tools"):
        add_photos = gr.UploadButton(
            "Add photos",
            file_types=["image"],
            file_count="multiple",
            visible=False,
            elem_id="more",
            **size,
        )
        start_over = gr.Button("Start over", visible=False, elem_id="again", **size)
        new_conversation = gr.Button("New conversation", visible=False, elem_id="fresh", **size)
        reopen = gr.UploadButton("Open a saved conversation", file_types=[".json"], elem_id="reopen", **size)
    return ToolComponents(add_photos, start_over, new_conversation, reopen)


class PhotoPanel(Panel):
    """The handlers of the photo and of the buttons beneath everything else."""

    def wire(self, store_conversation: EventStep) -> EventStep:
        """Connect the components with their handlers.

        Args:
            store_conversation: The step that stores the conversation in the browser.

        Returns:
            The step that opens chosen photos.
        """
        photo, tools = self.components.photo, self.components.tools
        state, outputs = self.components.session, self.components.changeable
        open_photos: EventStep = {
            "fn": self.open_photos,
            "inputs": state,
            "outputs": outputs,
            **QUEUED_EVENT,
        }
        # Without preprocessing the upload comes as it is, so that `open_image` is what judges the file.
        raw = INSTANT_EVENT | {"preprocess": False}
        photo.upload.input(self.choose_first, [state, photo.upload], outputs, **raw).then(**open_photos)
        tools.add_photos.upload(self.choose_more, [state, tools.add_photos], outputs, **raw).then(
            **open_photos
        )
        strip: Any = photo.thumbnails  # its event is the one that its script triggers
        strip.switch(self.switch, state, outputs, **INSTANT_EVENT)
        tools.start_over.click(self.start_over, state, outputs, **INSTANT_EVENT)
        gr.on(
            [tools.new_conversation.click, photo.upload.clear],
            self.begin_anew,
            state,
            outputs,
            **INSTANT_EVENT,
        ).then(**store_conversation)
        return open_photos

    @guarded
    def choose_first(self, session: Session, upload: object) -> Updates:
        """Begin a conversation with a photo; upload: what Gradio says of the file."""
        if not upload:
            return self.unchanged(session)
        set_aside(session)
        session.clear()
        try:
            return self._queue(session, uploaded_file(upload))
        except BadInput as error:
            return self._refuse(session, error)

    @guarded
    def choose_more(self, session: Session, uploads: object) -> Updates:
        """Add photos to the conversation."""
        if not uploads:
            return self.unchanged(session)
        files = uploads if isinstance(uploads, list) else [uploads]
        return self._queue(session, *(uploaded_file(file) for file in files))

    def _queue(self, session: Session, *files: Path) -> Updates:
        """Note photos to be opened by the next step."""
        session.queue_photos(*files)
        return {
            **self.page.conversation(session),
            self.components.photo.status: status_line("Opening the photo", busy=True),
        }

    def _refuse(self, session: Session, error: Exception, file: Path | None = None) -> Updates:
        """Say why a photo cannot be opened; file: the photo, where it is known."""
        message = error_line(error, file)
        show_warning(message)
        if not session.scenes:
            session.clear()
        session.pending = []
        session.notice = f"I could not open this photo: {message}."
        return self.page.show(session)

    def open_photos(self, session: Session) -> Iterator[Updates]:
        """Open the photos that were chosen, one after the other.

        What a photo's end shows is the last that is yielded: Gradio's browser side changes an update in place
        when the next one arrives, so that a slow browser sees the last one only.
        """
        epoch, stop = session.epoch, session.stop
        if not session.pending:
            yield self.unchanged(session)
        while session.pending and session.epoch == epoch:
            file = session.pending[0]
            start = time.perf_counter()
            try:
                opened = yield from self._open(session, file, stop)
            except Exception as error:
                if session.epoch == epoch:
                    session.pending = []
                    if isinstance(error, Stopped):
                        yield self.page.show(session, note="Stopped.")
                    else:
                        yield self._refuse(session, error, file)
                break
            if session.epoch == epoch and opened is not None:
                scene, notes = opened
                session.pending = session.pending[1:]
                session.add_photo(scene, file.stem)
                height, width = scene.size
                seconds = time.perf_counter() - start
                sentences = [f"{width} x {height} pixels, opened in {seconds:.1f} s.", *notes]
                yield self.page.show(session, note=escape(" ".join(sentences)))
        if session.epoch != epoch:
            yield self.unchanged(session)

    def _open(
        self, session: Session, file: Path, stop: threading.Event
    ) -> Generator[Updates, None, tuple[Scene, list[str]] | None]:
        """Open a photo and show the steps; returns its scene and notes, or None in another epoch."""
        epoch = session.epoch
        image: np.ndarray | None = None
        shown: Props = {}  # every update repeats those before it, see `open_photos`
        for event in self.page.worker.run(lambda report: self._read_and_open(file, report), stop):
            if session.epoch != epoch:
                return None
            if isinstance(event, Done):
                return event.result
            step, value = event.values
            if step == READ_STEP:
                image = value
                session.drawn_scene = None
                shown = empty_props() | {"photo": photo_prop(value, file.stem), "busy": True}
            elif image is not None and value is not None:
                shown = shown | {"masks": outline_layers(image, value)}
            yield self._show_step(step, shown)
        return None

    def _read_and_open(self, file: Path, report: ReportFunction) -> tuple[Scene, list[str]]:
        """The work of opening a photo: report the image itself, then the steps."""
        with collect_notes() as notes:
            image = open_image(file)
        report(READ_STEP, image)
        scene = self.page.assistant.open(image, progress=report)
        _ = scene.names_seen  # computed here, in the worker, for the questions that are suggested
        return scene, notes

    def _show_step(self, step: str, props: Props) -> Updates:
        """A step of opening a photo, in place of the field where it was dropped; props: for the canvas."""
        text = "Opening the photo"
        if step != READ_STEP:
            text += f": {STEP_TEXTS.get(step, escape(step))}"
        return {
            self.components.photo.upload: gr.Image(visible=False, value=None),
            self.components.photo.status: status_line(text, busy=True),
            self.components.photo.canvas: gr.HTML(**props),
        }

    @guarded
    def switch(self, session: Session, event: gr.EventData) -> Updates:
        """Show another photo of the conversation."""
        photo = event._data.get("number")
        if not isinstance(photo, int) or photo == session.photo:
            return self.unchanged(session)
        session.show_photo(photo)
        return self.page.show(session)

    @guarded
    def start_over(self, session: Session) -> Updates:
        """Forget the conversation, but not the photos."""
        if session.scene is None:
            return self.unchanged(session)
        session.forget(photos=False)
        ending = " in this photo?" if len(session.scenes) == 1 else "?"
        session.notice = f"Forgotten (Undo brings it back). What are you looking for{ending}"
        return self.page.show(session, clear_marks=True)

    def begin_anew(self, session: Session) -> Updates:
        """Forget photos and conversation."""
        set_aside(session)
        session.forget(photos=True)
        return {
            **self.page.show(session),
            self.components.chat.question: "",
            self.components.tabs.by_hand.name: "",
        }

"""The Save tab, and opening a conversation that was saved."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from assistant.answer import Answer
from assistant.dialogue.conversation_file import dump
from assistant.dialogue.corrections import save_correction
from assistant.errors import BadInput
from assistant.export.image_folder import cut_out, file_safe
from assistant.page.components import SAVE_TAB, TAB_TITLES, SaveTabComponents, small_button
from assistant.page.handlers import QUEUED_EVENT, EventStep, Panel, Updates, show_warning, status_line
from assistant.page.saved_conversation import reopen_text, set_aside, to_conversation
from assistant.page.session import Session, View
from assistant.page.uploads import uploaded_file
from assistant.page.worker import error_line

# Runs in the browser once a file is ready.
CLICK_DOWNLOAD = "() => document.querySelector('#download').click()"


def build() -> SaveTabComponents:
    """Add the tab."""
    with gr.Tab(TAB_TITLES[SAVE_TAB], id=SAVE_TAB):
        with gr.Row():
            masks = small_button("Masks (zip)", "export", min_width=90)
            conversation = small_button("Conversation (json)", "keep", min_width=90)
            records = small_button("Training records (zip)", "taught", min_width=90)
        gr.HTML(
            '<p class="hint">Masks: PNG, cut-outs, COCO, LabelMe and YOLO. The conversation file reopens '
            "everything, photos included.</p>"
        )
        download = gr.DownloadButton(visible="hidden", elem_id="download")
    return SaveTabComponents(masks, conversation, records, download)


def save_masks(session: Session, folder: Path) -> Path:
    """Zip what the picture shows in an empty folder. Raises BadInput where nothing is outlined."""
    targets = session.targets
    if session.view == View.ATTENTION and session.answer is not None:
        targets = session.answer.targets
    if not any(target.present for target in targets):
        raise BadInput("nothing is outlined: ask for something first")
    if session.view in (View.EVERYTHING, View.CLASSES):
        scene = session.open_scene()
        answer = Answer(TAB_TITLES[session.view], session.targets, scene.size, scene.image)
    else:
        assert session.answer is not None
        answer = session.answer
    answer.save(folder / "maskpick")
    return _zip(folder / "maskpick")


def save_cut_out(session: Session, number: object, folder: Path) -> Path:
    """Write one mask that the picture shows as a PNG, cut out of the photo, into an empty folder.

    Args:
        session: The session.
        number: Index of the target, as the browser sends it.
        folder: The folder.

    Raises:
        BadInput: There is no such mask.
    """
    targets = session.targets
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(targets):
        raise BadInput("this mask is not shown any more")
    target = targets[number]
    if target.mask is None or not target.mask.any():
        raise BadInput(f"nothing is outlined for {target.phrase}")
    file = folder / f"{file_safe(target.phrase)}.png"
    cut_out(session.open_scene().image, target.mask).save(file)
    return file


def save_conversation(session: Session, folder: Path) -> Path:
    """Write the conversation into an empty folder. Raises BadInput without one, or if it is too large."""
    if session.scene is None:
        raise BadInput("there is no conversation yet: open a photo first")
    file = folder / "conversation.maskpick.json"
    file.write_text(dump(to_conversation(session)), encoding="utf-8")
    return file


def save_records(session: Session, folder: Path) -> Path:
    """Zip the corrections as training records in an empty folder. Raises BadInput without any."""
    if not session.corrections:
        raise BadInput('no training records yet: correct an answer, then "Save as training record"')
    for answer, history in session.corrections:
        save_correction(folder / "records", answer, history)
    return _zip(folder / "records")


def _zip(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


class SaveTab(Panel):
    """The handlers of the Save tab, and of the button that opens a saved conversation."""

    def wire(self, store_conversation: EventStep) -> None:
        """Connect the components with their handlers.

        Args:
            store_conversation: The step that stores the conversation in the browser.
        """
        save, reopen_button = self.components.tabs.save, self.components.tools.reopen
        state = self.components.session
        for button, handler in (
            (save.masks, self.download_masks),
            (save.conversation, self.download_conversation),
            (save.records, self.download_records),
        ):
            saved = button.click(handler, state, save.download, **QUEUED_EVENT)
            saved.success(None, js=CLICK_DOWNLOAD, api_visibility="private")
        canvas: Any = self.components.photo.canvas  # its events are those that its scripts trigger
        saved = canvas.cutout(self.download_cut_out, state, save.download, **QUEUED_EVENT)
        saved.success(None, js=CLICK_DOWNLOAD, api_visibility="private")
        reopen_button.upload(
            self.open_saved,
            [state, reopen_button],
            self.components.changeable,
            preprocess=False,
            **QUEUED_EVENT,
        ).then(**store_conversation)

    def download_masks(self, session: Session) -> Iterator[str]:
        """Send what the picture shows."""
        yield from self._download(session, save_masks)

    def download_cut_out(self, session: Session, event: gr.EventData) -> Iterator[str]:
        """Send one mask."""
        number = event._data.get("number")
        yield from self._download(session, lambda session, folder: save_cut_out(session, number, folder))

    def download_conversation(self, session: Session) -> Iterator[str]:
        """Send the conversation."""
        yield from self._download(session, save_conversation)

    def download_records(self, session: Session) -> Iterator[str]:
        """Send the training records."""
        yield from self._download(session, save_records)

    def _download(self, session: Session, save: Callable[[Session, Path], Path]) -> Iterator[str]:
        """Send the file that `save` writes into a folder of its own."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield str(save(session, Path(folder)))  # Gradio takes its copy before this goes on
            except Exception as error:
                raise gr.Error(error_line(error), print_exception=False) from None

    def open_saved(self, session: Session, upload: object) -> Iterator[Updates]:
        """Go on with a saved conversation; upload: what Gradio says of the file."""
        if not upload:
            yield self.unchanged(session)
            return
        try:
            status = status_line("Opening the conversation", busy=True)
            yield {**self.unchanged(session), self.components.photo.status: status}
            set_aside(session)
            text = uploaded_file(upload).read_bytes()
            reopen_text(session, text, lambda image: self.page.open_image(session, image))
        except Exception as error:
            message = error_line(error)
            show_warning(message)
            session.clear()
            session.notice = f"I could not open this: {message}."
        yield self.page.show(session)

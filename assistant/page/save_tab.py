"""The Save tab, and opening what it has saved."""

import shutil
import tempfile
from pathlib import Path

import gradio as gr

from assistant.answer import Answer
from assistant.dialogue.conversation_file import dump, load
from assistant.dialogue.corrections import save_correction
from assistant.errors import BadInput
from assistant.page.api import uploaded
from assistant.page.session import CLASSES, EVERYTHING, PHOTOS
from assistant.page.ui import HEAVY, TABS, line, warn
from assistant.page.work import polite


def build(ui) -> None:
    with gr.Tab(TABS["keep"], id="keep"):
        with gr.Row():
            ui.export = gr.Button("Masks (zip)", size="sm", min_width=90, elem_id="export")
            ui.keep = gr.Button("Conversation (json)", size="sm", min_width=90, elem_id="keep")
            ui.taught = gr.Button("Training records (zip)", size="sm", min_width=90, elem_id="taught")
        gr.HTML(
            '<p class="hint">Masks: PNG, cut-outs, COCO and LabelMe json. The conversation file reopens everything, '
            "photos included.</p>"
        )
        ui.download = gr.DownloadButton(visible="hidden", elem_id="download")


def zipped(inside: Path) -> str:
    return shutil.make_archive(str(inside), "zip", inside)


# Each writes into an empty folder and returns the one file to send.


def masks_zip(s, folder: Path):
    inside = folder / "maskpick"
    if not any(t.present for t in s.targets):
        raise BadInput("nothing is outlined: ask for something first")
    if s.view in (EVERYTHING, CLASSES):
        Answer(TABS[s.view], s.targets, s.scene.size, s.scene.image).save(inside)
    else:
        s.answer.save(inside)
    return zipped(inside)


def conversation_json(s, folder: Path):
    if s.scene is None:
        raise BadInput("there is no conversation yet: open a photo first")
    (folder / "conversation.maskpick.json").write_text(dump(s.conversation()), encoding="utf-8")
    return folder / "conversation.maskpick.json"


def records_zip(s, folder: Path):
    if not s.corrections:
        raise BadInput('no training records yet: correct an answer, then "Save as training record"')
    for one in s.corrections:
        save_correction(folder / "records", *one)
    return zipped(folder / "records")


def wire(ui) -> None:
    def packed(fill):
        def run(s):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    yield str(fill(s, Path(folder)))  # Gradio takes its copy before this goes on
                except Exception as error:
                    raise gr.Error(polite(error), print_exception=False) from None

        return run

    def reopen(s, payload):
        if not payload:
            yield {ui.session: s}
            return
        try:
            yield {ui.session: s, ui.status: line("Opening the conversation", busy=True)}
            saved = load(uploaded(payload).read_bytes())
            if len(saved.photos) > PHOTOS:
                raise BadInput(
                    f"the conversation has {len(saved.photos)} photos: at most {PHOTOS} can be opened at once"
                )
            scenes = []
            for _, image in saved.photos:
                for kind, news in ui.worker.run(lambda tell: ui.assistant.open(image, progress=tell), s.stop):
                    if kind == "done":
                        scenes.append(news)
            s.reopen(saved, scenes)
        except Exception as error:
            said = polite(error)
            warn(said)
            s.clear()
            s.note = f"I could not open this: {said}."
            yield ui.show(s)
            return
        yield ui.show(s)

    for button, fill in ((ui.export, masks_zip), (ui.keep, conversation_json), (ui.taught, records_zip)):
        button.click(packed(fill), ui.session, ui.download, **HEAVY).success(
            None, js="() => document.querySelector('#download').click()", api_visibility="private"
        )
    ui.reopen.upload(reopen, [ui.session, ui.reopen], ui.every, preprocess=False, **HEAVY)

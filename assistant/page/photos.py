"""Photos: dropped, opened while what is found appears, several in a conversation; starting over."""

import time

import gradio as gr

from assistant.errors import BadInput
from assistant.images import open_image
from assistant.page import canvas as picture
from assistant.page.api import uploaded
from assistant.page.ui import HEAVY, INSTANT, line, warn
from assistant.page.words import literal
from assistant.page.work import Stopped, polite

DOING = {
    "encoding": "looking at it",
    "proposing": "outlining everything in it",
    "recognising": "recognising what was outlined",
}


def build(ui) -> None:
    ui.photo = gr.Image(
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
    ui.canvas = gr.HTML(
        html_template=picture.TEMPLATE,
        js_on_load=picture.SCRIPT,
        elem_id="picture",
        apply_default_css=False,
        **picture.nothing(),
    )
    ui.status = gr.HTML("", elem_id="status")
    ui.strip = gr.Radio([], show_label=False, label="Photos", container=False, visible=False, elem_id="strip")


def build_tools(ui) -> None:
    """The buttons beneath everything else."""
    with gr.Row(elem_id="tools"):
        ui.more = gr.UploadButton(
            "Add photos",
            size="sm",
            min_width=80,
            file_types=["image"],
            file_count="multiple",
            visible=False,
            elem_id="more",
        )
        ui.again = gr.Button("Start over", size="sm", min_width=80, visible=False, elem_id="again")
        ui.fresh = gr.Button("New conversation", size="sm", min_width=80, visible=False, elem_id="fresh")
        ui.reopen = gr.UploadButton(
            "Open a saved conversation", size="sm", min_width=80, file_types=[".json"], elem_id="reopen"
        )


def wire(ui) -> None:
    def choose(s, *paths):
        s.choose(*paths)
        return {**ui.talk(s), ui.status: line("Opening the photo", busy=True)}

    @ui.guarded
    def choose_first(
        s, payload
    ):  # payload: the upload as it came, so that `open_image` is what judges the file
        if not payload:
            return {ui.session: s}
        s.clear()
        try:
            return choose(s, uploaded(payload))
        except BadInput as error:
            return refused(s, error)

    @ui.guarded
    def choose_more(s, payload):
        files = payload if isinstance(payload, list) else [payload]
        return choose(s, *(uploaded(file) for file in files)) if payload else {ui.session: s}

    def refused(s, error, path=None):
        said = polite(error, path)
        warn(said)
        if not s.scenes:
            s.clear()
        s.pending, s.note = [], f"I could not open this photo: {said}."
        return ui.show(s)

    def open_photo(s):
        epoch, stopped = s.epoch, s.stop
        if not s.pending:
            yield {ui.session: s}
        while s.pending and s.epoch == epoch:
            path, start = s.pending[0], time.perf_counter()
            try:
                for kind, news in ui.worker.run(
                    lambda tell: (tell(open_image(path)), ui.assistant.open(path, progress=tell))[1], stopped
                ):
                    if s.epoch != epoch:
                        break
                    if kind == "done":
                        scene = news
                    elif len(news) == 1:  # the picture itself, read
                        image = news[0]
                        s.drawn = None
                        plain = picture.nothing() | {
                            "photo": picture.photo_of(image, path.stem),
                            "busy": True,
                        }
                        yield {
                            ui.photo: gr.Image(visible=False, value=None),
                            ui.status: line("Opening the photo", busy=True),
                            ui.canvas: gr.HTML(**plain),
                        }
                    else:
                        outlines = picture.ghosts(image, news[1]) if news[1] is not None else []
                        yield {
                            ui.status: line(
                                f"Opening the photo: {DOING.get(news[0], literal(news[0]))}", busy=True
                            ),
                            **({ui.canvas: gr.HTML(masks=outlines, busy=True)} if outlines else {}),
                        }
            except Exception as error:
                if s.epoch == epoch:
                    s.pending = []
                    yield (
                        ui.show(s, note="Stopped.") if isinstance(error, Stopped) else refused(s, error, path)
                    )
                break
            if s.epoch == epoch:
                s.pending = s.pending[1:]
                s.add(scene, path.stem)
                height, width = scene.image.shape[:2]
                yield ui.show(
                    s, note=f"{width} x {height} pixels, opened in {time.perf_counter() - start:.1f} s."
                )
        yield {ui.session: s}

    @ui.guarded
    def switch(s, label):
        number = int(str(label).split(".")[0]) - 1 if label else s.at
        if number == s.at:
            return {ui.session: s}
        s.show_photo(number)
        return ui.show(s)

    @ui.guarded
    def start_over(s):
        if s.scene is None:
            return {ui.session: s}
        s.take_back(0) if s.log else None
        s.note = "Forgotten. What are you looking for" + (" in this photo?" if len(s.scenes) == 1 else "?")
        return ui.show(s, marks=True)

    def begin_anew(s):
        s.clear()
        return {**ui.show(s), ui.question: "", ui.name: ""}

    ui.opened = dict(
        fn=open_photo, inputs=ui.session, outputs=ui.every, **HEAVY
    )  # a step of other events, too
    ui.photo.input(choose_first, [ui.session, ui.photo], ui.every, preprocess=False, **INSTANT).then(
        **ui.opened
    )
    ui.more.upload(choose_more, [ui.session, ui.more], ui.every, preprocess=False, **INSTANT).then(
        **ui.opened
    )
    ui.strip.input(switch, [ui.session, ui.strip], ui.every, **INSTANT)
    ui.again.click(start_over, ui.session, ui.every, **INSTANT)
    gr.on([ui.fresh.click, ui.photo.clear], begin_anew, ui.session, ui.every, **INSTANT)

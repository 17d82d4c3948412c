"""The By hand tab: clicks, a box, a brush; SAM's candidates; what is used becomes part of the answer."""

import gradio as gr

from assistant.page import canvas as picture
from assistant.page.session import HAND
from assistant.page.ui import HEAVY, INSTANT, TABS, action, field, line


def build(ui) -> None:
    with gr.Tab(TABS[HAND], id=HAND) as ui.hand_tab:
        with gr.Row():
            ui.name = field("Name", "What is it called?", "name", scale=3, min_width=120, max_length=200)
            ui.use = action("Use this mask", "use")


def wire(ui) -> None:
    @ui.guarded
    def turn(s):
        if s.scene is None or s.view == HAND:
            return {ui.session: s}
        s.start_hand()
        return ui.show(s, marks=True)

    @ui.guarded
    def mark(s, event: gr.EventData):
        if s.scene is None or s.view != HAND:
            return {ui.session: s}
        prompt = picture.read_prompt(event._data, s.scene.size)
        ui.worker.call(lambda: s.hand.mark(s.scene, **prompt))
        s.choice = 0
        count = len(s.hand.found)
        note = (
            f"{count} candidates with their predicted IoU; choose one, name it, use it."
            if count
            else "Click on a thing to outline it."
        )
        return {ui.session: s, ui.canvas: gr.HTML(found=picture.shown(s)["found"]), ui.status: line(note)}

    @ui.guarded
    def choose(s, event: gr.EventData):
        s.choice = event._data.get("number")
        return {ui.session: s}

    @ui.guarded
    def use(s, called):
        s.use(s.choice, called or "")
        s.choice = 0
        return {**ui.show(s, marks=True), ui.name: ""}

    ui.hand_tab.select(turn, ui.session, ui.every, **INSTANT)
    ui.canvas.prompt(mark, ui.session, ui.every, **HEAVY)
    ui.canvas.choose(choose, ui.session, ui.every, **INSTANT)
    ui.use.click(use, [ui.session, ui.name], ui.every, **INSTANT)
    ui.name.submit(use, [ui.session, ui.name], ui.every, **INSTANT)

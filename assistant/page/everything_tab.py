"""The Everything tab: all that SAM outlines, from parts to whole things."""

import gradio as gr

from assistant.page.session import EVERYTHING
from assistant.page.ui import HEAVY, TABS


def build(ui) -> None:
    with gr.Tab(TABS[EVERYTHING], id=EVERYTHING) as ui.everything_tab:
        info = "0 = parts, 1 = whole things"
        ui.grain = gr.Slider(0, 1, 0.5, step=0.05, label="Granularity", info=info, elem_id="grain")


def wire(ui) -> None:
    @ui.guarded
    def turn(s, granularity):
        if s.scene is None or s.view == EVERYTHING:
            return {ui.session: s}
        ui.worker.call(lambda: s.everything(granularity))
        return ui.show(s, marks=True)

    @ui.guarded
    def regions(s, granularity):
        ui.worker.call(lambda: s.everything(granularity))
        return ui.show(s)

    ui.everything_tab.select(turn, [ui.session, ui.grain], ui.every, **HEAVY)
    ui.grain.release(regions, [ui.session, ui.grain], ui.every, **HEAVY)

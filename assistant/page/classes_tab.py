"""The Classes tab: pasted names become a semantic map."""

import gradio as gr

from assistant.page.session import ANSWER, CLASSES
from assistant.page.ui import HEAVY, INSTANT, TABS, action, field


def build(ui) -> None:
    with gr.Tab(TABS[CLASSES], id=CLASSES) as ui.classes_tab:
        with gr.Row():
            wide = dict(lines=2, max_lines=6, scale=3, min_width=160)
            ui.names = field("Classes", "road, sky, car, person", "names", **wide)
            ui.map_it = action("Map them", "map")


def wire(ui) -> None:
    @ui.guarded
    def turn(s):
        if s.scene is None or s.view == CLASSES:
            return {ui.session: s}
        s.view, s.selected = CLASSES if s.classes else ANSWER, None
        return {**ui.show(s, marks=True), ui.tabs: gr.Tabs(selected=CLASSES)}

    def class_map(s, text):
        work = lambda tell: s.map_classes(text, check=lambda: tell("class"))
        yield from ui.busily(s, "Asking for the classes", work, lambda _: ui.show(s, marks=True))

    ui.classes_tab.select(turn, ui.session, ui.every, **INSTANT)
    ui.map_it.click(class_map, [ui.session, ui.names], ui.every, **HEAVY)

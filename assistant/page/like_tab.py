"""The Like this tab: what is like one outlined example, in the conversation's other photos."""

import gradio as gr

from assistant.page.ui import HEAVY, TABS, action, field


def build(ui) -> None:
    with gr.Tab(TABS["like"], id="like"):
        gr.HTML(
            '<p class="hint">Select a mask (or make one by hand), add photos, and find what is like it in each of '
            "them. A name helps, and may be left out.</p>"
        )
        with gr.Row():
            ui.label = field("Name", "Name, if it has one", "label", scale=2, min_width=120, max_length=200)
            ui.alike = action("Find it in the other photos", "alike")


def wire(ui) -> None:
    def find_alike(s, called):
        def done(count):
            rest = "s; choose among them to see what was found in each." if count > 1 else "."
            note = f"Searched {count} photo{rest}"
            return {**ui.show(s, marks=True, note=note), ui.label: ""}

        work = lambda tell: s.find_alike(called or "", tell)
        yield from ui.busily(s, "Looking through the other photos", work, done)

    ui.alike.click(find_alike, [ui.session, ui.label], ui.every, **HEAVY)

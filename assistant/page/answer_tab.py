"""The Answer tab: what can be done with the masks of an answer."""

import gradio as gr

from assistant.dialogue.corrections import save_correction
from assistant.errors import BadInput
from assistant.page.session import ANSWER, LOOKING
from assistant.page.ui import HEAVY, INSTANT, TABS, line


def build(ui) -> None:
    with gr.Tab(TABS[ANSWER], id=ANSWER) as ui.answer_tab:
        with gr.Row():
            ui.refine = gr.Button("Refine by hand", size="sm", min_width=90, elem_id="refine")
            ui.gone = gr.Button("Not there", size="sm", min_width=90, elem_id="gone")
            ui.look = gr.Button("Where it looked", size="sm", min_width=90, elem_id="look")
            ui.teach = gr.Button("Save as training record", size="sm", min_width=90, elem_id="teach")
        gr.HTML(
            '<p class="hint">Click a mask, then ask about it, refine it, or say that it is not there.</p>'
        )


def wire(ui) -> None:
    @ui.guarded
    def turn(s):
        if s.scene is None or s.view == ANSWER:
            return {ui.session: s}
        s.view, s.selected = ANSWER, None
        return ui.show(s, marks=True)

    @ui.guarded
    def pick(s, event: gr.EventData):
        s.select(event._data.get("number"))
        return {ui.session: s, ui.canvas: gr.HTML(selected=s.selected), **ui.chips(s)}

    @ui.guarded
    def refine(s):
        if s.chosen is None:
            raise BadInput("select a mask first: click on it, or on its name")
        phrase = s.chosen.phrase if s.view == ANSWER else ""
        s.start_hand()
        return {
            **ui.show(s, marks=True, note="Add and leave out with clicks, a box or the brush."),
            ui.name: phrase,
        }

    @ui.guarded
    def not_there(s):
        s.not_there()
        return ui.show(s)

    def where(s):
        if s.view == LOOKING:
            s.view = ANSWER
            yield ui.show(s, marks=True)
            return
        yield from ui.busily(
            s, "Seeing where it looks", lambda tell: s.attend(), lambda _: ui.show(s, marks=True)
        )

    @ui.guarded
    def teach(s):
        s.save_correction()
        if ui.records:
            ui.worker.call(lambda: save_correction(ui.records, *s.corrections[-1]))
        count = len(s.corrections)
        home = f"take {'it' if count == 1 else 'them'} home under Save"
        return {ui.session: s, ui.status: line(f"Kept as a training record ({count} so far); {home}.")}

    ui.answer_tab.select(turn, ui.session, ui.every, **INSTANT)
    ui.canvas.pick(pick, ui.session, ui.every, **INSTANT)
    ui.refine.click(refine, ui.session, ui.every, **INSTANT)
    ui.gone.click(not_there, ui.session, ui.every, **INSTANT)
    ui.look.click(where, ui.session, ui.every, **HEAVY)
    ui.teach.click(teach, ui.session, ui.every, **HEAVY)

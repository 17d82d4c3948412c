"""Earlier conversations: their text, kept by the browser, never their photos."""

import gradio as gr

from assistant.page.ui import INSTANT
from assistant.page.words import literal, shorter

KEPT = 10  # conversations
LINES = 50  # questions of each


def past_text(past) -> str:
    """Earlier conversations, from the browser's own storage, as HTML; "" where there are none (or something else)."""
    past = past if isinstance(past, list) else []
    talks = [[row for row in talk if _is_row(row)] for talk in past if isinstance(talk, list)]
    row = lambda told: f"<dt>{literal(shorter(told[0]))}</dt><dd>{literal(shorter(told[1]))}</dd>"
    return "".join(
        f'<dl class="past">{"".join(map(row, talk))}</dl>' for talk in reversed(talks[-KEPT:]) if talk
    )


def _is_row(row) -> bool:
    """A question and its answer."""
    return isinstance(row, list) and len(row) == 2 and all(isinstance(v, str) for v in row)


def build(ui) -> None:
    ui.past = gr.BrowserState([], storage_key="maskpick-conversations", secret="maskpick")
    title = "Earlier conversations (text only; photos are not kept)"
    with gr.Accordion(title, open=False, visible=False, elem_id="past") as ui.past_box:
        ui.past_words = gr.HTML("")
        ui.forget = gr.Button("Forget them", size="sm", elem_id="forget")


def wire(ui) -> None:
    def remember(s, kept):
        """The conversation's text into the browser, in place of its earlier state."""
        kept = kept if isinstance(kept, list) else []
        rows = [[shorter(e.question), shorter(e.answer.text)] for e in s.log if e.answer is not None][-LINES:]
        if s.kept and kept and kept[-1] == s.kept:
            kept = kept[:-1]
        s.kept = rows
        return ([*kept, rows] if rows else kept)[-KEPT:]

    def recall(kept):
        words = past_text(kept)
        return gr.Accordion(visible=bool(words)), words

    def forget():
        return [], gr.Accordion(visible=False), ""

    ui.noted = dict(
        fn=remember, inputs=[ui.session, ui.past], outputs=ui.past, **INSTANT
    )  # a step of other events
    ui.page.load(recall, ui.past, [ui.past_box, ui.past_words], **INSTANT)
    ui.forget.click(forget, None, [ui.past, ui.past_box, ui.past_words], **INSTANT)

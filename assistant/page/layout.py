"""The page: which panel stands where. Each panel is a file of its own, see `assistant.page.ui`."""

from pathlib import Path

import gradio as gr

from assistant.page import (
    answer_tab,
    chat,
    classes_tab,
    everything_tab,
    hand_tab,
    like_tab,
    past,
    photos,
    save_tab,
)
from assistant.page.api import add_api
from assistant.page.session import ANSWER, Session
from assistant.page.ui import Ui

UPLOADS_KEPT = (3600, 24 * 3600)  # seconds: look for old uploads every hour, delete those older than a day
SESSION_KEPT = 3600  # seconds after the last action
TABS = (answer_tab, hand_tab, everything_tab, classes_tab, like_tab, save_tab)


def build_page(assistant, examples=(), records: Path | None = None) -> gr.Blocks:
    """The page over `assistant`; see `app.serve` and `assistant.page.ui.Ui` for examples and records."""
    ui = Ui(assistant, list(examples), records)
    with gr.Blocks(
        title="maskpick", delete_cache=UPLOADS_KEPT, analytics_enabled=False, fill_width=True
    ) as ui.page:
        ui.session = gr.State(Session(), time_to_live=SESSION_KEPT, delete_callback=lambda s: s.clear())
        gr.HTML(
            "<h1>maskpick</h1><p>Ask a photo in everyday words. What you mean is outlined and named; "
            "what is not there is said to be absent.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="panes"):
            with gr.Column(scale=5, min_width=320, elem_id="talk"):
                chat.build(ui)
                past.build(ui)
            with gr.Column(scale=6, min_width=320, elem_id="side"):
                photos.build(ui)
                with gr.Column(visible=False, elem_id="power") as ui.power:
                    with gr.Tabs(selected=ANSWER, elem_id="tabs") as ui.tabs:
                        for tab in TABS:
                            tab.build(ui)
                photos.build_tools(ui)
        for panel in (past, photos, chat, *TABS):  # in this order: chat goes on with steps of the first two
            panel.wire(ui)
        add_api(assistant, ui.worker)
    return ui.page.queue(default_concurrency_limit=1, max_size=64)

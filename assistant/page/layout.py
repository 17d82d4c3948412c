"""The page: which panel stands where. Each panel is a file, see `assistant.page.components`.

blocks = build_page(Assistant.from_preset("pocket"), save_examples(folder))
app.serve(blocks)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gradio as gr

from assistant.page import (
    answer_tab,
    by_hand_tab,
    chat,
    classes_tab,
    earlier_conversations,
    everything_tab,
    like_tab,
    photos,
    save_tab,
)
from assistant.page.api import add_api
from assistant.page.components import Components, TabsComponents
from assistant.page.examples import Example
from assistant.page.handlers import Page
from assistant.page.session import Session, View
from assistant.page.wording import escape
from assistant.scene import Assistant

# Seconds: old uploads are looked for every hour, and those older than a day are deleted.
UPLOAD_CLEANUP = (3600, 24 * 3600)
SESSION_LIFETIME = 3600  # seconds after a visitor's last action
MAX_QUEUED_EVENTS = 64  # waiting for the worker; Gradio refuses further ones
HEADING = (
    "<h1>maskpick</h1><p>Ask about your photo in plain words. I&#39;ll outline and name what you mean, "
    "or tell you it isn&#39;t there.</p>"
)


def build_page(
    assistant: Assistant,
    examples: Iterable[Example] = (),
    records_folder: Path | None = None,
    limits: str = "",
) -> gr.Blocks:
    """Build the page over an assistant.

    Args:
        assistant: The assistant, asked by one visitor at a time.
        examples: Photos to begin with.
        records_folder: Where corrections are also saved as training records; None for nowhere.
        limits: What the models can and cannot do, in two lines of plain text, for visitors to read.

    Returns:
        The page, with the endpoints of `assistant.page.api`, to be launched.
    """
    examples = list(examples)
    with gr.Blocks(
        title="maskpick", delete_cache=UPLOAD_CLEANUP, analytics_enabled=False, fill_width=True
    ) as blocks:
        page = Page(_build_components(blocks, examples, limits), assistant, examples, records_folder)
        add_api(assistant, page.worker)  # first, for Gradio numbers what has the name of something before it
        _wire(page)
    return blocks.queue(default_concurrency_limit=1, max_size=MAX_QUEUED_EVENTS)


def _build_components(blocks: gr.Blocks, examples: list[Example], limits: str) -> Components:
    session = gr.State(Session(), time_to_live=SESSION_LIFETIME, delete_callback=Session.end)
    gr.HTML(HEADING, elem_id="head")
    with gr.Row(elem_id="panes"):
        with gr.Column(scale=5, min_width=320, elem_id="talk"):
            chat_components = chat.build(examples)
            if limits:
                gr.HTML(f'<p class="hint">{escape(limits)}</p>', elem_id="limits")
            earlier = earlier_conversations.build()
        with gr.Column(scale=6, min_width=320, elem_id="side"):
            photo = photos.build()
            tabs = _build_tabs()
            tools = photos.build_tools()
    return Components(blocks, session, chat_components, earlier, photo, tabs, tools)


def _build_tabs() -> TabsComponents:
    with gr.Column(visible=False, elem_id="power") as column:
        with gr.Tabs(selected=View.ANSWER.value, elem_id="tabs") as tabs:
            return TabsComponents(
                column,
                tabs,
                answer=answer_tab.build(),
                by_hand=by_hand_tab.build(),
                everything=everything_tab.build(),
                classes=classes_tab.build(),
                like=like_tab.build(),
                save=save_tab.build(),
            )


def _wire(page: Page) -> None:
    """Connect all components with their handlers."""
    store_conversation = earlier_conversations.EarlierPanel(page).wire()
    open_photos = photos.PhotoPanel(page).wire(store_conversation)
    chat.ChatPanel(page).wire(open_photos, store_conversation)
    answer_tab.AnswerTab(page).wire()
    by_hand_tab.ByHandTab(page).wire()
    everything_tab.EverythingTab(page).wire()
    classes_tab.ClassesTab(page).wire()
    like_tab.LikeTab(page).wire()
    save_tab.SaveTab(page).wire(store_conversation)

"""The components of the page, panel by panel, and the few that every panel makes alike.

Each panel of the page is a file. Its `build` function adds the panel's components in their place on the page
and returns them as one of the classes below; its `Panel` class wires them to their handlers
(`assistant.page.handlers`) once all components exist. `assistant.page.layout` says which panel stands where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from assistant.page.session import View

LIKE_TAB = "like"
SAVE_TAB = "keep"
TAB_TITLES: dict[str, str] = {
    View.ANSWER.value: "Answer",
    View.BY_HAND.value: "By hand",
    View.EVERYTHING.value: "Everything",
    View.CLASSES.value: "Classes",
    LIKE_TAB: "Like this",
    SAVE_TAB: "Save",
}


@dataclass(frozen=True)
class ChatComponents:
    """The conversation.

    Attributes:
        messages: The bubbles.
        subject_row: What the next question is about, shown where it is not the whole photo.
        subject: The text in it.
        clear_subject: Its button.
        question: Where the question is typed.
        actions: The row of the buttons beneath it.
        stop, undo, edit, retry: Those buttons.
    """

    messages: gr.Chatbot
    subject_row: gr.Row
    subject: gr.HTML
    clear_subject: gr.Button
    question: gr.Textbox
    actions: gr.Row
    stop: gr.Button
    undo: gr.Button
    edit: gr.Button
    retry: gr.Button


@dataclass(frozen=True)
class EarlierComponents:
    """Earlier conversations: what the browser has stored, and the box that shows it."""

    stored: gr.BrowserState
    box: gr.Accordion
    text: gr.HTML
    forget: gr.Button


@dataclass(frozen=True)
class PhotoComponents:
    """The photo.

    Attributes:
        upload: Where the first photo is dropped.
        canvas: The photo with its masks, see `assistant.page.canvas`.
        status: The line beneath it.
        thumbnails: The photos of the conversation, where there are several.
    """

    upload: gr.Image
    canvas: gr.HTML
    status: gr.HTML
    thumbnails: gr.HTML


@dataclass(frozen=True)
class ToolComponents:
    """The buttons beneath everything else."""

    add_photos: gr.UploadButton
    start_over: gr.Button
    new_conversation: gr.Button
    reopen: gr.UploadButton


@dataclass(frozen=True)
class AnswerTabComponents:
    """The Answer tab.

    Attributes:
        tab: The tab.
        refine, mark_absent, attention, save_record: Its buttons.
        searched: What was looked for, shown where a concept segmenter looked for phrases.
        searched_for: Its text.
        phrases: Those phrases, to be changed.
        look_again: The button that looks for them.
    """

    tab: gr.Tab
    refine: gr.Button
    mark_absent: gr.Button
    attention: gr.Button
    save_record: gr.Button
    searched: gr.Column
    searched_for: gr.HTML
    phrases: gr.Textbox
    look_again: gr.Button


@dataclass(frozen=True)
class ByHandTabComponents:
    """The By hand tab."""

    tab: gr.Tab
    name: gr.Textbox
    use: gr.Button


@dataclass(frozen=True)
class EverythingTabComponents:
    """The Everything tab."""

    tab: gr.Tab
    granularity: gr.Slider


@dataclass(frozen=True)
class ClassesTabComponents:
    """The Classes tab."""

    tab: gr.Tab
    names: gr.Textbox
    map_classes: gr.Button


@dataclass(frozen=True)
class LikeTabComponents:
    """The Like this tab."""

    label: gr.Textbox
    find: gr.Button


@dataclass(frozen=True)
class SaveTabComponents:
    """The Save tab; download: the hidden button by which the browser fetches what the others made."""

    masks: gr.Button
    conversation: gr.Button
    records: gr.Button
    download: gr.DownloadButton


@dataclass(frozen=True)
class TabsComponents:
    """The tabs.

    Attributes:
        column: The column that holds them, shown once a photo is open.
        tabs: The tabs as a whole; the other attributes are what each of them holds.
    """

    column: gr.Column
    tabs: gr.Tabs
    answer: AnswerTabComponents
    by_hand: ByHandTabComponents
    everything: EverythingTabComponents
    classes: ClassesTabComponents
    like: LikeTabComponents
    save: SaveTabComponents


@dataclass(frozen=True)
class Components:
    """All components of the page; session: the visitor's `Session`, which every handler takes."""

    blocks: gr.Blocks
    session: gr.State
    chat: ChatComponents
    earlier: EarlierComponents
    photo: PhotoComponents
    tabs: TabsComponents
    tools: ToolComponents

    @property
    def changeable(self) -> list[Any]:
        """The components that a handler may change: the outputs of nearly every event."""
        chat, photo, tabs, tools = self.chat, self.photo, self.tabs, self.tools
        return [
            self.session,
            *(chat.messages, chat.subject_row, chat.subject, chat.question),
            *(chat.actions, chat.stop, chat.undo, chat.edit, chat.retry),
            *(photo.upload, photo.canvas, photo.status, photo.thumbnails),
            *(tabs.column, tabs.tabs, tabs.by_hand.name, tabs.like.label),
            *(tabs.answer.attention, tabs.answer.searched, tabs.answer.searched_for, tabs.answer.phrases),
            *(tools.add_photos, tools.start_over, tools.new_conversation, tools.reopen),
        ]


def small_button(
    text: str, elem_id: str | None = None, min_width: int | None = 60, **options: Any
) -> gr.Button:
    """A button of the page's own size."""
    return gr.Button(text, size="sm", min_width=min_width, elem_id=elem_id, **options)


def text_field(label: str, placeholder: str, elem_id: str, **options: Any) -> gr.Textbox:
    """A field to write in, with its `action_button` to the right; label: for screen readers."""
    return gr.Textbox(
        show_label=False, label=label, placeholder=placeholder, container=False, elem_id=elem_id, **options
    )


def action_button(text: str, elem_id: str) -> gr.Button:
    """The button of the `text_field` before it."""
    return small_button(text, elem_id, min_width=90, variant="primary")

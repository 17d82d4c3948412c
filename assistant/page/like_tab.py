"""The Like this tab: what is like one outlined example, in the conversation's other photos."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from assistant.page.components import LIKE_TAB, TAB_TITLES, LikeTabComponents, action_button, text_field
from assistant.page.example_search import MAX_LABEL_LENGTH, find_similar
from assistant.page.handlers import QUEUED_EVENT, Panel, Updates
from assistant.page.session import Session


def build() -> LikeTabComponents:
    """Add the tab."""
    with gr.Tab(TAB_TITLES[LIKE_TAB], id=LIKE_TAB):
        gr.HTML(
            '<p class="hint">Select a mask (or make one by hand), add photos, and find what is like it in '
            "each of them. A name helps, and may be left out.</p>"
        )
        with gr.Row():
            label = text_field(
                "Name", "Name, if it has one", "label", scale=2, min_width=120, max_length=MAX_LABEL_LENGTH
            )
            find = action_button("Find it in the other photos", "alike")
    return LikeTabComponents(label, find)


class LikeTab(Panel):
    """The handlers of the Like this tab."""

    def wire(self) -> None:
        """Connect the components with their handlers."""
        like = self.components.tabs.like
        inputs = [self.components.session, like.label]
        like.find.click(self.find_similar, inputs, self.components.changeable, **QUEUED_EVENT)

    def find_similar(self, session: Session, label: str | None) -> Iterator[Updates]:
        """Find what is like the selected mask in each of the other photos."""

        def finish(count: int) -> Updates:
            rest = "s; choose among them to see what was found in each." if count > 1 else "."
            note = f"Searched {count} photo{rest}"
            return {
                **self.page.show(session, clear_marks=True, note=note),
                self.components.tabs.like.label: "",
            }

        yield from self.page.run_stoppable(
            session,
            "Looking through the other photos",
            lambda report: find_similar(session, label or "", report),
            finish,
        )

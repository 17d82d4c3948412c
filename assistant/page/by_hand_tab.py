"""The By hand tab: clicks, a box and a brush, SAM's candidates, and the one that is used in the answer."""

from __future__ import annotations

from typing import Any

import gradio as gr

from assistant.page.canvas import candidate_layers, proposals_prop
from assistant.page.canvas_prompts import read_prompts
from assistant.page.components import TAB_TITLES, ByHandTabComponents, action_button, text_field
from assistant.page.handlers import INSTANT_EVENT, QUEUED_EVENT, Panel, Updates, guarded, status_line
from assistant.page.manual_prompts import MAX_NAME_LENGTH
from assistant.page.session import Session, View


def build() -> ByHandTabComponents:
    """Add the tab."""
    with gr.Tab(TAB_TITLES[View.BY_HAND], id=View.BY_HAND.value) as tab:
        with gr.Row():
            name = text_field(
                "Name", "What is it called?", "name", scale=3, min_width=120, max_length=MAX_NAME_LENGTH
            )
            use = action_button("Add to answer", "use")
    return ByHandTabComponents(tab, name, use)


class ByHandTab(Panel):
    """The handlers of the By hand tab, and of marks on the photo."""

    def wire(self) -> None:
        """Connect the components with their handlers."""
        by_hand = self.components.tabs.by_hand
        canvas: Any = self.components.photo.canvas  # its events are those that canvas.js triggers
        state, outputs = self.components.session, self.components.changeable
        by_hand.tab.select(self.open_tab, state, outputs, **INSTANT_EVENT)
        canvas.outlines(self.send_proposals, state, outputs, **QUEUED_EVENT)
        canvas.prompt(self.segment, state, outputs, **QUEUED_EVENT)
        canvas.choose(self.choose_candidate, state, outputs, **INSTANT_EVENT)
        by_hand.use.click(self.use, [state, by_hand.name], outputs, **INSTANT_EVENT)
        by_hand.name.submit(self.use, [state, by_hand.name], outputs, **INSTANT_EVENT)

    @guarded
    def open_tab(self, session: Session) -> Updates:
        """Begin to mark."""
        if session.scene is None or session.view == View.BY_HAND:
            return self.unchanged(session)
        session.start_marking()
        return self.page.show(session, clear_marks=True)

    @guarded
    def send_proposals(self, session: Session) -> Updates:
        """Send the proposals, for which the browser asks: it shows the one under the pointer."""
        scene = session.scene
        if scene is None:
            return self.unchanged(session)
        proposals = self.page.worker.call(lambda: proposals_prop(scene.proposals))
        if session.scene is not scene:  # another photo is shown by now
            return self.unchanged(session)
        return {**self.unchanged(session), self.components.photo.canvas: gr.HTML(proposals=proposals)}

    @guarded
    def segment(self, session: Session, event: gr.EventData) -> Updates:
        """Show SAM's candidates for what is marked."""
        scene = session.scene
        if scene is None or session.view != View.BY_HAND:
            return self.unchanged(session)
        prompts = read_prompts(event._data, scene.size)
        self.page.worker.call(lambda: session.manual.segment(scene, **prompts))
        session.candidate = 0
        count = len(session.manual.candidates)
        if count:
            outlines = (
                f"{count} possible outlines, best first. Pick one" if count > 1 else "One outline. Take it"
            )
            note = f"{outlines} and name it."
        else:
            note = "Click on a thing to outline it."
        return {
            **self.unchanged(session),
            self.components.photo.canvas: gr.HTML(candidates=candidate_layers(session)),
            self.components.photo.status: status_line(note),
        }

    @guarded
    def choose_candidate(self, session: Session, event: gr.EventData) -> Updates:
        """Note the candidate that was clicked, which the browser shows by itself."""
        session.candidate = event._data.get("number")
        return self.unchanged(session)

    @guarded
    def use(self, session: Session, name: str | None) -> Updates:
        """Take the candidate into the answer."""
        session.use_candidate(session.candidate, name or "")
        session.candidate = 0
        return {
            **self.page.show(session, clear_marks=True),
            self.components.tabs.by_hand.name: "",
        }

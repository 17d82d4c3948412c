"""The Everything tab: all that SAM outlines, from parts to whole things."""

from __future__ import annotations

import gradio as gr

from assistant.page.components import TAB_TITLES, EverythingTabComponents
from assistant.page.handlers import QUEUED_EVENT, Panel, Updates, guarded
from assistant.page.session import Session, View


def build() -> EverythingTabComponents:
    """Add the tab."""
    with gr.Tab(TAB_TITLES[View.EVERYTHING], id=View.EVERYTHING.value) as tab:
        granularity = gr.Slider(
            0,
            1,
            0.5,
            step=0.05,
            label="Granularity",
            info="0 = parts, 1 = whole things",
            elem_id="grain",
        )
    return EverythingTabComponents(tab, granularity)


class EverythingTab(Panel):
    """The handlers of the Everything tab."""

    def wire(self) -> None:
        """Connect the components with their handlers."""
        everything = self.components.tabs.everything
        inputs, outputs = [self.components.session, everything.granularity], self.components.changeable
        everything.tab.select(self.open_tab, inputs, outputs, **QUEUED_EVENT)
        # "input" comes from the keyboard as well; while the slider is dragged only its last place counts.
        latest = QUEUED_EVENT | {"trigger_mode": "always_last"}
        everything.granularity.input(self.change_granularity, inputs, outputs, **latest)

    @guarded
    def open_tab(self, session: Session, granularity: float) -> Updates:
        """Show all regions."""
        if session.scene is None or session.view == View.EVERYTHING:
            return self.unchanged(session)
        self.page.worker.call(lambda: session.show_everything(granularity))
        return self.page.show(session, clear_marks=True)

    @guarded
    def change_granularity(self, session: Session, granularity: float) -> Updates:
        """Show the regions of another granularity."""
        self.page.worker.call(lambda: session.show_everything(granularity))
        return self.page.show(session)

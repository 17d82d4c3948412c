"""The Classes tab: pasted names become a semantic map."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from assistant.page.components import TAB_TITLES, ClassesTabComponents, action_button, text_field
from assistant.page.handlers import INSTANT_EVENT, QUEUED_EVENT, Panel, Updates, guarded
from assistant.page.session import Session, View
from assistant.page.worker import ReportFunction


def build() -> ClassesTabComponents:
    """Add the tab."""
    with gr.Tab(TAB_TITLES[View.CLASSES], id=View.CLASSES.value) as tab:
        with gr.Row():
            names = text_field(
                "Classes", "road, sky, car, person", "names", lines=2, max_lines=6, scale=3, min_width=160
            )
            map_classes = action_button("Map them", "map")
    return ClassesTabComponents(tab, names, map_classes)


class ClassesTab(Panel):
    """The handlers of the Classes tab."""

    def wire(self) -> None:
        """Connect the components with their handlers."""
        classes = self.components.tabs.classes
        state, outputs = self.components.session, self.components.changeable
        classes.tab.select(self.open_tab, state, outputs, **INSTANT_EVENT)
        classes.map_classes.click(self.map_classes, [state, classes.names], outputs, **QUEUED_EVENT)

    @guarded
    def open_tab(self, session: Session) -> Updates:
        """Show the semantic map, where one was made."""
        if session.scene is None or session.view == View.CLASSES:
            return self.unchanged(session)
        session.view = View.CLASSES if session.class_map else View.ANSWER
        session.selected = None
        return {
            **self.page.show(session, clear_marks=True),
            self.components.tabs.tabs: gr.Tabs(selected=View.CLASSES.value),
        }

    def map_classes(self, session: Session, text: str) -> Iterator[Updates]:
        """Make a semantic map of pasted names."""

        def work(report: ReportFunction) -> None:
            session.map_classes(text, check=report)

        yield from self.page.run_stoppable(
            session,
            "Asking for the classes",
            work,
            lambda _: self.page.show(session, clear_marks=True),
        )

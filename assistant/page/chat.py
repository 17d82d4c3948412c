"""The conversation: questions, replies that stream, and taking back, editing and trying again."""

import gradio as gr

from assistant.errors import BadInput
from assistant.page.session import ANSWER
from assistant.page.ui import HEAVY, INSTANT, line
from assistant.page.words import bubbles, messages
from assistant.page.work import polite

WELCOME = "### What are you looking for?\nDrop a photo, then ask for things in your own words."


def build(ui) -> None:
    ui.chat = gr.Chatbot(
        show_label=False,
        label="Conversation",
        elem_id="chat",
        height=None,
        latex_delimiters=[],
        buttons=[],
        feedback_options=None,
        allow_file_downloads=False,
        placeholder=WELCOME,
        examples=[{"text": e["question"], "files": [str(e["file"])]} for e in ui.examples] or None,
    )
    with gr.Row(visible=False, elem_id="chip") as ui.chip:
        ui.about = gr.HTML("", elem_id="about")
        ui.let_go = gr.Button("Let go", size="sm", min_width=60, scale=0)
    ui.question = gr.Textbox(
        label="Your question",
        show_label=False,
        container=False,
        lines=1,
        max_lines=5,
        submit_btn="Ask",
        placeholder="What keeps the rain off?",
        elem_id="question",
    )
    with gr.Row(visible=False, elem_id="turns") as ui.turns:
        ui.stop = gr.Button("Stop", size="sm", min_width=60, variant="stop", visible=False, elem_id="stop")
        ui.undo = gr.Button("Undo", size="sm", min_width=60, elem_id="undo")
        ui.edit = gr.Button("Edit question", size="sm", min_width=60, elem_id="edit")
        ui.retry = gr.Button("Try again", size="sm", min_width=60, elem_id="retry")


def wire(ui) -> None:
    @ui.guarded
    def put(s, text):
        if s.editing is not None:
            s.take_back(s.editing)
            s.editing = None
        s.note = ""
        s.put(text)
        s.selected = None
        return {**ui.talk(s), **ui.chips(s), ui.question: ""}

    def answer(s):
        e = s.next()
        if e is None:
            yield {ui.session: s}
            return
        epoch, written = s.epoch, []
        try:
            for kind, news in ui.worker.run(lambda tell: s.ask(e, stream=tell), s.stop):
                if e not in s.log:
                    break
                if kind == "told":
                    written.append(news[0])
                    e.said = "".join(written)
                    yield {ui.chat: messages(s)}
                else:
                    s.answered(e, news)
        except Exception as error:
            if s.epoch == epoch and e in s.log:
                s.failed(e, polite(error))
                s.remember(e.photo)
                yield ui.talk(s)
                return
        if s.epoch != epoch or e not in s.log:
            for k in range(len(s.scenes)):
                s.remember(k)
            yield {ui.session: s}
            return
        yield ui.show(s, marks=True)

    def choose_example(s, event: gr.SelectData):
        s.clear()
        example = ui.examples[event.index]
        s.choose(example["file"])
        s.put(example["question"])
        return {**ui.talk(s), ui.status: line("Opening the photo", busy=True), ui.question: ""}

    @ui.guarded
    def halt(s):
        opening = s.scene is None and bool(s.pending)
        s.halt()
        if opening:
            s.clear()
            return ui.show(s, note="Stopped.")
        return ui.talk(s)

    @ui.guarded
    def take_back(s):
        s.take_back()
        return ui.show(s, marks=True)

    @ui.guarded
    def edit_last(s):
        text = s.take_back()
        return {**ui.show(s, marks=True), ui.question: text}

    @ui.guarded
    def try_again(s):
        if not s.log:
            raise BadInput("there is nothing to try again: ask something first")
        last = s.log[-1]
        s.take_back()
        e = s.put(last.question, temperature=0.7)  # greedy would say the same again
        e.about, e.photo = last.about, last.photo
        return ui.talk(s)

    @ui.guarded
    def look_back(s, event: gr.SelectData):
        """An earlier reply shows its masks again; an earlier question is edited."""
        every_one = bubbles(s)
        index = event.index[0] if isinstance(event.index, list | tuple) else event.index
        bubble = every_one[index] if isinstance(index, int) and 0 <= index < len(every_one) else {}
        if "id" not in bubble:
            return {ui.session: s}
        e = s.log[bubble["id"]]
        if bubble["role"] == "user" and not e.waiting:
            s.editing = bubble["id"]
            return {ui.session: s, **ui.chips(s), ui.question: e.question}
        if e.answer is None or (e is s.exchange and s.view == ANSWER):
            return {ui.session: s}
        s.look()
        s.at, s.current = e.photo, e
        return ui.show(s, marks=True)

    @ui.guarded
    def release(s):
        s.selected, s.editing = None, None
        return {ui.session: s, ui.canvas: gr.HTML(selected=None), **ui.chips(s)}

    asked = dict(fn=answer, inputs=ui.session, outputs=ui.every, **HEAVY)
    example = ui.chat.example_select(choose_example, ui.session, ui.every, **INSTANT)
    example.then(**ui.opened).then(**asked).then(**ui.noted)
    ui.question.submit(put, [ui.session, ui.question], ui.every, **INSTANT).then(**asked).then(**ui.noted)
    ui.retry.click(try_again, ui.session, ui.every, **INSTANT).then(**asked).then(**ui.noted)
    ui.stop.click(halt, ui.session, ui.every, **INSTANT)
    ui.undo.click(take_back, ui.session, ui.every, **INSTANT).then(**ui.noted)
    ui.edit.click(edit_last, ui.session, ui.every, **INSTANT).then(**ui.noted)
    ui.chat.select(look_back, ui.session, ui.every, **INSTANT)
    ui.let_go.click(release, ui.session, ui.every, **INSTANT)

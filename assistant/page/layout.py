"""The page's components, and which action of `assistant.page.session` each event is.

Handlers take the visitor's Session and return what changes. What needs a model goes through the one worker, as a
generator that reports while it works; the rest answers at once, also while a model works for someone else.
"""

import functools
import shutil
import tempfile
import time
from pathlib import Path

from assistant.answer import Answer
from assistant.conversation import dump, load
from assistant.corrections import save_correction
from assistant.errors import BadInput
from assistant.images import open_image
from assistant.page import canvas as picture
from assistant.page.api import add_api, uploaded
from assistant.page.session import ANSWER, CLASSES, EVERYTHING, HAND, LOOKING, PHOTOS, Session
from assistant.page.words import literal, named, partly, reply_bubble, shorter, summary, tag
from assistant.page.work import Stopped, Worker, polite

UPLOADS_KEPT = (3600, 24 * 3600)  # seconds: look for old uploads every hour, delete those older than a day
SESSION_KEPT = 3600  # seconds after the last action
PAST = 10  # conversations whose text the browser keeps
WELCOME = "### What are you looking for?\nDrop a photo, then ask for things in your own words."
DOING = {
    "looking": "looking at it",
    "outlining": "outlining everything in it",
    "recognising": "recognising what was outlined",
}
TABS = {
    ANSWER: "Answer",
    HAND: "By hand",
    EVERYTHING: "Everything",
    CLASSES: "Classes",
    "like": "Like this",
    "keep": "Save",
}


def messages(s: Session) -> list[dict]:
    return [{"role": b["role"], "content": b["content"]} for b in bubbles(s)]


def bubbles(s: Session) -> list[dict]:
    """The conversation for gr.Chatbot; each one's "id" is the number of its exchange."""
    out, photo = [], 0
    if s.scenes and not s.log:
        out.append({"role": "assistant", "content": "The photo is open. What are you looking for?"})
    for number, e in enumerate(s.log):
        before = f'<span class="notes">Photo {e.photo + 1}</span><br>' if e.photo != photo and len(s.scenes) > 1 else ""
        about = f'<span class="notes">about</span> {tag(e.about.phrase, e.about, "#14b8a6")}<br>' if e.about else ""
        photo = e.photo
        out.append(
            {"role": "user", "content": before + about + (literal(shorter(e.question)) or "&#8230;"), "id": number}
        )
        said = reply_bubble(e.answer) if e.answer else literal(e.said) if not e.waiting else partly(e.said)
        out.append(
            {
                "role": "assistant",
                "content": said + (' <span class="notes">corrected by hand</span>' if e.corrected else ""),
                "id": number,
            }
        )
    if s.note:
        out.append({"role": "assistant", "content": literal(s.note)})
    return out


def past_text(past) -> str:
    """Earlier conversations, from the browser's own storage, as HTML; "" where there are none (or something else)."""
    rows = [row for row in past if isinstance(row, list)] if isinstance(past, list) else []
    talks = [
        [line for line in row if isinstance(line, list) and len(line) == 2 and all(isinstance(v, str) for v in line)]
        for row in rows
    ]
    row = lambda told: f"<dt>{literal(shorter(told[0]))}</dt><dd>{literal(shorter(told[1]))}</dd>"
    return "".join(
        f'<dl class="past">{"".join(map(row, talk))}</dl>' for talk in reversed(talks[-PAST:]) if talk
    )


def build_page(assistant, examples=(), records: Path | None = None):
    """The page over `assistant` as gr.Blocks; see `app.serve`. examples: [{"file": path, "question": str}]; records: a
    folder that corrections are saved into as well."""
    import gradio as gr

    worker = Worker()
    heavy = {
        "concurrency_id": "assistant",
        "concurrency_limit": 1,
        "api_visibility": "private",
        "show_progress": "hidden",
        "trigger_mode": "multiple",
    }  # by default a second question is dropped while the browser waits for the first
    instant = {"queue": False, "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple"}

    with gr.Blocks(title="maskpick", delete_cache=UPLOADS_KEPT, analytics_enabled=False, fill_width=True) as page:
        session = gr.State(Session(), time_to_live=SESSION_KEPT, delete_callback=lambda s: s.clear())
        past = gr.BrowserState([], storage_key="maskpick-conversations", secret="maskpick")
        gr.HTML(
            "<h1>maskpick</h1><p>Ask a photo in everyday words. What you mean is outlined and named; "
            "what is not there is said to be absent.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="panes"):
            with gr.Column(scale=5, min_width=320, elem_id="talk"):
                chat = gr.Chatbot(
                    show_label=False,
                    label="Conversation",
                    elem_id="chat",
                    height=None,
                    latex_delimiters=[],
                    buttons=[],
                    feedback_options=None,
                    allow_file_downloads=False,
                    placeholder=WELCOME,
                    examples=[{"text": e["question"], "files": [str(e["file"])]} for e in examples] or None,
                )
                with gr.Row(visible=False, elem_id="chip") as chip:
                    about = gr.HTML("", elem_id="about")
                    let_go = gr.Button("Let go", size="sm", min_width=60, scale=0)
                question = gr.Textbox(
                    label="Your question",
                    show_label=False,
                    container=False,
                    lines=1,
                    max_lines=5,
                    submit_btn=True,
                    placeholder="What keeps the rain off?",
                    elem_id="question",
                )
                with gr.Row(visible=False, elem_id="turns") as turns:
                    stop = gr.Button("Stop", size="sm", min_width=60, variant="stop", visible=False, elem_id="stop")
                    undo = gr.Button("Undo", size="sm", min_width=60, elem_id="undo")
                    edit = gr.Button("Edit question", size="sm", min_width=60, elem_id="edit")
                    retry = gr.Button("Try again", size="sm", min_width=60, elem_id="retry")
                with gr.Accordion(
                    "Earlier conversations (text only; photos are not kept)", open=False, visible=False, elem_id="past"
                ) as past_box:
                    past_words = gr.HTML("")
                    forget = gr.Button("Forget them", size="sm", elem_id="forget")
            with gr.Column(scale=6, min_width=320, elem_id="side"):
                photo = gr.Image(
                    type="filepath",
                    sources=["upload", "clipboard", "webcam"],
                    show_label=False,
                    label="Photo",
                    height="min(460px, 50dvh)",
                    buttons=[],
                    elem_id="photo",
                    alt_text="The photo that is being opened",
                    placeholder="# Drop a photo here\nor click to choose one",
                )
                canvas = gr.HTML(
                    html_template=picture.TEMPLATE,
                    js_on_load=picture.SCRIPT,
                    elem_id="picture",
                    apply_default_css=False,
                    **picture.nothing(),
                )
                status = gr.HTML("", elem_id="status")
                strip = gr.Radio([], show_label=False, label="Photos", container=False, visible=False, elem_id="strip")
                with (
                    gr.Column(visible=False, elem_id="power") as power,
                    gr.Tabs(selected=ANSWER, elem_id="tabs") as tabs,
                ):
                    with gr.Tab(TABS[ANSWER], id=ANSWER) as answer_tab:
                        with gr.Row():
                            refine = gr.Button("Refine by hand", size="sm", min_width=90, elem_id="refine")
                            gone = gr.Button("Not there", size="sm", min_width=90, elem_id="gone")
                            look = gr.Button("Where it looked", size="sm", min_width=90, elem_id="look")
                            teach = gr.Button("Save as training record", size="sm", min_width=90, elem_id="teach")
                        gr.HTML(
                            '<p class="hint">Click a mask, then ask about it, refine it, or say that it is not there.</p>'
                        )
                    with gr.Tab(TABS[HAND], id=HAND) as hand_tab:
                        with gr.Row():
                            name = gr.Textbox(
                                show_label=False,
                                label="Name",
                                placeholder="What is it called?",
                                container=False,
                                scale=3,
                                min_width=120,
                                max_length=200,
                                elem_id="name",
                            )
                            use = gr.Button("Use this mask", size="sm", min_width=90, variant="primary", elem_id="use")
                    with gr.Tab(TABS[EVERYTHING], id=EVERYTHING) as everything_tab:
                        grain = gr.Slider(
                            0, 1, 0.5, step=0.05, label="Granularity: 0 = parts, 1 = whole things", elem_id="grain"
                        )
                    with gr.Tab(TABS[CLASSES], id=CLASSES) as classes_tab:
                        with gr.Row():
                            names = gr.Textbox(
                                show_label=False,
                                label="Classes",
                                placeholder="road, sky, car, person",
                                container=False,
                                lines=2,
                                max_lines=6,
                                scale=3,
                                min_width=160,
                                elem_id="names",
                            )
                            map_it = gr.Button("Map them", size="sm", min_width=90, variant="primary", elem_id="map")
                    with gr.Tab(TABS["like"], id="like"):
                        gr.HTML(
                            '<p class="hint">Select a mask (or make one by hand), add photos, and find what is like it in each of them. '
                            "A name helps, and may be left out.</p>"
                        )
                        with gr.Row():
                            label = gr.Textbox(
                                show_label=False,
                                label="Name",
                                placeholder="Name, if it has one",
                                container=False,
                                scale=2,
                                min_width=120,
                                max_length=200,
                                elem_id="label",
                            )
                            alike = gr.Button(
                                "Find it in the other photos",
                                size="sm",
                                min_width=90,
                                variant="primary",
                                elem_id="alike",
                            )
                    with gr.Tab(TABS["keep"], id="keep"):
                        with gr.Row():
                            export = gr.Button("Masks (zip)", size="sm", min_width=90, elem_id="export")
                            keep = gr.Button("Conversation (json)", size="sm", min_width=90, elem_id="keep")
                            taught = gr.Button("Training records (zip)", size="sm", min_width=90, elem_id="taught")
                        gr.HTML(
                            '<p class="hint">Masks: PNG, cut-outs, COCO and LabelMe json. The conversation file reopens everything, '
                            "photos included.</p>"
                        )
                with gr.Row(elem_id="tools"):
                    more = gr.UploadButton(
                        "Add photos",
                        size="sm",
                        min_width=80,
                        file_types=["image"],
                        file_count="multiple",
                        visible=False,
                        elem_id="more",
                    )
                    again = gr.Button("Start over", size="sm", min_width=80, visible=False, elem_id="again")
                    fresh = gr.Button("New conversation", size="sm", min_width=80, visible=False, elem_id="fresh")
                    reopen = gr.UploadButton(
                        "Open a saved conversation", size="sm", min_width=80, file_types=[".json"], elem_id="reopen"
                    )
                download = gr.DownloadButton(visible="hidden", elem_id="download")

        # -- what is shown ----------------------------------------------------------------------------------------

        def line(text, busy=False):
            return f'<p role="status" class="{"busy" if busy else ""}">{text}</p>' if text else ""

        def legend(s):
            if s.view == EVERYTHING:
                return f"{len(s.regions)} regions. Click one, then ask what it is."
            if s.view == HAND:
                return "Mark a thing on the picture, choose a candidate, name it, use it."
            if s.view == LOOKING:
                where = literal(s.heat[0])
                return f"Where the model looks for {where}: the brighter, the more. The Answer tab shows the masks again."
            if s.view == CLASSES and s.classes:
                missing = s.classes["unanswered"]
                return summary(s.classes["targets"]) + (
                    f" Not answered: {literal(', '.join(missing))}." if missing else ""
                )
            return summary(s.answer.targets) if s.answer else ""

        def talk(s):
            waiting = s.next() is not None or bool(s.pending)
            return {
                session: s,
                chat: messages(s),
                stop: gr.Button(visible=waiting),
                turns: gr.Row(visible=bool(s.log) or waiting),
                **{b: gr.Button(visible=bool(s.log)) for b in (undo, edit, retry)},
            }

        def chips(s):
            text = ""
            if s.editing is not None:
                text = '<span class="notes">Editing this question: what follows it will be forgotten.</span>'
            elif s.chosen is not None:
                colour = next(c for t, _, _, c in named(s.targets) if t is s.chosen)
                text = (
                    f'<span class="notes">Your next question is about</span> {tag(s.chosen.phrase, s.chosen, colour)}'
                )
            return {chip: gr.Row(visible=bool(text)), about: text}

        def show(s, marks=False, note=None):
            """Everything that depends on the session."""
            opened = s.scene is not None
            labels = [f"{k}. {n}" for k, n in enumerate(s.names, 1)]
            return {
                **talk(s),
                **chips(s),
                canvas: gr.HTML(**picture.shown(s, marks)),
                status: line(legend(s) if note is None else note),
                strip: gr.Radio(choices=labels, value=labels[s.at] if opened else None, visible=len(labels) > 1),
                tabs: gr.Tabs(selected=s.view if s.view in TABS else None),
                photo: gr.Image(visible=not opened, value=None),
                power: gr.Column(visible=opened),
                **{b: gr.Button(visible=opened) for b in (again, fresh)},
                more: gr.UploadButton(visible=opened),
                reopen: gr.UploadButton(visible=not opened),
            }

        every = [
            session,
            chat,
            chip,
            about,
            question,
            turns,
            stop,
            undo,
            edit,
            retry,
            photo,
            canvas,
            status,
            strip,
            tabs,
            power,
            name,
            label,
            more,
            again,
            fresh,
            reopen,
        ]

        def guarded(action):
            """A handler whose bad input is one polite line."""

            def run(s, *values, **more):
                try:
                    return action(s, *values, **more)
                except Exception as error:  # a visitor's doing must never end the process
                    gr.Warning(literal(polite(error)))
                    return {session: s}

            return functools.wraps(action)(run)

        # -- photos -----------------------------------------------------------------------------------------------

        def choose(s, *paths):
            s.room(len(paths))
            s.note, s.pending = "", [*s.pending, *paths]
            return {**talk(s), status: line("Opening the photo", busy=True)}

        @guarded
        def choose_first(s, payload):  # payload: the upload as it came, so that `open_image` is what judges the file
            if not payload:
                return {session: s}
            s.clear()
            try:
                return choose(s, uploaded(payload))
            except BadInput as error:
                return refused(s, error)

        @guarded
        def choose_more(s, payload):
            files = payload if isinstance(payload, list) else [payload]
            return choose(s, *(uploaded(file) for file in files)) if payload else {session: s}

        def choose_example(s, event: gr.SelectData):
            s.clear()
            example = examples[event.index]
            choose(s, example["file"])
            s.put(example["question"])
            return {**talk(s), status: line("Opening the photo", busy=True), question: ""}

        def refused(s, error, path=None):
            said = polite(error, path)
            gr.Warning(literal(said))
            if not s.scenes:
                s.clear()
            s.pending, s.note = [], f"I could not open this photo: {said}."
            return show(s)

        def open_photo(s):
            epoch, stopped = s.epoch, s.stop
            if not s.pending:
                yield {session: s}
            while s.pending and s.epoch == epoch:
                path, start = s.pending[0], time.perf_counter()
                try:
                    for kind, news in worker.run(
                        lambda tell: (tell(open_image(path)), assistant.open(path, progress=tell))[1], stopped
                    ):
                        if s.epoch != epoch:
                            break
                        if kind == "done":
                            scene = news
                        elif len(news) == 1:  # the picture itself, read
                            image = news[0]
                            s.drawn = None
                            yield {
                                photo: gr.Image(visible=False, value=None),
                                status: line("Opening the photo", busy=True),
                                canvas: gr.HTML(
                                    **(picture.nothing() | {"photo": picture.photo_of(image, path.stem), "busy": True})
                                ),
                            }
                        else:
                            outlines = picture.ghosts(image, news[1]) if news[1] is not None else []
                            yield {
                                status: line(f"Opening the photo: {DOING.get(news[0], literal(news[0]))}", busy=True),
                                **({canvas: gr.HTML(masks=outlines, busy=True)} if outlines else {}),
                            }
                except Exception as error:
                    if s.epoch == epoch:
                        s.pending = []
                        yield show(s, note="Stopped.") if isinstance(error, Stopped) else refused(s, error, path)
                    break
                if s.epoch == epoch:
                    s.pending = s.pending[1:]
                    s.add(scene, path.stem)
                    height, width = scene.image.shape[:2]
                    yield show(s, note=f"{width} x {height} pixels, opened in {time.perf_counter() - start:.1f} s.")
            yield {session: s}

        @guarded
        def switch(s, label):
            number = int(str(label).split(".")[0]) - 1 if label else s.at
            if number == s.at:
                return {session: s}
            s.show_photo(number)
            return show(s)

        # -- asking -----------------------------------------------------------------------------------------------

        @guarded
        def put(s, text):
            if s.editing is not None:
                s.take_back(s.editing)
                s.editing = None
            s.note = ""
            s.put(text)
            s.selected = None
            return {**talk(s), **chips(s), question: ""}

        def answer(s):
            e = s.next()
            if e is None:
                yield {session: s}
                return
            epoch, written = s.epoch, []
            try:
                for kind, news in worker.run(lambda tell: s.ask(e, stream=tell), s.stop):
                    if e not in s.log:
                        break
                    if kind == "told":
                        written.append(news[0])
                        e.said = "".join(written)
                        yield {chat: messages(s)}
                    else:
                        s.answered(e, news)
            except Exception as error:
                if s.epoch == epoch and e in s.log:
                    s.failed(e, polite(error))
                    s.remember(e.photo)
                    if not isinstance(error, Stopped):
                        gr.Warning(literal(polite(error)))
                    yield talk(s)
                    return
            if s.epoch != epoch or e not in s.log:
                for k in range(len(s.scenes)):
                    s.remember(k)
                yield {session: s}
                return
            yield show(s, marks=True)

        @guarded
        def halt(s):
            opening = s.scene is None and bool(s.pending)
            s.halt()
            if opening:
                s.clear()
                return show(s, note="Stopped.")
            return talk(s)

        @guarded
        def take_back(s):
            s.take_back()
            return show(s, marks=True)

        @guarded
        def edit_last(s):
            text = s.take_back()
            return {**show(s, marks=True), question: text}

        @guarded
        def try_again(s):
            if not s.log:
                raise BadInput("there is nothing to try again: ask something first")
            last = s.log[-1]
            s.take_back()
            e = s.put(last.question, temperature=0.7)  # greedy would say the same again
            e.about, e.photo = last.about, last.photo
            return talk(s)

        @guarded
        def look_back(s, event: gr.SelectData):
            """An earlier reply shows its masks again; an earlier question is edited."""
            every_one = bubbles(s)
            index = event.index[0] if isinstance(event.index, list | tuple) else event.index
            bubble = every_one[index] if isinstance(index, int) and 0 <= index < len(every_one) else {}
            if "id" not in bubble:
                return {session: s}
            e = s.log[bubble["id"]]
            if bubble["role"] == "user" and not e.waiting:
                s.editing = bubble["id"]
                return {session: s, **chips(s), question: e.question}
            if e.answer is None or (e is s.exchange and s.view == ANSWER):
                return {session: s}
            s.look()
            s.at, s.current = e.photo, e
            return show(s, marks=True)

        # -- masks ------------------------------------------------------------------------------------------------

        @guarded
        def pick(s, event: gr.EventData):
            s.select(event._data.get("number"))
            return {session: s, canvas: gr.HTML(selected=s.selected), **chips(s)}

        @guarded
        def release(s):
            s.selected, s.editing = None, None
            return {session: s, canvas: gr.HTML(selected=None), **chips(s)}

        def turn_to(view):
            @guarded
            def run(s, value=None):
                if s.scene is None or s.view == view:
                    return {session: s}
                if view == HAND:
                    s.start_hand()
                elif view == EVERYTHING:
                    worker.call(lambda: s.everything(value))
                else:
                    s.view, s.selected = (view if view == ANSWER or s.classes else ANSWER), None
                    return {**show(s, marks=True), tabs: gr.Tabs(selected=view)}
                return show(s, marks=True)

            return run

        @guarded
        def refine_it(s):
            if s.chosen is None:
                raise BadInput("select a mask first: click on it, or on its name")
            phrase = s.chosen.phrase if s.view == ANSWER else ""
            s.start_hand()
            return {**show(s, marks=True, note="Add and leave out with clicks, a box or the brush."), name: phrase}

        @guarded
        def not_there(s):
            s.not_there()
            return show(s)

        @guarded
        def mark(s, event: gr.EventData):
            if s.scene is None or s.view != HAND:
                return {session: s}
            prompt = picture.read_prompt(event._data, s.scene.size)
            worker.call(lambda: s.mark(**prompt))
            s.choice = 0
            count = len(s.hand.found)
            note = (
                f"{count} candidates with their predicted IoU; choose one, name it, use it."
                if count
                else "Click on a thing to outline it."
            )
            return {session: s, canvas: gr.HTML(found=picture.shown(s)["found"]), status: line(note)}

        @guarded
        def choose_candidate(s, event: gr.EventData):
            s.choice = event._data.get("number")
            return {session: s}

        @guarded
        def use_mask(s, called):
            s.use(s.choice, called or "")
            s.choice = 0
            return {**show(s, marks=True), name: ""}

        @guarded
        def regions(s, granularity):
            worker.call(lambda: s.everything(granularity))
            return show(s)

        def class_map(s, text):
            try:
                yield {
                    session: s,
                    status: line("Asking for the classes", busy=True),
                    stop: gr.Button(visible=True),
                    turns: gr.Row(visible=True),
                }
                for _ in worker.run(lambda tell: s.map_classes(text, check=lambda: tell("class")), s.stop):
                    pass
            except Exception as error:
                gr.Warning(literal(polite(error)))
                yield {**talk(s), status: line(literal(polite(error).capitalize()) + ".")}
                return
            yield show(s, marks=True)

        @guarded
        def where(s):
            worker.call(s.attend)
            return show(s, marks=True)

        def find_alike(s, called):
            try:
                yield {
                    session: s,
                    status: line("Looking through the other photos", busy=True),
                    stop: gr.Button(visible=True),
                    turns: gr.Row(visible=True),
                }
                for kind, count in worker.run(lambda tell: s.find_alike(called or "", tell), s.stop):
                    pass
            except Exception as error:
                gr.Warning(literal(polite(error)))
                yield {**talk(s), status: line(literal(polite(error).capitalize()) + ".")}
                return
            yield {
                **show(
                    s,
                    marks=True,
                    note=f"Searched {count} photo{'s' if count > 1 else ''}: choose one above to see what was found.",
                ),
                label: "",
            }

        # -- files ------------------------------------------------------------------------------------------------

        @guarded
        def teach_it(s):
            s.save_correction()
            if records:
                worker.call(lambda: save_correction(records, *s.corrections[-1]))
            count = len(s.corrections)
            return {
                session: s,
                status: line(
                    f"Kept as a training record ({count} so far); take {'it' if count == 1 else 'them'} home "
                    f"under Save."
                ),
            }

        def packed(fill):
            """A download whose files `fill(session, folder)` writes; it returns the one to send."""

            def run(s):
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        yield str(fill(s, Path(folder)))  # Gradio takes its copy before this goes on
                    except Exception as error:
                        raise gr.Error(polite(error), print_exception=False) from None

            return run

        def zipped(inside):
            return shutil.make_archive(str(inside), "zip", inside)

        def masks_zip(s, folder):
            inside = folder / "maskpick"
            if not any(t.present for t in s.targets):
                raise BadInput("nothing is outlined: ask for something first")
            if s.view in (EVERYTHING, CLASSES):
                Answer(TABS[s.view], s.targets, s.scene.size, s.scene.image).save(inside)
            else:
                s.answer.save(inside)
            return zipped(inside)

        def conversation_json(s, folder):
            if s.scene is None:
                raise BadInput("there is no conversation yet: open a photo first")
            (folder / "conversation.maskpick.json").write_text(dump(s.conversation()), encoding="utf-8")
            return folder / "conversation.maskpick.json"

        def records_zip(s, folder):
            if not s.corrections:
                raise BadInput('no training records yet: correct an answer, then "Save as training record"')
            for one in s.corrections:
                save_correction(folder / "records", *one)
            return zipped(folder / "records")

        def open_saved(s, payload):
            if not payload:
                yield {session: s}
                return
            try:
                yield {session: s, status: line("Opening the conversation", busy=True)}
                saved = load(uploaded(payload).read_bytes())
                if len(saved.photos) > PHOTOS:
                    raise BadInput(
                        f"the conversation has {len(saved.photos)} photos: at most {PHOTOS} can be opened at once"
                    )
                scenes = []
                for _, image in saved.photos:
                    for kind, news in worker.run(lambda tell: assistant.open(image, progress=tell), s.stop):
                        if kind == "done":
                            scenes.append(news)
                s.reopen(saved, scenes)
            except Exception as error:
                yield refused(s, error) | {status: ""}
                return
            yield show(s)

        @guarded
        def start_over(s):
            if s.scene is None:
                return {session: s}
            s.take_back(0) if s.log else None
            s.note = (
                "Forgotten. What are you looking for in this photo?"
                if len(s.scenes) == 1
                else "Forgotten. What are you looking for?"
            )
            return show(s, marks=True)

        def begin_anew(s):
            s.clear()
            return {**show(s), question: "", name: ""}

        def remember(s, kept):
            """The conversation's text into the browser, in place of its earlier state."""
            kept = kept if isinstance(kept, list) else []
            rows = [[shorter(e.question), shorter(e.answer.text)] for e in s.log if e.answer is not None][-50:]
            if s.kept and kept and kept[-1] == s.kept:
                kept = kept[:-1]
            s.kept = rows
            return ([*kept, rows] if rows else kept)[-PAST:]

        def recall(kept):
            words = past_text(kept)
            return gr.Accordion(visible=bool(words)), words

        # -- events -----------------------------------------------------------------------------------------------

        opened = dict(fn=open_photo, inputs=session, outputs=every, **heavy)
        asked = dict(fn=answer, inputs=session, outputs=every, **heavy)
        noted = dict(fn=remember, inputs=[session, past], outputs=past, **instant)
        photo.input(choose_first, [session, photo], every, preprocess=False, **instant).then(**opened)
        more.upload(choose_more, [session, more], every, preprocess=False, **instant).then(**opened)
        reopen.upload(open_saved, [session, reopen], every, preprocess=False, **heavy)
        chat.example_select(choose_example, session, every, **instant).then(**opened).then(**asked).then(**noted)
        question.submit(put, [session, question], every, **instant).then(**asked).then(**noted)
        retry.click(try_again, session, every, **instant).then(**asked).then(**noted)
        stop.click(halt, session, every, **instant)
        undo.click(take_back, session, every, **instant).then(**noted)
        edit.click(edit_last, session, every, **instant).then(**noted)
        chat.select(look_back, session, every, **instant)
        strip.input(switch, [session, strip], every, **instant)
        canvas.pick(pick, session, every, **instant)
        canvas.choose(choose_candidate, session, every, **instant)
        canvas.prompt(mark, session, every, **heavy)
        let_go.click(release, session, every, **instant)
        answer_tab.select(turn_to(ANSWER), session, every, **instant)
        hand_tab.select(turn_to(HAND), session, every, **instant)
        everything_tab.select(turn_to(EVERYTHING), [session, grain], every, **heavy)
        classes_tab.select(turn_to(CLASSES), session, every, **instant)
        grain.release(regions, [session, grain], every, **heavy)
        refine.click(refine_it, session, every, **instant)
        gone.click(not_there, session, every, **instant)
        use.click(use_mask, [session, name], every, **instant)
        name.submit(use_mask, [session, name], every, **instant)
        map_it.click(class_map, [session, names], every, **heavy)
        look.click(where, session, every, **heavy)
        alike.click(find_alike, [session, label], every, **heavy)
        teach.click(teach_it, session, every, **heavy)
        again.click(start_over, session, every, **instant)
        gr.on([fresh.click, photo.clear], begin_anew, session, every, **instant)
        for button, fill in ((export, masks_zip), (keep, conversation_json), (taught, records_zip)):
            button.click(packed(fill), session, download, **heavy).success(
                None, js="() => document.querySelector('#download').click()", api_visibility="private"
            )
        page.load(recall, past, [past_box, past_words], **instant)
        forget.click(lambda: ([], gr.Accordion(visible=False), ""), None, [past, past_box, past_words], **instant)
        add_api(assistant, worker)
    return page.queue(default_concurrency_limit=1, max_size=64)

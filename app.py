"""The chat page: drop a photo, ask in everyday words, see what is meant outlined, named, or said to be absent.

    python app.py                               # the pocket preset on http://127.0.0.1:7860
    python app.py --adapter DIR                 # with what finetune has written into DIR
    python app.py --mllm openai:qwen3-vl --base-url http://127.0.0.1:8000/v1     # a larger model on a server
    python app.py --host 0.0.0.0 --port 8080    # let other machines on the network in

The page is thin: opening a photo and answering a question are one call each into `assistant`. A program can call
the same thing through gradio_client; see `ask` in `build_app`.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from assistant.errors import BadInput, exit_code
from assistant.presets import add_model_arguments, name_of, open_from

LARGEST_FILE = "50mb"
VIEW_SIDE = 1280  # pixels: the page shows the picture at most this large; exports keep its full size
QUOTED = 600  # characters of a question that its bubble repeats
UPLOADS_KEPT = (3600, 24 * 3600)  # seconds: look for old uploads every hour, delete those older than a day
SESSION_KEPT = 3600  # seconds after the last action
SESSIONS = 50  # with open photos in memory; the one idle longest makes room
EXAMPLES = (  # pictures that scikit-image's wheel ships
    ("astronaut", "Who is going to fly into orbit, and is there a bear?", "A smiling astronaut in an orange suit"),
    ("chelsea", "Which animal is purring, and is there a dog?", "A tabby cat looking at the camera"),
    ("coffee", "What could I drink from, and is there a dog?", "A cup of coffee with a spoon on a table"),
)
WELCOME = "### What are you looking for?\nDrop a photo, then ask for things in your own words."


@dataclass
class Session:
    """What one visitor has open. It lives in gr.State, so no two visitors share one."""

    scene: object = None
    photo: Path | None = None  # chosen, not yet open
    messages: list = field(default_factory=list)
    waiting: list = field(default_factory=list)  # (question, index of the bubble that its answer replaces)
    answer: object = None  # the latest
    epoch: int = 0  # counts photos: work begun for an earlier one is dropped

    def say(self, role: str, content: str) -> int:
        self.messages.append({"role": role, "content": content})
        return len(self.messages) - 1

    def clear(self) -> None:
        self.scene, self.photo, self.answer, self.epoch = None, None, None, self.epoch + 1
        self.messages, self.waiting = [], []


def literal(text: str) -> str:
    """`text` written so that neither HTML nor markdown reads anything into it; line breaks stay."""
    def code(c):
        if c.isalnum() or c == " ":
            return c
        if c == "\n":
            return "<br>"
        return f"&#{ord(c)};" if c.isprintable() or c in "\u200c\u200d" else " "  # joiners: emoji, Persian, Hindi

    return "".join(map(code, text))


def shown(answer) -> list[tuple]:
    """[(target, its name with a number if another has the same, its confidence as text, colour)] as in the exports."""
    from assistant.answer import colour_of

    rows, seen = [], {}
    for k, target in enumerate(answer.targets):
        seen[target.phrase] = seen.get(target.phrase, 0) + 1
        name = target.phrase if seen[target.phrase] == 1 else f"{target.phrase} ({seen[target.phrase]})"
        rows.append((target, name, f"{target.confidence:.0%}", colour_of(k)))
    return rows


def tag(text: str, target, colour: str) -> str:
    if not target.present:
        return f'<span class="absent">{literal(text)}</span>'
    return f'<span class="found" style="background:{colour}38;border-color:{colour}">{literal(text)}</span>'


def reply_bubble(answer) -> str:
    """The reply with each named thing in the colour of its mask, and beneath it how sure the assistant is."""
    parts, end = [], 0
    for target, _, _, colour in shown(answer):
        start = answer.text.lower().find(target.phrase.lower(), end)
        if target.phrase and start >= 0:
            before, end = literal(answer.text[end:start]), start + len(target.phrase)
            parts += [before, tag(answer.text[start:end], target, colour)]
    notes = [tag(f"{name} {sure}" if target.present else f"not in the picture: {name}", target, colour)
             for target, name, sure, colour in shown(answer)]
    text = "".join(parts) + literal(answer.text[end:])
    return f'{text}<br><span class="notes">{" ".join(notes)}</span>' if notes else text


def small(image):
    """The picture (H, W, 3) uint8 at the size that the page shows, as PIL.Image."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((VIEW_SIDE, VIEW_SIDE))
    return picture


def outlined(mask, size):
    """Opacity (h, w) in [0, 1] of a mask (H, W) bool at the page's `size` (w, h): half inside, full on its rim."""
    import numpy as np
    from PIL import Image, ImageFilter

    full = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    inner = full.filter(ImageFilter.MinFilter(5))
    return np.asarray(full) / 510 + (np.asarray(full) > np.asarray(inner)) / 2


def panel(scene, answer=None) -> dict:
    """What the picture beside the chat shows: settings of a gr.AnnotatedImage."""
    view = small(scene.image)
    found = [(t, f"{name} {sure}", colour) for t, name, sure, colour in (shown(answer) if answer else []) if t.present]
    return {
        "value": (view, [(outlined(target.mask, view.size), label) for target, label, _ in found]),
        "color_map": {label: colour for _, label, colour in found},
        "label": ", ".join(label for _, label, _ in found) or "your photo",  # also the masks' alternative text
        "visible": True,
    }


def summary(answer) -> str:
    """The line beneath the picture."""
    rows = shown(answer)
    absent = [literal(name) for target, name, _, _ in rows if not target.present]
    count = sum(target.present for target, _, _, _ in rows)
    line = f"{count} {'thing' if count == 1 else 'things'} outlined." if count else "Nothing is outlined."
    return f'{line} <span class="absent">Not in the picture: {", ".join(absent)}</span>' if absent else line


def uploaded(payload) -> Path:
    """The file that a browser or client has uploaded. BadInput for anything else on this machine."""
    from gradio.utils import get_upload_folder

    path = payload.get("path") if isinstance(payload, dict) else None
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise BadInput("the picture is missing: upload a file, with gradio_client by handle_file(path)")
    return Path(path)


def trouble(error: Exception, file: Path | None = None) -> str:
    """What a visitor reads about an error, `file` by its bare name; one that is not theirs goes to the log."""
    if isinstance(error, BadInput):
        said = str(error).replace(str(file), file.name) if file else str(error)
        return said[:QUOTED]
    traceback.print_exception(error)
    return "something went wrong here, and it was not your doing; please try again"


def save_examples(folder: Path) -> list[dict]:
    """Write the example pictures; [{"file": path, "question": str}]. Their file names are their alternative text."""
    import skimage.data
    from PIL import Image

    saved = []
    for name, question, description in EXAMPLES:
        path = Path(folder) / f"{description}.jpg"
        Image.fromarray(getattr(skimage.data, name)()).save(path, quality=92)
        saved.append({"file": path, "question": question})
    return saved


def build_app(assistant, examples=()):
    """The page over `assistant` (open(image) -> scene; scene.ask, .reset, .image) as gr.Blocks; see `serve`.

    examples: what `save_examples` gives, or none.
    """
    import gradio as gr

    worker = {"concurrency_id": "assistant", "concurrency_limit": 1, "api_visibility": "private"}
    instant = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    with gr.Blocks(title="maskpick", delete_cache=UPLOADS_KEPT, analytics_enabled=False, fill_width=True) as page:
        session = gr.State(Session(), time_to_live=SESSION_KEPT)
        gr.HTML("<h1>maskpick</h1><p>Ask a photo in everyday words. What you mean is outlined and named; "
                "what is not there is said to be absent.</p>", elem_id="head")
        with gr.Row(elem_id="panes"):
            with gr.Column(scale=5, min_width=320, elem_id="talk"):
                chat = gr.Chatbot(
                    show_label=False, label="Conversation", elem_id="chat", height=None, latex_delimiters=[],
                    buttons=[], feedback_options=None, allow_file_downloads=False, placeholder=WELCOME,
                    examples=[{"text": e["question"], "files": [str(e["file"])]} for e in examples] or None)
                question = gr.Textbox(
                    label="Your question", show_label=False, container=False, lines=1, max_lines=5, submit_btn=True,
                    placeholder="What keeps the rain off?", elem_id="question")
            with gr.Column(scale=6, min_width=320, elem_id="side"):
                photo = gr.Image(
                    type="filepath", sources=["upload", "clipboard", "webcam"], show_label=False, label="Photo",
                    height="min(460px, 50dvh)", buttons=[], elem_id="photo", alt_text="The photo that is being opened",
                    placeholder="# Drop a photo here\nor click to choose one")
                picture = gr.AnnotatedImage(
                    visible=False, show_label=False, label="your photo", buttons=["fullscreen"], elem_id="picture")
                status = gr.HTML("", elem_id="status")
                with gr.Row(elem_id="tools"):
                    export = gr.Button("Save masks", size="sm", min_width=60, visible=False, elem_id="export")
                    again = gr.Button("Start over", size="sm", min_width=60, visible=False, elem_id="again")
                    fresh = gr.Button("New photo", size="sm", min_width=60, visible=False, elem_id="fresh")
                download = gr.DownloadButton(visible="hidden", elem_id="download")

        def line(text, busy=False):
            return f'<p role="status" class="{"busy" if busy else ""}">{text}</p>' if text else ""

        def choose(state, path):
            state.clear()
            state.photo = path
            return {session: state, chat: [], status: line("Opening the photo: looking at everything in it", busy=True)}

        def choose_upload(state, payload):  # payload: the upload as it came, so that `open` is what judges the file
            try:
                return choose(state, uploaded(payload)) if payload else {session: state}
            except BadInput as error:
                return failed(state, error)

        def choose_example(state, event: gr.SelectData):
            example = examples[event.index]
            updates = choose(state, example["file"])
            return updates | {photo: str(example["file"])} | put(state, example["question"])

        def failed(state, error, path=None):
            said = literal(trouble(error, path))
            gr.Warning(said)
            state.clear()
            state.say("assistant", f"I could not open this photo: {said}.")
            return {session: state, photo: None, chat: state.messages, status: ""}

        def open_photo(state):
            if state.photo is None:
                return {session: state}
            epoch, path, state.photo, start = state.epoch, state.photo, None, time.perf_counter()
            try:
                scene = assistant.open(path)
                view = panel(scene)
            except Exception as error:  # a visitor's photo must never end the process
                return failed(state, error, path) if state.epoch == epoch else {session: state}
            if state.epoch != epoch:
                return {session: state}
            state.scene = scene
            if not state.waiting:
                state.say("assistant", "The photo is open. What are you looking for?")
            height, width = scene.image.shape[:2]
            took = f"{width} x {height} pixels, opened in {time.perf_counter() - start:.1f} s."
            return {session: state, chat: state.messages, photo: gr.Image(visible=False, value=None),
                    picture: gr.AnnotatedImage(**view), status: line(took),
                    again: gr.Button(visible=True), fresh: gr.Button(visible=True)}

        def put(state, text):
            state.say("user", literal(text[:QUOTED] + ("..." if len(text) > QUOTED else "")) or "&#8230;")
            state.waiting.append((text, state.say("assistant", '<span class="busy">Looking</span>')))
            return {session: state, chat: state.messages, question: ""}

        def answer(state):
            if not state.waiting:
                return {session: state}
            epoch, scene, (text, place) = state.epoch, state.scene, state.waiting.pop(0)
            try:
                if scene is None:
                    raise BadInput("no photo is open: drop one first, then ask")
                reply = scene.ask(text)
                view, bubble, note = panel(scene, reply), reply_bubble(reply), summary(reply)
            except Exception as error:
                said = literal(trouble(error))
                gr.Warning(said)
                if state.epoch != epoch:
                    return {session: state}
                state.messages[place]["content"] = f"{said[:1].upper()}{said[1:]}."
                return {session: state, chat: state.messages}
            if state.epoch != epoch:
                return {session: state}
            state.answer, state.messages[place]["content"] = reply, bubble
            return {session: state, chat: state.messages, picture: gr.AnnotatedImage(**view), status: line(note),
                    export: gr.Button(visible=any(target.present for target in reply.targets))}

        def pack(state):
            if state.answer is None:
                raise gr.Error("there is nothing to save: ask again", print_exception=False)
            with tempfile.TemporaryDirectory() as folder:
                inside = Path(folder) / "maskpick"
                inside.mkdir()
                state.answer.save(inside)
                yield shutil.make_archive(str(inside), "zip", inside)  # Gradio takes its copy before this goes on

        def start_over(state):
            if state.scene is None:
                return {session: state}
            state.scene.reset()
            state.messages, state.waiting, state.answer = [], [], None
            state.say("assistant", "Forgotten. What are you looking for in this photo?")
            return {session: state, chat: state.messages, picture: gr.AnnotatedImage(**panel(state.scene)),
                    status: "", export: gr.Button(visible=False)}

        def new_photo(state):
            state.clear()
            hidden = gr.Button(visible=False)
            return {session: state, chat: [], photo: gr.Image(visible=True, value=None), status: "", again: hidden,
                    picture: gr.AnnotatedImage(visible=False), fresh: hidden, export: hidden}

        every = [session, chat, question, photo, picture, status, export, again, fresh]
        opening = {**worker, "show_progress": "minimal", "show_progress_on": [photo]}
        asking = {**worker, "show_progress": "minimal", "show_progress_on": [picture]}
        photo.input(choose_upload, [session, photo], every, preprocess=False, **instant).then(
            open_photo, session, every, **opening)
        chat.example_select(choose_example, session, every, **instant).then(
            open_photo, session, every, **opening).then(answer, session, every, **asking)
        question.submit(put, [session, question], every, **instant).then(answer, session, every, **asking)
        again.click(start_over, session, every, **worker)
        gr.on([fresh.click, photo.clear], new_photo, session, every, **instant)
        export.click(pack, session, download, **worker).success(
            None, js="() => document.querySelector('#download').click()", api_visibility="private")

        def ask(image: gr.FileData, question: str) -> dict:
            """Ask one question about one picture; nothing is remembered between calls.

            image: the uploaded picture (gradio_client: handle_file("photo.jpg")). question: any text.
            Returns {"question", "text", "width", "height", "targets": [{"phrase": str, "present": bool, "confidence":
            0 to 1, "box": [x, y, w, h] px, "area": px, "proposals": [int], "rle": {"size": [h, w], "counts": str}}]};
            rle and box are null where the thing is not in the picture. pycocotools.mask.decode reads the rle.
            Errors are one line that says what to do.

                from gradio_client import Client, handle_file
                client = Client("http://127.0.0.1:7860")
                client.predict(handle_file("photo.jpg"), "what keeps the rain off?", api_name="/ask")
            """
            try:
                return assistant.open(uploaded(image)).ask(question).to_json()
            except Exception as error:
                raise gr.Error(trouble(error), print_exception=False) from None

        gr.api(ask, api_name="ask", concurrency_id="assistant", concurrency_limit=1)
    return page.queue(default_concurrency_limit=1, max_size=64)


def serve(page, host="127.0.0.1", port=7860, share=False, block=True):
    """Launch the page with its look and its limits; (app, local url, public url). BadInput: the port is taken."""
    import gradio as gr

    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])
    try:
        return page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=not block, theme=theme, css=CSS,
            max_file_size=LARGEST_FILE, footer_links=["api"], ssr_mode=False, show_error=False,
            state_session_capacity=SESSIONS, quiet=not block)
    except OSError as error:
        raise BadInput(f"cannot listen on {host}:{port} ({error.strerror or 'it is in use'}); "
                       "choose another with --port") from None


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="app.py", description="Open the chat page.")
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1); 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument("--share", action="store_true", help="ask Gradio for a public link as well")
    args = parser.parse_args(argv)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the visitors' files go with the process
    with tempfile.TemporaryDirectory(prefix="maskpick-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")  # the one folder that the page reads and serves
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        return exit_code(lambda: run(args, Path(folder)))


def run(args: argparse.Namespace, folder: Path) -> None:
    print(f"Loading {name_of(args)}...", flush=True)
    start = time.perf_counter()
    assistant = open_from(args)
    print(f"Loaded in {time.perf_counter() - start:.0f} s.", flush=True)
    serve(build_app(assistant, save_examples(folder)), args.host, args.port, args.share)


CSS = """
.gradio-container { max-width: 1500px !important; width: 100%; margin: 0 auto; }
#head *, #status * { padding: 0; }
#head h1 { font-size: 1.5rem; margin: 0; font-weight: 650; }
#head p { margin: 0; color: var(--body-text-color-subdued); }
#chat { height: max(420px, calc(100dvh - 230px)) !important; border: 1px solid var(--border-color-primary); }
#chat .icon-button-wrapper { display: none; }  /* its bin would clear the bubbles, not what is remembered */
footer .divider { display: none; }
#chat .placeholder { padding: 1rem; text-align: center; }
#chat .examples { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); padding: 1rem; gap: .75rem;
  width: 100%; }
#chat .example { padding: .75rem; border: 1px solid var(--border-color-primary); }
#chat .example-image-container { width: 100%; height: 110px; margin-bottom: .5rem; }
#chat .example-text-content { margin-top: 0; }
#question { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
#photo { border: 2px dashed var(--border-color-primary); }
#picture { border: 1px solid var(--border-color-primary); }
#picture img.base-image { max-height: 66dvh; object-fit: contain; }
#picture .legend-item { color: var(--body-text-color); }
#status:not(:has(p)) { display: none; }
#status p { margin: 0; }
#tools { flex-wrap: nowrap; }
.found { border-radius: 5px; padding: 0 4px; border-bottom: 2px solid; }
#status .absent { padding: 0 4px; }
.absent { border-radius: 5px; padding: 0 4px; border: 1px dashed var(--body-text-color-subdued); }
.notes { font-size: .85em; line-height: 2; }
.busy::after { content: ""; display: inline-block; width: 1.2em; text-align: left;
  animation: dots 1.2s steps(1) infinite; }
@keyframes dots { 0% { content: "."; } 33% { content: ".."; } 66% { content: "..."; } }
@media (prefers-reduced-motion: reduce) { .busy::after { animation: none; content: "..."; } }
@media (max-width: 768px) {
  #panes { flex-direction: column; }
  #panes > * { width: 100%; }
  #side { order: -1; }
  #head p { font-size: .85rem; }
  #chat { height: max(300px, 44dvh) !important; }
  #question { position: sticky; bottom: .5rem; z-index: 10; }
  #chat .examples { grid-template-columns: repeat(3, minmax(0, 1fr)); padding: .5rem; gap: .5rem; }
  #chat .example { padding: .4rem; }
  #chat .example-image-container { height: 70px; }
  #chat .example-text { font-size: .75rem; }
  #photo { height: 240px !important; }
  #picture img.base-image { max-height: 42dvh; }
}
"""

if __name__ == "__main__":
    sys.exit(main())

"""The chat page, driven by a program (gradio_client) and by a person's hands (headless Chromium)."""

import html
import io
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assistant.answer import COLOURS, Answer, Target
from assistant.errors import BadInput

gradio = pytest.importorskip("gradio", reason="gradio is not installed")
import app  # noqa: E402
from fake_assistant import PAINT, FakeAssistant, picture  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def page(folder):
    """(address, assistant) of a page that runs on this machine alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        assistant = FakeAssistant()
        blocks = app.build_app(assistant, app.save_examples(folder))
        _, address, _ = app.serve(blocks, port=None, block=False)
        yield address, assistant
        blocks.close()


@pytest.fixture(scope="module")
def photo(folder):
    Image.fromarray(picture()).save(folder / "ball.png")
    return folder / "ball.png"


@pytest.fixture(scope="module")
def no_photo(folder):
    (folder / "holiday.png").write_text("this is text")
    return folder / "holiday.png"


# -- what needs no page -------------------------------------------------------------------------------------------

def answer_of(*targets, text):
    return Answer(text, list(targets), (4, 6), None)


def test_every_thing_typed_stays_text():
    hostile = "<img src=x onerror=alert(1)> **bold** `code` $$x$$ [a](javascript:b) &lt; <b>"
    coded = app.literal(hostile)
    assert not set("<>*`$[]()_\"'") & set(coded)
    assert html.unescape(coded) == hostile
    assert app.literal("one\ntwo\r\x00\u202e") == "one<br>two   "
    assert html.unescape(app.literal("\U0001f469\u200d\U0001f680 à 你")) == "\U0001f469\u200d\U0001f680 à 你"


def test_reply_has_the_colours_of_the_masks():
    mask = np.ones((4, 6), bool)
    reply = answer_of(
        Target("cup", True, 0.81, mask, [0]), Target("cup", True, 0.6, mask, [1]), Target("dog", False, 0.1, None, []),
        text="A cup and another cup, but no dog <here>.")
    bubble = app.reply_bubble(reply)
    assert bubble.count("cup</span>") == 2 and bubble.count(COLOURS[0]) == 4 and bubble.count(COLOURS[1]) == 4
    assert "cup 81&#37;" in bubble and "cup &#40;2&#41; 60&#37;" in bubble
    assert '<span class="absent">not in the picture&#58; dog</span>' in bubble and "<here>" not in bubble
    assert "Not in the picture: dog" in app.summary(reply) and "2 things outlined" in app.summary(reply)


def test_panel_shows_what_is_there_in_its_colour():
    class Scene:
        image = picture()

    mask = np.zeros(Scene.image.shape[:2], bool)
    mask[100:200, 50:150] = True
    reply = Answer("", [Target("bench", False, 0.2, None, []), Target("box", True, 0.9, mask, [0])], mask.shape, None)
    shown = app.panel(Scene, reply)
    (opacity, label), = shown["value"][1]
    assert label == "box 90%" and shown["color_map"] == {label: COLOURS[1]}
    assert opacity.shape == mask.shape and ((opacity > 0) == mask).all()
    assert opacity[150, 100] == 0.5 and opacity[100, 50] == 1  # a rim around a see-through inside


def test_help_is_instant():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, app.__file__, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--preset" in done.stdout and "--share" in done.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    listed = subprocess.run([sys.executable, "-c", "import app, sys; print([m for m in ('gradio', 'torch', 'numpy') "
                             "if m in sys.modules])"], cwd=Path(app.__file__).parent, capture_output=True, text=True)
    assert listed.stdout.strip() == "[]"


def test_bad_start_is_one_line(monkeypatch, capsys):
    import assistant

    class Assistant:
        @staticmethod
        def from_preset(name, *args, **options):
            raise BadInput(f"no preset {name!r}: choose pocket")

    monkeypatch.setattr(assistant, "Assistant", Assistant, raising=False)
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    assert app.main(["--preset", "poket"]) == 2
    assert capsys.readouterr().err == "error: no preset 'poket': choose pocket\n"


def test_taken_port_is_one_line(page):
    port = int(page[0].rstrip("/").rsplit(":", 1)[1])
    with gradio.Blocks() as other:
        pass
    with pytest.raises(BadInput, match="--port"):
        app.serve(other, port=port, block=False)


# -- as a program -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def client(page):
    from gradio_client import Client

    return Client(page[0], verbose=False)


def ask(client, image, question):
    return client.predict(image, question, api_name="/ask")


def test_api_returns_masks(client, photo):
    from gradio_client import handle_file
    from pycocotools import mask as coco

    reply = ask(client, handle_file(str(photo)), "the red one, and is there a bench?")
    ball, bench = reply["targets"]
    assert ball["phrase"] == "red ball" and ball["present"] and ball["confidence"] == pytest.approx(0.92)
    assert not bench["present"] and bench["rle"] is None and "no bench" in reply["text"]
    assert (coco.decode(ball["rle"]).astype(bool) == (picture() == PAINT["red"]).all(-1)).all()
    assert (reply["height"], reply["width"]) == picture().shape[:2]


def test_api_is_the_only_public_endpoint(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/ask"]
    assert [p["parameter_name"] for p in endpoints["/ask"]["parameters"]] == ["image", "question"]


def test_api_errors_are_messages(client, photo, no_photo):
    from gradio_client import handle_file

    for image, question, message in [
        (handle_file(str(no_photo)), "red?", "no picture"),
        (handle_file(str(photo)), " ", "the question is empty"),
        (handle_file(str(photo)), "crash", "something went wrong here"),
        (None, "red?", "the picture is missing"),
    ]:
        with pytest.raises(Exception, match=message) as caught:
            ask(client, image, question)
        assert "secret" not in str(caught.value) and str(no_photo.parent) not in str(caught.value)
    assert ask(client, handle_file(str(photo)), "blue")["targets"][0]["present"]  # the process lives


def test_api_reads_uploads_only(client, photo):
    import httpx

    root = f"{client.src.rstrip('/')}/gradio_api"
    outside = str(photo)  # a good picture, but not one that was uploaded
    for image in (outside, {"path": outside}, {"path": outside, "meta": {"_type": "gradio.FileData"}},
                  {"path": str(photo.parent / "uploads" / ".." / photo.name)}, {"path": 5}, {}, 5):
        event = httpx.post(f"{root}/call/ask", json={"data": [image, "red"]}).json()["event_id"]
        stream = httpx.get(f"{root}/call/ask/{event}", timeout=60).text
        assert "event: error" in stream and "red ball" not in stream
    for path in (outside, app.__file__):
        assert httpx.get(f"{root}/file={path}").status_code in (403, 404)


def test_one_at_a_time(page, photo):
    """Questions of two programs never compute together."""
    from gradio_client import Client, handle_file

    assistant, together, running = page[1], [], []
    original = assistant.open

    def watched(image):
        running.append(1)
        together.append(len(running))
        time.sleep(0.05)
        running.pop()
        return original(image)

    assistant.open = watched
    try:
        clients = [Client(page[0], verbose=False) for _ in range(2)]
        threads = [threading.Thread(target=ask, args=(c, handle_file(str(photo)), "red")) for c in clients * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        assistant.open = original
    assert together == [1] * 6


# -- as a person --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visitor:
    def __init__(self, browser, address, width=1400, height=900):
        self.requests = []
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        self.page.goto(address)
        self.page.wait_for_selector("#question textarea")

    def drop(self, path):
        self.page.set_input_files("#photo input[type=file]", str(path))

    def open(self, path):
        self.drop(path)
        self.page.wait_for_selector("#picture img.base-image")
        self.page.wait_for_selector("text=The photo is open")

    def ask(self, question):
        """The text of the reply's bubble."""
        bubbles = self.page.locator("#chat [data-testid=bot]")
        before = bubbles.count()
        self.page.fill("#question textarea", question)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "n => { const b = document.querySelectorAll('#chat [data-testid=bot]');"
            " return b.length > n && !document.querySelector('#chat .busy')"
            " && [...document.querySelectorAll('#picture img')].every(i => i.complete) }", arg=before)
        return bubbles.nth(before).inner_text()

    def masks(self):
        return self.page.locator("#picture img.mask").count()

    def painted(self, x, y):
        """RGB on the screen at a place of the picture, in fractions of its width and height."""
        self.page.mouse.move(1, 1)  # masks fade under the mouse
        self.page.wait_for_timeout(500)
        image = self.page.locator("#picture img.base-image")
        image.scroll_into_view_if_needed()
        shot = Image.open(io.BytesIO(image.screenshot())).convert("RGB")
        return np.array(shot.getpixel((int(shot.width * x), int(shot.height * y))), int)


def test_a_visit(browser, page, photo, folder):
    visitor = Visitor(browser, page[0])
    visitor.page.wait_for_selector("#chat .example")
    visitor.page.screenshot(path=folder / "empty.png")
    visitor.open(photo)
    plain = visitor.painted(0.7, 0.7)
    assert np.abs(plain - PAINT["red"]).max() < 25

    said = visitor.ask("where is the red thing, and is there a bench?")
    assert "red ball 92%" in said and "not in the picture: bench" in said
    assert "Not in the picture: bench" in visitor.page.inner_text("#status")
    assert visitor.masks() == 1 and "red ball 92%" in visitor.page.inner_text("#picture .legend")
    colour = np.array([int(COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)])
    tinted = visitor.painted(0.7, 0.7)
    assert np.abs(tinted - colour).sum() < np.abs(plain - colour).sum() * 0.75  # the mask lies over the ball
    assert np.abs(visitor.painted(0.45, 0.5) - 200).max() < 25  # and nowhere else
    drawn = visitor.page.eval_on_selector("#chat .found", "e => getComputedStyle(e).borderBottomColor")
    assert drawn == f"rgb({colour[0]}, {colour[1]}, {colour[2]})"
    assert "red ball" in visitor.page.get_attribute("#picture img.mask", "alt")
    visitor.page.screenshot(path=folder / "answer.png")

    assert "(turn 2)" in visitor.ask("and the green one?")  # it remembers
    with visitor.page.expect_download() as download:
        visitor.page.click("#export")
    with zipfile.ZipFile(download.value.path()) as archive:
        saved = json.loads(archive.read("answer.json"))
        assert {"mask.png", "overlay.png", "coco.json", "labelme.json"} <= set(archive.namelist())
    assert saved["question"] == "and the green one?"

    visitor.page.click("#again")
    visitor.page.wait_for_selector("text=Forgotten.")
    assert visitor.masks() == 0 and "(turn 1)" in visitor.ask("blue")
    only_absent = visitor.ask("is there a bench?")
    assert "no bench" in only_absent and visitor.masks() == 0
    assert "Nothing is outlined." in visitor.page.inner_text("#status")

    visitor.page.click("#fresh")
    visitor.page.wait_for_selector("#chat .example")  # as at first
    assert not visitor.page.is_visible("#picture")
    outside = [url for url in visitor.requests if not url.startswith((page[0], "data:", "blob:"))]
    assert not outside, "the page works without a network"


def test_what_goes_wrong_is_said(browser, page, photo, no_photo):
    visitor = Visitor(browser, page[0])
    assert "No photo is open" in visitor.ask("red?")
    visitor.drop(no_photo)
    visitor.page.wait_for_selector("text=I could not open this photo")
    said = visitor.page.inner_text("#chat")
    assert "no picture" in said and str(no_photo.parent) not in said
    visitor.page.wait_for_selector("[data-testid=toast-body]")
    visitor.open(photo)
    assert "question is empty" in visitor.ask("")
    assert "went wrong here" in visitor.ask("crash") and "secret" not in visitor.page.inner_text("body")
    hostile = "<b>x</b> <img src=x onerror=alert(1)> **y** $$z$$"
    assert hostile in visitor.ask(hostile)  # the fake repeats it, as text
    assert visitor.page.locator("#chat b, #chat strong, #chat img, #chat .katex").count() == 0
    assert visitor.page.locator("#picture .legend img, #picture .legend b").count() == 0
    assert "red ball" in visitor.ask("red")


def test_an_example_answers_at_once(browser, page):
    visitor = Visitor(browser, page[0])
    visitor.page.click("#chat .example >> nth=0")
    visitor.page.wait_for_selector("#picture img.base-image")
    visitor.page.wait_for_selector("text=(turn 1)")
    assert app.EXAMPLES[0][1] in visitor.page.inner_text("#chat")


def test_two_visitors_keep_apart(browser, page, photo, folder):
    one, two = Visitor(browser, page[0]), Visitor(browser, page[0])
    Image.new("RGB", (64, 48), PAINT["green"]).save(folder / "green.png")
    one.open(photo)
    two.open(folder / "green.png")
    assert "red ball 92%" in one.ask("red") and "no red ball" in two.ask("red").lower()
    assert "(turn 2)" in one.ask("blue") and "(turn 2)" in two.ask("green")
    assert "red" not in two.page.inner_text("#picture") and "(turn 3)" in one.ask("red")
    two.page.click("#fresh")
    assert "(turn 4)" in one.ask("green")


@pytest.mark.parametrize("width,height,theme", [(390, 844, "light"), (1400, 900, "dark")])
def test_fits_the_screen(browser, page, photo, folder, width, height, theme):
    visitor = Visitor(browser, f"{page[0]}?__theme={theme}", width, height)
    visitor.page.screenshot(path=folder / f"empty-{width}-{theme}.png")
    visitor.open(photo)
    visitor.ask("red, green, blue and a bench")
    visitor.page.screenshot(path=folder / f"answer-{width}-{theme}.png", full_page=True)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    photo_box = visitor.page.locator("#picture").bounding_box()
    chat_box = visitor.page.locator("#chat").bounding_box()
    if width < 768:
        assert photo_box["y"] < chat_box["y"] and photo_box["width"] == chat_box["width"]
    else:
        assert chat_box["x"] < photo_box["x"] and photo_box["y"] == chat_box["y"]

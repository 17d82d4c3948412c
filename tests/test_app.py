"""The chat page, driven by a program (gradio_client) and by a person's hands (headless Chromium)."""

import base64
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

from assistant.errors import BadInput
from assistant.export.colours import COLOURS
from assistant.record import check_records
from assistant.sam.mask_ops import decode_rle, encode_rle

gradio = pytest.importorskip("gradio", reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")
import app
from assistant.page.layout import build_page
from tests.helpers.fake_assistant import PAINT, FakeAssistant, near, picture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
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
        blocks = build_page(assistant, app.save_examples(folder), folder / "records")
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


# -- starting it --------------------------------------------------------------------------------------------------


def test_help_is_instant():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, app.__file__, "--help"], capture_output=True, text=True)
    assert (
        done.returncode == 0
        and "--preset" in done.stdout
        and "--share" in done.stdout
        and "--auth" in done.stdout
    )
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import app, sys; print([m for m in ('gradio', 'torch', 'numpy') if m in sys.modules])",
        ],
        cwd=Path(app.__file__).parent,
        capture_output=True,
        text=True,
    )
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


def test_a_page_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)  # as behind a proxy
    with gradio.Blocks() as other:
        pass
    with pytest.raises(BadInput, match="NO_PROXY"):
        app.serve(other, port=None, block=False)


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


def test_api_does_what_the_page_does(client, page, photo):
    from gradio_client import handle_file

    image, opened = handle_file(str(photo)), page[1].pipeline.opened
    red, green = (near(picture(), PAINT[name]) for name in ("red", "green"))
    call = lambda name, *values, **named: client.predict(image, *values, api_name=f"/{name}", **named)
    found = call("segment", points=[[60, 150]])
    assert (decode_rle(found["masks"][0]["rle"]) == green).all() and [
        m["score"] for m in found["masks"]
    ] == pytest.approx([0.8, 0.6, 0.4])
    assert len(call("segment", box=[200, 100, 350, 239], multimask=False)["masks"]) == 1
    assert (
        decode_rle(
            call("segment", points=[[250, 170]], labels=[0], mask=encode_rle(red | green))["masks"][0]["rle"]
        )
        == green
    ).all()
    assert call("ask", "what is this?", about=encode_rle(green))["targets"][0]["phrase"] == "green box"
    later = call("ask", "now remove the ball", earlier=["red and green"])
    assert [t["phrase"] for t in later["targets"]] == ["green box"]
    assert [m["area"] for m in call("everything", 1.0)["masks"]] == sorted(
        (m["area"] for m in call("everything")["masks"]), reverse=True
    )
    listed = call("classes", "red, bench")["classes"]
    assert [(c["name"], c["present"], c["rle"] is None) for c in listed] == [
        ("red", True, False),
        ("bench", False, True),
    ]
    assert (decode_rle(call("segment_like", image, encode_rle(green), "crate")["rle"]) == green).all()
    heat = Image.open(io.BytesIO(base64.b64decode(call("attend", "ball")["heat"].split(",")[1])))
    assert heat.size == (360, 240) and heat.getextrema() == (pytest.approx(4, abs=4), 255)
    assert page[1].pipeline.opened - opened <= 1  # the same picture is not opened again
    for name, values in (
        ("segment", {"mask": {"size": [1, 1], "counts": "x"}}),
        ("everything", {"granularity": 7}),
        ("classes", {"names": ""}),
        ("ask", {"question": "x", "about": {}}),
        ("ask", {"question": "x", "earlier": ["x"] * 9}),
    ):
        with pytest.raises(Exception) as caught:
            call(name, **values)
        assert "went wrong" not in str(caught.value) and "\n" not in str(caught.value)


def test_api_is_the_only_public_endpoint(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/ask", "/segment", "/everything", "/classes", "/segment_like", "/attend"]
    assert [p["parameter_name"] for p in endpoints["/ask"]["parameters"]] == [
        "image",
        "question",
        "about",
        "earlier",
    ]


def test_api_errors_are_messages(client, photo, no_photo):
    from gradio_client import handle_file

    for image, question, message in [
        (handle_file(str(no_photo)), "red?", "holiday.png is not a picture"),
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
    for image in (
        outside,
        {"path": outside},
        {"path": outside, "meta": {"_type": "gradio.FileData"}},
        {"path": str(photo.parent / "uploads" / ".." / photo.name)},
        {"path": 5},
        {},
        5,
    ):
        event = httpx.post(f"{root}/call/ask", json={"data": [image, "red"]}).json()["event_id"]
        stream = httpx.get(f"{root}/call/ask/{event}", timeout=60).text
        assert "event: error" in stream and "red ball" not in stream
    for path in (
        outside,
        app.__file__,
        "/etc/passwd",
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        f"{photo.parent}/uploads/../{photo.name}",
        f"{photo.parent}/records/records.jsonl",
        "/proc/self/environ",
    ):
        assert httpx.get(f"{root}/file={path}").status_code in (403, 404), path
    assert httpx.post(f"{root}/upload", files={"files": ("../../../evil.png", b"x")}).status_code in (
        200,
        400,
    )
    assert not list(photo.parent.parent.rglob("evil.png")) or all(
        (photo.parent / "uploads") in found.parents for found in photo.parent.parent.rglob("evil.png")
    )
    from_afar = {
        "path": f"{client.src}gradio_api/heartbeat/x",
        "url": f"{client.src}config",
        "meta": {"_type": "gradio.FileData"},
    }
    event = httpx.post(f"{root}/call/ask", json={"data": [from_afar, "red"]}).json()["event_id"]
    assert "event: error" in httpx.get(f"{root}/call/ask/{event}", timeout=60).text


def test_hostile_input_through_the_wire(client, photo, folder):
    """A few; `python -m tests.helpers.load_app` sends 300 of each to the real preset."""
    from gradio_client import handle_file

    from tests.helpers.hostile import PIECES, hostile_files

    cases = [(f, "red") for f in hostile_files(folder / "hostile", 16)[::3]] + [
        (photo, q) for q in [*PIECES[:20:6], "\0" * 100_000]
    ]
    for file, question in cases:
        try:
            assert isinstance(ask(client, handle_file(str(file)), question)["text"], str)
        except gradio_client.exceptions.AppError as error:
            assert "went wrong" not in str(error) and "\n" not in str(error) and len(str(error)) < 700, (
                file.name,
                question[:50],
            )


def test_a_password_keeps_others_out(folder):
    import httpx

    blocks = build_page(FakeAssistant())
    _, address, _ = app.serve(blocks, port=None, auth=app.pair("ada:pass:word"), block=False)
    try:
        assert httpx.get(f"{address}config").status_code == 401
        assert httpx.post(f"{address}login", data={"username": "ada", "password": "pass"}).status_code == 400
        with httpx.Client() as ada:
            assert (
                ada.post(f"{address}login", data={"username": "ada", "password": "pass:word"}).status_code
                == 200
            )
            assert ada.get(f"{address}config").status_code == 200
    finally:
        blocks.close()


@pytest.mark.parametrize(
    "wrong", [["--auth", "ada"], ["--auth", ":x"], ["--share", "maybe"], ["--port", "x"]]
)
def test_wrong_flags_are_refused(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        app.main(wrong)
    assert "error: argument" in capsys.readouterr().err


def test_mcp_offers_the_same_actions(folder, photo):
    pytest.importorskip("mcp", reason="the mcp extra is not installed")
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    blocks = build_page(FakeAssistant())
    _, address, _ = app.serve(blocks, port=None, mcp=True, block=False)

    async def visit():
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/") as (reader, writer, _),
            ClientSession(reader, writer) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            image = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
            name = lambda action: next(n for n in tools if n.endswith(action))
            said = await session.call_tool(
                name("ask"), {"image": image, "question": 'red, "yes" and a bench'}
            )
            heat = await session.call_tool(name("attend"), {"image": image, "phrase": "ball"})
            wrong = await session.call_tool(name("classes"), {"image": image, "names": ""})
            return tools, said, heat, wrong

    try:
        tools, said, heat, wrong = asyncio.run(visit())
    finally:
        blocks.close()
    assert len(tools) == 6 and not said.isError
    (text,) = said.content
    reply = json.loads(text.text)
    assert reply["question"] == 'red, "yes" and a bench' and reply["targets"][1]["rle"] is None
    assert (decode_rle(reply["targets"][0]["rle"]) == near(picture(), PAINT["red"])).all()
    size, shown = heat.content  # a picture is sent as one, not as text
    assert json.loads(size.text) == {"width": 360, "height": 240} and shown.mimeType == "image/png"
    assert Image.open(io.BytesIO(base64.b64decode(shown.data))).size == (360, 240)
    assert wrong.isError and "the list of classes is empty" in wrong.content[0].text


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
        threads = [
            threading.Thread(target=ask, args=(c, handle_file(str(photo)), "red")) for c in clients * 3
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        assistant.open = original
    assert together == [1] * 6


# -- as a person --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium):
    yield chromium
    for context in chromium.contexts:  # pages that stay open go on drawing
        context.close()


class Visitor:
    def __init__(self, browser, address, width=1400, height=900):
        self.requests, self.wrong = [], []
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#question textarea")

    def drop(self, path):
        self.page.set_input_files("#photo input[type=file]", str(path))

    def open(self, path):
        self.drop(path)
        self.page.wait_for_selector("text=The photo is open")
        self.drawn(0)

    def drawn(self, count, view="answer"):
        """Wait until the picture shows so many masks."""
        self.page.wait_for_selector(f'.mp-stage:not(.mp-busy)[data-drawn="{count}"][data-view="{view}"]')

    def ask(self, question):
        """The text of the reply's bubble."""
        bubbles = self.page.locator("#chat [data-testid=bot]")
        before = self.page.locator("#chat [data-testid=user]").count()
        self.page.fill("#question textarea", question)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "n => document.querySelectorAll('#chat [data-testid=user]').length > n && "
            "!document.querySelector('#chat .busy')",
            arg=before,
        )
        return bubbles.last.inner_text()

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def at(self, x, y):
        """Place on the screen of a place in the picture, in shares of its width and height."""
        self.page.locator(".mp-over").scroll_into_view_if_needed()
        box = self.page.locator(".mp-over").bounding_box()
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    def painted(self, x, y):
        """RGB on the screen at a place of the picture, once nothing fades any more."""
        self.page.mouse.move(1, 1)  # masks fade under the mouse
        before = None
        for _ in range(40):
            shot = Image.open(io.BytesIO(self.page.locator(".mp-over").screenshot())).convert("RGB")
            if shot.tobytes() == before:
                break
            before = shot.tobytes()
            self.page.wait_for_timeout(300)
        return np.array(shot.getpixel((int(shot.width * x), int(shot.height * y))), int)

    def download(self, button):
        with self.page.expect_download() as download:
            self.page.click(button)
        return download.value.path()


def test_a_visit(browser, page, client, photo, folder):
    from gradio_client import handle_file

    visitor = Visitor(browser, page[0])
    visitor.page.wait_for_selector("#chat .example")
    assert not visitor.page.is_visible("#power") and not visitor.page.is_visible(
        "#turns"
    )  # a newcomer sees little
    visitor.open(photo)
    plain = visitor.painted(0.7, 0.7)
    assert np.abs(plain - PAINT["red"]).max() < 25
    said = visitor.ask("where is the red thing, and is there a bench?")
    assert "red ball 92%" in said and "not in the picture: bench" in said
    assert "Not in the picture: bench" in visitor.page.inner_text("#status")
    visitor.drawn(1)
    assert "red ball 92%" in " ".join(
        visitor.page.inner_text(".mp-legend").split()
    ) and "no bench" in visitor.page.inner_text(".mp-legend")
    colour = np.array([int(COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)])
    tinted = visitor.painted(0.7, 0.7)
    assert np.abs(tinted - colour).sum() < np.abs(plain - colour).sum() * 0.75  # the mask lies over the ball
    assert np.abs(visitor.painted(0.45, 0.5) - 200).max() < 25  # and nowhere else
    drawn = visitor.page.eval_on_selector("#chat .found", "e => getComputedStyle(e).borderBottomColor")
    assert drawn == f"rgb({colour[0]}, {colour[1]}, {colour[2]})"
    assert visitor.page.get_attribute(".mp-over", "aria-label") == "outlined: red ball"
    assert visitor.page.get_attribute(".mp-photo", "alt") == "Photo: ball"

    assert "turn 2" in visitor.ask("and the green one? turns")  # it remembers
    visitor.ask("add the blue one")
    visitor.tab("Save")
    with zipfile.ZipFile(visitor.download("#export")) as archive:
        saved = json.loads(archive.read("answer.json"))
        assert {
            "mask.png",
            "overlay.png",
            "coco.json",
            "labelme.json",
            "1_green-box.png",
            "1_green-box_cutout.png",
        } <= set(archive.namelist())
        mask = np.asarray(Image.open(io.BytesIO(archive.read("1_green-box.png")))) > 0
    again = ask(client, handle_file(str(photo)), "green")["targets"][0]["rle"]
    assert saved["targets"][0]["rle"] == again and (mask == decode_rle(again)).all()

    visitor.page.click("#undo")
    visitor.drawn(1)
    visitor.page.click("#again")
    visitor.page.wait_for_selector("text=Forgotten.")
    visitor.drawn(0)
    assert "turn 1" in visitor.ask("blue turns")
    assert "no bench" in visitor.ask(
        "is there a bench?"
    ) and "Nothing is outlined." in visitor.page.inner_text("#status")
    visitor.page.click("#fresh")
    visitor.page.wait_for_selector("#chat .example")  # as at first
    assert not visitor.page.is_visible(".mp-stage")
    outside = [url for url in visitor.requests if not url.startswith((page[0], "data:", "blob:"))]
    assert not outside, "the page works without a network"
    visitor.page.reload()
    visitor.page.click("text=Earlier conversations")
    visitor.page.wait_for_selector(".past >> text=is there a bench?")  # text only
    assert not visitor.wrong


def test_by_hand_and_corrected(browser, page, photo, folder):
    """Click, leave out, box, brush, candidates; refine what the chat found; by keyboard; as a training record."""
    visitor = Visitor(browser, page[0])
    visitor.open(photo)
    visitor.ask("red and a bench")
    visitor.tab("By hand")
    visitor.drawn(0, "hand")
    visitor.page.mouse.click(*visitor.at(0.2, 0.7))
    visitor.drawn(3, "hand")
    assert visitor.page.inner_text(".mp-found").split("\n") == ["A 0.80", "B 0.60", "C 0.40"]
    visitor.page.click("text=B 0.60")
    visitor.page.wait_for_selector('.mp-found button[aria-pressed="true"] >> text=B 0.60')
    visitor.page.fill("#name textarea, #name input", "bench")
    visitor.page.click("#use")
    visitor.drawn(2)
    assert "corrected by hand" in visitor.page.inner_text("#chat")

    visitor.page.click('.mp-legend button:has-text("red ball")')
    visitor.page.wait_for_selector("#chip >> text=Your next question is about")
    visitor.page.click("#refine")
    visitor.drawn(1, "hand")
    visitor.page.mouse.click(*visitor.at(0.5, 0.1))  # the sky, too
    visitor.drawn(5, "hand")
    visitor.page.click('[data-do="clear"]')
    visitor.page.click('[data-tool="erase"]')
    x, y = visitor.at(0.7, 0.5)
    visitor.page.mouse.move(x, y)
    visitor.page.mouse.down()
    visitor.page.mouse.move(*visitor.at(0.7, 0.95), steps=6)
    visitor.page.mouse.up()
    visitor.page.click("text=as drawn")
    visitor.page.click("#use")
    visitor.drawn(2)
    assert np.abs(visitor.painted(0.7, 0.7) - PAINT["red"]).max() < 25  # a stripe was rubbed out
    assert np.abs(visitor.painted(0.64, 0.7) - PAINT["red"]).max() > 25

    visitor.page.mouse.click(*visitor.at(0.2, 0.7))  # on the picture itself
    visitor.page.wait_for_selector("#chip >> text=bench")
    assert "green box" in visitor.ask("what is this?")
    visitor.drawn(1)
    visitor.page.click("#undo")
    visitor.drawn(2)
    visitor.page.click('.mp-legend button:has-text("bench")')
    visitor.page.wait_for_selector("#chip >> text=bench")
    visitor.page.click("#gone")
    visitor.drawn(1)
    visitor.page.click("#teach")
    visitor.page.wait_for_selector("text=Kept as a training record")
    assert check_records(folder / "records" / "records.jsonl") == []
    visitor.tab("Save")
    with zipfile.ZipFile(visitor.download("#taught")) as archive:
        archive.extractall(folder / "taught")
    assert check_records(folder / "taught" / "records.jsonl") == []

    visitor.tab("By hand")
    visitor.drawn(0, "hand")
    visitor.page.click('[data-tool="box"]')
    visitor.page.focus(".mp-over")
    for key in (
        ["ArrowRight"] * 5 + ["Enter"] + ["Shift+ArrowRight"] * 6 + ["Shift+ArrowDown"] * 8 + ["Enter"]
    ):
        visitor.page.keyboard.press(key)
    visitor.drawn(4, "hand")
    assert not visitor.wrong


def test_everything_classes_and_a_saved_conversation(browser, page, photo, folder):
    visitor = Visitor(browser, page[0])
    visitor.open(photo)
    visitor.ask("red and green")
    visitor.tab("Everything")
    visitor.drawn(3, "everything")
    visitor.page.mouse.click(*visitor.at(0.5, 0.1))
    visitor.page.wait_for_selector("#chip >> text=region 1")
    assert "blue sky" in visitor.ask("what is this?")
    visitor.tab("Classes")
    visitor.page.fill("#names textarea", "red, bench")
    visitor.page.click("#map")
    visitor.drawn(1, "classes")
    assert "Not in the picture: bench" in visitor.page.inner_text("#status")
    visitor.tab("Save")
    shutil.copy(visitor.download("#keep"), folder / "talk.json")
    Image.new("RGB", (64, 48), PAINT["green"]).save(folder / "second.png")
    _choose(visitor, "#more", folder / "second.png")
    visitor.page.wait_for_selector("#strip >> text=2. second")
    visitor.page.click("#strip >> text=1. ball")
    visitor.page.wait_for_selector('.mp-photo[alt="Photo: ball"]')
    visitor.page.click("#chat [data-testid=bot] >> nth=0")
    visitor.drawn(2)
    visitor.page.click('.mp-legend button:has-text("green box")')
    visitor.page.wait_for_selector("#chip >> text=green box")
    visitor.tab("Like this")
    visitor.page.click("#alike")
    visitor.page.wait_for_selector('.mp-photo[alt="Photo: second"]')
    visitor.drawn(1)
    visitor.tab("Answer")
    visitor.page.click("#look")
    visitor.drawn(1, "looking")
    visitor.page.click("#look")  # again, for the masks
    visitor.drawn(1)
    assert "green box" in visitor.ask("green") and "Photo 2" in visitor.page.inner_text("#chat")
    visitor.page.click("#strip >> text=1. ball")
    visitor.page.wait_for_selector('.mp-photo[alt="Photo: ball"]')
    visitor.page.click("#fresh")
    visitor.page.wait_for_selector("#reopen", state="visible")
    _choose(visitor, "#reopen", folder / "talk.json")
    visitor.page.wait_for_selector("#chat >> text=what is this?")
    visitor.drawn(1)
    visitor.page.click("#chat [data-testid=bot] >> nth=0")  # the first answer's masks again
    visitor.drawn(2)
    visitor.page.click("#chat [data-testid=user] >> nth=0")
    visitor.page.wait_for_selector("text=Editing this question")
    assert visitor.page.input_value("#question textarea") == "red and green"
    visitor.page.fill("#question textarea", "blue")
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_function(
        "() => document.querySelectorAll('#chat [data-testid=user]').length == 1 && "
        "!document.querySelector('#chat .busy')"
    )
    assert "blue sky" in visitor.page.inner_text("#chat")
    visitor.page.click("#fresh")
    (folder / "broken.json").write_text('{"maskpick": 1}')
    _choose(visitor, "#reopen", folder / "broken.json")
    visitor.page.wait_for_selector("text=this is no conversation that can be reopened")
    assert not visitor.wrong


def _choose(visitor, button, path):
    visitor.page.wait_for_timeout(
        1500
    )  # what came before has ended: a button that is drawn anew forgets its file
    with visitor.page.expect_file_chooser() as chooser:
        visitor.page.click(button)
    chooser.value.set_files(str(path))


def test_what_goes_wrong_is_said(browser, page, photo, no_photo):
    visitor = Visitor(browser, page[0])
    assert "No photo is open" in visitor.ask("red?")
    visitor.drop(no_photo)
    visitor.page.wait_for_selector("text=I could not open this photo")
    said = visitor.page.inner_text("#chat")
    assert "not a picture" in said and str(no_photo.parent) not in said
    visitor.page.wait_for_selector("[data-testid=toast-body]")
    visitor.open(photo)
    assert "question is empty" in visitor.ask("")
    assert "went wrong here" in visitor.ask("crash") and "secret" not in visitor.page.inner_text("body")
    hostile = "<b>x</b> <img src=x onerror=alert(1)> **y** $$z$$"
    assert hostile in visitor.ask(hostile)  # the fake repeats it, as text
    assert visitor.page.locator("#chat b, #chat strong, #chat img, #chat .katex").count() == 0
    assert visitor.page.locator(".mp-legend img, .mp-legend b").count() == 0
    assert "red ball" in visitor.ask("red")
    visitor.page.fill("#question textarea", "slow red")
    visitor.page.keyboard.press("Enter")
    visitor.page.click("#stop")
    visitor.page.wait_for_selector("#chat >> text=Stopped.")
    visitor.page.wait_for_function("() => !document.querySelector('#chat .busy')")
    steps = page[1].pipeline.steps
    assert (
        "turn 3" in visitor.ask("turns") and page[1].pipeline.steps == steps < 60
    )  # it has ended, and has no place in memory


def test_two_visitors_keep_apart(browser, page, photo, folder):
    one, two = Visitor(browser, page[0]), Visitor(browser, page[0])
    Image.new("RGB", (64, 48), PAINT["green"]).save(folder / "green.png")
    one.open(photo)
    two.open(folder / "green.png")
    assert "red ball 92%" in one.ask("red") and "no red ball" in two.ask("red").lower()
    assert "turn 2" in one.ask("blue turns") and "turn 2" in two.ask("green turns")
    assert "red" not in two.page.inner_text(".mp-legend") and "turn 3" in one.ask("turns")
    two.page.click("#fresh")
    assert "turn 4" in one.ask("turns")


@pytest.mark.parametrize("width,height,theme", [(390, 844, "light"), (1400, 900, "dark")])
def test_fits_the_screen(browser, page, photo, folder, width, height, theme):
    visitor = Visitor(browser, f"{page[0]}?__theme={theme}", width, height)
    visitor.page.screenshot(path=folder / f"empty-{width}-{theme}.png")
    if theme == "dark":  # an example answers at once
        visitor.page.click("#chat .example >> nth=0")
        visitor.page.wait_for_selector("#power", state="visible")
        visitor.page.wait_for_function(
            "() => document.querySelector('#chat [data-testid=bot]') && !document.querySelector('#chat .busy')"
        )
        assert app.EXAMPLES[0][1] in visitor.page.inner_text("#chat")
    else:
        visitor.open(photo)
    visitor.ask("red, green, blue and a bench")
    visitor.page.screenshot(path=folder / f"answer-{width}-{theme}.png", full_page=True)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    seen, chat, tabs = (visitor.page.locator(name).bounding_box() for name in (".mp-stage", "#chat", "#tabs"))
    if width < 768:
        assert seen["y"] < chat["y"] < tabs["y"] and chat["width"] > 0.8 * width
    else:
        assert chat["x"] < seen["x"] and abs(seen["y"] - chat["y"]) < 20


def test_the_documented_example_runs(page, photo, monkeypatch):
    guide = (Path(app.__file__).parent / "docs/page.md").read_text(encoding="utf-8")
    (example,) = [
        block for block in guide.split("```") if block.startswith("python\n") and "handle_file" in block
    ]
    monkeypatch.chdir(photo.parent)
    Image.fromarray(picture(300, 480)).save("photo.jpg", quality=95)
    found = {}
    exec(example.removeprefix("python\n").replace("http://127.0.0.1:7860", page[0]), found)
    assert (
        found["answer"]["question"] == "what keeps the rain off?"
        and found["left"]["question"] == "the one on the left"
    )
    assert len(found["masks"]["masks"]) == 3

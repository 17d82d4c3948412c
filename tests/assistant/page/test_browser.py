"""The page as a person uses it, in a headless Chromium; skipped where there is none."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image

from assistant.export.colours import COLOURS
from assistant.page.examples import SOURCE_IMAGES
from assistant.page.session import Session
from assistant.record import check_records
from assistant.sam.mask_ops import decode_rle
from tests.helpers.fake_assistant import COLOURS as PAINTS
from tests.helpers.visitor import Visitor


def test_a_visit(browser, served_page, client, photo, folder):
    visitor = Visitor(browser, served_page.address)
    visitor.page.wait_for_selector("#chat .example")
    assert not visitor.page.is_visible("#power")  # a newcomer sees little
    assert not visitor.page.is_visible("#turns")
    visitor.open(photo)
    plain = visitor.colour(0.7, 0.7)
    assert np.abs(plain - PAINTS["red"]).max() < 25
    reply = visitor.ask("where is the red thing, and is there a bench?")
    assert "red ball 92%" in reply and "no bench" in reply
    assert visitor.page.inner_text("#status") == "1 thing outlined."
    visitor.wait_for_masks(1)
    legend = " ".join(visitor.page.inner_text(".mp-legend").split())
    assert "red ball 92%" in legend and "no bench" in legend
    colour = np.array([int(COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)])
    tinted = visitor.colour(0.7, 0.7)
    assert np.abs(tinted - colour).sum() < np.abs(plain - colour).sum() * 0.75  # the mask lies over the ball
    assert np.abs(visitor.colour(0.45, 0.5) - 200).max() < 25  # and nowhere else
    drawn = visitor.page.eval_on_selector("#chat .found", "e => getComputedStyle(e).borderBottomColor")
    assert drawn == f"rgb({colour[0]}, {colour[1]}, {colour[2]})"
    assert visitor.page.get_attribute(".mp-over", "aria-label") == "outlined: red ball"
    assert visitor.page.get_attribute(".mp-photo", "alt") == "Photo: ball"

    assert "turn 2" in visitor.ask("and the green one? turns")  # it remembers
    visitor.ask("add the blue one")
    visitor.open_tab("Save")
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
    again = client.predict(handle_file(str(photo)), "green", api_name="/ask")["targets"][0]["rle"]
    assert saved["targets"][0]["rle"] == again and (mask == decode_rle(again)).all()

    visitor.page.click("#undo")
    visitor.wait_for_masks(1)
    visitor.page.click("#again")
    visitor.page.wait_for_selector("text=Forgotten")
    visitor.wait_for_masks(0)
    visitor.page.click("#undo")
    visitor.wait_for_masks(1)
    visitor.page.click("#again")
    visitor.wait_for_masks(0)
    assert "turn 1" in visitor.ask("blue turns")
    assert "no bench" in visitor.ask("is there a bench?")
    assert "Nothing is outlined." in visitor.page.inner_text("#status")
    visitor.page.click("#fresh")
    visitor.page.wait_for_selector("#chat .example")  # as at first
    assert not visitor.page.is_visible(".mp-stage")
    visitor.page.click("#undo")
    visitor.page.wait_for_selector("#chat >> text=is there a bench?")
    visitor.page.click("#fresh")
    visitor.page.wait_for_selector("#chat .example")
    visitor.page.click("text=Earlier conversations")
    visitor.page.click(".past >> text=Reopen")
    visitor.page.wait_for_selector("#chat >> text=is there a bench?")
    visitor.page.wait_for_selector(".past", state="detached")
    assert "turn 3" in visitor.ask("turns")  # it remembers
    visitor.page.click("#fresh")
    visitor.page.wait_for_selector(".past")
    outside = [url for url in visitor.requests if not url.startswith((served_page.address, "data:", "blob:"))]
    assert not outside, "the page works without a network"
    visitor.page.reload()
    visitor.page.click("text=Earlier conversations")
    visitor.page.wait_for_selector(".past >> text=is there a bench?")  # text only
    assert not visitor.script_errors


def test_words_and_masks_light_each_other(browser, served_page, photo):
    """By pointer and by keyboard; words of an earlier answer light nothing."""
    visitor = Visitor(browser, served_page.address)
    page = visitor.page
    visitor.open(photo)
    page.click("#chat .option >> nth=0")  # a suggested question
    page.wait_for_selector('#chat [data-testid=user]:has-text("Where is the red ball?")')
    page.wait_for_selector("#question textarea:focus")  # the button is gone
    visitor.wait_for_masks(1)
    visitor.ask("red and green")
    visitor.wait_for_masks(2)
    ball, box = (f'#chat .latest .found:text-is("{name}")' for name in ("red ball", "green box"))
    strong = visitor.colour(0.7, 0.7)
    page.hover(box)
    page.wait_for_selector(f"{box}.lit")
    assert page.inner_text(".mp-lit .mp-name").startswith("green box")
    shot = np.asarray(Image.open(io.BytesIO(page.locator(".mp-over").screenshot())).convert("RGB"), int)
    faded = shot[int(shot.shape[0] * 0.7), int(shot.shape[1] * 0.7)]
    plain = np.array(PAINTS["red"])
    assert np.abs(faded - plain).sum() < np.abs(strong - plain).sum() * 0.6  # the ball's mask makes way
    page.mouse.move(*visitor.position(0.7, 0.7))
    page.wait_for_selector(f"{ball}.lit")
    assert page.locator(f"{box}.lit").count() == 0
    page.hover("#chat [data-testid=bot] >> nth=0 >> .found >> nth=0")
    page.wait_for_selector(".lit", state="detached")
    page.focus(box)
    page.wait_for_selector(f"{box}.lit")
    page.keyboard.press("Enter")
    page.wait_for_selector("#chip >> text=green box")
    assert page.get_attribute(box, "aria-pressed") == "true"
    labels = page.eval_on_selector_all("#chat [data-testid=bot]", "rows => rows.map(row => row.ariaLabel)")
    assert labels == [None] * 2  # Gradio's own would read out HTML
    assert not visitor.script_errors and visitor.accessibility_faults() == []


def test_each_instance_can_be_meant(browser, served_page, photo):
    visitor = Visitor(browser, served_page.address)
    page = visitor.page
    visitor.open(photo)
    visitor.ask("red, and a pair of green ones")
    visitor.wait_for_masks(2)
    legend = " ".join(page.inner_text(".mp-legend").split())
    assert legend == "red ball 92% green box (2) 92% 1 2"
    before = visitor.colour(0.3, 0.6)
    page.click('.mp-one:text-is("2")')
    page.wait_for_selector("#chip >> text=green box 2")
    assert page.get_attribute('.mp-one:text-is("2")', "aria-pressed") == "true"
    assert visitor.colour(0.3, 0.6).sum() > before.sum() + 60  # it is lit
    page.mouse.click(*visitor.position(0.1, 0.6))
    page.wait_for_selector("#chip >> text=green box 1")
    page.mouse.move(*visitor.position(0.11, 0.6))
    assert page.inner_text(".mp-tip") == "1: green box, 92% sure"
    assert not page.is_visible("#searched")
    visitor.ask("find a bench")  # as a concept segmenter does
    page.wait_for_selector("text=Looked for bench by these names")
    assert page.input_value("#phrases textarea, #phrases input") == "bench"
    page.fill("#phrases textarea, #phrases input", "crate, green crate")
    page.click("#again-for")
    visitor.wait_for_masks(1)
    assert page.input_value("#phrases textarea, #phrases input") == "crate, green crate"
    assert visitor.accessibility_faults() == [] and not visitor.script_errors


def test_zoom_preview_and_brush(browser, served_page, photo):
    """The wheel, keys, buttons and two fingers; marks keep their places in the photo."""
    visitor = Visitor(browser, served_page.address)
    page = visitor.page

    def zoom():
        return float(page.get_attribute(".mp-stage", "data-zoom"))

    visitor.open(photo)
    visitor.ask("red")
    visitor.wait_for_masks(1)
    page.mouse.move(*visitor.position(0.7, 0.7))
    page.mouse.wheel(0, -100)
    assert zoom() == 1  # the page scrolls
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    page.wait_for_selector('.mp-stage:not([data-zoom="1.00"])')
    assert "red ball" in page.inner_text(".mp-tip")  # what was under the pointer still is
    at = visitor.position(0.7, 0.7)
    page.mouse.down()
    page.mouse.move(at[0] - 60, at[1] - 20, steps=3)
    page.mouse.up()
    assert visitor.position(0.7, 0.7) == pytest.approx((at[0] - 60, at[1] - 20), abs=3)
    assert not page.is_visible("#chip")  # a drag is no click
    page.mouse.click(*visitor.position(0.7, 0.7))
    page.wait_for_selector("#chip >> text=red ball")
    page.click("#chip button")  # or the mask would be refined
    page.wait_for_selector("#chip", state="hidden")
    page.click('[data-zoom="whole"]')
    page.keyboard.press("+")
    assert zoom() == pytest.approx(1.4)
    page.click('[data-zoom="out"]')
    assert zoom() == 1

    visitor.open_tab("By hand")
    visitor.wait_for_masks(0, "hand")
    page.wait_for_selector('.mp-stage[data-proposals="3"]')
    page.mouse.move(*visitor.position(0.2, 0.7))
    assert page.get_attribute(".mp-stage", "data-preview") == "1"  # the green box, before anything is clicked
    page.mouse.wheel(0, -300)
    page.wait_for_selector('.mp-stage:not([data-zoom="1.00"])')
    page.mouse.click(*visitor.position(0.2, 0.7))
    visitor.wait_for_masks(3, "hand")
    assert page.get_attribute(".mp-stage", "data-preview") == "-1"
    page.fill("#name textarea, #name input", "crate")
    page.click("#use")
    visitor.wait_for_masks(2)
    page.focus(".mp-over")
    page.keyboard.press("0")
    assert zoom() == 1
    assert np.abs(visitor.colour(0.2, 0.7) - PAINTS["green"]).max() > 25  # where the click was meant

    visitor.open_tab("By hand")
    visitor.wait_for_masks(0, "hand")
    assert not page.is_visible(".mp-size")
    page.click('[data-tool="brush"]')
    page.fill(".mp-size input", "12")
    x, y = visitor.position(0.5, 0.6)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 5, y, steps=2)
    page.mouse.up()
    page.wait_for_selector(".mp-found >> text=as drawn")
    page.click(".mp-found >> text=as drawn")
    drawn = [visitor.colour(0.5 - aside, 0.6) for aside in (0, 0.05, 0.09)]
    assert [bool(np.abs(colour - 200).max() > 25) for colour in drawn] == [True, True, False]
    assert not visitor.script_errors


def test_two_fingers_zoom(browser, served_page, photo):
    visitor = Visitor(browser, served_page.address, 390, 844, has_touch=True)
    visitor.open(photo)
    visitor.ask("red")
    visitor.wait_for_masks(1)
    assert visitor.page.evaluate("matchMedia('(hover: none)').matches")
    x, y = visitor.position(0.5, 0.5)
    touch = visitor.page.context.new_cdp_session(visitor.page)
    for kind, apart in [("Start", 20), ("Move", 40), ("Move", 60)]:
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    visitor.page.wait_for_selector('.mp-stage:not([data-zoom="1.00"])')
    assert float(visitor.page.get_attribute(".mp-stage", "data-zoom")) == pytest.approx(3, abs=0.2)
    assert visitor.position(0.5, 0.5) == pytest.approx((x, y), abs=3)
    visitor.open_tab("By hand")
    visitor.page.wait_for_selector(".mp-found >> text=Tap a thing")  # nothing of keys


def test_by_hand_and_corrected(browser, served_page, photo, folder):
    """Clicks, a box, the brush, candidates; a refined mask; the keyboard; training records."""
    visitor = Visitor(browser, served_page.address)
    visitor.open(photo)
    visitor.ask("red and a bench")
    visitor.open_tab("By hand")
    visitor.wait_for_masks(0, "hand")
    visitor.page.mouse.click(*visitor.position(0.2, 0.7))
    visitor.wait_for_masks(3, "hand")
    assert visitor.page.inner_text(".mp-found").split("\n") == ["A 0.80", "B 0.60", "C 0.40"]
    visitor.page.click("text=B 0.60")
    visitor.page.wait_for_selector('.mp-found button[aria-pressed="true"] >> text=B 0.60')
    visitor.page.fill("#name textarea, #name input", "bench")
    visitor.page.click("#use")
    visitor.wait_for_masks(2)
    assert "corrected by hand" in visitor.page.inner_text("#chat")

    visitor.page.click('.mp-legend button:has-text("red ball")')
    visitor.page.wait_for_selector("#chip >> text=Your next question is about")
    visitor.page.click("#refine")
    visitor.wait_for_masks(1, "hand")
    visitor.page.mouse.click(*visitor.position(0.5, 0.1))  # the sky, too
    visitor.wait_for_masks(5, "hand")
    visitor.page.click('[data-do="clear"]')
    visitor.page.click('[data-tool="erase"]')
    x, y = visitor.position(0.7, 0.5)
    visitor.page.mouse.move(x, y)
    visitor.page.mouse.down()
    visitor.page.mouse.move(*visitor.position(0.7, 0.95), steps=6)
    visitor.page.mouse.up()
    visitor.page.click("text=as drawn")
    visitor.page.click("#use")
    visitor.wait_for_masks(2)
    assert np.abs(visitor.colour(0.7, 0.7) - PAINTS["red"]).max() < 25  # a stripe was rubbed out
    assert np.abs(visitor.colour(0.64, 0.7) - PAINTS["red"]).max() > 25

    visitor.page.mouse.click(*visitor.position(0.2, 0.7))  # on the picture itself
    visitor.page.wait_for_selector("#chip >> text=bench")
    assert "green box" in visitor.ask("what is this?")
    visitor.wait_for_masks(1)
    visitor.page.click("#undo")
    visitor.wait_for_masks(2)
    visitor.page.click('.mp-legend button:has-text("bench")')
    visitor.page.wait_for_selector("#chip >> text=bench")
    visitor.page.click("#gone")
    visitor.wait_for_masks(1)
    visitor.page.click("#teach")
    visitor.page.wait_for_selector("text=Kept as a training record")
    assert check_records(folder / "records" / "records.jsonl") == []
    visitor.open_tab("Save")
    with zipfile.ZipFile(visitor.download("#taught")) as archive:
        archive.extractall(folder / "taught")
    assert check_records(folder / "taught" / "records.jsonl") == []

    visitor.open_tab("By hand")
    visitor.wait_for_masks(0, "hand")
    visitor.page.click('[data-tool="box"]')
    visitor.page.focus(".mp-over")
    for key in (
        ["ArrowRight"] * 5 + ["Enter"] + ["Shift+ArrowRight"] * 6 + ["Shift+ArrowDown"] * 8 + ["Enter"]
    ):
        visitor.page.keyboard.press(key)
    visitor.wait_for_masks(4, "hand")
    assert not visitor.script_errors


def test_everything_classes_and_a_saved_conversation(browser, served_page, photo, folder):
    visitor = Visitor(browser, served_page.address)
    visitor.open(photo)
    visitor.ask("red and green")
    visitor.open_tab("Everything")
    visitor.wait_for_masks(3, "everything")
    visitor.page.mouse.click(*visitor.position(0.5, 0.1))
    visitor.page.wait_for_selector("#chip >> text=region 1")
    assert "blue sky" in visitor.ask("what is this?")
    visitor.open_tab("Classes")
    visitor.page.fill("#names textarea", "red, bench, quark")
    visitor.page.click("#map")
    visitor.wait_for_masks(1, "classes")
    legend = " ".join(visitor.page.inner_text(".mp-legend").split())
    assert "no bench" in legend and "no quark" not in legend
    assert "I don't know the word 'quark'" in visitor.page.inner_text("#status")
    visitor.open_tab("Save")
    shutil.copy(visitor.download("#keep"), folder / "talk.json")
    Image.new("RGB", (64, 48), PAINTS["green"]).save(folder / "second.png")
    visitor.choose_file("#more", folder / "second.png")
    visitor.page.wait_for_selector("#strip >> text=2. second")
    visitor.page.click("#strip >> text=1. ball")
    visitor.page.wait_for_selector('.mp-photo[alt="Photo: ball"]')
    visitor.page.wait_for_selector('#strip [aria-pressed="true"] >> text=1. ball')
    assert visitor.page.evaluate("document.activeElement.dataset.number") == "0"  # the focus stays
    assert visitor.page.eval_on_selector("#strip img", "image => image.naturalWidth") == 96
    assert visitor.accessibility_faults() == []
    visitor.page.click("#chat [data-testid=bot] >> nth=0")
    visitor.wait_for_masks(2)
    visitor.page.click('.mp-legend button:has-text("green box")')
    visitor.page.wait_for_selector("#chip >> text=green box")
    visitor.open_tab("Like this")
    visitor.page.click("#alike")
    visitor.page.wait_for_selector('.mp-photo[alt="Photo: second"]')
    visitor.wait_for_masks(1)
    visitor.open_tab("Answer")
    visitor.page.click("#look")
    visitor.wait_for_masks(1, "looking")
    visitor.page.click("#look")  # again, for the masks
    visitor.wait_for_masks(1)
    assert "green box" in visitor.ask("green") and "Photo 2" in visitor.page.inner_text("#chat")
    visitor.page.click("#strip >> text=1. ball")
    visitor.page.wait_for_selector('.mp-photo[alt="Photo: ball"]')
    visitor.page.click("#fresh")
    visitor.page.wait_for_selector("#reopen", state="visible")
    visitor.choose_file("#reopen", folder / "talk.json")
    visitor.page.wait_for_selector("#chat >> text=what is this?")
    visitor.wait_for_masks(1)
    visitor.page.click("#chat [data-testid=bot] >> nth=0")  # the first answer's masks again
    visitor.wait_for_masks(2)
    visitor.page.click("#chat [data-testid=user] >> nth=0")
    visitor.page.wait_for_selector("text=Sending this removes the replies after it")
    assert visitor.page.input_value("#question textarea") == "red and green"
    visitor.page.wait_for_function(
        "() => document.activeElement === document.querySelector('#question textarea')"
    )
    visitor.page.fill("#question textarea", "blue")
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_function(
        "() => document.querySelectorAll('#chat [data-testid=user]').length == 1 && "
        "!document.querySelector('#chat .busy')"
    )
    assert "blue sky" in visitor.page.inner_text("#chat")
    visitor.page.click("#fresh")
    (folder / "broken.json").write_text('{"maskpick": 1}')
    visitor.choose_file("#reopen", folder / "broken.json")
    visitor.page.wait_for_selector("text=this is no conversation that can be reopened")
    assert not visitor.script_errors


def test_saving_and_keys(browser, served_page, photo, monkeypatch):
    """One mask as a PNG, a zip while the attention map is shown, no stray button; granularity by keyboard."""
    shown = []
    show_everything = Session.show_everything
    monkeypatch.setattr(
        Session,
        "show_everything",
        lambda session, granularity: shown.append(granularity) or show_everything(session, granularity),
    )
    visitor = Visitor(browser, served_page.address)
    page = visitor.page
    visitor.open(photo)
    visitor.open_tab("Save")
    page.click("#export")
    visitor.wait_for_warning("nothing is outlined")
    assert not page.is_visible("#download")
    visitor.ask("red and a bench")
    visitor.wait_for_masks(1)
    with Image.open(visitor.download('.mp-save[aria-label^="save red ball"]')) as image:
        assert image.mode == "RGBA" and image.size == (96, 95)
        assert image.getpixel((48, 48)) == (*PAINTS["red"], 255) and image.getpixel((0, 0))[3] == 0
    visitor.open_tab("Answer")
    page.click("#look")
    visitor.wait_for_masks(1, "looking")
    assert page.locator(".mp-save").count() == 0  # an attention map is no mask
    visitor.open_tab("Save")
    with zipfile.ZipFile(visitor.download("#export")) as archive:
        assert "1_red-ball_cutout.png" in archive.namelist()
    page.click("#taught")
    visitor.wait_for_warning("no training records")
    assert not page.is_visible("#download")
    visitor.open_tab("Everything")
    visitor.wait_for_masks(3, "everything")
    page.focus("#grain input[type=range]")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    for _ in range(600):
        if shown[-1] == 0.7:
            break
        page.wait_for_timeout(100)
    assert shown[-1] == 0.7  # the regions follow the keys
    visitor.download(".mp-save >> nth=1")
    assert not visitor.script_errors


def test_what_goes_wrong_is_said(browser, served_page, photo, no_photo):
    visitor = Visitor(browser, served_page.address)
    visitor.page.fill("#question textarea", "red?")
    visitor.page.keyboard.press("Enter")
    visitor.wait_for_warning("open a photo first")
    assert visitor.page.input_value("#question textarea") == "red?"  # nothing typed is lost
    visitor.drop(no_photo)
    visitor.page.wait_for_selector("text=I could not open this photo")
    said = visitor.page.inner_text("#chat")
    assert "not an image" in said and str(no_photo.parent) not in said
    visitor.wait_for_warning("not an image")
    visitor.open(photo)
    visitor.page.fill("#question textarea", "")
    visitor.page.keyboard.press("Enter")
    visitor.wait_for_warning("the question is empty")
    visitor.page.click("#gone")
    visitor.wait_for_warning("select one of the answer's masks first")
    visitor.page.click("#refine")
    visitor.wait_for_warning("select a mask first")
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
    steps = served_page.assistant.pipeline.steps
    assert (
        "turn 3" in visitor.ask("turns") and served_page.assistant.pipeline.steps == steps < 60
    )  # it has ended, and has no place in memory


def test_the_same_question_twice(browser, served_page, photo):
    visitor = Visitor(browser, served_page.address)
    visitor.open(photo)
    assert "red ball 92%" in visitor.ask("red")
    assert "red ball 92%" in visitor.ask("red")
    visitor.wait_for_masks(1)
    assert visitor.page.locator("#chat [data-testid=bot]").count() == 2
    visitor.page.click("#teach")
    visitor.page.wait_for_selector("text=Kept as a training record")


def test_two_visitors_keep_apart(browser, served_page, photo, folder):
    one, two = Visitor(browser, served_page.address), Visitor(browser, served_page.address)
    Image.new("RGB", (64, 48), PAINTS["green"]).save(folder / "green.png")
    one.open(photo)
    two.open(folder / "green.png")
    assert "red ball 92%" in one.ask("red") and "no red ball" in two.ask("red").lower()
    assert "turn 2" in one.ask("blue turns") and "turn 2" in two.ask("green turns")
    assert "red" not in two.page.inner_text(".mp-legend") and "turn 3" in one.ask("turns")
    two.page.click("#fresh")
    assert "turn 4" in one.ask("turns")


@pytest.mark.parametrize("width,height,theme", [(390, 844, "light"), (1400, 900, "dark")])
def test_fits_the_screen(browser, served_page, photo, folder, width, height, theme):
    visitor = Visitor(browser, f"{served_page.address}?__theme={theme}", width, height)
    visitor.page.wait_for_selector("#chat .example img")
    heading, chat = (visitor.page.locator(name).bounding_box() for name in ("#chat .placeholder h2", "#chat"))
    assert heading["y"] >= chat["y"]  # nothing is cut off
    visitor.page.screenshot(path=folder / f"empty-{width}-{theme}.png")
    if theme == "dark":  # an example answers at once
        visitor.page.click("#chat .example >> nth=0")
        visitor.page.wait_for_selector("#power", state="visible")
        visitor.page.wait_for_function(
            "() => document.querySelector('#chat [data-testid=bot]') && "
            "!document.querySelector('#chat .busy')"
        )
        assert SOURCE_IMAGES[0].question in visitor.page.inner_text("#chat")
        visitor.page.wait_for_selector("#question textarea:focus")
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


def test_a_slow_browser_shows_what_came_last(browser, served_page, photo):
    visitor = Visitor(browser, served_page.address)
    session = visitor.page.context.new_cdp_session(visitor.page)
    session.send("Emulation.setCPUThrottlingRate", {"rate": 10})
    visitor.open(photo)
    visitor.ask("where is the red thing?")
    visitor.wait_for_masks(1)
    assert not visitor.page.is_visible("#stop")


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_everybody_can_use_it(browser, served_page, photo, theme):
    """No serious finding of axe-core, and pictures and candidates that a screen reader can tell apart."""
    visitor = Visitor(browser, f"{served_page.address}?__theme={theme}")
    visitor.page.wait_for_selector("#chat .example img")
    assert visitor.accessibility_faults() == []
    texts = visitor.page.eval_on_selector_all("#chat .example img", "images => images.map(i => i.alt)")
    assert all(texts) and len(set(texts)) == len(texts) and not any("." in text for text in texts)
    visitor.open(photo)
    visitor.ask("red, green and a bench")
    visitor.wait_for_masks(2)
    assert visitor.accessibility_faults() == []
    assert visitor.page.get_attribute(".mp-over", "role") == "img"
    visitor.open_tab("By hand")
    visitor.wait_for_masks(0, "hand")
    visitor.page.mouse.click(*visitor.position(0.2, 0.7))
    visitor.wait_for_masks(3, "hand")
    assert visitor.accessibility_faults() == []
    assert visitor.page.get_attribute(".mp-over", "role") == "application"
    visitor.open_tab("Everything")
    visitor.wait_for_masks(3, "everything")
    assert visitor.accessibility_faults() == []

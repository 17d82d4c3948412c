"""The contact sheet shows every photo, links only files that are there, and takes any name."""

import html.parser
import urllib.parse
from pathlib import Path

import pytest
from PIL import Image

from assistant.label.result import FoundClass, PhotoResult
from assistant.label.run import label_photos
from assistant.label.settings import LabelSettings
from assistant.label.sheet import write_sheet
from tests.helpers.fake_assistant import COLOURS
from tests.helpers.labelled_sets import CLASSES, write_photos
from tests.helpers.visitor import launch_chromium

NAMES = ["a.png", "<script>alert(1)</script>/b&\"'.png", "c #1?.png"]


class Page(html.parser.HTMLParser):
    """The addresses of a page, its buttons by class, and its cards."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.cards: list[dict[str, str | None]] = []
        self.scripts = 0

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        self.scripts += tag == "script"
        if values.get("class") == "card":
            self.cards.append(values)


def test_the_sheet_shows_every_photo(tmp_path, models):
    photos = write_photos(tmp_path / "photos", NAMES)
    (photos / "x<y.jpg").write_bytes(b"")
    out = tmp_path / "out"
    label_photos(LabelSettings(photos, [*CLASSES, "<i>"], out))
    text = (out / "sheet.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert sorted(card["data-name"] for card in page.cards) == sorted(NAMES)
    assert {card["data-classes"] for card in page.cards} == {"0 1 2"}
    assert len(page.addresses) == 2 * len(NAMES) and page.scripts == 1
    for address in page.addresses:
        assert (out / urllib.parse.unquote(address)).is_file(), address
    assert "x&lt;y.jpg" in text and "&lt;i&gt;" in text and "<i>" not in text
    assert "http" not in text.replace(str(Path.home()), "")


@pytest.fixture(scope="module")
def browser():
    with launch_chromium() as chromium:
        yield chromium


def test_the_sheet_filters_orders_and_remembers_what_is_marked(tmp_path, models, browser):
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png"])
    Image.new("RGB", (64, 64), (200, 200, 200)).save(photos / "nothing.png")
    Image.new("RGB", (64, 64), COLOURS["red"]).save(photos / "red.png")
    out = tmp_path / "out"
    label_photos(LabelSettings(photos, CLASSES, out))
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((out / "sheet.html").as_uri())

    def shown() -> list[str]:
        return [card.get_attribute("data-name") for card in page.query_selector_all(".card:not([hidden])")]

    assert shown() == ["a.png", "b.png", "nothing.png", "red.png"]
    page.click("button:has-text('green box')")
    assert shown() == ["a.png", "b.png"] and page.inner_text("#shown") == "2 shown"
    page.click("button:has-text('nothing found')")
    assert shown() == ["nothing.png"]
    assert page.is_disabled("button:has-text('bench')")
    page.click("button:has-text('All')")
    page.check("[data-name='red.png'] input")
    # Chromium may write what is stored for a file only after another process has read it for the new page.
    for _ in range(20):
        page.reload()
        if page.is_checked("[data-name='red.png'] input"):
            break
    assert page.is_checked("[data-name='red.png'] input") and page.input_value("#marked") == "red.png"
    page.click("button:has-text('marked')")
    assert shown() == ["red.png"]
    assert all(page.evaluate("[...document.images].map(image => image.complete)"))
    assert not faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sheet_has_no_serious_fault_of_access(scheme, tmp_path, models, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png"])
    (photos / "broken.jpg").write_bytes(b"")
    label_photos(LabelSettings(photos, CLASSES, tmp_path / "out"))
    page = browser.new_context(color_scheme=scheme).new_page()
    page.goto((tmp_path / "out/sheet.html").as_uri())
    page.check("[data-name='a.png'] input")
    violations = axe.Axe().run(page).response["violations"]
    assert not [each["help"] for each in violations if each["impact"] in ("serious", "critical")]


def test_the_least_confident_comes_first(tmp_path, browser):
    def result(name: str, **confidences: float) -> PhotoResult:
        found = [FoundClass(word, value, []) for word, value in confidences.items()]
        return PhotoResult("", name, 8, 8, found, [], [], [])

    results = [result("a", cup=0.9, dog=0.6), result("b"), result("c", cup=0.7), result("d", dog=0.95)]
    write_sheet(tmp_path / "sheet.html", results, {}, ["cup", "dog"], "pocket")
    page = browser.new_page()
    page.goto((tmp_path / "sheet.html").as_uri())

    def order() -> str:
        cards = page.query_selector_all(".card:not([hidden])")
        return "".join(card.get_attribute("data-name") for card in cards)

    assert order() == "abcd"
    page.select_option("#order", "confidence")
    assert order() == "acdb"
    page.click("button:has-text('cup')")
    assert order() == "ca"  # by the confidence of the class that is shown
    page.click("button:has-text('dog')")
    assert order() == "ad"
    page.select_option("#order", "name")
    page.click("button:has-text('All')")
    assert order() == "abcd"

"""The contact sheet shows every photo, links only files that are there, and takes any name."""

import html.parser
import urllib.parse
from pathlib import Path

from assistant.label.run import label_photos
from assistant.label.settings import LabelSettings
from tests.helpers.labelled_sets import CLASSES, write_photos

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

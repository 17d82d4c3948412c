"""A person on the page, in a headless Chromium.

with launch_chromium() as browser:
    visitor = Visitor(browser, address)
    visitor.open("photo.jpg")
    visitor.ask("where is the cup?")
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT = 60_000  # milliseconds
SETTLE_TIME = 1500  # milliseconds in which earlier events end: a button that is drawn anew forgets its file


@contextmanager
def launch_chromium() -> Iterator:
    """A headless Chromium; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


class Visitor:
    """One visit to the page.

    Attributes:
        page: Playwright's page.
        requests: The addresses that the browser asked for.
        script_errors: The errors of the page's scripts.
    """

    def __init__(self, browser, address: str, width: int = 1400, height: int = 900, has_touch: bool = False):
        self.requests: list[str] = []
        self.script_errors: list[str] = []
        viewport = {"width": width, "height": height}
        self.page = browser.new_context(
            viewport=viewport, has_touch=has_touch, is_mobile=has_touch
        ).new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        self.page.on("pageerror", lambda error: self.script_errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#question textarea")

    def drop(self, file: Path) -> None:
        """Drop a photo."""
        self.page.set_input_files("#photo input[type=file]", str(file))

    def open(self, file: Path) -> None:
        """Drop a photo and wait until it is open."""
        self.drop(file)
        self.page.wait_for_selector("text=The photo is open")
        self.wait_for_masks(0)

    def wait_for_masks(self, count: int, view: str = "answer") -> None:
        """Wait until the picture shows so many masks."""
        self.page.wait_for_selector(f'.mp-stage:not(.mp-busy)[data-drawn="{count}"][data-view="{view}"]')

    def wait_for_warning(self, text: str) -> None:
        """Wait for a warning that says this, and close all."""
        self.page.wait_for_selector(f'[data-testid=toast-body]:has-text("{text}")')
        for button in self.page.locator("[data-testid=toast-close]").all():
            button.click()

    def ask(self, question: str) -> str:
        """Ask a question; returns the text of the reply's bubble."""
        before = self.page.locator("#chat [data-testid=user]").count()
        self.page.fill("#question textarea", question)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "n => document.querySelectorAll('#chat [data-testid=user]').length > n && "
            "!document.querySelector('#chat .busy')",
            arg=before,
        )
        return self.page.locator("#chat [data-testid=bot]").last.inner_text()

    def open_tab(self, name: str) -> None:
        """Click on a tab."""
        self.page.get_by_role("tab", name=name).click()

    def position(self, x: float, y: float) -> tuple[float, float]:
        """The position on the screen of a place in the picture, given in shares of its width and height."""
        self.page.locator(".mp-over").scroll_into_view_if_needed()
        box = self.page.locator(".mp-over").bounding_box()
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    def colour(self, x: float, y: float) -> np.ndarray:
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

    def choose_file(self, button: str, file: Path) -> None:
        """Click on an upload button and choose a file."""
        self.page.wait_for_timeout(SETTLE_TIME)
        with self.page.expect_file_chooser() as chooser:
            self.page.click(button)
        chooser.value.set_files(str(file))

    def accessibility_faults(self) -> list[str]:
        """What axe-core finds serious or critical on the page as it is, a line each."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        violations = axe.Axe().run(self.page).response["violations"]
        return [
            f"{violation['id']}: {[node['target'] for node in violation['nodes']]}"
            for violation in violations
            if violation["impact"] in ("serious", "critical")
        ]

    def download(self, button: str) -> Path:
        """Click on a download button; returns the file that came."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return download.value.path()

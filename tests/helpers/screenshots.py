"""Images of the page's main states, on the pocket preset and scikit-image's photos, in a headless Chromium.

python -m tests.helpers.screenshots --out docs            # page-*.jpg, those that the documents show
python -m tests.helpers.screenshots --out shots --all     # every state, wide and narrow, light and dark
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from assistant.errors import BadInput, exit_code

SCREEN_SIZES = {"wide": (1440, 900), "phone": (390, 844)}  # px
DOCUMENTED = {"answer-wide-light", "hand-wide-dark"}
TIMEOUT = 120_000  # milliseconds


class Stage:
    """One browser window on the page.

    Args:
        browser: Playwright's browser.
        address: The page's address.
        size: A name of SCREEN_SIZES.
        theme: "light" or "dark".
        out: The folder of the images.
        wanted: The images to take, by their names; None for all.
    """

    def __init__(self, browser, address: str, size: str, theme: str, out: Path, wanted: set[str] | None):
        width, height = SCREEN_SIZES[size]
        self.is_phone = size == "phone"
        self.suffix = f"{size}-{theme}"
        self.out = out
        self.wanted = wanted
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.page.goto(f"{address}?__theme={theme}")
        self.page.wait_for_selector("#question textarea")
        self.page.wait_for_timeout(800)

    def shoot(self, state: str, full: bool = False, keep_pointer: bool = False) -> None:
        """Take an image of a state, where it is wanted.

        Args:
            state: Its name.
            full: Whether to take the whole page, not only what is on the screen.
            keep_pointer: Whether the pointer stays where it is; it is moved out of the way otherwise.
        """
        name = f"{state}-{self.suffix}"
        if self.wanted is None or name in self.wanted:
            file = self.out / f"page-{name}.jpg"
            if not keep_pointer:
                self.page.mouse.move(1, 1)
            self.page.wait_for_timeout(700)
            self.page.screenshot(path=file, type="jpeg", quality=80, full_page=full)
            print(file, flush=True)

    def open(self, file: Path) -> None:
        """Drop a photo."""
        self.page.set_input_files("#photo input[type=file]", str(file))

    def wait_until_open(self) -> None:
        """Wait until the photo is open."""
        self.page.wait_for_selector("#power", state="visible")
        self.page.wait_for_function("() => !document.querySelector('.busy')")

    def ask(self, question: str) -> None:
        """Ask a question and wait for the reply."""
        before = self.page.locator("#chat [data-testid=user]").count()
        self.page.fill("#question textarea", question)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "n => document.querySelectorAll('#chat [data-testid=user]').length > n && "
            "!document.querySelector('.busy')",
            arg=before,
        )

    def open_tab(self, name: str) -> None:
        """Click on a tab."""
        tab = self.page.get_by_role("tab", name=name)
        if not tab.is_visible():  # on a phone the last ones are in a menu
            self.page.click("#tabs .overflow-menu > button")
            tab = self.page.locator("#tabs .overflow-dropdown button", has_text=name)
        tab.click()
        self.page.wait_for_timeout(400)

    def hover(self, x: float, y: float) -> None:
        """Move the pointer to a place of the picture, given in shares of its width and height."""
        self.page.locator(".mp-over").scroll_into_view_if_needed()
        box = self.page.locator(".mp-over").bounding_box()
        self.page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)

    def click(self, x: float, y: float) -> None:
        """Click on such a place."""
        self.hover(x, y)
        self.page.mouse.down()
        self.page.mouse.up()


def run(out: Path, every_state: bool) -> None:
    """Take the images. Raises BadInput where there is no Chromium."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        raise BadInput("Chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    import app
    from assistant import Assistant
    from assistant.page.examples import save_examples
    from assistant.page.layout import build_page

    out.mkdir(parents=True, exist_ok=True)
    wanted = None if every_state else DOCUMENTED
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        assistant = Assistant.from_preset("pocket")
        assistant.cache_size = app.MAX_CACHED_IMAGES
        examples = save_examples(folder)
        _, address, _ = app.serve(build_page(assistant, examples), port=None, block=False)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for size in SCREEN_SIZES:
            for theme in ("light", "dark"):
                if wanted is None or any(state.endswith(f"{size}-{theme}") for state in wanted):
                    visit(Stage(browser, address, size, theme, out, wanted), examples[2].file, folder)
        browser.close()


def visit(stage: Stage, cup: Path, folder: Path) -> None:
    """Go through the states of the page; cup: a photo of a cup; folder: for further files."""
    stage.shoot("empty")
    stage.open(cup)
    if stage.wanted is None:
        stage.page.wait_for_timeout(600)
        stage.shoot("opening")
    stage.wait_until_open()
    stage.shoot("opened", full=stage.is_phone)
    stage.ask("What could I drink from, and is there a dog?")
    stage.shoot("answer", full=stage.is_phone)
    stage.ask("and the spoon?")
    stage.ask("not that one")
    stage.shoot("followed")
    stage.page.click('.mp-zoom [data-zoom="in"]')
    stage.page.click('.mp-zoom [data-zoom="in"]')
    stage.shoot("zoomed")
    stage.page.click('.mp-zoom [data-zoom="whole"]')
    stage.open_tab("By hand")
    stage.page.wait_for_selector('.mp-stage[data-proposals]:not([data-proposals="0"])')
    stage.hover(0.5, 0.4)
    stage.shoot("preview", keep_pointer=True)
    stage.click(0.5, 0.35)
    stage.page.wait_for_selector('.mp-stage[data-drawn="3"]')
    stage.page.get_by_role("button", name="− Click").click()
    stage.click(0.45, 0.9)  # on the saucer
    stage.page.wait_for_timeout(2000)
    stage.shoot("hand")
    if stage.wanted is None:
        visit_tabs(stage)
        visit_second_photo(stage, cup, folder)
        visit_failures(stage, folder)


def visit_tabs(stage: Stage) -> None:
    """The states of the other tabs."""
    stage.open_tab("Answer")
    stage.page.click("#look")
    stage.page.wait_for_selector('.mp-stage[data-view="looking"]')
    stage.shoot("looking")
    stage.open_tab("Everything")
    stage.page.wait_for_selector('.mp-stage[data-view="everything"]')
    stage.click(0.5, 0.4)
    stage.page.wait_for_selector("#chip", state="visible")
    stage.shoot("everything")
    stage.ask("what is this?")
    stage.shoot("about")
    stage.open_tab("Classes")
    stage.page.fill("#names textarea", "cup, spoon, dining table, dog, person, quark")
    stage.page.click("#map")
    stage.page.wait_for_selector('.mp-stage[data-view="classes"]')
    stage.shoot("classes", full=True)
    stage.open_tab("Save")
    stage.shoot("save")


def visit_second_photo(stage: Stage, cup: Path, folder: Path) -> None:
    """An example that is found in a second photo, and an answer without masks."""
    from PIL import Image

    stage.open_tab("Answer")
    stage.ask("where is the cup?")
    Image.open(cup).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    with stage.page.expect_file_chooser() as chooser:
        stage.page.click("#more")
    chooser.value.set_files(str(folder / "mirrored.png"))
    stage.page.wait_for_selector("#strip >> text=2. mirrored")
    stage.wait_until_open()
    stage.page.click("#strip button >> nth=0")
    stage.page.click(".mp-legend .mp-name >> nth=0")
    stage.page.wait_for_selector("#chip", state="visible")
    stage.open_tab("Like this")
    stage.page.click("#alike")
    stage.page.wait_for_selector('.mp-photo[alt="Photo: mirrored"]')
    stage.shoot("like")
    stage.ask("is there a zebra?")
    stage.shoot("absent")


def visit_failures(stage: Stage, folder: Path) -> None:
    """A photo that cannot be opened, and the earlier conversations after a new start."""
    stage.page.fill("#question textarea", "where is the cup?")
    stage.page.click("#fresh")
    (folder / "broken.jpg").write_text("no photo")
    stage.page.wait_for_selector("#photo input[type=file]", state="attached")
    stage.open(folder / "broken.jpg")
    stage.page.wait_for_selector("text=I could not open this photo")
    stage.shoot("error")
    stage.page.reload()
    stage.page.wait_for_selector("#past")
    stage.page.click("#past >> text=Earlier")
    stage.shoot("past", full=True)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.helpers.screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    return exit_code(lambda: run(args.out, args.all))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    if threading.active_count() > 1:  # the server's threads, which would hold the process
        os._exit(code)
    sys.exit(code)

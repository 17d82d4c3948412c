"""Pictures of the page's main states, on the pocket preset and scikit-image's photos, in headless Chromium.

python -m tests.helpers.screenshots --out docs            # page-*.jpg, those that the README shows
python -m tests.helpers.screenshots --out shots --all     # every state, wide and on a phone, light and dark
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from assistant.errors import BadInput, exit_code

SIZES = {"wide": (1440, 900), "phone": (390, 844)}
README = {"answer-wide-light", "hand-wide-dark"}


class Stage:
    """One browser window on the page."""

    def __init__(self, browser, address, size, theme):
        width, height = SIZES[size]
        self.tag, self.page = (
            f"{size}-{theme}",
            browser.new_context(viewport={"width": width, "height": height}).new_page(),
        )
        self.page.set_default_timeout(120_000)
        self.page.goto(f"{address}?__theme={theme}")
        self.page.wait_for_selector("#question textarea")
        self.page.wait_for_timeout(800)

    def shot(self, out, state, wanted, full=False):
        name = f"{state}-{self.tag}"
        if wanted is None or name in wanted:
            self.page.mouse.move(1, 1)
            self.page.wait_for_timeout(700)
            self.page.screenshot(path=out / f"page-{name}.jpg", type="jpeg", quality=80, full_page=full)
            print(out / f"page-{name}.jpg", flush=True)

    def open(self, path):
        self.page.set_input_files("#photo input[type=file]", str(path))

    def ready(self):
        self.page.wait_for_selector("#power", state="visible")
        self.page.wait_for_function("() => !document.querySelector('.busy')")

    def ask(self, question):
        before = self.page.locator("#chat [data-testid=user]").count()
        self.page.fill("#question textarea", question)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "n => document.querySelectorAll('#chat [data-testid=user]').length > n && !document.querySelector('.busy')",
            arg=before,
        )

    def tab(self, name):
        tab = self.page.get_by_role("tab", name=name)
        if not tab.is_visible():  # on a phone the last ones are in a menu
            self.page.click("#tabs .overflow-menu > button")
            tab = self.page.locator("#tabs .overflow-dropdown button", has_text=name)
        tab.click()
        self.page.wait_for_timeout(400)

    def click(self, x, y):
        self.page.locator(".mp-over").scroll_into_view_if_needed()
        box = self.page.locator(".mp-over").bounding_box()
        self.page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)


def run(args) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        raise BadInput("Chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    import app
    from assistant import Assistant
    from assistant.page.layout import build_page

    args.out.mkdir(parents=True, exist_ok=True)
    wanted = None if args.all else README
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        assistant = Assistant.from_preset("pocket")
        assistant.keep = app.KEPT
        examples = app.save_examples(Path(folder))
        _, address, _ = app.serve(build_page(assistant, examples), port=None, block=False)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        looks = [
            (s, t)
            for s in SIZES
            for t in ("light", "dark")
            if wanted is None or any(w.endswith(f"{s}-{t}") for w in wanted)
        ]
        for size, theme in looks:
            visit(Stage(browser, address, size, theme), examples, args.out, wanted, Path(folder))
        browser.close()


def visit(stage, examples, out, wanted, folder):
    from PIL import Image

    stage.shot(out, "empty", wanted)
    cup = examples[2]["file"]
    stage.open(cup)
    if wanted is None:
        stage.page.wait_for_timeout(600)
        stage.shot(out, "opening", wanted)
    stage.ready()
    stage.ask("What could I drink from, and is there a dog?")
    stage.shot(out, "answer", wanted, stage.tag.startswith("phone"))
    stage.ask("and the spoon?")
    stage.ask("not that one")
    stage.shot(out, "followed", wanted)
    stage.tab("By hand")
    stage.click(0.5, 0.35)
    stage.page.wait_for_selector('.mp-stage[data-drawn="3"]')
    stage.shot(out, "hand", wanted)
    if wanted is not None:
        return
    stage.tab("Answer")
    stage.page.click("#look")
    stage.page.wait_for_selector('.mp-stage[data-view="looking"]')
    stage.shot(out, "looking", wanted)
    stage.tab("Everything")
    stage.page.wait_for_selector('.mp-stage[data-view="everything"]')
    stage.click(0.5, 0.4)
    stage.page.wait_for_selector("#chip", state="visible")
    stage.shot(out, "everything", wanted)
    stage.ask("what is this?")
    stage.shot(out, "about", wanted)
    stage.tab("Classes")
    stage.page.fill("#names textarea", "cup, spoon, dining table, dog, person")
    stage.page.click("#map")
    stage.page.wait_for_selector('.mp-stage[data-view="classes"]')
    stage.shot(out, "classes", wanted, True)
    stage.tab("Save")
    stage.shot(out, "save", wanted)
    stage.tab("Answer")
    stage.ask("where is the cup?")
    Image.open(cup).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    with stage.page.expect_file_chooser() as chooser:
        stage.page.click("#more")
    chooser.value.set_files(str(folder / "mirrored.png"))
    stage.page.wait_for_selector("#strip >> text=2. mirrored")
    stage.ready()
    stage.page.click("#strip >> nth=0 >> label >> nth=0")
    stage.page.click(".mp-legend .mp-name >> nth=0")
    stage.page.wait_for_selector("#chip", state="visible")
    stage.tab("Like this")
    stage.page.click("#alike")
    stage.page.wait_for_selector('.mp-photo[alt="Photo: mirrored"]')
    stage.shot(out, "like", wanted)
    stage.ask("is there a zebra?")
    stage.shot(out, "absent", wanted)
    stage.page.fill("#question textarea", "where is the cup?")
    stage.page.click("#fresh")
    (folder / "broken.jpg").write_text("no photo")
    stage.page.wait_for_selector("#photo input[type=file]", state="attached")
    stage.open(folder / "broken.jpg")
    stage.page.wait_for_selector("text=I could not open this photo")
    stage.shot(out, "error", wanted)
    stage.page.reload()
    stage.page.wait_for_selector("#past")
    stage.page.click("#past >> text=Earlier")
    stage.shot(out, "past", wanted, True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.helpers.screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--all", action="store_true")
    code = exit_code(lambda: run(parser.parse_args()))
    sys.stdout.flush()
    os._exit(code) if threading.active_count() > 1 else sys.exit(code)

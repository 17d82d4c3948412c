"""A served page, a program and a browser that visit it, and a session without any of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import app
from assistant.page.examples import save_examples
from assistant.page.layout import build_page
from assistant.page.session import Session
from tests.helpers.fake_assistant import FakeAssistant, sample_image
from tests.helpers.visitor import launch_chromium


@dataclass
class ServedPage:
    """A page: its address, its assistant, and the folder of its uploads and records."""

    address: str
    assistant: FakeAssistant
    folder: Path


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="package")
def served_page(folder):
    """A page that runs on this machine alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        assistant = FakeAssistant()
        blocks = build_page(assistant, save_examples(folder), folder / "records")
        _, address, _ = app.serve(blocks, port=None, block=False)
        yield ServedPage(address, assistant, folder)
        blocks.close()


@pytest.fixture(scope="package")
def photo(folder):
    """A file with the image of `sample_image`."""
    Image.fromarray(sample_image()).save(folder / "ball.png")
    return folder / "ball.png"


@pytest.fixture(scope="package")
def no_photo(folder):
    """A file that claims to be a photo."""
    (folder / "holiday.png").write_text("this is text")
    return folder / "holiday.png"


@pytest.fixture(scope="package")
def client(served_page):
    """A program that visits the page."""
    from gradio_client import Client

    return Client(served_page.address, verbose=False)


@pytest.fixture(scope="package")
def chromium():
    with launch_chromium() as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    """A headless Chromium without open pages."""
    yield chromium
    for context in chromium.contexts:  # pages that stay open go on drawing
        context.close()


@pytest.fixture
def assistant():
    return FakeAssistant()


@pytest.fixture
def session(assistant):
    """A session with the photo of `sample_image` open."""
    session = Session()
    session.add_photo(assistant.open(sample_image()), "ball")
    return session

"""Annotated images and a language model's server, shared by the tests of datagen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.datagen_images import write_many_images, write_three_images
from tests.helpers.datagen_server import KEY, ScriptedServer

PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def three_images(tmp_path: Path) -> Path:
    """A folder with three images: two cups and a cat each."""
    write_three_images(tmp_path)
    return tmp_path


@pytest.fixture
def many_images(tmp_path: Path) -> Path:
    """A folder with 48 images of one to eight categories."""
    write_many_images(tmp_path)
    return tmp_path


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to loopback go there."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model_server(monkeypatch: pytest.MonkeyPatch, no_proxy: None) -> Iterator[ScriptedServer]:
    """A language model's server, with a key in the environment."""
    pytest.importorskip("openai", reason="the openai client is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ScriptedServer()
    yield server
    server.close()

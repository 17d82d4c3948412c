"""The stand-in for the models in this process, and one local Ray."""

from collections.abc import Iterator

import pytest

from assistant.label import engines
from assistant.label.labeller import Labeller
from tests.helpers.fake_assistant import FakeAssistant
from tests.helpers.local_ray import local_ray


@pytest.fixture
def models(monkeypatch) -> FakeAssistant:
    """The stand-in that labels, in the place of the models that are named."""
    assistant = FakeAssistant()
    assistant.cache_size = 0
    monkeypatch.setattr(engines, "load_labeller", lambda settings: Labeller(settings, assistant))
    return assistant


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """Ray, running; nothing of it is left when the tests end."""
    with local_ray():
        yield

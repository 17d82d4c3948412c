"""A tiny CLIP and a matcher on it, shared by the tests of few-shot segmentation."""

from pathlib import Path

import pytest

from assistant.few_shot.matcher import Matcher
from assistant.sam.backends import OfficialSegmenter
from tests.helpers.few_shot import tiny_frozen_matcher
from tests.helpers.tiny_matchers import tiny_clip
from tests.helpers.tiny_sams import tiny_official_sam


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP of 32 px with random weights."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def matcher(clip: Path) -> Matcher:
    """A tiny CLIP, a tiny SAM of 128 px and untrained encoders."""
    return tiny_frozen_matcher(clip, OfficialSegmenter(tiny_official_sam()))

"""Images whose questions are composed."""

from pathlib import Path

import pytest

from tests.helpers.composed_images import write_cups_and_cat


@pytest.fixture(scope="module")
def cups_and_cat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images: cups in a row with a table and a crowd of people; and a cat alone."""
    folder = tmp_path_factory.mktemp("images")
    write_cups_and_cat(folder)
    return folder

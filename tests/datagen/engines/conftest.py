"""One local Ray for all tests of the engines."""

from collections.abc import Iterator

import pytest

from tests.helpers.local_ray import local_ray


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """Ray, running; nothing of it is left when the tests end."""
    with local_ray():
        yield

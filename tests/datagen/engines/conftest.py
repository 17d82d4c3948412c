"""One local Ray for all tests of the engines; started and ended as the command does."""

import os
from collections.abc import Iterator

import pytest

from assistant.errors import BadInput
from datagen.engines.cluster import connected_ray


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """Ray, running; nothing of it is left when the tests end."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'maskpick[scale]'")
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'maskpick[scale]'")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers wait for whatever else is running
    connection = connected_ray(cpu_count=3, keeps_order=True)
    try:
        connection.__enter__()
    except BadInput as error:
        pytest.skip(str(error))
    yield
    connection.__exit__(None, None, None)
    assert not ray.is_initialized()

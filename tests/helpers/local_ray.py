"""A Ray on this machine for the tests of a package; started and ended as the commands do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from assistant.errors import BadInput
from assistant.label.cluster import connected_ray


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray, running; nothing of it is left at the end. The test is skipped where Ray cannot be started."""
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

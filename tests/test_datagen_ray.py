"""The Ray engine gives the rows of the plain one."""

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'maskpick[scale]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'maskpick[scale]'")

from datagen.__main__ import main  # noqa: E402
from tests.test_datagen_stream import contents, photos, words  # noqa: E402, F401


def test_two_workers_give_the_same_rows(photos, monkeypatch):  # noqa: F811
    assert main(words(photos, "plain")) == 0
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    assert main(words(photos, "ray", "--engine", "ray", "--workers", 2)) == 0
    assert contents(photos / "ray") == contents(photos / "plain")
    assert not ray.is_initialized()
    # What is kept is not made again, by whichever engine.
    assert main(words(photos, "ray")) == 0 and contents(photos / "ray") == contents(photos / "plain")

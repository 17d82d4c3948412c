"""A data set of rectangles, a tiny model that learns it, and an opener that proposes every rectangle."""

import pytest

from tests.helpers import rectangles
from tests.helpers.tiny_models import tiny_qwen3_vl
from tests.helpers.tuning_runs import propose_rectangles


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Records files (train, val) in one folder."""
    folder = tmp_path_factory.mktemp("dataset")
    return rectangles.write_dataset(folder, 6), rectangles.write_dataset(folder, 3, 1, "val")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    """Folder of a tiny Qwen3-VL."""
    return tiny_qwen3_vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(autouse=True)
def opener(monkeypatch):
    propose_rectangles(monkeypatch)

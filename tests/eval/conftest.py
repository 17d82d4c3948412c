"""Data sets that several tests of the benchmarks read."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.benchmark_data import reasonseg_polygon, write_reasonseg_item
from tests.helpers.colour_finder import BOXES, H, W, rectangle, save_image


@pytest.fixture
def reasonseg(tmp_path):
    """ReasonSeg's layout with four images of a red and a blue rectangle."""
    folder = tmp_path / "ReasonSeg/val"
    red = reasonseg_polygon(*BOXES["red"])
    # Red is found whole; its right half is to be ignored, and painted later: smaller polygons lie on top.
    ignored = reasonseg_polygon(14, 4, 24, 24, "Ignore_region")
    write_reasonseg_item(folder, "a", "the red one", [ignored, red], False)
    # Written in cp1252; nothing is answered to it.
    shapes = [reasonseg_polygon(*BOXES["blue"]), reasonseg_polygon(0, 0, 60, 40, "flag")]
    write_reasonseg_item(folder, "b", "caf\u00e9", shapes, True, encoding="cp1252")
    # Nothing is outlined and nothing answered: 1 for LISA, 0 for Seg-Zero.
    write_reasonseg_item(folder, "c", "the green one", [], True)
    # A polygon that leaves the image.
    write_reasonseg_item(folder, "d", "is there blue?", [reasonseg_polygon(30, 10, 80, 30)], False)
    return tmp_path / "ReasonSeg"


@pytest.fixture
def folder(tmp_path):
    """images/a.png with a red and a blue rectangle, and images/b.png without."""
    save_image(tmp_path / "images/a.png")
    save_image(tmp_path / "images/b.png", colours=())
    return tmp_path


@pytest.fixture
def other_model(tmp_path):
    """PNGs of another model's answers to `reasonseg`."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    masks = {
        "a": rectangle(4, 4, 14, 24),
        "b": rectangle(*BOXES["blue"]),
        "c": np.zeros((H, W), bool),
        "d": np.zeros((H, W), bool),
    }
    for name, mask in masks.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")
    return folder

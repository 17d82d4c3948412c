"""The detector of COCO's categories."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torchvision.ops import box_iou

from assistant.errors import BadInput
from assistant.pocket.box_proposals import place_middles
from assistant.pocket.detector import (
    CATEGORIES,
    DETECTOR,
    MAP_CHANNELS,
    SAME_BOX_IOU,
    Detector,
    load_detector,
)
from assistant.weights import pocket_file


@pytest.fixture(scope="module")
def detector():
    """The published detector."""
    return load_detector(pocket_file(DETECTOR))


def test_every_place_has_a_map_a_box_and_a_logit_of_each_category(detector):
    pixels = torch.randn(2, 3, 256, 256, generator=torch.manual_seed(0))
    with torch.inference_mode():
        maps = detector(pixels)
        logits, boxes = detector.places(maps)
    middles = torch.cat(place_middles(256))
    assert [x.shape for x in maps] == [(2, MAP_CHANNELS, side, side) for side in (32, 16, 8)]
    assert logits.shape == (2, len(middles), 80) and boxes.shape == (2, len(middles), 4)
    assert (boxes[:, :, :2] <= middles).all() and (boxes[:, :, 2:] >= middles).all()


@pytest.mark.parametrize(
    "photo, category, box",
    [(data.astronaut(), "person", (10, 0, 480, 512)), (data.chelsea(), "cat", (80, 10, 512, 340))],
)
def test_what_a_photo_shows_is_found_where_it_is(detector, photo, category, box):
    height, width = photo.shape[:2]
    scale = 512 / max(height, width)
    found = detector.detect(detector.maps_of(photo), round(height * scale), round(width * scale))
    assert CATEGORIES[found.categories[0]] == category and found.scores[0] > 0.5
    assert (found.scores[:-1] >= found.scores[1:]).all()
    wanted = torch.tensor([box], dtype=torch.float32)
    assert box_iou(found.boxes[:1], wanted).item() > 0.6
    assert (found.boxes[:, 3] <= round(height * scale)).all()
    for number in found.categories.unique():
        same = found.boxes[found.categories == number]
        assert box_iou(same, same).fill_diagonal_(0).max() <= SAME_BOX_IOU


def test_nothing_is_found_in_an_empty_image(detector):
    found = detector.detect(detector.maps_of(np.full((64, 512, 3), 127, np.uint8)), 64, 512)
    assert len(found.boxes) == len(found.scores) == len(found.categories) == 0


def test_a_photo_is_seen_the_same_at_any_size(detector):
    photo = Image.fromarray(data.chelsea())
    large = photo.resize((photo.width * 3, photo.height * 3), Image.Resampling.BICUBIC)
    boxes = []
    for image in (photo, large):
        found = detector.detect(detector.maps_of(np.asarray(image)), 341, 512)
        boxes.append(found.boxes[:1])
    assert box_iou(*boxes).item() > 0.9


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="cannot be read"):
        load_detector(tmp_path / "other.safetensors")
    save_file(Detector().state_dict(), tmp_path / "own.safetensors")
    assert not load_detector(tmp_path / "own.safetensors").training

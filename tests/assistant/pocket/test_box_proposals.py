"""The boxes of whatever stands out in an image."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision.ops import box_iou

from assistant.errors import BadInput
from assistant.pocket import box_proposals
from assistant.pocket.box_proposals import BoxHead, load_box_head, place_middles
from assistant.pocket.image_encoder import BACKBONE_CHANNELS


@pytest.fixture(scope="module")
def head():
    """An untrained head."""
    torch.manual_seed(0)
    return BoxHead().eval()


@pytest.fixture
def maps():
    torch.manual_seed(1)
    return [
        torch.randn(1, channels, 512 // stride, 512 // stride)
        for channels, stride in zip(BACKBONE_CHANNELS, (4, 8, 16, 32), strict=True)
    ]


def test_every_place_predicts_a_box_around_itself(head, maps):
    with torch.inference_mode():
        logits, boxes = head(maps)
    middles = torch.cat(place_middles(512))
    assert logits.shape == (1, 64**2 + 32**2 + 16**2) and boxes.shape == (1, *middles.shape[:1], 4)
    assert (boxes[0, :, :2] < middles).all() and (boxes[0, :, 2:] > middles).all()


def test_proposed_boxes_are_inside_distinct_and_best_first(head, maps):
    boxes, quality = head.propose(maps, height=341, width=512, max_boxes=50)
    assert len(boxes) == 50 and (quality[:-1] >= quality[1:]).all() and (quality <= 1).all()
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 512).all() and (boxes[:, [1, 3]] <= 341).all()
    assert box_iou(boxes, boxes).fill_diagonal_(0).max() <= box_proposals.DUPLICATE_BOX_IOU


def test_a_foreign_file_is_refused(head, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="cannot be read"):
        load_box_head(tmp_path / "other.safetensors")
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    assert not load_box_head(tmp_path / "head.safetensors").training

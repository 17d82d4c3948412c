"""Everything mode of the pocket preset."""

import numpy as np
import pytest
import torch

from assistant.pocket import proposals
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.sam.mask_ops import pad_to_square


def encode(sam, image):
    square = torch.from_numpy(pad_to_square(image, IMAGE_SIZE)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        return sam.image_encoder(sam.preprocess(square))


def test_candidates_are_bounded_distinct_and_inside_the_image(sam, image):
    with torch.inference_mode():
        candidates = proposals.find_candidates(
            sam, encode(sam, image), image, points_per_side=6, max_proposals=20
        )
    masks = candidates.logits > 0
    assert 5 < len(masks) <= 20 and not masks[:, 86:].any() and masks.flatten(1).any(1).all()
    table = proposals.mask_iou(masks, masks).fill_diagonal_(0)
    assert table.max() <= 0.9
    assert ((candidates.stability >= 0) & (candidates.stability <= 1)).all()


def test_superpixels_find_what_differs():
    image = np.zeros((256, 512, 3), np.uint8)
    image[:, 256:] = 200
    image[60:140, 60:180] = (200, 30, 30)
    regions = proposals.superpixels(image)
    square = torch.zeros(128, 128, dtype=torch.bool)
    square[15:35, 15:45] = True
    assert proposals.mask_iou(regions, square[None]).max() > 0.8


def test_boxes_and_suppression():
    masks = torch.zeros(3, 128, 128, dtype=torch.bool)
    masks[0, 10:20, 30:50] = masks[1, 10:20, 30:49] = masks[2, 100:101, 5:6] = True
    assert proposals.low_res_boxes(masks)[[0, 2]].tolist() == [[120, 40, 200, 80], [20, 400, 24, 404]]
    assert proposals.suppress(masks, torch.tensor([0.5, 0.9, 0.1]), 0.8).tolist() == [1, 2]


def test_soft_suppression_prefers_what_is_new():
    masks = torch.zeros(3, 128, 128, dtype=torch.bool)
    masks[0, 10:20, 30:50] = masks[1, 10:20, 30:47] = masks[2, 100:110, 5:30] = True
    scores = torch.tensor([0.9, 0.8, 0.4])
    assert proposals.soft_nms(masks, scores, 3).tolist() == [0, 2, 1]
    assert proposals.soft_nms(masks, scores, 2).tolist() == [0, 2]
    assert scores.tolist() == pytest.approx([0.9, 0.8, 0.4])
    assert proposals.soft_nms(masks[:0], scores[:0], 5).shape == (0,)
    copies = proposals.soft_nms(torch.cat([masks, masks]), scores.repeat(2), 9)
    assert copies.tolist() == [0, 2, 1]
    apart = proposals.soft_nms(masks[[0, 2]], torch.tensor([0.1, 0.2]), 5)
    assert apart.tolist() == [1, 0]


def test_what_fills_up_a_batch_is_left_out(sam, image):
    points, labels = torch.rand(5, 1, 2) * 300, torch.ones(5, 1, dtype=torch.long)
    with torch.inference_mode():
        whole, filled = (
            proposals.PromptDecoder(sam, encode(sam, image), batch_size=size).decode(
                points, labels, None, proposals.THREE_READINGS
            )
            for size in (5, 4)
        )
    pairs = zip(whole, filled, strict=True)
    assert all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in pairs)

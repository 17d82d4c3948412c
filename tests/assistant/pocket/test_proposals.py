"""Everything mode of the pocket preset."""

import numpy as np
import pytest
import torch

from assistant.pocket import proposals
from assistant.pocket.box_proposals import BoxHead
from assistant.pocket.detector import DETECTOR, Detections, load_detector, no_detections
from assistant.pocket.opening import as_proposals
from assistant.pocket.tiles import (
    Tile,
    detections_on_image,
    encode_tiles,
    on_image,
    tile_windows,
    whole_small_boxes,
)
from assistant.sam.backends import PocketSegmenter
from assistant.sam.mask_ops import decode_rle
from assistant.weights import pocket_file


@pytest.fixture(scope="module")
def segmenter(sam):
    return PocketSegmenter(sam)


@pytest.fixture(scope="module")
def box_head():
    """An untrained head."""
    torch.manual_seed(0)
    return BoxHead().eval()


@pytest.fixture(scope="module")
def detector():
    """The published detector."""
    return load_detector(pocket_file(DETECTOR))


def test_candidates_are_bounded_distinct_and_inside_the_image(segmenter, box_head, detector, image):
    embedding = segmenter.encode(image)
    tiles = encode_tiles(segmenter, detector, embedding)
    found = detector.detect(detector.maps_of(image), *embedding.input_size)
    candidates = proposals.find_candidates(
        segmenter, box_head, embedding, found, tiles, image, max_proposals=20
    )
    masks = candidates.logits > 0
    assert 5 < len(masks) <= 20 and not masks[:, 86:].any() and masks.flatten(1).any(1).all()
    table = proposals.mask_iou(masks, masks).fill_diagonal_(0)
    assert table.max() <= 0.9
    assert ((candidates.stability >= 0) & (candidates.stability <= 1)).all()


def test_a_mask_of_a_tile_is_drawn_in_its_place(segmenter, detector, image):
    embedding = segmenter.encode(image)
    tiles = encode_tiles(segmenter, detector, embedding)
    tile = tiles[3]
    assert tile.window == (224, 53, 512, 341)
    own = torch.full((1, 128, 128), -8.0)
    own[0, 32:48, 64:96] = 8.0  # of the tile's cells, 2.25 px each: from (368, 125) to (440, 161)
    laid = on_image(own, tile, embedding.size, elsewhere=-8)
    candidates = proposals.CandidateMasks(laid, torch.ones(1), torch.ones(1), own, torch.tensor([3]))

    drawn = as_proposals(candidates, segmenter, embedding, tiles)

    mask = decode_rle(drawn.rles[0])
    wanted = np.zeros((341, 512), bool)
    wanted[125:161, 368:440] = True
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.95
    assert drawn.boxes[0].tolist() == pytest.approx([368, 125, 439, 160], abs=2)
    coarse = torch.from_numpy(wanted[2::4, 2::4])
    assert proposals.mask_iou(laid[:, :85] > 0, coarse[None]).item() > 0.9


def tile_of(segmenter, image, detections=None):
    """The tile in the lower right corner of an image of 341 x 512 px."""
    return Tile(segmenter.encode(image[53:, 224:]), (224, 53, 512, 341), (), detections or no_detections())


def test_what_is_detected_on_a_tile_is_laid_in_its_place_and_counted_once(segmenter, image):
    boxes = torch.tensor([[32.0, 32.0, 96.0, 64.0], [200.0, 200.0, 240.0, 220.0], [0.0, 40.0, 30.0, 60.0]])
    on_tile = Detections(boxes * 512 / 288, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([41, 41, 41]))
    whole = Detections(torch.tensor([[257.0, 85.0, 321.0, 117.0]]), torch.tensor([0.5]), torch.tensor([41]))
    found = detections_on_image(whole, [tile_of(segmenter, image, on_tile)], (341, 512), below=100)
    # The first is the one of the whole image, the last goes on beyond the tile.
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.boxes[0].tolist() == pytest.approx([256, 85, 320, 117], abs=0.1)
    assert found.boxes[1].tolist() == pytest.approx([424, 253, 464, 273], abs=0.1)


def test_only_whole_small_things_are_taken_from_a_tile(segmenter, image):
    tile = tile_of(segmenter, image)
    scale = 512 / 288
    boxes = torch.tensor([[20, 20, 80, 60], [0, 20, 60, 60], [20, 20, 120, 60], [230, 230, 288, 288]]) * scale
    small = whole_small_boxes(boxes, tile, (341, 512), below=80)
    # The second goes on to the left, the third is large, the fourth ends where the image does.
    assert small.tolist() == [True, False, False, True]


def test_tiles_cover_an_image_and_no_more():
    for size in ((341, 512), (512, 512), (1000, 3000), (200, 210), (40, 512), (1, 1), (2, 3), (5, 1)):
        covered = np.zeros(size, int)
        for left, top, right, bottom in tile_windows(size):
            assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
            covered[top:bottom, left:right] += 1
        assert covered.all()


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


def test_what_fills_up_a_batch_is_left_out(segmenter, image, monkeypatch):
    embedding = segmenter.encode(image)
    boxes = torch.tensor([[10, 20, 100, 90], [200, 100, 330, 300], [5, 5, 60, 300.0]]).repeat(2, 1)[:5]
    answers = []
    for size in (5, 4):
        monkeypatch.setattr(proposals, "PROMPTS_PER_BATCH", size)
        with torch.inference_mode():
            answers.append(proposals.decode_boxes(segmenter, embedding, boxes))
    pairs = zip(*answers, strict=True)
    assert all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_what_nothing_covers_is_added_largest_part_first():
    masks = torch.zeros(4, 20, 20, dtype=torch.bool)
    masks[0, :, :4] = masks[1, :10, 8:] = masks[2, :10, 8:14] = masks[3, 12:14, 10:12] = True
    covered = torch.zeros(20, 20, dtype=torch.bool)
    covered[:, :4] = True
    assert proposals.uncovering(masks, covered, 9) == [1, 3]  # 0 is covered, 2 is a part of 1
    assert proposals.uncovering(masks, covered, 1) == [1]
    assert proposals.uncovering(masks[:0], covered, 9) == []


def test_an_image_in_which_nothing_stands_out_has_proposals_all_the_same(
    segmenter, box_head, detector, monkeypatch
):
    monkeypatch.setattr(box_head, "propose", lambda *args: (torch.zeros(0, 4), torch.zeros(0)))
    image = np.zeros((256, 512, 3), np.uint8)
    image[:, 256:] = 200
    embedding = segmenter.encode(image)
    tiles = encode_tiles(segmenter, detector, embedding)
    candidates = proposals.find_candidates(segmenter, box_head, embedding, no_detections(), tiles, image)
    assert len(candidates.logits) >= 2
    assert len(as_proposals(candidates, segmenter, embedding, tiles)) == len(candidates.logits)

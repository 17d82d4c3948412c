"""Everything mode against segment-anything's generator, on tiny weights that were taught to draw discs."""

import tracemalloc

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st

from assistant.errors import BadInput
from assistant.sam.backends import OfficialSegmenter
from assistant.sam.mask_ops import encode_rle, remove_small_parts, rle_iou
from assistant.sam.proposals import Proposals, by_granularity, crop_boxes, everything
from eval.peers import segment_anything_masks
from eval.random_sam import random_sam, teach, thresholds

POINTS_PER_SIDE = 12


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    sam = random_sam("tiny")
    teach(sam, 60, 0)
    return sam


@pytest.fixture(scope="module")
def coffee():
    return np.ascontiguousarray(skimage.data.coffee()[::3, ::3])  # 134 x 200


@pytest.fixture(scope="module")
def opened(sam, coffee):
    """The segmenter, the image's embedding, and settings that let some of the masks pass."""
    segmenter = OfficialSegmenter(sam)
    embedding = segmenter.encode(coffee)
    settings = {"points_per_side": POINTS_PER_SIDE} | thresholds(segmenter, embedding, POINTS_PER_SIDE)
    return segmenter, embedding, settings


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        {"box_nms_thresh": 0.95},
        {"points_per_batch": 5},
    ],
    ids=["plain", "crops", "loose", "small batches"],
)
def test_equals_segment_anything(sam, coffee, opened, more):
    """At least 99 % of the masks of each are among those of the other at IoU >= .99."""
    segmenter, embedding, settings = opened
    ours = everything(segmenter, embedding, image=coffee, **(settings | more)).rles
    theirs = segment_anything_masks(sam, coffee, settings | more)
    table = rle_iou(theirs, ours)
    assert len(theirs) > 5
    assert (table.max(1) >= 0.99).mean() >= 0.99 and (table.max(0) >= 0.99).mean() >= 0.99


def test_fast_asks_each_point_at_most_once(opened, monkeypatch):
    """How much of the result it keeps is measured by `python -m eval speed`: these masks are noise."""
    segmenter, embedding, settings = opened
    asked = []
    decode = segmenter.decode

    def counting_decode(embedding, points, *arguments, **options):
        asked.append(len(points))
        return decode(embedding, points, *arguments, **options)

    monkeypatch.setattr(segmenter, "decode", counting_decode)
    fast = everything(segmenter, embedding, fast=True, **settings)
    assert 0 < sum(asked) <= POINTS_PER_SIDE**2 and len(fast)
    assert (fast.predicted_iou > settings["pred_iou_thresh"]).all()
    assert (fast.stability >= settings["stability_score_thresh"]).all()
    asked.clear()
    nothing = everything(segmenter, embedding, fast=True, **(settings | {"pred_iou_thresh": 9.0}))
    assert sum(asked) == POINTS_PER_SIDE**2 and not len(nothing)


def test_the_fields_of_proposals_agree(opened):
    segmenter, embedding, settings = opened
    proposals = everything(segmenter, embedding, **settings)
    assert proposals.masks.shape == (len(proposals), 134, 200)
    assert proposals.low_res_logits.shape == (len(proposals), 64, 64)
    assert (np.diff(proposals.predicted_iou) <= 0).all()
    for i, mask in enumerate(proposals.masks):
        ys, xs = np.nonzero(mask)
        assert mask.sum() == proposals.areas[i]
        assert [xs.min(), ys.min(), xs.max(), ys.max()] == proposals.boxes[i].tolist()
        logits = torch.from_numpy(proposals.low_res_logits[i])[None]
        assert (segmenter.upsample(embedding, logits)[0] != mask).mean() < 2e-4


def test_select_keeps_the_order_of_the_indices(opened):
    segmenter, embedding, settings = opened
    proposals = everything(segmenter, embedding, **settings)
    chosen = proposals.select([2, 0])
    assert len(chosen) == 2
    assert np.array_equal(chosen.mask(0), proposals.mask(2))
    assert chosen.boxes[1].tolist() == proposals.boxes[0].tolist()


def test_max_proposals_keeps_the_best(opened):
    segmenter, embedding, settings = opened
    proposals = everything(segmenter, embedding, **settings)
    assert everything(segmenter, embedding, max_proposals=4, **settings).rles == proposals.rles[:4]


def test_granularity_goes_from_parts_to_wholes(opened):
    segmenter, embedding, settings = opened
    small, middle, large = (
        np.median(everything(segmenter, embedding, granularity=g, **settings).areas) for g in (0, 0.5, 1)
    )
    assert small < middle < large
    neutral = everything(segmenter, embedding, granularity=0.5, **settings)
    assert neutral.rles == everything(segmenter, embedding, **settings).rles


def test_no_small_parts_are_left(opened):
    segmenter, embedding, settings = opened
    proposals = everything(segmenter, embedding, min_mask_region_area=30, **settings)
    assert len(proposals) and all(not remove_small_parts(mask, 30)[1] for mask in proposals.masks)


def test_no_passing_mask_gives_empty_proposals(opened):
    segmenter, embedding, _ = opened
    proposals = everything(segmenter, embedding, points_per_side=4, pred_iou_thresh=9.0)
    assert len(proposals) == 0 and proposals.masks.shape == (0, 134, 200) and proposals.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"points_per_side": 0}, "at least 1"),
        ({"granularity": 2}, "between 0"),
        ({"crop_n_layers": 1}, "image="),
    ],
)
def test_bad_settings(opened, wrong, message):
    with pytest.raises(BadInput, match=message):
        everything(opened[0], opened[1], **wrong)


def test_progress_reaches_the_end(opened):
    segmenter, embedding, settings = opened
    reports = []
    everything(segmenter, embedding, fast=True, progress=lambda *report: reports.append(report), **settings)
    assert reports == sorted(reports) and reports[-1] == (POINTS_PER_SIDE**2, POINTS_PER_SIDE**2)


def test_memory_stays_bounded_at_twelve_megapixels(sam):
    """No array of all masks at full size is ever made: the widest is that of one mask."""
    segmenter = OfficialSegmenter(sam)
    embedding = segmenter.encode(np.zeros((3000, 4000, 3), np.uint8))
    tracemalloc.start()
    proposals = everything(
        segmenter, embedding, points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(proposals) > 3 and peak < 12 * 3000 * 4000  # numpy's part: a few masks, not all


@given(height=st.integers(64, 2000), width=st.integers(64, 2000), layers=st.integers(0, 2))
def test_crops_cover_the_image(height, width, layers):
    boxes = crop_boxes((height, width), layers, 512 / 1500)
    assert boxes[0] == ((0, 0, width, height), 0) and len(boxes) == sum(4**k for k in range(layers + 1))
    for layer in range(layers + 1):
        of_layer = [box for box, k in boxes if k == layer]
        assert all(0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height for x0, y0, x1, y1 in of_layer)
        assert max(box[2] for box in of_layer) == width and max(box[3] for box in of_layer) == height


def test_granularity_prefers_parts_or_whole_objects():
    whole, part = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    whole[:30, :30], part[:20, :20] = True, True
    masks = [part, whole]
    proposals = Proposals(
        [encode_rle(mask) for mask in masks],
        np.zeros((2, 4), np.float32),
        np.full(2, 0.9, np.float32),
        np.ones(2, np.float32),
        np.array([mask.sum() for mask in masks]),
        np.zeros((2, 2), np.float32),
        np.zeros((2, 4, 4), np.float32),
        (40, 40),
    )
    assert by_granularity(proposals, 1).areas.tolist() == [900]
    assert by_granularity(proposals, 0).areas.tolist() == [400, 900]
    with pytest.raises(BadInput, match="between 0"):
        by_granularity(proposals, 1.5)

"""Mask geometry: boxes against a plain scan of the pixels, RLE against pycocotools."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from assistant.errors import BadInput
from assistant.sam.mask_ops import (
    box_area,
    box_intersection,
    box_iou,
    crop_around,
    decode_rle,
    encode_patch_rle,
    encode_rle,
    merge_rles,
    pad_to_square,
    rle_area,
    rle_containment,
    rle_iou,
    rle_of_segmentation,
    tight_box,
    tight_box_xywh,
    tight_boxes,
)

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
MASKS = arrays.arrays(bool, SHAPES)
SPARSE_MASKS = arrays.arrays(bool, SHAPES, fill=st.just(False))
SAME_SIZE_MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 5), st.just(9), st.just(12)))
BOXES = st.tuples(
    *[st.integers(0, 30)] * 2,
    *[st.integers(0, 30)] * 2,
).map(lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])])


# ---------------------------------------------------------------------------------- boxes


@given(SPARSE_MASKS)
def test_tight_box_holds_the_mask_and_nothing_smaller_does(mask):
    box = tight_box(mask)
    if not mask.any():
        assert box is None and tight_box_xywh(mask) == [0, 0, 0, 0] and crop_around(mask) is None
        return
    ys, xs = np.nonzero(mask)
    assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert all(type(side) is int for side in box)  # for json
    assert tight_box_xywh(mask) == coco_mask.toBbox(encode_rle(mask)).tolist()


@given(SPARSE_MASKS, st.integers(0, 5))
def test_crop_around_leaves_a_margin_inside_the_image(mask, margin):
    if not mask.any():
        return
    ys, xs = np.nonzero(mask)
    rows, columns = crop_around(mask, margin)
    assert mask[rows, columns].sum() == mask.sum()
    assert (rows.start, columns.start) == (max(0, ys.min() - margin), max(0, xs.min() - margin))
    assert rows.stop == min(mask.shape[0], ys.max() + 1 + margin)
    assert columns.stop == min(mask.shape[1], xs.max() + 1 + margin)


@given(SAME_SIZE_MASKS)
def test_tight_boxes_are_those_of_each_mask(masks):
    expected = [tight_box(mask) or [0, 0, 0, 0] for mask in masks]
    assert tight_boxes(torch.from_numpy(masks)).tolist() == expected


def test_tight_boxes_of_no_masks():
    assert tight_boxes(torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0, 4)


@given(BOXES, st.lists(BOXES, max_size=4))
def test_box_iou_counts_pixels(box, boxes):
    def drawn(b):
        canvas = np.zeros((30, 30), bool)
        canvas[b[1] : b[3], b[0] : b[2]] = True
        return canvas

    others = np.array(boxes, np.float32).reshape(-1, 4)
    areas = box_area(others)
    intersections = box_intersection(box, others)
    ious = box_iou(box, others)
    assert areas.shape == intersections.shape == ious.shape == (len(boxes),)
    assert ious.dtype == np.float64
    for k, other in enumerate(boxes):
        both, either = (drawn(box) & drawn(other)).sum(), (drawn(box) | drawn(other)).sum()
        assert areas[k] == drawn(other).sum() and intersections[k] == both
        assert ious[k] == (both / either if either else 0)


# ---------------------------------------------------------------------------------- RLE


@given(MASKS)
def test_rle_round_trip(mask):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape) and isinstance(rle["counts"], str) and json.dumps(rle)
    decoded = decode_rle(rle)
    assert decoded.dtype == bool and np.array_equal(decoded, mask)
    assert np.array_equal(coco_mask.decode(rle).astype(bool), mask)
    assert np.array_equal(decode_rle(rle | {"counts": rle["counts"].encode()}), mask)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]])))).tolist()
    assert np.array_equal(decode_rle(rle | {"counts": [0, *runs] if mask[0, 0] else runs}), mask)
    assert rle_area(rle) == mask.sum()


def test_a_mask_of_numbers_is_inside_where_it_is_not_zero():
    mask = np.array([[0, 2, 255], [0, 0, 1]], np.uint8)
    assert np.array_equal(decode_rle(encode_rle(mask)), mask != 0)


@given(seed=st.integers(0, 10**6), top=st.integers(0, 20), left=st.integers(0, 20))
def test_rle_of_a_small_patch_in_a_large_image(seed, top, left):
    rng = np.random.default_rng(seed)
    patch = rng.random((rng.integers(1, 12), rng.integers(1, 12))) < rng.random()
    whole = np.zeros((32, 32), bool)
    whole[top : top + patch.shape[0], left : left + patch.shape[1]] = patch[: 32 - top, : 32 - left]
    found = encode_patch_rle(patch[: 32 - top, : 32 - left], (top, left), (32, 32))
    assert np.array_equal(coco_mask.decode(found), whole)
    if whole.any():
        assert found == encode_rle(whole)


@given(SAME_SIZE_MASKS, SAME_SIZE_MASKS)
@settings(max_examples=50)
def test_merged_and_compared_rles_are_the_masks(masks, others):
    rles, other_rles = [encode_rle(m) for m in masks], [encode_rle(m) for m in others]
    merged = merge_rles(rles)
    assert json.dumps(merged) and np.array_equal(decode_rle(merged), masks.any(0))
    both = (masks[:, None] & others[None]).sum((2, 3))
    either = (masks[:, None] | others[None]).sum((2, 3))
    area = masks.sum((1, 2))[:, None]
    assert np.allclose(rle_iou(rles, other_rles), both / np.maximum(either, 1))
    assert np.allclose(rle_containment(rles, other_rles), both / np.maximum(area, 1))


def test_no_rles_compare_to_nothing():
    rle = encode_rle(np.ones((2, 3), bool))
    assert rle_iou([], [rle]).shape == (0, 1) and rle_iou([rle], []).shape == (1, 0)
    assert rle_containment([], []).shape == (0, 0)


def test_rle_of_a_coco_segmentation():
    square = [1, 1, 4, 1, 4, 3, 1, 3]
    mask = np.zeros((5, 6), bool)
    mask[1:3, 1:4] = True
    expected = encode_rle(mask)
    assert rle_of_segmentation([square], 5, 6) == expected
    assert rle_of_segmentation([square, [0, 0, 5, 0]], 5, 6) == expected  # a line has no area
    assert rle_of_segmentation(expected, 5, 6) == expected
    assert rle_of_segmentation(expected | {"counts": expected["counts"].encode()}, 5, 6) == expected
    runs = [6, 2, 3, 2, 3, 2, 12]
    assert rle_of_segmentation({"size": [5, 6], "counts": runs}, 5, 6) == expected
    assert not decode_rle(rle_of_segmentation([[0, 0, 5, 0]], 5, 6)).any()


@pytest.mark.parametrize("counts", ["", "o", "0" * 40, "\x00", "é", None, 4, [2, 2], [[12]], [-1, 13]])
def test_an_rle_that_does_not_fill_its_size_is_refused(counts):
    with pytest.raises(BadInput):
        decode_rle({"size": [3, 4], "counts": counts})


def test_rle_of_a_large_mask():
    mask = np.zeros((3000, 4000), bool)
    mask[10:2500, 70:3990] = True
    mask[::7, ::3] ^= True
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


@settings(max_examples=80)
@given(MASKS, st.integers(-2, 50), st.integers(-2, 50))
def test_rle_of_another_size_is_refused(mask, height, width):
    rle = encode_rle(mask) | {"size": [height, width]}
    if height * width == mask.size and min(height, width) > 0:
        assert decode_rle(rle).shape == (height, width)
    else:
        with pytest.raises(BadInput):
            decode_rle(rle)


@settings(max_examples=150)
@given(
    st.one_of(st.text(max_size=30), st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
)
def test_any_counts_string_is_refused_or_a_whole_mask(counts):
    try:
        mask = decode_rle({"size": [4, 3], "counts": counts})
    except BadInput:
        return
    assert mask.shape == (4, 3) and mask.dtype == bool
    assert np.array_equal(coco_mask.decode({"size": [4, 3], "counts": counts}).astype(bool), mask)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": "0"},
        {"size": "ab", "counts": "04"},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": [5]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [2, 2], "counts": [[4]]},
        {"size": [2, 2], "counts": "o" * 40},
        {"size": [10**9, 10**9], "counts": "4"},
        {"size": [2, 2], "counts": ["x"]},
        {"size": [2, 2], "counts": [2**62] * 4 + [4]},
        {"size": [10**6, 10**6], "counts": [10**12]},
    ],
)
def test_a_broken_rle_is_refused(rle):
    with pytest.raises(BadInput):
        decode_rle(rle)


# ---------------------------------------------------------------------------------- squares


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_a_padded_image_lies_where_it_is_said_to(height, width, more, centred):
    image = np.random.default_rng(0).integers(128, 255, (height, width, 3), np.uint8)
    side = max(height, width) + more
    square = pad_to_square(image, side, centred)
    top, left = ((side - height) // 2, (side - width) // 2) if centred else (0, 0)
    assert square.shape == (side, side, 3) and square.dtype == np.uint8
    assert np.array_equal(square[top : top + height, left : left + width], image)
    assert (square == 127).sum() == square.size - image.size
    if not more:
        assert np.array_equal(pad_to_square(image, centred=centred), square)

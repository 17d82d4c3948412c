"""What annotation files call an outline: either pycocotools reads it safely, or one line says why not."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.errors import BadInput
from assistant.sam.mask_ops import decode_rle, encode_rle, merge_rles, rle_area, rle_of_segmentation
from assistant.sam.outlines import check_box, check_outline
from tests.helpers.refusals import refusal

H, W = 40, 60
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]
AREA = 20 * 20


def test_a_flat_polygon_is_the_same_as_a_list_of_one():
    assert rle_of_segmentation(SQUARE, H, W) == rle_of_segmentation([SQUARE], H, W)
    assert rle_area(rle_of_segmentation(SQUARE, H, W)) == AREA


def test_a_polygon_that_leaves_the_image_is_cut_at_its_edge():
    mask = decode_rle(rle_of_segmentation([[-20, -10, 30, -10, 30, 20, -20, 20]], H, W))
    assert mask[:20, :30].all() and mask.sum() == 600


@pytest.mark.parametrize(
    "outline, reason",
    [
        ("[[10, 5, 30, 5, 30, 25]]", "neither a list of polygons nor an RLE"),
        (None, "neither"),
        (7, "neither"),
        ([[[10, 5], [30, 5], [30, 25]]], "not a list of numbers"),
        ([[10, 5], [30, 5], [30, 25], None], "not a list of numbers"),
        ([SQUARE, "x"], "not a list of numbers"),
        ([10, 5, None, 5, 30, 25], "not a list of numbers"),
        ([["10", "5", "30", "5", "30", "25"]], "not a list of numbers"),
        ([[True, 5, 30, 5, 30, 25]], "not a list of numbers"),
        ([[math.nan, 5, 30, 5, 30, 25]], "not finite"),
        ([[10, math.inf, 30, 5, 30, 25]], "not finite"),
        ([[10, 5, 10**400, 5, 30, 25]], "not finite"),
        ([[10, 5, 30, 5, 30, 25, 10]], "odd number"),
        ([[10, 5, 2e8, 5, 30, 25]], "far outside"),
        ([[-61, 5, 30, 5, 30, 25]], "far outside"),
        ([[0, 0, W, H] * 40_000], "edges that are too long"),
        ({"counts": [H * W]}, "must be an RLE"),
        ({"size": [H, W]}, "must be an RLE"),
        ({"size": [H, W], "counts": None}, "must be an RLE"),
        ({"size": [H, W], "counts": "b'YZ2b0'"}, "must be an RLE"),
        ({"size": [H, W], "counts": [100, -50, H * W - 50]}, "do not fill"),
        ({"size": [H, W], "counts": [100, 50]}, "do not fill"),
        ({"size": [H, W], "counts": [100.5, H * W - 100.5]}, "must be an RLE"),
        ({"size": [H, W], "counts": ["100", H * W - 100]}, "must be an RLE"),
        ({"size": [H, W], "counts": [[100, H * W - 100]]}, "must be an RLE"),
        ({"size": [W, H], "counts": [100, H * W - 100]}, "another size"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "limit"),
    ],
)
def test_what_is_no_outline_is_refused_in_one_line(outline, reason):
    assert reason in refusal(lambda: rle_of_segmentation(outline, H, W))


def test_deep_nesting_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "not a list of numbers" in refusal(lambda: check_outline(deep, H, W))


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (10**6, 10**6), (None, 10), (10, "10"), (True, 4.5)])
def test_an_image_cannot_have_every_size(size):
    refusal(lambda: rle_of_segmentation([SQUARE], *size))


def test_empty_runs_do_not_end_a_union_early():
    """pycocotools' merge stops where two masks have an empty run at one place."""
    mask = np.zeros((H, W), bool)
    mask[3:9, 10:20] = mask[30:33, 40:50] = True
    runs = [int(run) for run in run_list(mask)]
    split = [*runs[:4], 0, 0, *runs[4:]]
    rle = rle_of_segmentation({"size": [H, W], "counts": split}, H, W)
    assert rle == encode_rle(mask) and np.array_equal(decode_rle(merge_rles([rle, rle])), mask)
    floats = {"size": [float(H), float(W)], "counts": [float(run) for run in runs]}
    assert rle_of_segmentation(floats, H, W) == encode_rle(mask)


def run_list(mask):
    """The run lengths of a mask that does not begin with a pixel of its own."""
    return np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel().astype(int), [2]]))))


def test_boxes():
    assert check_box([1, 2, 3.5, 4], H, W) == (1, 2, 3.5, 4)
    for box in ([], None, [1, 2, 3], [1, 2, None, 4], [1, 2, math.nan, 4], "1234", [1, 2, "3", 4]):
        assert "four finite numbers" in refusal(lambda box=box: check_box(box, H, W))
    assert "no area" in refusal(lambda: check_box([1, 2, 0, 4], H, W))
    assert "outside" in refusal(lambda: check_box([W, 2, 3, 4], H, W))


VALUES = st.one_of(st.integers(-130, 130), st.floats(), st.none(), st.text(max_size=2), st.booleans())


def nested(inner):
    keys = st.sampled_from(["size", "counts"])
    return st.one_of(st.lists(inner, max_size=8), st.dictionaries(keys, inner))


JSON = st.recursive(VALUES, nested, max_leaves=20)


@settings(max_examples=300, deadline=None)
@given(st.one_of(JSON, st.lists(st.lists(st.floats(-200, 200), min_size=6, max_size=8), max_size=3)))
def test_anything_is_a_whole_mask_or_refused(outline):
    try:
        rle = rle_of_segmentation(outline, H, W)
    except BadInput:
        return
    assert decode_rle(json.loads(json.dumps(rle))).shape == (H, W)

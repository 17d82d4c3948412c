"""RLE from anywhere: every mask comes back, and what is not a whole mask is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from assistant.errors import BadInput
from assistant.sam.mask_ops import decode_rle, encode_rle

MASKS = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@settings(max_examples=60)
@given(MASKS)
def test_rle_round_trip_agrees_with_pycocotools(mask):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape) and isinstance(rle["counts"], str) and json.dumps(rle)
    assert np.array_equal(decode_rle(rle), mask)
    assert np.array_equal(coco_mask.decode(rle).astype(bool), mask)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))))
    runs = ([0] if mask[0, 0] else []) + runs.tolist()
    assert np.array_equal(decode_rle({"size": rle["size"], "counts": runs}), mask)


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
def test_broken_rle(rle):
    with pytest.raises(BadInput):
        decode_rle(rle)

"""Outlines cover their masks, and colours differ."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from assistant.export.colours import COLOURS, colour_of, colours_on, rgb_of
from assistant.export.drawing import outlines
from tests.helpers.polygons import filled_polygon


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_outlines_cover_any_mask(mask):
    parts = outlines(mask, tolerance=0)
    assert len(parts) == ndimage.label(mask, np.ones((3, 3)))[1]
    covered = np.zeros_like(mask)
    for points, holes in parts:
        assert len(points) >= 4 and (points >= 0).all() and (points <= mask.shape[::-1]).all() and holes >= 0
        covered |= filled_polygon(points, mask.shape)
    eight = np.ones((3, 3))
    filled = np.zeros_like(mask)
    labels, count = ndimage.label(mask, eight)
    for k in range(1, count + 1):
        filled |= ndimage.binary_fill_holes(labels == k)
    assert not (covered & ~filled).any()
    # At corners a diagonal halves the pixel; inside nothing is lost.
    inside = ndimage.binary_erosion(filled, eight)
    assert not (inside & ~covered).any()


def test_no_mask_has_the_colour_of_what_it_lies_on():
    image = np.full((20, 30, 3), 128, np.uint8)
    image[:10] = rgb_of(COLOURS[0])
    upper, lower = np.zeros((2, 20, 30), bool)
    upper[:10], lower[10:] = True, True
    assert colours_on(image, [lower, upper, None]) == COLOURS[:3]
    assert colours_on(image, [upper, lower]) == [COLOURS[1], COLOURS[0]]
    assert colours_on(None, [upper, lower]) == COLOURS[:2]
    many = colours_on(image, [upper] * 30)  # once all were taken they are free again
    assert set(many[:12]) == set(COLOURS) and many[12] == many[0]
    empty = np.zeros_like(upper)
    assert colours_on(image, [empty]) == COLOURS[:1]


def test_colours_differ_clearly():
    assert len(set(COLOURS)) == len(COLOURS) == 12 and colour_of(12) == colour_of(0) != colour_of(11)
    rgb = np.array([rgb_of(colour) for colour in COLOURS], float)
    distances = np.linalg.norm(rgb[:, None] - rgb[None], axis=2)[~np.eye(12, dtype=bool)]
    assert distances.min() > 60

"""Small parts of masks, and boxes that a crop cut off."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage

from assistant.sam.mask_ops import remove_small_parts, without_stray_islands
from assistant.sam.suppression import is_cut_off


@given(seed=st.integers(0, 10**6), min_area=st.integers(1, 30))
@example(seed=150612, min_area=17)  # two islands of 16 px
def test_no_small_part_stays_and_no_large_one_goes(seed, min_area):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.standard_normal((24, 30)), 1) > rng.normal(0, 0.2)
    cleaned, is_changed = remove_small_parts(mask, min_area)
    assert is_changed == (cleaned != mask).any()
    islands, count = ndimage.label(cleaned, np.ones((3, 3)))
    areas = np.bincount(islands.ravel())[1:]
    assert (areas >= min_area).all() or count == 1
    assert cleaned.any() == mask.any()


def test_an_untouched_mask_is_said_to_be_unchanged():
    mask = np.zeros((20, 20), bool)
    mask[2:15, 3:16] = True
    assert remove_small_parts(mask, 10)[1] is False


def test_small_holes_are_filled_and_small_islands_dropped():
    mask = np.zeros((20, 20), bool)
    mask[2:15, 3:16] = True
    whole = mask.copy()
    mask[6:8, 6:8] = False
    mask[18, 18] = True
    cleaned, is_changed = remove_small_parts(mask, 5)
    assert is_changed and np.array_equal(cleaned, whole)


def test_only_the_edges_of_the_crop_cut_off():
    size, crop = (200, 300), (0, 0, 150, 200)
    assert is_cut_off(np.array([50, 50, 149, 120]), crop, size)  # at the right edge of the crop
    assert not is_cut_off(np.array([0, 50, 100, 199]), crop, size)  # at edges that are the image's too
    assert not is_cut_off(np.array([50, 50, 299, 120]), (0, 0, 300, 200), size)


def test_islands_without_a_click_go_where_they_are_small():
    mask = np.zeros((30, 40), bool)
    mask[:20, :20] = mask[25:28, 2:5] = mask[2:10, 30:38] = mask[20:23, 35:38] = True
    kept = without_stray_islands(mask, np.array([[36.5, 21], [45, 99]]), min_share=0.1)
    wanted = mask.copy()
    wanted[25:28, 2:5] = False  # the island of 9 px with a click stays, as does the one of 64 px
    assert np.array_equal(kept, wanted)
    assert np.array_equal(
        without_stray_islands(mask, np.zeros((0, 2)), 1.0),
        mask & (np.arange(40) < 20) & (np.arange(30) < 20)[:, None],
    )
    assert not without_stray_islands(np.zeros((4, 4), bool), np.array([[1, 1]]), 0.1).any()

"""Masks drawn a box at a time against masks drawn whole."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assistant.sam import mask_resizing
from assistant.sam.mask_ops import tight_box
from assistant.sam.mask_resizing import Resizer, full_blocks

SIDE = 8  # of the low-resolution logits


def random_resizer(rng: np.random.Generator) -> Resizer:
    """To an image whose sides are 8 to 39 px."""
    rows, columns = (
        torch.nn.functional.interpolate(torch.eye(SIDE)[None], size=int(length), mode="linear")
        .squeeze(0)
        .T.contiguous()
        for length in rng.integers(SIDE, 40, 2)
    )
    return Resizer(rows, columns)


@given(seed=st.integers(0, 10**6))
def test_a_mask_drawn_in_its_box_is_the_mask_drawn_whole(seed):
    rng = np.random.default_rng(seed)
    resizer = random_resizer(rng)
    rows, columns = resizer.rows, resizer.columns
    logits = rng.normal(-1, 2, (SIDE, SIDE)).astype(np.float32)
    whole = (rows @ torch.from_numpy(logits) @ columns.T > 0).numpy()
    drawn = resizer.draw(logits, (0, 0), [0, 0, len(columns), len(rows)])
    if drawn is None:
        assert not whole.any()
        return
    x0, y0, x1, y1 = drawn.box
    assert tight_box(whole) == [x0, y0, x1 + 1, y1 + 1]
    assert np.array_equal(drawn.mask, whole[y0 : y1 + 1, x0 : x1 + 1])
    assert 0 <= drawn.stability <= 1


@given(seed=st.integers(0, 10**6))
def test_bounds_hold(seed):
    """No pixel outside of the touched ones lies above the logit, all enclosed ones do; areas are bounds."""
    rng = np.random.default_rng(seed)
    resizer = random_resizer(rng)
    logits = rng.normal(-1, 2, (SIDE, SIDE)).astype(np.float32)
    pixels = (resizer.rows @ torch.from_numpy(logits) @ resizer.columns.T > 0).numpy()
    cells = torch.from_numpy(logits > 0)[None, None]
    assert float(resizer.min_area(cells)) <= pixels.sum() <= float(resizer.max_area(cells))
    box = tight_box(logits > 0)
    if box is None:
        assert not pixels.any()
        return
    x0, y0, x1, y1 = resizer.touched_pixels(box)
    assert pixels.sum() == pixels[y0:y1, x0:x1].sum()
    block = np.zeros((SIDE, SIDE), np.float32) - 1
    block[2:6, 3:7] = 1
    x0, y0, x1, y1 = resizer.enclosed_pixels([3, 2, 7, 6])
    assert (resizer.rows @ torch.from_numpy(block) @ resizer.columns.T > 0)[y0:y1, x0:x1].all()


def test_a_mask_is_the_same_in_many_steps(monkeypatch):
    rng = np.random.default_rng(0)
    resizer = random_resizer(rng)
    logits = rng.normal(0, 2, (SIDE, SIDE)).astype(np.float32)
    pixels = [0, 0, len(resizer.columns), len(resizer.rows)]
    at_once = resizer.draw(logits, (0, 0), pixels)
    monkeypatch.setattr(mask_resizing, "MAX_PIXELS_PER_STEP", 1)
    in_steps = resizer.draw(logits, (0, 0), pixels)
    assert np.array_equal(at_once.mask, in_steps.mask) and at_once[1:] == in_steps[1:]


@pytest.mark.parametrize("span", [1, 2, 3])
def test_full_blocks(span):
    masks = torch.rand(4, 9, 7, generator=torch.Generator().manual_seed(0)) < 0.8
    blocks = full_blocks(masks, span)
    assert blocks.shape == (4, 10 - span, 8 - span)
    for k in range(4):
        for y in range(10 - span):
            for x in range(8 - span):
                assert blocks[k, y, x] == masks[k, y : y + span, x : x + span].all()

"""Small things are outlined on a close-up of them."""

import numpy as np
import pytest
import torch

from assistant.pocket.sam import build_pocket_sam
from assistant.sam.backends import PocketSegmenter
from assistant.sam.close_up import close_up_of, sharpened

SIZE = (300, 400)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return PocketSegmenter(build_pocket_sam())


@pytest.fixture(scope="module")
def embedding(segmenter):
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    return segmenter.encode(image)


def test_a_close_up_is_taken_around_a_small_thing(segmenter, embedding):
    close_up = close_up_of(segmenter, embedding, np.array([200.0, 100, 220, 110]))

    assert close_up is not None
    left, top, right, bottom = close_up.window
    assert (left, top, right, bottom) == (180, 75, 240, 135)
    assert close_up.embedding.size == (60, 60)


def test_a_close_up_holds_the_clicks_and_stays_in_the_image(segmenter, embedding):
    close_up = close_up_of(segmenter, embedding, np.array([0.0, 0, 10, 10]), np.array([[60.0, 5.0]]))

    assert close_up is not None
    left, top, right, bottom = close_up.window
    assert left == top == 0 and right == 61


@pytest.mark.parametrize("box", [(0.0, 0, 60, 30), (10.0, 10, 300, 290)])
def test_large_things_need_none(segmenter, embedding, box):
    assert close_up_of(segmenter, embedding, np.array(box)) is None


def test_a_restored_embedding_allows_none(segmenter, embedding):
    restored = segmenter.restore(embedding.features, embedding.size)

    assert close_up_of(segmenter, restored, np.array([200.0, 100, 220, 110])) is None


def test_masks_lie_in_the_window_and_logits_on_the_whole_image(segmenter, embedding):
    masks, scores, logits = segmenter.predict(embedding, box=[200, 100, 220, 110], multimask=False)

    assert masks.shape == (1, *SIZE) and scores.shape == (1,)
    assert logits.shape == (1, segmenter.low_res_side, segmenter.low_res_side)
    outside = np.ones(SIZE, bool)
    outside[75:135, 180:240] = False
    assert not masks[0][outside].any()
    again, _, _ = segmenter.predict(embedding, mask=logits[0], multimask=False)
    assert again.shape == (1, *SIZE)


def test_the_pixels_of_a_large_image_are_kept_smaller_and_the_window_is_in_its_own(segmenter):
    image = np.zeros((100, 4000, 3), np.uint8)
    embedding = segmenter.encode(image)
    assert embedding.pixels is not None and embedding.pixels.shape == (38, 1536, 3)

    close_up = close_up_of(segmenter, embedding, np.array([1000.0, 40, 1040, 60]))

    assert close_up is not None
    assert close_up.embedding.size == (100, 314)


class Drawer:
    """A segmenter of `sharpened` that outlines a fixed mask on every close-up."""

    close_up_below = 64.0

    def __init__(self, mask):
        self.mask = mask

    def encode(self, image):
        from assistant.sam.segmenter import Embedding

        return Embedding(torch.zeros(1), image.shape[:2], image.shape[:2], pixels=image)

    def predict(self, embedding, box=None, mask=None, multimask=True, close_up=True):
        assert mask is not None and not multimask and not close_up
        height, width = embedding.size
        logits = np.where(self.mask[:height, :width], 5, -5).astype(np.float32)[None]
        return logits > 0, np.ones(1), logits

    def upsample(self, embedding, logits):
        return logits.numpy() > 0


def test_an_outline_that_fits_replaces_the_mask_and_another_thing_does_not():
    mask = np.zeros(SIZE, bool)
    mask[100:120, 200:220] = True
    drawn = np.zeros(SIZE, bool)
    drawn[20:41, 20:41] = True  # the window begins 20 px before the thing
    drawer = Drawer(drawn)
    embedding = drawer.encode(np.zeros((*SIZE, 3), np.uint8))

    sharper = sharpened(drawer, embedding, mask)

    assert sharper.sum() == 21 * 21 and sharper[100:121, 200:221].all()
    drawer.mask = np.roll(drawn, 15, axis=(0, 1))
    assert (sharpened(drawer, embedding, mask) == mask).all()


def test_a_large_mask_is_outlined_again_on_the_whole_image():
    mask = np.zeros(SIZE, bool)
    mask[20:250, 50:300] = True
    drawn = np.zeros(SIZE, bool)
    drawn[20:260, 50:310] = True
    crumbs = drawn.copy()
    crumbs[100:110, 100:110] = False
    crumbs[5:10, 5:10] = True
    drawer = Drawer(crumbs)
    embedding = drawer.encode(np.zeros((*SIZE, 3), np.uint8))

    assert (sharpened(drawer, embedding, mask) == drawn).all()
    drawer.close_up_below = 0.0
    assert sharpened(drawer, embedding, mask) is mask

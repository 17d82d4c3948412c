"""Draws the prompts that the pocket SAM is trained on: boxes, clicks, and clicks on nothing that is outlined.

    drawer = PromptDrawer(masks, used_size, rng)
    prompts = drawer.draw(12, with_clicks_on_nothing=True)    # .points, .labels, .kind, .mask_of

All coordinates are px of the padded training square, x before y.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from assistant.sam.mask_ops import tight_box

MAX_POINTS = 4  # prompt tokens of one prompt
CELL = 4  # px of a cell of the mask decoder's output, in which distances are measured

# Labels of points, as in segment-anything.
NO_POINT, NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 0, 1, 2, 3

# Kinds of prompts, by what is asked of the answer: the single mask, the best of three masks, or no mask at
# all.
SINGLE_MASK, SINGLE_CLICK, CLICK_ON_NOTHING = 0, 1, 2

# Shares of the kinds, cumulated: clicks on nothing, boxes, single clicks; the rest are several clicks.
CLICK_ON_NOTHING_SHARE = 0.08
BOX_SHARE = 0.5
SINGLE_CLICK_SHARE = 0.85

MIN_EMPTY_PIXELS = 500  # outside of all masks, from which clicks on nothing are drawn

# Boxes as people draw them: most are off by a few percent of their sides, and some come with a click.
LOOSE_BOX_SHARE = 0.8
BOX_NOISE, MAX_BOX_NOISE = 0.04, 0.1  # standard deviation and bound, in shares of the sides
BOX_WITH_CLICK_SHARE = 0.1

# Clicks as people set them: half of them near the middle of the object.
MIDDLE_CLICK_SHARE = 0.5
MIDDLE_DEPTH = 0.8  # of the largest distance to the edge, from which a pixel is in the middle
POSITIVE_SHARE = 0.5  # of the further clicks; the others lie just outside
OUTSIDE_REACH = 8  # cells around the object in which negative clicks lie


class DrawnPrompts(NamedTuple):
    """P prompts.

    Attributes:
        points: (P, MAX_POINTS, 2) float32 xy px.
        labels: (P, MAX_POINTS) int, labels of points.
        kind: (P,) int, kinds of prompts.
        mask_of: (P,) int, the mask that each prompt means.
    """

    points: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    mask_of: np.ndarray


class PromptDrawer:
    """Draws prompts for the masks of one training image.

    Args:
        masks: (N, S, S) bool, over the padded square; none is empty.
        used_size: (h, w) px of the square that the image fills.
        rng: Decides everything that is drawn; the order of the draws is part of a training's seed.
    """

    def __init__(self, masks: np.ndarray, used_size: tuple[int, int], rng: np.random.Generator):
        self.masks = masks
        self.side = masks.shape[1]
        self.used_size = used_size
        self.rng = rng
        self._depths: dict[int, np.ndarray] = {}  # of a mask: each cell's distance to its edge

    def draw(self, count: int, with_clicks_on_nothing: bool) -> DrawnPrompts:
        """Draw `count` prompts.

        Args:
            count: Number of prompts, P.
            with_clicks_on_nothing: Whether what lies outside of all masks is known to be no object of its
                own.

        Returns:
            The prompts.
        """
        mask_of = self.rng.integers(len(self.masks), size=count)  # a small one as often as a large one
        points = np.zeros((count, MAX_POINTS, 2), np.float32)
        labels = np.full((count, MAX_POINTS), NO_POINT)
        kind = np.full(count, SINGLE_MASK)
        empty = self._limited(np.logical_not(self.masks.any(0)), cell=1)
        may_click_on_nothing = with_clicks_on_nothing and empty.sum() > MIN_EMPTY_PIXELS
        for p, number in enumerate(mask_of):
            share = self.rng.random()
            if share < CLICK_ON_NOTHING_SHARE and may_click_on_nothing:
                kind[p] = CLICK_ON_NOTHING
                labels[p, 0] = POSITIVE
                points[p, 0] = random_pixel(empty, self.rng)
            elif share < BOX_SHARE:
                self._draw_box(self.masks[number], points[p], labels[p])
            else:
                self._draw_click(number, points[p], labels[p])
                if share < SINGLE_CLICK_SHARE:
                    kind[p] = SINGLE_CLICK
                else:
                    self._draw_further_clicks(self.masks[number], points[p], labels[p])
        return DrawnPrompts(points, labels, kind, mask_of)

    def _draw_box(self, mask: np.ndarray, points: np.ndarray, labels: np.ndarray) -> None:
        """A box around a mask, perhaps with a click, into points (MAX_POINTS, 2) and labels (MAX_POINTS,)."""
        edges = tight_box(mask)
        assert edges is not None
        box = np.array(edges, np.float32)
        sides = np.tile(box[2:] - box[:2], 2)
        if self.rng.random() < LOOSE_BOX_SHARE:
            box += np.clip(self.rng.normal(0, BOX_NOISE, 4), -MAX_BOX_NOISE, MAX_BOX_NOISE) * sides
        points[:2] = box.reshape(2, 2).clip(0, self.side) - 0.5
        labels[:2] = BOX_TOP_LEFT, BOX_BOTTOM_RIGHT
        if self.rng.random() < BOX_WITH_CLICK_SHARE:
            points[2] = random_pixel(mask, self.rng)
            labels[2] = POSITIVE

    def _draw_click(self, number: int, points: np.ndarray, labels: np.ndarray) -> None:
        """A click on mask `number`, as the first point."""
        mask = self.masks[number]
        if number not in self._depths:
            cells = np.pad(mask[::CELL, ::CELL], 1)
            self._depths[number] = ndimage.distance_transform_edt(cells)[1:-1, 1:-1]
        depth = self._depths[number]
        if self.rng.random() < MIDDLE_CLICK_SHARE and depth.max() > 0:
            points[0] = random_pixel(depth >= MIDDLE_DEPTH * depth.max(), self.rng) * CELL
        else:
            points[0] = random_pixel(mask, self.rng)
        labels[0] = POSITIVE

    def _draw_further_clicks(self, mask: np.ndarray, points: np.ndarray, labels: np.ndarray) -> None:
        """Clicks inside and just outside of a mask, after the first point."""
        count = self.rng.integers(1, MAX_POINTS)
        cells = mask[::CELL, ::CELL]
        around = self._limited(ndimage.binary_dilation(cells, iterations=OUTSIDE_REACH) & ~cells, CELL)
        for j in range(1, count + 1):
            is_positive = self.rng.random() < POSITIVE_SHARE or not around.any()
            inside = random_pixel(mask, self.rng) if is_positive else random_pixel(around, self.rng) * CELL
            points[j] = inside
            labels[j] = POSITIVE if is_positive else NEGATIVE

    def _limited(self, mask: np.ndarray, cell: int) -> np.ndarray:
        """The mask, whose pixels are `cell` px wide, without what lies beyond the image; changed in place."""
        height, width = self.used_size
        mask[height // cell :] = False
        mask[:, width // cell :] = False
        return mask


def random_pixel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random pixel of a mask (H, W) bool that is not empty, (2,) float32 xy."""
    y, x = np.unravel_index(rng.choice(np.flatnonzero(mask)), mask.shape)
    return np.array([x, y], np.float32)

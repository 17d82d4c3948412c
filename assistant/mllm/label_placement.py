"""Where the numbers of marks go on an image: inside their regions, or beside those that are too small.

places = place_labels([(13, 24), None], masks, (1024, 683))
places[0].box, places[0].tip
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID_STEP = 4  # px; labels are placed on a grid of so many
LABEL_MARGIN = 10  # px that the box of a label is wider and higher than its text
# How many cells further from its region a label goes, rather than lie on a region that has its label already,
# or on one that has not.
COVERED_DETOUR = 24
OTHER_DETOUR = COVERED_DETOUR / 4


@dataclass(frozen=True)
class LabelPlace:
    """Where a label goes.

    Attributes:
        box: Its background, [x0, y0, x1, y1] px.
        tip: A point (x, y) px of the region, where the label stands beside it; None where it lies inside.
    """

    box: list[int]
    tip: tuple[int, int] | None

    @property
    def centre(self) -> tuple[float, float]:
        """The middle (x, y) px of the label."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def place_labels(
    labels: Sequence[Sequence[float] | None], masks: Sequence[np.ndarray], size: tuple[int, int]
) -> list[LabelPlace | None]:
    """Place the labels of regions.

    Small regions choose first. A label lies neither on another one nor, if it can be avoided, on a smaller
    region.

    Args:
        labels: For each region, (width, height) px of its label's text; None for no label.
        masks: The regions, (H, W) bool each.
        size: (W, H) px.

    Returns:
        The place of each label; None where there is none, or no room for it.
    """
    grid = _Grid(masks, size)
    places: list[LabelPlace | None] = [None] * len(masks)
    for k in sorted(range(len(masks)), key=lambda k: masks[k].sum()):
        label = labels[k]
        if label is not None:
            places[k] = grid.place(k, label)
    return places


class _Grid:
    """The cells of an image that labels and regions occupy; arguments as `place_labels`."""

    def __init__(self, masks: Sequence[np.ndarray], size: tuple[int, int]):
        self.masks = masks
        self.width, self.height = size[0] // GRID_STEP, size[1] // GRID_STEP
        self.regions = [self._sampled(mask) for mask in masks]
        self.labels = np.zeros((self.height, self.width), bool)
        self.labelled = np.zeros((self.height, self.width), bool)  # the regions whose labels are placed
        self.all_regions = np.any(self.regions, axis=0) if self.regions else self.labelled

    def _sampled(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) at the middle of each cell."""
        cells = mask[GRID_STEP // 2 :: GRID_STEP, GRID_STEP // 2 :: GRID_STEP][: self.height, : self.width]
        return np.pad(cells, ((0, self.height - cells.shape[0]), (0, self.width - cells.shape[1])))

    def place(self, k: int, label: Sequence[float]) -> LabelPlace | None:
        """Place the label of region k, of the size (width, height) px; None where there is no room."""
        half = [-(-(side + LABEL_MARGIN) // 2 // GRID_STEP) for side in label]
        half_width, half_height = int(half[0]), int(half[1])
        tip = None
        cell = self._roomiest_cell(k, half_width, half_height)
        if cell is None:
            tip = _point_near_centre(self.masks[k])
            if tip is not None:
                cell = self._cell_beside(k, tip, half_width, half_height)
        if cell is None:
            return None
        x, y = cell
        left, top, right, bottom = x - half_width, y - half_height, x + half_width + 1, y + half_height + 1
        self.labels[max(0, top) : bottom, max(0, left) : right] = True
        self.labelled |= self.regions[k]
        return LabelPlace([side * GRID_STEP for side in (left, top, right, bottom)], tip)

    def _roomiest_cell(self, k: int, half_width: int, half_height: int) -> tuple[int, int] | None:
        """The (x, y) cell of region k with the most room for its label; None where it does not fit."""
        from scipy import ndimage

        free = self.regions[k] & ~self.labels & ~self.labelled
        fitting = _fits(free, half_width, half_height)
        if not fitting.any():
            return None
        depth = ndimage.distance_transform_edt(np.pad(free, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(np.argmax(np.where(fitting, depth, -1)), depth.shape)
        return int(x), int(y)

    def _cell_beside(
        self, k: int, tip: tuple[int, int], half_width: int, half_height: int
    ) -> tuple[int, int] | None:
        """The (x, y) cell outside region k and near `tip` px where its label covers least; None if full."""
        fitting = _fits(~self.labels & ~self.regions[k], half_width, half_height)
        if not fitting.any():
            return None
        rows, columns = np.arange(self.height)[:, None], np.arange(self.width)[None]
        cost = np.hypot(rows - tip[1] / GRID_STEP, columns - tip[0] / GRID_STEP)
        covers_labelled = ~_fits(~self.labelled, half_width, half_height)
        covers_any = ~_fits(~self.all_regions, half_width, half_height)
        cost += COVERED_DETOUR * covers_labelled + OTHER_DETOUR * covers_any
        y, x = np.unravel_index(np.argmin(np.where(fitting, cost, np.inf)), cost.shape)
        return int(x), int(y)


def _fits(free: np.ndarray, half_width: int, half_height: int) -> np.ndarray:
    """The cells around which a box fits into the `free` cells."""
    from scipy import ndimage

    return ndimage.binary_erosion(free, np.ones((2 * half_height + 1, 2 * half_width + 1)))


def _point_near_centre(mask: np.ndarray) -> tuple[int, int] | None:
    """The (x, y) px of a mask that is nearest to its centre of mass; None for an empty mask."""
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return None
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return int(xs[nearest]), int(ys[nearest])

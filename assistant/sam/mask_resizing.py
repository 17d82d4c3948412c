"""From low-resolution logits to masks of the picture, a box at a time.

    resizer = Resizer(*segmenter.resizing(embedding))
    region = resizer.mask(logits, corner, outer)     # exact mask, stability and box of one candidate

SAM upsamples bilinearly, to its square and from there to the picture. Both steps are linear and act on rows and
columns apart, so together they are rows @ low @ columns.T, and a mask's box needs only the matching parts of the
matrices. A pixel is a weighted mean of its cells, so where all its cells are below a level it is too: this bounds
where a mask can be, and the bounds below are exact, not estimates.
"""

import numpy as np
import torch
from torch import Tensor

PIXELS_AT_ONCE = 4_000_000  # of one mask, in the widest array made here (16 MB)


class Resizer:
    """Low-resolution logits (l, l) -> picture (H, W). rows: (H, l); columns: (W, l). threshold: logit from which a
    pixel belongs to the mask; offset: how far stability moves it."""

    def __init__(self, rows: Tensor, columns: Tensor, threshold: float = 0.0, offset: float = 1.0):
        self.rows, self.columns = rows.cpu(), columns.cpu()
        self.threshold, self.offset = threshold, offset
        self.y, self.x = (
            reach(self.rows),
            reach(self.columns),
        )  # first and last cell that each line is made of
        self.cells = (
            int(self.y[1].max()) + 1,
            int(self.x[1].max()) + 1,
        )  # the part of the square that is picture
        self.span = int(max((last - first).max() for first, last in (self.y, self.x))) + 1
        # Pixels by the block of span x span cells that they are made of, along each side.
        self.lines = tuple(
            torch.from_numpy(
                np.bincount(np.minimum(first, n - self.span), minlength=n - self.span + 1)
            ).float()
            for (first, _), n in zip((self.y, self.x), self.cells)
        )

    def outer(self, cells) -> list[int]:
        """Cells (y0, x0, y1, x1), ends excluded -> pixels (x0, y0, x1, y1), ends excluded, made of any of them."""
        (y0, y1), (x0, x1) = (
            (np.searchsorted(last, a), np.searchsorted(first, b))
            for (first, last), a, b in ((self.y, cells[0], cells[2]), (self.x, cells[1], cells[3]))
        )
        return [int(v) for v in (x0, y0, x1, y1)]

    def inner(self, cells) -> list[int]:
        """Cells -> pixels made of nothing else; possibly none."""
        (y0, y1), (x0, x1) = (
            (np.searchsorted(first, a), np.searchsorted(last, b))
            for (first, last), a, b in ((self.y, cells[0], cells[2]), (self.x, cells[1], cells[3]))
        )
        return [int(v) for v in (x0, y0, x1, y1)]

    def most(self, cells: Tensor) -> Tensor:
        """Cells (..., h, w) bool above some logit -> (...) float, how many pixels can be above it at most."""
        return self._count(~solid(~cells.flatten(0, -3), self.span)).view(cells.shape[:-2])

    def least(self, cells: Tensor) -> Tensor:
        """As `most`: how many pixels must be above it."""
        return self._count(solid(cells.flatten(0, -3), self.span)).view(cells.shape[:-2])

    def _count(self, blocks: Tensor) -> Tensor:
        rows, columns = (line.to(blocks.device) for line in self.lines)
        return blocks.float() @ columns @ rows

    def mask(self, logits: np.ndarray, corner: tuple[int, int], outer: list[int]):
        """Upsample a patch of logits (h, w) whose first value is cell `corner`, over the pixels `outer`.

        Returns the mask (h, w) bool cut to its box, the box's (x0, y0, x1, y1) with both ends included, and the
        stability |logit > t + offset| / |logit > t - offset| (0 for 0 / 0); or None when no pixel is in the mask.
        """
        x0, y0, x1, y1 = outer
        patch = torch.from_numpy(logits)
        (top, left), (h, w) = corner, logits.shape
        right = (patch @ self.columns[x0:x1, left : left + w].T).contiguous()  # (h, width)
        mask, tight, wide = np.empty((y1 - y0, x1 - x0), bool), 0, 0
        step = max(1, PIXELS_AT_ONCE // max(1, x1 - x0))
        for y in range(y0, y1, step):
            full = self.rows[y : min(y + step, y1), top : top + h] @ right
            mask[y - y0 : y - y0 + len(full)] = (full > self.threshold).numpy()
            tight += int(torch.count_nonzero(full > self.threshold + self.offset))
            wide += int(torch.count_nonzero(full > self.threshold - self.offset))
        ys, xs = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        if not len(ys):
            return None
        box = x0 + int(xs[0]), y0 + int(ys[0]), x0 + int(xs[-1]), y0 + int(ys[-1])
        return mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1], box, tight / wide if wide else 0.0


def reach(matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """First and last non-zero column of each row; both rise from row to row."""
    there = (matrix != 0).numpy()
    return there.argmax(1), there.shape[1] - 1 - there[:, ::-1].argmax(1)


def solid(masks: Tensor, span: int) -> Tensor:
    """Masks (K, h, w) bool -> (K, h - span + 1, w - span + 1) bool: where a span x span block begins that is full."""
    for _ in range(span - 1):
        masks = masks[:, 1:] & masks[:, :-1]
        masks = masks[:, :, 1:] & masks[:, :, :-1]
    return masks


def fill_and_drop(mask: np.ndarray, smallest: int) -> tuple[np.ndarray, bool]:
    """Fill holes and drop islands of fewer than `smallest` px (8-connected); the largest island always stays.
    (H, W) bool -> (H, W) bool, whether anything changed."""
    from scipy import ndimage

    before = mask
    regions, n = ndimage.label(~mask, np.ones((3, 3)))
    sizes = np.bincount(regions.ravel(), minlength=n + 1)
    sizes[0] = smallest
    mask = mask | (sizes < smallest)[regions]
    regions, n = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(regions.ravel(), minlength=n + 1)
    if n:
        stays = sizes >= min(smallest, sizes[1:].max())
        stays[0] = False
        mask = stays[regions]
    return mask, bool((mask != before).any())

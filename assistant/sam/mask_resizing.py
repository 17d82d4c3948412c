"""Resizes masks between an image and SAM's square input.

    masks = upsample_logits(logits, size, input_size, padded_side)       # whole masks
    resizer = Resizer(*segmenter.resizing(embedding))                    # one box at a time, for many masks
    pixels = resizer.touched_pixels(cells)
    drawn = resizer.draw(patch, corner, pixels)                          # .mask, .box, .stability

The low-resolution logits are a square of l x l values, called cells here. SAM upsamples them bilinearly,
first to its square input and from there to the image. Both steps are linear and act on rows and columns
separately, so together they are the product `rows @ logits @ columns.T`, and the mask inside a box needs only
the matching parts of both matrices. A pixel is a weighted mean of cells: where all its cells lie below a
level, so does the pixel. This bounds where a mask can be; the bounds are exact, not estimates.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.sam.mask_ops import tight_box

MAX_PIXELS_PER_STEP = 4_000_000  # of one mask, in the widest array that `Resizer.draw` makes (16 MB)

# The share of a cell that a mask covers is bounded before its logit is taken.
MIN_COVERED_SHARE = 0.001
EMPTY_CELL_LOGIT = -6.907  # of that share


class DrawnMask(NamedTuple):
    """A mask at the image's resolution.

    Attributes:
        mask: (h, w) bool, cut to its box.
        box: Inclusive xyxy px of the image: the first and the last column and row.
        stability: In [0, 1], the IoU of the masks at a higher and at a lower threshold.
    """

    mask: np.ndarray
    box: tuple[int, int, int, int]
    stability: float


class Resizer:
    """Turns patches of low-resolution logits into parts of masks.

    Args:
        rows: (H, l) float, see `Segmenter.resizing`.
        columns: (W, l) float.
        threshold: Logit above which a pixel belongs to a mask.
        stability_offset: How far the threshold moves up and down for the stability.

    Attributes:
        image_cells: (h, w), how many cells show the image; the others are padding.
        span: Number of cells, along each side, that a pixel is made of at most.
    """

    def __init__(self, rows: Tensor, columns: Tensor, threshold: float = 0.0, stability_offset: float = 1.0):
        self.rows = rows.cpu()
        self.columns = columns.cpu()
        self.threshold = threshold
        self.stability_offset = stability_offset
        # The first and the last cell that each row and each column of the image is made of.
        self._row_cells = _cell_ranges(self.rows)
        self._column_cells = _cell_ranges(self.columns)
        ranges = (self._row_cells, self._column_cells)
        height, width = (int(last.max()) + 1 for _, last in ranges)
        self.image_cells = (height, width)
        self.span = 1 + int(max((last - first).max() for first, last in ranges))
        self._rows_per_block = _pixels_per_block(self._row_cells[0], height, self.span)
        self._columns_per_block = _pixels_per_block(self._column_cells[0], width, self.span)

    def touched_pixels(self, cells: np.ndarray) -> list[int]:
        """The box of the pixels that are made of any of `cells`; both half-open xyxy."""
        x0, y0, x1, y1 = cells
        (first_column, last_column), (first_row, last_row) = self._column_cells, self._row_cells
        return [
            int(np.searchsorted(last_column, x0)),
            int(np.searchsorted(last_row, y0)),
            int(np.searchsorted(first_column, x1)),
            int(np.searchsorted(first_row, y1)),
        ]

    def enclosed_pixels(self, cells: np.ndarray) -> list[int]:
        """The box of the pixels that are made of `cells` only, possibly without area; both half-open xyxy."""
        x0, y0, x1, y1 = cells
        (first_column, last_column), (first_row, last_row) = self._column_cells, self._row_cells
        return [
            int(np.searchsorted(first_column, x0)),
            int(np.searchsorted(first_row, y0)),
            int(np.searchsorted(last_column, x1)),
            int(np.searchsorted(last_row, y1)),
        ]

    def max_area(self, cells: Tensor) -> Tensor:
        """The upper bound of how many pixels lie above a logit.

        Args:
            cells: (..., h, w) bool, the cells above that logit.

        Returns:
            (...) float, number of pixels.
        """
        touched = ~full_blocks(~cells.flatten(0, -3), self.span)
        return self._count_pixels(touched).view(cells.shape[:-2])

    def min_area(self, cells: Tensor) -> Tensor:
        """The lower bound of how many pixels lie above a logit; arguments as `max_area`."""
        enclosed = full_blocks(cells.flatten(0, -3), self.span)
        return self._count_pixels(enclosed).view(cells.shape[:-2])

    def _count_pixels(self, blocks: Tensor) -> Tensor:
        """The pixels (K,) that are made of blocks (K, h, w) bool of span x span cells."""
        columns = self._columns_per_block.to(blocks.device)
        rows = self._rows_per_block.to(blocks.device)
        return blocks.float() @ columns @ rows

    def draw(self, patch: np.ndarray, corner: tuple[int, int], pixels: list[int]) -> DrawnMask | None:
        """Upsample a patch of logits.

        Args:
            patch: (h, w) float32 logits.
            corner: (y, x), the cell of the first value of `patch`.
            pixels: Half-open xyxy px of the image, what to draw; no pixel of it may be made of cells outside
                of `patch`.

        Returns:
            The mask; None where no pixel lies above the threshold. The stability of a mask that is empty at
            the lower threshold is 0.
        """
        x0, y0, x1, y1 = pixels
        first_row, first_column = corner
        last_row, last_column = first_row + patch.shape[0], first_column + patch.shape[1]
        across = (torch.from_numpy(patch) @ self.columns[x0:x1, first_column:last_column].T).contiguous()
        mask = np.empty((y1 - y0, x1 - x0), bool)
        area_above = area_below = 0  # of the mask at the higher and at the lower threshold
        step = max(1, MAX_PIXELS_PER_STEP // max(1, x1 - x0))
        for y in range(y0, y1, step):
            logits = self.rows[y : min(y + step, y1), first_row:last_row] @ across
            mask[y - y0 : y - y0 + len(logits)] = (logits > self.threshold).numpy()
            area_above += int(torch.count_nonzero(logits > self.threshold + self.stability_offset))
            area_below += int(torch.count_nonzero(logits > self.threshold - self.stability_offset))
        box = tight_box(mask)
        if box is None:
            return None
        left, top, right, bottom = box
        place = (x0 + left, y0 + top, x0 + right - 1, y0 + bottom - 1)
        stability = area_above / area_below if area_below else 0.0
        return DrawnMask(mask[top:bottom, left:right], place, stability)


def _cell_ranges(matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last nonzero column of each row of a resizing matrix; both rise from row to row."""
    used = (matrix != 0).numpy()
    return used.argmax(1), used.shape[1] - 1 - used[:, ::-1].argmax(1)


def _pixels_per_block(first_cells: np.ndarray, cell_count: int, span: int) -> Tensor:
    """How many lines of pixels are made of each block of `span` cells, (cell_count - span + 1,) float."""
    block_count = cell_count - span + 1
    counts = np.bincount(np.minimum(first_cells, cell_count - span), minlength=block_count)
    return torch.from_numpy(counts).float()


def full_blocks(masks: Tensor, span: int) -> Tensor:
    """Where a block of span x span cells that all belong to a mask begins.

    Args:
        masks: (K, h, w) bool.
        span: Side of a block.

    Returns:
        (K, h - span + 1, w - span + 1) bool.
    """
    for _ in range(span - 1):
        masks = masks[:, 1:] & masks[:, :-1]
        masks = masks[:, :, 1:] & masks[:, :, :-1]
    return masks


def mask_to_logits(mask: np.ndarray, input_size: tuple[int, int], side: int, low_res_side: int) -> np.ndarray:
    """Turn a mask into low-resolution logits.

    Args:
        mask: (H, W) bool.
        input_size: (h, w) px of the square input that the image fills.
        side: Side of the square input, px.
        low_res_side: Side l of the logits.

    Returns:
        (l, l) float32: the covered share of each cell as a logit, between -6.9 and 6.9.
    """
    height, width = (max(1, round(length * low_res_side / side)) for length in input_size)
    whole = torch.as_tensor(mask, dtype=torch.float32)[None, None]
    share = F.adaptive_avg_pool2d(whole, (height, width))[0, 0]
    square = torch.full((low_res_side, low_res_side), EMPTY_CELL_LOGIT)
    square[:height, :width] = share.clamp(MIN_COVERED_SHARE, 1 - MIN_COVERED_SHARE).logit()
    return square.numpy()


def upsample_logits(
    logits: Tensor,
    size: tuple[int, int],
    input_size: tuple[int, int],
    padded_side: int | None,
    threshold: float = 0.0,
) -> np.ndarray:
    """Turn low-resolution logits into masks, as segment-anything does.

    One mask at a time, so that an image of 12 megapixels takes 48 MB beside the masks.

    Args:
        logits: (M, l, l) float.
        size: (H, W) of the image, px.
        input_size: (h, w) px of the square input that the image fills.
        padded_side: Side of the square input, px; None for a SAM that stretches the image over it.
        threshold: Logit above which a pixel belongs to a mask.

    Returns:
        (M, H, W) bool.
    """
    height, width = input_size
    masks = np.empty((len(logits), *size), bool)
    for i, square in enumerate(logits[:, None, None]):
        if padded_side is not None:
            square = _resize_bilinear(square, (padded_side, padded_side))[..., :height, :width]
        masks[i] = (_resize_bilinear(square, size)[0, 0] > threshold).cpu().numpy()
    return masks


def resizing_matrix(
    low_res_side: int,
    length: int,
    input_length: int,
    padded_side: int | None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """What `upsample_logits` does along one side of the image, as a matrix.

    Args:
        low_res_side: Side l of the logits.
        length: Of the side of the image, px.
        input_length: Of that side in the square input, px.
        padded_side: Side of the square input, px; None for a SAM that stretches the image over it.
        device: Where the matrix is made.

    Returns:
        (length, l) float32.
    """
    cells = torch.eye(low_res_side, device=device)
    if padded_side is not None:
        cells = _resize_linear(cells, padded_side)[:, :input_length]
    return _resize_linear(cells, length).T.contiguous()


def _resize_bilinear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _resize_linear(lines: Tensor, length: int) -> Tensor:
    """Resize lines (N, l) to (N, length)."""
    return F.interpolate(lines[:, None], length, mode="linear", align_corners=False)[:, 0]

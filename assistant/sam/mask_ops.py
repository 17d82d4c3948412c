"""The geometry of masks: boxes, intersection over union, run-length encoding (RLE) and padding to a square.

    rle = encode_rle(mask)                       # COCO's compressed RLE; back by `decode_rle(rle)`
    union = merge_rles([rle, other_rle])
    x0, y0, x1, y1 = tight_box(mask)             # half-open: the mask fills columns x0 to x1 - 1
    scores = box_iou((x0, y0, x1, y1), boxes)    # (K,)

Boxes come in three conventions, and each function says which one it means:

- half-open xyxy (x0, y0, x1, y1): the right and lower edges are excluded, so that x1 - x0 is the width;
- inclusive xyxy: the last column and row are included, as in segment-anything and in `Proposals.boxes`;
- xywh (left, top, width, height): COCO's "bbox".

torch and pycocotools are imported where they are used, so that modules about text can import this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.sam.outlines import check_outline, run_lengths

if TYPE_CHECKING:
    from torch import Tensor

# A mask as COCO stores it: {"size": [height, width], "counts": str}.
Rle = dict[str, Any]

PADDING_GREY = (
    127  # what surrounds an image in a square; about the mean of ImageNet, which becomes 0 in the networks
)


# ---------------------------------------------------------------------------------- boxes


def tight_box(mask: np.ndarray) -> list[int] | None:
    """The smallest box around a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        Half-open [x0, y0, x1, y1] in px; None for an empty mask.
    """
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def tight_box_xywh(mask: np.ndarray) -> list[int]:
    """As `tight_box`, as COCO's [left, top, width, height]; all 0 for an empty mask."""
    x0, y0, x1, y1 = tight_box(mask) or (0, 0, 0, 0)
    return [x0, y0, x1 - x0, y1 - y0]


def crop_around(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice] | None:
    """The part of an image that holds a mask.

    Args:
        mask: (H, W) bool.
        margin: Number of pixels to leave around the mask where the image has them.

    Returns:
        The slices of its rows and columns, as in `image[crop_around(mask)]`; None for an empty mask.
    """
    box = tight_box(mask)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    height, width = mask.shape
    rows = slice(max(0, y0 - margin), min(height, y1 + margin))
    columns = slice(max(0, x0 - margin), min(width, x1 + margin))
    return rows, columns


def remove_small_parts(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fill small holes and drop small islands of a mask; the largest island always stays.

    Of islands that are equally large and all small, the first stays.

    Args:
        mask: (H, W) bool.
        min_area: Holes and islands of fewer px, 8-connected, are filled or dropped.

    Returns:
        (H, W) bool, and whether anything changed.
    """
    from scipy import ndimage

    neighbours = np.ones((3, 3))
    parts, _ = ndimage.label(~mask, neighbours)
    areas = np.bincount(parts.ravel(), minlength=1)
    areas[0] = min_area  # number 0 is the mask itself
    cleaned = mask | (areas < min_area)[parts]
    islands, areas = _islands(cleaned)
    if areas.any():
        stays = areas >= max(1, min_area)
        stays[areas.argmax()] = True
        cleaned = stays[islands]
    return cleaned, bool((cleaned != mask).any())


def without_stray_islands(mask: np.ndarray, points: np.ndarray, min_share: float) -> np.ndarray:
    """Drop the small islands of a mask that no click is on; the largest island always stays.

    Args:
        mask: (H, W) bool.
        points: (N, 2) xy px, the clicks inside; all of them lie in the image.
        min_share: Share of the mask from which an island stays without a click.

    Returns:
        (H, W) bool, 8-connected islands.
    """
    islands, areas = _islands(mask)
    if len(areas) <= 2:  # the background and one island
        return mask
    stays = areas >= min_share * areas.sum()
    stays[areas.argmax()] = True
    columns, rows = np.minimum(points.astype(int), np.array(mask.shape[::-1]) - 1).T
    stays[islands[rows, columns]] = True
    stays[0] = False
    return stays[islands]


def _islands(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each pixel's island, 8-connected, and the islands' areas; number 0 has none."""
    from scipy import ndimage

    islands, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(islands.ravel(), minlength=count + 1)
    areas[0] = 0
    return islands, areas


def tight_boxes(masks: Tensor) -> Tensor:
    """The smallest box around each of many masks.

    `torchvision.ops.masks_to_boxes` gives an empty mask the box of the first pixel, or fails, by its version.

    Args:
        masks: (N, H, W) bool, on any device.

    Returns:
        (N, 4) int64, half-open xyxy in px, on the same device; all 0 for an empty mask.
    """
    import torch

    x0, x1 = _first_and_end(masks.any(1))
    y0, y1 = _first_and_end(masks.any(2))
    boxes = torch.stack([x0, y0, x1, y1], 1)
    return torch.where((x1 > 0)[:, None], boxes, 0)


def _first_and_end(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Where each line (N, L) bool has its first True and the place after its last; (L, 0) if it has none."""
    import torch

    length = lines.shape[1]
    places = torch.arange(length, device=lines.device)
    return torch.where(lines, places, length).amin(1), torch.where(lines, places + 1, 0).amax(1)


def box_area(boxes: Sequence[float] | np.ndarray) -> np.ndarray:
    """The area of boxes (..., 4), half-open xyxy -> (...) float64."""
    boxes = np.asarray(boxes, np.float64)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_intersection(box: Sequence[float] | np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The area that a box (4,) shares with each of `boxes` (K, 4), all half-open xyxy -> (K,) float64."""
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    return (width.clip(0) * height.clip(0)).astype(np.float64)


def box_iou(box: Sequence[float] | np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of many.

    Args:
        box: (4,), half-open xyxy.
        boxes: (K, 4), half-open xyxy in the same unit.

    Returns:
        (K,) float64 in [0, 1]; 0 where neither box has an area.
    """
    intersection = box_intersection(box, boxes)
    union = box_area(box) + box_area(boxes) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


# ---------------------------------------------------------------------------------- run-length encoding


def encode_rle(mask: np.ndarray) -> Rle:
    """The RLE of a mask.

    Args:
        mask: (H, W), nonzero = inside.

    Returns:
        {"size": [H, W], "counts": str}, ready for JSON.
    """
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(np.asarray(mask) != 0, dtype=np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": rle["counts"].decode()}


def encode_patch_rle(patch: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """The RLE of a mask that is known in a part of the image and empty elsewhere.

    The cost grows with the patch, not with the image.

    Args:
        patch: (h, w) bool.
        corner: (y, x) px of the image where the first pixel of `patch` lies.
        size: (H, W) px of the image.

    Returns:
        {"size": [H, W], "counts": str}, what `encode_rle` gives for the whole mask.
    """
    top, left = corner
    height, width = size
    columns = np.zeros((patch.shape[1], patch.shape[0] + 2), np.int8)
    columns[:, 1:-1] = patch.T
    change = np.diff(columns, axis=1)
    # Positions in column-major order at which a run begins, and those after its last pixel.
    starts, ends = ((np.stack(np.nonzero(change == k), 1) + (left, top)) @ (height, 1) for k in (1, -1))
    if len(starts) > 1:  # a run that reaches the foot of a column may go on at the head of the next
        apart = starts[1:] != ends[:-1]
        starts = starts[np.r_[True, apart]]
        ends = ends[np.r_[apart, True]]
    edges = np.r_[0, np.stack([starts, ends], 1).ravel(), height * width]
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return _with_str_counts({"size": [height, width], "counts": counts.tolist()})


def rle_of_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """The RLE of a COCO annotation's "segmentation", from a trusted source or not.

    Args:
        segmentation: As `outlines.check_outline` takes it. Polygons of fewer than three corners are ignored.
        height: Of the image, px.
        width: Of the image, px.

    Returns:
        {"size": [height, width], "counts": str}.

    Raises:
        BadInput: It is no outline in an image of this size.
    """
    outline = check_outline(segmentation, height, width)
    if isinstance(outline, dict):
        return _with_str_counts(outline)
    if not outline:
        return encode_rle(np.zeros((height, width), bool))
    from pycocotools import mask as coco_mask

    return _with_str_counts(coco_mask.merge(coco_mask.frPyObjects(outline, height, width)))


def decode_rle(rle: Rle) -> np.ndarray:
    """The mask of an RLE, from a trusted source or not.

    pycocotools neither checks the string nor initialises the pixels that the runs do not cover. This function
    refuses such an RLE, and takes a fifth of the time at 12 megapixels.

    Args:
        rle: {"size": [H, W], "counts": COCO's string, its bytes, or the list of run lengths}.

    Returns:
        (H, W) bool, column-major in memory.

    Raises:
        BadInput: `rle` is not of this form, its runs do not fill its size, or its size is above
            `images.MAX_PIXELS`.
    """
    runs, height, width = run_lengths(rle)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def merge_rles(rles: Sequence[Rle]) -> Rle:
    """The RLE of the union of one or more masks of one size."""
    from pycocotools import mask as coco_mask

    return _with_str_counts(coco_mask.merge(list(rles)))


def rle_area(rle: Rle) -> int:
    """The number of pixels of a mask."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(rle))


def rle_box_xywh(rle: Rle) -> tuple[float, float, float, float]:
    """The smallest box around a mask, as COCO's (left, top, width, height) in px; all 0 for an empty mask."""
    from pycocotools import mask as coco_mask

    x, y, width, height = map(float, coco_mask.toBbox(rle))
    return x, y, width, height


def rle_iou(rles: Sequence[Rle], others: Sequence[Rle]) -> np.ndarray:
    """Intersection over union of N masks with M others, all of one size -> (N, M) float64 in [0, 1]."""
    return _rle_overlap(rles, others, is_crowd=False)


def rle_containment(rles: Sequence[Rle], others: Sequence[Rle]) -> np.ndarray:
    """The share of each of N masks that lies inside each of M others -> (N, M) float64 in [0, 1]."""
    return _rle_overlap(
        rles, others, is_crowd=True
    )  # for a crowd COCO divides by the area of the first alone


def _rle_overlap(rles: Sequence[Rle], others: Sequence[Rle], is_crowd: bool) -> np.ndarray:
    from pycocotools import mask as coco_mask

    if len(rles) == 0 or len(others) == 0:  # for which pycocotools returns a list
        return np.zeros((len(rles), len(others)))
    return np.asarray(coco_mask.iou(list(rles), list(others), [is_crowd] * len(others)))


def _with_str_counts(rle: Rle) -> Rle:
    """The same mask with counts that JSON and pycocotools can both hold: a string.

    rle: Its counts are COCO's string, its bytes, or a list of run lengths that fill the size.
    """
    counts = rle["counts"]
    if isinstance(counts, list):
        from pycocotools import mask as coco_mask

        height, width = rle["size"]
        counts = coco_mask.frPyObjects(rle, height, width)["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


# ---------------------------------------------------------------------------------- squares


def pad_to_square(image: np.ndarray, side: int | None = None, centred: bool = False) -> np.ndarray:
    """An image in a grey square.

    Args:
        image: (H, W, 3) uint8 RGB.
        side: Of the square in px, at least the image's longest side, which it is where this is None.
        centred: Whether the image lies in the middle of the square; otherwise in its upper left corner.

    Returns:
        (side, side, 3) uint8 RGB, grey (`PADDING_GREY`) around the image.
    """
    height, width = image.shape[:2]
    if side is None:
        side = max(height, width)
    top, left = ((side - height) // 2, (side - width) // 2) if centred else (0, 0)
    square = np.full((side, side, 3), PADDING_GREY, np.uint8)
    square[top : top + height, left : left + width] = image
    return square

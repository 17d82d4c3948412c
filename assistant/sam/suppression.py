"""Non-maximum suppression among candidate masks, the second half of everything mode.

    regions = suppress(candidates, resizer, crop, size, limits)
    regions = distinct(regions, scores, max_iou=0.7)        # among the regions of several crops
    region = cleaned(region, min_area=100)

`suppress` goes from the best candidate down and draws at full resolution only the masks that their
low-resolution boxes do not already rule out. Stability and box are exact for all that it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from assistant.sam.click_grid import Candidate
from assistant.sam.mask_ops import (
    Rle,
    box_area,
    box_intersection,
    box_iou,
    decode_rle,
    encode_patch_rle,
    encode_rle,
    remove_small_parts,
    tight_box,
)
from assistant.sam.mask_resizing import Resizer

# Half-open xyxy px of the image.
Crop = tuple[int, int, int, int]

CROP_EDGE_TOLERANCE = (
    20  # px, SamAutomaticMaskGenerator's: a box that ends so close to a crop's edge was cut off by it
)


@dataclass
class Region:
    """A mask that survived suppression, in px of the whole image.

    Attributes:
        candidate: What it was drawn from.
        rle: The mask.
        box: (4,) float32, inclusive xyxy.
        stability: In [0, 1].
        area: Number of pixels.
        crop: The crop in which it was found.
        is_cleaned: Whether `cleaned` changed it.
    """

    candidate: Candidate
    rle: Rle
    box: np.ndarray
    stability: float
    area: int
    crop: Crop
    is_cleaned: bool = False


@dataclass(frozen=True)
class SuppressionLimits:
    """What `suppress` leaves out.

    Attributes:
        stability_score_thresh: Stability below which a mask is left out.
        box_nms_thresh: Box IoU with a better mask above which a mask is left out.
        max_regions: Number of regions at most; None for all.
    """

    stability_score_thresh: float
    box_nms_thresh: float
    max_regions: int | None = None


def suppress(
    candidates: Sequence[Candidate],
    resizer: Resizer,
    crop: Crop,
    size: tuple[int, int],
    limits: SuppressionLimits,
) -> list[Region]:
    """Greedy suppression by box IoU, best score first.

    Args:
        candidates: Of one crop.
        resizer: Of that crop.
        crop: The crop; the whole image, or a part of it.
        size: (H, W) of the whole image, px.
        limits: What to leave out.

    Returns:
        The regions, best first.
    """
    regions: list[Region] = []
    boxes = np.zeros((0, 4))  # of the regions, inclusive xyxy px of the crop, compared as SAM compares them
    x0, y0, _, _ = crop
    for i in np.argsort([-candidate.score for candidate in candidates], kind="stable"):
        if limits.max_regions is not None and len(regions) >= limits.max_regions:
            break
        candidate = candidates[i]
        if is_ruled_out(candidate, boxes, limits.box_nms_thresh):
            continue
        drawn = resizer.draw(candidate.logits, candidate.corner, candidate.touched)
        if drawn is None:
            continue
        if 0 < limits.stability_score_thresh and drawn.stability < limits.stability_score_thresh:
            continue
        if (box_iou(drawn.box, boxes) > limits.box_nms_thresh).any():
            continue
        place = np.array(drawn.box) + (x0, y0, x0, y0)
        if is_cut_off(place, crop, size):
            continue
        boxes = np.concatenate([boxes, [drawn.box]])
        rle = encode_patch_rle(drawn.mask, (int(place[1]), int(place[0])), size)
        area = int(drawn.mask.sum())
        regions.append(Region(candidate, rle, place.astype(np.float32), drawn.stability, area, crop))
    return regions


def is_ruled_out(candidate: Candidate, boxes: np.ndarray, max_iou: float) -> bool:
    """Whether the box of a mask that is not drawn yet overlaps one of `boxes` (K, 4) too much for certain."""
    x0, y0, x1, y1 = candidate.enclosed
    if len(boxes) == 0 or x1 <= x0 or y1 <= y0:
        return False
    # IoU is least for the least intersection and the largest union that the bounds allow.
    touched = candidate.touched
    min_intersection = box_intersection((x0, y0, x1 - 1, y1 - 1), boxes)
    max_union = box_area(touched) + box_area(boxes) - box_intersection(touched, boxes)
    return bool((min_intersection > max_iou * max_union).any())


def is_cut_off(box: np.ndarray, crop: Crop, size: tuple[int, int]) -> bool:
    """Whether a box, xyxy px of the image, ends at an edge of the crop that is not an edge of the image."""
    height, width = size
    at_crop_edge = np.abs(np.subtract(box, crop)) <= CROP_EDGE_TOLERANCE
    at_image_edge = np.abs(np.subtract(box, (0, 0, width, height))) <= CROP_EDGE_TOLERANCE
    return bool((at_crop_edge & ~at_image_edge).any())


def distinct(regions: Sequence[Region], scores: Sequence[float], max_iou: float) -> list[Region]:
    """Suppression by box IoU among finished regions, highest score first."""
    from torchvision.ops import nms

    if not regions:
        return []
    boxes = torch.from_numpy(np.stack([region.box for region in regions]))
    chosen: Tensor = nms(boxes, torch.tensor(scores, dtype=torch.float32), max_iou)
    return [regions[i] for i in chosen]


def cleaned(region: Region, min_area: int) -> Region:
    """The region without holes and islands of fewer than `min_area` px."""
    mask, is_changed = remove_small_parts(decode_rle(region.rle), min_area)
    if not is_changed:
        return region
    box = tight_box(mask)
    assert box is not None  # the largest island stays
    x0, y0, x1, y1 = box
    inclusive_box = np.array([x0, y0, x1 - 1, y1 - 1], np.float32)
    return replace(region, rle=encode_rle(mask), box=inclusive_box, area=int(mask.sum()), is_cleaned=True)

"""One instance of a category, and how a row of annotations becomes one.

instance = read_instance(17, "cup", {"segmentation": [[...]], "bbox": None}, (480, 640), boxes=False)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.sam.mask_ops import Rle, rle_area, rle_box_xywh, rle_of_segmentation
from assistant.sam.outlines import check_box, check_outline

# How far the box and the area of a file may be from the mask's own to be kept as they are; otherwise the
# mask's count. All of 800 instances of COCO are within these: boxes differ by up to 5 px, and areas by up
# to 0.3 px along the sides of the box.
MAX_BOX_ERROR = 0.02  # of the image's longer side
MAX_AREA_ERROR = 0.5  # px along the sides of the box
EDGE_TOLERANCE = 1.0  # px by which an outline may leave its image


@dataclass(frozen=True)
class Instance:
    """One object of a category.

    Attributes:
        id: The annotation's.
        key: The category: the data set's name for it, in lower case; also the key of its entry in the phrase
            bank.
        segmentation: COCO polygons [[x, y, ...], ...] or RLE, in px; None while only the box is known.
        box: (x, y, width, height), px.
        area: px.
        crowd: Whether it stands for several objects that are not separated.
    """

    id: int
    key: str
    segmentation: list | dict | None
    box: tuple[float, float, float, float]
    area: float
    crowd: bool

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the box's centre, px."""
        return self.box[0] + self.box[2] / 2, self.box[1] + self.box[3] / 2


def read_instance(
    number: int, key: str, row: dict[str, Any], size: tuple[int, int], boxes: bool
) -> Instance | str:
    """Read an annotation.

    Args:
        number: Its id.
        key: The category.
        row: Its fields as they are in the file; "fault": why it has no outline.
        size: (height, width) of its image, px.
        boxes: Whether a box without a mask will do.

    Returns:
        The instance, or the reason why it cannot be one. Its box and its area are those of its mask.
    """
    if "fault" in row:
        return row["fault"]
    segmentation = row.get("segmentation") or None
    if segmentation is None and not boxes:
        return "annotation without a mask"
    try:
        if segmentation is None:
            box = check_box(row.get("bbox"), *size)
            area = box[2] * box[3]
        else:
            box, area = _measured(rle_of_segmentation(segmentation, *size), row, size)
    except BadInput as error:
        return f"annotation: {error}"
    if not area:
        return "annotation: the outline is empty"
    crowd = row.get("iscrowd") not in (None, 0, "", "0")
    return Instance(number, key, segmentation, box, area, crowd)


def _measured(
    rle: Rle, row: dict[str, Any], size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], float]:
    """The box (x, y, width, height) and the area of a mask, px: the row's own where they agree with it."""
    box, area = rle_box_xywh(rle), float(rle_area(rle))
    try:
        own = check_box(row.get("bbox"), *size)
    except BadInput:
        own = box
    edges, own_edges = ((x, y, x + w, y + h) for x, y, w, h in (box, own))
    errors = [abs(edge - own_edge) for edge, own_edge in zip(edges, own_edges, strict=True)]
    own_area = row.get("area")
    if isinstance(own_area, int | float) and not isinstance(own_area, bool):
        if abs(own_area - area) <= MAX_AREA_ERROR * 2 * (box[2] + box[3]):
            area = float(own_area)
    return (own if max(errors) <= MAX_BOX_ERROR * max(size) else box), area


def lie_in(outlines: Sequence[dict[str, Any]], size: tuple[int, int]) -> bool:
    """Whether the outlines of some annotations lie in an image of this (height, width), px."""
    return all(_lies_in(row.get("segmentation"), *size) for row in outlines)


def _lies_in(segmentation: Any, height: int, width: int) -> bool:
    """Whether an outline lies in an image of this size; also where it is none."""
    if isinstance(segmentation, dict):
        return segmentation.get("size") == [height, width]
    try:
        outline = check_outline(segmentation or [], max(height, width), max(height, width))
    except BadInput:
        return True
    polygons = [np.reshape(polygon, (-1, 2)) for polygon in outline]
    edge = np.array([width, height]) + EDGE_TOLERANCE
    return not any((polygon > edge).any() for polygon in polygons)

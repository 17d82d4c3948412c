"""Outlines as annotation files give them, checked before pycocotools is given them.

    outline = check_outline(row["segmentation"], height, width)     # polygons or RLE; else BadInput says why
    x, y, w, h = check_box(row["bbox"], height, width)
    runs, height, width = run_lengths(rle)

pycocotools checks nothing: coordinates that are not finite or far away end the interpreter or take all
memory, runs that do not fill the size never end or leave pixels unset, and text counts as an empty mask.
Every reader of masks therefore passes them through here, by `rle_of_segmentation` and `decode_rle` of
`assistant.sam.mask_ops`. A message says what is wrong with the outline and names no file: the reader knows
whose it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.images import MAX_PIXELS

MIN_POLYGON_NUMBERS = 6  # three corners; COCO's tools ignore polygons with fewer
# How far outside the image a corner may lie, in sides of the image; the polygon is cut at the image's edge.
MAX_SIDES_OUTSIDE = 1.0
# px of all edges of an outline together: pycocotools holds about 80 bytes for each.
MAX_PERIMETER = 2_000_000

# The counts string of an RLE is a list of numbers in base 32, least digit first, one character a digit.
FIRST_DIGIT = 48  # character code of digit 0
DIGIT_BITS = 5
MORE_DIGITS_BIT = 0x20  # set in every digit but the last of a number
SIGN_BIT = 0x10  # of the last digit: the number is negative
MAX_DIGITS = 12  # of one number: 60 bits, so that int64 does not overflow

Outline = list[list[float]] | dict[str, Any]  # COCO polygons [[x, y, ...], ...] in px, or an RLE


def check_outline(segmentation: Any, height: int, width: int) -> Outline:
    """Check a COCO "segmentation".

    Args:
        segmentation: Polygons [[x, y, x, y, ...], ...] or a single one [x, y, x, y, ...], in px; or an RLE
            {"size": [height, width], "counts": COCO's string, its bytes, or the list of run lengths}.
        height: Of the image, px.
        width: Of the image, px.

    Returns:
        The same outline in a form that pycocotools reads safely: a list of polygons with three or more
        corners ([] where none has as many), or an RLE of the image's size whose runs fill it.

    Raises:
        BadInput: It is neither, is not of the image's size, or reaches far beyond the image.
    """
    check_image_size(height, width)
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, height, width)
    if not isinstance(segmentation, list | tuple):
        raise BadInput("the outline is neither a list of polygons nor an RLE")
    is_flat = len(segmentation) > 0 and _is_number(segmentation[0])
    polygons = [_check_polygon(each, height, width) for each in ([segmentation] if is_flat else segmentation)]
    if sum(map(_perimeter, polygons)) > MAX_PERIMETER:
        raise BadInput("the polygons have edges that are too long to be an outline")
    return [each.tolist() for each in polygons if len(each) >= MIN_POLYGON_NUMBERS]


def check_image_size(height: Any, width: Any) -> None:
    """Raise BadInput where an image cannot have this size in px."""
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (height, width)):
        raise BadInput("the image's width and height are not positive whole numbers")
    if height * width > MAX_PIXELS:
        raise BadInput(f"the image has more than the limit of {MAX_PIXELS:,} pixels")


def check_box(box: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """Check a COCO "bbox".

    Args:
        box: [left, top, width, height] in px.
        height: Of the image, px.
        width: Of the image, px.

    Returns:
        The four numbers.

    Raises:
        BadInput: They are not four finite numbers, or have no area in the image.
    """
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_finite, box)):
        raise BadInput("the box is not four finite numbers")
    x, y, w, h = map(float, box)
    if w <= 0 or h <= 0:
        raise BadInput("the box has no area")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise BadInput("the box lies outside the image")
    return x, y, w, h


def run_lengths(rle: Any) -> tuple[np.ndarray, int, int]:
    """Read an RLE, from a trusted source or not.

    Args:
        rle: {"size": [height, width], "counts": COCO's string, its bytes, or the list of run lengths}.

    Returns:
        The run lengths (K,) int64, which add up to height * width, the first of them outside the mask; the
        height and the width.

    Raises:
        BadInput: It is not of this form, its runs do not fill its size, or its size is above
            `images.MAX_PIXELS`.
    """
    try:
        height, width = map(_whole_number, rle["size"])
        counts = rle["counts"]
        if isinstance(counts, list):
            runs = np.array([_whole_number(count) for count in counts], dtype=np.int64)
        else:
            runs = _runs_of_string(counts)
    except (TypeError, KeyError, ValueError, OverflowError, UnicodeEncodeError):
        raise BadInput("a mask must be an RLE {'size': [h, w], 'counts': str}") from None
    area = height * width
    if area > MAX_PIXELS:
        raise BadInput(f"the mask is {width}x{height}, more than the limit of {MAX_PIXELS:,} pixels")
    # Each run is checked by itself first: a sum of runs that are too long may overflow back to the area.
    if min(height, width) < 0 or ((runs < 0) | (runs > area)).any() or int(runs.sum()) != area:
        raise BadInput("the RLE's runs do not fill its size")
    return runs, height, width


def _check_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """An RLE of this size whose counts are a string or whole run lengths."""
    runs, rle_height, rle_width = run_lengths(rle)
    if (rle_height, rle_width) != (height, width):
        raise BadInput("the RLE is of another size than the image")
    counts = rle["counts"]
    if (runs[1:] == 0).any():  # which make pycocotools stop early where it joins masks
        counts = _without_empty_runs(runs).tolist()
    elif isinstance(counts, list):
        counts = runs.tolist()
    return {"size": [height, width], "counts": counts}


def _without_empty_runs(runs: np.ndarray) -> np.ndarray:
    """The same mask in runs (K,) int64 of which only the first may be empty."""
    inside = np.arange(len(runs)) % 2 == 1
    runs, inside = runs[runs > 0], inside[runs > 0]
    starts = np.flatnonzero(np.r_[True, inside[1:] != inside[:-1]])
    merged = np.add.reduceat(runs, starts)
    return np.r_[0, merged] if inside[0] else merged


def _check_polygon(corners: Any, height: int, width: int) -> np.ndarray:
    """A polygon [x, y, x, y, ...] as (2 N,) float64 px, none of whose corners is far outside the image."""
    if not isinstance(corners, list | tuple) or not all(map(_is_number, corners)):
        raise BadInput("a polygon is not a list of numbers [x, y, x, y, ...]")
    if not all(map(_is_finite, corners)):
        raise BadInput("a polygon has a coordinate that is not finite")
    if len(corners) % 2:
        raise BadInput("a polygon has an odd number of coordinates")
    polygon = np.array(corners, dtype=np.float64)
    sides = np.tile([width, height], len(polygon) // 2)
    if ((polygon < -MAX_SIDES_OUTSIDE * sides) | (polygon > (1 + MAX_SIDES_OUTSIDE) * sides)).any():
        raise BadInput("a polygon has a corner far outside the image")
    return polygon


def _perimeter(polygon: np.ndarray) -> float:
    """The length of the edges of a polygon (2 N,), px."""
    points = polygon.reshape(-1, 2)
    return float(np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that float64 can hold."""
    try:
        return _is_number(value) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _whole_number(value: Any) -> int:
    """A number without a fraction as an int. Raises ValueError for anything else."""
    if not _is_finite(value) or value != int(value):
        raise ValueError("not a whole number")
    return int(value)


def _runs_of_string(counts: str | bytes) -> np.ndarray:
    """The run lengths (K,) int64 of a counts string. Raises ValueError where it is not well-formed.

    From the fourth number on, the string holds the difference to the run two before.
    """
    data = counts.encode("ascii") if isinstance(counts, str) else counts
    digits = np.frombuffer(data, np.uint8).astype(np.int64) - FIRST_DIGIT
    if len(digits) == 0:
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(digits & MORE_DIGITS_BIT == 0)
    if digits.min() < 0 or digits.max() > 63 or len(ends) == 0 or ends[-1] != len(digits) - 1:
        raise ValueError("not a counts string")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_DIGITS:
        raise ValueError("a number of the counts string is too long")
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & (2**DIGIT_BITS - 1)) << (DIGIT_BITS * places), starts)
    values -= np.where(digits[ends] & SIGN_BIT, 1 << (DIGIT_BITS * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values

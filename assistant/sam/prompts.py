"""Checks prompts by hand before SAM sees them.

    prompt = checked_prompt([[x, y]], None, None, None, embedding.size, 256)        # a click
    prompt.points, prompt.labels                                                    # (1, 2) and (1,)

Whatever is wrong with a prompt is one line of BadInput.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from assistant.errors import BadInput


class Prompt(NamedTuple):
    """A prompt that was checked, at least one part of which is there.

    Attributes:
        points: (N, 2) float64 xy px of the image.
        labels: (N,), for each point 1 (inside the target) or 0 (outside).
        box: (4,) float64 xyxy px, within the image.
        mask: (H, W) bool, or (l, l) low-resolution logits.
    """

    points: np.ndarray | None
    labels: np.ndarray | None
    box: np.ndarray | None
    mask: np.ndarray | None


def checked_prompt(
    points: ArrayLike | None,
    labels: ArrayLike | None,
    box: ArrayLike | None,
    mask: ArrayLike | None,
    size: tuple[int, int],
    low_res_side: int,
) -> Prompt:
    """Check a prompt.

    Args:
        points, labels: See `checked_points`.
        box: See `checked_box`; None for no box.
        mask: See `checked_mask`; None for no mask.
        size: (H, W) of the image, px.
        low_res_side: Side l of the low-resolution logits.

    Raises:
        BadInput: The prompt is empty, or a part of it is malformed or outside of the image.
    """
    if points is None and box is None and mask is None:
        raise BadInput("nothing to segment: give points, a box or a mask")
    return Prompt(
        *checked_points(points, labels, size),
        None if box is None else checked_box(box, size),
        None if mask is None else checked_mask(mask, size, low_res_side),
    )


def checked_points(
    points: ArrayLike | None, labels: ArrayLike | None, size: tuple[int, int]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Check clicks.

    Args:
        points: (N, 2) xy px of the image, or None.
        labels: (N,) of 1 (inside the target) and 0 (outside); None if all are inside.
        size: (H, W) of the image, px.

    Returns:
        Points (N, 2) float64 and labels (N,); both None without points.

    Raises:
        BadInput: Points or labels are malformed, or a point lies outside of the image.
    """
    if points is None:
        if labels is not None:
            raise BadInput("labels were given without points")
        return None, None
    height, width = size
    xy = _numbers(points, "points")
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) == 0:
        raise BadInput(f"points must be a list of (x, y) pairs, not of shape {xy.shape}")
    inside = np.ones(len(xy), int) if labels is None else _numbers(labels, "labels").reshape(-1)
    if len(inside) != len(xy) or not np.isin(inside, (0, 1)).all():
        raise BadInput(f"{len(xy)} points need as many labels, each 1 (inside) or 0 (outside)")
    if (xy < 0).any() or (xy > (width, height)).any():
        raise BadInput(f"a point lies outside of the image of {width} x {height} px")
    return xy, inside


def checked_box(box: ArrayLike, size: tuple[int, int]) -> np.ndarray:
    """Check a box and clip it to the image.

    Args:
        box: (4,) xyxy px of the image.
        size: (H, W) of the image, px.

    Returns:
        (4,) float64 xyxy px.

    Raises:
        BadInput: The box is malformed, or has no area within the image.
    """
    height, width = size
    edges = _numbers(box, "the box")
    if edges.shape != (4,):
        raise BadInput("a box must be four numbers: left, top, right, bottom")
    edges = np.clip(edges, 0, (width, height, width, height))
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise BadInput(f"the box is empty within the image of {width} x {height} px")
    return edges


def checked_mask(mask: ArrayLike, size: tuple[int, int], low_res_side: int) -> np.ndarray:
    """Check a mask prompt.

    Args:
        mask: (H, W) bool, or (l, l) or (1, l, l) low-resolution logits.
        size: (H, W) of the image, px.
        low_res_side: Side l of the low-resolution logits.

    Returns:
        (H, W) bool, or (l, l) logits.

    Raises:
        BadInput: The mask is neither.
    """
    array = np.asarray(mask)
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    expected = size if array.dtype == bool else (low_res_side, low_res_side)
    if array.shape != tuple(expected):
        raise BadInput(
            f"a mask must be {size[0]} x {size[1]} bool, or {low_res_side} x {low_res_side} logits"
        )
    return array


def _numbers(values: ArrayLike, what: str) -> np.ndarray:
    """Values as float64. Raises BadInput where they are not finite numbers."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInput(f"{what} must be numbers") from None
    if not np.isfinite(array).all():
        raise BadInput(f"{what} must be finite numbers")
    return array

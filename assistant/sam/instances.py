"""Takes a mask of several objects apart, and keeps the parts and the whole together.

    parts = separate(mask, proposals)             # [(H, W) bool, ...]: each cup of "the cups"
    parts = fitted(parts, other_mask)             # the same parts, whose union is now `other_mask`
    parts = in_reading_order(parts)

Masks are (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fitted(parts: Sequence[np.ndarray], mask: np.ndarray) -> list[np.ndarray]:
    """Parts of a mask, changed as little as possible so that their union is the mask.

    What lies outside of the mask is cut off. What no part covers goes to the part that is nearest.

    Args:
        parts: (H, W) bool each; they may overlap.
        mask: (H, W) bool.

    Returns:
        At least one part, in the order given, none of them empty unless the mask is; the mask itself where no
        part has a pixel in it.
    """
    if len(parts) < 2:
        return [mask]
    cut = [part & mask for part in parts]
    cut = [part for part in cut if part.any()]
    if len(cut) < 2:
        return [mask]
    rest = mask & ~np.logical_or.reduce(cut)
    if rest.any():
        nearest = _nearest(cut, rest)
        cut = [part | (nearest == k) for k, part in enumerate(cut)]
    return cut


def _nearest(parts: Sequence[np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """(H, W) int: for each of some pixels the index of the nearest part, -1 elsewhere."""
    from scipy import ndimage

    owner = np.full(pixels.shape, -1)
    for k, part in enumerate(parts):
        owner[part] = k
    rows, columns = ndimage.distance_transform_edt(owner < 0, return_distances=False, return_indices=True)
    return np.where(pixels, owner[rows, columns], -1)


def in_reading_order(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Masks from left to right, or from top to bottom where they stand above each other.

    That is decided by the axis along which their centres lie further apart. Empty masks come last.
    """
    centres = [_centre(part) for part in parts]
    known = np.array([centre for centre in centres if centre is not None], float).reshape(-1, 2)
    if len(known) < 2:
        return list(parts)
    down, right = np.ptp(known, axis=0)
    axis = 0 if down > right else 1
    places = [np.inf if centre is None else centre[axis] for centre in centres]
    return [parts[k] for k in np.argsort(places, kind="stable")]


def _centre(mask: np.ndarray) -> tuple[float, float] | None:
    """The centre of mass (y, x) in px; None for an empty mask."""
    rows, columns = np.nonzero(mask)
    return (float(rows.mean()), float(columns.mean())) if len(rows) else None

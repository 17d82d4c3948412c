"""Measures which of several instances is meant: by place, number, size, colour and what lies beside it.

    choose_instance(masks, (Place("left"),), image, {})                        # index of the leftmost mask
    choose_instance(masks, (Colour("red"), Beside("near", "dog")), image, {"dog": dog_mask})

The conditions come from `assistant.pocket.which_one`. Masks are (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from assistant.dialogue.instances import centre, distance, misfit
from assistant.pocket.colours import colour_share
from assistant.pocket.which_one import Beside, Between, Colour, Condition, Ordinal, Place

MIN_COLOUR_SHARE = 0.06  # of an instance, below which it does not have the colour
MIN_RELATIVE_SHARE = 0.5  # of the best instance's share, from which another one has the colour too
TOUCHING_GAP = 0.02  # of the image's longest side; things nearer than that touch each other


def choose_instance(
    instances: Sequence[np.ndarray],
    conditions: Sequence[Condition],
    image: np.ndarray | None,
    others: dict[str, np.ndarray],
) -> int | None:
    """The instance that meets conditions best.

    Args:
        instances: (H, W) bool each, none of them empty.
        conditions: What singles one out.
        image: (H, W, 3) uint8 RGB; None to leave colours out.
        others: {noun of a `Beside` or `Between`: its mask (H, W) bool}; what is missing here is left out.

    Returns:
        Its index; None where no instance has the colour or the number.
    """
    left = list(range(len(instances)))
    worth = np.zeros(len(instances))  # by colour and nearness, where nothing else decides
    for condition in conditions:
        if isinstance(condition, Colour) and image is not None:
            shares = np.array([colour_share(image, mask, condition.name) for mask in instances])
            best = shares[left].max()
            if condition.negated:
                left = [k for k in left if shares[k] < MIN_RELATIVE_SHARE * best] or left
                worth -= shares
                continue
            if best < MIN_COLOUR_SHARE:
                return None
            left = [k for k in left if shares[k] >= MIN_RELATIVE_SHARE * best]
            worth += shares
        elif isinstance(condition, Beside) and condition.noun in others:
            left, gaps = _beside(instances, left, condition, others[condition.noun])
            worth -= gaps if not condition.negated else 0
        elif isinstance(condition, Between):
            middle = _middle_between([others[noun] for noun in condition.nouns if noun in others])
            if middle is not None:
                worth -= [float(np.hypot(*np.subtract(centre(mask), middle))) for mask in instances]
    for condition in conditions:
        if isinstance(condition, Place):
            return min(left, key=lambda k: misfit(instances[k], condition.criterion))
        if isinstance(condition, Ordinal):
            ordered = sorted(left, key=lambda k: misfit(instances[k], condition.side))
            if condition.number > len(ordered):
                return None
            return ordered[condition.number - 1 if condition.number > 0 else -1]
    return max(left, key=lambda k: worth[k])


def _middle_between(masks: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The point (y, x) px between two masks, or between the two largest parts of one; None without two."""
    from scipy.ndimage import label

    if len(masks) == 1:
        labels, count = label(masks[0])
        parts = [labels == number for number in range(1, count + 1)]
        masks = sorted(parts, key=lambda part: -int(part.sum()))[:2]
    if len(masks) < 2:
        return None
    (y0, x0), (y1, x1) = (centre(mask) for mask in masks)
    return (y0 + y1) / 2, (x0 + x1) / 2


def _beside(
    instances: Sequence[np.ndarray], left: list[int], condition: Beside, other: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """Those of some instances that lie so to something else, or all of them where none does.

    Also the gap between each instance and the other thing, in units of the image's longest side.
    """
    from scipy.ndimage import distance_transform_edt

    longest = max(other.shape)
    away = distance_transform_edt(~other) / longest
    gaps = np.array([away[mask].min() for mask in instances])
    # What mostly is the other thing itself does not lie beside it.
    same = np.array([(mask & other).sum() > 0.5 * mask.sum() for mask in instances])
    gaps = np.where(same, 1.0, gaps)
    meets = [
        k for k in left if not same[k] and distance(instances[k], other, condition.direction) is not None
    ]
    if condition.direction == "near":
        nearest = gaps[left].min()
        meets = [k for k in left if gaps[k] <= max(nearest, TOUCHING_GAP)]
    if condition.negated:
        meets = [k for k in left if k not in meets]
    return meets or left, gaps

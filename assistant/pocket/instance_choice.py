"""Measures which of several instances is meant: by place, number, size, colour and what lies beside it.

    choose_instance(masks, (Place("left"),), image, {})                        # index of the leftmost mask
    choose_instance(masks, (Colour("red"), Beside("near", "dog")), image, {"dog": dog_mask})

The conditions come from `assistant.pocket.which_one`. Masks are (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from assistant.dialogue.instances import distance, misfit
from assistant.pocket.which_one import Beside, Colour, Condition, Ordinal, Place

# Ranges of hue in degrees, saturation and value in [0, 1], of pixels that people call so.
COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((345, 15), (0.45, 1), (0.25, 1)),
    "orange": ((15, 42), (0.5, 1), (0.5, 1)),
    "yellow": ((42, 68), (0.35, 1), (0.5, 1)),
    "green": ((68, 170), (0.2, 1), (0.15, 1)),
    "blue": ((170, 260), (0.2, 1), (0.2, 1)),
    "purple": ((260, 310), (0.2, 1), (0.2, 1)),
    "pink": ((310, 355), (0.15, 0.7), (0.5, 1)),
    "brown": ((8, 45), (0.25, 1), (0.12, 0.6)),
    "white": ((0, 360), (0, 0.18), (0.7, 1)),
    "grey": ((0, 360), (0, 0.2), (0.25, 0.75)),
    "black": ((0, 360), (0, 1), (0, 0.22)),
}
MIN_COLOUR_SHARE = 0.06  # of an instance, below which it does not have the colour
MIN_RELATIVE_SHARE = 0.5  # of the best instance's share, from which another one has the colour too
TOUCHING_GAP = 0.02  # of the image's longest side; things nearer than that touch each other
MAX_COLOUR_PIXELS = 4000  # of an instance, by which its colours are measured


def colour_share(image: np.ndarray, mask: np.ndarray, name: str) -> float:
    """The share of a mask's pixels that have a colour, in [0, 1].

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        name: A key of `COLOURS`.
    """
    from skimage.color import rgb2hsv

    pixels = image[mask]
    pixels = pixels[:: -(-len(pixels) // MAX_COLOUR_PIXELS)]
    hue, saturation, value = rgb2hsv(pixels[None])[0].T
    (first, last), saturations, values = COLOURS[name]
    hue = hue * 360
    has_hue = (first <= hue) & (hue <= last) if first <= last else (hue >= first) | (hue <= last)
    has_saturation = (saturations[0] <= saturation) & (saturation <= saturations[1])
    return float((has_hue & has_saturation & (values[0] <= value) & (value <= values[1])).mean())


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
        others: {noun of a `Beside`: its mask (H, W) bool}; what is missing here is left out.

    Returns:
        Its index; None where no instance has the colour or the number.
    """
    left = list(range(len(instances)))
    worth = np.zeros(len(instances))  # by colour and nearness, where nothing else decides
    for condition in conditions:
        if isinstance(condition, Colour) and image is not None:
            shares = np.array([colour_share(image, mask, condition.name) for mask in instances])
            best = shares[left].max()
            if best < MIN_COLOUR_SHARE:
                return None
            left = [k for k in left if shares[k] >= MIN_RELATIVE_SHARE * best]
            worth += shares
        elif isinstance(condition, Beside) and condition.noun in others:
            left, gaps = _beside(instances, left, condition, others[condition.noun])
            worth -= gaps if not condition.negated else 0
    for condition in conditions:
        if isinstance(condition, Place):
            return min(left, key=lambda k: misfit(instances[k], condition.criterion))
        if isinstance(condition, Ordinal):
            ordered = sorted(left, key=lambda k: misfit(instances[k], condition.side))
            if condition.number > len(ordered):
                return None
            return ordered[condition.number - 1 if condition.number > 0 else -1]
    return max(left, key=lambda k: worth[k])


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

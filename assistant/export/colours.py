"""The colours of masks and curves, as "#rrggbb".

colour_of(0)                # of a first target, whatever the image
colours_on(image, masks)    # of an answer's targets, each apart from the image under its mask
palette(40)                 # of a list of 40 classes
rgb_of("#e69f00")           # (230, 159, 0)
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

# Of an answer's targets: those of Okabe and Ito 2008, which colour-blind people tell apart, and more hues
# that stay apart from them on photos.
COLOURS = [
    "#e69f00",
    "#0072b2",
    "#e6194b",
    "#009e73",
    "#f0e442",
    "#cc79a7",
    "#56b4e9",
    "#911eb4",
    "#aaffc3",
    "#d55e00",
    "#9a6324",
    "#f032e6",
]
CLEAR_DISTANCE = 200.0  # of at most 765 (redmean), from which a colour stands out from what it lies on
SAMPLED_SIDE = 500  # px to which an image is thinned out before the colours under masks are averaged
# Of longer lists of classes: neighbouring numbers are far apart in hue, and colours do not come again.
GOLDEN_ANGLE = 0.381966  # of a turn
PALETTE_LIGHTNESS = (0.5, 0.35, 0.65)
PALETTE_SATURATION = 0.75
# Of the curves and masks on an HTML page: Okabe and Ito's, the darkest on white first.
PAGE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def colour_of(index: int) -> str:
    """The colour of an answer's target, counted from 0; after the last colour the first comes again."""
    return COLOURS[index % len(COLOURS)]


def colours_on(image: np.ndarray | None, masks: Sequence[np.ndarray | None]) -> list[str]:
    """Colours of an answer's targets that are told apart from the image under them, and from each other.

    Each target takes the first colour not taken before that is clearly another than the mean colour under its
    mask, or else the one that differs most. After the last colour all are free again.

    Args:
        image: (H, W, 3) uint8 RGB; None where it is not at hand, which leaves the colours in their order.
        masks: (H, W) bool of each target; None for an absent one.

    Returns:
        "#rrggbb" for each target.
    """
    chosen: list[str] = []
    free: list[str] = []
    for mask in masks:
        free = free or list(COLOURS)
        under = None if image is None or mask is None else _mean_colour(image, mask)
        colour = free[0]
        if under is not None:
            distances = [_redmean(rgb_of(each), under) for each in free]
            clear = [k for k, distance in enumerate(distances) if distance >= CLEAR_DISTANCE]
            colour = free[clear[0] if clear else int(np.argmax(distances))]
        free.remove(colour)
        chosen.append(colour)
    return chosen


def _mean_colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """(3,) float: the mean RGB under a mask; None under an empty one."""
    step = max(1, max(mask.shape) // SAMPLED_SIDE)
    inside = image[::step, ::step][mask[::step, ::step]]
    return inside.mean(axis=0) if len(inside) else None


def _redmean(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """How different two RGB colours look: Euclid's distance with weights that follow the eye (CompuPhase,
    "Colour metric")."""
    red, green, blue = np.subtract(first, second)
    mean_red = (first[0] + second[0]) / 2
    squares = (2 + mean_red / 256) * red**2 + 4 * green**2 + (2 + (255 - mean_red) / 256) * blue**2
    return float(np.sqrt(squares))


def palette(count: int) -> list[str]:
    """So many different colours: those of `COLOURS`, then hues a golden angle apart in three shades."""
    colours = COLOURS[:count]
    for k in range(count - len(COLOURS)):
        lightness = PALETTE_LIGHTNESS[k % len(PALETTE_LIGHTNESS)]
        rgb = colorsys.hls_to_rgb((k * GOLDEN_ANGLE) % 1, lightness, PALETTE_SATURATION)
        colours.append("#" + "".join(f"{round(255 * value):02x}" for value in rgb))
    return colours


def page_colour_of(index: int) -> str:
    """The colour of a page's curve or mask, counted from 0; after the last colour the first comes again."""
    return PAGE_COLOURS[index % len(PAGE_COLOURS)]


def rgb_of(colour: str) -> tuple[int, int, int]:
    """Red, green and blue in [0, 255] of "#rrggbb"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)

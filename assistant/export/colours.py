"""The colours of masks and curves, as "#rrggbb".

colour_of(0)                # of an answer's first target
palette(40)                 # of a list of 40 classes
rgb_of("#e69f00")           # (230, 159, 0)
"""

from __future__ import annotations

import colorsys

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
# Of longer lists of classes: neighbouring numbers are far apart in hue, and colours do not come again.
GOLDEN_ANGLE = 0.381966  # of a turn
PALETTE_LIGHTNESS = (0.5, 0.35, 0.65)
PALETTE_SATURATION = 0.75
# Of the curves and masks on an HTML page: Okabe and Ito's, the darkest on white first.
PAGE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def colour_of(index: int) -> str:
    """The colour of an answer's target, counted from 0; after the last colour the first comes again."""
    return COLOURS[index % len(COLOURS)]


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

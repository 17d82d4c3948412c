"""The colours that people name, and how much of a mask has one of them.

COLOUR_WORDS["golden"]                      # "yellow", a key of COLOURS
colour_share(image, mask, "yellow")         # share of the mask's pixels, in [0, 1]
"""

import numpy as np

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
# {word: the colour that it stands for}.
COLOUR_WORDS = {name: name for name in COLOURS} | {
    "gray": "grey",
    "golden": "yellow",
    "blonde": "yellow",
    "blond": "yellow",
    "violet": "purple",
    "dark": "black",
    "silver": "grey",
    "beige": "brown",
    "navy": "blue",
    "turquoise": "blue",
}
MAX_COLOUR_PIXELS = 4000  # of a mask, by which its colours are measured


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

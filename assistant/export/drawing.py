"""Masks as a person sees them: coloured and named on the image, or as polygons.

drawn = draw_targets(image, [(1, "#e69f00", "umbrella", mask)])     # PIL RGB image
for points, holes in outlines(mask): ...                           # (P, 2) float xy px, and how many holes it
has
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.export.colours import colour_of, rgb_of
from assistant.sam.mask_ops import crop_around

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw as PilDraw

MASK_OPACITY = 0.45  # of a mask's colour; its outline is opaque
OUTLINES_PER_SIDE = 250  # an outline's width is the shorter side of the image over this, at least 1 px
FONTS_PER_SIDE = 24  # the font's size is the shorter side over this, within the sizes below
MIN_FONT_SIZE, MAX_FONT_SIZE = 12, 48
MAX_NAME_LENGTH = 60  # characters of a name on the image
MAX_DARK_LUMINANCE = 140  # of 255: a name is black on lighter colours, white on this and darker ones
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)

# Stops of the heat map's colours (share of the heat, RGB): from black over red to yellow, after matplotlib's
# "inferno".
HEAT_COLOURS = (
    (0.0, (0, 0, 4)),
    (0.25, (87, 16, 110)),
    (0.5, (188, 55, 84)),
    (0.75, (249, 142, 9)),
    (1.0, (252, 255, 164)),
)
HEAT_OPACITY = 0.65

SHEET_HEIGHT = 260  # px of a row of images
GAPS_PER_HEIGHT = 40  # the gap between two images of a sheet is its height over this

# (left, top, right, bottom) in px.
Rectangle = tuple[float, float, float, float]


def draw_targets(image: np.ndarray, targets: list[tuple[int, str, str, np.ndarray]]) -> PilImage:
    """Draw masks in colours, with outlines and names.

    Args:
        image: (H, W, 3) uint8 RGB.
        targets: (number, "#rrggbb", name, mask (H, W) bool) each. The number stands for a name that the font,
            which is Latin, cannot write. Nothing is written for an empty name. Empty masks are left out.

    Returns:
        A PIL RGB image of the same size. Names do not cover each other as far as the image has room.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[:2]
    pixels = image.astype(np.uint8, copy=True)
    line_width = max(1, round(min(height, width) / OUTLINES_PER_SIDE))
    names = []
    for number, colour, name, mask in targets:
        box = crop_around(mask)
        if box is None:
            continue
        rgb = rgb_of(colour)
        _tint(pixels[box], mask[box], rgb, line_width)
        names.append((number, name, rgb, box))
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(
        size=min(max(min(height, width) / FONTS_PER_SIDE, MIN_FONT_SIZE), MAX_FONT_SIZE)
    )
    taken: list[Rectangle] = []
    for number, name, rgb, box in names:
        name = " ".join(name.split())  # the font has no glyph for line ends and for wider spaces
        if not name:
            continue
        name = name if _is_writable(font, name) else str(number)
        place = _write_name(draw, font, name, rgb, box, taken, (width, height))
        if place is not None:
            taken.append(place)
    return drawn


def _tint(pixels: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int], line_width: int) -> None:
    """Mix a colour into the pixels (h, w, 3) under a mask (h, w) bool, and draw its inner outline."""
    from scipy import ndimage

    colour = np.array(rgb, np.float32)
    pixels[mask] = np.rint(pixels[mask] * (1 - MASK_OPACITY) + colour * MASK_OPACITY)
    eight_connected = ndimage.generate_binary_structure(2, 2)
    inner = ndimage.binary_erosion(mask, eight_connected, iterations=line_width)
    pixels[mask & ~inner] = colour


def _write_name(
    draw: PilDraw,
    font: Any,
    name: str,
    rgb: tuple[int, int, int],
    box: tuple[slice, slice],
    taken: list[Rectangle],
    size: tuple[int, int],
) -> Rectangle | None:
    """Write a name on its colour: above its mask, or at the nearest line where no other name is.

    Args:
        draw: What draws on the image.
        font: PIL's font.
        name: The name, on one line.
        rgb: The colour of its mask.
        box: Rows and columns of its mask.
        taken: Where names are already.
        size: (width, height) of the image.

    Returns:
        Where the name stands; None where the image is smaller than the name.
    """
    padding = max(2, round(font.size / 6))
    ascent, descent = font.getmetrics()
    name_height = ascent + descent + padding
    name = _shortened(font, name, size[0] - 2 * padding)
    name_width = font.getlength(name) + 2 * padding
    if name_width > size[0] or name_height > size[1]:
        return None
    rows, columns = box
    left = min(max(0, (columns.start + columns.stop - name_width) / 2), size[0] - name_width)
    preferred = min(max(0, rows.start - name_height), size[1] - name_height)
    top = _free_line(left, left + name_width, preferred, name_height, taken, size[1])
    place = (left, top, left + name_width, top + name_height)
    draw.rectangle(place, fill=rgb)
    is_light = np.array(rgb, np.float32) @ LUMINANCE.astype(np.float32) > MAX_DARK_LUMINANCE
    draw.text((left + padding, top + padding / 2), name, font=font, fill="black" if is_light else "white")
    return place


def _shortened(font: Any, name: str, max_width: float) -> str:
    """The name, cut where it is longer than MAX_NAME_LENGTH or wider than `max_width` px."""
    if len(name) > MAX_NAME_LENGTH:
        name = name[: MAX_NAME_LENGTH - 1].rstrip() + "…"
    while font.getlength(name) > max_width and len(name) > 2:
        name = name[:-2].rstrip() + "…"
    return name


def _free_line(
    left: float, right: float, preferred: float, height: float, taken: list[Rectangle], image_height: int
) -> float:
    """The top of the line nearest to `preferred`, in steps of `height`, where no rectangle of `taken` is.

    It is `preferred` itself where there is no such line.
    """
    steps = int(image_height // height)
    tops = sorted(
        (preferred + step * height for step in range(-steps, steps + 1)), key=lambda top: abs(top - preferred)
    )
    for top in tops:
        inside = 0 <= top <= image_height - height
        if inside and not any(
            left < other[2] and other[0] < right and top < other[3] and other[1] < top + height
            for other in taken
        ):
            return top
    return preferred


def _is_writable(font: Any, name: str) -> bool:
    """Whether the font has a glyph for every character."""
    missing = bytes(font.getmask("\uffff"))
    return all(c.isspace() or c == "…" or bytes(font.getmask(c)) != missing for c in set(name))


def draw_heat(image: np.ndarray, heat: np.ndarray) -> PilImage:
    """Draw a heat map over an image, which shows through in grey.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (H, W) in [0, 1].

    Returns:
        A PIL RGB image of the same size, from dark over red to yellow.
    """
    from PIL import Image

    stops = [stop for stop, _ in HEAT_COLOURS]
    channels = zip(*(rgb for _, rgb in HEAT_COLOURS), strict=True)
    colours = np.stack([np.interp(heat, stops, channel) for channel in channels], -1)
    grey = image @ LUMINANCE
    mixed = (1 - HEAT_OPACITY) * grey[..., None] + HEAT_OPACITY * colours
    return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


def side_by_side(panels: list[tuple[str, np.ndarray, np.ndarray]], height: int = SHEET_HEIGHT) -> PilImage:
    """Draw images with a mask each in a row.

    Args:
        panels: (name, image (H, W, 3) uint8 RGB, mask (H, W), nonzero = inside) each.
        height: Of every image in px.

    Returns:
        A PIL RGB image.
    """
    from PIL import Image

    drawn = []
    for name, image, mask in panels:
        panel = draw_targets(image, [(1, colour_of(1), name, mask != 0)])
        width = max(1, round(panel.width * height / panel.height))
        drawn.append(panel.resize((width, height), Image.Resampling.LANCZOS))
    gap = height // GAPS_PER_HEIGHT
    sheet = Image.new("RGB", (sum(panel.width + gap for panel in drawn) - gap, height), "white")
    left = 0
    for panel in drawn:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    return sheet


def outlines(mask: np.ndarray, tolerance: float = 0.5) -> list[tuple[np.ndarray, int]]:
    """Outline every connected part of a mask; parts that touch by a corner are one.

    Args:
        mask: (H, W) bool.
        tolerance: The largest distance in px between a polygon and the edge of the mask.

    Returns:
        (points, holes) of each part: its outer polygon (P, 2) float xy in px, where (0, 0) is the outer
        corner of the first pixel, and the number of holes inside it.
    """
    from scipy import ndimage
    from skimage.measure import approximate_polygon, find_contours

    polygons = []
    parts, _ = ndimage.label(mask, ndimage.generate_binary_structure(2, 2))
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        part = np.pad(parts[box] == number, 1)
        filled = ndimage.binary_fill_holes(part)
        holes = ndimage.label(filled & ~part)[1]
        line = max(find_contours(filled.astype(np.float32), 0.5, fully_connected="high"), key=len)
        simplified = approximate_polygon(line, tolerance)
        if len(simplified) > 3:  # a triangle at least, whose first corner comes again as its last
            line = simplified
        corner = [box[1].start, box[0].start]
        # -1 for the padding, +.5 because contours count from the centre of the first pixel.
        polygons.append((line[:-1, ::-1] - 1 + 0.5 + corner, holes))
    return polygons

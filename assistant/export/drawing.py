"""Masks as a person sees them: coloured and named on the picture, or as polygons.

picture = draw_targets(image, [(1, "#e69f00", "umbrella", mask)])      # PIL RGB image
for points, holes in outlines(mask): ...                            # (P, 2) xy px, and how many holes it has
"""

import numpy as np

OPACITY = 0.45  # of a mask's colour; its outline is opaque


def draw_targets(image: np.ndarray, targets: list[tuple[int, str, str, np.ndarray]]):
    """image: (H, W, 3) uint8; targets: (number, hex colour, name, (H, W) bool) -> PIL RGB image of that size.

    Names are clear of each other as far as the picture has room. A name that the font cannot write (it is Latin)
    is shown by its number.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[:2]
    pixels = image.astype(np.uint8, copy=True)
    line = max(1, round(min(height, width) / 250))
    places = []
    for number, colour, name, mask in targets:
        box = _extent(mask)
        if box is None:
            continue
        rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], np.float32)
        part, inside = pixels[box], mask[box]
        part[inside] = np.rint(part[inside] * (1 - OPACITY) + rgb * OPACITY)
        part[inside & ~_eroded(inside, line)] = rgb
        places.append((number, name, rgb, box))
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=min(max(min(height, width) / 24, 12), 48))
    taken: list[tuple] = []
    for number, name, rgb, box in places:
        name = " ".join(name.split())  # the font has no glyph for the wider spaces and line ends
        _write(draw, font, name if _writable(font, name) else str(number), rgb, box, taken, (width, height))
    return picture


HEAT = (
    (0.0, (0, 0, 4)),
    (0.25, (87, 16, 110)),
    (0.5, (188, 55, 84)),
    (0.75, (249, 142, 9)),
    (1.0, (252, 255, 164)),
)


def draw_heat(image: np.ndarray, heat: np.ndarray):
    """image: (H, W, 3) uint8; heat: (H, W) in [0, 1] -> PIL RGB image of that size, from dark over red to yellow; the
    picture shows through as grey."""
    from PIL import Image

    levels, colours = zip(*HEAT)
    rgb = np.stack([np.interp(heat, levels, channel) for channel in zip(*colours)], -1)
    grey = image @ np.array([0.299, 0.587, 0.114])
    return Image.fromarray(np.rint(0.35 * grey[..., None] + 0.65 * rgb).clip(0, 255).astype(np.uint8))


def side_by_side(panels: list[tuple[str, np.ndarray, np.ndarray]], high: int = 260):
    """panels: (name, (H, W, 3) uint8, its mask (H, W)) -> one PIL RGB image, all of them `high` px high."""
    from PIL import Image

    from assistant.answer import colour_of

    drawn = [draw_targets(image, [(1, colour_of(1), name, mask != 0)]) for name, image, mask in panels]
    drawn = [
        p.resize((max(1, round(p.width * high / p.height)), high), Image.Resampling.LANCZOS) for p in drawn
    ]
    gap = high // 40
    sheet = Image.new("RGB", (sum(p.width + gap for p in drawn) - gap, high), "white")
    left = 0
    for picture in drawn:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def _write(draw, font, name, rgb, box, taken, size) -> None:
    """One name on its colour, above its mask or at the nearest free line below that."""
    pad = max(2, round(font.size / 6))
    ascent, descent = font.getmetrics()
    high = ascent + descent + pad
    if len(name) > 60:
        name = name[:59].rstrip() + "…"
    while font.getlength(name) + 2 * pad > size[0] and len(name) > 2:
        name = name[:-2].rstrip() + "…"
    wide = font.getlength(name) + 2 * pad
    if wide > size[0] or high > size[1]:
        return  # a picture smaller than its label
    left = min(max(0, (box[1].start + box[1].stop - wide) / 2), size[0] - wide)
    first = min(max(0, box[0].start - high), size[1] - high)
    lines = sorted(
        [first + k * high for k in range(-int(size[1] // high), int(size[1] // high) + 1)],
        key=lambda top: abs(top - first),
    )
    free = [
        top
        for top in lines
        if 0 <= top <= size[1] - high
        and not any(left < t[2] and t[0] < left + wide and top < t[3] and t[1] < top + high for t in taken)
    ]
    top = free[0] if free else first
    taken.append((left, top, left + wide, top + high))
    draw.rectangle(taken[-1], fill=tuple(int(v) for v in rgb))
    light = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    draw.text((left + pad, top + pad / 2), name, font=font, fill="black" if light > 140 else "white")


def _writable(font, name: str) -> bool:
    missing = bytes(font.getmask("\uffff"))
    return all(c.isspace() or c == "…" or bytes(font.getmask(c)) != missing for c in set(name))


def _extent(mask: np.ndarray):
    """The slices (rows, columns) that hold the mask; None for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 2), iterations=pixels)


def outlines(mask: np.ndarray, tolerance: float = 0.5) -> list[tuple[np.ndarray, int]]:
    """Outer outlines of an (H, W) bool mask: [((P, 2) float xy px, holes inside it), ...], one per connected part.

    Points are within `tolerance` px of the mask's edge; (0, 0) is the outer corner of the first pixel. Parts that
    touch by a corner are one.
    """
    from scipy import ndimage
    from skimage.measure import approximate_polygon, find_contours

    found = []
    parts, _ = ndimage.label(mask, ndimage.generate_binary_structure(2, 2))
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        part = np.pad(parts[box] == number, 1)
        filled = ndimage.binary_fill_holes(part)
        holes = ndimage.label(filled & ~part)[1]
        line = max(find_contours(filled.astype(np.float32), 0.5, fully_connected="high"), key=len)
        short = approximate_polygon(line, tolerance)
        line = short if len(short) > 3 else line
        corner = [box[1].start, box[0].start]
        found.append(
            (line[:-1, ::-1] - 1 + 0.5 + corner, holes)
        )  # the padding, then pixel centres to corners
    return found

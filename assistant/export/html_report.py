"""Curves, tables and images with masks for our HTML reports. Each report is one file without external parts.

loss = Curve("Loss", "step", "loss", {"text": [(0, 3.1)]}, top=None)
page.write(begin("A run") + table([("steps", 100)]) + svg(loss) + END)
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assistant.export.colours import page_colour_of, rgb_of

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0
1rem;color:#1d1d1f} table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem .2rem
0;text-align:right; border-bottom:1px solid
#ddd;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}
.wide{overflow-x:auto}.card{border-top:1px solid #ddd;padding:.8rem 0}.card p{margin:.1rem 0}
figure{display:inline-block;margin:.4rem .6rem 0 0}figcaption{font-size:13px;color:#555}svg{max-width:100%}"""
END = "</html>\n"

THUMBNAIL_SIDE = 320  # px, the longer side
THUMBNAIL_QUALITY = 80  # of its JPEG
MASK_OPACITY = 0.4  # of a mask's colour; its outline is opaque
MIN_COVERED = 64  # of 255: a thumbnail's pixel is tinted where the mask covers more than a quarter of it

# Margins of a curve in px, around the area where its lines are drawn: the ticks of y, the names of the lines,
# and the ticks and the name of x.
LEFT_MARGIN, RIGHT_MARGIN, TOP_MARGIN, BOTTOM_MARGIN = 52, 130, 12, 42
GRID_STEPS = 5  # of each axis
LEGEND_LINE_HEIGHT = 18  # px

# A bar chart in px: the height of a row, and the room for its name on the left and for its count on the
# right.
BAR_ROW_HEIGHT, BAR_NAME_WIDTH, BAR_COUNT_WIDTH = 18, 150, 70

# A caption, an image (H, W, 3) uint8 RGB, and masks (H, W) bool, each drawn in its own colour.
Panel = tuple[str, np.ndarray, list[np.ndarray]]


@dataclass(frozen=True)
class Curve:
    """Lines over a common x axis.

    Attributes:
        title: Heading of the curve.
        x: Name of the x axis.
        y: Name of the y axis, which begins at 0.
        lines: {name: points (x, y) in the order of x}; points whose y is None are left out.
        top: Highest y of the axis; None for the highest y of the points.
    """

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float | None]]]
    top: float | None = 1


@dataclass(frozen=True)
class Sample:
    """One sample for a person to look at.

    Attributes:
        group: The heading that it stands under.
        title: Its own heading.
        words: Lines of text under the title.
        panels: Images with masks, side by side.
    """

    group: str
    title: str
    words: list[str]
    panels: list[Panel] = field(default_factory=list)


def begin(title: str) -> str:
    """The beginning of a page, which `END` ends."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{text(title)}</title><style>{STYLE}</style><h1>{text(title)}</h1>\n"
    )


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Rows of (name, value) as a table."""
    cells = "".join(f"<tr><td>{text(name)}<td>{text(number(value))}" for name, value in rows)
    return f"<table>{cells}</table>\n"


def number(value: Any) -> str:
    """A value as a table shows it: four digits of a float, and "-" for None."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def text(value: Any) -> str:
    """A value as text in which no HTML has power."""
    return html.escape(str(value))


def svg(curve: Curve, width: int = 560, height: int = 300) -> str:
    """A curve as inline SVG of `width` x `height` px."""
    ys = [y for points in curve.lines.values() for _, y in points if y is not None]
    xs = [x for points in curve.lines.values() for x, _ in points]
    top_y = curve.top or max(ys, default=1) or 1
    first_x, last_x = (min(xs), max(xs)) if xs else (0, 1)
    if last_x <= first_x:
        last_x = first_x + 1
    right = width - RIGHT_MARGIN
    bottom = height - BOTTOM_MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in px from the upper left corner."""
        return (
            LEFT_MARGIN + (x - first_x) / (last_x - first_x) * (right - LEFT_MARGIN),
            bottom - y / top_y * (bottom - TOP_MARGIN),
        )

    parts = [_begin_svg(curve.title, width, height)]
    for step in range(GRID_STEPS + 1):
        share = step / GRID_STEPS
        tick = first_x + share * (last_x - first_x)
        y = place(first_x, share * top_y)[1]
        x = place(tick, 0)[0]
        parts.append(
            f'<line x1="{LEFT_MARGIN}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top_y:.1f}</text>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.3g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT_MARGIN + right) / 2}" y="{height - 8}" text-anchor="middle">{text(curve.x)}</text>'
        f'<text transform="translate(14 {(TOP_MARGIN + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{text(curve.y)}</text>"
    )
    for k, (name, points) in enumerate(curve.lines.items()):
        colour = page_colour_of(k)
        places = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points if y is not None)
        name_y = TOP_MARGIN + 14 + LEGEND_LINE_HEIGHT * k
        parts.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{right + 10}" y="{name_y}" fill="{colour}">{text(name)}</text>'
        )
    return "".join(parts) + "</svg>"


def _begin_svg(title: str, width: int, height: int) -> str:
    return (
        f'<svg role="img" aria-label="{text(title)}" viewBox="0 0 {width} {height}" width="{width}" '
        'font-size="12" font-family="system-ui,sans-serif">'
    )


def bars(title: str, counts: dict[str, int], width: int = 560) -> str:
    """Counts by name as inline SVG `width` px wide, one bar each from the top down."""
    most = max(counts.values(), default=0) or 1
    height = BAR_ROW_HEIGHT * len(counts) + 4
    parts = [_begin_svg(title, width, height)]
    for k, (name, count) in enumerate(counts.items()):
        length = count / most * (width - BAR_NAME_WIDTH - BAR_COUNT_WIDTH)
        top = BAR_ROW_HEIGHT * k
        parts.append(
            f'<text x="{BAR_NAME_WIDTH - 8}" y="{top + 13}" text-anchor="end">{text(name)}</text>'
            f'<rect x="{BAR_NAME_WIDTH}" y="{top + 3}" width="{length:.1f}" height="{BAR_ROW_HEIGHT - 5}" '
            f'fill="{page_colour_of(0)}"/>'
            f'<text x="{BAR_NAME_WIDTH + length + 6:.1f}" y="{top + 13}">{count:,}</text>'
        )
    return "".join(parts) + "</svg>"


def card(sample: Sample) -> str:
    """A sample: its title, its words, and its panels side by side."""
    figures = "".join(
        f"<figure><img alt='{text(caption)}' src='data:image/jpeg;base64,{thumbnail(image, masks)}'>"
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for caption, image, masks in sample.panels
    )
    words = "".join(f"<p>{text(line)}" for line in sample.words)
    return f"<div class=card><p><b>{text(sample.title)}</b>{words}{figures}</div>\n"


def thumbnail(image: np.ndarray, masks: list[np.ndarray]) -> str:
    """A small JPEG of an image with its masks tinted and outlined.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) bool each.

    Returns:
        The JPEG in base64.
    """
    from PIL import Image

    scale = THUMBNAIL_SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    pixels = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    for k, mask in enumerate(masks):
        colour = np.array(rgb_of(page_colour_of(k)), dtype=np.float32)
        # Box filtering keeps objects of a few pixels visible where nearest neighbour would lose them.
        coverage = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        covered = np.asarray(coverage) > MIN_COVERED
        around = np.pad(covered, 1, mode="edge")
        inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        pixels[covered] = (1 - MASK_OPACITY) * pixels[covered] + MASK_OPACITY * colour
        pixels[covered & ~inner] = colour
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return base64.b64encode(file.getvalue()).decode()

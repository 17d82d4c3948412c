"""Charts for our HTML reports, as inline SVG in the colour of the text around them.

    curve_svg(Curve("Loss", "step", "loss", {"text": [(0, 3.1)]}, top=None))
    bars_svg("Questions by kind", {"by use": 31})
    histogram_svg("IoU of each question", [0.1, 0.93, 0.88])

All return markup that a template may write as it is: whatever is text in it has been escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.export.colours import page_colour_of

if TYPE_CHECKING:
    from markupsafe import Markup

# Margins in px, around the area where lines and columns are drawn: the ticks of y, the names of the lines,
# and the ticks and the name of x.
LEFT_MARGIN, RIGHT_MARGIN, TOP_MARGIN, BOTTOM_MARGIN = 52, 130, 12, 42
GRID_STEPS = 5  # of each axis
LEGEND_LINE_HEIGHT = 18  # px
GRID_LINE = 'stroke="currentColor" stroke-opacity=".2"'

# A bar chart in px: the height of a row, and the room for its name on the left and for its count on the
# right.
BAR_ROW_HEIGHT, BAR_NAME_WIDTH, BAR_COUNT_WIDTH = 18, 150, 70
HISTOGRAM_BINS = 20  # of [0, 1]
MAX_BAR_NAME_LENGTH = 24  # characters that fit into BAR_NAME_WIDTH


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


def curve_svg(curve: Curve, width: int = 560, height: int = 300) -> Markup:
    """A curve as SVG of `width` x `height` px."""
    ys = [y for points in curve.lines.values() for _, y in points if y is not None]
    xs = [x for points in curve.lines.values() for x, _ in points]
    top_y = curve.top or max(ys, default=1) or 1
    first_x, last_x = (min(xs), max(xs)) if xs else (0, 1)
    if last_x <= first_x:
        last_x = first_x + 1
    right, bottom = width - RIGHT_MARGIN, height - BOTTOM_MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in px from the upper left corner."""
        return (
            LEFT_MARGIN + (x - first_x) / (last_x - first_x) * (right - LEFT_MARGIN),
            bottom - y / top_y * (bottom - TOP_MARGIN),
        )

    parts = []
    for step in range(GRID_STEPS + 1):
        share = step / GRID_STEPS
        tick = first_x + share * (last_x - first_x)
        y = place(first_x, share * top_y)[1]
        parts.append(f'<line x1="{LEFT_MARGIN}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" {GRID_LINE}/>')
        parts.append(_label(LEFT_MARGIN - 6, y + 4, f"{share * top_y:.1f}", "end"))
        parts.append(_label(place(tick, 0)[0], bottom + 16, f"{tick:.3g}"))
    parts.append(_label((LEFT_MARGIN + right) / 2, height - 8, curve.x))
    parts.append(_upright(14, (TOP_MARGIN + bottom) / 2, curve.y))
    for k, (name, points) in enumerate(curve.lines.items()):
        colour = page_colour_of(k)
        places = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points if y is not None)
        name_y = TOP_MARGIN + 14 + LEGEND_LINE_HEIGHT * k
        parts.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<line x1="{right + 8}" x2="{right + 20}" y1="{name_y - 4}" y2="{name_y - 4}" stroke="{colour}" '
            f'stroke-width="4"/>{_label(right + 25, name_y, name, "start")}'
        )
    return _svg(curve.title, width, height, parts)


def bars_svg(title: str, counts: dict[str, int], width: int = 560) -> Markup:
    """Counts by name as SVG `width` px wide, one bar each from the top down."""
    most = max(counts.values(), default=0) or 1
    parts = []
    for k, (name, count) in enumerate(counts.items()):
        length = count / most * (width - BAR_NAME_WIDTH - BAR_COUNT_WIDTH)
        top = BAR_ROW_HEIGHT * k
        short = name if len(name) <= MAX_BAR_NAME_LENGTH else name[: MAX_BAR_NAME_LENGTH - 1] + "…"
        parts.append(
            f"<g><title>{_text(name)}: {count:,}</title>{_label(BAR_NAME_WIDTH - 8, top + 13, short, 'end')}"
            f'<rect x="{BAR_NAME_WIDTH}" y="{top + 3}" width="{length:.1f}" height="{BAR_ROW_HEIGHT - 5}" '
            f'fill="{page_colour_of(0)}"/>'
            f"{_label(BAR_NAME_WIDTH + length + 6, top + 13, f'{count:,}', 'start')}</g>"
        )
    return _svg(title, width, BAR_ROW_HEIGHT * len(counts) + 4, parts)


def histogram_svg(title: str, values: Sequence[float], width: int = 560, height: int = 260) -> Markup:
    """How often values in [0, 1] fall into each of `HISTOGRAM_BINS` equal steps, as SVG."""
    counts, _ = np.histogram(np.clip(values, 0, 1), HISTOGRAM_BINS, (0, 1))
    most = max(1, int(counts.max(initial=0)))
    right, bottom = width - 12, height - BOTTOM_MARGIN
    column = (right - LEFT_MARGIN) / HISTOGRAM_BINS
    parts = []
    for number in sorted({0, most // 2, most}):
        y = bottom - number / most * (bottom - TOP_MARGIN)
        parts.append(f'<line x1="{LEFT_MARGIN}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" {GRID_LINE}/>')
        parts.append(_label(LEFT_MARGIN - 6, y + 4, number, "end"))
    for k, count in enumerate(counts):
        tall = count / most * (bottom - TOP_MARGIN)
        low, high = k / HISTOGRAM_BINS, (k + 1) / HISTOGRAM_BINS
        parts.append(
            f"<g><title>{low:.2f} to {high:.2f}: {count}</title>"
            f'<rect x="{LEFT_MARGIN + k * column + 1:.1f}" y="{bottom - tall:.1f}" width="{column - 2:.1f}" '
            f'height="{tall:.1f}" fill="{page_colour_of(0)}"/></g>'
        )
    for step in range(GRID_STEPS + 1):
        share = step / GRID_STEPS
        parts.append(_label(LEFT_MARGIN + share * (right - LEFT_MARGIN), bottom + 16, f"{share:.1f}"))
    parts.append(_label((LEFT_MARGIN + right) / 2, height - 8, "IoU"))
    parts.append(_upright(14, (TOP_MARGIN + bottom) / 2, "questions"))
    return _svg(title, width, height, parts)


def _svg(title: str, width: int, height: int, parts: Sequence[str]) -> Markup:
    from markupsafe import Markup

    return Markup(
        f'<svg role="img" aria-label="{_text(title)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-size="12" font-family="system-ui,sans-serif" fill="currentColor">{"".join(parts)}</svg>'
    )


def _label(x: float, y: float, words: Any, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(words)}</text>'


def _upright(x: float, y: float, words: Any) -> str:
    """A text that runs from the bottom to the top."""
    turned = f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)" text-anchor="middle">'
    return f"{turned}{_text(words)}</text>"


def _text(value: Any) -> str:
    """A value as text in which no HTML has power."""
    return html.escape(str(value))

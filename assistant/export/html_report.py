"""Plots, tables and pictures with masks for our HTML pages, which are one file each: nothing to fetch.

loss = Curve("Loss", "step", "loss", {"text": [(0, 3.1)]}, top=None)
page.write(begin("A run") + table([("steps", 100)]) + svg(loss) + END)
"""

import base64
import html
import io
from dataclasses import dataclass, field

import numpy as np

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito, safe for the colour-blind

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1d1d1f}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem .2rem 0;text-align:right;
border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}
.wide{overflow-x:auto}.card{border-top:1px solid #ddd;padding:.8rem 0}.card p{margin:.1rem 0}
figure{display:inline-block;margin:.4rem .6rem 0 0}figcaption{font-size:13px;color:#555}svg{max-width:100%}"""
END = "</html>\n"
THUMBNAIL = 320  # px, the longer side


@dataclass(frozen=True)
class Curve:
    """Lines over one x axis; points as (x, y), None left out. top: of the y axis, which begins at 0; None: the highest y."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float | None]]]
    top: float | None = 1


@dataclass(frozen=True)
class Picture:
    """One sample: words, and panels of (caption, image HxWx3 uint8, masks (H, W) bool each in its own colour)."""

    group: str
    title: str
    words: list[str]
    panels: list[tuple[str, np.ndarray, list[np.ndarray]]] = field(default_factory=list)


def begin(title: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{text(title)}</title><style>{STYLE}</style><h1>{text(title)}</h1>\n"
    )


def table(rows: list[tuple]) -> str:
    return "<table>" + "".join(f"<tr><td>{text(k)}<td>{text(number(v))}" for k, v in rows) + "</table>\n"


def number(value) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def text(value) -> str:
    return html.escape(str(value))


def svg(curve: Curve, width: int = 560, height: int = 300) -> str:
    """A curve as inline SVG."""
    most = (
        curve.top
        or max((y for points in curve.lines.values() for _, y in points if y is not None), default=1)
        or 1
    )
    left, right, top, bottom = 52, width - 130, 12, height - 42
    xs = [x for points in curve.lines.values() for x, _ in points]
    low, high = (min(xs), max(xs)) if xs else (0, 1)
    high = high if high > low else low + 1

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) / (high - low) * (right - left), bottom - y / most * (bottom - top)

    parts = [
        f'<svg role="img" aria-label="{text(curve.title)}" viewBox="0 0 {width} {height}" width="{width}" '
        'font-size="12" font-family="system-ui,sans-serif">'
    ]
    for k in range(6):
        y = at(low, k / 5 * most)[1]
        x = at(low + k / 5 * (high - low), 0)[0]
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{k / 5 * most:.1f}</text>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{low + k / 5 * (high - low):.3g}</text>"
        )
    parts.append(
        f'<text x="{(left + right) / 2}" y="{height - 8}" text-anchor="middle">{text(curve.x)}</text>'
        f'<text transform="translate(14 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{text(curve.y)}</text>"
    )
    for k, (name, points) in enumerate(curve.lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(x, y) for x, y in points if y is not None))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{right + 10}" y="{top + 14 + 18 * k}" fill="{colour}">{text(name)}</text>'
        )
    return "".join(parts) + "</svg>"


def bars(title: str, counts: dict[str, int], width: int = 560) -> str:
    """Counts as inline SVG, a bar each from the top down."""
    row, left, right = 18, 150, 70
    most = max(counts.values(), default=0) or 1
    parts = [
        f'<svg role="img" aria-label="{text(title)}" viewBox="0 0 {width} {row * len(counts) + 4}" width="{width}" '
        'font-size="12" font-family="system-ui,sans-serif">'
    ]
    for k, (name, count) in enumerate(counts.items()):
        long = count / most * (width - left - right)
        parts.append(
            f'<text x="{left - 8}" y="{row * k + 13}" text-anchor="end">{text(name)}</text>'
            f'<rect x="{left}" y="{row * k + 3}" width="{long:.1f}" height="{row - 5}" fill="{COLOURS[0]}"/>'
            f'<text x="{left + long + 6:.1f}" y="{row * k + 13}">{count:,}</text>'
        )
    return "".join(parts) + "</svg>"


def card(picture: Picture) -> str:
    figures = "".join(
        f"<figure><img alt='{text(caption)}' src='data:image/jpeg;base64,{thumbnail(image, masks)}'>"
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for caption, image, masks in picture.panels
    )
    words = "".join(f"<p>{text(w)}" for w in picture.words)
    return f"<div class=card><p><b>{text(picture.title)}</b>{words}{figures}</div>\n"


def thumbnail(image: np.ndarray, masks: list[np.ndarray]) -> str:
    """An HxWx3 uint8 picture with (H, W) masks tinted and outlined, as the base64 of a small JPEG."""
    from PIL import Image

    scale = THUMBNAIL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    for k, mask in enumerate(masks):
        colour = np.array(
            [int(COLOURS[k % len(COLOURS)][i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32
        )
        # Box filtering keeps objects of a few pixels visible where nearest neighbour would lose them.
        covered = (
            np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 64
        )
        ring = np.pad(covered, 1, mode="edge")
        inner = ring[:-2, 1:-1] & ring[2:, 1:-1] & ring[1:-1, :-2] & ring[1:-1, 2:]
        small[covered] = 0.6 * small[covered] + 0.4 * colour
        small[covered & ~inner] = colour
    file = io.BytesIO()
    Image.fromarray(small.astype(np.uint8)).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()

"""`report.html`: one file, nothing to fetch, that shows how well a model did and why it fails.

    write_report(out, result, [Curve("Presence", "threshold", "share", {"N_acc": [(0, 1), ...]})], pictures)
"""

import base64
import dataclasses
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from assistant.files import replace_whole
from eval.result import Result

THUMBNAIL = 320  # px, the longer side
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, safe for the colour-blind

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1d1d1f}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem .2rem 0;text-align:right;
border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}
.wide{overflow-x:auto}.card{border-top:1px solid #ddd;padding:.8rem 0}.card p{margin:.1rem 0}
figure{display:inline-block;margin:.4rem .6rem 0 0}figcaption{font-size:13px;color:#555}svg{max-width:100%}"""


@dataclass(frozen=True)
class Curve:
    """Lines over one x axis; points as (x, y), y in [0, 1], None left out."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float | None]]]


@dataclass(frozen=True)
class Picture:
    """One sample: words, and panels of (caption, image HxWx3 uint8, masks (H, W) bool each in its own colour)."""

    group: str
    title: str
    words: list[str]
    panels: list[tuple[str, np.ndarray, list[np.ndarray]]] = field(default_factory=list)


def write_report(out: str | Path, result: Result, curves: Iterable[Curve] = (),
                 pictures: Iterable[Picture] = ()) -> Path:
    """Write `report.html` whole into a folder; pictures are taken one at a time."""
    path = Path(out) / "report.html"
    title = f"{result.benchmark}, version {result.version}"
    with replace_whole(path) as temporary, temporary.open("w", encoding="utf-8") as page:
        page.write(f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
                   f"<title>{_text(title)}</title><style>{STYLE}</style><h1>{_text(title)}</h1>\n")
        page.write(_facts(result))
        if result.by:
            page.write("<h2>By group</h2>" + _by_group(result.by))
        for name, figures in result.figures.items():
            if isinstance(figures, dict):
                page.write(f"<h2>{_text(name)}</h2>" + _table([(k, v) for k, v in figures.items()]))
        for curve in curves:
            page.write(f"<h2>{_text(curve.title)}</h2>{svg(curve)}\n")
        group = None
        for picture in pictures:
            if picture.group != group:
                group = picture.group
                page.write(f"<h2>{_text(group)}</h2>\n")
            page.write(_card(picture))
        if result.bad:
            page.write(f"<h2>Inputs that could not be used: {len(result.bad)}</h2>")
            page.write(_table([(b["name"], b["error"]) for b in result.bad]))
        page.write("</html>\n")
    return path


def _facts(result: Result) -> str:
    rows = []
    for name, value in dataclasses.asdict(result).items():
        if name in ("by", "figures", "curve", "bad", "ci95", "weights"):
            continue
        interval = result.ci95.get(name)
        rows.append((name, _number(value) + (f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")))
    rows += [(f"{k}, 95 % interval", f"[{v[0]:.3f}, {v[1]:.3f}]") for k, v in result.ci95.items()
             if v and k not in dataclasses.asdict(result)]
    rows += [(k, v) for k, v in result.figures.items() if not isinstance(v, dict)]
    rows += [(f"weights: {part}", sha[:16]) for part, sha in result.weights.items()]
    return _table(rows)


def _by_group(by: dict[str, dict]) -> str:
    names = list(dict.fromkeys(k for figures in by.values() for k in figures))
    head = "".join(f"<th>{_text(n)}" for n in ["", *names])
    cells = {group: "".join(f"<td>{_text(_number(figures.get(n)))}" for n in names) for group, figures in by.items()}
    rows = "".join(f"<tr><td>{_text(group)}{row}" for group, row in cells.items())
    return f"<div class=wide><table><tr>{head}{rows}</table></div>\n"


def _table(rows: list[tuple]) -> str:
    return "<table>" + "".join(f"<tr><td>{_text(k)}<td>{_text(_number(v))}" for k, v in rows) + "</table>\n"


def _number(value) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _text(value) -> str:
    return html.escape(str(value))


def svg(curve: Curve, width: int = 560, height: int = 300) -> str:
    """A curve as inline SVG; y runs from 0 to 1."""
    left, right, top, bottom = 52, width - 130, 12, height - 42
    xs = [x for points in curve.lines.values() for x, _ in points]
    low, high = (min(xs), max(xs)) if xs else (0, 1)
    high = high if high > low else low + 1

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) / (high - low) * (right - left), bottom - y * (bottom - top)

    parts = [f'<svg role="img" aria-label="{_text(curve.title)}" viewBox="0 0 {width} {height}" width="{width}" '
             'font-size="12" font-family="system-ui,sans-serif">']
    for k in range(6):
        y = at(low, k / 5)[1]
        x = at(low + k / 5 * (high - low), 0)[0]
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                     f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{k / 5:.1f}</text>'
                     f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
                     f'{low + k / 5 * (high - low):.3g}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 8}" text-anchor="middle">{_text(curve.x)}</text>'
                 f'<text transform="translate(14 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
                 f'{_text(curve.y)}</text>')
    for k, (name, points) in enumerate(curve.lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(x, y) for x, y in points if y is not None))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
                     f'<text x="{right + 10}" y="{top + 14 + 18 * k}" fill="{colour}">{_text(name)}</text>')
    return "".join(parts) + "</svg>"


def _card(picture: Picture) -> str:
    figures = "".join(f"<figure><img alt='{_text(caption)}' src='data:image/jpeg;base64,{thumbnail(image, masks)}'>"
                      f"<figcaption>{_text(caption)}</figcaption></figure>" for caption, image, masks in picture.panels)
    words = "".join(f"<p>{_text(w)}" for w in picture.words)
    return f"<div class=card><p><b>{_text(picture.title)}</b>{words}{figures}</div>\n"


def thumbnail(image: np.ndarray, masks: list[np.ndarray]) -> str:
    """An HxWx3 uint8 picture with (H, W) masks tinted and outlined, as the base64 of a small JPEG."""
    scale = THUMBNAIL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    for k, mask in enumerate(masks):
        colour = np.array([int(COLOURS[k % len(COLOURS)][i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
        # Box filtering keeps objects of a few pixels visible where nearest neighbour would lose them.
        covered = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 64
        ring = np.pad(covered, 1, mode="edge")
        inner = ring[:-2, 1:-1] & ring[2:, 1:-1] & ring[1:-1, :-2] & ring[1:-1, 2:]
        small[covered] = 0.6 * small[covered] + 0.4 * colour
        small[covered & ~inner] = colour
    file = io.BytesIO()
    Image.fromarray(small.astype(np.uint8)).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()

"""Plots and tables for our HTML pages: inline SVG, nothing to fetch."""

import html
from dataclasses import dataclass

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


def table(rows: list[tuple]) -> str:
    return "<table>" + "".join(f"<tr><td>{text(k)}<td>{text(number(v))}" for k, v in rows) + "</table>\n"


def number(value) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def text(value) -> str:
    return html.escape(str(value))


def svg(curve: Curve, width: int = 560, height: int = 300) -> str:
    """A curve as inline SVG; y runs from 0 to 1."""
    left, right, top, bottom = 52, width - 130, 12, height - 42
    xs = [x for points in curve.lines.values() for x, _ in points]
    low, high = (min(xs), max(xs)) if xs else (0, 1)
    high = high if high > low else low + 1

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) / (high - low) * (right - left), bottom - y * (bottom - top)

    parts = [f'<svg role="img" aria-label="{text(curve.title)}" viewBox="0 0 {width} {height}" width="{width}" '
             'font-size="12" font-family="system-ui,sans-serif">']
    for k in range(6):
        y = at(low, k / 5)[1]
        x = at(low + k / 5 * (high - low), 0)[0]
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                     f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{k / 5:.1f}</text>'
                     f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
                     f'{low + k / 5 * (high - low):.3g}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 8}" text-anchor="middle">{text(curve.x)}</text>'
                 f'<text transform="translate(14 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
                 f'{text(curve.y)}</text>')
    for k, (name, points) in enumerate(curve.lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(x, y) for x, y in points if y is not None))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
                     f'<text x="{right + 10}" y="{top + 14 + 18 * k}" fill="{colour}">{text(name)}</text>')
    return "".join(parts) + "</svg>"


def bars(title: str, counts: dict[str, int], width: int = 560) -> str:
    """Counts as inline SVG, a bar each from the top down."""
    row, left, right = 18, 150, 70
    most = max(counts.values(), default=0) or 1
    parts = [f'<svg role="img" aria-label="{text(title)}" viewBox="0 0 {width} {row * len(counts) + 4}" width="{width}" '
             'font-size="12" font-family="system-ui,sans-serif">']
    for k, (name, count) in enumerate(counts.items()):
        long = count / most * (width - left - right)
        parts.append(f'<text x="{left - 8}" y="{row * k + 13}" text-anchor="end">{text(name)}</text>'
                     f'<rect x="{left}" y="{row * k + 3}" width="{long:.1f}" height="{row - 5}" fill="{COLOURS[0]}"/>'
                     f'<text x="{left + long + 6:.1f}" y="{row * k + 13}">{count:,}</text>')
    return "".join(parts) + "</svg>"

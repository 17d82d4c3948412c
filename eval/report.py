"""`report.html`: one file, nothing to fetch, that shows how well a model did and why it fails.

    write_report(out, result, [Curve("Presence", "threshold", "share", {"N_acc": [(0, 1), ...]})], pictures)
"""

import base64
import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from assistant.files import replace_whole
from assistant.plots import COLOURS, STYLE, Curve, number, svg, table, text
from eval.result import Result

THUMBNAIL = 320  # px, the longer side


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
                   f"<title>{text(title)}</title><style>{STYLE}</style><h1>{text(title)}</h1>\n")
        page.write(_facts(result))
        if result.by:
            page.write("<h2>By group</h2>" + _by_group(result.by))
        for name, figures in result.figures.items():
            if isinstance(figures, dict):
                page.write(f"<h2>{text(name)}</h2>" + table([(k, v) for k, v in figures.items()]))
        for curve in curves:
            page.write(f"<h2>{text(curve.title)}</h2>{svg(curve)}\n")
        group = None
        for picture in pictures:
            if picture.group != group:
                group = picture.group
                page.write(f"<h2>{text(group)}</h2>\n")
            page.write(_card(picture))
        if result.bad:
            page.write(f"<h2>Inputs that could not be used: {len(result.bad)}</h2>")
            page.write(table([(b["name"], b["error"]) for b in result.bad]))
        page.write("</html>\n")
    return path


def _facts(result: Result) -> str:
    rows = []
    for name, value in dataclasses.asdict(result).items():
        if name in ("by", "figures", "curve", "bad", "ci95", "weights"):
            continue
        interval = result.ci95.get(name)
        rows.append((name, number(value) + (f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")))
    rows += [(f"{k}, 95 % interval", f"[{v[0]:.3f}, {v[1]:.3f}]") for k, v in result.ci95.items()
             if v and k not in dataclasses.asdict(result)]
    rows += [(k, v) for k, v in result.figures.items() if not isinstance(v, dict)]
    rows += [(f"weights: {part}", sha[:16]) for part, sha in result.weights.items()]
    return table(rows)


def _by_group(by: dict[str, dict]) -> str:
    names = list(dict.fromkeys(k for figures in by.values() for k in figures))
    head = "".join(f"<th>{text(n)}" for n in ["", *names])
    cells = {group: "".join(f"<td>{text(number(figures.get(n)))}" for n in names) for group, figures in by.items()}
    rows = "".join(f"<tr><td>{text(group)}{row}" for group, row in cells.items())
    return f"<div class=wide><table><tr>{head}{rows}</table></div>\n"


def _card(picture: Picture) -> str:
    figures = "".join(f"<figure><img alt='{text(caption)}' src='data:image/jpeg;base64,{thumbnail(image, masks)}'>"
                      f"<figcaption>{text(caption)}</figcaption></figure>" for caption, image, masks in picture.panels)
    words = "".join(f"<p>{text(w)}" for w in picture.words)
    return f"<div class=card><p><b>{text(picture.title)}</b>{words}{figures}</div>\n"


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

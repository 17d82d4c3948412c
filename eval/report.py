"""`report.html`: one file, nothing to fetch, that shows how well a model did and why it fails.

write_report(out, result, [Curve("Presence", "threshold", "share", {"N_acc": [(0, 1), ...]})], pictures)
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from assistant.export.html_report import END, Curve, Picture, begin, card, number, svg, table, text
from assistant.files import replace_whole
from eval.result import Result


def write_report(
    out: str | Path, result: Result, curves: Iterable[Curve] = (), pictures: Iterable[Picture] = ()
) -> Path:
    """Write `report.html` whole into a folder; pictures are taken one at a time."""
    path = Path(out) / "report.html"
    title = f"{result.benchmark}, version {result.version}"
    with replace_whole(path) as temporary, temporary.open("w", encoding="utf-8") as page:
        page.write(begin(title))
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
            page.write(card(picture))
        if result.bad:
            page.write(f"<h2>Inputs that could not be used: {len(result.bad)}</h2>")
            page.write(table([(b["name"], b["error"]) for b in result.bad]))
        page.write(END)
    return path


def _facts(result: Result) -> str:
    rows = []
    for name, value in dataclasses.asdict(result).items():
        if name in ("by", "figures", "curve", "bad", "ci95", "weights"):
            continue
        interval = result.ci95.get(name)
        rows.append((name, number(value) + (f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")))
    rows += [
        (f"{k}, 95 % interval", f"[{v[0]:.3f}, {v[1]:.3f}]")
        for k, v in result.ci95.items()
        if v and k not in dataclasses.asdict(result)
    ]
    rows += [(k, v) for k, v in result.figures.items() if not isinstance(v, dict)]
    rows += [(f"weights: {part}", sha[:16]) for part, sha in result.weights.items()]
    return table(rows)


def _by_group(by: dict[str, dict]) -> str:
    names = list(dict.fromkeys(k for figures in by.values() for k in figures))
    head = "".join(f"<th>{text(n)}" for n in ["", *names])
    cells = {
        group: "".join(f"<td>{text(number(figures.get(n)))}" for n in names) for group, figures in by.items()
    }
    rows = "".join(f"<tr><td>{text(group)}{row}" for group, row in cells.items())
    return f"<div class=wide><table><tr>{head}{rows}</table></div>\n"

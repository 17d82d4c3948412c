"""`report.html`: one file without external parts that shows how well a model did and why it fails.

write_report(out, result, [Curve("Presence", "threshold", "share", {"N_acc": [(0, 1), ...]})], samples)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from assistant.export.html_report import END, Curve, Panel, Sample, begin, card, number, svg, table, text
from assistant.files import replace_whole
from eval.result import Result

__all__ = ["Curve", "Panel", "Sample", "presence_curves", "svg", "write_report"]

SEPARATE_FIELDS = (
    "by",
    "figures",
    "curve",
    "bad",
    "ci95",
    "weights",
)  # of a result: not rows of its first table
CHECKSUM_CHARACTERS = 16  # of a sha256 that are shown


def write_report(
    out: str | Path, result: Result, curves: Iterable[Curve] = (), samples: Iterable[Sample] = ()
) -> Path:
    """Write `report.html` whole.

    Args:
        out: The folder of the run.
        result: What was measured.
        curves: To be drawn under the tables.
        samples: What a person should look at, group by group; they are taken one at a time.

    Returns:
        The file.
    """
    path = Path(out) / "report.html"
    with replace_whole(path) as temporary, temporary.open("w", encoding="utf-8") as page:
        page.write(begin(f"{result.benchmark}, version {result.version}"))
        page.write(_facts(result))
        if result.by:
            page.write("<h2>By group</h2>" + _by_group(result.by))
        for name, figures in result.figures.items():
            if isinstance(figures, dict):
                page.write(f"<h2>{text(name)}</h2>" + table(list(figures.items())))
        for curve in curves:
            page.write(f"<h2>{text(curve.title)}</h2>{svg(curve)}\n")
        group = None
        for sample in samples:
            if sample.group != group:
                group = sample.group
                page.write(f"<h2>{text(group)}</h2>\n")
            page.write(card(sample))
        if result.bad:
            page.write(f"<h2>Inputs that could not be used: {len(result.bad)}</h2>")
            page.write(table([(bad["name"], bad["error"]) for bad in result.bad]))
        page.write(END)
    return path


def presence_curves(result: Result, title: str) -> list[Curve]:
    """N_acc and T_acc over the presence threshold as a curve; [] where the result has none."""
    if not result.curve:
        return []
    lines = {
        "N_acc": [(point["threshold"], point["N_acc"]) for point in result.curve],
        "T_acc": [(point["threshold"], point["T_acc"]) for point in result.curve],
    }
    return [Curve(title, "threshold", "share", lines)]


def _facts(result: Result) -> str:
    """The table of single values: the result's own fields, intervals, figures and weights."""
    fields = dataclasses.asdict(result)
    rows: list[tuple[str, Any]] = []
    for name, value in fields.items():
        if name not in SEPARATE_FIELDS:
            interval = result.ci95.get(name)
            rows.append((name, number(value) + (f"  {_shown(interval)}" if interval else "")))
    for name, interval in result.ci95.items():
        if interval and name not in fields:
            rows.append((f"{name}, 95 % interval", _shown(interval)))
    rows += [(name, value) for name, value in result.figures.items() if not isinstance(value, dict)]
    rows += [(f"weights: {part}", sha[:CHECKSUM_CHARACTERS]) for part, sha in result.weights.items()]
    return table(rows)


def _shown(interval: list[float]) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _by_group(by: dict[str, dict[str, Any]]) -> str:
    """A table with a row per group and a column per score."""
    names = list(dict.fromkeys(name for figures in by.values() for name in figures))
    head = "".join(f"<th>{text(name)}" for name in ["", *names])
    rows = []
    for group, figures in by.items():
        cells = "".join(f"<td>{text(number(figures.get(name)))}" for name in names)
        rows.append(f"<tr><td>{text(group)}{cells}")
    return f"<div class=wide><table><tr>{head}{''.join(rows)}</table></div>\n"

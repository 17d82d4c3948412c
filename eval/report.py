"""`report.html`: one file without external parts that shows how well a model did and why it fails.

write_report(out, result, [Curve("Presence", "threshold", "share", {"N_acc": [(0, 1), ...]})], samples, ious)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from assistant.export.charts import Curve, curve_svg, histogram_svg
from assistant.export.html_report import Bound, Panel, Report, Sample, Table, shown, write_report_file
from eval.metrics import PROTOCOLS
from eval.result import Result

__all__ = ["Curve", "Panel", "Sample", "presence_curves", "write_report"]

# What the scores mean, in a line each; docs/scores.md has the same in full.
MEANINGS = {
    "gIoU": "mean over the questions of intersection over union of answer and truth",
    "gIoU_present": "the same over the questions about something that is there",
    "cIoU": "summed intersections over summed unions: large masks count most",
    "ncIoU": "cIoU after every mask was resized to one square",
    "N_acc": "share of what is absent that is called absent",
    "T_acc": "share of what is present that is called present",
    "oracle_gIoU": "gIoU of the best choice among the same proposals",
    "cIoU_present": "cIoU over the questions about something that is there",
    "boundary_F_present": "F score of the answers' outlines, within 2 px",
    "targets_found_50": "share of the targets with an answered mask of IoU 0.5 or more",
    "masks_right_50": "share of the answered masks with a target of IoU 0.5 or more",
    "mIoU": "mean IoU over the classes",
}
HEADLINE_FIELDS = ("gIoU", "cIoU", "ncIoU", "N_acc", "T_acc", "oracle_gIoU")
COSTS = {
    "seconds_per_query": "seconds a question, on an opened image",
    "seconds_per_image": "seconds to open an image",
    "calls_per_query": "calls of the language model a question",
    "tokens_per_query": "tokens written a question",
    "read_tokens_per_query": "tokens read a question",
    "image_tokens_per_query": "tokens of images read a question",
    "passes_per_query": "phrases that a concept segmenter looked for a question",
    "peak_memory_mb": "largest memory of the process, MB",
}
PROTOCOL_FIGURES = "protocols"  # name of the figures that hold the scores of each protocol
INTERVAL_END = "_95"  # of the name of a protocol's interval


def write_report(
    out: str | Path,
    result: Result,
    curves: Iterable[Curve] = (),
    samples: Iterable[Sample] = (),
    ious: Sequence[float] = (),
) -> Path:
    """Write `report.html` whole.

    Args:
        out: The folder of the run.
        result: What was measured.
        curves: To be drawn.
        samples: What a person should look at, group by group; they are taken one at a time.
        ious: The IoU of each answer about something that is there, for a histogram.

    Returns:
        The file.
    """
    plots = [("IoU where something is there", histogram_svg("IoU where something is there", ious))]
    report = Report(
        f"{result.benchmark}, version {result.version}",
        about=_about(result),
        headline=_headline(result),
        bounds=_bounds(result),
        plots=(plots if len(ious) else []) + [(curve.title, curve_svg(curve)) for curve in curves],
        tables=[*_further_scores(result), *_by_group(result.by)],
        costs=Table([], [(words, value) for words, value in _costs(result)]),
        samples=samples,
        failures=[(bad["name"], bad["error"]) for bad in result.bad],
        details=_details(result),
    )
    return write_report_file(Path(out) / "report.html", report)


def presence_curves(result: Result, title: str) -> list[Curve]:
    """N_acc and T_acc over the presence threshold as a curve; [] where the result has none."""
    if not result.curve:
        return []
    lines = {
        "N_acc": [(point["threshold"], point["N_acc"]) for point in result.curve],
        "T_acc": [(point["threshold"], point["T_acc"]) for point in result.curve],
    }
    return [Curve(title, "threshold", "share", lines)]


def _about(result: Result) -> list[str]:
    """What was measured, in a line or two."""
    counted = f"{result.n:,} sample{'' if result.n == 1 else 's'}"
    if result.bad:
        counted += f", {len(result.bad):,} input{'' if len(result.bad) == 1 else 's'} with a fault"
    lines = [f"{counted}, answered by {result.preset}" if result.preset else counted]
    if result.protocol:
        lines.append(f"Protocol: {result.protocol}")
    return lines


def _headline(result: Result) -> Table:
    """The scores with their intervals; where several protocols were counted, a column each."""
    protocols: dict[str, dict[str, Any]] = result.figures.get(PROTOCOL_FIGURES, {})
    rows: list[list[Any]] = []
    if protocols:
        names = list(dict.fromkeys(name for scores in protocols.values() for name in scores))
        for name in names:
            if not name.endswith(INTERVAL_END):
                values = [
                    _with_interval(scores.get(name), scores.get(name + INTERVAL_END))
                    for scores in protocols.values()
                ]
                rows.append([name, *values])
    done = {row[0] for row in rows}
    whole = {name: getattr(result, name) for name in HEADLINE_FIELDS}
    whole |= {name: result.figures.get(name) for name in result.ci95 if name not in whole}
    for name, value in whole.items():
        if value is not None and name not in done:
            told = _with_interval(value, result.ci95.get(name))
            rows.append([name, *[told] * max(1, len(protocols))])  # such a score knows no protocols
    columns = ["score", *(f"protocol {name}" for name in protocols)] if protocols else ["score", "value"]
    for row in rows:
        row.append(MEANINGS.get(row[0], ""))
    if not any(row[-1] for row in rows):
        return Table(columns, [row[:-1] for row in rows])
    note = (
        "The protocols differ in how ignored pixels and empty masks count; see eval/metrics.py."
        if set(protocols) >= set(PROTOCOLS)
        else ""
    )
    return Table([*columns, "what it is"], rows, note=note)


def _with_interval(value: Any, interval: Sequence[float] | None) -> str:
    """A score, with its 95 % interval where there is one."""
    return shown(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _bounds(result: Result) -> list[Bound]:
    """The scores that have an oracle, beside it."""
    pairs = [("gIoU of all questions", result.gIoU, result.oracle_gIoU)]
    largest = [
        value for name, value in result.figures.items() if name.startswith("oracle_gIoU_present@") and value
    ]
    if largest:
        pairs.append(("gIoU where something is there", result.figures.get("gIoU_present"), max(largest)))
    return [
        Bound(name, value, bound)
        for name, value, bound in pairs
        if value is not None and bound is not None and 0 < bound <= 1
    ]


def _further_scores(result: Result) -> list[Table]:
    """The figures that only a benchmark has: single ones, and those that come in groups of the same names."""
    headline = {row[0] for row in _headline(result).rows}
    single = [
        [name, value, MEANINGS.get(name, "")]
        for name, value in result.figures.items()
        if not isinstance(value, dict) and name not in headline
    ]
    single += [
        [name, _with_interval(None, interval)[1:].strip(), "95 % interval"]
        for name, interval in result.ci95.items()
        if interval and name not in headline and name not in result.figures
    ]
    if single and not any(row[-1] for row in single):
        single = [row[:-1] for row in single]
    tables = [Table([], single, "Further scores")] if single else []
    alike: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for name, value in result.figures.items():
        if isinstance(value, dict) and name != PROTOCOL_FIGURES:
            alike.setdefault(tuple(value), {})[name] = value
    for names, groups in alike.items():
        if len(groups) == 1:
            ((title, values),) = groups.items()
            tables.append(Table([], list(values.items()), title))
        else:
            rows = [[group, *values.values()] for group, values in groups.items()]
            tables.append(Table(["", *names], rows, _common_title(list(groups))))
    return tables


def _common_title(names: Sequence[str]) -> str:
    """What the names of several groups have in common: "denials" of "denials: count", "denials: use"."""
    starts = {name.split(":")[0] for name in names}
    return starts.pop() if len(starts) == 1 else ", ".join(names)


def _by_group(by: dict[str, dict[str, Any]]) -> list[Table]:
    """A table with a row per group and a column per score."""
    names = list(dict.fromkeys(name for figures in by.values() for name in figures))
    rows = [[group, *(figures.get(name) for name in names)] for group, figures in by.items()]
    return [Table(["group", *names], rows, "By group")] if rows else []


def _costs(result: Result) -> list[tuple[str, Any]]:
    """What a question took, as far as it was measured."""
    values = [(words, getattr(result, name)) for name, words in COSTS.items()]
    return [(words, value) for words, value in values if value is not None]


def _details(result: Result) -> list[Table]:
    """Where the scores come from, with full checksums."""
    fields = dataclasses.asdict(result)
    settings = [(name, fields[name]) for name in ("benchmark", "version", "protocol", "preset", "commit")]
    weights = list(result.weights.items())
    return [Table([], settings), Table([], weights, "SHA-256 of the weights" if weights else "")]

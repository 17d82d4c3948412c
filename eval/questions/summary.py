"""The scores of many lines of `eval.questions.scoring`: of all questions, and of groups of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from eval.metrics import (
    PROTOCOLS,
    Pair,
    bootstrap_interval,
    c_iou,
    g_iou,
    iou,
    ious,
    n_acc,
    presence_curve,
    t_acc,
)
from eval.query_costs import query_costs
from eval.questions.scoring import ORACLE_PREFIXES
from eval.result import Result, bad_inputs

Line = dict[str, Any]

BOTH_PROTOCOLS = "both"  # on the command line: the "lisa" scores, and those of each protocol beside them
PRECISION_THRESHOLDS = (0.5, 0.7, 0.8, 0.9)  # IoU of Pr@K, as RefCOCO's papers print it
# Groups by the length of a question and by the share of the image that its targets cover.
MAX_WORDS = ((3, "1 to 3"), (7, "4 to 7"), (15, "8 to 15"))
MAX_SHARES = ((0.01, "small"), (0.1, "medium"))


def words_group(question: str) -> str:
    """The group of a question by its length."""
    words = len(question.split())
    return f"words: {next((name for most, name in MAX_WORDS if words <= most), '16 and more')}"


def groups_of(line: Line) -> list[str]:
    """The groups that a scored line belongs to: those of its benchmark, by its targets, and by their size."""
    targets = str(line["targets"]) if line["targets"] < 3 else "3 or more"
    if line["targets"]:
        size = next((name for below, name in MAX_SHARES if line["share"] < below), "large")
    else:
        size = "nothing"
    return [*line["groups"], f"targets: {targets}", f"size: {size}"]


def under_protocol(line: Line, protocol: str) -> Line:
    """A line with the pixel counts and oracles of a protocol in the place of "lisa"'s."""
    other = line["under"].get(protocol, {})
    line = line | other
    if other and line.get("oracle_under"):
        line["oracle"] = line["oracle_under"][protocol]
    return line


def has_oracle(lines: list[Line]) -> bool:
    """Whether a model with proposals answered these lines, rather than a folder of predictions."""
    return any(line["oracle"] or "seconds" in line for line in lines)


def scores(lines: list[Line], protocol: str) -> dict[str, Any]:
    """The scores of a group of lines without errors, under a protocol."""
    lines = [under_protocol(line, protocol) for line in lines]
    pairs = [line["pair"] for line in lines]
    answered_present = [line["said"] for line in lines]
    present = [bool(line["targets"]) for line in lines]
    bounds = []
    if has_oracle(lines):
        bounds = [line["oracle"].get("all", iou(0, 0, protocol)) for line in lines]
    return {
        "n": len(lines),
        "gIoU": g_iou(pairs, protocol),
        "cIoU": c_iou(pairs, protocol),
        "gIoU_present": g_iou([line["pair"] for line in lines if line["targets"]], protocol),
        "N_acc": n_acc(answered_present, present),
        "T_acc": t_acc(answered_present, present),
        "oracle_gIoU": float(np.mean(bounds)) if bounds else None,
    }


def summary(lines: list[Line], protocol: str = "lisa", seed: int = 0) -> Result:
    """The result of a whole run.

    Args:
        lines: The lines of all questions, those with an error too.
        protocol: One of `PROTOCOLS`, or "both": the fields are "lisa"'s, and `figures["protocols"]` holds
            each.
        seed: Seed of the bootstrap intervals.

    Returns:
        The result without the name and version of the benchmark and without its models. N_acc and T_acc count
        questions, not single targets.
    """
    main_protocol = "lisa" if protocol == BOTH_PROTOCOLS else protocol
    good = [line for line in lines if "error" not in line]
    counted = [under_protocol(line, main_protocol) for line in good]
    present = [line for line in counted if line["targets"]]
    absent = [line for line in counted if not line["targets"]]
    whole = scores(good, main_protocol)
    figures = _figures(good, present, absent, main_protocol)
    if protocol == BOTH_PROTOCOLS:
        figures["protocols"] = {p: _protocol_scores(good, p, seed) for p in PROTOCOLS}
    return Result(
        benchmark="",
        version=0,
        protocol=protocol,
        n=len(good),
        gIoU=whole["gIoU"],
        cIoU=whole["cIoU"],
        ncIoU=c_iou([line["normal"] for line in counted], main_protocol),
        N_acc=whole["N_acc"],
        T_acc=whole["T_acc"],
        oracle_gIoU=whole["oracle_gIoU"],
        ci95={
            "gIoU": bootstrap_interval(ious(_pairs(counted), main_protocol), seed),
            "gIoU_present": bootstrap_interval(ious(_pairs(present), main_protocol), seed),
            "N_acc": bootstrap_interval([not line["said"] for line in absent], seed),
            "T_acc": bootstrap_interval([line["said"] for line in present], seed),
        },
        by={name: scores(members, main_protocol) for name, members in sorted(_by_group(good).items())},
        seconds_per_image=_median(line.get("open_seconds") for line in good),
        **query_costs(good),
        figures=figures,
        curve=presence_curve([line["confidence"] for line in good], [bool(line["targets"]) for line in good]),
        bad=bad_inputs(lines, "name") + _troubles(good),
    )


def _figures(good: list[Line], present: list[Line], absent: list[Line], protocol: str) -> dict[str, Any]:
    """The scores that are not fields of `Result`; `present` and `absent` are counted under the protocol."""
    figures: dict[str, Any] = {
        "n_present": len(present),
        "n_absent": len(absent),
        "gIoU_present": g_iou(_pairs(present), protocol),
        "cIoU_present": c_iou(_pairs(present), protocol),
        "boundary_F_present": _mean(line.get("boundary") for line in present),
    }
    present_ious = ious(_pairs(present), protocol)
    figures |= {f"Pr@{t}": _mean(present_ious >= t) for t in PRECISION_THRESHOLDS}
    if has_oracle(good):
        figures |= {
            f"oracle_gIoU_present@{k}": _mean(line["oracle"][k] for line in present) for k in ORACLE_PREFIXES
        }
    targets = sum(line["targets"] for line in good)
    answered = sum(target["present"] for line in good for target in line["answered"])
    return figures | {
        "targets_found_50": sum(line["found"] for line in good) / targets if targets else None,
        "masks_right_50": sum(line["right"] for line in good) / answered if answered else None,
    }


def _protocol_scores(good: list[Line], protocol: str, seed: int) -> dict[str, Any]:
    """The IoUs of all lines under one protocol, and the interval of gIoU."""
    pairs = _pairs([under_protocol(line, protocol) for line in good])
    table = {name: value for name, value in scores(good, protocol).items() if "IoU" in name}
    return table | {"gIoU_95": bootstrap_interval(ious(pairs, protocol), seed)}


def _by_group(lines: list[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        for name in groups_of(line):
            groups.setdefault(name, []).append(line)
    return groups


def _troubles(good: list[Line]) -> list[dict[str, str]]:
    """The lines that were scored although something is wrong with their input."""
    return [
        {"name": line["name"], "error": f"scored, but {line['trouble']}"} for line in good if line["trouble"]
    ]


def _pairs(lines: list[Line]) -> list[Pair]:
    return [line["pair"] for line in lines]


def _mean(values: Iterable[Any]) -> float | None:
    """The mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None

"""The scores of the lines of `eval.benchmarks.semantic`: of all images, and by class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from assistant.errors import BadInput
from eval.label_maps import LabelMaps
from eval.metrics import class_ious, n_acc, presence_curve, summed_counts, t_acc
from eval.query_costs import query_costs
from eval.result import Result, bad_inputs
from eval.settings import EvalSettings

BOOTSTRAP_RESAMPLES = 1000

Line = dict[str, Any]


def total_counts(lines: Iterable[Line], classes: int) -> np.ndarray:
    """The `class_counts` of all lines together, (3, classes)."""
    return summed_counts((line["counts"] for line in lines), classes)


def mean_iou(counts: np.ndarray) -> float | None:
    """mIoU of summed `class_counts` (3, classes), over the classes that occur; None where none does."""
    values = class_ious(counts)
    return None if np.isnan(values).all() else float(np.nanmean(values))


def mean_iou_interval(lines: list[Line], classes: int, seed: int) -> list[float]:
    """The 95 % percentile bootstrap interval of mIoU over images (Efron 1979)."""
    counts = np.stack([total_counts([line], classes) for line in lines])
    rng = np.random.default_rng(seed)
    draws = [
        np.nanmean(class_ious(counts[rng.integers(len(counts), size=len(counts))].sum(0)))
        for _ in range(BOOTSTRAP_RESAMPLES)
    ]
    return [float(v) for v in np.quantile(draws, [0.025, 0.975])]


def summary(lines: list[Line], data: LabelMaps, settings: EvalSettings, has_confidence: bool) -> Result:
    """The result of a whole run, without the benchmark's version and without its models.

    Args:
        lines: The lines of all images, those with an error too.
        data: The data set.
        settings: The settings of the run.
        has_confidence: Whether the answers have a confidence, as a model's have.

    Raises:
        BadInput: No image can be used.
    """
    good = [line for line in lines if "error" not in line]
    if not good:
        raise BadInput(f"no image of {settings.root} can be used: {lines[0]['key']}: {lines[0]['error']}")
    answered_present, confidence, present = _presence(good, data.names)
    opened = [line["open_seconds"] for line in good if "open_seconds" in line]
    return Result(
        benchmark="semantic",
        version=0,
        n=len(good),
        N_acc=n_acc(answered_present, present),
        T_acc=t_acc(answered_present, present),
        figures=_figures(good, data, has_confidence),
        ci95={"mIoU": mean_iou_interval(good, len(data.names), settings.seed)},
        by=_by_class(good, data.names),
        seconds_per_image=float(np.median(opened)) if opened else None,
        **query_costs(good),
        curve=presence_curve(confidence, present) if has_confidence else [],
        bad=bad_inputs(lines),
    )


def _presence(good: list[Line], names: list[str]) -> tuple[list[bool], list[float], list[bool]]:
    """Of every class of every image: whether it was answered present, how surely, and whether it is."""
    answered_present: list[bool] = []
    confidence: list[float] = []
    present: list[bool] = []
    for line in good:
        for k, name in enumerate(names):
            answer = line["said"].get(name, [False, 0.0])
            answered_present.append(answer[0])
            confidence.append(answer[1])
            present.append(line["counts"].get(str(k), [0, 0, 0])[2] > 0)
    return answered_present, confidence, present


def _figures(good: list[Line], data: LabelMaps, has_confidence: bool) -> dict[str, Any]:
    """The scores that are not fields of `Result`."""
    classes = len(data.names)
    counts = total_counts(good, classes)
    right, _, true = counts
    labelled = true.sum() or 1
    oracle_right, oracle_union = _oracle_counts(good, classes)
    bounds = oracle_right[oracle_union > 0] / oracle_union[oracle_union > 0]
    unanswered = [classes - len(line["said"]) for line in good]
    return {
        "mIoU": mean_iou(counts),
        "classes": int((~np.isnan(class_ious(counts))).sum()),
        "pixel_accuracy": float(right.sum() / labelled),
        "mean_class_accuracy": float(np.mean(right[true > 0] / true[true > 0])),
        "uncovered": float(sum(line["uncovered"] for line in good) / labelled),
        "oracle_mIoU": float(bounds.mean()) if len(bounds) else None,
        "classes_not_answered": float(np.mean(unanswered)) if has_confidence else None,
        "phrases_that_are_no_class": sum(len(line.get("strange", [])) for line in good),
        "layout": data.layout,
    }


def _oracle_counts(good: list[Line], classes: int) -> np.ndarray:
    """(2, classes): summed intersections and unions of the best choice of proposals."""
    return summed_counts((line.get("oracle", {}) for line in good), classes, rows=2)


def _by_class(good: list[Line], names: list[str]) -> dict[str, dict[str, float | None]]:
    counts = total_counts(good, len(names))
    values = class_ious(counts)
    oracle_right, oracle_union = _oracle_counts(good, len(names))
    return {
        name: {
            "IoU": None if np.isnan(values[k]) else float(values[k]),
            "oracle_IoU": float(oracle_right[k] / oracle_union[k]) if oracle_union[k] else None,
            "pixels": int(counts[2, k]),
            "right": int(counts[0, k]),
            "predicted": int(counts[1, k]),
        }
        for k, name in enumerate(names)
    }

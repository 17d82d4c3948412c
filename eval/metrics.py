"""The one place where the benchmarks count IoU.

    pairs = [counts(prediction, target, ignore) for ...]      # (intersection, union) in pixels
    g_iou(pairs), c_iou(pairs), bootstrap_interval(ious(pairs))

Two protocols for ReasonSeg-style masks are in use and must not be mixed in one table:

- "lisa" (LISA train_ds.py, utils.py; GSVA, PixelLM): ignored pixels leave prediction and target; a sample
  where both are empty scores 1. LISA adds 1e-5 to the union; here the quotient is exact, which differs by at
  most 1e-5 (a perfect one-pixel mask: 1 instead of .99999).
- "seg-zero" (Seg-Zero evaluation_scripts; StAR's data): ignored pixels become target; a sample where both are
  empty scores 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np

from assistant.errors import BadInput
from assistant.sam import mask_ops

PROTOCOLS = ("lisa", "seg-zero")
NORMALISED_SIDE = 1024  # px of the square to which LLM-Seg's ncIoU resizes every mask
PRESENCE_THRESHOLDS = tuple(k / 20 for k in range(21))  # of `presence_curve`

Pair = tuple[int, int]  # (intersection, union) in pixels


class PresencePoint(TypedDict):
    """One row of `presence_curve`."""

    threshold: float
    N_acc: float | None
    T_acc: float | None


def counts(
    prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None, protocol: str = "lisa"
) -> Pair:
    """Count the pixels of one sample.

    Args:
        prediction: (H, W), nonzero = foreground.
        target: (H, W), nonzero = foreground.
        ignore: (H, W), nonzero = ignored by the protocol; None where every pixel counts.
        protocol: One of `PROTOCOLS`.

    Returns:
        (intersection, union) in pixels.

    Raises:
        BadInput: The sizes differ (a resized mask is another answer, so nothing is resized here), or the
            protocol is unknown.
    """
    prediction, target, ignore = _bool_masks(prediction, target, ignore)
    if protocol not in PROTOCOLS:
        raise BadInput(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    if ignore is not None and protocol == "lisa":
        prediction = prediction & ~ignore
        target = target & ~ignore
    elif ignore is not None:
        target = target | ignore
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))


def normalised_counts(
    prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None, protocol: str = "lisa"
) -> Pair:
    """`counts` after nearest-neighbour resizing to 1024x1024, so that every image has the same weight in a
    sum.

    The ncIoU of LLM-Seg (training.py validate_threshold) is `c_iou` of these pairs. Pixel k of the square is
    pixel floor(k * size / 1024) of the mask, as in torch's `nearest`. Arguments and errors as `counts`; masks
    without pixels raise BadInput too.
    """
    masks = _bool_masks(prediction, target, ignore)
    if 0 in masks[0].shape:
        raise BadInput("a mask without pixels cannot be resized")
    rows, columns = (np.arange(NORMALISED_SIDE) * side // NORMALISED_SIDE for side in masks[0].shape)
    square = np.ix_(rows, columns)
    prediction, target, ignore = masks
    resized_ignore = None if ignore is None else ignore[square]
    return counts(prediction[square], target[square], resized_ignore, protocol)


def _bool_masks(
    prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The masks as (H, W) bool. Raises BadInput where they are not of one size."""
    masks = [None if m is None else np.asarray(m) for m in (prediction, target, ignore)]
    shapes = [m.shape for m in masks if m is not None]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
        raise BadInput(f"prediction, target and ignore must be (H, W) masks of one size, got {shown}")
    first, second, third = (None if m is None else m.astype(bool, copy=False) for m in masks)
    assert first is not None and second is not None
    return first, second, third


def iou(intersection: int, union: int, protocol: str = "lisa") -> float:
    """The quotient of one pair, in [0, 1]; 0 / 0 is 1 under "lisa" and 0 under "seg-zero"."""
    if union == 0:
        return 1.0 if protocol == "lisa" else 0.0
    return intersection / union


def ious(pairs: Sequence[Pair], protocol: str = "lisa") -> np.ndarray:
    """The IoU of N pairs, (N,) float64 in [0, 1]."""
    return np.array([iou(intersection, union, protocol) for intersection, union in pairs], dtype=np.float64)


def g_iou(pairs: Sequence[Pair], protocol: str = "lisa") -> float | None:
    """Mean IoU over samples, in [0, 1]; None for no samples. Not the generalised IoU of boxes."""
    return float(ious(pairs, protocol).mean()) if len(pairs) else None


def c_iou(pairs: Sequence[Pair], protocol: str = "lisa") -> float | None:
    """Summed intersections over summed unions, in [0, 1]; None for no samples; 0 / 0 as in `iou`."""
    if not len(pairs):
        return None
    return iou(sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs), protocol)


def boundary_f(
    prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None, tolerance: float = 2.0
) -> float:
    """How well the outlines of two masks agree: the boundary F measure of DAVIS (Perazzi et al. 2016).

    Precision is the share of the prediction's boundary pixels that lie within `tolerance` of the target's,
    recall the reverse; the score is their harmonic mean. The edge of the image is no boundary.

    Args:
        prediction, target, ignore: As of `counts`; ignored pixels belong to neither mask.
        tolerance: Distance in px.

    Returns:
        A score in [0, 1]; 1 where neither mask has a boundary, 0 where one of them has none.

    Raises:
        BadInput: The sizes differ.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import find_boundaries

    prediction, target, ignore = _bool_masks(prediction, target, ignore)
    if ignore is not None:
        prediction, target = prediction & ~ignore, target & ~ignore
    edges = [find_boundaries(mask, connectivity=1, mode="inner") for mask in (prediction, target)]
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    precision, recall = (
        float((distance_transform_edt(~other)[edge] <= tolerance).mean())
        for edge, other in (edges, reversed(edges))
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def n_acc(answered_present: Sequence[bool], present: Sequence[bool]) -> float | None:
    """Share of questions about something absent that were answered absent (gRefCOCO, ReLA).

    Always answering "absent" scores 1, so it is never printed without `t_acc`.

    Args:
        answered_present: (N,) whether the answer claims that anything is present.
        present: (N,) whether anything is present.

    Returns:
        The share in [0, 1]; None where nothing is absent.
    """
    pairs = zip(answered_present, present, strict=True)
    right = [not answered for answered, is_present in pairs if not is_present]
    return sum(right) / len(right) if right else None


def t_acc(answered_present: Sequence[bool], present: Sequence[bool]) -> float | None:
    """Share of questions about something present that were not answered absent; arguments as `n_acc`.

    None where nothing is present.
    """
    pairs = zip(answered_present, present, strict=True)
    right = [bool(answered) for answered, is_present in pairs if is_present]
    return sum(right) / len(right) if right else None


def presence_curve(
    confidence: Sequence[float], present: Sequence[bool], thresholds: Sequence[float] = PRESENCE_THRESHOLDS
) -> list[PresencePoint]:
    """N_acc and T_acc for other presence thresholds.

    Args:
        confidence: (N,) in [0, 1], that what a question asks for is present.
        present: (N,) whether it is.
        thresholds: The confidence from which a question counts as answered present, one row each.

    Returns:
        A row for each threshold, in their order.
    """
    rows: list[PresencePoint] = []
    for threshold in thresholds:
        answered_present = [value >= threshold for value in confidence]
        rows.append(
            {
                "threshold": float(threshold),
                "N_acc": n_acc(answered_present, present),
                "T_acc": t_acc(answered_present, present),
            }
        )
    return rows


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> list[float] | None:
    """The percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: (N,) one value per sample.
        seed: Seed of the resampling.
        resamples: How often N samples are drawn.
        level: Share of the resampled means inside the interval.

    Returns:
        [low, high]; None for no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return None
    rng = np.random.default_rng(seed)
    # One resample at a time keeps memory flat for a large benchmark.
    means = [values[rng.integers(values.size, size=values.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def box_iou(box: Sequence[float], other_box: Sequence[float]) -> float:
    """IoU of two half-open boxes xyxy in px; 0 where both are without area."""
    return float(mask_ops.box_iou(box, np.asarray([other_box], np.float64))[0])


def class_counts(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of every class of one image.

    Args:
        prediction: (H, W) int, class numbers from 0; any other number is no class.
        truth: (H, W) int, likewise.
        classes: Number of classes.

    Returns:
        (3, classes) int64: pixels of each class that are right, predicted and true. Pixels without a true
        class are dropped; pixels without a predicted one count as missed. (LaSagnA's test_sem.py sends both
        to class 0.)

    Raises:
        BadInput: The sizes differ.
    """
    prediction = np.asarray(prediction)
    truth = np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise BadInput(f"label maps must be (H, W) of one size, got {prediction.shape} and {truth.shape}")
    labelled = (truth >= 0) & (truth < classes)
    predicted = prediction[labelled].astype(np.int64)
    true = truth[labelled].astype(np.int64)
    is_class = (predicted >= 0) & (predicted < classes)
    columns = (true[predicted == true], predicted[is_class], true)
    return np.stack([np.bincount(values, minlength=classes)[:classes] for values in columns])


def class_ious(counts: np.ndarray) -> np.ndarray:
    """The IoU of each class from summed `class_counts` (3, classes).

    Returns:
        (classes,) float64 in [0, 1]; nan where a class is neither true nor predicted.
    """
    right, predicted, true = np.asarray(counts, np.float64)
    union = predicted + true - right
    return np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)


def packed_counts(counts: np.ndarray) -> dict[str, list[int]]:
    """`class_counts` (3, classes) as JSON values: {class number: [right, predicted, true]}.

    Classes without pixels are left out.
    """
    return {str(k): counts[:, k].tolist() for k in np.flatnonzero(counts.any(0))}


def summed_counts(packed: Iterable[dict[str, Any]], classes: int, rows: int = 3) -> np.ndarray:
    """The sum of many `packed_counts`, (rows, classes) int64; `rows`: how many numbers each class has."""
    total = np.zeros((rows, classes), np.int64)
    for by_class in packed:
        for k, numbers in by_class.items():
            total[:, int(k)] += numbers
    return total

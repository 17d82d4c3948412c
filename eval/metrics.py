"""The one place where IoU is counted.

    pairs = [counts(prediction, target, ignore) for ...]      # (intersection, union) in pixels
    g_iou(pairs), c_iou(pairs), bootstrap_interval(ious(pairs))

Two protocols for ReasonSeg-style masks are in use and must not be mixed in one table:

- "lisa" (LISA train_ds.py, utils.py; GSVA, PixelLM): ignored pixels leave prediction and target; a
  sample where both are empty scores 1. LISA adds 1e-5 to the union; here the quotient is exact, which
  differs by at most 1e-5 (a perfect one-pixel mask: 1 instead of .99999).
- "seg-zero" (Seg-Zero evaluation_scripts; StAR's data): ignored pixels become target; a sample where
  both are empty scores 0.
"""

from collections.abc import Sequence

import numpy as np

from assistant.errors import BadInput

PROTOCOLS = ("lisa", "seg-zero")
NORMAL_SIDE = 1024  # LLM-Seg's ncIoU resizes every mask to this square

Pair = tuple[int, int]


def counts(
    prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None, protocol: str = "lisa"
) -> Pair:
    """(intersection, union) in pixels of (H, W) masks, nonzero = foreground; `ignore` is (H, W) or None.

    Raises BadInput where the sizes differ: a resized mask is another answer, so nothing is resized here.
    """
    prediction, target, ignore = _same_size(prediction, target, ignore)
    if protocol not in PROTOCOLS:
        raise BadInput(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    if ignore is not None and protocol == "lisa":
        prediction, target = prediction & ~ignore, target & ~ignore
    elif ignore is not None:
        target = target | ignore
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))


def normal_counts(
    prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None, protocol: str = "lisa"
) -> Pair:
    """`counts` after nearest-neighbour resizing to 1024x1024: every picture weighs the same in the sum.

    The ncIoU of LLM-Seg (training.py validate_threshold) is `c_iou` of these pairs. Pixel k of the square
    is pixel floor(k * size / 1024) of the mask, as torch's `nearest`.
    """
    masks = _same_size(prediction, target, ignore)
    if 0 in masks[0].shape:
        raise BadInput("a mask without pixels cannot be resized")
    rows, columns = (np.arange(NORMAL_SIDE) * side // NORMAL_SIDE for side in masks[0].shape)
    return counts(*(None if m is None else m[rows[:, None], columns] for m in masks), protocol=protocol)


def _same_size(prediction, target, ignore):
    masks = [None if m is None else np.asarray(m) for m in (prediction, target, ignore)]
    sizes = {m.shape for m in masks if m is not None}
    if len(sizes) > 1 or masks[0].ndim != 2:
        shown = ", ".join("x".join(map(str, m.shape)) for m in masks if m is not None)
        raise BadInput(f"prediction, target and ignore must be (H, W) masks of one size, got {shown}")
    return [None if m is None else m.astype(bool, copy=False) for m in masks]


def iou(intersection: int, union: int, protocol: str = "lisa") -> float:
    """Quotient of one pair; 0 / 0 is 1 under "lisa" and 0 under "seg-zero"."""
    if union == 0:
        return 1.0 if protocol == "lisa" else 0.0
    return intersection / union


def ious(pairs: Sequence[Pair], protocol: str = "lisa") -> np.ndarray:
    """(N,) float64 of N pairs."""
    return np.array([iou(i, u, protocol) for i, u in pairs], dtype=np.float64)


def g_iou(pairs: Sequence[Pair], protocol: str = "lisa") -> float | None:
    """Mean IoU over samples, in [0, 1]; None of no sample. Not the generalised IoU of boxes."""
    return float(ious(pairs, protocol).mean()) if len(pairs) else None


def c_iou(pairs: Sequence[Pair], protocol: str = "lisa") -> float | None:
    """Summed intersections over summed unions, in [0, 1]; None of no sample; 0 / 0 as in `iou`."""
    return iou(sum(i for i, _ in pairs), sum(u for _, u in pairs), protocol) if len(pairs) else None


def n_acc(said: Sequence[bool], there: Sequence[bool]) -> float | None:
    """Share of absent questions that were answered absent (gRefCOCO, ReLA); None where nothing is absent.

    said: (N,) whether the answer claims anything present; there: (N,) whether the truth has anything.
    Always answering "absent" scores 1: only ever print it beside `t_acc`.
    """
    answers = [not s for s, t in zip(said, there, strict=True) if not t]
    return sum(answers) / len(answers) if answers else None


def t_acc(said: Sequence[bool], there: Sequence[bool]) -> float | None:
    """Share of questions about something present that were not answered absent; None where there is none."""
    answers = [bool(s) for s, t in zip(said, there, strict=True) if t]
    return sum(answers) / len(answers) if answers else None


def presence_curve(
    confidence: Sequence[float],
    there: Sequence[bool],
    thresholds: Sequence[float] = tuple(k / 20 for k in range(21)),
) -> list[dict]:
    """N_acc and T_acc if a question counted as answered where its confidence is at least the threshold."""
    return [
        {
            "threshold": float(t),
            "N_acc": n_acc([c >= t for c in confidence], there),
            "T_acc": t_acc([c >= t for c in confidence], there),
        }
        for t in thresholds
    ]


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> list[float] | None:
    """[low, high]: the percentile bootstrap interval (Efron 1979) of the mean; None of no value."""
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return None
    rng = np.random.default_rng(seed)
    # One resample at a time keeps memory flat for a large benchmark.
    means = [values[rng.integers(values.size, size=values.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def box_of(mask: np.ndarray) -> list[int] | None:
    """The tight box xyxy of an (H, W) mask's pixels, the right and lower edge exclusive; None of an empty mask."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1] if len(xs) else None


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes xyxy, in px; 0 where both are without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(inter / union) if union > 0 else 0.0


def class_counts(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(3, classes) int64: pixels of each class that are right, predicted and true, of two (H, W) maps of class numbers.

    Any other number is no class. Pixels without a true class are dropped; pixels without a predicted one count as
    missed. (LaSagnA's test_sem.py sends both to class 0.)
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise BadInput(f"label maps must be (H, W) of one size, got {prediction.shape} and {truth.shape}")
    labelled = (truth >= 0) & (truth < classes)
    said, true = prediction[labelled].astype(np.int64), truth[labelled].astype(np.int64)
    known = (said >= 0) & (said < classes)
    count = lambda values: np.bincount(values, minlength=classes)[:classes]
    return np.stack([count(true[said == true]), count(said[known]), count(true)])


def class_ious(counts: np.ndarray) -> np.ndarray:
    """(classes,) float64 of summed `class_counts` (3, classes); nan where a class is neither true nor predicted."""
    right, predicted, true = np.asarray(counts, np.float64)
    union = predicted + true - right
    return np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)

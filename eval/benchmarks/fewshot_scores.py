"""The scores of few-shot segmentation: mIoU and FB-IoU of every arm, their differences and intervals.

scores = score_arms(lines, seed=0)                 # lines: of samples.jsonl, without errors
scores.measured["text"], scores.resampled["text"]  # (folds, 2), (resamples, folds, 2)
figures, ci95, by = summarise(lines, scores)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ARMS = ("prototype", "plain", "text")
# The differences to report: of each pair the second arm less the first.
ARM_PAIRS = (("prototype", "plain"), ("prototype", "text"), ("plain", "text"))
SCORE_NAMES = ("mIoU", "FB-IoU")
RESAMPLES = 2000

Line = dict[str, Any]


class CountTable:
    """The summed pixel counts of one fold and arm by query image, so that images can be resampled.

    Attributes:
        classes: (images, categories, 2), intersection and union of each category.
        both: (images, 2, 2), intersection and union of the foreground and of the background.
    """

    def __init__(self, lines: Sequence[Line], arm: str):
        images = sorted({line["query"] for line in lines})
        categories = sorted({line["category"] for line in lines})
        self.classes = np.zeros((len(images), len(categories), 2))
        self.both = np.zeros((len(images), 2, 2))
        for line in lines:
            row = images.index(line["query"])
            counts = line["arms"][arm]
            self.classes[row, categories.index(line["category"])] += counts["pair"]
            self.both[row] += counts["pair"], counts["background"]

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Score resampled images.

        Args:
            weights: (R, images), how often each image counts.

        Returns:
            (R, 2) float, mIoU and FB-IoU in [0, 1].
        """
        return np.stack([_mean_iou(self.classes, weights), _mean_iou(self.both, weights)], 1)


def _mean_iou(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of counts (images, classes, 2), summed with weights (R, images) -> (R,)."""
    sums = np.tensordot(weights, counts, 1)
    ious = np.where(sums[..., 1] > 0, sums[..., 0] / np.maximum(sums[..., 1], 1), np.nan)
    return np.nanmean(ious, 1)


@dataclass(frozen=True)
class ArmScores:
    """Scores of every arm.

    Attributes:
        folds: The folds, in order.
        measured: {arm: (folds, 2)}, mIoU and FB-IoU.
        resampled: {arm: (resamples, folds, 2)}, the same of bootstrap resamples of the query images, which
            are the same resamples in every arm.
    """

    folds: list[int]
    measured: dict[str, np.ndarray]
    resampled: dict[str, np.ndarray]


def score_arms(lines: Sequence[Line], seed: int, resamples: int = RESAMPLES) -> ArmScores:
    """Score every arm on the lines of samples.jsonl that have no error."""
    rng = np.random.default_rng(seed)
    folds = sorted({line["fold"] for line in lines})
    measured: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    resampled: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for fold in folds:
        of_fold = [line for line in lines if line["fold"] == fold]
        images = len({line["query"] for line in of_fold})
        weights = rng.multinomial(images, np.full(images, 1 / images), resamples)
        for arm in ARMS:
            table = CountTable(of_fold, arm)
            measured[arm].append(table.scores(np.ones((1, images)))[0])
            resampled[arm].append(table.scores(weights))
    return ArmScores(
        folds,
        {arm: np.stack(values) for arm, values in measured.items()},
        {arm: np.stack(values, 1) for arm, values in resampled.items()},
    )


def summarise(
    lines: Sequence[Line], scores: ArmScores
) -> tuple[dict[str, float], dict[str, list[float] | None], dict[str, dict[str, Any]]]:
    """The scores as `eval.result.Result` holds them.

    Args:
        lines: The lines that were scored.
        scores: Their scores.

    Returns:
        Figures (means over folds, and differences of arms), their 95 % intervals, and the scores by fold and
        by category.
    """
    figures: dict[str, float] = {}
    ci95: dict[str, list[float] | None] = {}
    for arm in ARMS:
        for k, name in enumerate(SCORE_NAMES):
            figures[f"{arm} {name}"] = float(scores.measured[arm][:, k].mean())
            ci95[f"{arm} {name}"] = _interval(scores.resampled[arm][:, :, k].mean(1))
    for first, second in ARM_PAIRS:
        name = f"{second} - {first} mIoU"
        figures[name] = figures[f"{second} mIoU"] - figures[f"{first} mIoU"]
        difference = scores.resampled[second] - scores.resampled[first]
        ci95[name] = _interval(difference[:, :, 0].mean(1))
    return figures, ci95, _by_fold(lines, scores) | _by_category(lines)


def _by_fold(lines: Sequence[Line], scores: ArmScores) -> dict[str, dict[str, Any]]:
    """The scores of each fold."""
    by: dict[str, dict[str, Any]] = {}
    for n, fold in enumerate(scores.folds):
        of_fold: dict[str, Any] = {"n": sum(line["fold"] == fold for line in lines)}
        for arm in ARMS:
            for k, name in enumerate(SCORE_NAMES):
                of_fold[f"{arm} {name}"] = float(scores.measured[arm][n, k])
        by[f"fold {fold}"] = of_fold
    return by


def _by_category(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """The scores of each category, over all folds."""
    by: dict[str, dict[str, Any]] = {}
    for name in sorted({line["category"] for line in lines}):
        of_category = [line for line in lines if line["category"] == name]
        row: dict[str, Any] = {"n": len(of_category)}
        for arm in ARMS:
            intersection, union = np.sum([line["arms"][arm]["pair"] for line in of_category], 0)
            row[f"{arm} mIoU"] = float(intersection / max(1, union))
        by[f"category: {name}"] = row
    return by


def _interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of resampled values (R,): [low, high]."""
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]

"""The scores of the one-shot benchmark: mIoU of every arm, paired differences, and their intervals.

scores = score_arms(lines, classes=81, runs=[0, 1], seed=0)     # lines: of samples.jsonl, without errors
scores.measured["tuned"], scores.interval("tuned"), scores.differences()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.benchmarks.oneshot_maps import REFINED_RUN, REFINEMENTS, WITHOUT_MATCH
from eval.metrics import class_ious, summed_counts

RESAMPLES = 500
REFINED_ARMS = ("ranked layers", f"tuned {REFINED_RUN}")
# (arm, the arm that it is compared with)
COMPARISONS = (
    ("ranked layers", "all layers"),
    ("ranked heads", "all layers"),
    ("tuned", "ranked layers"),
    ("tuned", "all layers"),
    ("ranked layers" + WITHOUT_MATCH, "all layers" + WITHOUT_MATCH),
    ("ranked heads" + WITHOUT_MATCH, "all layers" + WITHOUT_MATCH),
    ("tuned" + WITHOUT_MATCH, "ranked layers" + WITHOUT_MATCH),
    *((f"{arm}, {refinement}", arm) for arm in REFINED_ARMS for refinement in REFINEMENTS),
)

Line = dict[str, Any]


def mean_iou(counts: np.ndarray) -> float:
    """Mean IoU of summed `class_counts` (3, classes) over the classes that occur, with the background."""
    return float(np.nanmean(class_ious(counts)))


def image_mean_iou(line: Line, arm: str, classes: int) -> float:
    """The mean IoU of one image alone."""
    return mean_iou(summed_counts([line["arms"][arm]], classes))


@dataclass(frozen=True)
class OneShotScores:
    """Scores of every group of arms. The tuned runs are one group, whose score is their mean.

    Attributes:
        counts: {arm: (images, 3, classes)}, `eval.metrics.class_counts` of each image.
        groups: {group: its arms}.
        runs: The tuned runs.
        measured: {group: mIoU in [0, 1]}.
        resampled: {group: (resamples,)}, mIoU of bootstrap resamples of the images, the same in every group.
    """

    counts: dict[str, np.ndarray]
    groups: dict[str, list[str]]
    runs: list[int]
    measured: dict[str, float]
    resampled: dict[str, np.ndarray]

    def interval(self, group: str) -> list[float]:
        """The 95 % interval of a group's mIoU."""
        return _interval(self.resampled[group])

    def differences(self) -> dict[str, list[float]]:
        """{"arm - other arm": [difference, low, high]} of `COMPARISONS`, paired, with 95 % intervals."""
        differences = {}
        for arm, other in COMPARISONS:
            if arm in self.groups and other in self.groups:
                difference = self.measured[arm] - self.measured[other]
                interval = _interval(self.resampled[arm] - self.resampled[other])
                differences[f"{arm} - {other}"] = [difference, *interval]
        return differences

    def of_runs(self) -> list[float]:
        """The mIoU of each tuned run."""
        return [mean_iou(self.counts[f"tuned {run}"].sum(0)) for run in self.runs]

    def by_class(self, group: str) -> np.ndarray:
        """The IoU of each class, the mean over a group's arms: (classes,) float, nan if it never occurs."""
        ious = [class_ious(self.counts[arm].sum(0)) for arm in self.groups[group]]
        return np.ma.masked_invalid(ious).mean(0).filled(np.nan)

    def classes_that_occur(self) -> int:
        """Number of classes, with the background, that are true or predicted anywhere."""
        return int((~np.isnan(class_ious(self.counts["all layers"].sum(0)))).sum())


def score_arms(lines: Sequence[Line], classes: int, runs: list[int], seed: int) -> OneShotScores:
    """Score every arm.

    Args:
        lines: The lines of samples.jsonl that have no error.
        classes: Number of classes with the background.
        runs: The tuned runs.
        seed: Of the bootstrap.
    """
    arms = list(lines[0]["arms"])
    counts = {arm: np.stack([summed_counts([line["arms"][arm]], classes) for line in lines]) for arm in arms}
    groups = _groups(arms, runs)
    rng = np.random.default_rng(seed)
    resamples = [rng.integers(len(lines), size=len(lines)) for _ in range(RESAMPLES)]

    def group_score(group: str, images: np.ndarray) -> float:
        return float(np.mean([mean_iou(counts[arm][images].sum(0)) for arm in groups[group]]))

    return OneShotScores(
        counts=counts,
        groups=groups,
        runs=runs,
        measured={group: group_score(group, np.arange(len(lines))) for group in groups},
        resampled={group: np.array([group_score(group, images) for images in resamples]) for group in groups},
    )


def _groups(arms: list[str], runs: list[int]) -> dict[str, list[str]]:
    """{group: its arms}: each training-free arm, all tuned runs together, each refinement of a tuned run."""
    groups = {arm: [arm] for arm in arms if not arm.startswith("tuned")}
    if runs:
        for ending in ("", WITHOUT_MATCH):
            groups[f"tuned{ending}"] = [f"tuned {run}{ending}" for run in runs]
        refined = f"tuned {REFINED_RUN}"
        for arm in arms:
            if arm.split(",")[0] == refined and not arm.endswith(WITHOUT_MATCH):
                groups[arm] = [arm]
    return groups


def _interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of resampled values (R,): [low, high]."""
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]

"""The single instances within a target's mask, and how masks lie to each other.

    found = instances(proposals, target)             # [Instance(mask, proposals)], each cup of "cups"
    min(found, key=lambda instance: misfit(instance.mask, "left"))
    distance(mask, region, "above")                  # px; None where the mask lies elsewhere

Masks are (H, W) bool and not empty; distances are in px between the centres of mass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assistant.answer import Target
from assistant.dialogue.followup_actions import Criterion, Direction
from assistant.grammar import is_countable
from assistant.sam.instances import in_reading_order, separate
from assistant.sam.proposals import Proposals

# Share of the smaller of two masks that lies in the other, from which both are taken for the same instance.
SAME_INSTANCE_OVERLAP = 0.5
# Share of a proposal that lies in an instance, from which it is a proposal of the instance.
MIN_PROPOSAL_SHARE_INSIDE = 0.5


@dataclass
class Instance:
    """One object of a category.

    Attributes:
        mask: (H, W) bool.
        proposals: Indices of the target's proposals that lie in it, which may not cover it.
    """

    mask: np.ndarray
    proposals: list[int]


def instances(proposals: Proposals, target: Target) -> list[Instance]:
    """The instances of a target, each with the target's proposals that lie in it.

    Args:
        proposals: The proposals of the image.
        target: A present target. Where it has a single instance, as one drawn by hand or read from a file of
            an earlier version may, its connected parts are told apart.

    Returns:
        At least one instance, in reading order.
    """
    assert target.mask is not None
    masks = target.instances
    if len(masks) == 1 and is_countable(target.phrase):
        masks = in_reading_order(separate(target.mask, proposals))
    if len(masks) == 1:
        return [Instance(target.mask, list(target.proposals))]
    return [
        Instance(
            mask, [i for i in target.proposals if share(proposals.mask(i), mask) >= MIN_PROPOSAL_SHARE_INSIDE]
        )
        for mask in masks
    ]


def distinct(proposals: Proposals, indices: Sequence[int], rejected: Sequence[np.ndarray] = ()) -> list[int]:
    """Those of some proposals, in their order, that show another instance than all before them.

    Args:
        proposals: The proposals of the image.
        indices: Indices of the proposals to choose from.
        rejected: Masks (H, W) bool whose instances are left out as well.

    Returns:
        The indices that remain.
    """
    remaining: list[int] = []
    masks = list(rejected)
    for index in indices:
        mask = proposals.mask(index)
        if all(overlap(mask, other) < SAME_INSTANCE_OVERLAP for other in masks):
            remaining.append(index)
            masks.append(mask)
    return remaining


def misfit(mask: np.ndarray, criterion: Criterion) -> float:
    """How badly a mask fits a criterion such as "left" or "smaller"; the least value is what is meant."""
    if criterion in ("smaller", "smallest"):
        return float(mask.sum())
    if criterion in ("larger", "largest"):
        return -float(mask.sum())
    if criterion in ("tallest", "shortest"):
        height = float(np.ptp(np.flatnonzero(mask.any(1))))
        return height if criterion == "shortest" else -height
    y, x = centre(mask)
    if criterion == "middle":
        return float(np.hypot(y - mask.shape[0] / 2, x - mask.shape[1] / 2))
    return {"left": x, "right": -x, "top": y, "bottom": -y}[criterion]


def distance(mask: np.ndarray, region: np.ndarray, direction: Direction) -> float | None:
    """How far a mask is from a region, if it lies in that direction of it.

    Args:
        mask: (H, W) bool.
        region: (H, W) bool.
        direction: "near" for any direction. For the others the mask's centre must lie within about 63 degrees
            of the direction: not more than twice as far to the side as ahead.

    Returns:
        The distance of the centres in px; None where the mask lies elsewhere.
    """
    (y, x), (region_y, region_x) = centre(mask), centre(region)
    right, down = x - region_x, y - region_y
    ahead, aside = {
        "near": (1.0, 0.0),
        "left": (-right, abs(down)),
        "right": (right, abs(down)),
        "above": (-down, abs(right)),
        "below": (down, abs(right)),
    }[direction]
    return float(np.hypot(right, down)) if ahead > 0 and ahead >= aside / 2 else None


def centre(mask: np.ndarray) -> tuple[float, float]:
    """The centre of mass (y, x) of a mask in px."""
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())


def share(part: np.ndarray, whole: np.ndarray) -> float:
    """The share of `part` that lies in `whole`, in [0, 1]; 0 for an empty part."""
    return float((part & whole).sum() / max(1, part.sum()))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """The share of the smaller of two masks that lies in the other, in [0, 1]."""
    return float((first & second).sum() / max(1, min(first.sum(), second.sum())))

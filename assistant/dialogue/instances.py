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
from assistant.sam.proposals import Proposals

# Share of the smaller of two masks that lies in the other, from which both are taken for the same instance.
SAME_INSTANCE_OVERLAP = 0.5
# Area of a connected part, relative to the largest one, from which it counts as an instance.
MIN_INSTANCE_AREA_RATIO = 0.05
# Share of a proposal that must lie in a target's mask for the proposal to count as part of the target.
MIN_PROPOSAL_SHARE_INSIDE = 0.9


@dataclass
class Instance:
    """One object of a category.

    Attributes:
        mask: (H, W) bool.
        proposals: Indices of the proposals whose union is the mask; empty where it is a part of a mask.
    """

    mask: np.ndarray
    proposals: list[int]


def instances(proposals: Proposals, target: Target) -> list[Instance]:
    """The instances that a target's mask is made of.

    They are the target's proposals, best first, without those that mostly lie in an earlier one. Where that
    leaves fewer than two, they are the mask's connected parts, without splinters.

    Args:
        proposals: The proposals of the image.
        target: A present target.

    Returns:
        At least one instance; the target's whole mask where it cannot be taken apart.
    """
    from scipy import ndimage

    assert target.mask is not None
    inside = [
        i for i in target.proposals if share(proposals.mask(i), target.mask) > MIN_PROPOSAL_SHARE_INSIDE
    ]
    separate = distinct(proposals, inside)
    if len(separate) > 1:
        return [Instance(proposals.mask(i), [i]) for i in separate]
    parts, count = ndimage.label(target.mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = [k for k in range(count) if areas[k] >= MIN_INSTANCE_AREA_RATIO * areas.max()]
    if len(large) < 2:
        return [Instance(target.mask, list(target.proposals))]
    return [Instance(parts == k + 1, []) for k in large]


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

"""Takes a mask of several objects apart, and keeps the parts and the whole together.

    parts = separate(mask, proposals, wholeness)  # [(H, W) bool, ...]: each cup of "the cups"
    parts = fitted(parts, other_mask)             # the same parts, whose union is now `other_mask`
    parts = in_reading_order(parts)

Masks are (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assistant.sam.mask_ops import crop_around, encode_rle, rle_containment

if TYPE_CHECKING:  # the commands' help does without torch
    from assistant.sam.proposals import Proposals

# The constants were chosen on 71 photos of COCO and VOC that taught the pocket preset nothing, with its
# proposals. Given the right masks, the count of a category with one instance is right in .96 of 104 cases,
# with two to six in .52 of 48; of the preset's own masks with an IoU of .4 or more, in .85 of 79 and in .35
# of 31 (a split wholeness of .65: .83 and .45, but parts of one person become people). What it misses are
# mostly instances that no proposal shows by itself.

# Area of a connected part, relative to the largest one, from which it is an instance by itself ...
MIN_PART_AREA_RATIO = 0.2
# ... and of one that a proposal shows, whose wholeness is at least this share of the surest one's.
MIN_SHOWN_AREA_RATIO = 0.03
MIN_SHOWN_WHOLENESS = 0.35
MIN_SHOWN_SHARE = 0.5  # of the part in the proposal, and of the proposal in the part
# A connected part is split into proposals whose wholeness is at least this share of the surest one's, and
# that cover so much of it.
MIN_SPLIT_WHOLENESS = 0.8
MIN_SPLIT_COVERAGE = 0.5
MIN_SHARE_INSIDE = 0.8  # of a proposal in the connected part
MIN_SHARE_NESTED = 0.7  # of a proposal in another one, from which it may be one of those that replace it
MAX_SHARE_COMMON = 0.2  # of the smaller of two instances, that lies in both
MAX_SHARE_SEPARATE = 0.5  # of the smaller of two masks that lies in both, above which they show one object
# What a proposal is worth: wholeness x share of the part's area ** AREA_POWER, less INSTANCE_COST, so that
# several small ones replace a large one only where they are better.
AREA_POWER = 0.75
INSTANCE_COST = 0.06


@dataclass
class _Candidate:
    """A proposal that may be one of the instances.

    Attributes:
        mask: (h, w) bool, in the crop around the mask that is taken apart.
        wholeness: In [0, 1], relative to that of the surest candidate.
    """

    mask: np.ndarray
    wholeness: float


def separate(
    mask: np.ndarray, proposals: Proposals, wholeness: Sequence[float] | np.ndarray | None = None
) -> list[np.ndarray]:
    """Take a mask apart into instances.

    Its connected parts are instances, but for crumbs, which go to their neighbours. A part is split into
    proposals that lie in it, where these are likely whole objects and explain most of it better than a larger
    proposal does.

    Args:
        mask: (H, W) bool.
        proposals: The N proposals of the image.
        wholeness: (N,) in [0, 1], how likely each proposal is one whole object of the kind that the mask
            covers; None where nothing is known of that: then no connected part is split.

    Returns:
        At least one mask (H, W) bool; their union is `mask`, and no two of them overlap.
    """
    from scipy import ndimage

    box = crop_around(mask)
    if box is None:
        return [mask]
    inside = mask[box]
    labels, count = ndimage.label(inside, np.ones((3, 3)))
    can_split = wholeness is not None
    quality = np.asarray(wholeness if can_split else proposals.predicted_iou)
    candidates = _candidates(mask, proposals, quality, box) if can_split or count > 1 else []
    if count == 1 and not candidates:
        return [mask]
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    instances: list[np.ndarray] = []
    for label in range(1, count + 1):
        ratio = areas[label] / areas[1:].max()
        if ratio < MIN_SHOWN_AREA_RATIO:
            continue
        part = labels == label
        if ratio >= MIN_PART_AREA_RATIO or _is_shown(part, candidates):
            instances += _split(part, candidates) if can_split else [part]
    whole = []
    for instance in instances:
        whole.append(np.zeros(mask.shape, bool))
        whole[-1][box] = instance
    return fitted(whole, mask)


def _candidates(
    mask: np.ndarray, proposals: Proposals, wholeness: np.ndarray, box: tuple[slice, slice]
) -> list[_Candidate]:
    """The proposals that mostly lie in a mask, cut to the box around it.

    Their wholeness becomes relative to the surest of them: models are surer of photos that they were trained
    on, and of one kind of object than of another.
    """
    likely = [int(k) for k in np.flatnonzero(wholeness > 0)]
    shares = rle_containment([proposals.rles[k] for k in likely], [encode_rle(mask)])
    found = []
    for k, share in zip(likely, shares[:, 0] if likely else [], strict=True):
        if share >= MIN_SHOWN_SHARE:
            found.append(_Candidate(np.ascontiguousarray(proposals.mask(k)[box]), float(wholeness[k])))
    surest = max((candidate.wholeness for candidate in found), default=1.0)
    for candidate in found:
        candidate.wholeness /= surest
    return found


def _is_shown(part: np.ndarray, candidates: Sequence[_Candidate]) -> bool:
    """Whether a proposal that is likely a whole object shows a connected part (h, w) bool."""
    for candidate in candidates:
        if candidate.wholeness >= MIN_SHOWN_WHOLENESS:
            common = (candidate.mask & part).sum()
            if common >= MIN_SHOWN_SHARE * max(part.sum(), candidate.mask.sum()):
                return True
    return False


def _split(part: np.ndarray, candidates: Sequence[_Candidate]) -> list[np.ndarray]:
    """A connected part (h, w) bool as the proposals that explain it best, or whole."""
    area = part.sum()
    masks: list[np.ndarray] = []
    worth: list[float] = []
    sure: list[bool] = []
    for candidate in candidates:
        cut = candidate.mask & part
        value = candidate.wholeness * (cut.sum() / area) ** AREA_POWER - INSTANCE_COST
        if value > 0 and cut.sum() >= MIN_SHARE_INSIDE * candidate.mask.sum():
            masks.append(cut)
            worth.append(value)
            sure.append(candidate.wholeness >= MIN_SPLIT_WHOLENESS)
    chosen = [k for k in _most_worth(masks, worth) if sure[k]]
    covered = np.logical_or.reduce([masks[k] for k in chosen]) if chosen else np.zeros_like(part)
    if len(chosen) < 2 or covered.sum() < MIN_SPLIT_COVERAGE * area:
        return [part]
    taken = np.zeros_like(part)
    instances = []
    for k in sorted(chosen, key=lambda k: int(masks[k].sum())):  # what two have in common is the smaller's
        instances.append(masks[k] & ~taken)
        taken |= masks[k]
    return instances


def _most_worth(masks: Sequence[np.ndarray], worth: Sequence[float]) -> list[int]:
    """Indices of masks (h, w) bool that hardly overlap and are worth much together.

    From the smallest mask up, each is replaced by masks within it where these are worth more.
    """
    if not masks:
        return []
    flat = np.array([mask.ravel() for mask in masks], np.float32)
    common = flat @ flat.T
    areas = common.diagonal()
    clash = common > MAX_SHARE_COMMON * np.minimum(areas[:, None], areas)
    nested = common >= MIN_SHARE_NESTED * areas[:, None]  # [i, j]: i lies in j
    best = {k: ([k], worth[k]) for k in range(len(masks))}

    def without_clashes(indices: Sequence[int]) -> list[int]:
        chosen: list[int] = []
        for k in sorted(indices, key=lambda k: -best[k][1]):
            new = [j for j in best[k][0] if j not in chosen]
            if not clash[np.ix_(new, chosen)].any():
                chosen += new
        return chosen

    order = [int(k) for k in np.argsort(areas, kind="stable")]
    for place, k in enumerate(order):
        within = without_clashes([j for j in order[:place] if nested[j, k]])
        value = sum(worth[j] for j in within)
        if value > worth[k]:
            best[k] = within, value
    return without_clashes(order)


def merged(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Masks (H, W) bool of objects that were pointed at one by one, without repetitions.

    Of two that mostly lie in each other, the union stays, in the place of the first.
    """
    objects: list[np.ndarray] = []
    for part in parts:
        same = [k for k, other in enumerate(objects) if _share_common(part, other) > MAX_SHARE_SEPARATE]
        for k in reversed(same):
            part = part | objects[k]
        objects = [other for k, other in enumerate(objects) if k not in same]
        objects.insert(min(same, default=len(objects)), part)
    return objects


def _share_common(first: np.ndarray, second: np.ndarray) -> float:
    """The share of the smaller of two masks that lies in the other, in [0, 1]."""
    return float((first & second).sum() / max(1, min(first.sum(), second.sum())))


def fitted(parts: Sequence[np.ndarray], mask: np.ndarray) -> list[np.ndarray]:
    """Parts of a mask, changed as little as possible so that their union is the mask.

    What lies outside of the mask is cut off. What no part covers goes to the part that is nearest.

    Args:
        parts: (H, W) bool each; they may overlap.
        mask: (H, W) bool.

    Returns:
        At least one part, in the order given, none of them empty unless the mask is; the mask itself where no
        part has a pixel in it.
    """
    if len(parts) < 2:
        return [mask]
    cut = [part & mask for part in parts]
    cut = [part for part in cut if part.any()]
    if len(cut) < 2:
        return [mask]
    rest = mask & ~np.logical_or.reduce(cut)
    if rest.any():
        nearest = _nearest(cut, rest)
        cut = [part | (nearest == k) for k, part in enumerate(cut)]
    return cut


def _nearest(parts: Sequence[np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """(H, W) int: for each of some pixels the index of the nearest part, -1 elsewhere."""
    from scipy import ndimage

    owner = np.full(pixels.shape, -1)
    for k, part in enumerate(parts):
        owner[part] = k
    rows, columns = ndimage.distance_transform_edt(owner < 0, return_distances=False, return_indices=True)
    return np.where(pixels, owner[rows, columns], -1)


def in_reading_order(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Masks from left to right, or from top to bottom where they stand above each other.

    That is decided by the axis along which their centres lie further apart. Empty masks come last.
    """
    centres = [_centre(part) for part in parts]
    known = np.array([centre for centre in centres if centre is not None], float).reshape(-1, 2)
    if len(known) < 2:
        return list(parts)
    down, right = np.ptp(known, axis=0)
    axis = 0 if down > right else 1
    places = [np.inf if centre is None else centre[axis] for centre in centres]
    return [parts[k] for k in np.argsort(places, kind="stable")]


def _centre(mask: np.ndarray) -> tuple[float, float] | None:
    """The centre of mass (y, x) in px; None for an empty mask."""
    rows, columns = np.nonzero(mask)
    return (float(rows.mean()), float(columns.mean())) if len(rows) else None

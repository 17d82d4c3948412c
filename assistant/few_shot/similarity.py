"""Where a query image resembles reference masks and a label: similarity maps, all from frozen features.

    maps = reference_similarity(query, references, masks, coverage)     # four maps (B, h, w)
    heat = label_similarity(features.joint, extractor.embed_label("mug"), (32, 32))

`assistant.few_shot.match_inputs` stacks them into what the prompt encoder reads.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# A cell counts as inside a mask where the mask covers half of it, or, for a mask too small to fill any cell,
# this share of what it covers of its fullest cell.
MIN_INSIDE_COVERAGE = 0.5
MIN_SHARE_OF_FULLEST = 0.6
# The two means that a level is measured against are at least this far apart, in cosine.
MIN_SEPARATION = 0.02


class MapChannel(IntEnum):
    """Channels of `MatchInputs.maps`, in the order that trained weights expect.

    SAM_* are computed from SAM's own features, LABEL* from the similarity to the label, all others from the
    patches. *_SCALED are stretched over [0, 1]. Those from LABEL on exist only for episodes with labels.
    """

    BEST = 0
    BEST_SCALED = 1
    CONTRAST = 2
    LEVEL = 3
    SAM_CONTRAST = 4
    SAM_LEVEL = 5
    SEPARATION = 6
    SAM_SEPARATION = 7
    COVERAGE = 8  # the share of each cell that the image covers
    LABEL = 9
    LABEL_SCALED = 10
    LABEL_LEVEL = 11
    LABEL_SEPARATION = 12


IMAGE_MAPS = int(MapChannel.LABEL)  # number of the channels that need no label
LABEL_MAPS = len(MapChannel) - IMAGE_MAPS  # number of those that do


class SimilarityMaps(NamedTuple):
    """How similar each cell of B queries is to their references.

    Attributes:
        best: (B, h, w) in [-1, 1], cosine with the most similar cell inside any mask: VRP-SAM's pseudo mask.
        contrast: (B, h, w), cosine with the mean feature inside the masks less that with the mean feature
            outside them (PANet, Wang et al. 2019, arXiv 1908.06391). The surroundings of an object often
            resemble those of the next one, which `best` alone cannot tell.
        level: (B, h, w) in [-1, 2], `contrast` on the references' own scale; see `relative_to_references`.
        separation: (B, h, w), the same number everywhere; see `relative_to_references`.
    """

    best: Tensor
    contrast: Tensor
    level: Tensor
    separation: Tensor


def reference_similarity(
    query: Tensor, references: Tensor, masks: Tensor, coverage: Tensor
) -> SimilarityMaps:
    """Compare queries with their references. Several references act as one longer memory.

    Args:
        query: (B, C, h, w) float, features of unit length.
        references: (B, K, C, h, w) float, features of unit length.
        masks: (B, K, h, w) in [0, 1], the share of each reference cell that lies inside the mask.
        coverage: (B, K, h, w) in [0, 1], the share of each reference cell that the image covers.

    Returns:
        The maps. `level` and `separation` can be used without any training.
    """
    batch, _, _, height, width = references.shape
    memory = references.transpose(1, 2).flatten(2)  # (B, C, K * h * w)
    inside = masks.flatten(1)  # (B, K * h * w)
    outside = (coverage.flatten(1) - inside).clamp(min=0)
    threshold = (inside.amax(1, keepdim=True) * MIN_SHARE_OF_FULLEST).clamp(max=MIN_INSIDE_COVERAGE)
    best = torch.stack(
        [
            (cells[:, chosen].T @ image.flatten(1)).amax(0)
            for image, cells, chosen in zip(query, memory, inside >= threshold, strict=True)
        ]
    )
    direction = _mean_direction(memory, inside) - _mean_direction(memory, outside)
    contrast = torch.einsum("bchw,bc->bhw", query, direction)
    reference_contrast = torch.einsum("bcn,bc->bn", memory, direction)
    level, separation = relative_to_references(contrast, reference_contrast, inside, outside)
    return SimilarityMaps(best.view(batch, height, width), contrast, level, separation)


def _mean_direction(memory: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of features (B, C, N), weights (B, N), scaled to unit length -> (B, C)."""
    return F.normalize((memory @ weights[..., None])[..., 0], dim=1)


def relative_to_references(
    query_map: Tensor, reference_values: Tensor, inside: Tensor, outside: Tensor
) -> tuple[Tensor, Tensor]:
    """Put a map of the queries on the scale of the references' own values.

    Args:
        query_map: (B, h, w) float.
        reference_values: (B, N) float, the same quantity in the cells of the references.
        inside: (B, N) in [0, 1], weight of each cell inside the masks.
        outside: (B, N) in [0, 1], weight of each cell outside them.

    Returns:
        The level, (B, h, w) in [-1, 2]: 1 is the references' mean inside their masks, 0 their mean outside.
        And the separation, (B, h, w) with one number per episode: how far these two means are apart. A
        quantity that does not tell the inside of the references from their outside says nothing about the
        query.
    """
    low = _weighted_mean(reference_values, outside)[:, None, None]
    high = _weighted_mean(reference_values, inside)[:, None, None]
    level = (query_map - low) / (high - low).abs().clamp(min=MIN_SEPARATION)
    return level.clamp(-1, 2), (high - low).expand_as(query_map)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of values (B, N), weights (B, N) -> (B,)."""
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1e-6)


def scaled_to_unit(maps: Tensor, coverage: Tensor) -> Tensor:
    """Stretch each map over [0, 1].

    Args:
        maps: (..., h, w) float.
        coverage: (..., h, w) in [0, 1], the share of each cell that the image covers.

    Returns:
        (..., h, w) in [0, 1]: 0 and 1 are the least and the greatest value among the cells that the image
        covers; 0 in cells that it does not cover.
    """
    covered = coverage > 0
    low = maps.masked_fill(~covered, torch.inf).amin((-1, -2), keepdim=True)
    high = maps.masked_fill(~covered, -torch.inf).amax((-1, -2), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-6)).masked_fill(~covered, 0)


def label_similarity(joint: Tensor, label_vector: Tensor, grid: tuple[int, int]) -> Tensor:
    """How similar each place of an image is to a label: VLP-SAM's attention map.

    Args:
        joint: (D, h', w') float, features in the space of labels.
        label_vector: (D,) float.
        grid: (h, w), number of rows and columns of the result.

    Returns:
        (h, w) in [-1, 1], cosine similarity.
    """
    cosine = torch.einsum("dhw,d->hw", F.normalize(joint.float(), dim=0), F.normalize(label_vector, dim=0))
    return F.interpolate(cosine[None, None], grid, mode="bilinear", align_corners=False)[0, 0]

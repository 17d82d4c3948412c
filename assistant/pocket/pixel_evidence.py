"""What is known of every cell of an image about one target: the inputs of the pixel head.

    evidence = cell_evidence(scores, 0, masks, semantic_map, row, rivals, detected)   # (S, S, EVIDENCE_DIM)

The selector's scores of the proposals that cover a cell describe what lies there, the semantic map says which
taught name the cell has, and the detector where things of its categories are. `CellEvidence` lists the 31
figures in the order in which the pixel head was trained on them.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.mllm.selector import Scores, ranking_score
from assistant.pocket.detector import Detections, no_detections
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.sam.mask_ops import tight_boxes

# Values of the figures where no proposal covers a cell; each lies below what covered cells usually have.
NO_IOP = -8.0
NO_RELATIVE_SIMILARITY = -2.0
NO_RELATIVE_WORTH = -10.0
NO_SIMILARITY = -1.0
NO_QUALITY = -5.0
NO_LOG_AREA = -10.0
NO_WORTH = -30.0

MAX_IOP_LOGIT = 8.0  # figures are clamped to +- these
MAX_PRESENCE_LOGIT = 6.0
MAX_NAME_LOGIT = 10.0
SHARE_TEMPERATURES = (0.2, 0.5, 1.0)  # of the softmax over the worth of proposals


@dataclass(frozen=True)
class CellEvidence:
    """The figures of C cells about one target, each (C,) float32, in the order of the pixel head's weights.

    "IoP" is the selector's logit that a proposal lies inside the target, "worth" what it ranks proposals by.
    "Smallest" and "best" mean the smallest and the worthiest of the proposals that cover the cell.
    """

    highest_iop: Tensor  # of the proposals that cover the cell
    mean_inside: Tensor  # mean of sigmoid(IoP) over the proposals that cover it
    smallest_iop: Tensor  # IoP of the smallest
    highest_similarity: Tensor  # of the proposals that cover it, less the highest in the image
    worth_share_sharp: Tensor  # share of the softmax over worth that covers it, temperature 0.2
    worth_share_medium: Tensor  # the same at temperature 0.5
    worth_share_soft: Tensor  # the same at temperature 1.0
    highest_worth: Tensor  # of the proposals that cover it, less the highest in the image
    smallest_similarity: Tensor  # similarity of the smallest
    best_quality: Tensor  # quality of the best
    best_log_area: Tensor  # log of the best's share of the square
    smallest_log_area: Tensor  # log of the smallest's share of the square
    mean_similarity: Tensor  # over the proposals that cover it
    best_iop: Tensor  # IoP of the best
    log_cover_count: Tensor  # log of the number of proposals that cover it
    mean_inside_by_size: Tensor  # as `mean_inside`, small proposals counting more: weights 1 / sqrt(area)
    image_highest_iop: Tensor  # of all proposals; this and the next five are the same in all cells
    image_highest_similarity: Tensor  # of all proposals
    image_highest_worth: Tensor  # of all proposals
    presence: Tensor  # the selector's logit that the target is present
    image_mean_inside: Tensor  # mean of sigmoid(IoP) over all proposals
    image_inside_share: Tensor  # share of all proposals whose sigmoid(IoP) is above one half
    name_log_probability: Tensor  # of the target's name in the cell, among the names that compete with it
    name_margin: Tensor  # logit of the target's name less the highest of its rivals
    has_name: Tensor  # 1: the target's name is one that the semantic map knows
    image_highest_name_log_probability: Tensor  # of all cells
    highest_name_share: Tensor  # highest mean probability of the name in a proposal that covers the cell
    highest_support: Tensor  # `Detections.support` of the proposals that cover it, the highest
    highest_box_score: Tensor  # of the detections whose box covers it
    image_highest_detection: Tensor  # score of the surest detection in the image
    has_category: Tensor  # 1: the target's name is a category of the detector; else the three before are 0

    def stack(self) -> Tensor:
        """(C, EVIDENCE_DIM) float32."""
        return torch.stack(list(vars(self).values()), 1)


EVIDENCE_DIM = len(fields(CellEvidence))


def cell_evidence(
    scores: Scores,
    target: int,
    masks: Tensor,
    semantic_map: Tensor,
    row: int,
    rivals: Tensor,
    detected: Detections | None = None,
) -> Tensor:
    """What is known of every cell about a target.

    Args:
        scores: The selector's.
        target: Index of the target in `scores`.
        masks: (N, S, S) bool, the proposals over the padded square.
        semantic_map: (C + 1, MAP_SIDE, MAP_SIDE) float32 logits of the names.
        row: The target's name.
        rivals: (C + 1,) bool, the names that compete with it, itself included.
        detected: What the detector finds of the target's category; None where it has no such category.

    Returns:
        (S, S, EVIDENCE_DIM) float32.
    """
    side = masks.shape[1]
    evidence = CellEvidence(
        **_cover_figures(scores, target, masks),
        **_image_figures(scores, target, side * side),
        **_name_figures(masks, semantic_map, row, rivals),
        **_detection_figures(masks, detected),
    )
    return evidence.stack().view(side, side, EVIDENCE_DIM)


def _cover_figures(scores: Scores, target: int, masks: Tensor) -> dict[str, Tensor]:
    """The figures about the proposals that cover each cell."""
    count = len(masks)
    cover = masks.flatten(1)  # (N, C)
    weight = cover.float()
    similarity, quality = scores.similarity[target], scores.quality[target]
    iop = scores.iop[target].clamp(-MAX_IOP_LOGIT, MAX_IOP_LOGIT)
    inside = scores.iop[target].sigmoid()
    worth = ranking_score(scores, target)
    area = weight.mean(1).clamp(min=1e-5)
    is_covered = cover.any(0)
    cover_count = weight.sum(0).clamp(min=1)
    by_size = area.argsort()
    ranks = torch.where(cover[by_size], torch.arange(count)[:, None], count)
    smallest = by_size[ranks.amin(0).clamp(max=count - 1)]
    best = torch.where(cover, worth[:, None], torch.tensor(NO_WORTH)).argmax(0)
    size_weight = area.rsqrt()

    def highest(values: Tensor, default: float) -> Tensor:
        return torch.where(cover, values[:, None], torch.tensor(default)).amax(0)

    def mean(values: Tensor) -> Tensor:
        return (weight * values[:, None]).sum(0) / cover_count

    def of(values: Tensor, which: Tensor, default: float) -> Tensor:
        return torch.where(is_covered, values[which], torch.tensor(default))

    def worth_share(temperature: float) -> Tensor:
        return ((worth / temperature).softmax(0)[:, None] * weight).sum(0)

    sharp, medium, soft = SHARE_TEMPERATURES
    return {
        "highest_iop": highest(iop, NO_IOP),
        "mean_inside": mean(inside),
        "smallest_iop": of(iop, smallest, NO_IOP),
        "highest_similarity": highest(similarity - similarity.max(), NO_RELATIVE_SIMILARITY),
        "worth_share_sharp": worth_share(sharp),
        "worth_share_medium": worth_share(medium),
        "worth_share_soft": worth_share(soft),
        "highest_worth": highest(worth - worth.max(), NO_RELATIVE_WORTH),
        "smallest_similarity": of(similarity, smallest, NO_SIMILARITY),
        "best_quality": of(quality, best, NO_QUALITY),
        "best_log_area": of(area.log(), best, NO_LOG_AREA),
        "smallest_log_area": of(area.log(), smallest, NO_LOG_AREA),
        "mean_similarity": mean(similarity),
        "best_iop": of(iop, best, NO_IOP),
        "log_cover_count": cover_count.log(),
        "mean_inside_by_size": (weight * (size_weight * inside)[:, None]).sum(0)
        / ((weight * size_weight[:, None]).sum(0) + 1e-6),
    }


def _image_figures(scores: Scores, target: int, cells: int) -> dict[str, Tensor]:
    """The figures about the target in the whole image, repeated for each cell."""
    inside = scores.iop[target].sigmoid()
    figures = {
        "image_highest_iop": scores.iop[target].clamp(-MAX_IOP_LOGIT, MAX_IOP_LOGIT).max(),
        "image_highest_similarity": scores.similarity[target].max(),
        "image_highest_worth": ranking_score(scores, target).max(),
        "presence": scores.presence[target].clamp(-MAX_PRESENCE_LOGIT, MAX_PRESENCE_LOGIT),
        "image_mean_inside": inside.mean(),
        "image_inside_share": (inside > 0.5).float().mean(),
    }
    return {name: value.expand(cells) for name, value in figures.items()}


def _detection_figures(masks: Tensor, detected: Detections | None) -> dict[str, Tensor]:
    """The figures about what the detector finds of the target's category."""
    side = masks.shape[1]
    cells = side * side
    found = no_detections() if detected is None else detected
    unit = IMAGE_SIZE / side
    has_cells = masks.flatten(1).any(1)
    support = torch.zeros(len(masks))
    support[has_cells] = found.support(tight_boxes(masks[has_cells]).float() * unit)
    middles = (torch.arange(side) + 0.5) * unit
    left, top, right, bottom = found.boxes[:, :, None].unbind(1)
    in_columns = (middles >= left) & (middles < right)  # (K, S)
    in_rows = (middles >= top) & (middles < bottom)
    covered = (in_rows[:, :, None] & in_columns[:, None]).flatten(1)
    box_score = torch.zeros(1, cells)
    return {
        "highest_support": (masks.flatten(1) * support[:, None]).amax(0),
        "highest_box_score": torch.cat([box_score, covered * found.scores[:, None]]).amax(0),
        "image_highest_detection": torch.tensor(found.highest_score()).expand(cells),
        "has_category": torch.tensor(float(detected is not None)).expand(cells),
    }


def _name_figures(masks: Tensor, semantic_map: Tensor, row: int, rivals: Tensor) -> dict[str, Tensor]:
    """The figures about the target's name in the semantic map."""
    side = masks.shape[1]
    weight = masks.flatten(1).float()
    competing = F.interpolate(
        semantic_map[rivals].float()[None], size=(side, side), mode="bilinear", align_corners=False
    )[0].flatten(1)
    is_target = torch.arange(len(competing)) == rivals[:row].sum()
    log_probability = competing.log_softmax(0)[is_target][0].clamp(min=-MAX_NAME_LOGIT)
    margin = competing[is_target][0] - competing[~is_target].amax(0)
    # Of each proposal, how much of it has the name.
    name_share = (weight @ log_probability.exp()) / weight.sum(1).clamp(min=1)
    cells = side * side
    return {
        "name_log_probability": log_probability,
        "name_margin": margin.clamp(-MAX_NAME_LOGIT, MAX_NAME_LOGIT),
        "has_name": torch.tensor(1.0).expand(cells),
        "image_highest_name_log_probability": log_probability.max().expand(cells),
        "highest_name_share": (weight * name_share[:, None]).amax(0),
    }

"""Clicks on a regular grid over an image, the first half of everything mode: which masks are worth a closer
look.

    settings = ClickSettings(points_per_side=32)
    candidates = click_on_grid(segmenter, embedding, resizer, settings)

A prompt is decoded before it is drawn, so prompts of low predicted IoU cost no pixels. What is drawn is
judged by its low-resolution logits, through bounds that hold for the full resolution
(`assistant.sam.mask_resizing`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assistant.sam.mask_ops import tight_boxes
from assistant.sam.mask_resizing import Resizer, full_blocks
from assistant.sam.segmenter import Embedding, Segmenter

MIN_AGREEING_IOU = 0.9  # from which two clicks mean the same object, in the fast mode
GRID_STRIDES = (
    4,
    2,
    1,
)  # of the fast mode: every fourth row and column first, then every second, then the rest


@dataclass(frozen=True)
class ClickSettings:
    """How to click; the thresholds are those of segment-anything's SamAutomaticMaskGenerator.

    Attributes:
        points_per_side: The grid has the square of this number of points.
        points_per_batch: Number of clicks decoded at once, at most.
        pred_iou_thresh: Predicted IoU from which a mask is drawn.
        stability_score_thresh: Stability below which a mask is left out.
        fast: Whether to click on a coarse grid first, and then only outside of masks that two clicks agree
            on.
        granularity: In [0, 1], see `assistant.sam.proposals.everything`; None for no preference.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    fast: bool = False
    granularity: float | None = None


@dataclass
class Candidate:
    """A drawn mask that passed the low-resolution filters, with the part of its logits that can matter.

    Attributes:
        score: What orders suppression: the predicted IoU, shifted by the granularity.
        iou: Predicted IoU.
        point: (2,) xy px of the image or crop, the click.
        corner: (y, x), the cell of the first value of `logits`.
        logits: (h, w) float32 low-resolution logits.
        touched: Half-open xyxy px, a box that the mask cannot leave.
        enclosed: Half-open xyxy px, what the mask's box contains for certain; possibly without area.
    """

    score: float
    iou: float
    point: np.ndarray
    corner: tuple[int, int]
    logits: np.ndarray
    touched: list[int]
    enclosed: list[int]


@torch.no_grad()
def click_on_grid(
    segmenter: Segmenter,
    embedding: Embedding,
    resizer: Resizer,
    settings: ClickSettings,
    progress: Callable[[int], None] | None = None,
) -> list[Candidate]:
    """Click on every point of a grid.

    Args:
        segmenter: Any SAM.
        embedding: The image or crop.
        resizer: Of this embedding.
        settings: How to click.
        progress: Called with the number of points that are done.

    Returns:
        The candidates, in the order of the clicks.
    """
    clicker = _GridClicker(segmenter, embedding, resizer, settings)
    count = settings.points_per_side
    strides = coarse_to_fine(count) if settings.fast else [np.arange(count * count)]
    for level in strides:
        pending = list(level)
        while pending := clicker.unexplained(pending):
            batch, pending = pending[: clicker.batch_size], pending[clicker.batch_size :]
            clicker.click(batch)
            if progress:
                progress(clicker.clicks)
    if progress:
        progress(count * count)
    return clicker.candidates


class _GridClicker:
    """The clicks on one image or crop so far.

    Attributes:
        batch_size: Number of clicks decoded at once.
        candidates: What was found.
        clicks: Number of clicks.
    """

    def __init__(self, segmenter: Segmenter, embedding: Embedding, resizer: Resizer, settings: ClickSettings):
        self.segmenter = segmenter
        self.embedding = embedding
        self.resizer = resizer
        self.settings = settings
        self.batch_size = min(settings.points_per_batch, segmenter.prompts_per_batch)
        self.candidates: list[Candidate] = []
        self.clicks = 0
        count = settings.points_per_side
        line = (np.arange(count) + 0.5) / count
        shares = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)  # xy, row by row
        self.points = shares * embedding.size[::-1]
        self.cells = (shares * resizer.image_cells[::-1]).astype(int)
        self.explained = np.zeros(resizer.image_cells, bool)  # cells of masks that two clicks agree on
        self.earlier: Tensor | None = None  # masks that a single click has found so far, see `agreement`

    def unexplained(self, indices: list[int]) -> list[int]:
        """The points, of these, that no agreed mask covers."""
        return [i for i in indices if not self.explained[self.cells[i, 1], self.cells[i, 0]]]

    def click(self, indices: list[int]) -> None:
        """Click on these points."""
        points = self.points[indices]
        labels = np.ones((len(indices), 1), int)
        decoded = self.segmenter.decode(self.embedding, points[:, None], labels)
        self.clicks += len(indices)
        iou = decoded.iou[:, 1:].float()
        least = self.settings.pred_iou_thresh
        passes = iou > least if least > 0 else torch.ones_like(iou, dtype=torch.bool)
        rows = passes.any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return
        height, width = self.resizer.image_cells
        logits = self.segmenter.draw(self.embedding, decoded, rows, slice(1, None))[..., :height, :width]
        candidates, smallest = filter_masks(
            logits, passes[rows], iou[rows], points[rows.cpu().numpy()], self.resizer, self.settings
        )
        self.candidates += candidates
        if self.settings.fast:
            agreed, self.earlier = agreement(smallest, self.earlier)
            self.explained |= agreed


def filter_masks(
    logits: Tensor,
    passes: Tensor,
    iou: Tensor,
    points: np.ndarray,
    resizer: Resizer,
    settings: ClickSettings,
) -> tuple[list[Candidate], Tensor]:
    """Leave out the masks that cannot be stable enough or have the wrong granularity.

    Args:
        logits: (R, 3, h, w) float, the multimask output of R clicks.
        passes: (R, 3) bool, the masks to consider.
        iou: (R, 3) predicted IoU.
        points: (R, 2) xy px, the clicks.
        resizer: Of the image or crop.
        settings: How to click.

    Returns:
        The candidates; and (K, h, w) bool, the smallest stable mask of each click that has one.
    """
    threshold, offset = resizer.threshold, resizer.stability_offset
    least = settings.stability_score_thresh
    inside, above, below = logits > threshold, logits > threshold + offset, logits > threshold - offset
    max_above = resizer.max_area(above)
    passes = passes & (max_above > 0 if least <= 0 else max_above >= least * resizer.min_area(below))
    areas = inside.sum((2, 3))
    # The stability on cells is an estimate, which is good enough to decide where to click next.
    stable = passes & (above.sum((2, 3)) / below.sum((2, 3)).clamp(min=1) >= least)
    smallest = torch.where(stable, areas, areas.max() + 1).argmin(1)
    smallest_masks = inside[torch.arange(len(logits)), smallest][stable.any(1)]
    score = iou
    if settings.granularity is not None:
        passes = passes & matches_granularity(passes, areas, settings.granularity)
        cell_count = inside[0, 0].numel()
        score = iou + (settings.granularity - 0.5) * (areas / cell_count).sqrt()
    clicks = points[passes.nonzero()[:, 0].cpu().numpy()]
    candidates = _candidates(logits[passes], score[passes].tolist(), iou[passes].tolist(), clicks, resizer)
    return candidates, smallest_masks


def _candidates(
    logits: Tensor, scores: list[float], ious: list[float], points: np.ndarray, resizer: Resizer
) -> list[Candidate]:
    """Candidates of K masks: logits (K, h, w), scores, predicted IoU and the clicks (K, 2) behind them."""
    span = resizer.span
    reach = tight_boxes(logits > resizer.threshold - resizer.stability_offset).cpu().numpy()
    blocks = tight_boxes(full_blocks(logits > resizer.threshold, span)).cpu().numpy()
    blocks[:, 2:] += (span - 1) * (blocks[:, 2:] > 0)  # the cells of the last block, not only its first
    candidates = []
    for i, (score, iou, point) in enumerate(zip(scores, ious, points, strict=True)):
        x0, y0, x1, y1 = reach[i]
        x, y = max(0, x0 - span), max(0, y0 - span)  # pixels at the rim are made of those cells too
        patch = logits[i, y : y1 + span, x : x1 + span].cpu().numpy().copy()
        touched, enclosed = resizer.touched_pixels(reach[i]), resizer.enclosed_pixels(blocks[i])
        candidates.append(Candidate(score, iou, point, (int(y), int(x)), patch, touched, enclosed))
    return candidates


def agreement(masks: Tensor, earlier: Tensor | None) -> tuple[np.ndarray, Tensor]:
    """Find the masks that two clicks agree on.

    Args:
        masks: (K, h, w) bool, each of another click.
        earlier: What this returned for the clicks before; None at the first.

    Returns:
        (h, w) bool, the cells of the `masks` whose IoU with another, or with an earlier one, is above
        `MIN_AGREEING_IOU`; and all masks so far, to pass as `earlier`.
    """
    flat = masks[:, ::2, ::2].flatten(1).float()
    every = flat if earlier is None else torch.cat([earlier, flat])
    intersection = flat @ every.T
    union = flat.sum(1)[:, None] + every.sum(1)[None] - intersection
    iou = intersection / union.clamp(min=1)
    agreed = (iou > MIN_AGREEING_IOU).sum(1) > 1  # each agrees with itself
    return masks[agreed].any(0).cpu().numpy(), every


def matches_granularity(passes: Tensor, areas: Tensor, granularity: float) -> Tensor:
    """Which masks of each click have about the wanted granularity.

    Args:
        passes: (R, 3) bool, the masks of R clicks to consider.
        areas: (R, 3), in any unit.
        granularity: g in [0, 1].

    Returns:
        (R, 3) bool: the rank by area among the considered masks of the click, 0 = smallest and 1 = largest,
        is within 2 * min(g, 1 - g) of g; or the click has one such mask only.
    """
    smaller = (passes[:, None] & (areas[:, None] < areas[..., None])).sum(2)
    larger = (passes[:, None] & (areas[:, None] > areas[..., None])).sum(2)
    rank = smaller / (smaller + larger).clamp(min=1)
    is_only_one = smaller + larger == 0
    return is_only_one | ((rank - granularity).abs() <= 2 * min(granularity, 1 - granularity) + 1e-6)


def coarse_to_fine(count: int) -> list[np.ndarray]:
    """The indices of a grid of count x count points, each once, in the order of `GRID_STRIDES`."""
    stride_of = np.full((count, count), 1)
    stride_of[count % 2 :: 2, count % 2 :: 2] = 2
    stride_of[min(1, count - 1) :: 4, min(1, count - 1) :: 4] = 4
    return [np.flatnonzero(stride_of == stride) for stride in GRID_STRIDES]

"""Everything mode: all the masks that a grid of clicks finds in an image.

    proposals = everything(segmenter, segmenter.encode(image))
    proposals.masks, proposals.boxes, proposals.predicted_iou          # (N, H, W) bool, (N, 4), (N,)
    everything(segmenter, embedding, fast=True)                        # fewer clicks, for someone who waits
    everything(segmenter, embedding, granularity=1, max_proposals=60)  # whole objects rather than parts

Without `fast`, the masks are those of segment-anything's SamAutomaticMaskGenerator (Kirillov et al. 2023,
arXiv 2304.02643, appendix B) for the same weights, grid and thresholds; only the order of the work differs:

1. The predicted IoU is known before a mask is drawn, so prompts of low predicted IoU are never drawn.
2. The highest stability that the low-resolution logits allow rules out unstable masks
  (`assistant.sam.click_grid`).
3. Non-maximum suppression goes from the best mask down, and draws at full resolution only the masks that it
  cannot
   rule out before (`assistant.sam.suppression`).
4. A mask is upsampled within its own box, by two small matrix products, and stored as RLE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from assistant.errors import BadInput, memory_advice
from assistant.sam.click_grid import ClickSettings, click_on_grid
from assistant.sam.mask_ops import Rle, box_area, decode_rle
from assistant.sam.mask_resizing import Resizer
from assistant.sam.segmenter import DECODING_MEMORY, Embedding, Segmenter
from assistant.sam.suppression import Crop, Region, SuppressionLimits, cleaned, distinct, suppress

BACKGROUND_LOGIT = (
    -10.0
)  # of the cells whose logits a proposal does not store; SAM's background lies about there


@dataclass
class Proposals:
    """N masks of one image, best first.

    Attributes:
        rles: The masks, as COCO RLE with str counts.
        boxes: (N, 4) float32 inclusive xyxy px, as in segment-anything: the first and the last column and
            row.
        predicted_iou: (N,) float32, SAM's estimate of the IoU with the object.
        stability: (N,) float32 in [0, 1].
        areas: (N,) int64 px.
        points: (N, 2) float32 xy px, the click behind each mask.
        low_res_logits: (N, l, l) float32 over SAM's square input.
        size: (H, W) of the image, px.
    """

    rles: list[Rle]
    boxes: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray
    areas: np.ndarray
    points: np.ndarray
    low_res_logits: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rles)

    def mask(self, i: int) -> np.ndarray:
        """The mask of proposal `i`, (H, W) bool, decoded at each call."""
        return decode_rle(self.rles[i])

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, decoded at each call; takes N * H * W bytes."""
        masks = np.zeros((len(self), *self.size), bool)
        for i in range(len(self)):
            masks[i] = self.mask(i)
        return masks

    def union(self, indices: Sequence[int]) -> np.ndarray:
        """The union of some proposals by their indices, (H, W) bool; all False without any."""
        mask = np.zeros(self.size, bool)
        for index in indices:
            mask |= self.mask(index)
        return mask

    def select(self, indices: Sequence[int] | np.ndarray) -> Proposals:
        """Choose proposals.

        Args:
            indices: Indices, in the order of the result; or a bool mask (N,).

        Returns:
            The chosen proposals.
        """
        chosen = np.arange(len(self))[indices]
        return Proposals(
            rles=[self.rles[i] for i in chosen],
            boxes=self.boxes[chosen],
            predicted_iou=self.predicted_iou[chosen],
            stability=self.stability[chosen],
            areas=self.areas[chosen],
            points=self.points[chosen],
            low_res_logits=self.low_res_logits[chosen],
            size=self.size,
        )


def by_granularity(proposals: Proposals, granularity: float = 0.5) -> Proposals:
    """Choose proposals that do not repeat each other, of a wanted granularity.

    They are taken greedily by predicted IoU plus 2 (granularity - 0.5) sqrt(area share), as in `everything`.
    A proposal is taken unless half of it is covered by those before it that are at most 2 / (1 -
    granularity)^2 times its size: at 0 a whole leaves its parts, at 1 it replaces them.

    Args:
        proposals: Of an image.
        granularity: 0 = parts, 1 = whole objects, 0.5 = no preference.

    Returns:
        The chosen proposals, in the order in which they were taken.

    Raises:
        BadInput: The granularity lies outside of [0, 1].
    """
    _check_granularity(granularity)
    shares = proposals.areas / np.prod(proposals.size)
    score = proposals.predicted_iou + 2 * (granularity - 0.5) * np.sqrt(shares)
    max_ratio = 2 / (1 - granularity) ** 2 if granularity < 1 else np.inf
    taken: dict[int, np.ndarray] = {}
    for i in map(int, np.argsort(-score, kind="stable")):
        mask, covered = proposals.mask(i), np.zeros(proposals.size, bool)
        for k, earlier in taken.items():
            if proposals.areas[k] <= max_ratio * proposals.areas[i]:
                covered |= earlier
        if 2 * (mask & ~covered).sum() >= mask.sum():
            taken[i] = mask
    return proposals.select(list(taken))


@memory_advice(DECODING_MEMORY)
def everything(
    segmenter: Segmenter,
    embedding: Embedding,
    *,
    image: np.ndarray | None = None,
    points_per_side: int = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
    box_nms_thresh: float = 0.7,
    crop_n_layers: int = 0,
    crop_nms_thresh: float = 0.7,
    crop_overlap_ratio: float = 512 / 1500,
    crop_n_points_downscale_factor: int = 1,
    min_mask_region_area: int = 0,
    fast: bool = False,
    granularity: float | None = None,
    max_proposals: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Proposals:
    """Find all the masks of an image.

    The thresholds and the settings of crops are SamAutomaticMaskGenerator's, with its names and defaults.

    Args:
        segmenter: Any SAM.
        embedding: The image, encoded by it.
        image: (H, W, 3) uint8 RGB, needed for crops only.
        points_per_side: The grid has the square of this number of points.
        points_per_batch: Number of clicks decoded at once, at most; fewer where the segmenter is faster so.
        pred_iou_thresh: Predicted IoU from which a mask is drawn.
        stability_score_thresh: Stability below which a mask is left out.
        stability_score_offset: How far the logit's threshold moves up and down for the stability.
        box_nms_thresh: Box IoU with a better mask above which a mask is left out.
        crop_n_layers: How often everything mode runs on crops too, layer i on 2^i x 2^i of them.
        crop_nms_thresh: As `box_nms_thresh`, between crops.
        crop_overlap_ratio: How much crops overlap, as a share of the image's shorter side.
        crop_n_points_downscale_factor: By which `points_per_side` is divided in each further layer.
        min_mask_region_area: Holes and islands of fewer px are removed from the masks.
        fast: Whether to click on a coarse grid first, then only outside of masks that two clicks agree on.
        granularity: 0 = parts, 1 = whole objects, 0.5 or None = no preference. It decides which of the three
            masks of a click stay (at 0 the smallest, at 1 the largest, between them those whose rank is
            near), and adds (granularity - 0.5) sqrt(area share) to the predicted IoU that orders suppression.
        max_proposals: Number of proposals at most, the best; None for all.
        progress: Called with the number of clicks that are done and the number of all.

    Returns:
        The proposals, best first; none where no mask passes.

    Raises:
        BadInput: A setting is out of its range, or crops are asked for without `image`.
    """
    if points_per_side < 1 or points_per_batch < 1:
        raise BadInput("points_per_side and points_per_batch must be at least 1")
    if granularity is not None:
        _check_granularity(granularity)
    if crop_n_layers and image is None:
        raise BadInput("crops need the image itself: pass image=")
    size = embedding.size
    crops = crop_boxes(size, crop_n_layers, crop_overlap_ratio)
    grid_sides = [max(1, int(points_per_side / crop_n_points_downscale_factor**layer)) for _, layer in crops]
    total, done = sum(side * side for side in grid_sides), 0
    # Suppression may stop early where nothing after it changes the choice.
    max_regions = max_proposals if len(crops) == 1 and not min_mask_region_area else None
    limits = SuppressionLimits(stability_score_thresh, box_nms_thresh, max_regions)
    regions: list[Region] = []
    for (crop, layer), grid_side in zip(crops, grid_sides, strict=True):
        crop_embedding = embedding if layer == 0 else _encode_crop(segmenter, image, crop)
        resizer = Resizer(*segmenter.resizing(crop_embedding), segmenter.threshold, stability_score_offset)
        clicks = ClickSettings(
            grid_side, points_per_batch, pred_iou_thresh, stability_score_thresh, fast, granularity
        )
        report = _progress_from(progress, done, total)
        candidates = click_on_grid(segmenter, crop_embedding, resizer, clicks, report)
        regions += suppress(candidates, resizer, crop, size, limits)
        done += grid_side * grid_side
    if len(crops) > 1:  # masks of smaller crops show more detail, so they win
        regions = distinct(regions, [-float(box_area(region.crop)) for region in regions], crop_nms_thresh)
    if min_mask_region_area:
        regions = [cleaned(region, min_mask_region_area) for region in regions]
        max_iou = max(box_nms_thresh, crop_nms_thresh)
        regions = distinct(regions, [-float(region.is_cleaned) for region in regions], max_iou)
    if max_proposals is not None:
        regions = sorted(regions, key=lambda region: -region.candidate.score)[:max_proposals]
    return as_proposals(regions, segmenter, embedding)


def _check_granularity(granularity: float) -> None:
    if not 0 <= granularity <= 1:
        raise BadInput("granularity must lie between 0 (parts) and 1 (whole objects)")


def _encode_crop(segmenter: Segmenter, image: np.ndarray | None, crop: Crop) -> Embedding:
    assert image is not None  # `everything` has checked it
    x0, y0, x1, y1 = crop
    return segmenter.encode(np.ascontiguousarray(image[y0:y1, x0:x1]))


def _progress_from(
    progress: Callable[[int, int], None] | None, done: int, total: int
) -> Callable[[int], None] | None:
    """The progress of one crop, of which `done` clicks were made before."""
    if progress is None:
        return None

    def report(clicks: int) -> None:
        progress(done + clicks, total)

    return report


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Crop, int]]:
    """The crops that everything mode runs on, as SamAutomaticMaskGenerator chooses them.

    Args:
        size: (H, W) of the image, px.
        layers: Number of layers of crops.
        overlap_ratio: How much crops overlap, as a share of the image's shorter side.

    Returns:
        (half-open xyxy px, layer): the image itself as layer 0, then layer i of 2^i x 2^i crops.
    """
    height, width = size
    crops: list[tuple[Crop, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * 2 / count)
        crop_width, crop_height = (-(-(overlap * (count - 1) + side) // count) for side in (width, height))
        for column in range(count):
            for row in range(count):
                x, y = (crop_width - overlap) * column, (crop_height - overlap) * row
                crop = (x, y, min(x + crop_width, width), min(y + crop_height, height))
                crops.append((crop, layer))
    return crops


def as_proposals(regions: Sequence[Region], segmenter: Segmenter, embedding: Embedding) -> Proposals:
    """Regions of an image as its proposals, in the same order."""
    whole = (0, 0, embedding.size[1], embedding.size[0])
    side = segmenter.low_res_side
    logits = np.full((len(regions), side, side), BACKGROUND_LOGIT, np.float32)
    for i, region in enumerate(regions):
        if region.is_cleaned or region.crop != whole:
            logits[i] = segmenter.low_res_logits(embedding, decode_rle(region.rle))
        else:
            (y, x), patch = region.candidate.corner, region.candidate.logits
            logits[i, y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    points = (region.candidate.point + region.crop[:2] for region in regions)
    return Proposals(
        rles=[region.rle for region in regions],
        boxes=_rows((region.box for region in regions), 4),
        predicted_iou=np.array([region.candidate.iou for region in regions], np.float32),
        stability=np.array([region.stability for region in regions], np.float32),
        areas=np.array([region.area for region in regions], np.int64),
        points=_rows(points, 2),
        low_res_logits=logits,
        size=embedding.size,
    )


def _rows(rows: Iterable[np.ndarray], width: int) -> np.ndarray:
    """(N, width) float32, also where there are no rows."""
    return np.array(list(rows), np.float32).reshape(-1, width)

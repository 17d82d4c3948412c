"""Everything mode of the pocket preset: several kinds of candidate masks, ranked by one IoU head.

    candidates = find_candidates(sam, embedding.features, resized)      # .logits (N, 128, 128), best first

A grid of clicks finds what stands out; the boxes of the masks found are prompts again, as SAM answers a box
better than a click; and Felzenszwalb regions at three scales (scikit-image) add large flat areas, which
clicks miss. All work happens on 128 x 128 logits; full masks are drawn later, for the survivors only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from skimage.segmentation import felzenszwalb
from torch import Tensor
from torch.nn import functional as F

from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.pocket.prompt_encoder import BOX_END, BOX_START
from assistant.pocket.region_features import fixed_size_batches
from assistant.sam.mask_ops import tight_boxes

CELL_SIZE = 4  # px of the 512 square that a cell of the logits covers
LOGITS_SIDE = IMAGE_SIZE // CELL_SIZE
POINTS_PER_SIDE = 22  # of the grid of clicks, along the longest side of the image
MAX_PROPOSALS = 60  # of an image
PROMPTS_PER_BATCH = 16
SINGLE_ANSWER, THREE_READINGS = slice(0, 1), slice(1, None)  # mask tokens, see `PocketMaskDecoder`

MAX_CLICK_MASKS = 600  # best masks of clicks that are compared with each other; bounds suppression's time
MAX_BOX_PROMPTS = 96  # best masks of clicks whose boxes are prompts again; bounds the time of decoding
MIN_MASK_CELLS = 4  # a smaller mask is dropped: it has too few cells to be outlined
DUPLICATE_IOU = 0.8  # above it, the masks of two clicks are one proposal
COPY_IOU = 0.9  # above it, soft suppression drops a mask

OUTSIDE_LOGIT = -20.0  # of the cells outside the image
PROMPT_LOGIT = 6.0  # of a superpixel as a mask prompt
SUPERPIXEL_LOGIT = 8.0  # of a superpixel as a candidate

SUPERPIXEL_SCALES = (60, 200, 500)  # of Felzenszwalb's method: a larger scale gives larger regions
MIN_SUPERPIXEL_SHARE = 0.003  # of the image
MAX_SUPERPIXELS = 80


class CandidateMasks(NamedTuple):
    """N candidate masks over the padded square, best first."""

    logits: Tensor  # (N, 128, 128) float32
    predicted_iou: Tensor  # (N,) float32
    stability: Tensor  # (N,) float32


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """How little masks change with their threshold (Kirillov et al. 2023).

    Args:
        logits: (..., h, w).
        offset: How far the threshold moves.

    Returns:
        (...) float32, |logit > offset| / |logit > -offset|; 0 where both are empty.
    """
    return (logits > offset).sum((-1, -2)) / (logits > -offset).sum((-1, -2)).clamp(min=1)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each of N masks (N, h, w) bool with each of M masks (M, h, w) bool -> (N, M) float32."""
    a = a.flatten(1).float()
    b = b.flatten(1).float()
    intersection = (_pad_rows(a) @ _pad_rows(b).T)[: len(a), : len(b)]
    return intersection / (a.sum(1)[:, None] + b.sum(1)[None] - intersection).clamp(min=1)


def _pad_rows(rows: Tensor) -> Tensor:
    """Rows of zeros up to a multiple of 128, so that sizes are few: oneDNN holds a kernel for each."""
    return F.pad(rows, (0, 0, 0, -len(rows) % 128))


def suppress(masks: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression on mask IoU.

    Args:
        masks: (N, h, w) bool.
        scores: (N,).
        threshold: IoU with a better mask above which a mask is suppressed.

    Returns:
        Indices (K,) int64 of the survivors, best first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    overlaps = mask_iou(masks[order], masks[order]) > threshold
    survives = torch.ones(len(order), dtype=torch.bool)
    for k in range(len(order)):
        if survives[k]:
            survives[k + 1 :] &= ~overlaps[k, k + 1 :]
    return order[survives]


def soft_nms(masks: Tensor, scores: Tensor, max_masks: int, sigma: float = 1.0) -> Tensor:
    """Soft non-maximum suppression (Bodla et al. 2017, arXiv 1704.04503).

    After each choice, exp(-IoU^2 / sigma) with it is multiplied into the scores of the others, and copies of
    it are dropped (IoU above COPY_IOU). Compared with suppression at IoU .75, the same 60 places hold masks
    that differ: on 64 training images the oracle rose from .498 to .559 (small targets .14 to .23), the best
    single mask of a target from .400 to .426.

    Args:
        masks: (N, h, w) bool.
        scores: (N,); negative ones count as 0.
        max_masks: Number of masks at most.
        sigma: A larger one suppresses less.

    Returns:
        Indices (K,) int64, in the order of choice.
    """
    table = mask_iou(masks, masks)
    scores = scores.float().clamp(min=0)
    order: list[int] = []
    while len(order) < max_masks and (scores >= 0).any():
        best = int(scores.argmax())
        order.append(best)
        iou = table[best]
        scores = (scores * (-iou.square() / sigma).exp()).masked_fill((iou > COPY_IOU) | (scores < 0), -1)
        scores[best] = -1
    return torch.tensor(order, dtype=torch.long)


def low_res_boxes(masks: Tensor) -> Tensor:
    """The boxes of masks (N, 128, 128) bool -> (N, 4) float32, half-open xyxy in px of the 512 square."""
    return tight_boxes(masks).float() * CELL_SIZE


class PromptDecoder:
    """Decodes any number of prompts for one image.

    Args:
        sam: The pocket SAM.
        embedding: (1, EMBEDDING_CHANNELS, 32, 32), the image's.
        batch_size: Prompts at a time.
    """

    def __init__(self, sam: Sam, embedding: Tensor, batch_size: int = PROMPTS_PER_BATCH):
        self.sam = sam
        self.embedding = embedding
        self.batch_size = batch_size
        self.position_encoding = sam.prompt_encoder.get_dense_pe()

    def decode(
        self, points: Tensor, labels: Tensor, masks: Tensor | None, tokens: slice
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts.

        Args:
            points: (B, N, 2) xy px of the 512 square.
            labels: (B, N) int64, as `PocketPromptEncoder.encode` takes them.
            masks: (B, 128, 128) logits, or None.
            tokens: Which mask tokens to draw.

        Returns:
            Logits (B, M, 128, 128) float32 and predicted IoU (B, M) float32.
        """
        logits, iou = [], []
        for part in fixed_size_batches(len(points), self.batch_size):
            mask = None if masks is None else masks[part][:, None]
            sparse, dense = self.sam.prompt_encoder.encode(points[part], labels[part], mask)
            decoded = self.sam.mask_decoder.decode(self.embedding, self.position_encoding, sparse, dense)
            logits.append(self.sam.mask_decoder.draw(decoded, self.embedding, tokens))
            iou.append(decoded.iou[:, tokens].float())
        return torch.cat(logits)[: len(points)], torch.cat(iou)[: len(points)]

    def decode_boxes(self, boxes: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decode boxes (B, 4) half-open xyxy px of the 512 square, with masks (B, 128, 128) logits or none.

        Returns logits (B, 128, 128) float32 and predicted IoU (B,) float32.
        """
        labels = torch.tensor([[BOX_START, BOX_END]]).expand(len(boxes), 2)
        logits, iou = self.decode(boxes.view(-1, 2, 2) - 0.5, labels, masks, SINGLE_ANSWER)
        return logits[:, 0], iou[:, 0]


def superpixels(
    image: np.ndarray,
    scales: Sequence[int] = SUPERPIXEL_SCALES,
    min_share: float = MIN_SUPERPIXEL_SHARE,
    max_count: int = MAX_SUPERPIXELS,
) -> Tensor:
    """Felzenszwalb regions (Felzenszwalb and Huttenlocher 2004) at several scales, each region once.

    Args:
        image: (h, w, 3) uint8 RGB with its longest side at IMAGE_SIZE; segmented at half its size.
        scales: Of Felzenszwalb's method.
        min_share: Share of the image below which a region is dropped.
        max_count: Number of regions at most.

    Returns:
        (N, 128, 128) bool over the padded square, largest first.
    """
    height, width = image.shape[:2]
    min_cells = min_share * (height // CELL_SIZE) * (width // CELL_SIZE)
    half_size = image[::2, ::2]
    per_scale = []
    for scale in scales:
        index = felzenszwalb(half_size, scale=scale, sigma=0.8, min_size=60)
        square = np.full((IMAGE_SIZE // 2, IMAGE_SIZE // 2), -1, np.int64)
        square[: index.shape[0], : index.shape[1]] = index
        cells = square[::2, ::2]
        values, counts = np.unique(cells, return_counts=True)
        values = values[(values >= 0) & (counts >= min_cells)]
        per_scale.append(cells[None] == values[:, None, None])
    masks = torch.from_numpy(np.concatenate(per_scale))
    return masks[suppress(masks, masks.sum((1, 2)).float(), DUPLICATE_IOU)[:max_count]]


@torch.inference_mode()
def find_candidates(
    sam: Sam,
    embedding: Tensor,
    image: np.ndarray,
    points_per_side: int = POINTS_PER_SIDE,
    max_proposals: int = MAX_PROPOSALS,
) -> CandidateMasks:
    """Run everything mode on an image.

    Args:
        sam: The pocket SAM.
        embedding: (1, EMBEDDING_CHANNELS, 32, 32), the encoding of `image`.
        image: (h, w, 3) uint8 RGB with its longest side at IMAGE_SIZE.
        points_per_side: Clicks along the longest side.
        max_proposals: Number of masks at most.

    Returns:
        The candidates, best first; none of them empty, and nothing of them outside the image.
    """
    height, width = image.shape[:2]
    decoder = PromptDecoder(sam, embedding)
    inside = torch.zeros(LOGITS_SIDE, LOGITS_SIDE, dtype=torch.bool)
    inside[: -(-height // CELL_SIZE), : -(-width // CELL_SIZE)] = True
    clicked, clicked_iou = _click_masks(decoder, click_grid(height, width, points_per_side), inside)
    logits = [clicked]
    iou = [clicked_iou]
    best = clicked[:MAX_BOX_PROMPTS]
    if len(best):
        boxed, boxed_iou = decoder.decode_boxes(low_res_boxes(best > 0), best)
        logits.append(boxed)
        iou.append(boxed_iou)
    regions = superpixels(image)
    drawn, drawn_iou = decoder.decode_boxes(low_res_boxes(regions > 0), _as_logits(regions, PROMPT_LOGIT))
    logits += [drawn, _as_logits(regions, SUPERPIXEL_LOGIT)]
    # A superpixel is as good as the mask that SAM makes of it, as far as both agree.
    iou += [drawn_iou, mask_iou(drawn > 0, regions).diagonal() * drawn_iou]
    return _rank(*_inside_image(torch.cat(logits), torch.cat(iou), inside), max_proposals)


def click_grid(height: int, width: int, points_per_side: int) -> Tensor:
    """Clicks spread evenly over an image of that size in px -> (K, 1, 2) float32 xy px, column by column."""
    step = max(height, width) / points_per_side
    ys, xs = (torch.arange(max(1, round(side / step))) + 0.5 for side in (height, width))
    ys = ys * height / len(ys)
    xs = xs * width / len(xs)
    return torch.stack(torch.meshgrid(xs, ys, indexing="ij"), -1).reshape(-1, 1, 2)


def _click_masks(decoder: PromptDecoder, clicks: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct masks of clicks (K, 1, 2), best first: logits (N, 128, 128) and predicted IoU (N,)."""
    labels = torch.ones(len(clicks), 1, dtype=torch.long)
    readings, readings_iou = decoder.decode(clicks, labels, None, THREE_READINGS)
    logits, iou = _inside_image(readings.flatten(0, 1), readings_iou.flatten(), inside)
    best = torch.argsort(iou * stability(logits), descending=True)[:MAX_CLICK_MASKS]
    logits = logits[best]
    iou = iou[best]
    distinct = suppress(logits > 0, iou * stability(logits), DUPLICATE_IOU)
    return logits[distinct], iou[distinct]


def _as_logits(masks: Tensor, level: float) -> Tensor:
    return torch.where(masks, level, -level)


def _inside_image(logits: Tensor, iou: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Clear what lies outside the image (`inside` (128, 128) bool) and drop masks with too little left."""
    logits = logits.masked_fill(~inside, OUTSIDE_LOGIT)
    large_enough = (logits > 0).sum((1, 2)) >= MIN_MASK_CELLS
    return logits[large_enough], iou[large_enough]


def _rank(logits: Tensor, iou: Tensor, max_proposals: int) -> CandidateMasks:
    order = soft_nms(logits > 0, iou * stability(logits), max_proposals)
    return CandidateMasks(logits[order], iou[order], stability(logits[order]))

"""Everything mode of the pocket preset: masks of things, and of what no thing covers.

    candidates = find_candidates(segmenter, box_head, embedding, detections, tiles, resized)   # best first

SAM is asked about the boxes of what the detector knows (`assistant.pocket.detector`) and of whatever stands
out (`assistant.pocket.box_proposals`), on the whole image and, for small things, on tiles of it; on the whole
image its answers are prompts again. Four places in five go to the best of these masks. The others go to
Felzenszwalb regions at three scales (scikit-image) that show most of what is left: sky, floor, water. All
work happens on 128 x 128 logits; full masks are drawn later, for the chosen ones only.

On 55 photos that taught nothing (114 things) the best of 60 is right by .685 IoU (small .52), where a grid of
352 clicks, whose boxes were prompts again, came to .588 (small .37) and took twice as long; on 22 street and
fashion photos the best union of a class by .606, where that came to .550.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from skimage.segmentation import felzenszwalb
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from assistant.pocket.box_proposals import DUPLICATE_BOX_IOU, MAX_BOXES, BoxHead
from assistant.pocket.detector import Detections
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.pocket.prompt_encoder import BOX_END, BOX_START
from assistant.pocket.region_features import fixed_size_batches
from assistant.pocket.tiles import Tile, on_image, whole_small_boxes
from assistant.sam.mask_ops import tight_boxes
from assistant.sam.segmenter import Embedding, Segmenter

CELL_SIZE = 4  # px of the 512 square that a cell of the logits covers
LOGITS_SIDE = IMAGE_SIZE // CELL_SIZE
MAX_PROPOSALS = 60  # of an image
REGION_SHARE = 0.2  # of the proposals, for regions that no thing covers
PROMPTS_PER_BATCH = 16
SINGLE_ANSWER = slice(0, 1)  # the mask token that answers boxes, see `PocketMaskDecoder`

MIN_MASK_CELLS = 4  # a smaller mask is dropped: it has too few cells to be outlined
MIN_LAID_CELLS = 2  # the same of a mask that was found on a tile, where it has more of them
SMALL_SIDE = 128  # px of the 512 square, longest side below which a thing is taken from a tile
MAX_SMALL_BOXES = 16  # of a tile
# The expected IoU of a detected box with a thing is the detector's score to this power, as the score says
# besides how likely the category is right.
DETECTION_POWER = 0.5
MIN_SMALL_QUALITY = 0.05  # expected IoU of a box, below which a tile's box is left out
DUPLICATE_IOU = 0.8  # above it, two superpixels are one
COPY_IOU = 0.9  # above it, soft suppression drops a mask

WHOLE_IMAGE = -1  # in place of the number of a tile
OUTSIDE_LOGIT = -20.0  # of the cells outside the image
SUPERPIXEL_LOGIT = 8.0  # of a superpixel
SUPERPIXEL_IOU = 0.5  # in place of the IoU that SAM predicts

SUPERPIXEL_SCALES = (60, 200, 500)  # of Felzenszwalb's method: a larger scale gives larger regions
MIN_SUPERPIXEL_SHARE = 0.003  # of the image
MAX_SUPERPIXELS = 80


class CandidateMasks(NamedTuple):
    """N candidate masks over the padded square, best first.

    Attributes:
        logits: (N, 128, 128) float32 over the image's square.
        predicted_iou: (N,) float32.
        stability: (N,) float32.
        own_logits: (N, 128, 128) float32 over the square of the part where each was found.
        tile_of: (N,) int64, the number of that part among the tiles, or WHOLE_IMAGE.
    """

    logits: Tensor
    predicted_iou: Tensor
    stability: Tensor
    own_logits: Tensor
    tile_of: Tensor


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


def decode_boxes(
    segmenter: Segmenter, embedding: Embedding, boxes: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What SAM answers to boxes.

    Args:
        segmenter: The pocket SAM.
        embedding: The encoding of an image or of a tile.
        boxes: (N, 4) half-open xyxy px of its square, N above 0.
        masks: (N, 128, 128) logits that go with them, or None.

    Returns:
        Logits (N, 128, 128) float32 and predicted IoU (N,) float32.
    """
    sam = segmenter.model
    points = boxes.view(-1, 2, 2) - 0.5
    labels = torch.tensor([[BOX_START, BOX_END]]).expand(len(boxes), 2)
    logits, iou = [], []
    for part in fixed_size_batches(len(boxes), PROMPTS_PER_BATCH):
        mask = None if masks is None else masks[part][:, None]
        sparse, dense = sam.prompt_encoder.encode(points[part], labels[part], mask)
        decoded = sam.mask_decoder.decode(embedding.features, embedding.shared, sparse, dense)
        logits.append(sam.mask_decoder.draw(decoded, embedding.features, SINGLE_ANSWER)[:, 0])
        iou.append(decoded.iou[:, SINGLE_ANSWER].float()[:, 0])
    return torch.cat(logits)[: len(boxes)], torch.cat(iou)[: len(boxes)]


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


class _Found(NamedTuple):
    """Masks found in the image or in a tile of it: (N, 128, 128) logits over its square, and (N,) figures."""

    logits: Tensor
    iou: Tensor
    quality: Tensor  # of the box that each comes from


def _boxes_of(box_head: BoxHead, embedding: Embedding, detections: Detections) -> tuple[Tensor, Tensor]:
    """The boxes of an image or a tile about which SAM is asked, as `BoxHead.propose` gives them."""
    boxes, quality = box_head.propose(embedding.maps, *embedding.input_size)
    boxes = torch.cat([detections.boxes, boxes])
    quality = torch.cat([detections.scores**DETECTION_POWER, quality])
    kept = nms(boxes, quality, DUPLICATE_BOX_IOU)[:MAX_BOXES]
    return boxes[kept], quality[kept]


@torch.inference_mode()
def find_candidates(
    segmenter: Segmenter,
    box_head: BoxHead,
    embedding: Embedding,
    detections: Detections,
    tiles: Sequence[Tile],
    image: np.ndarray,
    max_proposals: int = MAX_PROPOSALS,
) -> CandidateMasks:
    """Run everything mode on an image.

    Args:
        segmenter: The pocket SAM.
        box_head: Predicts where things are, of any class.
        embedding: The encoding of the image.
        detections: What the detector finds in it.
        tiles: Its tiles, where small things are looked for.
        image: (h, w, 3) uint8 RGB, the image with its longest side at IMAGE_SIZE.
        max_proposals: Number of masks at most.

    Returns:
        The candidates, things first and best first; none of them empty, and nothing of them outside the
        image.
    """
    inside = _inside(*image.shape[:2])
    boxes, quality = _boxes_of(box_head, embedding, detections)
    found = [_on_whole_image(segmenter, embedding, boxes, quality, inside)]
    for tile in tiles:
        boxes, quality = _boxes_of(box_head, tile.embedding, tile.detections)
        found.append(_on_tile(segmenter, tile, embedding.size, boxes, quality))
    laid = [found[0].logits]
    for tile, on_tile in zip(tiles, found[1:], strict=True):
        over_image = on_image(on_tile.logits, tile, embedding.size, OUTSIDE_LOGIT)
        laid.append(over_image.masked_fill(~inside, OUTSIDE_LOGIT))
    own_logits, iou, quality = (torch.cat(parts) for parts in zip(*found, strict=True))
    logits = torch.cat(laid)
    stable = stability(own_logits)
    counts = torch.tensor([len(part.iou) for part in found])
    tile_of = torch.arange(WHOLE_IMAGE, len(tiles)).repeat_interleave(counts)

    regions = superpixels(image)
    things = ((logits > 0).sum((1, 2)) >= MIN_LAID_CELLS).nonzero()[:, 0]
    worth = (iou * stable * quality)[things]
    places = max_proposals - min(len(regions), int(max_proposals * REGION_SHARE))
    kept = things[soft_nms(logits[things] > 0, worth, places)]
    added = regions[uncovering(regions, (logits[kept] > 0).any(0), max_proposals - len(kept))]
    drawn = torch.where(added, SUPERPIXEL_LOGIT, -SUPERPIXEL_LOGIT)
    return CandidateMasks(
        torch.cat([logits[kept], drawn]),
        torch.cat([iou[kept], torch.full((len(added),), SUPERPIXEL_IOU)]),
        torch.cat([stable[kept], torch.ones(len(added))]),
        torch.cat([own_logits[kept], drawn]),
        torch.cat([tile_of[kept], torch.full((len(added),), WHOLE_IMAGE)]),
    )


def uncovering(masks: Tensor, covered: Tensor, count: int) -> list[int]:
    """Choose the masks that show most of what nothing covers yet.

    Greedy: each choice is the mask whose uncovered part is largest, by the root of its area times its share
    of the mask, and covers it.

    Args:
        masks: (N, h, w) bool, none of them empty.
        covered: (h, w) bool.
        count: Number of masks at most.

    Returns:
        Indices in the order of choice; masks that show nothing new are left out.
    """
    areas = masks.sum((1, 2))
    chosen: list[int] = []
    while len(chosen) < count:
        new = (masks & ~covered).sum((1, 2))
        worth = new.sqrt() * new / areas
        if len(worth) == 0 or worth.max() == 0:
            break
        chosen.append(int(worth.argmax()))
        covered = covered | masks[chosen[-1]]
    return chosen


def _on_whole_image(
    segmenter: Segmenter, embedding: Embedding, boxes: Tensor, quality: Tensor, inside: Tensor
) -> _Found:
    """The masks of the boxes of an image that fills the cells `inside` (128, 128) bool of its square."""
    if not len(boxes):
        return _nothing_found()
    found = _inside_image(_Found(*decode_boxes(segmenter, embedding, boxes), quality), inside)
    if not len(found.iou):
        return found
    # SAM answers its own mask and the box around it better than a box that was predicted.
    again = decode_boxes(segmenter, embedding, low_res_boxes(found.logits > 0), found.logits)
    return _inside_image(_Found(*again, found.quality), inside)


def _on_tile(
    segmenter: Segmenter, tile: Tile, size: tuple[int, int], boxes: Tensor, quality: Tensor
) -> _Found:
    """The masks of small things on a tile of an image of `size` (H, W) px, from the boxes of the tile."""
    small = whole_small_boxes(boxes, tile, size, SMALL_SIDE) & (quality >= MIN_SMALL_QUALITY)
    if not small.any():
        return _nothing_found()
    boxes, quality = boxes[small][:MAX_SMALL_BOXES], quality[small][:MAX_SMALL_BOXES]
    found = _Found(*decode_boxes(segmenter, tile.embedding, boxes), quality)
    return _inside_image(found, _inside(*tile.embedding.input_size))


def _nothing_found() -> _Found:
    return _Found(torch.zeros(0, LOGITS_SIDE, LOGITS_SIDE), torch.zeros(0), torch.zeros(0))


def _inside(height: int, width: int) -> Tensor:
    """The cells of the square that an image of that size in px fills, (128, 128) bool."""
    inside = torch.zeros(LOGITS_SIDE, LOGITS_SIDE, dtype=torch.bool)
    inside[: -(-height // CELL_SIZE), : -(-width // CELL_SIZE)] = True
    return inside


def _inside_image(found: _Found, inside: Tensor) -> _Found:
    """Clear what lies outside the image (`inside` (128, 128) bool) and drop masks with too little left."""
    logits = found.logits.masked_fill(~inside, OUTSIDE_LOGIT)
    large_enough = (logits > 0).sum((1, 2)) >= MIN_MASK_CELLS
    return _Found(logits[large_enough], found.iou[large_enough], found.quality[large_enough])

"""Everything mode of the pocket preset: several kinds of candidates, judged by one IoU head.

A grid of clicks finds what stands out, the boxes of what it found are asked again (a box is answered
better than a click), and Felzenszwalb regions at three scales (scikit-image) bring in what clicks miss:
large flat things. All work happens on 128 x 128 logits; pictures are drawn later, for the survivors.
"""

from typing import NamedTuple

import numpy as np
import torch
from skimage.segmentation import felzenszwalb
from torch import Tensor
from torch.nn import functional as F

from assistant.pocket.region_features import batches
from assistant.pocket.sam import IMAGE_SIZE
from assistant.sam.mask_ops import tight_boxes

CELL = 4  # px of the 512 square that a cell of the logits covers


class Pool(NamedTuple):
    """N candidates over the padded square, best first."""

    logits: Tensor  # (N, 128, 128) float
    iou: Tensor  # (N,) predicted IoU
    stability: Tensor  # (N,)


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """|logit > offset| / |logit > -offset| of (..., h, w) -> (...), 0 where both are empty (Kirillov et al. 2023)."""
    return (logits > offset).sum((-1, -2)) / (logits > -offset).sum((-1, -2)).clamp(min=1)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, h, w) bool, (M, h, w) bool -> (N, M)."""
    a, b = a.flatten(1).float(), b.flatten(1).float()
    even = lambda x: F.pad(
        x, (0, 0, 0, -len(x) % 128)
    )  # few sizes: oneDNN keeps a kernel for each (see `batches`)
    inter = (even(a) @ even(b).T)[: len(a), : len(b)]
    return inter / (a.sum(1)[:, None] + b.sum(1)[None] - inter).clamp(min=1)


def suppress(masks: Tensor, score: Tensor, threshold: float) -> Tensor:
    """Indices kept by non-maximum suppression on mask IoU, best score first."""
    order = torch.argsort(score, descending=True, stable=True)
    table = mask_iou(masks[order], masks[order]) > threshold
    alive = torch.ones(len(order), dtype=torch.bool)
    for k in range(len(order)):
        if alive[k]:
            alive[k + 1 :] &= ~table[k, k + 1 :]
    return order[alive]


def soft_nms(masks: Tensor, score: Tensor, most: int, sigma: float = 1.0) -> Tensor:
    """Indices of at most `most` masks, each the best after exp(-IoU^2 / sigma) of every one before it was multiplied
    into its score (Bodla et al. 2017, arXiv 1704.04503). Copies of one before, IoU above .9, are left out.

    Beside suppression at IoU .75 the same 60 places hold masks that differ: on 64 training photos the oracle rose from
    .498 to .559 (small things .14 to .23), the best single mask of a target from .400 to .426.
    """
    table = mask_iou(masks, masks)
    score, order = score.float().clamp(min=0), []
    while len(order) < most and (score >= 0).any():
        order.append(int(score.argmax()))
        near = table[order[-1]]
        score = (score * (-near.square() / sigma).exp()).masked_fill((near > 0.9) | (score < 0), -1)
        score[order[-1]] = -1
    return torch.tensor(order, dtype=torch.long)


def boxes_of(masks: Tensor) -> Tensor:
    """(N, h, w) bool, none empty -> (N, 4) xyxy in px of the 512 square."""
    return tight_boxes(masks).float() * CELL


class Prompter:
    """The decoder over one embedding, for any number of prompts."""

    def __init__(self, sam, embedding: Tensor, batch: int = 16):
        self.sam, self.embedding, self.batch = sam, embedding, batch
        self.pe = sam.prompt_encoder.get_dense_pe()

    def ask(
        self, points: Tensor, labels: Tensor, masks: Tensor | None, tokens: slice
    ) -> tuple[Tensor, Tensor]:
        """points (B, N, 2) px, labels (B, N), masks (B, 128, 128) logits -> logits (B, M, 128, 128), iou (B, M)."""
        logits, iou = [], []
        for part in batches(len(points), self.batch):
            mask = None if masks is None else masks[part][:, None]
            sparse, dense = self.sam.prompt_encoder.encode(points[part], labels[part], mask)
            decoded = self.sam.mask_decoder.decode(self.embedding, self.pe, sparse, dense)
            logits.append(self.sam.mask_decoder.draw(decoded, self.embedding, tokens))
            iou.append(decoded.iou[:, tokens].float())
        return torch.cat(logits)[: len(points)], torch.cat(iou)[: len(points)]

    def boxes(self, boxes: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """boxes (B, 4) xyxy px, masks (B, 128, 128) logits -> logits (B, 128, 128), iou (B,)."""
        labels = torch.tensor([[2, 3]]).expand(len(boxes), 2)
        logits, iou = self.ask(boxes.view(-1, 2, 2) - 0.5, labels, masks, slice(0, 1))
        return logits[:, 0], iou[:, 0]


def superpixels(image: np.ndarray, scales=(60, 200, 500), smallest: float = 0.003, most: int = 80) -> Tensor:
    """Felzenszwalb regions (Felzenszwalb and Huttenlocher 2004) of an (h, w, 3) uint8 picture, largest first, those
    that several scales find once -> (N, 128, 128) bool, N <= `most`."""
    h, w = image.shape[:2]
    half = image[::2, ::2]
    found = []
    for scale in scales:
        index = felzenszwalb(half, scale=scale, sigma=0.8, min_size=60)
        square = np.full((IMAGE_SIZE // 2, IMAGE_SIZE // 2), -1, np.int64)
        square[: index.shape[0], : index.shape[1]] = index
        cells = square[::2, ::2]
        values, counts = np.unique(cells, return_counts=True)
        values = values[(values >= 0) & (counts >= smallest * (h // CELL) * (w // CELL))]
        found.append(cells[None] == values[:, None, None])
    found = torch.from_numpy(np.concatenate(found))
    return found[suppress(found, found.sum((1, 2)).float(), 0.8)[:most]]


@torch.inference_mode()
def candidates(
    sam,
    embedding: Tensor,
    image: np.ndarray,
    points_per_side: int = 22,
    limit: int = 60,
    regions: bool = True,
) -> Pool:
    """image: (h, w, 3) uint8 with its longest side 512, `embedding` its encoding -> at most `limit` candidates."""
    h, w = image.shape[:2]
    step = max(h, w) / points_per_side
    ys, xs = (torch.arange(max(1, round(side / step))) + 0.5 for side in (h, w))
    ys, xs = ys * h / len(ys), xs * w / len(xs)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="ij"), -1).reshape(-1, 1, 2)
    ask = Prompter(sam, embedding)
    inside = torch.zeros(128, 128, dtype=torch.bool)
    inside[: -(-h // CELL), : -(-w // CELL)] = True

    def tidy(logits, iou):
        """Nothing outside the picture, nothing empty."""
        logits = logits.masked_fill(~inside, -20)
        keep = (logits > 0).sum((1, 2)) >= 4
        return logits[keep], iou[keep]

    logits, iou = ask.ask(grid, torch.ones(len(grid), 1, dtype=torch.long), None, slice(1, None))
    logits, iou = tidy(logits.flatten(0, 1), iou.flatten())
    best = torch.argsort(iou * stability(logits), descending=True)[:600]
    logits, iou = logits[best], iou[best]
    keep = suppress(logits > 0, iou * stability(logits), 0.8)
    logits, iou = logits[keep], iou[keep]
    seeds = logits[:96]
    found = [(logits, iou)] + ([ask.boxes(boxes_of(seeds > 0), seeds)] if len(seeds) else [])
    if regions:
        raw = superpixels(image)
        drawn, drawn_iou = ask.boxes(boxes_of(raw), torch.where(raw, 6.0, -6.0))
        found += [
            (drawn, drawn_iou),
            (torch.where(raw, 8.0, -8.0), mask_iou(drawn > 0, raw).diagonal() * drawn_iou),
        ]
    logits, iou = tidy(*map(torch.cat, zip(*found)))
    first = soft_nms(logits > 0, iou * stability(logits), limit)
    return Pool(logits[first], iou[first], stability(logits[first]))

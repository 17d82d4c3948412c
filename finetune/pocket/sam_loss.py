"""The loss of one step of training the pocket SAM.

    loss, figures = step_loss(sam, batch, correct=False, generator=generator)

It is SAM's: 20 focal + 1 dice on the mask, the best of three masks for a single click, squared error on
predicted IoU. The IoU of the three masks is taken with every mask outlined in the image, not only the
prompted one: a click on a wheel that returns the car is right too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.pocket.sam_data import Sample
from finetune.pocket.sam_prompts import CELL, CLICK_ON_NOTHING, SINGLE_CLICK, SINGLE_MASK

FOCAL_WEIGHT = 20  # of the focal loss beside the dice loss, SAM's
STRIDE = 16  # px of the square to a cell of the embedding
CORRECTION_POOLING = 5  # cells over which an error is averaged to find its middle


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """The losses of masks.

    Args:
        logits: (B, M, h, w) float.
        target: (B, 1, h, w) float in [0, 1].

    Returns:
        (B, M) float, 20 focal (gamma 2) + dice.
    """
    target = target.expand_as(logits)
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = 0.5 * (probability - target).square() * cross_entropy
    intersection = (probability * target).sum((2, 3))
    dice = 1 - (2 * intersection + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    return FOCAL_WEIGHT * focal.mean((2, 3)) + dice


def pairwise_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """The IoU of masks with the targets of the same image.

    Args:
        logits: (I, N, h, w) float.
        targets: (I, P, h, w) float in [0, 1].

    Returns:
        (I, N, P) float.
    """
    masks, wanted = (logits > 0).flatten(2).float(), (targets > 0.5).flatten(2).float()
    intersection = masks @ wanted.transpose(1, 2)
    union = masks.sum(2)[:, :, None] + wanted.sum(2)[:, None] - intersection
    return intersection / union.clamp(min=1)


class _Step:
    """One step over I images with P prompts each.

    Args:
        sam: The pocket SAM.
        batch: `Sample` of I images, each field stacked.
    """

    def __init__(self, sam: Any, batch: Sample):
        self.sam = sam
        self.image_count, self.prompt_count = batch.kind.shape
        self.grid = batch.image.shape[-1] // STRIDE
        self.embedding = sam.image_encoder((batch.image.float() - 127) / 128).bfloat16()
        self.positions = sam.prompt_encoder.pe_layer((self.grid, self.grid))[None]
        self.targets = batch.targets.float() / 255  # (I, P, h, w)
        self.target = self.targets.flatten(0, 1)[:, None]  # (I * P, 1, h, w), as the following
        self.points = batch.points.flatten(0, 1)
        self.labels = batch.labels.flatten(0, 1)
        self.kind = batch.kind.flatten()

    def answer(self, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The masks (B, 4, h, w) and predicted IoU (B, 4) of the prompts, for mask prompts (B, 1, h, w)."""
        sparse, dense = self.sam.prompt_encoder.encode(self.points, self.labels, masks, self.grid)
        decoded = self.sam.mask_decoder.decode(self.embedding, self.positions, sparse, dense)
        return self.sam.mask_decoder.draw(decoded, self.embedding), decoded.iou.float()

    @torch.no_grad()
    def correct(self, generator: torch.Generator) -> Tensor:
        """Answer once, and put a click in the error of each answer.

        Args:
            generator: Decides where the clicks are.

        Returns:
            The answers (B, 1, h, w), as mask prompts.
        """
        logits, _ = self.answer()
        losses = mask_losses(logits, self.target)
        best = torch.where(self.kind == SINGLE_MASK, 0, 1 + losses[:, 1:].argmin(1))
        masks = logits[torch.arange(len(best)), best][:, None]
        wrong = (masks > 0) != (self.target > 0.5)
        score = torch.rand(wrong.shape, generator=generator) * wrong
        # Deep inside of the error, as people click.
        score = F.avg_pool2d(wrong.float(), CORRECTION_POOLING, 1, CORRECTION_POOLING // 2) * score
        where = score.flatten(1).argmax(1)
        x, y = where % score.shape[-1], where // score.shape[-1]
        self.points = self.points.clone()
        self.labels = self.labels.clone()
        self.points[:, -1] = (
            torch.stack([x, y], -1) * float(CELL) + 1.5
        )  # the middle of the cell, less half a px
        is_missing = self.target.flatten(1).gather(1, where[:, None])[:, 0] > 0.5
        self.labels[:, -1] = torch.where(wrong.flatten(1).any(1), is_missing.long(), self.labels[:, -1])
        self.kind = torch.where(self.kind == SINGLE_CLICK, SINGLE_MASK, self.kind)
        return masks

    def loss(self, masks: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        """The loss, and the figures that are logged; `masks`: mask prompts (B, 1, h, w)."""
        logits, iou = self.answer(masks)
        losses = mask_losses(logits, self.target)
        is_click, is_single = self.kind == SINGLE_CLICK, self.kind == SINGLE_MASK
        has_target = self.kind != CLICK_ON_NOTHING
        mask_loss = torch.where(is_click, losses[:, 1:].amin(1), losses[:, 0]) * has_target
        with torch.no_grad():
            true_iou, iou_of_target = self._true_iou(logits)
            used = torch.stack([is_single] + [~is_single] * 3, 1).float()
        iou_loss = ((iou - true_iou).square() * used).sum() / used.sum()
        loss = mask_loss.sum() / has_target.sum() + iou_loss
        figures = {
            "loss": loss.item(),
            "box_iou": iou_of_target[is_single, 0].mean().item(),
            "click_iou": iou_of_target[:, 1:].amax(1)[is_click].mean().item(),
            "iou_error": iou_loss.item() ** 0.5,
        }
        return loss, figures

    def _true_iou(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What the predicted IoU should be (B, 4), and the IoU with the prompted mask (B, 4).

        The single mask is compared with the prompted mask, the other three with whatever they fit best.
        """
        images, prompts = self.image_count, self.prompt_count
        masks = logits.unflatten(0, (images, prompts)).flatten(1, 2)
        table = pairwise_iou(masks, self.targets)
        to_any = table.amax(2).view(-1, 4)
        per_prompt = table.view(images, prompts, 4, prompts).diagonal(dim1=1, dim2=3)
        to_target = per_prompt.permute(0, 2, 1).reshape(-1, 4)
        return torch.cat([to_target[:, :1], to_any[:, 1:]], 1), to_target


def step_loss(
    sam: Any, batch: Sample, correct: bool, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step.

    Args:
        sam: The pocket SAM.
        batch: `Sample` of several images, each field stacked.
        correct: Whether a first answer is corrected by a click in its error.
        generator: Decides where the clicks are.

    Returns:
        The loss, and the figures that are logged.
    """
    step = _Step(sam, batch)
    masks = step.correct(generator) if correct else None
    return step.loss(masks)

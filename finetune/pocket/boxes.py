"""Train the boxes of everything mode (`assistant.pocket.box_proposals`) over the frozen backbone.

    python -m finetune boxes --data ../shared/data --out runs/boxes

The same command again resumes. It reads the images of the sam stage. A place belongs to the smallest thing
whose middle is near, among those of the size that its map is for; its quality is the IoU of its box with that
thing's (quality focal loss, Li et al. 2020, arXiv 2006.04388), and its box learns by generalised IoU
(Rezatofighi et al. 2019, arXiv 1902.09630).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.ops import box_iou, generalized_box_iou_loss

from assistant.files import make_folder
from assistant.pocket.box_proposals import STRIDES, BoxHead, place_middles
from assistant.pocket.image_encoder import PocketImageEncoder
from assistant.pocket.sam import PIXEL_MEAN, PIXEL_STD, load_backbone
from assistant.pocket.wheels import backbone_state
from assistant.sam.mask_ops import tight_boxes
from finetune.averaged_training import AveragedTraining
from finetune.log import TrainingLog, cosine_schedule
from finetune.pocket.sam_data import AugmentedDataset, AugmentedImage, ImageDrawer

MAX_MASKS = 100  # of one image
MIN_BOX_SIDE = 6  # px of the training square, of a box that is learned
# Longest sides, px, of the things that the map of each stride is for; they overlap.
SIZES = ((0.0, 80.0), (48.0, 192.0), (128.0, float("inf")))
MIDDLE_RADIUS = 1.5  # strides around a thing's middle in which places are its own
# What a place with no thing counts where not all things are outlined.
NOTHING_WEIGHTS = {"coco": 1.0, "voc": 1.0, "bsds": 1.0, "camvid": 1.0, "pennfudan": 0.5, "clothing": 0.5}
NOTHING_WEIGHT = 0.1  # in the other folders
OUTSIDE_WEIGHT = 0.1  # of the padding
BOX_WEIGHT = 2.0  # of the loss of boxes beside that of quality
WEIGHT_DECAY = 0.05
WARM_UP_STEPS = 100
MAX_GRADIENT_NORM = 5.0
LOG_EVERY = 25  # steps


class Sample(NamedTuple):
    """One item of the training: an image of side S with at most MAX_MASKS boxes.

    Attributes:
        image: (3, S, S) uint8 RGB, padded right and below with grey.
        boxes: (MAX_MASKS, 4) float32 half-open xyxy px; rows without area are padding.
        nothing_weight: (S / 8, S / 8) float32, what it counts that nothing is at a place of the finest map.
    """

    image: Tensor
    boxes: Tensor
    nothing_weight: Tensor


class BoxDataset(AugmentedDataset[Sample]):
    """Images with boxes.

    Args:
        root: The data root.
        size: Side S of the training square, px.
        seed: Of the samples.
        length: Number of samples.

    Raises:
        BadInput: There are no training images.
    """

    def __init__(self, root: Path, size: int, seed: int, length: int):
        super().__init__(ImageDrawer(root, size, MAX_MASKS), seed, length)

    def sample(self, drawn: AugmentedImage, rng: np.random.Generator) -> Sample:
        """The sample of an image, perhaps without a box."""
        padded = torch.zeros(MAX_MASKS, 4)
        if drawn.masks:
            boxes = tight_boxes(torch.from_numpy(np.stack(drawn.masks))).unique(dim=0)
            boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) >= MIN_BOX_SIDE][:MAX_MASKS]
            padded[: len(boxes)] = boxes
        cell = STRIDES[0]
        weight = torch.full((self.size // cell, self.size // cell), OUTSIDE_WEIGHT)
        for folder, (left, top, right, bottom) in drawn.tiles:
            here = np.s_[top // cell : -(-bottom // cell), left // cell : -(-right // cell)]
            weight[here] = NOTHING_WEIGHTS.get(folder, NOTHING_WEIGHT)
        return Sample(drawn.square(self.size), padded, weight)


def assign(boxes: Tensor, size: int) -> Tensor:
    """Which thing each place belongs to.

    Args:
        boxes: (N, 4) xyxy px; rows without area belong nowhere.
        size: Side of the square, px.

    Returns:
        (P,) int64, rows of `boxes`, -1 for no thing; the places in the order of `place_middles`.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(1)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    owners = []
    for places, stride, (low, high) in zip(place_middles(size), STRIDES, SIZES, strict=True):
        longest = sides.amax(1)
        fits = (areas > 0) & (longest >= low) & (longest < high)
        near = (places[:, None] - middle).abs().amax(-1) < MIDDLE_RADIUS * stride
        inside = ((places[:, None] > boxes[:, :2]) & (places[:, None] < boxes[:, 2:])).all(-1)
        cost = torch.where(fits & near & inside, areas, float("inf"))
        smallest, owner = cost.min(1)
        owners.append(torch.where(smallest.isfinite(), owner, -1))
    return torch.cat(owners)


def step_loss(
    logits: Tensor, predicted: Tensor, boxes: Tensor, nothing_weight: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step.

    Args:
        logits: (B, P) of quality.
        predicted: (B, P, 4) boxes, xyxy px.
        boxes: (B, N, 4) boxes of the things, as `Sample.boxes`.
        nothing_weight: (B, h, h), as `Sample.nothing_weight`.

    Returns:
        The loss and the figures that are logged.
    """
    size = nothing_weight.shape[-1] * STRIDES[0]
    owner = torch.stack([assign(of_image, size) for of_image in boxes])
    weights = [F.avg_pool2d(nothing_weight[:, None], s // STRIDES[0]).flatten(1) for s in STRIDES]
    weight = torch.cat(weights, 1)
    is_thing = owner >= 0
    wanted = boxes.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, 4))[is_thing]
    found = predicted[is_thing]
    iou = box_iou(found.detach(), wanted).diagonal()
    quality = torch.zeros_like(logits)
    quality[is_thing] = iou
    weight = torch.where(is_thing, 1.0, weight)
    difference = (logits.sigmoid() - quality).square()
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    count = is_thing.sum().clamp(min=1)
    quality_loss = (weight * difference * entropy).sum() / count
    box_loss = generalized_box_iou_loss(found, wanted, reduction="sum") / count
    figures = {"quality": quality_loss.item(), "box": box_loss.item(), "iou": iou.mean().item()}
    return quality_loss + BOX_WEIGHT * box_loss, figures


@dataclass(frozen=True)
class BoxSettings:
    """How the boxes are trained.

    Attributes:
        data: Root of the training folders, see `finetune.pocket.sam_data`.
        out: Folder of the run.
        steps: Number of steps.
        size: Side of the training images, px, a multiple of 32.
        images: Images of a step.
        lr: Learning rate at its peak.
        save_minutes: Minutes between checkpoints.
        workers: Processes that prepare samples.
        seed: Of the samples and the first weights.
    """

    data: Path
    out: Path
    steps: int = 1600
    size: int = 512
    images: int = 8
    lr: float = 1e-3
    save_minutes: float = 4
    workers: int = 1
    seed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage."""
    parser.add_argument("--data", type=Path, required=True, help="root of the training folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--size", type=int, default=512, help="side of the training images, a multiple of 32")
    parser.add_argument("--images", type=int, default=8, help="images a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    """Read the options and train."""
    settings = BoxSettings(
        data=args.data,
        out=args.out,
        steps=args.steps,
        size=args.size,
        images=args.images,
        lr=args.lr,
        save_minutes=args.save_every,
        workers=args.workers,
        seed=args.seed,
    )
    make_folder(settings.out)
    train(settings)


def train(settings: BoxSettings) -> None:
    """Train to the last step; the averaged weights are in OUT/boxes.safetensors."""
    torch.manual_seed(settings.seed)
    encoder = PocketImageEncoder().to(memory_format=torch.channels_last).eval()
    load_backbone(encoder, backbone_state())
    head = BoxHead().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)
    training = AveragedTraining(head, optimizer, MAX_GRADIENT_NORM)
    first_step = training.resume(settings.out / "state.pt")
    length = settings.steps * settings.images
    batches = DataLoader(
        BoxDataset(settings.data, settings.size, settings.seed, length),
        settings.images,
        sampler=range(first_step * settings.images, length),
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
    )
    log = TrainingLog(settings.out / "log.jsonl", start=first_step)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    saved = time.time()
    head.train()
    for step, batch in enumerate(batches, first_step):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * cosine_schedule(step, settings.steps, WARM_UP_STEPS)
        pixels = ((batch.image.float() - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                maps = encoder.backbone(pixels)
            logits, boxes = head(maps)
        loss, figures = step_loss(logits, boxes, batch.boxes, batch.nothing_weight)
        training.step(loss, step)
        log.add(step, figures, every=LOG_EVERY)
        if time.time() - saved > 60 * settings.save_minutes or step + 1 == settings.steps:
            training.save(settings.out / "state.pt", step + 1)
            training.save_average(settings.out / "boxes.safetensors")
            saved = time.time()

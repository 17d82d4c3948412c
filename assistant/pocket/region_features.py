"""The features of a region for the pocket preset: the frozen backbone's maps averaged under its mask, twice.

    regions = compute_region_features(encoder, resized, embedding.maps, masks, boxes, areas, head)
    regions.features, regions.classes                 # (N, FEATURE_DIM), (N, 1000)

Once on the whole image (context, shared with SAM's pass) and once on a crop around the region (detail: a cup
of 20 px becomes 100 px). On ground-truth regions of coco/dev a small head names 80 categories with .67 top-1
from both, .58 from the whole image alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.pocket.image_encoder import BACKBONE_CHANNELS, IMAGE_SIZE, PocketImageEncoder
from assistant.pocket.imagenet_head import ImageNetHead
from assistant.sam.mask_ops import pad_to_square
from assistant.sam.region_features import GEOMETRY, geometry, pooled

CROP_SIDE = 160  # px, side of a region's crop
CROP_SCALE, CROP_MARGIN = 1.2, 8  # a crop is so many times as large as its region's box, and so many px more
STRIDE16_CHANNELS, STRIDE32_CHANNELS = BACKBONE_CHANNELS[2:]
# Length of a region's feature vector: both deep maps on the whole image and on the crop, the stride-32 map of
# the whole image, and the geometry.
FEATURE_DIM = 2 * (STRIDE16_CHANNELS + STRIDE32_CHANNELS) + STRIDE32_CHANNELS + GEOMETRY
# How much of the surroundings in a crop the ImageNet head sees: of 114 outlined things of DUTS it names .851
# rightly without any, .877 with all, .868 with this; with all of them it sees what lies beside a region, too.
SURROUNDINGS_WEIGHT = 0.3


class RegionFeatures(NamedTuple):
    """What is computed of the N regions of an image.

    Attributes:
        features: (N, FEATURE_DIM) float32.
        classes: (N, 1000) float32 logits of ImageNet's classes; (N, 0) where no head was given.
    """

    features: Tensor
    classes: Tensor


def fixed_size_batches(count: int, size: int) -> tuple[Tensor, ...]:
    """The indices 0 to count - 1 in batches of exactly `size`, the last filled up with its last index.

    For every new batch size oneDNN would compile new kernels and hold them in memory: hundreds of MB over
    a few images.

    Args:
        count: Number of indices, at least 1.
        size: Of each batch.

    Returns:
        Batches (size,) int64.
    """
    full = torch.arange(-(-count // size) * size).clamp(max=count - 1)
    return full.split(size)


def normalise(pixels: np.ndarray, device: torch.device | str) -> Tensor:
    """Pixels (..., H, W, 3) uint8 RGB -> (..., 3, H, W) float32 as the backbone was trained."""
    return (torch.from_numpy(pixels).to(device).movedim(-1, -3).float() - 127) / 128


def _deep_maps(encoder: PocketImageEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised (B, 3, h, w) -> the maps at stride 16 (B, 120, h/16, w/16) and 32 (B, 352, h/32, w/32)."""
    maps = encoder.backbone(pixels.contiguous(memory_format=torch.channels_last))
    return maps[2].float(), maps[3].float()


@torch.inference_mode()
def compute_region_features(
    encoder: PocketImageEncoder,
    image: np.ndarray,
    maps: Sequence[Tensor],
    masks: Tensor,
    boxes: Tensor,
    areas: Tensor,
    head: ImageNetHead | None = None,
    batch_size: int = 16,
) -> RegionFeatures:
    """The features of N regions of one image.

    Args:
        encoder: The pocket SAM's.
        image: (h, w, 3) uint8 RGB with its longest side at IMAGE_SIZE.
        maps: The backbone's maps of the image, finest first, as in `Embedding`.
        masks: (N, S, S) float in [0, 1] over the padded square, for any S.
        boxes: (N, 4) half-open xyxy px of `image`.
        areas: (N,) px of `image`.
        head: Classifies the regions; None to leave that out.
        batch_size: Crops at a time.
    """
    device = masks.device
    height, width = image.shape[:2]
    pixels = normalise(pad_to_square(image, IMAGE_SIZE), device)[None]
    crops = _crop_features(encoder, pixels, masks, boxes, head, batch_size)
    stride16, stride32 = maps[2].float(), maps[3].float()
    scene = stride32[:, :, : -(-height // 32), : -(-width // 32)].mean((2, 3)).expand(len(boxes), -1)
    parts = [
        pooled(stride16, masks),
        pooled(stride32, masks),
        crops.features,
        scene,
        geometry(boxes, areas, (height, width)),
    ]
    return RegionFeatures(torch.cat([part.to(device) for part in parts], 1), crops.classes)


def _crop_features(
    encoder: PocketImageEncoder,
    pixels: Tensor,
    masks: Tensor,
    boxes: Tensor,
    head: ImageNetHead | None,
    batch_size: int,
) -> RegionFeatures:
    """The deep maps of a crop around each region, averaged under its mask, and what `head` says of it.

    pixels: (1, 3, IMAGE_SIZE, IMAGE_SIZE) normalised; masks and boxes as above.
    """
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1) * CROP_SCALE + CROP_MARGIN
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    features, classes = [], []
    for part in fixed_size_batches(len(boxes), batch_size):
        grid = crop_grid(centre[part], side[part]).to(masks.device)
        crops = F.grid_sample(
            pixels.expand(len(part), -1, -1, -1),
            grid,
            mode="bilinear",
            align_corners=False,
            padding_mode="zeros",
        )
        crop_masks = F.grid_sample(masks[part][:, None], grid, mode="bilinear", align_corners=False)[:, 0]
        stride16, stride32 = _deep_maps(encoder, crops)
        features.append(torch.cat([pooled(stride16, crop_masks), pooled(stride32, crop_masks)], 1))
        if head:
            attended = SURROUNDINGS_WEIGHT + (1 - SURROUNDINGS_WEIGHT) * crop_masks
            classes.append(head(stride32, attended).float())
    none = torch.zeros(len(boxes), 0, device=masks.device)
    return RegionFeatures(
        torch.cat(features)[: len(boxes)], torch.cat(classes)[: len(boxes)] if classes else none
    )


def crop_grid(centre: Tensor, side: Tensor) -> Tensor:
    """The grid with which `grid_sample` cuts square crops from the padded square.

    Args:
        centre: (N, 2) xy px of the padded square.
        side: (N,) px of the padded square.

    Returns:
        (N, CROP_SIDE, CROP_SIDE, 2) float32 xy in [-1, 1] of the padded square; crops may reach beyond it.
    """
    line = (torch.arange(CROP_SIDE) + 0.5) / CROP_SIDE - 0.5
    x = centre[:, 0, None] + side[:, None] * line  # (N, CROP_SIDE)
    y = centre[:, 1, None] + side[:, None] * line
    grid = torch.stack([x[:, None, :].expand(-1, CROP_SIDE, -1), y[:, :, None].expand(-1, -1, CROP_SIDE)], -1)
    return grid / IMAGE_SIZE * 2 - 1

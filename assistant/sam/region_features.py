"""What a selector reads of a region besides its mask: features averaged under it, and its geometry.

features = pooled(embedding.features, masks)       # (N, C)
shape = geometry(boxes, areas, (height, width))    # (N, GEOMETRY)
"""

import torch
from torch import Tensor
from torch.nn import functional as F

GEOMETRY = 9  # numbers of `geometry` for each region


def pooled(features: Tensor, masks: Tensor) -> Tensor:
    """Average features under soft masks.

    Args:
        features: (1, C, h, w) float, or (N, C, h, w) for features of their own of each mask.
        masks: (N, H, W) float in [0, 1], over the same square as `features`.

    Returns:
        (N, C) float.
    """
    height, width = features.shape[-2:]
    weights = F.adaptive_avg_pool2d(masks[:, None], (height, width))[:, 0].flatten(1)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    if len(features) == 1:
        return weights @ features[0].flatten(1).T
    return torch.einsum("nchw,nhw->nc", features, weights.view(-1, height, width))


def geometry(boxes: Tensor, areas: Tensor, size: tuple[int, int]) -> Tensor:
    """Describe where regions are and how large.

    Args:
        boxes: (N, 4) xyxy px.
        areas: (N,) px.
        size: (H, W) of the image, px.

    Returns:
        (N, 9) float: the centre (x, y), the width and the height as shares of the image's sides, a quarter of
        their logarithms, the square root of the area's share, the filled share of the box, and half the
        logarithm of its aspect ratio.
    """
    image_height, image_width = size
    x0, y0, x1, y1 = boxes.float().unbind(1)
    width = (x1 - x0).clamp(min=1) / image_width
    height = (y1 - y0).clamp(min=1) / image_height
    share = areas.float() / (image_height * image_width)
    return torch.stack(
        [
            (x0 + x1) / 2 / image_width,
            (y0 + y1) / 2 / image_height,
            width,
            height,
            width.log() / 4,
            height.log() / 4,
            share.sqrt(),
            share / (width * height),
            (width * image_width / (height * image_height)).log() / 2,
        ],
        1,
    )

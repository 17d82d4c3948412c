"""What is known of a region of a picture besides its mask: features averaged under it, and its geometry."""

import torch
from torch import Tensor
from torch.nn import functional as F

GEOMETRY = 9


def pooled(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of features under soft masks. (B, C, h, w) or (1, C, h, w), (N, H, W) in [0, 1] -> (N, C)."""
    weights = F.adaptive_avg_pool2d(masks[:, None], features.shape[-2:])[:, 0].flatten(1)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    if len(features) == 1:
        return weights @ features[0].flatten(1).T
    return torch.einsum("nchw,nhw->nc", features, weights.view(-1, *features.shape[-2:]))


def geometry(boxes: Tensor, areas: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 4) xyxy px, (N,) px, (H, W) -> (N, 9): centre, sides, sides' logs, root of the area share, fill, aspect."""
    h, w = size
    x0, y0, x1, y1 = boxes.float().unbind(1)
    bw, bh = (x1 - x0).clamp(min=1) / w, (y1 - y0).clamp(min=1) / h
    share = areas.float() / (h * w)
    return torch.stack(
        [
            (x0 + x1) / 2 / w,
            (y0 + y1) / 2 / h,
            bw,
            bh,
            bw.log() / 4,
            bh.log() / 4,
            share.sqrt(),
            share / (bw * bh),
            (bw * w / (bh * h)).log() / 2,
        ],
        1,
    )

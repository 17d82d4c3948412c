"""SAMs of random weights that draw masks, for `python -m eval speed` and for tests.

    sam = random_sam("tiny")                       # a segment_anything.modeling.Sam
    teach(sam, steps=80, seed=0)                   # its decoder learns to draw discs around clicks
    settings = thresholds(segmenter, embedding, points_per_side=32)

Random weights draw noise, which no threshold and no suppression treat as they treat masks. So the decoder
first learns to draw discs of three sizes around a click and to predict their IoU, and the thresholds are then
set by quantile so that a realistic share of the masks passes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from assistant.sam.segmenter import Embedding, Segmenter

# Random embeddings are scaled down beside the positional encoding, so that clicks count.
RANDOM_SCALE = 0.3
POSITION_GAIN = 2.0  # of the attention to positions, so that it is not flat

# How `teach` trains: the sides of the square are the unit of length.
CLICKS_PER_STEP = 16
GRID_SIDE = 16  # cells of the coarse grid of random features
DISC_RADII = (0.06, 0.12, 0.25)
LEARNING_RATE = 1e-3
MASK_LOSS_WEIGHT = 2.5

# Shares that `thresholds` lets pass: of the masks by predicted IoU, and of those by stability.
PASSING_IOU_SHARE = 0.4
PASSING_STABILITY_SHARE = 0.6
MAX_THRESHOLD_POINTS_PER_SIDE = 8  # of the coarse grid by which the thresholds are set


def random_sam(model: str) -> Any:
    """A `segment_anything.modeling.Sam` of random weights whose masks depend on the click.

    Args:
        model: "vit_b" for the size of SAM ViT-B, "tiny" for 128 px and 190 thousand parameters.

    Returns:
        The SAM on the CPU. Its weights depend on torch's global random state.
    """
    import torch
    from segment_anything import sam_model_registry

    sam = sam_model_registry["vit_b"]() if model == "vit_b" else tiny_sam()
    prompts, decoder = sam.prompt_encoder, sam.mask_decoder
    embeddings = (
        decoder.iou_token,
        decoder.mask_tokens,
        prompts.not_a_point_embed,
        *prompts.point_embeddings,
    )
    with torch.no_grad():
        sam.image_encoder.neck[-1].weight.mul_(RANDOM_SCALE)
        for layer in decoder.transformer.layers:
            _attend_to_own_position(layer.cross_attn_image_to_token)
        for embedding in embeddings:
            embedding.weight.mul_(RANDOM_SCALE)
    return sam


def _attend_to_own_position(attention: Any) -> None:
    """Make the image attend to tokens at its own position: the same frequencies on both sides."""
    import torch

    inner, width = attention.q_proj.weight.shape
    weight = torch.zeros(inner, width)
    frequency = torch.arange(inner // 2) * (width // 2) // (inner // 2)
    weight[torch.arange(0, inner, 2), frequency] = POSITION_GAIN
    weight[torch.arange(1, inner, 2), frequency + width // 2] = POSITION_GAIN
    for linear in (attention.q_proj, attention.k_proj):
        linear.weight.copy_(weight)
        linear.bias.zero_()


def tiny_sam() -> Any:
    """A random `segment_anything.modeling.Sam` of 128 px and 190 thousand parameters."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(
        img_size=128,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        out_chans=64,
        use_rel_pos=True,
        window_size=4,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=64, num_heads=8, mlp_dim=128)
    decoder = MaskDecoder(transformer_dim=64, transformer=transformer, iou_head_hidden_dim=64)
    return Sam(encoder, PromptEncoder(64, (16, 16), (128, 128), 16), decoder).eval()


def teach(sam: Any, steps: int, seed: int) -> None:
    """Train the mask decoder to draw discs around a click, and to predict their IoU.

    It learns on a coarse grid of random features. Positions are in units of the square's side, so what it
    learns carries over to any grid.

    Args:
        sam: Changed in place, and frozen afterwards.
        steps: Number of training steps.
        seed: Of the features and clicks.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    decoder, prompts, device = sam.mask_decoder, sam.prompt_encoder, sam.device
    width, side = prompts.embed_dim, prompts.input_image_size[0]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE)
    positions = prompts.pe_layer((GRID_SIDE, GRID_SIDE))[None].detach()
    labels = torch.ones(CLICKS_PER_STEP, 1, device=device)
    for _ in range(steps):
        features = RANDOM_SCALE * torch.randn(1, width, GRID_SIDE, GRID_SIDE, generator=generator).to(device)
        clicks = torch.rand(CLICKS_PER_STEP, 1, 2, generator=generator).to(device)
        sparse, dense = prompts((clicks * side, labels), None, None)
        no_mask = dense[..., :1, :1].detach()
        logits, iou = decoder(features, positions, sparse.detach(), no_mask, True)
        loss = _disc_loss(logits, iou, _discs(clicks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sam.requires_grad_(False)


def _discs(clicks: Tensor) -> Tensor:
    """The discs around clicks (P, 1, 2), xy in [0, 1], one of each of `DISC_RADII`: (P, 3, h, w) float."""
    import torch

    cells = 4 * GRID_SIDE
    line = (torch.arange(cells, device=clicks.device) + 0.5) / cells
    x = clicks[..., 0, None] - line
    y = (clicks[..., 1, None] - line).transpose(1, 2)
    return torch.stack([(x**2 + y**2).sqrt() < radius for radius in DISC_RADII], 1).float()


def _disc_loss(logits: Tensor, iou: Tensor, discs: Tensor) -> Tensor:
    """Weighted cross entropy and Dice of masks (P, 3, h, w), and the squared error of their IoU (P, 3)."""
    from torch.nn import functional as F

    weight = discs / discs.mean((2, 3), keepdim=True).clamp(min=1e-3) + 1 - discs
    loss = F.binary_cross_entropy_with_logits(logits, discs, weight=weight) * MASK_LOSS_WEIGHT
    soft, hard = logits.sigmoid(), logits.detach() > 0
    loss = loss + 1 - (2 * (soft * discs).sum((2, 3)) / (soft + discs).sum((2, 3))).mean()
    true_iou = (hard * discs).sum((2, 3)) / ((hard + discs) > 0).sum((2, 3))
    return loss + (iou - true_iou).square().mean()


def thresholds(segmenter: Segmenter, embedding: Embedding, points_per_side: int) -> dict[str, float]:
    """Set the thresholds of everything mode so that a realistic share of the masks passes.

    Args:
        segmenter: Of random weights.
        embedding: The image.
        points_per_side: Of the grid that will be clicked; the thresholds are set on a coarser one.

    Returns:
        Settings of `assistant.sam.proposals.everything`.
    """
    import numpy as np
    import torch

    count = min(MAX_THRESHOLD_POINTS_PER_SIDE, points_per_side)
    line = (np.arange(count) + 0.5) / count
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2) * embedding.size[::-1]
    logits, iou = segmenter.predict_many(embedding, points, np.ones((count * count, 1), int))
    min_iou = float(iou.quantile(1 - PASSING_IOU_SHARE))
    logits = logits[iou > min_iou]
    offset = 0.25 * float(logits.abs().median())
    area_above, area_below = (logits > offset).sum((1, 2)), (logits > -offset).sum((1, 2))
    stability = area_above / area_below.clamp(min=1)
    return {
        "pred_iou_thresh": round(min_iou, 4),
        "stability_score_offset": round(offset, 4),
        "stability_score_thresh": round(float(torch.quantile(stability, 1 - PASSING_STABILITY_SHARE)), 4),
    }

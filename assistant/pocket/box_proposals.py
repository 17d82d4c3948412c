"""Boxes of whatever stands out in an image, of any class: where everything mode asks SAM.

    head = load_box_head(pocket_file("boxes.safetensors"))
    boxes, scores = head.propose(embedding.maps, height=384, width=512)     # best first

A region proposal network (Ren et al. 2015, arXiv 1506.01497) of FCOS's kind (Tian et al. 2019, arXiv
1904.01355): every place of three maps predicts one box, and how well that box fits, which is learned as an
IoU (Li et al. 2020, arXiv 2006.04388). It reads the frozen backbone's maps alone, so that it does not depend
on SAM's neck. MobileSAMv2 (Zhang et al. 2023, arXiv 2312.09579) showed that SAM answers the boxes of a
detector better and sooner than a grid of clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

from assistant.pocket.image_encoder import BACKBONE_CHANNELS, ConvBlock, double
from assistant.weights import load_weights

STRIDES = (8, 16, 32)  # px, of the maps on which boxes are predicted
WIDTH = 96  # channels inside
OUTPUTS = 5  # of a place: quality, and the distances to the left, top, right and bottom edge
INITIAL_QUALITY_LOGIT = -4.0  # few places show the middle of a thing (Lin et al. 2017, arXiv 1708.02002)
MAX_LOG_REACH = 4.0  # of a distance in strides, beyond which it does not grow

MAX_CANDIDATES = 400  # best places of an image whose boxes are compared
MAX_BOXES = 80  # of an image
MIN_SIDE = 2  # px, of a box inside the image
DUPLICATE_BOX_IOU = 0.7  # above it, two boxes are one


def place_middles(size: int) -> list[Tensor]:
    """The middles of the places of a square of `size` px, for each stride (n, 2) float32 xy px."""
    middles = []
    for stride in STRIDES:
        steps = (torch.arange(size // stride) + 0.5) * stride
        ys, xs = torch.meshgrid(steps, steps, indexing="ij")
        middles.append(torch.stack([xs.flatten(), ys.flatten()], -1))
    return middles


class BoxHead(nn.Module):
    """Predicts the boxes of things from the backbone's maps."""

    def __init__(self) -> None:
        super().__init__()
        c4, c8, c16, c32 = BACKBONE_CHANNELS
        # The channels' scales differ by orders of magnitude; their statistics come with training.
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, affine=False) for c in BACKBONE_CHANNELS)
        self.lateral32 = nn.Conv2d(c32, WIDTH, 1)
        self.context = nn.Linear(c32, WIDTH)
        self.lateral16 = nn.Conv2d(c16, WIDTH, 1)
        self.lateral8 = nn.Conv2d(c8 + 4 * c4, WIDTH, 1)  # the map of stride 4 is folded to stride 8
        self.blocks32, self.blocks16, self.blocks8 = (
            nn.Sequential(ConvBlock(WIDTH, kernel, 2), ConvBlock(WIDTH, kernel, 2)) for kernel in (5, 7, 7)
        )
        self.branches = nn.ModuleList(ConvBlock(WIDTH, 5, 2) for _ in STRIDES)
        self.outputs = nn.ModuleList(nn.Conv2d(WIDTH, OUTPUTS, 1) for _ in STRIDES)
        for output in self.outputs:
            assert isinstance(output, nn.Conv2d) and output.bias is not None
            nn.init.constant_(output.bias[:1], INITIAL_QUALITY_LOGIT)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict a box at every place.

        Args:
            maps: The backbone's at strides 4, 8, 16 and 32 of a square, (B, C, h, h) each.

        Returns:
            Logits of quality (B, P) and boxes (B, P, 4) xyxy px of the square, both float32, the places in
            the order of `place_middles`.
        """
        s4, s8, s16, s32 = (norm(x.float()) for norm, x in zip(self.norms, maps, strict=True))
        x32 = self.lateral32(s32) + self.context(s32.mean((2, 3)))[:, :, None, None]
        x32 = self.blocks32(x32)
        x16 = self.blocks16(self.lateral16(s16) + double(x32))
        x8 = self.blocks8(self.lateral8(torch.cat([s8, F.pixel_unshuffle(s4, 2)], 1)) + double(x16))
        logits, boxes = [], []
        middles = place_middles(s4.shape[2] * 4)
        for k, x in enumerate((x8, x16, x32)):
            predicted = self.outputs[k](self.branches[k](x)).flatten(2).transpose(1, 2).float()
            reach = predicted[..., 1:].clamp(max=MAX_LOG_REACH).exp() * STRIDES[k]
            middle = middles[k].to(reach.device)
            logits.append(predicted[..., 0])
            boxes.append(torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1))
        return torch.cat(logits, 1), torch.cat(boxes, 1)

    @torch.inference_mode()
    def propose(
        self, maps: Sequence[Tensor], height: int, width: int, max_boxes: int = MAX_BOXES
    ) -> tuple[Tensor, Tensor]:
        """The boxes of an image.

        Args:
            maps: The backbone's at strides 4, 8, 16 and 32, (1, C, h, h) each.
            height, width: Of the image in the padded square, px.
            max_boxes: Number of boxes at most.

        Returns:
            Boxes (N, 4) float32 xyxy px of the square, inside the image, and their expected IoU with a thing
            (N,) float32, best first. None overlaps a better one by more than DUPLICATE_BOX_IOU.
        """
        logits, boxes = self(maps)
        quality, best = logits[0].sigmoid().topk(min(MAX_CANDIDATES, logits.shape[1]))
        boxes = clip_boxes_to_image(boxes[0, best], (height, width))
        in_image = remove_small_boxes(boxes, MIN_SIDE)
        boxes, quality = boxes[in_image], quality[in_image]
        kept = nms(boxes, quality, DUPLICATE_BOX_IOU)[:max_boxes]
        return boxes[kept], quality[kept]


def load_box_head(file: Path) -> BoxHead:
    """Load what `python -m finetune boxes` wrote.

    Raises:
        BadInput: It cannot be read, or holds something else.
    """
    head = BoxHead()
    load_weights(head, file)
    return head.eval()

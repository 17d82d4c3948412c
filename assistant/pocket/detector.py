"""NanoDet-g, a detector of COCO's 80 categories: the boxes of everyday things, with their names.

    detector = load_detector(pocket_file("detector.safetensors"))
    maps = detector.maps_of(image)
    found = detector.detect(maps, height=384, width=512)     # Detections, surest first

The architecture and the weights are NanoDet-g's (https://github.com/RangiLyu/nanodet, Apache-2.0): a small
CSP network, a path aggregation network, and a head at each of three strides, trained with generalized focal
loss (Li et al. 2020, arXiv 2006.04388). Its authors trained it on COCO train2017 (22.9 AP on val2017 at
416 px).
`python -m finetune detector` converts the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from assistant.pocket.box_proposals import STRIDES, place_middles
from assistant.pocket.image_encoder import IMAGE_SIZE, resize_longest_side
from assistant.sam.mask_ops import pad_to_square
from assistant.weights import load_weights

DETECTOR = "detector.safetensors"  # the weights, among those of the pocket preset
CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
MAP_CHANNELS = 128  # of each map that the detector's last layer reads
STAGE_CHANNELS = (32, 64, 128, 256)  # at which the CSP stages start; each doubles them
STAGE_UNITS = (1, 2, 2, 3)
REACH_BINS = 11  # of the distribution of a distance, 0 to 10 strides
SLOPE = 0.1  # of the leaky ReLUs
# Blue, green and red: the order, the mean and the deviation with which it was trained.
PIXEL_MEAN = (103.53, 116.28, 123.675)
PIXEL_STD = (57.375, 57.12, 58.395)

MIN_SCORE = 0.05  # of a detection
SAME_BOX_IOU = 0.6  # above it, two boxes of a category are one
MAX_DETECTIONS = 100
MIN_SIDE = 2  # px, of a box inside the image


class Detections(NamedTuple):
    """N things in an image, surest first.

    Attributes:
        boxes: (N, 4) float32 xyxy px of the padded square, inside the image.
        scores: (N,) float32 in [0, 1].
        categories: (N,) int64, indices into CATEGORIES.
    """

    boxes: Tensor
    scores: Tensor
    categories: Tensor

    def of(self, category: int) -> Detections:
        """Those of one category."""
        mine = self.categories == category
        return Detections(self.boxes[mine], self.scores[mine], self.categories[mine])

    def highest_score(self) -> float:
        """That of the surest one; 0 without any."""
        return float(self.scores.max()) if len(self.scores) else 0.0

    def support(self, boxes: Tensor) -> Tensor:
        """How surely each of N boxes (N, 4) xyxy px of the square is one of these things.

        Returns:
            (N,) float32 in [0, 1]: the highest product of a score and the IoU with that thing's box.
        """
        if not len(self.scores):
            return torch.zeros(len(boxes))
        return (box_iou(boxes, self.boxes) * self.scores).amax(1)


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution and a leaky ReLU; batch normalisation is folded into the published weights."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2), nn.LeakyReLU(SLOPE, inplace=True)
    )


class _CspUnit(nn.Module):
    """Two convolutions, the output of both side by side: (B, C, H, W) -> (B, 2 x width, H, W)."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.first = _convolution(inputs, width)
        self.second = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return torch.cat([self.second(first), first], 1)


class _CspStage(nn.Module):
    """A stage of the network: (B, C, H, W) -> (B, 2C, H / stride, W / stride)."""

    def __init__(self, channels: int, units: int, stride: int):
        super().__init__()
        self.entry = _convolution(channels, channels, stride=stride)
        self.units = nn.Sequential(*(_CspUnit(channels, channels // 2) for _ in range(units)))
        self.exit = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        entry = self.entry(x)
        return torch.cat([self.exit(self.units(entry)), entry], 1)


class Detector(nn.Module):
    """NanoDet-g. Its modules are declared in the order in which the published network runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, STAGE_CHANNELS[0], stride=2)
        self.stages = nn.ModuleList(
            _CspStage(channels, units, 1 if k == 0 else 2)
            for k, (channels, units) in enumerate(zip(STAGE_CHANNELS, STAGE_UNITS, strict=True))
        )
        self.laterals = nn.ModuleList(
            nn.Conv2d(2 * channels, MAP_CHANNELS, 1) for channels in STAGE_CHANNELS[1:]
        )
        self.heads = nn.ModuleList(_convolution(MAP_CHANNELS, MAP_CHANNELS) for _ in STRIDES)
        self.outputs = nn.ModuleList(
            nn.Conv2d(MAP_CHANNELS, len(CATEGORIES) + 4 * REACH_BINS, 1) for _ in STRIDES
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The maps from which things are told: what is known of each place.

        Args:
            pixels: (B, 3, S, S), see `detector_pixels`; S a multiple of 32.

        Returns:
            (B, MAP_CHANNELS, S / 8, S / 8), and the same for strides 16 and 32.
        """
        x = F.max_pool2d(self.stem(pixels), 3, 2, padding=1)
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        s8, s16, s32 = (lateral(x) for lateral, x in zip(self.laterals, stages[1:], strict=True))
        s16 = s16 + _resized(s32, 2)
        s8 = s8 + _resized(s16, 2)
        s16 = s16 + _resized(s8, 0.5)
        s32 = s32 + _resized(s16, 0.5)
        return tuple(head(x) for head, x in zip(self.heads, (s8, s16, s32), strict=True))

    @torch.inference_mode()
    def maps_of(self, image: np.ndarray) -> tuple[Tensor, ...]:
        """What `forward` gives for one image (H, W, 3) uint8 RGB, in the square that SAM encodes."""
        return self(detector_pixels(pad_to_square(resize_longest_side(image), IMAGE_SIZE)[None]))

    def places(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What `forward` gives -> logits (B, P, 80) and boxes (B, P, 4) xyxy px, both float32.

        The places are in the order of `box_proposals.place_middles`.
        """
        logits, boxes = [], []
        middles = place_middles(maps[0].shape[-1] * STRIDES[0])
        bins = torch.arange(REACH_BINS, dtype=torch.float32)
        for x, output, middle, stride in zip(maps, self.outputs, middles, STRIDES, strict=True):
            of_place = output(x).float().flatten(2).transpose(1, 2)
            logits.append(of_place[..., : len(CATEGORIES)])
            distributions = of_place[..., len(CATEGORIES) :].unflatten(-1, (4, REACH_BINS))
            reach = distributions.softmax(-1) @ bins * stride
            boxes.append(torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1))
        return torch.cat(logits, 1), torch.cat(boxes, 1)

    @torch.inference_mode()
    def detect(self, maps: Sequence[Tensor], height: int, width: int) -> Detections:
        """The things in one image.

        Args:
            maps: What `forward` gives, B = 1.
            height, width: Of the image in the padded square, px.
        """
        logits, boxes = self.places(maps)
        scores = logits[0].sigmoid()
        place, category = (scores >= MIN_SCORE).nonzero(as_tuple=True)
        boxes = clip_boxes_to_image(boxes[0, place], (height, width))
        in_image = remove_small_boxes(boxes, MIN_SIDE)
        return distinct_detections(boxes[in_image], scores[place, category][in_image], category[in_image])


def no_detections() -> Detections:
    """What is detected in an empty image."""
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))


def distinct_detections(boxes: Tensor, scores: Tensor, categories: Tensor) -> Detections:
    """Each thing once: of boxes of a category that overlap by more than SAME_BOX_IOU, the surest."""
    kept = batched_nms(boxes, scores, categories, SAME_BOX_IOU)[:MAX_DETECTIONS]
    return Detections(boxes[kept], scores[kept], categories[kept])


def _resized(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def detector_pixels(squares: np.ndarray) -> Tensor:
    """Padded squares (B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32, as the detector reads them."""
    pixels = torch.from_numpy(squares[..., ::-1].astype(np.float32))
    pixels = (pixels - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    return pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def load_detector(file: Path) -> Detector:
    """Load what `python -m finetune detector` wrote.

    Raises:
        BadInput: It cannot be read, or holds something else.
    """
    detector = Detector()
    load_weights(detector, file)
    return detector.eval().to(memory_format=torch.channels_last)

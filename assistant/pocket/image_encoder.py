"""The image encoder of the pocket SAM: a frozen EfficientNet-Lite2 under a trained top-down neck.

encoder = PocketImageEncoder()
embedding = encoder(pixels)            # (B, 3, 512, 512) normalised RGB -> (B, EMBEDDING_CHANNELS, 32, 32)
"""

import copy

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

IMAGE_SIZE = 512  # px, side of the square that an image is padded to (SAM: 1024)
WIDTH = 128  # channels of the embedding and of the mask decoder (SAM: 256)
SKIP8_CHANNELS = 32  # of the stride-8 skip map
SKIP4_CHANNELS = 16  # of the stride-4 skip map
GRID_SIDE = IMAGE_SIZE // 16  # cells along a side of the embedding
EMBEDDING_CHANNELS = WIDTH + 4 * SKIP8_CHANNELS + 16 * SKIP4_CHANNELS  # the skip maps are folded to stride 16
BACKBONE_CHANNELS = (24, 48, 120, 352)  # of EfficientNet-Lite2 at strides 4, 8, 16 and 32
BACKBONE_NAME = "tf_efficientnet_lite2"  # in timm


def resize_longest_side(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 with its longest side at IMAGE_SIZE, as the segmenter encodes it."""
    height, width = image.shape[:2]
    scale = IMAGE_SIZE / max(height, width)
    size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def as_timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the wheel's EfficientNet-Lite2, classifier included, under timm's names.

    Args:
        state: `assistant.pocket.wheels.backbone_state()`, in timm's order and under other names.

    Raises:
        ValueError: The tensors are not those of EfficientNet-Lite2.
    """
    expected = timm.create_model(BACKBONE_NAME).state_dict()
    values = list(state.values())
    if len(values) != len(expected) or any(
        a.shape != b.shape for a, b in zip(values, expected.values(), strict=True)
    ):
        raise ValueError("the backbone checkpoint does not hold the tensors of EfficientNet-Lite2")
    return dict(zip(expected, values, strict=True))


class ConvBlock(nn.Module):
    """A depthwise convolution, then a two-layer MLP over channels, inside one residual (ConvNeXt's order).

    Args:
        width: Channels of the input and the output.
        kernel: Side of the depthwise convolution, odd.
        expansion: Hidden width of the MLP in units of `width`.
    """

    def __init__(self, width: int, kernel: int, expansion: int):
        super().__init__()
        self.spatial = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = self.spatial(x).permute(0, 2, 3, 1)
        return x + self.down(F.gelu(self.up(self.norm(y)), approximate="tanh")).permute(0, 3, 1, 2)


def double(x: Tensor) -> Tensor:
    """Resize (B, C, h, w) to twice its sides."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _resize_like(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Neck(nn.Module):
    """A top-down pyramid over the backbone's strides 32, 16, 8 and 4, packed into one embedding.

    Args:
        channels: Of the backbone's maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, channels: tuple[int, int, int, int] = BACKBONE_CHANNELS):
        super().__init__()
        c4, c8, c16, c32 = channels
        self.lateral32 = nn.Conv2d(c32, WIDTH, 1)
        self.context = nn.Linear(c32, WIDTH)  # what the whole image shows, for every position
        self.blocks32 = nn.Sequential(*[ConvBlock(WIDTH, 5, 2) for _ in range(2)])
        self.lateral16 = nn.Conv2d(c16, WIDTH, 1)
        self.blocks16 = nn.Sequential(*[ConvBlock(WIDTH, 7, 3) for _ in range(3)])
        self.lateral8 = nn.Conv2d(c8, 64, 1)
        self.top8 = nn.Conv2d(WIDTH, 64, 1)
        self.blocks8 = nn.Sequential(ConvBlock(64, 5, 2))
        self.lateral4 = nn.Conv2d(c4, 32, 1)
        self.top4 = nn.Conv2d(64, 32, 1)
        self.blocks4 = nn.Sequential(ConvBlock(32, 5, 2))
        self.out16 = nn.LayerNorm(WIDTH)
        self.out8 = nn.Conv2d(64, SKIP8_CHANNELS, 1)
        self.out4 = nn.Conv2d(32, SKIP4_CHANNELS, 1)

    def forward(self, s4: Tensor, s8: Tensor, s16: Tensor, s32: Tensor) -> Tensor:
        """The backbone's maps, finest first -> (B, EMBEDDING_CHANNELS, H / 16, W / 16)."""
        x = self.lateral32(s32) + self.context(s32.mean((2, 3)))[:, :, None, None]
        x = self.blocks32(x)
        x = self.blocks16(self.lateral16(s16) + _resize_like(x, s16))
        core = self.out16(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.blocks8(self.lateral8(s8) + _resize_like(self.top8(x), s8))
        skip8 = F.pixel_unshuffle(self.out8(x), 2)
        x = self.blocks4(self.lateral4(s4) + _resize_like(self.top4(x), s4))
        skip4 = F.pixel_unshuffle(self.out4(x), 4)
        return torch.cat([core, skip8, skip4], 1)


def deepest_stages(backbone: nn.Module | None = None) -> nn.Sequential:
    """A copy of a backbone's last two stages, which make its map at stride 32 of that at stride 16.

    Args:
        backbone: That of a `PocketImageEncoder`; None for untrained stages.

    Returns:
        (B, 120, h, w) -> (B, 352, h / 2, w / 2), in evaluation mode.
    """
    backbone = backbone or timm.create_model(BACKBONE_NAME, features_only=True)
    stages = list(backbone.get_submodule("blocks").children())[-2:]
    return nn.Sequential(*copy.deepcopy(stages)).eval().requires_grad_(True)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch normalisation of a frozen network into the convolution before it, in place.

    The output stays the same up to rounding, and EfficientNet-Lite2 takes a third less time on a CPU.

    Args:
        network: A network of timm in evaluation mode, whose normalisations hold the activation that follows.
    """
    for parent in list(network.modules()):
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(before, nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
                folded = fuse_conv_bn_eval(before, child)
                before.weight, before.bias = folded.weight, folded.bias
                parent.set_submodule(name, getattr(child, "act", nn.Identity()))
            before = child


class PocketImageEncoder(nn.Module):
    """The frozen backbone and the neck, as `segment_anything.modeling.Sam` calls its image encoder."""

    img_size = IMAGE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(BACKBONE_NAME, features_only=True, out_indices=(1, 2, 3, 4))
        self.backbone.requires_grad_(False)
        self.neck = Neck()

    @property
    def embedding_channels(self) -> int:
        """Channels of the embedding."""
        return EMBEDDING_CHANNELS

    def train(self, mode: bool = True) -> "PocketImageEncoder":
        """As every module's `train`, but the frozen backbone keeps ImageNet's batch statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 512, 512) normalised RGB -> (B, EMBEDDING_CHANNELS, 32, 32)."""
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            maps = self.backbone(x)
        return self.neck(*maps)

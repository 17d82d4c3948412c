"""EfficientNet-Lite2's own classifier of ImageNet's 1,000 classes, for crops of regions.

    head = load_imagenet_head(backbone_state())
    logits = head(stride32, masks)                    # (B, 352, h, w), (B, H, W) -> (B, 1000)

It names what no labelled set here teaches, without any training. The wheel holds it beside the backbone that
the pocket SAM uses, so that it costs one more convolution on maps that are computed anyway.
"""

from typing import Any

import timm
from torch import Tensor, nn

from assistant.pocket.image_encoder import BACKBONE_NAME, as_timm_names
from assistant.sam.region_features import pooled


class ImageNetHead(nn.Module):
    """The last convolution and the classifier of EfficientNet-Lite2, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        network: Any = timm.create_model(BACKBONE_NAME)
        self.conv_head = network.conv_head
        self.bn2 = network.bn2
        self.classifier = network.classifier
        self.requires_grad_(False).eval()

    def forward(self, stride32: Tensor, masks: Tensor) -> Tensor:
        """Classify crops.

        Args:
            stride32: (B, 352, h, w) maps of the backbone.
            masks: (B, H, W) float in [0, 1], what to classify in each crop, for any H and W.

        Returns:
            (B, 1000) logits in the order of ImageNet-1k.
        """
        return self.classifier(pooled(self.bn2(self.conv_head(stride32)), masks))


def load_imagenet_head(state: dict[str, Tensor]) -> ImageNetHead:
    """The head with its weights.

    Args:
        state: `assistant.pocket.wheels.backbone_state()`, in timm's order and under other names.

    Raises:
        ValueError: The tensors are not those of EfficientNet-Lite2.
    """
    renamed = as_timm_names(state)
    head = ImageNetHead()
    head.load_state_dict({key: renamed[key] for key in head.state_dict()})
    return head

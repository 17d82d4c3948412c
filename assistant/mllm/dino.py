"""A frozen DINOv2 of transformers, whose features LLM-Seg (arXiv 2404.08767) adds to SAM's.

dino = Dino("facebook/dinov2-large", device="cuda")
features = dino(image)                       # (1, D, h, w) float32
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assistant.errors import BadInput

IMAGE_SIDE = 896  # px of the longer side, as LLM-Seg


class Dino:
    """The features of an image's patches.

    Args:
        name_or_path: A folder in transformers' layout, or a hub id.
        device: Where the model runs.

    Attributes:
        width: Channels D of the features.

    Raises:
        BadInput: The model cannot be loaded.
    """

    def __init__(self, name_or_path: str | Path, device: str | torch.device = "cpu"):
        from transformers import AutoImageProcessor, AutoModel

        try:
            self.model = AutoModel.from_pretrained(name_or_path).to(device).eval().requires_grad_(False)
            processor = AutoImageProcessor.from_pretrained(name_or_path)
        except Exception as error:  # a broken folder and an unreachable hub raise a dozen kinds of errors
            raise BadInput(
                f"cannot load {name_or_path} as DINOv2; give a folder that holds one, or a hub id while the "
                f"hub can be reached ({str(error).splitlines()[0]})"
            ) from error
        self.width: int = self.model.config.hidden_size
        self.mean = torch.tensor(processor.image_mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, side: int = IMAGE_SIDE) -> Tensor:
        """Compute the features of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            side: px to which the longer side is resized; both are rounded to whole patches.

        Returns:
            (1, D, h, w) float32, one vector per patch, over the whole image and nothing else.
        """
        from PIL import Image

        patch = self.model.config.patch_size
        longer = max(image.shape[:2])
        rows, columns = (max(1, round(s * side / longer / patch)) for s in image.shape[:2])
        resized = Image.fromarray(image).resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).to(self.mean.device).movedim(-1, 0) / 255
        tokens = self.model(pixel_values=((pixels - self.mean) / self.std)[None]).last_hidden_state
        patches = tokens[:, -rows * columns :]  # the class token comes first
        return patches.transpose(1, 2).unflatten(2, (rows, columns)).float()

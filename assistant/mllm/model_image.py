"""Images in the size and shape in which they are shown to a model."""

import numpy as np

from assistant.mllm.coordinates import resize_within
from assistant.mllm.structured_answer import StructuredModel
from assistant.sam.mask_ops import pad_to_square

MAX_IMAGE_SIDE = 1280  # px of the longest side


def fit_to_model(image: np.ndarray, model: StructuredModel) -> np.ndarray:
    """An image as it is shown to a model.

    It is not too large, and padded to a square for a model that sees the middle square only.

    Args:
        image: (H, W, 3) uint8 RGB.
        model: Is shown the image.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    resized = resize_within(image, MAX_IMAGE_SIDE)
    return pad_to_square(resized, centred=True) if model.crops else resized

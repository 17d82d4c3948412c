"""The size and shape in which a model is shown an image, decided in one place.

    image_fit = image_fit_of(processor.image_processor)     # of a model on this machine
    image_fit.fit(image)                                    # (h, w, 3), small enough, a square if need be
    processor(images=[...], images_kwargs=image_fit.processor_options)

Answers, marks, boxes, verification, tuning and attention maps all go through it. Without it a processor
decides: Qwen3-VL's turns a photo of 12 megapixels into 11,900 tokens, InternVL's cuts every photo into up to
13 tiles of 256 tokens, and LLaVA-1.5's cuts off what lies outside the middle square.
"""

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assistant.images import resize_within
from assistant.mllm.coordinates import PIXELS, QWEN_PATCH_SIZE, scale_of
from assistant.sam.mask_ops import pad_to_square

# Tokens of one image, at most, where nothing else is asked for. The model cards of Qwen2.5-VL and Qwen3-VL
# recommend it as the upper bound for a balance of detail and cost; a sheet of marks (1024 px) fits into it.
DEFAULT_IMAGE_TOKENS = 1280
# px of an image, at most, for models that are not known better: as many as Qwen3-VL's 1,280 tokens show.
DEFAULT_PIXELS = DEFAULT_IMAGE_TOKENS * 32 * 32
# px of the longer side, at most: SmolVLM's own bound. It also keeps the sides, of at least two tokens, within
# the ratio of 200 that Qwen's processor takes.
MAX_IMAGE_SIDE = 4096
MAX_REMEMBERED_IMAGES = 8  # of a conversation: its photo and what verification draws


@dataclass(frozen=True)
class ImageFit:
    """How a model is shown an image.

    Attributes:
        max_pixels: px of the whole image, at most.
        multiple: px; both sides become multiples of it, as the model's own processor would make them.
        padded: Whether the image lies in the middle of a grey square, since the model sees the middle square
            only.
        processor_options: Options of the image processor under which it keeps to `max_pixels` itself.
    """

    max_pixels: int = DEFAULT_PIXELS
    multiple: int = 1
    padded: bool = False
    processor_options: Mapping[str, Any] = field(default_factory=dict)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """An image as it is shown to the model.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (h, w, 3) uint8 RGB; the image itself where nothing changes. What was fitted before does not
            change any more.
        """
        if self.padded:
            max_side = int(self.max_pixels**0.5)
        else:
            thinnest = 2 * self.multiple if self.multiple > 1 else 1  # side, see `resize_within`
            max_side = min(MAX_IMAGE_SIDE, self.max_pixels // thinnest)
        resized = resize_within(image, max_side, self.multiple, self.max_pixels)
        is_square = resized.shape[0] == resized.shape[1]
        return pad_to_square(resized, centred=True) if self.padded and not is_square else resized

    def share_of_image(self, size: tuple[int, int]) -> tuple[float, float]:
        """The shares of the height and width of what is shown that an image of (H, W) px fills."""
        if not self.padded:
            return 1.0, 1.0
        height, width = size
        return height / max(size), width / max(size)


def image_fit_of(image_processor: Any, pixels: int | None = None) -> ImageFit:
    """How a model on this machine is shown images.

    Args:
        image_processor: Of transformers.
        pixels: px of an image, at most; None for what suits the model's family.
    """
    if merge := getattr(image_processor, "merge_size", None):  # Qwen-VL: as many tokens as the size asks for
        return _fit_of_patches(image_processor.size, merge * image_processor.patch_size, pixels)
    if tile := getattr(image_processor, "max_image_size", None):  # SmolVLM, Idefics 3: enlarged, then tiles
        return _fit_of_enlarged_tiles(image_processor.size, tile["longest_edge"], pixels)
    if max_tiles := getattr(image_processor, "max_patches", None):  # InternVL: as many tiles as allowed
        tile_pixels = image_processor.size["height"] * image_processor.size["width"]
        if pixels is None:
            max_tiles = min(max_tiles, max(1, DEFAULT_PIXELS // tile_pixels))
        else:
            max_tiles = max(1, pixels // tile_pixels)
        return ImageFit(max_tiles * tile_pixels, processor_options={"max_patches": max_tiles})
    # All others have one size (LLaVA-1.5, Gemma 3), or choose one by the image's.
    is_cropped = bool(getattr(image_processor, "do_center_crop", False))
    return ImageFit(pixels or DEFAULT_PIXELS, padded=is_cropped)


def _fit_of_patches(size: Mapping[str, int], token_side: int, pixels: int | None) -> ImageFit:
    """Of a processor that keeps an image's shape, with one token per square of `token_side` px."""
    max_pixels = pixels or min(size["longest_edge"], DEFAULT_IMAGE_TOKENS * token_side**2)
    limits = {"shortest_edge": min(size["shortest_edge"], max_pixels), "longest_edge": max_pixels}
    return ImageFit(max_pixels, token_side, processor_options={"size": limits})


def _fit_of_enlarged_tiles(size: Mapping[str, int], tile_side: int, pixels: int | None) -> ImageFit:
    """Of a processor that enlarges every image to one length and then cuts it into tiles.

    Its own length is kept where nothing else is asked for: the model was trained at it, and it bounds the
    tiles. It is not exceeded either, since there are no tokens for more rows and columns.
    """
    longest = size["longest_edge"]
    if pixels is not None:
        longest = min(longest, max(1, int(pixels**0.5) // tile_side) * tile_side)
    return ImageFit(longest**2, processor_options={"size": {"longest_edge": longest}})


def image_fit_of_server(model: str, pixels: int | None = None) -> ImageFit:
    """How a model on a server is shown images.

    A model that writes coordinates in pixels of the image as its processor resizes it gets images that the
    processor leaves as they are.

    Args:
        model: Its name.
        pixels: px of an image, at most; None for what suits the model's family.
    """
    if scale_of(model) == PIXELS:
        return ImageFit(pixels or DEFAULT_IMAGE_TOKENS * QWEN_PATCH_SIZE**2, QWEN_PATCH_SIZE)
    return ImageFit(pixels or DEFAULT_PIXELS)


class FittedImages:
    """The last images that were fitted, so that the turns of a conversation do not resize its photo again."""

    def __init__(self) -> None:
        self._fitted: dict[int, tuple[weakref.ref[np.ndarray], ImageFit, np.ndarray]] = {}
        self._lock = threading.Lock()

    def fit(self, image: np.ndarray, image_fit: ImageFit) -> np.ndarray:
        """`image_fit.fit(image)`, remembered as long as the image exists.

        The image must not change in the meantime.
        """
        with self._lock:
            source, fit_before, fitted = self._fitted.pop(id(image), (None, None, image))
            if source is None or source() is not image or fit_before != image_fit:
                fitted = image_fit.fit(image)
            if fitted is not image:
                self._fitted[id(image)] = (weakref.ref(image), image_fit, fitted)
            while len(self._fitted) > MAX_REMEMBERED_IMAGES:
                del self._fitted[next(iter(self._fitted))]
            return fitted

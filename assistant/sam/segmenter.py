"""SAM as the rest of the project sees it: encode an image once, then answer any number of prompts.

    segmenter = OfficialSegmenter.from_checkpoint("sam_vit_h_4b8939.pth", device="cuda")
    embedding = segmenter.encode(image)                                    # (H, W, 3) uint8 RGB
    masks, scores, logits = segmenter.predict(embedding, points=[[x, y]])  # three masks of an ambiguous click
    masks, scores, logits = segmenter.predict(embedding, box=[x0, y0, x1, y1], multimask=False)

The makes of SAM are in `assistant.sam.backends`. Coordinates are px of the image, x before y; boxes are
half-open xyxy. Masks leave SAM as low-resolution logits over its square input (256 x 256 for a SAM of 1,024
px), which `upsample` and `assistant.sam.mask_resizing` turn into masks. Of the four mask tokens, token 0
answers boxes and several clicks; tokens 1 to 3 are the multimask output, three masks of different extent for
an ambiguous prompt such as one click.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from assistant.errors import BadInput, memory_advice
from assistant.images import resize_within
from assistant.sam.close_up import close_up_of
from assistant.sam.mask_ops import tight_box
from assistant.sam.mask_resizing import mask_to_logits, resizing_matrix, upsample_logits
from assistant.sam.prompts import Prompt, checked_prompt

# Prompts that are decoded together. More need more memory; on a CPU they also stop fitting the cache.
CPU_PROMPTS_PER_BATCH = 8
GPU_PROMPTS_PER_BATCH = 64

# What is said where memory does not suffice, after "not enough memory".
ENCODING_MEMORY = "for SAM to encode the image: take a smaller --sam, or --device cpu"
DECODING_MEMORY = "for SAM to outline masks: take a smaller image or a smaller --sam, or --device cpu"

MAX_PIXELS_SIDE = 1536  # px of the image that an embedding keeps for close-ups

NO_IMAGE = "an image must be an array of height x width x 3 bytes (uint8, RGB)"


@dataclass
class Embedding:
    """An encoded image.

    Attributes:
        features: (1, C, h, w) float, what the image encoder makes of the square input.
        size: (H, W) of the image, px.
        input_size: (h, w) of the part of the square input that the image fills, px.
        shared: What the mask decoder computes once per image.
        maps: The backbone's feature maps, finest first: strides 4, 8, 16 and 32 for the pocket SAM, the
            backbone's states (1, n, C) for SAM 3, otherwise empty.
        pixels: (h, w, 3) uint8 RGB, the image with its longest side at `MAX_PIXELS_SIDE` at most, from which
            close-ups are taken; None where the embedding was restored.
    """

    features: Tensor
    size: tuple[int, int]
    input_size: tuple[int, int]
    shared: Any = None
    maps: tuple[Tensor, ...] = ()
    pixels: np.ndarray | None = None


class Segmenter(ABC):
    """A SAM of any make; the makes are in `assistant.sam.backends`.

    Args:
        model: The network; it is moved to `device` and put in eval mode.
        side: Side of the square input, px.
        low_res_side: Side of the low-resolution logits, l.
        device: As torch names it.

    Attributes:
        threshold: Logit above which a pixel belongs to a mask.
        stretched: Whether the image is stretched over the square input (SAM 2), rather than padded (SAM).
        restorable: Whether an embedding can be rebuilt from its features alone, see `restore`.
        close_up_below: Longest side, px of the square input, below which a thing is outlined on a close-up of
            its own (see `assistant.sam.close_up`); 0 for no close-ups.
        prompts_per_batch: Number of prompts that are decoded together.
    """

    threshold: float = 0.0
    close_up_below: float = 0.0
    stretched: bool = False
    restorable: bool = True

    def __init__(self, model: nn.Module, side: int, low_res_side: int, device: str | torch.device = "cpu"):
        self.model: Any = model.to(device).eval()  # Any: the makes have different modules
        self.device = torch.device(device)
        self.side = side
        self.low_res_side = low_res_side
        on_cpu = self.device.type == "cpu"
        self.prompts_per_batch = CPU_PROMPTS_PER_BATCH if on_cpu else GPU_PROMPTS_PER_BATCH

    # ------------------------------------------------------------------------------ what each make defines

    @abstractmethod
    def _encode(self, image: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...], Any]:
        """Encode an image (H, W, 3) uint8 RGB -> `features`, `maps` and `shared` of its `Embedding`."""

    @abstractmethod
    def _share(self, features: Tensor) -> Any:
        """What the decoder computes once per image, as far as `features` (1, C, h, w) alone tell it."""

    @abstractmethod
    def _decode(
        self,
        embedding: Embedding,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> Any:
        """As `decode`, for coordinates in px of the square input and masks (P, 1, l, l)."""

    @abstractmethod
    def _embed_masks(self, masks: Tensor | None) -> Tensor | None:
        """Embed mask prompts (P, l, l): what they add to the image, (P, C, h, w), or None for nothing."""

    @abstractmethod
    def _decode_embedded(self, embedding: Embedding, sparse: Tensor, dense: Tensor | None) -> Any:
        """Decode embedded prompts (P, T, C) and what their masks add to the image; returns as `decode`."""

    @abstractmethod
    def draw(self, embedding: Embedding, decoded: Any, rows: Tensor, masks: slice = slice(None)) -> Tensor:
        """Draw masks of decoded prompts.

        Args:
            embedding: The image.
            decoded: From `decode`.
            rows: (R,) int64, the prompts to draw.
            masks: The mask tokens to draw, M of the four.

        Returns:
            (R, M, l, l) float low-resolution logits.
        """

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The part of the square input that an image of `size` (H, W) px fills, as (h, w) px."""
        if self.stretched:
            return self.side, self.side
        scale = self.side / max(size)
        height, width = (max(1, int(side * scale + 0.5)) for side in size)
        return height, width

    # ------------------------------------------------------------------------------ what all makes share

    @torch.no_grad()
    @memory_advice(ENCODING_MEMORY)
    def encode(self, image: np.ndarray) -> Embedding:
        """Run the image encoder, the expensive part, once per image.

        Args:
            image: (H, W, 3) uint8 RGB of any size.

        Returns:
            The embedding that all other methods take.

        Raises:
            BadInput: `image` is not such an array, or memory does not suffice.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise BadInput(NO_IMAGE)
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise BadInput(NO_IMAGE)
        features, maps, shared = self._encode(image)
        height, width = image.shape[:2]
        input_size = self.input_size((height, width))
        pixels = resize_within(image, MAX_PIXELS_SIDE) if self.close_up_below else None
        return Embedding(features, (height, width), input_size, shared, maps, pixels)

    def restore(self, features: Tensor, size: tuple[int, int]) -> Embedding:
        """Rebuild an embedding from stored features, without running the image encoder.

        Args:
            features: (1, C, h, w) float, `Embedding.features` of an earlier `encode`, on any device.
            size: (H, W) px of that image.

        Returns:
            The embedding, without `maps`.

        Raises:
            BadInput: The decoder reads finer feature maps too, as those of SAM-HQ, SAM 2 and SAM 3 do.
        """
        if not self.restorable:
            raise BadInput("this SAM needs more than the stored features: encode the image again")
        height, width = size
        features = features.to(self.device)
        return Embedding(features, (height, width), self.input_size(size), self._share(features))

    @torch.no_grad()
    def decode(
        self,
        embedding: Embedding,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        masks: ArrayLike | Tensor | None = None,
    ) -> Any:
        """Decode P prompts of one kind at once, without drawing their masks.

        Args:
            embedding: The image.
            points: (P, N, 2) xy px of the image.
            labels: (P, N) of {0, 1}, with `points`.
            boxes: (P, 4) xyxy px of the image.
            masks: (P, l, l) low-resolution logits.

        Returns:
            What `draw` takes; its `iou` is (P, 4) float, the predicted IoU of the mask tokens.
        """
        used, size = embedding.input_size[::-1], embedding.size[::-1]
        scale = torch.tensor(used, dtype=torch.float64) / torch.tensor(size)

        def to_square(coordinates: ArrayLike) -> Tensor:
            scaled = torch.as_tensor(np.asarray(coordinates), dtype=torch.float64) * scale
            return scaled.float().to(self.device)

        point_tensor = label_tensor = box_tensor = mask_tensor = None
        if points is not None:
            point_tensor = to_square(points)
            label_tensor = torch.as_tensor(np.asarray(labels), device=self.device).int()
        if boxes is not None:
            box_tensor = to_square(np.asarray(boxes).reshape(-1, 2, 2)).flatten(1)
        if masks is not None:
            mask_tensor = torch.as_tensor(masks, dtype=torch.float32, device=self.device)[:, None]
        return self._decode(embedding, point_tensor, label_tensor, box_tensor, mask_tensor)

    @torch.no_grad()
    @memory_advice(DECODING_MEMORY)
    def predict_many(
        self,
        embedding: Embedding,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Answer P prompts of one kind, `prompts_per_batch` at a time.

        Args:
            embedding: The image.
            points, labels, boxes, masks: As `decode` takes them, as arrays.
            multimask: Whether to return the three masks of an ambiguous prompt, rather than the single one.

        Returns:
            Low-resolution logits (P, M, l, l) float, which take .25 MB a mask at SAM's size, and predicted
            IoU (P, M) float; M is 3 with `multimask`, else 1.
        """
        prompts = (points, labels, boxes, masks)
        count = next(len(prompt) for prompt in (points, boxes, masks) if prompt is not None)
        logits, scores = [], []
        for first in range(0, count, self.prompts_per_batch):
            part = slice(first, first + self.prompts_per_batch)
            decoded = self.decode(
                embedding, *(None if prompt is None else prompt[part] for prompt in prompts)
            )
            part_logits, part_scores = self._answers(embedding, decoded, multimask)
            logits.append(part_logits)
            scores.append(part_scores)
        return torch.cat(logits), torch.cat(scores)

    def prompted(
        self, embedding: Embedding, sparse: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Answer prompts that are embedded already; gradients reach both, which may be on any device.

        Args:
            embedding: The image.
            sparse: (P, T, `prompt_width`) float, T prompt tokens of each prompt.
            masks: (P, l, l) float low-resolution logits, embedded as SAM embeds mask prompts; None for no
                mask prompt.

        Returns:
            Low-resolution logits (P, l, l) of the single mask of each prompt, and its predicted IoU (P,).
        """
        sparse = sparse.to(self.device)
        masks = None if masks is None else masks.to(self.device)
        decoded = self._decode_embedded(embedding, sparse, self._embed_masks(masks))
        rows = torch.arange(len(sparse), device=self.device)
        return self.draw(embedding, decoded, rows, slice(0, 1))[:, 0], decoded.iou[:, 0].float()

    @property
    def prompt_width(self) -> int:
        """Channels of an embedded prompt."""
        return self.model.prompt_encoder.no_mask_embed.weight.shape[1]

    @property
    def feature_width(self) -> int:
        """Channels of `Embedding.features`."""
        return self.prompt_width

    def _answers(self, embedding: Embedding, decoded: Any, multimask: bool) -> tuple[Tensor, Tensor]:
        """The logits (P, M, l, l) and predicted IoU (P, M) of decoded prompts."""
        masks = slice(1, None) if multimask else slice(0, 1)
        rows = torch.arange(len(decoded.iou), device=self.device)
        return self.draw(embedding, decoded, rows, masks), decoded.iou[:, masks].float()

    def predict(
        self,
        embedding: Embedding,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        multimask: bool = True,
        close_up: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answer one prompt.

        Args:
            embedding: The image.
            points: (N, 2) xy px of the image.
            labels: (N,), 1 for a point inside the target, 0 for one outside; None if all are inside.
            box: (4,) xyxy px of the image; it is clipped to the image.
            mask: A (H, W) bool mask, or the low-resolution logits (l, l) of an earlier answer.
            multimask: Whether to return the three masks of an ambiguous prompt, rather than the single one.
            close_up: Whether a small thing is outlined on a close-up, by a segmenter that takes any.

        Returns:
            Masks (M, H, W) bool, predicted IoU (M,) float32, low-resolution logits (M, l, l) float32; M is 3
            with `multimask`, else 1.

        Raises:
            BadInput: The prompt is empty, malformed or outside of the image.
        """
        prompt = checked_prompt(points, labels, box, mask, embedding.size, self.low_res_side)
        found = self._on_close_up(embedding, prompt, multimask) if close_up and self.close_up_below else None
        return self._on_whole_image(embedding, prompt, multimask) if found is None else found

    def _on_whole_image(
        self, embedding: Embedding, prompt: Prompt, multimask: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answer a prompt on the image as a whole; returns as `predict`."""
        points, labels, box, mask = (
            None if part is None else part[None]
            for part in prompt._replace(mask=self._mask_prompt(embedding, prompt.mask))
        )
        logits, scores = self.predict_many(embedding, points, labels, box, mask, multimask)
        return self.upsample(embedding, logits[0]), scores[0].cpu().numpy(), logits[0].cpu().numpy()

    def _on_close_up(
        self, embedding: Embedding, prompt: Prompt, multimask: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Answer a prompt on a close-up; returns as `predict`, None where what is meant is not small."""
        if prompt.box is None and prompt.mask is None:
            # What a click on a close-up means best is often a part; so its readings on the whole image stay.
            masks, scores, logits = self._on_whole_image(embedding, prompt, multimask)
            view = close_up_of(self, embedding, tight_box(masks[scores.argmax()]), prompt.points)
            if view is None:
                return masks, scores, logits
            masks = np.stack([view.outlined_again(reading) for reading in masks])
        else:
            mask = self._as_mask(embedding, prompt.mask)
            extent = tight_box(mask) if prompt.box is None and mask is not None else prompt.box
            view = close_up_of(self, embedding, extent, prompt.points)
            if view is None:
                return None
            masks, scores = view.predict(prompt.points, prompt.labels, prompt.box, mask, multimask)
        return masks, scores, np.stack([self.low_res_logits(embedding, mask) for mask in masks])

    def _as_mask(self, embedding: Embedding, mask: np.ndarray | None) -> np.ndarray | None:
        """A checked mask prompt as a mask (H, W) bool."""
        if mask is None or mask.dtype == bool:
            return mask
        return self.upsample(embedding, torch.as_tensor(mask)[None])[0]

    def _mask_prompt(self, embedding: Embedding, mask: np.ndarray | None) -> np.ndarray | None:
        """A checked mask prompt as low-resolution logits (l, l)."""
        return mask if mask is None or mask.dtype != bool else self.low_res_logits(embedding, mask)

    def low_res_logits(self, embedding: Embedding, mask: np.ndarray) -> np.ndarray:
        """Turn a mask into the low-resolution logits of a mask prompt.

        Args:
            embedding: The image.
            mask: (H, W) bool.

        Returns:
            (l, l) float32: the covered share of each cell as a logit, between -6.9 and 6.9.
        """
        return mask_to_logits(mask, embedding.input_size, self.side, self.low_res_side)

    def upsample(self, embedding: Embedding, logits: Tensor) -> np.ndarray:
        """Turn low-resolution logits into masks, as segment-anything does.

        One mask at a time, so that an image of 12 megapixels takes 48 MB beside the masks.

        Args:
            embedding: The image.
            logits: (M, l, l) float.

        Returns:
            (M, H, W) bool.
        """
        padded_side = None if self.stretched else self.side
        return upsample_logits(logits, embedding.size, embedding.input_size, padded_side, self.threshold)

    def resizing(self, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """Express what `upsample` does to logits as two matrices.

        Args:
            embedding: The image.

        Returns:
            rows (H, l) and columns (W, l) float, such that `rows @ logits @ columns.T` is (H, W).
        """
        padded_side = None if self.stretched else self.side
        rows, columns = (
            resizing_matrix(self.low_res_side, length, input_length, padded_side, self.device)
            for length, input_length in zip(embedding.size, embedding.input_size, strict=True)
        )
        return rows, columns

"""The attention probe of BLIP, an image-text matcher whose text attends to the patches of an image.

    probe = load_probe("Salesforce/blip-itm-large-coco")           # see `assistant.mllm.probe_loading`
    attention = probe.attention(probe.open("photo.jpg"), ["mug", "sky"])

BLIP's text layers have cross-attention to the image (Li et al. 2022, arXiv 2201.12086). Scores are taken
before the softmax, where queries meet keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from assistant.attention.prompt_attention import PromptAttention, checked_layers
from assistant.attention.transformers_probe import (
    NO_ATTENTION,
    PROMPTS_PER_BATCH,
    HasImage,
    PatchGrid,
    PatchPlaces,
    TransformersProbe,
)
from assistant.errors import BadInput

MAX_IMAGE_SIDE = (
    512  # px, about, of the longer side of what BLIP is shown; at most twice what it was made for
)
PROMPT_BEGINNING = "image of "


class BlipProbe(TransformersProbe):
    """The attention of BlipForImageTextRetrieval.

    A prompt reads "image of {name}", its scores are the mean over the tokens of the name, and its match is
    the probability that text and image belong together, the highest at any token.

    Args:
        model: A `BlipForImageTextRetrieval`.
        processor: Its processor.
    """

    def __init__(self, model: Any, processor: Any):
        super().__init__(model.eval(), processor.tokenizer)
        self.processor = processor
        self.layers = len(self.attention_modules())

    def attention_modules(self) -> list[nn.Module]:
        """See `TransformersProbe`: the cross-attention of each text layer."""
        return [layer.crossattention.self for layer in self.model.text_encoder.encoder.layer]

    def attention(
        self, opened: HasImage, prompts: list[str], layers: list[int] | None = None
    ) -> PromptAttention:
        """See `assistant.pipeline.AttentionProbe`."""
        layers = checked_layers(layers, self.layers)
        pixels, grid = self._pixels(opened.image)
        with torch.no_grad():
            encoded = self.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)
        scores = []
        match = []
        for first in range(0, len(prompts), PROMPTS_PER_BATCH):
            batch = prompts[first : first + PROMPTS_PER_BATCH]
            batch_scores, batch_match = self._batch(encoded.last_hidden_state, batch, layers)
            scores.append(batch_scores)
            match.append(batch_match)
        index = torch.arange(grid[0] * grid[1]).view(grid)
        return PromptAttention(torch.cat(scores), torch.cat(match), layers, PatchPlaces([PatchGrid(index)]))

    def _pixels(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Resize and normalise an image as BLIP reads it, in its own shape.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (1, 3, h, w) float, both sides whole patches, and the grid's rows and columns.
        """
        config = self.model.config.vision_config
        patch = config.patch_size
        scale = min(MAX_IMAGE_SIDE, 2 * config.image_size) / max(image.shape[:2])
        rows, columns = (max(1, round(side * scale / patch)) for side in image.shape[:2])
        size = (columns * patch, rows * patch)
        resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        mean = torch.tensor(self.processor.image_processor.image_mean)
        std = torch.tensor(self.processor.image_processor.image_std)
        values = (torch.from_numpy(resized).float() / 255 - mean) / std
        weight = self.model.vision_model.embeddings.patch_embedding.weight
        return values.permute(2, 0, 1)[None].to(weight), (rows, columns)

    def _batch(self, patches: Tensor, prompts: list[str], layers: list[int]) -> tuple[Tensor, Tensor]:
        """One batch of P prompts over encoded patches (1, 1 + N, C) -> scores (P, L, H, N), match (P,)."""
        texts = [f"{PROMPT_BEGINNING}{prompt}" for prompt in prompts]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, return_offsets_mapping=True)
        is_token = encoded.attention_mask.bool()  # (P, T), False for padding
        is_name = (encoded.offset_mapping[..., 1] > len(PROMPT_BEGINNING)) & is_token
        device = patches.device
        with self._recorded(layers) as projections, self.embedding_overrides.active():
            hidden = self.model.text_encoder(
                input_ids=encoded.input_ids.to(device),
                attention_mask=encoded.attention_mask.to(device),
                encoder_hidden_states=patches.expand(len(prompts), -1, -1),
                encoder_attention_mask=torch.ones(len(prompts), patches.shape[1], device=device),
            ).last_hidden_state
        if len(projections) < 2 * len(layers):
            raise BadInput(NO_ATTENTION)
        weights = is_name.float().to(device)
        scores = [self._layer_scores(projections, layer, weights) for layer in layers]
        match = self.model.itm_head(hidden).float().softmax(-1)[..., 1]
        match = match.masked_fill(~is_token.to(device), 0).amax(1)
        return torch.stack(scores, 1).cpu(), match.cpu()

    def _layer_scores(
        self, projections: dict[tuple[int, str], Tensor], layer: int, weights: Tensor
    ) -> Tensor:
        """The scores (P, H, N) of a layer, averaged over tokens with weights (P, T)."""
        heads = self.attention_modules()[layer].num_attention_heads
        query, key = (
            projections[layer, part].unflatten(-1, (heads, -1)).transpose(1, 2).float()
            for part in ("query", "key")
        )
        # (P, H, T, N): the first key is the class token of the image, which is no place
        scores = query @ key[:, :, 1:].transpose(2, 3) / query.shape[-1] ** 0.5
        return (scores * weights[:, None, :, None]).sum(2) / weights.sum(1)[:, None, None]

    @contextmanager
    def _recorded(self, layers: list[int]) -> Iterator[dict[tuple[int, str], Tensor]]:
        """While active, queries and keys are recorded: {(layer, "query" or "key"): (P, T, C)}."""
        projections: dict[tuple[int, str], Tensor] = {}
        modules = self.attention_modules()
        handles = []
        for layer in layers:
            for part in ("query", "key"):
                projection = getattr(modules[layer], part)
                handles.append(projection.register_forward_hook(_record_in(projections, (layer, part))))
        try:
            yield projections
        finally:
            for handle in handles:
                handle.remove()


def _record_in(
    projections: dict[tuple[int, str], Tensor], key: tuple[int, str]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    """A forward hook that records the output of its module under a key."""

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        projections[key] = output

    return record

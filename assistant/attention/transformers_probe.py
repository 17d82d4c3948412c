"""What the attention probes of transformers' models share: grids of patches, and tuning.

`assistant.attention.image_text_probe` and `assistant.attention.chat_probe` are the two kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.attention.prompt_attention import PromptAttention, Ranking, checked_layers
from assistant.attention.tuned_parameters import layer_name, row_name, tuned_layers, tuned_rows
from assistant.images import open_image
from assistant.sam.mask_ops import Rle

NO_ATTENTION = (
    "this model exposes no attention: load it with attn_implementation='eager' or 'sdpa' in a version of "
    "transformers that lets attention be exchanged (flash attention keeps no scores)"
)
PROMPTS_PER_BATCH = 16


class HasImage(Protocol):
    """An opened image that holds its pixels, (H, W, 3) uint8 RGB."""

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""


@dataclass
class ProbedImage:
    """An image as these probes open it. image: (H, W, 3) uint8 RGB."""

    image: np.ndarray


@dataclass(frozen=True)
class PatchGrid:
    """One grid of patches over an image.

    Attributes:
        index: (h, w) int64, which of the N places each patch is.
        image_share: The shares of the grid's height and width that the image fills, in its middle.
    """

    index: Tensor
    image_share: tuple[float, float] = (1.0, 1.0)


class PatchPlaces:
    """N places on one or several grids of patches over the same image; see `prompt_attention.PlaceMap`."""

    def __init__(self, grids: Sequence[PatchGrid]):
        self.grids = list(grids)

    def to_pixels(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """See `prompt_attention.PlaceMap`: each grid is enlarged bilinearly, then their mean is taken."""
        height, width = size
        maps = []
        for grid in self.grids:
            share_high, share_wide = grid.image_share
            padded_size = (max(height, round(height / share_high)), max(width, round(width / share_wide)))
            patches = values[:, grid.index.to(values.device)][None]
            enlarged = F.interpolate(patches, padded_size, mode="bilinear", align_corners=False)[0]
            top, left = (padded_size[0] - height) // 2, (padded_size[1] - width) // 2
            maps.append(enlarged[:, top : top + height, left : left + width])
        return torch.stack(maps).mean(0)


class EmbeddingOverrides:
    """Input embeddings that replace a model's own for some tokens.

    Attributes:
        rows: {token: (W,) float}.
    """

    def __init__(self, embedding: nn.Module):
        self.embedding = embedding
        self.rows: dict[int, Tensor] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """While active, the model reads the rows in place of its own embeddings."""
        if not self.rows:
            yield
            return
        handle = self.embedding.register_forward_hook(self._replace)
        try:
            yield
        finally:
            handle.remove()

    def _replace(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """A forward hook of the embedding, whose input is the tokens' ids (B, T)."""
        for token, row in self.rows.items():
            output = torch.where((args[0] == token)[..., None], row.to(output), output)
        return output


class TransformersProbe(ABC):
    """An attention probe of a model of transformers; see `assistant.pipeline.AttentionProbe`.

    Without a ranking all layers are averaged.

    Args:
        model: A model of transformers.
        tokenizer: Its tokenizer.

    Attributes:
        layers: Number of layers whose attention is read.
        ranking: Which of them `assistant.attention.maps.attend` averages; None for all.
        embedding_overrides: Tuned input embeddings.
        original_parameters: The model's own parameters, of those that were tuned, by the names of
            `tunable_attention`.
    """

    ranking: Ranking | None = None
    layers: int

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model
        self.tokenizer = tokenizer
        self.embedding_overrides = EmbeddingOverrides(model.get_input_embeddings())
        self.original_parameters: dict[str, Tensor] = {}

    @abstractmethod
    def attention_modules(self) -> list[nn.Module]:
        """The module of each layer that tuning trains."""

    @abstractmethod
    def attention(
        self, opened: HasImage, prompts: list[str], layers: list[int] | None = None
    ) -> PromptAttention:
        """See `assistant.pipeline.AttentionProbe`."""

    def open(self, image: Any, cache_folder: Path | None = None) -> ProbedImage:
        """See `assistant.pipeline.AttentionProbe`; nothing is stored."""
        return ProbedImage(open_image(image))

    def size(self, opened: HasImage) -> tuple[int, int]:
        """See `assistant.pipeline.AttentionProbe`."""
        height, width = opened.image.shape[:2]
        return height, width

    def region_rles(self, opened: HasImage) -> list[Rle] | None:
        """See `assistant.pipeline.AttentionProbe`: None, as these models attend to grids."""
        return None

    def reusing(self) -> AbstractContextManager[None]:
        """See `assistant.pipeline.AttentionProbe`; nothing is reused."""
        return nullcontext()

    def tokens(self, name: str) -> list[int]:
        """The tokens of a name in the middle of a prompt."""
        return self.tokenizer(f" {name}", add_special_tokens=False).input_ids

    def tunable_attention(self, layers: list[int]) -> dict[str, nn.Parameter]:
        """See `assistant.pipeline.AttentionProbe`: parameters of the model itself; all others are frozen."""
        self.model.requires_grad_(False)
        modules = self.attention_modules()
        tunable: dict[str, nn.Parameter] = {}
        for layer in checked_layers(layers, self.layers):
            for parameter_name, parameter in modules[layer].named_parameters():
                name = layer_name(layer, parameter_name)
                self.original_parameters.setdefault(name, parameter.detach().clone())
                parameter.requires_grad_(True)
                tunable[name] = parameter
        return tunable

    def tunable_words(self, prompts: list[str]) -> dict[str, nn.Parameter]:
        """See `assistant.pipeline.AttentionProbe`."""
        table = self.model.get_input_embeddings().weight.detach()
        tokens = sorted({token for prompt in prompts for token in self.tokens(prompt)})
        rows = {token: nn.Parameter(table[token].clone()) for token in tokens}
        self.embedding_overrides.rows = dict(rows)
        return {row_name(token): row for token, row in rows.items()}

    def restore(self, tuned: Mapping[str, Tensor]) -> None:
        """See `assistant.pipeline.AttentionProbe`."""
        self.embedding_overrides.rows = tuned_rows(tuned)
        modules = self.attention_modules()
        for layer, parameter_name, value in tuned_layers(self.original_parameters | dict(tuned)):
            parameter = modules[layer].get_parameter(parameter_name)
            original = parameter.detach().clone()
            self.original_parameters.setdefault(layer_name(layer, parameter_name), original)
            parameter.data.copy_(value)

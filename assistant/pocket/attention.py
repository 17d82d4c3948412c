"""The attention probe of the pocket LLM: from the words of a phrase to the regions of an image.

    probe = published_probe(llm, opener)
    attention = probe.attention(opened, ["mug", "sky"])

The LLM reads the regions of an image as embeddings among its words, and a phrase after them: "where is the
mug". The queries of the phrase's tokens on the keys of the regions, layer by layer, are its attention, and
the score of a region goes to the pixels of its mask. All regions are read, not only the sixteen that a reply
is given. Phrases do not see each other, so that many of them cost one pass through the layers that are asked
for; the pass ends at the deepest of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.attention.maps import BACKGROUND_WORDS
from assistant.attention.prompt_attention import PromptAttention, Ranking, checked_layers
from assistant.attention.tuned_parameters import layer_name, row_name, tuned_layers, tuned_rows
from assistant.pocket.llm import PocketLLM
from assistant.pocket.opening import AttendedImage, PocketImageOpener, region_key
from assistant.pocket.phrase_reading import Reading, attention_scores, read_phrases
from assistant.pocket.region_cache import cached_regions
from assistant.pocket.region_encoder import LOGIT_SCALE, EncodedRegions
from assistant.sam.mask_ops import Rle, decode_rle
from assistant.weights import POCKET, pocket_file

MAP_SIDE = 160  # px, about, of the longer side of the masks that regions are drawn with


class HasRegions(Protocol):
    """An opened image that holds its regions: `AttendedImage`, or the pocket pipeline's opened image."""

    @property
    def rles(self) -> list[Rle]:
        """The masks of the N regions."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) px of the image."""

    @property
    def features(self) -> Tensor:
        """(N, FEATURE_DIM) float."""


class RegionPlaces:
    """N regions as places; see `prompt_attention.PlaceMap`. masks: (N, h, w) bool."""

    def __init__(self, masks: Tensor):
        self.masks = masks

    def to_pixels(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """See `prompt_attention.PlaceMap`: each pixel gets the mean over the regions that hold it, else 0."""
        flat = self.masks.flatten(1).to(values.dtype)
        maps = values @ flat / flat.sum(0).clamp(min=1)
        maps = maps.view(1, len(values), *self.masks.shape[1:])
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]


@dataclass
class _Reused:
    """What is computed once per opened image while `PocketProbe.reusing`.

    Every entry holds its image, so that the image's id is not given to another one.

    Attributes:
        readings: By the image's id, the prompts and the layers.
        places: By the image's id.
    """

    readings: dict[tuple[int, tuple[str, ...], tuple[int, ...]], tuple[HasRegions, Reading]] = field(
        default_factory=dict
    )
    places: dict[int, tuple[HasRegions, RegionPlaces]] = field(default_factory=dict)


class PocketProbe:
    """The attention of the pocket LLM; see `assistant.pipeline.AttentionProbe`.

    Tuning changes copies of the attention and of the input embeddings, which only the probe uses. The LLM's
    replies stay as they are.

    Args:
        llm: The LLM.
        opener: Opens images for `open`; None for a probe that is only given opened images.
        ranking: Which layers `assistant.attention.maps.attend` averages; None for the published ranking.

    Attributes:
        layers: Number of layers.
        tuned_attention: {layer: attention module} used in place of the LLM's own.
        tuned_rows: {token: (W,) float} used in place of the LLM's own input embeddings.
    """

    def __init__(
        self, llm: PocketLLM, opener: PocketImageOpener | None = None, ranking: Ranking | None = None
    ):
        self.llm = llm
        self.opener = opener
        self.layers: int = llm.model.config.num_hidden_layers
        self.tuned_attention: dict[int, Any] = {}
        self.tuned_rows: dict[int, Tensor] = {}
        self._ranking = ranking
        self._reused: _Reused | None = None

    @property
    def ranking(self) -> Ranking | None:
        """Which layers or heads `assistant.attention.maps.attend` averages."""
        if self._ranking is None:
            self._ranking = Ranking.load(POCKET / "attention.json")
        return self._ranking

    @ranking.setter
    def ranking(self, ranking: Ranking | None) -> None:
        self._ranking = ranking

    def open(self, image: Any, cache_folder: Path | None = None) -> AttendedImage:
        """See `assistant.pipeline.AttentionProbe`."""
        if self.opener is None:
            raise ValueError("this probe was made without an opener")
        key = region_key(pocket_file("sam.safetensors"))
        return cached_regions(self.opener, key, image, cache_folder)

    def size(self, opened: HasRegions) -> tuple[int, int]:
        """See `assistant.pipeline.AttentionProbe`."""
        return opened.size

    def region_rles(self, opened: HasRegions) -> list[Rle] | None:
        """See `assistant.pipeline.AttentionProbe`."""
        return opened.rles

    def attention(
        self, opened: HasRegions, prompts: list[str], layers: list[int] | None = None
    ) -> PromptAttention:
        """See `assistant.pipeline.AttentionProbe`."""
        layers = checked_layers(layers, self.layers)
        with torch.no_grad():
            regions = self.llm.encoder(opened.features)
            match = self._match(regions, prompts)
        places = self._places(opened)
        if not len(opened.features):
            heads = self.llm.model.config.num_attention_heads
            scores = torch.zeros(len(prompts), len(layers), heads, 0)
            return PromptAttention(scores, match, layers, places)
        tokens = [self.llm.tokens(f" {prompt}") for prompt in prompts]
        reading = self._reading(opened, regions.embeddings, prompts, tokens, layers)
        modules = [(layer, self._attention_module(layer)) for layer in layers]
        return PromptAttention(attention_scores(reading, tokens, modules), match, layers, places)

    @contextmanager
    def reusing(self) -> Iterator[None]:
        """See `assistant.pipeline.AttentionProbe`."""
        outer = self._reused
        self._reused = outer or _Reused()
        try:
            yield
        finally:
            self._reused = outer

    def tunable_attention(self, layers: list[int]) -> dict[str, nn.Parameter]:
        """See `assistant.pipeline.AttentionProbe`: the queries and keys of copies in float32."""
        for layer in layers:
            attention = self._copied_attention(layer).requires_grad_(False)
            attention.q_proj.requires_grad_(True)
            attention.k_proj.requires_grad_(True)
            self.tuned_attention[layer] = attention
        return {
            layer_name(layer, name): parameter
            for layer, attention in self.tuned_attention.items()
            for name, parameter in attention.named_parameters()
            if parameter.requires_grad
        }

    def tunable_words(self, prompts: list[str]) -> dict[str, nn.Parameter]:
        """See `assistant.pipeline.AttentionProbe`."""
        tokens = sorted({token for prompt in prompts for token in self.llm.tokens(f" {prompt}")})
        embeddings = self.llm.embed(tokens).detach().float()
        rows = {
            token: nn.Parameter(embedding.clone())
            for token, embedding in zip(tokens, embeddings, strict=True)
        }
        self.tuned_rows = dict(rows)
        return {row_name(token): row for token, row in rows.items()}

    def restore(self, tuned: Mapping[str, Tensor]) -> None:
        """See `assistant.pipeline.AttentionProbe`."""
        self.tuned_rows = {token: row.float() for token, row in tuned_rows(tuned).items()}
        self.tuned_attention = {}
        for layer, parameter_name, value in tuned_layers(tuned):
            if layer not in self.tuned_attention:
                self.tuned_attention[layer] = self._copied_attention(layer)
            self.tuned_attention[layer].get_parameter(parameter_name).data.copy_(value)

    def _attention_module(self, layer: int) -> Any:
        """The attention of a layer: tuned, or the LLM's own."""
        return self.tuned_attention.get(layer, self.llm.model.model.layers[layer].self_attn)

    def _copied_attention(self, layer: int) -> Any:
        """A copy in float32 of the LLM's own attention of a layer."""
        return copy.deepcopy(self.llm.model.model.layers[layer].self_attn).float()

    def _places(self, opened: HasRegions) -> RegionPlaces:
        """The regions of an image as places, at about `MAP_SIDE`."""
        if self._reused is not None and id(opened) in self._reused.places:
            return self._reused.places[id(opened)][1]
        height, width = opened.size
        step = max(1, round(max(height, width) / MAP_SIDE))
        masks = [decode_rle(rle)[::step, ::step] for rle in opened.rles]
        empty = np.zeros((0, -(-height // step), -(-width // step)), bool)
        places = RegionPlaces(torch.from_numpy(np.stack(masks) if masks else empty))
        if self._reused is not None:
            self._reused.places[id(opened)] = opened, places
        return places

    def _match(self, regions: EncodedRegions, prompts: list[str]) -> Tensor:
        """How well prompts match an image -> (P,) float.

        It is the highest probability at any region that it bears the prompt's name rather than one of the
        names that were taught. Words for the background, which were not taught, get the mean of the others.
        """
        is_background = torch.tensor([prompt in BACKGROUND_WORDS for prompt in prompts])
        if not len(regions.embeddings) or is_background.all():
            return torch.ones(len(prompts))
        names = torch.stack(
            [
                self.llm.name_embedding(prompt)
                for prompt, background in zip(prompts, is_background.tolist(), strict=True)
                if not background
            ]
        )
        log_probability = self.llm.encoder.match(regions.embeddings, names)[..., 1] * LOGIT_SCALE
        best = log_probability.exp().amax(1)
        match = torch.full((len(prompts),), float(best.mean()))
        match[~is_background] = best
        return match

    def _reading(
        self,
        opened: HasRegions,
        embeddings: Tensor,
        prompts: Sequence[str],
        tokens: list[list[int]],
        layers: list[int],
    ) -> Reading:
        """What the LLM reads; computed once for the same image, prompts and layers while `reusing`."""
        # Tuned rows need gradients, and change while they are tuned.
        if self._reused is None or self.tuned_rows:
            return read_phrases(self.llm, embeddings, tokens, layers, self.tuned_rows)
        key = (id(opened), tuple(prompts), tuple(layers))
        if key not in self._reused.readings:
            with torch.no_grad():
                reading = read_phrases(self.llm, embeddings, tokens, layers, self.tuned_rows)
            self._reused.readings[key] = opened, reading
        return self._reused.readings[key][1]


def published_probe(llm: PocketLLM, opener: PocketImageOpener) -> PocketProbe:
    """The probe with the tuned attention of this preset. `restore({})` gives back the LLM's own."""
    from safetensors.torch import load_file

    probe = PocketProbe(llm, opener)
    if (POCKET / "attention.safetensors").exists():
        probe.restore(load_file(pocket_file("attention.safetensors")))
    return probe

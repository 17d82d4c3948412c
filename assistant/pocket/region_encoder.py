"""The region encoder: a region's features become one embedding in the input space of the LLM.

    regions = encoder(features)                                        # (N, FEATURE_DIM) -> EncodedRegions
    shown = select_distinct(regions.embeddings, regions.objectness)    # indices of those that the LLM reads

It is trained so that the embedding of a region lies where the embedding of its name lies. "Taught names" are
the names that it was trained with; each has a row in `RegionEncoder.names`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.pocket.region_features import FEATURE_DIM
from assistant.sam.region_features import GEOMETRY

HIDDEN_DIM = 256
MAX_SHOWN_REGIONS = 16  # regions of an image that the LLM reads
SHAPE_DIM = GEOMETRY + 1  # of a region: its geometry, and its objectness
# Divides scaled cosines and log-probabilities, so that the selector's inputs have a size of about 1.
LOGIT_SCALE = 4
MIN_LOG_PROBABILITY = -16.0


class EncodedRegions(NamedTuple):
    """The N regions of one image, encoded."""

    embeddings: Tensor  # (N, llm_width) float32 unit vectors in the LLM's input space
    shapes: Tensor  # (N, SHAPE_DIM) float32: geometry, then objectness / LOGIT_SCALE

    @property
    def objectness(self) -> Tensor:
        """(..., N) float32 logits that a region is a whole object with a name."""
        return self.shapes[..., -1] * LOGIT_SCALE


class RegionEncoder(nn.Module):
    """Encodes regions by their features.

    Args:
        llm_width: Width of the LLM's input embeddings.
        names: Number of taught names.

    Attributes:
        names: (names, llm_width) float32, the embeddings of the taught names; they distinguish "a cup" from
            "as likely a bowl".
    """

    mean: Tensor
    scale: Tensor
    names: Tensor

    def __init__(self, llm_width: int, names: int = 0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURE_DIM))
        self.register_buffer("scale", torch.ones(FEATURE_DIM))
        self.register_buffer("names", torch.zeros(names, llm_width))
        self.encode = nn.Sequential(
            nn.Dropout(0.4),
            nn.Linear(FEATURE_DIM, 512),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(512, HIDDEN_DIM),
        )
        self.to_words = nn.Linear(HIDDEN_DIM, llm_width)
        self.thing = nn.Linear(HIDDEN_DIM, 1)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def fit_inputs(self, features: Tensor) -> None:
        """Take the mean and the scale of the inputs from features (N, FEATURE_DIM)."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0) + 1e-3)

    def forward(self, features: Tensor) -> EncodedRegions:
        """Features (N, FEATURE_DIM), which end in the geometry -> the encoded regions."""
        hidden = self.encode((features - self.mean) / self.scale)
        embeddings = F.normalize(self.to_words(hidden), dim=-1)
        geometry = features[..., -GEOMETRY:]
        return EncodedRegions(embeddings, torch.cat([geometry, self.thing(hidden) / LOGIT_SCALE], -1))

    def name_logits(self, embeddings: Tensor, names: Tensor) -> Tensor:
        """Scaled cosine of embeddings (N, llm_width) with names (C, llm_width) -> (N, C)."""
        return self.log_scale.exp() * embeddings @ F.normalize(names, dim=-1).T

    def match(self, embeddings: Tensor, phrases: Tensor) -> Tensor:
        """How well regions fit phrases.

        Args:
            embeddings: (N, llm_width) of the regions.
            phrases: (M, llm_width) embeddings of the phrases.

        Returns:
            (M, N, 2) float32: the scaled cosine, and the log-probability of the phrase among the taught names
            (0 where there are none), both divided by LOGIT_SCALE.
        """
        score = self.name_logits(embeddings, phrases).T
        if not len(self.names):
            return torch.stack([score / LOGIT_SCALE, torch.zeros_like(score)], -1)
        total = self.name_logits(embeddings, self.names).logsumexp(1)
        log_probability = (score - total).clamp(MIN_LOG_PROBABILITY, 0)
        return torch.stack([score / LOGIT_SCALE, log_probability / LOGIT_SCALE], -1)


def select_distinct(embeddings: Tensor, objectness: Tensor, count: int = MAX_SHOWN_REGIONS) -> Tensor:
    """Select regions that are likely objects and unlike each other.

    Greedy: each choice has the highest product of its objectness and its distance to the regions chosen
    before it.

    Args:
        embeddings: (N, W) float32 unit vectors.
        objectness: (N,) float32 logits.
        count: Number of regions to select.

    Returns:
        Indices (min(N, count),) int64; in the order of choice where there are more than `count`.
    """
    if len(embeddings) <= count:
        return torch.arange(len(embeddings))
    gain = objectness.sigmoid()
    similarity = torch.zeros(len(embeddings))  # with the most similar of the chosen
    chosen = []
    for _ in range(count):
        best = int((gain * (1 - similarity)).argmax())
        chosen.append(best)
        similarity = torch.maximum(similarity, (embeddings @ embeddings[best]).clamp(min=0))
        similarity[best] = 1
    return torch.tensor(chosen)

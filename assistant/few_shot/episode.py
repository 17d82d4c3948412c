"""What a few-shot episode is made of: the features of a query, references with masks, and perhaps a label.

    query = matcher.open(image)                                   # ImageFeatures
    reference = Reference(matcher.open(other), cell_coverage(segmenter, mask.shape, mask, (32, 32)))
    episode = Episode(query, [reference], "mug")

All features lie on grids over SAM's square, into which an image goes by `Segmenter.input_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.few_shot.similarity import IMAGE_MAPS
from assistant.sam.segmenter import Embedding, Segmenter


@dataclass
class ImageFeatures:
    """The frozen features of one image.

    Attributes:
        patches: (C, h, w) float, compared with the patches of other images.
        joint: (D, h', w') float, compared with labels.
        coverage: (h, w) in [0, 1], the share of each cell that the image covers.
        embedding: SAM's encoding of the image.
    """

    patches: Tensor
    joint: Tensor
    coverage: Tensor
    embedding: Embedding

    def to(self, device: torch.device) -> ImageFeatures:
        """The same features on another device. SAM's encoding stays where SAM is."""
        return ImageFeatures(
            self.patches.to(device), self.joint.to(device), self.coverage.to(device), self.embedding
        )

    def sam_features(self, width: int) -> Tensor:
        """SAM's own features on the grid of the patches.

        Args:
            width: Number of channels to take, as many as an embedded prompt has. The pocket SAM packs finer
                maps behind them.

        Returns:
            (width, h, w) float, of unit length along the channels, on the device of the patches.
        """
        features = self.embedding.features[:, :width].float().to(self.patches.device)
        grid = (int(self.coverage.shape[0]), int(self.coverage.shape[1]))
        return F.normalize(F.interpolate(features, grid, mode="bilinear", align_corners=False)[0], dim=0)


@dataclass
class Reference:
    """An image that shows what is asked for.

    Attributes:
        features: The image's features.
        mask: (h, w) in [0, 1], the share of each cell of the patches that lies inside the mask.
    """

    features: ImageFeatures
    mask: Tensor

    def to(self, device: torch.device) -> Reference:
        """The same reference on another device."""
        return Reference(self.features.to(device), self.mask.to(device))


class Episode(NamedTuple):
    """One task of few-shot segmentation.

    Attributes:
        query: The image to segment.
        references: One or more images with masks.
        label: The category's name; None to go by the images alone.
    """

    query: ImageFeatures
    references: list[Reference]
    label: str | None

    def to(self, device: torch.device) -> Episode:
        """The same episode on another device."""
        references = [reference.to(device) for reference in self.references]
        return Episode(self.query.to(device), references, self.label)


class MatchInputs(NamedTuple):
    """What `PromptEncoder` reads of B episodes with K references each; all of it comes from frozen parts.

    `maps` has the grid of the patches. Everything else is on a grid of half its side, (a, b).

    Attributes:
        maps: (B, M, h, w) float, the channels of `similarity.MapChannel`, 0 where the query's image does not
            reach.
        query: (B, C, a, b) float, patches of unit length.
        references: (B, K, C, a, b) float, patches of unit length.
        query_coverage: (B, a, b) in [0, 1], the share of each cell that the image covers.
        reference_coverage: (B, K, a, b) in [0, 1], the same for the references.
        masks: (B, K, a, b) in [0, 1], the share of each cell inside the mask.
        query_maps: (B, a, b, 1 or 2) in [0, 1], similarity to the references and, with labels, to the label.
        reference_maps: (B, K, a, b, 1 or 2) in [0, 1], the masks and, with labels, similarity to the label.
        label_vectors: (B, D) float of unit length; None without labels.
    """

    maps: Tensor
    query: Tensor
    references: Tensor
    query_coverage: Tensor
    reference_coverage: Tensor
    masks: Tensor
    query_maps: Tensor
    reference_maps: Tensor
    label_vectors: Tensor | None

    def to(self, device: torch.device) -> MatchInputs:
        """The same inputs on another device."""
        parts: dict[str, Any] = {k: v if v is None else v.to(device) for k, v in self._asdict().items()}
        return MatchInputs(**parts)

    def without_labels(self) -> MatchInputs:
        """The same episodes for an encoder that reads no label."""
        return self._replace(
            maps=self.maps[:, :IMAGE_MAPS],
            query_maps=self.query_maps[..., :1],
            reference_maps=self.reference_maps[..., :1],
            label_vectors=None,
        )


def cell_coverage(
    segmenter: Segmenter, size: tuple[int, int], mask: np.ndarray, grid: tuple[int, int]
) -> Tensor:
    """The share of each cell of a grid over SAM's square that a mask covers.

    The mask goes into the square by the very transform of its image, so that both stay aligned.

    Args:
        segmenter: The SAM.
        size: (H, W) px of the image.
        mask: (H, W) bool.
        grid: (h, w), number of rows and columns of the grid.

    Returns:
        (h, w) float32 in [0, 1].
    """
    height, width = segmenter.input_size(size)
    rows = _cell_overlaps(size[0], height, segmenter.side, grid[0])
    columns = _cell_overlaps(size[1], width, segmenter.side, grid[1])
    return (rows @ torch.as_tensor(mask, dtype=torch.float32) @ columns.T).clamp(0, 1)


def _cell_overlaps(pixels: int, used: int, side: int, cells: int) -> Tensor:
    """How much of each cell each pixel of the image covers, along one side of the square.

    Args:
        pixels: Of the image along this side.
        used: Pixels of the square that the image fills along this side.
        side: Pixels of the square.
        cells: Number of cells along the square.

    Returns:
        (cells, pixels) float32 in [0, 1].
    """
    edges = torch.arange(pixels + 1, dtype=torch.float64) * used / pixels * cells / side  # in cells
    starts = torch.arange(cells, dtype=torch.float64)[:, None]
    overlap = torch.minimum(edges[1:], starts + 1) - torch.maximum(edges[:-1], starts)
    return overlap.clamp(min=0).float()

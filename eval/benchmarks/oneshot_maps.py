"""The label maps that every arm of the one-shot benchmark makes of an image.

arms = AttentionArms(probe, names, ranking, heads=16)
arms.training_free(opened, image, masks)            # {"all layers": (H, W) int16, ...}
arms.tuned(opened, image, masks, {0: weights})      # {"tuned 0": (H, W) int16, ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.attention.maps import class_maps, shares, with_background
from assistant.attention.prompt_attention import LayerChoice, PromptAttention, Ranking
from assistant.pipeline import AttentionProbe
from assistant.sam.mask_ops import Rle, decode_rle

MAP_GRID = 160  # cells of the longer side that maps are drawn on before they are enlarged to the image
MAX_REFINED_CLASSES = 12  # the strongest of an image are refined
MIN_BACKGROUND = 1e-3  # added to the background, so that it wins where no place covers a pixel
WITHOUT_MATCH = ", without match"  # what the names of these arms end with
REFINEMENTS = ("crf", "vote")
REFINED_RUN = 0  # of the tuned runs only this one is refined


class AttentionArms:
    """Segments images by attention, in several ways.

    Args:
        probe: Reads the model's attention.
        names: The names of the classes.
        ranking: Which layers and heads are best.
        heads: Number of heads that the arm of heads averages.
    """

    def __init__(self, probe: AttentionProbe, names: list[str], ranking: Ranking, heads: int):
        self.probe = probe
        self.classes = len(names) + 1
        self.prompts, self.class_of_prompt = with_background(names)
        self.ranking = ranking
        self.arms: dict[str, list[LayerChoice]] = {
            "all layers": [(layer, None) for layer in range(probe.layers)],
            "ranked layers": ranking.use,
            "ranked heads": [(layer, head) for layer, head, _ in ranking.heads[:heads]],
        }

    def training_free(self, opened: Any, image: np.ndarray, masks: Tensor | None) -> dict[str, np.ndarray]:
        """The label maps without tuning.

        Args:
            opened: The image, as the probe opens it.
            image: (H, W, 3) uint8 RGB.
            masks: (N, h, w) bool, SAM's proposals on the grid of `grid_of`; None for no refinement.

        Returns:
            {arm: (H, W) int16}, 0 for the background.
        """
        attention = self.probe.attention(opened, self.prompts)
        label_maps: dict[str, np.ndarray] = {}
        for name, use in self.arms.items():
            if use:
                refining = masks if name == "ranked layers" else None
                label_maps |= self._arm(name, attention, use, image, refining)
        return label_maps

    def tuned(
        self,
        opened: Any,
        image: np.ndarray,
        masks: Tensor | None,
        runs: Mapping[int, Mapping[str, Tensor]],
    ) -> dict[str, np.ndarray]:
        """The label maps of `runs`, {run: tuned parameters}; otherwise as `training_free`."""
        label_maps: dict[str, np.ndarray] = {}
        for run, parameters in runs.items():
            self.probe.restore(parameters)
            attention = self.probe.attention(opened, self.prompts, self.ranking.used_layers)
            refining = masks if run == REFINED_RUN else None
            label_maps |= self._arm(f"tuned {run}", attention, self.ranking.use, image, refining)
        self.probe.restore({})
        return label_maps

    def _arm(
        self,
        name: str,
        attention: PromptAttention,
        use: Sequence[LayerChoice],
        image: np.ndarray,
        masks: Tensor | None,
    ) -> dict[str, np.ndarray]:
        """The label maps of one arm: with the match, without it and, where there are masks, refined."""
        size = (image.shape[0], image.shape[1])
        maps = self._class_maps(attention, use, size)
        without_match = self._class_maps(attention, use, size, match=False)
        label_maps = {
            name: label_map_of(maps, size),
            f"{name}{WITHOUT_MATCH}": label_map_of(without_match, size),
        }
        if masks is not None:
            label_maps[f"{name}, crf"] = label_map_of(refined_by_colour(maps, image), size)
            label_maps[f"{name}, vote"] = label_map_of(refined_by_votes(maps, masks), size)
        return label_maps

    def _class_maps(
        self,
        attention: PromptAttention,
        use: Sequence[LayerChoice],
        size: tuple[int, int],
        match: bool = True,
    ) -> Tensor:
        """Maps (classes, h, w) of an image of `size` px on the grid; what no place covers is background."""
        maps = class_maps(shares(attention, use, match), self.class_of_prompt, self.classes)
        drawn = attention.places.to_pixels(maps, grid_of(size))
        drawn[0] += MIN_BACKGROUND
        return drawn


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of the grid that maps of an image of `size` (H, W) px are drawn on."""
    scale = min(1, MAP_GRID / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def label_map_of(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The class that is largest at each pixel after bilinear enlargement.

    It works class by class, as 80 whole maps of a photo would take 100 MB. Classes that are nowhere above the
    weakest winner are skipped, as they cannot win.

    Args:
        maps: (C, h, w) float.
        size: (H, W) px.

    Returns:
        (H, W) int16.
    """
    weakest_winner = float(maps.amax(0).min())
    best = torch.full(size, -1.0)
    label_map = torch.zeros(size, dtype=torch.int16)
    for k, class_map in enumerate(maps):
        if k and float(class_map.max()) < weakest_winner:
            continue
        enlarged = F.interpolate(class_map[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        label_map[enlarged > best] = k
        best = torch.maximum(best, enlarged)
    return label_map.numpy()


def refined_by_colour(maps: Tensor, image: np.ndarray) -> Tensor:
    """Maps (C, h, w) after ConvCRF on an image (H, W, 3) uint8; all but the strongest classes are 0."""
    from PIL import Image

    from assistant.attention.refinement import ConvCRF

    strongest, probabilities = _strongest(maps)
    height, width = maps.shape[1:]
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return _placed(maps, strongest, ConvCRF()(probabilities, np.asarray(small)))


def refined_by_votes(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps (C, h, w) after votes of masks (N, h, w) bool; all but the strongest classes are 0."""
    from assistant.attention.refinement import vote

    strongest, probabilities = _strongest(maps)
    return _placed(maps, strongest, vote(probabilities, masks))


def _strongest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The background and the strongest classes: their numbers (K,), and maps (K, h, w) that sum to 1."""
    order = maps[1:].amax((1, 2)).argsort(descending=True)[:MAX_REFINED_CLASSES]
    strongest = torch.cat([torch.tensor([0]), 1 + order])
    return strongest, maps[strongest] / maps[strongest].sum(0, keepdim=True)


def _placed(maps: Tensor, strongest: Tensor, refined: Tensor) -> Tensor:
    """Maps (C, h, w) in which the classes `strongest` have the maps `refined` and the others are 0."""
    placed = torch.zeros_like(maps)
    placed[strongest] = refined
    return placed


def masks_on_grid(rles: Sequence[Rle], size: tuple[int, int]) -> Tensor:
    """Masks of an image of `size` (H, W) px on the grid of `grid_of` -> (N, h, w) bool."""
    height, width = grid_of(size)
    if not rles:
        return torch.zeros(0, height, width, dtype=torch.bool)
    rows = np.arange(height) * size[0] // height
    columns = np.arange(width) * size[1] // width
    return torch.from_numpy(np.stack([decode_rle(rle)[rows[:, None], columns] for rle in rles]))

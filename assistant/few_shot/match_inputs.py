"""Computes what the prompt encoder reads of an episode: `assistant.few_shot.episode.MatchInputs`.

inputs = match_inputs([Episode(query, [reference], "mug")], encoder, extractor)
prompts = encoder(inputs)
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.few_shot.episode import Episode, ImageFeatures, MatchInputs
from assistant.few_shot.features import FeatureExtractor
from assistant.few_shot.prompt_encoder import PromptEncoder
from assistant.few_shot.similarity import (
    MapChannel,
    label_similarity,
    reference_similarity,
    relative_to_references,
    scaled_to_unit,
)

# Differences of cosines are small; these factors bring them near the range of the other channels. The
# published weights were trained with them.
CONTRAST_GAIN = 4.0
LABEL_GAIN = 10.0


@torch.no_grad()
def match_inputs(
    episodes: Sequence[Episode], encoder: PromptEncoder, extractor: FeatureExtractor
) -> MatchInputs:
    """Compare the queries of episodes with their references and labels.

    Args:
        episodes: B episodes, all with the same number of references; each has a label if `encoder` reads
            labels.
        encoder: The encoder that the result is for.
        extractor: What the images' features come from.

    Returns:
        The inputs of `encoder`, batched, on its device.

    Raises:
        ValueError: `encoder` reads labels, and an episode has none.
    """
    device = encoder.mean.device
    episodes = [episode.to(device) for episode in episodes]
    queries = [episode.query for episode in episodes]
    references = [[reference.features for reference in episode.references] for episode in episodes]
    query_patches = _patches(encoder, queries)
    reference_patches = torch.stack([_patches(encoder, several) for several in references])
    query_coverage = torch.stack([query.coverage for query in queries])
    reference_coverage = torch.stack(
        [torch.stack([features.coverage for features in several]) for several in references]
    )
    masks = torch.stack(
        [torch.stack([reference.mask for reference in episode.references]) for episode in episodes]
    )
    maps = _image_maps(
        (query_patches, reference_patches),
        _sam_features(encoder.settings["prompt"], queries, references),
        masks,
        query_coverage,
        reference_coverage,
    )
    query_maps = [maps[MapChannel.BEST_SCALED]]
    reference_maps = [masks]
    label_vectors = None
    if encoder.settings["text"]:
        label_vectors = torch.stack([extractor.embed_label(_label(episode)) for episode in episodes])
        label_vectors = label_vectors.to(device)
        label_maps, reference_heat = _label_maps(
            episodes, label_vectors, masks, query_coverage, reference_coverage
        )
        maps += label_maps
        query_maps.append(maps[MapChannel.LABEL_SCALED])
        reference_maps.append(scaled_to_unit(reference_heat, reference_coverage))
    return MatchInputs(
        maps=torch.stack(maps, 1) * query_coverage[:, None],
        query=F.normalize(_half_grid(query_patches * query_coverage[:, None]), dim=1),
        references=F.normalize(_half_grid(reference_patches * reference_coverage[:, :, None]), dim=2),
        query_coverage=_half_grid(query_coverage),
        reference_coverage=_half_grid(reference_coverage),
        masks=_half_grid(masks),
        query_maps=torch.stack([_half_grid(heat) for heat in query_maps], -1),
        reference_maps=torch.stack([_half_grid(heat) for heat in reference_maps], -1),
        label_vectors=label_vectors,
    )


def _patches(encoder: PromptEncoder, images: Sequence[ImageFeatures]) -> Tensor:
    """The patches of N images as `encoder` compares them -> (N, C, h, w)."""
    return encoder.normalised(torch.stack([features.patches.float() for features in images]))


def _label(episode: Episode) -> str:
    """The episode's label. Raises ValueError where it has none."""
    if episode.label is None:
        raise ValueError("an encoder that reads labels needs episodes with labels")
    return episode.label


def _sam_features(
    width: int, queries: list[ImageFeatures], references: list[list[ImageFeatures]]
) -> tuple[Tensor, Tensor]:
    """SAM's own features of B queries (B, width, h, w) and of their K references (B, K, width, h, w)."""
    of_queries = torch.stack([query.sam_features(width) for query in queries])
    of_references = torch.stack(
        [torch.stack([features.sam_features(width) for features in several]) for several in references]
    )
    return of_queries, of_references


def _image_maps(
    patches: tuple[Tensor, Tensor],
    sam_features: tuple[Tensor, Tensor],
    masks: Tensor,
    query_coverage: Tensor,
    reference_coverage: Tensor,
) -> list[Tensor]:
    """The channels of `MapChannel` that need no label, each (B, h, w)."""
    by_patches = reference_similarity(*patches, masks, reference_coverage)
    by_sam = reference_similarity(*sam_features, masks, reference_coverage)
    return [
        by_patches.best,
        scaled_to_unit(by_patches.best, query_coverage),
        by_patches.contrast * CONTRAST_GAIN,
        by_patches.level,
        by_sam.contrast * CONTRAST_GAIN,
        by_sam.level,
        by_patches.separation,
        by_sam.separation,
        query_coverage,
    ]


def _label_maps(
    episodes: Sequence[Episode],
    label_vectors: Tensor,
    masks: Tensor,
    query_coverage: Tensor,
    reference_coverage: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """The channels of `MapChannel` that need a label, and the references' heat (B, K, h, w)."""
    grid = (int(query_coverage.shape[1]), int(query_coverage.shape[2]))
    heat = torch.stack(
        [
            label_similarity(episode.query.joint, vector, grid)
            for episode, vector in zip(episodes, label_vectors, strict=True)
        ]
    )
    reference_heat = torch.stack(
        [
            torch.stack(
                [label_similarity(reference.features.joint, vector, grid) for reference in episode.references]
            )
            for episode, vector in zip(episodes, label_vectors, strict=True)
        ]
    )
    inside = masks.flatten(1)
    outside = (reference_coverage.flatten(1) - inside).clamp(min=0)
    level, separation = relative_to_references(heat, reference_heat.flatten(1), inside, outside)
    maps = [
        heat * LABEL_GAIN,
        scaled_to_unit(heat, query_coverage),
        level,
        separation * LABEL_GAIN,
    ]
    return maps, reference_heat


def _half_grid(maps: Tensor) -> Tensor:
    """Maps (..., h, w) averaged to half the side -> (..., h // 2, w // 2), at least one cell a side."""
    height, width = maps.shape[-2:]
    size = (max(1, height // 2), max(1, width // 2))
    pooled = F.adaptive_avg_pool2d(maps.flatten(0, -3)[:, None], size)
    return pooled[:, 0].unflatten(0, maps.shape[:-2])

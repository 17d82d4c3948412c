"""InfoScore: ranks a model's layers and heads from unlabelled images (arXiv 2503.10779, section 3.2).

ranking = rank(probe, [probe.open(file) for file in files], read_names(None), layers=4)
ranking.save(Path("ranking.json"))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.attention.maps import class_maps, standardised, with_background
from assistant.attention.prompt_attention import LayerChoice, PromptAttention, Ranking
from assistant.errors import BadInput
from assistant.files import read_json, read_text
from assistant.pipeline import AttentionProbe

# The names that InfoScore prompts with where none are given.
COMMON_NAMES = (
    "person dog cat bird horse cow car bicycle bus train boat airplane chair couch table bed bottle cup bowl "
    "plate fork knife spoon pizza cake apple banana book clock phone laptop television keyboard bag hat "
    "umbrella ball lamp sign"
).split()
MIN_IMAGES = 2  # InfoScore compares images with each other


def read_names(file: Path | None) -> list[str]:
    """Read the names to prompt with.

    Args:
        file: A text file, one name a line, or a json with COCO's categories, of which nothing else is read;
            None for `COMMON_NAMES`.

    Returns:
        The names, each once.

    Raises:
        BadInput: The file holds no names.
    """
    if file is None:
        return list(COMMON_NAMES)
    try:
        if Path(file).suffix == ".json":
            listed = [category["name"] for category in read_json(file)["categories"]]
        else:
            listed = read_text(file).splitlines()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{file} holds no names: give a text file, one a line, or a json with COCO's categories ({error})"
        ) from None
    names = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not names:
        raise BadInput(f"{file} holds no name")
    return names


def info_score(means: Tensor) -> Tensor:
    """InfoScore of K layers or heads from I unlabelled images.

    It is (entropy of the mean / mean of the entropies) x sum over classes of (deviation / mean): high where a
    layer is certain about each image and says something else about others.

    Args:
        means: (I, K, C) float, for each image and layer a distribution over classes: the mean over places of
            its maps.

    Returns:
        (K,) float32.
    """
    means = means.double() / means.double().sum(-1, keepdim=True)
    overall = means.mean(0)
    variation = (means.std(0, unbiased=False) / overall.clamp(min=1e-12)).sum(-1)
    certainty = _entropy(overall) / _entropy(means).mean(0).clamp(min=1e-12)
    return (certainty * variation).float()


def _entropy(distribution: Tensor) -> Tensor:
    """Entropy of distributions (..., C) -> (...)."""
    return -(distribution * distribution.clamp(min=1e-12).log()).sum(-1)


@torch.inference_mode()
def rank(
    probe: AttentionProbe,
    images: Iterable[Any],
    names: list[str],
    layers: int = 4,
    heads: int = 0,
    deepest: int | None = None,
) -> Ranking:
    """Rank every layer and head of a model.

    Args:
        probe: Reads the model's attention.
        images: Unlabelled images, as the probe opens them.
        names: What may be in them.
        layers: Number of layers that the ranking uses, the best.
        heads: Number of heads that it uses instead, the best; 0 for whole layers.
        deepest: Use no layer above this one, so that the model need not be run to its end; None for any
            layer.

    Returns:
        The ranking.

    Raises:
        BadInput: There are fewer than two images.
    """
    prompts, class_of_prompt = with_background(names)
    layer_means = []
    head_means = []
    layer_numbers: list[int] = []
    heads_per_layer = 0
    for image in images:
        attention = probe.attention(image, prompts)
        if not attention.scores.shape[3]:
            continue  # there is no place to attend to
        scores = attention.scores.permute(1, 2, 0, 3)  # (L, H, P, N)
        layer_numbers = attention.layers
        heads_per_layer = scores.shape[1]
        layer_means.append(_class_means(attention, scores.amax(1), class_of_prompt, len(names) + 1))
        head_means.append(_class_means(attention, scores.flatten(0, 1), class_of_prompt, len(names) + 1))
    if len(layer_means) < MIN_IMAGES:
        raise BadInput("ranking compares images with each other: give at least two, better fifty")
    ranked_layers = [(layer_numbers[k], score) for k, score in _best_first(layer_means)]
    ranked_heads = [
        (layer_numbers[k // heads_per_layer], k % heads_per_layer, score)
        for k, score in _best_first(head_means)
    ]
    choices: list[LayerChoice] = [(layer, None) for layer, _ in ranked_layers]
    if heads:
        choices = [(layer, head) for layer, head, _ in ranked_heads]
    use = [choice for choice in choices if deepest is None or choice[0] <= deepest][: heads or layers]
    return Ranking(ranked_layers, ranked_heads, use, len(layer_means), len(prompts))


def _class_means(attention: PromptAttention, scores: Tensor, class_of_prompt: Tensor, classes: int) -> Tensor:
    """The mean over places of the class maps of scores (K, P, N) of layers or heads -> (K, classes)."""
    share = standardised(scores).softmax(1) * attention.match[:, None]
    return class_maps(share, class_of_prompt, classes).mean(-1)


def _best_first(means: Sequence[Tensor]) -> list[tuple[int, float]]:
    """(index, InfoScore) of the layers or heads of `means`, one (K, C) per image, best first."""
    scores = enumerate(info_score(torch.stack(list(means))).tolist())
    ranked = sorted(scores, key=lambda pair: (-pair[1], pair[0]))
    return [(index, round(score, 3)) for index, score in ranked]

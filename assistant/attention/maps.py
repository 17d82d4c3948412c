"""Maps of where a model attends for a phrase, by "The Power of One" (arXiv 2503.10779).

    probe = assistant.pipeline.attention_probe()             # or mllm.probe_loading.load_probe(folder)
    heat = attend(probe, opened, "a mug")                    # (H, W) float32 in [0, 1]
    attention = probe.attention(opened, ["mug", *BACKGROUND_WORDS])    # scores of every layer and head

A vision-language model attends from the words of a prompt to places of the image: patches of a grid, or
regions. The scores before the softmax, averaged over the prompt's tokens, compete with those of other prompts
at the same place (softmax over prompts), so that what attracts every word cancels out. Each prompt is
weighted by how well it matches the image as a whole. Words for what is no object (`BACKGROUND_WORDS`) stand
for the background; their shares are summed.

One thing is not in the paper. Attention is a softmax over places, to which a constant added to all scores of
a prompt makes no difference. Between prompts that constant is arbitrary, yet it would decide more than the
places do. So the scores of a prompt are taken relative to their mean over the image, and those of a layer to
their deviation (`standardised`). The attention then tells where a prompt is, and the match whether it is
there at all.

Not every layer and head attends to what it reads. InfoScore ranks them without labels: a good one is certain
about each image, but not always about the same thing. `python -m assistant rank-layers` writes the ranking
that `attend` follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.attention.prompt_attention import LayerChoice, PromptAttention
from assistant.errors import BadInput
from assistant.grammar import neutralise
from assistant.pipeline import AttentionProbe

# What fills images around the objects that people ask for.
BACKGROUND_WORDS = (
    "sky clouds grass trees leaves bushes ground dirt sand snow water sea river road pavement floor carpet "
    "wall ceiling window door building house fence mountain rocks curtain shelf"
).split()
MAX_PHRASE_CHARS = 200
MIN_SCORE_DEVIATION = 1e-3  # scores that hardly differ are not blown up when they are standardised


def check_phrase(phrase: str) -> str:
    """Bring a phrase into the form of a prompt: without its article, and with tokens of the model
    neutralised.

    Args:
        phrase: Such as "a mug".

    Returns:
        Such as "mug".

    Raises:
        BadInput: It names nothing, is too long, or is not text.
    """
    if not isinstance(phrase, str):
        raise BadInput(f"a phrase is text, not {type(phrase).__name__}")
    words = " ".join(neutralise(phrase).split())
    words = re.sub(r"^(an?|the|some)\s+", "", words, flags=re.I).strip(" .?!,;:")
    if not any(character.isalnum() for character in words):
        raise BadInput('the phrase names nothing: give one such as "a mug"')
    if len(words) > MAX_PHRASE_CHARS:
        raise BadInput(
            f"the phrase has {len(words):,} characters: name one thing in at most {MAX_PHRASE_CHARS}"
        )
    return words


def chosen_scores(attention: PromptAttention, use: Sequence[LayerChoice]) -> Tensor:
    """The scores of some layers or heads.

    Args:
        attention: Of P prompts to N places.
        use: K layers or heads. A layer without a head stands for the maximum over its heads, as in the paper.

    Returns:
        (K, P, N) float.

    Raises:
        BadInput: The model does not have such a layer.
    """
    rows = []
    for layer, head in use:
        if layer not in attention.layers:
            raise BadInput(
                f"layer {layer} of the ranking is none of this model's {len(attention.layers)} layers: rank "
                "its own with python -m assistant rank-layers"
            )
        scores = attention.scores[:, attention.layers.index(layer)]
        rows.append(scores.amax(1) if head is None else scores[:, head])
    return torch.stack(rows)


def standardised(scores: Tensor) -> Tensor:
    """Remove what is common to the places of a prompt or to the prompts of a place, and scale to unit
    deviation.

    Args:
        scores: (K, P, N) float, K layers or heads.

    Returns:
        (K, P, N) float.
    """
    centred = scores - scores.mean(2, keepdim=True)
    centred = centred - centred.mean(1, keepdim=True)
    return centred / centred.square().mean((1, 2), keepdim=True).sqrt().clamp(min=MIN_SCORE_DEVIATION)


def shares(attention: PromptAttention, use: Sequence[LayerChoice], match: bool = True) -> Tensor:
    """The share that each prompt has of every place: softmax over prompts, the mean over layers or heads.

    Args:
        attention: Of P prompts to N places.
        use: The layers or heads.
        match: Whether to weight each prompt by its match. Without it the scores are not standardised, because
            nothing else then tells which of the prompts are in the image.

    Returns:
        (P, N) float in [0, 1].
    """
    scores = chosen_scores(attention, use)
    if not match:
        return scores.softmax(1).mean(0)
    return standardised(scores).softmax(1).mean(0) * attention.match[:, None]


def class_maps(share: Tensor, class_of_prompt: Tensor, classes: int) -> Tensor:
    """Maps of classes from the shares of their prompts (section 3 of the paper).

    The background gets the sum of its prompts, every other class the best of its synonyms.

    Args:
        share: (..., P, N) float, from `shares`.
        class_of_prompt: (P,) int64, 0 for the background.
        classes: Number of classes with the background.

    Returns:
        (..., classes, N) float; the classes sum to 1 at every place.
    """
    best = share.new_zeros(*share.shape[:-2], classes, share.shape[-1])
    index = class_of_prompt[:, None].expand_as(share)
    best = best.scatter_reduce(-2, index, share, "amax", include_self=False)
    background = share[..., class_of_prompt == 0, :].sum(-2, keepdim=True)
    maps = torch.cat([background, best[..., 1:, :]], -2)
    return maps / maps.sum(-2, keepdim=True).clamp(min=1e-8)


def with_background(names: list[str]) -> tuple[list[str], Tensor]:
    """The prompts of some classes and of the background.

    Args:
        names: The names of the classes.

    Returns:
        The P prompts, and the class of each, (P,) int64: 1, 2, ... for the names and 0 for the background.
    """
    background = [word for word in BACKGROUND_WORDS if word not in names]
    return names + background, torch.tensor([*range(1, len(names) + 1), *([0] * len(background))])


@torch.inference_mode()
def attend(probe: AttentionProbe, opened: Any, phrase: str) -> np.ndarray:
    """Map where a model attends for a phrase.

    Args:
        probe: Reads the model's attention.
        opened: The image, as the probe opens it.
        phrase: Such as "a mug".

    Returns:
        (H, W) float32 in [0, 1]: the phrase's share of each pixel among itself and `BACKGROUND_WORDS`, times
        how well it matches the image.

    Raises:
        BadInput: The phrase names nothing, or the model exposes no attention.
    """
    words = check_phrase(phrase)
    background = [word for word in BACKGROUND_WORDS if word != words.lower()]
    ranking = probe.ranking
    use: list[LayerChoice] = ranking.use if ranking else [(layer, None) for layer in range(probe.layers)]
    layers = sorted({layer for layer, _ in use})
    attention = probe.attention(opened, [words, *background], layers)
    share = shares(attention, use)[:1]
    return attention.places.to_pixels(share, probe.size(opened))[0].float().clamp(0, 1).numpy()

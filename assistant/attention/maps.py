"""Where a model looks for a phrase: segmentation from text-to-image attention ("The Power of One", arXiv 2503.10779).

    looker = assistant.pipeline.looker                          # pocket; or looking.load_looker("blip-itm-large-coco")
    look = looker.look(scene.opened, ["mug", *CONTRAST])       # pre-softmax scores of every layer and head
    heat = attend(looker, scene.opened, "a mug")               # (H, W) float32 in [0, 1]

A vision-language model attends from the words of a prompt to places of the picture: patches of a grid, or regions.
The scores before the softmax, averaged over the prompt's words, compete with those of other prompts at the same place
(softmax over prompts), so that what attracts every word cancels out. Each prompt is weighted by how well it matches the
picture at all. Words for what is no object (`CONTRAST`) stand for the background, and their shares are summed.

What the paper leaves out: attention is a softmax over places, which a constant added to all of a prompt's scores does
not change. Between prompts that constant is arbitrary, and would decide more than the places do; so a prompt's scores
are taken relative to their mean over the picture, and a layer's to their deviation (`standardised`). The attention says
where, the match whether at all.

Not every layer and head looks at what it reads. InfoScore ranks them without a label: good ones are sure about each
picture, but not always of the same thing. `python -m assistant rank-layers` writes the ranking that `attend` follows.
"""

import re

import numpy as np
import torch
from torch import Tensor

from assistant.attention.prompt_attention import PromptAttention
from assistant.errors import BadInput
from assistant.grammar import neutralise

# What fills pictures around the things that people ask for.
CONTRAST = (
    "sky clouds grass trees leaves bushes ground dirt sand snow water sea river road pavement floor carpet "
    "wall ceiling window door building house fence mountain rocks curtain shelf"
).split()
LONGEST = 200  # characters of a phrase


def check_phrase(phrase: str) -> str:
    """A phrase as a prompt takes it: without its article, its tokens neutralised. BadInput: nothing to look for in
    it."""
    if not isinstance(phrase, str):
        raise BadInput(f"a phrase is text, not {type(phrase).__name__}")
    words = re.sub(r"^(an?|the|some)\s+", "", " ".join(neutralise(phrase).split()), flags=re.I).strip(
        " .?!,;:"
    )
    if not any(c.isalnum() for c in words):
        raise BadInput('the phrase names nothing: give one such as "a mug"')
    if len(words) > LONGEST:
        raise BadInput(f"the phrase has {len(words):,} characters: name one thing in at most {LONGEST}")
    return words


def of_layers(look: PromptAttention, use: list[tuple[int, int | None]]) -> Tensor:
    """The scores (K, P, N) of chosen (layer, head) pairs; head None: the maximum over heads, as in the paper."""
    rows = []
    for layer, head in use:
        if layer not in look.layers:
            raise BadInput(
                f"layer {layer} of the ranking is none of this model's {len(look.layers)} layers: rank its "
                "own with python -m assistant rank-layers"
            )
        scores = look.scores[:, look.layers.index(layer)]
        rows.append(scores.amax(1) if head is None else scores[:, head])
    return torch.stack(rows)


def standardised(scores: Tensor) -> Tensor:
    """Scores (K, P, N) without what is common to a prompt's places or to a place's prompts, of unit deviation."""
    centred = scores - scores.mean(2, keepdim=True)
    centred = centred - centred.mean(1, keepdim=True)
    return centred / centred.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-3)


def shares(look: PromptAttention, use: list[tuple[int, int | None]], match: bool = True) -> Tensor:
    """(P, N): each prompt's share of every place (softmax over prompts, mean over `use`), weighted by its match.
    Without `match` the scores are as they are: then nothing else says which of the prompts are there."""
    scores = of_layers(look, use)
    share = (standardised(scores) if match else scores).softmax(1).mean(0)
    return share * look.match[:, None] if match else share


def class_maps(share: Tensor, owner: Tensor, classes: int) -> Tensor:
    """Shares (..., P, N) of prompts that belong to classes, `owner` (P,), 0 = background -> (..., classes, N), of which
    every place sums to 1: the background gets the sum of its prompts, a class the best of its synonyms (section 3)."""
    best = share.new_zeros(*share.shape[:-2], classes, share.shape[-1])
    best = best.scatter_reduce(-2, owner[:, None].expand_as(share), share, "amax", include_self=False)
    maps = torch.cat([share[..., owner == 0, :].sum(-2, keepdim=True), best[..., 1:, :]], -2)
    return maps / maps.sum(-2, keepdim=True).clamp(min=1e-8)


def with_background(names: list[str]) -> tuple[list[str], Tensor]:
    """The prompts of classes and of the background, and which class each belongs to: 1, 2, ... and 0."""
    others = [c for c in CONTRAST if c not in names]
    return names + others, torch.tensor([*range(1, len(names) + 1), *([0] * len(others))])


@torch.inference_mode()
def attend(probe, view, phrase: str) -> np.ndarray:
    """Where the model looks for a phrase: (H, W) float32 in [0, 1], the share that the phrase has of each pixel beside
    `CONTRAST`, times how well it matches the picture. BadInput: a phrase that names nothing, a model without attention.
    """
    words = check_phrase(phrase)
    others = [c for c in CONTRAST if c != words.lower()]
    use = probe.ranking.use if probe.ranking else [(layer, None) for layer in range(probe.layers)]
    look = probe.attention(view, [words, *others], sorted({layer for layer, _ in use}))
    return look.place.spread(shares(look, use)[:1], probe.size(view))[0].float().clamp(0, 1).numpy()

"""Where a model looks for a phrase: segmentation from text-to-image attention ("The Power of One", arXiv 2503.10779).

    looker = assistant.parts.looker                          # pocket; or looking.load_looker("blip-itm-large-coco")
    look = looker.look(scene.view, ["mug", *CONTRAST])       # pre-softmax scores of every layer and head
    heat = attend(looker, scene.view, "a mug")               # (H, W) float32 in [0, 1]

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

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.grammar import neutralise

# What fills pictures around the things that people ask for.
CONTRAST = (
    "sky clouds grass trees leaves bushes ground dirt sand snow water sea river road pavement floor carpet "
    "wall ceiling window door building house fence mountain rocks curtain shelf"
).split()
# What InfoScore asks for where no names are given.
COMMON = (
    "person dog cat bird horse cow car bicycle bus train boat airplane chair couch table bed bottle cup bowl "
    "plate fork knife spoon pizza cake apple banana book clock phone laptop television keyboard bag hat umbrella "
    "ball lamp sign"
).split()
LONGEST = 200  # characters of a phrase


@dataclass
class Look:
    """What P prompts look at in one picture of N places.

    scores: (P, L, H, N) float32, attention before the softmax, mean over a prompt's words, of the L layers in `layers`
    and their H heads. match: (P,) in [0, 1], does the prompt fit the picture at all. place: has
    `spread((K, N), (H, W)) -> (K, H, W)`, from places to pixels.
    """

    scores: Tensor
    match: Tensor
    layers: list[int]
    place: object


@dataclass
class Ranking:
    """Layers [(layer, InfoScore)] and heads [(layer, head, InfoScore)], best first; use: (layer, head or None) of what
    `attend` averages, None = the strongest head at each place."""

    layers: list[tuple[int, float]]
    heads: list[tuple[int, int, float]]
    use: list[tuple[int, int | None]]
    photos: int = 0
    prompts: int = 0
    about: dict = field(default_factory=dict)

    def save(self, file: Path) -> None:
        with replace_whole(file) as path:
            path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, file: Path) -> "Ranking":
        """BadInput: no ranking in that file."""
        try:
            found = cls(**json.loads(Path(file).read_text()))
            for name in ("layers", "heads", "use"):
                setattr(found, name, [tuple(row) for row in getattr(found, name)])
            if not found.use or not all(len(u) == 2 for u in found.use):
                raise ValueError("it names no layer to use")
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(
                f"{file} holds no ranking of layers; write one with python -m assistant rank-layers ({error})"
            ) from None
        return found


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


def read_names(file: Path | None) -> list[str]:
    """Names, one a line, or the categories of a COCO json (nothing else is read of it); `COMMON` without a file."""
    if file is None:
        return list(COMMON)
    try:
        text = Path(file).read_text(encoding="utf-8")
        listed = json.loads(text)["categories"] if Path(file).suffix == ".json" else None
        names = text.splitlines() if listed is None else [c["name"] for c in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{file} holds no names: give a text file, one a line, or a json with COCO's categories ({error})"
        ) from None
    names = list(dict.fromkeys(n.strip() for n in names if n.strip()))
    if not names:
        raise BadInput(f"{file} holds no name")
    return names


def of_layers(look: Look, use: list[tuple[int, int | None]]) -> Tensor:
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


def shares(look: Look, use: list[tuple[int, int | None]], match: bool = True) -> Tensor:
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


def info_score(means: Tensor) -> Tensor:
    """InfoScore of K layers from I unlabelled pictures: means (I, K, C), each a distribution over classes (the
    mean over places of their maps) -> (K,). (H of the mean / mean of H) x sum over classes of std / mean: high where a
    layer is sure about each picture and says other things about others (section 3.2)."""
    means = means.double() / means.double().sum(-1, keepdim=True)
    entropy = lambda p: -(p * p.clamp(min=1e-12).log()).sum(-1)
    whole = means.mean(0)
    variation = (means.std(0, unbiased=False) / whole.clamp(min=1e-12)).sum(-1)
    return (entropy(whole) / entropy(means).mean(0).clamp(min=1e-12) * variation).float()


@torch.inference_mode()
def rank(
    looker, views, names: list[str], layers: int = 4, heads: int = 0, deepest: int | None = None
) -> Ranking:
    """Rank every layer and head over `views` (an iterable of opened, unlabelled pictures) by the maps, as they are
    used, of what `names` may be in them and of the background. The ranking uses the best `layers` layers, or with
    `heads` the best so many heads; none below the layer `deepest`, where looking ends and costs no more."""
    prompts, owner = with_background(names)
    of_layer, of_head = [], []
    maps = lambda scores: class_maps(
        standardised(scores).softmax(1) * look.match[:, None], owner, len(names) + 1
    )
    for view in views:
        look = looker.look(view, prompts)
        if not look.scores.shape[3]:
            continue  # there is no place to look at
        scores = look.scores.permute(1, 2, 0, 3)  # (L, H, P, N)
        of_layer.append(maps(scores.amax(1)).mean(-1))
        of_head.append(maps(scores.flatten(0, 1)).mean(-1))
    if len(of_layer) < 2:
        raise BadInput("ranking compares pictures with each other: give at least two, better fifty")
    count = look.scores.shape[2]
    score = lambda means: enumerate(info_score(torch.stack(means)).tolist())
    best = lambda means: sorted(score(means), key=lambda pair: (-pair[1], pair[0]))
    ranked = [(look.layers[k], round(s, 3)) for k, s in best(of_layer)]
    ranked_heads = [(look.layers[k // count], k % count, round(s, 3)) for k, s in best(of_head)]
    every = (
        [(layer, head) for layer, head, _ in ranked_heads]
        if heads
        else [(layer, None) for layer, _ in ranked]
    )
    use = [one for one in every if deepest is None or one[0] <= deepest][: heads or layers]
    return Ranking(ranked, ranked_heads, use, len(of_layer), len(prompts))


@torch.inference_mode()
def attend(looker, view, phrase: str) -> np.ndarray:
    """Where the model looks for a phrase: (H, W) float32 in [0, 1], the share that the phrase has of each pixel beside
    `CONTRAST`, times how well it matches the picture. BadInput: a phrase that names nothing, a model without attention.
    """
    words = check_phrase(phrase)
    others = [c for c in CONTRAST if c != words.lower()]
    use = looker.ranking.use if looker.ranking else [(layer, None) for layer in range(looker.layers)]
    look = looker.look(view, [words, *others], sorted({layer for layer, _ in use}))
    return look.place.spread(shares(look, use)[:1], looker.size(view))[0].float().clamp(0, 1).numpy()

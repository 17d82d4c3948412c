"""InfoScore: ranks a model's layers and heads from unlabelled images (arXiv 2503.10779, section 3.2)."""

import json
from pathlib import Path

import torch
from torch import Tensor

from assistant.attention.maps import class_maps, standardised, with_background
from assistant.attention.prompt_attention import Ranking
from assistant.errors import BadInput

# What InfoScore asks for where no names are given.
COMMON = (
    "person dog cat bird horse cow car bicycle bus train boat airplane chair couch table bed bottle cup bowl "
    "plate fork knife spoon pizza cake apple banana book clock phone laptop television keyboard bag hat umbrella "
    "ball lamp sign"
).split()


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
    probe, views, names: list[str], layers: int = 4, heads: int = 0, deepest: int | None = None
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
        look = probe.attention(view, prompts)
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

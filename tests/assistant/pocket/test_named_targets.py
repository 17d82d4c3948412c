"""What is seen without being asked for: names of regions that the map of names agrees with."""

from types import SimpleNamespace

import pytest
import torch

from assistant.pocket.named_targets import (
    MIN_SEEN_CONFIDENCE,
    MIN_SEEN_PRESENCE,
    NamedTarget,
    named_targets,
    offer,
)
from assistant.pocket.region_encoder import SHAPE_DIM, EncodedRegions, RegionEncoder

NAMES = ["cup", "dog", "tree"]


@pytest.fixture
def llm():
    """A language model whose region encoder has a name on each axis."""
    encoder = RegionEncoder(4, len(NAMES))
    encoder.names.copy_(torch.eye(4)[: len(NAMES)])
    return SimpleNamespace(encoder=encoder.eval(), plain_names=lambda: dict(enumerate(NAMES)))


@pytest.fixture
def regions():
    """A cup, surely, and what may be a dog, each a whole object."""
    shapes = torch.zeros(2, SHAPE_DIM)
    shapes[:, -1] = 1.0
    return EncodedRegions(torch.eye(4)[:2], shapes)


def test_a_region_names_what_is_seen(llm, regions):
    found = named_targets(llm, regions)
    assert [(target.name, target.proposals) for target in found] == [("cup", [0]), ("dog", [1])]


def test_what_the_map_of_names_rules_out_is_not_seen(llm, regions):
    found = named_targets(llm, regions, {"dog": -0.5, "cup": 0.5})
    assert [target.name for target in found] == ["cup"]


def test_what_the_map_of_names_is_sure_of_is_seen_without_a_sure_region(llm, regions):
    found = named_targets(llm, regions, {"tree": MIN_SEEN_PRESENCE + 0.1})
    assert found[-1].name == "tree" and found[-1].confidence == MIN_SEEN_CONFIDENCE
    assert found[-1].probability > 0.9 and len(found[-1].proposals) == 1
    unsure = named_targets(llm, regions, {"tree": MIN_SEEN_PRESENCE - 0.1})
    assert "tree" not in [target.name for target in unsure]


def test_skin_and_hair_are_not_offered():
    targets = [NamedTarget(name, 0.5, 0.9, [0]) for name in ("skin", "person", "hair", "hat")]
    assert offer(targets) == "I can see: person, hat."
    assert offer(targets[:1]) == ""

"""What is seen without being asked for: names of regions that the map of names agrees with."""

import torch

from assistant.pocket.named_targets import (
    MIN_SEEN_CONFIDENCE,
    MIN_SEEN_PRESENCE,
    NamedTarget,
    named_targets,
    offer,
)

NAMES = {0: "cup", 1: "dog", 2: "tree"}
# A cup, surely, and what may be a dog, each most likely a whole object.
PROBABILITIES = torch.tensor([[0.98, 0.01, 0.01], [0.2, 0.7, 0.1]])
WHOLE = torch.tensor([0.9, 0.8])


def seen(presence=None):
    return named_targets(NAMES, PROBABILITIES, WHOLE, presence or {})


def test_a_region_names_what_is_seen():
    found = seen()
    assert [(target.name, target.proposals) for target in found] == [("cup", [0]), ("dog", [1])]


def test_what_the_map_of_names_rules_out_is_not_seen():
    found = seen({"dog": -0.5, "cup": 0.5})
    assert [target.name for target in found] == ["cup"]


def test_what_the_map_of_names_is_sure_of_is_seen_without_a_sure_region():
    found = seen({"tree": MIN_SEEN_PRESENCE + 0.1})
    assert found[-1].name == "tree" and found[-1].confidence == MIN_SEEN_CONFIDENCE
    assert found[-1].probability > 0.9 and len(found[-1].proposals) == 1
    unsure = seen({"tree": MIN_SEEN_PRESENCE - 0.1})
    assert "tree" not in [target.name for target in unsure]


def test_nothing_is_seen_where_there_are_no_regions_or_no_names():
    assert named_targets(NAMES, torch.zeros(0, 3), torch.zeros(0), {}) == []
    assert named_targets({}, torch.zeros(2, 0), WHOLE, {}) == []


def test_skin_and_hair_are_not_offered():
    targets = [NamedTarget(name, 0.5, 0.9, [0]) for name in ("skin", "person", "hair", "hat")]
    assert offer(targets) == "I can see: person, hat."
    assert offer(targets[:1]) == ""

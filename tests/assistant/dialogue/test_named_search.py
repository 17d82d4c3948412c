"""An answer whose phrases a person changes: what is found then, without the language model."""

import random

import numpy as np
import pytest

from assistant import Assistant
from assistant.errors import BadInput
from assistant.mllm.concept_pipeline import ConceptPipeline
from assistant.scene import Scene
from tests.helpers import scripted_world
from tests.helpers.cups import BLANK_IMAGE, CupPipeline
from tests.helpers.scripted_world import (
    ErrorRates,
    ScriptedConcepts,
    ScriptedModel,
    ScriptedSegmenter,
    opened_world,
)

NO_ERRORS = ErrorRates(0, 0, 0, 0, 0)


@pytest.fixture
def world():
    """A scene with a question about one of several shapes of a kind."""
    made = scripted_world.make_world(random.Random(3))
    made.kind = next(s.kind for s in made.shapes if sum(o.kind == s.kind for o in made.shapes) > 2)
    made.which = "the first one"
    made.wanted = of_kind(made, made.kind)[:1]
    return made


@pytest.fixture
def scene(world):
    opened = opened_world(world, random.Random(0))
    model = ScriptedModel(world, NO_ERRORS, random.Random(0), opened)
    concepts = ScriptedConcepts(world, NO_ERRORS, random.Random(0))
    pipeline = ConceptPipeline(scripted_world._opener(ScriptedSegmenter(world)), model, concepts)
    return Scene(Assistant(pipeline, {}), world.image, opened)


def of_kind(world, kind):
    return [k for k, shape in enumerate(world.shapes) if shape.kind == kind]


def union(world, kind):
    return np.any([world.shapes[k].mask for k in of_kind(world, kind)], axis=0)


def test_other_phrases_are_looked_for_without_the_model(world, scene):
    answer = scene.ask(world.question)
    assert answer.searched == [[world.kind]] and answer.cost.passes == 1
    assert answer.to_json()["targets"][0]["searched"] == [world.kind]
    calls = scene.assistant.pipeline.model.calls
    other = next(s.kind for s in world.shapes if s.kind != world.kind)
    changed = scene.search_again(answer, {world.kind.upper(): ["gizmo", other, "never looked for"]})
    (target,) = changed.targets
    assert (target.mask == union(world, other)).all() and target.phrase == world.kind
    assert len(target.instances) == len(of_kind(world, other))
    assert target.searched == ["gizmo", other] and changed.cost.passes == 2
    assert scene.assistant.pipeline.model.calls == calls and changed.cost.calls == 0
    assert (answer.mask != changed.mask).any() and changed.question == answer.question
    assert scene.shown is changed.targets and len(scene.turns) == 1  # what later questions refer to


def test_what_is_not_found_is_absent_and_other_targets_stay(world, scene):
    answer = scene.ask(world.question)
    later = scene.ask("where is it?")
    absent = scene.search_again(answer, {world.kind: ["gizmo"]})
    assert not absent.targets[0].present and absent.targets[0].searched == ["gizmo"]
    assert "no" in absent.text.lower() and scene.shown is later.targets
    kept = scene.search_again(answer, {})
    assert kept.targets == answer.targets and kept.text


def test_what_cannot_be_looked_for_is_one_line(world, scene):
    answer = scene.ask(world.question)
    for phrases, message in (
        ({"zebra": ["horse"]}, "the answer names no 'zebra'; it names"),
        ({world.kind: []}, "give 1 to 10 phrases"),
        ({world.kind: "horse"}, "give 1 to 10 phrases"),
        ({world.kind: ["x" * 101]}, "1 to 100 characters"),
    ):
        with pytest.raises(BadInput, match=message) as error:
            scene.search_again(answer, phrases)
        assert "\n" not in str(error.value)
    scene = Assistant(CupPipeline(), {}).open(BLANK_IMAGE)
    for work in (lambda: scene.find("cup"), lambda: scene.search_again(answer, {})):
        with pytest.raises(BadInput, match="give --concepts"):
            work()

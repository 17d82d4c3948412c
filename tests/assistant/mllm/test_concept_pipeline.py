"""A model that names and a segmenter that finds: how many calls each case takes, and what is answered."""

import json
import random

import numpy as np
import pytest
import skimage.data
import torch

from assistant import Assistant
from assistant.dialogue.class_list import ask_classes
from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.mllm.concept_pipeline import MARKS_PER_SHEET, MAX_MARKS, ConceptPipeline
from assistant.mllm.structured_answer import StructuredAnswer
from assistant.presets import ModelOptions, load_preset
from assistant.sam.concepts import MAX_INSTANCES, Instances, KeptFinds
from assistant.sam.mask_ops import encode_rle
from assistant.scene import Scene
from tests.helpers import scripted_world
from tests.helpers.scripted_world import (
    ErrorRates,
    ScriptedConcepts,
    ScriptedModel,
    ScriptedSegmenter,
    World,
    opened_world,
)
from tests.helpers.tiny_concepts import tiny_grounding_dino, tiny_sam3
from tests.helpers.tiny_models import tiny_qwen3_vl, tiny_sam
from tests.helpers.tiny_sams import tiny_official_sam

NO_ERRORS = ErrorRates(0, 0, 0, 0, 0)


@pytest.fixture
def world():
    """A scene in which the second circle from the left is red; the question is set by each test."""
    rng = random.Random(3)
    made = scripted_world.make_world(rng)
    made.kind = next(s.kind for s in made.shapes if sum(o.kind == s.kind for o in made.shapes) > 2)
    return made


class Told(ScriptedModel):
    """A model that gives the answers that it is told, then those of the scripted one."""

    def __init__(self, world, opened, *answers):
        super().__init__(world, NO_ERRORS, random.Random(0), opened)
        self.answers = list(answers)
        self.asked = []

    def ask(self, turns, system, schema, **options):
        self.asked.append((turns, schema["title"]))
        if self.answers:
            self.calls += 1
            answer = self.answers.pop(0)
            text = answer if isinstance(answer, str) else json.dumps({"thought": "", "targets": [answer]})
            return StructuredAnswer(text, tokens=10)
        return super().ask(turns, system, schema, **options)


def ask(world: World, *answers):
    opened = opened_world(world, random.Random(0))
    model = Told(world, opened, *answers)
    concepts = ScriptedConcepts(world, NO_ERRORS, random.Random(0))
    sam = ScriptedSegmenter(world)
    pipeline = ConceptPipeline(scripted_world._opener(sam), model, concepts)
    reply, (selection,) = pipeline.ask([Turn("which?")], opened, 0.5)
    return model, concepts, reply, selection


def alike(world):
    return [k for k, shape in enumerate(world.shapes) if shape.kind == world.kind]


def test_all_of_a_kind_take_one_call(world):
    world.wanted = alike(world)
    model, concepts, reply, selection = ask(world)
    assert model.calls == reply.calls == 1 and concepts.passes == 1
    assert (selection.mask == world.union()).all() and selection.confidence > 0.6
    assert "[SEG]" in reply.text and world.kind in reply.text


def test_one_of_several_takes_two(world):
    world.wanted, world.which = alike(world)[1:2], "the second one"
    model, _, reply, selection = ask(world)
    assert model.calls == reply.calls == 2 and [title for _, title in model.asked] == ["concepts", "picks"]
    assert (selection.mask == world.union()).all() and selection.confidence >= 0.5
    turns, _ = model.asked[1]
    assert f'"{world.kind}" (the second one): candidates 1, 2' in turns[-1].question
    assert len(turns[0].images) == 2  # the photo, and the candidates on it


def test_what_neither_sees_is_absent_after_one_call(world):
    world.kind = next(kind for kind in scripted_world.KINDS if kind not in {s.kind for s in world.shapes})
    world.wanted = []
    model, concepts, reply, selection = ask(world)
    assert model.calls == 1 and concepts.passes == 1 and not selection.has_mask
    assert selection.confidence < 0.5 and "[ABS]" in reply.text


def test_what_only_the_segmenter_sees_is_shown_to_the_model(world):
    world.wanted = alike(world)
    unseen = {"phrase": world.kind, "seen": False, "concepts": [world.kind], "which": ""}
    model, _, _, selection = ask(world, unseen)
    assert model.calls == 2 and (selection.mask == world.union()).all()
    world.wanted = []  # and the model may say that it is something else
    model, _, reply, selection = ask(world, unseen)
    assert model.calls == 2 and not selection.has_mask and "[ABS]" in reply.text


def test_other_words_are_asked_for_once(world):
    world.wanted = alike(world)
    odd = {"phrase": "gizmo", "seen": True, "concepts": ["gizmo", "doohickey"], "which": ""}
    better = {"phrase": "gizmo", "seen": True, "concepts": [world.kind], "which": ""}
    model, concepts, reply, selection = ask(world, odd, better)
    assert model.calls == reply.calls == 2 and concepts.passes == reply.passes == 3
    assert selection.searched == ["gizmo", "doohickey", world.kind]
    assert (selection.mask == world.union()).all() and "gizmo" in reply.text
    turns, _ = model.asked[1]
    assert 'found nothing for "gizmo" (gizmo, doohickey)' in turns[-1].question


def test_what_has_no_name_is_pointed_at(world):
    world.wanted = alike(world)[:1]
    odd = {"phrase": "gizmo", "seen": True, "concepts": ["gizmo"], "which": ""}
    model, _, reply, selection = ask(world, odd, odd)
    assert model.calls == reply.calls == 3 and selection.has_mask
    shown = selection.mask if selection.mask is not None else world.union()
    assert (shown == world.union()).all()


def test_masks_stay_with_their_names_where_something_is_seen_but_not_outlined(world):
    """What is not outlined is told last, whatever the order in which it was named."""
    world.wanted = alike(world)
    hidden = {"phrase": "wire", "seen": True, "concepts": ["wire"], "which": ""}
    found = {"phrase": world.kind, "seen": True, "concepts": [world.kind], "which": ""}
    answers = [json.dumps({"thought": "", "targets": rows}) for rows in ([hidden, found], [hidden])]
    unmarked = json.dumps({"thought": "", "targets": [{"phrase": "wire", "seen": True, "marks": []}]})
    opened = opened_world(world, random.Random(0))
    model = Told(world, opened, *answers, unmarked)
    pipeline = ConceptPipeline(
        scripted_world._opener(ScriptedSegmenter(world)),
        model,
        ScriptedConcepts(world, NO_ERRORS, random.Random(0)),
    )
    answer = Scene(Assistant(pipeline, {}), world.image, opened).ask("which?")
    (kind, wire) = answer.targets
    assert (kind.phrase, kind.present) == (world.kind, True) and (kind.mask == world.union()).all()
    assert (wire.phrase, wire.present, wire.seen) == ("wire", False, True)


def test_a_model_that_writes_something_else_is_asked_again_once(world):
    world.wanted = alike(world)
    model, _, _, selection = ask(world, "I see it.")
    assert model.calls == 2 and selection.has_mask
    with pytest.raises(BadInput, match="does not answer in the form asked for but 'Sorry"):
        ask(world, "I see it.", "Sorry.")


def test_it_scores_as_an_agent_that_examines_each_mask_with_a_third_of_its_calls():
    ours, loop = (scripted_world.score(name, 40, ErrorRates(), seed=1) for name in ("concepts", "loop"))
    assert ours.gIoU >= loop.gIoU and 3 * ours.calls <= loop.calls


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny_qwen3_vl(tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("preset", ["agent", "grounded"])
def test_presets_of_tiny_models_answer(qwen, tmp_path, preset):
    """Random models name and find nothing of use, but every part is loaded and called as the large ones."""
    is_agent = preset == "agent"
    sam = tiny_sam3(tmp_path / "sam3") if is_agent else tiny_sam(tmp_path / "sam")
    concepts = sam if is_agent else tiny_grounding_dino(tmp_path / "dino")
    options = ModelOptions(
        preset=preset, mllm=str(qwen), sam=str(sam), concepts=str(concepts), device="cpu", max_tokens=64
    )
    pipeline, weights = options.load()
    assert isinstance(pipeline, ConceptPipeline) and {"mllm", "sam", "concepts"} <= weights.keys()
    image = np.ascontiguousarray(skimage.data.coffee()[::4, ::4])
    scene = Assistant(pipeline, weights).open(image)
    try:
        answer = scene.ask("where is the cup?")
    except BadInput as error:  # a random model may not end its JSON
        assert "does not answer in the form asked for" in str(error)
    else:
        assert answer.targets and answer.cost.image_tokens > 0 and answer.cost.passes > 0
    scene = scene.assistant.open(image)
    found, cost = scene.find("cup")
    assert found.size == image.shape[:2] and cost.passes == 1 and cost.calls == 0
    assert scene.find("Cup")[1].passes == 0  # it is kept with the image
    class_map = ask_classes(scene, ["cup", "spoon"])
    assert class_map.passes == [0, 1] and class_map.unanswered == []
    masks, scores = scene.segment(points=[[60, 50]])
    assert masks.shape == (3, *image.shape[:2]) and len(scores) == 3


def test_parts_that_do_not_go_together(qwen, tmp_path):
    sam = str(tmp_path / "sam.pth")
    torch.save(tiny_official_sam().state_dict(), sam)
    for changes, message in (
        ({"preset": "pocket", "selection": "concepts"}, "too small"),
        ({"preset": "base", "mllm": str(qwen), "sam": sam, "selection": "concepts"}, "finds nothing"),
        ({"preset": "base", "selection": "marks", "concepts": "some/detector"}, "goes with --selection"),
    ):
        name = changes.pop("preset")
        with pytest.raises(BadInput, match=message) as error:
            load_preset(name, device=None if name == "pocket" else "cpu", **changes)
        assert "\n" not in str(error.value)


class Crowd(KeptFinds):
    """Finds so many dots, whatever it is asked for, none of them surely; it is told the phrases."""

    def __init__(self, count, size):
        super().__init__()
        self.count, self.size, self.asked = count, size, []

    def networks(self):
        return {}

    def _fits(self, phrase):
        return len(phrase) < 60

    def _find(self, opened, phrase):
        self.asked.append(phrase)
        masks = np.zeros((self.count, *self.size), bool)
        for k in range(self.count):
            masks[k, k // self.size[1], k % self.size[1]] = True
        scores = np.linspace(0.45, 0.35, self.count, dtype=np.float32)
        rles = [encode_rle(mask) for mask in masks[:MAX_INSTANCES]]
        boxes = np.zeros((len(rles), 4), np.float32)
        return Instances(rles, boxes, scores[:MAX_INSTANCES], 0.9 * bool(self.count), self.size)


@pytest.mark.parametrize("count", [0, 1, 500])
def test_none_and_five_hundred_instances(world, count):
    """Of a crowd, the surest are numbered, and the model picks among those."""
    opened = opened_world(world, random.Random(0))
    finder = Crowd(count, world.image.shape[:2])
    dots = {"phrase": "dots", "seen": True, "concepts": ["dot"], "which": ""}
    marks = {"phrase": "dots", "marks": list(range(1, 61))}
    model = Told(world, opened, dots, *([marks] if count else [dots]))
    pipeline = ConceptPipeline(scripted_world._opener(ScriptedSegmenter(world)), model, finder)
    scene = Scene(Assistant(pipeline, {}), world.image, opened)
    answer = scene.ask("which?")
    (target,) = answer.targets
    assert target.phrase == "dots"
    if count:
        assert target.present and target.mask.sum() == min(count, MAX_MARKS) and answer.cost.calls == 2
        sheets = 1 + -(-min(count, MAX_MARKS) // MARKS_PER_SHEET)
        assert len(model.asked[1][0][0].images) == sheets
    else:  # other words, then it points
        assert answer.cost.calls == 3 and finder.passes == 1


def test_a_phrase_that_is_too_long_is_looked_for_by_its_last_words(world):
    opened = opened_world(world, random.Random(0))
    finder = Crowd(1, world.image.shape[:2])
    long = "very " * 40 + "small dot"
    row = {"phrase": "dot", "seen": True, "concepts": [long, "x" * 150], "which": ""}
    model = Told(world, opened, row, {"phrase": "dot", "marks": [1]})
    pipeline = ConceptPipeline(scripted_world._opener(ScriptedSegmenter(world)), model, finder)
    answer = Scene(Assistant(pipeline, {}), world.image, opened).ask("which?")
    (asked,) = finder.asked
    assert answer.present and asked.endswith("very small dot") and len(asked) < 60
    assert len(answer.searched[0][0]) <= 100

"""Questions that refer to the masks of the last answer, on an image of cups whose positions are known."""

import numpy as np
import pytest

from assistant import Assistant
from assistant.answer import Target
from assistant.dialogue.instances import distance, instances
from assistant.errors import BadInput
from assistant.grammar import parse
from tests.helpers.cups import (
    BLANK_IMAGE,
    CUPS,
    HEIGHT,
    LEFT_CUP,
    MASKS,
    RIGHT_CUP,
    SMALL_CUP,
    SPOON,
    WIDTH,
    CupPipeline,
    shows,
)


@pytest.fixture
def pipeline():
    return CupPipeline()


@pytest.fixture
def scene(pipeline):
    return Assistant(pipeline, {}).open(BLANK_IMAGE)


def test_a_conversation_about_masks(scene, pipeline):
    assert shows(scene.ask("the cups and the spoon"), *CUPS, SPOON)
    assert shows(scene.ask("now remove the spoon"), *CUPS)
    left = scene.ask("and the one on the left?")
    assert shows(left, LEFT_CUP) and left.targets[0].proposals == [LEFT_CUP]
    assert pipeline.asked == ["the cups and the spoon"]
    assert parse(scene.turns[-1].answer)[0].phrase == "cup"  # the model reads what was answered
    assert shows(scene.ask("add the spoon"), LEFT_CUP, SPOON)
    assert shows(scene.ask("not the cup"), SPOON)
    assert shows(scene.ask("select it again"), SPOON)
    assert shows(scene.ask("remove it")) and not parse(scene.turns[-1].answer)
    assert len(scene.turns) == 7
    scene.reset()
    scene.ask("not that one")  # nothing is shown: for the model
    assert pipeline.asked[-1] == "not that one"


def test_other_instances_are_the_next_best_proposals(scene, pipeline):
    pipeline.right_cup_only = True
    assert shows(scene.ask("the cup"), RIGHT_CUP)
    assert shows(scene.ask("not that one, the smaller"), LEFT_CUP)
    scene.ask("the cup")
    assert shows(scene.ask("not that one"), LEFT_CUP) and shows(scene.ask("not that one"), SMALL_CUP)
    scene.ask("the cup")
    scene.ask("the other one")  # it finds no other: the question itself is the model's
    assert pipeline.asked[-2:] == ["Please segment cup.", "the other one"]
    scene.ask("the cup")
    before = len(pipeline.asked)
    answer = scene.ask("the one on the right")  # nothing lies further right: the model is asked, in full
    assert pipeline.asked[before:] == ["Please segment cup.", "Where is the cup on the right?"]
    assert answer.question == "the one on the right"


def test_everything_but_what_alone_is_shown_is_for_the_model(scene, pipeline):
    scene.ask("the cups and the spoon")
    assert shows(scene.ask("everything except the spoon"), *CUPS)
    scene.ask("everything except the cup")
    assert pipeline.asked[-1] == "everything except the cup"


def test_one_of_several_instances(scene):
    scene.ask("the cups and the spoon")
    assert shows(scene.ask("only the spoon"), SPOON)
    scene.ask("the cups")
    assert shows(scene.ask("the one on the left"), LEFT_CUP)
    assert shows(scene.ask("and the others?"), RIGHT_CUP, SMALL_CUP)


def test_instances_are_counted_and_chosen_by_number(scene, pipeline):
    answer = scene.ask("the cups and the spoon")
    assert [len(target.instances) for target in answer.targets] == [3, 1]
    scene.ask("only the cups")
    second = scene.ask("the second one")  # from left to right
    assert shows(second, SMALL_CUP) and second.text == "This is number 2 of 3 cups."
    last = scene.ask("the second from the right")  # of all that the model finds beside the one that is shown
    assert shows(last, SMALL_CUP) and last.text == "This is number 2 of 3 cups, counted from the right."
    scene.ask("the cups")
    assert shows(scene.ask("the last cup"), RIGHT_CUP)
    scene.ask("the cups")
    too_many = scene.ask("number 4")
    assert shows(too_many, *CUPS) and too_many.text == "I see only 3 cups."
    pipeline.right_cup_only = True
    scene.ask("the cup and the spoon")
    assert shows(scene.ask("the second one"), SPOON)  # of two targets with one instance each
    others = scene.ask("the cups").targets[0]
    assert others.instances[0] is others.mask


def test_a_mask_made_by_hand_is_followed_up(scene):
    scene.shown = [Target("cup", True, 1.0, MASKS[LEFT_CUP] | MASKS[RIGHT_CUP], [])]
    assert len(instances(scene.proposals, scene.shown[0])) == 2
    assert shows(scene.ask("the one on the right"), RIGHT_CUP)


def test_questions_about_a_region(scene):
    named = scene.ask("what is this?", about=MASKS[SPOON])
    assert named.text == "This looks like: spoon (70%). Or else: fork 20%." and shows(named, SPOON)
    assert shows(scene.ask("the cup left of it", about=MASKS[RIGHT_CUP]), SMALL_CUP)
    assert shows(scene.ask("the cup next to it", about=MASKS[SPOON]), SMALL_CUP)
    assert shows(scene.ask("what is below it?", about=MASKS[SMALL_CUP]), SPOON)
    nothing = scene.ask("the cup left of it", about=MASKS[LEFT_CUP])
    assert not nothing.present and nothing.targets[0].phrase == "cup"
    assert shows(scene.ask("where is the cup?", about=MASKS[LEFT_CUP] | MASKS[SPOON]), LEFT_CUP)
    assert not scene.ask("where is the cup?", about=MASKS[SPOON]).present
    for about in (np.zeros((HEIGHT, WIDTH), bool), np.ones((3, 3), bool), np.ones((HEIGHT, WIDTH))):
        with pytest.raises(BadInput, match="about must be"):
            scene.ask("what is this?", about=about)


def test_distances_have_a_direction():
    left, right = MASKS[LEFT_CUP], MASKS[RIGHT_CUP]
    assert distance(right, left, "right") == distance(left, right, "left") == pytest.approx(75)
    assert distance(right, left, "near") == pytest.approx(75)
    assert distance(right, left, "left") is None and distance(right, left, "above") is None

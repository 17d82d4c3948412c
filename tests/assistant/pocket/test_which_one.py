"""Questions that mean one of several things of a kind, and which of them is meant."""

import numpy as np
import pytest

from assistant.pocket.colours import COLOURS, colour_share
from assistant.pocket.instance_choice import MIN_COLOUR_SHARE, choose_instance
from assistant.pocket.which_one import Beside, Between, Colour, Ordinal, Place, parse_which_one

RGB = {
    "red": (200, 30, 30),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 40),
    "green": (40, 150, 50),
    "blue": (30, 60, 200),
    "purple": (130, 50, 200),
    "pink": (240, 150, 190),
    "brown": (110, 70, 40),
    "white": (250, 250, 250),
    "grey": (130, 130, 130),
    "black": (10, 10, 10),
}


@pytest.mark.parametrize(
    "question, asked, conditions",
    [
        ("Trace the leftmost person, nothing else.", "where is the person?", (Place("left"),)),
        ("where is the horse on the right?", "where is the horse?", (Place("right"),)),
        ("Let me see the bowl furthest to the left", "where is the bowl?", (Place("left"),)),
        ("the lowest boat in the picture", "where is the boat?", (Place("bottom"),)),
        ("which cup is the biggest?", "where is the cup?", (Place("largest"),)),
        ("the person that takes up the most room", "where is the person?", (Place("largest"),)),
        ("Looking at the ovens, which is the smallest one?", "where is the oven?", (Place("smallest"),)),
        ("of the cups, the one on the left", "where is the cup?", (Place("left"),)),
        ("of the red cups, the one on the left", "where is the cup?", (Place("left"), Colour("red"))),
        (
            "of the books on the left, the biggest one",
            "where is the book?",
            (Place("largest"), Place("left")),
        ),
        ("Looking at the people, which is on the right?", "where is the person?", (Place("right"),)),
        ("the second cup from the left", "where is the cup?", (Ordinal(2, "left"),)),
        ("the second cup from the left from the right", "where is the cup?", (Ordinal(2, "left"),)),
        ("the man that is third from the right", "where is the man?", (Ordinal(3, "right"),)),
        ("the smaller of the two dogs", "where is the dog?", (Place("smaller"),)),
        ("the one on the right of the three chairs", "where is the chair?", (Place("right"),)),
        ("the taller of the men", "where is the man?", (Place("tallest"),)),
        ("the cup that isn't blue", "where is the cup?", (Colour("blue", negated=True),)),
        ("the man between the two cars", "where is the man?", (Between(("cars",)),)),
        ("the cup between the plate and the jug", "where is the cup?", (Between(("plate", "jug")),)),
        (
            "woman on the far right with glasses",
            "where is the woman?",
            (Beside("near", "glasses"), Place("right")),
        ),
        (
            "the dog that is left of the person holding the umbrella",
            "where is the dog?",
            (Beside("left", "person holding the umbrella"),),
        ),
        (
            "the woman to the right of the man in red",
            "where is the woman?",
            (Beside("right", "man in red"),),
        ),
        ("is there a red car?", "where is the car?", (Colour("red"),)),
        ("the boy in the blue shirt", "where is the boy?", (Colour("blue"),)),
        ("the cup to the left of the plate", "where is the cup?", (Beside("left", "plate"),)),
        ("the man who is holding an umbrella", "where is the man?", (Beside("near", "umbrella"),)),
        ("the person not near the bus", "where is the person?", (Beside("near", "bus", negated=True),)),
        (
            "the man in red next to the dog",
            "where is the man?",
            (Beside("near", "dog"), Colour("red")),
        ),
        (
            "Of all things in view that the coffee goes into, point at the one nearest the top.",
            "find the thing that the coffee goes into",
            (Place("top"),),
        ),
    ],
)
def test_what_singles_one_out(question, asked, conditions):
    which = parse_which_one(question)

    assert which is not None
    assert (which.question, which.conditions) == (asked, conditions)


@pytest.mark.parametrize(
    "question",
    [
        "the zebra",
        "the people on the left",
        "the two cups next to the plate",
        "what is left of the cup?",
        "what is on the table?",
        "find the orange",
        "the left cup and the right spoon",
        "the cup and the spoon on the left",
        "where is the left over food?",
        "the biggest one",
        "who is on the left?",
        "is the dog on the left asleep?",
        "what keeps the rain off?",
        "",
    ],
)
def test_questions_for_all_of_a_kind_are_left_alone(question):
    assert parse_which_one(question) is None


def test_the_reply_calls_the_one_by_its_conditions():
    which = parse_which_one("the biggest red cup")

    assert which is not None
    assert which.words.format("cup") == "biggest red cup"


def square(left, top, side=10, size=(100, 100)):
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


MASKS = [square(60, 20), square(10, 50), square(35, 80, side=15)]


@pytest.mark.parametrize(
    "condition, expected",
    [
        (Place("left"), 1),
        (Place("right"), 0),
        (Place("top"), 0),
        (Place("bottom"), 2),
        (Place("largest"), 2),
        (Ordinal(2, "left"), 2),
        (Ordinal(-1, "left"), 0),
        (Ordinal(1, "bottom"), 2),
        (Ordinal(4, "left"), None),
    ],
)
def test_places_and_numbers_are_measured(condition, expected):
    assert choose_instance(MASKS, (condition,), None, {}) == expected


@pytest.mark.parametrize("name", COLOURS)
def test_each_colour_is_told_from_the_others(name):
    image = np.zeros((100, 100, 3), np.uint8)
    others = [other for other in COLOURS if other != name]
    for k, mask in enumerate(MASKS):
        image[mask] = RGB[name] if k == 1 else RGB[others[k]]

    assert colour_share(image, MASKS[1], name) == 1.0
    assert choose_instance(MASKS, (Colour(name),), image, {}) == 1


def test_a_colour_that_nothing_has_is_not_there():
    image = np.full((100, 100, 3), RGB["blue"], np.uint8)

    assert colour_share(image, MASKS[0], "red") < MIN_COLOUR_SHARE
    assert choose_instance(MASKS, (Colour("red"),), image, {}) is None


def test_what_lies_beside_something_else():
    dog = square(75, 20)

    assert choose_instance(MASKS, (Beside("near", "dog"),), None, {"dog": dog}) == 0
    assert (
        choose_instance(MASKS, (Beside("near", "dog", negated=True), Place("right")), None, {"dog": dog}) == 2
    )
    assert choose_instance(MASKS, (Beside("left", "dog"),), None, {"dog": dog}) == 0
    assert choose_instance(MASKS, (Beside("near", "cat"), Place("left")), None, {"dog": dog}) == 1


def test_what_lies_between_two_things():
    cars = square(0, 70) | square(70, 90)  # the middle between them is at (40, 85)
    assert choose_instance(MASKS, (Between(("cars",)),), None, {"cars": cars}) == 2
    both = {"plate": square(0, 10), "jug": square(25, 90)}
    assert choose_instance(MASKS, (Between(("plate", "jug")),), None, both) == 1
    one = {"cars": square(0, 70)}  # a single one says nothing: the first is as good as any other
    assert choose_instance(MASKS, (Between(("cars",)),), None, one) == 0


def test_the_tallest_and_the_shortest():
    tall = np.zeros((100, 100), bool)
    tall[10:60, 5:8] = True
    assert choose_instance([*MASKS, tall], (Place("tallest"),), None, {}) == 3
    assert choose_instance([MASKS[2], tall, MASKS[0]], (Place("shortest"),), None, {}) == 2


def test_what_does_not_have_a_colour():
    image = np.full((100, 100, 3), RGB["white"], np.uint8)
    image[MASKS[0]] = image[MASKS[1]] = RGB["red"]
    assert choose_instance(MASKS, (Colour("red", negated=True),), image, {}) == 2


def test_places_are_compared_among_those_that_meet_the_other_conditions():
    image = np.full((100, 100, 3), RGB["white"], np.uint8)
    image[MASKS[0]] = image[MASKS[2]] = RGB["green"]

    assert choose_instance(MASKS, (Place("left"), Colour("green")), image, {}) == 2

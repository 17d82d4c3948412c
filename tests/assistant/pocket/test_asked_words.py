"""The words in which a question asks."""

import pytest

from assistant.pocket.asked_words import asked_things, own_words, refers_back


@pytest.mark.parametrize(
    "question, things",
    [
        ("is there a window and a cat?", ["window", "cat"]),
        ("the pet that barks", ["pet that barks"]),
        ("find a canopy on a stick and a cup, please", ["canopy on a stick", "cup"]),
        ("Which of these are in the picture: road, frog, cup?", ["road", "frog", "cup"]),
        ("do you see any helmet here?", ["helmet"]),
        ("what could jump?", []),
        ("Trace the leftmost chair, nothing else.", ["leftmost chair"]),
    ],
)
def test_what_a_question_names(question, things):
    assert asked_things(question) == things


def test_own_words_are_short():
    assert own_words("and what could jump?") == "what could jump"
    assert own_words("Where is the snake?") == "snake"
    assert len(own_words("what " + "jumps " * 100)) <= 81


@pytest.mark.parametrize(
    "question",
    [
        "where is it?",
        "and on the left?",
        "make that the biggest one only",
        "what is next to it?",
        "who is he with?",
    ]
    + ["which of them is bigger?", "and what is that?", "the others", "and the left one?"]
    + ["once more, please, where?"],
)
def test_follow_ups_refer_back(question):
    assert refers_back(question)


@pytest.mark.parametrize(
    "question",
    [
        "is there a snake?",
        "and the flowers?",
        "what is it that keeps the rain off?",
        "something you open when it pours",
    ]
    + [
        "the one who can sing",
        "show me both the cup and the spoon",
        "how about an orange?",
        "the thing they sit on",
    ],
)
def test_questions_that_stand_alone(question):
    assert not refers_back(question)

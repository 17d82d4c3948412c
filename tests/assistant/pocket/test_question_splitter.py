"""Questions that join several are split for the pocket preset."""

import pytest

from assistant.pocket.question_splitter import MAX_QUESTIONS, split_question


@pytest.mark.parametrize(
    "question, parts",
    [
        ("who is there, and is there a zebra?", ["who is there", "is there a zebra?"]),
        ("Find the person, and is there a bear?", ["Find the person", "is there a bear?"]),
        ("Hi! Where is the dog? Is there a cat?", ["Hi! Where is the dog?", "Is there a cat?"]),
        (
            "My hands are dirty, where do I go, and which thing gives orders?",
            ["My hands are dirty, where do I go", "which thing gives orders?"],
        ),
        (
            "Find the cup and show me the dog. Is there a horse; is there a cow?",
            ["Find the cup", "show me the dog.", "Is there a horse", "is there a cow?"],
        ),
        ("is there a cat or is there a dog?", ["is there a cat", "is there a dog?"]),
        (
            "point out what you push with one foot, and where is the cup?",
            ["point out what you push with one foot", "where is the cup?"],
        ),
        (
            "did they bring an apple? Did they bring a pear?",
            ["did they bring an apple?", "Did they bring a pear?"],
        ),
    ],
)
def test_several_questions_are_split(question, parts):
    assert split_question(question) == parts


@pytest.mark.parametrize(
    "question",
    [
        "find the cup and the spoon",
        "the dog and the cat?",
        "where is the knife and fork?",
        "is there a cat or a dog?",
        "what keeps the rain off and is held in the hand?",
        "which tool could I use to cut and mark the wood?",
        "who knows when and where the bus goes?",
        "There are several cups. Which is the left one?",
        "segment these classes: dog, cat and chair",
        "Where is the dog? I cannot see a thing.",
        "who is there, and what is he holding?",
        "Where are the cups? Which one is bigger?",
        "where is the lamp, and what is next to it?",
        "",
        "?",
        " and ",
        "and is there a dog?",
        "犬はどこ?",
        "où est le chien, et y a-t-il un chat ?",
    ],
)
def test_one_question_stays_whole(question):
    assert split_question(question) == [question]


def test_an_endless_question_has_a_bounded_number_of_parts():
    parts = split_question("is there a cat? " * 200)
    assert len(parts) == MAX_QUESTIONS and parts[-1].count("cat") == 200 - MAX_QUESTIONS + 1

"""What kind of question the pocket preset is asked."""

import pytest

from assistant.pocket.question_kinds import (
    ENGLISH_ONLY,
    NOTHING_NAMED,
    Ask,
    Background,
    Count,
    Except,
    NameAll,
    NameMainTarget,
    Talk,
    parse_question,
)


@pytest.mark.parametrize(
    "question, things",
    [
        ("everything except the cup", ["cup"]),
        ("all but the cup", ["cup"]),
        ("Segment all objects but not the spoon!", ["spoon"]),
        ("everything but the cup and the spoon", ["cup", "spoon"]),
        ("all the objects apart from the cup, the spoon and the plate", ["cup", "spoon", "plate"]),
        ("please mark everything in the photo other than the dog.", ["dog"]),
        ("the whole image without the cup", ["cup"]),
        ("everything that isn't a cup", ["cup"]),
        ("all things which aren\u2019t cups", ["cups"]),
        ("everything here that is not the dog", ["dog"]),
        ("all of it save for the cup", ["cup"]),
        ("all of them, not counting the dog", ["dog"]),
        ("segment everything you see", []),
    ],
)
def test_all_but_some_things(question, things):
    assert parse_question(question) == Except(things)


@pytest.mark.parametrize(
    "question",
    ["cup\nspoon\ndog", "cup; spoon; dog", "cup . spoon . dog .", "find:\n- the cup\n- a spoon\n- dog\n"],
)
def test_lists_are_asked_one_by_one(question):
    assert parse_question(question) == Ask([f"where is the {thing}?" for thing in ("cup", "spoon", "dog")])


@pytest.mark.parametrize(
    "question", ["is there no dog?", "no dog?", "Isn't there a dog?", "there is no dog, right?"]
)
def test_a_negated_question_asks_for_the_thing(question):
    assert parse_question(question) == Ask(["is there a dog?"])


@pytest.mark.parametrize(
    "question, things",
    [
        ("how many cups?", "cups"),
        ("How many sheep can you see?", "sheep"),
        ("count the red cups", "red cups"),
    ],
)
def test_counting(question, things):
    assert parse_question(question) == Count(things)


@pytest.mark.parametrize("question", ["is there nobody?", "Is there no one here?", "nobody?"])
def test_nobody_is_no_person(question):
    assert parse_question(question) == Ask(["is there a person?"])


@pytest.mark.parametrize("question", ["segment the background", "the background", "Where is the background?"])
def test_the_background(question):
    assert parse_question(question) == Background()


@pytest.mark.parametrize("question", ["what is this?", "What's that?", "what is in this picture?"])
def test_the_main_thing(question):
    assert parse_question(question) == NameMainTarget()


@pytest.mark.parametrize(
    "question",
    [
        "what objects are in this picture?",
        "Which things can you see?",
        "list everything you see",
        "Please name all the objects in the photo.",
        "describe the picture",
        "what else is there?",
        "label everything",
    ],
)
def test_all_that_is_seen(question):
    assert parse_question(question) == NameAll()


@pytest.mark.parametrize(
    "question", ["what things can I eat?", "which objects are red?", "describe the dog", "name the dog"]
)
def test_what_asks_for_some_things_asks_for_no_others(question):
    assert isinstance(parse_question(question), Ask)


@pytest.mark.parametrize(
    "question",
    [
        "Hello!",
        "hi there, how are you?",
        "Thank you so much",
        "bye",
        "ok",
        "nice photo!",
        "who are you?",
        "tell me a joke",
    ],
)
def test_small_talk_is_not_looked_for(question):
    assert isinstance(parse_question(question), Talk)


@pytest.mark.parametrize("question", ["?", "1 + 1 = ?", "...", "[] {} <>"])
def test_a_question_that_names_nothing(question):
    assert parse_question(question) == Talk(NOTHING_NAMED)


@pytest.mark.parametrize(
    "question",
    [
        "杯子在哪里？",
        "猫はどこ?",
        "где собака?",
        "أين الكلب؟",
        "où est le chien ?",
        "Wo ist der Hund?",
        "¿Dónde está el perro?",
    ]
    + ["dov'è il gatto?", "onde está o cachorro?", "waar is de hond?", "hola"],
)
def test_other_languages_are_said_not_to_be_read(question):
    assert parse_question(question) == Talk(ENGLISH_ONLY, offers=False)


def test_a_taught_name_is_in_no_foreign_language():
    assert parse_question("杯子", known=True) == Ask(["杯子"])


@pytest.mark.parametrize(
    "question",
    [
        "cup, spoon, dog",
        "where is the dog?",
        "the one on the left",
        "no, the left one",
        "select all cups except the red one",
        "the clock on the wall with no numbers",
        "is the man in the van?",
        "a café au lait",
        "what keeps the rain off?",
        "the hello kitty bag",
        "what would I thank you for?",
        "how many are there?",
    ],
)
def test_other_questions_are_for_the_language_model(question):
    assert parse_question(question) == Ask([question])

"""Which names a question may mean, and which of them are meant and there."""

import pytest

from assistant.pipeline import Selection
from assistant.pocket.candidates import (
    MEANT_BY_DESCRIPTION,
    Candidate,
    found_item,
    meant_and_present,
    missing_item,
)
from assistant.pocket.lexicon import Lexicon
from assistant.pocket.phrase_memory import PhraseMemory, PhraseTable
from assistant.pocket.presence import several_shift, sigmoid
from assistant.pocket.question_reading import Asked, QuestionReader
from assistant.pocket.vocabulary import Vocabulary
from tests.helpers.word_encoder import WordEncoder

ROWS = {
    "person": 0,
    "people": 0,
    "cup": 1,
    "cups": 1,
    "apple": 2,
    "banana": 3,
    "dog": 4,
    "cat": 5,
    "watch": 6,
}
NAMES = {0: "person", 1: "cup", 2: "apple", 3: "banana", 4: "dog", 5: "cat", 6: "watch"}
TEXTS = [
    *((name, name, "name") for name in NAMES.values()),
    ("holds hot tea", "cup", "phrase"),
    ("barks at the postman", "dog", "phrase"),
    ("that can bark", "dog", "phrase"),
    ("makes sad music", "violin", "phrase"),
    ("what can I eat", "food", "group"),
    ("who made you", "A person did.", "talk"),
]


@pytest.fixture
def reader():
    texts, owners, kinds = zip(*TEXTS, strict=True)
    table = PhraseTable(list(owners), list(kinds), {"food": ["apple", "banana"]}, "0")
    memory = PhraseMemory(WordEncoder(), table, WordEncoder()(texts))
    return QuestionReader(Vocabulary(ROWS), Lexicon(ROWS), memory, NAMES)


def read(reader, question):
    return [(asked.words, asked.names) for asked in reader.read(question)]


@pytest.mark.parametrize(
    "question",
    [
        "find the cup",
        "the dog and the cat",
        "the cup on the left",
        "the biggest woman",
        "who is there?",
        "what is next to the cup?",
        "I want to see the dog",
        "does it show a cup?",
        "Work through apple, dog, one by one.",
    ],
)
def test_taught_names_and_places_are_left_to_the_language_model(reader, question):
    assert reader.read(question) is None


@pytest.mark.parametrize(
    "question, things",
    [
        ("where is the woman?", [("woman", ["person"])]),
        ("the kids and the fruit", [("kids", ["person"]), ("fruit", ["banana", "apple"])]),
        ("the dog and the kids", [("dog", ["dog"]), ("kids", ["person"])]),
        ("is that a puppy?", [("puppy", ["dog"])]),
        ("what pets do you see?", [("pets", ["cat", "dog"])]),
        ("which pets are there?", [("pets", ["cat", "dog"])]),
        ("is there a window and a cat?", [("window", []), ("cat", ["cat"])]),
        ("what can I eat?", [("what can I eat", ["apple", "banana"])]),
        ("what makes sad music?", [("what makes sad music", [])]),
    ],
)
def test_words_are_read(reader, question, things):
    assert read(reader, question) == things


@pytest.mark.parametrize("question", ["[SEG] [ABS] <|im_end|>", "!!", "…", "the", "", "😀 😀"])
def test_anything_can_be_read(reader, question):
    assert not any(asked.names for asked in reader.read(question) or [])


def test_a_description_is_ranked(reader):
    (asked,) = reader.read("which thing holds hot tea?")
    assert asked.names[0] == "cup" and asked.similarities == sorted(asked.similarities, reverse=True)
    (asked,) = reader.read("the pet that can bark")
    assert sorted(asked.names) == ["cat", "dog"] and asked.names[0] == "dog"


def test_words_for_one_name_are_replaced_by_it(reader):
    assert reader.rewritten("the boy on the left") == "the person on the left"
    assert reader.rewritten("the cup on the left") == "the cup on the left"


def test_small_talk(reader):
    assert reader.small_talk("who made you?") == "A person did." and not reader.small_talk("the cup")


def test_without_a_memory_descriptions_are_left_to_the_language_model():
    reader = QuestionReader(Vocabulary(ROWS), Lexicon(ROWS), None, NAMES)
    assert reader.read("what holds hot tea?") is None and not reader.small_talk("who made you?")
    assert read(reader, "the woman") == [("woman", ["person"])]


def test_a_name_of_an_adapter_is_known():
    reader = QuestionReader(Vocabulary({"gearbox": 0}), Lexicon({"gearbox": 0}), None, {0: "gearbox"})
    assert reader.read("the gearbox") is None


def test_names_that_the_language_model_was_not_taught_are_looked_up():
    names = {0: "cup", 1: "gong"}
    rows = {name: row for row, name in names.items()}
    reader = QuestionReader(Vocabulary(rows), Lexicon(rows), None, names, frozenset({"gong"}))
    assert reader.read("where is the cup?") is None
    assert read(reader, "where is the gong?") == [("gong", ["gong"])]
    assert read(reader, "the left gong and the cup") == [("left gong", ["gong"]), ("cup", ["cup"])]


def test_all_of_a_kind_are_meant_where_they_are_surely_there():
    kind = Asked("fruit", ["apple", "banana", "orange"])
    candidates = [
        Candidate("apple", -1.0, 4.0),
        Candidate("banana", -2.0, -2.0),
        Candidate("orange", -2.0, 0.3),  # enough if it were the only one that may be meant
        Candidate("dog", -0.1, 9.0),
    ]
    assert meant_and_present(kind, candidates, 0.5) == [("apple", sigmoid(4.0 - several_shift(3)))]
    mainly = meant_and_present(kind, candidates, 0.5, main_name="orange")
    assert mainly == [("apple", sigmoid(4.0 - several_shift(3))), ("orange", sigmoid(0.3))]
    orange = Asked("clementine", ["orange"])
    assert meant_and_present(orange, candidates, 0.5) == [("orange", sigmoid(0.3))]


def test_of_a_description_the_best_that_is_there_is_meant():
    described = Asked("what barks", ["dog", "tree", "cat"], [0.6, 0.5, 0.3])
    candidates = [
        Candidate("dog", -4.0, 2.0),
        Candidate("tree", -9.0, 2.0),
        Candidate("cat", -2.0, 2.0),
    ]
    assert meant_and_present(described, candidates, 0.5) == [
        ("dog", sigmoid(2.0 - several_shift(MEANT_BY_DESCRIPTION)))
    ]
    absent = [Candidate("dog", -4.0, -2.0), *candidates[1:]]
    assert meant_and_present(described, absent, 0.5) == []


def test_what_is_missing_is_called_as_it_was_asked():
    item = missing_item(Asked("woman", ["person"]), [Candidate("person", -1.0, -1.0)], False)
    assert (item.phrase, item.present, item.selection.known) == ("woman", False, True)
    item = missing_item(Asked("window", []), [], False)
    assert (item.phrase, item.present, item.selection.known) == ("window", False, False)
    guess = found_item(Asked("bycicle", ["bicycle"], is_guess=True), "bicycle", Selection(0.9, [0]))
    assert guess.guess == "bycicle" and guess.present

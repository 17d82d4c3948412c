"""The words for the taught names of the pocket preset."""

import pytest

from assistant.pocket.vocabulary import Vocabulary, comparable, published_words
from tests.helpers.pocket_words import bank_words


@pytest.fixture
def vocabulary():
    return Vocabulary({"backpack": 0, "backpacks": 0, "person": 1, "hot dog": 2, "knife": 3, "my gadget": 4})


def test_published_words_are_those_of_the_phrase_bank():
    assert published_words() == bank_words(), "run: python -m tests.helpers.pocket_words"


@pytest.mark.parametrize(
    "row, text",
    [
        (0, "the red rucksack?"),
        (0, "Backpacks"),
        (1, "who is there?"),
        (2, "hot dogs"),
        (3, "the knives"),
        (4, "a my-gadget"),
    ],
)
def test_names_and_synonyms_name_a_row(vocabulary, row, text):
    assert vocabulary.is_named(row, text) and vocabulary.names_any(text)


def test_other_words_do_not(vocabulary):
    assert not vocabulary.is_named(2, "the dog") and not vocabulary.names_any("the woman in the window")
    assert (
        vocabulary.knows("the young woman") and vocabulary.knows("animals") and not vocabulary.knows("window")
    )


def test_a_glass_is_no_pair_of_glasses():
    vocabulary = Vocabulary({"glasses": 0, "wine glass": 1, "wine glasses": 1})
    assert vocabulary.is_named(0, "my reading glasses") and vocabulary.is_named(1, "the wine glasses")
    assert not vocabulary.is_named(0, "a glass of milk") and not vocabulary.is_named(0, "the wine glass")


def test_plurals_are_singular():
    assert comparable("Buses, dresses; ladies' dishes?") == " bus dress lady dish "
    for one, several in [("house", "houses"), ("nurse", "nurses"), ("vase", "vases"), ("brush", "brushes")]:
        assert comparable(one) == comparable(several)

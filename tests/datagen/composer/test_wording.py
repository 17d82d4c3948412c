"""Questions in words: names in the right number, and templates that keep the splits apart."""

import itertools
import random

import pytest

from datagen.composer import wording
from datagen.composer.examples import phrase_examples
from datagen.composer.phrasebank import Phrase, load_bank

BANK = load_bank("coco")
CAR_PARTS = load_bank("carparts")


def test_a_clause_without_its_subject_is_a_question_of_its_own():
    keeps, hold = (
        Phrase("x/0", text, "umbrella", (), False) for text in ("that keeps dry", "which you open")
    )
    assert wording.phrase_slots(keeps)["what"] == "what keeps dry"
    assert "what" not in wording.phrase_slots(hold)  # one that lacks its object is none


def test_names_in_the_right_number():
    slots = wording.name_slots
    assert slots(BANK["knife"], 1)["a"] == "a knife" and slots(BANK["knife"], 2)["the"] == "the knives"
    assert slots(BANK["scissors"], 1) == {
        "a": "a pair of scissors",
        "the": "the scissors",
        "is": "are",
        "be": "is",
        "every": "all the scissors",
        "plural": "scissors",
    }
    assert slots(BANK["broccoli"], 3)["a"] == "some broccoli" and slots(BANK["broccoli"], 3)["is"] == "is"
    wheels, hood = CAR_PARTS["wheel"], CAR_PARTS["hood"]
    assert (
        slots(wheels, 1)["a"] == "wheels" and slots(wheels, 1)["be"] == "are" and wheels.mention() == "wheels"
    )
    assert "every" not in slots(hood, 1)
    assert BANK["skis"].mention() == "pair of skis" and BANK["mouse"].mention(2) == "computer mice"


def test_enough_templates_and_none_shared_by_the_splits():
    least = {
        "implicit": 25,
        "named": 15,
        "multi": 12,
        "position": 12,
        "class": 12,
        "exists": 12,
        "part": 12,
        "part_named": 12,
        "premise": 12,
        "then_which": 12,
        "then_next": 10,
        "then_others": 10,
        "then_else": 12,
        "then_only": 8,
        "then_without": 8,
        "then_same": 10,
    }
    for kind, number in least.items():
        kinds = wording.templates()[kind]
        assert len(set(kinds["train"])) == len(kinds["train"]) >= number
        assert kinds["held"] and not set(kinds["train"]) & set(kinds["held"])


@pytest.mark.parametrize("split", ["train", "held"])
def test_phrase_examples_are_even_repeatable_and_name_nothing(split):
    rows = list(itertools.islice(phrase_examples(split, random.Random(5)), 800))
    assert rows == list(itertools.islice(phrase_examples(split, random.Random(5)), 800))
    assert rows != list(itertools.islice(phrase_examples(split, random.Random(6)), 800))
    counts = [sum(key == other for _, other in rows) for key in BANK]
    assert set(counts) == {10}
    for question, key in rows:
        assert "{" not in question and "  " not in question and BANK[key].gives_away(question) is None, (
            question
        )
        asked = [
            phrase for phrase in BANK[key].phrases if phrase.text.removeprefix(phrase.shape)[-12:] in question
        ]
        assert any(phrase.is_held == (split == "held") for phrase in asked), question
    styles = {(question[0].isupper(), question[-1] in ".?") for question, _ in rows}
    assert len(styles) == 4

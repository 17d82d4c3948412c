"""What is absent is called by words of the question."""

import pytest
import torch

from assistant.grammar import parse, plain
from assistant.pipeline import Reply, Selection
from assistant.pocket.honest_reply import honest_items, write_reply
from assistant.pocket.llm import PocketLLM
from assistant.pocket.region_encoder import RegionEncoder
from assistant.pocket.vocabulary import Vocabulary
from tests.helpers.tiny_smollm2 import WIDTH

NAMES = {"cat": 0, "cats": 0, "tv": 1, "tvs": 1, "backpack": 2, "person": 3, "people": 3, "fire hydrant": 4}
SEEN = "I can see: cup."


@pytest.fixture(scope="module")
def llm(llm_folder):
    torch.manual_seed(0)
    return PocketLLM.load(llm_folder, None, RegionEncoder(WIDTH, 5), NAMES)


def answer(llm, question, said, heard=""):
    """The reply where the language model says `said`, as text and (phrase, present, known) each."""
    mentions = parse(said)
    selections = [Selection(0.9 if mention.present else 0.1, []) for mention in mentions]
    items = honest_items(question, f"{heard} {question}", mentions, selections, llm, Vocabulary(NAMES))
    reply, chosen = write_reply(items, SEEN, Reply(said, 3))
    found = [(m.phrase, m.present, s.known) for m, s in zip(parse(reply.text), chosen, strict=True)]
    assert parse(reply.written) and [m.present for m in parse(reply.text)] == reply.markers
    return plain(reply.text), found


def test_what_is_named_is_there_or_not_there(llm):
    text, found = answer(llm, "is there a red rucksack?", "backpack [ABS].")
    assert text == "I see no red rucksack." and found == [("red rucksack", False, True)]
    text, found = answer(llm, "the cat and the people", "cat [SEG], people [ABS].")
    assert text == "I see the cat, but no people." and [present for _, present, _ in found] == [True, False]


def test_a_description_is_repeated_where_nothing_fits(llm):
    text, found = answer(llm, "the pet that barks", "cat [ABS].")
    assert text == f"I see no pet that barks. {SEEN}" and found == [("pet that barks", False, True)]
    text, found = answer(llm, "what could jump?", "fire hydrant [ABS].")
    assert text == f'I see nothing that answers "what could jump". {SEEN}'
    assert found == [("what could jump", False, True)]


@pytest.mark.parametrize(
    "question, word", [("is there a snake?", "snake"), ("the brown thing", "brown thing")]
)
def test_a_word_that_is_not_known_is_said_not_to_be(llm, question, word):
    text, found = answer(llm, question, "cat [ABS].")
    assert text == f'I do not know what "{word}" means. {SEEN}' and found == [(word, False, False)]


def test_an_unknown_word_may_be_guessed(llm):
    text, found = answer(llm, "where is the gizmo?", "tv [SEG].")
    assert text == f'I do not know what "gizmo" means; it may be the tv. {SEEN}' and found == [
        ("tv", True, False)
    ]


def test_whether_an_unknown_thing_is_there_is_not_guessed(llm):
    text, found = answer(llm, "is there a gizmo?", "tv [SEG].")
    assert text == f'I do not know what "gizmo" means. {SEEN}' and found == [("gizmo", False, False)]


def test_an_unknown_word_beside_a_known_one(llm):
    for said in ("tv [ABS], cat [ABS].", "cat [ABS]."):
        text, found = answer(llm, "is there a window and a cat?", said)
        assert 'I do not know what "window" means.' in text and "I see no cat." in text
        assert sorted(found) == [("cat", False, True), ("window", False, False)]


def test_a_hint_is_known_but_keeps_its_word(llm):
    assert answer(llm, "the woman", "person [ABS].")[1] == [("woman", False, True)]


def test_adjectives_that_nobody_said_are_dropped(llm):
    assert answer(llm, "is there a cat?", "green cat [ABS].")[1] == [("cat", False, True)]


def test_earlier_questions_may_name_what_is_meant(llm):
    found = answer(llm, "and is it on the left?", "cat [ABS].", heard="where is the cat?")[1]
    assert found == [("cat", False, True)]


def test_no_target_at_all_is_not_understood(llm):
    text, found = answer(llm, "blah blah", "hm")
    assert text == f'I do not know what "blah blah" means. {SEEN}' and found == [("blah blah", False, False)]

"""Everyday words for the taught names."""

import tomllib

import pytest

from assistant.pocket.heads import Heads
from assistant.pocket.lexicon import LEXICON_FILE, WORDNET_FILE, Lexicon
from assistant.weights import pocket_file
from datagen.composer.phrasebank import load_bank
from tests.helpers.pocket_lexicon import WordNet, wordnet_words

# WordNet's format: number, file, part, words with their numbers, pointers.
DATA = """\
  1 a licence
00000001 06 n 01 seat 0 000 | to sit on
00000002 06 n 02 sofa 0 couch 0 001 @ 00000001 n 0000 | soft
00000003 06 n 02 daybed 0 low 0 001 @ 00000002 n 0000 | a couch in the day
00000004 06 n 01 flophouse 0 001 @ 00000002 n 0000 | a disparaging term for a couch
"""
INDEX = """\
  1 a licence
sofa n 1 1 @ 1 1 00000002
couch n 1 1 @ 1 1 00000002
daybed n 1 1 @ 1 0 00000003
low n 1 1 @ 1 0 00000003
flophouse n 1 1 @ 1 0 00000004
seat n 1 1 ~ 1 0 00000001
"""


TAUGHT = (
    "person|cat|dog|bird|horse|elephant|bear|zebra|giraffe|banana|apple|orange|lemon|guitar|cup|wine glass|"
    "bottle|glasses|sports ball|boat|tv|laptop|building|potted plant"
).split("|")


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon({name: row for row, name in enumerate(TAUGHT)})


@pytest.mark.parametrize(
    "phrase, names",
    [
        ("the old woman", ["person"]),
        ("kids", ["person"]),
        ("fruit", ["banana", "apple", "orange", "lemon"]),
        ("nurses", ["person"]),
        ("houses", ["building"]),
        ("a glass", ["wine glass", "cup"]),
        ("the mug", ["cup"]),
        ("cup and saucer", ["cup"]),
        ("the football", ["sports ball"]),
        ("a ship", ["boat"]),
        ("the monitor", ["tv", "laptop"]),
        ("a stringed instrument", ["guitar"]),
        ("the tulips", ["potted plant"]),
        # names that were not taught
        ("the owl", ["bird"]),
        ("the whale", []),
        ("a tiger", []),
        # words that stand for nothing
        ("the rain", []),
        ("a poodle", ["dog"]),
        ("wild animals", ["bird", "elephant", "bear", "zebra", "giraffe"]),
        ("window", []),
        ("", []),
    ],
)
def test_words_stand_for_names(lexicon, phrase, names):
    assert lexicon.names_of(phrase) == names


def test_names_that_were_not_taught_are_left_out():
    assert Lexicon({"apple": 0}).names_of("fruit") == ["apple"] and Lexicon({}).names_of("fruit") == []


def test_every_line_names_what_was_taught_or_is_in_the_phrase_bank():
    taught = Heads.load(pocket_file("heads.safetensors")).phrase_rows
    from_wordnet = tomllib.loads(WORDNET_FILE.read_text(encoding="utf-8"))["words"]
    assert set(from_wordnet) <= set(taught)
    by_hand = tomllib.loads(LEXICON_FILE.read_text(encoding="utf-8"))["words"]
    names = {name for line in by_hand.values() if isinstance(line, list) for name in line}
    banks = set().union(*(load_bank(bank) for bank in ("coco", "street", "clothing", "things")))
    assert names <= set(taught) | banks
    others = [line for line in by_hand.values() if isinstance(line, str)]
    assert others and all(isinstance(by_hand[other], list) for other in others)


def test_wordnet_gives_the_kinds_of_a_name(tmp_path, monkeypatch):
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    (tmp_path / "cntlist.rev").write_text("sofa%1:06:00:: 1 4\nlow%3:00:00:: 1 9\n")
    monkeypatch.setattr("tests.helpers.pocket_lexicon.SENSES", {"couch": "couch.1"})
    # "low" is an adjective more often than a noun; "sofa" is in the phrase bank; "flophouse" is an insult.
    assert wordnet_words(WordNet(tmp_path)) == {"couch": ["daybed"]}

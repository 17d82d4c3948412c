"""What the pocket preset may call a thing: the taught names, their synonyms, and other words for them.

    vocabulary = Vocabulary(llm.phrase_rows)
    vocabulary.is_named(row, "is there a mug?")      # whether the question names what `row` stands for
    vocabulary.knows("a red rucksack")               # whether the last word is one for a taught name

`words.json` is taken from the phrase bank (`tests/helpers/pocket_words.py` writes it): the synonyms and the
kind of every name, taught or not; words that hint at a taught name without being it ("woman" for a person);
and words for kinds of things ("furniture").
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assistant.dialogue.followup_parser import normalise

WORDS_FILE = Path(__file__).parent / "words.json"
# Words of a question that mean a person without naming one.
PERSON_WORDS = ("who", "whom", "whoever", "anyone", "anybody", "someone", "somebody", "everyone", "everybody")
# Words for anything: whoever uses them says what is meant by the words around them.
GENERIC_NOUNS = frozenset("thing object item stuff something anything part piece one bit area region".split())
IRREGULAR_PLURALS = {
    "glasses": "glasses",  # on a nose: one glass holds a drink
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "persons": "person",
    "knives": "knife",
    "mice": "mouse",
    "leaves": "leaf",
    "shelves": "shelf",
    "feet": "foot",
    "teeth": "tooth",
}
SINGULAR_ENDINGS = ("ss", "us", "is")  # of words that end in s without being plurals
PLURAL_OF_SIBILANT = re.compile(r"(?:s|x|z|ch|sh)es")
SILENT_E = re.compile(r"(?:s|x|z|ch|sh)e$")


@functools.cache
def published_words() -> dict[str, Any]:
    """What `words.json` holds.

    Returns:
        {"synonyms": {name: words}, "hints": {name: words}, "kinds": words, "groups": {name: kind}}.
    """
    return json.loads(WORDS_FILE.read_text(encoding="utf-8"))


def singular(word: str) -> str:
    """A word of lower-case letters without its plural ending, and without an e that the plural hides.

    "house" and "houses" both become "hous": nobody can tell from "houses" that there is no "hous".
    """
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if len(word) >= 4 and SILENT_E.search(word):
        return word[:-1]
    if len(word) < 4 or not word.endswith("s") or word.endswith(SINGULAR_ENDINGS):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if PLURAL_OF_SIBILANT.search(word[-4:]) else word[:-1]


def comparable(text: str) -> str:
    """A text as names are looked for in it: singular words in lower case, with a space around each."""
    return f" {' '.join(singular(word) for word in normalise(text.replace('-', ' ')).split())} "


class Vocabulary:
    """The words of the taught names.

    Args:
        phrase_rows: See `PocketLLM`.
    """

    def __init__(self, phrase_rows: Mapping[str, int]):
        words = published_words()
        self.names: dict[int, set[str]] = {}  # {row: names and synonyms, as `comparable` gives them}
        for phrase, row in phrase_rows.items():
            self.names.setdefault(row, set()).add(comparable(phrase))
        self.hints: set[str] = {comparable(kind) for kind in words["kinds"]}
        for name, row in phrase_rows.items():
            self.names[row] |= {comparable(word) for word in words["synonyms"].get(name, ())}
            self.hints |= {comparable(word) for word in words["hints"].get(name, ())}
        if "person" in phrase_rows:
            self.names[phrase_rows["person"]] |= {comparable(word) for word in PERSON_WORDS}

    def is_named(self, row: int, text: str) -> bool:
        """Whether a text has a name or a synonym of a row."""
        asked = comparable(text)
        return any(name in asked for name in self.names.get(row, ()))

    def names_any(self, text: str) -> bool:
        """Whether a text has a name or a synonym of any row."""
        return any(self.is_named(row, text) for row in self.names)

    def knows(self, noun_phrase: str) -> bool:
        """Whether a noun phrase ends in a name, a synonym, a hint or a word for a kind of things."""
        asked = comparable(noun_phrase)
        known = self.hints.union(*self.names.values())
        return any(asked.endswith(word) for word in known)

"""Everyday words for what the pocket preset was taught: a "woman" is a person, "fruit" an apple or a banana.

    lexicon = Lexicon(llm.phrase_rows)
    lexicon.names_of("the old woman")          # ["person"]
    lexicon.names_of("fruit")                  # ["banana", "apple", "orange"]
    lexicon.names_of("window")                 # []: no taught name is a window

`lexicon.toml` is written by hand, may be extended by anyone and comes first. Then the names and synonyms of
the phrase bank stand for themselves, taught or not: a whale is no person, though WordNet knows people who are
called so. Then comes `wordnet.toml`, from WordNet (`tests/helpers/pocket_lexicon.py` writes it), and last the
words of the bank that hint at a name.
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from assistant.pocket.vocabulary import comparable, published_words

LEXICON_FILE = Path(__file__).parent / "lexicon.toml"
WORDNET_FILE = Path(__file__).parent / "wordnet.toml"
MAX_ENTRY_WORDS = 3  # words of the longest entries


@functools.cache
def published_lexicon() -> dict[str, list[str]]:
    """{word, as `comparable` gives it: the names that it stands for}, of all files."""
    published = published_words()
    wordnet = tomllib.loads(WORDNET_FILE.read_text(encoding="utf-8"))["words"]
    by_hand = tomllib.loads(LEXICON_FILE.read_text(encoding="utf-8"))["words"]
    return (
        _by_word(published["hints"])
        | _by_word({name: words.replace("\n", " ").split("; ") for name, words in wordnet.items()})
        | _by_word({name: [name, *published["synonyms"].get(name, ())] for name in published["groups"]})
        | {
            comparable(word): by_hand[names] if isinstance(names, str) else names
            for word, names in by_hand.items()
        }
    )


def _by_word(words_of: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """{name: words} as {word, as `comparable` gives it: names}."""
    table: dict[str, list[str]] = {}
    for name, words in words_of.items():
        for word in words:
            table.setdefault(comparable(word), []).append(name)
    return table


class Lexicon:
    """The words of the lexicon for some taught names.

    Args:
        phrase_rows: See `PocketLLM`.
    """

    def __init__(self, phrase_rows: Mapping[str, int]):
        self.taught = set(phrase_rows)
        self.words = published_lexicon()

    def names_of(self, noun_phrase: str) -> list[str]:
        """The taught names that a noun phrase stands for by its last words; [] where there are none."""
        words = comparable(noun_phrase).split()
        for count in range(min(MAX_ENTRY_WORDS, len(words)), 0, -1):
            names = self.words.get(f" {' '.join(words[-count:])} ")
            if names is not None:
                return [name for name in names if name in self.taught]
        return []

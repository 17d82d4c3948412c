"""Everyday words for what the pocket preset was taught: a "woman" is a person, "fruit" an apple or a banana.

    lexicon = Lexicon(llm.phrase_rows)
    lexicon.names_of("the old woman")          # ["person"]
    lexicon.names_of("fruit")                  # ["banana", "apple", "orange"]
    lexicon.names_of("window")                 # []: no taught name is a window

`lexicon.toml` is written by hand and may be extended by anyone; `wordnet.toml` comes from WordNet
(`tests/helpers/pocket_lexicon.py` writes it). The words of the phrase bank that hint at a name come last.
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path

from assistant.pocket.vocabulary import comparable, published_words

LEXICON_FILE = Path(__file__).parent / "lexicon.toml"
WORDNET_FILE = Path(__file__).parent / "wordnet.toml"
MAX_ENTRY_WORDS = 3  # words of the longest entries


@functools.cache
def published_lexicon() -> dict[str, list[str]]:
    """{word, as `comparable` gives it: the names that it stands for}, of all files."""
    table: dict[str, list[str]] = {}
    for name, words in published_words()["hints"].items():
        for word in words:
            table.setdefault(comparable(word), []).append(name)
    from_wordnet: dict[str, list[str]] = {}
    for name, words in tomllib.loads(WORDNET_FILE.read_text(encoding="utf-8"))["words"].items():
        for word in words.replace("\n", " ").split("; "):
            from_wordnet.setdefault(comparable(word), []).append(name)
    by_hand = tomllib.loads(LEXICON_FILE.read_text(encoding="utf-8"))["words"]
    return table | from_wordnet | {comparable(word): names for word, names in by_hand.items()}


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

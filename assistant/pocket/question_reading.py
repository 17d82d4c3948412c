"""Which taught names a question may mean, before anybody looks at the picture.

    reader = QuestionReader(vocabulary, lexicon, memory)
    reader.read("the kids and the fruit")     # [Asked("kids", ["person"]), Asked("fruit", ["banana", ...])]
    reader.read("what could jump?")           # [Asked("what could jump", ["dog", "horse", ...], ...)]
    reader.read("find the cup")               # None: the language model reads names by itself
    reader.rewritten("the boy on the left")   # "the person on the left"

Names come from the lexicon where a thing is called by a noun, from the phrase memory where it is described.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from assistant.pocket.asked_words import (
    DESCRIPTION,
    asked_things,
    is_plain_name,
    own_words,
    without_request,
)
from assistant.pocket.lexicon import Lexicon
from assistant.pocket.phrase_memory import PhraseMemory
from assistant.pocket.vocabulary import GENERIC_NOUNS, PERSON_WORDS, Vocabulary, comparable

MAX_CANDIDATES = 8  # of a description: of 80 held-out ones all have the right name among the first eight
# Cosine from which a description may mean a taught name, and an unknown noun may be a guess at one.
MIN_SIMILARITY = 0.3
MIN_GUESS_SIMILARITY = 0.6
STRANGER_MARGIN = 0.1  # by which a thing that was not taught must be nearer for the description to mean it
MIN_LISTED_NAMES = 2  # of a text that is a list of names rather than a description
# "what vehicles do you see?" asks for vehicles.
WHICH_NOUN = re.compile(
    r"^(?:and |so )?(?:what|which) (?P<noun>(?:[a-z'-]+ ){0,2}?[a-z'-]+) "
    r"(?:do|can|could) (?:you|we|i) (?:see|find|spot|have)\b|"
    r"^(?:and |so )?(?:what|which) (?P<other>(?:[a-z'-]+ ){0,2}?[a-z'-]+) (?:is|are) "
    r"(?:there|here|shown|visible|in (?:the|this) (?:photo|picture|image))\b",
    re.I,
)
PRONOUN_SUBJECT = re.compile(r"^(?:it|they|he|she|i|you|we)\b", re.I)
DETERMINER = r"(?:the|an?|my|your|his|her|their|our|this|that|these|those|some|any|each|every|two|three)"
PLACE_WORDS = frozenset(
    "left right top bottom middle center centre leftmost rightmost upper lower first second third last "
    "biggest largest smallest bigger smaller larger nearest closest furthest other".split()
)


@dataclass
class Asked:
    """Something that a question asks for.

    Attributes:
        words: What it is called in the question.
        names: The taught names that it may be; [] where nothing is known about it.
        similarities: Of each name to a description; [] where the words are a name or a kind: then all of
            the names are meant.
        is_guess: Whether the words are a name that is not known, and the names only a guess.
    """

    words: str
    names: list[str]
    similarities: list[float] = field(default_factory=list)
    is_guess: bool = False


class QuestionReader:
    """Finds the names that questions may mean.

    Args:
        vocabulary: The taught names and their synonyms.
        lexicon: Further words for them.
        memory: The phrase bank; None to leave descriptions to the language model.
        names: {row: taught name in its plain form}.
        unspoken: Those of the names that the language model was not taught to answer with.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        lexicon: Lexicon,
        memory: PhraseMemory | None,
        names: dict[int, str],
        unspoken: frozenset[str] = frozenset(),
    ):
        self.vocabulary = vocabulary
        self.lexicon = lexicon
        self.names = names
        self.unspoken = unspoken
        self.memory = memory.extended(list(names.values())) if memory else None

    def rewritten(self, question: str) -> str:
        """The question with each noun that stands for a single taught name replaced by that name.

        The language model was taught the names, not all the words for them. Nouns that it knows stay.
        """
        for thing in asked_things(question):
            noun = _head(thing)
            if self._name_in(thing):
                continue
            names = self.lexicon.names_of(noun)
            if len(names) == 1:
                word = noun.split()[-1]
                question = re.sub(rf"\b{re.escape(word)}\b", names[0], question, count=1)
        return question

    def small_talk(self, question: str) -> str:
        """The reply to what asks for nothing in the photo ("who made you?"); "" for every other question."""
        if self.memory is None:
            return ""
        return self.memory.recall(question, list(self.names.values())).talk

    def read(self, question: str, seen: Collection[str] = ()) -> list[Asked] | None:
        """What a question asks for; None where the language model had better read it alone.

        Args:
            question: The question.
            seen: Those of the unspoken names that are likely in the image. A description may mean these and
                all names that the language model was taught; the other unspoken names are too many to guess.

        Returns:
            What is asked for. None where everything is called by its taught name, where one of several is
            meant by its place, and where nothing in the question says what it may be.
        """
        things = self._things(question)
        if not things or any(self._is_description(thing) for thing in things):
            return self._described(question, things, seen)
        names = [self._name_in(thing) for thing in things]
        if all(name and name not in self.unspoken for name in names):
            return None
        has_place = any(set(comparable(thing).split()) & PLACE_WORDS for thing in things)
        if has_place and not self.unspoken.intersection(names):
            return None
        return [self._called(thing) for thing in things]

    @staticmethod
    def _things(question: str) -> list[str]:
        """What is asked for by a noun; [] where the question is a clause."""
        if match := WHICH_NOUN.match(question.strip()):
            return [match["noun"] or match["other"]]
        return asked_things(question)

    def _is_description(self, thing: str) -> bool:
        if not is_plain_name(thing) or PRONOUN_SUBJECT.match(thing):
            return True
        return any(word in GENERIC_NOUNS for word in comparable(thing).split()[-1:])

    def _name_in(self, text: str) -> str | None:
        """The taught name that a text has, by its longest form; None where it has none."""
        asked = comparable(text)
        found = [
            (len(form), row)
            for row, forms in self.vocabulary.names.items()
            for form in forms
            if form in asked
        ]
        return self.names[max(found)[1]] if found else None

    def _mentions(self, description: str) -> bool:
        """Whether a description has a taught name as a noun: "what is next to the cup?", not "to watch".

        So has a list of names without articles.
        """
        asked = comparable(description)
        named = [row for row, forms in self.vocabulary.names.items() if any(form in asked for form in forms)]
        return len(named) >= MIN_LISTED_NAMES or any(
            re.search(rf" {DETERMINER} (?:\w+ )?{re.escape(form.strip())} ", asked)
            for forms in self.vocabulary.names.values()
            for form in forms
        )

    def _called(self, thing: str) -> Asked:
        """A thing that is called by a noun."""
        name = self._name_in(thing)
        if name is not None:
            return Asked(thing, [name])
        names = self.lexicon.names_of(thing)
        if names or self.memory is None:
            return Asked(thing, names)
        recall = self.memory.recall(thing, list(self.names.values()))
        nearest = max(recall.similarities, key=recall.similarities.__getitem__)
        similarity = recall.similarities[nearest]
        if similarity < MIN_GUESS_SIMILARITY or similarity < recall.stranger_name:
            return Asked(thing, [])
        return Asked(thing, recall.group or [nearest], is_guess=not recall.group)

    def _described(self, question: str, things: list[str], seen: Collection[str]) -> list[Asked] | None:
        """What is described rather than named; `seen`: see `read`."""
        words = own_words(question)
        text = without_request(question)
        if self.memory is None or not words or not text:
            return None
        if self._asks_who(question) or set(comparable(question).split()) & PLACE_WORDS:
            return None
        noun = _head(things[0]) if len(things) == 1 and not PRONOUN_SUBJECT.match(things[0]) else ""
        if self._name_in(noun) or self._mentions(text):
            return None
        head = self.lexicon.names_of(noun)
        may_be_meant = [name for name in self.names.values() if name not in self.unspoken or name in seen]
        recall = self.memory.recall(text, head or may_be_meant)
        ranking = sorted(recall.similarities, key=recall.similarities.__getitem__, reverse=True)
        best = recall.similarities[ranking[0]]
        if not head and (best < MIN_SIMILARITY or best < recall.stranger - STRANGER_MARGIN):
            return [Asked(words, [])]
        if recall.group:
            return [Asked(words, recall.group)]
        candidates = ranking[:MAX_CANDIDATES]
        return [Asked(words, candidates, [recall.similarities[name] for name in candidates])]

    @staticmethod
    def _asks_who(question: str) -> bool:
        """Whether a question asks for people by a pronoun, which the language model was taught as a name."""
        return bool(set(comparable(question).split()) & set(PERSON_WORDS))


def _head(thing: str) -> str:
    """The noun phrase before what describes it: "pet that barks" -> "pet"."""
    return DESCRIPTION.split(thing, maxsplit=1)[0].strip()

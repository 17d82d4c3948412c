"""What a generated question must hold, whoever wrote it: one reason per drop, or None.

why = trouble(question, "implicit", targets, photo, bank)      # e.g. "names its target (cup)"
seen = Seen(); seen.again(question)                            # True: nearly asked before
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from datagen.composer.phrasebank import Entry, pluralise
from datagen.sources.photos import Instance, Photo

WORDS = 3, 60
ALIKE = 0.8  # Jaccard index of two questions' words from which they are the same question
NAMELESS = ("implicit",)  # kinds whose question must not name what is meant
KINDS = ("implicit", "named", "multi", "position", "part", "absent", "followup")
SOME = ("position", "part", "followup")  # kinds that may mean some of a name's instances
TURNS = 3  # before a question, at most
STOP = frozenset(
    "a an the is are of in on at to it this that which what where can could you i me please there here any see show find mark "
    "point tell out do does".split()
)


@dataclass(frozen=True)
class Wanted:
    """A target as a writer gives it: how the reply calls it, its category and which of its instances; none = absent."""

    phrase: str
    category: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Earlier:
    """A turn before a question that follows it."""

    question: str
    targets: list[Wanted]


def names(category: str, bank: dict[str, Entry], synonyms: Sequence[str] = ()) -> list[str]:
    """All words that would give a category away: of its entry in the bank, else its name, the data set's synonyms and,
    of names of several words, the last ("table" of "dining table"); with their plurals."""
    if category in bank:
        return bank[category].forbidden()
    words = {word for name in (category, *synonyms) for word in (name.lower(), name.lower().split()[-1])}
    return sorted({form for word in words for form in (word, pluralise(word))})


def named_in(
    question: str, category: str, bank: dict[str, Entry], synonyms: Sequence[str] = ()
) -> str | None:
    """The word of the question that names the category, in any form ("mice", "skiing"), or None."""
    given = names(category, bank, synonyms)
    pattern = r"(?<![a-z])(%s)(?![a-z])" % "|".join(re.escape(word) for word in given)
    if found := re.search(pattern, question.lower()):
        return found[0]
    asked = f" {' '.join(lemmas(question))} "
    return next((word for word in given if f" {' '.join(lemmas(word))} " in asked), None)


def lemmas(text: str) -> list[str]:
    """The words' dictionary forms, in lower case."""
    from simplemma import lemmatize

    return [lemmatize(word, lang="en").lower() for word in re.findall(r"[^\W\d_]+", text.lower())]


def is_english(text: str) -> bool:
    """Whether half of the words are of that language; names and slips are not."""
    from simplemma import in_target_language

    return in_target_language(text, lang="en") >= 0.5


def trouble(
    question: str,
    kind: str,
    targets: Sequence[Wanted],
    photo: Photo,
    bank: dict[str, Entry],
    before: Sequence[Earlier] = (),
    looked: bool = True,
) -> str | None:
    """Why a question cannot be used, in words that can be counted; None where it can. before: the turns it follows;
    looked: what is said to be absent will be looked for in the picture."""
    count = len(question.split())
    if not WORDS[0] <= count <= WORDS[1]:
        return "too short" if count < WORDS[0] else "too long"
    if not is_english(question):
        return "not in English"
    if any(re.search(r"\[(SEG|ABS)\]|<\|", text) for text in (question, *(turn.question for turn in before))):
        return "holds a token"
    if kind not in KINDS:
        return "of no known kind"
    if not targets:
        return "without a target"
    if (
        bool(before) != (kind == "followup")
        or len(before) > TURNS
        or not all(turn.targets and turn.question for turn in before)
    ):
        return "follows nothing" if kind == "followup" else "of another kind than it says"
    for target in [*targets, *(target for turn in before for target in turn.targets)]:
        if why := _untrue(target, photo, looked):
            return why
    there = [target for target in targets if target.ids]
    if len({target.category for target in targets}) < len(targets) and kind not in SOME:
        return "asks for one thing twice"
    if kind == "absent" and there:
        return "said to be absent, and has a target"
    if kind not in ("absent", "followup") and not there:
        return "nothing of it is there"
    if kind == "part" and not all(target.category in photo.parts for target in there):
        return "not about a part"
    if kind in ("implicit", "named") and len(targets) > 1 or kind == "multi" and len(targets) < 2:
        return "of another kind than it says"
    if kind == "position" and not all(0 < len(t.ids) < len(photo.of(t.category)) for t in targets):
        return "does not choose among several"
    if kind not in SOME and any(set(t.ids) != {i.id for i in photo.of(t.category)} for t in there):
        return "leaves out some of what it asks for"
    if kind not in SOME and any(target.category in photo.partial for target in there):
        return "not all of it is outlined"
    if kind in NAMELESS:
        for target in targets:
            if word := named_in(question, target.category, bank, photo.synonyms.get(target.category, ())):
                return f"names its target ({word})"
    return None


def _untrue(target: Wanted, photo: Photo, looked: bool) -> str | None:
    """What is wrong with a target in itself."""
    known: dict[int, Instance] = {instance.id: instance for instance in photo.instances}
    if any(number not in known or known[number].key != target.category for number in target.ids):
        return "points at things that are not there"
    if target.ids:
        return None
    if photo.of(target.category) or target.category in photo.partial:
        return "calls absent what is there"
    # Absent is what people have looked for: all of the data set's names, or those that the photo lists (LVIS).
    if not looked and target.category not in (photo.absent or photo.categories):
        return "calls absent what nobody has looked for"
    return None


@dataclass
class Seen:
    """Questions asked so far about one photo."""

    bags: list[frozenset[str]] = field(default_factory=list)

    def again(self, question: str, before: Sequence[Earlier] = ()) -> bool:
        """Whether nearly the same was asked; if not, it counts as asked from now on."""
        question = " ".join([question, *(turn.question for turn in before)])
        bag = frozenset(w for w in re.findall(r"[^\W_]+", question.lower()) if w not in STOP) or frozenset(
            [question]
        )
        if any(len(bag & other) >= ALIKE * len(bag | other) for other in self.bags):
            return True
        self.bags.append(bag)
        return False

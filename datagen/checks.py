"""What a generated question must hold, whoever wrote it: one reason per drop, or None.

    why = trouble(question, "implicit", targets, photo, bank)      # e.g. "names its target (cup)"
    seen = Seen(); seen.again(question)                            # True: nearly asked before
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from datagen.phrasebank import Entry, pluralise
from datagen.photos import Instance, Photo

WORDS = 3, 60
ALIKE = 0.8  # Jaccard index of two questions' words from which they are the same question
NAMELESS = ("implicit",)  # kinds whose question must not name what is meant
KINDS = ("implicit", "named", "multi", "position", "absent")
STOP = frozenset("a an the is are of in on at to it this that which what where can could you i me please there here any see show find mark point tell out do does".split())


@dataclass(frozen=True)
class Wanted:
    """A target as a writer gives it: how the reply calls it, its category and which of its instances; none = absent."""

    phrase: str
    category: str
    ids: tuple[int, ...]


def names(category: str, bank: dict[str, Entry]) -> list[str]:
    """All words that would give a category away: of its entry in the bank, else the name and its plural."""
    if category in bank:
        return bank[category].forbidden()
    return sorted({category.lower(), pluralise(category.lower())})


def named_in(question: str, category: str, bank: dict[str, Entry]) -> str | None:
    """The word of the question that names the category, or None."""
    pattern = r"(?<![a-z])(%s)(?![a-z])" % "|".join(re.escape(word) for word in names(category, bank))
    found = re.search(pattern, question.lower())
    return found[0] if found else None


def trouble(question: str, kind: str, targets: Sequence[Wanted], photo: Photo, bank: dict[str, Entry],
            english: bool = True) -> str | None:
    """Why a question cannot be used, in words that can be counted; None where it can."""
    count = len(question.split())
    if not WORDS[0] <= count <= WORDS[1]:
        return "too short" if count < WORDS[0] else "too long"
    letters = [c for c in question if c.isalpha()]
    if english and sum(c.isascii() for c in letters) < 0.9 * len(letters):
        return "not in English"
    if re.search(r"\[(SEG|ABS)\]|<\|", question):
        return "holds a token"
    if kind not in KINDS:
        return "of no known kind"
    if not targets:
        return "without a target"
    known: dict[int, Instance] = {instance.id: instance for instance in photo.instances}
    for target in targets:
        if any(number not in known or known[number].key != target.category for number in target.ids):
            return "points at things that are not there"
        if not target.ids and photo.of(target.category):
            return "calls absent what is there"
    there = [target for target in targets if target.ids]
    if len({target.category for target in targets}) < len(targets) and kind != "position":
        return "asks for one thing twice"
    if kind == "absent" and there:
        return "said to be absent, and has a target"
    if kind != "absent" and not there:
        return "nothing of it is there"
    if kind in ("implicit", "named") and len(targets) > 1 or kind == "multi" and len(targets) < 2:
        return "of another kind than it says"
    if kind == "position" and not all(0 < len(t.ids) < len(photo.of(t.category)) for t in targets):
        return "does not choose among several"
    if kind != "position" and any(set(t.ids) != {i.id for i in photo.of(t.category)} for t in there):
        return "leaves out some of what it asks for"
    if kind in NAMELESS and (word := next((w for t in targets if (w := named_in(question, t.category, bank))), None)):
        return f"names its target ({word})"
    return None


@dataclass
class Seen:
    """Questions asked so far about one photo."""

    bags: list[frozenset[str]] = field(default_factory=list)

    def again(self, question: str) -> bool:
        """Whether nearly the same was asked; if not, it counts as asked from now on."""
        bag = frozenset(w for w in re.findall(r"[^\W_]+", question.lower()) if w not in STOP) or frozenset([question])
        if any(len(bag & other) >= ALIKE * len(bag | other) for other in self.bags):
            return True
        self.bags.append(bag)
        return False

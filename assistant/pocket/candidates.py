"""Which of the names that a question may mean are meant and in the picture.

    candidates = [Candidate("cup", -3.2, 2.1), Candidate("bowl", -6.1, -3.0)]
    meant_and_present(asked, candidates, threshold=0.5)       # [("cup", 0.69)]

The phrase memory says what a description may mean, the language model what it would answer, the presence of
names what is there. A kind ("fruit") means every one of its names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from assistant.grammar import is_noun_phrase
from assistant.pipeline import Selection
from assistant.pocket.honest_reply import Item
from assistant.pocket.presence import several_shift, sigmoid
from assistant.pocket.question_reading import Asked

# What a cosine of 1 is worth against the log-probability of an answer, in nats. Of 80 held-out descriptions
# with eight candidates each the right name came first in .49 by the model alone, .65 by the cosine alone
# and .76 by both.
SIMILARITY_WEIGHT = 80.0
# Nats behind the best candidate, up to which a candidate of a description is meant too: of the same
# descriptions .81 then have the right name among those meant, with .65 wrong ones each (6 nats: .90, 1.2).
MAX_BEHIND = 3.0
MEANT_BY_DESCRIPTION = 4  # names among which the right one of a description counts as drawn


@dataclass(frozen=True)
class Candidate:
    """A name that may be meant, and the picture.

    Attributes:
        name: The name.
        likelihood: The log-probability that the language model answers with it.
        presence: The logit that it is in the picture, see `presence`.
    """

    name: str
    likelihood: float
    presence: float

    def confidence(self, count: int = 1) -> float:
        """In [0, 1], that it is in the picture; less where it is one of `count` names that may be meant."""
        return sigmoid(self.presence - several_shift(count))


def meant_and_present(
    asked: Asked, candidates: Sequence[Candidate], threshold: float, main_name: str | None = None
) -> list[tuple[str, float]]:
    """The names that answer to something asked for, and how surely each is there.

    Args:
        asked: What is asked for.
        candidates: All of its names, and maybe others.
        threshold: Confidence in [0, 1] from which a name counts as present.
        main_name: What the picture mainly shows, which need not be surer for being one of a large kind.

    Returns:
        (name, confidence) of each, the best first; [] where nothing answers.
    """
    mine = {candidate.name: candidate for candidate in candidates if candidate.name in asked.names}
    if not asked.similarities:
        confidences = {
            name: mine[name].confidence(1 if name == main_name else len(asked.names)) for name in asked.names
        }
        ranking = sorted(confidences, key=confidences.__getitem__, reverse=True)
        return [(name, confidences[name]) for name in ranking if confidences[name] >= threshold]
    merits = {
        name: mine[name].likelihood + SIMILARITY_WEIGHT * similarity
        for name, similarity in zip(asked.names, asked.similarities, strict=True)
    }
    ranking = sorted(merits, key=merits.__getitem__, reverse=True)
    meant = [name for name in ranking if merits[name] >= merits[ranking[0]] - MAX_BEHIND]
    confidences = {name: mine[name].confidence(MEANT_BY_DESCRIPTION) for name in meant}
    return [(name, confidences[name]) for name in meant if confidences[name] >= threshold]


def found_item(asked: Asked, name: str, selection: Selection) -> Item:
    """A target that is there."""
    return Item(name, True, selection, guess=asked.words if asked.is_guess else "", asked=asked)


def missing_item(asked: Asked, candidates: Sequence[Candidate], may_guess: bool) -> Item:
    """What was asked for and is not there, in the words of the question."""
    if not asked.names:
        return unknown_item(asked)
    mine = [candidate for candidate in candidates if candidate.name in asked.names]
    confidence = max(candidate.confidence(len(asked.names)) for candidate in mine)
    selection = Selection(confidence, [], known=not asked.is_guess)
    # "Anyone" is no name for what is not there.
    words = asked.words if asked.similarities or is_noun_phrase(asked.words) else asked.names[0]
    return Item(words, False, selection, in_own_words=bool(asked.similarities), asked=asked)


def unknown_item(asked: Asked) -> Item:
    """Something that no taught name stands for."""
    selection = Selection(0.0, [], known=False)
    return Item(asked.words, False, selection, in_own_words=True, asked=asked)

"""Step 4, check: what a question by a language model must hold.

    reason = reason_to_drop(question, image, bank)           # e.g. "names its target (cup)"
    asked = AskedQuestions()
    asked.is_repeat("Where is the cup?")                     # True: nearly the same was asked before

A change of what is dropped needs a new `datagen.versions.LLM_WRITER_VERSION`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from datagen.composer.english import pluralise
from datagen.composer.phrasebank import Entry
from datagen.sources.annotated_images import AnnotatedImage, Instance

MIN_WORDS, MAX_WORDS = 3, 60  # of a question: shorter ones are fragments, longer ones stories
MAX_EARLIER_TURNS = 3
MIN_REPEAT_OVERLAP = 0.8  # Jaccard index of two questions' words from which they are the same question
MIN_ENGLISH_SHARE = 0.5  # of the words: names and slips are in no dictionary
KINDS = ("implicit", "named", "multi", "position", "part", "absent", "followup")
NAMELESS_KINDS = ("implicit",)  # whose question must not name what is meant
SUBSET_KINDS = ("position", "part", "followup")  # that may mean some of a name's instances
# Words that do not tell one question from another.
STOP_WORDS = frozenset(
    "a an the is are of in on at to it this that which what where can could you i me please there here any "
    "see show find mark point tell out do does".split()
)


@dataclass(frozen=True)
class WrittenTarget:
    """A target as a writer gives it.

    Attributes:
        phrase: What the reply calls it.
        category: Its category.
        ids: Annotation ids of the instances that are meant; () when it is absent.
    """

    phrase: str
    category: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class WrittenTurn:
    """A question with its targets, as a writer gives them."""

    text: str
    targets: Sequence[WrittenTarget]


@dataclass(frozen=True)
class WrittenQuestion(WrittenTurn):
    """A question of some kind.

    Attributes:
        kind: One of `KINDS`.
        earlier: The turns before it, oldest first.
        numbers: What it means, as numbers in the list that the writer saw.
    """

    kind: str
    earlier: Sequence[WrittenTurn] = ()
    numbers: Sequence[int] = ()


def telltale_words(category: str, bank: Mapping[str, Entry], synonyms: Sequence[str] = ()) -> Sequence[str]:
    """All words that would give a category away, with their plurals.

    They are those of its entry in the bank. Without an entry they are its name, the data set's synonyms and,
    of names of several words, the last one ("table" of "dining table").
    """
    if category in bank:
        return bank[category].forbidden()
    words = {word for name in (category, *synonyms) for word in (name.lower(), name.lower().split()[-1])}
    return sorted({form for word in words for form in (word, pluralise(word))})


def named_in(text: str, category: str, bank: Mapping[str, Entry], synonyms: Sequence[str] = ()) -> str | None:
    """Return the word of a question that names the category, in any form ("mice", "skiing"), or None."""
    words = telltale_words(category, bank, synonyms)
    alternatives = "|".join(re.escape(word) for word in words)
    if match := re.search(rf"(?<![a-z])({alternatives})(?![a-z])", text.lower()):
        return match[0]
    lemmatised = f" {' '.join(lemmas(text))} "
    return next((word for word in words if f" {' '.join(lemmas(word))} " in lemmatised), None)


def lemmas(text: str) -> list[str]:
    """The words' dictionary forms, in lower case."""
    from simplemma import lemmatize

    return [lemmatize(word, lang="en").lower() for word in re.findall(r"[^\W\d_]+", text.lower())]


def is_english(text: str) -> bool:
    """Whether at least half of the words are English."""
    from simplemma import in_target_language

    return in_target_language(text, lang="en") >= MIN_ENGLISH_SHARE


def reason_to_drop(
    question: WrittenQuestion,
    image: AnnotatedImage,
    bank: Mapping[str, Entry],
    absence_is_verified: bool = True,
) -> str | None:
    """Return why a question cannot be used, or None where it can.

    Args:
        question: The question.
        image: What it is about.
        bank: Phrase bank, for the words that would name a target.
        absence_is_verified: Whether a multimodal model will look for what is said to be absent. Without one,
            only categories that the data set has looked for can be absent.
    """
    reason = _text_fault(question) or _form_fault(question)
    if reason:
        return reason
    earlier_targets = [target for turn in question.earlier for target in turn.targets]
    for target in [*question.targets, *earlier_targets]:
        if reason := _target_fault(target, image, absence_is_verified):
            return reason
    return _kind_fault(question, image) or _naming_fault(question, image, bank)


def _text_fault(question: WrittenQuestion) -> str | None:
    """What is wrong with the words of a question."""
    word_count = len(question.text.split())
    if word_count < MIN_WORDS:
        return "too short"
    if word_count > MAX_WORDS:
        return "too long"
    if not is_english(question.text):
        return "not in English"
    texts = (question.text, *(turn.text for turn in question.earlier))
    if any(re.search(r"\[(SEG|ABS)\]|<\|", text) for text in texts):
        return "contains a reserved token"
    return None


def _form_fault(question: WrittenQuestion) -> str | None:
    """What is wrong with the kind, the presence of targets and the earlier turns."""
    if question.kind not in KINDS:
        return "of an unknown kind"
    if not question.targets:
        return "has no target"
    is_followup = question.kind == "followup"
    turns_are_whole = all(turn.targets and turn.text for turn in question.earlier)
    if (
        bool(question.earlier) != is_followup
        or len(question.earlier) > MAX_EARLIER_TURNS
        or not turns_are_whole
    ):
        return "has no earlier turn to follow" if is_followup else "does not fit its kind"
    return None


def _target_fault(target: WrittenTarget, image: AnnotatedImage, absence_is_verified: bool) -> str | None:
    """What is wrong with a target in itself."""
    instances: dict[int, Instance] = {instance.id: instance for instance in image.instances}
    if any(id not in instances or instances[id].key != target.category for id in target.ids):
        return "refers to instances that do not exist"
    if target.ids:
        return None
    if image.of(target.category) or target.category in image.partial:
        return "calls something absent that is present"
    # What people have looked for is all of the data set's categories, or those that the image lists (LVIS).
    if not absence_is_verified and target.category not in (image.absent or image.categories):
        return "calls something absent that nobody has looked for"
    return None


def _kind_fault(question: WrittenQuestion, image: AnnotatedImage) -> str | None:
    """What keeps a question from being of its kind."""
    kind, targets = question.kind, question.targets
    present = [target for target in targets if target.ids]
    takes_subsets = kind in SUBSET_KINDS
    if len({target.category for target in targets}) < len(targets) and not takes_subsets:
        return "asks for one category twice"
    if kind == "absent" and present:
        return "is about something absent, but has a mask"
    if kind not in ("absent", "followup") and not present:
        return "has no target that is present"
    if kind == "part" and not all(target.category in image.parts for target in present):
        return "is not about a part"
    if (kind in ("implicit", "named") and len(targets) > 1) or (kind == "multi" and len(targets) < 2):
        return "does not fit its kind"
    if kind == "position" and not all(0 < len(t.ids) < len(image.of(t.category)) for t in targets):
        return "does not choose among several"
    if not takes_subsets:
        if any(set(t.ids) != {instance.id for instance in image.of(t.category)} for t in present):
            return "leaves out some of what it asks for"
        if any(target.category in image.partial for target in present):
            return "asks for what is not outlined throughout"
    return None


def _naming_fault(question: WrittenQuestion, image: AnnotatedImage, bank: Mapping[str, Entry]) -> str | None:
    """Whether a question names a target that it should only describe."""
    if question.kind in NAMELESS_KINDS:
        for target in question.targets:
            synonyms = image.synonyms.get(target.category, ())
            if word := named_in(question.text, target.category, bank, synonyms):
                return f"names its target ({word})"
    return None


@dataclass
class AskedQuestions:
    """The questions asked so far about one image."""

    word_sets: list[frozenset[str]] = field(default_factory=list)

    def is_repeat(self, text: str, earlier: Sequence[WrittenTurn] = ()) -> bool:
        """Whether nearly the same was asked already; if not, it counts as asked from now on."""
        text = " ".join([text, *(turn.text for turn in earlier)])
        words = frozenset(word for word in re.findall(r"[^\W_]+", text.lower()) if word not in STOP_WORDS)
        words = words or frozenset([text])
        for other in self.word_sets:
            if len(words & other) >= MIN_REPEAT_OVERLAP * len(words | other):
                return True
        self.word_sets.append(words)
        return False

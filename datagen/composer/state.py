"""What is known while the questions of one image are composed, and how a question becomes a record.

state = ComposerState(image, bank, groups, "train", seed=0)
target = state.target(state.least_asked(state.askable), by_phrase=True)
state.record("implicit", "what could I drink from?", [(target.mention(), target)])
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from assistant.grammar import reply_for
from assistant.record import Record, RecordTarget
from datagen.composer.phrasebank import Entry, Group, Phrase
from datagen.sources.annotated_images import AnnotatedImage, Instance, seed_for

PLAUSIBLE_ABSENT_SHARE = 0.5  # of the absent categories, those that would belong in the scene
MAX_REPLY_DRAWS = 50  # for a reply whose verb fits; then the plainest one is taken

Option = TypeVar("Option")


@dataclass(frozen=True)
class AskedTarget:
    """A category that a question asks about.

    Attributes:
        entry: Its entry in the bank.
        instances: Those that are meant; none: it is absent.
        phrase: Describes it; None: it is called by its name.
    """

    entry: Entry
    instances: Sequence[Instance]
    phrase: Phrase | None = None

    @property
    def object_count(self) -> int:
        """How many objects are meant."""
        return count_objects(self.instances)

    def mention(self) -> str:
        """What a reply calls it."""
        return self.entry.mention(self.object_count)


def count_objects(instances: Sequence[Instance]) -> int:
    """How many objects the instances are: a crowd is at least two."""
    return len(instances) + sum(instance.crowd for instance in instances)


class ComposerState:
    """What is known while the questions of one image are composed.

    Args:
        image: The image, with masks.
        bank: Phrase bank with an entry for each of its categories.
        groups: Questions that several categories answer; those of other banks are left out.
        split: "train" or "held".
        seed: Another seed gives other questions.

    Attributes:
        rng: Decides everything that is drawn; the order of the draws is part of
            `datagen.versions.COMPOSER_VERSION`.
        present: Categories that are there, outlined or not.
        outlined: Categories of which every instance is outlined, sorted.
        askable: Those of them that can be asked about by themselves: nothing else in the image might go by
            their name.
        labelled: Categories of which it is known whether they are there.
        used: How often each phrase, category, ... was asked about so far.
    """

    def __init__(
        self,
        image: AnnotatedImage,
        bank: Mapping[str, Entry],
        groups: Sequence[Group],
        split: str,
        seed: int,
    ):
        self.image = image
        self.bank = bank
        self.split = split
        self.groups = [group for group in groups if set(group.categories) <= set(bank)]
        self.rng = random.Random(seed_for(image, split, seed))
        self.present = set(image.keys()) | image.partial
        self.outlined = [key for key in image.keys() if key not in image.partial]
        self.askable = [
            key
            for key in self.outlined
            if not (bank[key].is_vague and self.present & set(bank[key].confused))
        ]
        self.labelled = set(image.absent or image.categories) | self.present
        self.used: Counter[str] = Counter()

    def phrase_for(self, key: str, is_allowed: Callable[[Phrase], bool] | None = None) -> Phrase | None:
        """Choose the least used phrase of a category, of those that describe nothing else in the image."""
        options = [
            phrase
            for phrase in self.bank[key].split(self.split)
            if not set(phrase.also_true_of) & self.present and (is_allowed is None or is_allowed(phrase))
        ]
        return self._least_used(options, lambda phrase: phrase.id)

    def least_asked(self, keys: Sequence[str]) -> str | None:
        """Choose the category asked about least so far, ties by chance; None where there are none."""
        return self._least_used(keys, str)

    def least_asked_of(self, keys: Sequence[str]) -> str:
        """As `least_asked`, of at least one key."""
        key = self.least_asked(keys)
        assert key is not None
        return key

    def _least_used(self, options: Sequence[Option], name: Callable[[Option], str]) -> Option | None:
        """Choose among the options that were used least, and count the choice."""
        if not options:
            return None
        least = min(self.used[name(option)] for option in options)
        choice = self.rng.choice([option for option in options if self.used[name(option)] == least])
        self.used[name(choice)] += 1
        return choice

    def group_question(self, present: bool) -> tuple[Group, Phrase] | None:
        """Choose a question that several categories answer.

        Args:
            present: Whether at least one of them is in the image, or none.

        Returns:
            The group and the question; None where the image leaves every group unclear.
        """
        outlined = set(self.outlined)
        confusable = self._confusable()
        options = {}
        for group in self.groups:
            categories = set(group.categories)
            shown = outlined & categories
            is_unclear = set(group.maybe) & outlined or (categories - outlined) & confusable
            is_known = categories <= self.labelled - self.image.partial
            if bool(shown) == present and not is_unclear and is_known:
                options[group.key] = group
        key = self._least_used(sorted(options), lambda key: f"group {key}")
        if key is None:
            return None
        question = self._least_used(options[key].split(self.split), lambda phrase: phrase.id)
        return None if question is None else (options[key], question)

    def _confusable(self) -> set[str]:
        """What is there, and what some people would call what is there."""
        in_bank = self.present & set(self.bank)
        return self.present | {other for key in in_bank for other in self.bank[key].confused}

    def absent_category(self) -> str | None:
        """Choose a category that is not there: half the time one that would belong in the scene, else any."""
        shown = self.present & set(self.bank)
        confusable = self._confusable()
        absent = [key for key in sorted(self.bank) if key in self.labelled and key not in confusable]
        groups = {self.bank[key].group for key in shown}
        companions = {other for key in shown for other in self.bank[key].companions}
        plausible = [key for key in absent if key in companions or self.bank[key].group in groups]
        take_plausible = bool(plausible) and self.rng.random() < PLAUSIBLE_ABSENT_SHARE
        return self.least_asked(plausible if take_plausible else absent)

    def target(
        self, key: str, by_phrase: bool, is_allowed: Callable[[Phrase], bool] | None = None
    ) -> AskedTarget:
        """A target with all instances of a category, by a phrase where one fits, else by its name."""
        phrase = self.phrase_for(key, is_allowed) if by_phrase else None
        return AskedTarget(self.bank[key], self.image.of(key), phrase)

    def reply(self, mentions: Sequence[tuple[str, bool]]) -> str:
        """Draw a reply whose verb fits: never "that is the cups" or "it is the cup and the fork".

        Args:
            mentions: (what the reply calls a target, whether it is present).
        """
        wrong = self._wrong_replies(mentions)
        for _ in range(MAX_REPLY_DRAWS):
            reply = reply_for(list(mentions), self.rng)
            if not re.search(wrong, reply, re.I):
                return reply
        return reply_for(list(mentions))

    def _wrong_replies(self, mentions: Sequence[tuple[str, bool]]) -> str:
        """A pattern of what is not English in a reply with these mentions."""
        plurals = {entry.plural for entry in self.bank.values() if entry.number in ("count", "one", "set")}
        present = [phrase.removeprefix("other ") for phrase, is_present in mentions if is_present]
        wrong = r"\bis the " if len(present) > 1 or plurals & set(present) else "(?!)"
        absent = [
            re.escape(phrase) for phrase, is_present in mentions if not is_present and phrase in plurals
        ]
        if absent:
            names = "|".join(absent)
            wrong += rf"|there is no.*\b({names}) |({names}) \[ABS\] is"
        # "..., and road, and ..." without a verb or an article is not English; by itself it is.
        wrong += r"|(?:[;.] |, and )(?!(no|nothing|the|I|that|look|you|here|it|there) )"
        return wrong

    def record(
        self,
        kind: str,
        question: str,
        targets: Sequence[tuple[str, AskedTarget]],
        earlier: Sequence[dict[str, str]] = (),
    ) -> Record:
        """Make the record of a question.

        Args:
            kind: Of the question, for its source.
            question: Its text.
            targets: What it asks about, each with what the reply calls it.
            earlier: The turns before it, as `source["history"]` holds them.
        """
        phrases = [phrase for phrase, _ in targets]
        asked = [target for _, target in targets]
        rles = [self.image.rle(target.instances) if target.instances else None for target in asked]
        answer = self.reply([(phrase, rle is not None) for phrase, rle in zip(phrases, rles, strict=True)])
        source: dict[str, Any] = {
            "kind": kind,
            "writer": "phrasebank",
            "split": self.split,
            "image_id": self.image.id,
            "categories": [target.entry.key for target in asked],
            "category_ids": [self.image.categories.get(target.entry.key) for target in asked],
            "annotation_ids": [[instance.id for instance in target.instances] for target in asked],
            "phrase_ids": [target.phrase.id if target.phrase else None for target in asked],
            "area_share": [round(self.image.area_share(rle), 6) if rle else 0.0 for rle in rles],
            "history": list(earlier),
        }
        return Record(
            image=str(self.image.file),
            width=self.image.width,
            height=self.image.height,
            question=question,
            answer=answer,
            targets=[RecordTarget(phrase, rle) for phrase, rle in zip(phrases, rles, strict=True)],
            source=source,
        )

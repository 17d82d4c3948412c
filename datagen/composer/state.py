"""What is known while one photo's questions are made, and how a question becomes a record.

given = Given(photo, bank, groups, "train", seed=0)
thing = given.thing(given.category(given.present), by_phrase=True)
given.record("implicit", "what could I drink from?", [(mention(thing), thing)])
"""

import random
import re
from collections import Counter
from collections.abc import Sequence

from assistant.grammar import reply_for
from assistant.record import Record, RecordTarget
from datagen.composer.phrasebank import Entry, Group, Phrase
from datagen.sources.photos import Instance, Photo, seed_for

# A thing asked about: its entry, its instances (none = absent), the phrase that describes it (None = by its name).
Thing = tuple[Entry, Sequence[Instance], Phrase | None]


class Given:
    """What is known while one photo's questions are made: the photo, the bank, the dice, and what was used already."""

    def __init__(self, photo: Photo, bank: dict[str, Entry], groups: Sequence[Group], split: str, seed: int):
        self.photo, self.bank, self.split = photo, bank, split
        self.groups = [group for group in groups if set(group.categories) <= set(bank)]
        self.rng = random.Random(seed_for(photo, split, seed))
        self.there = set(photo.keys()) | photo.partial
        self.whole = [key for key in photo.keys() if key not in photo.partial]  # every one of it is outlined
        # What can be asked about by itself: nothing else in the photo might go by its name.
        self.present = [
            key for key in self.whole if not (bank[key].vague and self.there & set(bank[key].confused))
        ]
        self.labelled = set(photo.absent or photo.categories) | self.there  # only of that is absence known
        self.used: Counter = Counter()  # phrases and categories asked about so far

    def phrase(self, key: str, allowed=lambda phrase: True) -> Phrase | None:
        """The least used phrase of a category that is not as true of something else in the photo."""
        fitting = [
            phrase
            for phrase in self.bank[key].split(self.split)
            if not set(phrase.also) & self.there and allowed(phrase)
        ]
        return self._fresh(fitting, lambda phrase: phrase.id)

    def category(self, keys: Sequence[str]) -> str | None:
        """The category asked about least so far, ties by chance."""
        return self._fresh(list(keys), str)

    def _fresh(self, options: list, name):
        if not options:
            return None
        least = min(self.used[name(option)] for option in options)
        choice = self.rng.choice([option for option in options if self.used[name(option)] == least])
        self.used[name(choice)] += 1
        return choice

    def group(self, present: bool) -> tuple[Group, Phrase] | None:
        """A question that several categories answer, of which at least one, or none, is in the photo."""
        shown = set(self.whole)
        mixed_up = self._mixed_up()
        fitting = {}
        for group in self.groups:
            there = shown & set(group.categories)
            unclear = set(group.maybe) & shown or (set(group.categories) - shown) & mixed_up
            known = set(group.categories) <= self.labelled - self.photo.partial
            if bool(there) == present and not unclear and known:
                fitting[group.key] = group
        chosen = self._fresh(sorted(fitting), lambda key: f"group {key}")
        if chosen is None:
            return None
        return fitting[chosen], self._fresh(fitting[chosen].split(self.split), lambda phrase: phrase.id)

    def _mixed_up(self) -> set[str]:
        """What is there, and what some would call what is there."""
        return self.there | {
            other for key in self.there & set(self.bank) for other in self.bank[key].confused
        }

    def missing(self) -> str | None:
        """A category that is not there: half the time one that would belong in the scene, else any."""
        shown = self.there & set(self.bank)
        away = [key for key in sorted(self.bank) if key in self.labelled and key not in self._mixed_up()]
        groups = {self.bank[key].group for key in shown}
        near = {other for key in shown for other in self.bank[key].beside}
        hard = [key for key in away if key in near or self.bank[key].group in groups]
        return self.category(hard if hard and self.rng.random() < 0.5 else away)

    def thing(self, key: str, by_phrase: bool, allowed=lambda phrase: True) -> Thing:
        """A thing by phrase where one fits, else by name."""
        return self.bank[key], self.photo.of(key), self.phrase(key, allowed) if by_phrase else None

    def reply(self, targets: list[tuple[str, bool]]) -> str:
        """A varied reply whose verb fits: never "that is the cups" or "it is the cup and the fork"."""
        plurals = {entry.plural for entry in self.bank.values() if entry.number in ("count", "one", "set")}
        there = [words.removeprefix("other ") for words, present in targets if present]
        wrong = r"\bis the " if len(there) > 1 or plurals & set(there) else "(?!)"
        if sets := [re.escape(words) for words, present in targets if not present and words in plurals]:
            wrong += r"|there is no.*\b(%s) |(%s) \[ABS\] is" % ("|".join(sets), "|".join(sets))
        # "..., and road, and ..." without a verb or an article is no English, alone it is.
        wrong += r"|(?:[;.] |, and )(?!(no|nothing|the|I|that|look|you|here|it|there) )"
        for _ in range(50):
            reply = reply_for(targets, self.rng)
            if not re.search(wrong, reply, re.I):
                return reply
        return reply_for(targets)

    def record(
        self, kind: str, question: str, targets: list[tuple[str, Thing]], earlier: Sequence[dict] = ()
    ) -> Record:
        """The record of a question and what it asks about, each with the words the reply uses for it.
        earlier: the turns before it, as `source["history"]` holds them."""
        rles = [self.photo.rle(thing[1]) if thing[1] else None for _, thing in targets]
        answer = self.reply([(words, rle is not None) for (words, _), rle in zip(targets, rles)])
        things = [thing for _, thing in targets]
        source = {
            "kind": kind,
            "writer": "phrasebank",
            "split": self.split,
            "image_id": self.photo.id,
            "categories": [entry.key for entry, _, _ in things],
            "category_ids": [self.photo.categories.get(entry.key) for entry, _, _ in things],
            "annotation_ids": [[instance.id for instance in instances] for _, instances, _ in things],
            "phrase_ids": [phrase.id if phrase else None for _, _, phrase in things],
            "area_share": [round(self.photo.area_share(rle), 6) if rle else 0.0 for rle in rles],
            "history": list(earlier),
        }
        return Record(
            str(self.photo.file),
            self.photo.width,
            self.photo.height,
            question,
            answer,
            [RecordTarget(words, rle) for (words, _), rle in zip(targets, rles)],
            source,
        )


def count(instances: Sequence[Instance]) -> int:
    """How many things the instances are: a crowd is at least two."""
    return len(instances) + sum(instance.crowd for instance in instances)


def mention(thing: Thing) -> str:
    """What a reply calls it."""
    return thing[0].mention(count(thing[1]))

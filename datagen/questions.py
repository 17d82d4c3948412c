"""Questions about photos with masks, composed from the phrase bank.

    photos = read_coco("instances.json", "images", load("coco"), drops := Counter())
    for record in compose(photos[0], load("coco"), split="train", per_image=24, seed=0, drops=drops): ...

Kinds (`source["kind"]`): implicit, named, multi, position, absent, class. A mask is the union of all instances of what
is meant, crowds included; for position it is one instance, and only where no two people would disagree which.
The same photo, split, count and seed give the same records. Whatever is tried and given up is counted in `drops`.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from assistant.grammar import reply_for
from assistant.record import Record, RecordTarget
from datagen import wording
from datagen.phrasebank import Entry, Group, Phrase
from datagen.photos import Instance, Photo, seed_for

KINDS = {"implicit": 7, "named": 4, "multi": 4, "position": 3, "absent": 4, "class": 2}  # how often each is tried
APART = 0.12    # of the picture's side: how far the outermost centre must be from the next
LARGER = 1.5    # times the next area, for "the biggest"
TOO_MANY = 8    # instances: beyond that nobody searches for "the smallest"
GROUPED = 0.3   # share of implicit questions that several categories may answer
TRIES = 12      # per question wanted, before the photo is left with fewer

# A thing asked about: its entry, its instances (none = absent), the phrase that describes it (None = by its name).
Thing = tuple[Entry, Sequence[Instance], Phrase | None]


class _Given:
    """What is known while one photo's questions are made: the photo, the bank, the dice, and what was used already."""

    def __init__(self, photo: Photo, bank: dict[str, Entry], groups: Sequence[Group], split: str, seed: int):
        self.photo, self.bank, self.split = photo, bank, split
        self.groups = [group for group in groups if set(group.categories) <= set(bank)]
        self.rng = random.Random(seed_for(photo, split, seed))
        self.present = photo.keys()
        self.used: Counter = Counter()      # phrases and categories asked about so far

    def phrase(self, key: str, allowed=lambda phrase: True) -> Phrase | None:
        """The least used phrase of a category that is not as true of something else in the photo."""
        fitting = [phrase for phrase in self.bank[key].split(self.split)
                   if not set(phrase.also) & set(self.present) and allowed(phrase)]
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
        shown = set(self.present)
        mixed_up = shown | {other for key in shown for other in self.bank[key].confused}
        fitting = {}
        for group in self.groups:
            there = shown & set(group.categories)
            unclear = set(group.maybe) & shown or (set(group.categories) - shown) & mixed_up
            if bool(there) == present and not unclear:
                fitting[group.key] = group
        chosen = self._fresh(sorted(fitting), lambda key: f"group {key}")
        if chosen is None:
            return None
        return fitting[chosen], self._fresh(fitting[chosen].split(self.split), lambda phrase: phrase.id)

    def missing(self) -> str | None:
        """A category that is not there: half the time one that would belong in the scene, else any."""
        shown = set(self.present)
        mixed_up = {other for key in shown for other in self.bank[key].confused}
        away = [key for key in sorted(self.bank) if key not in shown | mixed_up]
        groups = {self.bank[key].group for key in shown}
        near = {other for key in shown for other in self.bank[key].beside}
        hard = [key for key in away if key in near or self.bank[key].group in groups]
        return self.category(hard if hard and self.rng.random() < 0.5 else away)

    def thing(self, key: str, by_phrase: bool, allowed=lambda phrase: True) -> Thing:
        """A thing by phrase where one fits, else by name."""
        return self.bank[key], self.photo.of(key), self.phrase(key, allowed) if by_phrase else None

    def _reply(self, targets: list[tuple[str, bool]]) -> str:
        """A varied reply whose verb fits: never "that is the cups" or "it is the cup and the fork"."""
        plurals = {entry.plural for entry in self.bank.values() if entry.number in ("count", "one", "set")}
        there = [words for words, present in targets if present]
        wrong = r"\bis the " if len(there) > 1 or plurals & set(there) else "(?!)"
        if sets := [re.escape(words) for words, present in targets if not present and words in plurals]:
            wrong += r"|there is no.*\b(%s) |(%s) \[ABS\] is" % ("|".join(sets), "|".join(sets))
        for _ in range(50):
            reply = reply_for(targets, self.rng)
            if not re.search(wrong, reply, re.I):
                return reply
        return reply_for(targets)

    def record(self, kind: str, question: str, targets: list[tuple[str, Thing]]) -> Record:
        """The record of a question and what it asks about, each with the words the reply uses for it."""
        rles = [self.photo.rle(thing[1]) if thing[1] else None for _, thing in targets]
        answer = self._reply([(words, rle is not None) for (words, _), rle in zip(targets, rles)])
        things = [thing for _, thing in targets]
        source = {
            "kind": kind, "writer": "phrasebank", "split": self.split, "image_id": self.photo.id,
            "categories": [entry.key for entry, _, _ in things],
            "category_ids": [self.photo.categories.get(entry.key) for entry, _, _ in things],
            "annotation_ids": [[instance.id for instance in instances] for _, instances, _ in things],
            "phrase_ids": [phrase.id if phrase else None for _, _, phrase in things],
            "area_share": [round(self.photo.area_share(rle), 6) if rle else 0.0 for rle in rles],
        }
        return Record(str(self.photo.file), self.photo.width, self.photo.height, question, answer,
                      [RecordTarget(words, rle) for (words, _), rle in zip(targets, rles)], source)


def _count(instances: Sequence[Instance]) -> int:
    return len(instances) + sum(instance.crowd for instance in instances)


def _mention(thing: Thing) -> str:
    return thing[0].mention(_count(thing[1]))


def _of_group(given: _Given, present: bool) -> Record | str:
    found = given.group(present)
    if found is None:
        return "no question about a group of things is clear here"
    group, question = found
    keys = [key for key in group.categories if key in given.present] if present else group.categories[:1]
    things = [(given.bank[key], given.photo.of(key), question) for key in keys]
    kind = "absent" if not present else "implicit" if len(keys) == 1 else "multi"
    return given.record(kind, wording.dress(question.text, given.rng), [(_mention(thing), thing) for thing in things])


def _implicit(given: _Given) -> Record | str:
    if given.groups and given.rng.random() < GROUPED:
        return _of_group(given, present=True)
    thing = given.thing(given.category(given.present), by_phrase=True)
    if thing[2] is None:
        return "every phrase fits something else in the photo too"
    question = wording.implicit_question(thing[2], given.split, given.rng)
    return given.record("implicit", question, [(_mention(thing), thing)])


def _named(given: _Given) -> Record | str:
    thing = given.thing(given.category(given.present), by_phrase=False)
    question = wording.named_question(thing[0], _count(thing[1]), given.split, given.rng)
    return given.record("named", question, [(_mention(thing), thing)])


def _absent(given: _Given) -> Record | str:
    if given.groups and given.rng.random() < GROUPED / 2:
        return _of_group(given, present=False)
    key = given.missing()
    if key is None:
        return "nothing is missing from the photo"
    thing = given.thing(key, by_phrase=given.rng.random() < 0.6)
    # As many "is there" as other questions: their wording alone must not tell that a thing is absent.
    if thing[2]:
        question = wording.implicit_question(thing[2], given.split, given.rng, exists=0.4)
    else:
        count = 1 if thing[0].number == "one" else given.rng.choice((1, 1, 2))
        question = wording.named_question(thing[0], count, given.split, given.rng, exists=0.4)
    return given.record("absent", question, [(_mention(thing), thing)])


def _multi(given: _Given) -> Record | str:
    rng = given.rng
    lacking = rng.random() < 0.35
    wanted = min(rng.choice((2, 2, 3)) - lacking, len(given.present))
    if wanted + lacking < 2:
        return "too few categories for a question about several"
    keys = [given.category(given.present)]
    keys += rng.sample([key for key in given.present if key not in keys], wanted - 1)
    if lacking and (gone := given.missing()):
        keys.append(gone)
    rng.shuffle(keys)

    def clear(phrase: Phrase) -> bool:  # readable in a list, and not as true of another thing asked about
        short = not re.search(r",| and ", phrase.text) and len(phrase.text.split()) <= 9
        return short and not set(phrase.also) & set(keys)

    style = rng.random()  # all by phrase, all by name, or mixed
    things = [given.thing(key, style < 0.4 or (style > 0.65 and rng.random() < 0.5), clear) for key in keys]
    asked = [(entry, max(1, _count(instances)), phrase) for entry, instances, phrase in things]
    return given.record("multi", wording.multi_question(asked, given.split, rng),
                        [(_mention(thing), thing) for thing in things])


def places(photo: Photo, instances: Sequence[Instance]) -> dict[str, Instance]:
    """Which of the instances is beyond doubt the "left", "top", "biggest", ... one; {} when none is."""
    found: dict[str, Instance] = {}
    if len(instances) < 2 or len(instances) > TOO_MANY or any(instance.crowd for instance in instances):
        return found
    for axis, side, low, high in ((0, photo.width, "left", "right"), (1, photo.height, "top", "bottom")):
        order = sorted(instances, key=lambda instance: instance.centre[axis])
        gaps = [(b.centre[axis] - a.centre[axis]) / side for a, b in zip(order, order[1:])]
        if gaps[0] >= APART and _clear_of(order[0], order[1], axis):
            found[low] = order[0]
        if gaps[-1] >= APART and _clear_of(order[-2], order[-1], axis):
            found[high] = order[-1]
        if axis == 0 and len(order) == 3 and min(gaps) >= APART:
            found["middle"] = order[1]
    order = sorted(instances, key=lambda instance: instance.area)
    if order[-1].area >= LARGER * order[-2].area:
        found["biggest"] = order[-1]
    if order[1].area >= LARGER * order[0].area:
        found["smallest"] = order[0]
    return found


def _clear_of(first: Instance, second: Instance, axis: int) -> bool:
    """Whether the first begins and ends before the second does: a wide one may reach past a small one's both sides."""
    a, b = first.box, second.box
    return a[axis] < b[axis] and a[axis] + a[axis + 2] < b[axis] + b[axis + 2]


def _position(given: _Given) -> Record | str:
    options = {}
    for key in given.present:
        if given.bank[key].number == "count":
            for place, instance in places(given.photo, given.photo.of(key)).items():
                options[f"{place} {key}"] = (place, key, instance)
    options = {name: option for name, option in options.items() if not given.used[name]}
    if not options:
        return "no single instance stands out by its place or size"
    place, key, instance = options[given.category(sorted(options))]
    entry, everyone, _ = given.thing(key, by_phrase=False)
    phrase = None
    if given.rng.random() < 0.25:
        phrase = given.phrase(key, lambda phrase: wording.position_takes(phrase, given.split))
    question = wording.position_question(entry, place, len(everyone), phrase, given.split, given.rng)
    words = wording.position_phrase(place, entry.name)
    return given.record("position", question, [(words, (entry, [instance], phrase))])


def _class(given: _Given) -> Record | str:
    rng = given.rng
    there = rng.sample(given.present, min(len(given.present), rng.randint(1, 4)))
    gone: list[str] = []
    for _ in range(rng.randint(1, 3)):
        if (key := given.missing()) and key not in gone:
            gone.append(key)
    keys = there + gone
    rng.shuffle(keys)
    things = [given.thing(key, by_phrase=False) for key in keys]
    names = [entry.plural if entry.number == "plural" else entry.name for entry, _, _ in things]
    return given.record("class", wording.class_question(names, given.split, rng),
                        [(thing[0].mention(), thing) for thing in things])


def compose(photo: Photo, bank: dict[str, Entry], split: str, per_image: int, seed: int,
            drops: Counter, groups: Sequence[Group] = ()) -> Iterator[Record]:
    """Up to `per_image` different questions about a photo; `image` is the photo's path as it was read.
    groups: questions that several of the bank's categories answer."""
    makers = {"implicit": _implicit, "named": _named, "multi": _multi, "position": _position, "absent": _absent,
              "class": _class}
    given = _Given(photo, bank, groups, split, seed)
    asked: set[str] = set()
    for _ in range(per_image * TRIES):
        if len(asked) == per_image:
            return
        kind = given.rng.choices(list(KINDS), list(KINDS.values()))[0]
        record = makers[kind](given)
        if isinstance(record, str):
            drops[f"{kind}: {record}"] += 1
        elif any(target.rle and not share for target, share in zip(record.targets, record.source["area_share"])):
            drops[f"{kind}: the mask is empty"] += 1
        elif (words := record.question.lower().strip(" .?")) in asked:
            drops[f"{kind}: the question was asked already"] += 1
        else:
            asked.add(words)
            yield record

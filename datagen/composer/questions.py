"""Questions about photos with masks, composed from the phrase bank.

    photos = read_coco("instances.json", "images", load("coco"), drops := Counter())
    for record in compose(photos[0], load("coco"), split="train", per_image=24, seed=0, drops=drops): ...

Kinds (`source["kind"]`): implicit, named, multi, position, part, class, absent, followup. A mask is the union of all
instances of what is meant, crowds included; for position it is one instance, and only where no two people would
disagree which. Absent are only things that the data set outlines wherever they are.
The same photo, split, count and seed give the same records. Whatever is tried and given up is counted in `drops`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from assistant.record import Record
from datagen.composer import wording
from datagen.composer.followups import followup
from datagen.composer.phrasebank import Entry, Group, Phrase
from datagen.composer.places import beside, places
from datagen.sources.given import Given, count, mention
from datagen.sources.photos import Photo

KINDS = {
    "implicit": 7,
    "named": 4,
    "multi": 4,
    "position": 4,
    "part": 6,
    "class": 2,
    "absent": 5,
    "followup": 5,
}  # weights
GROUPED = 0.3  # share of implicit questions that several categories may answer
PREMISE = 0.35  # share of absent questions that take the thing for granted: "the red umbrella beside the dog"
SEEN = 0.001  # share of the picture's area below which a thing is not asked about: 14 x 14 px of 512 x 384
AGAIN = 2  # times that the same one of several is asked for, in other words
TRIES = 12  # per question wanted, before the photo is left with fewer


def _of_group(given: Given, present: bool) -> Record | str:
    found = given.group(present)
    if found is None:
        return "no question about a group of things is clear here"
    group, question = found
    keys = [key for key in group.categories if key in given.whole] if present else group.categories[:1]
    things = [(given.bank[key], given.photo.of(key), question) for key in keys]
    kind = "absent" if not present else "implicit" if len(keys) == 1 else "multi"
    return given.record(
        kind, wording.dress(question.text, given.rng), [(mention(thing), thing) for thing in things]
    )


def _implicit(given: Given) -> Record | str:
    if given.groups and given.rng.random() < GROUPED:
        return _of_group(given, present=True)
    thing = given.thing(given.category(given.present), by_phrase=True)
    if thing[2] is None:
        return "every phrase fits something else in the photo too"
    question = wording.implicit_question(thing[2], given.split, given.rng)
    return given.record("implicit", question, [(mention(thing), thing)])


def _named(given: Given) -> Record | str:
    thing = given.thing(given.category(given.present), by_phrase=False)
    question = wording.named_question(thing[0], count(thing[1]), given.split, given.rng)
    return given.record("named", question, [(mention(thing), thing)])


def _part(given: Given) -> Record | str:
    parts = [key for key in given.present if given.bank[key].part_of]
    if not parts:
        return "the data has no parts"
    thing = given.thing(given.category(parts), by_phrase=given.rng.random() < 0.8)
    question = wording.part_question(thing[0], thing[2], count(thing[1]), given.split, given.rng)
    return given.record("part", question, [(mention(thing), thing)])


def _absent(given: Given) -> Record | str:
    if given.groups and given.rng.random() < GROUPED / 2:
        return _of_group(given, present=False)
    key = given.missing()
    if key is None:
        return "nothing is missing from the photo"
    if not given.bank[key].part_of and given.rng.random() < PREMISE:
        anchors = [
            other
            for other in given.present
            if count(given.photo.of(other)) == 1
            and not given.bank[other].part_of
            and given.bank[other].number != "mass"
        ]  # nothing stands "behind the sky"
        if anchors:
            return _false_premise(given, key, given.rng.choice(anchors))
    thing = given.thing(key, by_phrase=given.rng.random() < 0.6)
    # As many "is there" as other questions: their wording alone must not tell that a thing is absent.
    if thing[2]:
        question = wording.implicit_question(thing[2], given.split, given.rng, exists=0.4)
    else:
        many = 1 if thing[0].number == "one" else given.rng.choice((1, 1, 2))
        question = wording.named_question(thing[0], many, given.split, given.rng, exists=0.4)
    return given.record("absent", question, [(mention(thing), thing)])


def _false_premise(given: Given, key: str, anchor: str) -> Record:
    thing = given.thing(key, by_phrase=False)
    question = wording.premise_question(thing[0], given.bank[anchor], given.split, given.rng)
    return given.record("absent", question, [(mention(thing), thing)])


def _multi(given: Given) -> Record | str:
    rng = given.rng
    lacking = rng.random() < 0.35
    wanted = min(rng.choice((2, 2, 3)) - lacking, len(given.present))
    if wanted + lacking < 2:
        return "too few categories for a question about several"
    keys = [given.category(given.present)]
    keys += rng.sample([key for key in given.present if key not in keys], wanted - 1)
    if lacking and (gone := given.missing()):
        keys.append(gone)
    if len(keys) < 2:
        return "nothing is missing from the photo"
    rng.shuffle(keys)

    def clear(phrase: Phrase) -> bool:  # readable in a list, and not as true of another thing asked about
        short = not re.search(r",| and ", phrase.text) and len(phrase.text.split()) <= 9
        return short and not set(phrase.also) & set(keys)

    style = rng.random()  # all by phrase, all by name, or mixed
    things = [given.thing(key, style < 0.4 or (style > 0.65 and rng.random() < 0.5), clear) for key in keys]
    asked = [(entry, max(1, count(instances)), phrase) for entry, instances, phrase in things]
    return given.record(
        "multi",
        wording.multi_question(asked, given.split, rng),
        [(mention(thing), thing) for thing in things],
    )


def _position(given: Given) -> Record | str:
    options = {}
    for key in given.present:
        if given.bank[key].number == "count":
            instances = given.photo.of(key)
            for place, instance in places(given.photo, instances).items():
                options[f"{place} {key}"] = (place, key, instance, None)
            for place, instance, anchor in beside(given.photo, instances):
                options[f"{place} {key} {anchor.key}"] = (place, key, instance, given.bank[anchor.key])
    options = {name: option for name, option in options.items() if given.used[name] < AGAIN}
    if not options:
        return "no single instance stands out by its place or size"
    place, key, instance, anchor = options[given.category(sorted(options))]
    entry, everyone, _ = given.thing(key, by_phrase=False)
    phrase = None
    if given.rng.random() < 0.25:
        phrase = given.phrase(key, lambda phrase: wording.position_takes(phrase, given.split))
    question = wording.position_question(entry, place, len(everyone), phrase, given.split, given.rng, anchor)
    words = wording.position_phrase(place, entry.name, anchor)
    return given.record("position", question, [(words, (entry, [instance], phrase))])


def _class(given: Given) -> Record | str:
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
    return given.record(
        "class",
        wording.class_question(names, given.split, rng),
        [(thing[0].mention(), thing) for thing in things],
    )


def compose(
    photo: Photo,
    bank: dict[str, Entry],
    split: str,
    per_image: int,
    seed: int,
    drops: Counter,
    groups: Sequence[Group] = (),
) -> Iterator[Record]:
    """Up to `per_image` different questions about a photo; `image` is the photo's path as it was read.
    groups: questions that several of the bank's categories answer."""
    makers = {
        "implicit": _implicit,
        "named": _named,
        "multi": _multi,
        "position": _position,
        "part": _part,
        "class": _class,
        "absent": _absent,
        "followup": followup,
    }
    given = Given(photo, bank, groups, split, seed)
    weights = {
        kind: weight
        for kind, weight in KINDS.items()
        if kind != "part" or any(bank[key].part_of for key in given.present)
    }
    asked: set[str] = set()
    if not given.present:
        drops["photo: nothing is outlined wherever it is"] += 1
        return
    for _ in range(per_image * TRIES):
        if len(asked) == per_image:
            return
        kind = given.rng.choices(list(weights), list(weights.values()))[0]
        record = makers[kind](given)
        if isinstance(record, str):
            drops[f"{kind}: {record}"] += 1
            continue
        words = " / ".join(
            text.lower().strip(" .?")
            for text in [*(turn["question"] for turn in record.source["history"]), record.question]
        )
        if any(
            target.rle and not share for target, share in zip(record.targets, record.source["area_share"])
        ):
            drops[f"{kind}: the mask is empty"] += 1
        elif any(
            target.rle and share < SEEN for target, share in zip(record.targets, record.source["area_share"])
        ):
            drops[f"{kind}: too small to be seen"] += 1
        elif words in asked:
            drops[f"{kind}: the question was asked already"] += 1
        else:
            asked.add(words)
            yield record

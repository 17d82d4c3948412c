"""Questions that follow others: "and the one on the left?", "what about something to sit on?", "only the bigger one".

    record = followup(given)                 # a Record of kind "followup", or why there is none
    record.source["history"]                 # [{"question": "Where are the cups?", "answer": "I see the cups [SEG]."}]

What was said before is made of the same photo, with the answer it should have had.
"""

from collections.abc import Callable

from assistant.record import Record
from datagen.composer import wording
from datagen.composer.places import beside, comparable, places
from datagen.sources.given import Given, Thing, count, mention

OPPOSITE = {
    "left": "right",
    "right": "left",
    "top": "bottom",
    "bottom": "top",
    "biggest": "smallest",
    "smallest": "biggest",
    "nearest": "furthest",
    "furthest": "nearest",
    "middle": "left",
}
LONGER = 0.25  # share of the questions about something else that come third, not second


def followup(given: Given) -> Record | str:
    """A follow-up of one of the shapes below, those that this photo allows by their weights."""
    shapes: dict[Callable[[Given], Record | None], float] = {
        _which: 3,
        _others: 1.5,
        _opposite: 1.5,
        _else: 4,
        _among: 2,
        _same: 1,
    }
    while shapes:
        (shape,) = given.rng.choices(list(shapes), list(shapes.values()))
        if record := shape(given):
            return record
        del shapes[shape]
    return "nothing could be asked next"


def _turn(record: Record) -> dict:
    return {"question": record.question, "answer": record.answer}


def _about(given: Given, thing: Thing) -> dict:
    """An earlier turn about all there is of a thing."""
    entry, instances, phrase = thing
    question = (
        wording.implicit_question(phrase, given.split, given.rng)
        if phrase
        else wording.named_question(entry, max(1, count(instances)), given.split, given.rng)
    )
    return _turn(given.record("named", question, [(mention(thing), thing)]))


def _places(given: Given) -> dict[str, tuple]:
    """{name: (place, key, instance, anchor's entry or None)} of everything that can be singled out."""
    found = {}
    for key in given.present:
        if given.bank[key].number == "count" and comparable(given.photo.of(key)):
            for place, instance in places(given.photo, given.photo.of(key)).items():
                found[f"then {place} {key}"] = (place, key, instance, None)
            for place, instance, anchor in beside(given.photo, given.photo.of(key)):
                found[f"then {place} {key} {anchor.key}"] = (place, key, instance, given.bank[anchor.key])
    return found


def _which(given: Given) -> Record | None:
    """All of them, then one: "where are the cups?", "only the biggest one"."""
    options = _places(given)
    if not options:
        return None
    place, key, instance, anchor = options[given.category(sorted(options))]
    thing = given.thing(key, by_phrase=given.rng.random() < 0.5)
    question = wording.followup_one("then_which", place, len(thing[1]), given.split, given.rng, anchor)
    words = wording.position_phrase(place, thing[0].name, anchor)
    return given.record("followup", question, [(words, (thing[0], [instance], None))], [_about(given, thing)])


def _singled_out(given: Given, place: str, key: str, instance, anchor) -> dict:
    """An earlier turn about one of several."""
    entry = given.bank[key]
    question = wording.position_question(
        entry, place, len(given.photo.of(key)), None, given.split, given.rng, anchor
    )
    words = wording.position_phrase(place, entry.name, anchor)
    return _turn(given.record("position", question, [(words, (entry, [instance], None))]))


def _others(given: Given) -> Record | None:
    """One of them, then the rest: "the left cup", "and the others?"."""
    options = _places(given)
    if not options:
        return None
    place, key, instance, anchor = options[given.category(sorted(options))]
    entry, rest = given.bank[key], [each for each in given.photo.of(key) if each is not instance]
    question = wording.followup_others(len(rest), given.split, given.rng)
    return given.record(
        "followup",
        question,
        [(f"other {entry.mention(len(rest))}", (entry, rest, None))],
        [_singled_out(given, place, key, instance, anchor)],
    )


def _opposite(given: Given) -> Record | None:
    """One of them, then its opposite: "the left cup", "and the one on the right?"."""
    options = _places(given)
    pairs = {}
    for name, (place, key, instance, anchor) in options.items():
        if (other := options.get(name.replace(place, OPPOSITE.get(place, "-"), 1))) and other[
            2
        ] is not instance:
            pairs[name] = other
    if not pairs:
        return None
    name = given.category(sorted(pairs))
    place, key, instance, anchor = pairs[name]
    entry = given.bank[key]
    question = wording.followup_one(
        "then_next", place, len(given.photo.of(key)), given.split, given.rng, anchor
    )
    words = wording.position_phrase(place, entry.name, anchor)
    return given.record(
        "followup", question, [(words, (entry, [instance], None))], [_singled_out(given, *options[name])]
    )


def _else(given: Given) -> Record | None:
    """Something else, there or not: "where is the dog?", "and something to sit on?"."""
    rng = given.rng
    first = given.category(given.present)
    key = (
        given.missing()
        if rng.random() < 0.35
        else given.category([key for key in given.present if key != first])
    )
    if key is None:
        return None
    if (
        rng.random() < LONGER
        and (before := given.rng.choice([_which, _among])(given))
        and key not in before.source["categories"]
    ):
        earlier = [*before.source["history"], _turn(before)]
    else:
        gone = given.missing() if rng.random() < 0.2 else None
        about = gone if gone and gone != key else first
        earlier = [_about(given, given.thing(about, by_phrase=rng.random() < 0.5))]
    thing = given.thing(key, by_phrase=rng.random() < 0.65)
    question = wording.followup_else(thing[0], thing[2], max(1, count(thing[1])), given.split, rng)
    return given.record("followup", question, [(mention(thing), thing)], earlier)


def _among(given: Given) -> Record | None:
    """Several things, then some of them: "the cup and the fork", "leave out the fork"."""
    rng = given.rng
    if len(given.present) < 2:
        return None
    keys = [given.category(given.present)]
    others = [key for key in given.present if key not in keys]
    keys += rng.sample(others, min(len(given.present) - 1, rng.choice((1, 1, 2))))
    rng.shuffle(keys)
    things = [given.thing(key, by_phrase=False) for key in keys]
    asked = [(entry, count(instances), phrase) for entry, instances, phrase in things]
    first = given.record(
        "multi",
        wording.multi_question(asked, given.split, rng),
        [(mention(thing), thing) for thing in things],
    )
    named = rng.choice(things)
    question, without = wording.followup_among(named[0], count(named[1]), given.split, rng)
    meant = [thing for thing in things if (thing is named) != without]
    return given.record("followup", question, [(mention(thing), thing) for thing in meant], [_turn(first)])


def _same(given: Given) -> Record | None:
    """The same again by a pronoun: "where is the dog?", "cut it out"."""
    thing = given.thing(given.category(given.present), by_phrase=given.rng.random() < 0.5)
    many = count(thing[1]) > 1 or thing[0].number in ("plural", "set")
    question = wording.followup_same(many, thing[0].who, given.split, given.rng)
    return given.record("followup", question, [(mention(thing), thing)], [_about(given, thing)])

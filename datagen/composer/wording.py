"""Questions in words: the templates of `templates.toml` filled with phrases and names.

    implicit_question(phrase, "train", rng)            # "Where is the thing that keeps the rain off?"
    named_question(entry, 3, "train", rng)             # "segment every cup"

Every function draws from the `random.Random` it is given, so a seed fixes the wording. `split` is "train" or "held":
the held templates are kept aside together with the held phrases.
"""

import functools
import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from datagen.composer.phrasebank import Entry, Phrase, article, as_a, as_that, as_the, as_what, pluralise

TEMPLATES = Path(__file__).parent / "templates.toml"
EXISTS = 0.3  # share of the questions about a thing that ask whether it is there at all


@functools.cache
def templates() -> dict[str, dict[str, list[str]]]:
    """kind -> {"train": [...], "held": [...]}; "places" -> {"left": [...], "left_two": [...], ...}."""
    return tomllib.loads(TEMPLATES.read_text(encoding="utf-8"))


def dress(text: str, rng: random.Random) -> str:
    """As people type: mostly a proper sentence, at times without a capital or an end mark."""
    style = rng.random()
    if style < 0.67:
        text = text[0].upper() + text[1:]
    return text.rstrip(".?") if 0.55 <= style < 0.87 else text


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


@functools.cache
def _slots_of(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\{(\w+)\}", template))


def _fitting(pool: Sequence[str], slots: dict[str, str]) -> list[str]:
    return [template for template in pool if _slots_of(template) <= slots.keys()]


def _unhurried(pool: Sequence[str], *phrases: Phrase) -> list[str]:
    """Without the templates that go on after a long phrase: "would you find {a} in this image?" reads badly then."""
    if all(len(phrase.text.split()) <= 6 for phrase in phrases):
        return list(pool)
    return [template for template in pool if re.search(r"\}($|[?.,!])", template)]


def _say(pool: Sequence[str], slots: dict[str, str], rng: random.Random) -> str:
    return dress(rng.choice(_fitting(pool, slots)).format(**slots), rng)


def phrase_slots(phrase: Phrase) -> dict[str, str]:
    """What a template may use of a phrase: {a}, {the} and, for clauses, {whatever}, {that}, {what}."""
    slots = {"a": as_a(phrase), "the": as_the(phrase), "be": "is"}
    if phrase.shape != "noun":
        slots["whatever"] = as_what(phrase)
    if phrase.shape != "noun" and not phrase.who:  # "what is it who ..." is no English
        slots["that"] = as_that(phrase)
    if phrase.shape == "that":
        slots["what"] = as_what(phrase)
    return slots


def name_slots(entry: Entry, count: int, name: str | None = None) -> dict[str, str]:
    """What a template may use of a name, for `count` things; `name` is a synonym to use instead of the entry's own."""
    name = name or entry.name
    only_plural = entry.number in ("plural", "set")  # its synonyms are plurals too
    plural = entry.plural if name == entry.name else name if only_plural else pluralise(name)
    if entry.number == "mass":
        return {
            "a": f"some {name}",
            "the": f"the {name}",
            "is": "is",
            "be": "is",
            "every": f"all the {name}",
            "plural": name,
        }
    many = count > 1 or only_plural
    if (
        entry.number == "one" and not many
    ):  # nobody asks for "every windshield" of a car, or for "windshields"
        return {"a": article(name), "the": f"the {name}", "is": "is", "be": "is"}
    pair = entry.number == "plural" and count == 1
    return {
        "a": f"a pair of {plural}" if pair else plural if many else article(name),
        "the": f"the {plural if many else name}",
        "is": "are" if many else "is",
        "be": "are" if many and not pair else "is",
        "every": f"all the {plural}" if only_plural else f"every {name}",
        "plural": plural,
    }


def any_name(entry: Entry, rng: random.Random) -> str:
    """The entry's own name, or one of its synonyms one time in four."""
    return rng.choice(entry.synonyms) if entry.synonyms and rng.random() < 0.25 else entry.name


def implicit_question(phrase: Phrase, split: str, rng: random.Random, exists: float = EXISTS) -> str:
    """One question about the thing that a phrase describes."""
    slots = phrase_slots(phrase)
    if rng.random() < exists:
        return _say(_unhurried(templates()["exists"][split], phrase), slots, rng)
    pool = _unhurried(_fitting(templates()["implicit"][split], slots), phrase)
    if (
        phrase.shape != "noun" and rng.random() < 0.5
    ):  # a clause sounds best unwrapped, but few templates are for that
        pool = [template for template in pool if "{what" in template or "{that}" in template]
    return _say(pool, slots, rng)


def named_question(entry: Entry, count: int, split: str, rng: random.Random, exists: float = EXISTS) -> str:
    """One question about `count` things by their name."""
    if rng.random() < exists:  # "is there a cup?" is asked of one cup and of ten
        return _say(templates()["exists"][split], name_slots(entry, 1, any_name(entry, rng)), rng)
    return _say(templates()["named"][split], name_slots(entry, count, any_name(entry, rng)), rng)


def multi_question(things: Sequence[tuple[Entry, int, Phrase | None]], split: str, rng: random.Random) -> str:
    """One question about several things; each is (entry, how many, phrase or None to use its name)."""
    parts = [
        phrase_slots(phrase) if phrase else name_slots(entry, count, any_name(entry, rng))
        for entry, count, phrase in things
    ]
    slots = {"as": listed([part["a"] for part in parts]), "thes": listed([part["the"] for part in parts])}
    for slot in ("what", "whatever"):
        if all(slot in part for part in parts):
            slots[slot + "s"] = ", ".join(part[slot] for part in parts[:-1]) + ", and " + parts[-1][slot]
    return _say(
        _unhurried(templates()["multi"][split], *(phrase for *_, phrase in things if phrase)), slots, rng
    )


def part_question(entry: Entry, phrase: Phrase | None, count: int, split: str, rng: random.Random) -> str:
    """One question about a part of something, by a phrase or by its name: "which part of the car keeps the wind out?"."""
    slots = phrase_slots(phrase) if phrase else name_slots(entry, count, any_name(entry, rng))
    if phrase and phrase.shape != "noun":
        del slots["a"]  # "which part is something that ..." is clumsy
        if phrase.shape == "that":
            slots["clause"] = phrase.text.removeprefix("that ")
    pool = _unhurried(templates()["part" if phrase else "part_named"][split], *([phrase] if phrase else []))
    return _say(pool, slots | {"whole": entry.part_of}, rng)


def premise_question(entry: Entry, anchor: Entry, split: str, rng: random.Random) -> str:
    """One question that takes an absent thing for granted: "the red umbrella beside the dog"."""
    looks = templates()["looks"]
    made = entry.group not in looks["grown"] and not entry.who
    name = any_name(entry, rng)
    plain = entry.number in ("plural", "mass", "set") or rng.random() < 0.4
    described = name if plain else f"{rng.choice(looks['made' if made else 'any'])} {name}"
    one = entry.plural if entry.number == "plural" and name == entry.name else described
    return _say(
        templates()["premise"][split], {"the": f"the {one}", "anchor": name_slots(anchor, 1)["the"]}, rng
    )


def _way(place: str, count: int, rng: random.Random) -> str:
    """A way of saying a place, with {name} and perhaps {anchor} in it."""
    places = templates()["places"]
    return rng.choice(places[place] + (places.get(f"{place}_two", []) * 2 if count == 2 else []))


def _anchor(anchor: Entry | None) -> str:
    return name_slots(anchor, 1)["the"] if anchor else ""


def position_phrase(place: str, name: str, anchor: Entry | None = None) -> str:
    """How a reply says it: "cup on the left", "biggest cup", "cup nearest to the dog"."""
    return templates()["places"][place][0].format(name=name, anchor=_anchor(anchor))


def position_question(
    entry: Entry,
    place: str,
    count: int,
    phrase: Phrase | None,
    split: str,
    rng: random.Random,
    anchor: Entry | None = None,
) -> str:
    """One question about the `place` one ("left", "biggest", ...) of `count`, by name or by a phrase."""
    way, near = _way(place, count, rng), _anchor(anchor)
    one = "the " + way.format(name="one", anchor=near)
    if phrase is None:
        name = any_name(entry, rng)
        slots = name_slots(entry, count, name)
        slots |= {"pos": "the " + way.format(name=name, anchor=near), "one": one, "name": name}
        del slots["a"]  # "several things here are ..." is for descriptions
    else:
        slots = {"one": one} | ({"a": phrase.text} if phrase.shape == "noun" else {"that": as_that(phrase)})
    return _say(templates()["position"][split], slots, rng)


def followup_one(
    kind: str, place: str, count: int, split: str, rng: random.Random, anchor: Entry | None = None
) -> str:
    """A follow-up that singles one out: "only the one on the left" (then_which), "and the right one?" (then_next)."""
    one = "the " + _way(place, count, rng).format(name="one", anchor=_anchor(anchor))
    return _say(templates()[kind][split], {"one": one}, rng)


def followup_others(count: int, split: str, rng: random.Random) -> str:
    """A follow-up about the one or those that were not meant: "and the others?"."""
    several = ("the others", "the other ones", "the rest of them", "the remaining ones")
    other = "the other one" if count == 1 else rng.choice(several)
    return _say(templates()["then_others"][split], {"other": other, "is": "is" if count == 1 else "are"}, rng)


def followup_else(entry: Entry, phrase: Phrase | None, count: int, split: str, rng: random.Random) -> str:
    """A follow-up about something else, by a phrase or by its name: "what about something to sit on?"."""
    slots = phrase_slots(phrase) if phrase else name_slots(entry, count, any_name(entry, rng))
    if phrase:
        slots["is"] = "is"
    return _say(_unhurried(templates()["then_else"][split], *([phrase] if phrase else [])), slots, rng)


def followup_among(entry: Entry, count: int, split: str, rng: random.Random) -> tuple[str, bool]:
    """A follow-up that keeps one of several things or leaves it out; returns the question and whether it is left out."""
    without = rng.random() < 0.5
    slots = name_slots(entry, count)
    return _say(templates()["then_without" if without else "then_only"][split], slots, rng), without


def followup_same(many: bool, who: bool, split: str, rng: random.Random) -> str:
    """A follow-up about the same again, by a pronoun: "cut it out"."""
    slots = {"it": "them" if many or who else "it"}
    if not who:
        slots |= {"is": "are" if many else "is", "that": "those" if many else "that"}
    return _say(templates()["then_same"][split], slots, rng)


def position_takes(phrase: Phrase, split: str) -> bool:
    """Whether some template of the split can ask for one of several things by this phrase."""
    slots = {"one": ""} | ({"a": ""} if phrase.shape == "noun" else {"that": ""})
    return not phrase.who and bool(_fitting(templates()["position"][split], slots))


def class_question(names: Sequence[str], split: str, rng: random.Random) -> str:
    """One question that lists class names."""
    return _say(templates()["class"][split], {"list": ", ".join(names)}, rng)

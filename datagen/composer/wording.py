"""Questions in words: the templates of `templates.toml` filled with phrases and names.

    implicit_question(phrase, "train", rng)            # "Where is the thing that keeps the rain off?"
    named_question(entry, 3, "train", rng)             # "segment every cup"

Every function draws from the `random.Random` it is given, so that a seed fixes the wording; the order of the
draws is part of `datagen.versions.COMPOSER_VERSION`. `split` is "train" or "held": the held templates are
kept out of training together with the held phrases. The wordings of follow-ups are in `followup_wording`.
"""

import functools
import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datagen.composer.english import article, enumeration, pluralise
from datagen.composer.phrasebank import Entry, Phrase

TEMPLATES_FILE = Path(__file__).parent / "templates.toml"
EXISTS_SHARE = 0.3  # of the questions about a target, those that ask whether it is there at all
SYNONYM_SHARE = 0.25  # of the names, those that are a synonym instead of the entry's own name
BARE_CLAUSE_SHARE = 0.5  # of the questions by a clause, those in a template made for clauses: they sound best
PLAIN_PREMISE_SHARE = 0.4  # of the absent targets taken for granted, those without a made-up look
MAX_WORDS_BEFORE_MORE = 6  # of a phrase after which a template goes on
CAPITAL_SHARE = 0.67  # of the questions, those that begin with a capital
# Range of the same draw in which the end mark is left out: of questions with a capital and without.
NO_END_MARK = (0.55, 0.87)

Slots = dict[str, str]


@functools.cache
def templates() -> dict[str, dict[str, Any]]:
    """The tables of templates.toml: kind -> {"train": [...], "held": [...]}, and "places" and "looks"."""
    return tomllib.loads(TEMPLATES_FILE.read_text(encoding="utf-8"))


def as_typed(text: str, rng: random.Random) -> str:
    """A question as people type it: mostly a proper sentence, at times without a capital or an end mark."""
    draw = rng.random()
    if draw < CAPITAL_SHARE:
        text = text[0].upper() + text[1:]
    return text.rstrip(".?") if NO_END_MARK[0] <= draw < NO_END_MARK[1] else text


@functools.cache
def _slots_of(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\{(\w+)\}", template))


def fitting(pool: Sequence[str], slots: Slots) -> list[str]:
    """The templates that need no other slots than these."""
    return [template for template in pool if _slots_of(template) <= slots.keys()]


def without_long_tails(pool: Sequence[str], *phrases: Phrase) -> list[str]:
    """The templates that read well with some phrases.

    With a long phrase, those that go on after it do not: "would you find {a} in this image?".
    """
    if all(len(phrase.text.split()) <= MAX_WORDS_BEFORE_MORE for phrase in phrases):
        return list(pool)
    return [template for template in pool if re.search(r"\}($|[?.,!])", template)]


def fill(pool: Sequence[str], slots: Slots, rng: random.Random) -> str:
    """A question from one of the templates that fit the slots."""
    return as_typed(rng.choice(fitting(pool, slots)).format(**slots), rng)


def phrase_slots(phrase: Phrase) -> Slots:
    """What a template may use of a phrase: {a}, {the} and, of clauses, {whatever}, {that}, {what}."""
    slots = {"a": phrase.as_a(), "the": phrase.as_the(), "be": "is"}
    if phrase.shape != "noun":
        slots["whatever"] = phrase.as_what()
    if phrase.shape != "noun" and not phrase.is_person:  # "what is it who ..." is no English
        slots["that"] = phrase.as_that()
    if phrase.shape == "that":
        slots["what"] = phrase.as_what()
    return slots


def name_slots(entry: Entry, count: int, name: str | None = None) -> Slots:
    """What a template may use of a name, for `count` objects.

    Args:
        entry: The category.
        count: How many there are.
        name: One of the entry's synonyms, to be used instead of its own name.
    """
    name = name or entry.name
    if entry.number == "mass":
        slots = {"a": f"some {name}", "the": f"the {name}", "is": "is", "be": "is"}
        return slots | {"every": f"all the {name}", "plural": name}
    has_plural_only = entry.number in ("plural", "set")  # and so have its synonyms
    is_plural = count > 1 or has_plural_only
    if entry.number == "one" and not is_plural:
        # Nobody asks for "every windshield" of a car, or for "windshields".
        return {"a": article(name), "the": f"the {name}", "is": "is", "be": "is"}
    if name == entry.name:
        plural = entry.plural
    else:
        plural = name if has_plural_only else pluralise(name)
    is_pair = entry.number == "plural" and count == 1
    if is_pair:
        indefinite = f"a pair of {plural}"
    else:
        indefinite = plural if is_plural else article(name)
    return {
        "a": indefinite,
        "the": f"the {plural if is_plural else name}",
        "is": "are" if is_plural else "is",
        "be": "are" if is_plural and not is_pair else "is",
        "every": f"all the {plural}" if has_plural_only else f"every {name}",
        "plural": plural,
    }


def any_name(entry: Entry, rng: random.Random) -> str:
    """The entry's own name or, at times, one of its synonyms."""
    use_synonym = bool(entry.synonyms) and rng.random() < SYNONYM_SHARE
    return rng.choice(entry.synonyms) if use_synonym else entry.name


def target_slots(entry: Entry, phrase: Phrase | None, count: int, rng: random.Random) -> Slots:
    """What a template may use of a target, by a phrase or, where it is None, by its name."""
    return phrase_slots(phrase) if phrase else name_slots(entry, count, any_name(entry, rng))


def implicit_question(
    phrase: Phrase, split: str, rng: random.Random, exists_share: float = EXISTS_SHARE
) -> str:
    """Ask about what a phrase describes. exists_share: how often to ask whether it is there at all."""
    slots = phrase_slots(phrase)
    if rng.random() < exists_share:
        return fill(without_long_tails(templates()["exists"][split], phrase), slots, rng)
    pool = without_long_tails(fitting(templates()["implicit"][split], slots), phrase)
    if phrase.shape != "noun" and rng.random() < BARE_CLAUSE_SHARE:
        pool = [template for template in pool if "{what" in template or "{that}" in template]
    return fill(pool, slots, rng)


def named_question(
    entry: Entry, count: int, split: str, rng: random.Random, exists_share: float = EXISTS_SHARE
) -> str:
    """Ask about objects by their name. exists_share: how often to ask whether they are there at all."""
    if rng.random() < exists_share:  # "is there a cup?" is asked of one cup and of ten
        return fill(templates()["exists"][split], name_slots(entry, 1, any_name(entry, rng)), rng)
    return fill(templates()["named"][split], name_slots(entry, count, any_name(entry, rng)), rng)


def multi_question(
    targets: Sequence[tuple[Entry, int, Phrase | None]], split: str, rng: random.Random
) -> str:
    """Ask about several targets at once; each is (entry, how many, phrase or None to use its name)."""
    parts = [target_slots(entry, phrase, count, rng) for entry, count, phrase in targets]
    slots = {
        "as": enumeration([part["a"] for part in parts]),
        "thes": enumeration([part["the"] for part in parts]),
    }
    for slot in ("what", "whatever"):
        if all(slot in part for part in parts):
            slots[slot + "s"] = ", ".join(part[slot] for part in parts[:-1]) + ", and " + parts[-1][slot]
    phrases = [phrase for _, _, phrase in targets if phrase]
    return fill(without_long_tails(templates()["multi"][split], *phrases), slots, rng)


def part_question(entry: Entry, phrase: Phrase | None, count: int, split: str, rng: random.Random) -> str:
    """Ask about a part, by a phrase or by its name: "which part of the car keeps the wind out?"."""
    slots = target_slots(entry, phrase, count, rng) | {"whole": entry.part_of}
    if phrase is None:
        return fill(templates()["part_named"][split], slots, rng)
    if phrase.shape != "noun":
        del slots["a"]  # "which part is something that ..." is clumsy
        if phrase.shape == "that":
            slots["clause"] = phrase.clause
    return fill(without_long_tails(templates()["part"][split], phrase), slots, rng)


def premise_question(entry: Entry, anchor: Entry, split: str, rng: random.Random) -> str:
    """Take an absent target for granted: "the red umbrella beside the dog". anchor: what is there."""
    name = any_name(entry, rng)
    described = _with_look(entry, name, rng)
    if entry.number == "plural" and name == entry.name:
        described = entry.plural
    slots = {"the": f"the {described}", "anchor": name_slots(anchor, 1)["the"]}
    return fill(templates()["premise"][split], slots, rng)


def _with_look(entry: Entry, name: str, rng: random.Random) -> str:
    """A name with a made-up look, "red umbrella"; at times, and of what is not counted, without."""
    looks = templates()["looks"]
    if entry.number in ("plural", "mass", "set") or rng.random() < PLAIN_PREMISE_SHARE:
        return name
    has_colour = entry.group not in looks["grown"] and not entry.is_person
    return f"{rng.choice(looks['made' if has_colour else 'any'])} {name}"


def position_wording(position: str, count: int, rng: random.Random) -> str:
    """A way of saying a position, with {name} and perhaps {anchor} in it; of two, mostly one for pairs."""
    places = templates()["places"]
    for_pairs = places.get(f"{position}_two", []) * 2 if count == 2 else []
    return rng.choice(places[position] + for_pairs)


def anchor_name(anchor: Entry | None) -> str:
    """What the nearest and furthest are measured from: "the dog"; "" for other positions."""
    return name_slots(anchor, 1)["the"] if anchor else ""


def position_phrase(position: str, name: str, anchor: Entry | None = None) -> str:
    """What a reply calls it: "cup on the left", "biggest cup", "cup nearest to the dog"."""
    return templates()["places"][position][0].format(name=name, anchor=anchor_name(anchor))


def position_question(
    entry: Entry,
    position: str,
    count: int,
    phrase: Phrase | None,
    split: str,
    rng: random.Random,
    anchor: Entry | None = None,
) -> str:
    """Ask for one of several objects by its position.

    Args:
        entry: Their category.
        position: A key of the table [places]: "left", "biggest", ...
        count: How many there are.
        phrase: Describes them; None: they are called by their name.
        split: "train" or "held".
        rng: Decides the wording.
        anchor: What the nearest and furthest are measured from.
    """
    wording = position_wording(position, count, rng)
    anchor_text = anchor_name(anchor)
    pronoun = "the " + wording.format(name="one", anchor=anchor_text)
    if phrase is None:
        name = any_name(entry, rng)
        slots = name_slots(entry, count, name)
        slots |= {"pos": "the " + wording.format(name=name, anchor=anchor_text), "one": pronoun, "name": name}
        del slots["a"]  # "several things here are ..." is for descriptions
    elif phrase.shape == "noun":
        slots = {"one": pronoun, "a": phrase.text}
    else:
        slots = {"one": pronoun, "that": phrase.as_that()}
    return fill(templates()["position"][split], slots, rng)


def suits_position_question(phrase: Phrase, split: str) -> bool:
    """Whether some template of the split can ask for one of several objects by this phrase."""
    slots = {"one": "", "a" if phrase.shape == "noun" else "that": ""}
    return not phrase.is_person and bool(fitting(templates()["position"][split], slots))


def class_question(names: Sequence[str], split: str, rng: random.Random) -> str:
    """Ask with a list of class names."""
    return fill(templates()["class"][split], {"list": ", ".join(names)}, rng)

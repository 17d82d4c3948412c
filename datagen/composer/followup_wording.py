"""The words of follow-ups, which are only clear after the question before them: "and the one on the right?".

    followup_about_position("then_which", "left", 3, "train", rng)      # "only the one on the left"

Split and random numbers as in `datagen.composer.wording`.
"""

import random

from datagen.composer.phrasebank import Entry, Phrase
from datagen.composer.wording import (
    Slots,
    anchor_name,
    fill,
    name_slots,
    position_wording,
    target_slots,
    templates,
    without_long_tails,
)

THE_OTHERS = ("the others", "the other ones", "the rest of them", "the remaining ones")


def followup_about_position(
    kind: str, position: str, count: int, split: str, rng: random.Random, anchor: Entry | None = None
) -> str:
    """Single one out of several that were asked about.

    Args:
        kind: "then_which" after all of them ("only the one on the left"), "then_next" after another one ("and
            the right one?").
        position: A key of the table [places] of templates.toml.
        count: How many there are.
        split: "train" or "held".
        rng: Decides the wording.
        anchor: What the nearest and furthest are measured from.
    """
    wording = position_wording(position, count, rng)
    pronoun = "the " + wording.format(name="one", anchor=anchor_name(anchor))
    return fill(templates()[kind][split], {"one": pronoun}, rng)


def followup_about_others(count: int, split: str, rng: random.Random) -> str:
    """Ask about the `count` objects that were not singled out: "and the others?"."""
    other = "the other one" if count == 1 else rng.choice(THE_OTHERS)
    slots = {"other": other, "is": "is" if count == 1 else "are"}
    return fill(templates()["then_others"][split], slots, rng)


def followup_about_another(
    entry: Entry, phrase: Phrase | None, count: int, split: str, rng: random.Random
) -> str:
    """Ask about another category, by a phrase or by its name: "what about something to sit on?"."""
    slots = target_slots(entry, phrase, count, rng)
    if phrase is None:
        return fill(templates()["then_else"][split], slots, rng)
    slots["is"] = "is"
    return fill(without_long_tails(templates()["then_else"][split], phrase), slots, rng)


def followup_about_some(entry: Entry, count: int, split: str, rng: random.Random) -> tuple[str, bool]:
    """Keep one of several categories that were asked about, or leave it out.

    Returns:
        The question, and whether the category is left out.
    """
    leaves_out = rng.random() < 0.5
    kind = "then_without" if leaves_out else "then_only"
    return fill(templates()[kind][split], name_slots(entry, count), rng), leaves_out


def followup_about_same(is_plural: bool, is_person: bool, split: str, rng: random.Random) -> str:
    """Ask about the same again, by a pronoun: "cut it out"."""
    slots: Slots = {"it": "them" if is_plural or is_person else "it"}
    if not is_person:
        slots |= {"is": "are" if is_plural else "is", "that": "those" if is_plural else "that"}
    return fill(templates()["then_same"][split], slots, rng)

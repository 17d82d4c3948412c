"""Finds faults in a phrase bank: phrases that name what they should describe, or that no template can use.

[fault for entry in bank.values() for fault in entry_faults(entry, bank)]       # [] for a good bank
"""

import re
from collections.abc import Mapping

from datagen.composer.phrasebank import Entry, Phrase

BEGINNINGS = r"(that|which|an?|something|some|someone|somebody|somewhere) ?"
# A clause that begins so has another subject than the object described, and so has to begin with "which".
OTHER_SUBJECTS = r"that (an?|the|you|your|people|someone|somebody|everyone|he|she|they|it) "


def entry_faults(entry: Entry, bank: Mapping[str, Entry]) -> list[str]:
    """Return what is wrong with an entry of a bank, one line a fault; an empty list for a good one."""
    faults = []
    for phrase in entry.phrases:
        faults += _phrase_faults(phrase, entry)
        faults += [f"{phrase.id}: no entry {other!r}" for other in phrase.also_true_of if other not in bank]
    for other in (*entry.companions, *entry.confused):
        if other not in bank or other == entry.key:
            faults.append(f"{entry.key}: no other entry {other!r}")
    return faults


def _phrase_faults(phrase: Phrase, entry: Entry) -> list[str]:
    """What is wrong with the words of a phrase."""
    faults = []
    if word := entry.gives_away(phrase.text):
        faults.append(f"{phrase.id}: '{phrase.text}' names it ({word})")
    if not re.match(BEGINNINGS, phrase.text):
        faults.append(
            f"{phrase.id}: '{phrase.text}' begins with neither that, which nor an indefinite article"
        )
    if match := re.match(OTHER_SUBJECTS, phrase.text):
        faults.append(
            f"{phrase.id}: 'that {match[1]} ...' is a clause with a subject of its own: begin with which"
        )
    if phrase.text != phrase.text.strip(" .?!,") or "  " in phrase.text:
        faults.append(f"{phrase.id}: '{phrase.text}' has stray punctuation or spaces")
    return faults

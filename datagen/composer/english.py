"""Regular English word forms, as far as questions need them.

pluralise("cherry")     # "cherries"
article("oven")         # "an oven"
"""

import re
from collections.abc import Sequence


def pluralise(word: str) -> str:
    """A regular plural: "bus" -> "buses", "cherry" -> "cherries"; irregular ones stand in the phrase bank."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def article(noun: str) -> str:
    """A noun with its indefinite article: "a cup", "an oven", "a uniform"."""
    vowel = re.match(r"[aeiou]", noun.lower()) and not re.match(r"(uni|use|eu|one|ukulele)", noun.lower())
    return ("an " if vowel else "a ") + noun


def enumeration(parts: Sequence[str]) -> str:
    """Join parts into "a", "a and b" or "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]

"""Questions from the phrase bank alone, without images.

for question, category in phrase_examples("train", random.Random(0)): ...      # endless
"""

import random
from collections.abc import Iterator

from datagen.composer.phrasebank import load_bank
from datagen.composer.wording import implicit_question


def phrase_examples(split: str, rng: random.Random, bank: str = "coco") -> Iterator[tuple[str, str]]:
    """Make questions without end, with all categories and phrases equally often.

    Args:
        split: "train" or "held".
        rng: Decides categories, phrases and wordings.
        bank: As `load_bank` takes it.

    Yields:
        (question, key of the category that it is about).

    Raises:
        BadInput: There is no such bank or split.
    """
    entries = load_bank(bank)
    while True:
        for key in rng.sample(sorted(entries), len(entries)):
            yield implicit_question(rng.choice(entries[key].split(split)), split, rng), key

"""Questions that list classes ("Which of these are there: cup, dog?"), with a new list at each draw.

    known = known_classes(records)                               # {image: {class: its mask, or None}}
    record = redraw_list(record, known[image], rng)

These are LaSagnA's strategies (arXiv 2404.08506): a list holds the classes of the image and random absent
ones, all of them are answered, in the order of the question, and now and then no class of the list is in the
image.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from assistant.grammar import reply_for
from assistant.record import Record
from assistant.sam.mask_ops import Rle
from finetune.image_record import ImageRecord

MAX_CLASSES_PER_LIST = 80  # as LaSagnA
ABSENT_LIST_SHARE = 0.1  # of the lists hold no class that is in the image


def text_around_list(record: Record) -> tuple[str, str] | None:
    """The text before and after the list of classes in a question.

    The list is recognised by the phrases of the record's targets. None for a question without one.
    """
    names = ", ".join(target.phrase for target in record.targets)
    before, listed, after = record.question.partition(names)
    return (before, after) if listed and len(record.targets) > 1 else None


def known_classes(records: Iterable[ImageRecord]) -> dict[Path, dict[str, Rle | None]]:
    """The classes that class lists name, by image.

    Returns:
        For each image {class: its mask, or None where it is absent}.
    """
    known: dict[Path, dict[str, Rle | None]] = {}
    for asked in records:
        if text_around_list(asked.record):
            classes = {target.phrase: target.rle for target in asked.record.targets}
            known.setdefault(asked.image, {}).update(classes)
    return known


def redraw_list(record: Record, known: dict[str, Rle | None], rng: np.random.Generator) -> Record:
    """The same question with another list of classes.

    Args:
        record: A question with a list of classes.
        known: The classes that are known of the image, see `known_classes`.
        rng: Draws the classes.

    Returns:
        A record whose question lists the drawn classes and whose answer and targets follow their order. The
        record itself where fewer than two classes could be drawn.
    """
    around = text_around_list(record)
    assert around is not None
    names = _draw_classes(known, rng)
    if len(names) < 2:
        return record
    rng.shuffle(names)
    before, after = around
    targets_by_phrase = {target.phrase: target for target in record.targets}
    example = record.targets[0]
    targets = [
        targets_by_phrase.get(name) or replace(example, phrase=name, rle=known[name]) for name in names
    ]
    answer = reply_for([(target.phrase, target.rle is not None) for target in targets])
    question = f"{before}{', '.join(names)}{after}"
    return replace(record, question=question, answer=answer, targets=targets)


def _draw_classes(known: dict[str, Rle | None], rng: np.random.Generator) -> list[str]:
    """Classes of a list: the present ones, or none of them, and random absent ones."""
    present = [name for name, rle in known.items() if rle]
    absent = [name for name, rle in known.items() if not rle]
    if absent and (not present or rng.random() < ABSENT_LIST_SHARE):
        present = []
    present = [str(name) for name in rng.permutation(present)[:MAX_CLASSES_PER_LIST]]
    most = min(len(absent), MAX_CLASSES_PER_LIST - len(present))
    least = min(most, 0 if len(present) > 1 else 2 - len(present))
    count = int(rng.integers(least, most + 1))
    return present + [str(name) for name in rng.permutation(absent)[:count]]

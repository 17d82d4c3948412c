"""Which records each step of training learns from: files mixed by rate, questions about a picture joined into one
conversation, class lists drawn anew each time. All of it is fixed by the seed and the number of the lesson.

    mixture = Mixture([("train.jsonl", 1.0), ("streets.jsonl", 0.3)], lessons=4000, turns=3, seed=0)
    mixture.lesson(17)          # [Asked(record, image), ...]: the turns of a conversation
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import reply_for
from assistant.record import Record, image_path, read_records

LISTED = 80  # classes of a list at most, as LaSagnA
EMPTY = 0.1  # of the lists hold nothing that is there
WINDOW = 8  # batches among which lessons are sorted by their length


@dataclass
class Asked:
    record: Record
    image: Path


def parse_source(text: str) -> tuple[Path, float]:
    """`FILE` or `FILE=RATE`: how often, relative to the others (1). BadInput: a rate that is no positive number."""
    name, _, rate = text.rpartition("=")
    if not name or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(rate)
    except ValueError:
        return Path(text), 1.0
    if not 0 < value < float("inf"):
        raise BadInput(f"--data {text}: the rate must be above 0; leave the file out instead")
    return Path(name), value


class Mixture:
    """sources: (records file, rate). lessons: how many there will be. turns, pictures: of a conversation at most."""

    def __init__(
        self,
        sources: list[tuple[Path, float]],
        lessons: int,
        turns: int = 3,
        pictures: int = 1,
        seed: int = 0,
        grouped: bool = True,
    ):
        self.files = [
            [Asked(r, image_path(r, file).resolve()) for r in read_records(file)] for file, _ in sources
        ]
        if empty := [str(file) for (file, _), asked in zip(sources, self.files) if not asked]:
            raise BadInput(f"no records in {', '.join(empty)}; leave it out")
        self.turns, self.pictures, self.seed, self.grouped = turns, pictures, seed, grouped
        self.of: list[dict[Path, list[int]]] = []
        for asked in self.files:
            self.of.append({})
            for i, one in enumerate(asked):
                self.of[-1].setdefault(one.image, []).append(i)
        self.lists = [_known_classes(asked) for asked in self.files]
        rates = np.array([rate for _, rate in sources])
        self.file = np.random.default_rng((seed, 1)).choice(len(rates), lessons, p=rates / rates.sum())
        self.turn = np.zeros(lessons, int)  # how often the lesson's file was drawn before it
        for f in range(len(rates)):
            mine = self.file == f
            self.turn[mine] = np.arange(mine.sum())
        self.order = lru_cache(maxsize=2 * len(rates))(self._order)
        self.sorted = lru_cache(maxsize=2)(self._sorted)

    @property
    def images(self) -> list[Path]:
        return sorted({image for of in self.of for image in of})

    def _order(self, f: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 2, f, epoch)).permutation(len(self.files[f]))

    def lesson(self, k: int) -> list[Asked]:
        """The turns of lesson k. A turn whose picture is not the one before it shows its own."""
        f = int(self.file[k])
        epoch, i = divmod(int(self.turn[k]), len(self.files[f]))
        first = int(self.order(f, epoch)[i])
        if self.files[f][first].record.history:  # it brings its own turns
            return [self.files[f][first]]
        rng = np.random.default_rng((self.seed, 3, k))
        images = [self.files[f][first].image]
        if self.pictures > 1 and len(self.of[f]) > 1:
            every = list(self.of[f])
            count = min(len(every), int(rng.integers(1, self.pictures + 1)))
            others = [every[i] for i in rng.choice(len(every), count, replace=False)]
            images += [image for image in others[1:] if image not in images]
        turns = []
        for image in images:
            others = [j for j in self.of[f][image] if j != first and not self.files[f][j].record.history]
            count = min(len(others), int(rng.integers(0, self.turns)) + (image != images[0]))
            chosen = [int(j) for j in rng.choice(others, count, replace=False)] if count else []
            chosen += [first] if image == images[0] else []
            rng.shuffle(chosen)
            turns += [self._drawn_anew(f, j, rng) for j in chosen]
        return turns

    def _drawn_anew(self, f: int, j: int, rng) -> Asked:
        asked = self.files[f][j]
        known = self.lists[f].get(asked.image)
        return (
            replace(asked, record=relist(asked.record, known, rng))
            if known and listing(asked.record)
            else asked
        )

    def batch(self, step: int, size: int) -> list[int]:
        """The lessons of a step. Grouped: of `WINDOW` steps' lessons those of like length come together."""
        if not self.grouped:
            return list(range(step * size, (step + 1) * size))
        window, at = divmod(step, WINDOW)
        return self.sorted(window, size)[at]

    def _sorted(self, window: int, size: int) -> list[list[int]]:
        first = window * WINDOW * size
        numbers = list(range(first, min(first + WINDOW * size, len(self.file))))
        length = {
            k: sum(len(a.record.question) + len(a.record.answer) for a in self.lesson(k)) for k in numbers
        }
        numbers.sort(key=lambda k: (length[k], k))
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        np.random.default_rng((self.seed, 4, window)).shuffle(batches)
        return sorted(batches, key=lambda b: len(b) < size)  # a last one that is short stays last


def listing(record: Record) -> tuple[str, str] | None:
    """What stands before and after the classes of a question that lists them all, in order: `Which of these are there:
    cup, dog?`; None for any other question."""
    names = ", ".join(t.phrase for t in record.targets)
    before, found, after = record.question.partition(names)
    return (before, after) if found and len(record.targets) > 1 else None


def _known_classes(asked: list[Asked]) -> dict[Path, dict[str, dict | None]]:
    """For each picture, what its class lists say is there (its mask) or is not (None)."""
    known: dict[Path, dict] = {}
    for one in asked:
        if listing(one.record):
            known.setdefault(one.image, {}).update({t.phrase: t.rle for t in one.record.targets})
    return known


def relist(record: Record, known: dict[str, dict | None], rng) -> Record:
    """LaSagnA's three strategies (arXiv 2404.08506): everything that is there with random classes that are not, all of
    them answered, in the order of the question. Now and then nothing of the list is there."""
    there, gone = ([n for n, rle in known.items() if bool(rle) == present] for present in (True, False))
    if gone and (not there or rng.random() < EMPTY):
        there = []
    there = [str(n) for n in rng.permutation(there)[:LISTED]]
    most = min(len(gone), LISTED - len(there))
    least = min(most, 0 if len(there) > 1 else 2 - len(there))
    count = int(rng.integers(least, most + 1))
    names = there + [str(n) for n in rng.permutation(gone)[:count]]
    if len(names) < 2:
        return record
    rng.shuffle(names)
    before, after = listing(record)
    kind = {t.phrase: t for t in record.targets}.get
    example = record.targets[0]
    targets = [kind(n) or replace(example, phrase=n, rle=known[n]) for n in names]
    answer = reply_for([(t.phrase, t.rle is not None) for t in targets])
    return replace(record, question=f"{before}{', '.join(names)}{after}", answer=answer, targets=targets)

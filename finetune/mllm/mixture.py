"""Which records each step of training learns from.

    mixture = Mixture([("train.jsonl", 1.0), ("streets.jsonl", 0.3)], count=4000, max_questions=3, seed=0)
    mixture.conversation(17)          # [ImageRecord(record, image), ...]: the questions of a conversation
    mixture.batch(step=2, size=16)    # the numbers of the conversations of a step

Files are mixed by rate, questions about an image are joined into one conversation, and class lists are drawn
anew each time. All of it is fixed by the seed and the number of the conversation.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from finetune.image_record import ImageRecord, read_image_records
from finetune.mllm.class_lists import known_classes, redraw_list, text_around_list

STEPS_PER_WINDOW = 8  # steps whose conversations are sorted by length together


class Mixture:
    """Conversations drawn from several files of records.

    Args:
        sources: (records file, rate) pairs; rates are relative to each other.
        count: Number of conversations that will be drawn.
        max_questions: Questions about one image in a conversation, at most.
        max_images: Images in a conversation, at most.
        seed: Fixes every draw.
        grouped: Whether conversations of similar length form a batch, so that little is padded.

    Attributes:
        records: Of each file, its records.
        source: (count,) int, which file each conversation is drawn from.

    Raises:
        BadInput: A file cannot be read or holds no records.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Path, float]],
        count: int,
        max_questions: int = 3,
        max_images: int = 1,
        seed: int = 0,
        grouped: bool = True,
    ):
        self.records = [read_image_records(file) for file, _ in sources]
        if empty := [
            str(file) for (file, _), records in zip(sources, self.records, strict=True) if not records
        ]:
            raise BadInput(f"no records in {', '.join(empty)}; leave it out")
        self.max_questions = max_questions
        self.max_images = max_images
        self.seed = seed
        self.grouped = grouped
        self._numbers_by_image = [_numbers_by_image(records) for records in self.records]
        self._known_classes = [known_classes(records) for records in self.records]
        rates = np.array([rate for _, rate in sources])
        self.source = np.random.default_rng((seed, 1)).choice(len(rates), count, p=rates / rates.sum())
        # How often the same file was drawn before each conversation.
        self._earlier_draws = np.zeros(count, int)
        for f in range(len(rates)):
            of_file = self.source == f
            self._earlier_draws[of_file] = np.arange(of_file.sum())
        self._order = lru_cache(maxsize=2 * len(rates))(self._shuffle_records)
        self._batches = lru_cache(maxsize=2)(self._group_window)

    @property
    def images(self) -> list[Path]:
        """All images, sorted."""
        return sorted({image for numbers in self._numbers_by_image for image in numbers})

    def conversation(self, k: int) -> list[ImageRecord]:
        """The questions of conversation k, in order.

        Where the image changes from one question to the next, the next one shows its own.
        """
        f = int(self.source[k])
        records = self.records[f]
        epoch, i = divmod(int(self._earlier_draws[k]), len(records))
        first = int(self._order(f, epoch)[i])
        if records[first].record.history:  # it brings its own earlier turns
            return [records[first]]
        rng = np.random.default_rng((self.seed, 3, k))
        conversation = []
        for image in self._draw_images(f, records[first].image, rng):
            chosen = self._draw_questions(f, image, first, rng)
            conversation += [self._with_new_list(f, j, rng) for j in chosen]
        return conversation

    def _draw_images(self, f: int, first: Path, rng: np.random.Generator) -> list[Path]:
        """The images of a conversation that begins with the image `first`."""
        images = [first]
        if self.max_images > 1 and len(self._numbers_by_image[f]) > 1:
            every = list(self._numbers_by_image[f])
            count = min(len(every), int(rng.integers(1, self.max_images + 1)))
            drawn = [every[i] for i in rng.choice(len(every), count, replace=False)]
            images += [image for image in drawn[1:] if image not in images]
        return images

    def _draw_questions(self, f: int, image: Path, first: int, rng: np.random.Generator) -> list[int]:
        """The numbers of the records about one image of a conversation.

        Record `first`, with which the conversation was drawn, is among them if it is about this image.
        """
        records = self.records[f]
        is_first_image = image == records[first].image
        others = [j for j in self._numbers_by_image[f][image] if j != first and not records[j].record.history]
        count = min(len(others), int(rng.integers(0, self.max_questions)) + (not is_first_image))
        chosen = [int(j) for j in rng.choice(others, count, replace=False)] if count else []
        chosen += [first] if is_first_image else []
        rng.shuffle(chosen)
        return chosen

    def _with_new_list(self, f: int, j: int, rng: np.random.Generator) -> ImageRecord:
        """Record j of file f; if its question lists classes, with another list."""
        asked = self.records[f][j]
        known = self._known_classes[f].get(asked.image)
        if known and text_around_list(asked.record):
            return replace(asked, record=redraw_list(asked.record, known, rng))
        return asked

    def _shuffle_records(self, f: int, epoch: int) -> np.ndarray:
        """The order in which an epoch draws the records of file f."""
        return np.random.default_rng((self.seed, 2, f, epoch)).permutation(len(self.records[f]))

    def batch(self, step: int, size: int) -> list[int]:
        """The numbers of the `size` conversations of a step."""
        if not self.grouped:
            return list(range(step * size, (step + 1) * size))
        window, place = divmod(step, STEPS_PER_WINDOW)
        return self._batches(window, size)[place]

    def _group_window(self, window: int, size: int) -> list[list[int]]:
        """The batches of the steps of a window, each of conversations of similar length, in random order."""
        first = window * STEPS_PER_WINDOW * size
        numbers = list(range(first, min(first + STEPS_PER_WINDOW * size, len(self.source))))
        length = {k: _text_length(self.conversation(k)) for k in numbers}
        numbers.sort(key=lambda k: (length[k], k))
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        np.random.default_rng((self.seed, 4, window)).shuffle(batches)
        return sorted(batches, key=lambda batch: len(batch) < size)  # an incomplete batch stays last


def _numbers_by_image(records: Sequence[ImageRecord]) -> dict[Path, list[int]]:
    """The indices of the records about each image."""
    numbers: dict[Path, list[int]] = {}
    for i, asked in enumerate(records):
        numbers.setdefault(asked.image, []).append(i)
    return numbers


def _text_length(conversation: Sequence[ImageRecord]) -> int:
    """Characters of the questions and answers."""
    return sum(len(asked.record.question) + len(asked.record.answer) for asked in conversation)

"""Records as training examples of the pocket LLM and its selector: several questions about one image.

data = RecordData(records, regions, encoded, seed=0, images=training_images)
example = data.example(17)                 # .regions, .questions
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from assistant.grammar import ABS, SEG, parse
from assistant.pocket.region_encoder import EncodedRegions
from assistant.record import Record
from assistant.sam.mask_ops import Rle
from finetune.image_record import ImageRecord
from finetune.region_cache import ImageRegions, iou_and_iop

FOLDS = 4  # encoders that each leave out one part of the images
HELD_OUT_EVERY = 10  # one image in so many is held out
MAX_QUESTIONS_PER_EXAMPLE = 5  # that share the regions of their image in a training sequence

# How examples vary, so that the regions of an image are not learned by heart.
CHAT_SHARE = 0.4  # of the examples whose questions follow each other
PROPOSALS_ONLY_SHARE = 0.6  # of the examples whose labelled instances are left out, as in use
MIN_REGIONS_LEFT = 0.7  # smallest share of the regions that stay where some are dropped at random
MIN_REGIONS_TO_DROP = 4  # with no more, none is dropped
SECOND_IMAGE_SHARE = 0.3  # of the examples that get the regions of a second image
SECOND_IMAGE_REGIONS = (4, 30)  # of which there are so many, the end excluded

# Places of figures in a region's geometry, see `assistant.sam.region_features.geometry`.
CENTRE_X, BOX_WIDTH, LOG_BOX_WIDTH, ROOT_AREA = 0, 2, 4, 6
LOG_SCALE = 4  # by which the log is divided there

Item = TypeVar("Item")


def every_tenth(items: Sequence[Item]) -> list[Item]:
    """The tenth, twentieth, ... of the items: those that are held out."""
    return [item for i, item in enumerate(items) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]


@dataclass
class TrainingQuestion:
    """A question about an image with M targets, and N regions of the image.

    Attributes:
        question: As the user asks it.
        answer: In the compact form that the LLM learns.
        phrases: M.
        present: M.
        iou: (M, N) float32 of each region with each target; 0 for absent targets.
        iop: (M, N) float32, the share of each region that lies inside each target.
        history: (question, compact answer) of the turns before it, which are read and not learned.
    """

    question: str
    answer: str
    phrases: list[str]
    present: list[bool]
    iou: np.ndarray
    iop: np.ndarray
    history: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Example:
    """Questions about an image.

    Attributes:
        regions: The image's, encoded.
        questions: The questions.
        is_chat: Whether they are turns of one conversation; otherwise each is asked by itself.
        rles: Masks of the regions; filled in for examples as in use only.
        truths: The mask of each target of each question, None where it is absent; filled in likewise.
        image: The image's file.
    """

    regions: EncodedRegions
    questions: list[TrainingQuestion]
    is_chat: bool
    rles: list[Rle] = field(default_factory=list)
    truths: list[list[Rle | None]] = field(default_factory=list)
    image: Path | None = None

    @property
    def phrases(self) -> list[str]:
        """The phrases of all targets."""
        return [phrase for question in self.questions for phrase in question.phrases]

    @property
    def present(self) -> list[bool]:
        """Whether each target is present."""
        return [present for question in self.questions for present in question.present]

    @property
    def target_rles(self) -> list[Rle | None]:
        """The masks of all targets, from `truths`."""
        return [rle for of_question in self.truths for rle in of_question]


def compact_answer(targets: Iterable[tuple[str, bool]]) -> str:
    """(phrase, present) pairs in the pocket LLM's form of the grammar: `umbrella [SEG], bench [ABS].`"""
    return ", ".join(f"{phrase} {SEG if present else ABS}" for phrase, present in targets) + "."


class RecordData:
    """Training examples drawn from records; `example(k)` depends on `seed` and k only.

    Args:
        records: The records; those without targets are left out.
        regions: {image: its regions}; the order of the images decides their folds.
        encoded: {image: its regions, encoded by an encoder that has not seen the image}.
        seed: Of all that is drawn.
        images: The images to draw from.
        weights: What a record of each image counts; 1 where it is not listed.

    Attributes:
        records: The records to draw from.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        regions: Mapping[Path, ImageRegions],
        encoded: Mapping[Path, EncodedRegions],
        seed: int,
        images: Collection[Path],
        weights: Mapping[Path, float] | None = None,
    ):
        self.regions = regions
        self.encoded = encoded
        self.seed = seed
        self.records = [r for r in records if r.image in images and r.record.targets]
        self._fold = {image: i % FOLDS for i, image in enumerate(regions)}
        self._fold_images = {
            f: [image for image in regions if image in images and self._fold[image] == f]
            for f in range(FOLDS)
        }
        self._of_image: dict[Path, list[int]] = {}
        for k, record in enumerate(self.records):
            self._of_image.setdefault(record.image, []).append(k)
        self._overlaps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._weights = self._record_weights(weights or {})

    def _record_weights(self, weights: Mapping[Path, float]) -> np.ndarray:
        """The probability of each record; a kind with four times as many records is drawn twice as often."""
        kinds = [r.record.source.get("kind", "") for r in self.records]
        counts = Counter(kinds)
        shares = [
            weights.get(record.image, 1.0) / counts[kind] ** 0.5
            for kind, record in zip(kinds, self.records, strict=True)
        ]
        return np.array(shares) / np.array(shares).sum()

    def overlaps(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """IoU and IoP of the M targets of record k with the N regions of its image, (M, N) float32 each."""
        if k not in self._overlaps:
            rles = self.regions[self.records[k].image].rles
            nothing = np.zeros(len(rles), np.float32)
            pairs = [
                iou_and_iop(rles, target.rle) if target.rle else (nothing, nothing)
                for target in self.records[k].record.targets
            ]
            self._overlaps[k] = np.stack([iou for iou, _ in pairs]), np.stack([iop for _, iop in pairs])
        return self._overlaps[k]

    def example(self, k: int, variant: int = 0, as_in_use: bool = False) -> Example:
        """Draw an example.

        Args:
            k: Its number.
            variant: Other numbers than 0 give the same questions with other regions.
            as_in_use: Whether it has the regions of an opened image: all proposals and nothing else.
        """
        rng = np.random.default_rng((self.seed, k))
        drawn = self._draw_questions(rng)
        is_chat = bool(rng.random() < CHAT_SHARE)
        if variant:
            rng = np.random.default_rng((self.seed, k, variant))
        image = self.records[drawn[0]].image
        regions, encoded = self.regions[image], self.encoded[image]
        shown = _draw_regions(regions, rng, as_in_use)
        example = Example(
            EncodedRegions(encoded.embeddings[shown], encoded.shapes[shown]),
            [self._question(j, shown) for j in drawn],
            is_chat,
            image=image,
        )
        records = [self.records[j].record for j in drawn]
        if as_in_use:
            example.rles = [regions.rles[i] for i in shown]
            example.truths = [[target.rle for target in record.targets] for record in records]
        elif rng.random() < SECOND_IMAGE_SHARE and not any(_needs_its_image_alone(r) for r in records):
            self._add_second_image(example, records, image, rng)
        return example

    def _draw_questions(self, rng: np.random.Generator) -> list[int]:
        """The numbers of up to MAX_QUESTIONS_PER_EXAMPLE records about one image, in random order."""
        first = int(rng.choice(len(self.records), p=self._weights))
        others = [j for j in self._of_image[self.records[first].image] if j != first]
        count = min(MAX_QUESTIONS_PER_EXAMPLE - 1, len(others))
        drawn = [first]
        if count:
            weights = self._weights[others] / self._weights[others].sum()
            drawn += [int(j) for j in rng.choice(others, count, replace=False, p=weights)]
        rng.shuffle(drawn)
        return drawn

    def _question(self, k: int, shown: np.ndarray) -> TrainingQuestion:
        """Record k as a question, with the regions `shown` of its image."""
        record = self.records[k].record
        iou, iop = (table[:, shown] for table in self.overlaps(k))
        phrases = [target.phrase for target in record.targets]
        present = [target.rle is not None for target in record.targets]
        history = [
            (turn.question, compact_answer((m.phrase, m.present) for m in parse(turn.answer or "")))
            for turn in record.history
        ]
        answer = compact_answer(zip(phrases, present, strict=True))
        return TrainingQuestion(record.question, answer, phrases, present, iou, iop, history)

    def _add_second_image(
        self, example: Example, records: Sequence[Record], image: Path, rng: np.random.Generator
    ) -> None:
        """Join an image without any of the targets to the first, so that regions have other neighbours."""
        asked = {category for record in records for category in record.source.get("categories", [])}
        images = self._fold_images[self._fold[image]]
        other = images[rng.integers(len(images))]
        if not asked or asked & set(self.regions[other].names):
            return
        extra = self.encoded[other]
        count = min(len(extra.embeddings), int(rng.integers(*SECOND_IMAGE_REGIONS)))
        picked = rng.permutation(len(extra.embeddings))[:count]
        is_left = rng.random() < 0.5
        first = example.regions
        example.regions = EncodedRegions(
            torch.cat([first.embeddings, extra.embeddings[picked]]),
            torch.cat([squeeze(first.shapes, is_left), squeeze(extra.shapes[picked], not is_left)]),
        )
        for question in example.questions:
            padding = np.zeros((len(question.iou), count), np.float32)
            question.iou = np.concatenate([question.iou, padding], 1)
            question.iop = np.concatenate([question.iop, padding], 1)


def _draw_regions(regions: ImageRegions, rng: np.random.Generator, as_in_use: bool) -> np.ndarray:
    """The indices of the regions that an example has."""
    instances = len(regions.names)
    shown = np.arange(len(regions.rles))
    if as_in_use:
        return shown[instances:]
    if rng.random() < PROPOSALS_ONLY_SHARE and len(regions.rles) > instances:
        shown = shown[instances:]
    if len(shown) > MIN_REGIONS_TO_DROP:
        shown = shown[rng.random(len(shown)) < rng.uniform(MIN_REGIONS_LEFT, 1)]
    return shown


def _needs_its_image_alone(record: Record) -> bool:
    """Whether a second image would change the answer, as it does for positions and follow-ups."""
    return record.source.get("kind") == "position" or bool(record.history)


def squeeze(shapes: Tensor, is_left: bool) -> Tensor:
    """Squeeze the regions of an image into the left or the right half of one of twice its width.

    Only x and the areas change. shapes: (N, SHAPE_DIM) -> (N, SHAPE_DIM).
    """
    shapes = shapes.clone()
    shapes[:, CENTRE_X] = shapes[:, CENTRE_X] / 2 + (0 if is_left else 0.5)
    shapes[:, BOX_WIDTH] /= 2
    shapes[:, LOG_BOX_WIDTH] -= math.log(2) / LOG_SCALE
    shapes[:, ROOT_AREA] /= math.sqrt(2)
    return shapes

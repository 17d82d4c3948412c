"""Records as training examples: several questions about one picture, and what is seen in it."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assistant.grammar import ABS, SEG, parse
from assistant.pocket.llm import Seen
from assistant.record import Record
from finetune.region_cache import ImageRegions, iou_and_iop

FOLDS = 4
KEPT_ASIDE = 10  # every so-manieth picture
TOGETHER = 5  # questions about one picture that share its words in a training sequence


@dataclass
class Asked:
    question: str
    answer: str
    phrases: list[str]  # M
    present: list[bool]  # M
    iou: np.ndarray  # (M, N) with the regions of its picture
    iop: np.ndarray  # (M, N)
    before: list[tuple[str, str]] = field(
        default_factory=list
    )  # (question, compact answer) that it follows: read, not learned


@dataclass
class Example:
    """A picture and questions about it. chat: they follow each other, and are not asked each for itself."""

    seen: Seen
    asked: list[Asked]
    chat: bool
    rles: list[dict] = field(default_factory=list)  # of the regions, and of the targets:
    truths: list[list[dict | None]] = field(default_factory=list)
    image: Path | None = None

    @property
    def phrases(self) -> list[str]:
        return [p for a in self.asked for p in a.phrases]

    @property
    def present(self) -> list[bool]:
        return [p for a in self.asked for p in a.present]


def compact(targets: Iterable[tuple[str, bool]]) -> str:
    """(phrase, present) pairs in the pocket form of the grammar: `umbrella [SEG], bench [ABS].`"""
    return ", ".join(f"{phrase} {SEG if present else ABS}" for phrase, present in targets) + "."


class RecordData:
    """Records with what is seen in their pictures; `example(k)` is fixed by (seed, k).

    seen: by picture, through an encoder that does not know it. aside: draw from the pictures `kept_aside` (by default
    every tenth), or the rest. rates: what the records of a picture count (by default all the same).
    """

    def __init__(
        self,
        records: list[tuple[Record, Path]],
        regions: dict[Path, ImageRegions],
        seen: dict[Path, Seen],
        seed: int,
        aside: bool = False,
        kept_aside: set[Path] | None = None,
        rates: dict[Path, float] | None = None,
    ):
        images = list(regions)
        self.fold = {image: i % FOLDS for i, image in enumerate(images)}
        if kept_aside is None:
            kept_aside = {image for i, image in enumerate(images) if i % KEPT_ASIDE == KEPT_ASIDE - 1}
        mine = {image for image in images if (image in kept_aside) == aside}
        self.records = [(r, i) for r, i in records if i in mine and r.targets]
        self.regions, self.seen, self.seed = regions, seen, seed
        self.images = {f: [i for i in images if i in mine and self.fold[i] == f] for f in range(FOLDS)}
        self.of: dict[Path, list[int]] = {}
        for k, (_, image) in enumerate(self.records):
            self.of.setdefault(image, []).append(k)
        self.cache: dict[int, tuple] = {}
        kinds = [r.source.get("kind", "") for r, _ in self.records]
        counts = Counter(kinds)
        rates = rates or {}
        self.weights = np.array(
            [rates.get(i, 1.0) / counts[k] ** 0.5 for k, (_, i) in zip(kinds, self.records)]
        )
        self.weights /= self.weights.sum()

    def targets(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """IoU and IoP of a record's targets with all regions of its picture, (M, N) each."""
        if k not in self.cache:
            record, image = self.records[k]
            rles = self.regions[image].rles
            pairs = [
                iou_and_iop(rles, t.rle) if t.rle else (np.zeros(len(rles), np.float32),) * 2
                for t in record.targets
            ]
            self.cache[k] = tuple(np.stack(x) for x in zip(*pairs))
        return self.cache[k]

    def example(self, k: int, again: int = 0, plain: bool = False) -> Example:
        """`again`: the same questions in other surroundings (which regions, which photo beside it). plain: the picture
        as it is met in use, all proposals and nothing else."""
        rng = np.random.default_rng((self.seed, k))
        first = int(rng.choice(len(self.records), p=self.weights))
        image = self.records[first][1]
        others = [j for j in self.of[image] if j != first]
        weights = self.weights[others] / self.weights[others].sum() if others else None
        count = min(TOGETHER - 1, len(others))
        which = (
            [first, *(int(j) for j in rng.choice(others, count, replace=False, p=weights))]
            if count
            else [first]
        )
        rng.shuffle(which)
        chat = bool(rng.random() < 0.4)
        if again:
            rng = np.random.default_rng((self.seed, k, again))
        own, seen = self.regions[image], self.seen[image]
        outlined = len(own.names)
        keep = np.arange(len(own.rles))
        if plain or (rng.random() < 0.6 and len(own.rles) > outlined):
            keep = keep[outlined:]
        if not plain and len(keep) > 4:
            keep = keep[rng.random(len(keep)) < rng.uniform(0.7, 1)]
        asked = []
        for j in which:
            record = self.records[j][0]
            iou, iop = (x[:, keep] for x in self.targets(j))
            phrases, present = [t.phrase for t in record.targets], [t.rle is not None for t in record.targets]
            before = [
                (t.question, compact((m.phrase, m.present) for m in parse(t.answer))) for t in record.history
            ]
            asked.append(
                Asked(record.question, compact(zip(phrases, present)), phrases, present, iou, iop, before)
            )
        example = Example(Seen(seen.words[keep], seen.shape[keep]), asked, chat, image=image)
        records = [self.records[j][0] for j in which]
        if plain:
            example.rles = [own.rles[i] for i in keep]
            example.truths = [[t.rle for t in r.targets] for r in records]
        elif rng.random() < 0.3 and all(
            r.source.get("kind") != "position" and not r.history for r in records
        ):
            self.beside(example, records, image, rng)
        return example

    def beside(self, example: Example, records: list[Record], image: Path, rng) -> None:
        """A second photo without any of the things asked about, laid beside the first: new company for old things."""
        asked = {c for r in records for c in r.source.get("categories", [])}
        pool = self.images[self.fold[image]]
        other = pool[rng.integers(len(pool))]
        if not asked or asked & set(self.regions[other].names):
            return
        extra = self.seen[other]
        count = min(len(extra.words), int(rng.integers(4, 30)))
        pick = rng.permutation(len(extra.words))[:count]
        left = rng.random() < 0.5
        example.seen = Seen(
            torch.cat([example.seen.words, extra.words[pick]]),
            torch.cat([half(example.seen.shape, left), half(extra.shape[pick], not left)]),
        )
        for one in example.asked:
            pad = np.zeros((len(one.iou), count), np.float32)
            one.iou, one.iop = np.concatenate([one.iou, pad], 1), np.concatenate([one.iop, pad], 1)


def half(shape: Tensor, left: bool) -> Tensor:
    """Squeeze a photo's regions (N, SHAPE) into one half of a wider one: only x and the areas change."""
    shape = shape.clone()
    shape[:, 0] = shape[:, 0] / 2 + (0 if left else 0.5)
    shape[:, 2] /= 2
    shape[:, 4] -= math.log(2) / 4
    shape[:, 6] /= math.sqrt(2)
    return shape

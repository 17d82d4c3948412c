"""What each selection without training loses by itself: a reader that knows the truth answers for the model.

    python -m tests.helpers.scripted_reader --root coco/dev --images 40

prints the table of docs/larger-models.md. Each category of a photo in COCO's format is a question. Of the
proposals with numbers the reader chooses those that fit best (`eval.oracle`); its boxes are those of the
outlines, their sides off by a set share. "hybrid" gives a box for each instance that no choice of numbers
shows well. What is lost is what has no proposal, what got no number, and what SAM makes of a box. The pocket
SAM outlines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy as np

from assistant.grammar import Turn
from assistant.mllm import zero_shot
from assistant.mllm.model_image import ImageFit
from assistant.mllm.structured_answer import StructuredAnswer
from assistant.mllm.zero_shot import MARKS_PER_SHEET, ZeroShotPipeline
from assistant.pipeline import ImageOpener
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import tight_box
from assistant.scene import Assistant, Scene
from eval.annotated_images import AnnotatedImage, open_sized, read_annotated_images
from eval.oracle import Atoms, oracle

MIN_SHOWN_IOU = 0.7  # of an instance with the best choice of numbers, from which they show it well


@dataclass(frozen=True)
class Setting:
    """How a question is answered.

    Attributes:
        selection: "marks", "boxes" or "hybrid".
        sheets: With 20 marks each, at most.
        noise: Of a box's sides, by which its corners are off (standard deviation).
    """

    selection: str
    sheets: int = 3
    noise: float = 0.0

    def __str__(self) -> str:
        boxes = f"boxes {self.noise:.0%} off" if self.noise else "exact boxes"
        marks = f"{self.sheets * MARKS_PER_SHEET} marks"
        parts = {"marks": [marks], "boxes": [boxes], "hybrid": [marks, boxes]}[self.selection]
        return f"{self.selection}: {', '.join(parts)}"


SETTINGS = [
    Setting("marks", 1),
    Setting("marks", 3),
    *(Setting("boxes", noise=noise) for noise in (0.0, 0.05, 0.1)),
    *(Setting("hybrid", sheets, noise) for sheets in (1, 3) for noise in (0.0, 0.05, 0.1)),
]


@dataclass
class Score:
    """What became of one question: the IoU of its answer, and whether it was denied or only seen."""

    iou: float
    denied: bool
    seen: bool


class ScriptedReader:
    """A `StructuredModel` that points at `wanted`, masks (H, W) bool of the instances that are meant."""

    name = "qwen3_vl"

    def __init__(self, opened: SamOpenedImage, noise: float, seed: int = 0):
        self.opened = opened
        self.noise = noise
        self.rng = np.random.default_rng(seed)
        self.wanted: list[np.ndarray] = []
        self.image_fit = ImageFit()

    def input_size(self, image: np.ndarray) -> tuple[int, int]:
        return image.shape[1], image.shape[0]

    def attention_probe(self) -> NoReturn:
        raise NotImplementedError

    def networks(self) -> dict[str, Any]:
        return {}

    def ask(self, turns: list[Turn], system: str, schema: dict[str, Any], **options: Any) -> StructuredAnswer:
        fields = schema["properties"]["targets"]["items"]["properties"]
        row: dict[str, Any] = {"phrase": "it", "seen": True}
        boxed = self.wanted
        if "marks" in fields:
            row["marks"], boxed = self._marks(with_boxes="boxes" in fields)
        if "boxes" in fields:
            row["boxes"] = [self._box(mask) for mask in boxed]
        return StructuredAnswer(json.dumps({"thought": "", "targets": [row]}))

    def _marks(self, with_boxes: bool) -> tuple[list[int], list[np.ndarray]]:
        """The numbers that show what is meant, and the instances that none shows well."""
        numbers, _ = self.opened.cache["sheets"]
        shown = list(numbers)
        masks = [self.opened.proposals.mask(proposal) for proposal in numbers.values()]
        if not with_boxes:
            best = oracle(Atoms.of(masks, [np.any(self.wanted, axis=0)]), 0)
            return [shown[k] for k in best.chosen], []
        atoms = Atoms.of(masks, self.wanted)
        choices = [oracle(atoms, k) for k in range(len(self.wanted))]
        marks = {shown[i] for choice in choices if choice.iou >= MIN_SHOWN_IOU for i in choice.chosen}
        pairs = zip(self.wanted, choices, strict=True)
        return sorted(marks), [mask for mask, choice in pairs if choice.iou < MIN_SHOWN_IOU]

    def _box(self, mask: np.ndarray) -> dict[str, list[int]]:
        """The box of a mask, in thousandths of the image, and a point of the mask."""
        left, top, right, bottom = tight_box(mask) or (0, 0, 1, 1)
        height, width = mask.shape
        sides = np.array([right - left, bottom - top] * 2)
        corners = np.array([left, top, right, bottom]) + self.rng.normal(0, self.noise, 4) * sides
        thousandths = (corners / [width, height, width, height] * 1000).clip(0, 1000).round().astype(int)
        ys, xs = mask.nonzero()
        middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
        point = [round(xs[middle] / width * 1000), round(ys[middle] / height * 1000)]
        return {"bbox_2d": thousandths.tolist(), "point_2d": point}


def ask_all(
    opener: ImageOpener[SamOpenedImage],
    opened: SamOpenedImage,
    questions: list[list[np.ndarray]],
    setting: Setting,
) -> list[Score]:
    """Ask every question about an opened image; a question is the masks of its instances."""
    opened = SamOpenedImage(opened.embedding, opened.proposals, opened.image)
    reader = ScriptedReader(opened, setting.noise)
    scene = Scene(Assistant(ZeroShotPipeline(opener, reader, setting.selection), {}), opened.image, opened)
    scores = []
    # The reader needs no drawing.
    with mock.patch.multiple(zero_shot, MAX_SHEETS=setting.sheets, draw_sheet=lambda image, marks: image):
        for reader.wanted in questions:
            (target,) = scene.fresh().ask("it").targets
            truth = np.any(reader.wanted, axis=0)
            mask = truth & False if target.mask is None else target.mask
            overlap = float((mask & truth).sum() / (mask | truth).sum())
            scores.append(Score(overlap, not target.present and not target.seen, target.seen))
    return scores


def questions_of(annotated: AnnotatedImage) -> list[list[np.ndarray]]:
    """The masks of each category of a photo; those with a crowd are left out."""
    crowded = {instance.category for instance in annotated.instances if instance.crowd}
    by_category: dict[str, list[np.ndarray]] = {}
    for instance in annotated.instances:
        if instance.category not in crowded:
            by_category.setdefault(instance.category, []).append(instance.mask())
    return list(by_category.values())


def results(root: Path, count: int) -> Iterator[dict[str, list[Score]]]:
    """The scores of each photo, by setting; those of the best choice among all proposals are "oracle"."""
    from assistant.pocket.opening import PocketSamOpener
    from assistant.weights import pocket_file

    opener = PocketSamOpener(pocket_file("sam.safetensors"))
    for annotated in read_annotated_images(root, count):
        opened = opener.open(open_sized(annotated.path, annotated.height, annotated.width))
        questions = questions_of(annotated)
        atoms = Atoms.of(opened.proposals.rles, [np.any(masks, axis=0) for masks in questions])
        bounds = [Score(oracle(atoms, k).iou, False, False) for k in range(len(questions))]
        by_setting = {str(s): ask_all(opener, opened, questions, s) for s in SETTINGS}
        yield {"oracle": bounds} | by_setting


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder with instances.json and images/")
    parser.add_argument("--images", type=int, default=40)
    options = parser.parse_args()
    total: dict[str, list[Score]] = {}
    for done, scores in enumerate(results(options.root, options.images), 1):
        for name, row in scores.items():
            total.setdefault(name, []).extend(row)
        print(f"{done} photos", flush=True)
    print(f"| {len(total['oracle'])} questions | gIoU | seen, not outlined | denied |\n|---|---|---|---|")
    for name, row in total.items():
        seen, denied = (float(np.mean(values)) for values in ([s.seen for s in row], [s.denied for s in row]))
        print(f"| {name} | {np.mean([s.iou for s in row]):.3f} | {seen:.1%} | {denied:.1%} |")


if __name__ == "__main__":
    main()

"""Scenes of shapes, with a segmenter and a language model that are doubles with set error rates.

    python -m tests.helpers.scripted_world --questions 300        # the table of docs/concepts.md

It measures the logic of a selection and nothing else: what score it reaches with models that miss, find and
pick wrongly so often, and how many calls of the language model that takes. The errors are drawn anew for
every call, from a seed. "loop" is a straightforward SAM 3 agent: it names a phrase, examines every mask that
is found by a call of its own, and returns those that it accepted.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from assistant.grammar import Turn
from assistant.mllm.calibration import Calibration, Evidence, geometric_mean
from assistant.mllm.concept_pipeline import ConceptPipeline
from assistant.mllm.model_image import ImageFit
from assistant.mllm.structured_answer import StructuredAnswer
from assistant.mllm.zero_shot import ZeroShotPipeline
from assistant.pipeline import Reply, Selection
from assistant.sam.concepts import Instances, KeptFinds
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import box_iou, encode_rle, tight_box
from assistant.sam.proposals import Proposals
from finetune.mllm.calibrate import calibration_error

KINDS = ("circle", "square", "triangle", "cross", "bar", "ring")
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220), "white": (240, 240, 240)}
CELL = 40  # px of a shape's square place
ROWS, COLUMNS = 5, 8
ABSENT_SHARE = 0.25  # of the questions
PROPOSED_SHARE = 0.85  # of the shapes, that everything mode proposes


@dataclass(frozen=True)
class ErrorRates:
    """How often the doubles are wrong, in [0, 1].

    Attributes:
        misses: Instances that the segmenter does not find.
        false_finds: Phrases for which it finds something else as well.
        wrong_names: Targets of which the model says wrongly that it sees them, or that it does not.
        wrong_picks: Outlines that the model takes or leaves wrongly.
        box_noise: Of a box's side, by which its corners are off (standard deviation).
    """

    misses: float = 0.05
    false_finds: float = 0.1
    wrong_names: float = 0.05
    wrong_picks: float = 0.1
    box_noise: float = 0.08


@dataclass
class Shape:
    """A shape of a scene; mask: (H, W) bool."""

    kind: str
    colour: str
    mask: np.ndarray


@dataclass
class World:
    """A scene, a question about it, and the indices of the shapes that are meant."""

    image: np.ndarray
    shapes: list[Shape]
    question: str = ""
    kind: str = ""
    which: str = ""
    wanted: list[int] = field(default_factory=list)

    def union(self) -> np.ndarray:
        """(H, W) bool: what is meant."""
        mask = np.zeros(self.image.shape[:2], bool)
        for index in self.wanted:
            mask |= self.shapes[index].mask
        return mask

    def shape_of(self, mask: np.ndarray) -> int | None:
        """Index of the shape that a mask shows; None for none."""
        overlaps = [(mask & s.mask).sum() / max((mask | s.mask).sum(), 1) for s in self.shapes]
        best = int(np.argmax(overlaps))
        return best if overlaps[best] > 0.5 else None


def make_world(rng: random.Random) -> World:
    """A scene of 16 to 28 shapes of four or five kinds, and a question."""
    kinds = rng.sample(KINDS, rng.choice((4, 5)))
    size = (ROWS * CELL, COLUMNS * CELL)
    image = np.full((*size, 3), 120, np.uint8)
    places = rng.sample(
        [(row, column) for row in range(ROWS) for column in range(COLUMNS)], rng.randint(16, 28)
    )
    shapes = []
    for row, column in places:
        mask = np.zeros(size, bool)
        kind, colour = rng.choice(kinds), rng.choice(list(COLOURS))
        part = slice(row * CELL + 4, (row + 1) * CELL - 4), slice(column * CELL + 4, (column + 1) * CELL - 4)
        mask[part] = drawn(kind, CELL - 8)
        image[mask] = COLOURS[colour]
        shapes.append(Shape(kind, colour, mask))
    world = World(image, shapes)
    ask_something(world, rng)
    return world


def drawn(kind: str, side: int) -> np.ndarray:
    """(side, side) bool: a shape."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius, half = np.hypot(x, y), side / 2
    return {
        "circle": radius <= half,
        "square": (abs(x) <= half) & (abs(y) <= half),
        "triangle": abs(x) <= (y + half) / 2,
        "cross": (abs(x) <= side / 6) | (abs(y) <= side / 6),
        "bar": abs(y) <= side / 6,
        "ring": (radius <= half) & (radius >= side / 4),
    }[kind]


def ask_something(world: World, rng: random.Random) -> None:
    """Ask for a kind that is absent, for all of a kind, for those of a colour, or for the one at an end."""
    there = sorted({shape.kind for shape in world.shapes})
    if rng.random() < ABSENT_SHARE:
        world.kind = rng.choice([kind for kind in KINDS if kind not in there])
    else:
        world.kind = rng.choice(there)
        alike = [k for k, shape in enumerate(world.shapes) if shape.kind == world.kind]
        form = rng.choice(("all", "all", "colour", "place"))
        colour = rng.choice(sorted({world.shapes[k].colour for k in alike}))
        world.wanted = alike
        if form == "colour":
            world.which = f"the {colour} ones"
            world.wanted = [k for k in alike if world.shapes[k].colour == colour]
        elif form == "place":
            world.which = "the one furthest to the left"
            world.wanted = [min(alike, key=lambda k: int(np.flatnonzero(world.shapes[k].mask.any(0))[0]))]
    world.question = f"Where is the {world.kind}? {world.which}".strip()


class ScriptedConcepts(KeptFinds):
    """Finds the shapes of a kind, with errors."""

    def __init__(self, world: World, rates: ErrorRates, rng: random.Random):
        super().__init__()
        self.world, self.rates, self.rng = world, rates, rng

    def networks(self) -> dict[str, nn.Module]:
        return {}

    def _fits(self, phrase: str) -> bool:
        return True

    def _find(self, opened: SamOpenedImage, phrase: str) -> Instances:
        shapes, rng = self.world.shapes, self.rng
        right = [k for k, s in enumerate(shapes) if s.kind == phrase and rng.random() >= self.rates.misses]
        scores = [rng.uniform(0.6, 0.95) for _ in right]
        presence = rng.uniform(0.7, 0.98) if right else rng.uniform(0.0, 0.2)
        if rng.random() < self.rates.false_finds:
            right.append(rng.choice([k for k, s in enumerate(shapes) if s.kind != phrase]))
            scores.append(rng.uniform(0.3, 0.5))
            presence = max(presence, rng.uniform(0.3, 0.6))
        order = sorted(range(len(right)), key=lambda k: -scores[k])
        found = [shapes[right[k]] for k in order]
        boxes = np.array([tight_box(shape.mask) for shape in found], np.float32).reshape(-1, 4)
        rles = [encode_rle(shape.mask) for shape in found]
        kept_scores = np.array([scores[k] for k in order], np.float32)
        return Instances(rles, boxes, kept_scores, presence, self.world.image.shape[:2])


class ScriptedModel:
    """A language model that knows what is meant, and says so with errors."""

    name = "qwen3_vl"
    image_fit = ImageFit(10**9)

    def __init__(self, world: World, rates: ErrorRates, rng: random.Random, opened: SamOpenedImage):
        self.world, self.rates, self.rng, self.opened = world, rates, rng, opened
        self.calls = 0

    def networks(self) -> dict[str, nn.Module]:
        return {}

    def attention_probe(self) -> Any:
        raise NotImplementedError

    def input_size(self, image: np.ndarray) -> tuple[int, int]:
        return image.shape[1], image.shape[0]

    def ask(self, turns: list[Turn], system: str, schema: dict[str, Any], **options: Any) -> StructuredAnswer:
        self.calls += 1
        fields = schema["properties"]["targets"]["items"]["properties"]
        row: dict[str, Any] = {"phrase": self.world.kind}
        seen = bool(self.world.wanted) != (self.rng.random() < self.rates.wrong_names)
        if "seen" in fields:
            row["seen"] = seen
        if "concepts" in fields:
            row |= {"concepts": [self.world.kind], "which": self.world.which}
        if "marks" in fields:
            row["marks"] = self._marks(schema["title"] == "picks") if seen or "seen" not in fields else []
        if "boxes" in fields:
            shown = {self._mark_shapes().get(number) for number in row.get("marks", [])}
            rest = [k for k in self.world.wanted if k not in shown and self.takes(k)] if seen else []
            row["boxes"] = [{"bbox_2d": self._box(k), "point_2d": self._middle(k)} for k in rest]
        return StructuredAnswer(json.dumps({"thought": "", "targets": [row]}), tokens=40)

    def takes(self, shape: int | None) -> bool:
        """Whether it takes an outline for what is meant."""
        return (shape in self.world.wanted) != (self.rng.random() < self.rates.wrong_picks)

    def _marks(self, picking: bool) -> list[int]:
        shapes = self._candidate_shapes() if picking else self._mark_shapes()
        if picking:
            return [number for number, shape in shapes.items() if self.takes(shape)]
        # Among many marks a reader misses some and takes a wrong one now and then, not one in ten of all.
        right = [n for n, s in shapes.items() if s in self.world.wanted and self.takes(s)]
        others = [n for n, s in shapes.items() if s not in self.world.wanted]
        return right + (
            [self.rng.choice(others)] if others and self.rng.random() < self.rates.wrong_picks else []
        )

    def _candidate_shapes(self) -> dict[int, int | None]:
        """The numbered candidates of the concept pipeline: those of its one target, in their order."""
        (instances,) = [i for i in self.opened.cache["concepts"].values() if len(i)]
        return {k + 1: self.world.shape_of(instances.mask(k)) for k in range(len(instances))}

    def _mark_shapes(self) -> dict[int, int | None]:
        if "sheets" not in self.opened.cache:
            return {}
        numbers, _ = self.opened.cache["sheets"]
        return {n: self.world.shape_of(self.opened.proposals.mask(p)) for n, p in numbers.items()}

    def _box(self, shape: int) -> list[int]:
        """The box of a shape in thousandths of the image, with noise."""
        left, top, right, bottom = tight_box(self.world.shapes[shape].mask) or (0, 0, 1, 1)
        height, width = self.world.image.shape[:2]
        noise = [self.rng.gauss(0, self.rates.box_noise * (right - left)) for _ in range(4)]
        corners = [value + n for value, n in zip((left, top, right, bottom), noise, strict=True)]
        extents = (width, height, width, height)
        return [round(min(max(c / e, 0), 1) * 1000) for c, e in zip(corners, extents, strict=True)]

    def _middle(self, shape: int) -> list[int]:
        x0, y0, x1, y1 = self._box(shape)
        return [(x0 + x1) // 2, (y0 + y1) // 2]


class ScriptedSegmenter:
    """A SAM that answers a box with the shape that it fits best, and a point with the one that it is in."""

    model = nn.Identity()
    close_up_below = 0.0

    def __init__(self, world: World):
        self.world = world

    def predict(
        self, embedding: Any, points: Any = None, labels: Any = None, box: Any = None, **options: Any
    ) -> tuple[np.ndarray, np.ndarray, None]:
        masks = [shape.mask for shape in self.world.shapes]
        if box is None:
            fits = np.array([mask[int(points[0][1]), int(points[0][0])] for mask in masks], float)
        else:
            fits = box_iou(box, np.array([tight_box(mask) for mask in masks], np.float32))
        mask = masks[int(fits.argmax())]
        return np.stack([mask if fits.max() > 0.3 else mask & False]), np.ones(1, np.float32), None


class AgentLoop:
    """A straightforward SAM 3 agent: name, find, examine every mask by a call of its own, return."""

    def __init__(self, model: ScriptedModel, concepts: ScriptedConcepts):
        self.model, self.concepts = model, concepts

    def ask(
        self, turns: list[Turn], opened: SamOpenedImage, threshold: float
    ) -> tuple[Reply, list[Selection]]:
        self.model.calls += 1  # it names a phrase
        instances = self.concepts.find(opened, self.model.world.kind)
        kept = []
        for index in range(len(instances)):
            self.model.calls += 1
            if self.model.takes(self.model.world.shape_of(instances.mask(index))):
                kept.append(index)
        self.model.calls += 1  # it returns masks, or says that there are none
        mask = instances.union(kept) if kept else None
        return Reply("", 0), [Selection(1.0 if kept else 0.0, [], mask=mask)]


def opened_world(world: World, rng: random.Random) -> SamOpenedImage:
    """The scene, with most of its shapes as proposals."""
    masks = [shape.mask for shape in world.shapes if rng.random() < PROPOSED_SHARE]
    boxes = np.array([tight_box(mask) for mask in masks], np.float32).reshape(-1, 4) - [0, 0, 1, 1]
    ones = np.ones(len(masks), np.float32)
    areas = np.array([mask.sum() for mask in masks], np.int64)
    size = world.image.shape[:2]
    logits = np.zeros((len(masks), 4, 4), np.float32)
    rles = [encode_rle(mask) for mask in masks]
    proposals = Proposals(rles, boxes.astype(np.float32), ones, ones, areas, boxes[:, :2], logits, size)
    return SamOpenedImage(SimpleNamespace(size=size), proposals, world.image)


@dataclass
class Score:
    """What a selection reaches.

    Attributes:
        gIoU: Mean IoU; 1 for what is rightly called absent.
        calls: Of the language model, per question.
        passes: Phrases looked for, per question.
    """

    gIoU: float
    calls: float
    passes: float


Selector = Callable[[ScriptedModel, ScriptedConcepts, ScriptedSegmenter], Any]

SELECTORS: dict[str, Selector] = {
    "marks": lambda model, concepts, sam: ZeroShotPipeline(_opener(sam), model, "marks"),
    "boxes": lambda model, concepts, sam: ZeroShotPipeline(_opener(sam), model, "boxes"),
    "hybrid": lambda model, concepts, sam: ZeroShotPipeline(_opener(sam), model, "hybrid"),
    "concepts": lambda model, concepts, sam: ConceptPipeline(_opener(sam), model, concepts),
    "loop": lambda model, concepts, sam: AgentLoop(model, concepts),
}


def _opener(segmenter: ScriptedSegmenter) -> Any:
    return SimpleNamespace(segmenter=segmenter)


def score(name: str, questions: int, rates: ErrorRates, seed: int = 0) -> Score:
    """Ask so many questions, the same ones for every selection."""
    overlaps, calls, passes = [], 0, 0
    for number in range(questions):
        world = make_world(random.Random(f"{seed} {number}"))
        rng = random.Random(f"{seed} {number} errors")
        opened = opened_world(world, rng)
        model = ScriptedModel(world, rates, rng, opened)
        concepts = ScriptedConcepts(world, rates, rng)
        pipeline = SELECTORS[name](model, concepts, ScriptedSegmenter(world))
        _, (selection,) = pipeline.ask([Turn(world.question)], opened, 0.5)
        mask = np.zeros(world.image.shape[:2], bool)
        if selection.confidence >= 0.5:
            for index in selection.proposals:
                mask |= opened.proposals.mask(index)
            mask |= selection.mask if selection.mask is not None else mask
        truth = world.union()
        union = (mask | truth).sum()
        overlaps.append((mask & truth).sum() / union if union else 1.0)
        calls += model.calls
        passes += concepts.passes
    return Score(float(np.mean(overlaps)), calls / questions, passes / questions)


def evidence_of(questions: int, rates: ErrorRates, seed: int = 0) -> tuple[list[Evidence], list[bool]]:
    """What "concepts" knows of the targets of so many questions, and whether each is there."""
    seen: list[Evidence] = []
    present = []
    for number in range(questions):
        world = make_world(random.Random(f"{seed} {number}"))
        rng = random.Random(f"{seed} {number} errors")
        opened = opened_world(world, rng)
        model, concepts = ScriptedModel(world, rates, rng, opened), ScriptedConcepts(world, rates, rng)

        def recording(evidence: Evidence) -> float:
            seen.append(evidence)
            return geometric_mean(evidence)

        pipeline = ConceptPipeline(_opener(ScriptedSegmenter(world)), model, concepts, confidence=recording)
        pipeline.ask([Turn(world.question)], opened, 0.5)
        present.append(bool(world.wanted))
    return seen, present


def errors_of_confidence(questions: int, rates: ErrorRates, seed: int = 0) -> tuple[float, float]:
    """The expected calibration error of "concepts", before and after a fit to as many other questions."""
    fitted = Calibration.fit(*evidence_of(questions, rates, seed + 1))
    evidence, present = evidence_of(questions, rates, seed)
    before = calibration_error([geometric_mean(row) for row in evidence], present)
    return before, calibration_error([fitted.confidence(row) for row in evidence], present)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| errors | selection | gIoU | calls | phrases |\n|---|---|---|---|---|")
    for title, rates in {
        "none": ErrorRates(0, 0, 0, 0, 0),
        "usual": ErrorRates(),
        "many": ErrorRates(0.15, 0.3, 0.1, 0.2, 0.15),
    }.items():
        for name in SELECTORS:
            found = score(name, options.questions, rates, options.seed)
            print(f"| {title} | {name} | {found.gIoU:.3f} | {found.calls:.2f} | {found.passes:.2f} |")
        before, after = errors_of_confidence(options.questions, rates, options.seed)
        print(f"| {title} | ECE of concepts: {before:.3f}, calibrated on as many others {after:.3f} | | | |")


if __name__ == "__main__":
    main()

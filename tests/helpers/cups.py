"""An image of three cups and a spoon at known positions, and a pipeline that finds them: for tests of scenes.

scene = Assistant(CupPipeline(), {}).open(BLANK_IMAGE)
shows(scene.ask("the cups"), *CUPS)
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from assistant.answer import Answer
from assistant.grammar import SEG, Turn
from assistant.pipeline import Pipeline, Reply, Selection
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals

HEIGHT, WIDTH = 60, 120
BLANK_IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
# Discs: (y, x, radius) in px.
DISCS = {"left cup": (30, 20, 12), "right cup": (30, 95, 16), "small cup": (12, 60, 6), "spoon": (50, 55, 5)}
LEFT_CUP, RIGHT_CUP, SMALL_CUP, SPOON = range(4)
CUPS = [LEFT_CUP, RIGHT_CUP, SMALL_CUP]


def disc(y: int, x: int, radius: int) -> np.ndarray:
    """(H, W) bool."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius * radius


MASKS = [disc(*place) for place in DISCS.values()]


def shows(answer: Answer, *indices: int) -> bool:
    """Whether an answer's mask is the union of these of MASKS."""
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    for index in indices:
        wanted |= MASKS[index]
    return np.array_equal(answer.mask, wanted)


def disc_proposals() -> Proposals:
    """The masks of DISCS as proposals."""
    count = len(MASKS)
    return Proposals(
        [encode_rle(mask) for mask in MASKS],
        np.zeros((count, 4), np.float32),
        np.linspace(0.9, 0.8, count).astype(np.float32),
        np.ones(count, np.float32),
        np.array([mask.sum() for mask in MASKS]),
        np.zeros((count, 2), np.float32),
        np.zeros((count, 4, 4), np.float32),
        (HEIGHT, WIDTH),
    )


@dataclass
class CupImage:
    """An opened image."""

    embedding: Any
    proposals: Proposals


class CupPipeline(Pipeline[CupImage]):
    """Finds the cups and the spoon where a question names them, and nothing else.

    Attributes:
        right_cup_only: Whether it finds only the right one of the cups.
        asked: The questions that it was asked.
        turns: The turns that it was given last.
        options: The options that it was given last.
        opened: Number of images opened.
        prompts: The arguments of each call of its segmenter.
    """

    follow_up_rules = True

    def __init__(self) -> None:
        self.opener: Any = SimpleNamespace(
            open=self.open, segmenter=SimpleNamespace(predict=self.predict, close_up_below=0.0)
        )
        self.right_cup_only = False
        self.asked: list[str] = []
        self.turns: list[Turn] = []
        self.options: dict[str, Any] = {}
        self.opened = 0
        self.prompts: list[tuple] = []

    def open(self, image: np.ndarray, progress: Any = None) -> CupImage:
        self.opened += 1
        proposals = disc_proposals()
        if progress:
            progress("encoding", None)
            progress("proposing", proposals)
        return CupImage(image, proposals)

    def ask(
        self, turns: list[Turn], opened: CupImage, threshold: float, **options: Any
    ) -> tuple[Reply, list[Selection]]:
        self.turns = turns
        self.options = options
        self.asked.append(turns[-1].question)
        marks, selections = [], []
        for name, chosen in (("cup", [RIGHT_CUP] if self.right_cup_only else CUPS), ("spoon", [SPOON])):
            if name in turns[-1].question:
                marks.append(f"{name} {SEG}")
                others = [i for i in (LEFT_CUP, SMALL_CUP, SPOON, RIGHT_CUP) if i not in chosen]
                selections.append(Selection(0.9, chosen, others))
        return Reply(", ".join(marks) + ".", 3), selections

    def predict(self, *prompt: Any):
        self.prompts.append(prompt)
        return np.stack(MASKS[:1]), np.array([0.8], np.float32), np.zeros((1, 4, 4), np.float32)

    def name_region(self, image: np.ndarray, opened: CupImage, mask: np.ndarray) -> list[tuple[str, float]]:
        return [("spoon", 0.7), ("fork", 0.2), ("knife", 0.01)]

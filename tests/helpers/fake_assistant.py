"""A stand-in for the models, for tests of the page: it finds colours by their names.

python -m tests.helpers.fake_assistant      # the page on this stand-in, to be looked at
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import ndimage

from assistant import Assistant
from assistant.answer import Answer, Target
from assistant.grammar import Turn, clean_phrase, reply_for
from assistant.pipeline import Pipeline, Reply, Selection
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals
from assistant.scene import Scene

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220)}
PHRASES = {"red": "red ball", "green": "green box", "blue": "blue sky", "bench": "bench", "quark": "quark"}
UNKNOWN = "quark"  # a word that the stand-in says it does not know
SLEEP_STEP = 0.05  # seconds between two reports of a request that takes its time
SLOW_SECONDS = 3.0  # how long a question with the word "slow" takes


def sample_image(height: int = 240, width: int = 360) -> np.ndarray:
    """(H, W, 3) uint8: a blue upper third over grey, a green box on the left, a red disc on the right."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[: height // 3] = COLOURS["blue"]
    image[height // 2 : height - 20, 30 : width // 3] = COLOURS["green"]
    y, x = np.mgrid[:height, :width]
    image[(y - height * 0.7) ** 2 + (x - width * 0.7) ** 2 < (height // 5) ** 2] = COLOURS["red"]
    return image


def colour_mask(image: np.ndarray, colour: Any) -> np.ndarray:
    """(H, W) bool: where an image has about that colour."""
    return np.abs(image.astype(int) - np.asarray(colour, int)).max(-1) < 30


@dataclass
class FakeOpenedImage:
    """The embedding is the image itself."""

    embedding: Any
    proposals: Proposals


class FakePipeline(Pipeline[FakeOpenedImage]):
    """Answers with the colours that a question names, and with "turn N" where it has the word "turns".

    The word "crash" breaks it, and "slow" makes it take its time. It opens images itself: it is its own
    opener.

    Args:
        seconds: How long opening and answering take.

    Attributes:
        opened: Number of images opened.
        steps: Number of waits of SLEEP_STEP so far.
    """

    follow_up_rules = True

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.opened = 0
        self.steps = 0
        self.opener: Any = self
        self.segmenter = SimpleNamespace(predict=self.predict, close_up_below=0.0)

    def _wait(self, seconds: float, report: Callable[[], object]) -> None:
        if not seconds:
            return
        for _ in range(max(1, int(seconds / SLEEP_STEP))):
            time.sleep(SLEEP_STEP)
            self.steps += 1
            report()

    def open(self, image: np.ndarray, progress: Any = None) -> FakeOpenedImage:
        self.opened += 1
        report = progress or (lambda *values: None)
        report("encoding", None)
        time.sleep(self.seconds)
        masks = [mask for colour in COLOURS.values() if (mask := colour_mask(image, colour)).any()]
        boxes = np.zeros((len(masks), 4), np.float32)
        proposals = Proposals(
            [encode_rle(mask) for mask in masks],
            boxes,
            np.linspace(0.9, 0.7, len(masks)).astype(np.float32),
            np.ones(len(masks), np.float32),
            np.array([mask.sum() for mask in masks], np.int64),
            boxes[:, :2],
            np.zeros((len(masks), 4, 4), np.float32),
            image.shape[:2],
        )
        report("recognising", proposals)
        time.sleep(self.seconds)
        return FakeOpenedImage(image, proposals)

    def ask(
        self, turns: list[Turn], opened: FakeOpenedImage, threshold: float, **options: Any
    ) -> tuple[Reply, list[Selection]]:
        question = turns[-1].question
        stream = options.get("stream") or (lambda text: None)
        self._wait(self.seconds + SLOW_SECONDS * ("slow" in question), lambda: stream(""))
        if "crash" in question:
            raise RuntimeError("a secret inside")
        mentions: list[tuple[str, bool]] = []
        selections: list[Selection] = []
        everything = list(range(len(opened.proposals)))
        for word in re.findall("|".join(PHRASES), question):
            chosen = [i for i in everything if self._has_colour(opened, i, word)]
            mentions.append((PHRASES[word], bool(chosen)))
            others = [i for i in everything if i not in chosen]
            confidence = 0.92 if chosen or word == UNKNOWN else 0.12
            selections.append(Selection(confidence, chosen, others, known=word != UNKNOWN))
        if "turns" in question:
            mentions.append((f"turn {len(turns)}", False))
            selections.append(Selection(0.1, []))
        if "<" in question:  # a model that repeats the question
            mentions.append((clean_phrase(question), True))
            selections.append(Selection(0.5, everything))
        for phrase, _ in mentions:
            stream(phrase + " ")
        return Reply(reply_for(mentions), len(mentions)), selections

    def names_in(self, opened: FakeOpenedImage) -> list[str]:
        everything = range(len(opened.proposals))
        return [
            PHRASES[word] for word in COLOURS if any(self._has_colour(opened, i, word) for i in everything)
        ]

    @staticmethod
    def _has_colour(opened: FakeOpenedImage, index: int, word: str) -> bool:
        """Whether a proposal is the mask of a colour."""
        if word not in COLOURS:
            return False
        mask = colour_mask(opened.embedding, COLOURS[word])
        return bool((opened.proposals.mask(index) == mask).all())

    def predict(self, image, points=None, labels=None, box=None, mask=None, multimask=True):
        """The mask, the colour under each click with it or without, and the commonest colour in the box."""
        whole = np.zeros(image.shape[:2], bool) if mask is None else mask.copy()
        points = points or []
        labels = [1] * len(points) if labels is None else labels
        for (x, y), label in zip(points, labels, strict=True):
            clicked = image[min(int(y), image.shape[0] - 1), min(int(x), image.shape[1] - 1)]
            here = colour_mask(image, clicked)
            whole = whole | here if label else whole & ~here
        if box is not None:
            x0, y0, x1, y1 = (int(v) for v in box)
            masks = [colour_mask(image, colour) for colour in COLOURS.values()]
            whole |= max(masks, key=lambda m: m[y0:y1, x0:x1].sum())
        if not multimask:
            return whole[None], np.array([0.9], np.float32), None
        larger = ndimage.binary_dilation(whole, iterations=6)
        smaller = ndimage.binary_erosion(whole, iterations=6)
        return np.stack([whole, larger, smaller]), np.array([0.8, 0.6, 0.4], np.float32), None

    def name_region(
        self, image: np.ndarray, opened: FakeOpenedImage, mask: np.ndarray
    ) -> list[tuple[str, float]]:
        colour = np.median(image[mask], axis=0)
        word = min(COLOURS, key=lambda name: np.abs(np.asarray(COLOURS[name]) - colour).sum())
        return [(PHRASES[word], 0.8)]


class FakeScene(Scene):
    """Finds what has the colour of an example; its model attends to the middle of the image.

    A question with the word "pair" finds two instances of the green box: its left and its right half. One
    with the word "find" says which phrases were looked for, as a concept segmenter does.
    """

    def ask(self, question: str, **options: Any) -> Answer:
        answer = super().ask(question, **options)
        for target in answer.present if "pair" in question else []:
            if target.phrase != PHRASES["green"] or target.mask is None:
                continue
            columns = np.flatnonzero(target.mask.any(axis=0))
            left = target.mask & (np.arange(target.mask.shape[1]) <= columns[len(columns) // 2])
            target.instances = [left, target.mask & ~left]
        for target in answer.targets if "find" in question else []:
            target.searched = [target.phrase]
        return answer

    def search_again(self, answer: Answer, phrases: Mapping[str, Sequence[str]]) -> Answer:
        """Find the first colour that the phrases name."""
        ((name, wanted),) = phrases.items()
        word = next((word for word in COLOURS for phrase in wanted if word in phrase), None)
        mask = colour_mask(self.image, COLOURS[word]) if word else None
        found = Target(name, word is not None, 0.9 if word else 0.1, mask, [], searched=list(wanted))
        return replace(answer, targets=[found if t.phrase == name else t for t in answer.targets])

    def segment_like(self, reference_image, reference_mask, label=None):
        return colour_mask(self.image, np.median(reference_image[reference_mask], axis=0)), 0.7

    def attend(self, phrase: str) -> np.ndarray:
        height, width = self.size
        y, x = np.mgrid[:height, :width]
        return np.exp(-((y / height - 0.5) ** 2 + (x / width - 0.5) ** 2) * 8)


class FakeAssistant(Assistant):
    """An assistant on the fake pipeline; seconds: how long opening and answering take."""

    pipeline: FakePipeline

    def __init__(self, seconds: float = 0.0):
        super().__init__(FakePipeline(seconds), {}, cache_size=12)

    def open(self, image: Any, progress: Any = None) -> FakeScene:
        scene = super().open(image, progress)
        return FakeScene(self, scene.image, scene.opened)


def main() -> None:
    import tempfile
    from pathlib import Path

    import app
    from assistant.page.examples import save_examples
    from assistant.page.layout import build_page

    with tempfile.TemporaryDirectory() as folder:
        app.serve(build_page(FakeAssistant(seconds=1.0), save_examples(Path(folder))))


if __name__ == "__main__":
    main()

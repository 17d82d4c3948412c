"""A stand-in for the models, for tests of the page: it finds colours by their names. Everything else is the product's.

python -m tests.helpers.fake_assistant      # the page on this stand-in, to look at
"""

import re
import time
from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from assistant import Assistant
from assistant.grammar import clean_phrase, reply_for
from assistant.pipeline import Pipeline, Reply, Selection
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals
from assistant.scene import Scene

PAINT = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220)}
THINGS = {"red": "red ball", "green": "green box", "blue": "blue sky", "bench": "bench"}


def picture(height=240, width=360):
    """(H, W, 3) uint8: a blue upper third over grey, a green box on the left, a red disc on the right."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[: height // 3] = PAINT["blue"]
    image[height // 2 : height - 20, 30 : width // 3] = PAINT["green"]
    y, x = np.mgrid[:height, :width]
    image[(y - height * 0.7) ** 2 + (x - width * 0.7) ** 2 < (height // 5) ** 2] = PAINT["red"]
    return image


def near(image, colour):
    """(H, W) bool"""
    return np.abs(image.astype(int) - np.asarray(colour, int)).max(-1) < 30


class FakePipeline(Pipeline):
    """Answers with the colours that the question names, and "turn N" where it asks for the turns. "crash" breaks it,
    "slow" takes its time."""

    def __init__(self, seconds):
        self.seconds, self.opened, self.steps = seconds, 0, 0
        self.opener = SimpleNamespace(open=self.open, segmenter=SimpleNamespace(predict=self.predict))

    def rest(self, tell, seconds):
        for _ in range(max(1, int(seconds / 0.05))) if seconds else ():
            time.sleep(0.05)
            self.steps += 1
            if tell:
                tell()

    def open(self, image, progress=None):
        self.opened += 1
        tell = progress or (lambda *news: None)
        tell("encoding", None)
        time.sleep(self.seconds)
        masks = [m for colour in PAINT.values() if (m := near(image, colour)).any()]
        boxes = np.zeros((len(masks), 4), np.float32)
        found = Proposals(
            [encode_rle(m) for m in masks],
            boxes,
            np.linspace(0.9, 0.7, len(masks)).astype(np.float32),
            np.ones(len(masks), np.float32),
            np.array([m.sum() for m in masks], np.int64),
            boxes[:, :2],
            np.zeros((len(masks), 4, 4), np.float32),
            image.shape[:2],
        )
        tell("recognising", found)
        time.sleep(self.seconds)
        return SimpleNamespace(embedding=image, proposals=found)

    def ask(self, turns, view, threshold, stream=None, **options):
        question, said, found = turns[-1].question, [], []
        self.rest(lambda: stream and stream(""), self.seconds + 3 * ("slow" in question))
        if "crash" in question:
            raise RuntimeError("a secret inside")
        colours = {name: near(view.embedding, colour) for name, colour in PAINT.items()}
        pool = [i for i in range(len(view.proposals))]
        for word in re.findall("|".join(THINGS), question):
            own = [i for i in pool if word in PAINT and (view.proposals.mask(i) == colours[word]).all()]
            said.append((THINGS[word], bool(own)))
            found.append(Selection(0.92 if own else 0.12, own, [i for i in pool if i not in own]))
        if "turns" in question:
            said.append((f"turn {len(turns)}", False))
            found.append(Selection(0.1, []))
        if "<" in question:  # a model that repeats what it was told
            said.append((clean_phrase(question), True))
            found.append(Selection(0.5, pool))
        for phrase, _ in said:
            if stream:
                stream(phrase + " ")
        return Reply(reply_for(said), len(said)), found

    def predict(self, image, points=None, labels=None, box=None, mask=None, multimask=True):
        """The colour under the clicks; for a box, the commonest paint in it; else the mask, less what is left out."""
        whole = np.zeros(image.shape[:2], bool) if mask is None else mask.copy()
        labels = [1] * len(points or []) if labels is None else labels
        for (x, y), label in zip(points or [], labels):
            here = near(image, image[min(int(y), image.shape[0] - 1), min(int(x), image.shape[1] - 1)])
            whole = whole | here if label else whole & ~here
        if box is not None:
            x0, y0, x1, y1 = (int(v) for v in box)
            paints = [near(image, colour) for colour in PAINT.values()]
            whole |= max(paints, key=lambda m: m[y0:y1, x0:x1].sum())
        if not multimask:
            return whole[None], np.array([0.9], np.float32), None
        return (
            np.stack(
                [
                    whole,
                    ndimage.binary_dilation(whole, iterations=6),
                    ndimage.binary_erosion(whole, iterations=6),
                ]
            ),
            np.array([0.8, 0.6, 0.4], np.float32),
            None,
        )

    def name_region(self, image, view, mask):
        colour = np.median(image[mask], axis=0)
        word = min(PAINT, key=lambda name: np.abs(np.asarray(PAINT[name]) - colour).sum())
        return [(THINGS[word], 0.8)]


class FakeScene(Scene):
    def segment_like(self, reference_image, reference_mask, label=None):
        found = near(self.image, np.median(reference_image[reference_mask], axis=0))
        return found, 0.7

    def attend(self, phrase):
        y, x = np.mgrid[: self.size[0], : self.size[1]]
        return np.exp(-((y / self.size[0] - 0.5) ** 2 + (x / self.size[1] - 0.5) ** 2) * 8)


class FakeAssistant(Assistant):
    def __init__(self, seconds=0.0):
        super().__init__(FakePipeline(seconds), {}, keep=12)

    def open(self, image, progress=None):
        opened = super().open(image, progress)
        return FakeScene(self, opened.image, opened.opened)


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    import app
    from assistant.page.layout import build_page

    with tempfile.TemporaryDirectory() as folder:
        app.serve(build_page(FakeAssistant(seconds=1.0), app.save_examples(Path(folder))))

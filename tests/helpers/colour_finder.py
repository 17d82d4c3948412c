"""A double of the assistant for tests of the benchmarks: it finds coloured rectangles by their names."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.sam.mask_ops import encode_rle

H, W = 40, 60
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
BOXES = {"red": (4, 4, 24, 24), "blue": (30, 10, 50, 30)}  # xyxy
GREY = 200
MAX_COLOUR_DIFFERENCE = 60  # of a channel: JPEG moves colours


def rectangle(x0, y0, x1, y1):
    """(H, W) bool: the pixels [x0, x1) x [y0, y1)."""
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def save_image(path, colours=("red", "blue")):
    """Write a grey image with the rectangles of some colours."""
    pixels = np.full((H, W, 3), GREY, np.uint8)
    for colour in colours:
        pixels[rectangle(*BOXES[colour])] = COLOURS[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)


class FakeProposals(SimpleNamespace):
    """Proposals of which only `rles` and `boxes` are read."""

    def __len__(self):
        return len(self.rles)


class FakeScene:
    """Finds each colour that a question names.

    "surely" makes it outline 25 px of what is absent, and "broken" is refused.
    """

    finds_names = False

    def __init__(self, assistant, image):
        self.assistant = assistant
        self.image = image
        self.size = image.shape[:2]
        self.turns = 0
        boxes = [(4, 4, 14, 24), (14, 4, 24, 24), BOXES["blue"]]  # red in halves, blue whole
        rles = [encode_rle(rectangle(*box)) for box in boxes]
        self.proposals = FakeProposals(rles=rles, boxes=np.array(boxes, np.float32))

    def reset(self):
        self.turns = 0

    def ask(self, question):
        self.assistant.asked.append(question)
        self.turns += 1
        assert self.turns == 1 or question.startswith("and "), "every question must start a new conversation"
        if "broken" in question:
            raise BadInput("cannot be asked")
        targets = [self._target(colour, "surely" in question) for colour in COLOURS if colour in question]
        return Answer(
            text="<script>alert(1)</script> " + question,
            targets=targets,
            size=(H, W),
            image=self.image,
            question=question,
        )

    def _target(self, colour, surely):
        difference = np.abs(self.image.astype(int) - COLOURS[colour])
        mask = (difference < MAX_COLOUR_DIFFERENCE).all(2)
        if self.assistant.half:
            mask[:, :14] = False
        present = surely or bool(mask.any())
        if surely:
            mask = rectangle(0, 0, 5, 5)
        if not present:
            return Target(colour, False, 0.1, None, [])
        return Target(colour, True, 0.9, mask, [0])


class FakeAssistant:
    """Opens images as `FakeScene`s; half: red is found by its right half only."""

    def __init__(self, half=False):
        self.weights = {"llm": "0" * 64}
        self.asked = []
        self.opened = 0
        self.half = half

    def open(self, image):
        self.opened += 1
        return FakeScene(self, image)

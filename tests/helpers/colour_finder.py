"""A stand-in for the assistant, for tests of the benchmarks: it finds red, blue and green rectangles by their names."""

from types import SimpleNamespace

import numpy as np
from pycocotools import mask as coco_mask

from assistant.answer import Answer, Target
from assistant.errors import BadInput

H, W = 40, 60
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
BOXES = {"red": (4, 4, 24, 24), "blue": (30, 10, 50, 30)}  # xyxy


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def rle(mask):
    found = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [H, W], "counts": found["counts"].decode()}


class Pool(SimpleNamespace):
    def __len__(self):
        return len(self.rles)


class FakeScene:
    """Finds red and blue exactly, or half of it where `half`; "broken" in a question is refused."""

    def __init__(self, assistant, image):
        self.assistant, self.image, self.turns = assistant, image, 0
        halves = [rectangle(4, 4, 14, 24), rectangle(14, 4, 24, 24), rectangle(*BOXES["blue"])]
        self.size = image.shape[:2]
        boxes = np.array([(4, 4, 14, 24), (14, 4, 24, 24), (30, 10, 50, 30)], np.float32)
        self.proposals = Pool(rles=[rle(m) for m in halves], boxes=boxes)

    def reset(self):
        self.turns = 0

    def ask(self, question):
        self.assistant.asked.append(question)
        self.turns += 1
        assert self.turns == 1 or question.startswith("and "), "every question must start a new conversation"
        if "broken" in question:
            raise BadInput("cannot be asked")
        targets = []
        for colour in COLOURS:
            if colour in question:
                mask = (np.abs(self.image.astype(int) - COLOURS[colour]) < 60).all(2)  # JPEG moves colours
                if self.assistant.half:
                    mask[:, :14] = False
                there = bool(mask.any()) or "surely" in question
                if "surely" in question:
                    mask = rectangle(0, 0, 5, 5)
                targets.append(
                    Target(
                        phrase=colour,
                        present=there,
                        confidence=0.9 if there else 0.1,
                        mask=mask if there else None,
                        proposals=[0] if there else [],
                    )
                )
        return Answer(
            text="<script>alert(1)</script> " + question,
            targets=targets,
            size=(H, W),
            image=self.image,
            question=question,
        )


class FakeAssistant:
    def __init__(self, half=False):
        self.weights, self.asked, self.opened, self.half = {"llm": "0" * 64}, [], 0, half

    def open(self, image):
        self.opened += 1
        return FakeScene(self, image)

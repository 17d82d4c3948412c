"""A stand-in for the assistant, for tests of the page: it finds colours by their names.

    python -m tests.fake_assistant      # the page on this stand-in, to look at
"""

import re
import time

import numpy as np

from assistant.answer import Answer, Target
from assistant.errors import BadInput

PAINT = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220)}
THINGS = {"red": "the red ball", "green": "the green box", "blue": "the blue sky", "bench": "a bench"}


def picture(height=240, width=360):
    """(H, W, 3) uint8: a blue upper third over grey, a green box on the left, a red disc on the right."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[: height // 3] = PAINT["blue"]
    image[height // 2 : height - 20, 30 : width // 3] = PAINT["green"]
    y, x = np.mgrid[:height, :width]
    image[(y - height * 0.7) ** 2 + (x - width * 0.7) ** 2 < (height // 5) ** 2] = PAINT["red"]
    return image


class FakeScene:
    def __init__(self, image, seconds):
        self.image, self.seconds, self.turns = image, seconds, []

    def __deepcopy__(self, memo):
        raise AssertionError("a scene must not be copied")

    def ask(self, question):
        time.sleep(self.seconds)
        if not question.strip():
            raise BadInput("the question is empty: ask for something in the picture")
        if "crash" in question:
            raise RuntimeError("a secret inside")
        self.turns.append(question)
        if "<" in question:  # a model that repeats what it was told
            return Answer(question, [Target(question, True, 0.5, np.ones(self.image.shape[:2], bool), [0])],
                          self.image.shape[:2], self.image, question)
        targets = []
        for word in re.findall("|".join(THINGS), question):
            if word in PAINT:
                mask = np.abs(self.image.astype(int) - PAINT[word]).max(-1) < 30
                if mask.any():
                    targets.append(Target(THINGS[word][4:], True, 0.92, mask, [0]))
                    continue
            targets.append(Target(THINGS[word].split(" ", 1)[1], False, 0.88, None, []))
        there = [f"The {t.phrase} is here" for t in targets if t.present]
        gone = [f"there is no {t.phrase}" for t in targets if not t.present]
        text = "; ".join(there + gone) + f" (turn {len(self.turns)})."
        return Answer(text[0].upper() + text[1:], targets, self.image.shape[:2], self.image, question)

    def reset(self):
        self.turns.clear()


class FakeAssistant:
    def __init__(self, seconds=0.0):
        self.seconds, self.scenes = seconds, []

    def open(self, image):
        from PIL import Image, UnidentifiedImageError

        time.sleep(self.seconds)
        try:
            pixels = np.asarray(Image.open(image).convert("RGB"))
        except UnidentifiedImageError:
            raise BadInput("this file is no picture that can be read: use a JPEG, PNG or WebP file") from None
        self.scenes.append(FakeScene(pixels, self.seconds))
        return self.scenes[-1]


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    import app

    with tempfile.TemporaryDirectory() as folder:
        app.serve(app.build_app(FakeAssistant(seconds=1.0), app.save_examples(Path(folder))))

"""A picture opened once and asked many times.

    assistant = Assistant.from_preset("pocket")
    scene = assistant.open("photo.jpg")
    answer = scene.ask("what keeps the rain off?")
    answer.text, answer.mask, answer.targets
    scene.ask("and the one on the left?")          # earlier turns are remembered; scene.reset() forgets them
"""

import numpy as np

from assistant.answer import Answer, Target
from assistant.grammar import Turn, check_question, parse, plain, reply_for
from assistant.images import open_image

THRESHOLD = 0.5  # confidence from which a target counts as present; [ABS] and anything below both mean absent
REMEMBERED = 6  # turns the reasoner still reads


class Assistant:
    """A preset's parts. weights: {part: sha256} of what is loaded; threshold: see THRESHOLD."""

    def __init__(self, parts, weights: dict[str, str], threshold: float = THRESHOLD):
        self.parts, self.weights, self.threshold = parts, weights, threshold

    @classmethod
    def from_preset(cls, name: str = "pocket", adapter=None, device: str = "cpu", threshold: float = THRESHOLD) -> "Assistant":
        """name: see `assistant.presets`; adapter: a folder that finetune wrote; BadInput: unknown, or no weights to be had."""
        from assistant.presets import load_preset

        return cls(*load_preset(name, adapter, device), threshold)

    @property
    def segmenter(self):
        return self.parts.eyes.segmenter

    def open(self, image) -> "Scene":
        """image: path | PIL.Image | (H, W, 3) uint8 RGB. The expensive step, once per picture. BadInput: no picture."""
        image = open_image(image)
        return Scene(self, image, self.parts.eyes.open(image))


class Scene:
    """One opened picture. image: (H, W, 3) uint8 RGB; proposals: see `assistant.proposals.Proposals`."""

    def __init__(self, assistant: Assistant, image: np.ndarray, view):
        self.assistant, self.image, self.view = assistant, image, view
        self.turns: list[Turn] = []

    @property
    def proposals(self):
        return self.view.proposals

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[:2]

    def ask(self, question: str, *, remember: bool = True, **options) -> Answer:
        """Find what the question means. options: temperature, seed, max_new_tokens, stream, as the reasoner's `reply`.

        BadInput: an empty or overlong question. The confidence of a target is the selector's that it is there.
        """
        question = check_question(question)
        turns = [*self.turns[-REMEMBERED:], Turn(question)]
        reply, found = self.assistant.parts.ask(turns, self.view, self.assistant.threshold, **options)
        targets, seen = [], set()
        for mention, one in zip(parse(reply.text), found):
            if mention.phrase.lower() in seen:  # a small model may say a thing twice
                continue
            seen.add(mention.phrase.lower())
            targets.append(self._target(mention.phrase, mention.present, one))
        text = reply_for([(t.phrase, t.present) for t in targets])
        if remember:
            self.turns.append(Turn(question, reply.text))
        return Answer(plain(text), targets, self.size, self.image, question, reply.tokens)

    def _target(self, phrase: str, present: bool, found) -> Target:
        if not present or not found.proposals:
            return Target(phrase, False, min(found.confidence, self.assistant.threshold), None, found.proposals)
        mask = np.zeros(self.size, bool)
        for i in found.proposals:
            mask |= self.proposals.mask(i)
        return Target(phrase, True, found.confidence, mask, found.proposals)

    def reset(self) -> None:
        """Forget the turns."""
        self.turns.clear()

    def segment(self, points=None, labels=None, box=None, mask=None, multimask: bool = True):
        """SAM by hand: points (N, 2) xy px with labels (N,) 1 inside / 0 outside, box xyxy px, mask (H, W) bool or
        low-resolution logits -> masks (M, H, W) bool, scores (M,) float32 in [0, 1]; M = 3, or 1 unless `multimask`."""
        return self.assistant.segmenter.predict(self.view.embedding, points, labels, box, mask, multimask)[:2]

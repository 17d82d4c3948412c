"""A picture opened once and asked many times.

assistant = Assistant.from_preset("pocket")
scene = assistant.open("photo.jpg")
answer = scene.ask("what keeps the rain off?")
answer.text, answer.mask, answer.targets
scene.ask("and the one on the left?")          # earlier turns are remembered; scene.reset() forgets them
scene.ask("what is this?", about=mask)         # a question about a part of the picture
"""

import hashlib
from collections import OrderedDict
from functools import cached_property

import numpy as np

from assistant.answer import Answer, Target
from assistant.dialogue import followups as followup
from assistant.errors import BadInput
from assistant.grammar import Turn, check_question, parse, plain, reply_for
from assistant.images import open_image

THRESHOLD = 0.5  # confidence from which a target counts as present; [ABS] and anything below both mean absent
LONGEST = 32  # sides to each other of a picture, at most: of a longer one SAM would see a line of cells
REMEMBERED = 6  # turns the reasoner still reads


class Assistant:
    """A preset's parts. weights: {part: sha256} of what is loaded; threshold: see THRESHOLD. keep: how many opened
    pictures to hold on to, by their content, so that opening one again is free (0: none; the pocket's take 8 MB each)."""

    def __init__(self, pipeline, weights: dict[str, str], threshold: float = THRESHOLD, keep: int = 0):
        self.pipeline, self.weights, self.threshold, self.keep = pipeline, weights, threshold, keep
        self.opened_images: OrderedDict[str, object] = OrderedDict()  # the latest used last

    @classmethod
    def from_preset(
        cls,
        name: str = "pocket",
        adapter=None,
        device: str | None = None,
        threshold: float = THRESHOLD,
        **options,
    ) -> "Assistant":
        """name: see `assistant.presets`; adapter: a folder that finetune wrote; device: None for the GPU if there is one;
        options: those of `from_pretrained`, in the place of the preset's. BadInput: unknown, or no weights to be had."""
        from assistant.presets import load_preset

        return cls(*load_preset(name, adapter, device, **options), threshold)

    @classmethod
    def from_pretrained(
        cls,
        mllm: str,
        sam: str,
        adapter=None,
        selection: str | None = None,
        device: str | None = None,
        four_bit: bool = False,
        base_url: str | None = None,
        verify: bool = False,
        threshold: float = THRESHOLD,
    ) -> "Assistant":
        """mllm: a hub id or folder in transformers' layout, or "openai:MODEL" on a server at `base_url`; sam: a hub id, a
        folder, an official .pth file, or "pocket"; adapter: a folder that finetune wrote; selection: "marks", "boxes" or
        "trained" (see `assistant.presets`); four_bit: the LLM's weights; verify: show each chosen mask again."""
        from assistant.presets import load_pipeline

        return cls(
            *load_pipeline(mllm, sam, adapter, selection, device, four_bit, base_url, verify), threshold
        )

    @property
    def segmenter(self):
        return self.pipeline.opener.segmenter

    @cached_property
    def matcher(self):
        """What `segment_like` goes by, an `assistant.few_shot.matcher.Matcher`; the pocket preset brings one, others are given
        one: `assistant.matcher = Matcher.load(folder, assistant.segmenter)`."""
        from assistant.few_shot.matcher import pocket_matcher

        return pocket_matcher(self.segmenter)

    def open(self, image, progress=None) -> "Scene":
        """image: path | PIL.Image | (H, W, 3) uint8 RGB. The expensive step, once per picture. BadInput: no picture.

        progress: called before each step as progress(what is done next, proposals or None); what it raises ends the work.
        """
        image = open_image(image)
        height, width = image.shape[:2]
        if max(height, width) > LONGEST * min(height, width):
            raise BadInput(
                f"the picture is {width}x{height}, too long and thin to be looked at: crop it to at most {LONGEST} to 1"
            )
        if not self.keep:
            return Scene(self, image, self._open(image, progress))
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        if key not in self.opened_images:
            view = self._open(image, progress)
            while len(self.opened_images) >= self.keep:
                self.opened_images.popitem(last=False)
            self.opened_images[key] = view
        self.opened_images.move_to_end(key)
        return Scene(self, image, self.opened_images[key])

    def _open(self, image, progress):
        return (
            self.pipeline.opener.open(image, progress=progress)
            if progress
            else self.pipeline.opener.open(image)
        )


class Scene:
    """One opened picture. image: (H, W, 3) uint8 RGB; proposals: see `assistant.sam.proposals.Proposals`."""

    def __init__(self, assistant: Assistant, image: np.ndarray, opened):
        self.assistant, self.image, self.opened = assistant, image, opened
        self.turns: list[Turn] = []
        self.shown: list[Target] = []  # what the last answer was about; a correction by hand may replace it

    @property
    def proposals(self):
        return self.opened.proposals

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[:2]

    def fresh(self) -> "Scene":
        """The same opened picture with nothing said about it."""
        return Scene(self.assistant, self.image, self.opened)

    def ask(
        self, question: str, *, about: np.ndarray | None = None, remember: bool = True, **options
    ) -> Answer:
        """Find what the question means. about: (H, W) bool, the part of the picture that "it" and "this" mean.
        options: temperature, seed, max_new_tokens, stream, as the reasoner's `reply`.

        What refers to the masks of the last answer ("the one on the left?", "now remove the cup") is worked out by
        `assistant.dialogue.followups`; everything else is the model's. BadInput: an empty or overlong question, an empty `about`.
        The confidence of a target is the selector's that it is there.
        """
        question = check_question(question)
        if about is None:
            answer = followup.answer(self, question, options)
        else:
            about = np.asarray(about)
            if about.dtype != bool or about.shape != self.size or not about.any():
                raise BadInput(
                    f"about must be a mask of {self.size[0]} x {self.size[1]} bool that is not empty"
                )
            answer = followup.answer_about(self, question, about, options)
        answer = answer or self._ask(question, options)
        if remember:
            self.turns.append(turn_of(answer))
            self.shown = answer.targets
        return answer

    def _ask(self, question: str, options: dict) -> Answer:
        """What the model itself says."""
        turns = [*self.turns[-REMEMBERED:], Turn(question)]
        reply, found = self.assistant.pipeline.ask(turns, self.opened, self.assistant.threshold, **options)
        targets = [
            self._target(mention.phrase, mention.present, one)
            for mention, one in zip(parse(reply.text), found)
        ]
        return Answer(
            plain(reply.text),
            targets,
            self.size,
            self.image,
            question,
            reply.tokens,
            reply.written or reply.text,
            reply.reasoning,
        )

    def _target(self, phrase: str, present: bool, found) -> Target:
        if not present or not found.proposals and found.mask is None:
            return Target(
                phrase,
                False,
                min(found.confidence, self.assistant.threshold),
                None,
                found.proposals,
                found.others,
            )
        mask = self.union(found.proposals)
        mask = mask if found.mask is None else mask | found.mask
        return Target(phrase, True, found.confidence, mask, found.proposals, found.others)

    def union(self, proposals: list[int]) -> np.ndarray:
        """(H, W) bool: all that these proposals cover."""
        mask = np.zeros(self.size, bool)
        for i in proposals:
            mask |= self.proposals.mask(i)
        return mask

    def reset(self) -> None:
        """Forget the turns and what was shown."""
        self.turns.clear()
        self.shown = []

    def segment(self, points=None, labels=None, box=None, mask=None, multimask: bool = True):
        """SAM by hand: points (N, 2) xy px with labels (N,) 1 inside / 0 outside, box xyxy px, mask (H, W) bool or
        low-resolution logits -> masks (M, H, W) bool, scores (M,) float32 in [0, 1]; M = 3, or 1 unless `multimask`."""
        return self.assistant.segmenter.predict(self.opened.embedding, points, labels, box, mask, multimask)[
            :2
        ]

    def segment_like(self, reference_image, reference_mask, label: str | None = None):
        """What is like this reference: a picture (path | PIL.Image | (H, W, 3) uint8) and its mask (path | (H, W),
        nonzero = inside), or a list of each; `label` names it -> mask (H, W) bool, score in [0, 1].

        VLP-SAM (arXiv 2502.00719), without a label VRP-SAM (arXiv 2402.17726). BadInput: a mask that is empty, of another
        size than its picture, or covers all of it. The score is the mean probability inside the mask, which is never
        asked whether the thing is there at all.
        """
        from assistant.few_shot.matcher import references

        matcher = self.assistant.matcher
        like = references(matcher, reference_image, reference_mask)
        return matcher.segment(matcher.look(self.image, self.opened.embedding), like, label)

    def attend(self, phrase: str) -> np.ndarray:
        """Where the model looks for a phrase such as "a mug": (H, W) float32 heat map in [0, 1], see `assistant.attention.maps`.
        BadInput: a phrase that names nothing, a preset whose model exposes no attention."""
        from assistant.attention.maps import attend

        return attend(self.assistant.pipeline.attention_probe(), self.opened, phrase)


def turn_of(answer: Answer) -> Turn:
    """What a scene remembers of an answer."""
    return Turn(answer.question, answer.said or reply_for([(t.phrase, t.present) for t in answer.targets]))

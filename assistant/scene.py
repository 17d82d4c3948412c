"""An image that is opened once and asked about many times.

    assistant = Assistant.from_preset("pocket")
    scene = assistant.open("photo.jpg")
    answer = scene.ask("what keeps the rain off?")
    answer.text, answer.mask, answer.targets
    scene.ask("and the one on the left?")          # earlier turns are remembered; scene.reset() forgets them
    scene.ask("what is this?", about=mask)         # a question about a part of the image

Coordinates are pixels of the upright image: x runs to the right, y down, and a shape is (height, width).
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from assistant.answer import Answer, Cost, Target
from assistant.dialogue import followups, named_search
from assistant.errors import BadInput
from assistant.grammar import Turn, check_question, counted, is_countable, parse, plain, reply_for
from assistant.images import open_image
from assistant.pipeline import OpenedImage, Pipeline, Selection
from assistant.sam.close_up import sharpened
from assistant.sam.image_opener import Progress
from assistant.sam.instances import separate
from assistant.sam.mask_ops import without_stray_islands
from assistant.sam.proposals import Proposals
from assistant.sam.segmenter import Segmenter

if TYPE_CHECKING:
    from assistant.few_shot.matcher import Matcher
    from assistant.sam.concepts import ConceptSegmenter, Instances

# The confidence from which a target counts as present; [ABS] and everything below the threshold mean absent.
PRESENCE_THRESHOLD = 0.5
# SAM sees an image as 64 cells along its longer side, so that at 32 to 1 the shorter side has two cells.
MAX_ASPECT_RATIO = 32
# Instances of a target that are outlined again, the largest; on two cores .2 s for each that is small.
MAX_SHARPENED = 4
# Share of the mask of a click on a coarse SAM, below which an island without a click is dropped: on 136
# things of photos kept aside the best of three masks gains .003 IoU.
MIN_ISLAND_SHARE = 0.1
# Earlier turns that the language model reads again with a new question.
MAX_REMEMBERED_TURNS = 6

ImageSource = str | Path | Image.Image | np.ndarray
MaskSource = str | Path | Image.Image | np.ndarray


class Assistant:
    """A loaded pipeline, and the images that it has opened.

    Args:
        pipeline: The models that open images and answer questions.
        weights: {part: sha256 of the weights that are loaded}.
        threshold: Confidence in [0, 1] from which a target counts as present.
        cache_size: Number of opened images to hold in memory, found again by their pixels, so that opening
            the same image again is free; 0 holds none. An image that the pocket preset has opened takes about
            8 MB.
    """

    def __init__(
        self,
        pipeline: Pipeline[Any],
        weights: dict[str, str],
        threshold: float = PRESENCE_THRESHOLD,
        cache_size: int = 0,
    ):
        self.pipeline = pipeline
        self.weights = weights
        self.threshold = threshold
        self.cache_size = cache_size
        self.opened_images: OrderedDict[str, OpenedImage] = OrderedDict()  # the one used last comes last

    @classmethod
    def from_preset(
        cls,
        name: str = "pocket",
        adapter: str | Path | None = None,
        device: str | None = None,
        threshold: float = PRESENCE_THRESHOLD,
        **options: Any,
    ) -> Assistant:
        """Load a preset.

        Args:
            name: A name of `assistant.presets.PRESETS`.
            adapter: A folder that `python -m finetune` wrote.
            device: "cpu", "cuda" or "cuda:1"; None for the GPU if there is one.
            threshold: Confidence in [0, 1] from which a target counts as present.
            options: Options of `from_pretrained`, which replace the preset's own parts.

        Returns:
            An assistant that holds no opened images.

        Raises:
            BadInput: There is no such preset, or its weights cannot be had.
        """
        from assistant.presets import load_preset

        pipeline, weights = load_preset(name, adapter, device, **options)
        return cls(pipeline, weights, threshold)

    @classmethod
    def from_pretrained(
        cls,
        mllm: str,
        sam: str,
        adapter: str | Path | None = None,
        selection: str | None = None,
        device: str | None = None,
        four_bit: bool = False,
        base_url: str | None = None,
        verify: bool = False,
        threshold: float = PRESENCE_THRESHOLD,
        pixels: int | None = None,
        max_tokens: int | None = None,
        concepts: str | None = None,
        calibration: str | Path | None = None,
    ) -> Assistant:
        """Load an assistant from its parts.

        Args:
            mllm: The multimodal LLM: a hub id or a folder in the layout of transformers, or "openai:MODEL"
                for a model on a server at `base_url`.
            sam: A hub id, a folder, an official .pth file, or "pocket" for the SAM of the pocket preset.
            adapter: A folder that `python -m finetune` wrote.
            selection: How masks are selected: "hybrid", "marks", "boxes", "concepts" or "trained"; None for
                the best that the parts allow (see `assistant.loading.pipelines.load_pipeline`).
            device: "cpu", "cuda" or "cuda:1"; None for the GPU if there is one.
            four_bit: Whether the weights of the LLM are kept in 4 bits.
            base_url: Address of the server of an openai:MODEL, such as "http://127.0.0.1:8000/v1".
            verify: Whether each selected mask is shown to the model again, to be confirmed or dropped.
            threshold: Confidence in [0, 1] from which a target counts as present.
            pixels: px of an image that the LLM is shown, at most; None for what the adapter was trained with,
                or what suits the LLM's family.
            max_tokens: Tokens that the LLM may write for one answer; those of its thoughts count too where it
                is on a server. None for what suits it.
            concepts: SAM 3 or a zero-shot detector, a hub id or a folder, that finds what the LLM names.
            calibration: A file that `python -m finetune calibrate` wrote, for the selection "concepts".

        Returns:
            An assistant that holds no opened images.

        Raises:
            BadInput: A part is unknown, does not fit the others, or its weights cannot be had.
        """
        from assistant.loading.pipelines import load_pipeline

        pipeline, weights = load_pipeline(
            mllm,
            sam,
            adapter,
            selection,
            device,
            four_bit,
            base_url,
            verify,
            pixels=pixels,
            max_tokens=max_tokens,
            concepts=concepts,
            calibration=calibration,
        )
        return cls(pipeline, weights, threshold)

    @property
    def segmenter(self) -> Segmenter:
        """The SAM behind the proposals and behind `Scene.segment`."""
        return self.pipeline.opener.segmenter

    @cached_property
    def matcher(self) -> Matcher:
        """The few-shot matcher that `Scene.segment_like` uses.

        The pocket preset brings one. Other presets are given one:
        `assistant.matcher = Matcher.load(folder, assistant.segmenter)`. Raises BadInput where there is none.
        """
        from assistant.few_shot.matcher import pocket_matcher

        return pocket_matcher(self.segmenter)

    def open(self, image: ImageSource, progress: Progress | None = None) -> Scene:
        """Open an image. This is the expensive step, and is needed once per image.

        Args:
            image: A path, a PIL image, or an array (H, W, 3) or (H, W) of uint8, RGB or grey, both sides at
                least 8 px. The EXIF orientation of files and PIL images is applied.
            progress: Called before each step as `progress(step, proposals)`, where step is "encoding",
                "proposing" or "recognising" and proposals are those known so far, or None. What it raises
                ends the work.

        Returns:
            A scene without earlier turns.

        Raises:
            BadInput: It is no image that can be read, it has too many pixels or too few, or one side is more
                than 32 times the other.
        """
        pixels = open_image(image)
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise BadInput(
                f"the image is {width}x{height}, too long and thin to be segmented: crop it to at most "
                f"{MAX_ASPECT_RATIO} to 1"
            )
        return Scene(self, pixels, self._opened(pixels, progress))

    def _opened(self, image: np.ndarray, progress: Progress | None) -> OpenedImage:
        """The opened image, from memory where the same pixels were opened before."""
        if not self.cache_size:
            return self.pipeline.opener.open(image, progress=progress)
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        if key not in self.opened_images:
            opened = self.pipeline.opener.open(image, progress=progress)
            while len(self.opened_images) >= self.cache_size:
                self.opened_images.popitem(last=False)
            self.opened_images[key] = opened
        self.opened_images.move_to_end(key)
        return self.opened_images[key]


class Scene:
    """One opened image and the conversation about it; made by `Assistant.open`.

    Attributes:
        assistant: The assistant that opened the image.
        image: (H, W, 3) uint8 RGB, upright.
        opened: What the pipeline computed once for this image.
        turns: The questions and answers so far, oldest first, as the language model reads them again.
        shown: The targets of the last answer, which follow-ups such as "the one on the left" refer to.
            Whoever corrects an answer by hand may replace them.
    """

    def __init__(self, assistant: Assistant, image: np.ndarray, opened: OpenedImage):
        self.assistant = assistant
        self.image = image
        self.opened = opened
        self.turns: list[Turn] = []
        self.shown: list[Target] = []
        self._spent: list[Cost] = []  # on the question that is being answered, for each reply of the model

    @property
    def proposals(self) -> Proposals:
        """The N masks of everything mode, best first.

        masks: (N, H, W) bool, decoded at each access. boxes: (N, 4) float32, inclusive xyxy in px.
        predicted_iou and stability: (N,) float32, near [0, 1].
        """
        return self.opened.proposals

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image in px."""
        height, width = self.image.shape[:2]
        return height, width

    @property
    def threshold(self) -> float:
        """The confidence in [0, 1] from which a target counts as present."""
        return self.assistant.threshold

    @cached_property
    def names_seen(self) -> list[str]:
        """Names of what the model sees unasked, surest first; [] where it looks for nothing before."""
        return self.assistant.pipeline.names_in(self.opened)

    def fresh(self) -> Scene:
        """The same opened image without earlier turns."""
        return Scene(self.assistant, self.image, self.opened)

    def ask(
        self, question: str, *, about: np.ndarray | None = None, remember: bool = True, **options: Any
    ) -> Answer:
        """Find what a question means in the image.

        A question that refers to the masks of the last answer ("the one on the left?", "now remove the cup")
        is worked out on those masks by `assistant.dialogue.followups` where the pipeline says so
        (`follow_up_rules`: the pocket preset's). Every other question goes to the language model.

        Args:
            question: Any text of 1 to 4,000 characters.
            about: (H, W) bool, not empty: the part of the image that "it" and "this" mean.
            remember: Whether later questions may refer to this one and its answer.
            options: `temperature` (0 for greedy decoding), `seed`, `max_new_tokens`, and `stream`, which is
                called with each new piece of the reply's text.

        Returns:
            The answer: its text, and a target for each thing asked about, with a confidence in [0, 1] that it
                is
            present and, where it is, a mask (H, W) bool.

        Raises:
            BadInput: The question is empty or too long, `about` is no mask of the image or is empty, the
                conversation is too long for the model, or the model does not answer as it should.
        """
        question = check_question(question)
        began = time.perf_counter()
        self._spent = []
        if about is None:
            answer = self._answer_by_rules(question, options) or self.ask_model(question, **options)
        else:
            region = np.asarray(about)
            if region.dtype != bool or region.shape != self.size or not region.any():
                raise BadInput(
                    f"about must be a mask of {self.size[0]} x {self.size[1]} bool that is not empty"
                )
            if self.assistant.pipeline.sees_regions:
                answer = self.ask_model(question, about=region, **options)
            else:
                answer = followups.answer_about(self, question, region, options)
        answer.cost = _total(self._spent, time.perf_counter() - began)
        if remember:
            self.turns.append(turn_of(answer))
            self.shown = answer.targets
        return answer

    def _answer_by_rules(self, question: str, options: dict[str, Any]) -> Answer | None:
        """The answer to a question about the masks of the last answer; None to ask the language model."""
        if not self.assistant.pipeline.follow_up_rules:
            return None
        return followups.answer(self, question, options)

    def ask_model(self, question: str, **options: Any) -> Answer:
        """Put a question to the language model itself, after the turns that are remembered.

        It is not checked for references to the masks of the last answer, and neither it nor its answer is
        remembered.

        Args:
            question: The question, not empty.
            options: See `ask`.

        Returns:
            The model's answer; see `ask`.

        Raises:
            BadInput: The conversation is too long for the model, or the model does not answer as it should.
        """
        turns = [*self.turns[-MAX_REMEMBERED_TURNS:], Turn(question)]
        began = time.perf_counter()
        reply, selections = self.assistant.pipeline.ask(turns, self.opened, self.threshold, **options)
        seconds = time.perf_counter() - began
        cost = Cost(seconds, reply.calls, reply.tokens, reply.read_tokens, reply.image_tokens, reply.passes)
        self._spent.append(cost)
        targets = [
            self._target(mention.phrase, mention.present, selection)
            # A mark that the model spelled in ordinary tokens has no selection.
            for mention, selection in zip(parse(reply.text), selections, strict=False)
        ]
        counts = [len(target.instances) for target in targets]
        text = plain(counted(reply.text, counts, reply.tells_numbers))
        if reply.tells_numbers and sum(target.present for target in targets) > 1:
            text += f" That makes {sum(counts)} in all."
        return Answer(
            text,
            targets,
            self.size,
            self.image,
            question,
            reply.tokens,
            reply.written or reply.text,
            reply.reasoning,
            cost,
        )

    def _target(self, phrase: str, present: bool, selection: Selection) -> Target:
        """A target of an answer; without a mask it is absent, whatever the reply says."""
        if not present or (not selection.proposals and selection.mask is None):
            confidence = selection.confidence if selection.seen else min(selection.confidence, self.threshold)
            return Target(
                phrase,
                False,
                confidence,
                None,
                selection.proposals,
                selection.others,
                selection.known,
                selection.seen,
                searched=selection.searched,
            )
        instances = selection.instances or self.instances(selection.covered(self.proposals), phrase)
        if selection.mask is None or selection.instances:  # other masks are measured, such as a background
            instances = self._sharpened(instances)
        return Target(
            phrase,
            True,
            selection.confidence,
            np.logical_or.reduce(instances),
            selection.proposals,
            selection.others,
            selection.known,
            searched=selection.searched,
            instances=instances,
        )

    def _sharpened(self, instances: list[np.ndarray]) -> list[np.ndarray]:
        """Instances (H, W) bool, the largest of them outlined again where the segmenter gains by it."""
        segmenter, embedding = self.assistant.segmenter, self.opened.embedding
        chosen = sorted(range(len(instances)), key=lambda k: -int(instances[k].sum()))[:MAX_SHARPENED]
        return [
            sharpened(segmenter, embedding, mask) if k in chosen else mask for k, mask in enumerate(instances)
        ]

    def instances(self, mask: np.ndarray, phrase: str) -> list[np.ndarray]:
        """Take a mask apart into the objects that it covers.

        Args:
            mask: (H, W) bool.
            phrase: What the objects are called.

        Returns:
            At least one mask (H, W) bool; their union is `mask`. See `assistant.sam.instances.separate`.
        """
        if not is_countable(phrase):
            return [mask]
        return separate(mask, self.proposals, self.assistant.pipeline.wholeness(self.opened, phrase))

    @property
    def finds_names(self) -> bool:
        """Whether `find` finds things by their name."""
        return self.assistant.pipeline.concepts is not None

    @property
    def concepts(self) -> ConceptSegmenter[Any]:
        """What finds things by their name. Raises BadInput where the preset has nothing that does."""
        concepts = self.assistant.pipeline.concepts
        if concepts is None:
            raise BadInput("nothing here finds things by their name: give --concepts or another --preset")
        return concepts

    def find(self, phrase: str) -> tuple[Instances, Cost]:
        """Find all instances of what a noun phrase names, without the language model.

        It is neither a question nor remembered: nothing is read into the words, and nothing is picked among
        what is found.

        Args:
            phrase: A noun phrase of a few words, such as "red umbrella".

        Returns:
            The instances, surest first, and what it took.

        Raises:
            BadInput: The preset has nothing that finds things by their name, or see
                `assistant.sam.concepts.ConceptSegmenter.find`.
        """
        began, passes = time.perf_counter(), self.concepts.passes
        found = self.concepts.find(self.opened, phrase)
        return found, Cost(time.perf_counter() - began, passes=self.concepts.passes - passes)

    def search_again(self, answer: Answer, phrases: Mapping[str, Sequence[str]]) -> Answer:
        """Look for other phrases in the place of those of an answer, without the language model.

        Of what is found all instances count: nothing is picked. Where the answer is the last one, later
        questions refer to the new one.

        Args:
            answer: About this image; `answer.searched` has the phrases that were looked for.
            phrases: {phrase of a target: noun phrases, the likeliest first}. The first that is clearly there
                counts, or else the likeliest.

        Returns:
            The answer with these targets as they are found now, and the others as they were.

        Raises:
            BadInput: There is no such target, or see `find`.
        """
        changed = named_search.search_again(self, answer, phrases)
        if self.turns and self.shown is answer.targets:
            self.turns[-1] = turn_of(changed)
            self.shown = changed.targets
        return changed

    def union(self, proposals: Sequence[int]) -> np.ndarray:
        """The union of some proposals.

        Args:
            proposals: Their indices in `self.proposals`.

        Returns:
            (H, W) bool; all False without proposals.
        """
        return self.proposals.union(proposals)

    def name_region(self, mask: np.ndarray) -> list[tuple[str, float]]:
        """Name a part of the image.

        Args:
            mask: (H, W) bool, the part.

        Returns:
            (name, probability among the names that the pipeline knows), most likely first; [] for a pipeline
            that has no fixed set of names.
        """
        return self.assistant.pipeline.name_region(self.image, self.opened, mask)

    def reset(self) -> None:
        """Forget the turns so far and the targets of the last answer."""
        self.turns.clear()
        self.shown = []

    def restore(self, answers: Sequence[Answer]) -> None:
        """Remember these answers, oldest first, and nothing else.

        For conversations in which answers are taken back or corrected, or that are read from a file.
        """
        self.turns[:] = [turn_of(answer) for answer in answers]
        self.shown = answers[-1].targets if answers else []

    def segment(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        multimask: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Segment what a prompt points at, as SAM does. At least one of points, box and mask is needed.

        Args:
            points: (N, 2) numbers, clicks as (x, y) in px.
            labels: (N,) numbers, for each click 1 (inside) or 0 (outside); None means that all are inside.
            box: (4,) numbers, (left, top, right, bottom) in px.
            mask: (H, W) bool, a rough mask; or (l, l) float, the low-resolution logits of an earlier
                prediction.
            multimask: Whether to return three interpretations of an ambiguous prompt instead of a single
                mask.

        Returns:
            masks: (M, H, W) bool, where M is 3, or 1 unless `multimask`.
            scores: (M,) float32, the IoU that SAM predicts for each mask; near [0, 1], but not clipped to it.

        Raises:
            BadInput: The prompt is empty, malformed or outside the image.
        """
        segmenter = self.assistant.segmenter
        masks, scores, _ = segmenter.predict(self.opened.embedding, points, labels, box, mask, multimask)
        if segmenter.close_up_below and points is not None and box is None:  # a coarse SAM, see `close_up`
            clicks = np.asarray(points, float)
            inside = clicks if labels is None else clicks[np.asarray(labels) == 1]
            masks = np.stack([without_stray_islands(found, inside, MIN_ISLAND_SHARE) for found in masks])
        return masks, scores

    def segment_like(
        self,
        reference_image: ImageSource | list[ImageSource],
        reference_mask: MaskSource | list[MaskSource],
        label: str | None = None,
    ) -> tuple[np.ndarray, float]:
        """Segment what is like an example.

        This is VLP-SAM (arXiv 2502.00719), or without a label VRP-SAM (arXiv 2402.17726).

        Args:
            reference_image: An image with the example (see `Assistant.open`), or a list of several.
            reference_mask: The mask of the example: a path, a PIL image or an array (h, w) of bool or
                integers of the size of its image, where nonzero means inside; a list of as many masks for a
                list of images.
            label: The name of the example, such as "mug"; None to go by its appearance alone.

        Returns:
            mask: (H, W) bool, what is like the example. It is not verified that it is the same kind of
                object.
            score: The mean probability inside the mask, in [0, 1]; 0 for an empty mask.

        Raises:
            BadInput: A reference mask is empty, covers its whole image or has another size; or there are no
                weights of a matcher for this preset's SAM.
        """
        from assistant.few_shot.matcher import open_references

        matcher = self.assistant.matcher
        examples = open_references(matcher, reference_image, reference_mask)
        return matcher.segment(matcher.features_of(self.image, self.opened.embedding), examples, label)

    def attend(self, phrase: str) -> np.ndarray:
        """Map where the language model attends for a phrase; see `assistant.attention.maps`.

        Args:
            phrase: What to look for, such as "a mug"; at most 200 characters.

        Returns:
            (H, W) float32 in [0, 1], the attention map: at each pixel the phrase's share of the attention
            among itself and common words for a background, times how well it fits the image. It is near 0
            everywhere for what is not there, and no probability.

        Raises:
            BadInput: The phrase names nothing or is too long, or the preset's model exposes no attention.
        """
        from assistant.attention.maps import attend

        return attend(self.assistant.pipeline.attention_probe(), self.opened, phrase)


def turn_of(answer: Answer) -> Turn:
    """The turn that a scene remembers of an answer.

    Its reply is the model's own, or where there is none (the answer was corrected) has [SEG] and [ABS] marks.
    """
    reply = answer.said or reply_for([(target.phrase, target.present) for target in answer.targets])
    return Turn(answer.question, reply, shown=answer.targets)


def _total(costs: list[Cost], seconds: float) -> Cost:
    """What several replies took together; seconds: in all, with what was done between them."""
    return Cost(
        seconds,
        sum(cost.calls for cost in costs),
        sum(cost.tokens for cost in costs),
        *(
            _known_sum([getattr(cost, name) for cost in costs])
            for name in ("read_tokens", "image_tokens", "passes")
        ),
    )


def _known_sum(values: list[int | None]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None

"""Masks without training: any multimodal LLM that follows instructions selects among SAM's proposals.

    pipeline = ZeroShotPipeline(opener, StructuredLLM(llm), selection="marks")      # or "boxes"
    opened = pipeline.opener.open(image)
    reply, selections = pipeline.ask([Turn("what keeps the rain off?")], opened, threshold=0.5)

"marks": the image is shown again with the proposals outlined and numbered, on several sheets if need be
(`assistant.mllm.set_of_mark`); the model answers with a name and numbers for each target. "boxes": it answers
with a name, boxes and points; each box is matched to the best proposal, and SAM is prompted with box and
point where none matches. Either way an empty list means that the target is not in the image.

The confidence, in [0, 1], is the model's own probability that the list is not empty, read where it has
written the target's name and is about to write the first number, among the tokens that the schema allows; it
is 1 or 0 where a server does not tell. Verification (`assistant.mllm.verification`) can lower it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from assistant.errors import BadInput
from assistant.grammar import TOKEN, Turn, plain, reply_for
from assistant.mllm.coordinates import PIXELS, UNIT, Frame, frame_of, scale_of
from assistant.mllm.grounding_prompts import (
    BOXES_PROMPT,
    MARKS_PROMPT,
    RETRY_PROMPT,
    GroundedTarget,
    Schema,
    boxes_schema,
    marks_schema,
    read_numbers,
    read_targets,
)
from assistant.mllm.set_of_mark import arrange_sheets, draw_sheet, number_marks
from assistant.mllm.structured_answer import StructuredAnswer, StructuredModel
from assistant.mllm.verification import Verifier
from assistant.pipeline import AttentionProbe, ImageOpener, Pipeline, Reply, Selection
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import box_iou

SELECTIONS = ("marks", "boxes")
MARKS_PER_SHEET = 20  # that a model reads on one image
MAX_SHEETS = 3
MIN_MATCH_IOU = 0.7  # of boxes, from which a proposal is what the model's box means
MAX_QUOTE_LENGTH = 80  # characters of a wrong answer in an error
# Coordinates of the example in BOXES_PROMPT, as shares of the image.
EXAMPLE_BOX = (0.2, 0.1, 0.5, 0.6)
EXAMPLE_POINT = (0.3, 0.3)


class _Grounding(NamedTuple):
    """An answer of the model: (phrase, selection) of each target, the answer, and the thought in it."""

    selections: list[tuple[str, Selection]]
    answer: StructuredAnswer
    thought: str


class ZeroShotPipeline(Pipeline[SamOpenedImage]):
    """Answers with an untrained model; see `pipeline.Pipeline`.

    Args:
        opener: Opens the images that are asked about.
        model: On this machine or on a server.
        selection: "marks" or "boxes".
        verify: Whether each selected mask is shown to the model again.

    Raises:
        BadInput: There is no such selection.
    """

    def __init__(
        self,
        opener: ImageOpener[SamOpenedImage],
        model: StructuredModel,
        selection: str = "marks",
        verify: bool = False,
    ):
        if selection not in SELECTIONS:
            raise BadInput(
                f"there is no selection {selection!r} without tuning; choose one of: {', '.join(SELECTIONS)}"
            )
        self.opener = opener
        self.model = model
        self.selection = selection
        self.verify = verify

    def networks(self) -> dict[str, nn.Module]:
        """See `pipeline.Pipeline`."""
        return self.model.networks() | super().networks()

    def attention_probe(self) -> AttentionProbe:
        """The probe of a local model. Raises BadInput for a model on a server, which exposes no attention."""
        return self.model.attention_probe()

    def ask(
        self,
        turns: list[Turn],
        opened: SamOpenedImage,
        threshold: float,
        *,
        verify: bool | None = None,
        stream: Callable[[str], Any] | None = None,
        **options: Any,
    ) -> tuple[Reply, list[Selection]]:
        """See `pipeline.Pipeline`.

        Args:
            turns: Earlier turns with their answers, then the one to answer.
            opened: The image, opened by `opener`.
            threshold: Confidence in [0, 1] from which a target counts as present.
            verify: Whether to verify the selected masks; None for what the pipeline was made with.
            stream: Called once, with the whole text.
            options: `max_new_tokens`, `temperature` and `seed`.

        Raises:
            BadInput: The model does not answer in the form asked for, or cannot be reached.
        """
        # Answers by other parts of the program are in the reply grammar, which the model does not write here.
        turns = [
            replace(t, answer=plain(t.answer)) if t.answer and TOKEN.search(t.answer) else t for t in turns
        ]
        ground = (
            self._ground_marks if self.selection == "marks" and len(opened.proposals) else self._ground_boxes
        )
        selections, answer, thought = ground(turns, opened, options)
        if self.verify if verify is None else verify:
            for phrase, selection in selections:
                verifier = Verifier(self.model, turns[-1].question, phrase, opened, options)
                answer.tokens += verifier.verify(selection)
        present = [(phrase, _is_present(selection, threshold)) for phrase, selection in selections]
        text = reply_for(present)
        if stream:
            stream(text)
        reasoning = "\n".join(part for part in (answer.reasoning, thought) if part)
        reply = Reply(text, answer.tokens, written=answer.text, reasoning=reasoning)
        return reply, [selection for _, selection in selections]

    def _ask_model(
        self,
        turns: list[Turn],
        images: list[np.ndarray],
        system: str,
        schema: Schema,
        key: str,
        options: dict[str, Any],
    ) -> tuple[list[GroundedTarget], StructuredAnswer, str]:
        """The targets that the model points at, its answer, and the thought in it.

        Where the answer does not have the form, the model is asked once more. Raises BadInput where that
        fails too.
        """
        first, *rest = turns
        turns = [Turn(first.question, first.answer, images), *rest]
        answer = self.model.ask(turns, system, schema, **options)
        targets, thought = read_targets(answer, key)
        if targets is not None:
            return targets, answer, thought
        last = Turn(turns[-1].question, answer.text or "...", turns[-1].images)
        retried = self.model.ask([*turns[:-1], last, Turn(RETRY_PROMPT)], system, schema, **options)
        retried.tokens += answer.tokens
        targets, thought = read_targets(retried, key)
        if targets is None:
            quote = " ".join((retried.text or answer.text).split())[:MAX_QUOTE_LENGTH]
            raise BadInput(
                f"{self.model.name} does not answer in the form asked for but {quote!r}; allow it more "
                "tokens, or take a model that follows instructions"
            )
        return targets, retried, thought

    # ------------------------------------------------------------------------------------------- marks

    def _ground_marks(self, turns: list[Turn], opened: SamOpenedImage, options: dict[str, Any]) -> _Grounding:
        """Let the model select among numbered proposals."""
        numbers, images = self._sheets(opened)
        others = "the second is" if len(images) == 2 else f"the other {len(images) - 1} are"
        system = MARKS_PROMPT.format(sheets=others, n=len(numbers), example=min(4, len(numbers)))
        targets, answer, thought = self._ask_model(
            turns, images, system, marks_schema(numbers), "marks", options
        )
        selections = []
        for target in targets:
            # Not every server keeps to the schema: "3" is 3, true is not 1, and a number that is not drawn
            # means nothing.
            written = [int(mark) for mark in target.regions if str(mark).isdecimal()]
            proposals = [numbers[mark] for mark in written if mark in numbers]
            selections.append((target.phrase, Selection(target.confidence, list(dict.fromkeys(proposals)))))
        return _Grounding(selections, answer, thought)

    def _sheets(self, opened: SamOpenedImage) -> tuple[dict[int, int], list[np.ndarray]]:
        """The marks of an opened image.

        Returns:
            {number of a mark: index of its proposal}, and the images to show: the image itself, then its
            sheets.
        """
        if "sheets" not in opened.cache:
            sheets = arrange_sheets(opened.proposals, MARKS_PER_SHEET, MARKS_PER_SHEET * MAX_SHEETS)
            numbers = number_marks(sheets)
            number_of = {proposal: number for number, proposal in numbers.items()}
            drawn = [
                draw_sheet(opened.image, [(number_of[i], opened.proposals.mask(i)) for i in sheet])
                for sheet in sheets
            ]
            images = [self.model.image_fit.fit(image) for image in (opened.image, *drawn)]
            opened.cache["sheets"] = numbers, images
        return opened.cache["sheets"]

    # ------------------------------------------------------------------------------------------- boxes

    def _ground_boxes(self, turns: list[Turn], opened: SamOpenedImage, options: dict[str, Any]) -> _Grounding:
        """Let the model write boxes and points."""
        image, frame = self._framed_image(opened)
        system = BOXES_PROMPT.format(
            meaning=frame.meaning,
            box=_example_numbers(EXAMPLE_BOX, frame),
            point=_example_numbers(EXAMPLE_POINT, frame),
        )
        targets, answer, thought = self._ask_model(
            turns, [image], system, boxes_schema(frame), "boxes", options
        )
        selections = []
        for target in targets:
            selection = Selection(target.confidence, [])
            for region in target.regions:
                self._add_region(region, frame, opened, selection)
            selections.append((target.phrase, selection))
        return _Grounding(selections, answer, thought)

    def _framed_image(self, opened: SamOpenedImage) -> tuple[np.ndarray, Frame]:
        """The image to show, and the frame in which the model writes coordinates."""
        if "framed" not in opened.cache:
            scale = scale_of(self.model.name)
            image_fit = self.model.image_fit
            image = image_fit.fit(opened.image)
            input_size = self.model.input_size(image) if scale == PIXELS else None
            frame = frame_of(scale, opened.image.shape[:2], input_size, image_fit.padded)
            opened.cache["framed"] = image, frame
        return opened.cache["framed"]

    def _add_region(self, region: Any, frame: Frame, opened: SamOpenedImage, selection: Selection) -> None:
        """Add to a selection what a box means: the proposal that matches it best, or what SAM makes of it.

        A region that holds neither a box nor a point adds nothing.
        """
        corners = read_numbers(region, "bbox_2d", 4)
        position = read_numbers(region, "point_2d", 2)
        box = frame.box(corners) if corners else None
        point = frame.point(*position) if position else None
        if box is None and point is None:
            return
        if box is not None:
            # The boxes of proposals include their last pixel; a model's end where the object ends.
            iou = box_iou(box, opened.proposals.boxes + np.array([0, 0, 1, 1], np.float32))
            if len(iou) and iou.max() >= MIN_MATCH_IOU:
                best = int(iou.argmax())
                if best not in selection.proposals:
                    selection.proposals.append(best)
                return
        mask = self._segment(opened, box, point)
        if mask.any():
            selection.mask = mask if selection.mask is None else selection.mask | mask

    def _segment(
        self, opened: SamOpenedImage, box: list[float] | None, point: tuple[float, float] | None
    ) -> np.ndarray:
        """The mask (H, W) bool that SAM makes of a box, a point, or a box with a point inside it."""
        points: list[tuple[float, float]] | None = None
        labels: list[int] | None = None
        if point is not None and (box is None or _contains(box, point)):
            points, labels = [point], [1]
        masks, scores, _ = self.opener.segmenter.predict(
            opened.embedding, points, labels, box, multimask=box is None
        )
        return masks[int(np.argmax(scores))]


def _contains(box: list[float], point: tuple[float, float]) -> bool:
    """Whether a point (x, y) lies in a box, xyxy."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _is_present(selection: Selection, threshold: float) -> bool:
    """Whether a target has a mask and enough confidence."""
    has_mask = bool(selection.proposals) or selection.mask is not None
    return has_mask and selection.confidence >= threshold


def _example_numbers(shares: tuple[float, ...], frame: Frame) -> list[float]:
    """Coordinates of the prompt's example in the numbers of a frame; x and y take turns."""
    extents = [frame.extent[k % 2] for k in range(len(shares))]
    digits = 2 if frame.scale == UNIT else None
    return [round(share * extent, digits) for share, extent in zip(shares, extents, strict=True)]

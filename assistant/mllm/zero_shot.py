"""Masks without training: any multimodal LLM that follows instructions selects among SAM's proposals.

    pipeline = ZeroShotPipeline(opener, StructuredLLM(llm), selection="hybrid")    # or "marks", "boxes"
    opened = pipeline.opener.open(image)
    reply, selections = pipeline.ask([Turn("what keeps the rain off?")], opened, threshold=0.5)

"marks": the image is shown again with the proposals outlined and numbered, on several sheets if need be
(`assistant.mllm.set_of_mark`); the model answers with a name and numbers for each target. "boxes": it answers
with a name, boxes and points; each box is matched to the best proposal, and SAM is prompted with box and
point where none matches. "hybrid": numbers as "marks", and boxes for what no number outlines.

A target is outlined, or not in the image, or (marks and hybrid) seen but not outlined: the model says whether
it sees it, before it points. The confidence, in [0, 1], is the model's own probability that it does; without
marks, that its list of boxes is not empty. It is read among the tokens that the schema allows, and is 1 or 0
where a server does not tell. Verification (`assistant.mllm.verification`) can lower it.

Follow-ups ("not that one", "the one on the left") are the model's to understand. It reads its earlier answers
as it wrote them, with the numbers and boxes that they point at; an answer that was corrected by hand is
written anew from its masks.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import nn

from assistant.errors import BadInput
from assistant.grammar import TOKEN, Turn, plain_turn, reply_with_seen
from assistant.mllm.coordinates import PIXELS, UNIT, Frame, frame_of, scale_of
from assistant.mllm.grounding_prompts import (
    ABOUT_PROMPT,
    BOXES_PROMPT,
    HYBRID_PROMPT,
    MARKS_PROMPT,
    RETRY_PROMPT,
    GroundedTarget,
    Schema,
    boxes_schema,
    hybrid_schema,
    marks_schema,
    read_numbers,
    read_targets,
    written_answer,
)
from assistant.mllm.set_of_mark import arrange_sheets, draw_sheet, number_marks
from assistant.mllm.structured_answer import StructuredAnswer, StructuredModel
from assistant.mllm.verification import Verifier, outlined_images
from assistant.pipeline import AttentionProbe, ImageOpener, Pipeline, Reply, Selection
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.instances import merged
from assistant.sam.mask_ops import box_iou, encode_rle, rle_iou, tight_box

SELECTIONS = ("hybrid", "marks", "boxes")
MARKS_PER_SHEET = 20  # that a model reads on one image
MAX_SHEETS = 3
MIN_MATCH_IOU = 0.7  # of boxes, from which a proposal is what the model's box means; of masks likewise
MAX_QUOTE_LENGTH = 80  # characters of a wrong answer in an error
# Coordinates of the example in BOXES_PROMPT, as shares of the image.
EXAMPLE_BOX = (0.2, 0.1, 0.5, 0.6)
EXAMPLE_POINT = (0.3, 0.3)


Read = TypeVar("Read")  # a target as it is read from an answer


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
        selection: "hybrid", "marks" or "boxes".
        verify: Whether each selected mask is shown to the model again.

    Raises:
        BadInput: There is no such selection.
    """

    sees_regions = True

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
        about: np.ndarray | None = None,
        stream: Callable[[str], Any] | None = None,
        **options: Any,
    ) -> tuple[Reply, list[Selection]]:
        """See `pipeline.Pipeline`.

        Args:
            turns: Earlier turns with their answers, then the one to answer.
            opened: The image, opened by `opener`.
            threshold: Confidence in [0, 1] from which a target counts as present.
            verify: Whether to verify the selected masks; None for what the pipeline was made with.
            about: (H, W) bool, not empty: the part of the image that "this" and "it" mean; None for none.
            stream: Called once, with the whole text.
            options: `max_new_tokens`, `temperature` and `seed`.

        Raises:
            BadInput: The model does not answer in the form asked for, or cannot be reached.
        """
        turns = [self._readable(turn, opened) for turn in turns]
        if about is not None:
            pictures = [self.model.image_fit.fit(image) for image in outlined_images(opened.image, about)]
            turns[-1] = replace(turns[-1], question=turns[-1].question + ABOUT_PROMPT, images=pictures)
        grounded, answer, thought = self._ground(turns, opened, options)
        if self.verify if verify is None else verify:
            for phrase, selection in grounded:
                verifier = Verifier(self.model, turns[-1].question, phrase, opened, options)
                for verdict in verifier.verify(selection):
                    answer.add_cost(verdict)
        for _, selection in grounded:
            drawn = selection.instances if selection.mask is not None else []
            selection.instances = merged([*map(opened.proposals.mask, selection.proposals), *drawn])
            selection.seen &= selection.confidence >= threshold and not selection.has_mask
        grounded.sort(key=lambda pair: pair[1].seen)  # stable: the text tells last what is not outlined
        text = reply_text(grounded, threshold)
        if stream:
            stream(text)
        reply = Reply(
            text,
            answer.tokens,
            written=answer.text,
            reasoning="\n".join(part for part in (answer.reasoning, thought) if part),
            calls=answer.calls,
            read_tokens=answer.read_tokens,
            image_tokens=answer.image_tokens,
        )
        return reply, [selection for _, selection in grounded]

    def _selection_on(self, opened: SamOpenedImage) -> str:
        """How targets of an image are pointed at: by boxes alone where there are no proposals to number."""
        return self.selection if len(opened.proposals) else "boxes"

    def _ground(self, turns: list[Turn], opened: SamOpenedImage, options: dict[str, Any]) -> _Grounding:
        """Let the model point at targets."""
        match self._selection_on(opened):
            case "boxes":
                return self._ground_boxes(turns, opened, options)
            case "marks":
                return self._ground_marks(turns, opened, options)
        return self._ground_hybrid(turns, opened, options)

    def _readable(self, turn: Turn, opened: SamOpenedImage) -> Turn:
        """An earlier turn as the model reads it.

        Answers that the model did not write, or that were corrected, are in the reply grammar, which it does
        not write here: they are written as it would have, from their masks where those are known.
        """
        if not turn.answer or not TOKEN.search(turn.answer):
            return turn
        if not turn.shown:
            return plain_turn(turn)
        return replace(turn, answer=written_answer([self._row(target, opened) for target in turn.shown]))

    def _row(self, target: Any, opened: SamOpenedImage) -> dict[str, Any]:
        """A target of an earlier answer (`assistant.answer.Target`) as the model would have written it."""
        selection = self._selection_on(opened)
        row: dict[str, Any] = {"phrase": target.phrase}
        numbered: list[int] = []
        if selection != "boxes":
            row["seen"] = bool(target.present or target.seen)
            numbered = row["marks"] = self._marks_of(target, opened) if target.present else []
        if selection != "marks":
            box = tight_box(target.mask) if target.present and not numbered else None
            _, frame = self._framed_image(opened)
            row["boxes"] = [] if box is None else [{"bbox_2d": frame.written_box(box)}]
        return row

    def _marks_of(self, target: Any, opened: SamOpenedImage) -> list[int]:
        """The numbers of a target's proposals, or of the one that is nearly its mask; [] where none is."""
        numbers, _ = self._sheets(opened)
        marks = [number for number, proposal in numbers.items() if proposal in target.proposals]
        if marks or not numbers:
            return marks
        rles = [opened.proposals.rles[proposal] for proposal in numbers.values()]
        overlaps = rle_iou([encode_rle(target.mask)], rles)[0]
        best = int(np.argmax(overlaps))
        return [list(numbers)[best]] if overlaps[best] >= MIN_MATCH_IOU else []

    def _ask_model(
        self,
        turns: list[Turn],
        images: list[np.ndarray],
        system: str,
        schema: Schema,
        keys: tuple[str, ...],
        options: dict[str, Any],
    ) -> tuple[list[GroundedTarget], StructuredAnswer, str]:
        """As `ask_in_form`, with the images shown first; keys: see `read_targets`."""
        turns = [replace(turns[0], images=[*images, *turns[0].images]), *turns[1:]]
        return ask_in_form(
            self.model, turns, system, schema, lambda answer: read_targets(answer, *keys), options
        )

    # ------------------------------------------------------------------------------------------- marks

    def _ground_marks(self, turns: list[Turn], opened: SamOpenedImage, options: dict[str, Any]) -> _Grounding:
        """Let the model select among numbered proposals."""
        numbers, images = self._sheets(opened)
        system = MARKS_PROMPT.format(**_sheet_words(numbers, images))
        targets, answer, thought = self._ask_model(
            turns, images, system, marks_schema(numbers), ("marks",), options
        )
        selections = [(target.phrase, _marked_selection(target, numbers)) for target in targets]
        return _Grounding(selections, answer, thought)

    def _ground_hybrid(
        self, turns: list[Turn], opened: SamOpenedImage, options: dict[str, Any]
    ) -> _Grounding:
        """Let the model select among numbered proposals, and write boxes of what has no number."""
        numbers, images = self._sheets(opened)
        _, frame = self._framed_image(opened)
        system = HYBRID_PROMPT.format(
            **_sheet_words(numbers, images),
            meaning=frame.meaning,
            box=_example_numbers(EXAMPLE_BOX, frame),
        )
        targets, answer, thought = self._ask_model(
            turns, images, system, hybrid_schema(numbers, frame), ("marks", "boxes"), options
        )
        selections = []
        for target in targets:
            selection = _marked_selection(target, numbers)
            for region in target.regions:
                if isinstance(region, (dict, list)):
                    self._add_region(region, frame, opened, selection)
            selections.append((target.phrase, selection))
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
            turns, [image], system, boxes_schema(frame), ("boxes",), options
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
            selection.instances.append(mask)

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


def ask_in_form(
    model: StructuredModel,
    turns: list[Turn],
    system: str,
    schema: Schema,
    read: Callable[[StructuredAnswer], tuple[list[Read] | None, str]],
    options: dict[str, Any],
) -> tuple[list[Read], StructuredAnswer, str]:
    """Ask a model for targets, and once more where its answer does not have the form.

    Args:
        model, turns, system, schema, options: See `StructuredModel.ask`.
        read: Reads the targets in an answer, None where it has another form, and the thought before them.

    Returns:
        The targets, the answer with the costs of both, and the thought.

    Raises:
        BadInput: The second answer does not have the form either.
    """
    answer = model.ask(turns, system, schema, **options)
    targets, thought = read(answer)
    if targets is not None:
        return targets, answer, thought
    last = Turn(turns[-1].question, answer.text or "...", turns[-1].images)
    retried = model.ask([*turns[:-1], last, Turn(RETRY_PROMPT)], system, schema, **options)
    retried.add_cost(answer)
    targets, thought = read(retried)
    if targets is None:
        quote = " ".join((retried.text or answer.text).split())[:MAX_QUOTE_LENGTH]
        raise BadInput(
            f"{model.name} does not answer in the form asked for but {quote!r}; "
            + ("its answer is cut off: allow it more with --max-tokens" if retried.is_cut else "")
            + ("" if retried.is_cut else "take a model that follows instructions")
        )
    return targets, retried, thought


def _contains(box: list[float], point: tuple[float, float]) -> bool:
    """Whether a point (x, y) lies in a box, xyxy."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _sheet_words(numbers: dict[int, int], images: list[np.ndarray]) -> dict[str, Any]:
    """What a prompt says of the sheets; the arguments are those that `ZeroShotPipeline._sheets` gives."""
    others = "the second is" if len(images) == 2 else f"the other {len(images) - 1} are"
    return {"sheets": others, "n": len(numbers), "example": min(4, len(numbers))}


def _marked_selection(target: GroundedTarget, numbers: dict[int, int]) -> Selection:
    """The selection of the proposals whose numbers a target has; numbers: {mark: proposal}."""
    # Not every server keeps to the schema: "3" is 3, true is not 1, and a number that is not drawn means
    # nothing.
    written = [int(mark) for mark in target.regions if str(mark).isdecimal()]
    proposals = [numbers[mark] for mark in written if mark in numbers]
    return Selection(target.confidence, list(dict.fromkeys(proposals)), seen=target.seen)


def reply_text(grounded: list[tuple[str, Selection]], threshold: float) -> str:
    """The reply that names targets; those that are only seen come last."""
    told = [
        (phrase, selection.has_mask and selection.confidence >= threshold)
        for phrase, selection in grounded
        if not selection.seen
    ]
    return reply_with_seen(told, [phrase for phrase, selection in grounded if selection.seen])


def _example_numbers(shares: tuple[float, ...], frame: Frame) -> list[float]:
    """Coordinates of the prompt's example in the numbers of a frame; x and y take turns."""
    extents = [frame.extent[k % 2] for k in range(len(shares))]
    digits = 2 if frame.scale == UNIT else None
    return [round(share * extent, digits) for share, extent in zip(shares, extents, strict=True)]

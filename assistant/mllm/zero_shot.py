"""Good masks without tuning: any multimodal LLM that follows instructions picks among SAM's proposals.

    parts = ZeroShot(eyes, LocalModel(reasoner), selection="marks")      # or RemoteModel(...), "boxes"
    view = parts.eyes.open(image)
    reply, found = parts.ask([Turn("what keeps the rain off?")], view, threshold=0.5)

marks: the photo is shown again with the proposals outlined and numbered, on several sheets if need be (`assistant.mllm.set_of_mark`);
the model answers with a name and numbers for each thing that is meant. boxes: it answers with a name, boxes and points;
each box is matched to the best proposal, and SAM is prompted with box and point where none fits. Either way an empty
list means that the thing is not there.

Confidence, in [0, 1], is the model's own probability that the list is not empty, taken where it has written the thing's
name and is about to write the first number, among the tokens that the form allows; 1 or 0 where a server does not tell.
With a second look it is at most the highest probability of "keep" among the masks that were kept.
"""

from dataclasses import replace

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import TOKEN, Turn, plain, reply_for
from assistant.mllm.coordinates import (
    PATCH,
    PIXELS,
    QWEN_PIXELS,
    UNIT,
    Frame,
    frame_of,
    scale_of,
    within,
)
from assistant.mllm.grounding_prompts import (
    AGAIN,
    BOXED,
    CHECKED,
    KEEP,
    MARKED,
    boxes_schema,
    marks_schema,
    numbers_of,
    read_targets,
)
from assistant.mllm.set_of_mark import draw_sheet, lay_out, number
from assistant.mllm.structured_output import probabilities, read_json
from assistant.pipeline import AttentionProbe, ImageOpener, Pipeline, Reply, Selection
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import box_iou, crop_around, pad_to_square, tight_box_xywh

SELECTIONS = ("marks", "boxes")
SIDE = 1280  # px of the longest side of a picture that is shown
A_SHEET, SHEETS = 20, 3  # marks that a model reads on one picture, and pictures at most
MATCH = 0.7  # IoU of boxes from which a proposal is what the model's box means
LOOKS = 8  # masks of one thing that get a second look


class ZeroShotPipeline(Pipeline[SamOpenedImage]):
    """eyes: see `assistant.sam.image_opener`; model: a `LocalModel` or a `RemoteModel`; verify: show each chosen mask again."""

    def __init__(
        self, opener: ImageOpener[SamOpenedImage], model, selection: str = "marks", verify: bool = False
    ):
        if selection not in SELECTIONS:
            raise BadInput(
                f"there is no selection {selection!r} without tuning; choose one of: {', '.join(SELECTIONS)}"
            )
        self.opener = opener
        self.model, self.selection, self.verify = model, selection, verify

    def attention_probe(self) -> AttentionProbe:
        """The probe of a local model. Raises BadInput for a model on a server, which exposes no attention."""
        return self.model.attention_probe()

    def ask(
        self,
        turns: list[Turn],
        view: SamOpenedImage,
        threshold: float,
        *,
        verify: bool | None = None,
        stream=None,
        **options,
    ) -> tuple[Reply, list[Selection]]:
        """The reply to the last turn, with a [SEG] or [ABS] for each thing, and what they point at.

        options: max_new_tokens, temperature, seed. stream: called once, with the whole text. BadInput: the model does not
        answer in the form asked for, or cannot be reached.
        """
        # What other parts have said for the model is in the reply grammar, which it does not write here.
        turns = [
            replace(t, answer=plain(t.answer)) if t.answer and TOKEN.search(t.answer) else t for t in turns
        ]
        select = self._marks if self.selection == "marks" and len(view.proposals) else self._boxes
        pointed, said, thought = select(turns, view, options)
        if self.verify if verify is None else verify:
            said.tokens += sum(
                self._look_again(turns[-1].question, phrase, found, view, options)
                for phrase, found in pointed
            )
        present = [
            bool(one.proposals or one.mask is not None) and one.confidence >= threshold for _, one in pointed
        ]
        text = reply_for([(phrase, there) for (phrase, _), there in zip(pointed, present)])
        if stream:
            stream(text)
        reasoning = "\n".join(part for part in (said.reasoning, thought) if part)
        return Reply(text, said.tokens, written=said.text, reasoning=reasoning), [one for _, one in pointed]

    # What the model says ---------------------------------------------------------------------------------------

    def _answer(self, turns, pictures, system: str, schema: dict, key: str, options: dict):
        """The things that the model points at; asked once more where the answer has not the form."""
        first, *rest = turns
        turns = [Turn(first.question, first.answer, pictures), *rest]
        said = self.model.ask(turns, system, schema, **options)
        pointed, thought = read_targets(said, key)
        if pointed is None:
            spent, first_said = said.tokens, said
            last = Turn(turns[-1].question, said.text or "...", turns[-1].images)
            said = self.model.ask([*turns[:-1], last, Turn(AGAIN)], system, schema, **options)
            said.tokens, (pointed, thought) = said.tokens + spent, read_targets(said, key)
            if pointed is None:
                heard = " ".join((said.text or first_said.text).split())[:80]
                raise BadInput(
                    f"{self.model.name} does not answer in the form asked for but {heard!r}; allow it more tokens, "
                    "or take a model that follows instructions"
                )
        return pointed, said, thought

    def _shown(self, image: np.ndarray) -> np.ndarray:
        """A picture as it is sent."""
        return pad_to_square(within(image, SIDE), centred=True) if self.model.crops else within(image, SIDE)

    def _marks(self, turns, view: SamOpenedImage, options: dict):
        if "sheets" not in view.cache:
            sheets = lay_out(view.proposals, A_SHEET, A_SHEET * SHEETS)
            numbers = number(sheets)
            places = {i: n for n, i in numbers.items()}
            drawn = [
                draw_sheet(view.image, [(places[i], view.proposals.mask(i)) for i in sheet])
                for sheet in sheets
            ]
            view.cache["sheets"] = numbers, [self._shown(picture) for picture in (view.image, *drawn)]
        numbers, pictures = view.cache["sheets"]
        others = "the second is" if len(pictures) == 2 else f"the other {len(pictures) - 1} are"
        system = MARKED.format(sheets=others, n=len(numbers), example=min(4, len(numbers)))
        pointed, said, thought = self._answer(
            turns, pictures, system, marks_schema(numbers), "marks", options
        )
        found = []
        for one in pointed:
            # Not every server keeps to the schema: "3" is 3, true is not 1, and what is not drawn points at nothing.
            written = [int(m) for m in one.regions if str(m).isdecimal()]
            known = [numbers[m] for m in written if m in numbers]
            found.append((one.phrase, Selection(one.confidence, list(dict.fromkeys(known)))))
        return found, said, thought

    def _boxes(self, turns, view: SamOpenedImage, options: dict):
        scale = scale_of(self.model.name)
        if "framed" not in view.cache:
            image = (
                within(view.image, SIDE, PATCH, QWEN_PIXELS) if scale == PIXELS else self._shown(view.image)
            )
            seen = self.model.seen_size(image) if scale == PIXELS else None
            padded = self.model.crops and scale != PIXELS
            view.cache["framed"] = image, frame_of(scale, view.image.shape[:2], seen, padded)
        image, frame = view.cache["framed"]
        share = lambda *values: [
            round(v * e, 2) if scale == UNIT else round(v * e) for v, e in zip(values, 2 * frame.extent)
        ]
        system = BOXED.format(meaning=frame.meaning, box=share(0.2, 0.1, 0.5, 0.6), point=share(0.3, 0.3))
        pointed, said, thought = self._answer(turns, [image], system, boxes_schema(frame), "boxes", options)
        found = []
        for one in pointed:
            target = Selection(one.confidence, [])
            for region in one.regions:
                self._segment(region, frame, view, target)
            found.append((one.phrase, target))
        return found, said, thought

    def _segment(self, region, frame: Frame, view: SamOpenedImage, target: Selection) -> None:
        """Add what a box means to the target: the proposal that fits it best, or what SAM makes of it."""
        box, point = numbers_of(region, "bbox_2d", 4), numbers_of(region, "point_2d", 2)
        box = frame.box(box) if box else None
        point = frame.point(*point) if point else None
        if box is None and point is None:
            return
        if box is not None:
            # Proposals' boxes include their last pixel, a model's end where the thing ends.
            fit = box_iou(box, view.proposals.boxes + np.array([0, 0, 1, 1], np.float32))
            if len(fit) and fit.max() >= MATCH:
                best = int(fit.argmax())
                target.proposals += [best] if best not in target.proposals else []
                return
        inside = point is not None and (
            box is None or box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]
        )
        points, labels = ([point], [1]) if inside else (None, None)
        masks, scores, _ = self.opener.segmenter.predict(
            view.embedding, points, labels, box, multimask=box is None
        )
        mask = masks[int(np.argmax(scores))]
        if mask.any():
            target.mask = mask if target.mask is None else target.mask | mask

    # The second look -------------------------------------------------------------------------------------------

    def _look_again(
        self, question: str, phrase: str, found: Selection, view: SamOpenedImage, options: dict
    ) -> int:
        """Keep of a target what the model still means when it sees it alone; returns the tokens that this took."""
        spent, sure = 0, []

        def keep(mask: np.ndarray) -> bool:
            nonlocal spent
            asked = f"The user asked: {question}\nThe answer names: {phrase}\nIs this it?"
            said = self.model.ask(
                [Turn(asked, images=[self._shown(picture) for picture in nearer(view.image, mask)])],
                CHECKED,
                KEEP,
                **options,
            )
            spent += said.tokens
            value = read_json(said.text)
            kept = not (
                isinstance(value, dict) and value.get("keep") is False
            )  # an unclear answer drops nothing
            yes = probabilities(said, rb'"keep"\s*:\s*', lambda byte: byte == b"t")
            p = yes[0] if yes and yes[0] is not None else float(kept)
            sure.append((kept, p))
            return kept

        found.proposals = [
            i for k, i in enumerate(found.proposals) if k >= LOOKS or keep(view.proposals.mask(i))
        ]
        if found.mask is not None and not keep(found.mask):
            found.mask = None
        if sure:
            most = max((p for kept, p in sure if kept), default=max(p for _, p in sure))
            found.confidence = min(found.confidence, most)
        return spent


def nearer(image: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The photo with the mask outlined, and the outlined part with half its size around it."""
    _, _, width, height = tight_box_xywh(mask)
    part = crop_around(mask, margin=max(16, (height - 1) // 2, (width - 1) // 2))
    return [
        draw_sheet(image, [(None, mask)]),
        draw_sheet(np.ascontiguousarray(image[part]), [(None, mask[part])]),
    ]

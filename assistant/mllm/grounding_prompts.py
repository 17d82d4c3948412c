"""What a multimodal LLM is asked, so that it points at targets in an image, and how its answer is read.

    answer = model.ask(turns, MARKS_PROMPT.format(...), marks_schema(numbers))
    targets, thought = read_targets(answer, "marks")
    # [GroundedTarget("umbrella", [3], 0.97, True), GroundedTarget("bench", [], 0.02, False)]

A local model is held to the schemas (`assistant.mllm.structured_output`), and a server is sent them. The
reader accepts any JSON that resembles them, because not every server keeps to a schema.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from assistant.grammar import clean_phrase
from assistant.mllm.coordinates import UNIT, Frame
from assistant.mllm.structured_answer import StructuredAnswer, probabilities, read_json

Schema = dict[str, Any]

MAX_TARGETS = 24  # in one answer
MAX_REGIONS_PER_TARGET = 24  # marks or boxes
MAX_PHRASE_LENGTH = 60  # characters
MAX_THOUGHT_LENGTH = 400  # characters

TASK_PROMPT = (
    "You look at a photo and point at what the user means, which may be said in a roundabout way or "
    'refer to what you said and pointed at before. Write JSON. "thought": in a sentence or two, what is '
    'meant and where you see it. "targets": each thing that is meant, in the order of the question; where '
    "the user lists things, every one of them, in the user's words. "
    '"phrase": a short name for it. '
)
SEEN_PROMPT = '"seen": true if it is in the photo, even if you cannot point at it; false if it is not there. '
SHEETS_PROMPT = (
    "The first picture is the photo; {sheets} the same photo with regions outlined and numbered, {n} "
    "in all. A number stands inside its region, or beside a small one, and then a line leads from it to the "
    "region; its frame, the line and the outline have one colour, and colours mean nothing else. A whole "
    "thing and its parts are outlined on different pictures: give the whole one for the thing itself, and a "
    "part where only that is meant. "
)
MARKS_RULE = (
    '"marks": the numbers of the regions that show the thing, all that it takes and none that shows '
    "something else; [] if no region does. "
)
# Both prompts end in the same example, which has one thing of each kind: outlined, not there, not outlined.
EXAMPLE_QUESTION = "what keeps the rain off, and is there a bench or a bird?"
EXAMPLE_THOUGHT = (
    "An umbrella keeps the rain off; the man holds one. I see no bench. A bird is on the far roof, and no "
    "region shows it."
)
MARKS_PROMPT = (
    TASK_PROMPT
    + SEEN_PROMPT
    + SHEETS_PROMPT
    + MARKS_RULE
    + f'Example, for "{EXAMPLE_QUESTION}": {{{{"thought": "{EXAMPLE_THOUGHT}", "targets": '
    '[{{"phrase": "umbrella", "seen": true, "marks": [{example}]}}, {{"phrase": "bench", "seen": false, '
    '"marks": []}}, {{"phrase": "bird", "seen": true, "marks": []}}]}}'
)
HYBRID_PROMPT = (
    TASK_PROMPT
    + SEEN_PROMPT
    + SHEETS_PROMPT
    + MARKS_RULE
    + '"boxes": for each instance that no region shows well, "bbox_2d", its box in the first picture as '
    "[left, top, right, bottom], {meaning}; [] where the marks are enough. "
    f'Example, for "{EXAMPLE_QUESTION}": {{{{"thought": "{EXAMPLE_THOUGHT}", "targets": '
    '[{{"phrase": "umbrella", "seen": true, "marks": [{example}], "boxes": []}}, {{"phrase": "bench", '
    '"seen": false, "marks": [], "boxes": []}}, {{"phrase": "bird", "seen": true, "marks": [], "boxes": '
    '[{{"bbox_2d": {box}}}]}}]}}'
)
BOXES_PROMPT = TASK_PROMPT + (
    '"boxes": for each instance "bbox_2d", its box as [left, top, right, bottom], and "point_2d", a '
    "point well inside it as [x, y], {meaning}; [] if the thing is not in the photo. Example, for "
    '"what keeps the rain off, and is there a bench?": {{"thought": "An umbrella keeps the rain off; the man '
    'holds one. I see no bench.", "targets": [{{"phrase": "umbrella", "boxes": [{{"bbox_2d": {box}, '
    '"point_2d": {point}}}]}}, {{"phrase": "bench", "boxes": []}}]}}'
)
VERIFICATION_PROMPT = (
    "You check an outline in a photo. The first picture is the photo with one region outlined in "
    'yellow, the second is that region from nearer. Write JSON: {"keep": true} if what is outlined is '
    "what the user is looking for, or one of them, or a part of it that belongs to the answer; "
    '{"keep": false} if it is something else.'
)
# Follows a question about a part of the image.
ABOUT_PROMPT = (
    '\n("this" and "it" mean what is outlined in yellow in the last two pictures: in the whole photo, and '
    "from nearer.)"
)
RETRY_PROMPT = (
    "That is not the JSON that was asked for. Write it again: only the JSON, with nothing before or after it."
)


def object_schema(title: str, **fields: Schema) -> Schema:
    """An object that has exactly these fields."""
    return {
        "title": title,
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def array_schema(items: Schema, max_items: int, min_items: int = 0) -> Schema:
    """An array of `min_items` to `max_items` items."""
    return {"type": "array", "items": items, "minItems": min_items, "maxItems": max_items}


def _answer_schema(**fields: Schema) -> Schema:
    """An answer whose targets have a phrase and `fields`."""
    phrase = {"type": "string", "minLength": 1, "maxLength": MAX_PHRASE_LENGTH}
    thought = {"type": "string", "maxLength": MAX_THOUGHT_LENGTH}
    target = object_schema("target", phrase=phrase, **fields)
    return object_schema("answer", thought=thought, targets=array_schema(target, MAX_TARGETS, 1))


def _marks_field(numbers: Collection[int]) -> Schema:
    """A list of marks among `numbers`; where there are none, an empty one."""
    mark: Schema = {"type": "integer", "enum": list(numbers)} if numbers else {"type": "integer"}
    return array_schema(mark, min(MAX_REGIONS_PER_TARGET, len(numbers)))


def _coordinate_schema(frame: Frame) -> Schema:
    """A coordinate that lies within the frame."""
    if frame.scale == UNIT:
        return {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01}
    return {"type": "integer", "minimum": 0, "maximum": round(max(frame.extent))}


def marks_schema(numbers: Collection[int]) -> Schema:
    """Targets with marks among `numbers`; where there are none, with empty lists only."""
    return _answer_schema(seen={"type": "boolean"}, marks=_marks_field(numbers))


def hybrid_schema(numbers: Collection[int], frame: Frame) -> Schema:
    """Targets with marks among `numbers`, and with boxes within the frame."""
    box = object_schema("box", bbox_2d=array_schema(_coordinate_schema(frame), 4, 4))
    boxes = array_schema(box, MAX_REGIONS_PER_TARGET)
    return _answer_schema(seen={"type": "boolean"}, marks=_marks_field(numbers), boxes=boxes)


def boxes_schema(frame: Frame) -> Schema:
    """Targets with boxes and points, in numbers that lie within the frame."""
    number = _coordinate_schema(frame)
    box = object_schema("box", bbox_2d=array_schema(number, 4, 4), point_2d=array_schema(number, 2, 2))
    return _answer_schema(boxes=array_schema(box, MAX_REGIONS_PER_TARGET))


KEEP_SCHEMA = object_schema("check", keep={"type": "boolean"})  # of the answer to VERIFICATION_PROMPT


@dataclass
class GroundedTarget:
    """A target as the model named it, with what it pointed at.

    Attributes:
        phrase: Its name.
        regions: Numbers of marks, or boxes, as the model wrote them.
        confidence: In [0, 1], that it is in the image; 1 or 0 where probabilities are unknown.
        seen: Whether the model says that it sees it, whatever it points at.
    """

    phrase: str
    regions: list[Any]
    confidence: float
    seen: bool = False


def read_targets(answer: StructuredAnswer, *keys: str) -> tuple[list[GroundedTarget] | None, str]:
    """The targets in an answer, and the thought before them.

    A bare list is accepted too, as some models were trained to write: [{"bbox_2d": [...], "label": "..."}],
    or [] for nothing.

    Args:
        answer: The model's answer.
        keys: Names of the lists of regions: "marks", "boxes" or both.

    Returns:
        The targets, those of the same name merged, and the thought. (None, "") where the answer does not have
        the form.
    """
    value = read_json(answer.text)
    thought = value.get("thought") if isinstance(value, dict) else ""
    rows = _target_rows(value, keys)
    if rows is None:
        return None, ""
    targets = _merged_targets(zip(rows, _confidences(answer, keys, len(rows)), strict=True), keys)
    if rows and not targets:
        return None, ""
    return targets or [GroundedTarget("it", [], 0.0)], thought if isinstance(thought, str) else ""


def _confidences(answer: StructuredAnswer, keys: tuple[str, ...], count: int) -> list[float | None]:
    """The model's own probability that each of `count` targets is there; None where it is unknown.

    It is that of "seen", or where the model does not write that and has one list, that the list is not empty.
    """
    confidences = probabilities(answer, rb'"seen"\s*:\s*', lambda byte: byte == b"t")
    if not confidences and len(keys) == 1:
        before = rb'"' + keys[0].encode() + rb'"\s*:\s*\[\s*'
        confidences = probabilities(answer, before, lambda byte: byte != b"]")
    return confidences if len(confidences) == count else [None] * count


def _target_rows(value: Any, keys: tuple[str, ...]) -> list[Any] | None:
    """The list of targets in the JSON of an answer; None where there is none."""
    rows = value.get("targets") if isinstance(value, dict) else value
    if rows is None and isinstance(value, dict) and {*keys, "bbox_2d"} & value.keys():
        rows = [value]  # a single target
    return rows if isinstance(rows, list) else None


def _merged_targets(rows: Iterable[tuple[Any, float | None]], keys: tuple[str, ...]) -> list[GroundedTarget]:
    """The targets of rows with their confidences, None where it is unknown; those of the same name merged."""
    merged: dict[str, GroundedTarget] = {}
    for row, confidence in rows:
        if not isinstance(row, dict) or not {*keys, "bbox_2d"} & row.keys():  # cut off, or something else
            continue
        regions = _regions(row, keys)
        phrase = clean_phrase(str(row.get("phrase") or row.get("label") or ""))
        seen = row.get("seen")
        if confidence is None:
            confidence = float(seen if isinstance(seen, bool) else bool(regions))
        target = merged.setdefault(phrase.lower(), GroundedTarget(phrase, [], confidence))
        target.regions += [r for r in regions if r not in target.regions]
        target.confidence = max(target.confidence, confidence)
        target.seen = target.seen or seen is True
    return list(merged.values())


def _regions(row: dict[str, Any], keys: tuple[str, ...]) -> list[Any]:
    """What a target's row points at: all that its lists hold, or itself where it is a box."""
    if not set(keys) & row.keys():
        return [row]
    lists = [row[key] if isinstance(row[key], list) else [row[key]] for key in keys if key in row]
    return [region for regions in lists for region in regions]


def written_answer(rows: list[dict[str, Any]]) -> str:
    """The JSON that a model would have written for targets; rows: with the fields of the schema."""
    return json.dumps({"thought": "", "targets": rows}, ensure_ascii=False)


def read_numbers(region: Any, key: str, count: int) -> list[float] | None:
    """The `count` finite numbers under `key` of a region, or of a bare list; None where they are not such."""
    values = region.get(key) if isinstance(region, dict) else region
    if not isinstance(values, list) or len(values) != count:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in values):
        return None
    return values

"""What a multimodal LLM is asked, so that it points at things in a photo, and how its answer is read.

    said = model.ask(turns, MARKED.format(...), marks_schema(numbers))
    targets, thought = read_targets(said, "marks")         # [Pointed("umbrella", [3], .97), Pointed("bench", [], .02)]

The schemas are what `assistant.mllm.structured_output` holds a local model to and what a server is sent; the reader takes no more
than JSON that resembles them, as not every server keeps to a schema.
"""

from dataclasses import dataclass

import numpy as np

from assistant.grammar import clean_phrase
from assistant.mllm.coordinates import UNIT, Frame
from assistant.mllm.structured_output import Said, probabilities, read_json

TARGETS, EACH = 24, 24  # things in one answer, and regions or boxes of one thing

MEANT = (
    "You look at a photo and point at what the user means, which may be said in a roundabout way or refer to what was said "
    'before. Write JSON. "thought": in a sentence or two, what is meant and where you see it. "targets": each thing that '
    "is meant, in the order of the question; where the user lists things, every one of them, in the user's words. "
    '"phrase": a short name for it. '
)
MARKED = MEANT + (
    'The first picture is the photo; {sheets} the same photo with regions outlined and numbered, {n} in all. "marks": the '
    "numbers of the regions that show the thing, all that it takes and none that shows something else; [] if the thing is "
    'not in the photo. Example: {{"thought": "An umbrella keeps the rain off; the man holds one. I see no bench.", '
    '"targets": [{{"phrase": "umbrella", "marks": [{example}]}}, {{"phrase": "bench", "marks": []}}]}}'
)
BOXED = MEANT + (
    '"boxes": for each instance "bbox_2d", its box as [left, top, right, bottom], and "point_2d", a point well inside '
    'it as [x, y], {meaning}; [] if the thing is not in the photo. Example: {{"thought": "An umbrella keeps the rain off; '
    'the man holds one. I see no bench.", "targets": [{{"phrase": "umbrella", "boxes": [{{"bbox_2d": {box}, '
    '"point_2d": {point}}}]}}, {{"phrase": "bench", "boxes": []}}]}}'
)
CHECKED = (
    "You check an outline in a photo. The first picture is the photo with one region outlined in yellow, the second is that "
    'region from nearer. Write JSON: {"keep": true} if what is outlined is what the user is looking for, or one of them, or '
    'a part of it that belongs to the answer; {"keep": false} if it is something else.'
)
AGAIN = (
    "That is not the JSON that was asked for. Write it again: only the JSON, with nothing before or after it."
)


def _object(title: str, **fields) -> dict:
    return {
        "title": title,
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def _list(items: dict, most: int, least: int = 0) -> dict:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _targets(**regions) -> dict:
    phrase = {"type": "string", "minLength": 1, "maxLength": 60}
    thought = {"type": "string", "maxLength": 400}
    return _object(
        "answer",
        thought=thought,
        targets=_list(_object("target", phrase=phrase, **regions), TARGETS, least=1),
    )


def marks_schema(numbers) -> dict:
    """Names with marks among `numbers`; where there are none, with empty lists only."""
    mark = {"type": "integer", "enum": list(numbers)} if numbers else {"type": "integer"}
    return _targets(marks=_list(mark, min(EACH, len(numbers))))


def boxes_schema(frame: Frame) -> dict:
    """Names with boxes and points, as numbers that lie in the frame."""
    value = lambda top: (
        {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01}
        if frame.scale == UNIT
        else {"type": "integer", "minimum": 0, "maximum": round(top)}
    )
    one = value(max(frame.extent))
    return _targets(boxes=_list(_object("box", bbox_2d=_list(one, 4, 4), point_2d=_list(one, 2, 2)), EACH))


KEEP = _object("check", keep={"type": "boolean"})


@dataclass
class Pointed:
    """A thing as the model named it, with the regions that it gave: numbers, or boxes as it wrote them."""

    phrase: str
    regions: list
    confidence: float


def read_targets(said: Said, key: str) -> tuple[list[Pointed] | None, str]:
    """The things in an answer and the thought before them; None where it holds no such thing. Also takes a bare list, as
    models write that were taught to: [{"bbox_2d": [...], "label": "..."}], [] for nothing."""
    value = read_json(said.text)
    thought = value.get("thought") if isinstance(value, dict) else ""
    rows = value.get("targets") if isinstance(value, dict) else value
    if rows is None and isinstance(value, dict) and {key, "bbox_2d"} & value.keys():
        rows = [value]
    if not isinstance(rows, list):
        return None, ""
    sure = probabilities(said, rb'"' + key.encode() + rb'"\s*:\s*\[\s*', lambda byte: byte != b"]")
    merged: dict[str, Pointed] = {}
    for k, row in enumerate(rows):
        if not isinstance(row, dict) or not {key, "bbox_2d"} & row.keys():  # cut off, or something else
            continue
        regions = row.get(key, [row] if "bbox_2d" in row else [])
        regions = regions if isinstance(regions, list) else [regions]
        phrase = clean_phrase(str(row.get("phrase") or row.get("label") or ""))
        confidence = sure[k] if len(sure) == len(rows) and sure[k] is not None else float(bool(regions))
        one = merged.setdefault(phrase.lower(), Pointed(phrase, [], confidence))
        one.regions += [r for r in regions if r not in one.regions]
        one.confidence = max(one.confidence, confidence)
    if rows and not merged:
        return None, ""
    found = list(merged.values()) or [Pointed("it", [], 0.0)]
    return found, thought if isinstance(thought, str) else ""


def numbers_of(region, key: str, count: int) -> list[float] | None:
    values = region.get(key) if isinstance(region, dict) else region
    if not isinstance(values, list) or len(values) != count:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in values):
        return None
    return values

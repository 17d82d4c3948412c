"""What a multimodal LLM is asked where a concept segmenter finds what it names, and how its answers are read.

answer = model.ask(turns, CONCEPTS_PROMPT, CONCEPTS_SCHEMA)
targets, thought = read_concepts(answer)
# [ConceptTarget("umbrella", True, 0.98, ["umbrella", "parasol"], "the one nearest the door")]
answer = model.ask(turns, PICK_PROMPT, pick_schema(numbers))
read_picks(answer)                                   # {"umbrella": [2]}
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from assistant.grammar import clean_phrase
from assistant.mllm.grounding_prompts import (
    MAX_TARGETS,
    MAX_THOUGHT_LENGTH,
    Schema,
    array_schema,
    object_schema,
)
from assistant.mllm.structured_answer import StructuredAnswer, probabilities, read_json
from assistant.sam.concepts import longest_end

MAX_CONCEPTS = 3  # phrases of one target
MAX_TEXT_LENGTH = 80  # characters of a name, a phrase, or what singles a target out

CONCEPTS_PROMPT = (
    "You look at a photo and name what the user means, which may be said in a roundabout way or refer to "
    "what you said before. A program then outlines whatever your words name, so say what a thing is, not "
    'what it is for. Write JSON. "thought": in a sentence or two, what is meant and where you see it. '
    '"targets": each thing that is meant, in the order of the question; where the user lists things, every '
    "one of them. "
    '"phrase": a short name for it, in the user\'s words. "seen": true if it is in the photo, false if it is '
    'not. "concepts": one to three noun phrases of one to three words that name its kind in English, the '
    'plainest first. "which": empty if every instance of that kind is meant; otherwise what singles out '
    "those that are meant. "
    'Example, for "what keeps the rain off the man on the left, and is there a bench?": {"thought": "The man '
    'on the left holds an umbrella, another man holds one too. I see no bench.", "targets": [{"phrase": '
    '"umbrella", "seen": true, "concepts": ["umbrella", "parasol"], "which": "the one over the man on the '
    'left"}, {"phrase": "bench", "seen": false, "concepts": ["bench"], "which": ""}]}'
)
OTHER_CONCEPTS_PROMPT = (
    "The program found nothing for {phrases}. Look again at the photo. Write the same JSON for these things "
    'only, with other words in "concepts": a more general kind, what it looks like, or what holds it; and '
    '"seen": false for what is not in the photo.'
)
PICK_PROMPT = (
    "You look at a photo and point at what the user means. The first picture is the photo; the others are "
    "the same photo with candidates outlined and numbered. A number stands inside its region or beside a "
    'small one, with a line to it. Write JSON. "targets": each of the things listed below. "phrase": its '
    'name as listed. "marks": the numbers of its candidates that are meant, all of them; [] if none is. '
    'Example: {"targets": [{"phrase": "umbrella", "marks": [2]}, {"phrase": "bench", "marks": []}]}'
)


def _text(min_length: int = 1, max_length: int = MAX_TEXT_LENGTH) -> Schema:
    return {"type": "string", "minLength": min_length, "maxLength": max_length}


CONCEPTS_SCHEMA = object_schema(
    "concepts",
    thought=_text(0, MAX_THOUGHT_LENGTH),
    targets=array_schema(
        object_schema(
            "target",
            phrase=_text(),
            seen={"type": "boolean"},
            concepts=array_schema(_text(), MAX_CONCEPTS, 1),
            which=_text(0),
        ),
        MAX_TARGETS,
        1,
    ),
)


def pick_schema(numbers: Collection[int]) -> Schema:
    """Targets with marks among `numbers`, which are not empty."""
    marks = array_schema({"type": "integer", "enum": list(numbers)}, len(numbers))
    target = object_schema("target", phrase=_text(), marks=marks)
    return object_schema("picks", targets=array_schema(target, MAX_TARGETS, 1))


@dataclass
class ConceptTarget:
    """A target as the model named it.

    Attributes:
        phrase: Its name.
        seen: Whether the model sees it.
        probability: In [0, 1], that it does; 1 or 0 where probabilities are unknown.
        concepts: Noun phrases to look for, the plainest first.
        which: What singles out the instances that are meant; "" for all.
    """

    phrase: str
    seen: bool
    probability: float
    concepts: list[str] = field(default_factory=list)
    which: str = ""


def read_concepts(answer: StructuredAnswer) -> tuple[list[ConceptTarget] | None, str]:
    """The targets in an answer, and the thought before them; (None, "") where it does not have the form."""
    value = read_json(answer.text)
    rows = value.get("targets") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        return None, ""
    likely = probabilities(answer, rb'"seen"\s*:\s*', lambda byte: byte == b"t")
    if len(likely) != len(rows):
        likely = [None] * len(rows)
    targets: dict[str, ConceptTarget] = {}
    for row, probability in zip(rows, likely, strict=True):
        if isinstance(row, dict) and (target := _read_target(row, probability)):
            targets.setdefault(target.phrase.lower(), target)
    thought = value.get("thought", "") if isinstance(value, dict) else ""
    return list(targets.values()) or None, thought if isinstance(thought, str) else ""


def _read_target(row: dict[str, Any], probability: float | None) -> ConceptTarget | None:
    """A target; None where it has no name. Not every server keeps to the schema."""
    phrase = str(row.get("phrase") or "").strip()
    written = row.get("concepts")
    concepts = [longest_end(str(c)) for c in (written if isinstance(written, list) else [written]) if c]
    concepts = [c for c in concepts if c][:MAX_CONCEPTS] or ([longest_end(phrase)] if phrase else [])
    if not concepts:
        return None
    seen = row.get("seen") is not False
    which = str(row.get("which") or "").strip()
    likely = float(seen) if probability is None else probability
    return ConceptTarget(clean_phrase(phrase or concepts[0]), seen, likely, concepts, which)


def read_picks(answer: StructuredAnswer) -> dict[str, list[int]] | None:
    """{name in lower case: numbers} of an answer; None where it does not have the form."""
    value = read_json(answer.text)
    rows = value.get("targets") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        return None
    picks: dict[str, list[int]] = {}
    for row in rows:
        if isinstance(row, dict):
            marks = row.get("marks")
            written = marks if isinstance(marks, list) else [marks]
            numbers = [int(str(mark)) for mark in written if str(mark).isdecimal()]
            picks[clean_phrase(str(row.get("phrase") or "")).lower()] = numbers
    return picks

"""Steps 2 to 4 with language models: a description of the photo, questions about it, and what others say of them.

    steps = asking(photo, bank, Settings(per_image=8, model="qwen3"), drops)      # a generator
    requests = next(steps); requests = steps.send(answers) ...                    # ends with StopIteration(records)

It says what to ask, and whoever drives it asks: a server, a local model, a cluster. Per photo: a description (where a
multimodal model is named); the questions; a second opinion, each question alone with the list of things, to be answered
with numbers; and a look for what is said to be absent. What does not hold (`datagen.checks`), or is answered otherwise,
is dropped. Answers are structured, replies are worded by our grammar, so nothing is parsed by hope. Every drop is counted
with its reason.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.grammar import parse, reply_for
from assistant.record import Record, RecordTarget
from datagen.checks import KINDS, Earlier, Seen, Wanted, trouble
from datagen.composer.phrasebank import Entry
from datagen.sources.photos import Instance, Photo, seed_for

NAMED = 120  # names at most that a model is told are not there

DESCRIBE = """Describe this photo in four to six plain sentences: what is going on, who and what can be seen, how the things
lie to each other, and what they are for here. Do not guess what cannot be seen."""

WRITE = """You write questions that people might ask an assistant about a photo. The assistant answers by outlining things in
the photo, or by saying that a thing is not there. You are told what is in the photo: each thing has a number, a name and a place.

Write {count} questions of different kinds, as varied in wording as people are: short and long, a child and an engineer, plain
requests, needs and problems ("I need to write a letter", "what keeps the rain off?").
{kinds}
Only ask what can be answered from the photo by pointing. A question must have one answer that everybody agrees on.
"phrase" is how the reply calls the thing in a few words without an article: "umbrella", "cup on the left". "name" is its name in
the list; for an absent thing its common name."""

RULES = {
    "implicit": """describes ONE kind of thing by its use, look, material or part in the scene, WITHOUT its name or a synonym. All
  things of that name are meant: give all their numbers.""",
    "named": "asks for one kind of thing by name; all their numbers.",
    "multi": "asks for two or three different kinds of things at once, by use or by name; all the numbers of each.",
    "position": """where there are several of one name, asks for some of them by place, by comparison ("the taller one", "the two
  nearest to the door") or by what they do; only their numbers, never all.""",
    "part": "asks for a part of a thing by its use, look or place; the numbers of the parts that are meant.",
    "absent": """asks for something that could well be in such a scene and is NOT there; no numbers. Half of them take it for
  granted ("what is the dog chewing on?" where there is no dog). Never something that may only be hard to see.""",
    "followup": """a question that is only clear after one or two others, which stand in "before" with what they are about ("where
  could I sit?" - "and the one nearer to the window?"); its numbers are what the LAST question is about.""",
}

ANSWER = """\
A photo shows these things, each with a number, a name and a place. Someone asks a question about the photo. Answer with
the numbers of all things that are meant, and nothing else; an empty list if nothing in the list fits."""

LOOK = """\
Look at this photo. Which of these can be seen anywhere in it, even in part, small, far away or in the background? Answer
with their numbers, and nothing else; an empty list if there is none of them."""

NUMBERS = {"type": "array", "items": {"type": "integer"}}


def form(title: str, **properties: dict) -> dict:
    """The JSON schema of an object with just these properties."""
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TARGET = form("target", phrase={"type": "string"}, name={"type": "string"}, numbers=NUMBERS)
TURN = form("turn", question={"type": "string"}, targets={"type": "array", "items": TARGET})
QUESTION = form(
    "question",
    kind={"type": "string", "enum": list(KINDS)},
    before={"type": "array", "items": TURN},
    question={"type": "string"},
    targets={"type": "array", "items": TARGET},
)
QUESTIONS = form("questions", questions={"type": "array", "items": QUESTION})
OPINION = form("opinion", numbers=NUMBERS)
DESCRIPTION = form("description", description={"type": "string"})
# Names this version of all that models are told.
PROMPT = hashlib.sha256(
    json.dumps([DESCRIBE, WRITE, RULES, ANSWER, LOOK, QUESTIONS, OPINION]).encode()
).hexdigest()[:12]


@dataclass(frozen=True)
class Settings:
    """How photos are asked about. eyes: a multimodal model describes and looks; caption: a description at hand."""

    per_image: int = 8
    writer: str = "openai"
    model: str = ""
    eyes: bool = False
    caption: str = ""
    second_opinion: bool = True


@dataclass(frozen=True)
class Request:
    """One thing to ask a model. picture: to be shown with it, to the multimodal model: a path or (H, W, 3) uint8."""

    messages: list[dict]
    schema: dict
    seed: int
    picture: Path | np.ndarray | None = None


def place(photo: Photo, instance: Instance) -> str:
    """ "left, top, small": thirds of the picture, and the share of its area."""
    x, y = instance.centre
    across = ("left", "middle", "right")[min(2, int(3 * x / photo.width))]
    down = ("top", "centre", "bottom")[min(2, int(3 * y / photo.height))]
    share = instance.area / (photo.width * photo.height)
    return f"{across}, {down}, {'small' if share < 0.01 else 'medium' if share < 0.1 else 'large'}"


def scene(photo: Photo) -> tuple[str, list[Instance]]:
    """What a model is told of a photo, and the instances by their number from 1."""
    instances = sorted(photo.instances, key=lambda i: (i.key, i.centre))
    kind = lambda i: " (a crowd of them)" if i.crowd else " (a part)" if i.key in photo.parts else ""
    lines = [f"{k}. {i.key}{kind(i)}: {place(photo, i)}" for k, i in enumerate(instances, 1)]
    counts = ", ".join(f"{count} x {key}" for key, count in sorted(Counter(i.key for i in instances).items()))
    told = (
        f"The photo, {photo.width} x {photo.height} px, shows:\n" + "\n".join(lines) + f"\nIn all: {counts}."
    )
    if photo.partial:
        told += f"\nThere are more of these than are listed: {', '.join(sorted(photo.partial))}."
    gone = sorted(photo.absent or set(photo.categories) - set(photo.keys()))
    if gone:
        some = random.Random(seed_for(photo)).sample(gone, min(NAMED, len(gone)))
        told += f"\nLooked for and not there: {', '.join(some)}."
    return told, instances


def kinds_of(photo: Photo) -> list[str]:
    """The kinds of questions that a photo allows."""
    return [
        kind
        for kind in RULES
        if not (kind == "part" and not photo.parts & set(photo.keys()))
        and not (kind == "position" and len(photo.keys()) == len(photo.instances))
    ]


Steps = Generator[list[Request], list[dict | None], list[Record]]


def asking(photo: Photo, bank: dict[str, Entry], settings: Settings, drops: Counter) -> Steps:
    """All that is asked about one photo; returns the records that passed every check."""
    listed, instances = scene(photo)
    seed, description = seed_for(photo), settings.caption
    if settings.eyes and not description:
        (found,) = yield [Request([{"role": "user", "content": DESCRIBE}], DESCRIPTION, 0, photo.file)]
        if found is None:
            drops["description: no usable answer"] += 1
        description = found["description"] if found else ""
    told = listed + (f"\n\n{description}" if description else "")
    rules = "\n".join(f"- {kind}: {RULES[kind]}" for kind in kinds_of(photo))
    (found,) = yield [
        Request(
            [
                {"role": "system", "content": WRITE.format(count=settings.per_image, kinds=rules)},
                {"role": "user", "content": told},
            ],
            QUESTIONS,
            seed,
        )
    ]
    if found is None:
        drops["photo: no usable answer"] += 1
        return []
    if not found["questions"]:
        drops["photo: the model wrote no question"] += 1
    seen, good = Seen(), []
    for row in found["questions"][: 2 * settings.per_image]:
        question = read(row, instances)
        if question is None:
            drops[f"{row['kind']}: points at things that are not there"] += 1
            continue
        why = trouble(
            question.text, question.kind, question.targets, photo, bank, question.before, settings.eyes
        )
        if not why and seen.again(question.text, question.before):
            why = "nearly asked before"
        if why:
            drops[f"{question.kind}: {why}"] += 1
        else:
            good.append(question)
    good = good[: settings.per_image]
    if settings.second_opinion and good:
        good = yield from second_opinions(good, told, seed, drops)
    if settings.eyes:
        good = yield from looked_for(good, photo, drops)
    records = [record_of(photo, question, settings) for question in good]
    if None in records:
        drops["a phrase that a reply cannot hold"] += records.count(None)
    return [record for record in records if record]


@dataclass(frozen=True)
class Question:
    """A question as a writer gives it; numbers: of the things it means, in the list that the writer saw."""

    kind: str
    text: str
    targets: list[Wanted]
    before: list[Earlier]
    numbers: list[int]


def read(row: dict, instances: Sequence[Instance]) -> Question | None:
    """None where a number is not in the list."""
    turns = (row, *row["before"])
    if any(not 1 <= n <= len(instances) for turn in turns for t in turn["targets"] for n in t["numbers"]):
        return None

    def targets(turn: dict) -> list[Wanted]:
        return [
            Wanted(
                " ".join(t["phrase"].split()) or t["name"],
                t["name"].lower().strip(),
                tuple(dict.fromkeys(instances[n - 1].id for n in sorted(t["numbers"]))),
            )
            for t in turn["targets"]
        ]

    text = lambda turn: " ".join(turn["question"].split())
    before = [Earlier(text(turn), targets(turn)) for turn in row["before"]]
    return Question(
        row["kind"],
        text(row),
        targets(row),
        before,
        sorted({n for t in row["targets"] for n in t["numbers"]}),
    )


def second_opinions(good: list[Question], told: str, seed: int, drops: Counter) -> Generator:
    """Those that a reader who sees only the list and the question understands alike."""

    def request(question: Question) -> Request:
        earlier = ""
        for turn in question.before:
            answer = ", ".join(t.phrase + ("" if t.ids else " (not there)") for t in turn.targets)
            earlier += f"\n\nEarlier question: {turn.question}\nIt was answered with: {answer}"
        asked = f"{told}{earlier}\n\nThe question: {question.text}"
        return Request(
            [{"role": "system", "content": ANSWER}, {"role": "user", "content": asked}], OPINION, seed
        )

    opinions = yield [request(question) for question in good]
    kept = []
    for question, opinion in zip(good, opinions):
        if opinion is None or sorted(set(opinion["numbers"])) != question.numbers:
            why = "no second opinion" if opinion is None else "a second opinion disagrees"
            drops[f"{question.kind}: {why}"] += 1
        else:
            kept.append(question)
    return kept


def looked_for(good: list[Question], photo: Photo, drops: Counter) -> Generator:
    """Those whose absent things a multimodal model does not see either: outlines may be missing."""
    gone = sorted({t.phrase for q in good for t in q.targets if not t.ids})
    if not gone:
        return good
    listed = "\n".join(f"{k}. {phrase}" for k, phrase in enumerate(gone, 1))
    (found,) = yield [Request([{"role": "user", "content": f"{LOOK}\n{listed}"}], OPINION, 0, photo.file)]
    if found is None:
        drops["absent: no usable answer"] += 1
    seen = {phrase for k, phrase in enumerate(gone, 1) if found is None or k in found["numbers"]}
    kept = [q for q in good if not any(not t.ids and t.phrase in seen for t in q.targets)]
    if found:
        drops.update(f"{q.kind}: can be seen, though it is not outlined" for q in good if q not in kept)
    return kept


def record_of(photo: Photo, question: Question, settings: Settings) -> Record | None:
    """The record of a checked question; None where the grammar cannot say a target's phrase."""
    by_id = {instance.id: instance for instance in photo.instances}
    targets = question.targets
    rles = [photo.rle([by_id[n] for n in t.ids]) if t.ids else None for t in targets]
    answers = []
    for text, wanted in [
        *((turn.question, turn.targets) for turn in question.before),
        (question.text, targets),
    ]:
        said = [(t.phrase, bool(t.ids)) for t in wanted]
        answers.append(reply_for(said, random.Random(seed_for(photo, text))))
        if [(m.phrase, m.present) for m in parse(answers[-1])] != said:
            return None
    source = {
        "kind": question.kind,
        "writer": settings.writer,
        "model": settings.model,
        "prompt": PROMPT,
        "image_id": photo.id,
        "categories": [t.category for t in targets],
        "category_ids": [photo.categories.get(t.category) for t in targets],
        "annotation_ids": [list(t.ids) for t in targets],
        "phrase_ids": [None for _ in targets],
        "area_share": [round(photo.area_share(rle), 6) if rle else 0.0 for rle in rles],
        "history": [
            {"question": turn.question, "answer": answer} for turn, answer in zip(question.before, answers)
        ],
    }
    return Record(
        str(photo.file),
        photo.width,
        photo.height,
        question.text,
        answers[-1],
        [RecordTarget(t.phrase, rle) for t, rle in zip(targets, rles)],
        source,
    )

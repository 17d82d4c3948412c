"""Questions by a language model: it gets what is in a photo, with counts and places, and writes what people would ask.

    records = await questions_of(photo, bank, server, drops, per_image=8, description="", second_opinion=True)

Per photo three requests: a description (where a multimodal model is named), the questions, and a second opinion: each
question alone with the list of things, to be answered with numbers; where that disagrees, the question is dropped. What
does not hold (`datagen.checks`) is dropped before. Answers are structured, replies are worded by our grammar, so nothing
is parsed by hope. Every drop is counted with its reason.
"""

import asyncio
import base64
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Sequence

from assistant.grammar import parse, reply_for
from assistant.record import Record, RecordTarget
from datagen.checks import KINDS, Seen, Wanted, trouble
from datagen.phrasebank import Entry
from datagen.photos import Instance, Photo, seed_for
from datagen.server import Server

PIXELS = 768  # px, the longer side of a picture that is sent

DESCRIBE = """Describe this photo in four to six plain sentences: what is going on, who and what can be seen, how the things
lie to each other, and what they are for here. Do not guess what cannot be seen."""

WRITE = """You write questions that people might ask an assistant about a photo. The assistant answers by outlining things in
the photo, or by saying that a thing is not there. You are told what is in the photo: each thing has a number, a name and a place.

Write {count} questions of different kinds, as varied in wording as people are: short and long, a child and an engineer, plain
requests, needs and problems ("I need to write a letter", "what keeps the rain off?").
- implicit: describes ONE kind of thing by its use, look, material or part in the scene, WITHOUT its name or a synonym. All things
  of that name are meant: give all their numbers.
- named: asks for one kind of thing by name; all their numbers.
- multi: asks for two or three different kinds of things at once, by use or by name; all the numbers of each.
- position: where there are several of one name, asks for some of them by place, size or what they do; only their numbers, not all.
- absent: asks for something that could well be in such a scene and is NOT there; no numbers. Never something that may only be
  hard to see.
Only ask what can be answered from the photo by pointing. A question must have one answer that everybody agrees on.
"phrase" is how the reply calls the thing in a few words without an article: "umbrella", "cup on the left". "name" is its name in
the list; for an absent thing its common name."""

ANSWER = """A photo shows these things, each with a number, a name and a place. Someone asks a question about the photo. Answer with
the numbers of all things that are meant, and nothing else; an empty list if nothing in the list fits."""

NUMBERS = {"type": "array", "items": {"type": "integer"}}


def _form(title: str, **properties: dict) -> dict:
    return {"title": title, "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TARGET = _form("target", phrase={"type": "string"}, name={"type": "string"}, numbers=NUMBERS)
QUESTION = _form("question", kind={"type": "string", "enum": list(KINDS)}, question={"type": "string"},
                 targets={"type": "array", "items": TARGET})
QUESTIONS = _form("questions", questions={"type": "array", "items": QUESTION})
OPINION = _form("opinion", numbers=NUMBERS)
DESCRIPTION = _form("description", description={"type": "string"})
PROMPT = hashlib.sha256(json.dumps([DESCRIBE, WRITE, ANSWER, QUESTIONS, OPINION]).encode()).hexdigest()[:12]  # names a version


def place(photo: Photo, instance: Instance) -> str:
    """"left, top, small": thirds of the picture, and the share of its area."""
    x, y = instance.centre
    across = ("left", "middle", "right")[min(2, int(3 * x / photo.width))]
    down = ("top", "centre", "bottom")[min(2, int(3 * y / photo.height))]
    share = instance.area / (photo.width * photo.height)
    return f"{across}, {down}, {'small' if share < 0.01 else 'medium' if share < 0.1 else 'large'}"


def scene(photo: Photo) -> tuple[str, list[Instance]]:
    """What a model is told of a photo, and the instances by their number from 1."""
    instances = sorted(photo.instances, key=lambda i: (i.key, i.centre))
    lines = [f"{k}. {i.key}{' (a crowd of them)' if i.crowd else ''}: {place(photo, i)}" for k, i in enumerate(instances, 1)]
    return "\n".join(lines), instances


def picture_part(photo: Photo) -> dict:
    from PIL import Image

    from assistant.images import open_image

    image = Image.fromarray(open_image(photo.file))
    image.thumbnail((PIXELS, PIXELS))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()}}


async def describe(photo: Photo, eyes: Server | None, captions: dict[str, str], drops: Counter) -> str:
    """A description: the caption that is at hand, else of a multimodal model, else nothing."""
    if caption := captions.get(photo.file.name):
        return caption
    if eyes is None:
        return ""
    part = await asyncio.to_thread(picture_part, photo)
    found = await eyes.ask([{"role": "user", "content": [part, {"type": "text", "text": DESCRIBE}]}], DESCRIPTION)
    if found is None:
        drops["description: no usable answer"] += 1
    return found["description"] if found else ""


async def questions_of(photo: Photo, bank: dict[str, Entry], server: Server, drops: Counter, per_image: int, description: str,
                       second_opinion: bool) -> list[Record]:
    """The records of one photo that passed every check."""
    listed, instances = scene(photo)
    told = f"The photo, {photo.width} x {photo.height} px, shows:\n{listed}" + (f"\n\n{description}" if description else "")
    found = await server.ask([{"role": "system", "content": WRITE.format(count=per_image)},
                              {"role": "user", "content": told}], QUESTIONS, seed_for(photo))
    if found is None:
        drops["photo: no usable answer"] += 1
        return []
    seen, good = Seen(), []
    for row in found["questions"][: 2 * per_image]:
        text, kind = " ".join(row["question"].split()), row["kind"]
        numbers = [n for t in row["targets"] for n in t["numbers"]]
        if any(not 1 <= n <= len(instances) for n in numbers):
            drops[f"{kind}: points at things that are not there"] += 1
            continue
        targets = [Wanted(" ".join(t["phrase"].split()) or t["name"], t["name"].lower().strip(),
                          tuple(sorted({instances[n - 1].id for n in t["numbers"]}))) for t in row["targets"]]
        why = trouble(text, kind, targets, photo, bank) or ("nearly asked before" if seen.again(text) else None)
        if why:
            drops[f"{kind}: {why}"] += 1
        else:
            good.append((text, kind, targets, sorted(set(numbers))))
    good = good[:per_image]
    if second_opinion:
        opinions = await asyncio.gather(*(server.ask(
            [{"role": "system", "content": ANSWER}, {"role": "user", "content": f"{told}\n\nThe question: {text}"}], OPINION, seed_for(photo))
            for text, *_ in good))
        kept = []
        for row, opinion in zip(good, opinions):
            if opinion is None or sorted(set(opinion["numbers"])) != row[3]:
                drops[f"{row[1]}: " + ("no second opinion" if opinion is None else "a second opinion disagrees")] += 1
            else:
                kept.append(row)
        good = kept
    records = [record_of(photo, text, kind, targets, server.model) for text, kind, targets, _ in good]
    if None in records:
        drops["a phrase that a reply cannot hold"] += records.count(None)
    return [record for record in records if record]


def record_of(photo: Photo, question: str, kind: str, targets: Sequence[Wanted], model: str) -> Record | None:
    """The record of a checked question; None where the grammar cannot say a target's phrase."""
    by_id = {instance.id: instance for instance in photo.instances}
    rles = [photo.rle([by_id[n] for n in t.ids]) if t.ids else None for t in targets]
    answer = reply_for([(t.phrase, bool(t.ids)) for t in targets], random.Random(seed_for(photo, question)))
    if [(m.phrase, m.present) for m in parse(answer)] != [(t.phrase, bool(t.ids)) for t in targets]:
        return None
    source = {"kind": kind, "writer": "openai", "model": model, "prompt": PROMPT, "image_id": photo.id,
              "categories": [t.category for t in targets], "category_ids": [photo.categories.get(t.category) for t in targets],
              "annotation_ids": [list(t.ids) for t in targets], "phrase_ids": [None for _ in targets],
              "area_share": [round(photo.area_share(rle), 6) if rle else 0.0 for rle in rles]}
    return Record(str(photo.file), photo.width, photo.height, question, answer,
                  [RecordTarget(t.phrase, rle) for t, rle in zip(targets, rles)], source)

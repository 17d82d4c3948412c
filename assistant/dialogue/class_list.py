"""A list of class names becomes a semantic map: every class said to be there, with its pixels, or absent (LaSagnA).

    names = read_names("road, sky, car")
    found = ask_classes(scene.fresh(), names)
    found["label"], found["said"]                # (H, W) int16, {class: [present, confidence]}

A list longer than PER_QUESTION is split into several questions.
"""

import re
import time

import numpy as np

from assistant.answer import Target
from assistant.errors import BadInput

PER_QUESTION = 6
MOST = 200  # names in a list
LONGEST = 80  # characters of a name


def read_names(text: str) -> list[str]:
    """The names in pasted text: one a line, or between commas, semicolons or tabs; numbers and bullets before them go,
    and so do repetitions. BadInput: none, too many, or one too long."""
    if not isinstance(text, str):
        raise BadInput(f"a list of classes is text, not {type(text).__name__}")
    bullet = re.compile(r"^\s*(?:[-*\u2022]|\d+[.):]?(?=\s))?\s*")
    parts = (bullet.sub("", part) for part in re.split(r"[\n,;\t|]+", text[:100_000]))
    names, seen = [], set()
    for name in (" ".join(part.strip(" \"'").split()) for part in parts):
        if name and name.lower() not in seen:
            seen.add(name.lower())
            names.append(name)
    if not names:
        raise BadInput("the list of classes is empty: give names, one a line or with commas between them")
    if len(names) > MOST:
        raise BadInput(f"the list has {len(names)} classes: give at most {MOST}")
    if long := next((name for name in names if len(name) > LONGEST), None):
        raise BadInput(f"{long[:30]!r}... has {len(long)} characters: names have at most {LONGEST}")
    return names


def class_of(phrase: str, asked: list[str]) -> str | None:
    """The class that an answer's phrase names: the same words, whatever the article, case or plural."""
    plain = lambda text: re.sub(
        r"(s|es)\b", "", re.sub(r"^(the|an?|some)\s+", "", " ".join(text.lower().split()))
    )
    return next((name for name in asked if plain(name) == plain(phrase)), None)


def ask_classes(scene, names: list[str], per_question: int = PER_QUESTION, check=None) -> dict:
    """Ask for all classes. check: called before each question, what it raises ends the work.

    Forgets what `scene` remembers; to keep it, pass `scene.fresh()`. Returns {"label": (H, W) int16, the class's
    number in `names`, -1 where nothing was answered; "said": {class: [present, confidence]} of those answered;
    "strange": phrases that are no class; "seconds", "tokens": of each question}. Where masks overlap, the surer answer
    lies on top.
    """
    size, painted, said, strange = scene.size, [], {}, []
    seconds, tokens = [], []
    for first in range(0, len(names), per_question):
        asked = names[first : first + per_question]
        if check:
            check()
        scene.reset()
        began = time.perf_counter()
        answer = scene.ask(f"Which of these are in the picture: {', '.join(asked)}?")
        seconds.append(time.perf_counter() - began)
        tokens.append(answer.tokens)
        complete = len(answer.targets) == len(asked)
        for target, in_order in zip(answer.targets, asked if complete else [None] * len(answer.targets)):
            name = class_of(target.phrase, asked)
            if (
                name is None and in_order not in said
            ):  # a synonym ("person" for pedestrian), answered in order
                name = in_order
            if name is None:
                strange.append(target.phrase)
            elif name not in said:  # of a class that is answered twice, the first answer
                said[name] = [bool(target.present), float(target.confidence)]
                if target.present:
                    painted.append((float(target.confidence), names.index(name), target.mask))
    label = np.full(size, -1, np.int16)
    for _, number, mask in sorted(painted, key=lambda p: p[0]):
        label[mask] = number
    return {"label": label, "said": said, "strange": strange, "seconds": seconds, "tokens": tokens}


def class_targets(found: dict, names: list[str]) -> list[Target]:
    """What `ask_classes` found as a Target for each name that was answered: its pixels of the map; absent without any."""
    targets = []
    for number, name in enumerate(names):
        if name in found["said"]:
            present, confidence = found["said"][name]
            mask = found["label"] == number
            there = bool(present and mask.any())
            targets.append(Target(name, there, confidence, mask if there else None, []))
    return targets

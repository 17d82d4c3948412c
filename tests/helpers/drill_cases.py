"""One case of the drill (`tests.helpers.drill`): odd annotations, a hostile picture, or a question.

Each function returns the ending of its case in one word and raises AssertionError, or whatever the product
raises, where the product did wrong. They run in a process of their own, see `tests.helpers.drill`.
"""

import functools
import random
import re
from pathlib import Path

import numpy as np
import skimage.data

from assistant import Assistant
from assistant.answer import Answer
from assistant.errors import BadInput
from assistant.images import collect_notes, open_image
from assistant.scene import Scene
from tests.helpers.hostile import hostile_questions
from tests.helpers.odd_annotations import named_in_coco, named_in_labelme, run_datagen

ORDINARY_QUESTIONS = [
    "where is the {}?",
    "is there a {} here?",
    "are there any {}s?",
    "Show me the {} please",
    "the {} and the {}",
    "everything except the {}",
    "how many {}s are there?",
    "what is next to the {}?",
    "is there no {}?",
    "{}; {}",
]
ORDINARY_THINGS = (
    "cup spoon table window dog giraffe umbrella woman guitar cat laptop sofa horse tree".split()
)
STEM = 3  # letters by which a denied word is found in its question, whatever its ending


def questions(count: int, seed: int) -> list[str]:
    """Half hostile and half ordinary questions."""
    rng = random.Random(seed)
    ordinary = [
        rng.choice(ORDINARY_QUESTIONS).format(*rng.sample(ORDINARY_THINGS, 2)) for _ in range(count // 2)
    ]
    return hostile_questions(count - len(ordinary), seed) + ordinary


@functools.cache
def pocket() -> Assistant:
    """The pocket preset, loaded once a process."""
    return Assistant.from_preset("pocket")


@functools.cache
def coffee() -> Scene:
    """A cup on a table, opened once a process."""
    return pocket().open(np.ascontiguousarray(skimage.data.coffee()[::2, ::2]))


def coco_case(text: bytes, photos: Path, folder: Path) -> str:
    """A mutated COCO file through datagen."""
    file = folder / "instances.json"
    file.write_bytes(text)
    command = ["--images", str(photos), "--annotations", str(file)]
    return run_datagen(command, folder / "out", named_in_coco(text))


def labelme_case(text: bytes, photos: Path, folder: Path) -> str:
    """A mutated LabelMe file through datagen."""
    (folder / "labelme").mkdir()
    (folder / "labelme/a.json").write_bytes(text)
    command = ["--images", str(photos), "--annotations", str(folder / "labelme"), "--format", "labelme"]
    return run_datagen(command, folder / "out", named_in_labelme(text))


def image_case(file: Path, folder: Path) -> str:
    """A hostile picture: refused in one line, or opened, asked about and saved."""
    try:
        with collect_notes():
            image = open_image(file)
            scene = pocket().open(image)
    except BadInput as error:
        assert "\n" not in str(error), "a refusal of several lines"
        return "refused"
    check_answer("where is the cup?", scene.ask("where is the cup?"), image.shape[:2])
    scene.ask("is there a cat?").save(folder / "answer")
    return "answered"


def question_case(question: str) -> str:
    """A question about a cup on a table."""
    scene = coffee()
    scene.reset()
    try:
        answer = scene.ask(question)
    except BadInput as error:
        assert "\n" not in str(error), "a refusal of several lines"
        return "refused"
    check_answer(question, answer, scene.size)
    if not answer.targets:
        return "no target"
    return "present" if any(target.present for target in answer.targets) else "absent"


def check_answer(question: str, answer: Answer, size: tuple[int, int]) -> None:
    """What must hold of every answer: masks of the image's size, and nothing denied that nobody named."""
    assert answer.text.strip(), "an empty answer"
    asked = question.lower()
    for target in answer.targets:
        if target.present:
            assert target.mask is not None and target.mask.shape == size and target.mask.any()
        elif target.known:  # of a word that is not known nothing is denied
            words = re.findall(r"\w+", target.phrase.lower())
            named = all(word[:STEM] in asked for word in words)
            assert named, f"denied {target.phrase!r}, which nobody named"

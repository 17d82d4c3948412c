"""Step 1, pick, where names are missing: a multimodal model names the regions that SAM outlined.

    marked, rles = outliner.propose(image)                        # see `datagen.sources.outline`
    answer = await model.ask(...naming_request(marked))
    image = with_names(image, rles, answer, drops)

A change of what is made here needs a new `datagen.versions.OUTLINER_VERSION`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from datagen.llm.requests import INTEGER, STRING, Request, array_schema, object_schema
from datagen.sources.annotated_images import AnnotatedImage, Instance

MAX_WORDS_OF_NAME = 4  # the prompt asks for three at most; a longer answer is a description
NO_NAMES = ("", "nothing", "none", "background", "unknown")

# The prompt and the schema are part of what answers are cached under: an edit asks every user's model again.
NAMING_PROMPT = """In this photo some regions are outlined and numbered. Give for each number what the region shows: the common name of one
whole thing in one to three words, in the singular, or "nothing" where it shows no whole thing, several, or mere background. "count"
is how many of that name there are in the whole photo, outlined or not."""  # noqa: E501
NAMES = object_schema(
    "names", things=array_schema(object_schema("thing", number=INTEGER, name=STRING, count=INTEGER))
)


def naming_request(marked: np.ndarray) -> Request:
    """Ask what the numbered regions of an image, (H, W, 3) uint8 RGB, show."""
    return Request([{"role": "user", "content": NAMING_PROMPT}], NAMES, 0, marked)


def with_names(
    image: AnnotatedImage,
    rles: Sequence[dict[str, Any]],
    answer: dict[str, Any] | None,
    drops: Counter[str],
) -> AnnotatedImage:
    """Give an image an instance for each region that was named.

    Names of which the model counted more than were outlined are `partial`; nothing is known to be absent.

    Args:
        image: An image without instances.
        rles: The masks of its regions; the first has number 1.
        answer: What the model said of them, of the schema `NAMES`; None where it gave no usable answer.
        drops: Counts the answers that cannot be used, by reason.
    """
    from pycocotools import mask as coco_mask

    if answer is None:
        drops["names: no usable answer"] += 1
        return image
    instances: dict[int, Instance] = {}
    counted: Counter[str] = Counter()
    for row in answer["things"]:
        key = " ".join(row["name"].lower().replace("_", " ").split())
        number = row["number"]
        if not 1 <= number <= len(rles) or number in instances:
            drops["names: no such region"] += 1
        elif key in NO_NAMES or len(key.split()) > MAX_WORDS_OF_NAME:
            drops["names: not a whole object"] += 1
        else:
            rle = rles[number - 1]
            x, y, width, height = (float(v) for v in coco_mask.toBbox(rle))
            area = float(coco_mask.area(rle))
            instances[number] = Instance(number, key, rle, (x, y, width, height), area, crowd=False)
            counted[key] = max(counted[key], row["count"])
    outlined = Counter(each.key for each in instances.values())
    partial = frozenset(key for key in outlined if counted[key] > outlined[key])
    return replace(image, instances=tuple(instances[number] for number in sorted(instances)), partial=partial)

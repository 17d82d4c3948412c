"""Two annotated images for the tests of composed questions, and images made of instances alone.

write_cups_and_cat(folder)
cups, cat = read_cups_and_cat(folder)
records = compose_train(cups, seed=3)
"""

from collections import Counter
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from assistant.record import Record
from datagen.composer import questions
from datagen.composer.phrasebank import load_bank
from datagen.sources.annotated_images import AnnotatedImage, Instance, read_images
from tests.helpers.datagen_images import annotation, rectangle, write_instances

BANK = load_bank("coco")
IDS = {"person": 1, "cup": 47, "cat": 17, "dining table": 67, "bowl": 51, "car": 3}
# All that the data set outlines.
ALL_IDS = IDS | {name: 1000 + number for number, name in enumerate(sorted(set(BANK) - set(IDS)))}
WIDTH, HEIGHT = 300, 200


def write_cups_and_cat(folder: Path) -> None:
    """Write folder/images and folder/instances.json: cups in a row, a table and a crowd of people; and a
    cat alone."""
    (folder / "images").mkdir()
    for name, pixels in (("a.jpg", skimage.data.coffee()), ("b.jpg", skimage.data.chelsea())):
        Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(folder / "images" / name)
    rows = [
        annotation(1, 1, IDS["cup"], (10, 100, 30, 30)),
        annotation(2, 1, IDS["cup"], (120, 105, 30, 30)),
        annotation(3, 1, IDS["cup"], (230, 100, 60, 60)),
        annotation(4, 1, IDS["dining table"], (0, 90, 300, 110)),
        annotation(5, 1, IDS["person"], (200, 0, 100, 30), iscrowd=1, segmentation=_crowd()),
        annotation(6, 1, IDS["person"], (20, 10, 40, 70)),
        annotation(7, 2, IDS["cat"], (20, 20, 200, 150)),
    ]
    images = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for number, name in ((1, "a.jpg"), (2, "b.jpg"))
    ]
    write_instances(folder, images, rows, ALL_IDS)


def _crowd() -> dict:
    """People in the upper right corner, as COCO's uncompressed RLE."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:30, 200:] = True
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, flat.size]).tolist()}


def read_cups_and_cat(folder: Path) -> list[AnnotatedImage]:
    """What `write_cups_and_cat` wrote."""
    return read_images(folder / "instances.json", folder / "images", BANK, Counter())


def compose_train(
    image: AnnotatedImage, split: str = "train", per_image: int = 60, seed: int = 0
) -> list[Record]:
    """Questions about an image, without groups."""
    return list(questions.compose(image, BANK, split, per_image, seed, Counter()))


def instance(number: int, key: str, box: tuple[float, float, float, float]) -> Instance:
    """A rectangular instance; box: (x, y, width, height)."""
    return Instance(number, key, rectangle(*box), box, float(box[2] * box[3]), False)


def image_of(*instances: Instance, categories: dict[str, int] | None = None) -> AnnotatedImage:
    """An image that shows some instances, without a file. categories: all of its data set's; None: none
    are known."""
    return AnnotatedImage(1, Path("x.jpg"), WIDTH, HEIGHT, instances, categories or {})


def image_with_row_of(keys: tuple[str, ...], categories: dict[str, int]) -> AnnotatedImage:
    """An image that shows one instance of each of some categories, side by side."""
    row = [instance(k, key, (10 + 60 * k, 50, 50, 40)) for k, key in enumerate(keys)]
    return image_of(*row, categories=categories)

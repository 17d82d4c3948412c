"""Small annotated data sets for the tests of datagen, and its command line.

write_three_images(folder)
main(command(folder, "out", "--per-image", 8))            # into folder/out
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image

CATEGORY_IDS = {"cup": 1, "cat": 2, "dog": 3}  # of the three images
MANY_NAMES = ["cup", "cat", "dog", "bowl", "chair", "car", "person", "bench"]  # of the 48 images


def command(folder: Path, out: str, *more: object) -> list[str]:
    """The arguments of `python -m datagen` for a folder with images/ and instances.json."""
    inputs = ["--images", folder / "images", "--annotations", folder / "instances.json"]
    return list(map(str, [*inputs, "--out", folder / out, *more]))


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """A rectangle as COCO polygons."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(
    number: int, image: int, category: int, box: tuple[float, float, float, float], **more: Any
) -> dict[str, Any]:
    """A row of COCO's annotations: the rectangle of a box (x, y, width, height). more: fields to be set
    otherwise."""
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": rectangle(*box),
    } | more


def write_instances(folder: Path, images: list[dict], annotations: list[dict], names: dict[str, int]) -> None:
    """Write folder/instances.json. names: {name: category id}."""
    data = {
        "info": {"images": []},  # the same word in another place
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in names.items()],
    }
    (folder / "instances.json").write_text(json.dumps(data))


def write_three_images(folder: Path) -> None:
    """Three images 200 px wide and 100 px high, with two cups and a cat each; there could be a dog."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for k in range(1, 4):
        Image.fromarray(np.full((100, 200, 3), 60 * k, np.uint8)).save(folder / f"images/{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "width": 200, "height": 100})
        for n, (name, x) in enumerate((("cup", 5), ("cup", 150), ("cat", 70))):
            annotations.append(annotation(10 * k + n, k, CATEGORY_IDS[name], (x, 20, 40, 50)))
    write_instances(folder, images, annotations, CATEGORY_IDS)


def write_many_images(folder: Path, count: int = 48) -> None:
    """Images with one to eight categories, their annotations in no order of images."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for k in range(count):
        Image.fromarray(np.full((60, 200, 3), k % 256, np.uint8)).save(folder / f"images/{k:03}.jpg")
        images.append({"id": k, "file_name": f"{k:03}.jpg", "width": 200, "height": 60})
        annotations += [annotation(100 * k + n, k, n, (24 * n, 5, 20, 50)) for n in range(1 + k % 8)]
    random.Random(0).shuffle(annotations)
    write_instances(folder, images, annotations, {name: n for n, name in enumerate(MANY_NAMES)})


def generated_files(folder: Path) -> dict[str, bytes]:
    """{name: content} of the records and json files that datagen wrote."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".json", ".jsonl")}


def write_cup_and_cat(folder: Path) -> None:
    """Two photographs 300 px wide and 200 px high: a cup and a cat, with one instance each."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for k, (name, pixels) in enumerate((("cup", skimage.data.coffee()), ("cat", skimage.data.chelsea())), 1):
        Image.fromarray(pixels).resize((300, 200)).save(folder / f"images/{name}.jpg")
        images.append({"id": k, "file_name": f"{name}.jpg", "width": 300, "height": 200})
        annotations.append(annotation(k, k, k, (20, 20, 100, 80)))
    write_instances(folder, images, annotations, {"cup": 1, "cat": 2})

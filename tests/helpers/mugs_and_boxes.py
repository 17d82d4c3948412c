"""A COCO-format folder of red mugs and blue boxes on grey.

root = write_mugs_and_boxes(tmp_path / "train", count=6)
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64  # px of every image
SIDE = 20  # px of every mug and box
COLOURS = {1: (255, 0, 0), 2: (0, 0, 255)}  # by category id: mug, box


def write_mugs_and_boxes(root: Path, count: int, seed: int = 0) -> Path:
    """Write `count` images with one category, or in every third image both, and their instances.json."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    images = []
    annotations = []
    for k in range(count):
        pixels = rng.integers(100, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        images.append({"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH})
        for category, colour in COLOURS.items():
            if category == 1 + k % 2 or k % 3 == 0:
                x = int(rng.integers(0, 20)) + 24 * (category - 1)
                y = int(rng.integers(0, 20))
                pixels[y : y + SIDE, x : x + SIDE] = colour
                annotations.append(_annotation(len(annotations), k, category, x, y))
        Image.fromarray(pixels).save(root / "images" / f"{k}.png")
    categories = [{"id": 1, "name": "mug"}, {"id": 2, "name": "box"}]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(instances))
    return root


def _annotation(number: int, image: int, category: int, x: int, y: int) -> dict:
    """COCO's annotation of a square with its upper left corner at (x, y) px."""
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "segmentation": [[x, y, x + SIDE, y, x + SIDE, y + SIDE, x, y + SIDE]],
    }

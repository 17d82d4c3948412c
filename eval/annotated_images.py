"""Photos with outlined objects from a COCO-format folder: `instances.json` and `images/`.

for photo in read_photos("../shared/data/coco/dev"):
    image = open_sized(photo.path, photo.height, photo.width)
    photo.objects[0].category, photo.objects[0].mask()
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.record import coco_rle

SIZES = ("small", "medium", "large")  # COCO's: areas below 32x32, below 96x96, the rest


@dataclass(frozen=True)
class Outline:
    """One annotated object."""

    id: int
    category: str
    crowd: bool
    rle: dict

    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        from pycocotools import mask as coco_mask

        return coco_mask.decode(self.rle).astype(bool)


@dataclass(frozen=True)
class Photo:
    path: Path
    height: int
    width: int
    objects: list[Outline]


def size_name(area: float) -> str:
    """COCO's size class of an area in px."""
    return SIZES[(area >= 32**2) + (area >= 96**2)]


def open_sized(path: Path, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8; BadInput where the picture is missing, unreadable or of another size than its masks."""
    from assistant.images import open_image

    image = open_image(path)
    if image.shape[:2] != (height, width):
        raise BadInput(
            f"the picture is {image.shape[1]}x{image.shape[0]}, its annotation says {width}x{height}"
        )
    return image


def read_photos(root: str | Path, limit: int | None = None) -> list[Photo]:
    """The folder's photos in the file's order, `limit` of them at most; segmentations become RLEs.

    Raises BadInput where the json is missing, unreadable or not COCO's; the pictures are not opened.
    """
    root = Path(root)
    file = root / "instances.json"
    if not file.exists():
        raise BadInput(f"{file} is missing: --root must be a COCO-format folder (instances.json, images/)")
    try:
        data = json.loads(file.read_text())
        names = {c["id"]: c["name"] for c in data["categories"]}
        images = {i["id"]: i for i in data["images"][:limit]}
        objects: dict[int, list[Outline]] = {i: [] for i in images}
        for a in data["annotations"]:
            if a["image_id"] not in images or not a["segmentation"]:
                continue
            image = images[a["image_id"]]
            rle = coco_rle(a["segmentation"], image["height"], image["width"])
            objects[a["image_id"]].append(
                Outline(a["id"], names[a["category_id"]], bool(a.get("iscrowd")), rle)
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is not a COCO instances file: {type(error).__name__} {error}") from None
    return [
        Photo(root / "images" / i["file_name"], i["height"], i["width"], objects[k])
        for k, i in images.items()
    ]

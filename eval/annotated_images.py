"""Images with outlined instances from a COCO-format folder: `instances.json` and `images/`.

for annotated in read_annotated_images("coco/val"):
    image = open_sized(annotated.path, annotated.height, annotated.width)
    annotated.instances[0].category, annotated.instances[0].mask()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.files import read_json
from assistant.sam.mask_ops import decode_rle, rle_area, rle_of_segmentation

SIZES = ("small", "medium", "large")  # COCO's: areas below 32x32 px, below 96x96 px, and the rest


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        id: Its number in the file.
        category: The name of its category.
        crowd: Whether it outlines several objects at once (COCO's iscrowd).
        rle: Its mask, a COCO RLE with counts as a str.
    """

    id: int
    category: str
    crowd: bool
    rle: dict[str, Any]

    def mask(self) -> np.ndarray:
        """The mask, (H, W) bool."""
        return decode_rle(self.rle)


@dataclass(frozen=True)
class AnnotatedImage:
    """One image of the folder, not opened.

    Attributes:
        path: Its file.
        height, width: As its annotation says, px.
        instances: What is outlined in it.
        fault: What is wrong with an annotation of it, which is then not among the instances; "": nothing is.
    """

    path: Path
    height: int
    width: int
    instances: list[Instance]
    fault: str = ""


def size_name(area: float) -> str:
    """COCO's size class of an area in pixels, one of `SIZES`."""
    return SIZES[(area >= 32**2) + (area >= 96**2)]


def open_sized(path: Path, height: int, width: int) -> np.ndarray:
    """Open an image that has annotations.

    Args:
        path: The image file.
        height: The height in pixels that the annotation gives.
        width: The width in pixels that the annotation gives.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        BadInput: The image is missing, cannot be read, or has another size than its annotation says.
    """
    from assistant.images import open_image

    image = open_image(path)
    check_size((image.shape[0], image.shape[1]), (height, width))
    return image


def open_annotated(annotated: AnnotatedImage) -> np.ndarray:
    """Open an annotated image, (H, W, 3) uint8 RGB.

    Raises:
        BadInput: As of `open_sized`; or an annotation of it cannot be read, so that what is found there could
            not be scored.
    """
    if annotated.fault:
        raise BadInput(annotated.fault)
    return open_sized(annotated.path, annotated.height, annotated.width)


def check_size(size: tuple[int, int], annotated_size: tuple[int, int]) -> None:
    """Raise BadInput where an image's (height, width) is not that of its annotation."""
    if size != annotated_size:
        raise BadInput(
            f"the image is {size[1]}x{size[0]}, its annotation says {annotated_size[1]}x{annotated_size[0]}"
        )


def read_annotated_images(root: str | Path, limit: int | None = None) -> list[AnnotatedImage]:
    """Read the annotations of a COCO-format folder; the images are not opened.

    Args:
        root: Folder with instances.json and images/.
        limit: Read the first `limit` images only; None for all.

    Returns:
        The images in the file's order. Every segmentation becomes an RLE; instances without one are left out,
        and those with one that cannot be read are their images' `fault`.

    Raises:
        BadInput: The json is missing, cannot be read, or is not COCO's.
    """
    root = Path(root)
    file = root / "instances.json"
    if not file.exists():
        raise BadInput(f"{file} is missing: --root must be a COCO-format folder (instances.json, images/)")
    table = read_json(file)
    faults: dict[int, str] = {}
    try:
        names = {row["id"]: row["name"] for row in table["categories"]}
        images = {row["id"]: row for row in table["images"][:limit]}
        instances: dict[int, list[Instance]] = {number: [] for number in images}
        for row in table["annotations"]:
            number = row["image_id"]
            if number not in images or row.get("segmentation") in (None, [], {}):
                continue
            try:
                instances[number].append(_read_instance(row, images[number], names))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"no {error} there" if isinstance(error, KeyError) else error
                faults.setdefault(number, f"annotation {row.get('id')}: {reason}")
        return [
            AnnotatedImage(
                root / "images" / row["file_name"],
                row["height"],
                row["width"],
                instances[number],
                faults.get(number, ""),
            )
            for number, row in images.items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file} is not a COCO instances file: {type(error).__name__} {error}") from None


def _read_instance(row: dict[str, Any], image: dict[str, Any], names: dict[int, str]) -> Instance:
    """An instance from COCO's rows. Raises ValueError, KeyError or TypeError for rows of another form."""
    rle = rle_of_segmentation(row["segmentation"], image["height"], image["width"])
    if not rle_area(rle):
        raise BadInput("the outline is empty")
    return Instance(row["id"], names[row["category_id"]], bool(row.get("iscrowd")), rle)

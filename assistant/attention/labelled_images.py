"""Images with a class at every pixel, from VOC's layout, COCO's, or a COCO-format folder.

    names, images = read_labelled("DATA/coco/dev")          # instances.json and images/
    names, images = read_labelled("VOC2012", "val")         # JPEGImages, SegmentationClass, ImageSets
    names, images = read_labelled("COCO", "val2017")        # annotations/instances_val2017.json, val2017/
    label_map = images[0].read()        # (H, W) int64: 0 background, k = names[k - 1], -1 does not count

One-shot tuning (`python -m finetune attention`) and its benchmark (`python -m eval oneshot`) read them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.files import read_json, read_text
from assistant.mask_images import open_label_map
from assistant.sam.mask_ops import decode_rle, rle_of_segmentation

UNLABELLED = -1  # in label maps: pixels that do not count
VOC_CATEGORIES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
# What a model calls the categories whose own names it would hardly say.
VOC_NAMES = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "television",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
}


@dataclass(frozen=True)
class LabelledImage(ABC):
    """An image with a class at every pixel.

    Attributes:
        path: The image's file.
    """

    path: Path

    @abstractmethod
    def read(self) -> np.ndarray:
        """Read the label map.

        Returns:
            (H, W) int64: 0 for the background, k for the k-th class from 1 on, -1 where a pixel does not
            count.

        Raises:
            BadInput: It cannot be read.
        """


@dataclass(frozen=True)
class CocoImage(LabelledImage):
    """An image with COCO's segmentations.

    Attributes:
        height: px.
        width: px.
        segmentations: (class, COCO's segmentation) of each instance; class -1 for a crowd.
    """

    height: int
    width: int
    segmentations: list[tuple[int, Any]]

    def read(self) -> np.ndarray:
        """See `LabelledImage`. Where instances overlap, the smaller lies on top, as COCO has no order."""
        masks = []
        for number, segmentation in self.segmentations:
            rle = rle_of_segmentation(segmentation, self.height, self.width)
            masks.append((number, decode_rle(rle)))
        label_map = np.zeros((self.height, self.width), np.int64)
        for number, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
            label_map[mask] = number
        return label_map


@dataclass(frozen=True)
class VocImage(LabelledImage):
    """An image with a label PNG of VOC. label_file: the PNG."""

    label_file: Path

    def read(self) -> np.ndarray:
        """See `LabelledImage`."""
        numbers = open_label_map(self.label_file).astype(np.int64)
        return np.where(numbers <= len(VOC_CATEGORIES), numbers, UNLABELLED)


def read_labelled(root: str | Path, split: str = "val") -> tuple[list[str], list[LabelledImage]]:
    """List the labelled images of a folder.

    Args:
        root: A folder in one of the three layouts.
        split: Part of the data set, in VOC's and COCO's layouts.

    Returns:
        The names of the classes, and the images; their label maps are read when they are asked for.

    Raises:
        BadInput: The layout is not known, or a file of it cannot be read.
    """
    root = Path(root)
    if (root / "SegmentationClass").is_dir():
        return _list_voc(root, split)
    for file, folders in (
        (root / "instances.json", ["images"]),
        (root / "annotations" / f"instances_{split}.json", [split, f"images/{split}", "images"]),
    ):
        if file.is_file():
            return _list_coco(file, [root / folder for folder in folders])
    raise BadInput(
        f"{root} has no layout that is known: instances.json and images; "
        f"annotations/instances_{split}.json; or VOC's JPEGImages, SegmentationClass and "
        "ImageSets/Segmentation"
    )


def _list_coco(file: Path, folders: list[Path]) -> tuple[list[str], list[LabelledImage]]:
    """The classes and images of a COCO json; the images lie in the first of `folders` that there is."""
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    try:
        data = read_json(file)
        names = [category["name"] for category in data["categories"]]
        class_of_category = {category["id"]: k + 1 for k, category in enumerate(data["categories"])}
        segmentations: dict[int, list[tuple[int, Any]]] = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            if annotation["segmentation"] and annotation["image_id"] in segmentations:
                number = (
                    UNLABELLED if annotation.get("iscrowd") else class_of_category[annotation["category_id"]]
                )
                segmentations[annotation["image_id"]].append((number, annotation["segmentation"]))
        images: list[LabelledImage] = [
            CocoImage(
                folder / image["file_name"],
                int(image["height"]),
                int(image["width"]),
                segmentations[image["id"]],
            )
            for image in data["images"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is not a COCO instances file: {type(error).__name__} {error}") from None
    return names, images


def _list_voc(root: Path, split: str) -> tuple[list[str], list[LabelledImage]]:
    """The classes and images of VOC2012."""
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        stems = read_text(file).split()
    except BadInput as error:
        raise BadInput(f"{error}: choose a --split that VOC has") from None
    names = [VOC_NAMES.get(category, category) for category in VOC_CATEGORIES]
    images: list[LabelledImage] = [
        VocImage(root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png")
        for stem in stems
    ]
    return names, images

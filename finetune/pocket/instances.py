"""Labelled instances of training images: their names and masks, from COCO annotations or from records.

by_file = read_instances(Path("instances.json"))           # {file name: [(name, RLE)]}
instances = instances_of_images(records, by_file)          # {image: [(name, RLE)]}
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from assistant.errors import BadInput
from assistant.files import read_json
from assistant.sam.mask_ops import Rle, decode_rle, encode_rle, rle_of_segmentation
from finetune.image_record import ImageRecord

NamedRle = tuple[str, Rle]  # an instance: its name and its mask
NamedMask = tuple[str, np.ndarray]  # the same with a mask (H, W) bool

MIN_PART_SHARE = (
    0.2  # of a target's area: a connected part of this size is an instance, such as each wheel of a car
)


def read_instances(file: Path) -> dict[str, list[NamedRle]]:
    """The instances of a COCO instances.json by image file name; crowds are left out.

    Annotations that cannot be read are left out, and counted on stderr. Raises BadInput where the file is not
    COCO's.
    """
    data = read_json(file)
    unreadable = 0
    try:
        names = {category["id"]: category["name"] for category in data["categories"]}
        images = {image["id"]: image for image in data["images"]}
        found: dict[str, list[NamedRle]] = {image["file_name"]: [] for image in data["images"]}
        annotations = list(data["annotations"])
    except (KeyError, TypeError) as error:
        raise BadInput(f"{file} is not a COCO instances file: {type(error).__name__} {error}") from None
    for annotation in annotations:
        try:
            image = images[annotation["image_id"]]
            if not annotation.get("iscrowd") and annotation["segmentation"]:
                rle = rle_of_segmentation(annotation["segmentation"], image["height"], image["width"])
                found[image["file_name"]].append((names[annotation["category_id"]], rle))
        except (KeyError, TypeError, AttributeError, BadInput):
            unreadable += 1
    if unreadable:
        print(f"{file}: {unreadable} annotations cannot be read and are left out", file=sys.stderr)
    return found


def instances_in_records(
    records: Sequence[ImageRecord], split_parts: bool = True
) -> dict[Path, list[NamedRle]]:
    """The instances that the targets of records outline, each once.

    An instance's name is the category that its record gives, else the target's phrase.

    Args:
        records: The records.
        split_parts: Whether each large connected part of a target is an instance by itself.

    Returns:
        {image: its instances}, with every image of `records`.
    """
    instances: dict[Path, list[NamedRle]] = {record.image: [] for record in records}
    for image, targets in _distinct_targets(records).items():
        known = set()
        for name, rle in targets:
            for part in _large_parts(rle) if split_parts else [rle]:
                if (name, part["counts"]) not in known:
                    known.add((name, part["counts"]))
                    instances[image].append((name, part))
    return instances


def _distinct_targets(records: Iterable[ImageRecord]) -> dict[Path, list[NamedRle]]:
    """The present targets of each image, those of equal name and mask once."""
    masks_of: dict[Path, dict[tuple[str, str], Rle]] = {}
    for record in records:
        targets = record.record.targets
        categories = record.record.source.get("categories", [])
        for k, target in enumerate(targets):
            if target.rle is None:
                continue
            name = categories[k] if len(categories) == len(targets) else target.phrase.lower()
            masks_of.setdefault(record.image, {}).setdefault((name, target.rle["counts"]), target.rle)
    return {image: [(name, rle) for (name, _), rle in masks.items()] for image, masks in masks_of.items()}


def _large_parts(rle: Rle) -> list[Rle]:
    """The connected parts of at least MIN_PART_SHARE of a mask, or the mask if there are not two."""
    mask = decode_rle(rle)
    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())[1:]
    large = [k + 1 for k in range(count) if sizes[k] >= MIN_PART_SHARE * mask.sum()]
    return [rle] if len(large) < 2 else [encode_rle(parts == k) for k in large]


def instances_of_images(
    records: Sequence[ImageRecord], by_file: Mapping[str, list[NamedRle]], split_parts: bool = True
) -> dict[Path, list[NamedRle]]:
    """The instances of every image of `records`, in the order of their paths.

    Args:
        records: The records.
        by_file: {file name: instances}, which replaces what the records of that image outline.
        split_parts: See `instances_in_records`.
    """
    listed = {record.image: _listed_name(record.image, by_file) for record in records}
    unlisted = [record for record in records if listed[record.image] is None]
    from_records = instances_in_records(unlisted, split_parts)
    return {
        image: from_records[image] if name is None else by_file[name]
        for image, name in sorted(listed.items())
    }


def _listed_name(image: Path, by_file: Mapping[str, list[NamedRle]]) -> str | None:
    """What a file of annotations calls an image: the longest end of its path that is listed, or None.

    Files of images in several folders list them as FOLDER/NAME, and two folders may have a NAME each.
    """
    names = ("/".join(image.parts[start:]) for start in range(len(image.parts)))
    return next((name for name in names if name in by_file), None)

"""A labelled set of photos, from the results of its photos: COCO's and YOLO's files, the contact sheet.

labelled/
  instances.json       COCO; absent classes as LVIS's neg_category_ids
  data.yaml            YOLO, with images/ and labels/
  classes.txt          the classes, in the order of their numbers
  label_maps/          a palette PNG a photo: 0 for none of them, 1 for the first class
  sheet.html           all photos with their masks, from overlays/, to be checked by eye
  failed.txt           photos that have no labels, and why
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.export.yolo import data_yaml
from assistant.files import replace_whole
from assistant.label.photos import ENDINGS, IMAGE_IN_MAKING, IMAGES, RESULTS, Photo
from assistant.label.result import PhotoResult, read_result
from assistant.label.settings import LabelSettings
from assistant.label.sheet import write_sheet
from assistant.sam.mask_ops import rle_area, rle_box_xywh

COCO_FILE, YOLO_FILE, CLASSES_FILE = "instances.json", "data.yaml", "classes.txt"
SHEET_FILE, FAILED_FILE = "sheet.html", "failed.txt"


@dataclass
class LabelSummary:
    """What a run has labelled.

    Attributes:
        out: The folder of the set.
        photos: Number of photos that have labels.
        instances: {class: number of its instances}, of every class.
        in_photos: {class: number of photos that show it}, of every class.
        unknown: Classes that the models do not know the word for, in some photo at least.
        failures: {photo: why it has no labels}.
        notes: What was done to photos that their owner should know.
    """

    out: Path
    photos: int
    instances: dict[str, int]
    in_photos: dict[str, int]
    unknown: list[str]
    failures: dict[str, str]
    notes: list[str] = field(default_factory=list)


def write_set(photos: Sequence[Photo], failures: dict[str, str], settings: LabelSettings) -> LabelSummary:
    """Write the files of the whole set, and delete what earlier runs wrote about other photos.

    Args:
        photos: Those that were labelled.
        failures: {name: error} of those that were not.
        settings: Of the run.
    """
    out, classes = settings.out, settings.classes
    delete_others({photo.stem for photo in photos}, out)
    delete_unfinished(photos, out)
    results = [result for photo in photos if (result := read_result(photo.path_in(out, RESULTS))) is not None]
    texts = {
        COCO_FILE: json.dumps(coco_set(results, classes)),
        YOLO_FILE: data_yaml(classes, IMAGES),
        CLASSES_FILE: "".join(f"{name}\n" for name in classes),
        FAILED_FILE: "".join(f"{name}: {error}\n" for name, error in failures.items()),
    }
    for name, text in texts.items():
        with replace_whole(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    summary = summarise(results, failures, settings)
    write_sheet(out / SHEET_FILE, results, summary.failures, classes, settings.models.describe())
    return summary


def summarise(
    results: Iterable[PhotoResult], failures: dict[str, str], settings: LabelSettings
) -> LabelSummary:
    """Count what was found; the arguments are those of `write_set`, but for the photos' results."""
    none_yet = dict.fromkeys(settings.classes, 0)
    summary = LabelSummary(settings.out, 0, none_yet, dict(none_yet), [], failures)
    unknown: set[str] = set()
    for result in results:
        summary.photos += 1
        for each in result.found:
            summary.instances[each.name] += len(each.instances)
            summary.in_photos[each.name] += 1
        unknown.update(result.unknown)
        summary.notes += result.notes
    summary.unknown = [name for name in settings.classes if name in unknown]
    return summary


def coco_set(results: Sequence[PhotoResult], classes: Sequence[str]) -> dict[str, Any]:
    """The content of instances.json.

    Args:
        results: Of the photos.
        classes: The classes; their ids count from 1.

    Returns:
        {"images", "annotations", "categories"}. An annotation is one instance, with a compressed RLE, its
        bbox xywh and its area in px, and the confidence of its class as "score". As in LVIS,
        "neg_category_ids" of an image are the classes that it does not show, and
        "not_exhaustive_category_ids" those of which nothing is known.
    """
    ids = {name: number for number, name in enumerate(classes, 1)}
    annotations: list[dict[str, Any]] = []
    images = []
    for image_id, result in enumerate(results, 1):
        images.append(
            {
                "id": image_id,
                "file_name": result.name,
                "width": result.width,
                "height": result.height,
                "neg_category_ids": [ids[name] for name in result.absent],
                "not_exhaustive_category_ids": [ids[name] for name in result.unknown + result.unanswered],
            }
        )
        for each in result.found:
            for rle in each.instances:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": ids[each.name],
                        "segmentation": rle,
                        "bbox": [int(value) for value in rle_box_xywh(rle)],
                        "area": rle_area(rle),
                        "iscrowd": 0,
                        "score": each.confidence,
                    }
                )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def delete_others(stems: set[str], out: Path) -> None:
    """Delete the files of photos that do not belong to the set any more.

    Args:
        stems: Of the photos that do.
        out: The folder of the set.
    """
    for stem, result in _stored_results(out):
        if stem in stems:
            continue
        if result is not None and result.has_own_image:
            (out / IMAGES / result.name).unlink(missing_ok=True)
        for folder, ending in reversed(ENDINGS.items()):  # the result last: it tells of the others
            (out / folder / (stem + ending)).unlink(missing_ok=True)


def delete_unfinished(photos: Iterable[Photo], out: Path) -> None:
    """Delete the temporary files of runs that were killed.

    Args:
        photos: Those of the set.
        out: The folder of the set.
    """
    for folder in ENDINGS:
        for file in (out / folder).rglob(".*"):
            if file.is_file():
                file.unlink()
    for place in {photo.path_in(out, IMAGES).parent for photo in photos}:
        for file in place.glob(".*"):
            if IMAGE_IN_MAKING.fullmatch(file.name):
                file.unlink()


def _stored_results(out: Path) -> Iterator[tuple[str, PhotoResult | None]]:
    """(stem of its photo, result) of every result in a set's folder."""
    folder = out / RESULTS
    for file in sorted(folder.rglob(f"*{ENDINGS[RESULTS]}")):
        if not file.name.startswith("."):  # one that is being written
            yield file.relative_to(folder).as_posix().removesuffix(ENDINGS[RESULTS]), read_result(file)

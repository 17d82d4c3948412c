"""The contact sheet of a labelled set: an HTML page with every photo and its masks, to be checked by eye.

write_sheet(out / "sheet.html", results, {"broken.jpg": "is an empty file"}, ["cup", "spoon"], "pocket")

It shows the files beside it. Photos can be filtered by class, ordered by confidence, and marked as wrong; the
browser remembers the marks and lists the names of the marked photos.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.export.colours import palette
from assistant.files import replace_whole
from assistant.label.photos import ENDINGS, IMAGES, OVERLAYS
from assistant.label.result import PhotoResult

TEMPLATE = "sheet.html"  # beside this module


@dataclass(frozen=True)
class Card:
    """A photo on the sheet.

    Attributes:
        result: What was found in it.
        photo: The address of the photo, from the sheet.
        overlay: The address of the photo with its masks.
        classes: The numbers of its classes, from 0, with a space between.
        confidences: The confidence of each, likewise.
    """

    result: PhotoResult
    photo: str
    overlay: str
    classes: str
    confidences: str


@dataclass(frozen=True)
class ClassRow:
    """A class on the sheet: its name, its colour, and how often it was found."""

    name: str
    colour: str
    photos: int
    instances: int


def write_sheet(
    file: Path,
    results: Sequence[PhotoResult],
    failures: Mapping[str, str],
    classes: Sequence[str],
    models: str,
) -> None:
    """Write the sheet.

    Args:
        file: The page, in the folder of the set.
        results: Of the photos that have labels.
        failures: {name: why it has no labels} of the others.
        classes: The classes, in the order of their numbers.
        models: What to call the models that answered.
    """
    import jinja2

    template = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    numbers = {name: index for index, name in enumerate(classes)}
    rows = _class_rows(results, classes)
    values: dict[str, Any] = {
        "cards": [_card(result, numbers) for result in results],
        "colours": {row.name: row.colour for row in rows},
        "classes": rows,
        "failures": failures,
        "models": models,
        "photos": len(results),
    }
    with replace_whole(file) as temporary:
        text = environment.from_string(template).render(values)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _card(result: PhotoResult, numbers: Mapping[str, int]) -> Card:
    """The card of a photo. numbers: {class: its number}."""
    overlay = result.name.removesuffix(Path(result.name).suffix) + ENDINGS[OVERLAYS]
    return Card(
        result,
        _address(f"{IMAGES}/{result.name}"),
        _address(f"{OVERLAYS}/{overlay}"),
        " ".join(str(numbers[each.name]) for each in result.found),
        " ".join(f"{each.confidence:.4f}" for each in result.found),
    )


def _class_rows(results: Sequence[PhotoResult], classes: Sequence[str]) -> list[ClassRow]:
    """The classes with their counts."""
    rows = []
    for name, colour in zip(classes, palette(len(classes)), strict=True):
        found = [each for result in results for each in result.found if each.name == name]
        rows.append(ClassRow(name, colour, len(found), sum(len(each.instances) for each in found)))
    return rows


def _address(path: str) -> str:
    """A path from the sheet as the address of a link, whatever characters it has."""
    return urllib.parse.quote(os.fsencode(path))

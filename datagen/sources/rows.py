"""The rows that annotations are read as, and single values of them, each as it can be used or None.

for row in rows_of("labelme", Path("labels"), Path("photos")): ...      # see datagen.sources.formats
identity(row.get("image_id")); text(row.get("file_name")); side(row.get("width"))

Annotation files come from many programs and hands, so that any field may be missing, null or of another type.
"""

import math
from dataclasses import dataclass
from typing import Any

Row = tuple[str, dict[str, Any]]  # (name of a table of COCO's, or "skipped"; its row)

MAX_IDENTITY = 2**63 - 1  # that SQLite can hold
MAX_SIDE = 10**6  # px; no photo is as long


@dataclass(frozen=True)
class Shape:
    """One outline of an annotated file.

    Attributes:
        name: What it outlines; None where that cannot be read.
        segmentation: COCO polygons or RLE; None where it has no outline.
        fault: Why it has none.
        has_area: Whether it is of a kind that can have one: a point or a line beside an outline does not make
            the outline doubtful.
    """

    name: str | None
    segmentation: list | dict | None
    fault: str = ""
    has_area: bool = True


@dataclass(frozen=True)
class AnnotatedFile:
    """What a format with one file an image says about an image.

    Attributes:
        name: Of the image's file, from the folder of the images.
        size: (height, width) in px; None where it is not said.
        shapes: What is outlined.
    """

    name: str
    size: tuple[int, int] | None
    shapes: list[Shape]


def skipped(reason: str, item: object) -> Row:
    """The row of something that cannot be used at all. item: its name."""
    return "skipped", {"reason": reason, "item": " ".join(str(item).split())}


def identity(value: Any) -> int | str | None:
    """A row's id, as int or str; None where it is neither."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_IDENTITY:
        return value
    return text(value)


def text(value: Any) -> str | None:
    """A text that is not blank and can be written to a file; None for anything else."""
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can name
        return None
    return None if "\0" in value else value


def side(value: Any) -> int | None:
    """A width or height in px, also where it is given as text; None where it cannot be one."""
    try:
        number = int(value)
        is_whole = number == float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if is_whole and 0 < number <= MAX_SIDE and not isinstance(value, bool) else None

"""What was found in one photo, as it is stored until the whole set is written.

result = read_result(file, key)          # None where it is missing, or was made in another way
write_result(file, result)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import read_json, replace_whole
from assistant.sam.mask_ops import Rle


@dataclass
class FoundClass:
    """A class that is present in a photo.

    Attributes:
        name: The class.
        confidence: In [0, 1].
        instances: The masks of its instances, as COCO's RLE; no two of them overlap.
    """

    name: str
    confidence: float
    instances: list[Rle]


@dataclass
class PhotoResult:
    """What was found in one photo.

    Attributes:
        key: Names what it was made of, see `assistant.label.labeller.Labeller.key_of`.
        name: The photo's, see `assistant.label.photos.Photo`.
        width, height: Of the upright photo, in px.
        found: The classes that are present.
        absent: Those that are not there.
        unknown: Those that the models do not know the word for.
        unanswered: Those of which the models said nothing.
        notes: What was done to the photo that its owner should know.
        has_own_image: Whether the file in the set's folder of images was put there by us.
    """

    key: str
    name: str
    width: int
    height: int
    found: list[FoundClass]
    absent: list[str]
    unknown: list[str]
    unanswered: list[str]
    notes: list[str] = field(default_factory=list)
    has_own_image: bool = True


def read_result(file: Path) -> PhotoResult | None:
    """Read a result; None where there is none, or one that cannot be read."""
    try:
        row = read_json(file)
        return PhotoResult(**{**row, "found": [FoundClass(**each) for each in row["found"]]})
    except (BadInput, TypeError, KeyError):
        return None


def write_result(file: Path, result: PhotoResult) -> None:
    """Write a result, whole or not at all."""
    with replace_whole(file) as temporary:
        temporary.write_text(json.dumps(asdict(result)), encoding="ascii")

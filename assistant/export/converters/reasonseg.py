"""ReasonSeg (Lai et al. 2024, LISA) as records.

NAME.jpg stands beside NAME.json: {"text": [...], "is_sentence": bool, "shapes": [{"label", "points"}]}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.export.converters.common import BadItems, record_of_mask, refuse
from assistant.files import read_json
from assistant.images import image_size
from assistant.record import Record
from assistant.sam.mask_ops import encode_rle
from assistant.sam.outlines import check_outline

TARGET_VALUE, IGNORE_VALUE = 1, 255  # of painted pixels; 0 is neither
EDGE_TOLERANCE = 1  # px by which a polygon may leave its image unnoticed


def from_reasonseg(folder: str | Path, prefix: str = "", bad: BadItems | None = None) -> Iterator[Record]:
    """Read one record per image.

    The question is text[0], and `source["ignore"]` is the RLE of the pixels that do not count, or None.
    Shapes are read as LISA reads them (utils/data_processing.py): larger polygons are painted first, so
    smaller ones stay on top; a label with "ignore" in it marks pixels to ignore, "flag" is skipped, any other
    label is the target. A polygon that leaves the image is cut at its edge, and `source["trouble"]` says so
    ("" otherwise).

    Args:
        folder: Such as ReasonSeg/val.
        prefix: What is put before an image's file name.
        bad: Where files that cannot be read are listed; None to raise BadInput for the first.

    Raises:
        BadInput: The folder has no .json.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise BadInput(f"no .json in {folder}: give a folder of ReasonSeg such as ReasonSeg/val")
    for file in files:
        try:
            yield _read_item(file, prefix)
        except BadInput as error:
            refuse(bad, file.name, str(error))


def _read_item(file: Path, prefix: str) -> Record:
    """The record of one json file and its image."""
    row = read_json(file, fallback="cp1252")  # in which some of ReasonSeg's files are written
    try:
        question = row["text"][0]
        is_sentence = bool(row["is_sentence"])
        if not isinstance(row["text"], list) or not isinstance(question, str) or not question.strip():
            raise TypeError
        shapes = [
            (str(shape["label"]).lower(), np.asarray(shape["points"], float).reshape(-1, 2))
            for shape in row["shapes"]
        ]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise BadInput(
            f"{file} is not as in ReasonSeg: text, is_sentence, shapes with label and points"
        ) from None
    image = file.with_suffix(".jpg")
    height, width = image_size(image)
    _check_points(file, shapes, (height, width))
    painted = _paint(shapes, (height, width))
    has_target = any(label != "flag" and "ignore" not in label for label, _ in shapes)
    if has_target and not (painted == TARGET_VALUE).any():  # which must not pass for "it is not there"
        raise BadInput(f"{file}: the outline of its target is empty")
    ignore = painted == IGNORE_VALUE
    edges = (width + EDGE_TOLERANCE, height + EDGE_TOLERANCE)
    cut = sum(bool(((points < -EDGE_TOLERANCE) | (points > edges)).any()) for _, points in shapes)
    source = {
        "dataset": "ReasonSeg",
        "file": file.name,
        "is_sentence": is_sentence,
        "ignore": encode_rle(ignore) if ignore.any() else None,
        "trouble": f"{cut} polygons leave the image and were cut at its edge" if cut else "",
    }
    phrase = "it" if is_sentence else question
    return record_of_mask(prefix + image.name, question, phrase, painted == TARGET_VALUE, source)


def _check_points(file: Path, shapes: list[tuple[str, np.ndarray]], size: tuple[int, int]) -> None:
    """Raise BadInput where a shape has a corner that is not finite or is far outside the image."""
    try:
        for _, points in shapes:
            check_outline([points.ravel().tolist()], *size)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None


def _paint(shapes: list[tuple[str, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """Paint polygons.

    Args:
        shapes: (label in lower case, corners (P, 2) xy in px) each.
        size: (height, width) in pixels.

    Returns:
        (height, width) uint8: TARGET_VALUE, IGNORE_VALUE, or 0.
    """
    from PIL import Image, ImageDraw

    layers = []
    for label, points in shapes:
        if label == "flag" or len(points) == 0:
            continue
        layer = Image.new("1", size[::-1])
        corners = [(x, y) for x, y in points.astype(int).tolist()]  # whole pixels, as LISA's int32
        draw = ImageDraw.Draw(layer)
        if len(corners) > 2:
            draw.polygon(corners, fill=1, outline=1)
        draw.line(corners + corners[:1], fill=1)
        layers.append((np.asarray(layer), IGNORE_VALUE if "ignore" in label else TARGET_VALUE))
    painted = np.zeros(size, np.uint8)
    for inside, value in sorted(layers, key=lambda pair: -int(pair[0].sum())):
        painted[inside] = value
    return painted

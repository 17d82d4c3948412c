"""Reads a folder of LabelMe's files, a NAME.json an image, of its versions since 3 and of X-AnyLabeling.

for file in read_labelme(Path("labels"), Path("photos")): ...    # AnnotatedFile, or a row of what is skipped

Shapes of one name and group_id are one instance. Points and lines have no area: what they name is there, and
not outlined.
"""

import base64
import binascii
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.files import read_json
from assistant.images import MAX_PIXELS, image_size
from assistant.sam.mask_ops import encode_patch_rle, merge_rles, rle_of_segmentation
from datagen.sources.rows import AnnotatedFile, Row, Shape, side, skipped, text

WITHOUT_AREA = ("point", "points", "line", "linestrip")
CORNERS_OF_A_CIRCLE = 64  # of the polygon that stands for it: its area is within 0.2 %

Size = tuple[int, int]  # (height, width) px
Points = np.ndarray  # (N, 2) float64, xy px


def read_labelme(folder: Path, images: Path) -> Iterator[AnnotatedFile | Row]:
    """Read the files of a folder.

    Args:
        folder: The folder.
        images: Folder with the images, where sizes are read that a file does not say.

    Yields:
        What each file says; `rows.skipped` for a file that cannot be read or is another program's.

    Raises:
        BadInput: There is no such folder, or it has no .json.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BadInput(f"no NAME.json in {folder}: --annotations names LabelMe's folder")
    for file in files:
        try:
            content = read_json(file)
        except BadInput as error:
            reason = "not text in UTF-8" if "not text" in str(error) else "not JSON"
            yield skipped(f"labelme file: {reason}", file.name)
            continue
        yield _annotated_file(content, file, images) or skipped("labelme file: not LabelMe's", file.name)


def _annotated_file(content: Any, file: Path, images: Path) -> AnnotatedFile | None:
    """What a file says; None where it is not LabelMe's."""
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return None
    path = text(content.get("imagePath"))
    if path is None:
        return None
    name = _image_name(path, file.parent, images)
    height, width = side(content.get("imageHeight")), side(content.get("imageWidth"))
    size = (height, width) if height and width else None
    return AnnotatedFile(name, size, _instances(content["shapes"], size or _size_of(images / name)))


def _image_name(path: str, folder: Path, images: Path) -> str:
    """The image's name from the folder of the images: in a folder of it where the path leads there."""
    place = PurePosixPath(path.replace("\\", "/"))
    try:
        inside = (folder / place).resolve().relative_to(images.resolve())
        if (images / inside).is_file():
            return inside.as_posix()
    except (ValueError, OSError):
        pass  # it leads elsewhere: the images may have been moved since
    return place.name or path


def _size_of(image: Path) -> Size | None:
    """The size of an image; None where it cannot be read."""
    try:
        return image_size(image)
    except BadInput:
        return None


def _instances(rows: list[Any], size: Size | None) -> list[Shape]:
    """The instances of a file, in the order in which they begin. size: of the image."""
    groups: dict[object, list[Shape]] = {}
    for number, row in enumerate(rows):
        shape = _shape(row, size)
        group = row.get("group_id") if isinstance(row, dict) else None
        key = number if group is None else (shape.name, str(group))
        groups.setdefault(key, []).append(shape)
    return [_joined(shapes, size) for shapes in groups.values()]


def _joined(shapes: list[Shape], size: Size | None) -> Shape:
    """One instance of the shapes of a group: whole, or without an outline.

    A point or line beside an outline takes nothing from it; a shape that cannot be read leaves it unknown.
    """
    broken = next((each for each in shapes if each.fault and each.has_area), None)
    outlines = [each.segmentation for each in shapes if each.segmentation is not None]
    if broken or not outlines:
        return broken or shapes[0]
    name = shapes[0].name
    if all(isinstance(each, list) for each in outlines):
        return Shape(name, [polygon for polygons in outlines for polygon in polygons])
    if len(outlines) == 1:
        return Shape(name, outlines[0])
    try:
        assert size is not None  # without it a mask has no outline
        return Shape(name, merge_rles([rle_of_segmentation(each, *size) for each in outlines]))
    except BadInput as error:
        return Shape(name, None, f"labelme: {error}")


def _shape(row: Any, size: Size | None) -> Shape:
    """One shape, with its outline or why it has none."""
    if not isinstance(row, dict):
        return Shape(None, None, "labelme: a shape is no object")
    label = row.get("label")
    name = text(str(label)) if isinstance(label, str | int | float) else None
    name = None if name is None else name.strip().lower()
    kind = row.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind not in OUTLINES:
        if kind in WITHOUT_AREA:
            return Shape(name, None, f"labelme: a {kind} has no area", has_area=False)
        return Shape(name, None, "labelme: a shape of a type that is not read")
    try:
        return Shape(name, OUTLINES[kind](_points(row.get("points")), row, size))
    except BadInput as error:
        return Shape(name, None, f"labelme: {error}")


def _points(value: Any) -> Points:
    """[[x, y], ...] as an array. Raises BadInput where it is something else."""
    is_list = isinstance(value, list) and all(isinstance(p, list) and len(p) == 2 for p in value)
    if not is_list or not all(type(number) in (int, float) for point in value for number in point):
        raise BadInput("the points of a shape are not a list of [x, y]")
    try:
        points = np.array(value, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        raise BadInput("a point of a shape is not finite") from None
    if not np.isfinite(points).all():
        raise BadInput("a point of a shape is not finite")
    return points


def _polygon(points: Points, row: dict[str, Any], size: Size | None) -> list:
    """A polygon, also a rectangle that was turned: its corners."""
    if len(points) < 3:
        raise BadInput("a polygon has fewer than three corners")
    return [points.ravel().tolist()]


def _rectangle(points: Points, row: dict[str, Any], size: Size | None) -> list:
    """A rectangle by two opposite corners, or by all four."""
    if len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return _polygon(points, row, size)


def _circle(points: Points, row: dict[str, Any], size: Size | None) -> list:
    """A circle by its centre and a point on it."""
    if len(points) != 2:
        raise BadInput("a circle is not a centre and a point")
    radius = math.dist(*points)
    angles = np.linspace(0, 2 * np.pi, CORNERS_OF_A_CIRCLE, endpoint=False)
    return _polygon(points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1), row, size)


def _mask(points: Points, row: dict[str, Any], size: Size | None) -> dict[str, Any]:
    """A mask by the corners of its box, both of them inside, and a PNG of what is in the box."""
    if size is None:
        raise BadInput("a mask without the size of its image")
    if len(points) != 2:
        raise BadInput("the box of a mask is not two points")
    patch = _png(row.get("mask"))
    (x0, y0), (x1, y1) = np.rint(points).clip(-(2**31), 2**31).astype(int).tolist()
    if patch.shape != (y1 - y0 + 1, x1 - x0 + 1):
        raise BadInput("a mask is not of the size of its box")
    height, width = size
    patch = patch[max(0, -y0) : max(0, height - y0), max(0, -x0) : max(0, width - x0)]
    if not patch.size:
        raise BadInput("a mask lies outside the image")
    return encode_patch_rle(patch, (max(0, y0), max(0, x0)), size)


def _png(value: Any) -> np.ndarray:
    """The mask (h, w) bool of a PNG in base64; nonzero is inside."""
    from PIL import Image

    if not isinstance(value, str):
        raise BadInput("a mask has no PNG")
    try:
        content = base64.b64decode(value, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadInput("a mask is larger than an image may be")
            pixels = np.asarray(opened)
    except BadInput:
        raise
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        raise BadInput("the PNG of a mask cannot be read") from None
    if pixels.ndim != 2:
        raise BadInput("the PNG of a mask has colours")
    return pixels != 0


OUTLINES: dict[str, Callable[[Points, dict[str, Any], Size | None], list | dict[str, Any]]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "rotation": _polygon,  # X-AnyLabeling's turned rectangle
    "oriented_rectangle": _polygon,
    "quadrilateral": _polygon,
    "circle": _circle,
    "mask": _mask,
}

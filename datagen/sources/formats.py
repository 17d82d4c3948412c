"""Reads annotations in several formats as one stream of COCO's rows, whatever their size.

    for table, row in rows_of("labelme", Path("photos"), Path("photos")): ...   # ("images", {"id": 1, ...})

coco, lvis and egoobjects are one JSON file; labelme is a folder with a NAME.json per image; labels is a
folder with an index PNG per image and names.json, a list by number or {number: name}, in it or up to two
folders up; none is a folder of images without annotations. A change of what is read needs a new
`datagen.versions.ANNOTATION_READER_VERSION`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.images import image_size, images_in
from assistant.sam.mask_ops import encode_rle

# Names that data sets give to pixels which show no object.
BACKGROUND_NAMES = {"void", "unlabelled", "unlabeled", "ignore", "null", "background", "_background_"}
TABLES = ("categories", "images", "annotations")

Row = tuple[str, dict[str, Any]]  # (name of a table of COCO's, its row)
Shape = tuple[str, list | dict]  # (name, COCO polygons or RLE)
AnnotatedFile = tuple[str, tuple[int, int], list[Shape]]  # (file name, (height, width) px, its shapes)


def rows_of(format: str, annotations: Path | None, images: Path) -> Iterator[Row]:
    """Read annotations.

    Args:
        format: One of `datagen.settings.FORMATS`.
        annotations: Their file or folder; None only for the format "none".
        images: Folder with the images.

    Yields:
        (table, row): rows of COCO's "categories", "images" and "annotations". A category comes before its
        annotations.

    Raises:
        BadInput: The annotations cannot be read, or are not in this format.
    """
    try:
        if annotations is None:
            yield from _coco_rows(_unannotated(images))
        elif format == "labelme":
            yield from _coco_rows(_labelme(annotations))
        elif format == "labels":
            names = _label_names(annotations)
            yield from _coco_rows(_label_maps(annotations, images, names), names.values())
        else:
            yield from _coco_file(annotations, format)
    except OSError as error:
        raise BadInput(
            f"cannot read {annotations} ({error.strerror}); --annotations names the annotations"
        ) from None
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(
            f"{annotations} is not in the format {format}: {type(error).__name__} {error}"
        ) from None


def _unannotated(images: Path) -> Iterator[AnnotatedFile]:
    """All images of a folder that can be read."""
    for file in images_in(images):
        try:
            yield file.name, image_size(file), []
        except BadInput:
            continue


def _coco_file(annotations: Path, format: str) -> Iterator[Row]:
    """The rows of a file in COCO's layout.

    LVIS and EgoObjects give an image's name only as the end of its address, and write names like
    "cup_(drinking)"; PACO writes the parts of objects as "mug:handle".
    """
    import ijson

    for table in TABLES:
        is_empty = True
        with annotations.open("rb") as file:
            try:
                for row in ijson.items(file, f"{table}.item", use_float=True):
                    is_empty = False
                    if format != "coco" and table == "images" and not row.get("file_name"):
                        address = str(row.get("coco_url") or row["url"])
                        row = row | {"file_name": address.rsplit("/", 1)[1]}
                    elif format != "coco" and table == "categories":
                        row = row | {"name": row["name"].split("_(")[0].replace("_", " ")}
                    yield table, row
            except ijson.JSONError as error:
                raise ValueError(f"not JSON ({' '.join(str(error).split())[:80]})") from None
        if is_empty and table != "annotations":
            raise BadInput(
                f"{annotations} is not COCO's json with images, annotations and categories: it has no {table}"
            )


def _coco_rows(files: Iterator[AnnotatedFile], names: Iterable[str] = ()) -> Iterator[Row]:
    """COCO's rows of annotated files. names: what the data set outlines in every image that shows it."""
    from pycocotools import mask as coco_mask

    annotation_count = 0
    exhaustive = dict.fromkeys(name for name in names if name not in BACKGROUND_NAMES)
    numbers = {name: number for number, name in enumerate(exhaustive, 1)}
    for name, number in numbers.items():
        yield "categories", {"id": number, "name": name}
    for image_number, (file, (height, width), shapes) in enumerate(files, 1):
        yield "images", {"id": image_number, "file_name": file, "height": height, "width": width}
        for name, shape in shapes:
            if name not in numbers:
                numbers[name] = len(numbers) + 1
                yield "categories", {"id": numbers[name], "name": name}
            annotation_count += 1
            if isinstance(shape, dict):
                rle = shape
            else:
                rle = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            yield (
                "annotations",
                {
                    "id": annotation_count,
                    "image_id": image_number,
                    "category_id": numbers[name],
                    "segmentation": shape,
                    "iscrowd": 0,
                    "area": float(coco_mask.area(rle)),
                    "bbox": [float(v) for v in coco_mask.toBbox(rle)],
                },
            )


def _labelme(folder: Path) -> Iterator[AnnotatedFile]:
    """LabelMe: shapes of one group_id are one instance; points and lines have no mask and are left out."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BadInput(f"no NAME.json in {folder}: --annotations names LabelMe's folder")
    for file in files:
        row = json.loads(file.read_text(encoding="utf-8"))
        instances: dict[object, tuple[str, list]] = {}
        for number, shape in enumerate(row["shapes"]):
            polygon = _labelme_polygon(shape)
            if polygon is None:
                continue
            group = shape.get("group_id")
            name = str(shape["label"]).strip().lower()
            key = number if group is None else (name, group)
            instances.setdefault(key, (name, []))[1].append(polygon)
        file_name = Path(str(row["imagePath"]).replace("\\", "/")).name
        size = (int(row["imageHeight"]), int(row["imageWidth"]))
        yield file_name, size, list(instances.values())


def _labelme_polygon(shape: dict[str, Any]) -> list[float] | None:
    """[x, y, ...] in px of a polygon or a rectangle; None of a shape without an area."""
    points = np.asarray(shape["points"], float).reshape(-1, 2)
    kind = shape.get("shape_type", "polygon")
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif kind != "polygon" or len(points) < 3:
        return None
    return points.ravel().tolist()


def _label_names(folder: Path) -> dict[int, str]:
    """{number: name} of the names.json that goes with a folder of index PNGs."""
    candidates = [parent / "names.json" for parent in (folder, *folder.resolve().parents[:2])]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise BadInput(f"no index PNGs with a names.json in {folder}")
    names = json.loads(file.read_text(encoding="utf-8"))
    pairs = enumerate(names) if isinstance(names, list) else names.items()
    return {int(number): str(name).strip().lower() for number, name in pairs}


def _label_maps(folder: Path, images: Path, names: dict[int, str]) -> Iterator[AnnotatedFile]:
    """Index PNGs: all pixels of a name are one instance, since a map does not tell one car from the next."""
    from PIL import Image

    maps = sorted(folder.glob("*.png"))
    if not maps:
        raise BadInput(f"no index PNGs with a names.json in {folder}")
    image_files = {file.stem: file for file in sorted(images.glob("*"), reverse=True)}
    for file in maps:
        if file.stem not in image_files:
            raise BadInput(f"no image in {images} for {file.name}")
        with Image.open(file) as opened:
            index = np.asarray(opened)
        if index.ndim != 2 or index.shape != image_size(image_files[file.stem]):
            raise BadInput(f"{file} has shape {index.shape}, not its image's height and width")
        present = [int(v) for v in np.unique(index) if names.get(int(v), "void") not in BACKGROUND_NAMES]
        shapes: list[Shape] = [(names[value], encode_rle(index == value)) for value in present]
        yield image_files[file.stem].name, (index.shape[0], index.shape[1]), shapes

"""Annotations in several formats, as one stream of COCO's rows; a file of any size is never in memory as a whole.

    for table, row in rows_of("labelme", Path("photos"), Path("photos")): ...      # ("images", {"id": 1, ...}), ...

coco, lvis and egoobjects are one JSON file; labelme is a folder with a NAME.json per picture; labels is a folder with
an index PNG per picture and names.json, a list by number or {number: name}, in it or up to two folders up; none is a
folder of pictures about which nothing is known.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.images import picture_size, pictures_in
from assistant.record import to_rle

NOTHING = {"void", "unlabelled", "unlabeled", "ignore", "null", "background", "_background_"}
TABLES = ("categories", "images", "annotations")


def rows_of(kind: str, annotations: Path | None, images: Path) -> Iterator[tuple[str, dict]]:
    """(table, row) of annotations in one of these formats. BadInput where they are not what `kind` says."""
    try:
        if kind == "none":
            yield from _collect(unlabelled(images))
        elif kind == "labelme":
            yield from _collect(labelme(annotations, images))
        elif kind == "labels":
            yield from _collect(labels(annotations, images), label_names(annotations).values())
        else:
            yield from one_file(annotations, kind)
    except OSError as error:
        raise BadInput(
            f"cannot read {annotations} ({error.strerror}); --annotations names the annotations"
        ) from None
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(f"{annotations} is not in the format {kind}: {type(error).__name__} {error}") from None


def unlabelled(images: Path) -> Iterator[tuple[str, tuple[int, int], list]]:
    """All pictures that can be read."""
    for file in pictures_in(images):
        try:
            yield file.name, picture_size(file), []
        except BadInput:
            continue


def one_file(annotations: Path, kind: str) -> Iterator[tuple[str, dict]]:
    """COCO's object. LVIS and EgoObjects write a picture's name only at the end of its address, and names like
    "cup_(drinking)"; PACO writes the parts of things as "mug:handle"."""
    import ijson

    for table in TABLES:
        found = False
        with annotations.open("rb") as file:
            try:
                for row in ijson.items(file, f"{table}.item", use_float=True):
                    found = True
                    if kind != "coco" and table == "images" and not row.get("file_name"):
                        row = row | {"file_name": str(row.get("coco_url") or row["url"]).rsplit("/", 1)[1]}
                    elif kind != "coco" and table == "categories":
                        row = row | {"name": row["name"].split("_(")[0].replace("_", " ")}
                    yield table, row
            except ijson.JSONError as error:
                raise ValueError(f"not JSON ({' '.join(str(error).split())[:80]})") from None
        if not found and table != "annotations":
            raise BadInput(
                f"{annotations} is not COCO's json with images, annotations and categories: it has no {table}"
            )


Shapes = list[tuple[str, list | dict]]  # (name, polygons or RLE)


def _collect(
    pictures: Iterator[tuple[str, tuple[int, int], Shapes]], names: Iterable[str] = ()
) -> Iterator[tuple[str, dict]]:
    """COCO's rows of (file name, (h, w), shapes) per picture; names: what is outlined wherever it is, if anywhere."""
    from pycocotools import mask as coco_mask

    count = 0
    some = dict.fromkeys(name for name in names if name not in NOTHING)
    numbers = {name: number for number, name in enumerate(some, 1)}
    for name, number in numbers.items():
        yield "categories", {"id": number, "name": name}
    for number, (file, (height, width), shapes) in enumerate(pictures, 1):
        yield "images", {"id": number, "file_name": file, "height": height, "width": width}
        for name, shape in shapes:
            if name not in numbers:
                numbers[name] = len(numbers) + 1
                yield "categories", {"id": numbers[name], "name": name}
            count += 1
            rle = (
                shape
                if isinstance(shape, dict)
                else coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            )
            yield (
                "annotations",
                {
                    "id": count,
                    "image_id": number,
                    "category_id": numbers[name],
                    "segmentation": shape,
                    "iscrowd": 0,
                    "area": float(coco_mask.area(rle)),
                    "bbox": [float(v) for v in coco_mask.toBbox(rle)],
                },
            )


def labelme(folder: Path, images: Path) -> Iterator[tuple[str, tuple[int, int], Shapes]]:
    """LabelMe: shapes of one group_id are one thing; rectangles are taken as they are, points and lines have no mask."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BadInput(f"no NAME.json in {folder}: --annotations names LabelMe's folder")
    for file in files:
        row = json.loads(file.read_text(encoding="utf-8"))
        things: dict[object, tuple[str, list]] = {}
        for k, shape in enumerate(row["shapes"]):
            points = np.asarray(shape["points"], float).reshape(-1, 2)
            kind = shape.get("shape_type", "polygon")
            if kind == "rectangle" and len(points) == 2:
                (x0, y0), (x1, y1) = points
                points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
            elif kind != "polygon" or len(points) < 3:
                continue
            group = shape.get("group_id")
            name = str(shape["label"]).strip().lower()
            things.setdefault((name, group) if group is not None else k, (name, []))[1].append(
                points.ravel().tolist()
            )
        name, size = (
            Path(str(row["imagePath"]).replace("\\", "/")).name,
            (int(row["imageHeight"]), int(row["imageWidth"])),
        )
        yield name, size, list(things.values())


def label_names(folder: Path) -> dict[int, str]:
    """names.json of a folder of index PNGs: {number: name}. Raises BadInput where there is none."""
    places = [place / "names.json" for place in (folder, *folder.resolve().parents[:2])]
    table = next((place for place in places if place.is_file()), None)
    if table is None:
        raise BadInput(f"no index PNGs with a names.json in {folder}")
    names = json.loads(table.read_text(encoding="utf-8"))
    return {
        int(k): str(v).strip().lower()
        for k, v in (enumerate(names) if isinstance(names, list) else names.items())
    }


def labels(folder: Path, images: Path) -> Iterator[tuple[str, tuple[int, int], Shapes]]:
    """Index PNGs: each name's pixels are one thing (a map does not tell one car from the next)."""
    from PIL import Image

    named, files = label_names(folder), sorted(folder.glob("*.png"))
    if not files:
        raise BadInput(f"no index PNGs with a names.json in {folder}")
    pictures = {f.stem: f for f in sorted(images.glob("*"), reverse=True)}
    for file in files:
        if file.stem not in pictures:
            raise BadInput(f"no picture in {images} for {file.name}")
        with Image.open(file) as opened:
            index = np.asarray(opened)
        if index.ndim != 2 or index.shape != picture_size(pictures[file.stem]):
            raise BadInput(f"{file} has shape {index.shape}, not its picture's height and width")
        there = [int(v) for v in np.unique(index) if named.get(int(v), "void") not in NOTHING]
        yield pictures[file.stem].name, index.shape, [(named[v], to_rle(index == v)) for v in there]

"""Reads annotations in several formats as one stream of COCO's rows, whatever their size.

    for table, row in rows_of("labelme", Path("photos"), Path("photos")): ...   # ("images", {"id": 1, ...})

coco, lvis and egoobjects are one JSON file; labelme is a folder with a NAME.json per image; labels is a
folder with an index PNG per image and names.json, a list by number or {number: name}, in it or up to two
folders up; none is a folder of images without annotations. A change of what is read needs a new
`datagen.versions.ANNOTATION_READER_VERSION`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.files import read_json
from assistant.images import image_size, images_by_stem, images_in
from assistant.mask_images import open_label_map
from assistant.sam.mask_ops import encode_rle
from datagen.sources.coco_file import read_coco_file
from datagen.sources.labelme import read_labelme
from datagen.sources.rows import AnnotatedFile, Row, Shape, skipped

# Names that data sets give to pixels which show no object.
BACKGROUND_NAMES = {"void", "unlabelled", "unlabeled", "ignore", "null", "background", "_background_"}


def rows_of(format: str, annotations: Path | None, images: Path) -> Iterator[Row]:
    """Read annotations.

    Args:
        format: One of `datagen.settings.FORMATS`.
        annotations: Their file or folder; None only for the format "none".
        images: Folder with the images.

    Yields:
        (table, row): rows of COCO's "categories", "images" and "annotations", as they are in the file: each
        field may be missing or of another type. Rows of "without_outline" say what is in an image and why it
        has no outline; those of "skipped" name what cannot be used at all, see `rows.skipped`.

    Raises:
        BadInput: The annotations cannot be read, or are not in this format.
    """
    try:
        if annotations is None:
            yield from _coco_rows(_unannotated(images))
        elif format == "labelme":
            yield from _coco_rows(read_labelme(annotations, images))
        elif format == "labels":
            names = _label_names(annotations)
            yield from _coco_rows(_label_maps(annotations, images, names), names.values())
        else:
            yield from read_coco_file(annotations, format)
    except OSError as error:
        raise BadInput(
            f"cannot read {annotations} ({error.strerror}); --annotations names the annotations"
        ) from None


def _unannotated(images: Path) -> Iterator[AnnotatedFile]:
    """All images of a folder that can be read."""
    for file in images_in(images):
        try:
            yield AnnotatedFile(file.name, image_size(file), [])
        except BadInput:
            continue


def _coco_rows(files: Iterator[AnnotatedFile | Row], names: Iterable[str] = ()) -> Iterator[Row]:
    """COCO's rows of annotated files. names: what the data set outlines in every image that shows it."""
    exhaustive = dict.fromkeys(name for name in names if name not in BACKGROUND_NAMES)
    numbers = {name: number for number, name in enumerate(exhaustive, 1)}
    for name, number in numbers.items():
        yield "categories", {"id": number, "name": name}
    image_count = annotation_count = 0
    without_outline: list[tuple[int, Shape]] = []
    for file in files:
        if not isinstance(file, AnnotatedFile):
            yield file
            continue
        image_count += 1
        height, width = file.size or (None, None)
        yield "images", {"id": image_count, "file_name": file.name, "height": height, "width": width}
        for shape in file.shapes:
            if shape.fault or shape.name is None:
                without_outline.append((image_count, shape))
                continue
            if shape.name not in numbers:
                numbers[shape.name] = len(numbers) + 1
                yield "categories", {"id": numbers[shape.name], "name": shape.name}
            annotation_count += 1
            yield (
                "annotations",
                {
                    "id": annotation_count,
                    "image_id": image_count,
                    "category_id": numbers[shape.name],
                    "segmentation": shape.segmentation,
                },
            )
    yield from _rows_without_outline(without_outline, numbers)


def _rows_without_outline(shapes: list[tuple[int, Shape]], numbers: dict[str, int]) -> Iterator[Row]:
    """COCO's rows of shapes that have no outline: what they name is there all the same.

    They come last, so that they change the numbers of no other row.
    """
    for image_number, shape in shapes:
        if shape.name is not None and shape.name not in numbers:
            numbers[shape.name] = len(numbers) + 1
            yield "categories", {"id": numbers[shape.name], "name": shape.name}
        category = None if shape.name is None else numbers[shape.name]
        fault = shape.fault or "labelme: a shape without a label"
        yield "without_outline", {"image_id": image_number, "category_id": category, "fault": fault}


def _label_names(folder: Path) -> dict[int, str]:
    """{number: name} of the names.json that goes with a folder of index PNGs."""
    candidates = [parent / "names.json" for parent in (folder, *folder.resolve().parents[:2])]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise BadInput(f"no index PNGs with a names.json in {folder}")
    names = read_json(file)
    try:
        pairs = enumerate(names) if isinstance(names, list) else names.items()
        return {int(number): str(name).strip().lower() for number, name in pairs}
    except (ValueError, AttributeError):
        raise BadInput(f"{file} must be a list of names, or an object by number") from None


def _label_maps(folder: Path, images: Path, names: dict[int, str]) -> Iterator[AnnotatedFile | Row]:
    """Index PNGs: all pixels of a name are one instance, since a map does not tell one car from the next."""
    maps = sorted(folder.glob("*.png"))
    if not maps:
        raise BadInput(f"no index PNGs with a names.json in {folder}")
    image_files = images_by_stem(images)
    for file in maps:
        image = image_files.get(file.stem)
        if image is None:
            yield skipped("label map: there is no image for it", file.name)
            continue
        try:
            index, size = open_label_map(file), image_size(image)
            if index.shape != size:
                raise BadInput(f"{file.name} has shape {index.shape}, its image {size}")
        except BadInput as error:
            reason = "label map: it cannot be read, or its shape is not its image's height and width"
            yield skipped(reason, error)
            continue
        present = [int(v) for v in np.unique(index) if names.get(int(v), "void") not in BACKGROUND_NAMES]
        shapes = [Shape(names[value], encode_rle(index == value)) for value in present]
        yield AnnotatedFile(image.name, (index.shape[0], index.shape[1]), shapes)

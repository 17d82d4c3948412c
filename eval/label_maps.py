"""Images with label maps in their public layouts: ADE20K, COCO-Stuff, Cityscapes, or a plain folder.

data = find_layout(root, "val")
data.names; data.pairs[0]; data.read(data.pairs[0][1])     # (H, W) int64 class numbers, -1: unlabelled
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.files import read_json, read_text, replace_whole
from assistant.images import images_by_stem
from assistant.mask_images import open_label_map

UNLABELLED_NAMES = {"void", "unlabelled", "unlabeled", "ignore", "null"}
NO_LABEL = 65535  # what `save_label_map` writes for -1
# Label numbers of Cityscapes' 19 evaluated classes.
CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
# Lines of COCO-Stuff's labels.txt that no pixel has.
COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


@dataclass(frozen=True)
class LabelMaps:
    """A data set of label maps.

    Attributes:
        layout: The name of its layout.
        names: The names of its K classes.
        numbers: {stored pixel value: class, 0 to K - 1}; other values are unlabelled.
        pairs: (image file, label map file) of every image.
    """

    layout: str
    names: list[str]
    numbers: dict[int, int]
    pairs: list[tuple[Path, Path]]

    def read(self, file: Path) -> np.ndarray:
        """The class of each pixel of a label map, (H, W) int64, -1 where it has none.

        Raises BadInput where the file cannot be read.
        """
        stored = open_label_map(file)
        values, index = np.unique(stored, return_inverse=True)
        return np.array([self.numbers.get(int(v), -1) for v in values])[index].reshape(stored.shape)


def read_label_map(folder: Path, stem: str, classes: int) -> np.ndarray:
    """Read a label map that `save_label_map` or another model wrote.

    Args:
        folder: The folder of label maps.
        stem: The name of the file, without .png.
        classes: Number of classes; any other stored number means no class.

    Returns:
        (H, W) int16, class numbers from 0, -1 for no class.

    Raises:
        BadInput: The file is missing or is not a label map.
    """
    file = folder / f"{stem}.png"
    if not file.exists():
        raise BadInput(f"no prediction {file}")
    return LabelMaps("predictions", [], {k: k for k in range(classes)}, []).read(file).astype(np.int16)


def save_label_map(out: Path, stem: str, label_map: np.ndarray) -> None:
    """Write a label map (H, W) int16 to out/label_maps/STEM.png, 65535 where a pixel has no class (-1)."""
    from PIL import Image

    with replace_whole(out / "label_maps" / f"{stem}.png") as path:
        Image.fromarray(label_map.astype(np.uint16)).save(path, "PNG")


def find_layout(root: Path, split: str) -> LabelMaps:
    """Find which layout a folder has.

    Args:
        root: The folder of the data set.
        split: Part of the data set, such as "val".

    Returns:
        Its classes and files.

    Raises:
        BadInput: The folder has no known layout, or no label map for the split.
    """
    stuff = next(
        (root / n for n in ("stuffthingmaps_trainval2017", "stuffthingmaps") if (root / n).is_dir()), None
    )
    if (root / "gtFine").is_dir():
        data = _cityscapes(root, split)
    elif (root / "objectInfo150.txt").is_file():
        data = _ade20k(root, split)
    elif stuff is not None:
        data = _coco_stuff(root, stuff, split)
    else:
        data = _plain_folder(root, split)
    if not data.pairs:
        raise BadInput(f"no label map of {data.layout} in {root} for the split {split}")
    return data


def _cityscapes(root: Path, split: str) -> LabelMaps:
    """gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png and leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png."""
    labels = sorted((root / "gtFine" / split).glob("*/*_gtFine_labelIds.png"))
    images = [
        root / "leftImg8bit" / split / file.parent.name / file.name.replace("gtFine_labelIds", "leftImg8bit")
        for file in labels
    ]
    numbers = {number: k for k, number in enumerate(CITYSCAPES)}
    return LabelMaps("Cityscapes", list(CITYSCAPES.values()), numbers, list(zip(images, labels, strict=True)))


def _ade20k(root: Path, split: str) -> LabelMaps:
    """objectInfo150.txt, images/PART/NAME.jpg and annotations/PART/NAME.png; number 0 is unlabelled."""
    part = {"val": "validation", "train": "training"}.get(split, split)
    rows = read_text(root / "objectInfo150.txt").splitlines()[1:]
    names = [row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip()]
    labels = sorted((root / "annotations" / part).glob("*.png"))
    pairs = [(root / "images" / part / f"{file.stem}.jpg", file) for file in labels]
    return LabelMaps("ADE20K", names, {k + 1: k for k in range(len(names))}, pairs)


def _coco_stuff(root: Path, stuff: Path, split: str) -> LabelMaps:
    """labels.txt, SPLIT2017/NAME.jpg, and maps in `stuff`, whose numbers are those of labels.txt less 1."""
    table = next((file for file in (root / "labels.txt", stuff / "labels.txt") if file.is_file()), None)
    if table is None:
        raise BadInput(f"no labels.txt in {root}: COCO-Stuff's list of names")
    rows = [re.match(r"\s*(\d+)\s*:\s*(.+?)\s*$", line) for line in read_text(table).splitlines()]
    named = {int(r[1]): re.sub(r"-(other|merged|stuff)\b", "", r[2]).replace("-", " ") for r in rows if r}
    named = {number: name for number, name in named.items() if number and number not in COCO_UNUSED}
    part = split if split.endswith("2017") else f"{split}2017"
    images = root / "images" / part if (root / "images" / part).is_dir() else root / part
    return LabelMaps(
        "COCO-Stuff",
        list(named.values()),
        {number - 1: k for k, number in enumerate(named)},
        [(images / f"{file.stem}.jpg", file) for file in sorted((stuff / part).glob("*.png"))],
    )


def _plain_folder(root: Path, split: str) -> LabelMaps:
    """images/NAME.* and labels/NAME.png in ROOT or ROOT/SPLIT, and names.json beside them or one folder up.

    names.json is a list by number or {number: name}; what is called void or unlabelled does not count.
    """
    folder = root / split if (root / split / "labels").is_dir() else root
    file = next((f for f in (folder / "names.json", folder.parent / "names.json") if f.is_file()), None)
    if file is None or not (folder / "labels").is_dir():
        raise BadInput(
            f"{root} has no known layout: gtFine, objectInfo150.txt, stuffthingmaps_trainval2017, "
            "or images, labels and names.json"
        )
    names = read_json(file)
    try:
        named = {int(k): str(v) for k, v in (enumerate(names) if isinstance(names, list) else names.items())}
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{file} must be a list of names, or an object by number ({error})") from None
    named = {number: name for number, name in named.items() if name.lower() not in UNLABELLED_NAMES}
    images = images_by_stem(folder / "images")
    pairs = [
        (images.get(label.stem, folder / "images" / f"{label.stem}.jpg"), label)
        for label in sorted((folder / "labels").glob("*.png"))
    ]
    return LabelMaps("label maps", list(named.values()), {number: k for k, number in enumerate(named)}, pairs)

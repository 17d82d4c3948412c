"""Pictures with label maps in their public layouts: a folder of ours, ADE20K, COCO-Stuff, Cityscapes.

data = find_layout(root, "val")
data.names; data.pairs[0]; data.read(data.pairs[0][1])     # (H, W) int64 class numbers, -1: unlabelled
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput

UNLABELLED = {"void", "unlabelled", "unlabeled", "ignore", "null"}
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
COCO_UNUSED = {
    12,
    26,
    29,
    30,
    45,
    66,
    68,
    69,
    71,
    83,
    91,
}  # lines of COCO-Stuff's labels.txt that no pixel has


@dataclass(frozen=True)
class LabelMaps:
    """names: of the K classes; numbers: a stored pixel value -> its class, 0 to K - 1; pairs: (picture, label map)."""

    layout: str
    names: list[str]
    numbers: dict[int, int]
    pairs: list[tuple[Path, Path]]

    def read(self, file: Path) -> np.ndarray:
        """(H, W) int64, the class of each pixel, -1 where it has none."""
        from PIL import Image

        try:
            with Image.open(file) as opened:
                stored = np.asarray(opened)  # numbers as stored: a palette is only for looking
        except OSError as error:
            raise BadInput(f"{file} is not a label map: {error}") from None
        if stored.ndim != 2:
            raise BadInput(f"{file} is not a label map: it has {stored.ndim} dimensions")
        values, index = np.unique(stored, return_inverse=True)
        return np.array([self.numbers.get(int(v), -1) for v in values])[index].reshape(stored.shape)


def find_layout(root: Path, split: str) -> LabelMaps:
    """The layout that `root` has; BadInput where it has none, or no label map."""
    if (root / "gtFine").is_dir():
        labels = sorted((root / "gtFine" / split).glob("*/*_gtFine_labelIds.png"))
        pictures = [
            root / "leftImg8bit" / split / f.parent.name / f.name.replace("gtFine_labelIds", "leftImg8bit")
            for f in labels
        ]
        found = LabelMaps(
            "Cityscapes",
            list(CITYSCAPES.values()),
            {v: k for k, v in enumerate(CITYSCAPES)},
            list(zip(pictures, labels)),
        )
    elif (root / "objectInfo150.txt").is_file():
        part = {"val": "validation", "train": "training"}.get(split, split)
        rows = (root / "objectInfo150.txt").read_text().splitlines()[1:]
        names = [row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip()]
        labels = sorted((root / "annotations" / part).glob("*.png"))
        found = LabelMaps(
            "ADE20K",
            names,
            {k + 1: k for k in range(len(names))},
            [(root / "images" / part / f"{f.stem}.jpg", f) for f in labels],
        )
    elif stuff := next(
        (root / n for n in ("stuffthingmaps_trainval2017", "stuffthingmaps") if (root / n).is_dir()), None
    ):
        table = next((f for f in (root / "labels.txt", stuff / "labels.txt") if f.is_file()), None)
        if table is None:
            raise BadInput(f"no labels.txt in {root}: COCO-Stuff's list of names")
        rows = [re.match(r"\s*(\d+)\s*:\s*(.+?)\s*$", line) for line in table.read_text().splitlines()]
        named = {int(r[1]): re.sub(r"-(other|merged|stuff)\b", "", r[2]).replace("-", " ") for r in rows if r}
        named = {k: v for k, v in named.items() if k and k not in COCO_UNUSED}
        part = split if split.endswith("2017") else f"{split}2017"
        pictures = root / "images" / part if (root / "images" / part).is_dir() else root / part
        found = LabelMaps(
            "COCO-Stuff",
            list(named.values()),
            {number - 1: k for k, number in enumerate(named)},
            [(pictures / f"{f.stem}.jpg", f) for f in sorted((stuff / part).glob("*.png"))],
        )
    else:
        found = own_folder(root, split)
    if not found.pairs:
        raise BadInput(f"no label map of {found.layout} in {root} for the split {split}")
    return found


def own_folder(root: Path, split: str) -> LabelMaps:
    """images/NAME.* and labels/NAME.png in `root` or `root`/SPLIT; names.json, a list by number or {number: name},
    beside them or one folder up. What is called void or unlabelled does not count."""
    folder = root / split if (root / split / "labels").is_dir() else root
    file = next((f for f in (folder / "names.json", folder.parent / "names.json") if f.is_file()), None)
    if file is None or not (folder / "labels").is_dir():
        raise BadInput(
            f"{root} has no layout that is known: gtFine, objectInfo150.txt, stuffthingmaps_trainval2017, "
            "or images, labels and names.json"
        )
    try:
        names = json.loads(file.read_text())
        named = {int(k): str(v) for k, v in (enumerate(names) if isinstance(names, list) else names.items())}
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{file} must be a list of names, or an object by number ({error})") from None
    named = {k: v for k, v in named.items() if v.lower() not in UNLABELLED}
    pictures = {f.stem: f for f in sorted((folder / "images").glob("*"), reverse=True)}
    pairs = [
        (pictures.get(f.stem, folder / "images" / f"{f.stem}.jpg"), f)
        for f in sorted((folder / "labels").glob("*.png"))
    ]
    return LabelMaps("label maps", list(named.values()), {v: k for k, v in enumerate(named)}, pairs)

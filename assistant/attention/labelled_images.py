"""Photos with a class at every pixel, from VOC's layout, COCO's, or a COCO-format folder.

names, photos = read_labelled("../shared/data/coco/dev")         # instances.json and images/
names, photos = read_labelled("VOC2012", "val")                  # JPEGImages, SegmentationClass, ImageSets
names, photos = read_labelled("COCO", "val2017")                 # annotations/instances_val2017.json, val2017/
photos[0].read()             # (H, W) int64: 0 background, k = names[k - 1], -1 not counted
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.sam.mask_ops import decode_rle, rle_of_segmentation

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
).split()
SPOKEN = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "television",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
}  # as a model says them


@dataclass(frozen=True)
class Labelled:
    path: Path
    read: Callable[[], np.ndarray]


def read_labelled(root: str | Path, split: str = "val") -> tuple[list[str], list[Labelled]]:
    """The names of the classes and the photos. Crowds do not count; where objects overlap, the smaller lies on top
    (COCO has no order). BadInput: a layout that is not known, or a file of it that cannot be read."""
    root = Path(root)
    if (root / "SegmentationClass").is_dir():
        return _read_voc(root, split)
    for file, folders in (
        (root / "instances.json", ["images"]),
        (root / "annotations" / f"instances_{split}.json", [split, f"images/{split}", "images"]),
    ):
        if file.is_file():
            return _read_coco(file, [root / f for f in folders])
    raise BadInput(
        f"{root} has no layout that is known: instances.json and images; "
        f"annotations/instances_{split}.json; or VOC's JPEGImages, SegmentationClass and "
        "ImageSets/Segmentation"
    )


def _read_coco(file: Path, folders: list[Path]) -> tuple[list[str], list[Labelled]]:
    try:
        data = json.loads(file.read_text())
        number = {c["id"]: k + 1 for k, c in enumerate(data["categories"])}
        names = [c["name"] for c in data["categories"]]
        of: dict[int, list] = {i["id"]: [] for i in data["images"]}
        for a in data["annotations"]:
            if a["segmentation"] and a["image_id"] in of:
                of[a["image_id"]].append(
                    (-1 if a.get("iscrowd") else number[a["category_id"]], a["segmentation"])
                )
        images = [(i["file_name"], int(i["height"]), int(i["width"]), of[i["id"]]) for i in data["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is not a COCO instances file: {type(error).__name__} {error}") from None
    folder = next((f for f in folders if f.is_dir()), folders[0])

    def reader(height: int, width: int, objects: list) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            masks = [(k, decode_rle(rle_of_segmentation(s, height, width)).astype(bool)) for k, s in objects]
            label = np.zeros((height, width), np.int64)
            for k, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
                label[mask] = k
            return label

        return read

    return names, [Labelled(folder / name, reader(h, w, objects)) for name, h, w, objects in images]


def _read_voc(root: Path, split: str) -> tuple[list[str], list[Labelled]]:
    from PIL import Image

    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        stems = file.read_text().split()
    except OSError as error:
        raise BadInput(f"{file} cannot be read: choose a --split that VOC has ({error})") from None

    def reader(path: Path) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                with Image.open(path) as opened:
                    stored = np.asarray(opened).astype(
                        np.int64
                    )  # numbers as stored: the palette is only for looking
            except OSError as error:
                raise BadInput(f"{path} is not a label map: {error}") from None
            return np.where(stored <= len(VOC), stored, -1)

        return read

    return [SPOKEN.get(n, n) for n in VOC], [
        Labelled(root / "JPEGImages" / f"{s}.jpg", reader(root / "SegmentationClass" / f"{s}.png"))
        for s in stems
    ]
